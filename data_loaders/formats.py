"""In: a kind of file. Out: the contract between `load` and its readers: Format, Request, Item, FileInfo.

A reader is a `Format`: a name, the suffixes it claims and one function that returns a `Recording`. The built-in
readers, those of other packages and those registered at run time are the same dataclass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, asdict, dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

from neurofuse.errors import NeurofuseError
from neurofuse.recording import Recording

# What can be selected, and what else a file may list.
Part = Literal["spikes", "lfp", "movement"]
PARTS: tuple[Part, ...] = ("spikes", "lfp", "movement")
Role = Literal["spikes", "lfp", "movement", "counts", "other", "trials", "events"]
Missing = Literal["refuse", "drop"]

# None: what the file offers by default. (): leave it out. Names: these items, in this order.
Selection = tuple[str, ...] | None
T = TypeVar("T")


class LoadError(NeurofuseError):
    """A file that cannot be turned into a recording."""


class NoSuchName(LoadError):
    """A name that a file does not hold; `names` are those it holds."""

    def __init__(self, path: Path, name: str, names: Iterable[str], *, role: str) -> None:
        self.names = tuple(dict.fromkeys(str(n) for n in names))
        super().__init__(f"'{path.name}' has no {role} called '{name}'; it has {listed(self.names)}.")


@dataclass(frozen=True)
class Item:
    """One thing that a file holds: a population, a group of channels, a matrix, a table.

    Parameters
    ----------
    name : str
        What to write after `::` to select it.
    role : str
        Best guess of what it is for.
    members : tuple of str
        Names inside it that can be selected too: units, channels or axes.
    default : bool
        Whether `load` takes it when nothing is selected.
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
        """Whether an item, or a unit, channel or axis inside one, has this name."""
        return any(name == i.name or name in i.members for i in self.items)

    def offers(self, role: str) -> bool:
        """Whether `load` takes something of this role when nothing is selected."""
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


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to read from one file, and what its user states about it.

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
        A pause up to this length inside a file is not a gap.
    missing : {"refuse", "drop"}
        What to do with samples that hold NaN or infinity.

    Raises
    ------
    LoadError
        If an option is out of range.
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
    # What `pick` has selected already, so that `load` does not select it again.
    picked: set[Part] = field(default_factory=set, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        seconds_per(self.time_unit)
        for value, option in ((self.bin_s, "--bin"), (self.rate_hz, "--rate")):
            if value is not None and not 0 < value < float("inf"):
                raise LoadError(f"{option} must be a positive number, got {value:g}.")
        gap = self.gap_tolerance_ms
        if gap is not None and not 0 <= gap < float("inf"):
            raise LoadError(f"--gap-tolerance-ms must be zero or more, got {gap:g}.")
        if self.missing not in ("refuse", "drop"):
            raise LoadError(f"--missing must be 'refuse' or 'drop', got '{self.missing}'.")

    def names(self, role: Part) -> Selection:
        """The selection of one role."""
        return {"spikes": self.spikes, "lfp": self.lfp, "movement": self.movement}[role]

    def pick(self, path: Path, role: Part, items: Mapping[str, T], *, default: Iterable[str] = ()) -> list[T]:
        """Choose what to read of one role; only a reader that need not read whole files calls this.

        Parameters
        ----------
        items : dict of str to anything
            All that the file holds, by every name that it can be picked by.
        default : iterable of str
            Names of what is taken if nothing is selected.

        Returns
        -------
        list
            The values of `items` in the order selected, none twice; empty if the role is left out.

        Raises
        ------
        NoSuchName
            For the first name that the file does not hold; the sentence lists those it holds.
        """
        names = self.names(role)
        chosen = list(dict.fromkeys(default if names is None else names))
        for name in chosen:
            if name not in items:
                raise NoSuchName(path, name, items, role=role)
        self.picked.add(role)
        return [items[name] for name in chosen]

    @property
    def time_scale(self) -> float:
        """Seconds per unit of time of a plain file."""
        return seconds_per(self.time_unit)


@dataclass(frozen=True)
class Format:
    """A kind of file and how to read it. `Format(name, suffixes, read)` is a whole reader.

    `read` returns all that the file holds as one `Recording` whose reference is the clock it is given: times in
    float64 seconds, no samples where nothing was recorded. `load` does the rest: it selects streams, units, channels
    and axes by name, refuses names that are not there, checks the numbers, and turns any exception into one sentence
    (raise `LoadError` to write that sentence). Without `describe`, `info` lists what `read` returns.

    Parameters
    ----------
    name : str
        Value of `--format`.
    suffixes : tuple of str
        Endings it claims, lower case with the dot; "" claims folders.
    read : callable, (path, clock) -> Recording
        Reads the whole file.
    describe : callable, (path, clock) -> FileInfo, optional
        Lists what is inside without reading it all. Items are named like the streams that `read` returns; those
        that are not marked `default` are taken by name only.
    read_parts : callable, (path, request) -> Recording, optional
        In place of `read`: reads what `request` names, through `Request.pick`, so that the rest of a large file stays
        unread; and has the options of `load` (bin width, rate, unit of time, missing samples).
    sniff : callable, (path) -> bool, optional
        Whether the content is of this format, where several claim a suffix; without it the suffix decides.
    family : callable, (path) -> path, optional
        The path that stands for all files written on one clock together with this one.
    plain : bool
        Whether files state neither rates nor units, so that `load` has options for them.
    checked : bool
        Whether files were written by neurofuse, so that their content has been checked before.

    Raises
    ------
    LoadError
        If there is not exactly one of `read` and `read_parts`, or a suffix could never match.
    """

    name: str
    suffixes: tuple[str, ...]
    read: Callable[[Path, str], Recording] | None = None
    describe: Callable[[Path, str], FileInfo] | None = None
    _: KW_ONLY
    read_parts: Callable[[Path, Request], Recording] | None = None
    sniff: Callable[[Path], bool] | None = None
    family: Callable[[Path], Path] | None = None
    plain: bool = False
    checked: bool = False

    def __post_init__(self) -> None:
        if (self.read is None) == (self.read_parts is None):
            raise LoadError(f"the format '{self.name}' needs one of read and read_parts.")
        wrong = [s for s in self.suffixes if s and (not s.startswith(".") or s != s.lower())]
        if isinstance(self.suffixes, str) or wrong:
            given = self.suffixes if isinstance(self.suffixes, str) else wrong[0]
            raise LoadError(
                f"the format '{self.name}' claims the suffix '{given}'; give a tuple of endings such as ('.spk',), "
                "lower case with the dot."
            )

    def recording(self, path: Path, request: Request) -> Recording:
        """What `read` or `read_parts` returns."""
        if self.read is not None:
            return self.read(path, request.clock)
        assert self.read_parts is not None
        return self.read_parts(path, request)


def listed(names: Sequence[str], *, most: int = 24) -> str:
    """Names in quotes, for an error message; long lists are cut."""
    if not names:
        return "none"
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(f"'{n}'" for n in names[:most]) + more


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


def seconds_per(time_unit: str) -> float:
    """Seconds per "s", "ms", "us" or "samples@RATE".

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
