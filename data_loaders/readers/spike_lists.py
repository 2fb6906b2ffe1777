"""In: spike times of a plain file (a vector per unit, or a list of times and one of units). Out: `Spikes`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from data_loaders.formats import LoadError, unique
from data_loaders.readers.plain_arrays import Leaf, Ragged
from neurofuse.recording import Spikes

_TIMES = re.compile(r"^(spike_?)?(times?|times?_s|t|ts|timestamps?)$", re.I)
_UNITS = re.compile(
    r"^(spike_?)?(units?|unit_?ids?|unit_?index|neurons?|neuron_?ids?|cells?|cell_?ids?|clusters?|cluster_?ids?"
    r"|index|ids?|labels?)$",
    re.I,
)


def _parent(name: str) -> str:
    parts = re.split(r"([/.])", name)
    return "".join(parts[:-1])


def _last(name: str) -> str:
    return re.split(r"[/.]", name)[-1]


def find_list(leaves: Mapping[str, Leaf], *, near: str | None = None) -> tuple[Leaf, Leaf] | None:
    """The vector of spike times and the equally long vector of units next to it, if a file has such a pair.

    Parameters
    ----------
    leaves : dict of str to Leaf
        The arrays of the file.
    near : str, optional
        Only accept a pair that includes this array or lies in this group.
    """
    for times in leaves.values():
        if times.kind != "numbers" or not _TIMES.match(_last(times.name)) or not is_vector(times):
            continue
        for unit in leaves.values():
            if (
                unit is times
                or _parent(unit.name) != _parent(times.name)
                or not _UNITS.match(_last(unit.name))
            ):
                continue
            if np.prod(unit.shape) != np.prod(times.shape):
                continue
            if near is None or near in (times.name, unit.name, _parent(times.name)[:-1]):
                return times, unit
    return None


def is_vector(leaf: Leaf) -> bool:
    """Whether an array has one dimension only, row and column vectors included."""
    return len(leaf.shape) > 0 and max(leaf.shape, default=0) == int(np.prod(leaf.shape))


def from_list(
    path: Path, times: NDArray[Any], unit: NDArray[Any], *, name: str, clock: str, scale: float
) -> Spikes:
    """Build a population from one vector of times and one of units; units may be numbers or names."""
    times = np.ravel(times).astype(np.float64) * scale
    labels = np.array([u.decode() if isinstance(u, bytes) else u for u in np.ravel(unit)])
    if times.size != labels.size:
        raise LoadError(
            f"'{path.name}': {times.size} spike times but {labels.size} units; give one unit per spike."
        )
    if labels.dtype.kind == "f" and not np.isfinite(labels).all():
        raise LoadError(f"'{path.name}': some spikes have no unit (NaN); give one unit per spike.")
    ids, row = np.unique(labels, return_inverse=True)
    trains = [times[row == k] for k in range(len(ids))]
    names = [f"{i:g}" if labels.dtype.kind == "f" else str(i) for i in ids]
    return Spikes.from_trains(trains, clock=clock, name=name, unit_names=names)


def from_ragged(ragged: Ragged, *, name: str, clock: str, scale: float) -> Spikes:
    """Build a population from one vector per unit; when units were observed is kept if the file states it."""
    trains = [v * scale for v in ragged.vectors]
    support = None
    spans = np.asarray(ragged.ranges, dtype=np.float64) * scale
    if len(spans) == len(trains) and len(spans) and np.isfinite(spans).all():
        first, last = float(spans[:, 0].min()), float(spans[:, 1].max())
        spikes = np.concatenate(trains) if trains else np.empty(0)
        if spikes.size == 0 or (first <= np.nanmin(spikes) and np.nanmax(spikes) <= last):
            support = [(first, last)]
    units = pd.DataFrame({"name": unique([f"{name} {p}" for p in ragged.paths])})
    return Spikes.from_trains(trains, clock=clock, name=name, units=units, support=support)
