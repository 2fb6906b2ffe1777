"""In: tokens of all clocks. Out: the lag at which decodes of single clocks agree, and movement decoded through it.

Align, then decode: the classical two-step baseline. Movement is decoded from each clock separately with ridge, the
decodes are cross-correlated in each window, the other clock is shifted by the lag of the highest correlation, and a
decoder that assumes clocks to agree reads all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view

from neurofuse.decoders.base import Prediction
from neurofuse.decoders.early import EarlyDecoder, EarlyNetwork
from neurofuse.decoders.ridge import (
    CHUNK,
    Ridge,
    RidgeDecoder,
    fit_ridge,
    lagged,
    lags_between,
    restored_ridge,
    ridge_state,
    some_windows,
)
from neurofuse.decoders.scale import Scale, standard
from neurofuse.windows import EDGE_TOKENS, Batch, Windows, filled

# How often single-clock decoders are fitted again with the lags estimated by them, where no lag is known.
N_REFITS = 2


@dataclass(frozen=True, eq=False)
class WindowAlignment:
    """Lags estimated in some windows, at their moments and `EDGE_TOKENS` more on both sides (E = T + 2 edges).

    Parameters
    ----------
    lag_BEC : int ndarray, shape (B, E, n_clocks - 1)
        In tokens.
    posterior : list of float32 ndarray, shape (B, E, n_lags)
        One per clock but the anchor.
    """

    lag_BEC: np.ndarray
    posterior: list[np.ndarray]


@dataclass(eq=False)
class Aligner:
    """Estimates the lag of every other clock by cross-correlating decodes of single clocks.

    The log profile likelihood of a lag under Gaussian signals is -n/2 log(1 - r^2), with r the correlation of two
    decodes and n the number of effective samples: moments and axes over the tokens per independent sample (Bartlett:
    the sum over lags of the product of both decodes' autocorrelations). The posterior is its softmax, the path its
    maximum. A causal aligner takes correlations up to the present.

    Parameters
    ----------
    context : int
        Reach of the single-clock decoders, tokens; into the past only when causal.
    causal : bool
    """

    context: int
    causal: bool
    lags: list[np.ndarray] = field(default_factory=list)
    ridges: list[Ridge] = field(default_factory=list)
    # Of each other clock: tokens per independent sample, mean square of the anchor's decode and of its own.
    sampling: np.ndarray = field(default_factory=lambda: np.zeros((0, 3)))

    def fit(
        self, batch: Batch, target_BTA: np.ndarray, check: Batch, check_BTA: np.ndarray, scales: list[Scale]
    ) -> None:
        """Fit one ridge per clock, on tokens shifted by the known lag, or else by lags estimated before."""
        near = (-self.context, 0 if self.causal else self.context)
        self.lags = [lags_between([near], [x.shape[-1]])[0] for x in batch.values]
        lag, check_lag = _known_lag(batch), _known_lag(check)
        # A lag that moves is undefined at some moments of a window, and is known nevertheless.
        is_known = bool(np.isfinite(batch.lag).any(axis=1).all())
        for k in range(1 if is_known else 1 + N_REFITS):
            if k:
                lag, check_lag = (self.align(b, scales).lag_BEC for b in (batch, check))
            self.ridges = [
                fit_ridge(
                    *self._rows(batch, target_BTA, c, lag, scales),
                    *self._rows(check, check_BTA, c, check_lag, scales),
                )
                for c in range(len(batch.values))
            ]
            self.sampling = self._effective_sampling(batch, scales)

    def _rows(
        self, batch: Batch, movement_BTA: np.ndarray, clock: int, lag_BEC: np.ndarray, scales: list[Scale]
    ) -> tuple[np.ndarray, np.ndarray]:
        columns = aligned_columns(batch, [clock], [self.lags[clock]], lag_BEC, scales)
        known = np.isfinite(movement_BTA).all(axis=-1)
        return columns[known], movement_BTA[known]

    def _effective_sampling(self, batch: Batch, scales: list[Scale]) -> np.ndarray:
        anchor, *others = self._unimodal(standard(batch, scales), batch.reach)
        out = []
        for other in others:
            r_anchor, r_other = _autocorrelation(anchor), _autocorrelation(other)
            n = min(len(r_anchor), len(r_other))
            n_tokens = 1 + 2 * float(np.sum(r_anchor[1:n] * r_other[1:n]))
            out.append([max(1.0, n_tokens), float(np.mean(anchor**2)), float(np.mean(other**2))])
        return np.array(out).reshape(-1, 3)

    def _unimodal(self, values: list[np.ndarray], reach: int) -> list[np.ndarray]:
        """Decodes of each clock separately: the anchor's at E moments, others' at `max_lag` more on both sides."""
        out = []
        for k, (x, lags, ridge) in enumerate(zip(values, self.lags, self.ridges, strict=True)):
            # Beyond its context a window is absent: zero, the mean in standard units.
            padded = np.pad(x, ((0, 0), (self.context, self.context), (0, 0)))
            inside = np.arange(x.shape[1])
            if k == 0:
                inside = inside[reach - EDGE_TOKENS : len(inside) - reach + EDGE_TOKENS]
            steps = self.context + inside
            weights = ridge.weights.reshape(len(ridge.weights), len(lags), -1)
            movement = sum(padded[:, steps + lag] @ weights[:, j].T for j, lag in enumerate(lags))
            out.append(movement + ridge.intercept)
        return out

    def align(self, batch: Batch, scales: list[Scale]) -> WindowAlignment:
        """Lags of some windows."""
        own, *others = self._unimodal(standard(batch, scales), batch.reach)
        max_lag = batch.reach - EDGE_TOKENS
        posteriors, lags = [], []
        for other, (n_tokens, own_power, power) in zip(others, self.sampling, strict=True):
            near_BELA = np.moveaxis(sliding_window_view(other, 2 * max_lag + 1, axis=1), -1, 2)
            product = np.einsum("bea,bela->bel", own, near_BELA)
            square = np.square(near_BELA).sum(-1)
            own_square = np.square(own).sum(-1)[..., None]
            sums = (product, own_square, square)
            if self.causal:
                product, own_square, square = (np.cumsum(x, axis=1) for x in sums)
                n_moments = np.arange(1, own.shape[1] + 1)[:, None]
            else:
                product, own_square, square = (x.sum(axis=1, keepdims=True) for x in sums)
                n_moments = np.full((1, 1), own.shape[1])
            n_axes = own.shape[-1]
            # One uncorrelated sample is added, for two samples always correlate perfectly.
            prior = n_tokens * n_axes
            r = product / np.sqrt((own_square + prior * own_power) * (square + prior * power))
            log_lik = -0.5 * n_moments * n_axes / n_tokens * np.log1p(-(np.clip(r, 0, 0.999) ** 2))
            weight = np.exp(log_lik - log_lik.max(axis=-1, keepdims=True))
            posterior = np.broadcast_to(
                weight / weight.sum(axis=-1, keepdims=True), (*own.shape[:2], r.shape[-1])
            )
            posteriors.append(posterior.astype(np.float32))
            lags.append(posterior.argmax(axis=-1) - max_lag)
        lag_BEC = np.stack(lags, axis=-1) if lags else np.zeros((*own.shape[:2], 0), dtype=np.int64)
        return WindowAlignment(lag_BEC, posteriors)

    def state(self) -> dict[str, np.ndarray]:
        """Arrays by name, for a checkpoint."""
        out = {"align.sampling": self.sampling}
        for k, (lags, ridge) in enumerate(zip(self.lags, self.ridges, strict=True)):
            out |= {f"align{k}.lags": lags} | ridge_state(ridge, f"align{k}.")
        return out


def _known_lag(batch: Batch) -> np.ndarray:
    """Known lags in whole tokens, zero where a window has none; shape (B, E, C)."""
    lag = np.rint(filled(batch.lag)).astype(np.int64)
    return np.pad(lag, ((0, 0), (EDGE_TOKENS, EDGE_TOKENS), (0, 0)), mode="edge")


def _autocorrelation(x_BTA: np.ndarray) -> np.ndarray:
    """Over sequences and axes together, up to a quarter of their length."""
    n = x_BTA.shape[1]
    power = np.mean(x_BTA**2)
    return np.array([np.mean(x_BTA[:, k:] * x_BTA[:, : n - k]) / power for k in range(max(2, n // 4))])


def aligned_columns(
    batch: Batch, clocks: list[int], lags: list[np.ndarray], lag_BEC: np.ndarray, scales: list[Scale]
) -> np.ndarray:
    """Lagged tokens of some clocks at the moments of the windows, other clocks shifted by their lag."""
    n_steps = batch.movement.shape[1]
    steps = batch.reach + np.arange(n_steps)
    lag_BTC = lag_BEC[:, EDGE_TOKENS : EDGE_TOKENS + n_steps]
    values = standard(batch, scales)
    return lagged(
        [values[k] for k in clocks], lags, [steps + lag_BTC[..., k - 1] if k else steps for k in clocks]
    )


def shifted(batch: Batch, lag_BEC: np.ndarray) -> Batch:
    """The same windows with other clocks shifted by their lag, and a context of `EDGE_TOKENS`."""
    spare = batch.reach - EDGE_TOKENS
    inside = spare + np.arange(lag_BEC.shape[1])
    rows = np.arange(len(lag_BEC))[:, None]
    places = [np.broadcast_to(inside, lag_BEC.shape[:2]), *np.moveaxis(inside[:, None] + lag_BEC, -1, 0)]
    return replace(
        batch,
        values=tuple(x[rows, at] for x, at in zip(batch.values, places, strict=True)),
        present=tuple(p[rows, at] for p, at in zip(batch.present, places, strict=True)),
        reach=EDGE_TOKENS,
    )


def fit_aligner(
    X: Windows,
    target: np.ndarray,
    check: Windows,
    check_target: np.ndarray,
    *,
    scales: list[Scale],
    movement: Scale,
    context_s: float,
    causal: bool,
    n_draws: int,
    rng: np.random.Generator,
) -> tuple[Aligner, Batch, np.ndarray]:
    """An aligner, the windows it was fitted on, and their movement in standard units."""
    rows = some_windows(X, n_draws)
    batch = X.batch(rows, rng=rng)
    scaled, check_scaled = (movement.to_standard(y) for y in (target[rows], check_target))
    aligner = Aligner(min(round(context_s / X.tokens.token_s), EDGE_TOKENS), causal)
    aligner.fit(batch, scaled, check.batch(slice(None)), check_scaled, scales)
    return aligner, batch, scaled


def with_lags(movement: np.ndarray, X: Windows, aligner: Aligner, scales: list[Scale]) -> Prediction:
    """Movement of some windows together with the lags by which they were shifted."""
    others = [c.clock for c in X.tokens.clocks[1:]]
    if not others:
        return Prediction(movement)
    found = [aligner.align(X.batch(slice(k, k + CHUNK)), scales) for k in range(0, len(X), CHUNK)]
    own = slice(EDGE_TOKENS, EDGE_TOKENS + X.n_steps)
    return Prediction(
        movement,
        {c: np.concatenate([f.posterior[k][:, own] for f in found]) for k, c in enumerate(others)},
        {c: np.concatenate([f.lag_BEC[:, own, k] for f in found]) + X.max_lag for k, c in enumerate(others)},
        np.arange(-X.max_lag, X.max_lag + 1) * X.tokens.token_s,
    )


class AlignRidgeDecoder(RidgeDecoder):
    """Align, then ridge: other clocks are shifted by the lag estimated in each window, and ridge reads all of them.

    With injected lags, single-clock decoders learn from tokens shifted by the injected lag; the ridge that decodes
    learns from tokens shifted by the lags estimated in training windows. Where no lag is known, the lag at which the
    other clock is decoded best counts as zero. For parameters see `RidgeDecoder`; `context_s` is the reach of every
    ridge, before and after the shift.
    """

    name = "align-ridge"

    @property
    def n_parameters_(self) -> int:
        """Learned numbers."""
        return super().n_parameters_ + sum(r.weights.size + r.intercept.size for r in self.aligner_.ridges)

    def fit(
        self, X: Windows, y: np.ndarray | None = None, *, validation: Windows | None = None
    ) -> AlignRidgeDecoder:
        """Fit the aligner, shift the clocks, and solve as ridge does."""
        X, target, check, check_target = self.training_parts(X, y, validation)
        self.learn_scales(X, target)
        self.aligner_, batch, scaled = fit_aligner(
            X,
            target,
            check,
            check_target,
            scales=self.input_scales_,
            movement=self.movement_scale_,
            context_s=self.context_s,
            causal=self.causal,
            n_draws=self.n_draws,
            rng=np.random.default_rng([self.seed, 2]),
        )
        near = (-self.aligner_.context, 0 if self.causal else self.aligner_.context)
        self.lags_ = lags_between([near] * len(self.clocks_), [len(f) for f in self.features_])
        check_scaled = self.movement_scale_.to_standard(check_target)
        known, check_known = (np.isfinite(y).all(axis=-1) for y in (scaled, check_scaled))
        self._solve(
            self._design(batch)[known],
            scaled[known],
            self._design(check.batch(slice(None)))[check_known],
            check_scaled[check_known],
        )
        return self

    def decode(self, X: Windows) -> Prediction:
        """Movement of some windows, and the lag estimated in each."""
        return with_lags(super().decode(X).movement, X, self.aligner_, self.input_scales_)

    def _design(self, batch: Batch) -> np.ndarray:
        lag_BEC = self.aligner_.align(batch, self.input_scales_).lag_BEC
        return aligned_columns(batch, list(range(len(self.lags_))), self.lags_, lag_BEC, self.input_scales_)

    def state(self) -> dict[str, np.ndarray]:
        return super().state() | self.aligner_.state()

    def restore(self, state: dict[str, np.ndarray]) -> None:
        super().restore(state)
        self.aligner_ = restored_aligner(state, len(self.clocks_), self.causal)


class AlignEarlyDecoder(EarlyDecoder):
    """Align, then early fusion: other clocks are shifted by the lag estimated in each window, then convolved together.

    Parameters
    ----------
    context_s : float
        Reach of the single-clock ridges whose decodes are correlated, seconds.
    n_draws : int
        Draws of the injected lag to train them on.
    **more
        See `EarlyDecoder`.
    """

    name = "align-early"

    def __init__(self, *, context_s: float = 0.5, n_draws: int = 2, **more: Any) -> None:
        super().__init__(**more)
        self.context_s = context_s
        self.n_draws = n_draws

    @property
    def n_parameters_(self) -> int:
        """Learned numbers."""
        return super().n_parameters_ + sum(r.weights.size + r.intercept.size for r in self.aligner_.ridges)

    def build_network(self, n_inputs: list[int], n_axes: int, max_lag: int) -> EarlyNetwork:
        return super().build_network(n_inputs, n_axes, 0)  # its inputs have been shifted

    def train(
        self, X: Windows, target: np.ndarray, validation: Windows, validation_target: np.ndarray
    ) -> None:
        """Fit the aligner, then the network on windows shifted by it."""
        self.aligner_, _, _ = fit_aligner(
            X,
            target,
            validation,
            validation_target,
            scales=self.input_scales_,
            movement=self.movement_scale_,
            context_s=self.context_s,
            causal=self.causal,
            n_draws=self.n_draws,
            rng=np.random.default_rng([self.seed, 2]),
        )
        super().train(X, target, validation, validation_target)

    def network_inputs(self, batch: Batch) -> tuple[list[torch.Tensor], list[torch.Tensor], int]:
        return super().network_inputs(shifted(batch, self.aligner_.align(batch, self.input_scales_).lag_BEC))

    def decode(self, X: Windows) -> Prediction:
        """Movement of some windows, and the lag estimated in each."""
        return with_lags(super().decode(X).movement, X, self.aligner_, self.input_scales_)

    def state(self) -> dict[str, np.ndarray]:
        return super().state() | self.aligner_.state()

    def restore(self, state: dict[str, np.ndarray]) -> None:
        super().restore({k: v for k, v in state.items() if not k.startswith("align")})
        self.aligner_ = restored_aligner(state, len(self.clocks_), self.causal)


def restored_aligner(state: dict[str, np.ndarray], n_clocks: int, causal: bool) -> Aligner:
    """The inverse of `Aligner.state`."""
    lags = [state[f"align{k}.lags"] for k in range(n_clocks)]
    return Aligner(
        int(-lags[0].min()),
        causal,
        lags,
        [restored_ridge(state, f"align{k}.") for k in range(n_clocks)],
        state["align.sampling"],
    )
