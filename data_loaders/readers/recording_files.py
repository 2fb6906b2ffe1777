"""In: a `.nc` file that neurofuse wrote. Out: the recording in it, with the clock names it was saved with."""

from __future__ import annotations

from pathlib import Path

from data_loaders.formats import Format
from data_loaders.readers.plain_arrays import is_hdf5
from neurofuse.recording import Recording
from neurofuse.storage import open_recording


def is_recording(path: Path) -> bool:
    """Whether a netCDF file carries the mark of a neurofuse recording."""
    import h5py

    if not path.is_file() or not is_hdf5(path):
        return False
    with h5py.File(path, "r") as file:
        return str(file.attrs.get("layout", "")).startswith("neurofuse-recording")


def _read(path: Path, clock: str) -> Recording:
    del clock  # the file names its own
    return open_recording(path)


FORMAT = Format("neurofuse", (".nc",), _read, sniff=is_recording, checked=True)
