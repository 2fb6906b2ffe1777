"""In: the settings of a study, its recording, and coordinates. Out: what the cells there measured, as plain values.

A cell is a pure function of its coordinates: decoder, kind of jitter, level, seed and protocol. Where chance comes in,
its seed is a hash of coordinates, so a cell says the same alone, in any order, and on any machine. What a jitter does
to a recording depends on kind, level and seed alone, and one seed makes the same draws at every level: all decoders
see the same recordings, and a curve over levels is of one recording growing worse.
"""

from __future__ import annotations

import base64
import hashlib
import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from threadpoolctl import threadpool_limits

from neurofuse.attention_maps import attention_scores
from neurofuse.decode import alignment_table, check_channels, decodable, prediction_table
from neurofuse.decoders.base import Decoder
from neurofuse.decoders.registry import make_decoder, parameters_of
from neurofuse.features import FeatureConfig, drop_bad, lfp_features
from neurofuse.jitters.jitter import Jitter
from neurofuse.jitters.kinds import parse_jitter
from neurofuse.jitters.lag_laws import LAWS, LagLaw, LagTruth, parse_law
from neurofuse.nets.device import check_device, use_threads
from neurofuse.recording import NeurofuseError, Recording, Signal, Spikes, Stream, separate_lfp, split_units
from neurofuse.scores import hit_rate, r2_per_axis
from neurofuse.storage import open_recording, save_recording
from neurofuse.tokens import Tokens, tokenize
from neurofuse.windows import Split, Windows, split

PROTOCOLS = ("train-matched", "test-only")
# G = (model - fixed) / (oracle - fixed) is measured between these.
FIXED, ORACLE = "early", "oracle"
# The search that goes on while something other than the lag is varied.
BASE_LAG = "lag:0.2"
# Of the lag over time, this much of the test stretch is kept for figures, at three levels of the first seed.
MAP_S = 20.0


@dataclass(frozen=True)
class StudyConfig:
    """What a study varies, and how it trains. All of it is written into the table."""

    # Names of decoders, of `neurofuse.decoders.registry.DECODERS`.
    decoders: tuple[str, ...] = ("tracked", "softmax")
    # Kinds of jitter, as in KIND:LEVEL; settings other than the level may follow, KIND:name=value.
    kinds: tuple[str, ...] = ("lag",)
    # Levels of each kind in its unit; kinds that are not named get `n_levels` around the predicted critical level.
    levels: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    n_levels: int = 10
    n_seeds: int = 5
    # "train-matched": trained and tested at the level. "test-only": trained once, without the jitter.
    protocols: tuple[str, ...] = ("train-matched",)
    # The lag law under which alignment has to be found while another kind is varied, KIND:LEVEL or "none".
    # Kinds that are lags themselves are varied alone.
    base_lag: str = BASE_LAG
    # Add the decoders between which a gain is measured: early fusion, and one that is told the lag.
    references: bool = True
    window_s: float = 3.0
    max_lag_s: float = 0.5
    # Seconds a token; None takes 20 ms, or the recording's own bins where they are longer.
    token_s: float | None = None
    # Gradient steps at most; None takes each decoder's own.
    n_steps: int | None = None
    # Leave so many units on the first clock, drawn anew for every seed; give the rest a clock of their own.
    split_units: int | None = None
    # Decode from the past alone.
    causal: bool = False
    # Mains frequency to remove from the LFP.
    line_hz: float | None = None
    # Bandwidth of what the clocks share: a lag within +-1/(2B) is a hit. None takes 50 ms.
    bandwidth_hz: float | None = None
    # Of everything random, together with the coordinates.
    seed: int = 0
    # Numbers are the same on any machine for "cpu" alone.
    device: str = "cpu"

    @property
    def models(self) -> tuple[str, ...]:
        """The decoders, and the references that were not among them."""
        more = (FIXED, ORACLE) if self.references else ()
        return tuple(dict.fromkeys((*self.decoders, *more)))


def check_config(config: StudyConfig) -> None:
    """Refuse settings that no recording could satisfy, in one sentence."""
    for what, given in (
        ("decoder", config.decoders),
        ("jitter", config.kinds),
        ("protocol", config.protocols),
    ):
        if not given:
            raise NeurofuseError(f"a study needs at least one {what}; name one.")
        twice = sorted({g for g in given if given.count(g) > 1})
        if twice:
            raise NeurofuseError(f"{what} '{twice[0]}' is named twice; name each once.")
    for name in config.models:
        parameters_of(name)
    for protocol in config.protocols:
        if protocol not in PROTOCOLS:
            raise NeurofuseError(f"there is no protocol '{protocol}'; choose from {', '.join(PROTOCOLS)}.")
    sizes: dict[str, float | None] = {
        "n_seeds": config.n_seeds,
        "n_levels": config.n_levels,
        "window_s": config.window_s,
        "token_s": config.token_s,
        "n_steps": config.n_steps,
        "split_units": config.split_units,
        "bandwidth_hz": config.bandwidth_hz,
    }
    for name, size in sizes.items():
        if size is not None and not 0 < size < np.inf:
            raise NeurofuseError(f"{name} must be a positive number, got {size:g}.")
    if config.seed < 0:
        raise NeurofuseError(f"the seed must be zero or more, got {config.seed}.")
    if not 0 < config.max_lag_s < config.window_s:
        raise NeurofuseError(
            f"the search range of +-{config.max_lag_s:g} s must be positive and shorter than a window "
            f"({config.window_s:g} s); lower max_lag_s or raise window_s."
        )
    parse_law(config.base_lag)
    for kind in config.kinds:
        of_kind(kind)
    unknown = sorted(set(config.levels) - set(config.kinds))
    if unknown:
        raise NeurofuseError(
            f"levels are given for '{unknown[0]}', which is not varied; varied are {', '.join(config.kinds)}."
        )
    for kind, levels in config.levels.items():
        if not levels or any(not 0 < x < np.inf for x in levels) or len(set(levels)) < len(levels):
            raise NeurofuseError(
                f"levels of '{kind}' must be positive and differ, got {', '.join(f'{x:g}' for x in levels) or 'none'}."
            )
        for level in levels:
            at_level(kind, level)
    check_device(config.device)


def is_lag(kind: str) -> bool:
    """Lag laws, which windows draw anew in training. Named with settings of its own, a law moves the clock once."""
    return kind in LAWS


def generator(config: StudyConfig, *coordinates: object) -> np.random.Generator:
    """The source of chance at some coordinates: a hash of them and of the study's seed."""
    said = json.dumps([config.seed, *coordinates]).encode()
    words = np.frombuffer(hashlib.sha256(said).digest(), dtype="<u4")
    return np.random.default_rng(np.random.SeedSequence(words.tolist()))


def ready_recording(recording: Recording, config: StudyConfig) -> Recording:
    """The recording with what no cell needs left out, once and for all: which channels count does not vary."""
    recording = decodable(recording)
    streams: list[Stream] = []
    for stream in recording.streams:
        if isinstance(stream, Signal) and stream.kind == "lfp":
            stream, table = check_channels(stream, causal=config.causal)
            stream = drop_bad(stream, table)
        streams.append(stream)
    return recording.but(streams=tuple(streams))


def two_clocks(recording: Recording, config: StudyConfig, seed: int) -> Recording:
    """The recording of a seed, its second clock split off where it has one clock."""
    if config.split_units is not None:
        rng = generator(config, "split", seed)
        recording = split_units(recording, config.split_units, rng=rng)
    if len([c for c in recording.clocks if recording.on(c)]) < 2:
        recording = separate_lfp(recording)
    return recording


def run_task(context: dict[str, Any], coordinates: dict[str, Any]) -> dict[str, Any]:
    """Train one decoder and measure the cells it serves.

    Parameters
    ----------
    context : dict
        `config`, `recording` (bytes of a `.nc` file), `maps` (kind -> levels whose lag maps are kept).
    coordinates : dict
        `model`, `seed`; `base`, the lag law of training as text; `train`, None or [kind, level], the jitter of
        training; `tests`, a list of [kind, index of the level, level].

    Returns
    -------
    dict
        `cells`: for each test its `kind`, `level` (index), `r2` by axis, and measures; `maps`, see `lag_map`.
    """
    use_threads(1)
    threadpool_limits(limits=1)
    config = config_from(context["config"])
    model, seed = coordinates["model"], coordinates["seed"]
    world = (context["recording"], json.dumps(context["config"]), seed)
    start = time.perf_counter()
    law = parse_law(coordinates["base"])
    tokens, truths = jittered_tokens(*world, *(coordinates["train"] or (None, 0.0)))
    parts = cut_windows(tokens, config, law, truths, seed)
    decoder = build(model, config, seed).fit(parts.train, validation=parts.validation)
    trained_s = (time.perf_counter() - start) / len(coordinates["tests"])
    cells, maps = [], []
    for kind, index, level in coordinates["tests"]:
        start = time.perf_counter()
        if [kind, level] == coordinates["train"]:
            test = parts.test
        elif is_lag(kind):
            test = cut_windows(tokens, config, parse_law(f"{kind}:{level:.12g}"), (), seed).test
        else:
            moved, there = jittered_tokens(*world, kind, level)
            test = cut_windows(moved, config, law, there, seed).test
        found, table = measure(decoder, test, config)
        found["seconds"] = round(trained_s + time.perf_counter() - start, 3)
        cells.append({"kind": kind, "level": index} | found)
        if table is not None and seed == 0 and index in context["maps"].get(kind, ()):
            maps.append({"kind": kind, "level": index} | lag_map(table))
    return {"cells": cells, "maps": maps}


def measure(decoder: Decoder, test: Windows, config: StudyConfig) -> tuple[dict[str, Any], xr.Dataset | None]:
    """Every measure of one cell, None where it does not apply, and the table of lags over time."""
    said = decoder.decode_session(test)
    movement = prediction_table(test, said.movement, None, decoder=decoder.name)
    r2 = r2_per_axis(movement["movement"].values, movement["prediction"].values)
    out: dict[str, Any] = {"r2": [number(x) for x in r2]}
    table = alignment_table(test, said, {t.clock: t for t in test.truths}, decoder=decoder.name)
    if table is None:
        return out, None
    spot = attention_scores(table, bandwidth_hz=config.bandwidth_hz)
    for name in ("mass_on_truth", "anomaly_rate", "flicker", "entropy"):
        if name in spot:
            out[name] = number(spot[name].mean())
    if "true_lag_s" in table:
        path_s, true_s = table["lag_path_s"].values, table["true_lag_s"].values
        out["hit_rate"] = number(hit_rate(path_s, true_s, tolerance_s=spot.attrs["tolerance_s"]))
        out["coverage_90"] = number(spot["coverage"].sel(credible_level=0.9).values.mean())
    return out, table


def cut_windows(
    tokens: Tokens, config: StudyConfig, law: LagLaw, truths: tuple[LagTruth, ...], seed: int
) -> Split:
    """The splits of one seed; its draws from a law are the same at every level, as near as the law allows."""
    rng = generator(config, "windows", law.kind, seed)
    sizes = {"window_s": config.window_s, "max_lag_s": config.max_lag_s}
    return split(tokens, jitter=law, truths=truths, rng=rng, **sizes)


@lru_cache(maxsize=2)
def jittered_tokens(
    content: bytes, settings: str, seed: int, kind: str | None, level: float
) -> tuple[Tokens, tuple[LagTruth, ...]]:
    """Tokens of the recording of one seed after one jitter, and the lags that it planted on the other clocks.

    Lag laws leave the recording as it is: windows draw from them.
    """
    config = config_from(json.loads(settings))
    recording = _opened(content, settings, seed)
    before = recording
    truths: dict[str, LagTruth] = {}
    if kind is not None and not is_lag(kind):
        rng = generator(config, "jitter", kind, seed)
        recording, told = at_level(kind, level).jitter(recording, rng=rng)
        truths = told.lags(*recording.span_s)
    known = {s.name: s for s in before.streams}
    featured = tuple(
        # What the jitter did not touch has the features it had.
        _features_once(content, settings, seed, s.name)
        if isinstance(s, Signal) and s.kind == "lfp" and s is known[s.name]
        else lfp_features(s, config=_features(config))
        if isinstance(s, Signal)
        else s
        for s in recording.streams
    )
    tokens = tokenize(recording.but(streams=featured), token_s=config.token_s)
    if not truths:
        return tokens, ()
    some = next(iter(truths.values()))
    none = {c.clock: LagTruth(c.clock, some.time_s, np.zeros_like(some.lag_s), "none") for c in tokens.clocks}
    return tokens, tuple((none | truths)[c.clock] for c in tokens.clocks[1:])


@lru_cache(maxsize=1)
def _opened(content: bytes, settings: str, seed: int) -> Recording:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recording.nc"
        path.write_bytes(content)
        recording = open_recording(path)
    return two_clocks(recording, config_from(json.loads(settings)), seed)


@lru_cache(maxsize=4)
def _features_once(content: bytes, settings: str, seed: int, name: str) -> Signal:
    stream = _opened(content, settings, seed)[name]
    assert isinstance(stream, Signal)
    return lfp_features(stream, config=_features(config_from(json.loads(settings))))


def _features(config: StudyConfig) -> FeatureConfig:
    return FeatureConfig(causal=config.causal, line_hz=config.line_hz)


def build(model: str, config: StudyConfig, seed: int) -> Decoder:
    """A decoder whose chances depend on the seed of its cell alone."""
    wanted = {
        "causal": config.causal,
        "seed": int(generator(config, "decoder", seed).integers(2**31)),
        "device": config.device,
        "n_steps": config.n_steps,
    }
    known = parameters_of(model)
    return make_decoder(model, **{k: v for k, v in wanted.items() if k in known and v is not None})


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
    return StudyConfig(**given)


def packed_recording(recording: Recording) -> bytes:
    """The recording as the content of a `.nc` file, to be sent to workers wherever they are."""
    with tempfile.TemporaryDirectory() as folder:
        return save_recording(recording, Path(folder) / "recording.nc").read_bytes()


def digest(recording: Recording) -> str:
    """A hash of all numbers in a recording, wherever they were read from."""
    told = hashlib.sha256()
    for stream in recording.streams:
        told.update(f"{stream.name} on {stream.clock}".encode())
        arrays = (
            (stream.times_s, stream.unit, stream.support)
            if isinstance(stream, Spikes)
            else (stream.time_s, np.asarray(stream.data.values))
        )
        for array in arrays:
            told.update(np.ascontiguousarray(array).tobytes())
    if recording.movement is not None:
        moved = recording.movement.data
        for array in (moved["time"].values, moved.values):
            told.update(np.ascontiguousarray(array).tobytes())
    return told.hexdigest()[:16]


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
