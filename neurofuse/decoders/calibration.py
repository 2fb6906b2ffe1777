"""In: evidence of held-back windows whose lag is known. Out: a chain that is as sure of the lag as it may be.

Tokens of smooth signals repeat each other, and a network is surer of windows it was trained on; both make the summed
evidence too strong. What the evidence is worth, how fast the lag drifts, how often it jumps and how often a match is
lost and found are five numbers, fitted here to the log probability of the true lag in windows that gradient descent
never saw. The score is proper: nothing but the right probabilities maximises it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from neurofuse.decoders.chain import LagChain, Posterior

N_STEPS = 30
# How often streams that were recorded together are taken not to match, before anything is seen.
RARELY = 0.02


@dataclass(frozen=True)
class Heard:
    """Evidence on held-back windows: of every lag (B, T, L), and of no match (B, T)."""

    score_BTL: Tensor
    lost_BT: Tensor


def calibrate(
    track: LagChain,
    posterior: Callable[[Tensor, Tensor], Posterior],
    own: Heard,
    foreign: Heard,
    lag_BT: Tensor,
    max_lag: int,
    every: int,
) -> None:
    """Fit what evidence is worth and all rates of a chain, in place.

    Parameters
    ----------
    track : LagChain
    posterior : callable
        What the chain makes of evidence.
    own, foreign : Heard
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

    optimizer.step(surprise)
    track.trust.requires_grad_(False)
    for p in fitted:
        p.grad = None
