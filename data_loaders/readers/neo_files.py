"""In: makers' files (Blackrock, Neuralynx, Plexon, Spike2, SpikeGLX, Open Ephys, NIX ...), read by neo.
Out: spikes, LFP and movement on the file's clock; segments stay separate stretches.
"""

from __future__ import annotations

import contextlib
import inspect
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from io import StringIO
from itertools import pairwise
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
    Request,
    Role,
    listed,
    unique,
)
from data_loaders.guess_roles import channel_role
from data_loaders.readers.neo_objects import is_own, rebuild
from data_loaders.readers.sampled import UNKNOWN_GAP_S, by_signal, make_movement, make_signal
from data_loaders.selection import describe_recording
from neurofuse.recording import FloatArray, Movement, Recording, Signal, Spikes, Stream

# Slower signals than this are taken as LFP by name only.
SLOWEST_LFP_HZ = 100.0
# Blackrock marks waveforms that are no spikes as unit 255, and spikes that were not sorted as unit 0.
NOISE_UNIT, UNSORTED_UNIT = 255, 0


@dataclass(frozen=True)
class _Channels:
    """Analog signals that continue each other across the segments of a block, lazy or loaded."""

    name: str
    parts: tuple[tuple[int, Any], ...]
    names: tuple[str, ...]
    rate_hz: float
    unit: str

    @property
    def n_samples(self) -> int:
        return sum(int(p.shape[0]) for _, p in self.parts)


class PausesFound(LoadError):
    """A file whose pauses need a decision: `gap_tolerance_ms`."""


def open_block(path: Path, io_name: str, *, gap_tolerance_ms: float | None = None) -> Any:
    """Open a file with one of neo's readers, lazily where the reader can.

    Parameters
    ----------
    path : path
        A file, or a folder where the maker writes folders.
    io_name : str
        Name of the class in `neo.io`, such as "BlackrockIO".
    """
    import neo

    reader = getattr(neo.io, io_name)
    options: dict[str, Any] = {}
    taken = inspect.signature(reader.__init__).parameters
    raw = [m for m in reader.__mro__ if m.__module__.startswith("neo.rawio")]
    raw_taken = set().union(*(inspect.signature(m.__init__).parameters for m in raw)) if raw else set()
    if gap_tolerance_ms is not None and "gap_tolerance_ms" in {*taken, *raw_taken}:
        options["gap_tolerance_ms"] = gap_tolerance_ms
    if "progress_bar" in taken:
        options["progress_bar"] = False
    if io_name == "NixIO":
        with neo.io.NixIO(str(path), "ro") as file:
            blocks = file.read_all_blocks()
        if not blocks:
            raise LoadError(f"'{path.name}' holds no block of data.")
        return blocks[0]
    # Some readers draw progress bars on stderr and offer no way to stop them.
    with contextlib.redirect_stderr(StringIO()):
        try:
            io = reader(str(path), **options)
            return io.read_block(lazy=True) if io.support_lazy else io.read_block()
        except ValueError as error:
            if "gap_tolerance_ms" not in str(error):
                raise
            raise PausesFound(
                f"'{path.name}' has pauses in its samples and does not mark them as segments; "
                "pass --gap-tolerance-ms MS to split it at pauses longer than that (1 is usual)."
            ) from error


def scale_to(unit: Any, target: str) -> float:
    """How many `target` one unit of a quantity is; converted once, since quantities are slow."""
    return float(unit.rescale(target).magnitude)


def _seconds(value: Any) -> float:
    return float(value.rescale("s").magnitude)


def _starts(block: Any) -> tuple[list[float], str]:
    """Shift (s) of every segment, so that segments do not overlap."""
    spans = []
    for segment in block.segments:
        held = [*segment.analogsignals, *segment.irregularlysampledsignals, *segment.spiketrains]
        spans.append(
            (
                min((_seconds(x.t_start) for x in held), default=0.0),
                max((_seconds(x.t_stop) for x in held), default=0.0),
            )
        )
    if all(a[1] <= b[0] + 1e-9 for a, b in pairwise(spans)):
        return [0.0] * len(spans), ""
    shifts, end_s = [], None
    for start_s, stop_s in spans:
        shift = 0.0 if end_s is None else end_s + UNKNOWN_GAP_S - start_s
        shifts.append(shift)
        end_s = stop_s + shift
    return shifts, (
        f"{len(spans)} segments overlap in time (each starts near {spans[0][0]:g} s), so they were placed "
        f"one after another, {UNKNOWN_GAP_S:g} s apart"
    )


def _channels(block: Any) -> list[_Channels]:
    """Analog signals, those that continue each other in later segments put together."""
    per_segment = [[*s.analogsignals] for s in block.segments]
    counts = {len(p) for p in per_segment}
    groups: dict[Any, list[tuple[int, Any]]] = {}
    for k, signals in enumerate(per_segment):
        for j, signal in enumerate(signals):
            # By place where every segment has the same signals, else by name: names may differ by segment.
            key = signal.annotations.get("neurofuse_name") or (j if len(counts) == 1 else str(signal.name))
            groups.setdefault(key, []).append((k, signal))
    firsts = [parts[0][1] for parts in groups.values()]
    labels = unique([str(s.annotations.get("neurofuse_name") or s.name or "signal") for s in firsts])
    out = []
    for label, parts in zip(labels, groups.values(), strict=True):
        first = parts[0][1]
        n = int(first.shape[1])
        rate_hz = scale_to(first.sampling_rate, "Hz")
        if any(
            int(p.shape[1]) != n or abs(scale_to(p.sampling_rate, "Hz") / rate_hz - 1) > 1e-9
            for _, p in parts
        ):
            raise LoadError(
                f"signal '{label}' changes its channels or rate between segments; load them apart."
            )
        names = [str(c) for c in first.array_annotations.get("channel_names", ())]
        if len(names) != n or len(set(names)) != n:
            names = [label] if n == 1 else [f"{label} {k + 1}" for k in range(n)]
        unit = str(first.units.dimensionality) if hasattr(first.units, "dimensionality") else str(first.units)
        out.append(_Channels(label, tuple(parts), tuple(names), rate_hz, unit))
    return out


def _is_voltage(unit: str) -> bool:
    return bool(re.fullmatch(r"[munµ]?V", unit))


def _role(signal: _Channels, channel: str) -> Role:
    guess = channel_role(channel)
    if guess == "lfp" and (not _is_voltage(signal.unit) or signal.rate_hz < SLOWEST_LFP_HZ):
        return "other"
    return guess


def _load(signal: _Channels, columns: list[int], shifts: list[float]) -> tuple[NDArray[Any], FloatArray]:
    values, times = [], []
    # Not every reader keeps the order of the columns given, so they are read in that of the file.
    ordered = sorted(columns)
    order = [ordered.index(c) for c in columns]
    for k, part in signal.parts:
        if hasattr(part, "load"):
            chunk = part.load(channel_indexes=ordered) if len(columns) < part.shape[1] else part.load()
        else:
            chunk = part[:, ordered]
        loaded = np.asarray(chunk.magnitude)
        values.append(loaded if columns == ordered else loaded[:, order])
        times.append(shifts[k] + _seconds(part.t_start) + np.arange(len(values[-1])) / signal.rate_hz)
    return np.concatenate(values), np.concatenate(times)


def _trains(block: Any) -> list[list[tuple[int, Any]]]:
    """Spike trains, those of a unit in later segments put together."""
    per_segment = [[*s.spiketrains] for s in block.segments]
    same_count = len({len(p) for p in per_segment}) == 1
    groups: dict[Any, list[tuple[int, Any]]] = {}
    for k, trains in enumerate(per_segment):
        for j, train in enumerate(trains):
            key = j if same_count else str(train.annotations.get("id") or train.name or j)
            groups.setdefault(key, []).append((k, train))
    return list(groups.values())


def _unit_row(train: Any) -> dict[str, Any]:
    row: dict[str, Any] = {"name": str(train.name or train.annotations.get("id") or "unit")}
    for key in ("channel_id", "unit_id"):
        if key in train.annotations:
            row[key] = int(train.annotations[key])
    if "unit_id" in row:
        row["sorted"] = int(row["unit_id"] not in (UNSORTED_UNIT, NOISE_UNIT))
    return row


def _is_noise(train: Any) -> bool:
    return train.annotations.get("unit_id") == NOISE_UNIT


def _units(block: Any) -> tuple[list[list[tuple[int, Any]]], list[dict[str, Any]]]:
    """The trains of every unit, and its row in the unit table under a name of its own."""
    groups = _trains(block)
    rows = [_unit_row(parts[0][1]) for parts in groups]
    if len({r["name"] for r in rows}) < len(rows):
        rows = [
            {**r, "name": str(p[0][1].annotations.get("id", r["name"]))}
            for r, p in zip(rows, groups, strict=True)
        ]
    for row, name in zip(rows, unique([r["name"] for r in rows]), strict=True):
        row["name"] = name
    return groups, rows


def _spikes(block: Any, request: Request, shifts: list[float], path: Path) -> tuple[list[Spikes], list[str]]:
    groups, rows = _units(block)
    names: dict[str, list[int]] = {}
    if groups:
        names["spikes"] = [k for k, parts in enumerate(groups) if not _is_noise(parts[0][1])]
        names |= {r["name"]: [k] for k, r in enumerate(rows) if r["name"] != "spikes"}
    default = ["spikes"] if groups else []
    kept = list(
        dict.fromkeys(k for units in request.pick(path, "spikes", names, default=default) for k in units)
    )
    if not kept:
        return [], []
    notes, vectors, n_sorted = [], [], 0
    edges: dict[int, tuple[float, float]] = {}
    for k in kept:
        pieces = []
        for segment, train in groups[k]:
            times = train.load() if hasattr(train, "load") else train
            vector = np.asarray(times.magnitude, dtype=np.float64) * scale_to(times.units, "s")
            if vector.size > 1 and (np.diff(vector) < 0).any():
                n_sorted += 1
                vector = np.sort(vector)
            pieces.append(vector + shifts[segment])
            lo, hi = _seconds(train.t_start) + shifts[segment], _seconds(train.t_stop) + shifts[segment]
            if vector.size and np.isfinite(vector).all():
                lo, hi = min(lo, float(pieces[-1][0])), max(hi, float(pieces[-1][-1]))
            old = edges.get(segment, (lo, hi))
            edges[segment] = (min(lo, old[0]), max(hi, old[1]))
        vectors.append(np.concatenate(pieces))
    if n_sorted:
        notes.append(f"sorted {n_sorted} spike train(s) that the file stores in the order of events")
    n_noise = sum(_is_noise(parts[0][1]) for parts in groups) - sum(_is_noise(groups[k][0][1]) for k in kept)
    if n_noise:
        notes.append(f"left out {n_noise} unit(s) numbered {NOISE_UNIT}, which Blackrock uses for noise")
    unsorted = sum(rows[k].get("unit_id") == UNSORTED_UNIT for k in kept)
    if unsorted:
        notes.append(
            f"{unsorted} of {len(kept)} units hold unsorted spikes (unit 0; see 'sorted' in the unit table)"
        )
    support = np.array([edges[k] for k in sorted(edges)])
    table = pd.DataFrame([rows[k] for k in kept])
    return [
        Spikes.from_trains(vectors, clock=request.clock, name="spikes", units=table, support=support)
    ], notes


def read_block(block: Any, request: Request, path: Path) -> Recording:
    """Turn a neo block, lazy or loaded, into a recording on one clock.

    Raises
    ------
    NoSuchName
        If a selected name is neither a signal, a channel nor a unit.
    LoadError
        If movement channels do not share one rate, or signals change between segments.
    """
    if is_own(block):
        return rebuild(block)
    shifts, shift_note = _starts(block)
    signals = _channels(block)
    notes = [
        f"read {path.name} with neo, {len(block.segments)} segment(s)",
        *([shift_note] if shift_note else []),
    ]
    spikes, more = _spikes(block, request, shifts, path)
    notes += more
    movement, used, more = _movement(signals, request, shifts, path)
    notes += more
    lfp, more = _lfp(signals, request, shifts, used, path)
    notes += more
    streams: list[Stream] = [*spikes, *lfp]
    names = unique([s.name for s in streams])
    streams = [s if s.name == n else replace(s, name=n) for n, s in zip(names, streams, strict=True)]
    return Recording(
        request.clock, request.clock, tuple(streams), movement, _trial_table(block, shifts), tuple(notes)
    )


def _by_name(signals: list[_Channels]) -> dict[str, tuple[_Channels, list[int]]]:
    """Signals as a whole and single channels, as columns of a signal; the first of a name has it."""
    out: dict[str, tuple[_Channels, list[int]]] = {}
    for s in signals:
        out.setdefault(s.name, (s, list(range(len(s.names)))))
    for s in signals:
        for k, channel in enumerate(s.names):
            out.setdefault(channel, (s, [k]))
    return out


def _movement(
    signals: list[_Channels], request: Request, shifts: list[float], path: Path
) -> tuple[Movement | None, set[str], list[str]]:
    places = by_signal(request.pick(path, "movement", _by_name(signals)))
    if not places:
        return None, set(), []
    parts = [_load(s, columns, shifts) for s, columns in places]
    time_s = parts[0][1]
    if any(len(t) != len(time_s) or not np.allclose(t, time_s, atol=1e-6) for _, t in parts):
        rates = listed([f"{s.name} at {s.rate_hz:g} Hz" for s, _ in places])
        raise LoadError(
            f"'{path.name}': movement comes from {rates}; choose channels sampled at the same times."
        )
    axes = [s.names[c] for s, columns in places for c in columns]
    movement, notes = make_movement(
        np.concatenate([v for v, _ in parts], axis=1),
        time_s,
        name=",".join(request.movement or ()),
        axes=axes,
        sample_s=1 / places[0][0].rate_hz,
        units=places[0][0].unit,
        missing=request.missing,
    )
    return movement, set(axes), notes


def _lfp(
    signals: list[_Channels], request: Request, shifts: list[float], used: set[str], path: Path
) -> tuple[list[Signal], list[str]]:
    if request.lfp is None:
        places = [
            (s, [k for k, c in enumerate(s.names) if _role(s, c) == "lfp" and c not in used]) for s in signals
        ]
        places = [(s, columns) for s, columns in places if columns]
    else:
        places = by_signal(request.pick(path, "lfp", _by_name(signals)))
    out, notes = [], []
    for signal, columns in places:
        values, time_s = _load(signal, columns, shifts)
        made, more = make_signal(
            values,
            time_s,
            name="lfp" if len(places) == 1 else signal.name,
            clock=request.clock,
            channels=[signal.names[c] for c in columns],
            sample_s=1 / signal.rate_hz,
            units=signal.unit,
            missing=request.missing,
        )
        out.append(made)
        notes += more
    if request.lfp is None:
        taken = {s.names[c] for s, columns in places for c in columns} | used
        others = [c for s in signals for c in s.names if c not in taken]
        if others:
            notes.append(f"not taken as LFP by name, unit or rate: {listed(others)}")
    return out, notes


def _trial_table(block: Any, shifts: list[float]) -> pd.DataFrame:
    """An epoch array called trials, if there is one."""
    rows = []
    for shift, segment in zip(shifts, block.segments, strict=True):
        for epoch in segment.epochs:
            if str(epoch.name or "").lower() not in ("trial", "trials"):
                continue
            whole = epoch.load() if hasattr(epoch, "load") else epoch
            start = whole.times.rescale("s").magnitude + shift
            table = {"start_s": start, "stop_s": start + whole.durations.rescale("s").magnitude}
            table |= {str(k): np.asarray(v) for k, v in whole.array_annotations.items()}
            rows.append(pd.DataFrame(table))
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame({"start_s": [], "stop_s": []})


def describe_block(block: Any, path: Path, clock: str, format_name: str) -> FileInfo:
    """List what a neo block holds; lazy blocks are not loaded."""
    if is_own(block):
        return describe_recording(rebuild(block), path, format_name)
    _, note = _starts(block)
    items: list[Item] = []
    groups, rows = _units(block)
    n_segments = len(block.segments)
    if groups:
        trains = [t for parts in groups for _, t in parts]
        n_spikes = sum(int(t.shape[0]) for t in trains)
        duration_s = sum(
            max(_seconds(t.t_stop) for t in s.spiketrains) - min(_seconds(t.t_start) for t in s.spiketrains)
            for s in block.segments
            if len(s.spiketrains)
        )
        units = len([1 for parts in groups if not _is_noise(parts[0][1])])
        items.append(
            Item(
                "spikes",
                "spikes",
                n_units=units,
                n_spikes=n_spikes - sum(int(t.shape[0]) for t in trains if _is_noise(t)),
                unit="s",
                duration_s=duration_s,
                clock=clock,
                n_segments=n_segments,
                default=True,
                members=tuple(r["name"] for r in rows),
            )
        )
    for s in _channels(block):
        roles = [_role(s, c) for c in s.names]
        role: Role = "lfp" if "lfp" in roles else "movement" if "movement" in roles else "other"
        items.append(
            Item(
                s.name,
                role,
                n_channels=len(s.names),
                n_samples=s.n_samples,
                rate_hz=s.rate_hz,
                unit=s.unit,
                duration_s=s.n_samples / s.rate_hz,
                clock=clock,
                n_segments=len(s.parts),
                members=s.names,
                default="lfp" in roles,
            )
        )
    for segment in block.segments[:1]:
        items += [Item(str(e.name), "events", shape=(int(e.shape[0]),), clock=clock) for e in segment.events]
        items += [
            Item(
                str(e.name),
                "trials" if "trial" in str(e.name).lower() else "events",
                shape=(int(e.shape[0]),),
                clock=clock,
            )
            for e in segment.epochs
        ]
    return FileInfo(str(path), format_name, tuple(items), (note,) if note else ())


def neo_format(
    name: str,
    io_name: str,
    suffixes: tuple[str, ...],
    *,
    sniff: Callable[[Path], bool] | None = None,
    family: Callable[[Path], Path] | None = None,
    check: Callable[[Path], None] | None = None,
) -> Format:
    """A format read by one of neo's classes, from the path that `family` returns where formats are folders."""

    def where(path: Path) -> Path:
        if check is not None:
            check(path)
        return family(path) if family is not None and "" in suffixes else path

    def describe(path: Path, clock: str) -> FileInfo:
        try:
            block = open_block(where(path), io_name)
        except PausesFound:
            block = open_block(where(path), io_name, gap_tolerance_ms=1.0)
        return describe_block(block, path, clock, name)

    def read(path: Path, request: Request) -> Recording:
        block = open_block(where(path), io_name, gap_tolerance_ms=request.gap_tolerance_ms)
        recording = read_block(block, request, path)
        return recording.but(did=_plexon_end(path, block)) if io_name == "PlexonIO" else recording

    return Format(name, suffixes, describe=describe, read_parts=read, sniff=sniff, family=family)


def _any_neo(io_name: str) -> Format:
    return neo_format(io_name.removesuffix("IO").lower(), io_name, ())


def neo_reader(name: str) -> Format | None:
    """A format for any of neo's readers by name ("axona" or "AxonaIO"), or None."""
    import neo

    known = {io.__name__.lower(): io.__name__ for io in neo.io.iolist}
    found = known.get(name.lower()) or known.get(f"{name.lower()}io")
    if found in ("PickleIO", None):
        return None
    return _any_neo(found)


def neo_candidates(path: Path) -> list[str]:
    """Names of neo's readers that claim a path, except those with a reader of their own here."""
    import neo

    never = {
        "PickleIO",
        "NWBIO",
        "BrainVisionIO",
        "EDFIO",
        "NeoMatlabIO",
        "AsciiSignalIO",
        "AsciiSpikeTrainIO",
    }
    try:
        found = neo.io.list_candidate_ios(str(path))
    except ValueError:  # raised by neo where there is none
        return []
    return [io.__name__ for io in found if io.__name__ not in never]


def _plexon_end(path: Path, block: Any) -> str | None:
    """A note if a .plx stops before the last time stamp in its header."""
    with path.open("rb") as file:
        head = file.read(200)
    (rate_hz,), (last,) = struct.unpack_from("<i", head, 136), struct.unpack_from("<d", head, 192)
    stop_s = max(_seconds(t.t_stop) for s in block.segments for t in [*s.spiketrains, *s.analogsignals])
    if rate_hz <= 0 or not np.isfinite(last) or last / rate_hz <= stop_s + 1e-3:
        return None
    return (
        f"by its header {path.name} lasts to {last / rate_hz:.3f} s, its data end at {stop_s:.3f} s: "
        "the file may be cut short"
    )


def _blackrock_whole(path: Path) -> None:
    """Refuse a .nev that does not end with a whole packet: all have one size, so the copy was cut short."""
    nev = path.with_suffix(".nev")
    if not nev.exists():
        return
    size = nev.stat().st_size
    with nev.open("rb") as file:
        head = file.read(20)
    if len(head) < 20 or head[:8] not in (b"NEURALEV", b"BREVENTS"):
        raise LoadError(
            f"'{nev.name}' is not a Blackrock .nev file or is cut short: its header is not there."
        )
    start, packet = (int.from_bytes(head[k : k + 4], "little") for k in (12, 16))
    if packet <= 0 or size < start or (size - start) % packet:
        raise LoadError(
            f"'{nev.name}' is cut short: its {size} bytes do not end with a whole packet of {packet} bytes."
        )


def _starts_with(*heads: bytes) -> Callable[[Path], bool]:
    def sniff(path: Path) -> bool:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(64).startswith(heads)

    return sniff


def _folder(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def _spikeglx_check(path: Path) -> None:
    if path.suffix == ".meta" and not path.with_suffix(".bin").exists():
        raise LoadError(
            f"'{path.name}' needs its samples '{path.with_suffix('.bin').name}' in the same folder; not there."
        )
    if path.suffix == ".bin" and not path.with_suffix(".meta").exists():
        raise LoadError(
            f"'{path.name}' needs its header '{path.with_suffix('.meta').name}' in the same folder; not there."
        )


def _spikeglx_run(path: Path) -> Path:
    """The run folder (`NAME_g0`), which holds the probes' folders."""
    folder = _folder(path)
    return (
        folder.parent
        if re.search(r"_imec\d+$", folder.name) and re.search(r"_g\d+$", folder.parent.name)
        else folder
    )


def _openephys_root(path: Path) -> Path:
    """The folder of the whole session: the one that holds `experimentN`, or the folder given."""
    folder = _folder(path)
    for parent in (folder, *folder.parents):
        if re.fullmatch(r"experiment\d+", parent.name):
            return parent.parent
    return folder


def _holds(*patterns: str) -> Callable[[Path], bool]:
    def sniff(path: Path) -> bool:
        folder = _folder(path)
        return any(next(iter(folder.glob(p)), None) is not None for p in patterns)

    return sniff


def _is_nix(path: Path) -> bool:
    import h5py

    if not path.is_file() or not h5py.is_hdf5(path):
        return False
    with h5py.File(path, "r") as file:
        return file.attrs.get("format") in ("nix", b"nix")


_BLACKROCK = (".nev", *(f".ns{k}" for k in range(1, 7)))
_NEURALYNX = (".ncs", ".nse", ".ntt", ".nvt", ".nev")

FORMATS = (
    neo_format(
        "blackrock",
        "BlackrockIO",
        _BLACKROCK,
        sniff=_starts_with(b"NEURALEV", b"BREVENTS", b"NEURALSG", b"NEURALCD", b"BRSMPGRP"),
        family=lambda p: p.with_suffix(""),
        check=_blackrock_whole,
    ),
    neo_format(
        "neuralynx",
        "NeuralynxIO",
        (*_NEURALYNX, ""),
        sniff=lambda p: (
            _holds("*.ncs", "*.nse", "*.ntt")(p) if p.is_dir() else _starts_with(b"######## Neuralynx")(p)
        ),
        family=_folder,
    ),
    neo_format("plexon", "PlexonIO", (".plx",)),
    neo_format("plexon2", "Plexon2IO", (".pl2",)),
    neo_format("spike2", "Spike2IO", (".smr",)),
    neo_format(
        "spikeglx",
        "SpikeGLXIO",
        (".bin", ".meta", ""),
        sniff=lambda p: (
            _holds("*.meta", "*/*.meta")(p)
            if p.is_dir()
            else ".meta" in p.name or p.with_suffix(".meta").exists()
        ),
        family=_spikeglx_run,
        check=_spikeglx_check,
    ),
    neo_format(
        "openephys",
        "OpenEphysBinaryIO",
        (".oebin", ".dat", ""),
        sniff=lambda p: _holds(
            "structure.oebin",
            "experiment*/recording*/structure.oebin",
            "*/experiment*/recording*/structure.oebin",
        )(_openephys_root(p)),
        family=_openephys_root,
    ),
    neo_format("nix", "NixIO", (".nix", ".h5"), sniff=_is_nix),
)
