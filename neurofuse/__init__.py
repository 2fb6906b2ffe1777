"""Decode movement from spikes and LFP whose clocks do not agree.

The public names are loaded on first use, so `import neurofuse` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

# Public name -> the module that defines it. `load`, `info` and `fetch` live in the sibling package.
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
    "StudyConfig": "neurofuse.cells",
    "run_study": "neurofuse.study",
    "open_study": "neurofuse.study_table",
    "explore": "neurofuse.viewer",
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
    "Threshold": "neurofuse.threshold",
    "threshold_of": "neurofuse.threshold",
    "thresholds": "neurofuse.threshold",
    "split_units": "neurofuse.recording",
    "load": "data_loaders",
    "info": "data_loaders",
    "fetch": "data_loaders.fetch",
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
    "StudyConfig",
    "Threshold",
    "Windows",
    "__version__",
    "align",
    "attention",
    "contribution",
    "decode_recording",
    "explore",
    "fetch",
    "info",
    "load",
    "make_decoder",
    "open_recording",
    "open_study",
    "parse_jitter",
    "run_study",
    "save_recording",
    "split_units",
    "spotlight_scores",
    "threshold_of",
    "thresholds",
    "tokenize",
]

if TYPE_CHECKING:
    from data_loaders import info, load
    from data_loaders.fetch import fetch
    from neurofuse.alignment.outcome import AlignConfig, Alignment, AlignmentRefused
    from neurofuse.alignment.session import align
    from neurofuse.cells import StudyConfig
    from neurofuse.decode import DecodeConfig, decode_recording
    from neurofuse.decoders.contract import Decoder
    from neurofuse.decoders.family import make_decoder
    from neurofuse.jitters.contract import Jitter, JitterTruth
    from neurofuse.jitters.family import JITTERS, parse_jitter
    from neurofuse.recording import Movement, NeurofuseError, Recording, Signal, Spikes, split_units
    from neurofuse.spotlight import attention, contribution, spotlight_scores
    from neurofuse.storage import open_recording, save_recording
    from neurofuse.study import run_study
    from neurofuse.study_table import open_study
    from neurofuse.threshold import Threshold, threshold_of, thresholds
    from neurofuse.tokens import tokenize
    from neurofuse.viewer import explore
    from neurofuse.windows import Windows


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'neurofuse' has no attribute '{name}'")
    module = importlib.import_module(_PUBLIC[name])
    if name == "run_study":
        # What it returns answers to `.study` from then on.
        importlib.import_module("neurofuse.study_table")
    if not hasattr(module, name):
        raise ImportError(
            f"'{module.__name__}' was found at {getattr(module, '__file__', '?')}, which is not neurofuse's; "
            "a folder of that name in your project hides it, so rename that folder."
        )
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted(__all__)
