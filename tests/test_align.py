"""The map between two clocks is estimated from signals alone, and refused where they share none."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter1d

import neurofuse
from neurofuse.alignment import self_supervised
from neurofuse.alignment.align import align
from neurofuse.alignment.baselines import pulse_evidence, pulses_of
from neurofuse.alignment.clock_map import ClockMap, fit_clock
from neurofuse.alignment.lag_estimator import LagEstimator
from neurofuse.alignment.lag_evidence import MismatchTest, lag_summary
from neurofuse.alignment.result import AlignmentRefused
from neurofuse.alignment.ridge_scan import correlation_log_lik, scan
from neurofuse.alignment.signal_pair import SmoothedPair, signal_pair
from neurofuse.config import AlignConfig
from neurofuse.errors import NeurofuseError
from neurofuse.jitters.lag_laws import Diffusion, Offset, Skew
from neurofuse.recording import Recording, Signal, Spikes
from neurofuse.report.figures import plot_clock
from neurofuse.simulation import SimulationConfig, simulate
from neurofuse.windows import Windows

SMALL = SimulationConfig(duration_s=90.0, n_units=32, n_channels=6, lfp_rate_hz=500.0)
# Few gradient steps suffice for an easy session.
QUICK = AlignConfig(n_steps=60, max_lag_s=2.0, use_movement=False)


def simulated(law=None, seed=0, config=SMALL):
    return simulate(law, config=config, max_lag_s=2.0, rng=np.random.default_rng(seed))


@pytest.fixture(scope="module")
def related():
    """90 s whose LFP clock is late by 0.4 s."""
    return simulated(Offset(0.4))


@pytest.fixture(scope="module")
def unrelated(related):
    """The spikes of one session with the LFP of another."""
    recording, _ = related
    other, _ = simulated(Offset(0.4), seed=5)
    return recording.but(streams=(recording["spikes"], other["lfp"]), movement=None)


@pytest.fixture(scope="module")
def aligned(related):
    return align(related[0], config=QUICK)


# the map


@settings(max_examples=60, deadline=None)
@given(
    lags=st.lists(st.floats(-0.5, 0.5), min_size=2, max_size=6),
    jump=st.integers(0, 4),
    seed=st.integers(0, 10**6),
)
def test_a_clock_map_and_its_inverse_agree_wherever_both_clocks_ran(lags, jump, seed):
    time_s = 10.0 * np.arange(len(lags))
    time_s[min(jump, len(lags) - 2) + 1 :] -= 10.0  # two knots share a time: a jump
    clock = ClockMap.of_lags(time_s, np.array(lags))
    assert (np.diff(clock.a_s) >= 0).all()
    assert (np.diff(clock.b_s) >= 0).all()
    a_s = np.random.default_rng(seed).uniform(-20, time_s[-1] + 20, 200)
    back_s = clock.to_a(clock.to_b(a_s))
    b_s = clock.to_b(a_s)
    # Where B stood still (it lost time) many moments of A share one stamp; back and forth it is the same stamp.
    np.testing.assert_allclose(clock.to_b(back_s), b_s, atol=1e-9)
    moving = np.abs(back_s - a_s) < 1e-9
    flat = [
        (t0, t1) for t0, t1, d in zip(clock.a_s, clock.a_s[1:], np.diff(clock.b_s), strict=False) if d < 1e-9
    ]
    outside = np.array([not any(t0 <= t <= t1 for t0, t1 in flat) for t in a_s])
    assert moving[outside].all()


def test_a_jump_back_leaves_a_gap_on_a_and_a_jump_ahead_one_on_b():
    back = ClockMap.of_lags(np.array([0.0, 50, 50, 100]), np.array([0.1, 0.1, 0.0, 0.0]))
    stamps = np.arange(0.2, 100, 0.01)
    assert (np.diff(back.to_a(stamps)) > 0).all()
    assert np.diff(back.to_a(stamps)).max() == pytest.approx(0.1 + 0.01)
    ahead = ClockMap.of_lags(np.array([0.0, 50, 50, 100]), np.array([0.0, 0.0, 0.1, 0.1]))
    assert ahead.to_b(np.array([49.0, 51.0])) == pytest.approx([49.0, 51.1])
    assert ahead.to_a(np.array([50.05])) == pytest.approx([50.0])


# the fit


def planted(time_s, lag_s, truth_s, *, width_s=0.02, strength=6.0, wrong=0.1, rng):
    """Log-likelihoods that peak near the truth; those of a share of windows peak anywhere."""
    centre = truth_s + 0.3 * width_s * rng.standard_normal(time_s.size)
    off = rng.random(time_s.size) < wrong
    centre[off] = rng.uniform(lag_s[0], lag_s[-1], off.sum())
    return strength * np.exp(-0.5 * ((lag_s - centre[:, None]) / width_s) ** 2)


def test_offset_skew_and_jump_are_recovered_from_windows_a_tenth_of_which_are_wrong():
    rng = np.random.default_rng(0)
    time_s, lag_s = np.arange(2.0, 1200, 4), np.arange(-1, 1.0001, 0.005)
    truth = 0.4 + 30e-6 * time_s + 0.08 * (time_s > 700)
    fit = fit_clock(time_s, planted(time_s, lag_s, truth, rng=rng), lag_s, span_s=(0.0, 1200.0))
    assert fit.skew_ppm[0] == pytest.approx(30, abs=2)
    assert fit.offset_s[0] == pytest.approx(0.4, abs=0.005)
    (jump,) = fit.jumps
    assert jump.size_s == pytest.approx(0.08, abs=0.005)
    assert abs(jump.time_s - 700) <= 4
    assert np.abs(fit.clock.lag_s(time_s) - truth)[np.abs(time_s - 700) > 4].max() < 0.005
    assert np.median(fit.inlier) > 0.7


def test_a_jump_while_nothing_was_recorded_lies_in_the_gap():
    rng = np.random.default_rng(2)
    time_s, lag_s = np.arange(2.0, 600, 4), np.arange(-0.5, 0.5001, 0.005)
    time_s = time_s[(time_s < 250) | (time_s > 350)]
    truth = 0.1 + 0.08 * (time_s > 300)
    log_lik = planted(time_s, lag_s, truth, wrong=0.0, rng=rng)
    for fine in (None, (time_s, log_lik)):
        (jump,) = fit_clock(time_s, log_lik, lag_s, span_s=(0.0, 600.0), fine=fine).jumps
        assert jump.size_s == pytest.approx(0.08, abs=0.01)
        # The gap holds no evidence of its time: the interval covers all of it.
        assert jump.time_low_s <= time_s[time_s < 300][-1]
        assert jump.time_high_s >= time_s[time_s > 300][0]
        assert 240 < jump.time_s < 360


def test_intervals_of_skew_and_offset_have_about_their_nominal_coverage():
    covered = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        time_s, lag_s = np.arange(2.0, 600, 4), np.arange(-0.3, 0.3001, 0.005)
        truth = 0.05 + 20e-6 * time_s
        fit = fit_clock(
            time_s,
            planted(time_s, lag_s, truth, rng=rng),
            lag_s,
            span_s=(0.0, 600.0),
            model="linear",
            within_ppm=200,
        )
        covered.append([fit.skew_ppm[1] <= 20 <= fit.skew_ppm[2], fit.offset_s[1] <= 0.05 <= fit.offset_s[2]])
    assert (np.mean(covered, axis=0) >= 0.85).all()


def test_models_fit_no_skew_or_jumps_beyond_their_freedom():
    rng = np.random.default_rng(1)
    time_s, lag_s = np.arange(2.0, 400, 4), np.arange(-0.5, 0.5001, 0.005)
    truth = 0.1 + 100e-6 * time_s
    log_lik = planted(time_s, lag_s, truth, rng=rng)
    offset = fit_clock(time_s, log_lik, lag_s, span_s=(0, 400), model="offset")
    assert offset.skew_ppm[0] == 0
    assert offset.jumps == ()
    linear = fit_clock(time_s, log_lik, lag_s, span_s=(0, 400), model="linear")
    assert linear.skew_ppm[0] == pytest.approx(100, abs=15)
    assert linear.jumps == ()


def test_the_second_best_of_two_lags_that_explain_a_session_alike_is_reported():
    time_s, lag_s = np.arange(5.0, 200, 10), np.arange(-2, 2.0001, 0.01)
    twice = sum(np.exp(-0.5 * ((lag_s - c) / 0.03) ** 2) for c in (-0.5, 0.5))
    fit = fit_clock(
        time_s, np.repeat(5 * twice[None], time_s.size, 0), lag_s, span_s=(0, 200), model="linear"
    )
    assert fit.second_best_score == pytest.approx(0, abs=0.5)
    assert abs(fit.second_best_s) == pytest.approx(0.5, abs=0.05)
    assert fit.second_best_s * fit.offset_s[0] < 0
    # Both are reported at the start of the session, however much they differ at its middle.
    time_s = np.arange(5.0, 7200, 20)
    lag_s = np.arange(-1, 2.5, 0.01)
    at = 0.2 + 60e-6 * time_s[:, None]
    twice = sum(h * np.exp(-0.5 * ((lag_s - c) / 0.03) ** 2) for h, c in ((5.2, at), (5, at + 1)))
    fit = fit_clock(time_s, twice, lag_s, span_s=(0, 7200), model="linear")
    assert fit.offset_s[0] == pytest.approx(0.2, abs=0.02)
    assert fit.second_best_s == pytest.approx(1.2, abs=0.03)


# the start


def test_a_scan_finds_the_lag_with_a_high_z_score_which_is_low_where_no_signal_is_shared(related, unrelated):
    pair, other = (signal_pair(r, use_movement=False) for r in (related[0], unrelated))
    rng = np.random.default_rng(0)
    n = len(pair.coarse)
    found = scan(pair.coarse, 0, n, max_lag_s=2.0, rng=rng)
    assert found.best_s == pytest.approx(0.4, abs=0.02)
    assert found.z_score > 6
    assert scan(other.coarse, 0, n, max_lag_s=2.0, rng=rng).z_score < 4


@pytest.mark.parametrize("n_s", [25, 40, 120])
@pytest.mark.parametrize("lag_s", [-4.0, -1.0, 2.0, 4.0])
def test_the_z_score_of_a_short_session_is_high_at_lags_of_either_sign(n_s, lag_s):
    step_s = 0.04
    n, k = round(n_s / step_s), round(lag_s / step_s)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        shared = gaussian_filter1d(rng.standard_normal((n + 400, 3)), 2.5, axis=0)
        shared /= shared.std(0)
        a, b = (
            shared[200 - j : 200 - j + n] @ rng.standard_normal((3, 6)) + 0.7 * rng.standard_normal((n, 6))
            for j in (0, k)
        )
        present = np.ones(n, bool)
        coarse = SmoothedPair(step_s, 0.0, a.astype(np.float32), present, b.astype(np.float32), present)
        found = scan(coarse, 0, n, max_lag_s=5.0, rng=rng)
        assert found.best_s == pytest.approx(lag_s, abs=0.02)
        assert found.z_score > 10


def test_an_absent_stream_has_a_log_likelihood_of_zero_at_every_lag():
    rng = np.random.default_rng(0)
    a = rng.standard_normal((400, 4)).astype(np.float32)
    b = np.roll(a, 5, axis=0) + rng.standard_normal((400, 4)).astype(np.float32)
    b[150:300] = 0
    lags, first = np.arange(-20, 21), np.array([20, 180, 230, 320])
    log_lik = correlation_log_lik(a, b, 2.0, first, 40, lags)
    assert lags[log_lik[0].argmax()] == lags[log_lik[3].argmax()] == 5
    assert (log_lik[1] == 0).all()
    assert log_lik[2].max() < log_lik[0].max()
    whole = correlation_log_lik(a, b, 2.0, first, 60, lags)
    partly = (230 + 60 + lags > 300) & (230 + 60 + lags < 306)
    assert partly.sum() == 5
    assert (whole[2][partly] == 0).all()


def test_trends_are_subtracted_and_counts_are_otherwise_unchanged(related):
    spikes = related[0]["spikes"]
    two = Recording("two", "array", (spikes, replace(spikes, name="other", clock="logger")))
    pair, plain = signal_pair(two), neurofuse.tokenize(two)
    assert pair.clocks == ("array", "logger")
    a, b = pair.tokens.clocks[0], plain.clocks[0]
    assert a.features == b.features
    assert pair.tokens.origin_s == plain.origin_s
    detrended, counts = (c.gather(4 * np.arange(plain.n_tokens)[None], 4)[0][0] for c in (a, b))
    # By brute force: the mean over 15 s before and after.
    near = np.abs(np.arange(plain.n_tokens) - 2000) <= 750
    np.testing.assert_allclose(counts[2000] - detrended[2000], counts[near].mean(0), atol=0.01)
    assert np.abs(detrended.mean(0)).max() < 0.01


@pytest.mark.parametrize(("bin_s", "token_s"), [(0.007, 0.02), (0.012, 0.025), (0.05, 0.05), (0.02, 0.04)])
def test_a_pair_of_binned_clocks_has_the_number_of_fine_steps_of_its_tokens(bin_s, token_s):
    counts = np.random.default_rng(0).poisson(1.0, (2000, 3)).astype(float)
    two = [
        Signal.from_array(counts, clock=c, name=c, rate_hz=1 / bin_s, kind="counts")
        for c in ("array", "logger")
    ]
    tokens = signal_pair(Recording("binned", "array", tuple(two)), token_s=token_s).tokens
    for clock in tokens.clocks:
        assert len(clock.cover) == tokens.n_tokens * tokens.per_token + 1
        assert clock.cover[-1] * tokens.fine_s == pytest.approx(2000 * bin_s, abs=2 * token_s)


# the session


def test_a_session_is_aligned_from_its_signals_alone(related, aligned):
    _, truth = related
    assert aligned.status == "aligned"
    assert aligned.verdict.startswith("'logger' aligned to 'array' to +-")
    time_s = np.arange(5.0, 85.0)
    assert np.abs(aligned.clock.lag_s(time_s) - truth.at(time_s)).max() < 0.02
    assert aligned.jumps == ()
    assert float(aligned.lag["trusted"].mean()) > 0.9


def test_the_recording_is_retimed_and_its_streams_then_share_one_clock(related, aligned):
    recording, _ = related
    moved = aligned.apply(recording)
    assert moved.clocks == ["array"]
    assert moved["lfp"].start_s == pytest.approx(recording["lfp"].start_s - 0.4, abs=0.02)
    again = np.asarray(aligned.clock.to_b(moved["lfp"].time_s))
    np.testing.assert_allclose(again, recording["lfp"].time_s, atol=1e-6)
    assert "aligned to" in moved.provenance[-1]


def test_an_alignment_is_json_and_a_figure(aligned):
    found = json.loads(json.dumps(aligned.as_dict(), allow_nan=False))
    assert found["status"] == "aligned"
    assert found["offset_s"]["low"] < found["offset_s"]["value"] < found["offset_s"]["high"]
    axes = plot_clock(aligned)
    assert len(axes) == 3
    assert axes[2].get_xlabel() == "time on clock 'array' (s)"
    assert "(s)" in axes[0].get_ylabel()


@pytest.mark.parametrize("method", ["learned", "ridge", "xcorr", "gcc-phat"])
def test_streams_that_share_no_signal_are_refused_by_every_method(unrelated, method):
    with pytest.raises(
        AlignmentRefused, match="no shared signal between 'array' and 'logger': refused"
    ) as caught:
        align(unrelated, config=replace(QUICK, method=method))
    assert caught.value.alignment.status == "refused"
    json.dumps(caught.value.alignment.as_dict(), allow_nan=False)


def test_the_ridge_follows_a_skew():
    recording, truth = simulated(Skew(800.0))
    found = align(recording, config=replace(QUICK, method="ridge", model="linear"))
    time_s = np.arange(5.0, 85.0)
    assert np.abs(found.clock.lag_s(time_s) - truth.at(time_s)).max() < 0.02


def test_a_clock_that_wanders_is_followed_within_its_reported_error():
    config = replace(SMALL, duration_s=240.0)
    recording, truth = simulated(Diffusion(0.01**2), seed=2, config=config)
    found = align(recording, config=replace(QUICK, method="ridge", model="free"))
    time_s = np.arange(5.0, 235.0, 0.5)
    error = np.abs(found.clock.lag_s(time_s) - truth.at(time_s))
    assert np.mean(error <= 0.05) > 0.9
    assert np.mean(error <= found.half_width_s) > 0.8
    still = align(recording, config=replace(QUICK, method="ridge", model="linear"))
    assert np.median(error) < 0.7 * np.median(np.abs(still.clock.lag_s(time_s) - truth.at(time_s)))
    low, high = (found.lag[q].values[0] for q in ("lag_q05_s", "lag_q95_s"))
    at = found.lag["time"].values
    assert np.mean((low <= truth.at(at)) & (truth.at(at) <= high)) > 0.6


def test_the_estimated_zero_does_not_depend_on_the_clock_it_is_estimated_along(related):
    pair, span_s = signal_pair(related[0], use_movement=False), (0.0, 90.0)
    found = []
    for off_s in (0.0, 0.0125, -0.02, 0.031):
        by_s, error_s = self_supervised.estimate_zero(pair, ClockMap.constant(0.4 + off_s, *span_s), span_s)
        found.append(off_s + by_s)
        assert abs(found[-1]) < error_s + 0.002
    assert np.ptp(found) < 0.003


def test_a_stretch_without_the_other_clock_does_not_change_zero(related):
    recording, _ = related
    lfp = recording["lfp"]
    kept = (lfp.time_s < 40) | (lfp.time_s > 62)
    gapped = replace(lfp, data=lfp.data.isel(time=kept))
    pair, span_s = (
        signal_pair(recording.but(streams=(recording["spikes"], gapped)), use_movement=False),
        (0.0, 90.0),
    )
    by_s, error_s = self_supervised.estimate_zero(pair, ClockMap.constant(0.4, *span_s), span_s)
    assert abs(by_s) < 0.01
    assert error_s < 0.02


def test_without_a_shared_moment_zero_stays_where_it_is(related):
    pair = signal_pair(related[0], use_movement=False)
    by_s, error_s = self_supervised.estimate_zero(pair, ClockMap.constant(400.0, 0.0, 90.0), (0.0, 90.0))
    assert by_s == 0
    assert error_s >= self_supervised.ZERO_S


def test_beyond_the_last_lags_a_clock_is_extrapolated_at_one_speed():
    time_s = np.arange(10.0, 90.0, 0.8)
    lag_s = 0.1 + 50e-6 * time_s + 0.002 * np.random.default_rng(0).standard_normal(time_s.size)
    clock = ClockMap.through(time_s, lag_s, skew_ppm=50.0, span_s=(0.0, 100.0))
    np.testing.assert_allclose(clock.lag_s(time_s), lag_s, atol=1e-9)
    for t in (-50.0, 0.0, 100.0, 250.0):
        assert clock.lag_s(t) == pytest.approx(0.1 + 50e-6 * t, abs=0.01)


def test_an_error_that_all_moments_share_widens_their_intervals():
    lag_s = np.arange(-0.2, 0.2001, 0.002)
    sd_s, zero_sd_s = 0.012, 0.009
    posterior = np.exp(-0.5 * ((lag_s - np.array([[0.0], [0.05]])) / sd_s) ** 2)
    without, shared = (lag_summary(posterior, lag_s, zero_error_s=e) for e in (0.0, 1.96 * zero_sd_s))
    for found, sd in ((without, sd_s), (shared, 0.015)):
        np.testing.assert_allclose(found["lag_q95_s"] - found["lag_q05_s"], 2 * 1.645 * sd, rtol=0.02)
    np.testing.assert_allclose(0.5 * (shared["lag_q95_s"] + shared["lag_q05_s"]), [0.0, 0.05], atol=1e-3)


def test_no_stretch_is_estimated_by_a_network_that_was_trained_on_it(related, monkeypatch):
    """With "free", every network keeps clear of the stretches that it estimates."""
    pair = signal_pair(related[0], use_movement=False)
    trained_on = []

    class Numbered:
        """Records its training windows; its log-likelihood of unmatched streams is its own number."""

        def __init__(self, **_):
            pass

        def fit(self, X, *, validation):
            self.max_lag_ = X.max_lag
            self.number = len(trained_on)
            trained_on.append(X.first)
            return self

        def log_lik(self, X, *, every, cut=False):
            n = X.n_steps // every
            log_lik = np.zeros((len(X), n, 2 * X.max_lag + 1), np.float32)
            log_lik[..., X.max_lag] = 10
            return log_lik, np.full((len(X), n), float(self.number))

    monkeypatch.setattr(self_supervised, "LagEstimator", Numbered)
    start = fit_clock(
        np.array([0.0, 90.0]), np.zeros((2, 81)), np.linspace(0, 0.8, 81), span_s=(0.0, 90.0), model="offset"
    )
    start = replace(start, clock=ClockMap.constant(0.4, 0.0, 90.0))
    config = AlignConfig(model="free", search_s=0.2)
    evidence = self_supervised.fit_self_supervised(pair, start, config, span_s=(0.0, 90.0)).evidence
    assert len(trained_on) == self_supervised.ONE_IN
    token_s = pair.tokens.token_s
    for number, first in enumerate(trained_on):
        estimated_s = evidence.time_s[evidence.unmatched == number]
        apart = np.abs(estimated_s[:, None] - token_s * (first + round(1.6 / token_s)))
        assert estimated_s.size
        assert apart.min() > 1.6, "the middle of a block lies in no training window"


@pytest.fixture(scope="module")
def estimator(related):
    """Trained along the true clock of the first 70 s, and its pair."""
    pair = signal_pair(related[0], use_movement=False)
    clock = ClockMap.constant(0.4, 0.0, 70.0)
    trained, _ = self_supervised.train_along(
        pair, clock, search_s=0.2, span_s=(0.0, 70.0), n_steps=60, device="cpu"
    )
    return trained, pair


def windows_moved_by(pair, trained, lags, n=160):
    """Windows of the last 20 s, along the true clock, B moved by whole tokens."""
    first = np.arange(3500, 4500 - n, n // 4)[: len(lags)]
    X = self_supervised.windows_along(pair, ClockMap.constant(0.4, 0.0, 90.0), first, n, trained.max_lag_)
    return replace(X, shift=X.shift + (pair.tokens.per_token * np.asarray(lags))[:, None, None])


def test_the_network_estimates_lags_of_windows_that_it_was_not_trained_on(estimator):
    trained, pair = estimator
    lags = np.random.default_rng(3).integers(-9, 10, 16)
    log_lik, unmatched = trained.log_lik(windows_moved_by(pair, trained, lags), every=160)
    found = log_lik[:, 0].argmax(1) - trained.max_lag_
    assert np.median(np.abs(found - lags)) <= 1
    assert np.mean(log_lik[:, 0].max(1) > unmatched[:, 0]) > 0.8


def test_an_estimator_is_read_back_as_it_was_written(estimator, tmp_path):
    trained, pair = estimator
    folder = trained.save_pretrained(tmp_path / "estimator")
    assert {p.name for p in folder.iterdir()} == {"weights.safetensors", "config.json", "README.md"}
    assert "LagEstimator.from_pretrained" in (folder / "README.md").read_text()
    again = LagEstimator.from_pretrained(folder)
    assert again.get_params() == trained.get_params() | {"device": "auto"}
    X = windows_moved_by(pair, trained, np.zeros(8, int))
    for a, b in zip(trained.log_lik(X, every=40), again.log_lik(X, every=40), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(NeurofuseError, match="'lag-estimator', which is not registered"):
        neurofuse.Decoder.from_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"decoder": "ridge"}))
    with pytest.raises(NeurofuseError, match=r"holds a decoder 'ridge', not a lag estimator; read it with"):
        LagEstimator.from_pretrained(folder)


def test_an_estimator_decodes_a_lag_and_no_movement(estimator):
    trained, pair = estimator
    found = trained.decode(windows_moved_by(pair, trained, np.full(8, 5)))
    assert found.movement.shape == (8, 160, 0)
    (clock,) = found.posterior
    assert clock == "logger"
    np.testing.assert_allclose(found.posterior[clock].sum(-1), 1, rtol=1e-4)
    assert np.median(found.lag_s[found.path[clock]]) == pytest.approx(0.1, abs=0.021)


def test_an_estimator_is_trained_on_two_clocks_only(related):
    tokens = neurofuse.tokenize(related[0].but(streams=(related[0]["spikes"],)))
    X = Windows(tokens, np.arange(0, 900, 100), 100, 10, np.zeros((9, 152, 0), int))
    with pytest.raises(NeurofuseError, match="a lag lies between two clocks, and these windows have 1"):
        LagEstimator(n_steps=1).fit(X)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_gives_the_log_likelihoods_of_the_cpu(estimator, tmp_path):
    trained, pair = estimator
    trained.save_pretrained(tmp_path / "estimator")
    moved = LagEstimator.from_pretrained(tmp_path / "estimator")
    assert next(moved.network_.parameters()).is_cuda
    X = windows_moved_by(pair, trained, np.zeros(8, int))
    for a, b in zip(trained.log_lik(X, every=40), moved.log_lik(X, every=40), strict=True):
        np.testing.assert_allclose(a, b, atol=0.02)
    clock = ClockMap.constant(0.4, 0.0, 70.0)
    on_gpu, _ = self_supervised.train_along(
        pair, clock, search_s=0.2, span_s=(0.0, 70.0), n_steps=20, device="cuda"
    )
    assert np.isfinite(on_gpu.log_lik(X, every=40)[0]).all()


@pytest.mark.parametrize("method", ["xcorr", "gcc-phat", "ridge"])
def test_baselines_find_the_lag_of_copies(method):
    """Two systems that recorded the same population, an easy case."""
    recording, _ = simulated()
    spikes = recording["spikes"]
    late = replace(
        spikes, name="late", clock="logger", times_s=spikes.times_s + 0.7, support=spikes.support + 0.7
    )
    found = align(
        recording.but(streams=(spikes, late), movement=None),
        config=replace(QUICK, method=method, model="offset"),
    )
    assert found.offset_s[0] == pytest.approx(0.7, abs=0.02)


def test_movement_counts_as_a_signal_of_its_clock():
    """A rig that recorded the movement only, and an array."""
    recording, _ = simulated()
    spikes = recording["spikes"]
    other = replace(spikes, clock="logger", times_s=spikes.times_s + 0.3, support=spikes.support + 0.3)
    found = align(recording.but(streams=(other,)), config=replace(QUICK, use_movement=True, method="ridge"))
    assert found.clock_a == "array"
    # In the simulation rates follow velocity without delay.
    assert found.clock.lag_s(45.0) == pytest.approx(0.3, abs=0.03)


def test_an_error_can_be_planted_first_and_the_recording_that_was_aligned_is_kept():
    recording, _ = simulated()
    config = replace(QUICK, method="ridge", model="offset")
    found = align(recording, config=replace(config, jitter="offset:0.25"))
    assert found.clock.lag_s(45.0) == pytest.approx(0.25, abs=0.03)
    assert "jittered by offset:0.25" in found.recording.provenance[-1]
    one = found.apply()
    assert one.clocks == [recording.reference]
    assert one["lfp"].start_s == pytest.approx(found.recording["lfp"].start_s - 0.25, abs=0.03)
    with pytest.raises(NeurofuseError, match=r"beyond the search range of \+-5 s; lower its level or raise"):
        align(recording, config=AlignConfig(jitter="offset:6"))


def test_units_of_one_population_can_be_split_into_two_systems():
    recording, _ = simulated()
    one = recording.but(streams=(recording["spikes"],), movement=None)
    found = align(
        one, config=replace(QUICK, method="ridge", model="offset", split_units=12, jitter="offset:-0.3")
    )
    assert [s.n_units for s in found.recording.spikes] == [12, SMALL.n_units - 12]
    assert found.clock.lag_s(45.0) == pytest.approx(-0.3, abs=0.03)


def test_a_prior_of_the_drift_narrows_or_widens_the_posterior(related):
    config = replace(QUICK, method="ridge", model="offset")
    widths = [
        float((t.lag["lag_q95_s"] - t.lag["lag_q05_s"]).mean())
        for t in (
            align(related[0], config=replace(config, **prior))
            for prior in ({"drift": 1e-4}, {}, {"drift": 0.015}, {"skew_ppm": 3000.0})
        )
    ]
    narrow, default, wide, skewed = widths
    assert narrow < default < wide
    assert skewed > default


def test_priors_that_contradict_each_other_are_refused_before_anything_is_computed(related, monkeypatch):
    monkeypatch.setattr("neurofuse.alignment.align.signal_pair", None)
    with pytest.raises(NeurofuseError, match="are both given, and a skew is converted to a drift; give one"):
        align(related[0], config=AlignConfig(drift=0.01, skew_ppm=20.0))


# pulses


def pulsed(seed=0, wrong=0):
    rng = np.random.default_rng(seed)
    a_s = np.cumsum(rng.uniform(0.5, 1.5, 400))
    truth = 0.25 + 40e-6 * a_s + 0.06 * (a_s > 200)
    b_s = (a_s + truth)[rng.random(a_s.size) > 0.05]
    return a_s, np.sort(np.concatenate([b_s, rng.uniform(0, 400, 10)])), truth


def as_recording(a_s, b_s):
    units = [
        Spikes.from_trains([t], clock=c, name=f"{c} events", unit_names=["sync"])
        for t, c in ((a_s, "rig"), (b_s, "array"))
    ]
    return Recording("pulses", "rig", tuple(units))


def test_pulses_give_the_clock_to_a_millisecond_though_some_are_missing():
    a_s, b_s, truth = pulsed()
    found = align(as_recording(a_s, b_s), config=AlignConfig(method="pulses"))
    assert found.skew_ppm[0] == pytest.approx(40, abs=3)
    assert found.offset_s[0] == pytest.approx(0.25, abs=0.001)
    (jump,) = found.jumps
    assert jump.size_s == pytest.approx(0.06, abs=0.001)
    assert abs(jump.time_s - 200) < 3
    free = align(as_recording(a_s, b_s), config=AlignConfig(method="pulses", model="free"))
    assert np.median(np.abs(free.clock.lag_s(a_s) - truth)) < 1e-6


def test_regular_pulses_are_ambiguous():
    a_s = np.arange(0, 300.0)
    found = align(as_recording(a_s, a_s + 0.2), config=AlignConfig(method="pulses", model="linear"))
    assert found.status == "ambiguous"
    assert found.verdict.startswith("ambiguous between lags of")


def test_pulses_of_unrelated_trains_are_refused():
    a_s, _, _ = pulsed()
    b_s = np.sort(np.random.default_rng(9).uniform(0, 400, 40))
    with pytest.raises(AlignmentRefused, match="no shared pulses: refused"):
        align(as_recording(a_s, b_s), config=AlignConfig(method="pulses"))


def test_pulses_are_found_by_name_in_units_and_channels():
    wave = (np.arange(4000) % 1000 >= 500).astype(float)
    rig = Signal.from_array(wave, clock="rig", name="analog", rate_hz=1000, channels=["TTL in"])
    recording = Recording("r", "rig", (rig,))
    np.testing.assert_allclose(pulses_of(recording, "rig"), [0.5, 1.5, 2.5, 3.5])
    plain = Recording("r", "rig", (replace(rig, data=rig.data.assign_coords(channel=["x"])),))
    with pytest.raises(NeurofuseError, match=r"has no pulses.*pass pulses="):
        pulses_of(plain, "rig")
    with pytest.raises(NeurofuseError, match="at least two on each"):
        pulse_evidence(np.array([1.0]), np.array([1.0, 2.0]), window_s=10, max_lag_s=1)


# refusals


def test_recordings_and_settings_that_cannot_be_aligned_are_refused_in_a_sentence(related):
    recording, _ = related
    with pytest.raises(NeurofuseError, match=r"signals on one clock only.*give two files"):
        align(recording.but(streams=(recording["spikes"],), movement=None))
    with pytest.raises(NeurofuseError, match="no clock 'rig' to align to 'array'; choose one of logger"):
        align(recording, config=AlignConfig(clock="rig"))
    with pytest.raises(NeurofuseError, match="30 s are needed; raise --max-lag"):
        align(recording.between(0, 15, margin_s=0), config=QUICK)
    with pytest.raises(NeurofuseError, match=r"too few lags of 0.04 s to choose from; give --max-lag 0.16"):
        align(recording, config=replace(QUICK, max_lag_s=0.02))
    with pytest.raises(NeurofuseError, match="no clock model 'bent'; choose one of offset"):
        align(recording, config=AlignConfig(model="bent"))
    with pytest.raises(NeurofuseError, match="no method 'magic'; choose one of learned"):
        align(recording, config=AlignConfig(method="magic"))


def test_the_z_score_is_high_only_where_own_scores_exceed_mismatched_ones():
    rng = np.random.default_rng(0)
    same = MismatchTest(rng.standard_normal(40), rng.standard_normal((5, 40)))
    assert abs(same.z_score) < 3.5
    more = MismatchTest(rng.standard_normal(40) + 2, rng.standard_normal((5, 40)))
    assert more.z_score > 6


# the command line


def run_cli(*words):
    """Exit code of a command."""
    from neurofuse.cli import main

    with pytest.raises(SystemExit) as left:
        main([str(w) for w in words])
    return left.value.code


def test_the_command_writes_the_clock_the_recording_and_a_figure(related, tmp_path, capsys):
    recording, _ = related
    neurofuse.save_recording(recording.but(movement=None), tmp_path / "two.nc")
    command = ["align", tmp_path / "two.nc", "--method", "ridge", "--model", "linear", "--max-lag", "2"]
    assert run_cli(*command, "-o", tmp_path / "one.nc", "--out", tmp_path / "found", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["offset_s"]["value"] == pytest.approx(0.4, abs=0.02)
    assert {p.name for p in (tmp_path / "found").iterdir()} == {
        "clock.json",
        "clock.csv",
        "lag.nc",
        "clock.png",
    }
    assert neurofuse.open_recording(tmp_path / "one.nc").clocks == ["array"]


def test_the_command_refuses_in_one_sentence_and_leaves_nothing_behind(unrelated, tmp_path, capsys):
    neurofuse.save_recording(unrelated, tmp_path / "two.nc")
    path = tmp_path / "two.nc"
    assert run_cli("align", path, "--method", "ridge", "--max-lag", "2", "--out", tmp_path / "o") == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("neurofuse: error:")]
    assert "refused" in line
    assert not (tmp_path / "o").exists()
    assert run_cli("align", path, "--model", "bent") == 2
    assert run_cli("align", path, "-o", tmp_path / "one.txt") == 2
