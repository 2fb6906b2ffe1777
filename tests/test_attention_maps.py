"""Attention as a table, scores of it against planted truths, and what each stream contributes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr

from neurofuse.attention_maps import CREDIBLE_LEVELS, _at_mean, attention, attention_scores, contribution
from neurofuse.decode import DecodeConfig, decode_recording
from neurofuse.decoders.registry import make_decoder
from neurofuse.errors import NeurofuseError
from neurofuse.jitters.lag_laws import WindowLag
from neurofuse.recording import Movement, Recording, Signal
from neurofuse.scores import lag_scores, posterior_summary
from neurofuse.tokens import tokenize
from neurofuse.windows import split_windows

torch.set_num_threads(1)
STEP_S = 0.02
LAG_S = np.arange(-20, 21) * STEP_S


def table_of(posterior, true_s=None, *, time_s=None, window=None):
    """An alignment table of one clock `b` from weights (time, lag) and a truth."""
    n = len(posterior)
    variables = {"posterior": (("clock", "time", "lag"), np.asarray(posterior)[None])}
    if true_s is not None:
        variables["true_lag_s"] = (("clock", "time"), np.broadcast_to(true_s, (1, n)).astype(float))
    if window is not None:
        variables["window"] = ("time", window)
    return xr.Dataset(
        variables,
        coords={"clock": ["b"], "time": np.arange(n) * STEP_S if time_s is None else time_s, "lag": LAG_S},
        attrs={"token_s": STEP_S},
    )


def one_hot(index):
    return np.eye(LAG_S.size)[np.broadcast_to(index, np.shape(index))]


def drifting_and_jumping(n_windows=400, n=100, *, strength=1.2, seed=0):
    """Lags drawn from a known Markov chain, noisy evidence of them, and the exact posterior (forward, backward)."""
    rng = np.random.default_rng(seed)
    n_lags = LAG_S.size
    move = 0.8 * np.eye(n_lags) + 0.1 * np.eye(n_lags, k=1) + 0.1 * np.eye(n_lags, k=-1)
    move[0, 0] += 0.1
    move[-1, -1] += 0.1
    move = 0.97 * move + 0.03 / n_lags
    state = np.empty((n, n_windows), dtype=int)
    state[0] = rng.integers(n_lags, size=n_windows)
    for t in range(1, n):
        drawn = (move.cumsum(1)[state[t - 1]] < rng.uniform(size=(n_windows, 1))).sum(1)
        state[t] = np.minimum(drawn, n_lags - 1)
    evidence = rng.standard_normal((n, n_windows, n_lags)) + strength * np.eye(n_lags)[state]
    likely = np.exp(strength * evidence - strength**2 / 2)
    ahead, back = likely.copy(), np.ones_like(likely)
    for t in range(1, n):
        ahead[t] *= (ahead[t - 1] / ahead[t - 1].sum(-1, keepdims=True)) @ move
        after = back[-t] * likely[-t]
        back[-t - 1] = (after / after.sum(-1, keepdims=True)) @ move.T
    posterior = ahead * back
    posterior /= posterior.sum(-1, keepdims=True)
    # A lag of the grid stands for the interval around it, so the truth lies anywhere inside.
    true_s = LAG_S[state] + STEP_S * rng.uniform(-0.5, 0.5, state.shape)
    return np.swapaxes(posterior, 0, 1).reshape(-1, n_lags), true_s.T.ravel(), np.arange(true_s.size) // n


def test_the_exact_posterior_of_a_known_markov_chain_is_calibrated():
    posterior, true_s, window = drifting_and_jumping()
    found = attention_scores(table_of(posterior, true_s, window=window)).sel(clock="b")
    np.testing.assert_allclose(found["coverage"], CREDIBLE_LEVELS, atol=0.025)
    assert float(found["calibration_error"]) < 0.03
    filled = found["share"] > 0.02
    np.testing.assert_allclose(found["accuracy"][filled], found["confidence"][filled], atol=0.08)
    # If the truth is a draw from the posterior, the mass near it is an expectation under the posterior.
    near = np.abs(LAG_S[:, None] - LAG_S) <= 0.05 + 1e-6
    assert float(found["mass_on_truth"]) == pytest.approx(
        np.einsum("ti,ij,tj->t", posterior, near, posterior).mean(), abs=0.02
    )
    confidence = np.array([p @ near[p.argmax()] for p in posterior])
    assert float(found["anomaly_rate"]) == pytest.approx(1 - confidence.mean(), abs=0.02)
    assert 0.05 < float(found["anomaly_rate"]) < 0.6
    # 3 % of tokens jump, and of those most by more than the tolerance; drift is too small to count.
    assert float(found["true_flicker"]) == pytest.approx(0.03 * 36 / 41 / STEP_S, rel=0.05)


def test_an_overconfident_posterior_is_detected():
    posterior, true_s, _ = drifting_and_jumping(strength=1.0)
    honest = attention_scores(table_of(posterior, true_s)).sel(clock="b")
    sharp = posterior**4
    overconfident = attention_scores(table_of(sharp, true_s)).sel(clock="b")
    assert float(overconfident["calibration_error"]) > float(honest["calibration_error"]) + 0.1
    assert float(overconfident["coverage"].sel(credible_level=0.9)) < 0.8
    # The improper score rewards it, and so does entropy.
    assert float(overconfident["mass_on_truth"]) > float(honest["mass_on_truth"])
    assert float(overconfident["entropy"]) < float(honest["entropy"])
    assert float(overconfident["anomaly_rate"]) == float(honest["anomaly_rate"])


def test_a_uniform_posterior_has_the_largest_entropy_and_the_right_coverage():
    n = 4000
    true_s = np.random.default_rng(0).uniform(LAG_S[0] - STEP_S / 2, LAG_S[-1] + STEP_S / 2, n)
    found = attention_scores(table_of(np.full((n, 41), 1 / 41), true_s)).sel(clock="b")
    assert float(found["entropy"]) == pytest.approx(np.log(41))
    assert float(found["relative_entropy"]) == pytest.approx(1)
    assert float(found["flicker"]) == 0
    np.testing.assert_allclose(found["coverage"], CREDIBLE_LEVELS, atol=0.03)
    near = np.abs(true_s[:, None] - LAG_S) <= 0.05 + 1e-6
    assert float(found["mass_on_truth"]) == pytest.approx(near.mean())


def test_attention_that_is_sharp_and_wrong_has_no_entropy_and_no_hits():
    found = attention_scores(table_of(one_hot(np.full(100, 30)), 0.0)).sel(clock="b")
    for name, value in {"mass_on_truth": 0, "anomaly_rate": 1, "entropy": 0, "calibration_error": 1}.items():
        assert float(found[name]) == pytest.approx(value, abs=1e-9)
    np.testing.assert_array_equal(found["coverage"], 0)
    right = attention_scores(table_of(one_hot(np.full(100, 20)), 0.0)).sel(clock="b")
    for name, value in {"mass_on_truth": 1, "anomaly_rate": 0, "entropy": 0, "calibration_error": 0}.items():
        assert float(right[name]) == pytest.approx(value, abs=1e-9)


def test_flicker_counts_changes_beyond_the_tolerance_inside_a_window():
    index = np.full(100, 20)
    index[10:12] = 40  # there and back: two changes
    index[30:] = 22  # by 40 ms: within the tolerance
    index[50:] = 5  # where the window changes: no flicker
    window = np.arange(100) // 50
    found = attention_scores(table_of(one_hot(index), window=window))
    assert "mass_on_truth" not in found
    assert float(found["flicker"][0]) == pytest.approx(2 / (98 * STEP_S))
    # A wide band separates 40 ms from zero, and a narrow one does not separate 400 ms.
    assert float(
        attention_scores(table_of(one_hot(index), window=window), bandwidth_hz=20)["flicker"][0]
    ) == (pytest.approx(3 / (98 * STEP_S)))
    assert float(attention_scores(table_of(one_hot(index)), bandwidth_hz=1)["flicker"][0]) == 0
    # Over a gap there are no neighbours.
    time_s = np.arange(100) * STEP_S + (np.arange(100) >= 50)
    assert float(attention_scores(table_of(one_hot(index), time_s=time_s))["flicker"][0]) == (
        pytest.approx(2 / (98 * STEP_S))
    )


def test_moments_without_a_truth_are_left_out():
    true_s = np.where(np.arange(100) < 25, 0.0, np.nan)
    index = np.where(np.arange(100) < 25, 20, 3)
    found = attention_scores(table_of(one_hot(index), true_s)).sel(clock="b")
    assert float(found["known_share"]) == 0.25
    assert float(found["anomaly_rate"]) == 0
    nothing = attention_scores(table_of(one_hot(index), np.full(100, np.nan))).sel(clock="b")
    assert np.isnan(nothing["anomaly_rate"])
    assert np.isnan(nothing["coverage"]).all()


def test_coverage_agrees_with_the_intervals_of_the_alignment():
    rng = np.random.default_rng(1)
    posterior = rng.dirichlet(np.full(41, 0.3), 500)
    true_s = rng.uniform(-0.41, 0.41, 500)
    summary = posterior_summary(posterior, LAG_S)
    other = lag_scores(
        true_s, summary["lag_map_s"], summary["lag_mean_s"], summary["lag_q05_s"], summary["lag_q95_s"],
        token_s=STEP_S,
    )  # fmt: skip
    found = attention_scores(table_of(posterior, true_s)).sel(clock="b")
    assert float(found["coverage"].sel(credible_level=0.9)) == pytest.approx(
        other["lag_coverage_90"], abs=0.005
    )
    assert 1 - float(found["anomaly_rate"]) == pytest.approx(other["lag_hit_rate"])


def test_a_table_of_something_else_is_refused():
    with pytest.raises(
        NeurofuseError, match="holds no 'posterior' over clocks and lags; give one from attent"
    ):
        attention_scores(xr.Dataset({"movement": ("time", np.zeros(3))}))
    with pytest.raises(NeurofuseError, match="bandwidth_hz must be positive, got -3"):
        attention_scores(table_of(one_hot(np.full(5, 3))), bandwidth_hz=-3)


def systems(*, seconds=60.0, seed=0):
    """Clock `a` carries axis x (in stream `good`; stream `idle` is noise), clock `b` axis y."""
    rng = np.random.default_rng(seed)
    n = int(seconds / 0.05)
    drive = rng.standard_normal((n + 2, 4))
    drive = (drive[:-2] + drive[1:-1] + drive[2:]) / np.sqrt(3)
    common = drive[:, 2:]
    noise = 0.2 * rng.standard_normal((n, 8))
    views = {
        "good": ("a", np.column_stack([drive[:, 0], common @ rng.standard_normal((2, 3)) + noise[:, :3]])),
        "idle": ("a", rng.standard_normal((n, 2))),
        "far": ("b", np.column_stack([drive[:, 1], common @ rng.standard_normal((2, 3)) + noise[:, 3:6]])),
    }
    time_s = np.arange(n) * 0.05
    streams = tuple(
        Signal.from_array(7 + v, clock=c, name=name, time_s=time_s, kind="power")
        for name, (c, v) in views.items()
    )
    return Recording("two", "a", streams, Movement.from_array(drive[:, :2], time_s=time_s, axes=["x", "y"]))


@pytest.fixture(scope="module")
def parts():
    return split_windows(
        tokenize(systems()), window_s=3.0, max_lag_s=0.3, jitter=WindowLag(0.1), rng=np.random.default_rng(0)
    )


@pytest.fixture(scope="module")
def tracked(parts):
    decoder = make_decoder("tracked", width=16, n_steps=120, learning_rate=1e-2)
    return decoder.fit(parts.train, validation=parts.validation)


@pytest.fixture(scope="module")
def ridge():
    still = split_windows(tokenize(systems()), window_s=3.0, max_lag_s=0.3, rng=np.random.default_rng(0))
    return make_decoder("ridge").fit(still.train, validation=still.validation), still.test


def test_attention_is_the_posterior_of_the_decoder_with_the_true_lag(parts, tracked):
    table = attention(tracked, parts.test)
    found = tracked.decode(parts.test)
    assert table["posterior"].dims == ("clock", "window", "step", "lag")
    np.testing.assert_array_equal(table["posterior"].sel(clock="b"), found.posterior["b"])
    np.testing.assert_array_equal(table["true_lag_s"].sel(clock="b"), parts.test.lag_s[..., 0])
    np.testing.assert_array_equal(table["time"], parts.test.time_s)
    np.testing.assert_array_equal(table["lag_path_s"][0], found.lag_s[found.path["b"]])
    found = attention_scores(table).sel(clock="b")
    assert float(found["mass_on_truth"]) > 0.7
    assert float(found["anomaly_rate"]) < 0.3
    assert float(found["true_flicker"]) == 0  # the truth jumps between windows alone


def test_a_truth_that_the_windows_do_not_hold_can_be_given(parts, tracked):
    unlabelled = replace(parts.test, jitter=None)
    assert "true_lag_s" not in attention(tracked, unlabelled)
    given = attention(tracked, unlabelled, truth_s={"b": 0.1})
    np.testing.assert_array_equal(given["true_lag_s"], np.full((1, *unlabelled.shape), 0.1))
    with pytest.raises(NeurofuseError, match=r"truth_s names clock 'c', but the clocks searched are \['b'\]"):
        attention(tracked, unlabelled, truth_s={"c": 0.1})


def test_a_decoder_without_attention_over_lags_is_refused(ridge):
    decoder, windows = ridge
    with pytest.raises(
        NeurofuseError, match=r"'ridge' has no attention over lags on clocks \['a', 'b'\]; take a "
    ):
        attention(decoder, windows)


def test_one_window_scores_the_same_as_an_attention_or_as_an_alignment_table():
    posterior, true_s, _ = drifting_and_jumping(1, 400)
    flat = table_of(posterior, true_s)
    nested = xr.Dataset(
        {
            "posterior": (("clock", "window", "step", "lag"), posterior[None, None]),
            "true_lag_s": (("clock", "window", "step"), true_s[None, None]),
        },
        coords={"clock": ["b"], "time": (("window", "step"), flat["time"].values[None]), "lag": LAG_S},
        attrs=flat.attrs,
    )
    xr.testing.assert_allclose(attention_scores(flat), attention_scores(nested))


def test_the_alignment_of_a_decode_can_be_scored():
    config = DecodeConfig(window_s=3, max_lag_s=0.3, jitter="lag:0.1", n_steps=40, baseline=False)
    result = decode_recording(systems(), config=config)
    found = attention_scores(result.alignment).sel(clock="b")
    # One lag per window, so the path of a still lag and the most probable lag differ little.
    assert float(found["coverage"].sel(credible_level=0.9)) == pytest.approx(
        result.metrics["lag_coverage_90"], abs=0.02
    )
    assert float(found["known_share"]) == 1


def test_r2_of_ridge_drops_by_what_each_stream_carried(ridge):
    decoder, windows = ridge
    table = contribution(decoder, windows)
    assert list(table["part"].values) == ["a", "a: good", "a: idle", "b"]
    assert list(table["n_features"].values) == [6, 4, 2, 4]
    assert list(table["clock"].values) == ["a", "a", "a", "b"]
    drop = table["contribution"]
    assert (table["r2"] > 0.9).all()
    assert float(drop.sel(part="b", axis="y")) > 0.8
    assert float(drop.sel(part="a: good", axis="x")) > 0.8
    for part, axis in (("b", "x"), ("a", "y"), ("a: idle", "x"), ("a: idle", "y")):
        assert abs(float(drop.sel(part=part, axis=axis))) < 0.05
    xr.testing.assert_allclose((table["r2"] - table["r2_without"]).transpose("part", "axis"), drop)


def test_single_features_can_be_masked(ridge):
    decoder, windows = ridge
    drop = contribution(decoder, windows, by="feature")["contribution"]
    assert list(drop["part"].values) == [f for c in windows.tokens.clocks for f in c.features]
    assert int(drop.sel(axis="x").argmax("part")) == 0
    assert str(drop["part"][int(drop.sel(axis="y").argmax("part"))].values).startswith("far/")
    with pytest.raises(NeurofuseError, match="by must be 'stream' or 'feature', got 'unit'"):
        contribution(decoder, windows, by="unit")


def test_a_masked_clock_is_absent_and_a_masked_stream_is_at_its_mean(ridge):
    decoder, windows = ridge
    seen = []

    class Spy(type(decoder)):
        def predict(self, X):
            seen.append(X.batch(slice(0, 2)))
            return super().predict(X)

    spy = Spy()
    spy.__dict__.update(decoder.__dict__)
    contribution(spy, windows)
    whole, _, good, idle, far = seen
    np.testing.assert_array_equal(far.present[0], whole.present[0])
    assert not far.present[1].any()
    assert not far.values[1].any()
    mean = decoder.input_scales_[0].mean
    np.testing.assert_allclose(idle.values[0][..., 4:][whole.present[0]], np.broadcast_to(mean[4:], (1, 2))
                               .repeat(whole.present[0].sum(), 0), rtol=1e-5)  # fmt: skip
    np.testing.assert_array_equal(idle.values[0][..., :4], whole.values[0][..., :4])
    np.testing.assert_array_equal(good.values[0][..., 4:], whole.values[0][..., 4:])
    np.testing.assert_array_equal(idle.present[0], whole.present[0])


def test_counts_can_be_masked_at_their_mean(tiny):
    parts = split_windows(tokenize(tiny), window_s=1.0, max_lag_s=0.2, rng=np.random.default_rng(0))
    decoder = make_decoder("ridge").fit(parts.train, validation=parts.validation)
    clock, mean = parts.train.tokens.clocks[0], decoder.input_scales_[0].mean
    masked = _at_mean(clock, np.arange(clock.n_features) < 3, mean, parts.train.tokens.per_token)
    tokens = replace(parts.train.tokens, clocks=(masked, *parts.train.tokens.clocks[1:]))
    batch = replace(parts.train, tokens=tokens).batch(slice(0, 4))
    there = batch.present[0]
    np.testing.assert_allclose(batch.values[0][there][:, :3] - mean[:3], 0, atol=1e-4)


@pytest.mark.parametrize("name", ["tracked", "early"])
def test_every_kind_of_decoder_has_contributions(name, parts, tracked):
    decoder = tracked
    if name != "tracked":
        decoder = make_decoder(name, width=16, n_steps=60, learning_rate=1e-2).fit(
            parts.train, validation=parts.validation
        )
    drop = contribution(decoder, parts.test)["contribution"]
    assert float(drop.sel(part="a", axis="x")) > 0.3
    assert np.isfinite(drop).all()


def test_windows_without_movement_have_nothing_to_contribute_to(ridge):
    decoder, windows = ridge
    blind = replace(windows.tokens, movement=np.zeros((windows.tokens.n_tokens, 0), np.float32), axes=())
    with pytest.raises(NeurofuseError, match="hold no movement, so no contribution"):
        contribution(decoder, replace(windows, tokens=blind))
