"""In: queries, keys and values of two streams. Out: a posterior over the lag at every token, and what it reads.

Tensors end in their dimensions, here and in every module of this folder:

    B window   T token of a window   W token of a window and its context   H head   L lag   D feature
    U input feature   A movement axis   J block of tokens that share one lag   C other clock

Only a band of lags is scored, so time and memory grow with T * L and never with T * T.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Chain = Literal["tracked", "constant", "softmax"]


def band_scores(query_BHTD: Tensor, key_BHWD: Tensor) -> Tensor:
    """Dot products q_t . k_(t+l) for the lags that the keys reach: W = T + 2M gives L = 2M + 1 lags.

    Returns
    -------
    Tensor, shape (B, H, T, L)
        Lag index l stands for a lag of l - M tokens.
    """
    n_tokens, n_keys = query_BHTD.shape[-2], key_BHWD.shape[-2]
    n_lags = n_keys - n_tokens + 1
    if n_tokens <= 2 * n_lags:
        return _unskew(query_BHTD @ key_BHWD.transpose(-1, -2), n_lags)
    # In blocks about as long as the band: the dense corner is never larger than twice what is kept.
    n_block = n_lags
    n_pad = -n_tokens % n_block
    query_BHJTD = F.pad(query_BHTD, (0, 0, 0, n_pad)).unflatten(-2, (-1, n_block))
    padded = F.pad(key_BHWD, (0, 0, 0, n_pad))
    key_BHJDW = padded.unfold(-2, n_block + n_lags - 1, n_block)
    return _unskew(query_BHJTD @ key_BHJDW, n_lags).flatten(-3, -2)[..., :n_tokens, :]


def band_read(weight_BHTL: Tensor, value_BHWD: Tensor) -> Tensor:
    """Values read through the alignment: r_t = sum_l weight[t, l] v_(t+l), shape (B, H, T, D)."""
    n_tokens, n_lags = weight_BHTL.shape[-2:]
    if n_tokens <= 2 * n_lags:
        return _skew(weight_BHTL) @ value_BHWD
    n_block = n_lags
    n_pad = -n_tokens % n_block
    weight_BHJTL = F.pad(weight_BHTL, (0, 0, 0, n_pad)).unflatten(-2, (-1, n_block))
    padded = F.pad(value_BHWD, (0, 0, 0, n_pad))
    value_BHJWD = padded.unfold(-2, n_block + n_lags - 1, n_block).transpose(-1, -2)
    return (_skew(weight_BHJTL) @ value_BHJWD).flatten(-3, -2)[..., :n_tokens, :]


def _unskew(dense: Tensor, n_lags: int) -> Tensor:
    """Diagonals of (T, W) as rows of (T, L): read with a row length of W + 1, entry (t, t + l) lands at (t, l)."""
    n_tokens, n_keys = dense.shape[-2:]
    flat = F.pad(dense.flatten(-2), (0, n_tokens))
    return flat.unflatten(-1, (n_tokens, n_keys + 1))[..., :n_lags]


def _skew(band: Tensor) -> Tensor:
    """The inverse of `_unskew`: rows of (T, L) laid along the diagonals of (T, T + L - 1), zero elsewhere."""
    n_tokens, n_lags = band.shape[-2:]
    n_keys = n_tokens + n_lags - 1
    flat = F.pad(band, (0, n_keys + 1 - n_lags)).flatten(-2)
    return flat[..., : n_tokens * n_keys].unflatten(-1, (n_tokens, n_keys))


@dataclass
class ChainRates:
    """How the hidden lag moves from one block of tokens to the next.

    Parameters
    ----------
    step : Tensor, scalar in (0, 0.5)
        Probability of one lag step up, and of one down: drift.
    leak : Tensor, scalar in (0, 1)
        Probability of a fresh draw from the prior: a jump.
    log_prior_L : Tensor, shape (L,)
        Log probability of each lag before anything was seen.
    """

    step: Tensor
    leak: Tensor
    log_prior_L: Tensor


def lag_posterior(score_BTL: Tensor, rates: ChainRates, *, every: int, causal: bool) -> Tensor:
    """Posterior over a lag that drifts and jumps, given log-likelihoods of every token: forward-backward.

    The lag is held for blocks of `every` tokens; what their tokens say adds up. Smoothing gives
    p(l | all tokens); the causal version gives p(l | tokens up to this one), exactly, inside blocks too.

    Parameters
    ----------
    score_BTL : Tensor
        Log-likelihood of each lag at each token, up to a constant a token.
    rates : ChainRates
    every : int
        Tokens a block.
    causal : bool
        Filter instead of smoothing.

    Returns
    -------
    Tensor, shape (B, T, L)
        Sums to one over lags.
    """
    n_tokens = score_BTL.shape[1]
    score_BJEL = F.pad(score_BTL, (0, 0, 0, -n_tokens % every)).unflatten(1, (-1, every))
    block_BJL = score_BJEL.sum(2)
    if causal:
        ahead_BJL = _messages(block_BJL, rates, directions=1)[0]
        inside_BJEL = score_BJEL.cumsum(2) + ahead_BJL.clamp_min(1e-30).log()[:, :, None]
        return inside_BJEL.flatten(1, 2)[:, :n_tokens].softmax(-1)
    from_past_BJL, from_future_BJL = _messages(block_BJL, rates, directions=2)
    log_BJL = block_BJL + from_past_BJL.clamp_min(1e-30).log() + from_future_BJL.clamp_min(1e-30).log()
    return log_BJL.softmax(-1).repeat_interleave(every, 1)[:, :n_tokens]


def _messages(block_BJL: Tensor, rates: ChainRates, *, directions: int) -> Tensor:
    """What the past (and, with two directions, the future) of every block says about its lag.

    Both directions run in one loop, time reversed for the second. Each message sums to one.
    """
    n_blocks = block_BJL.shape[1]
    likely_BJL = (block_BJL - block_BJL.amax(-1, keepdim=True)).exp()
    likely = torch.stack([likely_BJL, likely_BJL.flip(1)][:directions])
    prior_L = rates.log_prior_L.softmax(-1)
    flat_L = torch.full_like(prior_L, 1.0 / prior_L.numel())
    message = torch.stack([prior_L, flat_L][:directions])[:, None].expand(directions, block_BJL.shape[0], -1)
    # A jump forgets where it came from and lands on the prior; backwards in time it is the other way round.
    land = torch.stack([prior_L, torch.ones_like(prior_L)][:directions])[:, None]
    weigh = torch.stack([torch.ones_like(prior_L), prior_L][:directions])[:, None]
    out = [message]
    for j in range(n_blocks - 1):
        seen = message * likely[:, :, j]
        seen = seen / seen.sum(-1, keepdim=True).clamp_min(1e-30)
        padded = F.pad(seen, (1, 1), mode="replicate")
        near = seen + rates.step * (padded[..., 2:] - 2 * seen + padded[..., :-2])
        message = (1 - rates.leak) * near + rates.leak * land * (weigh * seen).sum(-1, keepdim=True)
        out.append(message)
    stacked = torch.stack(out, 2)
    if directions == 1:
        return stacked
    return torch.stack([stacked[0], stacked[1].flip(1)])


def constant_posterior(score_BTL: Tensor, log_prior_L: Tensor, *, causal: bool) -> Tensor:
    """The chain that never moves: one lag for the whole window."""
    total = score_BTL.cumsum(1) if causal else score_BTL.sum(1, keepdim=True).expand_as(score_BTL)
    return (total + log_prior_L.log_softmax(-1)).softmax(-1)


@torch.no_grad()
def lag_path(score_BTL: Tensor, rates: ChainRates, *, every: int) -> Tensor:
    """Most probable sequence of lags (Viterbi), as lag indices, shape (B, T)."""
    n_tokens = score_BTL.shape[1]
    block_BJL = F.pad(score_BTL, (0, 0, 0, -n_tokens % every)).unflatten(1, (-1, every)).sum(2)
    log_prior_L = rates.log_prior_L.log_softmax(-1)
    stay, step, jump = (
        x.clamp_min(1e-30).log()
        for x in ((1 - rates.leak) * (1 - 2 * rates.step), (1 - rates.leak) * rates.step, rates.leak)
    )
    index_L = torch.arange(block_BJL.shape[-1], device=block_BJL.device)
    best = log_prior_L + block_BJL[:, 0]
    came_from = []
    for j in range(1, block_BJL.shape[1]):
        low = F.pad(best[:, :-1], (1, 0), value=float("-inf")) + step
        high = F.pad(best[:, 1:], (0, 1), value=float("-inf")) + step
        top, top_index = best.max(-1, keepdim=True)
        options = torch.stack([best + stay, low, high, top + jump + log_prior_L])
        best, choice = options.max(0)
        sources = torch.stack(
            [
                index_L.expand_as(best),
                (index_L - 1).expand_as(best),
                (index_L + 1).expand_as(best),
                top_index.expand_as(best),
            ]
        )
        came_from.append(sources.gather(0, choice[None])[0])
        best = best + block_BJL[:, j]
    path = [best.argmax(-1)]
    for source in reversed(came_from):
        path.append(source.gather(-1, path[-1][:, None])[:, 0])
    path_BJ = torch.stack(path[::-1], 1)
    return path_BJ.repeat_interleave(every, 1)[:, :n_tokens]
