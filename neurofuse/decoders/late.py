"""In: tokens of all clocks. Out: the weighted mean of movement decoded from each clock separately: late fusion.

Each clock has a temporal convolution of its own, as in `early`. A single clock is the bound that fusion has to beat.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from neurofuse.decoders.base import Prediction
from neurofuse.decoders.early import EarlyDecoder, EarlyNetwork
from neurofuse.errors import NeurofuseError
from neurofuse.windows import Windows


class SpikesDecoder(EarlyDecoder):
    """The anchor clock only, through the temporal convolution of `early`: the bound of one modality.

    The anchor is the clock that queries come from, usually that of the spikes. Where two populations stand for two
    systems it is the population that stayed on the reference clock.
    """

    name = "spikes"

    def _streams(self, n_clocks: int) -> Sequence[int]:
        return (0,)


class LFPDecoder(EarlyDecoder):
    """All clocks but the anchor, through the temporal convolution of `early`: the bound of the other modality.

    These are the clocks whose lag is searched, usually that of the LFP. Where two populations stand for two systems
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
    """One clock, given by its number; a part of late fusion."""

    name = "stream"

    def __init__(self, *, clock: int, **more: Any) -> None:
        super().__init__(**more)
        self.clock = clock

    def _streams(self, n_clocks: int) -> Sequence[int]:
        return (self.clock,)


class LateDecoder(EarlyDecoder):
    """Late fusion: movement is decoded from each clock separately, and the mean is taken.

    The networks of the clocks are trained and stopped separately. For parameters see `EarlyDecoder`.
    """

    name = "late"

    @property
    def n_parameters_(self) -> int:
        """Learned numbers."""
        return sum(m.n_parameters_ for m in self.unimodal_)

    def fit(
        self, X: Windows, y: np.ndarray | None = None, *, validation: Windows | None = None
    ) -> LateDecoder:
        """Train one network per clock, then weight them on validation windows."""
        train, target, check, check_target = self.training_parts(X, y, validation)
        # Each of them holds back the same windows for validation.
        unimodal = [StreamDecoder(clock=k, **self.get_params()) for k in range(len(X.tokens.clocks))]
        self.unimodal_ = [m.fit(X, y, validation=validation) for m in unimodal]
        self.learn_scales(train, target)
        self.weights_ = self._weights_of(check, check_target)
        return self

    def _weights_of(self, validation: Windows, target: np.ndarray) -> np.ndarray:
        """Weight of each clock for each axis, shape (n_clocks, n_axes), which sum to one over clocks."""
        return np.full((len(self.unimodal_), self.n_axes_), 1 / len(self.unimodal_), dtype=np.float32)

    def decode(self, X: Windows) -> Prediction:
        """Movement of some windows."""
        self.check_windows(X)
        movement = np.stack([m.predict(X) for m in self.unimodal_])
        return Prediction(np.einsum("cbta,ca->bta", movement, self.weights_))

    def state(self) -> dict[str, np.ndarray]:
        parts = {f"{k}.{name}": v for k, m in enumerate(self.unimodal_) for name, v in m.state().items()}
        return parts | {"weights": self.weights_}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        self.weights_ = state["weights"]
        self.unimodal_ = []
        for k in range(len(self.clocks_)):
            single = StreamDecoder(clock=k, **self.get_params())
            single.copy_scales(self)
            single.restore({n.removeprefix(f"{k}."): v for n, v in state.items() if n.startswith(f"{k}.")})
            self.unimodal_.append(single)


class LateVarianceDecoder(LateDecoder):
    """Late fusion in which the weight of a clock, for each axis, is the inverse variance of its error.

    The variance is that of the error on validation windows: best for unbiased decodes whose errors are
    independent. For parameters see `EarlyDecoder`.
    """

    name = "late-variance"

    def _weights_of(self, validation: Windows, target: np.ndarray) -> np.ndarray:
        known = np.isfinite(target).all(axis=-1)
        variance = np.stack([(m.predict(validation) - target)[known].var(axis=0) for m in self.unimodal_])
        precision = 1 / np.maximum(variance, 1e-12)
        return (precision / precision.sum(axis=0)).astype(np.float32)
