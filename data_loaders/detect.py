"""In: a path and perhaps the name of a format. Out: the one `Format` that reads it, by suffix, then by content."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from data_loaders.formats import Format, LoadError, listed
from data_loaders.readers import (
    matrices,
    mne_files,
    neo_files,
    nwb_files,
    random_target,
    recording_files,
    trial_data,
    trodes,
)
from neurofuse.extensions import from_packages

# Formats that inspect the content come before the plain ones, which take any file of their suffix.
BUILT_IN: dict[str, Format] = {
    f.name: f
    for f in (
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
}
ENTRY_POINTS = "neurofuse.formats"
_REGISTERED: dict[str, Format] = {}


def register_format(format: Format) -> Format:
    """Make a format known to `load`, `info` and the command line, for as long as this process runs.

    Packages name their formats under the entry point group `neurofuse.formats` instead.

    Parameters
    ----------
    format : Format
        One of the same name that was registered before is replaced.

    Returns
    -------
    Format
        The same.

    Raises
    ------
    LoadError
        If it is no `Format`, or a built-in one has its name.
    """
    if not isinstance(format, Format):
        raise LoadError(f"a format must be a data_loaders.Format, got a {type(format).__name__}.")
    if format.name in BUILT_IN:
        raise LoadError(f"the format '{format.name}' is built in; give yours another name.")
    _REGISTERED[format.name] = format
    return format


@cache
def _installed() -> dict[str, Format]:
    """The formats of installed packages, found once per process."""

    def checked(found: object) -> Format:
        if not isinstance(found, Format):
            raise LoadError(f"it is a {type(found).__name__}, not a data_loaders.Format")
        if found.name in BUILT_IN:
            raise LoadError(f"the format '{found.name}' is built in")
        return found

    return {f.name: f for f in from_packages(ENTRY_POINTS, "format", checked)}


def known_formats() -> dict[str, Format]:
    """Every format by name: the built-in ones, those of installed packages and those registered here."""
    return {**BUILT_IN, **_installed(), **_REGISTERED}


def _has_suffix_of(format: Format, path: Path) -> bool:
    if path.is_dir():
        return "" in format.suffixes
    return any(s and path.name.lower().endswith(s) for s in format.suffixes)


def _has_content_of(format: Format, path: Path) -> bool:
    assert format.sniff is not None
    try:
        return format.sniff(path)
    except Exception:
        # A file too damaged to inspect is left to the reader, whose message names it.
        return False


def format_of(path: Path, name: str | None = None) -> Format:
    """The format of a file, given by name or found by suffix and content.

    Raises
    ------
    LoadError
        If the file is not there, is a pickle, has an unknown suffix, or could be of several formats.
    """
    _check_file(path)
    formats = known_formats()
    if name is not None:
        chosen = formats.get(name) or neo_files.neo_reader(name)
        if chosen is None:
            raise LoadError(
                f"the format '{name}' is not known; the formats are {listed(list(formats), most=40)}."
            )
        return chosen
    claimed = [f for f in formats.values() if _has_suffix_of(f, path)]
    if len(claimed) == 1 and path.is_file():
        return claimed[0]
    if claimed:
        hits = [f for f in claimed if f.sniff is not None and _has_content_of(f, path)]
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
        f"'{path.name}' ends in '{path.suffix}', which no reader claims; known are {', '.join(suffixes)}."
    )


def _check_file(path: Path) -> None:
    if not path.exists():
        before, colons, name_inside = str(path).partition("::")
        if colons and Path(before).exists():
            raise LoadError(
                f"a path takes no ::NAME, got '{path}'; pass '{before}' and --spikes, --lfp or --movement "
                f"{name_inside or 'NAME'}."
            )
        raise LoadError(f"there is no file '{path}'; check the path{_similar(path)}.")
    if path.is_file() and path.stat().st_size == 0:
        raise LoadError(f"'{path.name}' is empty (0 bytes); copy or record it again.")
    if path.suffix.lower() in (".pkl", ".pickle", ".joblib"):
        raise LoadError(
            f"'{path.name}' is a pickle, which can run code when read; save it as .npz, .mat or .nwb."
        )


def _similar(path: Path) -> str:
    if not path.parent.is_dir():
        return f" (there is no folder '{path.parent}' either)"
    same = sorted(p.name for p in path.parent.iterdir() if p.suffix == path.suffix)[:5]
    return f" (files like it there: {', '.join(same)})" if same else ""
