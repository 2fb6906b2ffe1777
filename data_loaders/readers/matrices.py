"""In: the arrays of a plain file and what its user states about them. Out: a recording.

A plain file states no rates, units or roles. Time is the axis whose length a time vector has, else the one
that all chosen matrices share, else the longer one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_loaders.formats import (
    PARTS,
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
from data_loaders.guess_roles import is_time, matrix_role, times_of
from data_loaders.readers import spike_lists
from data_loaders.readers.plain_arrays import Leaf, Ragged, as_trains, open_arrays
from data_loaders.readers.sampled import make_movement, make_signal, plain_kind, regular_times
from neurofuse.recording import FloatArray, Recording, Spikes, Stream

# A time vector and a stated rate that differ by more than this contradict each other.
RATE_TOLERANCE = 0.01


@dataclass(frozen=True)
class _Chosen:
    """A matrix that was chosen for a role: samples x columns once its time axis is known."""

    role: Part
    name: str
    leaves: tuple[Leaf, ...]
    values: NDArray[Any]
    columns: tuple[str, ...]


def _candidates(leaves: dict[str, Leaf]) -> dict[str, Leaf]:
    """Arrays that could be data: not text, not one number, not a time axis."""
    return {
        n: leaf
        for n, leaf in leaves.items()
        if leaf.kind in ("numbers", "ragged")
        and (leaf.kind == "ragged" or int(np.prod(leaf.shape)) > 1)
        and not is_time(n)
        and times_of(n) not in leaves
    }


def _groups(names: list[str]) -> list[str]:
    found: list[str] = []
    for name in names:
        parts = re.split(r"([/.])", name)
        found += ["".join(parts[: k + 1]) for k in range(0, len(parts) - 1, 2)]
    return list(dict.fromkeys(found))


def _by_name(leaves: dict[str, Leaf]) -> dict[str, tuple[str, list[Leaf]]]:
    """What can be picked: every array of numbers, and every group with the arrays in it."""
    out = {n: (n, [leaf]) for n, leaf in leaves.items() if leaf.kind in ("numbers", "ragged")}
    for group in _groups(list(leaves)):
        inside = [x for n, x in leaves.items() if n.startswith((f"{group}/", f"{group}."))]
        held = [x for x in inside if x.kind in ("numbers", "ragged")]
        out.setdefault(group, (group, [x for x in held if not is_time(x.name)] or held))
    return out


def _defaults(path: Path, leaves: dict[str, Leaf], role: Part, *, only: bool) -> list[tuple[str, list[Leaf]]]:
    """What a file offers for a role by the names of its arrays, or all it holds if this is the `only` role."""
    held = _candidates(leaves)
    pair = spike_lists.find_list(leaves)
    if role == "spikes" and pair is not None:
        return [(pair[0].name, list(pair))]
    by_name = [n for n in held if matrix_role(n) == role]
    if by_name and (only or role != "movement"):
        return [(n, [held[n]]) for n in by_name]
    if not only:
        return []
    tables = [leaf for leaf in held.values() if len(leaf.shape) == 1 and leaf.kind == "numbers"]
    if len(held) == 1 or (len(tables) == len(held) and path.suffix.lower() in (".csv", ".tsv", ".txt")):
        return [(path.stem, list(held.values()))] if held else []
    if role == "spikes" and not held:
        times = [leaf for n, leaf in leaves.items() if is_time(n) and leaf.kind == "numbers"]
        return [(path.stem, times)] if len(times) == 1 else []
    if len(held) > 1:
        raise LoadError(
            f"'{path.name}' does not state which of its arrays is the {role}; it has {listed(list(held))}: "
            f"pass --{role} '{path.name}::NAME'."
        )
    return []


def _picked(
    path: Path, request: Request, leaves: dict[str, Leaf], role: Part, *, only: bool
) -> list[tuple[str, list[Leaf]]]:
    names = request.names(role)
    if names is None:
        return _defaults(path, leaves, role, only=only)
    for name in names:
        if name in leaves and leaves[name].kind not in ("numbers", "ragged"):
            raise LoadError(f"'{path.name}': '{name}' does not hold real numbers, so it cannot be {role}.")
    return request.pick(path, role, _by_name(leaves))


def _matrix(path: Path, leaf: Leaf) -> NDArray[Any]:
    values = np.asarray(leaf.load())
    values = values.squeeze() if values.ndim > 2 or 1 in values.shape else values
    if values.ndim == 0 or values.ndim > 2 or values.dtype.kind not in "fiub":
        raise LoadError(
            f"'{path.name}': '{leaf.name}' has shape {values.shape}; a matrix of samples is needed."
        )
    if values.size == 0:
        raise LoadError(
            f"'{path.name}': '{leaf.name}' is empty (shape {leaf.shape}); choose an array with samples."
        )
    return values


def _integers(values: NDArray[Any]) -> bool:
    if values.dtype.kind in "iub":
        return True
    finite = values[np.isfinite(values)]
    return bool((finite == np.round(finite)).all() and (finite >= 0).all())


def _joined(role: Part, path: Path, picks: list[tuple[str, list[Leaf]]]) -> list[_Chosen]:
    """One matrix per item; items that are single columns of equal length are put together in one matrix."""
    out: list[_Chosen] = []
    vectors: list[tuple[Leaf, NDArray[Any]]] = []
    for name, leaves in picks:
        for leaf in leaves:
            values = _matrix(path, leaf)
            if values.ndim == 1:
                vectors.append((leaf, values))
            else:
                out.append(_Chosen(role, leaf.name if len(leaves) > 1 else name, (leaf,), values, ()))
    for length in dict.fromkeys(v.size for _, v in vectors):
        same = [(leaf, v) for leaf, v in vectors if v.size == length]
        names = [leaf.name for leaf, _ in same]
        label = picks[0][0] if len(picks) == 1 else ",".join(names) if len(names) < 4 else path.stem
        out.append(
            _Chosen(
                role, label, tuple(x for x, _ in same), np.stack([v for _, v in same], axis=1), tuple(names)
            )
        )
    return out


def _time_vector(
    chosen: _Chosen, leaves: dict[str, Leaf], scale: float, path: Path
) -> tuple[str, FloatArray] | None:
    """The time vector that belongs to a matrix: one named after it, one in its group, else one at the top."""
    own = {leaf.name for leaf in chosen.leaves}
    lengths = set(chosen.values.shape) if not chosen.columns else {len(chosen.values)}
    first = chosen.leaves[0].name
    near = "".join(re.split(r"([/.])", first)[:-1])

    def rank(name: str) -> int | None:
        if times_of(name) in own:
            return 0
        if not is_time(name):
            return None
        parent = "".join(re.split(r"([/.])", name)[:-1])
        return 1 if parent == near else 2 if parent == "" else None

    ranked = sorted(
        (r, n)
        for n, leaf in leaves.items()
        if n not in own
        and leaf.kind == "numbers"
        and spike_lists.is_vector(leaf)
        and int(np.prod(leaf.shape)) in lengths
        and int(np.prod(leaf.shape)) > 1
        and (r := rank(n)) is not None
    )
    if not ranked:
        return None
    name = ranked[0][1]
    times = np.ravel(leaves[name].load()).astype(np.float64) * scale
    if not np.isfinite(times).all() or (np.diff(times) < 0).any():
        raise LoadError(
            f"'{path.name}': the time vector '{name}' is not in order or not finite; sort or clean it."
        )
    return name, times


def _orient(
    chosen: list[_Chosen], vectors: list[tuple[str, FloatArray] | None]
) -> tuple[list[NDArray[Any]], list[str]]:
    free = [set(c.values.shape) for c in chosen if not c.columns]
    fixed = [{len(c.values)} for c in chosen if c.columns]
    shared = set.intersection(*free, *fixed) if len(chosen) > 1 else set()
    out, notes = [], []
    for c, vector in zip(chosen, vectors, strict=True):
        rows, columns = c.values.shape
        if c.columns:
            turn = False
        elif vector is not None:
            turn = len(vector[1]) == columns and columns != rows
        elif len(shared) == 1:
            turn = columns in shared and rows not in shared
        else:
            turn = columns > rows
        out.append(c.values.T if turn else c.values)
        if turn:
            notes.append(f"{c.name}: transposed from {rows} x {columns} so that time runs down")
    return out, notes


def _axis(
    path: Path,
    c: _Chosen,
    n: int,
    vector: tuple[str, FloatArray] | None,
    request: Request,
    lengths: dict[str, set[int]],
) -> tuple[FloatArray, float]:
    """Sample times (s) and sampling interval (s) of a matrix."""
    bin_s, rate_s = request.bin_s, None if request.rate_hz is None else 1.0 / request.rate_hz
    if c.role == "spikes":
        stated, option = bin_s, "--bin"
    elif c.role == "lfp":
        stated, option = rate_s, "--rate"
    else:
        stated, option = None, ""
    if vector is not None:
        name, times = vector
        step = float(np.median(np.diff(times)))
        if stated is not None and abs(step - stated) > RATE_TOLERANCE * stated:
            raise LoadError(
                f"'{path.name}': {option} is {stated:g} s per sample for '{c.name}' but its time vector "
                f"'{name}' steps by {step:g} s; leave {option} out, or pass --time-unit if it is not in s."
            )
        return times, stated or step
    if stated is None:
        by_rate = (
            c.role == "movement" and rate_s is not None and n in lengths["lfp"] and n not in lengths["spikes"]
        )
        stated = (
            rate_s if by_rate else bin_s if bin_s is not None else rate_s if c.role == "movement" else None
        )
    if stated is None:
        raise LoadError(
            f"'{path.name}' does not state how fast '{c.name}' ({n} samples) was sampled; pass "
            + (
                "--bin SECONDS."
                if c.role == "spikes"
                else f"--rate HZ or --bin SECONDS, add a time vector 't', or pass --{c.role} none."
            )
        )
    if stated == rate_s and request.rate_hz is not None:
        return regular_times(n, rate_hz=request.rate_hz), stated
    return np.arange(n, dtype=np.float64) * stated, stated


def _check_lengths(
    path: Path,
    chosen: list[_Chosen],
    oriented: list[NDArray[Any]],
    vectors: list[tuple[str, FloatArray] | None],
    request: Request,
) -> None:
    """Matrices timed by one bin width from zero must be equally long, or they slip against each other."""
    binned = [
        (c.name, len(values))
        for c, values, vector in zip(chosen, oriented, vectors, strict=True)
        if vector is None and not (request.rate_hz is not None and c.role != "spikes")
    ]
    if request.bin_s is not None and len({n for _, n in binned}) > 1:
        sizes = ", ".join(f"'{name}' {n}" for name, n in binned)
        raise LoadError(
            f"'{path.name}': with one --bin the matrices must be equally long, but samples are {sizes}; "
            "add a time vector to each, or load them from files of their own."
        )


def _spike_times(
    path: Path, name: str, picked: list[Leaf], leaves: dict[str, Leaf], request: Request
) -> Spikes | None:
    """Spikes, if the chosen arrays hold times; None if they hold counts."""
    scale, clock = request.time_scale, request.clock
    label = re.split(r"[/.]", name)[-1] or name
    pair = spike_lists.find_list(leaves, near=name)
    if pair is None and len(picked) == 2:
        pair = spike_lists.find_list({leaf.name: leaf for leaf in picked})
    if pair is not None:
        label = "spikes" if is_time(label) else label
        return spike_lists.from_list(
            path, pair[0].load(), pair[1].load(), name=label, clock=clock, scale=scale
        )
    if any(leaf.kind == "ragged" for leaf in picked):
        parts = [leaf.load() if leaf.kind == "ragged" else as_trains(leaf.load()) for leaf in picked]
        vectors = tuple(v for p in parts for v in p.vectors)
        paths = tuple(
            q if len(parts) == 1 else f"{leaf.name}.{q}"
            for leaf, p in zip(picked, parts, strict=True)
            for q in p.paths
        )
        ranges = tuple(r for p in parts for r in p.ranges)
        return spike_lists.from_ragged(Ragged(vectors, paths, ranges), name=label, clock=clock, scale=scale)
    if not all(spike_lists.is_vector(leaf) for leaf in picked):
        return None
    values = [np.ravel(leaf.load()) for leaf in picked]
    chosen = _Chosen("spikes", name, tuple(picked), np.empty((values[0].size, 1)), (name,))
    binned = request.bin_s is not None or _time_vector(chosen, leaves, scale, path) is not None
    if binned and all(_integers(v) for v in values):
        return None
    names = tuple(re.split(r"[/.]", leaf.name)[-1] for leaf in picked)
    trains = tuple(v.astype(np.float64) for v in values)
    return Spikes.from_trains([t * scale for t in trains], clock=clock, name=label, unit_names=names)


def _read(path: Path, request: Request) -> Recording:
    leaves = open_arrays(path)
    only = sum(request.names(role) != () for role in PARTS) == 1
    notes = [f"read {path.name} (plain arrays)"]
    streams: list[Stream] = []
    chosen: list[_Chosen] = []
    count_picks = []
    for name, picked in _picked(path, request, leaves, "spikes", only=only):
        spikes = _spike_times(path, name, picked, leaves, request)
        if spikes is None:
            count_picks.append((name, picked))
        else:
            streams.append(spikes)
    chosen += _joined("spikes", path, count_picks)
    chosen += _joined("lfp", path, _picked(path, request, leaves, "lfp", only=only))
    chosen += _joined("movement", path, _picked(path, request, leaves, "movement", only=only))
    vectors = [_time_vector(c, leaves, request.time_scale, path) for c in chosen]
    oriented, turned = _orient(chosen, vectors)
    notes += turned
    lengths: dict[str, set[int]] = {"spikes": set(), "lfp": set(), "movement": set()}
    for c, values in zip(chosen, oriented, strict=True):
        lengths[c.role].add(len(values))
    _check_lengths(path, chosen, oriented, vectors, request)
    movement_parts = []
    for c, values, vector in zip(chosen, oriented, vectors, strict=True):
        time_s, sample_s = _axis(path, c, len(values), vector, request, lengths)
        columns = list(c.columns) or [f"{c.name} {k + 1}" for k in range(values.shape[1])]
        if c.role == "movement":
            movement_parts.append((c.name, values, time_s, sample_s, columns))
            continue
        if c.role == "spikes" and not _integers(values):
            raise LoadError(
                f"'{path.name}': '{c.name}' is no matrix of spike counts, whose entries are whole numbers "
                f"from 0 up (its smallest is {np.nanmin(values):g}); pass it as --lfp if it is a signal."
            )
        kind = "counts" if c.role == "spikes" else plain_kind(sample_s)
        signal, more = make_signal(
            values,
            time_s,
            name=c.name,
            clock=request.clock,
            channels=columns,
            sample_s=sample_s,
            kind=kind,
            units="spikes" if kind == "counts" else "",
            missing=request.missing,
        )
        streams.append(signal)
        notes += more
    movement = None
    if movement_parts:
        _, _, time_s, sample_s, _ = movement_parts[0]
        if any(len(p[2]) != len(time_s) or not np.allclose(p[2], time_s) for p in movement_parts):
            raise LoadError(
                f"'{path.name}': {listed([p[0] for p in movement_parts])} do not share one time axis; "
                "choose movement sampled together."
            )
        movement, more = make_movement(
            np.concatenate([p[1] for p in movement_parts], axis=1),
            time_s,
            name=",".join(p[0] for p in movement_parts),
            axes=[c for p in movement_parts for c in p[4]],
            sample_s=sample_s,
            missing=request.missing,
        )
        notes += more
    if not streams and movement is None:
        raise LoadError(
            f"nothing in '{path.name}' is spikes or LFP by its name; it has "
            f"{listed([n for n, x in leaves.items() if x.kind != 'text'])}: "
            "pass --spikes, --lfp or --movement NAME."
        )
    labels = unique([s.name for s in streams])
    renamed = tuple(replace(s, name=n) for s, n in zip(streams, labels, strict=True))
    return Recording(request.clock, request.clock, renamed, movement, provenance=tuple(notes))


def _describe(path: Path, clock: str) -> FileInfo:
    leaves = open_arrays(path)
    held = _candidates(leaves)
    pair = spike_lists.find_list(leaves)
    items = []
    if pair is not None:
        n_units = len(np.unique(np.ravel(pair[1].load())))
        items.append(
            Item(
                pair[0].name,
                "spikes",
                n_units=n_units,
                n_spikes=int(np.prod(pair[0].shape)),
                clock=clock,
                members=(pair[1].name,),
                default=True,
            )
        )
    for name, leaf in leaves.items():
        if leaf.kind not in ("numbers", "ragged") or (pair is not None and leaf in pair):
            continue
        role: Role = matrix_role(name) if name in held else "other"
        default = name in held and role in ("spikes", "lfp") and not (pair is not None and role == "spikes")
        if leaf.kind == "ragged" and name in held:
            try:
                ragged = leaf.load()
            except LoadError:
                items.append(Item(name, "other", shape=leaf.shape, clock=clock))
                continue
            n_spikes = sum(v.size for v in ragged.vectors)
            items.append(
                Item(
                    name,
                    "spikes",
                    n_units=len(ragged.vectors),
                    n_spikes=n_spikes,
                    clock=clock,
                    default=default,
                )
            )
            continue
        items.append(Item(name, role, shape=leaf.shape, clock=clock, default=default))
    return FileInfo(
        str(path), path.suffix.lower().lstrip("."), tuple(items), ("plain arrays: roles are guesses",)
    )


def _plain(name: str, *suffixes: str) -> Format:
    return Format(name, suffixes, describe=_describe, read_parts=_read, plain=True)


FORMATS = (
    _plain("mat", ".mat"),
    _plain("npz", ".npz"),
    _plain("npy", ".npy"),
    _plain("h5", ".h5", ".hdf5", ".hdf"),
    _plain("csv", ".csv", ".tsv", ".txt"),
    _plain("netcdf", ".nc", ".cdf"),
)
