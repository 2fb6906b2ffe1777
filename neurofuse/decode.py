"""In: a recording. Out: movement decoded from its last stretch, the lag that was found, and how good both are.

This is the main line of neurofuse from end to end: recording, features, tokens, windows, decoder, scores.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neurofuse.decoders.base import Decoder, Prediction
from neurofuse.decoders.registry import make_decoder, parameters_of
from neurofuse.features import FeatureConfig, channel_quality, drop_bad, lfp_features, resample
from neurofuse.html import card
from neurofuse.jitters.lag_laws import LagLaw, LagTruth, NoLag, WindowLag, move_clock, parse_law
from neurofuse.recording import (
    NeurofuseError,
    Recording,
    RecordingError,
    Signal,
    Spikes,
    separate_lfp,
    split_units,
)
from neurofuse.scores import hit_tolerance_s, lag_scores, posterior_summary, r2_per_axis, stitch
from neurofuse.tokens import Tokens, anchor_clock, tokenize
from neurofuse.variables import labelled
from neurofuse.windows import Split, Windows, cut, split

METRICS_LAYOUT = "neurofuse-decode-1"
# What windows are cut to when nobody says, if the recording has room.
WINDOW_S = 3.0
MAX_LAG_S = 0.5
SHORTEST_WINDOW_S = 0.2
# Data this far from the movement is left out; far more than any window reads.
MARGIN_S = 60.0
# An axis whose spread falls below this share of what it was in training stands still, near enough.
STILL_SHARE = 0.05
# Below these, scores say little about the decoder.
TRUST_TRAIN_S = 60.0
TRUST_TEST_S = 20.0
# Broadband files are brought down to this before features are taken.
LFP_RATE_HZ = 1000.0


@dataclass(frozen=True)
class DecodeConfig:
    """What a decode does. Everything here is written into the metrics and the checkpoint."""

    # Name of the decoder, one of `neurofuse.decoders.registry.DECODERS`.
    decoder: str = "tracked"
    # Seconds a token; None takes 20 ms, or the recording's own bins where they are longer.
    token_s: float | None = None
    # Seconds a window; None takes 3 s, or what fits.
    window_s: float | None = None
    # Largest lag searched, seconds; None takes 0.5 s, or what fits.
    max_lag_s: float | None = None
    # Decode from the past alone; of other clocks, from stamps up to the largest lag ahead.
    causal: bool = False
    # KIND:LEVEL, a known truth by which the second clock is moved, in training and test alike.
    jitter: str | None = None
    # Leave so many units on the first clock, give the rest a clock of their own.
    split_units: int | None = None
    # Of everything random.
    seed: int = 0
    # Mains frequency to remove from the LFP.
    line_hz: float | None = None
    # Gradient steps at most; None takes the decoder's own.
    n_steps: int | None = None
    device: str = "auto"
    # Shares of the movement's time for training and validation; the rest is the test stretch.
    train: float = 0.7
    validation: float = 0.1
    # Fit a ridge on the same windows for comparison.
    baseline: bool = True
    features: FeatureConfig = field(default_factory=FeatureConfig)


@dataclass(frozen=True, eq=False)
class DecodeResult:
    """Everything a decode found, as tables.

    Parameters
    ----------
    metrics : dict
        Scores, sizes, seconds, settings, warnings; JSON-safe.
    prediction : Dataset, dims (time, axis)
        `movement`, `prediction`, `ridge`, and the number of the window.
    alignment : Dataset, dims (clock, time, lag), or None
        The lag posterior of every clock that was searched.
    decoder : Decoder
        Fitted.
    recording : Recording
        What was decoded, after jitter and before features.
    """

    metrics: dict[str, Any]
    prediction: xr.Dataset
    alignment: xr.Dataset | None
    decoder: Decoder
    recording: Recording

    def _repr_html_(self) -> str:
        m = self.metrics
        ridge: dict[str, Any] = m.get("baseline_ridge_r2", {})
        rows = [(axis, value, ridge.get(axis)) for axis, value in m.get("r2", {}).items()]
        if len(rows) > 1:
            rows.append(("mean", m["r2_mean"], m.get("baseline_ridge_r2_mean")))
        searched = None if self.alignment is None else ", ".join(map(str, self.alignment["clock"].values))
        hit = m.get("lag_hit_rate")
        within = f"{1000 * m.get('lag_hit_tolerance_s', float('nan')):.3g} ms"
        return card(
            f"'{m['name']}' decoded by '{m['decoder']}'",
            facts=[
                ("clocks searched", searched),
                (f"lag within {within}", None if hit is None else f"{100 * hit:.1f} % of the test time"),
                ("windows", ", ".join(f"{n} {part}" for part, n in m["n_windows"].items())),
                ("seconds of training", m["seconds"].get("train")),
            ],
            head=("R2 on the test stretch", m["decoder"], "ridge"),
            rows=rows,
            warnings=m["warnings"],
            folded=("settings", [f"{k}: {v}" for k, v in m["settings"].items()]),
        )


@dataclass(frozen=True, eq=False)
class _Prepared:
    """A recording ready for tokens, the options its features were taken with, and what was noticed."""

    featured: Recording
    options: FeatureConfig
    quality: list[dict[str, Any]]
    warnings: list[str]


def decode_recording(
    recording: Recording,
    *,
    config: DecodeConfig | None = None,
    truths: dict[str, LagTruth] | None = None,
    progress: bool = False,
) -> DecodeResult:
    """Train on the first part of a recording, decode the last, and score it.

    Parameters
    ----------
    recording : Recording
        With movement.
    config : DecodeConfig, optional
    truths : dict of clock -> LagTruth, optional
        Planted lags, for scoring alone: no decoder sees them.
    progress : bool
        Show progress on stderr.

    Raises
    ------
    NeurofuseError
        If the recording cannot be decoded; the sentence says why and what would help.
    """
    config = config or DecodeConfig()
    seconds: dict[str, float] = {}
    rng = _drawing(config)
    recording = decodable(recording)
    recording, jitter, drawn = _misalign(recording, config, rng)
    known = (truths or {}) | drawn
    with _timed(seconds, "features"):
        ready = prepare(recording, config)
    warnings = [*_alone(recording), *ready.warnings]
    with _timed(seconds, "tokens"):
        tokens = tokenize(ready.featured, token_s=config.token_s)
        parts = _windows(
            tokens,
            config,
            jitter,
            tuple(drawn[c.clock] for c in tokens.clocks[1:] if c.clock in drawn),
            warnings,
            rng,
        )
        warnings += _check_moving(parts)
    if config.decoder == "oracle" and len(tokens.clocks) > 1 and jitter is None and not drawn:
        raise NeurofuseError(
            "decoder 'oracle' is told the true lag, and none is known here; move a clock by a known one with --jitter, "
            "or choose 'tracked' to find it."
        )
    decoder = _build(config, progress)
    with _timed(seconds, "train"):
        decoder.fit(parts.train, validation=parts.validation)
    with _timed(seconds, "decode"):
        said = decoder.decode_session(parts.test)
    ridge_said = None
    if config.baseline and config.decoder != "ridge":
        with _timed(seconds, "ridge"):
            ridge = make_decoder("ridge", causal=config.causal, seed=config.seed)
            ridge_said = ridge.fit(parts.train, validation=parts.validation).predict(parts.test)
    warnings += _trust(parts, tokens)
    prediction = prediction_table(parts.test, said.movement, ridge_said, decoder=decoder.name)
    alignment = alignment_table(parts.test, said, known, decoder=decoder.name)
    metrics = _metrics(config, ready, recording, parts, decoder, prediction, alignment, seconds, warnings)
    return DecodeResult(metrics, prediction, alignment, decoder, recording)


def predict_recording(
    recording: Recording, decoder: Decoder, settings: dict[str, Any]
) -> tuple[dict[str, Any], xr.Dataset, xr.Dataset | None]:
    """Decode a whole recording with a decoder fitted before, on the settings it was fitted with.

    Returns
    -------
    metrics, prediction, alignment
        Scores are there only if the recording has movement.
    """
    config = DecodeConfig(**{**settings, "features": FeatureConfig(**settings["features"])})
    # The same units and channels on the same clocks as when it was fitted.
    if len(decoder.clocks_) > len([c for c in recording.clocks if recording.on(c)]):
        recording = _parted(recording, config, _drawing(config))
    ready = prepare(recording, config, fitted=decoder)
    tokens = tokenize(ready.featured, token_s=decoder.token_s_)
    _check_same_features(tokens, decoder)
    blind = replace(tokens, movement=np.zeros((tokens.n_tokens, 0), np.float32), axes=())
    window_s = float(settings["window_s"])
    windows = cut(
        blind,
        window_s=window_s,
        stride_s=window_s / 2,
        max_lag_s=decoder.max_lag_ * decoder.token_s_,
        rng=np.random.default_rng(config.seed),
    )
    if len(windows) == 0:
        raise NeurofuseError(
            f"recording '{recording.name}' has no stretch of {window_s:g} s, the window this decoder was fitted on."
        )
    said = decoder.decode_session(windows)
    shown = windows if not tokens.axes else replace(windows, tokens=tokens)
    axes = tokens.axes or tuple(f"axis{k}" for k in range(said.movement.shape[-1]))
    if tokens.axes and len(tokens.axes) != said.movement.shape[-1]:
        raise NeurofuseError(
            f"the movement has {len(tokens.axes)} axes {list(tokens.axes)} but the decoder was fitted on "
            f"{said.movement.shape[-1]}; pick the same ones with --movement."
        )
    prediction = prediction_table(shown, said.movement, None, decoder=decoder.name, axes=axes)
    alignment = alignment_table(windows, said, {}, decoder=decoder.name)
    metrics = {
        "layout": METRICS_LAYOUT,
        "version": version("neurofuse"),
        "name": recording.name,
        "decoder": decoder.name,
        "scored": "stitched",
        "n_windows": {"decoded": len(windows)},
        "n_units": recording.n_units,
        "n_channels": recording.n_channels,
        "recording": repr(recording),
        "provenance": list(recording.provenance),
        "warnings": ready.warnings,
        "quality": ready.quality,
        **_movement_scores(prediction),
    }
    return metrics, prediction, alignment


def prepare(recording: Recording, config: DecodeConfig, *, fitted: Decoder | None = None) -> _Prepared:
    """Leave out bad channels and take features from the LFP, causally unless the decoder looks ahead.

    For a decoder that was fitted before, the channels it knows are taken, bad or not.
    """
    streams: list[Spikes | Signal] = []
    quality: list[dict[str, Any]] = []
    warnings: list[str] = []
    options = replace(
        config.features, causal=config.causal, line_hz=config.line_hz or config.features.line_hz
    )
    for stream in recording.streams:
        if not isinstance(stream, Signal) or stream.kind != "lfp":
            streams.append(stream)
            continue
        stream, table = check_channels(stream, causal=config.causal)
        quality += [_plain(row) for row in table.to_dict("records")]
        bad = table[table["bad"]]
        if len(bad):
            named = "; ".join(f"{n} ({w})" for n, w in zip(bad["name"], bad["why"], strict=True))
            fate = "left out" if fitted is None else "found bad"
            warnings.append(f"{len(bad)} of {len(table)} channels of '{stream.name}' were {fate}: {named}.")
        kept = drop_bad(stream, table) if fitted is None else _known_channels(stream, fitted)
        streams.append(lfp_features(kept, config=options))
    return _Prepared(recording.but(streams=tuple(streams)), options, quality, warnings)


def check_channels(signal: Signal, *, causal: bool) -> tuple[Signal, pd.DataFrame]:
    """LFP at a rate that features need no more of, and what each of its channels is worth."""
    if signal.rate_hz > 2.5 * LFP_RATE_HZ:
        signal = resample(signal, LFP_RATE_HZ, causal=causal)
    return signal, channel_quality(signal)


def _known_channels(signal: Signal, fitted: Decoder) -> Signal:
    """The channels a decoder was fitted on; all of them if it knows none, for it to refuse."""
    # A feature is named `stream/channel band`.
    known = {f.partition("/")[2].rpartition(" ")[0] for clock in fitted.features_ for f in clock}
    rows = [k for k, name in enumerate(signal.channels) if name in known]
    return signal.select(rows) if rows else signal


def prediction_table(
    windows: Windows,
    said: np.ndarray,
    ridge: np.ndarray | None,
    *,
    decoder: str,
    axes: tuple[str, ...] | None = None,
) -> xr.Dataset:
    """Predicted and true movement of some windows over time; overlapping windows are joined."""
    token, joined, window = stitch(windows.first, said)
    axes = axes or windows.tokens.axes
    tokens = windows.tokens
    true = tokens.movement[token] if tokens.axes else np.full(joined.shape, np.nan)
    variables = {
        "movement": (("time", "axis"), true.astype(np.float32)),
        "prediction": (("time", "axis"), joined.astype(np.float32)),
        "window": ("time", window),
    }
    if ridge is not None:
        variables["ridge"] = (("time", "axis"), stitch(windows.first, ridge)[1].astype(np.float32))
    table = xr.Dataset(
        variables,
        coords={"time": tokens.time_s(token), "axis": list(axes)},
        attrs={
            "units": tokens.units,
            "reference": tokens.clocks[0].clock,
            "sample_s": tokens.token_s,
            "scored": "per window" if windows.own_lag else "stitched",
            "decoder": decoder,
        },
    )
    return labelled(table, movement=tokens.units)


def alignment_table(
    windows: Windows, said: Prediction, truths: dict[str, LagTruth], *, decoder: str
) -> xr.Dataset | None:
    """The lag posterior of every searched clock over time; None where nothing was searched."""
    if not said.posterior:
        return None
    tokens, clocks = windows.tokens, list(said.posterior)
    columns: dict[str, list[np.ndarray]] = {}
    order = [c.clock for c in tokens.clocks[1:]]
    token = window = np.empty(0, dtype=np.int64)
    for clock in clocks:
        token, posterior, window = stitch(windows.first, said.posterior[clock])
        found: dict[str, np.ndarray] = dict(posterior_summary(posterior, said.lag_s))
        found["posterior"] = posterior.astype(np.float32)
        if clock in said.match:
            found["p_matched"] = stitch(windows.first, said.match[clock])[1].astype(np.float32)
        # Of overlapping windows the path is taken from the one that has the moment nearest its middle.
        step = token - windows.first[window]
        found["lag_path_s"] = said.lag_s[said.path[clock][window, step]]
        time_s = tokens.time_s(token)
        injected_s = windows.injected_s[window, step, order.index(clock)]
        if clock in truths:
            found["true_lag_s"] = truths[clock].at(time_s) + injected_s
        elif windows.jitter is not None:
            found["true_lag_s"] = injected_s
        else:
            found["true_lag_s"] = np.full(token.size, np.nan)
        for name, values in found.items():
            columns.setdefault(name, []).append(values)
    dims = {name: ("clock", "time", "lag") if name == "posterior" else ("clock", "time") for name in columns}
    table = xr.Dataset(
        {name: (dims[name], np.stack(values)) for name, values in columns.items()},
        coords={"clock": clocks, "time": tokens.time_s(token), "lag": said.lag_s},
        attrs={
            "decoder": decoder,
            "max_lag_s": windows.max_lag * tokens.token_s,
            "token_s": tokens.token_s,
            "hit_tolerance_s": hit_tolerance_s(tokens.token_s),
            "truth_step_s": tokens.fine_s,
        },
    ).assign(window=("time", window))
    if said.rates:
        table = table.assign(
            lag_drift=("clock", [said.rates[c].drift for c in clocks]),
            lag_jumps=("clock", [said.rates[c].jumps for c in clocks]),
        )
    return labelled(table if np.isfinite(table["true_lag_s"]).any() else table.drop_vars("true_lag_s"))


def decodable(recording: Recording) -> Recording:
    """Refuse what cannot be decoded, and leave out what was recorded far from the movement.

    Raises
    ------
    NeurofuseError
        The sentence says what is missing, and what would help.
    """
    _check_decodable(recording)
    _check_overlap(recording)
    return _near_movement(recording)


def _check_decodable(recording: Recording) -> None:
    if recording.movement is None:
        raise NeurofuseError(
            f"recording '{recording.name}' has no movement to decode; 'neurofuse info' lists what a file holds, "
            "--movement NAME or PATH::NAME takes it."
        )
    if not recording.streams:
        raise NeurofuseError(
            f"recording '{recording.name}' has neither spikes nor LFP; name them with --spikes or --lfp."
        )
    populations = [s for s in recording.streams if isinstance(s, Spikes) or s.kind == "counts"]
    if populations and recording.n_units < 2:
        raise NeurofuseError(
            f"recording '{recording.name}' has {recording.n_units} unit(s); a population code needs at least two "
            "(leave spikes out with --spikes none to decode from LFP alone)."
        )
    flat = [
        a for k, a in enumerate(recording.movement.axes) if np.ptp(recording.movement.data.values[:, k]) == 0
    ]
    if flat:
        raise RecordingError(
            f"movement axis '{flat[0]}' never changes; there is nothing to decode, leave it out."
        )


def _drawing(config: DecodeConfig) -> np.random.Generator:
    """What units are split by, clocks moved, and windows drawn."""
    return np.random.default_rng([config.seed, 11])


def _parted(recording: Recording, config: DecodeConfig, rng: np.random.Generator) -> Recording:
    """Give part of the recording a clock of its own, as asked or because there must be one to move."""
    if config.split_units is not None:
        recording = split_units(recording, config.split_units, rng=rng)
    moved = config.jitter and not isinstance(parse_law(config.jitter), NoLag)
    if moved and len([c for c in recording.clocks if recording.on(c)]) < 2:
        recording = separate_lfp(recording)
    return recording


def _misalign(
    recording: Recording, config: DecodeConfig, rng: np.random.Generator
) -> tuple[Recording, WindowLag | None, dict[str, LagTruth]]:
    """Give part of the recording a clock of its own and move it, as asked."""
    recording = _parted(recording, config, rng)
    law = parse_law(config.jitter) if config.jitter else NoLag()
    if isinstance(law, NoLag):
        return recording, None, {}
    anchor = anchor_clock(recording)
    moved = [c for c in recording.clocks if c != anchor and recording.on(c)]
    _check_reach(law, recording, config)
    if isinstance(law, WindowLag):
        return recording, law, {}
    truths: dict[str, LagTruth] = {}
    for clock in moved:
        recording, truths[clock] = move_clock(
            recording, clock, law, max_lag_s=config.max_lag_s or MAX_LAG_S, rng=rng
        )
    return recording, None, truths


def _check_reach(law: LagLaw, recording: Recording, config: DecodeConfig) -> None:
    """Refuse a lag beyond the search range, which would be cut off there and so not be the one asked for."""
    max_lag_s = MAX_LAG_S if config.max_lag_s is None else config.max_lag_s
    level_s = law.reach_s(recording.span_s[1] - recording.span_s[0])
    if level_s > max_lag_s * (1 + 1e-6):
        raise NeurofuseError(
            f"jitter '{law}' moves the clock by {level_s:.3g} s, beyond the search range of +-{max_lag_s:g} s; "
            "lower its level or raise --max-lag."
        )


def _check_moving(parts: Split) -> list[str]:
    """Refuse movement that stands still where it is learned or scored, and say so where it nearly does."""
    said = []
    spread = {}
    for name, windows in (("training", parts.train), ("test", parts.test)):
        rows = np.unique(windows.first[:, None] + np.arange(windows.n_steps))
        values = windows.tokens.movement[rows].astype(np.float64)
        begin_s, end_s = windows.tokens.time_s(rows[[0, -1]])
        for axis, range_, std in zip(
            windows.tokens.axes, np.ptp(values, axis=0), values.std(axis=0), strict=True
        ):
            if range_ == 0:
                raise NeurofuseError(
                    f"movement axis '{axis}' never changes in the {name} stretch ({begin_s:.0f} to {end_s:.0f} s), so "
                    "nothing can be learned or scored there; give a recording in which it moves throughout."
                )
            spread[name, axis] = std
    for axis in parts.test.tokens.axes:
        share = spread["test", axis] / spread["training", axis]
        if share < STILL_SHARE:
            said.append(
                f"Movement axis '{axis}' hardly moves in the test stretch ({100 * share:.2g} % of its spread in "
                "training), so its R² says little."
            )
    return said


def _check_same_features(tokens: Tokens, decoder: Decoder) -> None:
    """Refuse units or channels that are as many as the decoder knows, but others; streams may be renamed."""
    for clock, names in zip(tokens.clocks, decoder.features_, strict=False):
        found, wanted = ([n.partition("/")[2] for n in names_] for names_ in (clock.features, names))
        other = [(a, b) for a, b in zip(found, wanted, strict=False) if a != b]
        if other and len(found) == len(wanted):
            raise NeurofuseError(
                f"clock '{clock.clock}' holds '{other[0][0]}' where the decoder was fitted on '{other[0][1]}' "
                f"({len(other)} of {len(wanted)} differ); load the same units and channels in the same order."
            )


def _check_overlap(recording: Recording) -> None:
    """Refuse clocks that share no time, with the numbers that show it."""
    spans = {
        f"clock '{clock}'": (min(s.start_s for s in streams), max(s.stop_s for s in streams))
        for clock in recording.clocks
        if (streams := recording.on(clock))
    }
    spans["the movement"] = recording.span_s
    late = max(spans, key=lambda name: spans[name][0])
    early = min(spans, key=lambda name: spans[name][1])
    if spans[late][0] >= spans[early][1]:
        raise NeurofuseError(
            f"{late} ({spans[late][0]:.2f} to {spans[late][1]:.2f} s) and {early} ({spans[early][0]:.2f} to "
            f"{spans[early][1]:.2f} s) share no time; the clocks may start at different zeros, so shift one of them."
        )


def _near_movement(recording: Recording) -> Recording:
    """Leave out what was recorded long before or after the movement: it teaches nothing and fills the memory."""
    start_s, stop_s = (recording.span_s[0] - MARGIN_S, recording.span_s[1] + MARGIN_S)
    if all(s.start_s >= start_s and s.stop_s <= stop_s for s in recording.streams):
        return recording
    return recording.between(start_s, stop_s)


def _windows(
    tokens: Tokens,
    config: DecodeConfig,
    jitter: WindowLag | None,
    truths: tuple[LagTruth, ...],
    warnings: list[str],
    rng: np.random.Generator,
) -> Split:
    """Cut training, validation and test windows; shorten what nobody asked for where there is no room."""
    window_s = WINDOW_S if config.window_s is None else config.window_s
    max_lag_s = MAX_LAG_S if config.max_lag_s is None else config.max_lag_s
    attempts = [(window_s, max_lag_s)]
    # A lag that is injected must stay inside what is searched.
    fixed = config.max_lag_s is not None or jitter is not None or bool(truths)
    if config.window_s is None:
        shorter = window_s * 0.8 ** np.arange(1, 14)
        attempts += [
            (w, max_lag_s if fixed else min(max_lag_s, w / 3))
            for w in np.round(shorter, 3).tolist()
            if w >= max(SHORTEST_WINDOW_S, 4 * tokens.token_s) and (not fixed or w > max_lag_s)
        ]
    failure: NeurofuseError | None = None
    for window_s, max_lag_s in attempts:
        try:
            found = split(
                tokens,
                window_s=window_s,
                max_lag_s=max_lag_s,
                train=config.train,
                validation=config.validation,
                jitter=jitter,
                truths=truths,
                rng=rng,
            )
        except NeurofuseError as error:
            # The last and shortest says best how much is missing.
            failure = error
            continue
        if failure is not None:
            warnings.append(
                f"The recording has no room for windows of {attempts[0][0]:g} s; windows of {window_s:.2g} s were cut."
            )
        return found
    assert failure is not None
    raise failure


def _build(config: DecodeConfig, progress: bool) -> Decoder:
    wanted = {
        "causal": config.causal,
        "seed": config.seed,
        "device": config.device,
        "progress": progress,
        "n_steps": config.n_steps,
    }
    known = parameters_of(config.decoder)
    return make_decoder(config.decoder, **{k: v for k, v in wanted.items() if k in known and v is not None})


def _alone(recording: Recording) -> list[str]:
    """Say so where nothing neural shares the clock of the movement: that lag is taken to be zero."""
    if recording.on(recording.reference):
        return []
    return [
        f"Movement is on clock '{recording.reference}', which no spikes or LFP share; it is taken to agree with "
        f"clock '{anchor_clock(recording)}', and no lag between the two is looked for."
    ]


def _trust(parts: Split, tokens: Tokens) -> list[str]:
    """Say so where there is too little data for the scores to mean much."""
    train_s, test_s = (
        np.unique(w.first[:, None] + np.arange(w.n_steps)).size * tokens.token_s
        for w in (parts.train, parts.test)
    )
    said = []
    if train_s < TRUST_TRAIN_S or test_s < TRUST_TEST_S:
        said.append(
            f"{train_s:.1f} s of training and {test_s:.1f} s of test data are too little to trust these scores; "
            f"ask for at least {TRUST_TRAIN_S:g} s and {TRUST_TEST_S:g} s."
        )
    return said


def _metrics(
    config: DecodeConfig,
    ready: _Prepared,
    recording: Recording,
    parts: Split,
    decoder: Decoder,
    prediction: xr.Dataset,
    alignment: xr.Dataset | None,
    seconds: dict[str, float],
    warnings: list[str],
) -> dict[str, Any]:
    tokens = parts.test.tokens
    settings = asdict(config) | {
        "token_s": tokens.token_s,
        "window_s": parts.test.n_steps * tokens.token_s,
        "max_lag_s": parts.test.max_lag * tokens.token_s if len(tokens.clocks) > 1 else 0.0,
        "features": asdict(ready.options),
    }
    metrics: dict[str, Any] = {
        "layout": METRICS_LAYOUT,
        "version": version("neurofuse"),
        "name": recording.name,
        "decoder": decoder.name,
        **_movement_scores(prediction),
        "scored": prediction.attrs["scored"],
        "n_units": recording.n_units,
        "n_channels": recording.n_channels,
        "n_windows": {
            "train": len(parts.train),
            "validation": len(parts.validation),
            "test": len(parts.test),
        },
        "n_parameters": int(getattr(decoder, "n_parameters_", 0)),
        "clocks": [c.clock for c in tokens.clocks],
        "seconds": seconds,
        "warnings": warnings,
        "settings": settings,
        "quality": ready.quality,
        "history": getattr(decoder, "history_", {}),
        "recording": repr(recording),
        "provenance": list(recording.provenance),
    }
    if alignment is not None and "true_lag_s" in alignment:
        found = lag_scores(
            *(
                alignment[name].values
                for name in ("true_lag_s", "lag_path_s", "lag_mean_s", "lag_q05_s", "lag_q95_s")
            ),
            token_s=tokens.token_s,
            truth_step_s=tokens.fine_s,
        )
        metrics |= found | {"lag_hit_tolerance_s": round(hit_tolerance_s(tokens.token_s), 6)}
    return metrics


def _movement_scores(prediction: xr.Dataset) -> dict[str, Any]:
    axes = [str(a) for a in prediction["axis"].values]
    true = prediction["movement"].values
    if not np.isfinite(true).any():
        return {}
    out: dict[str, Any] = {}
    for variable, prefix in (("prediction", ""), ("ridge", "baseline_ridge_")):
        if variable in prediction:
            r2 = r2_per_axis(true, prediction[variable].values)
            out[f"{prefix}r2"] = {a: _number(v) for a, v in zip(axes, r2, strict=True)}
            out[f"{prefix}r2_mean"] = _number(float(np.mean(r2)))
    if prediction.attrs.get("decoder") == "ridge":
        out |= {"baseline_ridge_r2": out["r2"], "baseline_ridge_r2_mean": out["r2_mean"]}
    return out


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _plain(row: dict[Any, Any]) -> dict[str, Any]:
    """A row of a table as JSON takes it."""
    out: dict[str, Any] = {}
    for key, value in row.items():
        value = value.item() if isinstance(value, np.generic) else value
        out[str(key)] = None if isinstance(value, float) and not np.isfinite(value) else value
    return out


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[stage] = round(time.perf_counter() - start, 3)
