"""Files in, recordings out: load, list and convert recordings of spikes, LFP and movement.

The public names are loaded on first use, so `import data_loaders` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

# Public name -> the module that defines it.
_PUBLIC = {
    "load": "data_loaders.loading",
    "info": "data_loaders.loading",
    "register_format": "data_loaders.detect",
    "save": "data_loaders.convert",
    "to_neo": "data_loaders.writers.neo_writer",
    "from_neo": "data_loaders.convert",
    "write_nix": "data_loaders.writers.neo_writer",
    "write_nwb": "data_loaders.writers.nwb_writer",
    "to_pynapple": "data_loaders.writers.pynapple_writer",
    "from_pynapple": "data_loaders.readers.pynapple_objects",
    "TokenSequence": "data_loaders.torch_dataset",
    "WindowDataset": "data_loaders.torch_dataset",
    "window_loader": "data_loaders.torch_dataset",
    "FileInfo": "data_loaders.formats",
    "Format": "data_loaders.formats",
    "Item": "data_loaders.formats",
    "LoadError": "data_loaders.formats",
    "Request": "data_loaders.formats",
}

if TYPE_CHECKING:
    from data_loaders.convert import from_neo, save
    from data_loaders.detect import register_format
    from data_loaders.formats import FileInfo, Format, Item, LoadError, Request
    from data_loaders.loading import info, load
    from data_loaders.readers.pynapple_objects import from_pynapple
    from data_loaders.torch_dataset import TokenSequence, WindowDataset, window_loader
    from data_loaders.writers.neo_writer import to_neo, write_nix
    from data_loaders.writers.nwb_writer import write_nwb
    from data_loaders.writers.pynapple_writer import to_pynapple

__all__ = [
    "FileInfo",
    "Format",
    "Item",
    "LoadError",
    "Request",
    "TokenSequence",
    "WindowDataset",
    "from_neo",
    "from_pynapple",
    "info",
    "load",
    "register_format",
    "save",
    "to_neo",
    "to_pynapple",
    "window_loader",
    "write_nix",
    "write_nwb",
]


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'data_loaders' has no attribute '{name}'")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
