"""In: training windows. Out: a decoder. The interface that every decoder implements.

`fit(X, y=None)`, `predict(X)`, `score(X, y=None)` follow scikit-learn, with `Windows` as X and movement of
shape (n_windows, n_steps, n_axes) as y, by default the windows' own. `decode(X)` returns the movement
together with the lag posteriors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
from sklearn.metrics import r2_score

from neurofuse.decoders.checkpoint import Checkpointed
from neurofuse.decoders.scale import Scale, scales_of
from neurofuse.errors import NeurofuseError
from neurofuse.windows import Windows

# Share of the training windows held back, in time order, when no validation windows are given.
VALIDATION_SHARE = 0.15


@dataclass(frozen=True)
class LagRates:
    """How a hidden lag moves.

    Parameters
    ----------
    drift : float
        Standard deviation of its random walk after one second, s per root second.
    jumps : float
        Jumps per second.
    """

    drift: float
    jumps: float


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a decoder predicts for some windows.

    Parameters
    ----------
    movement : float32 ndarray, shape (n_windows, n_steps, n_axes)
        In the unit of the movement.
    posterior : dict of clock -> float32 ndarray, shape (n_windows, n_steps, n_lags)
        Probability of each lag; empty for decoders that estimate none.
    path : dict of clock -> int ndarray, shape (n_windows, n_steps)
        Most probable sequence of lags, as indices into `lag_s`.
    lag_s : ndarray, shape (n_lags,)
        The lags searched, seconds.
    p_matched : dict of clock -> float32 ndarray, shape (n_windows, n_steps)
        Probability that the clock's streams match the anchor's at all; `posterior` is given that they do.
    rates : dict of clock -> LagRates
        How the lag was taken to move, for decoders that track it.
    """

    movement: np.ndarray
    posterior: dict[str, np.ndarray] = field(default_factory=dict)
    path: dict[str, np.ndarray] = field(default_factory=dict)
    lag_s: np.ndarray = field(default_factory=lambda: np.empty(0))
    p_matched: dict[str, np.ndarray] = field(default_factory=dict)
    rates: dict[str, LagRates] = field(default_factory=dict)


class Decoder(Checkpointed):
    """Base of every decoder: a subclass defines a `name`, `fit`, `decode`, `state` and `restore`.

    Settings are keyword-only arguments of `__init__`, stored under their own names as given; what is learned is stored
    under names that end in `_`.
    """

    # Reads a folder written by `save_pretrained`; `neurofuse.decoders.registry` puts `load_decoder` here, for it
    # imports every decoder and this module imports none.
    from_pretrained: ClassVar[Callable[[str | Path], Decoder]]

    # What a subclass defines.

    def fit(self, X: Windows, y: np.ndarray | None = None, *, validation: Windows | None = None) -> Decoder:
        """Learn from training windows; begins with `training_parts` and `learn_scales`, returns the decoder itself.

        Parameters
        ----------
        X : Windows
        y : ndarray, shape (n_windows, n_steps, n_axes), optional
            Movement; by default the windows' own.
        validation : Windows, optional
            A later stretch to stop and to choose on; by default the last 15 % of the training windows.
        """
        raise TypeError(f"{type(self).__name__} does not define fit.")

    def decode(self, X: Windows) -> Prediction:
        """Movement and lag posteriors of some windows; begins with `check_windows`."""
        raise TypeError(f"{type(self).__name__} does not define decode.")

    # What a subclass uses, and may change.

    def training_parts(
        self, X: Windows, y: np.ndarray | None, validation: Windows | None
    ) -> tuple[Windows, np.ndarray, Windows, np.ndarray]:
        """Training windows, their movement, validation windows, their movement.

        Without validation windows the last `VALIDATION_SHARE` of the training windows are taken.
        """
        target = self.target_of(X, y)
        if len(X) == 0:
            raise NeurofuseError("there are no training windows; the recording is shorter than one window.")
        if validation is not None:
            return X, target, validation, self.target_of(validation, None)
        X, validation, target, validation_target = hold_back(X, target)
        return X, target, validation, validation_target

    def target_of(self, X: Windows, y: np.ndarray | None) -> np.ndarray:
        """Movement to learn or to score against, shape (n_windows, n_steps, n_axes): y, or the windows' own.

        Raises
        ------
        NeurofuseError
            If X is not `Windows`, holds no movement and y is None, or y has another shape.
        """
        _check_type(X)
        if not X.tokens.axes and y is None:
            raise NeurofuseError("these windows hold no movement; load a recording with movement, or pass y.")
        target = X.movement if y is None else np.asarray(y, dtype=np.float32)
        if target.shape[:2] != X.shape:
            raise NeurofuseError(
                f"y must be (n_windows, n_steps, n_axes) = {(*X.shape, '...')}, got {target.shape}."
            )
        return target

    def learn_scales(self, X: Windows, target: np.ndarray) -> None:
        """Mean and spread of every feature and axis, and the sizes that `check_windows` compares."""
        self.input_scales_ = scales_of(X)
        self.movement_scale_ = Scale.of(target[np.isfinite(target).all(axis=-1)])
        self.features_ = [list(c.features) for c in X.tokens.clocks]
        self.clocks_ = [c.clock for c in X.tokens.clocks]
        self.n_axes_ = target.shape[-1]
        self.token_s_ = X.tokens.token_s
        self.max_lag_ = X.max_lag

    def check_windows(self, X: Windows) -> None:
        """Refuse what cannot be decoded.

        Raises
        ------
        NeurofuseError
            If X is not `Windows`, the decoder is not fitted, or the windows are unlike those it was fitted on.
        """
        _check_type(X)
        if not hasattr(self, "features_"):
            raise NeurofuseError(f"this {type(self).__name__} has not been fitted; call fit first.")
        found = [c.n_features for c in X.tokens.clocks]
        fitted = [len(f) for f in self.features_]
        if found != fitted:
            raise NeurofuseError(
                f"this decoder was fitted on {fitted} features for clocks {self.clocks_}, but the windows hold "
                f"{found}; load the same units and channels."
            )
        if abs(X.tokens.token_s - self.token_s_) > 1e-9 or X.max_lag != self.max_lag_:
            raise NeurofuseError(
                f"this decoder was fitted on tokens of {self.token_s_:g} s searched over {self.max_lag_} tokens, but "
                f"the windows have {X.tokens.token_s:g} s and {X.max_lag}; cut them alike."
            )

    # What every decoder has.

    def decode_session(self, X: Windows) -> Prediction:
        """`decode` for windows of one recording under one lag; decoders that track it use all of them for each."""
        return self.decode(X)

    def predict(self, X: Windows) -> np.ndarray:
        """Movement, shape (n_windows, n_steps, n_axes)."""
        return self.decode(X).movement

    def score(self, X: Windows, y: np.ndarray | None = None) -> float:
        """Mean R2 over axes, all tokens of all windows taken together."""
        target, movement = self.target_of(X, y), self.predict(X)
        known = np.isfinite(target).all(axis=-1)
        return float(r2_score(target[known], movement[known], multioutput="uniform_average"))


def _check_type(X: object) -> None:
    if not isinstance(X, Windows):
        raise NeurofuseError(
            f"X must be Windows, got {type(X).__name__}; make them with "
            "neurofuse.Windows.from_arrays([spikes, lfp], y, token_s=..., max_lag_s=...)."
        )


def hold_back(X: Windows, target: np.ndarray) -> tuple[Windows, Windows, np.ndarray, np.ndarray]:
    """Keep the last windows for validation; those whose context reaches into them are not trained on."""
    edge = X.first[int((1 - VALIDATION_SHARE) * (len(X) - 1))]
    train = np.flatnonzero(X.first + X.n_steps + X.reach <= edge)
    check = np.flatnonzero(X.first >= edge)
    if train.size == 0:
        raise NeurofuseError(
            f"{len(X)} training windows are too few to hold some back; pass validation windows."
        )
    return X[train], X[check], target[train], target[check]
