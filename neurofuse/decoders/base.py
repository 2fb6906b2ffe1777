"""In: training windows. Out: a decoder. What every member of the family promises, and how it is kept on disk.

`fit(X, y=None)`, `predict(X)`, `score(X, y=None)` follow scikit-learn, with `Windows` as X and movement of
shape (n_windows, n_steps, n_axes) as y, by default the windows' own. `decode(X)` returns the movement
together with the lag posteriors.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import dataclass, field
from importlib.metadata import version
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.metrics import r2_score

from neurofuse.html import card
from neurofuse.recording import NeurofuseError
from neurofuse.windows import Windows

LAYOUT = "neurofuse-decoder-1"
# Share of the training windows held back, in time order, when no validation windows are given.
HELD_BACK = 0.15
# How a decoder was run, not what it is: left out of a checkpoint, which may be read on another machine.
NOT_KEPT = ("device", "progress")


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
    """What a decoder says about some windows.

    Parameters
    ----------
    movement : float32 ndarray, shape (n_windows, n_steps, n_axes)
        In the unit of the movement.
    posterior : dict of clock -> float32 ndarray, shape (n_windows, n_steps, n_lags)
        Probability of each lag; empty for decoders that do not look for one.
    path : dict of clock -> int ndarray, shape (n_windows, n_steps)
        Most probable sequence of lags, as indices into `lag_s`.
    lag_s : ndarray, shape (n_lags,)
        The lags searched, seconds.
    match : dict of clock -> float32 ndarray, shape (n_windows, n_steps)
        Probability that the clock's streams match the anchor's at all; `posterior` is given that they do.
    rates : dict of clock -> LagRates
        How the lag was taken to move, for decoders that track it.
    """

    movement: np.ndarray
    posterior: dict[str, np.ndarray] = field(default_factory=dict)
    path: dict[str, np.ndarray] = field(default_factory=dict)
    lag_s: np.ndarray = field(default_factory=lambda: np.empty(0))
    match: dict[str, np.ndarray] = field(default_factory=dict)
    rates: dict[str, LagRates] = field(default_factory=dict)


@dataclass(frozen=True)
class Scale:
    """Mean and spread of one clock's features, or of movement, over the training stretch."""

    mean: np.ndarray
    std: np.ndarray

    @classmethod
    def of(cls, rows: np.ndarray) -> Scale:
        """From rows of samples; constant columns keep a spread of one."""
        std = rows.std(axis=0)
        return cls(rows.mean(axis=0).astype(np.float32), np.where(std > 1e-12, std, 1.0).astype(np.float32))


class Decoder(BaseEstimator):
    """The contract. Subclasses store their hyperparameters as given and set attributes ending in `_` in fit."""

    name = ""

    @classmethod
    def _get_param_names(cls) -> list[str]:
        # A subclass adds its own keywords to those of the class it extends; scikit-learn looks at one __init__.
        return sorted(
            {
                name
                for kind in cls.__mro__
                if issubclass(kind, Decoder) and "__init__" in vars(kind)
                for name, p in signature(vars(kind)["__init__"]).parameters.items()
                if p.kind is Parameter.KEYWORD_ONLY
            }
        )

    def _repr_html_(self) -> str:
        fitted = hasattr(self, "features_")
        sizes = zip(self.clocks_, self.features_, strict=True) if fitted else ()
        return card(
            f"Decoder '{self.name}'{'' if fitted else ', not fitted'}",
            facts=[
                *((f"clock {c}", f"{len(f)} features") for c, f in sizes),
                ("movement axes", self.n_axes_ if fitted else None),
                ("tokens", f"{1000 * self.token_s_:g} ms" if fitted else None),
                ("lags searched", f"+-{self.max_lag_ * self.token_s_:g} s" if fitted else None),
                ("weights", getattr(self, "n_parameters_", None)),
            ],
            folded=("settings", [f"{k}: {v}" for k, v in self.get_params().items()]),
        )

    def _repr_mimebundle_(self, **_: object) -> dict[str, str]:
        # scikit-learn's own would show a diagram of a pipeline.
        return {"text/plain": repr(self), "text/html": self._repr_html_()}

    def fit(self, X: Windows, y: np.ndarray | None = None, *, validation: Windows | None = None) -> Decoder:
        """Learn from training windows; `validation` is a later stretch for stopping and choosing."""
        raise TypeError(f"{type(self).__name__} does not say how it learns.")

    def decode(self, X: Windows) -> Prediction:
        """Movement and lag posteriors of some windows."""
        raise TypeError(f"{type(self).__name__} does not say how it decodes.")

    def decode_session(self, X: Windows) -> Prediction:
        """The same for windows of one recording under one lag: what one says about it helps its neighbours."""
        return self.decode(X)

    def predict(self, X: Windows) -> np.ndarray:
        """Movement, shape (n_windows, n_steps, n_axes)."""
        return self.decode(X).movement

    def score(self, X: Windows, y: np.ndarray | None = None) -> float:
        """Mean R2 over axes, all tokens of all windows taken together."""
        true = self._target(X, y)
        said = self.predict(X)
        there = np.isfinite(true).all(axis=-1)
        return float(r2_score(true[there], said[there], multioutput="uniform_average"))

    def _target(self, X: Windows, y: np.ndarray | None) -> np.ndarray:
        if not X.tokens.axes and y is None:
            raise NeurofuseError("these windows hold no movement; load a recording with movement, or pass y.")
        target = X.movement if y is None else np.asarray(y, dtype=np.float32)
        if target.shape[:2] != X.shape:
            raise NeurofuseError(
                f"y must be (n_windows, n_steps, n_axes) = {(*X.shape, '...')}, got {target.shape}."
            )
        return target

    def _learn_scales(self, X: Windows, target: np.ndarray) -> None:
        """Fit every scaling on the training windows alone."""
        per = X.tokens.per_token
        begin, stop = int(X.first.min()), int(X.first.max()) + X.n_steps
        self.input_scales_ = []
        for clock in X.tokens.clocks:
            values, present = clock.gather(per * np.arange(begin, stop)[None], per)
            if not present.any():
                raise NeurofuseError(f"clock '{clock.clock}' holds no data in the training stretch.")
            self.input_scales_.append(Scale.of(values[0][present[0]].astype(np.float64)))
        self.movement_scale_ = Scale.of(target[np.isfinite(target).all(axis=-1)].astype(np.float64))
        self.features_ = [list(c.features) for c in X.tokens.clocks]
        self.clocks_ = [c.clock for c in X.tokens.clocks]
        self.n_axes_ = target.shape[-1]
        self.token_s_ = X.tokens.token_s
        self.max_lag_ = X.max_lag

    def _check_like_training(self, X: Windows) -> None:
        if not hasattr(self, "features_"):
            raise NeurofuseError(f"this {type(self).__name__} has not been fitted; call fit first.")
        found = [c.n_features for c in X.tokens.clocks]
        wanted = [len(f) for f in self.features_]
        if found != wanted:
            raise NeurofuseError(
                f"this decoder was fitted on {wanted} features for clocks {self.clocks_}, but the windows hold "
                f"{found}; load the same units and channels."
            )
        if abs(X.tokens.token_s - self.token_s_) > 1e-9 or X.max_lag != self.max_lag_:
            raise NeurofuseError(
                f"this decoder was fitted on tokens of {self.token_s_:g} s searched over {self.max_lag_} tokens, but "
                f"the windows have {X.tokens.token_s:g} s and {X.max_lag}; cut them alike."
            )

    # What a subclass keeps beside its hyperparameters: arrays by name, and plain settings.
    def _state(self) -> dict[str, np.ndarray]:
        raise TypeError(f"{type(self).__name__} does not say what it learned.")

    def _restore(self, state: dict[str, np.ndarray]) -> None:
        raise TypeError(f"{type(self).__name__} does not say how it is restored.")

    def save_pretrained(self, folder: str | Path, *, card: str = "") -> Path:
        """Write the fitted decoder as a folder: weights (safetensors), `config.json`, and a model card.

        The folder appears whole or not at all, and replaces an older checkpoint of ours.

        Raises
        ------
        NeurofuseError
            If the folder exists and is not a checkpoint, or cannot be written.
        """
        from safetensors.numpy import save_file

        folder = Path(folder)
        if folder.exists() and not (folder / "config.json").exists():
            raise NeurofuseError(
                f"'{folder}' exists and is not a neurofuse checkpoint; choose another folder."
            )
        state = dict(self._state())
        for k, scale in enumerate(self.input_scales_):
            state |= {f"scale.input{k}.mean": scale.mean, f"scale.input{k}.std": scale.std}
        state |= {
            "scale.movement.mean": self.movement_scale_.mean,
            "scale.movement.std": self.movement_scale_.std,
        }
        config = {
            "layout": LAYOUT,
            "version": version("neurofuse"),
            "decoder": self.name,
            "parameters": {k: v for k, v in self.get_params().items() if k not in NOT_KEPT},
            "features": self.features_,
            "clocks": self.clocks_,
            "n_axes": self.n_axes_,
            "token_s": self.token_s_,
            "max_lag": self.max_lag_,
        }
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".partial-"))
        except OSError as error:
            raise NeurofuseError(f"cannot write '{folder}': {error.strerror or error}.") from None
        try:
            save_file({k: np.ascontiguousarray(v) for k, v in state.items()}, partial / "weights.safetensors")
            (partial / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
            (partial / "README.md").write_text(card or self._card(), encoding="utf-8")
            partial.chmod(0o755)
            if folder.exists():
                shutil.rmtree(folder)
            os.replace(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return folder

    @staticmethod
    def from_pretrained(folder: str | Path) -> Decoder:
        """Read a decoder written by `save_pretrained`, of whatever kind it is.

        Raises
        ------
        NeurofuseError
            If the folder does not hold a checkpoint of ours.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        from neurofuse.decoders.registry import make_decoder

        folder = Path(folder)
        try:
            config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            state = load_file(folder / "weights.safetensors")
        except (OSError, json.JSONDecodeError, UnicodeDecodeError, SafetensorError) as error:
            raise NeurofuseError(
                f"'{folder}' is not a neurofuse checkpoint ({error}); give the folder that holds config.json and "
                "weights.safetensors."
            ) from None
        if config.get("layout") != LAYOUT:
            raise NeurofuseError(f"'{folder}' has the layout {config.get('layout')!r}, not {LAYOUT!r}.")
        # JSON has lists where Python had tuples.
        parameters = {k: tuple(v) if isinstance(v, list) else v for k, v in config["parameters"].items()}
        decoder = make_decoder(config["decoder"], **parameters)
        decoder.features_, decoder.clocks_ = config["features"], config["clocks"]
        decoder.n_axes_, decoder.token_s_ = config["n_axes"], config["token_s"]
        decoder.max_lag_ = config["max_lag"]
        decoder.input_scales_ = [
            Scale(state[f"scale.input{k}.mean"], state[f"scale.input{k}.std"])
            for k in range(len(decoder.clocks_))
        ]
        decoder.movement_scale_ = Scale(state["scale.movement.mean"], state["scale.movement.std"])
        decoder._restore({k: v for k, v in state.items() if not k.startswith("scale.")})
        return decoder

    def _card(self) -> str:
        sizes = ", ".join(
            f"{c}: {len(f)} features" for c, f in zip(self.clocks_, self.features_, strict=True)
        )
        lines = [
            f"# neurofuse decoder `{self.name}`",
            "",
            f"Decodes {self.n_axes_} movement axes from tokens of {1000 * self.token_s_:g} ms ({sizes}).",
            f"Lags searched: +-{self.max_lag_ * self.token_s_:g} s.",
            "",
            "Settings:",
            "",
            *(f"- `{k}`: {v}" for k, v in self.get_params().items()),
            "",
            "Read it back with `neurofuse.Decoder.from_pretrained(folder)`.",
        ]
        return "\n".join(lines) + "\n"


def hold_back(X: Windows, target: np.ndarray) -> tuple[Windows, Windows, np.ndarray, np.ndarray]:
    """Keep the last windows for validation; those whose context reaches into them are not trained on."""
    edge = X.first[int((1 - HELD_BACK) * (len(X) - 1))]
    train = np.flatnonzero(X.first + X.n_steps + X.reach <= edge)
    check = np.flatnonzero(X.first >= edge)
    if train.size == 0:
        raise NeurofuseError(
            f"{len(X)} training windows are too few to hold some back; pass validation windows."
        )
    return X[train], X[check], target[train], target[check]
