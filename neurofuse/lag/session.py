"""In: log-likelihoods along a whole recording. Out: each clock's lag, tracked from the first window to the last.

A network is run on chunks laid side by side over every stretch that windows cover. The HMM then runs over all stretches
at once, with blocks without observations in the gaps between them, so that the lag before a gap informs the lag after
it, the less the longer the gap. Drift and jumps are estimated anew from the recording, unless the decoder is causal,
its log-likelihoods were never calibrated, or the rates are fixed.
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
from neurofuse.lag.hmm import (
    HMMRates,
    LagGrid,
    LagLogLik,
    LagPosterior,
    LagPrior,
    block_log_lik,
    joint_log_lik,
    smoother,
)
from neurofuse.recording import FloatArray
from neurofuse.windows import EDGE_TOKENS, Batch, Windows

# Chunks encoded at once; bounds memory.
CHUNKS = 16
# Blocks without observations after which a lag is forgotten anyway.
LONGEST_GAP = 5000
# Rates along a session of which nothing was learned: drift in lag steps per row, probabilities per row.
SESSION_DRIFT = 0.5
SESSION_JUMP = 1e-3
SESSION_UNMATCH = 0.01
SESSION_REMATCH = 0.1


@dataclass(frozen=True)
class Track:
    """Posterior of one clock's lag at the tokens `token`, which are in order.

    Parameters
    ----------
    token : ndarray of int, shape (n,)
    posterior : LagPosterior
        Of those tokens, with a batch dimension of one.
    path : Tensor, shape (n,)
        Most probable sequence of lags, as indices of fine lags.
    rates : HMMRates
        With which it was computed.
    """

    token: np.ndarray
    posterior: LagPosterior
    path: Tensor
    rates: HMMRates

    def posterior_of(self, windows: Windows) -> LagPosterior:
        """The part of the posterior that each window and its edges cover; beyond the ends, the nearest."""
        token = windows.first[:, None] + np.arange(-EDGE_TOKENS, windows.n_steps + EDGE_TOKENS)
        at = self._at(token)
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
    network: Any, X: Windows, inputs: Callable[[Batch], tuple[Any, ...]], *, tokens_per_block: int
) -> list[Track]:
    """Track the lag of every clock but the anchor through all that the windows cover.

    Parameters
    ----------
    network : LagNetwork
    X : Windows
        Of one recording, under one lag.
    inputs : callable
        Makes the network's inputs of a batch.
    tokens_per_block : int
        Tokens that share one lag.
    """
    covered = np.unique(X.first[:, None] + np.arange(X.n_steps))
    stretches = np.split(covered, np.flatnonzero(np.diff(covered) > 1) + 1)
    log_liks = [_stretch_log_liks(network, X, stretch, inputs) for stretch in stretches]
    # Every stretch begins a new block, after as many blocks without observations as fit into the gap.
    most = LONGEST_GAP * tokens_per_block
    gaps = [min(int(b[0] - a[-1]) - 1, most) // tokens_per_block for a, b in pairwise(stretches)]
    begin, at = 0, []
    for n_blocks, stretch in zip([0, *gaps], stretches, strict=True):
        begin += n_blocks * tokens_per_block
        at.append(begin + np.arange(stretch.size))
        begin += stretch.size + (-stretch.size) % tokens_per_block
    return [
        _track(attention, covered, torch.from_numpy(np.concatenate(at)), begin, [x[c] for x in log_liks])
        for c, attention in enumerate(network.lag_attentions)
    ]


def _track(attention: Any, token: np.ndarray, at: Tensor, n_tokens: int, log_liks: list[LagLogLik]) -> Track:
    log_lik_TL, unmatched_T = (torch.cat(parts) for parts in zip(*log_liks, strict=True))
    log_lik_BTL = log_lik_TL.new_zeros(1, n_tokens, log_lik_TL.shape[-1]).index_copy_(1, at, log_lik_TL[None])
    unmatched_BT = unmatched_T.new_zeros(1, n_tokens).index_copy_(1, at, unmatched_T[None])
    hmm = attention.hmm
    rates = hmm.rates
    if bool(hmm.calibrated) and not attention.causal:
        block = block_log_lik(log_lik_BTL, unmatched_BT, hmm.to_fine_LG, attention.tokens_per_block)
        rates = adapt_rates(rates, block, hmm.prior)
    posterior = attention.posterior(log_lik_BTL, unmatched_BT, rates)
    path_T = attention.path(log_lik_BTL, unmatched_BT, posterior, rates)[0, at]
    return Track(token, posterior.map(lambda x: x[:, at]), path_T, rates)


def _stretch_log_liks(
    network: Any, X: Windows, covered: np.ndarray, inputs: Callable[[Batch], tuple[Any, ...]]
) -> list[LagLogLik]:
    """Log-likelihoods at the tokens of one stretch, of each clock: of every lag, (n, L), and of no match, (n,)."""
    n = X.n_steps
    # Chunks overlap by the context of the encoders, on the past side or on both, so that the result is that of a single
    # pass; tokens that two share are kept from the one with more context around them. The last is laid against the end.
    stride = max(1, n - network.warm_up * (1 if network.causal else 2))
    first = np.append(np.arange(covered[0], covered[-1] + 1 - n, stride), covered[-1] + 1 - n)
    place = np.arange(n)
    context = np.tile(place if network.causal else np.minimum(place, place[::-1]), first.size)
    token = (first[:, None] + place).ravel()
    best = np.lexsort((-context, token))
    keep = torch.from_numpy(best[np.unique(token[best], return_index=True)[1]])
    chunks = X.recut(first, n)
    out = [
        network(*inputs(chunks.batch(slice(k, k + CHUNKS))))[1].log_liks
        for k in range(0, len(chunks), CHUNKS)
    ]
    return [
        LagLogLik(*(torch.cat([part[c][i] for part in out]).flatten(0, 1)[keep] for i in (0, 1)))
        for c in range(len(out[0]))
    ]


def track_session(
    log_lik_NG: np.ndarray,
    unmatched_N: np.ndarray,
    *,
    row_s: float,
    lag_step_s: float,
    drift: float | None = None,
    jumps: float | None = None,
    adapt: bool = False,
) -> tuple[FloatArray, FloatArray]:
    """Smoothed posterior of lag and match along a session, from log-likelihoods that any method made.

    Parameters
    ----------
    log_lik_NG, unmatched_N : ndarray
        Log-likelihood of each lag, and of no match, in rows evenly spaced in time.
    row_s : float
        Seconds per row.
    lag_step_s : float
        Seconds per step of the lag grid.
    drift : float, optional
        Standard deviation of the lag's random walk after one second, s per root second; by default half a lag step per
        row.
    jumps : float, optional
        Jumps per second; by default one in a thousand rows.
    adapt : bool
        Estimate both rates from the session itself, with a prior around those.

    Returns
    -------
    p_lag_NG : ndarray
        Probability of each lag, given a match.
    p_matched_N : ndarray
        Probability of a match.

    Raises
    ------
    NeurofuseError
        If a rate is no number of its range, or faster than the grid can follow.
    """
    grid = LagGrid(row_s, lag_step_s)
    prior = LagPrior.from_seconds(grid, drift=drift, jumps=jumps, fixed=not adapt)
    block = joint_log_lik(*(torch.as_tensor(x[None], dtype=torch.float32) for x in (log_lik_NG, unmatched_N)))
    rates = HMMRates.from_seconds(
        grid,
        drift=grid.drift_s(SESSION_DRIFT) if drift is None else drift,
        jumps=grid.jumps_hz(SESSION_JUMP) if jumps is None else jumps,
        unmatch=SESSION_UNMATCH,
        rematch=SESSION_REMATCH,
        log_prior_G=torch.zeros(block.shape[-1]),
    )
    with torch.no_grad():
        found = smoother(block, adapt_rates(rates, block, prior))
    return found.p_lag_BTG[0].double().numpy(), found.p_matched_BT[0].double().numpy()
