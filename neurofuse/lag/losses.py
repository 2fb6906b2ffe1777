"""In: lag posteriors, and what is known of the lag. Out: losses that teach which lag, and whether there is a match.

Movement alone leaves the zero of the lag axis free, so alignment is taught beside it: the lag where it is known, the
difference between a window's own stream and another's where it is not.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from neurofuse.lag.banded import band_scores
from neurofuse.lag.hmm import TINY, LagPosterior
from neurofuse.windows import Batch

# Recognition: how many windows of a batch are asked, how many others each is told from, in how many stretches,
# and how many independent looks a stretch is worth.
N_ASKED = 16
N_OTHERS = 3
N_STRETCHES = 4
TOKENS_APART = 8.0


def alignment_loss(belief: LagPosterior, lag_BT: Tensor, both_BT: Tensor, max_lag: int) -> Tensor:
    """Minus the log probability of what is known about lag and match, the mean over tokens that can tell.

    Where the lag is known (finite) that is a match at this lag, give or take a token, with weights that fall linearly:
    asking for more would be rewarded by false certainty. Where it is infinite (another window's stream was put in place
    of its own) it is no match; where it is NaN it is a match at whatever lag. The last two together teach recognition:
    a window must be told from others, so that queries and keys do not settle on a lag that merely suits the movement.
    """
    n_fine = belief.log_lag_BTG.shape[-1]
    known, foreign = torch.isfinite(lag_BT) & (lag_BT.abs() <= max_lag), torch.isinf(lag_BT)
    fine_lag = torch.linspace(-max_lag, max_lag, n_fine, device=lag_BT.device)
    near_BTG = (1 - (fine_lag - torch.where(known, lag_BT, 0.0)[..., None]).abs()).clamp_min(0)
    # Logarithms all the way: a lag held to be impossible must still be learned from.
    at_lag = (belief.log_lag_BTG + near_BTG.clamp_min(TINY).log()).logsumexp(-1)
    match = F.logsigmoid(belief.match_logit_BT)
    log_likely = torch.where(
        foreign, F.logsigmoid(-belief.match_logit_BT), match + torch.where(known, at_lag, 0.0)
    )
    counted = both_BT & (known | ~torch.isfinite(lag_BT))
    return -torch.where(counted, log_likely, 0.0).sum() / counted.sum().clamp_min(1)


def recognition_loss(query_BHTD: Tensor, key_BHWD: Tensor, log_prior_L: Tensor) -> Tensor:
    """How badly a window tells its own other stream from those of other windows, whatever the lag.

    Needs no lag to be known: the evidence of a stretch, summed over lags, must be larger for the stream that
    was recorded with it than for streams recorded at other times (InfoNCE over a batch; van den Oord et al. 2018). It
    keeps queries and keys from settling on a lag that merely suits the movement.
    """
    n_asked = min(len(query_BHTD), N_ASKED)
    # The heads' evidence adds up: one long query.
    query, key = (x.transpose(1, 2).flatten(-2)[:, None] for x in (query_BHTD, key_BHWD))
    evidence = [
        _stretch_evidence(band_scores(query[:n_asked], key.roll(-k, 0)[:n_asked])[:, 0], log_prior_L)
        for k in range(min(N_OTHERS + 1, len(query)))
    ]
    return -torch.stack(evidence).log_softmax(0)[0].mean()


def _stretch_evidence(score_BTL: Tensor, log_prior_L: Tensor) -> Tensor:
    """Log evidence of stretches of a window under one lag each; neighbouring tokens count as one in part."""
    n_block = max(1, score_BTL.shape[1] // N_STRETCHES)
    whole = score_BTL[:, : n_block * N_STRETCHES].unflatten(1, (-1, n_block))
    return (TOKENS_APART * whole.mean(2) + log_prior_L.log_softmax(-1)).logsumexp(-1)


def alignment_losses(beliefs: list[LagPosterior], batch: Batch, max_lag: int) -> Tensor | float:
    """The loss of every clock but the anchor, added up."""
    total: Tensor | float = 0.0
    inner = slice(batch.reach, batch.reach + batch.movement.shape[1])
    for c, belief in enumerate(beliefs):
        device = belief.match_logit_BT.device
        # Where one of the two is missing there is nothing to be aligned.
        both_BT = batch.present[0][:, inner] & batch.present[c + 1].any(axis=1, keepdims=True)
        lag_BT = torch.as_tensor(batch.lag[..., c], device=device)
        total = total + alignment_loss(belief, lag_BT, torch.as_tensor(both_BT, device=device), max_lag)
    return total


def mismatch_some(batch: Batch, share: float, rng: np.random.Generator) -> Batch:
    """Put other clocks of the next window of the batch in the place of a window's own, for a share of windows.

    Their lag becomes infinite: there is none at which they match.
    """
    n = len(batch.movement)
    values, present, lag = list(batch.values), list(batch.present), batch.lag.copy()
    for k in range(1, len(values)):
        swapped = np.flatnonzero(rng.random(n) < share)
        if n < 2 or not swapped.size:
            continue
        for arrays in (values, present):
            whole = arrays[k].copy()
            whole[swapped] = arrays[k][(swapped + 1) % n]
            arrays[k] = whole
        lag[swapped, :, k - 1] = np.inf
    return replace(batch, values=tuple(values), present=tuple(present), lag=lag)
