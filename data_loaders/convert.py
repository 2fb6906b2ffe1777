"""In: a `Recording`. Out: a file (.nc, .nwb, .nix) that reads back as the same; and neo blocks in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_loaders.formats import LoadError, Request
from data_loaders.neo_files import read_block
from data_loaders.neo_objects import to_neo
from data_loaders.nwb_writer import write_nwb
from neurofuse.recording import Recording
from neurofuse.storage import save_recording, whole_file

__all__ = ["from_neo", "save", "to_neo", "write_nix", "write_nwb"]


def save(recording: Recording, path: str | Path) -> Path:
    """Write a recording to the format its ending names; the file appears whole or not at all.

    Parameters
    ----------
    recording : Recording
        What to write.
    path : path
        Ends in `.nc` or `.nwb` (times kept to the last bit) or `.nix`.

    Raises
    ------
    NeurofuseError
        If the ending is none of these, or the folder cannot be written.
    """
    path = Path(path)
    writers = {".nc": save_recording, ".nwb": write_nwb, ".nix": write_nix}
    if path.suffix.lower() not in writers:
        raise LoadError(
            f"cannot write '{path.name}': no writer for '{path.suffix}'; use {', '.join(writers)}."
        )
    return writers[path.suffix.lower()](recording, path)


def write_nix(recording: Recording, path: str | Path) -> Path:
    """Write a recording as NIX through neo; times of regular samples agree to a nanosecond.

    Raises
    ------
    NeurofuseError
        If the folder cannot be written.
    """
    import neo

    path = Path(path)
    block = to_neo(recording)
    with whole_file(path) as partial:
        partial.unlink()
        with neo.io.NixIO(str(partial), "ow") as file:
            file.write_block(block)
    return path


def from_neo(
    block: Any,
    *,
    clock: str | None = None,
    spikes: tuple[str, ...] | None = None,
    lfp: tuple[str, ...] | None = None,
    movement: tuple[str, ...] | None = None,
) -> Recording:
    """Turn a `neo.Block` into a recording.

    Parameters
    ----------
    block : neo.Block
        One made by `to_neo` comes back with its clocks and kinds; any other is one clock.
    clock : str, optional
        Name of that clock; by default the block's name.
    spikes, lfp, movement : tuple of str, optional
        Names of units, signals or channels to take; () leaves out. Movement is only taken by name.

    Raises
    ------
    NeurofuseError
        If a name is not there, or the block holds nothing that can be used.
    """
    name = str(block.name or "block")
    return read_block(
        block, Request(clock=clock or name, spikes=spikes, lfp=lfp, movement=movement), Path(name)
    )
