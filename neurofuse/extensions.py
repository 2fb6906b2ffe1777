"""In: an entry point group. Out: what installed packages add under it; what cannot be used is left out with a warning.

Decoders, jitters and file formats are found in the same way.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any, TypeVar

T = TypeVar("T")


class ExtensionWarning(UserWarning):
    """Something that an installed package adds cannot be used."""


def from_packages(group: str, what: str, add: Callable[[Any], T]) -> list[T]:
    """Load every entry point of a group and add what it names.

    Parameters
    ----------
    group : str
        Such as "neurofuse.decoders".
    what : str
        One word for what it holds, for the warning.
    add : callable
        Checks and registers one object, and returns it.

    Returns
    -------
    list
        What was added, in the order of the entry points.
    """
    added = []
    for point in entry_points(group=group):
        try:
            added.append(add(point.load()))
        except Exception as error:  # whatever a foreign package raises, the others are still found
            package = point.dist.name if point.dist is not None else point.value.partition(":")[0]
            reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
            left_out = f"{what} '{point.name}' of the package '{package}' is left out ({reason})."
            warnings.warn(left_out, ExtensionWarning, stacklevel=3)
    return added


def same_definition(one: type, other: type) -> bool:
    """Whether two classes come from one definition: run again in a notebook, or in a worker process."""

    def place(kind: type) -> tuple[str, str]:
        # A spawned process calls the main script `__mp_main__`.
        return kind.__module__.replace("__mp_main__", "__main__"), kind.__qualname__

    return place(one) == place(other)
