"""In: a `Recording`. Out: a file (.nc, .nwb, .nix) that reads back as the same; and neo blocks in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_loaders.formats import LoadError, Request
from data_loaders.readers.neo_files import read_block
from data_loaders.selection import select
from data_loaders.writers.neo_writer import write_nix
from data_loaders.writers.nwb_writer import write_nwb
from neurofuse.recording import Recording
from neurofuse.storage import save_recording


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
        Names of units, signals or channels to take; () leaves out. Movement is taken by name only.

    Raises
    ------
    NeurofuseError
        If a name is not there, or the block holds nothing that can be used.
    """
    path = Path(str(block.name or "block"))
    request = Request(clock=clock or path.name, spikes=spikes, lfp=lfp, movement=movement)
    return select(read_block(block, request, path), request, path)
