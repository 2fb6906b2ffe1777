"""In: lag posteriors, and the known lags. Out: losses from which lag and match are learned.

The movement loss alone leaves the zero of the lag axis undetermined, so alignment is learned from losses of its own:
the lag where it is known, the contrast between a window's own stream and that of other windows where it is not.
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

# Recognition: windows of a batch whose queries are used, mismatched windows for each, stretches per window, and tokens
# that count as independent in a stretch.
N_QUERIED = 16
N_MISMATCHED = 3
N_STRETCHES = 4
N_INDEPENDENT = 8.0


def alignment_loss(posterior: LagPosterior, lag_BT: Tensor, both_BT: Tensor, max_lag: int) -> Tensor:
    """Negative log probability of the known lag and match, the mean over tokens where something is known.

    Where the lag is known (finite) that is a match at this lag or within a token of it, with weights that fall
    linearly: a sharper target would reward false certainty. Where it is infinite (a mismatched window) it is no match;
    where it is NaN it is a match at any lag. The last two together are recognition: a window must be distinguished from
    others, so that queries and keys do not converge to a lag that only suits the movement.

    Parameters
    ----------
    posterior : LagPosterior
    lag_BT : Tensor
        Known lag in tokens; infinite or NaN as above.
    both_BT : Tensor of bool
        Where both streams were recorded; other tokens do not count.
    max_lag : int
        Largest lag searched, tokens.
    """
    n_fine = posterior.log_lag_BTG.shape[-1]
    known, mismatched = torch.isfinite(lag_BT) & (lag_BT.abs() <= max_lag), torch.isinf(lag_BT)
    fine_lag = torch.linspace(-max_lag, max_lag, n_fine, device=lag_BT.device)
    near_BTG = (1 - (fine_lag - torch.where(known, lag_BT, 0.0)[..., None]).abs()).clamp_min(0)
    # Logarithms throughout: a lag of probability zero must still have a gradient.
    at_lag = (posterior.log_lag_BTG + near_BTG.clamp_min(TINY).log()).logsumexp(-1)
    matched = F.logsigmoid(posterior.matched_logit_BT)
    log_prob = torch.where(
        mismatched, F.logsigmoid(-posterior.matched_logit_BT), matched + torch.where(known, at_lag, 0.0)
    )
    counted = both_BT & (known | ~torch.isfinite(lag_BT))
    return -torch.where(counted, log_prob, 0.0).sum() / counted.sum().clamp_min(1)


def recognition_loss(query_BHTD: Tensor, key_BHWD: Tensor, log_prior_L: Tensor) -> Tensor:
    """Contrastive loss of a window's own other stream against those of other windows, at any lag.

    Requires no known lag: the log-likelihood of a stretch, summed over lags, must be larger for the stream that was
    recorded with it than for streams recorded at other times (InfoNCE over a batch; van den Oord et al. 2018). It
    prevents queries and keys from converging to a lag that only suits the movement.
    """
    n_queried = min(len(query_BHTD), N_QUERIED)
    # The heads' scores are summed: one long query.
    query, key = (x.transpose(1, 2).flatten(-2)[:, None] for x in (query_BHTD, key_BHWD))
    log_lik = [
        _stretch_log_lik(band_scores(query[:n_queried], key.roll(-k, 0)[:n_queried])[:, 0], log_prior_L)
        for k in range(min(N_MISMATCHED + 1, len(query)))
    ]
    return -torch.stack(log_lik).log_softmax(0)[0].mean()


def _stretch_log_lik(score_BTL: Tensor, log_prior_L: Tensor) -> Tensor:
    """Log-likelihood of stretches of a window under one lag each, of `N_INDEPENDENT` effective samples."""
    n_block = max(1, score_BTL.shape[1] // N_STRETCHES)
    whole = score_BTL[:, : n_block * N_STRETCHES].unflatten(1, (-1, n_block))
    return (N_INDEPENDENT * whole.mean(2) + log_prior_L.log_softmax(-1)).logsumexp(-1)


def alignment_losses(posteriors: list[LagPosterior], batch: Batch, max_lag: int) -> Tensor | float:
    """`alignment_loss` summed over all clocks but the anchor."""
    total: Tensor | float = 0.0
    inner = slice(batch.reach, batch.reach + batch.movement.shape[1])
    for c, posterior in enumerate(posteriors):
        device = posterior.matched_logit_BT.device
        # Where one of the two is missing there is nothing to be aligned.
        both_BT = batch.present[0][:, inner] & batch.present[c + 1].any(axis=1, keepdims=True)
        lag_BT = torch.as_tensor(batch.lag[..., c], device=device)
        total = total + alignment_loss(posterior, lag_BT, torch.as_tensor(both_BT, device=device), max_lag)
    return total


def mismatch_some(batch: Batch, share: float, rng: np.random.Generator) -> Batch:
    """Replace other clocks of a share of windows by those of the next window in the batch.

    Their lag becomes infinite: there is none at which they match.
    """
    n = len(batch.movement)
    values, present, lag = list(batch.values), list(batch.present), batch.lag.copy()
    for k in range(1, len(values)):
        mismatched = np.flatnonzero(rng.random(n) < share)
        if n < 2 or not mismatched.size:
            continue
        for arrays in (values, present):
            whole = arrays[k].copy()
            whole[mismatched] = arrays[k][(mismatched + 1) % n]
            arrays[k] = whole
        lag[mismatched, :, k - 1] = np.inf
    return replace(batch, values=tuple(values), present=tuple(present), lag=lag)
