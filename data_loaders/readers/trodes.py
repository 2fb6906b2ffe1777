"""In: a Trodes `.videoPositionTracking` file. Out: where the animal was, as movement on its clock."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_loaders.formats import FileInfo, Format, Item, LoadError
from data_loaders.readers.sampled import make_movement
from neurofuse.recording import FloatArray, Recording

_NUMPY = {
    "uint8": "<u1",
    "uint16": "<u2",
    "uint32": "<u4",
    "int16": "<i2",
    "int32": "<i4",
    "float": "<f4",
    "double": "<f8",
}


def read_tracking(path: Path) -> tuple[FloatArray, dict[str, NDArray[np.generic]], dict[str, str]]:
    """Read times (s) and coordinates (pixels).

    Returns
    -------
    time_s : array, shape (n_frames,)
        Camera times divided by the clock rate that the header states.
    fields : dict of str to array
        Each coordinate; those of a second light that was not tracked (all zero) are left out.
    header : dict of str to str
        The settings at the head of the file.
    """
    content = path.read_bytes()
    end = content.find(b"<End settings>\n")
    if not content.startswith(b"<Start settings>") or end < 0:
        raise LoadError(f"'{path.name}' lacks the Trodes header (<Start settings> ... <End settings>).")
    header: dict[str, str] = {}
    for line in content[:end].decode("latin-1").splitlines()[1:]:
        key, _, value = line.partition(":")
        header[key.strip().lower()] = value.strip()
    columns = re.findall(r"<(\w+) (\w+)>", header.get("fields", ""))
    if not columns or columns[0][0] != "time" or any(kind not in _NUMPY for _, kind in columns):
        raise LoadError(
            f"'{path.name}': the header's Fields are {header.get('fields')!r}; the first must be time."
        )
    try:
        rate_hz = float(header.get("clockrate", ""))
    except ValueError:
        raise LoadError(
            f"'{path.name}': the header states no clockrate, so its times have no unit."
        ) from None
    row = np.dtype([(name, _NUMPY[kind]) for name, kind in columns])
    body = content[end + len(b"<End settings>\n") :]
    if len(body) % row.itemsize or not body:
        raise LoadError(
            f"'{path.name}' is cut short: its {len(body)} bytes are not whole rows of {row.itemsize}."
        )
    rows = np.frombuffer(body, dtype=row)
    fields = {name: rows[name] for name, _ in columns[1:] if rows[name].any()}
    return rows["time"].astype(np.float64) / rate_hz, fields, header


def _describe(path: Path, clock: str) -> FileInfo:
    time_s, fields, _ = read_tracking(path)
    step_s = float(np.median(np.diff(time_s)))
    item = Item(
        "position",
        "movement",
        n_channels=len(fields),
        n_samples=time_s.size,
        rate_hz=1 / step_s,
        unit="pixel",
        duration_s=float(time_s[-1] - time_s[0]) + step_s,
        clock=clock,
        members=tuple(fields),
        default=True,
        n_segments=1 + int((np.diff(time_s) > 1.5 * step_s).sum()),
    )
    return FileInfo(str(path), FORMAT.name, (item,))


def _read(path: Path, clock: str) -> Recording:
    time_s, fields, header = read_tracking(path)
    notes = [f"read {path.name} (Trodes position tracking, clock of {header['clockrate']} Hz)"]
    # A frame that carries the time of the frame before it was stamped twice; its own time is unknown.
    fresh = np.concatenate([[True], np.diff(time_s) != 0])
    if not fresh.all():
        notes.append(
            f"position: left out {int((~fresh).sum())} frame(s) stamped with the time of the frame before"
        )
    values = np.stack(list(fields.values()), axis=1)[fresh].astype(np.float64)
    time_s = time_s[fresh]
    step_s = float(np.median(np.diff(time_s)))
    movement, more = make_movement(
        values, time_s, name="position", axes=list(fields), sample_s=step_s, units="pixel"
    )
    return Recording(clock, clock, (), movement, provenance=(*notes, *more))


FORMAT = Format("trodes", (".videopositiontracking",), _read, _describe)
