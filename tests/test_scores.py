"""Scores against scikit-learn, loops, and distributions of known quantiles."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy, norm
from sklearn.metrics import r2_score

from neurofuse.scores import (
    hit_rate,
    hit_tolerance_s,
    hits,
    lag_scores,
    posterior_summary,
    r2_per_axis,
    stitch,
)


def test_r2_is_that_of_scikit_learn_axis_by_axis():
    rng = np.random.default_rng(0)
    target = rng.standard_normal((6, 50, 3))
    prediction = target + np.array([0.1, 1.0, 3.0]) * rng.standard_normal(target.shape)
    for k, r2 in enumerate(r2_per_axis(target, prediction)):
        assert r2 == pytest.approx(r2_score(target[..., k].ravel(), prediction[..., k].ravel()))
    assert r2_per_axis(target, target).tolist() == [1, 1, 1]
    assert r2_per_axis(target, prediction)[2] < 0


def test_r2_leaves_out_what_is_not_known():
    rng = np.random.default_rng(0)
    target, prediction = rng.standard_normal((2, 100, 2))
    holes = target.copy()
    holes[::3, 0] = np.nan
    kept = np.arange(100) % 3 != 0
    np.testing.assert_allclose(r2_per_axis(holes, prediction), r2_per_axis(target[kept], prediction[kept]))
    assert np.isnan(r2_per_axis(np.full((5, 2), np.nan), prediction[:5])).all()


def test_a_hit_lies_within_50_ms_or_a_token_or_the_bandwidth_of_the_streams():
    assert hit_tolerance_s(0.02) == pytest.approx(0.05, abs=1e-5)
    assert hit_tolerance_s(0.1) == pytest.approx(0.1, abs=1e-5)
    assert hit_tolerance_s(0.02, bandwidth_hz=5.0) == pytest.approx(0.1, abs=1e-5)
    assert hit_tolerance_s(0.02, bandwidth_hz=500.0, lag_step_s=0.02) == pytest.approx(0.01, abs=1e-5)


def test_only_moments_with_a_known_truth_count_for_the_hit_rate():
    true_s = np.array([0.0, 0.1, np.nan, 0.3])
    lag_s = np.array([0.05, 0.2, 0.0, 0.3])
    assert hits(lag_s, true_s, tolerance_s=0.06).tolist() == [True, False, False, True]
    assert hit_rate(lag_s, true_s, tolerance_s=0.06) == pytest.approx(2 / 3)
    assert np.isnan(hit_rate(lag_s[:1], true_s[2:3], tolerance_s=0.06))


def test_lag_scores_count_the_moments_where_the_truth_is_known():
    true_s = np.array([0.0, 0.1, 0.2, np.nan, 0.3])
    path_s = np.array([0.05, 0.1, 0.5, 0.0, 0.3])
    mean_s = np.array([0.0, 0.12, 0.3, 9.0, 0.26])
    found = lag_scores(true_s, path_s, mean_s, mean_s - 0.05, mean_s + 0.05, token_s=0.02)
    assert found["lag_hit_rate"] == 0.75
    assert found["lag_median_abs_error_s"] == pytest.approx(0.03)
    assert found["lag_coverage_90"] == 0.75
    unknown = lag_scores(np.full(5, np.nan), path_s, mean_s, mean_s, mean_s, token_s=0.02)
    assert set(unknown.values()) == {None}


@given(
    first=st.lists(st.integers(0, 60), min_size=1, max_size=12),
    n_steps=st.integers(1, 15),
    seed=st.integers(0, 9),
)
@settings(max_examples=40, deadline=None)
def test_stitching_is_a_weighted_mean_token_by_token(first, n_steps, seed):
    values = np.random.default_rng(seed).standard_normal((len(first), n_steps, 2))
    token, joined, window = stitch(np.array(first), values)
    covered = sorted({f + k for f in first for k in range(n_steps)})
    assert token.tolist() == covered
    for at, got, best in zip(token, joined, window, strict=True):
        shares = []
        for w, f in enumerate(first):
            if f <= at < f + n_steps:
                shares.append((min(at - f + 1, f + n_steps - at), w, values[w, at - f]))
        weight = np.array([s[0] for s in shares], dtype=float)
        mean = (weight[:, None] * np.array([s[2] for s in shares])).sum(0) / weight.sum()
        np.testing.assert_allclose(got, mean, atol=1e-12)
        assert best == next(w for s, w, _ in shares if s == weight.max())


def test_windows_that_agree_stitch_to_the_series_they_were_cut_from():
    series = np.random.default_rng(0).standard_normal((100, 3, 2))
    first = np.arange(0, 81, 7)
    values = series[first[:, None] + np.arange(20)]
    token, joined, _ = stitch(first, values)
    np.testing.assert_allclose(joined, series[token])
    assert joined.shape == (len(token), 3, 2)


LAGS = np.linspace(-0.5, 0.5, 51)


def test_a_certain_posterior_is_as_wide_as_a_grid_step():
    posterior = np.zeros(51)
    posterior[30] = 1
    found = posterior_summary(posterior, LAGS)
    assert found["lag_map_s"] == found["lag_mean_s"] == pytest.approx(0.1)
    assert found["lag_std_s"] == pytest.approx(0.02 / np.sqrt(12))
    assert found["lag_q05_s"] == pytest.approx(0.1 - 0.45 * 0.02)
    assert found["lag_q95_s"] == pytest.approx(0.1 + 0.45 * 0.02)
    assert found["entropy"] == 0


def test_a_flat_posterior_has_the_quantiles_of_a_uniform():
    found = posterior_summary(np.ones((2, 3, 51)), LAGS)
    assert found["lag_q05_s"].shape == (2, 3)
    np.testing.assert_allclose(found["lag_q05_s"], -0.51 + 0.05 * 1.02)
    np.testing.assert_allclose(found["lag_q95_s"], 0.51 - 0.05 * 1.02)
    np.testing.assert_allclose(found["lag_mean_s"], 0, atol=1e-12)
    np.testing.assert_allclose(found["lag_std_s"], 1.02 / np.sqrt(12))
    np.testing.assert_allclose(found["entropy"], np.log(51))


def test_two_peaks_give_their_outer_quantiles_and_a_mean_between():
    posterior = np.zeros(51)
    posterior[[10, 40]] = 0.25, 0.75
    found = posterior_summary(posterior, LAGS)
    assert found["lag_map_s"] == pytest.approx(0.3)
    assert found["lag_mean_s"] == pytest.approx(0.25 * -0.3 + 0.75 * 0.3)
    assert found["lag_q05_s"] == pytest.approx(-0.3 - 0.01 + 0.02 * 0.05 / 0.25)
    assert found["lag_q95_s"] == pytest.approx(0.3 + 0.01 - 0.02 * 0.05 / 0.75)


def test_a_normal_posterior_has_the_numbers_of_the_normal():
    posterior = norm.pdf(LAGS, 0.05, 0.08)[None] * 7  # need not be normalised
    found = posterior_summary(posterior, LAGS)
    assert found["lag_mean_s"][0] == pytest.approx(0.05, abs=1e-3)
    assert found["lag_std_s"][0] == pytest.approx(0.08, rel=0.02)
    assert found["lag_q05_s"][0] == pytest.approx(norm.ppf(0.05, 0.05, 0.08), abs=2e-3)
    assert found["lag_q95_s"][0] == pytest.approx(norm.ppf(0.95, 0.05, 0.08), abs=2e-3)
    assert found["entropy"][0] == pytest.approx(entropy(posterior[0]))


@given(weights=st.lists(st.floats(0, 1), min_size=51, max_size=51).filter(lambda w: sum(w) > 0.01))
@settings(max_examples=40, deadline=None)
def test_nine_tenths_of_any_posterior_lie_between_its_quantiles(weights):
    p = np.array(weights) / sum(weights)
    found = posterior_summary(p, LAGS)
    edges = np.append(LAGS - 0.01, 0.51)
    cdf = np.append(0, np.cumsum(p))
    low, high = (np.interp(found[k], edges, cdf) for k in ("lag_q05_s", "lag_q95_s"))
    assert low == pytest.approx(0.05, abs=1e-6)
    assert high == pytest.approx(0.95, abs=1e-6)
    assert LAGS[0] - 0.01 <= found["lag_q05_s"] <= found["lag_q95_s"] <= LAGS[-1] + 0.01


def test_the_interval_of_a_calibrated_posterior_holds_the_truth_nine_times_in_ten():
    rng = np.random.default_rng(0)
    n = 6000
    centre, width = rng.uniform(-0.3, 0.3, n), rng.uniform(0.005, 0.08, n)
    posterior = norm.pdf(LAGS, centre[:, None], width[:, None]) + 1e-4
    posterior /= posterior.sum(1, keepdims=True)
    drawn = (posterior.cumsum(1) > rng.uniform(size=(n, 1))).argmax(1)
    true_s = LAGS[drawn] + rng.uniform(-0.01, 0.01, n)
    found = posterior_summary(posterior, LAGS)
    scores = lag_scores(
        true_s, found["lag_map_s"], found["lag_mean_s"], found["lag_q05_s"], found["lag_q95_s"], token_s=0.02
    )
    assert scores["lag_coverage_90"] == pytest.approx(0.9, abs=0.012)


def test_a_prediction_that_is_not_a_number_has_no_score():
    target = np.random.default_rng(0).normal(size=(50, 2))
    prediction = target.copy()
    prediction[3, 0] = np.nan
    assert np.isnan(r2_per_axis(target, prediction)).all()
