"""In: a path and perhaps a format name. Out: the one `Format` that reads it, by suffix, then by content."""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path

from data_loaders import (
    matrices,
    mne_files,
    neo_files,
    nwb_files,
    random_target,
    recording_files,
    trial_data,
    trodes,
)
from data_loaders.formats import Format, LoadError, listed

# Formats that look inside come before the plain ones that take any file of their suffix.
BUILT_IN: tuple[Format, ...] = (
    recording_files.FORMAT,
    nwb_files.OWN_FORMAT,
    nwb_files.FORMAT,
    random_target.FORMAT,
    trial_data.FORMAT,
    trodes.FORMAT,
    *neo_files.FORMATS,
    *mne_files.FORMATS,
    *matrices.FORMATS,
)
ENTRY_POINTS = "neurofuse.formats"


def known_formats() -> dict[str, Format]:
    """Every format by name: the built-in ones and those of installed packages.

    Raises
    ------
    LoadError
        If a package's entry point is not a `Format`.
    """
    found = {f.name: f for f in BUILT_IN}
    for point in entry_points(group=ENTRY_POINTS):
        try:
            added = point.load()
        except Exception as error:
            raise LoadError(
                f"the format '{point.name}' of an installed package cannot be loaded: {error}."
            ) from error
        if not isinstance(added, Format):
            raise LoadError(
                f"the entry point '{point.name}' in group '{ENTRY_POINTS}' is a {type(added).__name__}; "
                "it must be a data_loaders.formats.Format."
            )
        found[added.name] = added
    return found


def _claims(format_: Format, path: Path) -> bool:
    if path.is_dir():
        return "" in format_.suffixes
    return any(s and path.name.lower().endswith(s) for s in format_.suffixes)


def _looks_like(format_: Format, path: Path) -> bool:
    assert format_.sniff is not None
    try:
        return format_.sniff(path)
    except Exception:
        # A file too damaged to look into is left to the reader, whose message names it.
        return False


def format_of(path: Path, name: str | None = None) -> Format:
    """The format of a file, given by name or found out.

    Raises
    ------
    LoadError
        If the file is not there, is a pickle, has no known suffix, or could be several things.
    """
    if not path.exists():
        before, colons, name_inside = str(path).partition("::")
        if colons and Path(before).exists():
            raise LoadError(
                f"a path takes no ::NAME, got '{path}'; pass '{before}' and --spikes, --lfp or --movement "
                f"{name_inside or 'NAME'}."
            )
        raise LoadError(f"there is no file '{path}'; check the path{_near(path)}.")
    if path.is_file() and path.stat().st_size == 0:
        raise LoadError(f"'{path.name}' is empty (0 bytes); copy or record it again.")
    if path.suffix.lower() in (".pkl", ".pickle", ".joblib"):
        raise LoadError(
            f"'{path.name}' is a pickle, which can run code when read; save it as .npz, .mat or .nwb."
        )
    formats = known_formats()
    if name is not None:
        chosen = formats.get(name) or neo_files.neo_reader(name)
        if chosen is None:
            raise LoadError(
                f"the format '{name}' is not known; the formats are {listed(list(formats), most=40)}."
            )
        return chosen
    claimed = [f for f in formats.values() if _claims(f, path)]
    if len(claimed) == 1 and path.is_file():
        return claimed[0]
    if claimed:
        hits = [f for f in claimed if f.sniff is not None and _looks_like(f, path)]
        hits = hits or [f for f in claimed if f.sniff is None]
        if len(hits) == 1:
            return hits[0]
        kind = "folder" if path.is_dir() else f"'{path.suffix}' file"
        raise LoadError(
            f"'{path.name or path}' is a {kind} that looks like {'none' if not hits else 'several'} of "
            f"{listed([f.name for f in hits or claimed])}; pass --format NAME."
        )
    guesses = [] if path.is_dir() else neo_files.neo_candidates(path)
    if len(guesses) == 1:
        reader = neo_files.neo_reader(guesses[0])
        if reader is not None:
            return reader
    if guesses:
        raise LoadError(f"'{path.name}' could be read by {listed(guesses)} of neo; pass --format NAME.")
    suffixes = sorted({s for f in formats.values() for s in f.suffixes if s})
    raise LoadError(
        f"'{path.name}' ends in '{path.suffix}', which no reader knows; known are {', '.join(suffixes)}."
    )


def _near(path: Path) -> str:
    if not path.parent.is_dir():
        return f" (there is no folder '{path.parent}' either)"
    same = sorted(p.name for p in path.parent.iterdir() if p.suffix == path.suffix)[:5]
    return f" (files like it there: {', '.join(same)})" if same else ""
