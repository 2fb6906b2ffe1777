"""In: a recording. Out: movement predicted for its last stretch, the lag that was found, and how good both are.

The main line of neurofuse from end to end: recording, features, tokens, windows, decoder, scores. `fit_and_evaluate` is
the part that a study repeats in each of its cells.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import version
from typing import Any

import numpy as np
import xarray as xr

from neurofuse.config import DecodeConfig, FeatureConfig, SplitSettings
from neurofuse.decoders.base import Decoder, Prediction
from neurofuse.decoders.registry import decoder_classes, make_decoder, options_of
from neurofuse.errors import NeurofuseError
from neurofuse.html import card
from neurofuse.jitters.jitter import LagTruth
from neurofuse.prepare import (
    Generators,
    Prepared,
    check_names,
    clean_recording,
    parsed,
    prepare_recording,
    timed,
    tokens_of,
    with_two_clocks,
)
from neurofuse.recording import Recording
from neurofuse.scores import hit_tolerance_s, lag_scores, posterior_summary, r2_per_axis, stitch
from neurofuse.tokens import Tokens
from neurofuse.variables import labelled
from neurofuse.windows import Split, Windows, cut_windows

METRICS_LAYOUT = "neurofuse-decode-2"


@dataclass(frozen=True, eq=False)
class DecodeResult:
    """Results of a decode, as tables.

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
        What was decoded, after the planted error and before features.
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
class Evaluation:
    """A fitted decoder on test windows.

    Parameters
    ----------
    predicted : Prediction
    prediction : Dataset
        See `prediction_table`.
    alignment : Dataset or None
        See `alignment_table`.
    """

    predicted: Prediction
    prediction: xr.Dataset
    alignment: xr.Dataset | None


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
        Planted lags, for scoring only: no decoder reads them.
    progress : bool
        Show progress on stderr.

    Raises
    ------
    NeurofuseError
        If the recording cannot be decoded; the sentence states why and what would help.
    """
    config = config or DecodeConfig()
    check_names(config)
    prepared = prepare_recording(recording, config=config)
    seconds = prepared.seconds
    known = (truths or {}) | prepared.tokenized.truths
    _check_oracle(config, prepared)
    decoder = build_decoder(config.decoder, config.options, config, seed=config.seed, progress=progress)
    evaluation = fit_and_evaluate(decoder, prepared.split, known, seconds=seconds)
    prediction = evaluation.prediction
    if config.baseline and config.decoder != "ridge":
        with timed(seconds, "ridge"):
            ridge = build_decoder("ridge", {}, config, seed=config.seed)
            ridge.fit(prepared.split.train, validation=prepared.split.validation)
            _, joined, _ = stitch(prepared.split.test.first, ridge.predict(prepared.split.test))
            ridge_movement = (("time", "axis"), joined.astype(np.float32))
            prediction = labelled(prediction.assign(ridge=ridge_movement), movement=prediction.attrs["units"])
    metrics = _metrics(config, prepared, decoder, prediction, evaluation.alignment)
    return DecodeResult(metrics, prediction, evaluation.alignment, decoder, prepared.recording)


def build_decoder(
    name: str, options: Mapping[str, Any], settings: SplitSettings, *, seed: int, progress: bool = False
) -> Decoder:
    """A decoder with its own options and those of the settings that it has.

    Parameters
    ----------
    name : str
    options : mapping
        Options of this decoder, which win over the settings.
    settings : SplitSettings
    seed : int
    progress : bool

    Raises
    ------
    NeurofuseError
        If there is no such decoder or option.
    """
    shared = {
        "causal": settings.causal,
        "seed": seed,
        "device": settings.device,
        "progress": progress,
        "n_steps": settings.n_steps,
        "drift": settings.drift,
        "jumps": settings.jumps,
        "skew_ppm": settings.skew_ppm,
    }
    known = options_of(name)
    if getattr(decoder_classes()[name], "lag_model", "") != "tracked":
        # Only a lag that moves has rates.
        known = {k: v for k, v in known.items() if k not in ("drift", "jumps", "skew_ppm")}
    given = {k: v for k, v in shared.items() if k in known and v is not None}
    return make_decoder(name, **(given | dict(options)))


def fit_and_evaluate(
    decoder: Decoder,
    split: Split,
    truths: Mapping[str, LagTruth],
    *,
    seconds: dict[str, float] | None = None,
) -> Evaluation:
    """Train a decoder and decode the test windows.

    Parameters
    ----------
    decoder : Decoder
    split : Split
    truths : mapping of clock -> LagTruth
        Planted lags, for scoring only.
    seconds : dict, optional
        Gets the time that "train" and "decode" took.
    """
    seconds = {} if seconds is None else seconds
    with timed(seconds, "train"):
        decoder.fit(split.train, validation=split.validation)
    with timed(seconds, "decode"):
        return evaluate(decoder, split.test, truths)


def evaluate(decoder: Decoder, test: Windows, truths: Mapping[str, LagTruth]) -> Evaluation:
    """Decode windows of one recording; movement and lags as tables."""
    predicted = decoder.decode_session(test)
    prediction = prediction_table(test, predicted.movement, decoder=decoder.name)
    return Evaluation(predicted, prediction, alignment_table(test, predicted, truths, decoder=decoder.name))


def predict_recording(
    recording: Recording, decoder: Decoder, settings: Mapping[str, Any]
) -> tuple[dict[str, Any], xr.Dataset, xr.Dataset | None]:
    """Decode a whole recording with a decoder fitted before, on the settings it was fitted with.

    Parameters
    ----------
    recording : Recording
    decoder : Decoder
        Fitted.
    settings : mapping
        As `metrics["settings"]` of the decode that fitted it.

    Returns
    -------
    metrics, prediction, alignment
        Scores are there only if the recording has movement.
    """
    config = config_from(settings)
    rng = Generators.of(config.seed).units
    # The same units and channels on the same clocks as when it was fitted.
    if len(decoder.clocks_) > len([c for c in recording.clocks if recording.on(c)]):
        recording = with_two_clocks(recording, config, parsed(config.jitter), rng=rng)
    clean = clean_recording(recording, config, fitted=decoder)
    unmoved = replace(config, token_s=decoder.token_s_)
    tokens = tokens_of(clean.recording, unmoved, None, rng=rng).tokens
    _check_same_features(tokens, decoder)
    blind = replace(tokens, movement=np.zeros((tokens.n_tokens, 0), np.float32), axes=())
    window_s = float(settings["window_s"])
    windows = cut_windows(
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
    predicted = decoder.decode_session(windows)
    n_axes = predicted.movement.shape[-1]
    if tokens.axes and len(tokens.axes) != n_axes:
        raise NeurofuseError(
            f"the movement has {len(tokens.axes)} axes {list(tokens.axes)} but the decoder was fitted on "
            f"{n_axes}; pick the same ones with --movement."
        )
    shown = windows if not tokens.axes else replace(windows, tokens=tokens)
    axes = tokens.axes or tuple(f"axis{k}" for k in range(n_axes))
    prediction = prediction_table(shown, predicted.movement, decoder=decoder.name, axes=axes)
    alignment = alignment_table(windows, predicted, {}, decoder=decoder.name)
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
        "warnings": list(clean.warnings),
        "quality": clean.quality,
        **_movement_scores(prediction),
    }
    return metrics, prediction, alignment


def config_from(settings: Mapping[str, Any]) -> DecodeConfig:
    """The configuration that a run of a decode wrote down.

    Parameters
    ----------
    settings : mapping
        As JSON keeps it. Windows and lags hold what the run took, which the run may have fitted to the recording.
    """
    known = {f.name for f in fields(DecodeConfig)}
    given = {k: v for k, v in settings.items() if k in known}
    given["features"] = FeatureConfig(**settings["features"])
    # A recording on one clock is written with a largest lag of zero.
    given["max_lag_s"] = given.get("max_lag_s") or None
    return DecodeConfig(**given)


def prediction_table(
    windows: Windows, predicted: np.ndarray, *, decoder: str, axes: tuple[str, ...] | None = None
) -> xr.Dataset:
    """Predicted and true movement of some windows over time; overlapping windows are joined."""
    token, joined, window = stitch(windows.first, predicted)
    axes = axes or windows.tokens.axes
    tokens = windows.tokens
    target = tokens.movement[token] if tokens.axes else np.full(joined.shape, np.nan)
    table = xr.Dataset(
        {
            "movement": (("time", "axis"), target.astype(np.float32)),
            "prediction": (("time", "axis"), joined.astype(np.float32)),
            "window": ("time", window),
        },
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
    windows: Windows, predicted: Prediction, truths: Mapping[str, LagTruth], *, decoder: str
) -> xr.Dataset | None:
    """The lag posterior of every searched clock over time; None where nothing was searched."""
    if not predicted.posterior:
        return None
    tokens, clocks = windows.tokens, list(predicted.posterior)
    columns: dict[str, list[np.ndarray]] = {}
    order = [c.clock for c in tokens.clocks[1:]]
    token = window = np.empty(0, dtype=np.int64)
    for clock in clocks:
        token, posterior, window = stitch(windows.first, predicted.posterior[clock])
        found: dict[str, np.ndarray] = dict(posterior_summary(posterior, predicted.lag_s))
        found["posterior"] = posterior.astype(np.float32)
        if clock in predicted.p_matched:
            found["p_matched"] = stitch(windows.first, predicted.p_matched[clock])[1].astype(np.float32)
        # Of overlapping windows the path is taken from the one that has the moment nearest its middle.
        step = token - windows.first[window]
        found["lag_path_s"] = predicted.lag_s[predicted.path[clock][window, step]]
        injected_s = windows.injected_s[window, step, order.index(clock)]
        if clock in truths:
            found["true_lag_s"] = truths[clock].at(tokens.time_s(token)) + injected_s
        elif windows.jitter is not None:
            found["true_lag_s"] = injected_s
        else:
            found["true_lag_s"] = np.full(token.size, np.nan)
        for name, values in found.items():
            columns.setdefault(name, []).append(values)
    dims = {name: ("clock", "time", "lag") if name == "posterior" else ("clock", "time") for name in columns}
    table = xr.Dataset(
        {name: (dims[name], np.stack(values)) for name, values in columns.items()},
        coords={"clock": clocks, "time": tokens.time_s(token), "lag": predicted.lag_s},
        attrs={
            "decoder": decoder,
            "max_lag_s": windows.max_lag * tokens.token_s,
            "token_s": tokens.token_s,
            "hit_tolerance_s": hit_tolerance_s(tokens.token_s),
            "truth_step_s": tokens.fine_s,
        },
    ).assign(window=("time", window))
    if predicted.rates:
        table = table.assign(
            lag_drift=("clock", [predicted.rates[c].drift for c in clocks]),
            lag_jumps=("clock", [predicted.rates[c].jumps for c in clocks]),
        )
    return labelled(table if np.isfinite(table["true_lag_s"]).any() else table.drop_vars("true_lag_s"))


def _check_oracle(config: DecodeConfig, prepared: Prepared) -> None:
    """Refuse the decoder that is given the true lag where none is known."""
    known = prepared.tokenized.injected is not None or prepared.tokenized.truths
    if config.decoder == "oracle" and len(prepared.tokens.clocks) > 1 and not known:
        raise NeurofuseError(
            "decoder 'oracle' is given the true lag, and none is known here; move a clock by a known one with "
            "--jitter, or choose 'tracked' to find it."
        )


def _check_same_features(tokens: Tokens, decoder: Decoder) -> None:
    """Refuse units or channels that are as many as the decoder was fitted on, but others; streams may be renamed."""
    for clock, names in zip(tokens.clocks, decoder.features_, strict=False):
        found, fitted = ([n.partition("/")[2] for n in names_] for names_ in (clock.features, names))
        other = [(a, b) for a, b in zip(found, fitted, strict=False) if a != b]
        if other and len(found) == len(fitted):
            raise NeurofuseError(
                f"clock '{clock.clock}' holds '{other[0][0]}' where the decoder was fitted on '{other[0][1]}' "
                f"({len(other)} of {len(fitted)} differ); load the same units and channels in the same order."
            )


def _metrics(
    config: DecodeConfig,
    prepared: Prepared,
    decoder: Decoder,
    prediction: xr.Dataset,
    alignment: xr.Dataset | None,
) -> dict[str, Any]:
    tokens, split, recording = prepared.tokens, prepared.split, prepared.recording
    settings = asdict(config) | {
        "token_s": tokens.token_s,
        "window_s": split.test.n_steps * tokens.token_s,
        "max_lag_s": split.test.max_lag * tokens.token_s if len(tokens.clocks) > 1 else 0.0,
        "features": asdict(prepared.tokenized.features),
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
            "train": len(split.train),
            "validation": len(split.validation),
            "test": len(split.test),
        },
        "n_parameters": int(getattr(decoder, "n_parameters_", 0)),
        "clocks": [c.clock for c in tokens.clocks],
        "seconds": prepared.seconds,
        "warnings": list(prepared.warnings),
        "settings": settings,
        "quality": prepared.quality,
        "history": getattr(decoder, "history_", {}),
        "recording": repr(recording),
        "provenance": list(recording.provenance),
    }
    if alignment is not None and "true_lag_s" in alignment:
        columns = ("true_lag_s", "lag_path_s", "lag_mean_s", "lag_q05_s", "lag_q95_s")
        found = lag_scores(
            *(alignment[name].values for name in columns),
            token_s=tokens.token_s,
            truth_step_s=tokens.fine_s,
        )
        metrics |= found | {"lag_hit_tolerance_s": round(hit_tolerance_s(tokens.token_s), 6)}
    return metrics


def _movement_scores(prediction: xr.Dataset) -> dict[str, Any]:
    axes = [str(a) for a in prediction["axis"].values]
    target = prediction["movement"].values
    if not np.isfinite(target).any():
        return {}
    out: dict[str, Any] = {}
    for variable, prefix in (("prediction", ""), ("ridge", "baseline_ridge_")):
        if variable in prediction:
            r2 = r2_per_axis(target, prediction[variable].values)
            out[f"{prefix}r2"] = {a: _number(v) for a, v in zip(axes, r2, strict=True)}
            out[f"{prefix}r2_mean"] = _number(float(np.mean(r2)))
    if prediction.attrs.get("decoder") == "ridge":
        out |= {"baseline_ridge_r2": out["r2"], "baseline_ridge_r2_mean": out["r2_mean"]}
    return out


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
