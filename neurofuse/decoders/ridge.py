"""In: tokens of all clocks. Out: movement by ridge regression on lagged tokens, the linear decoder of the field."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import solve

from neurofuse.decoders.base import Decoder, Prediction
from neurofuse.decoders.scale import standard
from neurofuse.windows import Batch, Windows

# Penalties tried on the validation stretch.
PENALTIES = tuple(10.0 ** np.arange(0, 7))
# Columns beyond this make the normal equations slow without making the decoder better.
MOST_COLUMNS = 2500
# Windows laid out as columns at once; bounds memory, does not change numbers.
CHUNK = 32


def lagged(
    values: Sequence[np.ndarray], lags: Sequence[np.ndarray], steps: Sequence[np.ndarray]
) -> np.ndarray:
    """Tokens around each moment side by side.

    Parameters
    ----------
    values : sequence of ndarray, shape (B, W, n_features)
        One per clock.
    lags : sequence of int ndarray
        Of each clock, in tokens.
    steps : sequence of int ndarray, shape (T,) or (B, T)
        Where in `values` each moment lies, for each clock.

    Returns
    -------
    ndarray, shape (B, T, n_columns)
    """
    columns = []
    for x, lag, step in zip(values, lags, steps, strict=True):
        at = step[..., None] + lag
        rows = np.arange(len(x)).reshape(-1, *[1] * (at.ndim - 1)) if at.ndim == 3 else slice(None)
        columns.append(x[rows, at].reshape(len(x), step.shape[-1], -1))
    return np.concatenate(columns, axis=-1)


def lags_between(ranges: Sequence[tuple[int, int]], n_features: Sequence[int]) -> list[np.ndarray]:
    """All lags of each clock's range, both ends included; thinned evenly where there are too many columns."""
    full = [np.arange(lo, hi + 1) for lo, hi in ranges]
    columns = sum(len(lags) * n for lags, n in zip(full, n_features, strict=True))
    thin = max(1, int(np.ceil(columns / MOST_COLUMNS)))
    return [lags[lags % thin == 0] for lags in full]


def some_windows(X: Windows, n_draws: int) -> np.ndarray:
    """Row numbers of windows that overlap by half at most; `n_draws` times where each draw has another lag."""
    kept: list[int] = []
    for k in np.argsort(X.first, kind="stable"):
        if not kept or X.first[k] - X.first[kept[-1]] >= X.n_steps // 2:
            kept.append(int(k))
    return np.tile(kept, n_draws if X.jitter is not None and len(X.tokens.clocks) > 1 else 1)


@dataclass(frozen=True, eq=False)
class Ridge:
    """A fitted linear map from columns to movement in standard units."""

    weights: np.ndarray  # (n_axes, n_columns)
    intercept: np.ndarray  # (n_axes,)
    penalty: float

    def __call__(self, design: np.ndarray) -> np.ndarray:
        """Movement of some rows of columns."""
        return design @ self.weights.T + self.intercept


def fit_ridge(
    design: np.ndarray, target: np.ndarray, check_design: np.ndarray, check_target: np.ndarray
) -> Ridge:
    """Solve for every penalty, keep the one of least error on the validation rows. Centres `design` in place."""
    # The normal equations are set up once; the penalties differ in their diagonal only.
    middle, offset = design.mean(axis=0), target.mean(axis=0)
    design -= middle
    gram, moment = design.T @ design, design.T @ (target - offset)
    best, least = None, np.inf
    for penalty in PENALTIES:
        weights = solve(gram + penalty * np.eye(len(gram), dtype=gram.dtype), moment, assume_a="pos")
        error = float(np.mean(((check_design - middle) @ weights + offset - check_target) ** 2))
        if best is None or error < least:
            intercept = (offset - middle @ weights).astype(np.float32)
            best, least = Ridge(weights.T.astype(np.float32), intercept, float(penalty)), error
    assert best is not None
    return best


class RidgeDecoder(Decoder):
    """Ridge regression on the tokens around each moment, on both sides unless causal.

    The anchor's tokens are taken up to `context_s` away, those of other clocks up to the largest lag, thinned
    evenly where there would be more columns than are useful. With injected lags the training windows are drawn
    `n_draws` times.

    Parameters
    ----------
    context_s : float
        Reach of the anchor's lags, seconds.
    n_draws : int
        Draws of the injected lag to train on.
    causal : bool
        Use tokens up to the present only.
    seed : int
        Random seed of the draws.
    """

    name = "ridge"

    def __init__(
        self, *, context_s: float = 0.5, n_draws: int = 2, causal: bool = False, seed: int = 0
    ) -> None:
        self.context_s = context_s
        self.n_draws = n_draws
        self.causal = causal
        self.seed = seed

    @property
    def n_parameters_(self) -> int:
        """Learned numbers."""
        return int(self.ridge_.weights.size + self.ridge_.intercept.size)

    def fit(
        self, X: Windows, y: np.ndarray | None = None, *, validation: Windows | None = None
    ) -> RidgeDecoder:
        """Solve for every penalty, keep the one of least error on validation windows."""
        X, target, check, check_target = self.training_parts(X, y, validation)
        self.learn_scales(X, target)
        self.lags_ = self._choose_lags(X)
        rng = np.random.default_rng([self.seed, 2])
        draws = range(self.n_draws if X.jitter is not None and len(X.tokens.clocks) > 1 else 1)
        # Windows overlap: a token is taken once per draw, from the first window that holds it.
        parts = [self._rows(X, target, rng=rng if k else None, once=True) for k in draws]
        design, scaled = (np.concatenate(x) for x in zip(*parts, strict=True))
        self._solve(design, scaled, *self._rows(check, check_target))
        return self

    def decode(self, X: Windows) -> Prediction:
        """Movement of some windows."""
        self.check_windows(X)
        out = []
        for k in range(0, len(X), CHUNK):
            scaled = self._apply(self._design(X.batch(slice(k, k + CHUNK))))
            out.append(self.movement_scale_.from_standard(scaled))
        return Prediction(np.concatenate(out).astype(np.float32))

    def _solve(
        self, design: np.ndarray, target: np.ndarray, check_design: np.ndarray, check_target: np.ndarray
    ) -> None:
        self.ridge_ = fit_ridge(design, target, check_design, check_target)

    def _apply(self, design: np.ndarray) -> np.ndarray:
        return self.ridge_(design)

    def _context(self, X: Windows) -> int:
        """Reach of the anchor's lags in tokens, within what windows carry beyond the largest lag."""
        return min(round(self.context_s / X.tokens.token_s), X.reach)

    def _choose_lags(self, X: Windows) -> list[np.ndarray]:
        near = self._context(X)
        ranges = [
            (-near, 0 if self.causal else near),
            *[(-X.max_lag, X.max_lag)] * (len(X.tokens.clocks) - 1),
        ]
        return lags_between(ranges, [c.n_features for c in X.tokens.clocks])

    def _design(self, batch: Batch) -> np.ndarray:
        """Columns of every moment of some windows."""
        steps = batch.reach + np.arange(batch.movement.shape[1])
        return lagged(standard(batch, self.input_scales_), self.lags_, [steps] * len(self.lags_))

    def _rows(
        self, X: Windows, target: np.ndarray, *, rng: np.random.Generator | None = None, once: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        keep = np.isfinite(target).all(axis=-1)
        if once and X.jitter is None:
            token = X.first[:, None] + np.arange(X.n_steps)
            is_first = np.zeros(token.size, dtype=bool)
            is_first[np.unique(token, return_index=True)[1]] = True
            keep &= is_first.reshape(token.shape)
        elif once:
            # Windows that overlap are nearly the same data.
            keep[1:] &= (np.arange(len(keep))[1:] % 2 == 0)[:, None]
        design = [
            self._design(X.batch(slice(k, k + CHUNK), rng=rng))[keep[k : k + CHUNK]]
            for k in range(0, len(X), CHUNK)
        ]
        return np.concatenate(design), self.movement_scale_.to_standard(target)[keep]

    def state(self) -> dict[str, np.ndarray]:
        return ridge_state(self.ridge_) | {f"lags{k}": lags for k, lags in enumerate(self.lags_)}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        self.ridge_ = restored_ridge(state)
        self.lags_ = [state[f"lags{k}"] for k in range(len(self.clocks_))]


def ridge_state(ridge: Ridge, prefix: str = "") -> dict[str, np.ndarray]:
    """Arrays of a ridge, for a checkpoint."""
    return {
        f"{prefix}weights": ridge.weights,
        f"{prefix}intercept": ridge.intercept,
        f"{prefix}penalty": np.array([ridge.penalty]),
    }


def restored_ridge(state: dict[str, np.ndarray], prefix: str = "") -> Ridge:
    """The inverse of `ridge_state`."""
    return Ridge(state[f"{prefix}weights"], state[f"{prefix}intercept"], float(state[f"{prefix}penalty"][0]))
