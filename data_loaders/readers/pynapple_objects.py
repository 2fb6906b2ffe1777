"""In: pynapple objects by name. Out: a `Recording` on one clock, whose name is given since pynapple has none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from data_loaders.formats import LoadError
from neurofuse.recording import FloatArray, Movement, Recording, Signal, SignalKind, Spikes, Stream


def from_pynapple(
    objects: Mapping[str, Any],
    *,
    name: str = "pynapple",
    clock: str = "pynapple",
    movement: str | None = "movement",
    trials: str | None = "trials",
    kinds: Mapping[str, SignalKind] | None = None,
) -> Recording:
    """Turn pynapple objects into a recording on one clock.

    Parameters
    ----------
    objects : dict of str to pynapple object
        `TsGroup` and `Ts` become spikes, `Tsd` and `TsdFrame` signals.
    name, clock : str
        Names of the recording and of its clock.
    movement, trials : str, optional
        Which keys hold the movement (`Tsd` or `TsdFrame`) and the trials (`IntervalSet`), if they are there.
    kinds : dict of str to {"lfp", "counts", "power"}, optional
        What each signal is; "lfp" where it is not given.

    Raises
    ------
    LoadError
        If an object is none of these, or nothing is left to make a recording of.
    """
    nap = import_pynapple()
    streams: list[Stream] = []
    moved: Movement | None = None
    table: pd.DataFrame | None = None
    for key, value in objects.items():
        if isinstance(value, nap.IntervalSet):
            if key == trials:
                table = pd.DataFrame({"start_s": np.asarray(value.start), "stop_s": np.asarray(value.end)})
        elif isinstance(value, nap.Ts):
            streams.append(Spikes.from_trains([value.t], clock=clock, name=key, support=_rows(value)))
        elif isinstance(value, nap.TsGroup):
            units = pd.DataFrame(value.metadata).reset_index(drop=True)
            units = units.drop(columns=["rate"], errors="ignore")
            if "name" not in units:
                units["name"] = [f"unit{k}" for k in value.index]
            trains = [np.asarray(value[k].t) for k in value.index]
            streams.append(
                Spikes.from_trains(trains, clock=clock, name=key, units=units, support=_rows(value))
            )
        elif isinstance(value, nap.Tsd | nap.TsdFrame):
            columns = [str(c) for c in value.columns] if isinstance(value, nap.TsdFrame) else [key]
            values, times = np.asarray(value.d), np.asarray(value.t)
            if key == movement:
                moved = Movement.from_array(values, name=key, time_s=times, axes=columns)
            else:
                kind = (kinds or {}).get(key, "lfp")
                streams.append(
                    Signal.from_array(
                        values, clock=clock, name=key, time_s=times, channels=columns, kind=kind
                    )
                )
        else:
            raise LoadError(
                f"'{key}' is a {type(value).__name__}; give a Ts, TsGroup, Tsd, TsdFrame or IntervalSet."
            )
    if not streams and moved is None:
        raise LoadError(f"none of {list(objects)} is spikes, a signal or movement; give at least one.")
    return Recording(name, clock, tuple(streams), moved, table, ("made from pynapple objects",))  # type: ignore[arg-type]


def import_pynapple() -> Any:
    """The package, or one sentence that it is needed."""
    try:
        import pynapple
    except ImportError:
        raise LoadError("this needs the package pynapple; install it with: pip install pynapple.") from None
    return pynapple


def _rows(value: Any) -> FloatArray:
    return np.asarray(value.time_support.values, dtype=np.float64)
