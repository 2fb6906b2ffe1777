"""In: a `trial_data` struct array (one struct per trial, MATLAB). Out: its trials on one time axis.

The field's convention: each trial holds matrices of bins x columns (`pos`, `vel`, `M1_spikes` ...), one
`bin_size`, and events as 1-based bin numbers (`idx_go_cue` ...).
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from data_loaders.formats import FileInfo, Format, Item, LoadError, Request
from data_loaders.readers.plain_arrays import Leaf, is_hdf5, open_arrays
from data_loaders.readers.sampled import UNKNOWN_GAP_S, make_movement, make_signal, plain_kind
from neurofuse.recording import FloatArray, Recording, Signal

DEFAULT_BIN_S = 0.05
_AXES = ("x", "y", "z")
_NOT_MOVEMENT = ("_spikes", "_unit_guide", "_lfp", "_lfp_guide", "_ts", "_pca")


def _trials(path: Path) -> list[dict[str, Any]]:
    leaf = _leaf(open_arrays(path))
    if leaf is None:
        raise LoadError(
            f"'{path.name}' holds no trial_data struct array; its fields should be like 'pos', 'M1_spikes'."
        )
    trials: list[dict[str, Any]] = leaf.load()
    return trials


def _leaf(leaves: dict[str, Leaf]) -> Leaf | None:
    for leaf in leaves.values():
        if leaf.kind == "structs":
            fields = leaf.load()[0]
            if any(f.endswith("_spikes") for f in fields) or any(f.startswith("idx_") for f in fields):
                return leaf
    return None


def is_trial_data(path: Path) -> bool:
    """Whether a MATLAB file holds a struct array with spikes or events per trial."""
    if is_hdf5(path):
        import h5py

        # A struct is a group there; a file without one need not be read, however many cells it holds.
        with h5py.File(path, "r") as file:
            if not any(isinstance(file[n], h5py.Group) for n in file if not n.startswith("#")):
                return False
    return _leaf(open_arrays(path)) is not None


def _is_matrix(value: object) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind in "fiub" and value.ndim == 2


def _bins(trials: list[dict[str, Any]]) -> tuple[list[str], NDArray[np.int64]]:
    """Fields that hold one row per bin in every trial, and the number of bins of each trial."""
    numeric = [f for f in trials[0] if all(_is_matrix(t.get(f)) for t in trials)]
    lead = next(
        (f for f in ("pos", "vel", *(n for n in numeric if n.endswith("_spikes"))) if f in numeric), None
    )
    if lead is None:
        raise LoadError(
            f"no field holds one row per bin (such as 'pos' or 'M1_spikes'); the fields are {list(trials[0])}."
        )
    n_bins = np.array([t[lead].shape[0] for t in trials])
    timed = [f for f in numeric if all(t[f].shape[0] == n for t, n in zip(trials, n_bins, strict=True))]
    return [f for f in timed if (n_bins > 1).any() and not f.startswith("idx_")], n_bins


def _bin_s(trials: list[dict[str, Any]], bin_s: float | None) -> tuple[float, str]:
    stated = {float(np.ravel(t["bin_size"])[0]) for t in trials if np.size(t.get("bin_size", ())) == 1}
    if len(stated) > 1:
        raise LoadError(f"trials have different bin sizes ({sorted(stated)} s); bin them alike first.")
    if stated:
        own = stated.pop()
        if bin_s is not None and not np.isclose(own, bin_s):
            raise LoadError(f"the file states bins of {own:g} s but --bin is {bin_s:g} s; leave --bin out.")
        return own, f"bins of {own:g} s as the file states"
    if bin_s is not None:
        return bin_s, f"bins of {bin_s:g} s as given"
    return DEFAULT_BIN_S, f"no bin size in the file, took the usual {DEFAULT_BIN_S:g} s"


def _starts(
    trials: list[dict[str, Any]], n_bins: NDArray[np.int64], bin_s: float
) -> tuple[NDArray[np.int64], str]:
    """First bin of every trial; a jump in position that no step inside a trial explains leaves a gap."""
    gap = np.zeros(len(trials), dtype=np.int64)
    note = "trials follow one another without gaps (there is no position to show gaps)"
    if all(
        isinstance(t.get("pos"), np.ndarray) and t["pos"].shape[0] == n
        for t, n in zip(trials, n_bins, strict=True)
    ):
        steps = np.concatenate([np.linalg.norm(np.diff(t["pos"], axis=0), axis=1) for t in trials])
        finite = steps[np.isfinite(steps)]
        most = float(finite.max()) if finite.size else np.inf
        edge = [np.linalg.norm(b["pos"][0] - a["pos"][-1]) for a, b in pairwise(trials)]
        jumps = np.asarray(edge) > most
        gap[1:][jumps] = round(UNKNOWN_GAP_S / bin_s)
        n_jumps = int(jumps.sum())
        note = (
            f"{len(trials)} trials joined in {1 + n_jumps} stretch(es): at {n_jumps} borders "
            f"the position jumps by more than any step inside a trial ({most:.3g}), and a gap of "
            f"{UNKNOWN_GAP_S:g} s was put there"
        )
    return np.cumsum(gap) + np.concatenate([[0], np.cumsum(n_bins)[:-1]]), note


def _unit_names(field: str, trial: dict[str, Any], n_units: int) -> list[str]:
    array = field.removesuffix("_spikes")
    guide = np.asarray(trial.get(f"{array}_unit_guide", ()))
    if guide.shape == (n_units, 2) and len(np.unique(guide, axis=0)) == n_units:
        return [f"{array} ch{int(c)} u{int(u)}" for c, u in guide]
    return [f"{array} {k + 1}" for k in range(n_units)]


def _events(
    trials: list[dict[str, Any]],
    starts: NDArray[np.int64],
    n_bins: NDArray[np.int64],
    timed: list[str],
    bin_s: float,
) -> tuple[pd.DataFrame, list[str]]:
    table: dict[str, Any] = {"start_s": starts * bin_s, "stop_s": (starts + n_bins) * bin_s}
    skipped = []
    for field in trials[0]:
        if field in timed or field == "bin_size" or field.endswith("_guide"):
            continue
        values = [np.ravel(t.get(field, np.nan)) for t in trials]
        if all(v.size == 1 and v.dtype.kind == "U" for v in values):
            table[field] = [str(v[0]) for v in values]
        elif all(v.size <= 1 and v.dtype.kind in "fiub" for v in values):
            column = np.array([float(v[0]) if v.size else np.nan for v in values])
            if field.startswith("idx_"):
                # MATLAB counts bins from 1: bin 1 starts where the trial starts.
                table[f"{field.removeprefix('idx_')}_s"] = (starts + column - 1) * bin_s
            else:
                table[field] = column
        else:
            skipped.append(field)
    return pd.DataFrame(table), skipped


def _axis_names(fields: list[str], trial: dict[str, Any]) -> list[str]:
    axes: list[str] = []
    for field in fields:
        n = trial[field].shape[1]
        labels = [*_AXES[:n]] if n <= 3 else [str(k + 1) for k in range(n)]
        axes += [f"{field} {a}" if len(fields) > 1 or n > 3 else a for a in labels] if n > 1 else [field]
    return axes


def _describe(path: Path, clock: str) -> FileInfo:
    trials = _trials(path)
    timed, n_bins = _bins(trials)
    bin_s, note = _bin_s(trials, None)
    items = []
    for field in timed:
        n_columns = int(trials[0][field].shape[1])
        counts, lfp = field.endswith("_spikes"), field.endswith("_lfp")
        movement = not field.endswith(_NOT_MOVEMENT)
        items.append(
            Item(
                field,
                "counts" if counts else "lfp" if lfp else "movement" if movement else "other",
                n_units=n_columns if counts else None,
                n_channels=None if counts else n_columns,
                n_samples=int(n_bins.sum()),
                rate_hz=1 / bin_s,
                duration_s=float(n_bins.sum() * bin_s),
                clock=clock,
                default=counts or lfp or field == "vel",
            )
        )
    items.append(Item("trials", "trials", shape=(len(trials),), clock=clock, default=True))
    return FileInfo(str(path), FORMAT.name, tuple(items), (note,))


def _read(path: Path, request: Request) -> Recording:
    trials = _trials(path)
    timed, n_bins = _bins(trials)
    bin_s, bin_note = _bin_s(trials, request.bin_s)
    starts, join_note = _starts(trials, n_bins, bin_s)
    bins = np.concatenate([s + np.arange(n) for s, n in zip(starts, n_bins, strict=True)])
    time_s: FloatArray = bins * bin_s
    notes = [f"read {path.name} (trial_data, {len(trials)} trials; {bin_note})", join_note]

    def whole(field: str) -> NDArray[np.generic]:
        return np.concatenate([t[field] for t in trials])

    fields = {f: f for f in timed}
    counts = request.pick(path, "spikes", fields, default=[f for f in timed if f.endswith("_spikes")])
    lfp = request.pick(path, "lfp", fields, default=[f for f in timed if f.endswith("_lfp")])
    moved = request.pick(path, "movement", fields, default=[f for f in timed if f == "vel"])
    streams: list[Signal] = []
    for k, field in enumerate((*counts, *lfp)):
        counted, n = k < len(counts), trials[0][field].shape[1]
        names = _unit_names(field, trials[0], n) if counted else [f"{field} {c + 1}" for c in range(n)]
        signal, more = make_signal(
            whole(field),
            time_s,
            name=field,
            clock=request.clock,
            channels=names,
            sample_s=bin_s,
            units="spikes" if counted else "",
            kind="counts" if counted else plain_kind(bin_s),
            missing=request.missing,
        )
        streams.append(signal)
        notes += more
    movement = None
    if moved:
        movement, more = make_movement(
            np.concatenate([whole(f) for f in moved], axis=1).astype(np.float64),
            time_s,
            name=",".join(moved),
            axes=_axis_names(moved, trials[0]),
            sample_s=bin_s,
            missing=request.missing,
        )
        notes += more
    table, skipped = _events(trials, starts, n_bins, timed, bin_s)
    if skipped:
        notes.append(f"fields that are not one value per trial were left out: {', '.join(skipped)}")
    return Recording(request.clock, request.clock, tuple(streams), movement, table, tuple(notes))


FORMAT = Format(
    "trial_data", (".mat",), describe=_describe, read_parts=_read, sniff=is_trial_data, plain=True
)
