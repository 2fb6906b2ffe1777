"""Coherence between clocks and the level at which it is too little, against signals whose SNR is known."""

from __future__ import annotations

import numpy as np
import pytest

from neurofuse.recording import Recording, Signal
from neurofuse.study.coherence import amplitude_needed, critical_level, evidence
from neurofuse.theory.critical import critical_noise
from neurofuse.tokens import Tokens, tokenize

BAND_HZ, STEP_S = 5.0, 0.02


def shared(snr_1: float, level: float, *, seed: int, n_more: int = 0, duration_s: float = 300.0) -> Tokens:
    """A flat band seen on two clocks through white noise; the second's has `level` times the signal's std in band.

    `n_more` features of noise alone stand beside it on each clock.
    """
    rng = np.random.default_rng(seed)
    n = round(duration_s / STEP_S)
    spectrum = np.fft.rfft(rng.standard_normal(n))
    spectrum[np.fft.rfftfreq(n, STEP_S) > BAND_HZ] = 0
    signal = np.fft.irfft(spectrum, n)
    signal /= signal.std()
    # White noise has this much more power than it has in the band.
    more = np.sqrt(0.5 / STEP_S / BAND_HZ)

    def stream(clock: str, noise: float) -> Signal:
        values = np.concatenate(
            [
                (signal + more * noise * rng.standard_normal(n))[:, None],
                rng.standard_normal((n, n_more)),
            ],
            axis=1,
        )
        return Signal.from_array(values, name=clock, clock=clock, rate_hz=1 / STEP_S, kind="power")

    streams = (stream("first", 1 / np.sqrt(snr_1)), stream("second", np.hypot(level, 0.05)))
    return tokenize(Recording("known", "first", streams), token_s=STEP_S)


@pytest.mark.parametrize(("snr_1", "level"), [(1.0, 0.0), (1.0, 1.0), (3.0, 0.5), (0.5, 2.0)])
def test_bandwidth_and_coherence_of_a_known_band_are_found(snr_1, level):
    clean = [evidence(shared(snr_1, 0.0, seed=seed)) for seed in range(4)]
    found = [evidence(shared(snr_1, level, seed=s), shared=clean[s].shared) for s in range(4)]
    expected = 2 * BAND_HZ * snr_1 / (1 + snr_1) / (1 + level**2)
    assert np.mean([f.per_s for f in found]) == pytest.approx(expected, rel=0.12)
    assert np.mean([f.bandwidth_hz for f in clean]) == pytest.approx(BAND_HZ, rel=0.1)


def test_features_that_share_nothing_add_nothing():
    alone = evidence(shared(1.0, 1.0, seed=0))
    among = evidence(shared(1.0, 1.0, seed=0, n_more=20))
    assert among.per_s == pytest.approx(alone.per_s, rel=0.25)
    nothing = evidence(shared(1e-6, 1e3, seed=0, n_more=20))
    assert nothing.amplitude(4.0) < amplitude_needed(BAND_HZ, window_s=4.0, max_lag_s=0.5)


def test_the_critical_noise_is_that_of_the_law():
    """B 5 Hz, T 4 s, W 1 s, the first clock at SNR 1."""
    found = [
        critical_level(lambda x, s=s: shared(1.0, x, seed=s), largest=16.0, window_s=4.0, max_lag_s=0.5)[0]
        for s in range(6)
    ]
    law = critical_noise(bandwidth_hz=BAND_HZ, window_s=4.0, range_s=1.0, snr_other=1.0)
    assert np.mean(found) == pytest.approx(law, rel=0.15)
    assert np.max(np.abs(np.log(np.array(found) / law))) < 0.4


def test_where_nothing_is_told_there_is_no_critical_level():
    level, clean = critical_level(
        lambda x: shared(1e-4, 10.0 + x, seed=0), largest=4.0, window_s=2.0, max_lag_s=0.5
    )
    assert np.isnan(level)
    assert clean.amplitude(2.0) < 1.5
    never, _ = critical_level(lambda x: shared(3.0, 0.1, seed=0), largest=4.0, window_s=4.0, max_lag_s=0.5)
    assert np.isnan(never)
