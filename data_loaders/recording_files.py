"""In: a `.nc` file that neurofuse wrote. Out: the recording in it, with the clock names it was saved with."""

from __future__ import annotations

from pathlib import Path

from data_loaders.formats import FileInfo, Format, Request, choose_stream, describe_recording
from data_loaders.plain_arrays import is_hdf5
from neurofuse.recording import Recording
from neurofuse.storage import open_recording


def is_recording(path: Path) -> bool:
    """Whether a netCDF file carries the mark of a neurofuse recording."""
    import h5py

    if not path.is_file() or not is_hdf5(path):
        return False
    with h5py.File(path, "r") as file:
        return str(file.attrs.get("layout", "")).startswith("neurofuse-recording")


def _describe(path: Path, clock: str) -> FileInfo:
    del clock  # the file names its own
    return describe_recording(open_recording(path), path, FORMAT.name)


def _read(path: Path, request: Request) -> Recording:
    return choose_stream(open_recording(path), request, path)


FORMAT = Format("neurofuse", (".nc",), _describe, _read, is_recording, checked=True)
