"""In: windows of two clocks whose lag is known, or nearly so. Out: a network that estimates the lag of any window.

No movement is needed: windows are moved by random lags, which are the targets. Queries, keys and the lag model are
those of the tracked decoder, and so is all that training and checkpoints have in common; there is no head that decodes.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from neurofuse.decoders.checkpoint import read_checkpoint
from neurofuse.decoders.neural import TorchDecoder
from neurofuse.errors import NeurofuseError
from neurofuse.lag.attention import LagAttention
from neurofuse.lag.calibration import calibrate
from neurofuse.lag.hmm import LagLogLik, LagPosterior
from neurofuse.lag.losses import alignment_loss, mismatch_some
from neurofuse.nets.encoders import StreamEncoder, encode
from neurofuse.nets.fit import fit_network
from neurofuse.windows import EDGE_TOKENS, Batch, Windows

# Parts of a window, each with a loss of its own.
N_PARTS = 4
# Share of training windows without the anchor's context beyond their edges, so that short windows work by themselves.
CUT_SHARE = 0.5
# Windows estimated at once; bounds memory, does not change numbers.
ESTIMATE_BATCH = 32
# Batches of the validation loss, windows and lags per window of the calibration.
N_CHECKED, N_CALIBRATED, LAGS_CALIBRATED = 4, 64, 3


class LagEstimatorNetwork(nn.Module):
    """One encoder per clock and the attention between them."""

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
        fine_lags_per_token: int,
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
            fine_lags_per_token=fine_lags_per_token,
            tokens_per_block=1,
            bidirectional=False,
            causal=False,
        )

    def forward(self, values: list[Tensor], present: list[Tensor], reach: int) -> tuple[Tensor, LagLogLik]:
        """No movement, (B, T, 0), and log-likelihoods of every lag, (B, T, L), and of no match, (B, T)."""
        spare = reach - EDGE_TOKENS
        width = values[0].shape[1]
        own = slice(spare, width - spare)
        own_present = present[0][:, own]
        _, query_in = encode(self.encoders[0], values[0][:, own], own_present)
        _, key_in = encode(self.encoders[1], values[1], present[1])
        query, key = self.attention.queries(query_in, own_present), self.attention.keys(key_in, present[1])
        log_lik, unmatched = self.attention.log_lik(query, key)
        inner = slice(EDGE_TOKENS, log_lik.shape[1] - EDGE_TOKENS)
        # Where either stream is absent there is no evidence.
        both = own_present[:, inner] & present[1].any(1, keepdim=True)
        log_liks = LagLogLik(log_lik[:, inner] * both[..., None], unmatched[:, inner] * both)
        return values[0].new_zeros(*both.shape, 0), log_liks


class LagEstimator(TorchDecoder):
    """Estimates the lag of windows, trained on windows moved by known lags; decodes no movement.

    Training windows need a known lag, which their `truths` hold, up to what moves them.

    Parameters
    ----------
    n_heads, head_width, kernel, dilations
        See `TrackedDecoder`.
    fine_lags_per_token : int
        Resolution of the lag grid.
    mismatched : float
        Share of training windows whose second clock is taken from another window.
    dropout, n_steps, patience, modality_dropout, **training
        See `TorchDecoder`. The learning rate follows one cycle, and all weights decay.
    """

    name = "lag-estimator"

    def __init__(
        self,
        *,
        n_heads: int = 4,
        head_width: int = 8,
        kernel: int = 5,
        dilations: tuple[int, ...] = (1, 4),
        fine_lags_per_token: int = 4,
        mismatched: float = 0.15,
        dropout: float = 0.3,
        n_steps: int = 400,
        patience: int = 6,
        modality_dropout: float = 0.0,
        **training: Any,
    ) -> None:
        super().__init__(
            dropout=dropout,
            n_steps=n_steps,
            patience=patience,
            modality_dropout=modality_dropout,
            **training,
        )
        self.n_heads = n_heads
        self.head_width = head_width
        self.kernel = kernel
        self.dilations = dilations
        self.fine_lags_per_token = fine_lags_per_token
        self.mismatched = mismatched

    def build_network(self, n_inputs: list[int], n_axes: int, max_lag: int) -> nn.Module:
        """Encoders and attention."""
        return LagEstimatorNetwork(
            n_inputs,
            max_lag,
            width=self.width,
            n_heads=self.n_heads,
            head_width=self.head_width,
            kernel=self.kernel,
            dilations=self.dilations,
            dropout=self.dropout,
            fine_lags_per_token=self.fine_lags_per_token,
        )

    def target_of(self, X: Windows, y: np.ndarray | None) -> np.ndarray:
        """No movement, shape (n_windows, n_steps, 0)."""
        if len(X.tokens.clocks) != 2:
            raise NeurofuseError(
                f"a lag lies between two clocks, and these windows have {len(X.tokens.clocks)}."
            )
        return np.empty((*X.shape, 0), dtype=np.float32)

    def draw_batch(self, X: Windows, rows: np.ndarray, rng: np.random.Generator) -> Batch:
        """Windows moved by any lag of the range, some of them mismatched."""
        return mismatch_some(self._moved(X, rows, rng), self.mismatched, rng)

    def _moved(self, X: Windows, rows: np.ndarray, rng: np.random.Generator) -> Batch:
        limit = X.max_lag * X.tokens.per_token
        by = rng.integers(-limit, limit + 1, len(rows))
        chosen = X[rows]
        batch = replace(chosen, shift=chosen.shift + by[:, None, None]).batch(slice(None))
        return _without_context(batch, rng.random(len(rows)) < CUT_SHARE)

    def loss(self, batch: Batch, target: np.ndarray) -> Tensor:
        """Negative log-likelihood of the lag, of the window and of each of its parts, to within a fine lag."""
        _, log_liks = self.network_(*self.network_inputs(batch))
        n = log_liks.log_lik_BTL.shape[1] // N_PARTS * N_PARTS
        parts = [x[:, :n].unflatten(1, (N_PARTS, -1)).sum(2) for x in log_liks]
        lag_B1 = torch.as_tensor(_middle_lag(batch), device=parts[0].device)
        losses = []
        for log_lik, unmatched in ([x.sum(1, keepdim=True) for x in parts], parts):
            # A window, or a part of it, has one lag: one token stands for all of them.
            posterior = self._posterior(log_lik.flatten(0, 1)[:, None], unmatched.flatten()[:, None])
            lag = (self.fine_lags_per_token * lag_B1).repeat_interleave(log_lik.shape[1], 0)
            limit = self.max_lag_ * self.fine_lags_per_token
            losses.append(alignment_loss(posterior, lag, torch.ones_like(lag, dtype=torch.bool), limit))
        return losses[0] + losses[1]

    def _posterior(self, log_lik_BTL: Tensor, unmatched_BT: Tensor) -> LagPosterior:
        return self.network_.attention.posterior(log_lik_BTL, unmatched_BT)

    def lag_readout(self, readout: LagLogLik) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Posterior of one constant lag per window."""
        posterior = self._posterior(*readout)
        return [(posterior.p_lag_BTG, posterior.log_lag_BTG.argmax(-1), posterior.p_matched_BT)]

    def train(
        self, X: Windows, target: np.ndarray, validation: Windows, validation_target: np.ndarray
    ) -> None:
        """Gradient descent, then calibration of the log-likelihoods on validation windows."""
        rng = np.random.default_rng([self.seed, 21])
        some = np.array_split(
            np.arange(len(validation)), np.arange(self.batch_size, len(validation), self.batch_size)
        )
        check = [
            self._moved(validation, rows, np.random.default_rng([self.seed, 22])) for rows in some[:N_CHECKED]
        ]
        self.history_ = fit_network(
            self.network_,
            draw=lambda rows: self.draw_batch(X, rows, rng),
            loss=lambda batch: self.loss(batch, target),
            validation_loss=lambda: float(np.mean([float(self.loss(b, target)) for b in check])),
            n_rows=len(X),
            rng=rng,
            n_steps=self.n_steps,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            decay_all=True,
            schedule=_one_cycle,
            patience=self.patience,
            check_every=self.check_every,
            title="train the lag estimator",
            progress=self.progress,
        )
        self._calibrate(validation)

    def _calibrate(self, validation: Windows) -> None:
        rng = np.random.default_rng([self.seed, 23])
        rows = rng.permutation(len(validation))[:N_CALIBRATED]
        if rows.size < 2:
            return
        batches = [self._moved(validation, rows, rng) for _ in range(LAGS_CALIBRATED)]
        own = [self._log_liks(b) for b in batches]
        mismatched = [self._log_liks(mismatch_some(b, 1.0, rng)) for b in batches]
        lag_B1 = torch.as_tensor(np.concatenate([_middle_lag(b) for b in batches]))
        log_lik_BTL = own[0].log_lik_BTL
        calibrate(
            self.network_.attention.hmm,
            self._posterior,
            LagLogLik(*(torch.cat(x) for x in zip(*own, strict=True))),
            LagLogLik(*(torch.cat(x) for x in zip(*mismatched, strict=True))),
            lag_B1.expand(-1, log_lik_BTL.shape[1]).to(log_lik_BTL.device),
            self.max_lag_,
            1,
        )

    @torch.no_grad()
    def _log_liks(self, batch: Batch) -> LagLogLik:
        return self.network_(*self.network_inputs(batch))[1]

    def log_lik(self, X: Windows, *, every: int, cut: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Log-likelihood of every lag in blocks of `every` tokens, and of unmatched streams.

        Parameters
        ----------
        X : Windows
            Lags are relative to what their `shift` removes.
        every : int
            Tokens per block; the rest of a window is left out.
        cut : bool
            Leave out the anchor's context beyond the window.

        Returns
        -------
        log_lik : float32 ndarray, shape (n_windows, n_blocks, n_lags)
        unmatched : float32 ndarray, shape (n_windows, n_blocks)
        """
        self.check_windows(X)
        parts: list[LagLogLik] = []
        n = X.n_steps // every * every
        for k in range(0, len(X), ESTIMATE_BATCH):
            batch = X.batch(slice(k, k + ESTIMATE_BATCH))
            parts.append(self._log_liks(_without_context(batch, np.full(len(batch.movement), cut))))
        log_lik, unmatched = (
            torch.cat([x[:, :n].unflatten(1, (-1, every)).sum(2) for x in side]).cpu().numpy()
            for side in zip(*parts, strict=True)
        )
        return log_lik, unmatched

    def _model_card(self) -> str:
        own = f"{type(self).__module__}.{type(self).__name__}"
        return super()._model_card().replace("neurofuse.Decoder.from_", f"{own}.from_")

    @staticmethod
    def from_pretrained(folder: str | Path) -> LagEstimator:  # type: ignore[override]
        """Read an estimator written by `save_pretrained`.

        Raises
        ------
        NeurofuseError
            If the folder does not hold one of this version.
        """
        config, state = read_checkpoint(folder)
        if config["decoder"] != LagEstimator.name:
            raise NeurofuseError(
                f"'{folder}' holds a decoder '{config['decoder']}', not a lag estimator; "
                "read it with neurofuse.Decoder.from_pretrained."
            )
        # JSON has lists where Python had tuples.
        settings: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in config["parameters"].items()
        }
        estimator = LagEstimator(**settings)
        estimator.restore_checkpoint(config, state)
        return estimator


def _one_cycle(optimizer: torch.optim.Optimizer, n_steps: int) -> LRScheduler:
    """Learning rate that rises over the first tenth of the steps, then falls along a cosine."""
    return OneCycleLR(optimizer, optimizer.defaults["lr"], total_steps=n_steps + 1, pct_start=0.1)


def _middle_lag(batch: Batch) -> np.ndarray:
    """Lag at the middle of each window, shape (B, 1): that of the window, along which it varies by the skew alone."""
    n = batch.lag.shape[1]
    return 0.5 * (batch.lag[:, (n - 1) // 2] + batch.lag[:, n // 2])


def _without_context(batch: Batch, rows: np.ndarray) -> Batch:
    """Some windows without the anchor's context beyond their edges."""
    present = batch.present[0].copy()
    present[rows, : batch.reach] = False
    present[rows, present.shape[1] - batch.reach :] = False
    return replace(batch, present=(present, *batch.present[1:]))
