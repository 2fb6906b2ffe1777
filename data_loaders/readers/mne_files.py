"""In: EDF, BDF, BrainVision or FIF files, read by MNE in volts. Out: channels of LFP and movement by name."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from data_loaders.formats import FileInfo, Format, Item, LoadError, Request, Role
from data_loaders.guess_roles import channel_role
from data_loaders.readers.sampled import UNKNOWN_GAP_S, make_movement, make_signal
from neurofuse.recording import FloatArray, Recording, Signal

# Names under which `info` lists the channels, and `load` takes them together.
_GROUPS: dict[str, Role] = {"lfp": "lfp", "behaviour": "movement", "other": "other"}
_NEURAL = frozenset({"eeg", "ecog", "seeg", "dbs", "mag", "grad", "ref_meg"})
# No electrode measures ten millivolts of brain activity: larger values mean a wrong scaling in the header.
IMPLAUSIBLE_V = 1e-2


@contextlib.contextmanager
def _raw(path: Path) -> Iterator[Any]:
    """The file opened by MNE, samples not yet read."""
    import mne

    suffix = path.suffix.lower()
    if suffix in (".eeg", ".vmrk", ".dat"):
        path = _header_of(path)
        suffix = ".vhdr"
    if suffix == ".edf" and b"EDF+D" in path.read_bytes()[192:236]:
        raise LoadError(
            f"'{path.name}' is EDF+D: it has pauses, which MNE would join; export it as EDF+C or EDF."
        )
    readers = {
        ".edf": "edf",
        ".bdf": "bdf",
        ".gdf": "gdf",
        ".vhdr": "brainvision",
        ".fif": "fif",
        ".gz": "fif",
    }
    read = getattr(mne.io, f"read_raw_{readers[suffix]}")
    if suffix == ".vhdr":
        _check_brainvision(path)
    raw = read(path, preload=False, verbose="ERROR")
    try:
        yield raw
    finally:
        raw.close()


def _header_of(path: Path) -> Path:
    header = path.with_suffix(".vhdr")
    if not header.exists():
        raise LoadError(
            f"'{path.name}' needs its header '{header.name}' in the same folder; it is not there."
        )
    return header


def _check_brainvision(path: Path) -> None:
    text = path.read_text(encoding="latin-1")
    found = re.search(r"^DataFile=(.+)$", text, re.M)
    if found is None:
        raise LoadError(f"'{path.name}' names no DataFile; it is not a whole BrainVision header.")
    data = path.parent / found.group(1).strip().replace("$b", path.stem)
    if not data.exists():
        raise LoadError(
            f"'{path.name}' needs its samples '{data.name}' in the same folder; the file is not there."
        )
    n_channels = re.search(r"^NumberOfChannels=(\d+)", text, re.M)
    width = 4 if re.search(r"^BinaryFormat=(IEEE_FLOAT_32|INT_32)", text, re.M) else 2
    if (
        n_channels
        and "DataFormat=BINARY" in text
        and data.stat().st_size % (width * int(n_channels.group(1)))
    ):
        raise LoadError(f"'{data.name}' is cut short: its {data.stat().st_size} bytes are not whole samples.")


def _segments(path: Path, n_samples: int, rate_hz: float) -> tuple[list[tuple[int, float]], str]:
    """First sample and start (s) of each stretch of a BrainVision file, from its `New Segment` markers."""
    if path.suffix.lower() not in (".vhdr", ".eeg", ".vmrk"):
        return [(0, 0.0)], ""
    found = re.search(r"^MarkerFile=(.+)$", path.with_suffix(".vhdr").read_text(encoding="latin-1"), re.M)
    marker_file = path.parent / (found.group(1).strip() if found else f"{path.stem}.vmrk")
    if not marker_file.exists():
        return [(0, 0.0)], ""
    text = marker_file.read_text(encoding="latin-1")
    marks = re.findall(r"^Mk\d+=New Segment,[^,]*,(\d+),[^,]*,[^,\n]*(?:,(\d{20}))?", text, re.M)
    firsts = sorted({(int(first) - 1, date) for first, date in marks if 0 < int(first) - 1 < n_samples})
    if not firsts:
        return [(0, 0.0)], ""
    begin = next((d for first, d in marks if int(first) == 1), "")
    dated = bool(begin) and all(d for _, d in firsts)
    out, end_s = [(0, 0.0)], 0.0
    for first, date in firsts:
        end_s = out[-1][1] + (first - out[-1][0]) / rate_hz
        start_s = (_moment(date) - _moment(begin)).total_seconds() if dated else end_s + UNKNOWN_GAP_S
        if start_s < end_s - 0.5 / rate_hz:
            dated = False
            start_s = end_s + UNKNOWN_GAP_S
        out.append((first, start_s))
    how = "by their dates" if dated else f"{UNKNOWN_GAP_S:g} s apart, since they have no dates in order"
    return out, f"{len(out)} segments, placed {how}"


def _moment(date: str) -> datetime:
    return datetime.strptime(date, "%Y%m%d%H%M%S%f")


def _roles(raw: Any) -> dict[str, Role]:
    roles: dict[str, Role] = {}
    for name, kind in zip(raw.ch_names, raw.get_channel_types(), strict=True):
        guess = channel_role(name)
        roles[name] = guess if guess != "lfp" or kind in _NEURAL else "other"
    return roles


def _flat(groups: list[list[str]]) -> list[str]:
    return list(dict.fromkeys(name for group in groups for name in group))


def _describe(path: Path, clock: str) -> FileInfo:
    with _raw(path) as raw:
        roles = _roles(raw)
        rate_hz, n_samples = float(raw.info["sfreq"]), int(raw.n_times)
        segments, note = _segments(path, n_samples, rate_hz)
        n_events = len(raw.annotations)
    items = []
    for group, role in _GROUPS.items():
        names = [n for n, r in roles.items() if r == role]
        if not names:
            continue
        items.append(
            Item(
                group,
                role,
                n_channels=len(names),
                n_samples=n_samples,
                rate_hz=rate_hz,
                unit="V",
                duration_s=n_samples / rate_hz,
                clock=clock,
                n_segments=len(segments),
                members=tuple(names),
                default=role == "lfp",
            )
        )
    if n_events:
        items.append(Item("annotations", "events", shape=(n_events,), clock=clock))
    notes = (note,) if note else ()
    return FileInfo(str(path), _name_of(path), tuple(items), notes)


def _read(path: Path, request: Request) -> Recording:
    with _raw(path) as raw:
        roles = _roles(raw)
        rate_hz, n_samples = float(raw.info["sfreq"]), int(raw.n_times)
        groups = {g: [n for n in roles if roles[n] == role] for g, role in _GROUPS.items()}
        channels = {**{g: names for g, names in groups.items() if names}, **{n: [n] for n in roles}}
        movement_names = _flat(request.pick(path, "movement", channels))
        lfp_default = [n for n in roles if roles[n] == "lfp" and n not in movement_names]
        lfp_names = _flat(request.pick(path, "lfp", channels, default=lfp_default))
        picks = [*lfp_names, *movement_names]
        data = raw.get_data(picks=picks) if picks else np.empty((0, n_samples))
        extras = raw._raw_extras[0] if raw._raw_extras and isinstance(raw._raw_extras[0], dict) else {}
        rates_differ = len(set(np.ravel(extras.get("n_samps", ())).tolist())) > 1
    segments, note = _segments(path, n_samples, rate_hz)
    time_s: FloatArray = np.arange(n_samples) / rate_hz
    for first, start_s in segments[1:]:
        time_s[first:] = start_s + np.arange(n_samples - first) / rate_hz
    notes = [f"read {path.name} ({_name_of(path)}, volts)", *([note] if note else [])]
    if rates_differ:
        notes.append(f"channels were sampled at different rates; MNE brought them all to {rate_hz:g} Hz")
    streams: tuple[Signal, ...] = ()
    if lfp_names:
        values = data[: len(lfp_names)].T
        signal, more = make_signal(
            values,
            time_s,
            name="lfp",
            clock=request.clock,
            channels=lfp_names,
            sample_s=1 / rate_hz,
            units="V",
            missing=request.missing,
        )
        streams = (signal,)
        notes += more
        largest = float(np.abs(signal.data.values).max())
        if largest > IMPLAUSIBLE_V:
            notes.append(f"lfp: values reach {largest:.3g} V, so the header's unit scaling is probably off")
        left_out = [n for n in roles if n not in picks]
        if request.lfp is None and left_out:
            notes.append(f"not taken as LFP by name or type: {', '.join(left_out)}")
    movement = None
    if movement_names:
        movement, more = make_movement(
            data[len(lfp_names) :].T,
            time_s,
            name=",".join(movement_names),
            axes=movement_names,
            sample_s=1 / rate_hz,
            units="V",
            missing=request.missing,
        )
        notes += more
    return Recording(request.clock, request.clock, streams, movement, provenance=tuple(notes))


def _name_of(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix in (".vhdr", ".eeg", ".vmrk"):
        return "brainvision"
    return "fif" if suffix in (".fif", ".gz") else "edf"


def _is_brainvision(path: Path) -> bool:
    return path.suffix.lower() == ".vhdr" or path.with_suffix(".vhdr").exists()


FORMATS = (
    Format("edf", (".edf", ".bdf", ".gdf"), describe=_describe, read_parts=_read),
    Format(
        "brainvision",
        (".vhdr", ".vmrk", ".eeg"),
        describe=_describe,
        read_parts=_read,
        sniff=_is_brainvision,
        family=lambda p: p.with_suffix(""),
    ),
    Format("fif", (".fif", ".fif.gz"), describe=_describe, read_parts=_read),
)
