"""In: evidence of held-back windows whose lag is known. Out: a chain that is as sure of the lag as it may be.

Tokens of smooth signals repeat each other, and a network is surer of windows it was trained on; both make the summed
evidence too strong. What the evidence is worth, how fast the lag drifts, how often it jumps and how often a match is
lost and found are five numbers, fitted here to the log probability of the true lag in windows that gradient descent
never saw. The score is proper: nothing but the right probabilities maximises it.

A recording may drift faster or jump more often than those did. What its own evidence says of that, whatever the lag, is
enough to set both rates again before it is decoded; but only once it is known what evidence is worth, for what is too
strong takes its own noise for jumps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from neurofuse.lag.hmm import HMMRates, LagHMM, LagPosterior, marginal_log_lik

N_STEPS = 30
# How often streams that were recorded together are taken not to match, before anything is seen.
RARELY = 0.02
# Drift and odds of a jump change from recording to recording by this factor's logarithm. What drifts less than this, in
# fine lags a block, might as well stand still.
SPREAD, LEAST_DRIFT = 2.0, 0.1
# Stretches of so many blocks are weighed side by side, each as if nothing had come before.
STRETCH = 256


@dataclass(frozen=True)
class LagLogLik:
    """Evidence on held-back windows: of every lag (B, T, L), and of no match (B, T)."""

    score_BTL: Tensor
    lost_BT: Tensor


def calibrate(
    track: LagHMM,
    posterior: Callable[[Tensor, Tensor], LagPosterior],
    own: LagLogLik,
    foreign: LagLogLik,
    lag_BT: Tensor,
    max_lag: int,
    every: int,
) -> None:
    """Fit what evidence is worth and all rates of a chain, in place.

    Parameters
    ----------
    track : LagHMM
    posterior : callable
        What the chain makes of evidence.
    own, foreign : LagLogLik
        Evidence on windows with their own other stream, and with that of other windows.
    lag_BT : Tensor
        The true lag of the first in tokens, NaN where unknown.
    max_lag : int
        Largest lag searched, tokens.
    every : int
        Tokens that share one lag. So near a jump of more than a token the chain can be wrong however the evidence is
        weighed; such moments are left out.
    """
    known = torch.isfinite(lag_BT) & (lag_BT.abs() <= max_lag)
    around_BTE = F.pad(lag_BT[:, None], (every, every), mode="replicate")[:, 0].unfold(1, 2 * every + 1, 1)
    known &= (around_BTE - lag_BT[..., None]).abs().amax(-1) <= 1
    if not known.any():
        return
    scale = track.trust.detach().exp()
    fitted = [track.trust.requires_grad_(), track.drift, track.odds_JLF]
    n_fine = track.up_LG.shape[1]
    # The fine lag nearest to the truth stands for the interval around it.
    place = torch.where(known, lag_BT, 0.0) * ((n_fine - 1) / (2 * max_lag)) + (n_fine - 1) / 2
    nearest = place.round().clamp(0, n_fine - 1).long()[..., None]
    optimizer = torch.optim.LBFGS(fitted, max_iter=N_STEPS, line_search_fn="strong_wolfe")

    def surprise() -> Tensor:
        optimizer.zero_grad()
        factor = track.trust.exp() / scale
        found = posterior(own.score_BTL * factor, own.lost_BT * factor)
        at_lag = found.log_lag_BTG.gather(-1, nearest)[..., 0]
        together = ((at_lag + F.logsigmoid(found.match_logit_BT)) * known).sum() / known.sum()
        apart = F.logsigmoid(-posterior(foreign.score_BTL * factor, foreign.lost_BT * factor).match_logit_BT)
        loss = -(1 - RARELY) * together - RARELY * apart.mean()
        loss.backward(inputs=fitted)
        return loss

    before = [p.detach().clone() for p in fitted]
    optimizer.step(surprise)
    track.trust.requires_grad_(False)
    found = all(bool(torch.isfinite(p).all()) for p in fitted)
    track.calibrated.fill_(found)
    for p, value in zip(fitted, before, strict=True):
        p.grad = None
        if not found:
            p.data.copy_(value)


@torch.enable_grad()
def adapt_rates(rates: HMMRates, block_BJMG: Tensor) -> HMMRates:
    """The rates with drift and jumps as one recording has them: those under which its evidence is most probable.

    Empirical Bayes: the lag is not known, all lags are summed over. What was learned before is the prior, log-normal.

    Parameters
    ----------
    rates : HMMRates
    block_BJMG : Tensor
        Log-likelihood of lag and match of every block of the recording, see `block_log_lik`.
    """
    rates, block = rates.detach(), block_BJMG.detach()
    if block.shape[1] > STRETCH:
        # What fills up the last stretch says nothing.
        silent = (0, 0, 0, 0, 0, -block.shape[1] % STRETCH)
        block = F.pad(block, silent).unflatten(1, (-1, STRETCH)).flatten(0, 1)
    change = torch.zeros(2, dtype=block.dtype, device=block.device, requires_grad=True)

    def changed() -> HMMRates:
        drift = rates.drift.clamp_min(LEAST_DRIFT) * change[0].exp()
        odds = rates.jump.logit() + change[1]
        return replace(rates, drift=drift, jump=odds.sigmoid())

    optimizer = torch.optim.LBFGS([change], max_iter=N_STEPS, line_search_fn="strong_wolfe")

    def surprise() -> Tensor:
        optimizer.zero_grad()
        prior = 0.5 * (change / SPREAD).square().sum()
        loss = prior - marginal_log_lik(block, changed()).sum()
        loss.backward()
        return loss

    optimizer.step(surprise)
    return changed().detach() if bool(torch.isfinite(change).all()) else rates
