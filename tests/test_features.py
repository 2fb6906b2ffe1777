"""Features: planted bursts, line noise, gaps and dead channels, and the truth about each demanded back."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from neurofuse.errors import NeurofuseError
from neurofuse.features import (
    FeatureConfig,
    _band_filter,
    _group_delay,
    channel_quality,
    clean_lfp,
    drop_bad,
    lfp_features,
    resample,
)
from neurofuse.recording import Recording, Signal
from neurofuse.tokens import tokenize

RATE_HZ = 1000.0


def lfp(values: np.ndarray, *, rate_hz: float = RATE_HZ, **options: object) -> Signal:
    return Signal.from_array(values, clock="lfp", rate_hz=rate_hz, units="uV", **options)  # type: ignore[arg-type]


def noise(n: int, n_channels: int, *, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, n_channels))


def record_of(features: Signal) -> dict:
    return json.loads(features.data.attrs["features"])


def column(features: Signal, name: str) -> np.ndarray:
    return features.data.sel(channel=name).values.astype(np.float64)


def delay_by_correlation(reference: np.ndarray, late: np.ndarray, step_s: float) -> float:
    """Delay of `late` in seconds, from the peak of the cross-correlation, refined by a parabola."""
    from scipy.signal import correlate

    a, b = reference - reference.mean(), late - late.mean()
    c = correlate(b, a, mode="full", method="fft")
    k = int(np.argmax(c))
    shift = 0.5 * (c[k - 1] - c[k + 1]) / (c[k - 1] - 2 * c[k] + c[k + 1])
    return (k - (a.size - 1) + shift) * step_s


@pytest.mark.parametrize("causal", [True, False])
def test_a_planted_20_hz_burst_shows_in_beta_at_the_right_time_and_not_in_gamma(causal: bool) -> None:
    t = np.arange(10_000) / RATE_HZ
    burst = np.where((t >= 4) & (t < 6), np.sin(2 * np.pi * 20 * t), 0.0)[:, None]
    # Eased in and out over 50 ms: a burst that starts at once is broadband, and would rightly show in gamma.
    burst[:, 0] *= np.convolve((t >= 4.05) & (t < 5.95), np.hanning(51) / np.hanning(51).sum(), mode="same")
    features = lfp_features(
        lfp(20 * burst + noise(t.size, 1, seed=1)), config=FeatureConfig(causal=causal, smooth_s=0.1)
    )
    beta = column(features, "channel0 beta")
    delay_s = {b["name"]: b["group_delay_s"] for b in record_of(features)["bands"]}["beta"]
    inside = (features.time_s > 4.2 + delay_s) & (features.time_s < 5.8 + delay_s)
    outside = (features.time_s < 3.8) | (features.time_s > 6.2 + delay_s)
    assert beta[inside].min() > beta[outside].max() + np.log(10)
    half = np.log(0.5 * np.exp(beta[inside]).mean())
    onset = features.time_s[np.argmax(beta > half)]
    assert onset == pytest.approx(4.05 + delay_s, abs=0.03)
    gain = {
        name: np.exp(column(features, f"channel0 {name}")[inside]).mean()
        - np.exp(column(features, f"channel0 {name}")[outside]).mean()
        for name in ("beta", "gamma", "high_gamma")
    }
    assert gain["gamma"] < 0.02 * gain["beta"]
    assert gain["high_gamma"] < 0.001 * gain["beta"]
    assert (delay_s > 0) == causal


def test_the_low_frequency_potential_keeps_its_sign_and_its_unit() -> None:
    t = np.arange(10_000) / RATE_HZ
    slow = 30 * np.sin(2 * np.pi * 0.5 * t)
    features = lfp_features(lfp(slow[:, None]), config=FeatureConfig(causal=False))
    np.testing.assert_allclose(
        column(features, "channel0 lmp"), 30 * np.sin(2 * np.pi * 0.5 * features.time_s), atol=0.6
    )
    assert features.data.attrs["units"] == "uV (potential), ln uV^2 (power)"


@pytest.mark.parametrize(("causal", "line_hz"), [(True, 50.0), (True, 60.0), (False, 50.0)])
def test_line_noise_falls_by_more_than_20_db_and_its_neighbours_stay(causal: bool, line_hz: float) -> None:
    t = np.arange(20_000) / RATE_HZ
    settings_ = FeatureConfig(bands=(("gamma", 30, 70),), causal=causal, line_hz=line_hz, log_power=False)
    without = replace(settings_, line_hz=None)

    def power(hz: float, config: FeatureConfig) -> float:
        features = lfp_features(lfp(np.sin(2 * np.pi * hz * t)[:, None]), config=config)
        return float(features.data.values[300:-300].mean())

    assert power(line_hz, settings_) < 0.01 * power(line_hz, without)
    for neighbour in (line_hz - 6, line_hz + 6):
        assert power(neighbour, settings_) > 0.9 * power(neighbour, without)


def test_harmonics_of_the_line_are_removed_as_far_as_the_bands_reach() -> None:
    features = lfp_features(lfp(noise(3000, 1, seed=2)), config=FeatureConfig(line_hz=60))
    assert record_of(features)["line_notches_hz"] == [60, 120, 180]
    slow = FeatureConfig(bands=(("lmp", 0, 5),), line_hz=60)
    assert record_of(lfp_features(lfp(noise(3000, 1, seed=2)), config=slow))["line_notches_hz"] == []


@settings(max_examples=20, deadline=None)
@given(
    cut=st.integers(500, 3500),
    rate_hz=st.sampled_from([25.0, 100.0, 130.0, 1000.0]),
    log_power=st.booleans(),
)
def test_a_causal_feature_does_not_change_when_the_future_is_corrupted(
    cut: int, rate_hz: float, log_power: bool
) -> None:
    x = noise(4000, 2, seed=3)
    corrupted = x.copy()
    corrupted[cut:] = 1e6 * noise(4000 - cut, 2, seed=4)
    config = FeatureConfig(rate_hz=rate_hz, line_hz=50, log_power=log_power)
    before, after = lfp_features(lfp(x), config=config), lfp_features(lfp(corrupted), config=config)
    past = before.time_s < cut / RATE_HZ - 1e-9
    assert past.any()
    np.testing.assert_array_equal(before.data.values[past], after.data.values[past])
    # The stamp is that of the newest sample: the next one is already changed.
    assert (before.data.values[~past] != after.data.values[~past]).any(axis=1).all()


def test_a_zero_phase_feature_does_look_ahead() -> None:
    x = noise(4000, 1, seed=3)
    corrupted = x.copy()
    corrupted[2000:] = 1e3
    config = FeatureConfig(causal=False)
    before, after = lfp_features(lfp(x), config=config), lfp_features(lfp(corrupted), config=config)
    past = before.time_s < 1.99
    assert (before.data.values[past] != after.data.values[past]).any()


@pytest.mark.parametrize("rate_hz", [20.0, 100.0, 250.0])
def test_a_token_shows_the_potential_of_its_own_time(rate_hz: float) -> None:
    t = np.arange(20_000) / RATE_HZ
    slow = lfp(np.sin(2 * np.pi * 1.0 * t)[:, None])
    features = lfp_features(slow, config=FeatureConfig(causal=False, rate_hz=rate_hz, bands=(("lmp", 0, 5),)))
    tokens = tokenize(Recording("sine", "lfp", (features,)), token_s=0.1)
    shown, present = tokens.clocks[0].gather(
        tokens.per_token * np.arange(tokens.n_tokens)[None], tokens.per_token
    )
    expected = np.sin(2 * np.pi * 1.0 * tokens.time_s(np.arange(tokens.n_tokens)))
    assert present.mean() > 0.9
    inner = slice(20, -20)
    late_s = delay_by_correlation(expected[inner], shown[0, inner, 0], tokens.token_s)
    assert abs(late_s) < 0.5 * tokens.fine_s


def test_each_stretch_gives_the_same_features_alone_as_beside_a_gap() -> None:
    x = noise(6000, 2, seed=5)
    time_s = np.arange(6000) / RATE_HZ
    kept = (time_s < 2) | (time_s >= 3.5)
    x[time_s >= 3.5] += 500
    both = Signal.from_array(x[kept], clock="lfp", time_s=time_s[kept])
    second = Signal.from_array(x[time_s >= 3.5], clock="lfp", time_s=time_s[time_s >= 3.5])
    first = Signal.from_array(x[time_s < 2], clock="lfp", time_s=time_s[time_s < 2])
    features = lfp_features(both)
    assert not ((features.time_s >= 2) & (features.time_s < 3.5)).any()
    assert len(features.support) == 2
    expected = [lfp_features(part).data.values for part in (first, second)]
    np.testing.assert_array_equal(features.data.values, np.concatenate(expected))


def test_a_stretch_begins_without_a_transient_even_far_from_zero() -> None:
    x = noise(5000, 4, seed=6) + 1e4
    features = lfp_features(lfp(x))
    level = features.data.values
    rest = level[100:]
    assert (np.abs(level[:20] - rest.mean(axis=0)) < 6 * rest.std(axis=0)).all()
    assert features.time_s[0] <= record_of(features)["settle_s"] + 0.01


def test_a_run_of_zeros_keeps_log_power_finite_and_within_100_db() -> None:
    x = noise(5000, 1, seed=7)
    x[2000:4000] = 0
    y = column(lfp_features(lfp(x)), "channel0 high_gamma")
    assert np.isfinite(y).all()
    assert np.ptp(y) < np.log(1e10) + 1


@pytest.mark.parametrize("band", FeatureConfig().bands)
@pytest.mark.parametrize("smooth_s", [0.01, 0.1])
def test_the_recorded_group_delay_is_the_one_a_cross_correlation_measures(
    band: tuple[str, float, float], smooth_s: float
) -> None:
    t = np.arange(20_000) / RATE_HZ
    name, lo, hi = band
    shape = np.exp(-0.5 * ((t[:, None] - np.arange(1, 20, 1.7)) / 0.12) ** 2).sum(axis=1)
    if lo == 0:
        # A slow bump carried at the band's centre frequency: its envelope moves by the group delay.
        features = lfp_features(
            lfp((shape * np.exp(2j * np.pi * hi / 2 * t)).real[:, None]),
            config=FeatureConfig(bands=(band,), rate_hz=1000),
        )
        other = lfp_features(
            lfp((shape * np.exp(2j * np.pi * hi / 2 * t)).imag[:, None]),
            config=FeatureConfig(bands=(band,), rate_hz=1000),
        )
        measured = np.hypot(features.data.values[:, 0], other.data.values[:, 0])
        truth = shape[: measured.size]
    else:
        carrier = np.sin(2 * np.pi * np.sqrt(lo * hi) * t)
        features = lfp_features(
            lfp((shape * carrier)[:, None]),
            config=FeatureConfig(bands=(band,), rate_hz=1000, smooth_s=smooth_s, log_power=False),
        )
        measured = features.data.values[:, 0].astype(float)
        truth = np.interp(features.time_s, t, shape**2)
    (band,) = record_of(features)["bands"]
    assert band["name"] == name
    measured_s = delay_by_correlation(truth, measured, 1e-3)
    assert band["group_delay_s"] == pytest.approx(measured_s, rel=0.06, abs=1e-3)


@pytest.mark.parametrize(("lo", "hi", "at"), [(0, 5, 2.5), (13, 30, 19.7), (70, 150, 100)])
def test_the_group_delay_agrees_with_scipy(lo: float, hi: float, at: float) -> None:
    from scipy.signal import group_delay

    sos = _band_filter(lo, hi, RATE_HZ, 3)
    by_scipy = sum(group_delay((s[:3], s[3:]), w=[at], fs=RATE_HZ)[1][0] for s in sos) / RATE_HZ
    assert _group_delay(sos, at, RATE_HZ) == pytest.approx(by_scipy, rel=1e-4)


def test_a_band_above_what_the_sampling_rate_carries_is_left_out_and_recorded() -> None:
    features = lfp_features(lfp(noise(3000, 2, seed=8), rate_hz=200))
    assert features.channels == [f"channel{c} {b}" for c in range(2) for b in ("lmp", "beta", "gamma")]
    record = record_of(features)
    assert [b["name"] for b in record["left_out"]] == ["high_gamma"]
    assert "90 Hz" in record["left_out"][0]["why"]
    assert record["settings"]["bands"][3] == ["high_gamma", 70.0, 150.0]
    assert record["causal"] is True


def test_no_band_left_is_an_error_that_names_the_lowest() -> None:
    with pytest.raises(NeurofuseError, match=r"8 samples per second.*'lmp', up to 5 Hz.*below 3.6 Hz"):
        lfp_features(lfp(noise(100, 1, seed=9), rate_hz=8))


def test_a_stretch_too_short_for_a_feature_is_an_error_that_says_how_long_is_enough() -> None:
    with pytest.raises(NeurofuseError, match=r"longest has 0\.03 s, but 0\.08 s are needed"):
        lfp_features(lfp(noise(30, 1, seed=9)))
    assert lfp_features(lfp(noise(30, 1, seed=9)), config=FeatureConfig(causal=False)).time_s.size == 3


@pytest.mark.parametrize("kind", ["power", "counts"])
def test_power_and_counts_pass_through_unchanged(kind: str) -> None:
    signal = Signal.from_array(np.ones((50, 2)), clock="a", rate_hz=50, kind=kind)  # type: ignore[arg-type]
    assert lfp_features(signal) is signal


@pytest.mark.parametrize(
    ("rate_hz", "expected"), [(1000.0, 100.0), (1017.25, 101.725), (150.0, 150.0), (50.0, 50.0)]
)
def test_the_feature_rate_is_the_input_rate_over_a_whole_number(rate_hz: float, expected: float) -> None:
    config = FeatureConfig(bands=(("lmp", 0, 5),))
    features = lfp_features(lfp(noise(2000, 1, seed=10), rate_hz=rate_hz, start_s=7.0), config=config)
    assert features.rate_hz == pytest.approx(expected)
    assert record_of(features)["rate_hz"] == pytest.approx(expected)
    np.testing.assert_allclose(np.diff(features.time_s), 1 / expected)
    assert features.start_s == pytest.approx(7.0 + 1 / expected - 1 / rate_hz)
    assert (features.name, features.clock, features.kind) == ("lfp", "lfp", "power")


def test_features_are_the_same_for_a_channel_alone_as_among_others() -> None:
    signal = lfp(noise(3000, 5, seed=11))
    whole = lfp_features(signal).data.values.reshape(-1, 5, 4)
    np.testing.assert_array_equal(whole[:, 3], lfp_features(signal.select([3])).data.values)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bands": ()}, "at least one"),
        ({"bands": (("b", 30, 13),)}, r"'b' is 30 to 13 Hz; it needs 0 <= low < high"),
        ({"bands": (("b", 1, 2), ("b", 3, 4))}, "share a name"),
        ({"rate_hz": 0}, "must be positive, got 0 Hz"),
        ({"line_hz": -50}, "got -50"),
        ({"smooth_s": -1}, "must not be negative, got -1 s"),
        ({"order": 0}, "1 to 8, got 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused_with_the_remedy(options: dict, message: str) -> None:
    with pytest.raises(NeurofuseError, match=message):
        FeatureConfig(**options)


def test_settings_survive_json() -> None:
    config = FeatureConfig(bands=(("beta", 13, 30),), line_hz=60)
    record = record_of(lfp_features(lfp(noise(1000, 1, seed=12)), config=config))
    assert FeatureConfig(**record["settings"]) == config


def faulty() -> Signal:
    x = noise(20_000, 8, seed=13) * np.linspace(0.8, 1.2, 8)
    t = np.arange(20_000) / RATE_HZ
    x[:, 1] = 3.0
    x[:, 2] = np.clip(x[:, 2], -1, 1)
    x[:, 3] *= 30
    x[:, 4] += 2 * np.sin(2 * np.pi * 60 * t)
    return lfp(x, channels=[f"ch{k}" for k in range(8)])


def test_every_planted_fault_is_found_and_named() -> None:
    signal = faulty()
    quality = channel_quality(signal).set_index("name")
    assert quality.index[quality["bad"]].tolist() == ["ch1", "ch2", "ch3"]
    assert quality.index[quality["flat"]].tolist() == ["ch1"]
    assert "flat" in quality.loc["ch1", "why"]
    assert "saturated: 2" in quality.loc["ch2", "why"]
    clipped = np.mean(np.abs(signal.data.values[:, 2]) == 1)
    assert quality.loc["ch2", "saturation"] == pytest.approx(clipped)
    assert "larger" in quality.loc["ch3", "why"]
    assert quality.loc["ch4", "line_60"] > 100
    assert quality.loc["ch4", "line_50"] < 5
    assert quality.loc["ch5", "line_60"] < 5
    assert np.isnan(quality.loc["ch1", "line_60"])
    assert (quality["why"] == "").eq(~quality["bad"]).all()


def test_bad_channels_are_dropped_and_none_left_is_an_error() -> None:
    signal = faulty()
    kept = drop_bad(signal, channel_quality(signal))
    assert kept.channels == ["ch0", "ch4", "ch5", "ch6", "ch7"]
    assert drop_bad(kept, channel_quality(kept)) is kept
    dead = lfp(np.ones((500, 2)))
    with pytest.raises(NeurofuseError, match=r"all 2 channels of lfp 'lfp' are bad .*flat"):
        drop_bad(dead, channel_quality(dead))
    with pytest.raises(NeurofuseError, match="not of lfp 'lfp'"):
        drop_bad(signal, channel_quality(kept))


def test_quality_of_a_short_or_slow_signal_says_nothing_about_the_line() -> None:
    quality = channel_quality(lfp(noise(200, 2, seed=14), rate_hz=100))
    assert quality[["line_50", "line_60", "outlier_z"]].isna().all().all()
    assert not quality["bad"].any()


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("rate_hz", [500.0, 300.0, 250.0])
def test_resampling_keeps_what_fits_and_removes_what_would_fold(rate_hz: float, causal: bool) -> None:
    t = np.arange(8000) / RATE_HZ
    slow, folds = np.sin(2 * np.pi * 10 * t), np.sin(2 * np.pi * (rate_hz - 20) * t)
    out = resample(lfp(np.stack([slow, folds], axis=1)), rate_hz, causal=causal)
    assert out.rate_hz == pytest.approx(rate_hz)
    assert out.time_s.size == pytest.approx(8 * rate_hz, abs=1)
    middle = slice(out.time_s.size // 4, -out.time_s.size // 4)
    assert out.data.values[middle, 0].std() == pytest.approx(np.sqrt(0.5), rel=0.02)
    assert np.abs(out.data.values[middle, 1]).max() < 0.01
    if not causal:
        np.testing.assert_allclose(
            out.data.values[middle, 0], np.sin(2 * np.pi * 10 * out.time_s[middle]), atol=0.01
        )


def test_causal_resampling_does_not_look_ahead_and_stamps_real_samples() -> None:
    x = noise(3000, 1, seed=15)
    corrupted = x.copy()
    corrupted[1500:] = 1e6
    before, after = (resample(lfp(v), 300, causal=True) for v in (x, corrupted))
    past = before.time_s < 1.5
    np.testing.assert_array_equal(before.data.values[past], after.data.values[past])
    assert np.isin(before.time_s, np.arange(3000) / RATE_HZ).all()


@pytest.mark.parametrize("causal", [True, False])
def test_resampling_respects_a_gap_and_an_offset(causal: bool) -> None:
    time_s = np.concatenate([np.arange(1000), np.arange(2500, 4000)]) / RATE_HZ
    x = np.full((time_s.size, 1), 5000.0)
    x[1000:] = -5000
    out = resample(Signal.from_array(x, clock="a", time_s=time_s), 100, causal=causal)
    np.testing.assert_allclose(out.data.values[:, 0], np.where(out.time_s < 1, 5000, -5000), rtol=1e-3)
    assert len(out.support) == 2


def test_resampling_to_a_higher_rate_interpolates_and_is_refused_causally() -> None:
    t = np.arange(2000) / RATE_HZ
    signal = lfp(np.sin(2 * np.pi * 10 * t)[:, None])
    out = resample(signal, 2500)
    np.testing.assert_allclose(
        out.data.values[500:-500, 0], np.sin(2 * np.pi * 10 * out.time_s[500:-500]), atol=1e-3
    )
    with pytest.raises(NeurofuseError, match="causally; give a lower rate, or causal=False"):
        resample(signal, 2500, causal=True)
    with pytest.raises(NeurofuseError, match="bin the spikes again"):
        resample(replace(signal, kind="counts", data=abs(signal.data)), 500)
    with pytest.raises(NeurofuseError, match="must be positive, got 0"):
        resample(signal, 0)
    assert resample(signal, 1000) is signal


def test_the_source_is_left_as_it_was() -> None:
    signal = lfp(noise(2000, 2, seed=16))
    copy = signal.data.copy(deep=True)
    lfp_features(signal, config=FeatureConfig(line_hz=50))
    resample(signal, 100)
    xr.testing.assert_identical(signal.data, copy)


def test_the_module_loads_without_scipy_mne_or_torch() -> None:
    code = (
        "import sys, neurofuse.features as f; "
        "heavy = [m for m in ('scipy.signal', 'mne', 'torch', 'matplotlib') if m in sys.modules]; "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_five_minutes_of_sixteen_channels_take_less_than_two_seconds() -> None:
    from time import perf_counter

    signal = lfp(noise(300_000, 16, seed=17).astype(np.float32))
    lfp_features(lfp(noise(1000, 1, seed=17)))  # scipy's import is not the filter's time
    started = perf_counter()
    lfp_features(signal, config=FeatureConfig(line_hz=50))
    assert perf_counter() - started < 2


@pytest.mark.parametrize("causal", [True, False])
def test_broadband_is_brought_down_and_loses_its_bad_channels(causal) -> None:
    values = noise(9_000, 7, seed=21).astype(np.float32)
    values[:, 4] = 1.0
    broadband = lfp(values, rate_hz=5000.0)
    signal, quality = clean_lfp(broadband, causal=causal)
    slow = resample(broadband, 1000, causal=causal)
    assert signal.rate_hz == pytest.approx(1000)
    assert signal.data.identical(slow.select([0, 1, 2, 3, 5, 6]).data)
    assert quality.equals(channel_quality(slow))
    assert list(np.flatnonzero(quality["bad"])) == [4]
    kept, _ = clean_lfp(broadband, causal=causal, keep={"channel4", "channel1", "elsewhere"})
    assert kept.channels == ["channel1", "channel4"]


def test_lfp_at_its_own_rate_is_returned_as_it_is() -> None:
    signal = lfp(noise(5_000, 4, seed=22), rate_hz=2500.0)
    assert clean_lfp(signal, causal=True)[0] is signal


@pytest.mark.parametrize("causal", [True, False])
def test_channels_are_resampled_one_at_a_time(causal) -> None:
    broadband = lfp(noise(30_000, 32, seed=23).astype(np.float32), rate_hz=3000.0)
    resample(broadband, 1000, causal=causal)  # what is imported on first use does not count
    tracemalloc.start()
    made = resample(broadband, 1000, causal=causal)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # The result three times (parts, joined, checked) and a few channels as float64, far below all as float64.
    assert peak < 3 * made.data.nbytes + 12 * 8 * 30_000
