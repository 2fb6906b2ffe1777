"""In: plain arrays and their times. Out: `Signal`, `Movement`; missing samples refused or left out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from data_loaders.formats import LoadError, Missing
from neurofuse.recording import FloatArray, Movement, Signal, SignalKind

# Stretches whose distance in time the file does not state are set this far apart (s), far beyond any window.
UNKNOWN_GAP_S = 10.0
# A plain matrix sampled no faster than this cannot show the field's oscillations: it holds power per bin.
POWER_RATE_HZ = 50.0

T = TypeVar("T")


def regular_times(n_samples: int, *, rate_hz: float, start_s: float = 0.0) -> FloatArray:
    """Times (s) of samples at a rate, each computed from its number so that rounding does not add up."""
    return start_s + np.arange(n_samples, dtype=np.float64) / rate_hz


def make_signal(
    values: NDArray[np.generic],
    time_s: FloatArray,
    *,
    name: str,
    clock: str,
    channels: Sequence[str],
    sample_s: float,
    units: str = "",
    kind: SignalKind = "lfp",
    missing: Missing = "refuse",
) -> tuple[Signal, list[str]]:
    """Build a signal (time x channel); the notes state what was left out."""
    values, time_s, notes = _usable(values, time_s, sample_s, missing=missing, what=f"{kind} '{name}'")
    signal = Signal.from_array(
        values, clock=clock, name=name, time_s=time_s, channels=channels, units=units, kind=kind
    )
    return Signal(name, clock, signal.data, kind, sample_s), notes


def make_movement(
    values: NDArray[np.generic],
    time_s: FloatArray,
    *,
    name: str,
    axes: Sequence[str],
    sample_s: float,
    units: str = "",
    missing: Missing = "refuse",
) -> tuple[Movement, list[str]]:
    """Build movement (time x axis); the notes state what was left out."""
    values, time_s, notes = _usable(values, time_s, sample_s, missing=missing, what=f"movement '{name}'")
    movement = Movement.from_array(values, name=name, time_s=time_s, axes=axes, units=units)
    return Movement(name, movement.data, sample_s), notes


def by_signal(places: Iterable[tuple[T, Sequence[int]]]) -> list[tuple[T, list[int]]]:
    """Columns of signals in the order picked, those of one signal that follow each other put together.

    Examples
    --------
    >>> by_signal([("a", [2]), ("a", [0]), ("b", [1])])
    [('a', [2, 0]), ('b', [1])]
    """
    out: list[tuple[T, list[int]]] = []
    for signal, columns in places:
        if not out or out[-1][0] is not signal:
            out.append((signal, []))
        out[-1][1].extend(c for c in columns if c not in out[-1][1])
    return out


def plain_kind(sample_s: float) -> SignalKind:
    """Kind of a plain matrix given as LFP: slower than `POWER_RATE_HZ` it is power per bin."""
    return "power" if 1.0 / sample_s <= POWER_RATE_HZ * (1 + 1e-9) else "lfp"


def _usable(
    values: NDArray[np.generic], time_s: FloatArray, sample_s: float, *, missing: Missing, what: str
) -> tuple[NDArray[np.generic], FloatArray, list[str]]:
    """Samples and times without those that hold NaN or infinity, if `missing` is "drop", and a note of how many."""
    notes: list[str] = []
    if missing == "drop" and values.dtype.kind in "fc":
        good = np.isfinite(values).all(axis=1)
        if not good.all():
            if not good.any():
                raise LoadError(
                    f"{what}: every sample holds NaN or infinity; leave out the channel that is never finite."
                )
            notes = [f"{what}: dropped {int((~good).sum())} of {good.size} samples with NaN or inf"]
            values, time_s = values[good], time_s[good]
    if len(time_s) < 2:
        raise LoadError(f"{what}: {len(time_s)} sample(s) are too few; it needs at least two.")
    if not 0 < sample_s < float("inf"):
        raise LoadError(f"{what}: the sampling interval must be positive, got {sample_s:g} s.")
    return values, time_s, notes
