"""Decode movement from spikes and LFP whose clocks do not agree.

The public names are loaded on first use, so `import neurofuse` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

# Public name -> the module that defines it. `load` and `info` live in the sibling package.
_PUBLIC = {
    "AlignConfig": "neurofuse.alignment.outcome",
    "Alignment": "neurofuse.alignment.outcome",
    "AlignmentRefused": "neurofuse.alignment.outcome",
    "align": "neurofuse.alignment.session",
    "DecodeConfig": "neurofuse.decode",
    "decode_recording": "neurofuse.decode",
    "Decoder": "neurofuse.decoders.contract",
    "make_decoder": "neurofuse.decoders.family",
    "Jitter": "neurofuse.jitters.contract",
    "JITTERS": "neurofuse.jitters.family",
    "JitterTruth": "neurofuse.jitters.contract",
    "parse_jitter": "neurofuse.jitters.family",
    "attention": "neurofuse.spotlight",
    "contribution": "neurofuse.spotlight",
    "spotlight_scores": "neurofuse.spotlight",
    "tokenize": "neurofuse.tokens",
    "Windows": "neurofuse.windows",
    "Movement": "neurofuse.recording",
    "NeurofuseError": "neurofuse.recording",
    "Recording": "neurofuse.recording",
    "Signal": "neurofuse.recording",
    "Spikes": "neurofuse.recording",
    "open_recording": "neurofuse.storage",
    "save_recording": "neurofuse.storage",
    "split_units": "neurofuse.recording",
    "load": "data_loaders",
    "info": "data_loaders",
}

__all__ = [
    "AlignConfig",
    "Alignment",
    "AlignmentRefused",
    "DecodeConfig",
    "Decoder",
    "JITTERS",
    "Jitter",
    "JitterTruth",
    "Movement",
    "NeurofuseError",
    "Recording",
    "Signal",
    "Spikes",
    "Windows",
    "__version__",
    "align",
    "attention",
    "contribution",
    "decode_recording",
    "info",
    "load",
    "make_decoder",
    "open_recording",
    "parse_jitter",
    "save_recording",
    "split_units",
    "spotlight_scores",
    "tokenize",
]

if TYPE_CHECKING:
    from data_loaders import info, load
    from neurofuse.alignment.outcome import AlignConfig, Alignment, AlignmentRefused
    from neurofuse.alignment.session import align
    from neurofuse.decode import DecodeConfig, decode_recording
    from neurofuse.decoders.contract import Decoder
    from neurofuse.decoders.family import make_decoder
    from neurofuse.jitters.contract import Jitter, JitterTruth
    from neurofuse.jitters.family import JITTERS, parse_jitter
    from neurofuse.recording import Movement, NeurofuseError, Recording, Signal, Spikes, split_units
    from neurofuse.spotlight import attention, contribution, spotlight_scores
    from neurofuse.storage import open_recording, save_recording
    from neurofuse.tokens import tokenize
    from neurofuse.windows import Windows


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'neurofuse' has no attribute '{name}'")
    module = importlib.import_module(_PUBLIC[name])
    if not hasattr(module, name):
        raise ImportError(
            f"'{module.__name__}' was found at {getattr(module, '__file__', '?')}, which is not neurofuse's; "
            "a folder of that name in your project hides it, so rename that folder."
        )
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted(__all__)
