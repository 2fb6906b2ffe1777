"""A chain that was too sure, or not sure enough, is put right by windows whose lag is known."""

import numpy as np
import pytest
import torch

from neurofuse.decoders.calibration import Heard, calibrate
from neurofuse.decoders.chain import LagChain, lag_posterior
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
    return Heard(sharpness * worth, torch.zeros(n_windows, n_tokens)), torch.as_tensor(
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
    track = LagChain(2 * MAX_LAG + 1, 1)

    def posterior(score, lost):
        return lag_posterior(score, lost, track.rates, track.up_LG, every=4, causal=False)

    before = coverage(track, posterior, sharpness)
    own, lag = heard(60, sharpness=sharpness, seed=2)
    foreign, _ = heard(60, sharpness=sharpness, seed=3, matched=False)
    calibrate(track, posterior, own, foreign, lag, MAX_LAG, 4)
    assert float(track.trust.exp()) == pytest.approx(1 / sharpness, rel=0.25)
    assert not track.trust.requires_grad
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
    track = LagChain(2 * MAX_LAG + 1, 1)

    def posterior(score, lost):
        return lag_posterior(score, lost, track.rates, track.up_LG, every=4, causal=False)

    own, lag = heard(20, sharpness=2.0, seed=2)
    foreign, _ = heard(20, sharpness=2.0, seed=3, matched=False)
    half = lag.clone()
    half[10:] = torch.nan
    wrong = torch.where(torch.isnan(half), torch.tensor(MAX_LAG + 5.0), half)
    calibrate(track, posterior, own, foreign, half, MAX_LAG, 4)
    other = LagChain(2 * MAX_LAG + 1, 1)
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
