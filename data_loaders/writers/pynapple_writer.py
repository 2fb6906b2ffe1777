"""In: a `Recording`. Out: pynapple objects by name."""

from __future__ import annotations

from typing import Any

import numpy as np

from data_loaders.readers.pynapple_objects import import_pynapple
from neurofuse.recording import FloatArray, Recording, Spikes


def to_pynapple(recording: Recording) -> dict[str, Any]:
    """Turn a recording into pynapple objects.

    Returns
    -------
    dict
        A `TsGroup` for each population of spikes, a `TsdFrame` for each signal, `movement` (`TsdFrame`) and
        `trials` (`IntervalSet`), each with its support as `time_support`. Pynapple rounds times to
        1 ns, and cuts 1 us off a trial that ends when the next one starts.
    """
    nap = import_pynapple()
    out: dict[str, Any] = {}
    for stream in recording.streams:
        if isinstance(stream, Spikes):
            support = _intervals(stream.support)
            group = {k: nap.Ts(t=np.array(t), time_support=support) for k, t in enumerate(stream.trains)}
            metadata = stream.units.reset_index(drop=True)
            out[stream.name] = nap.TsGroup(group, time_support=support, metadata=metadata)
        else:
            out[stream.name] = _frame(stream.time_s, stream.data.values, stream.channels, stream.support)
    if recording.movement is not None:
        m = recording.movement
        out["movement"] = _frame(m.time_s, m.data.values, m.axes, m.support)
    if len(recording.trials):
        rows = recording.trials[["start_s", "stop_s"]].to_numpy(dtype=float)
        out["trials"] = nap.IntervalSet(start=rows[:, 0], end=rows[:, 1])
    return out


def _intervals(support: FloatArray) -> Any:
    return import_pynapple().IntervalSet(start=np.array(support[:, 0]), end=np.array(support[:, 1]))


def _frame(time_s: FloatArray, values: Any, columns: list[str], support: FloatArray) -> Any:
    return import_pynapple().TsdFrame(
        t=np.array(time_s), d=np.array(values), columns=columns, time_support=_intervals(support)
    )
