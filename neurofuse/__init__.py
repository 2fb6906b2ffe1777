"""Decode movement from spikes and LFP whose clocks do not agree.

The public names stand in the stub `__init__.pyi` beside this file, which type checkers read; each is loaded on first
use, so that importing the package costs nothing.
"""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

__version__ = "0.1.0"


def _listed() -> dict[str, str]:
    """Public name -> the module that defines it, as the stub lists them."""
    stub = ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in imports for alias in node.names}


_PUBLIC = _listed()

__all__ = ["__version__", *sorted(_PUBLIC)]


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'neurofuse' has no attribute '{name}'")
    module = importlib.import_module(_PUBLIC[name])
    if name == "run_study":
        # The table that it returns has the accessor `.study` from then on.
        importlib.import_module("neurofuse.report.study_table")
    if not hasattr(module, name):
        raise ImportError(
            f"'{module.__name__}' was found at {getattr(module, '__file__', '?')}, which is not neurofuse's; "
            "a folder of that name in your project hides it, so rename that folder."
        )
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted(__all__)
