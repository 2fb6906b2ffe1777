"""An overconfident or underconfident HMM is calibrated by windows whose lag is known."""

import numpy as np
import pytest
import torch

from neurofuse.lag.calibration import STRETCH, LagLogLik, adapt_rates, calibrate
from neurofuse.lag.hmm import (
    REACH,
    HMMRates,
    LagGrid,
    LagHMM,
    LagPrior,
    drift_taps,
    joint_log_lik,
    lag_posterior,
    marginal_log_lik,
)
from neurofuse.scores import posterior_summary

MAX_LAG = 10


def observed(n_windows, *, sharpness, seed, matched=True):
    """Log-likelihoods `sharpness` times too large, of lags that walk and sometimes jump; and the lags."""
    rng = np.random.default_rng(seed)
    n_tokens, n_lags = 160, 2 * MAX_LAG + 1
    lag = np.empty((n_windows, n_tokens))
    for row in lag:
        now = rng.integers(-MAX_LAG + 2, MAX_LAG - 1)
        for t in range(0, n_tokens, 4):
            if rng.random() < 0.02:
                now = rng.integers(-MAX_LAG + 2, MAX_LAG - 1)
            now = int(np.clip(now + rng.choice([-1, 0, 1], p=[0.04, 0.92, 0.04]), -MAX_LAG, MAX_LAG))
            row[t : t + 4] = now
    score = rng.normal(size=(n_windows, n_tokens, n_lags))
    place = (lag + MAX_LAG).astype(int)[..., None]
    height = 0.9
    if matched:
        np.put_along_axis(score, place, np.take_along_axis(score, place, -1) + height, -1)
    # The log-likelihood of a bump of this height in unit noise is height * score - height ** 2 / 2.
    log_lik = torch.as_tensor(height * score - height**2 / 2, dtype=torch.float32)
    return LagLogLik(sharpness * log_lik, torch.zeros(n_windows, n_tokens)), torch.as_tensor(
        lag, dtype=torch.float32
    )


def coverage(hmm, posterior, sharpness):
    own, lag = observed(60, sharpness=sharpness, seed=1)
    with torch.no_grad():
        factor = hmm.log_inverse_temperature.exp()
        p_lag_BTG = posterior(own.log_lik_BTL * factor, own.unmatched_BT * factor).p_lag_BTG.numpy()
    summary = posterior_summary(p_lag_BTG, np.arange(-MAX_LAG, MAX_LAG + 1.0))
    # The lag is one of the grid, so it counts as spread over its cell.
    low, high = (
        np.clip(summary[q], lag.numpy() - 0.5, lag.numpy() + 0.5) for q in ("lag_q05_s", "lag_q95_s")
    )
    return float((high - low).mean())


@pytest.mark.parametrize("sharpness", [0.4, 1.0, 6.0])
def test_the_temperature_is_found_and_intervals_have_their_nominal_coverage(sharpness):
    hmm = LagHMM(2 * MAX_LAG + 1, 1)

    def posterior(score, unmatched):
        return lag_posterior(score, unmatched, hmm.rates, hmm.to_fine_LG, tokens_per_block=4, causal=False)

    before = coverage(hmm, posterior, sharpness)
    own, lag = observed(60, sharpness=sharpness, seed=2)
    mismatched, _ = observed(60, sharpness=sharpness, seed=3, matched=False)
    calibrate(hmm, posterior, own, mismatched, lag, MAX_LAG, 4)
    assert float(hmm.log_inverse_temperature.exp()) == pytest.approx(1 / sharpness, rel=0.25)
    assert not hmm.log_inverse_temperature.requires_grad
    assert bool(hmm.calibrated)
    after = coverage(hmm, posterior, sharpness)
    assert after == pytest.approx(0.9, abs=0.03)
    if sharpness == 6.0:
        assert before < 0.85
    with torch.no_grad():
        factor = hmm.log_inverse_temperature.exp()
        p_matched = posterior(own.log_lik_BTL * factor, own.unmatched_BT * factor).p_matched_BT
        p_other = posterior(mismatched.log_lik_BTL * factor, mismatched.unmatched_BT * factor).p_matched_BT
    assert float(p_matched.mean()) > 0.95
    assert float(p_other.mean()) < 0.3


def test_unknown_lags_do_not_count():
    hmm = LagHMM(2 * MAX_LAG + 1, 1)

    def posterior(score, unmatched):
        return lag_posterior(score, unmatched, hmm.rates, hmm.to_fine_LG, tokens_per_block=4, causal=False)

    own, lag = observed(20, sharpness=2.0, seed=2)
    mismatched, _ = observed(20, sharpness=2.0, seed=3, matched=False)
    half = lag.clone()
    half[10:] = torch.nan
    wrong = torch.where(torch.isnan(half), torch.tensor(MAX_LAG + 5.0), half)
    calibrate(hmm, posterior, own, mismatched, half, MAX_LAG, 4)
    other = LagHMM(2 * MAX_LAG + 1, 1)
    calibrate(
        other,
        lambda s, n: lag_posterior(s, n, other.rates, other.to_fine_LG, tokens_per_block=4, causal=False),
        own,
        mismatched,
        wrong,
        MAX_LAG,
        4,
    )
    assert float(hmm.log_inverse_temperature) == pytest.approx(float(other.log_inverse_temperature))


def walked(n_blocks, *, drift, jump, seed, n_lags=41):
    """Log-likelihood of match and lag in blocks, of a lag with this drift and probability of a jump per block."""
    rng = np.random.default_rng(seed)
    step = rng.poisson(drift**2 / 2, n_blocks) - rng.poisson(drift**2 / 2, n_blocks)
    lag = np.empty(n_blocks, int)
    now = n_lags // 2
    for j in range(n_blocks):
        now = rng.integers(n_lags) if rng.random() < jump else abs(now + step[j])
        now = min(now, 2 * (n_lags - 1) - now)
        lag[j] = now
    height = 4.0
    score = rng.normal(size=(n_blocks, n_lags))
    score[np.arange(n_blocks), lag] += height
    log_lik = torch.as_tensor(height * score - height**2 / 2)[None]
    return joint_log_lik(log_lik, torch.zeros(1, n_blocks).double())


def hmm_rates(drift, jump, n_lags=41):
    drift, jump, unmatch, rematch = torch.tensor([drift, jump, 1e-3, 0.1]).double().unbind()
    return HMMRates(drift, jump, unmatch, rematch, torch.zeros(n_lags).double())


@pytest.mark.parametrize(("drift", "jump"), [(0.5, 0.002), (1.5, 0.002), (0.1, 0.03), (0.02, 0.002)])
@pytest.mark.parametrize("before", [(0.3, 0.01), (1e-4, 0.003)])
def test_drift_and_jumps_of_a_recording_are_estimated_from_it(drift, jump, before):
    block = walked(6 * STRETCH - 40, drift=drift, jump=jump, seed=4)
    found = adapt_rates(hmm_rates(*before), block)
    if drift >= 0.5:
        assert float(found.drift) == pytest.approx(drift, rel=0.1)
    else:
        assert float(found.drift) < 1.5 * drift + 0.02
    assert 0.5 * jump < float(found.jump) < 2 * jump + 0.001
    assert not found.drift.requires_grad
    # No rates nearby are much more likely; the prior may move the maximum a little.
    best = float(marginal_log_lik(block, found))
    for by in (0.7, 1.4):
        assert (
            best > float(marginal_log_lik(block, hmm_rates(by * float(found.drift), float(found.jump)))) - 0.5
        )
        assert (
            best > float(marginal_log_lik(block, hmm_rates(float(found.drift), by * float(found.jump)))) - 0.5
        )


def test_the_marginal_likelihood_is_the_sum_over_all_paths():
    block = walked(5, drift=0.8, jump=0.1, seed=1, n_lags=3)
    r = hmm_rates(0.8, 0.1, n_lags=3)
    prior_G, mix, first = r.probabilities()
    taps = drift_taps(r.drift)
    move = torch.tensor([[taps[b - a + REACH] for b in range(3)] for a in range(3)]).double()
    # Probability that leaves the range is dropped, and the rest is scaled up.
    state, total = (first[:, None] * prior_G).flatten(), 0.0
    for j in range(5):
        if j:
            state = state @ torch.kron(mix, (1 - r.jump) * move + r.jump * prior_G)
            state = state / state.sum()
        joint = state * block[0, j].flatten().exp()
        total, state = total + float(joint.sum().log()), joint / joint.sum()
    assert float(marginal_log_lik(block, r)) == pytest.approx(total)


@pytest.mark.parametrize("drift", [0.015, 0.06])
@pytest.mark.parametrize("grid", [LagGrid(0.08, 0.02), LagGrid(0.04, 0.01)], ids=["20 ms", "10 ms"])
def test_a_planted_drift_in_seconds_is_recovered_from_whatever_was_assumed(drift, grid):
    n_blocks = round(60 / grid.block_s)
    block = walked(n_blocks, drift=grid.drift_steps(drift), jump=grid.jump_probability(0.05), seed=2)
    for assumed in (0.01, 0.1):
        prior = LagPrior.from_seconds(grid, drift=assumed, jumps=0.1)
        found = adapt_rates(hmm_rates(0.3, 0.01), block, prior).in_seconds(grid)
        assert found[0] == pytest.approx(drift, rel=0.25)
        assert 0.015 < found[1] < 0.2


def test_a_planted_skew_is_recovered_as_the_drift_that_it_is_converted_to():
    """A lag that grows by 0.2 %, on a grid of 20 ms: one step every 10 s."""
    grid, n_blocks, n_lags = LagGrid(0.08, 0.02), 3000, 41
    lag = (np.arange(n_blocks) * 2e-3 * grid.block_s / grid.lag_step_s).astype(int) + 5
    score = np.random.default_rng(0).normal(size=(n_blocks, n_lags))
    score[np.arange(n_blocks), lag] += 4.0
    block = joint_log_lik(torch.as_tensor(4.0 * score - 8.0)[None], torch.zeros(1, n_blocks).double())
    prior = LagPrior.from_seconds(grid, skew_ppm=2000, jumps=0)
    other = LagPrior.from_seconds(grid, skew_ppm=200, jumps=0)
    for assumed in (prior, other):
        found = adapt_rates(hmm_rates(0.3, 0.01), block, assumed)
        assert float(found.drift) == pytest.approx(prior.drift, rel=0.3)
        assert float(found.jump) == 0


def test_without_observations_the_given_rates_stand_and_not_the_learned_ones():
    nothing = torch.zeros(1, 40, 2, 41).double()
    learned = hmm_rates(0.3, 0.01)
    given = adapt_rates(learned, nothing, LagPrior(drift=0.02, jump=0.002))
    # Probability leaves the range at its ends, hence not exactly.
    assert (float(given.drift), float(given.jump)) == pytest.approx((0.02, 0.002), rel=0.05)
    kept = adapt_rates(learned, nothing)
    assert (float(kept.drift), float(kept.jump)) == pytest.approx((0.3, 0.01), rel=0.05)


def test_fixed_rates_are_not_estimated():
    block = walked(400, drift=1.5, jump=0.03, seed=4)
    found = adapt_rates(hmm_rates(0.3, 0.01), block, LagPrior(drift=0.3, jump=0.01, fixed=True))
    assert (float(found.drift), float(found.jump)) == pytest.approx((0.3, 0.01))
