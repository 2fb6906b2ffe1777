"""In: a lag network and windows of one recording. Out: each clock's lag, tracked from the first window to the last.

Evidence is gathered from chunks laid side by side over every stretch that windows cover. The chain then runs over all
stretches at once, with blocks that say nothing in the gaps between them, so that a lag found before a gap is remembered
after it, less surely the longer it was. How fast the lag drifts and how often it jumps is learned anew from the
recording, unless the future must not be looked at or the evidence was never calibrated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neurofuse.lag.calibration import adapt_rates
from neurofuse.lag.hmm import HMMRates, LagPosterior, block_log_lik
from neurofuse.windows import EDGE_TOKENS, Batch, Windows

# Chunks encoded at once; bounds memory.
CHUNKS = 16
# Blocks without evidence after which a lag is forgotten anyway.
LONGEST_GAP = 5000


@dataclass(frozen=True)
class Track:
    """What is known of one clock's lag at the tokens `token`, which are in order.

    Parameters
    ----------
    token : ndarray of int, shape (n,)
    posterior : LagPosterior
        Of those tokens, with a batch dimension of one.
    path : Tensor, shape (n,)
        Most probable sequence of lags, as indices of fine lags.
    rates : HMMRates
        How the lag was taken to move from block to block.
    """

    token: np.ndarray
    posterior: LagPosterior
    path: Tensor
    rates: HMMRates

    def belief(self, windows: Windows) -> LagPosterior:
        """The part of the posterior that each window and its edges see; beyond the ends, the nearest."""
        wanted = windows.first[:, None] + np.arange(-EDGE_TOKENS, windows.n_steps + EDGE_TOKENS)
        at = self._at(wanted)
        return self.posterior.map(lambda x: x[0, at])

    def path_of(self, windows: Windows) -> np.ndarray:
        """Most probable lags of the windows, as indices, shape (n_windows, n_steps)."""
        at = self._at(windows.first[:, None] + np.arange(windows.n_steps))
        return self.path[at].cpu().numpy()

    def _at(self, token: np.ndarray) -> Tensor:
        after = np.searchsorted(self.token, token).clip(0, self.token.size - 1)
        before = (after - 1).clip(0)
        nearer = np.where(token - self.token[before] < self.token[after] - token, before, after)
        return torch.from_numpy(nearer)


def track_lags(
    network: Any, X: Windows, inputs: Callable[[Batch], tuple[Any, ...]], *, every: int
) -> list[Track]:
    """Track the lag of every clock but the anchor through all that the windows cover.

    Parameters
    ----------
    network : LagNetwork
    X : Windows
        Of one recording, under one lag.
    inputs : callable
        Makes the network's inputs of a batch.
    every : int
        Tokens a block of the chain.
    """
    covered = np.unique(X.first[:, None] + np.arange(X.n_steps))
    parts = np.split(covered, np.flatnonzero(np.diff(covered) > 1) + 1)
    heard = [_evidence(network, X, part, inputs) for part in parts]
    # Every stretch begins a block of its own, after as many silent ones as fit into the gap.
    silent = [
        0,
        *(min(int(b[0] - a[-1]) - 1, LONGEST_GAP * every) // every * every for a, b in pairwise(parts)),
    ]
    begin, at = 0, []
    for gap, part in zip(silent, parts, strict=True):
        at.append(begin + gap + np.arange(part.size))
        begin += gap + part.size + (-part.size) % every
    return [
        _track(attention, covered, torch.from_numpy(np.concatenate(at)), begin, [h[c] for h in heard])
        for c, attention in enumerate(network.attending)
    ]


def _track(
    attention: Any,
    token: np.ndarray,
    at: Tensor,
    n_tokens: int,
    heard: list[tuple[Tensor, ...]],
) -> Track:
    score_TL, lost_T = (torch.cat([h[i] for h in heard]) for i in (0, 1))
    score_BTL = score_TL.new_zeros(1, n_tokens, score_TL.shape[-1]).index_copy_(1, at, score_TL[None])
    lost_BT = lost_T.new_zeros(1, n_tokens).index_copy_(1, at, lost_T[None])
    rates = attention.track.rates
    if bool(attention.track.calibrated) and not attention.causal:
        rates = adapt_rates(rates, block_log_lik(score_BTL, lost_BT, attention.track.up_LG, attention.every))
    found = attention.posterior(score_BTL, lost_BT, rates)
    path_T = attention.path(score_BTL, lost_BT, found, rates)[0, at]
    return Track(token, found.map(lambda x: x[:, at]), path_T, rates)


def _evidence(
    network: Any, X: Windows, covered: np.ndarray, inputs: Callable[[Batch], tuple[Any, ...]]
) -> list[tuple[Tensor, ...]]:
    """What the tokens of one stretch say about the lag of each clock, (n, L), and about no match, (n,)."""
    n = X.n_steps
    # Chunks overlap by what encoders have to see, of the past or of both sides, before they say the same as in one
    # pass; tokens that two share are kept from the one that sees more around them. The last is laid against the end.
    stride = max(1, n - network.warm_up * (1 if network.causal else 2))
    first = np.append(np.arange(covered[0], covered[-1] + 1 - n, stride), covered[-1] + 1 - n)
    place = np.arange(n)
    seen = np.tile(place if network.causal else np.minimum(place, place[::-1]), first.size)
    token = (first[:, None] + place).ravel()
    best = np.lexsort((-seen, token))
    keep = torch.from_numpy(best[np.unique(token[best], return_index=True)[1]])
    chunks = X.recut(first, n)
    out = [
        network(*inputs(chunks.batch(slice(k, k + CHUNKS))))[1].evidence
        for k in range(0, len(chunks), CHUNKS)
    ]
    return [
        tuple(torch.cat([part[c][i] for part in out]).flatten(0, 1)[keep] for i in (0, 1))
        for c in range(len(out[0]))
    ]
