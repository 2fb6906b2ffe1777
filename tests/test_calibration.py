"""A chain that was too sure, or not sure enough, is put right by windows whose lag is known."""

import numpy as np
import pytest
import torch

from neurofuse.lag.calibration import STRETCH, LagLogLik, adapt_rates, calibrate
from neurofuse.lag.hmm import (
    REACH,
    HMMRates,
    LagHMM,
    drift_taps,
    joint_log_lik,
    lag_posterior,
    marginal_log_lik,
)
from neurofuse.scores import posterior_summary

MAX_LAG = 10


def heard(n_windows, *, sharpness, seed, matched=True):
    """Evidence that is `sharpness` times what it is worth, on lags that walk and sometimes jump; and the lags."""
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
    # In unit noise a bump of this height is worth height * score - height ** 2 / 2 in log-likelihood.
    worth = torch.as_tensor(height * score - height**2 / 2, dtype=torch.float32)
    return LagLogLik(sharpness * worth, torch.zeros(n_windows, n_tokens)), torch.as_tensor(
        lag, dtype=torch.float32
    )


def coverage(track, posterior, sharpness):
    own, lag = heard(60, sharpness=sharpness, seed=1)
    with torch.no_grad():
        factor = track.trust.exp()
        lag_BTG = posterior(own.score_BTL * factor, own.lost_BT * factor).lag_BTG.numpy()
    said = posterior_summary(lag_BTG, np.arange(-MAX_LAG, MAX_LAG + 1.0))
    # The lag is one of the grid, so it counts as spread over its cell.
    low, high = (np.clip(said[q], lag.numpy() - 0.5, lag.numpy() + 0.5) for q in ("lag_q05_s", "lag_q95_s"))
    return float((high - low).mean())


@pytest.mark.parametrize("sharpness", [0.4, 1.0, 6.0])
def test_the_worth_of_evidence_is_found_and_intervals_hold_what_they_say(sharpness):
    track = LagHMM(2 * MAX_LAG + 1, 1)

    def posterior(score, lost):
        return lag_posterior(score, lost, track.rates, track.up_LG, every=4, causal=False)

    before = coverage(track, posterior, sharpness)
    own, lag = heard(60, sharpness=sharpness, seed=2)
    foreign, _ = heard(60, sharpness=sharpness, seed=3, matched=False)
    calibrate(track, posterior, own, foreign, lag, MAX_LAG, 4)
    assert float(track.trust.exp()) == pytest.approx(1 / sharpness, rel=0.25)
    assert not track.trust.requires_grad
    assert bool(track.calibrated)
    after = coverage(track, posterior, sharpness)
    assert after == pytest.approx(0.9, abs=0.03)
    if sharpness == 6.0:
        assert before < 0.85
    with torch.no_grad():
        factor = track.trust.exp()
        match = posterior(own.score_BTL * factor, own.lost_BT * factor).match_BT
        apart = posterior(foreign.score_BTL * factor, foreign.lost_BT * factor).match_BT
    assert float(match.mean()) > 0.95
    assert float(apart.mean()) < 0.3


def test_unknown_lags_do_not_count():
    track = LagHMM(2 * MAX_LAG + 1, 1)

    def posterior(score, lost):
        return lag_posterior(score, lost, track.rates, track.up_LG, every=4, causal=False)

    own, lag = heard(20, sharpness=2.0, seed=2)
    foreign, _ = heard(20, sharpness=2.0, seed=3, matched=False)
    half = lag.clone()
    half[10:] = torch.nan
    wrong = torch.where(torch.isnan(half), torch.tensor(MAX_LAG + 5.0), half)
    calibrate(track, posterior, own, foreign, half, MAX_LAG, 4)
    other = LagHMM(2 * MAX_LAG + 1, 1)
    calibrate(
        other,
        lambda s, n: lag_posterior(s, n, other.rates, other.up_LG, every=4, causal=False),
        own,
        foreign,
        wrong,
        MAX_LAG,
        4,
    )
    assert float(track.trust) == pytest.approx(float(other.trust))


def walked(n_blocks, *, drift, jump, seed, n_lags=41):
    """Log-likelihood of lag and match in blocks, whose lag walks so fast and jumps so often."""
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
    worth = torch.as_tensor(height * score - height**2 / 2)[None]
    return joint_log_lik(worth, torch.zeros(1, n_blocks).double())


def chain_rates(drift, jump, n_lags=41):
    drift, jump, lose, find = torch.tensor([drift, jump, 1e-3, 0.1]).double().unbind()
    return HMMRates(drift, jump, lose, find, torch.zeros(n_lags).double())


@pytest.mark.parametrize(("drift", "jump"), [(0.5, 0.002), (1.5, 0.002), (0.1, 0.03), (0.02, 0.002)])
@pytest.mark.parametrize("before", [(0.3, 0.01), (1e-4, 0.003)])
def test_a_recording_tells_how_fast_its_lag_drifts_and_how_often_it_jumps(drift, jump, before):
    block = walked(6 * STRETCH - 40, drift=drift, jump=jump, seed=4)
    found = adapt_rates(chain_rates(*before), block)
    if drift >= 0.5:
        assert float(found.drift) == pytest.approx(drift, rel=0.1)
    else:
        assert float(found.drift) < 1.5 * drift + 0.02
    assert 0.5 * jump < float(found.jump) < 2 * jump + 0.001
    assert not found.drift.requires_grad
    # No rates nearby explain what was seen better, but for the pull of those before.
    best = float(marginal_log_lik(block, found))
    for by in (0.7, 1.4):
        assert (
            best
            > float(marginal_log_lik(block, chain_rates(by * float(found.drift), float(found.jump)))) - 0.5
        )
        assert (
            best
            > float(marginal_log_lik(block, chain_rates(float(found.drift), by * float(found.jump)))) - 0.5
        )


def test_the_evidence_of_a_chain_is_the_sum_over_its_paths():
    block = walked(5, drift=0.8, jump=0.1, seed=1, n_lags=3)
    r = chain_rates(0.8, 0.1, n_lags=3)
    prior_G, mix, first = r.parts()
    taps = drift_taps(r.drift)
    move = torch.tensor([[taps[b - a + REACH] for b in range(3)] for a in range(3)]).double()
    # What would leave the range is lost, and taken to have stayed inside: the rest is scaled up.
    state, total = (first[:, None] * prior_G).flatten(), 0.0
    for j in range(5):
        if j:
            state = state @ torch.kron(mix, (1 - r.jump) * move + r.jump * prior_G)
            state = state / state.sum()
        seen = state * block[0, j].flatten().exp()
        total, state = total + float(seen.sum().log()), seen / seen.sum()
    assert float(marginal_log_lik(block, r)) == pytest.approx(total)
