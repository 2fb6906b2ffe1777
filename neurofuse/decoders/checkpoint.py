"""In: settings and arrays of a fitted model, or a folder. Out: the folder that holds them, or what it holds."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from importlib.metadata import version
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator

from neurofuse.decoders.scale import Scale
from neurofuse.errors import NeurofuseError
from neurofuse.html import card as html_card

CHECKPOINT_LAYOUT = "neurofuse-decoder-2"
# How a decoder was run, not what it is: left out of a checkpoint, which may be read on another machine.
NOT_KEPT = ("device", "progress")
# Sizes and names that `Decoder.learn_scales` sets together with the scales.
LEARNED = ("features", "clocks", "n_axes", "token_s", "max_lag")


def write_checkpoint(
    folder: str | Path, config: dict[str, Any], state: dict[str, np.ndarray], card: str
) -> Path:
    """Write arrays (safetensors), `config.json` and a model card.

    The folder appears whole or not at all, and replaces an older checkpoint.

    Raises
    ------
    NeurofuseError
        If the folder exists and is not a checkpoint, or cannot be written.
    """
    from safetensors.numpy import save_file

    folder = Path(folder)
    if folder.exists() and not (folder / "config.json").exists():
        raise NeurofuseError(f"'{folder}' exists and is not a neurofuse checkpoint; choose another folder.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".partial-"))
    except OSError as error:
        raise NeurofuseError(f"cannot write '{folder}': {error.strerror or error}.") from None
    try:
        save_file({k: np.ascontiguousarray(v) for k, v in state.items()}, partial / "weights.safetensors")
        (partial / "config.json").write_text(
            json.dumps({"layout": CHECKPOINT_LAYOUT} | config, indent=2), encoding="utf-8"
        )
        (partial / "README.md").write_text(card, encoding="utf-8")
        partial.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def read_checkpoint(folder: str | Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Settings and arrays of a folder written by `write_checkpoint`.

    Raises
    ------
    NeurofuseError
        If the folder does not hold a checkpoint of this version's layout.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    folder = Path(folder)
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        state = load_file(folder / "weights.safetensors")
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, SafetensorError) as error:
        raise NeurofuseError(
            f"'{folder}' is not a neurofuse checkpoint ({error}); give the folder that holds config.json and "
            "weights.safetensors."
        ) from None
    layout = config.get("layout")
    if layout == "neurofuse-decoder-1":
        raise NeurofuseError(
            f"'{folder}' was written by an earlier version of neurofuse, whose weights have other names; fit the "
            "decoder again with `neurofuse decode`."
        )
    if layout != CHECKPOINT_LAYOUT:
        raise NeurofuseError(f"'{folder}' has the layout {layout!r}, not {CHECKPOINT_LAYOUT!r}.")
    return config, state


class Checkpointed(BaseEstimator):
    """The part of `Decoder` that is about its settings, its checkpoint, and how a notebook shows it."""

    name = ""
    features_: list[list[str]]
    clocks_: list[str]
    n_axes_: int
    token_s_: float
    max_lag_: int
    input_scales_: list[Scale]
    movement_scale_: Scale

    @classmethod
    def options(cls) -> dict[str, Any]:
        """Its settings and their defaults by name, those of the classes that it extends among them."""
        return {
            name: p.default
            for kind in reversed(cls.__mro__)
            if issubclass(kind, Checkpointed) and "__init__" in vars(kind)
            for name, p in sorted(signature(vars(kind)["__init__"]).parameters.items())
            if p.kind is Parameter.KEYWORD_ONLY
        }

    @classmethod
    def _get_param_names(cls) -> list[str]:
        return sorted(cls.options())  # scikit-learn's own reads one __init__ only

    def state(self) -> dict[str, np.ndarray]:
        """What was learned, arrays by name; settings and scales are kept without it."""
        raise TypeError(f"{type(self).__name__} does not define state.")

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Inverse of `state`; settings and scales are there already."""
        raise TypeError(f"{type(self).__name__} does not define restore.")

    def save_pretrained(self, folder: str | Path, *, card: str = "") -> Path:
        """Write the fitted decoder as a folder: weights, settings and a model card; see `write_checkpoint`."""
        scales = {f"input{k}": s for k, s in enumerate(self.input_scales_)} | {
            "movement": self.movement_scale_
        }
        state = dict(self.state())
        for name, scale in scales.items():
            state |= {f"scale.{name}.mean": scale.mean, f"scale.{name}.std": scale.std}
        config = {
            "version": version("neurofuse"),
            "decoder": self.name,
            "parameters": {k: v for k, v in self.get_params().items() if k not in NOT_KEPT},
        } | {name: getattr(self, f"{name}_") for name in LEARNED}
        return write_checkpoint(folder, config, state, card or self._model_card())

    def copy_scales(self, other: Checkpointed) -> None:
        """Take over scales and sizes of a decoder that was fitted on the same windows."""
        for name in (*(f"{x}_" for x in LEARNED), "input_scales_", "movement_scale_"):
            setattr(self, name, getattr(other, name))

    def restore_checkpoint(self, config: dict[str, Any], state: dict[str, np.ndarray]) -> None:
        """Take over what a checkpoint holds; the settings are given already."""
        for name in LEARNED:
            setattr(self, f"{name}_", config[name])
        *self.input_scales_, self.movement_scale_ = (
            Scale(state[f"scale.{name}.mean"], state[f"scale.{name}.std"])
            for name in (*(f"input{k}" for k in range(len(self.clocks_))), "movement")
        )
        self.restore({k: v for k, v in state.items() if not k.startswith("scale.")})

    def _facts(self) -> list[tuple[str, object]]:
        if not hasattr(self, "features_"):
            return []
        return [
            *(
                (f"clock {c}", f"{len(f)} features")
                for c, f in zip(self.clocks_, self.features_, strict=True)
            ),
            ("movement axes", self.n_axes_),
            ("tokens", f"{1000 * self.token_s_:g} ms"),
            ("lags searched", f"+-{self.max_lag_ * self.token_s_:g} s"),
            ("weights", getattr(self, "n_parameters_", None)),
        ]

    def _model_card(self) -> str:
        facts = [f"- {name}: {value}" for name, value in self._facts() if value is not None]
        settings = [f"- `{name}`: {value}" for name, value in self.get_params().items()]
        end = "Read it back with `neurofuse.Decoder.from_pretrained(folder)`."
        parts = ([f"# neurofuse decoder `{self.name}`"], facts, ["Settings:"], settings, [end])
        return "\n\n".join("\n".join(lines) for lines in parts) + "\n"

    def _repr_html_(self) -> str:
        return html_card(
            f"Decoder '{self.name}'{'' if self._facts() else ', not fitted'}",
            facts=self._facts(),
            folded=("settings", [f"{k}: {v}" for k, v in self.get_params().items()]),
        )

    def _repr_mimebundle_(self, **_: object) -> dict[str, str]:
        # scikit-learn's own would show a diagram of a pipeline.
        return {"text/plain": repr(self), "text/html": self._repr_html_()}
