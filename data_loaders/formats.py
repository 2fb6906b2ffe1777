"""In: what a caller wants of a file. Out: the words every reader shares: Format, Request, Item, FileInfo.

A reader is a `Format`: a name, the suffixes it claims, and two functions of a path. The built-in readers and
the ones other packages add (entry point group `neurofuse.formats`) are the same dataclass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from neurofuse.recording import NeurofuseError, Recording

Role = Literal["spikes", "lfp", "movement", "counts", "other", "trials", "events"]
Missing = Literal["refuse", "drop"]

# None: what the file offers by default. (): leave it out. Names: these items, in this order.
Selection = tuple[str, ...] | None

# Stretches whose distance in time the file does not say are set this far apart, far beyond any window.
UNKNOWN_GAP_S = 10.0


class LoadError(NeurofuseError):
    """A file that cannot be turned into a recording."""


class NoSuchName(LoadError):
    """A name that a file does not hold; `names` are those it holds."""

    def __init__(self, path: Path, asked: str, names: Iterable[str], *, role: str = "item") -> None:
        self.names = tuple(dict.fromkeys(str(n) for n in names))
        super().__init__(f"'{path.name}' has no {role} called '{asked}'; it has {listed(self.names)}.")


def listed(names: Sequence[str], *, most: int = 24) -> str:
    """Names in quotes, for an error message; long lists are cut."""
    if not names:
        return "none"
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(f"'{n}'" for n in names[:most]) + more


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is wanted of one file, and what its user knows that the file does not say.

    Parameters
    ----------
    clock : str
        Name for the clock of this file; a reader whose file stores clock names keeps those.
    spikes, lfp, movement : tuple of str, or None
        None takes what the file offers by default, () leaves it out, names pick items.
    bin_s, rate_hz : float, optional
        Width of count bins (s) and sampling rate (Hz) of plain matrices.
    time_unit : str
        Unit of times in plain files: "s", "ms", "us" or "samples@RATE".
    gap_tolerance_ms : float, optional
        A pause up to this length inside a maker's file is not a gap.
    missing : {"refuse", "drop"}
        What to do with samples that hold NaN or infinity.
    """

    clock: str
    spikes: Selection = None
    lfp: Selection = None
    movement: Selection = None
    bin_s: float | None = None
    rate_hz: float | None = None
    time_unit: str = "s"
    gap_tolerance_ms: float | None = None
    missing: Missing = "refuse"

    @property
    def time_scale(self) -> float:
        """Seconds in one unit of time of a plain file."""
        return seconds_per(self.time_unit)


def seconds_per(time_unit: str) -> float:
    """Seconds in one "s", "ms", "us" or "samples@RATE".

    Raises
    ------
    LoadError
        If the unit is none of these.

    Examples
    --------
    >>> seconds_per("ms")
    0.001
    >>> seconds_per("samples@20000")
    5e-05
    """
    known = {"s": 1.0, "ms": 1e-3, "us": 1e-6}
    if time_unit in known:
        return known[time_unit]
    head, _, rate = time_unit.partition("@")
    try:
        rate_hz = float(rate)
    except ValueError:
        rate_hz = 0.0
    if head != "samples" or not 0 < rate_hz < float("inf"):
        raise LoadError(
            f"the time unit '{time_unit}' is not known; give 's', 'ms', 'us' or 'samples@RATE' (rate in Hz)."
        )
    return 1.0 / rate_hz


@dataclass(frozen=True)
class Item:
    """One thing a file holds: a population, a group of channels, a matrix, a table.

    Parameters
    ----------
    name : str
        What to write after `::` to select it.
    role : str
        Best guess of what it is for.
    members : tuple of str
        Names inside it that can be selected too: channels or axes.
    default : bool
        Whether `load` takes it when nothing is asked for.
    """

    name: str
    role: Role
    n_units: int | None = None
    n_spikes: int | None = None
    n_channels: int | None = None
    n_samples: int | None = None
    shape: tuple[int, ...] | None = None
    rate_hz: float | None = None
    unit: str = ""
    duration_s: float | None = None
    clock: str = ""
    n_segments: int = 1
    members: tuple[str, ...] = ()
    default: bool = False

    @property
    def size(self) -> str:
        """How much there is, in words."""
        if self.n_units is not None:
            spikes = "" if self.n_spikes is None else f", {self.n_spikes} spikes"
            samples = "" if self.n_samples is None else f", {self.n_samples} bins"
            return f"{self.n_units} units{spikes}{samples}"
        if self.n_channels is not None:
            samples = "" if self.n_samples is None else f" x {self.n_samples} samples"
            return f"{self.n_channels} channels{samples}"
        return "x".join(str(n) for n in self.shape) if self.shape else "-"


@dataclass(frozen=True)
class FileInfo:
    """What a file holds, found without reading its data where that can be avoided."""

    path: str
    format: str
    items: tuple[Item, ...]
    notes: tuple[str, ...] = ()

    def has(self, name: str) -> bool:
        """Whether an item, or a channel or axis inside one, has this name."""
        return any(name == i.name or name in i.members for i in self.items)

    def offers(self, role: str) -> bool:
        """Whether `load` would take something of this role without being asked."""
        roles = ("spikes", "counts") if role == "spikes" else (role,)
        return any(i.default and i.role in roles for i in self.items)

    def to_dict(self) -> dict[str, object]:
        """The same as plain dicts, lists, strings and numbers, ready for JSON."""
        return {
            "path": self.path,
            "format": self.format,
            "items": [
                {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(i).items()} for i in self.items
            ],
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        head = ("", "name", "looks like", "size", "rate", "unit", "duration", "clock", "segments")
        rows = [head] + [
            (
                "*" if i.default else "",
                i.name,
                i.role,
                i.size,
                "-" if i.rate_hz is None else f"{i.rate_hz:g} Hz",
                i.unit or "-",
                "-" if i.duration_s is None else f"{i.duration_s:.3f} s",
                i.clock or "-",
                str(i.n_segments),
            )
            for i in self.items
        ]
        widths = [max(len(r[k]) for r in rows) for k in range(len(head))]
        lines = [f"{self.path} ({self.format})"]
        lines += ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows]
        for i in self.items:
            if i.members and tuple(i.members) != (i.name,):
                lines.append(f"{i.name}: {', '.join(i.members[:24])}{' ...' if len(i.members) > 24 else ''}")
        lines += [f"note: {n}" for n in self.notes]
        lines.append(
            "* is taken by default; select with --spikes, --lfp, --movement NAME[,NAME] "
            "(or PATH::NAME for another file), 'none' to leave out."
        )
        return "\n".join(lines)


@dataclass(frozen=True)
class Format:
    """A kind of file and how to read it.

    Parameters
    ----------
    name : str
        What `--format` calls it.
    suffixes : tuple of str
        Endings it claims, lower case with the dot; "" claims folders.
    describe : callable, (path, clock) -> FileInfo
        Says what is inside without loading it all.
    read : callable, (path, request) -> Recording
        Reads what the request asks for, timed on `request.clock`. The recording's reference is that clock.
    sniff : callable, (path) -> bool, optional
        Looks inside when several formats claim a suffix; without it the suffix alone decides.
    family : callable, (path) -> path, optional
        The path that stands for all files written by one clock together with this one.
    plain : bool
        True where the file states neither rates nor units, so that bins, rates and time units are asked for.
    checked : bool
        True where the file was written by neurofuse, so that its content has passed the door before.
    """

    name: str
    suffixes: tuple[str, ...]
    describe: Callable[[Path, str], FileInfo]
    read: Callable[[Path, Request], Recording]
    sniff: Callable[[Path], bool] | None = None
    family: Callable[[Path], Path] | None = None
    plain: bool = False
    checked: bool = False


def pick(path: Path, names: Selection, held: Mapping[str, object], *, role: str) -> list[str]:
    """The names asked for, each checked to be held by the file.

    Raises
    ------
    NoSuchName
        For the first name that is not there; the message lists those that are.
    """
    for name in names or ():
        if name not in held:
            raise NoSuchName(path, name, held, role=role)
    return list(names or ())


def unique(names: Sequence[str]) -> list[str]:
    """The same names, with a number added to those that appear again.

    Examples
    --------
    >>> unique(["a", "b", "a"])
    ['a', 'b', 'a (2)']
    """
    seen: dict[str, int] = {}
    out: list[str] = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        out.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return out


def choose_stream(recording: Recording, request: Request, path: Path) -> Recording:
    """Keep what a request asks for of a recording that is already whole in memory.

    Names may be those of streams, or of channels and axes inside them.
    """
    streams = []
    asked: tuple[tuple[str, Selection], ...] = (("spikes", request.spikes), ("lfp", request.lfp))
    for role, names in asked:
        of_role = [
            s
            for s in recording.streams
            if (getattr(s, "kind", "spikes") in ("spikes", "counts")) == (role == "spikes")
        ]
        if names is None:
            streams += of_role
            continue
        by_name = {s.name: s for s in of_role}
        channels = {c: s for s in of_role if hasattr(s, "channels") for c in s.channels}
        pick(path, names, {**by_name, **channels}, role=role)
        streams += [by_name[n] for n in names if n in by_name]
        for stream in of_role:
            chosen = [n for n in names if n not in by_name and channels.get(n) is stream]
            if chosen and hasattr(stream, "channels"):
                streams.append(stream.select([stream.channels.index(c) for c in chosen]))
    movement = recording.movement
    if request.movement is not None:
        held = {} if movement is None else {movement.name: None, **dict.fromkeys(movement.axes)}
        axes = pick(path, request.movement, held, role="movement")
        if movement is not None and axes and axes != [movement.name]:
            rows = [movement.axes.index(n) for n in axes if n in movement.axes]
            movement = replace(movement, data=movement.data.isel(axis=rows))
        elif not axes:
            movement = None
    order = {s.name: k for k, s in enumerate(recording.streams)}
    streams.sort(key=lambda s: order[s.name])
    return recording.but(streams=tuple(streams), movement=movement)


def describe_recording(recording: Recording, path: Path, format_name: str) -> FileInfo:
    """Items of a recording that is already in memory."""
    items: list[Item] = []
    for s in recording.spikes:
        items.append(
            Item(
                s.name,
                "spikes",
                n_units=s.n_units,
                n_spikes=s.times_s.size,
                unit="s",
                clock=s.clock,
                duration_s=s.stop_s - s.start_s,
                n_segments=max(len(s.support), 1),
                default=True,
            )
        )
    for g in recording.signals:
        counts = g.kind == "counts"
        items.append(
            Item(
                g.name,
                "counts" if counts else "lfp",
                n_units=g.n_channels if counts else None,
                n_channels=None if counts else g.n_channels,
                n_samples=g.time_s.size,
                rate_hz=g.rate_hz,
                unit=str(g.data.attrs.get("units", "")),
                duration_s=g.stop_s - g.start_s,
                clock=g.clock,
                n_segments=max(len(g.support), 1),
                members=tuple(g.channels),
                default=True,
            )
        )
    m = recording.movement
    if m is not None:
        items.append(
            Item(
                m.name,
                "movement",
                n_channels=len(m.axes),
                n_samples=m.time_s.size,
                rate_hz=1 / m.sample_s,
                unit=m.units,
                duration_s=recording.span_s[1] - recording.span_s[0],
                clock=recording.reference,
                n_segments=max(len(m.support), 1),
                members=tuple(m.axes),
                default=True,
            )
        )
    if len(recording.trials):
        items.append(
            Item("trials", "trials", shape=recording.trials.shape, clock=recording.reference, default=True)
        )
    return FileInfo(str(path), format_name, tuple(items), recording.provenance)
