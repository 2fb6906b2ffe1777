"""In: a number of steps. Out: a progress bar on stderr."""

from __future__ import annotations

import sys

from tqdm.auto import tqdm


def progress_bar(total: int, title: str, *, unit: str = "step", shown: bool = True) -> tqdm:
    """A bar that a terminal shows moving; a log file gets a line now and then."""
    terminal = sys.stderr.isatty()
    return tqdm(
        total=total,
        desc=title,
        unit=unit,
        file=sys.stderr,
        disable=not shown,
        mininterval=0.1 if terminal else 20.0,
        maxinterval=0.1 if terminal else 60.0,
    )
