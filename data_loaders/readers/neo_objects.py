"""In: a neo block that `to_neo` made. Out: the recording it was made of, with its clocks, kinds and gaps."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd

from neurofuse.recording import FloatArray, Movement, Recording, Signal, Spikes, Stream

# Annotation of a block that holds what is needed to build the recording again.
PLAN = "neurofuse"


def is_own(block: Any) -> bool:
    """Whether a block was made by `to_neo`."""
    return PLAN in block.annotations


def rebuild(block: Any) -> Recording:
    """Build the recording again from a block that `to_neo` made."""
    plan = json.loads(str(block.annotations[PLAN]))
    segment = block.segments[0]
    streams: list[Stream] = []
    for k, part in enumerate(plan["streams"]):
        if part["kind"] == "spikes":
            trains = [
                np.sort(_plain(t, "s")) for t in segment.spiketrains if t.annotations["neurofuse_stream"] == k
            ]
            support = np.array(part["support"], dtype=np.float64).reshape(-1, 2)
            streams.append(
                Spikes.from_trains(
                    trains,
                    clock=part["clock"],
                    name=part["name"],
                    units=_frame(part["units"]),
                    support=support,
                )
            )
            continue
        values, time_s = _samples(segment, k)
        made = Signal.from_array(
            values,
            clock=part["clock"],
            name=part["name"],
            time_s=time_s,
            channels=part["channels"],
            units=plan["units"][k],
            kind=part["kind"],
        )
        streams.append(Signal(part["name"], part["clock"], made.data, part["kind"], part["sample_s"]))
    movement = None
    if plan["movement"] is not None:
        m = plan["movement"]
        values, time_s = _samples(segment, -1)
        made_m = Movement.from_array(values, name=m["name"], time_s=time_s, axes=m["axes"], units=m["units"])
        movement = Movement(m["name"], made_m.data, m["sample_s"])
    return Recording(
        plan["name"],
        plan["reference"],
        tuple(streams),
        movement,
        _frame(plan["trials"]),
        tuple(plan["provenance"]),
    )


def _plain(quantity: Any, units: str) -> FloatArray:
    return np.asarray(quantity.rescale(units).magnitude, dtype=np.float64)


def _frame(text: str) -> pd.DataFrame:
    parts = json.loads(text)
    return pd.DataFrame(parts["data"], columns=parts["columns"], index=parts["index"])


def _samples(segment: Any, stream: int) -> tuple[Any, FloatArray]:
    held = [*segment.analogsignals, *segment.irregularlysampledsignals]
    parts = [(_plain(s.times, "s"), s) for s in held if s.annotations["neurofuse_stream"] == stream]
    parts.sort(key=lambda p: float(p[0][0]))
    return np.concatenate([np.asarray(s.magnitude) for _, s in parts]), np.concatenate([t for t, _ in parts])
