"""The whole line on recordings whose truth is known: simulated ones, and real ones where they are at hand."""

import json

import numpy as np
import pytest
import xarray as xr

from neurofuse.config import DecodeConfig
from neurofuse.decode import decode_recording, predict_recording
from neurofuse.decoders.base import Decoder
from neurofuse.errors import NeurofuseError
from neurofuse.recording import Signal
from neurofuse.report.save import save_result, settings_of
from neurofuse.simulation import SimulationConfig, demo_law, simulate


@pytest.fixture(scope="module")
def decoded():
    recording, truth = simulate(
        demo_law("demo:jump"), config=SimulationConfig(duration_s=150), rng=np.random.default_rng(3)
    )
    config = DecodeConfig(n_steps=250, train=0.65, validation=0.12)
    return recording, truth, decode_recording(recording, config=config, truths={truth.clock: truth})


@pytest.mark.slow
def test_movement_is_decoded_through_a_lag_that_jumps(decoded):
    _, _, result = decoded
    m = result.metrics
    assert m["r2_mean"] > 0.75
    assert m["r2_mean"] > m["baseline_ridge_r2_mean"] + 0.05
    assert m["lag_hit_rate"] > 0.85
    assert m["lag_median_abs_error_s"] < 0.03
    assert m["scored"] == "stitched"
    assert m["n_units"] == 48
    assert m["n_channels"] == 16
    assert set(m["r2"]) == {"vx", "vy"}
    assert m["r2_mean"] == pytest.approx(np.mean(list(m["r2"].values())))
    assert {"features", "train", "decode", "ridge"} <= set(m["seconds"])


@pytest.mark.slow
def test_the_tables_agree_with_the_metrics(decoded):
    _, truth, result = decoded
    p, a = result.prediction, result.alignment
    error = ((p["movement"] - p["prediction"]) ** 2).sum("time")
    total = ((p["movement"] - p["movement"].mean("time")) ** 2).sum("time")
    np.testing.assert_allclose((1 - error / total).values, list(result.metrics["r2"].values()), atol=1e-5)
    np.testing.assert_allclose(a["posterior"].sum("lag"), 1, atol=1e-4)
    np.testing.assert_allclose(a["true_lag_s"][0], truth.at(a["time"].values))
    assert (a["lag_q05_s"] <= a["lag_mean_s"] + 0.02).all()
    assert (np.diff(p["time"].values) > 0).all()
    # The test stretch is covered whole, to the last token.
    assert p["time"].values[-1] == pytest.approx(150 - 0.01, abs=0.021)


@pytest.mark.slow
def test_what_was_saved_decodes_the_recording_again(decoded, tmp_path):
    recording, _, result = decoded
    save_result(result, tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {
        "metrics.json",
        "prediction.nc",
        "alignment.nc",
        "checkpoint",
        "report.html",
    }
    assert json.loads((tmp_path / "metrics.json").read_text())["r2"] == result.metrics["r2"]
    with xr.open_dataset(tmp_path / "prediction.nc") as kept:
        np.testing.assert_array_equal(kept["prediction"], result.prediction["prediction"])
    decoder = Decoder.from_pretrained(tmp_path / "checkpoint")
    metrics, again, _ = predict_recording(recording, decoder, settings_of(tmp_path / "checkpoint"))
    both = again["prediction"].sel(time=result.prediction["time"], method="nearest").values
    # Windows are laid elsewhere, so edges differ a little; the movement does not.
    assert np.corrcoef(both.ravel(), result.prediction["prediction"].values.ravel())[0, 1] > 0.98
    assert metrics["r2_mean"] > 0.8


def test_the_same_seed_gives_the_same_numbers():
    recording, _ = simulate(
        demo_law("demo"), config=SimulationConfig(duration_s=40), rng=np.random.default_rng(0)
    )
    config = DecodeConfig(n_steps=10, window_s=1.0, max_lag_s=0.3)
    first, second = (decode_recording(recording, config=config) for _ in range(2))
    xr.testing.assert_identical(first.prediction, second.prediction)
    xr.testing.assert_identical(first.alignment, second.alignment)


def test_a_planted_truth_never_reaches_the_decoder():
    recording, truth = simulate(
        demo_law("demo"), config=SimulationConfig(duration_s=40), rng=np.random.default_rng(0)
    )
    config = DecodeConfig(n_steps=10, window_s=1.0, max_lag_s=0.3)
    scored = decode_recording(recording, config=config, truths={truth.clock: truth})
    unscored = decode_recording(recording, config=config)
    xr.testing.assert_identical(scored.prediction, unscored.prediction)
    assert "lag_hit_rate" in scored.metrics
    assert "lag_hit_rate" not in unscored.metrics


@pytest.mark.parametrize("causal", [False, True])
def test_the_settings_state_how_the_features_were_taken(causal):
    recording, _ = simulate(
        demo_law("demo"), config=SimulationConfig(duration_s=40), rng=np.random.default_rng(0)
    )
    config = DecodeConfig(decoder="ridge", causal=causal, window_s=1.0, max_lag_s=0.3, line_hz=50)
    settings = decode_recording(recording, config=config).metrics["settings"]
    assert settings["features"]["causal"] is causal
    assert settings["features"]["line_hz"] == 50


def test_a_channel_that_goes_bad_later_is_named_and_still_decoded_from(tmp_path):
    recording, _ = simulate(
        demo_law("demo"), config=SimulationConfig(duration_s=40), rng=np.random.default_rng(0)
    )
    config = DecodeConfig(decoder="ridge", window_s=1.0, max_lag_s=0.3)
    save_result(decode_recording(recording, config=config), tmp_path)
    decoder = Decoder.from_pretrained(tmp_path / "checkpoint")
    lfp = recording["lfp"]
    values = lfp.data.values.copy()
    values[:, 3] = 0.0
    dead = Signal.from_array(values, clock=lfp.clock, name="lfp", time_s=lfp.time_s, channels=lfp.channels)
    later = recording.but(streams=(recording["spikes"], dead))
    metrics, _, _ = predict_recording(later, decoder, settings_of(tmp_path / "checkpoint"))
    assert any("were found bad: ch03" in w for w in metrics["warnings"])
    assert np.isfinite(metrics["r2_mean"])


def test_units_that_were_split_are_split_again_to_predict(tmp_path):
    recording, _ = simulate(
        demo_law("demo:none"),
        config=SimulationConfig(duration_s=40, n_units=12),
        rng=np.random.default_rng(0),
    )
    one = recording.but(streams=(recording["spikes"],))
    config = DecodeConfig(decoder="ridge", window_s=1.0, max_lag_s=0.3, split_units=5, jitter="lag:0.1")
    fitted = decode_recording(one, config=config)
    save_result(fitted, tmp_path)
    decoder = Decoder.from_pretrained(tmp_path / "checkpoint")
    assert [len(f) for f in decoder.features_] == [5, 7]
    metrics, _, _ = predict_recording(one, decoder, settings_of(tmp_path / "checkpoint"))
    assert metrics["r2_mean"] > fitted.metrics["r2_mean"] - 0.1


def test_the_search_range_of_a_short_recording_holds_the_planted_lag():
    recording, _ = simulate(
        demo_law("demo:none"), config=SimulationConfig(duration_s=14), rng=np.random.default_rng(0)
    )
    with pytest.raises(NeurofuseError, match=r"has no room for a window of 0\.5"):
        decode_recording(recording, config=DecodeConfig(decoder="ridge", jitter="offset:0.45"))


def test_too_short_a_recording_is_decoded_in_shorter_windows_with_a_warning():
    recording, _ = simulate(
        demo_law("demo:none"), config=SimulationConfig(duration_s=12), rng=np.random.default_rng(0)
    )
    result = decode_recording(recording, config=DecodeConfig(decoder="ridge"))
    assert any("no room for windows of 3 s" in w for w in result.metrics["warnings"])
    assert any("too little to trust" in w for w in result.metrics["warnings"])
    with pytest.raises(NeurofuseError, match=r"has no room for a window of 3 s"):
        decode_recording(recording, config=DecodeConfig(decoder="ridge", window_s=3.0))


@pytest.mark.slow
def test_real_motor_cortex_as_two_systems_is_aligned_and_decoded(shared_data):
    import neurofuse

    recording = neurofuse.load(
        shared_data / "m1_center_out" / "center_out_trials_001_143.mat", movement="vel"
    )
    config = DecodeConfig(split_units=12, jitter="lag:0.3", max_lag_s=1.0, n_steps=300)
    metrics = decode_recording(recording, config=config).metrics
    assert metrics["scored"] == "per window"
    assert metrics["r2_mean"] > 0.87
    assert metrics["lag_hit_rate"] > 0.9
    assert metrics["r2_mean"] > metrics["baseline_ridge_r2_mean"] + 0.3


@pytest.mark.slow
@pytest.mark.parametrize(("causal", "least"), [(False, 0.88), (True, 0.86)])
def test_real_motor_cortex_is_decoded_on_one_clock(shared_data, causal, least):
    import neurofuse

    recording = neurofuse.load(
        shared_data / "m1_center_out" / "center_out_trials_001_143.mat", movement="vel"
    )
    metrics = decode_recording(recording, config=DecodeConfig(causal=causal, n_steps=300)).metrics
    assert metrics["r2_mean"] > least
    assert metrics["r2_mean"] > metrics["baseline_ridge_r2_mean"] + 0.08
