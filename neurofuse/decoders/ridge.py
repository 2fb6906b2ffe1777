"""In: tokens of all clocks. Out: movement as a ridge regression on lagged tokens, the field's first resort."""

from __future__ import annotations

import numpy as np
from scipy.linalg import solve

from neurofuse.decoders.contract import Decoded, Decoder, hold_back
from neurofuse.recording import NeurofuseError
from neurofuse.windows import Windows

# Penalties tried on the validation stretch.
PENALTIES = tuple(10.0 ** np.arange(0, 7))
# Columns beyond this make the normal equations slow without making the decoder better.
MOST_COLUMNS = 2500


class RidgeDecoder(Decoder):
    """Ridge regression on the tokens around each moment, on both sides unless causal.

    The anchor's tokens are taken up to `context_s` away, those of other clocks up to the largest lag, thinned
    evenly where there would be more columns than help. With injected lags the training windows are drawn
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
        Of the draws.
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
        return int(self.weights_.size + self.intercept_.size)

    def fit(
        self, X: Windows, y: np.ndarray | None = None, *, validation: Windows | None = None
    ) -> RidgeDecoder:
        """Solve for every penalty, keep the one that does best on the validation stretch."""
        if len(X) == 0:
            raise NeurofuseError("there are no training windows; the recording is shorter than one window.")
        target = self._target(X, y)
        if validation is None:
            X, check, target, check_target = hold_back(X, target)
        else:
            check, check_target = validation, self._target(validation, None)
        self._learn_scales(X, target)
        self.lags_ = self._choose_lags(X)
        rng = np.random.default_rng([self.seed, 2])
        draws = range(self.n_draws if X.jitter is not None and len(X.tokens.clocks) > 1 else 1)
        # Windows overlap: a token is taken once a draw, from the first window that holds it.
        seen = [self._rows(X, target, rng=rng if k else None, once=True) for k in draws]
        design, wanted = (np.concatenate(x) for x in zip(*seen, strict=True))
        held_design, held = self._rows(check, check_target)
        # The normal equations are set up once; the penalties differ in their diagonal alone.
        middle, offset = design.mean(axis=0), wanted.mean(axis=0)
        design -= middle
        gram, moment = design.T @ design, design.T @ (wanted - offset)
        least = np.inf
        for penalty in PENALTIES:
            weights = solve(gram + penalty * np.eye(len(gram), dtype=gram.dtype), moment, assume_a="pos")
            error = float(np.mean(((held_design - middle) @ weights + offset - held) ** 2))
            if error < least:
                least, self.penalty_ = error, penalty
                self.weights_ = weights.T.astype(np.float32)
                self.intercept_ = (offset - middle @ weights).astype(np.float32)
        return self

    def decode(self, X: Windows) -> Decoded:
        """Movement of some windows."""
        self._check_like_training(X)
        out = []
        for k in range(0, len(X), 32):
            said = self._design(X, slice(k, k + 32)) @ self.weights_.T + self.intercept_
            out.append(said * self.movement_scale_.std + self.movement_scale_.mean)
        return Decoded(np.concatenate(out).astype(np.float32))

    def _choose_lags(self, X: Windows) -> list[list[int]]:
        """Lags in tokens of each clock, as many as the columns allow."""
        reach = [
            min(round(self.context_s / X.tokens.token_s), X.reach),
            *[X.max_lag] * (len(X.tokens.clocks) - 1),
        ]
        full = [np.arange(-r, (0 if self.causal and k == 0 else r) + 1) for k, r in enumerate(reach)]
        columns = sum(len(lags) * c.n_features for lags, c in zip(full, X.tokens.clocks, strict=True))
        thin = max(1, int(np.ceil(columns / MOST_COLUMNS)))
        return [[int(v) for v in lags if v % thin == 0] for lags in full]

    def _design(self, X: Windows, rows: slice, rng: np.random.Generator | None = None) -> np.ndarray:
        batch = X.batch(rows, rng=rng)
        steps = batch.reach + np.arange(X.n_steps)
        columns = []
        for x, present, scale, lags in zip(
            batch.values, batch.present, self.input_scales_, self.lags_, strict=True
        ):
            scaled = (x - scale.mean) / scale.std * present[..., None]
            columns.append(scaled[:, steps[:, None] + np.array(lags)].reshape(len(x), X.n_steps, -1))
        return np.concatenate(columns, axis=-1)

    def _rows(
        self, X: Windows, target: np.ndarray, *, rng: np.random.Generator | None = None, once: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        keep = np.isfinite(target).all(axis=-1)
        if once and X.jitter is None:
            token = X.first[:, None] + np.arange(X.n_steps)
            first_seen = np.zeros(token.size, dtype=bool)
            first_seen[np.unique(token, return_index=True)[1]] = True
            keep &= first_seen.reshape(token.shape)
        elif once:
            keep[1:] &= (np.arange(len(keep))[1:] % 2 == 0)[:, None]  # half-overlapping windows say enough
        design = [self._design(X, slice(k, k + 32), rng)[keep[k : k + 32]] for k in range(0, len(X), 32)]
        scaled = (target - self.movement_scale_.mean) / self.movement_scale_.std
        return np.concatenate(design), scaled[keep]

    def _state(self) -> dict[str, np.ndarray]:
        state = {"weights": self.weights_, "intercept": self.intercept_, "penalty": np.array([self.penalty_])}
        return state | {f"lags{k}": np.array(lags, dtype=np.int64) for k, lags in enumerate(self.lags_)}

    def _restore(self, state: dict[str, np.ndarray]) -> None:
        self.weights_, self.intercept_ = state["weights"], state["intercept"]
        self.penalty_ = float(state["penalty"][0])
        self.lags_ = [state[f"lags{k}"].tolist() for k in range(len(self.clocks_))]
