"""In: windows, batches. Out: mean and spread of their features, and their tokens in standard units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from neurofuse.errors import NeurofuseError
from neurofuse.windows import Batch, Windows


@dataclass(frozen=True)
class Scale:
    """Mean and spread of one clock's features, or of movement, over the training stretch."""

    mean: np.ndarray
    std: np.ndarray

    @classmethod
    def of(cls, rows: np.ndarray) -> Scale:
        """From rows of samples; constant columns keep a spread of one."""
        rows = rows.astype(np.float64)
        std = rows.std(axis=0)
        return cls(rows.mean(axis=0).astype(np.float32), np.where(std > 1e-12, std, 1.0).astype(np.float32))

    def to_standard(self, x: np.ndarray) -> np.ndarray:
        """In standard units; features or axes are the last dimension."""
        return (x - self.mean) / self.std

    def from_standard(self, x: np.ndarray) -> np.ndarray:
        """Inverse of `to_standard`."""
        return x * self.std + self.mean


def scales_of(X: Windows) -> list[Scale]:
    """Scale of each clock's features, from the first token of any window to the last one.

    Raises
    ------
    NeurofuseError
        If a clock holds no data there.
    """
    per, out = X.tokens.per_token, []
    stretch = per * np.arange(int(X.first.min()), int(X.first.max()) + X.n_steps)[None]
    for clock in X.tokens.clocks:
        values, present = clock.gather(stretch, per)
        if not present.any():
            raise NeurofuseError(f"clock '{clock.clock}' holds no data in the training stretch.")
        out.append(Scale.of(values[0][present[0]]))
    return out


def standard(batch: Batch, scales: Sequence[Scale]) -> list[np.ndarray]:
    """Tokens of every clock in standard units, zero where absent; float32, shape (B, W, n_features) each."""
    return [
        (s.to_standard(x) * p[..., None]).astype(np.float32)
        for x, p, s in zip(batch.values, batch.present, scales, strict=True)
    ]
