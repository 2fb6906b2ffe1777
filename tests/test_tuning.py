"""Tuning: planted directions, leads and shares of variance are found, and drawn as they are."""

from __future__ import annotations

import numpy as np
import pytest

from neurofuse.errors import NeurofuseError
from neurofuse.recording import Movement, Recording, Signal
from neurofuse.report.figures import plot_tuning
from neurofuse.tokens import tokenize
from neurofuse.tuning import unit_tuning

RATE_HZ = 50.0


def smooth_noise(rng, n, columns):
    return np.stack(
        [np.convolve(rng.standard_normal(n), np.hanning(40), "same") for _ in range(columns)], axis=1
    )


@pytest.fixture(scope="module")
def planted():
    """Four power features: the first three follow the velocity with a direction, a lead and noise; the last nothing."""
    rng = np.random.default_rng(0)
    n = 6000
    velocity = smooth_noise(rng, n, 2)
    velocity /= velocity.std(axis=0)
    truth = [(0.5, 0.1, 0.0), (2.0, -0.2, 0.5), (-2.5, 0.0, 1.0), (0.0, 0.0, np.inf)]
    features = []
    for angle, lead_s, noise in truth:
        signal = velocity @ [np.cos(angle), np.sin(angle)]
        signal = np.roll(signal, -round(lead_s * RATE_HZ))
        hidden = smooth_noise(rng, n, 1)[:, 0]
        # Chance likeness between noise and movement would count as tuning.
        at_lead = np.roll(velocity, -round(lead_s * RATE_HZ), axis=0)
        hidden -= at_lead @ np.linalg.lstsq(at_lead, hidden, rcond=None)[0]
        hidden /= hidden.std()
        features.append(hidden if np.isinf(noise) else signal + noise * hidden)
    names = ["c1 low", "c1 high", "c2 low", "c2 high"]
    power = Signal.from_array(
        np.stack(features, 1), clock="a", rate_hz=RATE_HZ, kind="power", name="lfp", channels=names
    )
    movement = Movement.from_array(velocity, rate_hz=RATE_HZ, axes=["vx", "vy"], units="cm/s")
    return tokenize(Recording("r", "a", (power,), movement)), truth


def test_directions_leads_and_shares_are_found(planted):
    tokens, truth = planted
    table = unit_tuning(tokens, smooth_s=0.04)
    for k, (angle, lead_s, noise) in enumerate(truth[:3]):
        assert float(table["best_lead_s"][k]) == pytest.approx(lead_s, abs=0.021)
        assert float(table["preferred_rad"][k]) == pytest.approx(angle, abs=0.1)
        assert float(table["best_r2"][k]) == pytest.approx(1 / (1 + noise**2), abs=0.03)
    assert float(table["best_r2"][3]) < 0.1
    assert table["channel"].values.tolist() == ["c1", "c1", "c2", "c2"]
    assert table["band"].values.tolist() == ["low", "high", "low", "high"]
    at_best = table["r2"].sel(lead=table["best_lead_s"], method="nearest")
    np.testing.assert_allclose(at_best.values, table["best_r2"])


def test_a_gap_is_left_out_and_not_taken_for_zeros(tiny):
    whole = unit_tuning(tokenize(tiny))
    holes = tiny.but(
        streams=tuple(
            s
            if not isinstance(s, Signal)
            else Signal(
                s.name, s.clock, s.data.isel(time=np.r_[0:600, 700 : s.time_s.size]), s.kind, s.sample_s
            )
            for s in tiny.streams
        )
    )
    np.testing.assert_allclose(unit_tuning(tokenize(holes))["best_r2"], whole["best_r2"], atol=0.15)


def test_a_feature_far_from_zero_keeps_its_tuning_across_a_gap():
    rng = np.random.default_rng(1)
    velocity = smooth_noise(rng, 3000, 2)
    velocity /= velocity.std(axis=0)
    kept = np.r_[0:1000, 1500:3000]
    power = Signal.from_array(
        5.0 + velocity[kept, :1],
        clock="a",
        time_s=kept / RATE_HZ,
        kind="power",
        name="lfp",
        channels=["c1 low"],
    )
    movement = Movement.from_array(velocity, rate_hz=RATE_HZ, axes=["vx", "vy"])
    table = unit_tuning(tokenize(Recording("r", "a", (power,), movement)), smooth_s=0.04)
    assert float(table["best_r2"][0]) > 0.97


def test_units_and_bands_are_drawn_as_they_are(planted, tiny):
    tokens, _ = planted
    table = unit_tuning(tokens)
    (panel,) = plot_tuning(table)
    np.testing.assert_allclose(panel.images[0].get_array().data.ravel(), table["best_r2"].values, atol=1e-12)
    assert [t.get_text() for t in panel.get_xticklabels()] == ["low", "high"]
    table = unit_tuning(tokenize(tiny))
    first, second = plot_tuning(table)
    drawn = np.asarray(first.collections[0].get_offsets())[:, 1]
    np.testing.assert_allclose(
        drawn, np.sort(table["best_r2"].values[table["stream"].values == "spikes"])[::-1]
    )
    assert second.images


def test_without_movement_there_is_no_tuning(tiny, planted):
    with pytest.raises(NeurofuseError, match="no movement to be tuned to"):
        unit_tuning(tokenize(tiny.but(movement=None)))
    with pytest.raises(NeurofuseError, match="too few to estimate tuning"):
        unit_tuning(tokenize(tiny.between(0, 0.6)))
    with pytest.raises(NeurofuseError, match="holds no 'best_r2'"):
        plot_tuning(unit_tuning(planted[0]).drop_vars("best_r2"))
