"""In: a `Recording`. Out: a `neo.Block` that other tools can use, or a NIX file; both read back as the same."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from data_loaders.readers.neo_objects import PLAN
from neurofuse.recording import Movement, Recording, Signal, Spikes
from neurofuse.storage import whole_file

# Samples off a regular grid by more than this part of the interval are written with one time each.
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


def write_nix(recording: Recording, path: str | Path) -> Path:
    """Write a recording as NIX through neo; times of regular samples agree to a nanosecond.

    Raises
    ------
    NeurofuseError
        If the folder cannot be written.
    """
    import neo

    path = Path(path)
    block = to_neo(recording)
    with whole_file(path) as partial:
        partial.unlink()
        with neo.io.NixIO(str(partial), "ow") as file:
            file.write_block(block)
    return path
