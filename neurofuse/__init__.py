"""Decode movement from spikes and LFP whose clocks do not agree.

The public names are loaded on first use, so `import neurofuse` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

# Public name -> the module that defines it. `load`, `info` and `fetch` live in the sibling package.
_PUBLIC = {
    "AlignConfig": "neurofuse.alignment.result",
    "Alignment": "neurofuse.alignment.result",
    "AlignmentRefused": "neurofuse.alignment.result",
    "align": "neurofuse.alignment.align",
    "DecodeConfig": "neurofuse.decode",
    "decode_recording": "neurofuse.decode",
    "Decoder": "neurofuse.decoders.base",
    "make_decoder": "neurofuse.decoders.registry",
    "Jitter": "neurofuse.jitters.jitter",
    "JITTERS": "neurofuse.jitters.kinds",
    "JitterTruth": "neurofuse.jitters.jitter",
    "parse_jitter": "neurofuse.jitters.kinds",
    "StudyConfig": "neurofuse.study.cell",
    "run_study": "neurofuse.study.run",
    "open_study": "neurofuse.report.study_table",
    "explore": "neurofuse.report.viewer",
    "attention": "neurofuse.attention_maps",
    "contribution": "neurofuse.attention_maps",
    "attention_scores": "neurofuse.attention_maps",
    "tokenize": "neurofuse.tokens",
    "Windows": "neurofuse.windows",
    "Movement": "neurofuse.recording",
    "NeurofuseError": "neurofuse.recording",
    "Recording": "neurofuse.recording",
    "Signal": "neurofuse.recording",
    "Spikes": "neurofuse.recording",
    "open_recording": "neurofuse.storage",
    "save_recording": "neurofuse.storage",
    "Threshold": "neurofuse.study.threshold",
    "threshold_of": "neurofuse.study.threshold",
    "thresholds": "neurofuse.study.threshold",
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
    "attention_scores",
    "threshold_of",
    "thresholds",
    "tokenize",
]

if TYPE_CHECKING:
    from data_loaders import info, load
    from data_loaders.fetch import fetch
    from neurofuse.alignment.align import align
    from neurofuse.alignment.result import AlignConfig, Alignment, AlignmentRefused
    from neurofuse.attention_maps import attention, attention_scores, contribution
    from neurofuse.decode import DecodeConfig, decode_recording
    from neurofuse.decoders.base import Decoder
    from neurofuse.decoders.registry import make_decoder
    from neurofuse.jitters.jitter import Jitter, JitterTruth
    from neurofuse.jitters.kinds import JITTERS, parse_jitter
    from neurofuse.recording import Movement, NeurofuseError, Recording, Signal, Spikes, split_units
    from neurofuse.report.study_table import open_study
    from neurofuse.report.viewer import explore
    from neurofuse.storage import open_recording, save_recording
    from neurofuse.study.cell import StudyConfig
    from neurofuse.study.run import run_study
    from neurofuse.study.threshold import Threshold, threshold_of, thresholds
    from neurofuse.tokens import tokenize
    from neurofuse.windows import Windows


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'neurofuse' has no attribute '{name}'")
    module = importlib.import_module(_PUBLIC[name])
    if name == "run_study":
        # What it returns answers to `.study` from then on.
        importlib.import_module("neurofuse.report.study_table")
    if not hasattr(module, name):
        raise ImportError(
            f"'{module.__name__}' was found at {getattr(module, '__file__', '?')}, which is not neurofuse's; "
            "a folder of that name in your project hides it, so rename that folder."
        )
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted(__all__)
