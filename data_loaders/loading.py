"""In: paths, and names of what to take from them. Out: one checked `Recording`; each file is one clock.

Whatever the reader of a file returns, the names are resolved and the numbers are checked here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from data_loaders.checks import check_movement, check_spans, check_spikes
from data_loaders.detect import format_of, known_formats
from data_loaders.formats import (
    PARTS,
    FileInfo,
    Format,
    LoadError,
    Missing,
    NoSuchName,
    Part,
    Request,
    Selection,
    unique,
)
from data_loaders.selection import describe_recording, select
from neurofuse.errors import NeurofuseError
from neurofuse.recording import Recording

PathLike = str | Path


@dataclass
class _Job:
    """One file to read, and what to take from it."""

    path: Path
    format: Format
    selected: dict[Part, Selection] = field(default_factory=lambda: dict.fromkeys(PARTS, ()))
    required: set[Part] = field(default_factory=set)
    clock: str = ""

    @property
    def family(self) -> tuple[str, Path]:
        """What shares one clock: the format, and the path that stands for all files written together."""
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
        Name of the format of the main file(s), where suffix and content leave it open.
    spikes, lfp, movement : str, optional
        None takes what the main file offers by default, "none" leaves it out, "NAME" or "NAME,NAME" picks items of
        the main file (streams, or units, channels and axes inside them), "PATH" or "PATH::NAME,NAME" those of
        another file.
    bin_s : float, optional
        Width (s) of the bins of plain count matrices, and of others sampled along with them.
    rate_hz : float, optional
        Sampling rate of plain LFP matrices.
    time_unit : str
        Unit of the times in plain files: "s", "ms", "us" or "samples@RATE".
    gap_tolerance_ms : float, optional
        Pauses up to this long inside a file are not gaps.
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
        Every file is a clock of its own, named after it, except for files that one system writes together.
        The reference is the clock of the movement, else of the spikes.

    Raises
    ------
    NeurofuseError
        With one sentence: what is wrong, what was given, what would be right.
    """
    stated = Request(
        clock="",
        bin_s=bin_s,
        rate_hz=rate_hz,
        time_unit=time_unit,
        gap_tolerance_ms=gap_tolerance_ms,
        missing=missing,
    )
    main = [] if path is None else [Path(path)] if isinstance(path, str | Path) else [Path(p) for p in path]
    jobs = _plan(main, {"spikes": spikes, "lfp": lfp, "movement": movement}, format)
    _name_clocks(jobs)
    if time_unit != "s" and not any(j.format.plain for j in jobs):
        raise LoadError(
            f"--time-unit {time_unit} has no effect: '{jobs[0].path.name}' states its own unit; leave it out."
        )
    recording = _merge(_read_all(jobs, stated, allow_negative_times=allow_negative_times))
    if time_unit == "s":
        check_spans(recording, assumed={j.clock for j in jobs if j.format.plain})
    return recording if circular is None or circular is False else _as_circular(recording, circular)


def info(path: PathLike, *, format: str | None = None) -> FileInfo:
    """List what a file holds and how to select it, without loading it all.

    Parameters
    ----------
    path : path
        A file, or a folder where the maker writes folders.
    format : str, optional
        Name of its format, where suffix and content leave it open.

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
        if chosen.describe is not None:
            return chosen.describe(path, job.clock)
        return describe_recording(chosen.recording(path, Request(clock=job.clock)), path, chosen.name)
    except Exception as error:
        raise _sentence(error, path, chosen) from error


def _names(text: str) -> tuple[str, ...]:
    return tuple(n.strip() for n in text.split(",") if n.strip())


def _is_file_name(text: str, *, no_main: bool) -> bool:
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
        if Path(path).exists() or _is_file_name(path, no_main=no_main):
            return Path(path), _names(names) or None
    elif _is_file_name(value, no_main=no_main):
        return Path(value), None
    return None, _names(value) or None


def _plan(main: list[Path], options: dict[Part, PathLike | None], format_name: str | None) -> list[_Job]:
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
        target.selected[role] = names
        if value is not None:
            target.required.add(role)
    needed = [j for j in jobs.values() if any(names != () for names in j.selected.values())]
    if not needed:
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
    return needed


def _first(described: dict[Path, FileInfo], role: str, names: Selection) -> Path | None:
    """The first of several files that has what is selected."""
    if names is None:
        return next((p for p, i in described.items() if i.offers(role)), None)
    found = next((p for p, i in described.items() if all(i.has(n) for n in names)), None)
    if found is None:
        held = [n for i in described.values() for item in i.items for n in (item.name, *item.members)]
        raise NoSuchName(Path(", ".join(p.name for p in described)), ",".join(names), held, role=role)
    return found


def _name_clocks(jobs: list[_Job]) -> None:
    """One clock per file, or family of files, named after it; where names are the same the folder is added."""
    families = list(dict.fromkeys(j.family for j in jobs))
    paths = [p for _, p in families]
    stems = [p.stem if p.is_file() and p.suffix else p.name for p in paths]
    names = []
    for path, stem in zip(paths, stems, strict=True):
        alike = [p for p, s in zip(paths, stems, strict=True) if s == stem]
        same_folder = [p for p in alike if p.parent == path.parent]
        name = path.name if len(same_folder) > 1 else stem
        names.append(f"{path.parent.name}/{name}" if len(same_folder) < len(alike) else name)
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
    # The first sentence is the fault; what follows is advice to programmers.
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


def _read_all(jobs: list[_Job], stated: Request, *, allow_negative_times: bool) -> list[Recording]:
    parts: list[Recording] = []
    taken: dict[str, tuple[str, Path]] = {}
    for job in jobs:
        chosen = job.selected
        request = replace(
            stated,
            clock=job.clock,
            spikes=chosen["spikes"],
            lfp=chosen["lfp"],
            movement=chosen["movement"],
        )
        part = _apart(_read(job, request), job, taken)
        if not job.format.checked:
            assumed = job.format.plain and stated.time_unit == "s"
            check_spikes(
                part, source=job.path.name, allow_negative_times=allow_negative_times, unit_assumed=assumed
            )
            if part.movement is not None:
                check_movement(part.movement, source=job.path.name)
        parts.append(part)
    return parts


def _read(job: _Job, request: Request) -> Recording:
    chosen = job.format
    try:
        whole = chosen.recording(job.path, request)
        left_out: set[str] = set()
        if chosen.read is not None and chosen.describe is not None and None in job.selected.values():
            left_out = {i.name for i in chosen.describe(job.path, job.clock).items if not i.default}
        part = select(whole, request, job.path, left_out=left_out)
    except Exception as error:
        raise _sentence(error, job.path, chosen) from error
    offered, held = _roles(whole), _roles(part)
    absent = sorted(job.required - held)
    if not absent and not held and offered:
        raise LoadError(
            f"nothing is left of '{job.path.name}' ({chosen.name}) without its {' and '.join(sorted(offered))}; "
            "leave out less."
        )
    if absent or not held:
        what = absent[0] if absent else "spikes, LFP or movement"
        raise LoadError(
            f"'{job.path.name}' ({chosen.name}) offers no {what} by default; list what it holds with "
            "'neurofuse info', then pass PATH::NAME."
        )
    return part


def _roles(recording: Recording) -> set[Part]:
    found: set[Part] = {s.role for s in recording.streams}
    return found | ({"movement"} if recording.movement is not None else set())


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
    if len(parts) == 1:
        return parts[0]
    moving = next((p for p in parts if p.movement is not None), None)
    streams = [s for p in parts for s in p.streams]
    populations = [s for s in streams if s.role == "spikes"]
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


def _as_circular(recording: Recording, circular: bool | float) -> Recording:
    if recording.movement is None:
        raise LoadError("--circular needs a movement, but none was taken; pass --movement NAME.")
    period = None if circular is True else float(circular)
    return recording.but(
        movement=recording.movement.circular(period),
        did=f"movement taken as circular, one turn is {'its range' if period is None else f'{period:g}'}",
    )
