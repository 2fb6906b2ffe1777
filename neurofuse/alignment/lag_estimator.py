"""In: windows of two clocks that are aligned, or nearly so. Out: a network that tells how far a window was moved.

No movement and no labels are needed: windows are moved by known lags and the network learns to find them. Queries,
keys and what is believed of their products are those of the tracking decoder; there is no head that decodes.
"""

from __future__ import annotations

import copy
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from neurofuse.decoders.base import Scale
from neurofuse.lag.attention import LagAttention
from neurofuse.lag.calibration import LagLogLik, calibrate
from neurofuse.lag.hmm import LagPosterior, constant_posterior
from neurofuse.lag.losses import alignment_loss, mismatch_some
from neurofuse.nets.encoders import StreamEncoder, encode, initialise
from neurofuse.windows import EDGE_TOKENS, Batch, Windows

# Parts of a window that must each find the lag by themselves.
N_PARTS = 4
# Share of training windows whose anchor is not seen beyond their edges, so that short windows can be read alone.
CUT_SHARE = 0.5
# Windows heard at once.
HEAR_BATCH = 32


class LagEstimatorNetwork(nn.Module):
    """One encoder a clock and the attention between them; evidence of lags and nothing else."""

    def __init__(
        self,
        n_inputs: list[int],
        max_lag: int,
        *,
        width: int,
        n_heads: int,
        head_width: int,
        kernel: int,
        dilations: tuple[int, ...],
        dropout: float,
        lag_steps: int,
    ) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(
            StreamEncoder(n, width, kernel=kernel, dilations=dilations, dropout=dropout, causal=False)
            for n in n_inputs
        )
        self.attention = LagAttention(
            width,
            n_heads=n_heads,
            head_width=head_width,
            max_lag=max_lag,
            lag_model="constant",
            fine_lags_per_token=lag_steps,
            tokens_per_block=1,
            bidirectional=False,
            causal=False,
        )

    def forward(self, values: list[Tensor], present: list[Tensor], reach: int) -> tuple[Tensor, Tensor]:
        """Log-likelihood of every lag at the window's tokens, (B, T, L), and of no match, (B, T)."""
        spare = reach - EDGE_TOKENS
        width = values[0].shape[1]
        own = slice(spare, width - spare)
        there = present[0][:, own]
        _, asking = encode(self.encoders[0], values[0][:, own], there)
        _, asked = encode(self.encoders[1], values[1], present[1])
        query, key = self.attention.queries(asking, there), self.attention.keys(asked, present[1])
        score, lost = self.attention.log_lik(query, key)
        inner = slice(EDGE_TOKENS, score.shape[1] - EDGE_TOKENS)
        # Where either is missing nothing is said.
        both = there[:, inner] & present[1].any(1, keepdim=True)
        return score[:, inner] * both[..., None], lost[:, inner] * both


class LagEstimator:
    """Learns to find by how much windows were moved.

    Parameters
    ----------
    width, n_heads, head_width, kernel, dilations, dropout
        See `TrackedDecoder`.
    lag_steps : int
        Fine lags a token.
    n_steps, batch_size, learning_rate, check_every, patience : see `TorchDecoder`
    foreign : float
        Share of training windows whose other clock is taken from another window.
    seed : int
    progress : bool
    """

    def __init__(
        self,
        *,
        width: int = 64,
        n_heads: int = 4,
        head_width: int = 8,
        kernel: int = 5,
        dilations: tuple[int, ...] = (1, 4),
        dropout: float = 0.3,
        lag_steps: int = 4,
        n_steps: int = 400,
        batch_size: int = 32,
        learning_rate: float = 3e-3,
        check_every: int = 25,
        patience: int = 6,
        foreign: float = 0.15,
        seed: int = 0,
        progress: bool = False,
    ) -> None:
        self.width, self.n_heads, self.head_width = width, n_heads, head_width
        self.kernel, self.dilations, self.dropout = kernel, dilations, dropout
        self.lag_steps, self.n_steps, self.batch_size = lag_steps, n_steps, batch_size
        self.learning_rate, self.check_every, self.patience = learning_rate, check_every, patience
        self.foreign, self.seed, self.progress = foreign, seed, progress

    def fit(self, X: Windows, rest: np.ndarray, held: Windows, held_rest: np.ndarray) -> LagEstimator:
        """Train, stop on held-back windows, and make the evidence as strong as those say it may be.

        Parameters
        ----------
        X, held : Windows
            Their `shift` takes off what lag is known, constant in each window.
        rest, held_rest : ndarray, shape (n_windows,)
            The lag that is left after it, in tokens.
        """
        self._learn_scales(X)
        rng = np.random.default_rng([self.seed, 21])
        generator = torch.Generator().manual_seed(self.seed)
        self.max_lag = X.max_lag
        self.network_ = LagEstimatorNetwork(
            [c.n_features for c in X.tokens.clocks],
            X.max_lag,
            width=self.width,
            n_heads=self.n_heads,
            head_width=self.head_width,
            kernel=self.kernel,
            dilations=self.dilations,
            dropout=self.dropout,
            lag_steps=self.lag_steps,
        )
        initialise(self.network_, generator)
        net = self.network_
        optimizer = torch.optim.AdamW(net.parameters(), lr=self.learning_rate, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.learning_rate, total_steps=self.n_steps + 1, pct_start=0.1
        )
        check = [
            self._moved(held, held_rest, rows, np.random.default_rng([self.seed, 22]))
            for rows in _portions(len(held), self.batch_size)[:4]
        ]
        best, best_state, waited = np.inf, copy.deepcopy(net.state_dict()), 0
        order = np.empty(0, dtype=np.int64)
        bar = tqdm(
            total=self.n_steps,
            desc="learn to find lags",
            unit="step",
            file=sys.stderr,
            disable=not self.progress,
            mininterval=0.1 if sys.stderr.isatty() else 20.0,
        )
        with bar:
            for step in range(1, self.n_steps + 1):
                if order.size < min(self.batch_size, len(X)):
                    order = np.concatenate([order, rng.permutation(len(X))])
                rows, order = order[: self.batch_size], order[self.batch_size :]
                net.train()
                loss = self._loss(mismatch_some(self._moved(X, rest, rows, rng), self.foreign, rng))
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(net.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                bar.update()
                if step % self.check_every and step != self.n_steps:
                    continue
                net.eval()
                with torch.no_grad():
                    missed = float(np.mean([float(self._loss(b)) for b in check]))
                if missed < best:
                    best, best_state, waited = missed, copy.deepcopy(net.state_dict()), 0
                else:
                    waited += 1
                    if waited >= self.patience:
                        break
        net.load_state_dict(best_state)
        net.eval()
        self._calibrate(held, held_rest)
        return self

    def _learn_scales(self, X: Windows) -> None:
        per, n = X.tokens.per_token, X.tokens.n_tokens
        self.scales_ = []
        for clock in X.tokens.clocks:
            values, present = clock.gather(per * np.arange(n)[None], per)
            self.scales_.append(Scale.of(values[0][present[0]].astype(np.float64)))

    def _moved(self, X: Windows, rest: np.ndarray, rows: np.ndarray, rng: np.random.Generator) -> Batch:
        """Windows moved by any lag of the range, and the lag they then have."""
        per = X.tokens.per_token
        limit = X.max_lag * per
        by = rng.integers(-limit, limit + 1, len(rows))
        chosen = X[rows]
        batch = replace(chosen, shift=chosen.shift + by[:, None, None]).batch(slice(None))
        lag = np.broadcast_to((by / per + rest[rows])[:, None, None], (*batch.lag.shape[:2], 1))
        present = list(batch.present)
        cut = rng.random(len(rows)) < CUT_SHARE
        present[0] = _inside(present[0], batch.reach, cut)
        return replace(batch, lag=lag.astype(np.float32), present=tuple(present))

    def _loss(self, batch: Batch) -> Tensor:
        """Surprise at the lag, of the window and of each of its parts, to within a fine lag."""
        score, lost = self.network_(*self._inputs(batch))
        n = score.shape[1] // N_PARTS * N_PARTS
        parts = [x[:, :n].unflatten(1, (N_PARTS, -1)).sum(2) for x in (score, lost)]
        lag_B1 = torch.as_tensor(batch.lag[:, :1, 0])
        missed = []
        for heard, unheard in ([x.sum(1, keepdim=True) for x in parts], parts):
            # A window, or a part of it, has one lag: one token stands for all of them.
            n_parts = heard.shape[1]
            belief = self._posterior(heard.flatten(0, 1)[:, None], unheard.flatten()[:, None])
            lag = (self.lag_steps * lag_B1).repeat_interleave(n_parts, 0)
            limit = self.max_lag * self.lag_steps
            missed.append(alignment_loss(belief, lag, torch.ones_like(lag, dtype=torch.bool), limit))
        return missed[0] + missed[1]

    def _posterior(self, score_BTL: Tensor, lost_BT: Tensor) -> LagPosterior:
        track = self.network_.attention.hmm
        return constant_posterior(score_BTL, lost_BT, track.rates, track.to_fine_LG, causal=False)

    def _calibrate(self, held: Windows, rest: np.ndarray) -> None:
        rng = np.random.default_rng([self.seed, 23])
        rows = rng.permutation(len(held))[:64]
        if rows.size < 2:
            return
        own = [self._moved(held, rest, rows, rng) for _ in range(3)]
        heard = [self._heard(b) for b in own]
        foreign = [self._heard(mismatch_some(b, 1.0, rng)) for b in own]
        attention = self.network_.attention
        calibrate(
            attention.hmm,
            self._posterior,
            LagLogLik(*(torch.cat([h[k] for h in heard]) for k in (0, 1))),
            LagLogLik(*(torch.cat([h[k] for h in foreign]) for k in (0, 1))),
            torch.as_tensor(np.concatenate([b.lag[..., 0] for b in own])),
            self.max_lag,
            1,
        )

    @torch.no_grad()
    def _heard(self, batch: Batch) -> tuple[Tensor, Tensor]:
        score, lost = self.network_(*self._inputs(batch))
        return score, lost

    def _inputs(self, batch: Batch) -> tuple[Any, ...]:
        values = [
            torch.as_tensor(((x - s.mean) / s.std * p[..., None]).astype(np.float32))
            for x, p, s in zip(batch.values, batch.present, self.scales_, strict=True)
        ]
        return values, [torch.as_tensor(p) for p in batch.present], batch.reach

    def hear(self, X: Windows, *, every: int, cut: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Log-likelihood of every lag in blocks of `every` tokens, beside that of no match.

        Parameters
        ----------
        X : Windows
            Lags are told relative to what their `shift` takes off.
        every : int
            Tokens a block; what is left of a window is left out.
        cut : bool
            Show no more of the anchor than the window.

        Returns
        -------
        score : float32 ndarray, shape (n_windows, n_blocks, n_lags)
        lost : float32 ndarray, shape (n_windows, n_blocks)
        """
        scores, losts = [], []
        n = X.n_steps // every * every
        for k in range(0, len(X), HEAR_BATCH):
            batch = X[k : k + HEAR_BATCH].batch(slice(None))
            if cut:
                inner = _inside(batch.present[0], batch.reach, np.ones(len(batch.movement), bool))
                batch = replace(batch, present=(inner, *batch.present[1:]))
            score, lost = self._heard(batch)
            scores.append(score[:, :n].unflatten(1, (-1, every)).sum(2).numpy())
            losts.append(lost[:, :n].unflatten(1, (-1, every)).sum(2).numpy())
        return np.concatenate(scores), np.concatenate(losts)


def _inside(present: np.ndarray, reach: int, rows: np.ndarray) -> np.ndarray:
    """Presence taken off beyond the window, in some rows."""
    out = present.copy()
    out[rows, :reach] = False
    out[rows, out.shape[1] - reach :] = False
    return out


def _portions(n: int, size: int) -> list[np.ndarray]:
    return [np.arange(k, min(n, k + size)) for k in range(0, n, size)]
