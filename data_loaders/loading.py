"""In: paths, and names of what to take from them. Out: one checked `Recording`; each file is one clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from data_loaders.checks import check_movement, check_spans, check_spikes
from data_loaders.detect import format_of, known_formats
from data_loaders.formats import (
    FileInfo,
    Format,
    LoadError,
    Missing,
    NoSuchName,
    Request,
    Selection,
    seconds_per,
    unique,
)
from neurofuse.recording import NeurofuseError, Recording, Spikes

PathLike = str | Path
_Role = Literal["spikes", "lfp", "movement"]
_ROLES: tuple[_Role, ...] = ("spikes", "lfp", "movement")


@dataclass
class _Job:
    """One file to read, and what to take from it."""

    path: Path
    format: Format
    picks: dict[_Role, Selection] = field(default_factory=lambda: dict.fromkeys(_ROLES, ()))
    required: set[_Role] = field(default_factory=set)
    clock: str = ""

    @property
    def family(self) -> tuple[str, Path]:
        """What shares one clock: the maker, and the path that stands for all files written together."""
        return self.format.name, (
            self.format.family(self.path) if self.format.family else self.path
        ).resolve()


def load(
    path: PathLike | Sequence[PathLike] | None,
    *,
    format: str | None = None,
    spikes: PathLike | None = None,
    lfp: PathLike | None = None,
    movement: PathLike | None = None,
    bin_s: float | None = None,
    rate_hz: float | None = None,
    time_unit: str = "s",
    gap_tolerance_ms: float | None = None,
    circular: bool | float | None = None,
    missing: Missing = "refuse",
    allow_negative_times: bool = False,
) -> Recording:
    """Read neural data and movement from one file or several.

    Parameters
    ----------
    path : path, sequence of paths, or None
        The main file(s); of several, the first that has spikes gives the spikes, and so on. None if
        `spikes`, `lfp` and `movement` name files of their own.
    format : str, optional
        Name of the format of the main file(s), where suffix and content do not tell.
    spikes, lfp, movement : str, optional
        None takes what the main file offers, "none" leaves it out, "NAME" or "NAME,NAME" picks items of the
        main file, "PATH" or "PATH::NAME,NAME" those of another file.
    bin_s : float, optional
        Width (s) of the bins of plain count matrices, and of others sampled along with them.
    rate_hz : float, optional
        Sampling rate of plain LFP matrices.
    time_unit : str
        Unit of the times in plain files: "s", "ms", "us" or "samples@RATE".
    gap_tolerance_ms : float, optional
        Pauses up to this long inside a maker's file are not gaps.
    circular : bool or float, optional
        The movement wraps around: decode cosine and sine. A number is the length of one turn; True takes
        the range of the movement.
    missing : {"refuse", "drop"}
        Whether samples with NaN are refused or left out, which leaves a gap.
    allow_negative_times : bool
        Whether spikes before time zero are meant.

    Returns
    -------
    Recording
        Every file is a clock of its own, named after it, except for files of one maker that belong together.
        The reference is the clock of the movement, else of the spikes.

    Raises
    ------
    NeurofuseError
        With one sentence: what is wrong, what was given, what would be right.
    """
    seconds_per(time_unit)
    _check_options(bin_s, rate_hz, missing, gap_tolerance_ms)
    main = [] if path is None else [Path(path)] if isinstance(path, str | Path) else [Path(p) for p in path]
    options: dict[_Role, PathLike | None] = {"spikes": spikes, "lfp": lfp, "movement": movement}
    jobs = _plan(main, options, format)
    _name_clocks(jobs)
    if time_unit != "s" and not any(j.format.plain for j in jobs):
        raise LoadError(
            f"--time-unit {time_unit} has no effect: '{jobs[0].path.name}' states its own unit; leave it out."
        )
    parts: list[Recording] = []
    taken: dict[str, tuple[str, Path]] = {}
    for job in jobs:
        request = Request(
            clock=job.clock,
            spikes=job.picks["spikes"],
            lfp=job.picks["lfp"],
            movement=job.picks["movement"],
            bin_s=bin_s,
            rate_hz=rate_hz,
            time_unit=time_unit,
            gap_tolerance_ms=gap_tolerance_ms,
            missing=missing,
        )
        part = _read(job, request)
        part = _apart(part, job, taken)
        if not job.format.checked:
            assumed = job.format.plain and time_unit == "s"
            check_spikes(
                part, source=job.path.name, allow_negative_times=allow_negative_times, unit_assumed=assumed
            )
            if part.movement is not None:
                check_movement(part.movement, source=job.path.name)
        parts.append(part)
    recording = parts[0] if len(parts) == 1 else _merge(parts)
    if time_unit == "s":
        check_spans(recording, assumed={j.clock for j in jobs if j.format.plain})
    if circular is not None and circular is not False:
        if recording.movement is None:
            raise LoadError("--circular needs a movement, but none was taken; pass --movement NAME.")
        period = None if circular is True else float(circular)
        recording = recording.but(
            movement=recording.movement.circular(period),
            did=f"movement taken as circular, one turn is {'its range' if period is None else f'{period:g}'}",
        )
    return recording


def info(path: PathLike, *, format: str | None = None) -> FileInfo:
    """List what a file holds and how to select it, without loading it all.

    Parameters
    ----------
    path : path
        A file, or a folder where the maker writes folders.
    format : str, optional
        Name of its format, where suffix and content do not tell.

    Raises
    ------
    NeurofuseError
        If there is no such file, or it cannot be read.
    """
    path = Path(path)
    chosen = format_of(path, format)
    job = _Job(path, chosen)
    _name_clocks([job])
    try:
        return chosen.describe(path, job.clock)
    except Exception as error:
        raise _sentence(error, path, chosen) from error


def _check_options(
    bin_s: float | None, rate_hz: float | None, missing: str, gap_tolerance_ms: float | None
) -> None:
    for value, option in ((bin_s, "--bin"), (rate_hz, "--rate")):
        if value is not None and not 0 < value < float("inf"):
            raise LoadError(f"{option} must be a positive number, got {value:g}.")
    if gap_tolerance_ms is not None and not 0 <= gap_tolerance_ms < float("inf"):
        raise LoadError(f"--gap-tolerance-ms must be zero or more, got {gap_tolerance_ms:g}.")
    if missing not in ("refuse", "drop"):
        raise LoadError(f"--missing must be 'refuse' or 'drop', got '{missing}'.")


def _names(text: str) -> tuple[str, ...]:
    return tuple(n.strip() for n in text.split(",") if n.strip())


def _looks_like_file(text: str, *, no_main: bool) -> bool:
    path = Path(text)
    if path.is_file() or (path.is_dir() and (no_main or "/" in text)):
        return True
    endings = tuple(s for f in known_formats().values() for s in f.suffixes if s)
    return no_main or path.name.lower().endswith((*endings, ".pkl", ".pickle"))


def _option(value: PathLike | None, *, no_main: bool) -> tuple[Path | None, Selection]:
    """A file of its own (or None for the main file), and what to take from it."""
    if value is None:
        return None, None
    if isinstance(value, Path):
        return value, None
    if value == "none":
        return None, ()
    if "::" in value:
        path, _, names = value.partition("::")
        # Names may hold "::" themselves (neo's NIX files do), so what is before it must be a file.
        if Path(path).exists() or _looks_like_file(path, no_main=no_main):
            return Path(path), _names(names) or None
    elif _looks_like_file(value, no_main=no_main):
        return Path(value), None
    return None, _names(value) or None


def _plan(main: list[Path], options: dict[_Role, PathLike | None], format_name: str | None) -> list[_Job]:
    """Which file gives what."""
    jobs: dict[Path, _Job] = {}

    def job(path: Path, name: str | None) -> _Job:
        if path not in jobs:
            jobs[path] = _Job(path, format_of(path, name))
        return jobs[path]

    for path in main:
        job(path, format_name)
    described: dict[Path, FileInfo] = {}
    if len(main) > 1:
        described = {p: info(p, format=format_name) for p in dict.fromkeys(main)}
    for role, value in options.items():
        own, names = _option(value, no_main=not main)
        if own is not None:
            target = job(own, None if main else format_name)
        elif names == () or not main:
            continue
        elif len(main) == 1:
            target = jobs[main[0]]
        else:
            found = _first(described, role, names)
            if found is None:
                continue
            target = jobs[found]
        target.picks[role] = names
        if value is not None:
            target.required.add(role)
    wanted = [j for j in jobs.values() if any(p != () for p in j.picks.values())]
    if not wanted:
        if main and not described:
            raise LoadError(
                "spikes, lfp and movement are all 'none', so there is nothing to load; leave one of them in."
            )
        if described:
            raise LoadError(
                f"none of {', '.join(p.name for p in main)} offers spikes, LFP or movement by default; "
                "pass --spikes, --lfp or --movement NAME."
            )
        raise LoadError("no file was given; pass a path, or PATH::NAME to spikes, lfp and movement.")
    return wanted


def _first(described: dict[Path, FileInfo], role: str, names: Selection) -> Path | None:
    """The first of several files that has what is asked for."""
    if names is None:
        return next((p for p, i in described.items() if i.offers(role)), None)
    found = next((p for p, i in described.items() if all(i.has(n) for n in names)), None)
    if found is None:
        held = [n for i in described.values() for item in i.items for n in (item.name, *item.members)]
        raise NoSuchName(Path(", ".join(p.name for p in described)), ",".join(names), held, role=role)
    return found


def _name_clocks(jobs: list[_Job]) -> None:
    """One clock a file, or a family of files, named after it; folders tell apart what shares a name."""
    families = list(dict.fromkeys(j.family for j in jobs))
    paths = [p for _, p in families]
    stems = [p.stem if p.is_file() and p.suffix else p.name for p in paths]
    names = []
    for path, stem in zip(paths, stems, strict=True):
        alike = [p for p, s in zip(paths, stems, strict=True) if s == stem]
        beside = [p for p in alike if p.parent == path.parent]
        name = path.name if len(beside) > 1 else stem
        names.append(f"{path.parent.name}/{name}" if len(beside) < len(alike) else name)
    clocks = dict(zip(families, unique(names), strict=True))
    for job in jobs:
        job.clock = clocks[job.family]


def _sentence(error: Exception, path: Path, chosen: Format) -> NeurofuseError:
    """One sentence about a file, whatever went wrong inside a library."""
    if isinstance(error, NeurofuseError):
        if path.name in str(error):
            return error
        return LoadError(f"'{path.name}': {error}")
    if isinstance(error, ImportError):
        return LoadError(
            f"reading '{path.name}' as {chosen.name} needs the package '{error.name}'; install it."
        )
    # The first sentence says what; what follows is advice to programmers.
    reason = " ".join(str(error).split()).split(". ")[0][:200].rstrip(".") or type(error).__name__
    if "convert between units" in reason:
        return LoadError(
            f"'{path.name}' states a unit that does not fit what it measures ({reason}); correct it in the file, or "
            "leave that item out with --spikes, --lfp or --movement."
        )
    return LoadError(
        f"'{path.name}' cannot be read as {chosen.name} ({type(error).__name__}: {reason}); "
        "the file may be cut short or damaged, or be of another format (--format NAME)."
    )


def _read(job: _Job, request: Request) -> Recording:
    try:
        part = job.format.read(job.path, request)
    except Exception as error:
        raise _sentence(error, job.path, job.format) from error
    kinds = {"spikes" if isinstance(s, Spikes) else s.kind for s in part.streams}
    held = {
        "spikes": bool(kinds & {"spikes", "counts"}),
        "lfp": bool(kinds & {"lfp", "power"}),
        "movement": part.movement is not None,
    }
    absent = sorted(r for r in job.required if not held[r])
    if absent or not any(held.values()):
        what = absent[0] if absent else "spikes, LFP or movement"
        raise LoadError(
            f"'{job.path.name}' ({job.format.name}) offers no {what} by itself; see what it holds with "
            "'neurofuse info', then pass PATH::NAME."
        )
    return part


def _apart(part: Recording, job: _Job, taken: dict[str, tuple[str, Path]]) -> Recording:
    """Rename clocks whose name another file has already; only files that store clock names can collide."""
    used = {s.clock for s in part.streams} | ({part.reference} if part.movement is not None else set())
    new = {c: f"{c} ({job.path.stem})" for c in sorted(used) if taken.get(c, job.family) != job.family}
    taken.update({new.get(c, c): job.family for c in used})
    if not new:
        return part
    streams = tuple(replace(s, clock=new.get(s.clock, s.clock)) for s in part.streams)
    return part.but(streams=streams, reference=new.get(part.reference, part.reference))


def _merge(parts: list[Recording]) -> Recording:
    moving = next((p for p in parts if p.movement is not None), None)
    streams = [s for p in parts for s in p.streams]
    populations = [s for s in streams if isinstance(s, Spikes) or s.kind == "counts"]
    reference = moving.reference if moving is not None else (populations or streams)[0].clock
    twice = {s.name for s in streams if [t.name for t in streams].count(s.name) > 1}
    names = unique([f"{s.name} ({s.clock})" if s.name in twice else s.name for s in streams])
    home = moving or next(p for p in parts if p.reference == reference or reference in p.clocks)
    return Recording(
        parts[0].name,
        reference,
        tuple(replace(s, name=n) for s, n in zip(streams, names, strict=True)),
        None if moving is None else moving.movement,
        home.trials,
        tuple(line for p in parts for line in p.provenance),
    )
