"""In: a `Recording`. Out: one NWB file that other tools can read, and that reads back as the same recording.

Spikes become `units` (with `obs_intervals`), LFP an `ElectricalSeries`, counts and power a `TimeSeries` in
`processing/ecephys`, movement a `TimeSeries` in `processing/behavior`. NWB has one clock only: the times of each
object are those of its own clock, named in its description and in the scratch entry `neurofuse`.
"""

from __future__ import annotations

import json
import re
import warnings
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from data_loaders.formats import LoadError, unique
from data_loaders.readers.nwb_files import SCRATCH
from neurofuse.recording import Movement, Recording, Signal, Spikes
from neurofuse.storage import whole_file

_VOLTS = {"V": 1.0, "mV": 1e-3, "uV": 1e-6, "µV": 1e-6, "nV": 1e-9}
# Column names NWB gives a meaning of its own.
_RESERVED = frozenset(
    (
        *(
            "id",
            "name",
            "description",
            "colnames",
            "spike_times",
            "obs_intervals",
            "electrodes",
            "electrode_group",
        ),
        *("waveform_mean", "waveform_sd", "waveforms", "resolution", "waveform_rate", "waveform_unit"),
        *("start_time", "stop_time", "tags", "timeseries", "stream", "clock", "unit_name"),
    )
)


def write_nwb(recording: Recording, path: str | Path) -> Path:
    """Write a recording as NWB; the file appears whole or not at all.

    Raises
    ------
    NeurofuseError
        If pynwb is not installed or the folder cannot be written.
    """
    try:
        import pynwb
    except ImportError:
        raise LoadError("writing NWB needs pynwb; install it with: pip install 'neurofuse[nwb]'.") from None
    path = Path(path)
    nwb = pynwb.NWBFile(
        session_description=f"{recording.name} (written by neurofuse; the start of the session is unknown)",
        identifier=f"neurofuse {recording.name}",
        session_start_time=datetime(1970, 1, 1, tzinfo=UTC),
    )
    names = unique([re.sub(r"[/:]", "_", s.name) or "stream" for s in recording.streams])
    parts: list[dict[str, Any]] = []
    _add_units(nwb, [s for s in recording.streams if isinstance(s, Spikes)])
    for stream, name in zip(recording.streams, names, strict=True):
        parts.append(_spikes_plan(stream) if isinstance(stream, Spikes) else _add_signal(nwb, stream, name))
    plan = {
        "layout": "neurofuse-nwb-1",
        "name": recording.name,
        "reference": recording.reference,
        "provenance": list(recording.provenance),
        "streams": parts,
        "movement": None
        if recording.movement is None
        else _add_movement(nwb, recording.movement, recording.reference),
        "trials": _add_trials(nwb, recording.trials),
    }
    nwb.add_scratch(
        json.dumps(plan), name=SCRATCH, description="Clocks, kinds and provenance of the recording, as JSON."
    )
    with whole_file(path) as partial, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pynwb.NWBHDF5IO(str(partial), "w") as io:
            io.write(nwb)
    return path


def _stored(column: str) -> str:
    clean = re.sub(r"[/:]", "_", column)
    return f"x_{clean}" if clean in _RESERVED else clean


def _dtype(column: pd.Series) -> str:
    return str(column.dtype) if column.dtype.kind in "fiub" else "str"


def _unit_column(column: str) -> str:
    return "unit_name" if column == "name" else _stored(column)


def _spikes_plan(spikes: Spikes) -> dict[str, Any]:
    return {
        "kind": "spikes",
        "name": spikes.name,
        "clock": spikes.clock,
        "n_units": spikes.n_units,
        "support": spikes.support.tolist(),
        "columns": {str(c): [_unit_column(str(c)), _dtype(spikes.units[c])] for c in spikes.units.columns},
    }


def _add_units(nwb: Any, populations: list[Spikes]) -> None:
    if not sum(p.n_units for p in populations):
        return
    columns: dict[str, bool] = {}
    for p in populations:
        for c in p.units.columns:
            columns[str(c)] = columns.get(str(c), True) and p.units[c].dtype.kind in "fiub"
    nwb.add_unit_column("stream", "population this unit belongs to")
    nwb.add_unit_column("clock", "clock the spike times were read from")
    for c in columns:
        nwb.add_unit_column(_unit_column(c), f"{c} of the unit")
    for p in populations:
        support = p.support if len(p.support) else np.zeros((1, 2))
        for row, train in enumerate(p.trains):
            values: dict[str, Any] = {}
            for c, numeric in columns.items():
                held = c in p.units
                value = p.units[c].iloc[row] if held else np.nan
                values[_unit_column(c)] = float(value) if numeric else str(value) if held else ""
            nwb.add_unit(
                spike_times=np.asarray(train, dtype=np.float64),
                obs_intervals=support,
                stream=p.name,
                clock=p.clock,
                **values,
            )


def _module(nwb: Any, name: str, description: str) -> Any:
    return nwb.processing[name] if name in nwb.processing else nwb.create_processing_module(name, description)


def _add_signal(nwb: Any, signal: Signal, name: str) -> dict[str, Any]:
    import pynwb

    units = str(signal.data.attrs.get("units", ""))
    shared = {
        "name": name,
        "data": signal.data.values,
        "timestamps": signal.time_s,
        "comments": f"clock: {signal.clock}",
    }
    module = _module(nwb, "ecephys", "Sampled neural signals.")
    if signal.kind == "lfp" and units in _VOLTS:
        device = nwb.devices.get("unknown") or nwb.create_device("unknown")
        group = nwb.create_electrode_group(name, f"channels of {signal.name}", "unknown", device)
        if nwb.electrodes is None:
            nwb.add_electrode_column("channel_name", "name of the channel")
        first = len(nwb.electrodes) if nwb.electrodes is not None else 0
        for channel in signal.channels:
            nwb.add_electrode(group=group, location="unknown", channel_name=channel)
        region = nwb.create_electrode_table_region(list(range(first, first + signal.n_channels)), signal.name)
        series: Any = pynwb.ecephys.ElectricalSeries(
            electrodes=region, conversion=_VOLTS[units], description=f"clock: {signal.clock}", **shared
        )
        if "LFP" not in module.data_interfaces:
            module.add(pynwb.ecephys.LFP(name="LFP"))
        module["LFP"].add_electrical_series(series)
        place = f"ecephys/LFP/{name}"
    else:
        text = f"{signal.kind}; clock: {signal.clock}; columns: {', '.join(signal.channels)}"
        module.add(pynwb.TimeSeries(unit=units or "unknown", description=text, **shared))
        place = f"ecephys/{name}"
    return {
        "kind": signal.kind,
        "name": signal.name,
        "clock": signal.clock,
        "object": place,
        "sample_s": signal.sample_s,
        "channels": signal.channels,
        "attrs": {k: v for k, v in signal.data.attrs.items() if isinstance(v, str | int | float)},
    }


def _add_movement(nwb: Any, movement: Movement, clock: str) -> dict[str, Any]:
    import pynwb

    name = re.sub(r"[/:]", "_", movement.name) or "movement"
    series = pynwb.TimeSeries(
        name=name,
        data=movement.data.values,
        timestamps=movement.time_s,
        unit=movement.units or "unknown",
        description=f"columns: {', '.join(movement.axes)}",
        comments=f"clock: {clock}",
    )
    container = pynwb.behavior.BehavioralTimeSeries(name="BehavioralTimeSeries", time_series=series)
    _module(nwb, "behavior", "Movement on the reference clock.").add(container)
    return {
        "name": movement.name,
        "object": f"behavior/BehavioralTimeSeries/{name}",
        "units": movement.units,
        "axes": movement.axes,
        "sample_s": movement.sample_s,
    }


def _add_trials(nwb: Any, trials: pd.DataFrame) -> dict[str, list[str]]:
    places = {str(c): [_stored(str(c)), _dtype(trials[c])] for c in trials.columns}
    places["start_s"][0], places["stop_s"][0] = "start_time", "stop_time"
    if not len(trials):
        return places
    others = [c for c in trials.columns if c not in ("start_s", "stop_s")]
    for c in others:
        nwb.add_trial_column(places[str(c)][0], str(c))
    for _, row in trials.iterrows():
        values = {
            places[str(c)][0]: row[c] if trials[c].dtype.kind in "fiub" else str(row[c]) for c in others
        }
        nwb.add_trial(start_time=float(row["start_s"]), stop_time=float(row["stop_s"]), **values)
    return places
