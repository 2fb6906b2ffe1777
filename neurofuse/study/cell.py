"""In: the settings of a study, its recording, and coordinates. Out: the measures of the cells there, as plain values.

A cell is a pure function of its coordinates: decoder, kind of jitter, level, seed and protocol. It makes the calls that
a decode makes (`neurofuse.prepare`, `neurofuse.decode.fit_and_evaluate`); only its random generators differ, which are
seeded by a hash of coordinates, so a cell gives the same numbers alone, in any order, and on any machine. What a jitter
does to a recording depends on kind, level and seed alone, and one seed makes the same draws at every level: all
decoders get the same recordings, and a curve over levels is of one recording at growing levels.
"""

from __future__ import annotations

import base64
import hashlib
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from threadpoolctl import threadpool_limits

from neurofuse.attention_maps import attention_scores
from neurofuse.config import FeatureConfig, StudyConfig
from neurofuse.decode import Evaluation, build_decoder, evaluate, fit_and_evaluate
from neurofuse.decoders.base import Decoder
from neurofuse.decoders.registry import register_decoder
from neurofuse.jitters.jitter import Jitter
from neurofuse.jitters.kinds import parse_jitter, register_jitter
from neurofuse.jitters.lag_laws import LagJitter
from neurofuse.nets.device import use_threads
from neurofuse.prepare import Tokenized, lfp_features_of, tokens_of, windows_of, with_two_clocks
from neurofuse.recording import Recording, Signal, Spikes
from neurofuse.scores import hit_rate, r2_per_axis
from neurofuse.storage import open_recording, save_recording
from neurofuse.windows import Split

# Of the lag over time, this much of the test stretch is kept for figures, at three levels of the first seed.
MAP_S = 20.0
# Measures of a cell beside R2, and their units.
MEASURES = {
    "hit_rate": "1",
    "mass_on_truth": "1",
    "anomaly_rate": "1",
    "flicker": "1/s",
    "entropy": "nat",
    "coverage_90": "1",
    "seconds": "s",
}


def generator(config: StudyConfig, *coordinates: object) -> np.random.Generator:
    """The random generator at some coordinates: seeded by a hash of them and of the study's seed."""
    text = json.dumps([config.seed, *coordinates]).encode()
    words = np.frombuffer(hashlib.sha256(text).digest(), dtype="<u4")
    return np.random.default_rng(np.random.SeedSequence(words.tolist()))


def install(extensions: Sequence[type]) -> None:
    """Register decoders and jitters in a worker process, as they are registered in the process of the study."""
    for kind in extensions:
        if issubclass(kind, Decoder):
            register_decoder(kind)
        elif issubclass(kind, Jitter):
            register_jitter(kind)


def run_task(context: dict[str, Any], coordinates: dict[str, Any]) -> dict[str, Any]:
    """Train one decoder and measure the cells it serves.

    Parameters
    ----------
    context : dict
        `config`, `recording` (bytes of a `.nc` file), `maps` (kind -> levels whose lag maps are kept).
    coordinates : dict
        `model`, the label of a decoder; `seed`; `base`, the lag law of training as text; `train`, None or
        [kind, level], the jitter of training; `tests`, a list of [kind, index of the level, level].

    Returns
    -------
    dict
        `cells`: for each test its `kind`, `level` (index), `r2` by axis, and measures; `maps`, see `lag_map`.
    """
    use_threads(1)
    threadpool_limits(limits=1)
    config = config_from(context["config"])
    seed, base = coordinates["seed"], coordinates["base"]
    world = (context["recording"], json.dumps(context["config"]), seed)
    start = time.perf_counter()
    train = tuple(coordinates["train"] or (None, 0.0))
    tokenized = tokens_at(*world, base, *train)
    split = split_at(tokenized, config, seed)
    decoder = build(coordinates["model"], config, seed)
    truths = {t.clock: t for t in tokenized.clock_truths}
    trained = fit_and_evaluate(decoder, split, truths)
    trained_s = (time.perf_counter() - start) / len(coordinates["tests"])
    cells, maps = [], []
    for kind, index, level in coordinates["tests"]:
        start = time.perf_counter()
        if (kind, level) == train:
            evaluation = trained
        else:
            there = tokens_at(*world, base, kind, level)
            test = split_at(there, config, seed).test
            evaluation = evaluate(decoder, test, {t.clock: t for t in there.clock_truths})
        found = measures_of(evaluation, config)
        found["seconds"] = round(trained_s + time.perf_counter() - start, 3)
        cells.append({"kind": kind, "level": index} | found)
        table = evaluation.alignment
        if table is not None and seed == 0 and index in context["maps"].get(kind, ()):
            maps.append({"kind": kind, "level": index} | lag_map(table))
    return {"cells": cells, "maps": maps}


def measures_of(evaluation: Evaluation, config: StudyConfig) -> dict[str, Any]:
    """Every measure of one cell, None where it does not apply."""
    movement, table = evaluation.prediction, evaluation.alignment
    r2 = r2_per_axis(movement["movement"].values, movement["prediction"].values)
    out: dict[str, Any] = {"r2": [number(x) for x in r2]}
    if table is None:
        return out
    scores = attention_scores(table, bandwidth_hz=config.bandwidth_hz)
    for name in ("mass_on_truth", "anomaly_rate", "flicker", "entropy"):
        if name in scores:
            out[name] = number(scores[name].mean())
    if "true_lag_s" in table:
        path_s, true_s = table["lag_path_s"].values, table["true_lag_s"].values
        out["hit_rate"] = number(hit_rate(path_s, true_s, tolerance_s=scores.attrs["tolerance_s"]))
        out["coverage_90"] = number(scores["coverage"].sel(credible_level=0.9).values.mean())
    return out


def jitter_of(base: str, kind: str | None, level: float) -> Jitter:
    """The jitter of a cell: a kind at a level, and the base lag beside it; a lag law takes the place of the base."""
    varied = None if kind is None else at_level(kind, level)
    if varied is None or isinstance(varied, LagJitter):
        return varied or parse_jitter(base)
    return varied if base == "none" else varied | parse_jitter(base)


@lru_cache(maxsize=2)
def tokens_at(
    content: bytes, settings: str, seed: int, base: str, kind: str | None, level: float
) -> Tokenized:
    """Tokens of the recording of one seed under one jitter."""
    config = config_from(json.loads(settings))
    recording = _opened(content, settings, seed)
    known = _features_once(content, settings, seed)
    rng = generator(config, "jitter", kind, seed)
    return tokens_of(recording, config, jitter_of(base, kind, level), rng=rng, known=known)


def split_at(tokenized: Tokenized, config: StudyConfig, seed: int) -> Split:
    """The splits of one seed; its draws from a law are the same at every level, as near as the law allows."""
    law = tokenized.injected
    rng = generator(config, "windows", "none" if law is None else law.kind, seed)
    return windows_of(tokenized, config, rng=rng)[0]


@lru_cache(maxsize=1)
def _opened(content: bytes, settings: str, seed: int) -> Recording:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recording.nc"
        path.write_bytes(content)
        recording = open_recording(path)
    return two_clocks(recording, config_from(json.loads(settings)), seed)


@lru_cache(maxsize=1)
def _features_once(content: bytes, settings: str, seed: int) -> dict[str, Signal]:
    return lfp_features_of(_opened(content, settings, seed), config_from(json.loads(settings)))


def two_clocks(recording: Recording, config: StudyConfig, seed: int) -> Recording:
    """The recording of a seed, its second clock split off where it has one clock."""
    return with_two_clocks(recording, config, None, rng=generator(config, "split", seed), required=True)


def build(label: str, config: StudyConfig, seed: int) -> Decoder:
    """A decoder of the study whose random numbers depend on the seed of its cell alone."""
    name, options = config.choices[label]
    chosen = int(generator(config, "decoder", seed).integers(2**31))
    # Numbers are the same on any machine for the CPU alone.
    settings = replace(config, device="cpu") if config.device == "auto" else config
    return build_decoder(name, options, settings, seed=chosen)


def is_lag(kind: str) -> bool:
    """Whether a kind, settings and all, is a lag law."""
    return isinstance(of_kind(kind), LagJitter)


def at_level(kind: str, level: float) -> Jitter:
    """The jitter of a kind, which may carry settings (KIND:name=value), at a level."""
    name, *rest = kind.split(":")
    return parse_jitter(":".join([name, f"{level:.12g}", *rest]))


def of_kind(kind: str) -> Jitter:
    """A jitter of a kind, for what does not depend on the level; every kind can be at a half."""
    return at_level(kind, 0.5)


def config_from(settings: Mapping[str, Any]) -> StudyConfig:
    """A configuration from what JSON keeps of it, in which tuples are lists."""
    given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
    given["levels"] = {k: tuple(v) for k, v in settings["levels"].items()}
    given["decoders"] = tuple(d if isinstance(d, str) else (d[0], dict(d[1])) for d in settings["decoders"])
    given["features"] = FeatureConfig(**settings["features"])
    return StudyConfig(**given)


def packed_recording(recording: Recording) -> bytes:
    """The recording as the content of a `.nc` file, to be sent to workers wherever they are."""
    with tempfile.TemporaryDirectory() as folder:
        return save_recording(recording, Path(folder) / "recording.nc").read_bytes()


def digest(recording: Recording) -> str:
    """A hash of all numbers in a recording, wherever they were read from."""
    found = hashlib.sha256()
    for stream in recording.streams:
        found.update(f"{stream.name} on {stream.clock}".encode())
        arrays = (
            (stream.times_s, stream.unit, stream.support)
            if isinstance(stream, Spikes)
            else (stream.time_s, np.asarray(stream.data.values))
        )
        for array in arrays:
            found.update(np.ascontiguousarray(array).tobytes())
    if recording.movement is not None:
        moved = recording.movement.data
        for array in (moved["time"].values, moved.values):
            found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()[:16]


def lag_map(table: xr.Dataset) -> dict[str, Any]:
    """The first stretch of a lag posterior, of the first clock searched, as JSON takes it."""
    one = table.isel(clock=0)
    one = one.isel(time=one["time"].values < float(one["time"][0]) + MAP_S)
    posterior = one["posterior"].transpose("time", "lag").values.astype("<f2")
    out = {
        "posterior": base64.b64encode(posterior.tobytes()).decode(),
        "time_s": one["time"].values.tolist(),
        "lag_s": one["lag"].values.tolist(),
        "lag_path_s": one["lag_path_s"].values.tolist(),
    }
    if "true_lag_s" in one:
        out["true_lag_s"] = [number(x) for x in one["true_lag_s"].values]
    return out


def unpacked(kept: Mapping[str, Any]) -> np.ndarray:
    """The posterior of a `lag_map`, float16, shape (n_times, n_lags)."""
    values = np.frombuffer(base64.b64decode(kept["posterior"]), dtype="<f2")
    return values.reshape(len(kept["time_s"]), len(kept["lag_s"]))


def number(value: Any) -> float | None:
    """A number as JSON takes it, which has no NaN."""
    return float(value) if np.isfinite(value) else None
