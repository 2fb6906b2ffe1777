"""In: a recording as it was read. Out: nothing, or one sentence that states why it is refused."""

from __future__ import annotations

import numpy as np

from data_loaders.formats import LoadError
from neurofuse.recording import Movement, Recording, Spikes

# Milliseconds taken for seconds: among this many intervals a real unit has one shorter than this.
MIN_INTERVALS, IMPLAUSIBLE_INTERVAL_S, FAR_S = 100, 0.5, 100.0
# ... and taken for milliseconds, half of a real unit's intervals are not this long; then they are microseconds.
IMPLAUSIBLE_MEDIAN_MS = 20_000.0
# ... or the spikes go on this many times longer than the movement.
SPAN_RATIO = 50.0


def check_spikes(
    recording: Recording, *, source: str, allow_negative_times: bool, unit_assumed: bool
) -> None:
    """Refuse spikes that are absent, before time zero or in the wrong unit of time.

    Parameters
    ----------
    recording : Recording
        What was read from one file.
    source : str
        The file, as the message names it.
    allow_negative_times : bool
        Whether spikes before zero are meant.
    unit_assumed : bool
        Whether seconds are only an assumption, so that other units are tested for.

    Raises
    ------
    LoadError
        With one sentence and the remedy.
    """
    for stream in recording.streams:
        if not isinstance(stream, Spikes):
            if stream.kind == "counts" and not stream.data.values.any():
                raise LoadError(f"'{source}': '{stream.name}' holds no spikes; every count is zero.")
            continue
        if stream.times_s.size == 0:
            raise LoadError(
                f"'{source}': '{stream.name}' holds no spikes ({stream.n_units} units, all empty)."
            )
        first = float(stream.times_s[0])
        if first < 0 and not allow_negative_times:
            n = int((stream.times_s < 0).sum())
            raise LoadError(
                f"'{source}': {n} spike time(s) are negative (the first is {first:g} s); "
                "pass --allow-negative-times if time zero is an event inside the recording."
            )
        if unit_assumed and (unit := _other_unit(stream)) is not None:
            name, short = unit
            raise LoadError(
                f"'{source}': spike times look like {name}: no two spikes of a unit are closer "
                f"than {IMPLAUSIBLE_INTERVAL_S:g} and times reach {float(stream.times_s[-1]):g}; "
                f"pass --time-unit {short}."
            )


def _other_unit(spikes: Spikes) -> tuple[str, str] | None:
    """The unit of time that spikes seem to be in if it is not seconds: its name, and what --time-unit calls it."""
    if spikes.times_s.size < MIN_INTERVALS or np.ptp(spikes.times_s) < FAR_S:
        return None
    intervals = np.concatenate([np.diff(t) for t in spikes.trains])
    if intervals.size <= MIN_INTERVALS // 2 or float(intervals.min()) < IMPLAUSIBLE_INTERVAL_S:
        return None
    us = float(np.median(intervals)) >= IMPLAUSIBLE_MEDIAN_MS
    return ("microseconds", "us") if us else ("milliseconds", "ms")


def check_spans(recording: Recording, *, assumed: set[str]) -> None:
    """Refuse spikes (on the clocks whose unit is assumed) that last far longer than the movement."""
    if recording.movement is None:
        return
    start_s, stop_s = recording.span_s
    for stream in recording.spikes:
        span = float(np.ptp(stream.times_s)) if stream.times_s.size else 0.0
        if stream.clock in assumed and span > SPAN_RATIO * (stop_s - start_s):
            raise LoadError(
                f"spikes '{stream.name}' last {span:g} s but the movement only {stop_s - start_s:g} s: the "
                "spike times look like another unit; pass --time-unit ms (or us, or samples@RATE)."
            )


def check_movement(movement: Movement, *, source: str) -> None:
    """Refuse movement with an axis that never changes, which cannot be decoded.

    Raises
    ------
    LoadError
        Naming the axis.
    """
    flat = [
        a for a, still in zip(movement.axes, np.ptp(movement.data.values, axis=0) == 0, strict=True) if still
    ]
    if flat:
        moving = [a for a in movement.axes if a not in flat]
        rest = f"the axes that do are {', '.join(moving)}" if moving else "choose another"
        raise LoadError(
            f"'{source}': movement axis '{flat[0]}' never changes in {movement.time_s.size} samples; {rest}."
        )
