"""The simulation has its stated rates and tuning, and a lag that can be estimated from the data."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d
from scipy.signal import butter, sosfiltfilt

from neurofuse.errors import NeurofuseError
from neurofuse.jitters.jitter import LagTruth
from neurofuse.jitters.lag_laws import Offset, Skew, WindowLag
from neurofuse.recording import Recording
from neurofuse.simulation import (
    DEMO_LAWS,
    LFP_CLOCK,
    SPIKE_CLOCK,
    SimulationConfig,
    demo_law,
    simulate,
    two_files,
)

SMALL = SimulationConfig(duration_s=30.0, n_units=40, n_channels=6, lfp_rate_hz=500.0)


def small(law=None, *, seed=0, **more) -> tuple[Recording, LagTruth]:
    return simulate(law, config=replace(SMALL, **more), rng=np.random.default_rng(seed))


def gamma_power(recording: Recording) -> np.ndarray:
    """Log high-gamma power on 10 ms steps."""
    sos = butter(3, [70, 150], btype="band", fs=500, output="sos")
    band = sosfiltfilt(sos, recording["lfp"].data.values.astype(float), axis=0)
    return np.log(gaussian_filter1d(band**2, 5, axis=0).reshape(-1, 5, band.shape[1]).mean(1))


def rates(recording: Recording) -> np.ndarray:
    edges = np.arange(3001) * 0.01
    counts = [np.histogram(t, edges)[0] for t in recording["spikes"].trains]
    return gaussian_filter1d(np.stack(counts, axis=1).astype(float), 2, axis=0)


def found_lag_s(power: np.ndarray, rate: np.ndarray, start: int, stop: int) -> float:
    """Shift at which power and rates of a stretch are most alike: all squared cross-correlations summed."""
    slow = [x - gaussian_filter1d(x, 25, axis=0) for x in (power, rate)]
    power, rate = [(x - x.mean(0)) / x.std(0) for x in slow]
    shifts = np.arange(-50, 51)
    here = rate[start:stop]
    alike = [np.sum((power[start + s : stop + s].T @ here) ** 2) for s in shifts]
    return 0.01 * float(shifts[np.argmax(alike)])


@pytest.mark.parametrize("lag_s", [0.0, 0.2, -0.13])
def test_the_offset_can_be_estimated_from_spikes_and_high_gamma(lag_s):
    recording, truth = small(Offset(lag_s))
    assert (truth.at(np.linspace(0, 30, 50)) == lag_s).all()
    assert found_lag_s(gamma_power(recording), rates(recording), 60, 2940) == pytest.approx(lag_s, abs=0.02)


def test_a_skew_can_be_estimated_from_the_two_ends_of_the_recording():
    recording, truth = small(Skew(15000.0))
    power, rate = gamma_power(recording), rates(recording)
    for start, stop in ((60, 900), (2100, 2940)):
        middle_s = 0.005 * (start + stop)
        known_s = float(truth.at(np.array([middle_s]))[0])
        assert abs(known_s) > 0.1
        assert found_lag_s(power, rate, start, stop) == pytest.approx(known_s, abs=0.04)


def test_a_lag_moves_the_field_and_leaves_spikes_and_movement_alone():
    still, _ = small()
    moved, truth = small(Offset(0.2))
    np.testing.assert_array_equal(still["spikes"].times_s, moved["spikes"].times_s)
    np.testing.assert_array_equal(still.movement.data.values, moved.movement.data.values)
    assert not np.array_equal(still["lfp"].data.values, moved["lfp"].data.values)
    assert (truth.clock, truth.law) == (LFP_CLOCK, "offset:0.2")


def test_the_same_seed_gives_the_same_recording_to_the_bit():
    for law in (None, WindowLag(0.2)):
        a, b, c = small(law), small(law), small(law, seed=1)
        np.testing.assert_array_equal(a[0]["lfp"].data.values, b[0]["lfp"].data.values)
        np.testing.assert_array_equal(a[0]["spikes"].times_s, b[0]["spikes"].times_s)
        np.testing.assert_array_equal(a[1].lag_s, b[1].lag_s)
        assert a[0]["spikes"].times_s.size != c[0]["spikes"].times_s.size


def test_the_recording_has_the_sizes_clocks_and_units_of_its_config():
    recording, _ = small()
    assert recording.clocks == [SPIKE_CLOCK, LFP_CLOCK]
    assert (recording.n_units, recording.n_channels) == (40, 6)
    assert recording["lfp"].data.shape == (15000, 6)
    assert recording["lfp"].data.attrs["units"] == "uV"
    assert recording.movement.data.shape == (3000, 2)
    assert (recording.movement.axes, recording.movement.units) == (["vx", "vy"], "cm/s")
    assert recording.span_s == pytest.approx((0, 30))
    np.testing.assert_array_equal(recording["spikes"].support, [[0, 30]])
    assert "lag none" in recording.provenance[0]


def test_units_fire_near_the_configured_rate():
    recording, _ = small(n_units=150)
    rate_hz = recording["spikes"].times_s.size / (150 * 30)
    # Base rates are log-normal with a spread of 0.4; tuning is built not to change the mean.
    assert rate_hz == pytest.approx(10 * np.exp(0.5 * 0.4**2), rel=0.1)
    slow, _ = small(n_units=150, mean_rate_hz=2.0)
    assert slow["spikes"].times_s.size / recording["spikes"].times_s.size == pytest.approx(0.2, rel=0.1)


def test_units_are_tuned_to_the_angle_in_their_table():
    recording, _ = small(duration_s=30.0, mean_rate_hz=20.0)
    vx = recording.movement.data.values[:, 0]
    count = rates(recording)
    slope = np.array([np.polyfit(vx, c, 1)[0] / c.mean() for c in count.T])
    assert np.corrcoef(slope, np.cos(recording["spikes"].units["preferred_angle_rad"]))[0, 1] > 0.9


def test_movement_is_smooth_and_ten_cm_per_s_wide():
    values = small()[0].movement.data.values
    np.testing.assert_allclose(values.std(0), 10, rtol=0.1)
    spectrum = np.abs(np.fft.rfft(values * np.hanning(len(values))[:, None], axis=0)) ** 2
    hz = np.fft.rfftfreq(len(values), 0.01)
    assert spectrum[hz > 4].sum() < 1e-3 * spectrum.sum()


def test_a_lag_never_leaves_the_range_it_is_searched_in():
    _, truth = simulate(Offset(0.9), config=SMALL, max_lag_s=0.3, rng=np.random.default_rng(0))
    assert truth.lag_s.max() == 0.3


def test_a_simulation_too_short_for_movement_is_refused():
    with pytest.raises(
        NeurofuseError, match="a simulation of 2 s is too short for movement; use 5 s or more"
    ):
        small(duration_s=2.0)


def test_every_demo_has_a_law_and_an_unknown_one_names_them():
    assert demo_law("demo") is DEMO_LAWS["wander"]
    for name, law in DEMO_LAWS.items():
        assert demo_law(f"demo:{name}") is law
    with pytest.raises(
        NeurofuseError, match="there is no demo 'storm'; choose demo or demo:NAME with NAME in wander"
    ):
        demo_law("demo:storm")


def test_two_files_hold_what_each_system_wrote_and_together_all_of_it():
    recording, _ = small()
    first, second = two_files(recording)
    assert (first.reference, first.clocks, first.name) == (SPIKE_CLOCK, [SPIKE_CLOCK], "demo_array")
    assert (second.reference, second.clocks, second.name) == (LFP_CLOCK, [LFP_CLOCK], "demo_logger")
    assert first.movement is recording.movement
    assert second.movement is None
    assert (*first.streams, *second.streams) == recording.streams
