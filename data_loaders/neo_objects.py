"""In: a `Recording`. Out: a `neo.Block`, and back again with clocks, kinds and gaps as they were."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from neurofuse.recording import FloatArray, Movement, Recording, Signal, Spikes, Stream

# Annotation of a block that says how to build the recording again.
PLAN = "neurofuse"
# Samples off a regular grid by more than this part of the interval are written with a time each.
GRID_TOLERANCE = 1e-6


def to_neo(recording: Recording) -> Any:
    """Turn a recording into a neo block of one segment.

    Each unit is a `SpikeTrain`. Each stretch of a signal or of the movement is an `AnalogSignal`, or an
    `IrregularlySampledSignal` where its samples do not sit on a grid. Trials are an `Epoch`. Every object
    carries its stream and clock as annotations.

    Returns
    -------
    neo.Block
    """
    import neo
    import quantities as pq

    segment = neo.Segment(name=recording.name)
    plans: list[dict[str, Any]] = []
    for k, stream in enumerate(recording.streams):
        marks = {"neurofuse_stream": k, "clock": stream.clock}
        if isinstance(stream, Spikes):
            start_s = min([stream.start_s, *stream.times_s[:1].tolist()])
            stop_s = max([stream.stop_s, *stream.times_s[-1:].tolist()])
            for name, train in zip(stream.units["name"], stream.trains, strict=True):
                segment.spiketrains.append(
                    neo.SpikeTrain(
                        np.array(train),
                        units="s",
                        t_start=start_s * pq.s,
                        t_stop=stop_s * pq.s,
                        name=str(name),
                        **marks,
                    )
                )
            table = stream.units.to_json(orient="split", double_precision=15)
            plans.append({"kind": "spikes", "support": stream.support.tolist(), "units": table})
        else:
            _add_samples(
                segment, stream, stream.channels, str(stream.data.attrs.get("units", "")), stream.name, marks
            )
            plans.append({"kind": stream.kind, "sample_s": stream.sample_s, "channels": stream.channels})
        plans[-1] |= {"name": stream.name, "clock": stream.clock}
    m = recording.movement
    if m is not None:
        marks = {"neurofuse_stream": -1, "clock": recording.reference}
        _add_samples(segment, m, m.axes, m.units, m.name, marks)
    if len(recording.trials):
        start = recording.trials["start_s"].to_numpy(dtype=float)
        length = recording.trials["stop_s"].to_numpy(dtype=float) - start
        labels = np.array([str(k) for k in range(len(start))])
        segment.epochs.append(
            neo.Epoch(
                times=start * pq.s,
                durations=length * pq.s,
                labels=labels,
                name="trials",
                clock=recording.reference,
            )
        )
    plan = {
        "name": recording.name,
        "reference": recording.reference,
        "provenance": list(recording.provenance),
        "streams": plans,
        "movement": None
        if m is None
        else {"name": m.name, "axes": m.axes, "units": m.units, "sample_s": m.sample_s},
        "trials": recording.trials.to_json(orient="split", double_precision=15),
        "units": [
            str(s.data.attrs.get("units", "")) if isinstance(s, Signal) else "s" for s in recording.streams
        ],
    }
    block = neo.Block(name=recording.name, **{PLAN: json.dumps(plan)})
    block.segments.append(segment)
    return block


def _quantity(units: str) -> Any:
    import quantities as pq

    if not units.replace("µ", "u").isidentifier():
        return pq.dimensionless
    try:
        return pq.Quantity(1.0, units.replace("µ", "u")).units
    except LookupError:
        return pq.dimensionless


def _add_samples(
    segment: Any, stream: Signal | Movement, names: list[str], units: str, name: str, marks: dict[str, Any]
) -> None:
    import neo
    import quantities as pq

    edges = [*np.searchsorted(stream.time_s, stream.support[:, 0]).tolist(), stream.time_s.size]
    for lo, hi in pairwise(edges):
        values = np.array(stream.data.values[lo:hi])
        times = np.array(stream.time_s[lo:hi])
        grid = times[0] + np.arange(times.size) * stream.sample_s
        shared = {
            "units": _quantity(units),
            "name": name,
            "array_annotations": {"channel_names": np.array(names)},
        }
        if np.abs(times - grid).max() <= GRID_TOLERANCE * stream.sample_s:
            segment.analogsignals.append(
                neo.AnalogSignal(
                    values, t_start=times[0] * pq.s, sampling_rate=pq.Hz / stream.sample_s, **shared, **marks
                )
            )
        else:
            segment.irregularlysampledsignals.append(
                neo.IrregularlySampledSignal(times * pq.s, values, **shared, **marks)
            )


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
