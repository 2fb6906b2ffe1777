"""In: windows of a recording. Out: token sequences as a torch Dataset and DataLoader, for a loop of your own.

Two views of the same tokens. On the grid a window is one array per clock, (tokens x features): what `fit`
takes. As a sequence it is a list of (time, source, value): one entry for every unit that fired in a token
and for every LFP feature, which is what set encoders and perceivers read.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from neurofuse.errors import NeurofuseError
from neurofuse.recording import Recording
from neurofuse.tokens import tokenize
from neurofuse.windows import Windows, cut_windows


@dataclass(frozen=True, eq=False)
class TokenSequence:
    """One clock's tokens of one window, as a list in time order.

    Parameters
    ----------
    time_s : float32 Tensor, shape (n,)
        Middle of the token, seconds from the start of the window.
    source : int64 Tensor, shape (n,)
        Unit or LFP feature, a column of the clock's tokens.
    value : float32 Tensor, shape (n,)
        Spike count, or the mean of the feature.
    """

    time_s: torch.Tensor
    source: torch.Tensor
    value: torch.Tensor


class WindowDataset(Dataset[dict[str, torch.Tensor]]):
    """Windows as items of tensors, keyed so that the default collation makes batches of them.

    An item holds, for clock number k: `values{k}` (W, n_features) and `present{k}` (W,), where W is the window
    and the context on both sides; and `movement` (T, n_axes) and `lag` (T, n_clocks - 1), NaN where unknown.

    Parameters
    ----------
    windows : Windows
    redraw : bool
        Draw the injected lag of each window anew, from a generator seeded by `seed`, the epoch and the window, so
        that any number of workers gives the same numbers. Call `set_epoch` before each pass.
    seed : int
    """

    def __init__(self, windows: Windows, *, redraw: bool = False, seed: int = 0) -> None:
        self.windows = windows
        self.redraw = redraw
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.windows)

    def set_epoch(self, epoch: int) -> None:
        """Set the number of the next pass over the data, which seeds the lags that `redraw` draws."""
        self.epoch = epoch

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        index = self._row(index)
        rng = None
        if self.redraw:
            rng = np.random.default_rng([self.seed, self.epoch, index])
        batch = self.windows.batch(slice(index, index + 1), rng=rng)
        item = {f"values{k}": torch.from_numpy(v[0]) for k, v in enumerate(batch.values)}
        item |= {f"present{k}": torch.from_numpy(p[0]) for k, p in enumerate(batch.present)}
        return item | {"movement": torch.from_numpy(batch.movement[0]), "lag": torch.from_numpy(batch.lag[0])}

    def _row(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        return index % len(self)

    def sequences(self, index: int) -> list[TokenSequence]:
        """The same window as one (time, source, value) sequence per clock; units that did not fire are left out."""
        index = self._row(index)
        batch = self.windows.batch(slice(index, index + 1))
        tokens = self.windows.tokens
        out = []
        for values, present, clock in zip(batch.values, batch.present, tokens.clocks, strict=True):
            kept = present[0][:, None] & (~clock.counted | (values[0] != 0))
            step, source = np.nonzero(kept)
            time_s = (step - batch.reach + 0.5) * tokens.token_s
            out.append(
                TokenSequence(
                    torch.from_numpy(time_s.astype(np.float32)),
                    torch.from_numpy(source.astype(np.int64)),
                    torch.from_numpy(values[0][step, source]),
                )
            )
        return out


def window_loader(
    recording: Recording,
    *,
    window_s: float = 3.0,
    stride_s: float | None = None,
    max_lag_s: float = 0.5,
    token_s: float | None = None,
    batch_size: int = 32,
    shuffle: bool = False,
    seed: int = 0,
    num_workers: int = 0,
) -> DataLoader[dict[str, torch.Tensor]]:
    """Batches of windows of a whole recording, for a training loop of your own.

    LFP should be features already (`neurofuse.features.lfp_features`); tokens average what they are given.

    Raises
    ------
    NeurofuseError
        If no window fits.
    """
    tokens = tokenize(recording, token_s=token_s)
    windows = cut_windows(
        tokens,
        window_s=window_s,
        stride_s=stride_s,
        max_lag_s=max_lag_s,
        rng=np.random.default_rng(seed),
    )
    if len(windows) == 0:
        raise NeurofuseError(
            f"recording '{recording.name}' has no stretch of {window_s:g} s; use shorter windows."
        )
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(
        WindowDataset(windows, seed=seed),
        batch_size=batch_size,
        shuffle=shuffle,
        generator=generator,
        num_workers=num_workers,
    )
