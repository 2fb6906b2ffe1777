"""In: an NWB file, read by pynwb. Out: its units, LFP, behaviour and trials, as `module/container/series`."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from data_loaders.formats import (
    FileInfo,
    Format,
    Item,
    LoadError,
    Part,
    Request,
    Role,
    listed,
    unique,
)
from data_loaders.readers.sampled import by_signal, make_movement, make_signal
from data_loaders.selection import describe_recording
from neurofuse.recording import FloatArray, Movement, Recording, Signal, Spikes, Stream

# Name of the scratch entry in which `write_nwb` keeps what NWB has no place for: clocks, kinds, provenance.
SCRATCH = "neurofuse"
_UNIT_NAMES = ("unit_name", "label", "name")
_CHANNEL_NAMES = ("channel_name", "label", "electrode_name")


@dataclass(frozen=True)
class _Series:
    """One time series of a file and what its columns are called."""

    name: str
    role: Role
    in_lfp: bool
    series: Any
    columns: tuple[str, ...]


@contextlib.contextmanager
def open_nwb(path: Path) -> Iterator[Any]:
    """The file opened by pynwb; data is read when it is used."""
    try:
        import pynwb
    except ImportError:
        raise LoadError(
            f"reading '{path.name}' needs pynwb; install it with: pip install 'neurofuse[nwb]'."
        ) from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pynwb.NWBHDF5IO(str(path), "r") as io:
            yield io.read()


def _path_of(node: Any) -> str:
    parts = []
    while node is not None and node.parent is not None:
        parts.append(str(node.name))
        node = node.parent
    return "/".join(reversed(parts))


def _all_series(nwb: Any) -> list[_Series]:
    import pynwb

    found = []
    for node in nwb.objects.values():
        if not isinstance(node, pynwb.TimeSeries) or isinstance(node, pynwb.image.ImageSeries):
            continue
        shape = getattr(node.data, "shape", None)
        if shape is None or not 1 <= len(shape) <= 2 or node.data.dtype.kind not in "fiub" or shape[0] < 2:
            continue
        name = _path_of(node)
        in_lfp = isinstance(node.parent, (pynwb.ecephys.LFP, pynwb.ecephys.FilteredEphys))
        electrical = isinstance(node, pynwb.ecephys.ElectricalSeries)
        modules = {p.lower() for p in name.split("/")[:-1]}
        role: Role = "other"
        if electrical and not isinstance(node, pynwb.ecephys.SpikeEventSeries):
            role = "lfp"
        elif isinstance(node, pynwb.behavior.SpatialSeries) or modules & {"behavior", "behaviour"}:
            role = "movement"
        n = 1 if len(shape) == 1 else int(shape[1])
        found.append(_Series(name, role, in_lfp, node, _columns(node, name, n, electrical)))
    return found


def _columns(node: Any, name: str, n: int, electrical: bool) -> tuple[str, ...]:
    if electrical:
        region = node.electrodes
        ids = [int(region.table.id[int(k)]) for k in region.data[:]]
        for column in _CHANNEL_NAMES:
            if column in region.table.colnames:
                names = [str(region.table[column][int(k)]) for k in region.data[:]]
                if len(set(names)) == len(names) == n:
                    return tuple(names)
        return tuple(f"electrode {k}" for k in ids) if len(set(ids)) == len(ids) == n else _numbered(name, n)
    last = name.split("/")[-1]
    if n == 1:
        return (last,)
    return tuple(f"{last} {a}" for a in "xyz"[:n]) if n <= 3 else _numbered(last, n)


def _numbered(name: str, n: int) -> tuple[str, ...]:
    return tuple(f"{name} {k + 1}" for k in range(n))


def _times(series: Any, what: str) -> tuple[FloatArray, float]:
    n = int(series.data.shape[0])
    if series.timestamps is not None:
        times = np.asarray(series.timestamps[:], dtype=np.float64)
        return times, float(np.median(np.diff(times)))
    if not series.rate:
        raise LoadError(f"'{what}' has neither timestamps nor a rate; it cannot be placed in time.")
    return float(series.starting_time or 0.0) + np.arange(n) / float(series.rate), 1.0 / float(series.rate)


def _values(series: Any) -> NDArray[Any]:
    plain = float(series.conversion) == 1.0 and not float(series.offset or 0.0)
    if plain and getattr(series, "channel_conversion", None) is None:
        values = np.asarray(series.data[:])
    else:
        values = np.asarray(series.get_data_in_units())
    return values[:, None] if values.ndim == 1 else values


def _unit_of(series: Any) -> str:
    return {"volts": "V", "volt": "V", "meters": "m", "seconds": "s"}.get(str(series.unit), str(series.unit))


def _has_units(nwb: Any) -> bool:
    return nwb.units is not None and "spike_times" in nwb.units.colnames


def _unit_names(table: Any) -> list[str]:
    return unique(
        next(
            ([str(v) for v in table[c][:]] for c in _UNIT_NAMES if c in table.colnames),
            [f"unit {i}" for i in table.id[:]],
        )
    )


def _units(table: Any, clock: str) -> tuple[Spikes, list[str]]:
    n = len(table)
    trains = [np.asarray(table.get_unit_spike_times(k), dtype=np.float64) for k in range(n)]
    frame = pd.DataFrame({"name": _unit_names(table)})
    for column in table.colnames:
        if column in _UNIT_NAMES or column in (
            "spike_times",
            "obs_intervals",
            "electrodes",
            "electrode_group",
        ):
            continue
        values = table[column].data
        if type(table[column]).__name__ == "VectorData" and np.ndim(values) == 1:
            frame[column] = [v.decode() if isinstance(v, bytes) else v for v in values[:]]
    support, notes = None, []
    if "obs_intervals" in table.colnames:
        stretches = [np.asarray(table["obs_intervals"][k], dtype=np.float64).reshape(-1, 2) for k in range(n)]
        together = np.unique(np.concatenate(stretches), axis=0) if n else np.empty((0, 2))
        if len(together) and (together[1:, 0] >= together[:-1, 1]).all():
            support = together
            if any(len(s) != len(together) for s in stretches):
                notes.append("units were observed at different times; the support is where any of them was")
        else:
            notes.append(
                "the units' obs_intervals overlap; the support runs from the first to the last spike"
            )
    spikes = Spikes.from_trains(trains, clock=clock, name="units", units=frame, support=support)
    return spikes, notes


def _trial_frame(nwb: Any) -> pd.DataFrame:
    if nwb.trials is None or not len(nwb.trials):
        return pd.DataFrame({"start_s": [], "stop_s": []})
    table = nwb.trials
    out: dict[str, Any] = {
        "start_s": np.asarray(table["start_time"][:]),
        "stop_s": np.asarray(table["stop_time"][:]),
    }
    for column in table.colnames:
        data = table[column].data
        if (
            column in ("start_time", "stop_time")
            or type(table[column]).__name__ != "VectorData"
            or np.ndim(data) != 1
        ):
            continue
        out[column] = [v.decode() if isinstance(v, bytes) else v for v in data[:]]
    return pd.DataFrame(out)


def _default_lfp(series: list[_Series]) -> list[_Series]:
    electrical = [s for s in series if s.role == "lfp"]
    return [s for s in electrical if s.in_lfp] or electrical


def _by_name(series: list[_Series]) -> dict[str, list[tuple[_Series, list[int]]]]:
    """Series by path and by its last part, and single columns, as columns of series; paths come first."""
    out: dict[str, list[tuple[_Series, list[int]]]] = {
        s.name: [(s, list(range(len(s.columns))))] for s in series
    }
    last: dict[str, list[tuple[_Series, list[int]]]] = {}
    for s in series:
        last.setdefault(s.name.split("/")[-1], []).append((s, list(range(len(s.columns)))))
    out = {**last, **out}
    for s in series:
        for k, column in enumerate(s.columns):
            out.setdefault(column, [(s, [k])])
    return out


def _find(series: list[_Series], request: Request, path: Path, role: Part) -> list[tuple[_Series, list[int]]]:
    found = request.pick(path, role, _by_name(series))
    for places in found:
        if len(places) > 1:
            raise LoadError(
                f"'{path.name}' has several series called '{places[0][0].name.split('/')[-1]}': "
                f"{listed([s.name for s, _ in places])}."
            )
    return by_signal(places[0] for places in found)


def _movement(series: list[_Series], request: Request, path: Path) -> tuple[Movement | None, list[str]]:
    if request.movement is None:
        candidates = [s for s in series if s.role == "movement"]
        if len(candidates) > 1:
            raise LoadError(
                f"'{path.name}' holds several behaviour series ({listed([s.name for s in candidates])}); "
                "choose with --movement NAME, or --movement none."
            )
        places = [(s, list(range(len(s.columns)))) for s in candidates]
    else:
        places = _find(series, request, path, "movement")
    if not places:
        return None, []
    time_s, sample_s = _times(places[0][0].series, places[0][0].name)
    for s, _ in places[1:]:
        other, _ = _times(s.series, s.name)
        if len(other) != len(time_s) or not np.allclose(other, time_s, atol=1e-6):
            raise LoadError(
                f"'{path.name}': '{places[0][0].name}' and '{s.name}' are not sampled at the same times."
            )
    return make_movement(
        np.concatenate([_values(s.series)[:, columns] for s, columns in places], axis=1),
        time_s,
        name=",".join(s.name.split("/")[-1] for s, _ in places),
        axes=[s.columns[c] for s, columns in places for c in columns],
        sample_s=sample_s,
        units=_unit_of(places[0][0].series),
        missing=request.missing,
    )


def _read(path: Path, request: Request) -> Recording:
    with open_nwb(path) as nwb:
        if nwb.scratch and SCRATCH in nwb.scratch:
            return _rebuild(nwb)
        notes = [f"read {path.name} (NWB, session starts {nwb.session_start_time})"]
        streams: list[Stream] = []
        if request.spikes != () and _has_units(nwb):
            spikes, more = _units(nwb.units, request.clock)
            streams.append(spikes)
            notes += more
        series = _all_series(nwb)
        if request.lfp is None:
            places = [(s, list(range(len(s.columns)))) for s in _default_lfp(series)]
        else:
            places = _find(series, request, path, "lfp")
        labels = unique(["lfp"] if len(places) == 1 else [s.name for s, _ in places])
        for (s, columns), label in zip(places, labels, strict=True):
            time_s, sample_s = _times(s.series, s.name)
            signal, more = make_signal(
                _values(s.series)[:, columns],
                time_s,
                name=label,
                clock=request.clock,
                channels=[s.columns[c] for c in columns],
                sample_s=sample_s,
                units=_unit_of(s.series),
                missing=request.missing,
            )
            streams.append(signal)
            notes += [f"{label} is {s.name}", *more]
        movement, more = _movement(series, request, path)
        return Recording(
            request.clock, request.clock, tuple(streams), movement, _trial_frame(nwb), (*notes, *more)
        )


def _rebuild(nwb: Any) -> Recording:
    """The recording that `write_nwb` wrote, clock names and all."""
    plan = json.loads(str(nwb.scratch[SCRATCH].data))
    by_name = {_path_of(n): n for n in nwb.objects.values() if hasattr(n, "timestamps")}
    streams: list[Stream] = []
    row = 0
    for part in plan["streams"]:
        if part["kind"] == "spikes":
            n = part["n_units"]
            rows = range(row, row + n)
            trains = [np.asarray(nwb.units.get_unit_spike_times(k), dtype=np.float64) for k in rows]
            frame = pd.DataFrame(
                {
                    c: np.asarray(nwb.units[stored].data[row : row + n]).astype(dtype)
                    for c, (stored, dtype) in part["columns"].items()
                },
                index=range(n),
            )
            row += n
            support = np.array(part["support"], dtype=np.float64).reshape(-1, 2)
            streams.append(
                Spikes.from_trains(
                    trains, clock=part["clock"], name=part["name"], units=frame, support=support
                )
            )
            continue
        series = by_name[part["object"]]
        made = Signal.from_array(
            series.data[:],
            clock=part["clock"],
            name=part["name"],
            time_s=series.timestamps[:],
            channels=part["channels"],
            kind=part["kind"],
        )
        streams.append(
            Signal(
                part["name"],
                part["clock"],
                made.data.assign_attrs(part["attrs"]),
                part["kind"],
                part["sample_s"],
            )
        )
    movement = None
    if plan["movement"] is not None:
        m = plan["movement"]
        series = by_name[m["object"]]
        made_m = Movement.from_array(
            series.data[:], name=m["name"], time_s=series.timestamps[:], axes=m["axes"], units=m["units"]
        )
        movement = Movement(m["name"], made_m.data, m["sample_s"])
    trials = pd.DataFrame(
        {
            c: np.asarray(nwb.trials[stored].data[:]).astype(dtype) if nwb.trials is not None else np.empty(0)
            for c, (stored, dtype) in plan["trials"].items()
        }
    )
    return Recording(
        plan["name"], plan["reference"], tuple(streams), movement, trials, tuple(plan["provenance"])
    )


def _describe(path: Path, clock: str) -> FileInfo:
    with open_nwb(path) as nwb:
        if nwb.scratch and SCRATCH in nwb.scratch:
            return describe_recording(_rebuild(nwb), path, FORMAT.name)
        items: list[Item] = []
        if _has_units(nwb):
            n_spikes = len(nwb.units["spike_times"].target.data)
            items.append(
                Item(
                    "units",
                    "spikes",
                    n_units=len(nwb.units),
                    n_spikes=n_spikes,
                    unit="s",
                    clock=clock,
                    members=tuple(_unit_names(nwb.units)),
                    default=True,
                )
            )
        series = _all_series(nwb)
        lfp = _default_lfp(series)
        only = sum(s.role == "movement" for s in series) == 1
        for s in series:
            n, data = int(s.series.data.shape[0]), s.series
            rate_hz = float(data.rate) if data.rate else None
            if rate_hz is None and data.timestamps is not None:
                head = np.asarray(data.timestamps[: min(n, 1000)], dtype=np.float64)
                rate_hz = 1.0 / float(np.median(np.diff(head)))
            items.append(
                Item(
                    s.name,
                    s.role,
                    n_channels=len(s.columns),
                    n_samples=n,
                    rate_hz=rate_hz,
                    unit=_unit_of(data),
                    duration_s=None if rate_hz is None else n / rate_hz,
                    clock=clock,
                    members=s.columns,
                    default=s in lfp or (s.role == "movement" and only),
                )
            )
        if nwb.trials is not None:
            items.append(Item("trials", "trials", shape=(len(nwb.trials),), clock=clock, default=True))
        return FileInfo(str(path), FORMAT.name, tuple(items))


def is_own(path: Path) -> bool:
    """Whether an NWB file was written by `write_nwb`."""
    import h5py

    with h5py.File(path, "r") as file:
        return f"scratch/{SCRATCH}" in file


FORMAT = Format("nwb", (".nwb",), describe=_describe, read_parts=_read)
OWN_FORMAT = Format(
    "neurofuse-nwb", (".nwb",), describe=_describe, read_parts=_read, sniff=is_own, checked=True
)
