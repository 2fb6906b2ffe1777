"""In: tokens of all clocks. Out: movement decoded from each clock by itself, and the decodes weighed: late fusion.

Every stream has the temporal convolution of `early` to itself. One stream alone is the bound that fusion has to beat.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from neurofuse.decoders.base import Prediction
from neurofuse.decoders.early import EarlyDecoder, EarlyNetwork
from neurofuse.recording import NeurofuseError
from neurofuse.windows import Windows


class SpikesDecoder(EarlyDecoder):
    """The anchor clock alone, through the temporal convolution of `early`: the one-modality bound.

    The anchor is the clock that asks, usually that of the spikes. Where two populations stand for two systems
    it is the population that stayed on the reference clock.
    """

    name = "spikes"

    def _streams(self, n_clocks: int) -> Sequence[int]:
        return (0,)


class LFPDecoder(EarlyDecoder):
    """All clocks but the anchor, through the temporal convolution of `early`: the other one-modality bound.

    These are the clocks that are searched, usually that of the LFP. Where two populations stand for two systems
    it is the population whose clock was moved.
    """

    name = "lfp"

    def _streams(self, n_clocks: int) -> Sequence[int]:
        return range(1, n_clocks)

    def build_network(self, n_inputs: list[int], n_axes: int, max_lag: int) -> EarlyNetwork:
        if len(n_inputs) < 2:
            raise NeurofuseError(
                f"'lfp' decodes from clocks other than the anchor, but '{self.clocks_[0]}' is the only clock here; "
                "take 'spikes' or 'early', or load a second stream."
            )
        return super().build_network(n_inputs, n_axes, max_lag)


class StreamDecoder(EarlyDecoder):
    """One clock alone, given by its place; a part of late fusion."""

    name = "stream"

    def __init__(self, *, clock: int, **more: Any) -> None:
        super().__init__(**more)
        self.clock = clock

    def _streams(self, n_clocks: int) -> Sequence[int]:
        return (self.clock,)


class LateDecoder(EarlyDecoder):
    """Late fusion: movement is decoded from each clock by itself, and the mean is taken.

    Every clock's network is trained and stopped by itself. For parameters see `EarlyDecoder`.
    """

    name = "late"

    @property
    def n_parameters_(self) -> int:
        """Learned numbers."""
        return sum(m.n_parameters_ for m in self.members_)

    def fit(
        self, X: Windows, y: np.ndarray | None = None, *, validation: Windows | None = None
    ) -> LateDecoder:
        """Train one network a clock, then weigh them on the windows that were held back."""
        train, target, held, held_target = self.training_parts(X, y, validation)
        # The members hold back the same windows by themselves.
        members = [StreamDecoder(clock=k, **self.get_params()) for k in range(len(X.tokens.clocks))]
        self.members_ = [m.fit(X, y, validation=validation) for m in members]
        self.learn_scales(train, target)
        self.weights_ = self._weigh(held, held_target)
        return self

    def _weigh(self, held: Windows, true: np.ndarray) -> np.ndarray:
        """Weight of each clock for each axis, shape (n_clocks, n_axes); they add up to one over clocks."""
        return np.full((len(self.members_), self.n_axes_), 1 / len(self.members_), dtype=np.float32)

    def decode(self, X: Windows) -> Prediction:
        """Movement of some windows."""
        self.check_windows(X)
        said = np.stack([m.predict(X) for m in self.members_])
        return Prediction(np.einsum("cbta,ca->bta", said, self.weights_))

    def state(self) -> dict[str, np.ndarray]:
        parts = {f"{k}.{name}": v for k, m in enumerate(self.members_) for name, v in m.state().items()}
        return parts | {"weights": self.weights_}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        self.weights_ = state["weights"]
        self.members_ = []
        for k in range(len(self.clocks_)):
            member = StreamDecoder(clock=k, **self.get_params())
            for known in ("features_", "clocks_", "n_axes_", "token_s_", "max_lag_", "input_scales_"):
                setattr(member, known, getattr(self, known))
            member.movement_scale_ = self.movement_scale_
            member.restore({n.removeprefix(f"{k}."): v for n, v in state.items() if n.startswith(f"{k}.")})
            self.members_.append(member)


class LateVarianceDecoder(LateDecoder):
    """Late fusion in which every clock counts, for each axis, by the inverse variance of its error.

    The variance is that of the error on held-back windows: best for unbiased decodes whose errors are
    independent. For parameters see `EarlyDecoder`.
    """

    name = "late-variance"

    def _weigh(self, held: Windows, true: np.ndarray) -> np.ndarray:
        there = np.isfinite(true).all(axis=-1)
        variance = np.stack([(m.predict(held) - true)[there].var(axis=0) for m in self.members_])
        precision = 1 / np.maximum(variance, 1e-12)
        return (precision / precision.sum(axis=0)).astype(np.float32)
