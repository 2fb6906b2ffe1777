"""Coherence between clocks and the critical level predicted from it, against signals whose SNR is known."""

from __future__ import annotations

import numpy as np
import pytest

from neurofuse.recording import Recording, Signal
from neurofuse.study.coherence import (
    integration_time_s,
    measure_coherence,
    predict_critical_level,
    required_amplitude,
)
from neurofuse.theory.critical import critical_noise
from neurofuse.tokens import Tokens, tokenize

BAND_HZ, STEP_S = 5.0, 0.02


def shared(snr_1: float, level: float, *, seed: int, n_more: int = 0, duration_s: float = 300.0) -> Tokens:
    """A flat band recorded on two clocks in white noise; the second's has `level` times the signal's std in band.

    Each clock has `n_more` further features of noise.
    """
    rng = np.random.default_rng(seed)
    n = round(duration_s / STEP_S)
    spectrum = np.fft.rfft(rng.standard_normal(n))
    spectrum[np.fft.rfftfreq(n, STEP_S) > BAND_HZ] = 0
    signal = np.fft.irfft(spectrum, n)
    signal /= signal.std()
    # Ratio of the standard deviation of white noise to that within the band.
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
    clean = [measure_coherence(shared(snr_1, 0.0, seed=seed)) for seed in range(4)]
    found = [measure_coherence(shared(snr_1, level, seed=s), shared=clean[s].shared) for s in range(4)]
    expected = 2 * BAND_HZ * snr_1 / (1 + snr_1) / (1 + level**2)
    assert np.mean([f.per_s for f in found]) == pytest.approx(expected, rel=0.12)
    assert np.mean([f.bandwidth_hz for f in clean]) == pytest.approx(BAND_HZ, rel=0.1)


def test_features_that_share_nothing_add_nothing():
    without_noise = measure_coherence(shared(1.0, 1.0, seed=0))
    with_noise = measure_coherence(shared(1.0, 1.0, seed=0, n_more=20))
    assert with_noise.per_s == pytest.approx(without_noise.per_s, rel=0.25)
    nothing = measure_coherence(shared(1e-6, 1e3, seed=0, n_more=20))
    assert nothing.amplitude(4.0) < required_amplitude(BAND_HZ, integration_s=4.0, max_lag_s=0.5)


def test_the_critical_noise_is_that_of_the_law():
    """B 5 Hz, T 4 s, W 1 s, the first clock at SNR 1."""
    found = [
        predict_critical_level(
            lambda x, s=s: shared(1.0, x, seed=s), largest=16.0, window_s=4.0, max_lag_s=0.5
        )[0]
        for s in range(6)
    ]
    law = critical_noise(bandwidth_hz=BAND_HZ, window_s=4.0, range_s=1.0, snr_other=1.0)
    assert np.mean(found) == pytest.approx(law, rel=0.15)
    assert np.max(np.abs(np.log(np.array(found) / law))) < 0.4


def test_there_is_no_critical_level_without_coherence_or_within_the_levels():
    level, clean = predict_critical_level(
        lambda x: shared(1e-4, 10.0 + x, seed=0), largest=4.0, window_s=2.0, max_lag_s=0.5
    )
    assert np.isnan(level)
    assert clean.amplitude(2.0) < 1.5
    never, _ = predict_critical_level(
        lambda x: shared(3.0, 0.1, seed=0), largest=4.0, window_s=4.0, max_lag_s=0.5
    )
    assert np.isnan(never)


def test_the_integration_time_is_the_window_and_the_context_on_both_sides():
    assert integration_time_s(3.0) == 3.0
    assert integration_time_s(3.0, context_s=0.25) == 3.5
