"""In: a session of the indy/loco random-target set (MATLAB 7.3). Out: named units and fingertip or cursor movement.

Each file (Zenodo 3854034) holds `spikes`, a cell of channel x unit whose first column is what sorting left
over; `chan_names`; the time vector `t` (s, 250 Hz); `cursor_pos` and `target_pos` (mm); `finger_pos` (cm).
Waveforms (`wf`), the greater part of a file, are never read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from data_loaders.formats import FileInfo, Format, Item, Request
from data_loaders.readers.plain_arrays import is_hdf5
from data_loaders.readers.sampled import make_movement
from neurofuse.recording import FloatArray, Recording, Spikes

# What each matrix is measured in, and its columns. The tracker's own order is (z, -x, -y, angles).
POSITIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "cursor_pos": ("mm", ("x", "y")),
    "finger_pos": ("cm", ("z", "-x", "-y", "azimuth", "elevation", "roll")),
    "target_pos": ("mm", ("x", "y")),
}


def is_random_target(path: Path) -> bool:
    """Whether a MATLAB 7.3 file holds the arrays of this set."""
    import h5py

    if not is_hdf5(path):
        return False
    with h5py.File(path, "r") as file:
        return {"spikes", "chan_names", "t", "cursor_pos"} <= set(file)


def _trains(file: Any) -> tuple[list[FloatArray], pd.DataFrame]:
    """Spike times of every unit that fired, and where each was recorded."""
    channels = ["".join(chr(int(c)) for c in np.ravel(file[r][()])) for r in np.ravel(file["chan_names"][()])]
    trains, rows = [], []
    # HDF5 shows MATLAB's channel x unit cell as unit x channel.
    for unit, cells in enumerate(np.atleast_2d(file["spikes"][()])):
        for channel, ref in zip(channels, cells, strict=True):
            cell = file[ref]
            # An empty cell is no null reference: it is a dataset of two zeros, marked as empty.
            if "MATLAB_empty" in cell.attrs or not cell.size:
                continue
            trains.append(np.ravel(cell[()]).astype(np.float64))
            rows.append((f"{channel} u{unit + 1}", channel, channel.split()[0], unit > 0))
    return trains, pd.DataFrame(rows, columns=["name", "channel", "area", "sorted"])


def _axes(name: str, n: int) -> tuple[str, ...]:
    return tuple(f"{name.removesuffix('_pos')} {a}" for a in POSITIONS[name][1][:n])


def _describe(path: Path, clock: str) -> FileInfo:
    import h5py

    with h5py.File(path, "r") as file:
        trains, units = _trains(file)
        time_s = np.ravel(file["t"][()])
        shapes = {n: int(file[n].shape[0]) for n in POSITIONS if n in file}
    n_spikes = sum(t.size for t in trains)
    step_s = float(np.median(np.diff(time_s)))
    items = [
        Item(
            "spikes",
            "spikes",
            n_units=len(trains),
            n_spikes=n_spikes,
            unit="s",
            clock=clock,
            members=tuple(units["name"]),
            default=True,
        )
    ]
    items += [
        Item(
            name,
            "movement",
            n_channels=n,
            n_samples=time_s.size,
            rate_hz=1 / step_s,
            unit=POSITIONS[name][0],
            duration_s=time_s.size * step_s,
            clock=clock,
            members=_axes(name, n),
            default=name == "cursor_pos",
        )
        for name, n in shapes.items()
    ]
    return FileInfo(str(path), FORMAT.name, tuple(items), ("unit u1 of a channel is what sorting left over",))


def _read(path: Path, request: Request) -> Recording:
    import h5py

    notes = [f"read {path.name} (random-target set)"]
    streams: tuple[Spikes, ...] = ()
    movement = None
    with h5py.File(path, "r") as file:
        if request.spikes != ():
            trains, units = _trains(file)
            streams = (Spikes.from_trains(trains, clock=request.clock, units=units),)
        matrices = {n: _axes(n, int(file[n].shape[0])) for n in POSITIONS if n in file}
        columns = {axis: (n, k) for n, axes in matrices.items() for k, axis in enumerate(axes)}
        picked = request.pick(
            path, "movement", {**matrices, **{c: (c,) for c in columns}}, default=("cursor_pos",)
        )
        if picked:
            chosen = list(dict.fromkeys(c for axes in picked for c in axes))
            of = list(dict.fromkeys(columns[c][0] for c in chosen))
            values: dict[str, NDArray[Any]] = {n: file[n][()].T for n in of}
            time_s = np.ravel(file["t"][()]).astype(np.float64)
            movement, more = make_movement(
                np.stack([values[columns[c][0]][:, columns[c][1]] for c in chosen], axis=1),
                time_s,
                name=",".join(of),
                axes=chosen,
                sample_s=float(np.median(np.diff(time_s))),
                units=" and ".join(dict.fromkeys(POSITIONS[n][0] for n in of)),
                missing=request.missing,
            )
            notes += more
    return Recording(request.clock, request.clock, streams, movement, provenance=tuple(notes))


FORMAT = Format("random-target", (".mat",), describe=_describe, read_parts=_read, sniff=is_random_target)
