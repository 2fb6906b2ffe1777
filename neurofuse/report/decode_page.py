"""In: the tables of a decode (metrics, prediction, alignment). Out: one self-contained HTML page.

The page opens with a verdict in one sentence. Figures and styles are inside the file, which loads nothing from the
network. Every name on it comes from a file of the user and is escaped.
"""

from __future__ import annotations

import base64
import io
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from neurofuse.errors import NeurofuseError
from neurofuse.recording import Recording, Spikes, intervals_of
from neurofuse.report.figures.plot_decode import (
    plot_attention,
    plot_decoded,
    plot_lag,
    plot_recording,
    plot_scores,
    plot_training,
    plot_trajectory,
)
from neurofuse.storage import whole_file

# Longest stretches drawn, seconds; over longer ones lines merge into a block.
DECODED_S = 30.0
TRAJECTORY_S = 8.0
ATTENTION_S = 60.0
RECORDING_S = 10.0
# Power at the line frequency over that of its neighbours above which a notch is advised.
LINE_RATIO = 10.0
DPI = 140


def verdict(metrics: Mapping[str, Any], alignment: xr.Dataset | None = None) -> str:
    """One sentence on how well movement was decoded and whether the clocks were found.

    Parameters
    ----------
    metrics : mapping
        As written by a decode: `r2_mean`, and where there are any `baseline_ridge_r2_mean`, `lag_hit_rate`.
    alignment : Dataset, optional
        Names the clocks and the tolerance; None or empty if there was only one clock.

    Examples
    --------
    >>> verdict({"r2_mean": 0.912, "baseline_ridge_r2_mean": 0.74})
    'R² 0.91 (ridge 0.74); no lag was searched.'
    """
    return f"{_r2_clause(metrics)}; {_lag_clause(metrics, alignment)}."


def _r2_clause(metrics: Mapping[str, Any]) -> str:
    r2, ridge = _finite(metrics.get("r2_mean")), _finite(metrics.get("baseline_ridge_r2_mean"))
    if r2 is None:
        return "R² could not be computed"
    text = f"R² {_number(r2)}"
    if ridge is not None and metrics.get("decoder") != "ridge":
        # The page prints two decimals; a lead that rounds away is none.
        behind = round(r2, 2) <= round(ridge, 2)
        text += f" (ridge {_number(ridge)}{', which is as good or better' if behind else ''})"
    return text + (", no better than predicting the mean" if r2 <= 0 else "")


def _lag_clause(metrics: Mapping[str, Any], alignment: xr.Dataset | None) -> str:
    names = [] if alignment is None else [f"'{c}'" for c in alignment["clock"].values]
    if alignment is None or not names:
        return "no lag was searched"
    clocks, were = (f"clock {names[0]}", "was") if len(names) == 1 else (f"clocks {_listed(names)}", "were")
    hit_rate = _finite(metrics.get("lag_hit_rate"))
    if hit_rate is not None:
        tolerance_s = _finite(alignment.attrs.get("hit_tolerance_s"))
        within = "" if tolerance_s is None else f" within {1000 * tolerance_s:.3g} ms"
        return f"the {clocks} {were} found{within} in {100 * hit_rate:.0f} % of the test time"
    if {"lag_q05_s", "lag_q95_s"} <= set(alignment):
        width_s = float(np.nanmedian(alignment["lag_q95_s"].values - alignment["lag_q05_s"].values))
        return (
            f"the 90 % interval of the lag of the {clocks} is {1000 * width_s:.3g} ms wide (median), "
            "and no true lag is known to check it"
        )
    return f"no true lag is known to check the {clocks}"


def write_report(
    path: str | Path,
    *,
    metrics: Mapping[str, Any],
    prediction: xr.Dataset,
    alignment: xr.Dataset | None,
    recording: Recording | None = None,
) -> Path:
    """Write the result of a decode as one HTML page; the file appears whole or not at all.

    Parameters
    ----------
    path : str or Path
        Where the page goes.
    metrics : mapping
        Scores, warnings, settings, provenance and data quality, as in metrics.json. None stands for a score
        that could not be computed; what is missing is left out of the page.
    prediction : Dataset, dims (time, axis)
        `movement`, `prediction` and, if there is one, `ridge`.
    alignment : Dataset, dims (clock, time, lag), or None
        The lag posterior of every clock but the reference; None if there is none.
    recording : Recording, optional
        Adds figures of the data itself, and its gaps.

    Returns
    -------
    Path
        The file that was written.

    Raises
    ------
    NeurofuseError
        If a table lacks what the page is about, or the folder cannot be written.
    """
    path = Path(path)
    for variable in ("movement", "prediction"):
        if variable not in prediction:
            raise NeurofuseError(
                f"the prediction table lacks '{variable}'; it has {sorted(map(str, prediction.variables))}."
            )
    if alignment is not None and not (alignment.sizes.get("clock") and alignment.sizes.get("time")):
        alignment = None
    if alignment is not None:
        alignment = alignment.assign_attrs(
            {k: v for k, v in prediction.attrs.items() if k in ("scored", "reference")} | alignment.attrs
        )
    page = {
        "verdict": verdict(metrics, alignment),
        "scores": _score_rows(metrics),
        "has_ridge": _has_ridge(metrics),
        "lag_facts": _lag_facts(metrics),
        "trajectory": "Trajectory" if prediction.sizes.get("axis", 0) > 1 else "Predicted against measured",
        "figures": _figures(metrics, prediction, alignment, recording),
        "clocks": [] if alignment is None else _clock_rows(alignment),
        "quality": _quality_facts(metrics, prediction),
        "splits": _split_rows(metrics),
        "bad": _bad_rows(metrics),
        "line": _line_remark(metrics),
        "streams": [] if recording is None else _stream_rows(recording),
        "scored": _scoring(metrics, prediction, alignment),
    }
    return write_page(path, "decode.html.j2", page | _heading(metrics, prediction, recording))


def _heading(
    metrics: Mapping[str, Any], prediction: xr.Dataset, recording: Recording | None
) -> dict[str, Any]:
    """Title, warnings, and what the run was given."""
    name = str(metrics.get("name") or (recording.name if recording is not None else ""))
    return {
        "title": f"Decoding {name}".strip() if name else "Decoding report",
        "warnings": [str(w) for w in metrics.get("warnings") or ()],
        "summary": str(metrics.get("recording") or (repr(recording) if recording is not None else "")),
        "decoder": str(metrics.get("decoder") or prediction.attrs.get("decoder") or ""),
        "settings": list(flat(metrics.get("settings") or {})),
        "provenance": [str(p) for p in metrics.get("provenance") or ()],
        "version": str(metrics.get("version") or ""),
    }


def write_page(path: str | Path, template: str, page: Mapping[str, Any]) -> Path:
    """Fill a template of this package and write the page, whole or not at all."""

    def source(name: str) -> str:
        return resources.files("neurofuse.report").joinpath("templates", name).read_text(encoding="utf-8")

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(source),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template(template).render(page)
    path = Path(path)
    with whole_file(path) as partial:
        # A file name that is not UTF-8 reaches us with lone surrogates, which no encoding can write.
        partial.write_text(html, encoding="utf-8", errors="replace")
    return path


# A figure on a page: `src` a data URI, `alt` what it shows, `caption` how to read it, `width` in pixels.
Figures = list[dict[str, str]]


def _figures(
    metrics: Mapping[str, Any],
    prediction: xr.Dataset,
    alignment: xr.Dataset | None,
    recording: Recording | None,
) -> dict[str, Figures]:
    """The figures of each section of the page."""
    out: dict[str, Figures] = {
        k: [] for k in ("scores", "decoded", "trajectory", "lag", "attention", "training", "recording")
    }
    if metrics.get("r2"):
        with drawn(out["scores"], 4.6, 2.7, "R² of the decoder and of ridge, for every axis") as figure:
            plot_scores(metrics, ax=figure.subplots())
    if prediction.sizes.get("time", 0):
        _draw_movement(out, prediction)
    if alignment is not None:
        _draw_lags(out, alignment)
    history = metrics.get("history") or {}
    losses = [x for name in ("train", "validation") for x in (history.get(name) or ())[1:]]
    if any(_finite(x) is not None for x in losses):  # a single check would be a dot
        with drawn(out["training"], 5.2, 2.5, "Loss in the course of training") as figure:
            plot_training(history, ax=figure.subplots())
    if recording is not None and (recording.streams or recording.movement is not None):
        _draw_recording(out, prediction, recording)
    return out


def _draw_movement(out: dict[str, Figures], prediction: xr.Dataset) -> None:
    time_s, n_axes = prediction["time"].values, prediction.sizes["axis"]
    start_s, stop_s, excerpt = _excerpt(time_s, DECODED_S)
    alt, caption = "Measured and predicted movement over time", f"{excerpt} Gaps are left empty."
    with drawn(out["decoded"], 8.6, 0.8 + 1.55 * n_axes, alt, caption) as figure:
        panels = figure.subplots(n_axes, 1, sharex=True, squeeze=False)[:, 0]
        plot_decoded(prediction, start_s=start_s, stop_s=stop_s, ax=panels)
    start_s, stop_s, excerpt = _excerpt(time_s, TRAJECTORY_S if n_axes > 1 else np.inf)
    if n_axes > 2:
        excerpt += " Only the first two axes are drawn."
    alt = "Path through the first two axes" if n_axes > 1 else "Predicted against measured movement"
    with drawn(out["trajectory"], 5.2, 4.6, alt, excerpt) as figure:
        plot_trajectory(prediction, start_s=start_s, stop_s=stop_s, ax=figure.subplots())


def _draw_lags(out: dict[str, Figures], alignment: xr.Dataset) -> None:
    start_s, stop_s, excerpt = _excerpt(alignment["time"].values, ATTENTION_S)
    for clock in map(str, alignment["clock"].values):
        caption = (
            f"Lag of clock '{clock}' over the test time: an event at reference time t is stamped t + lag."
        )
        if {"lag_mean_s", "lag_q05_s", "lag_q95_s"} <= set(alignment):
            with drawn(out["lag"], 8.6, 2.9, f"Lag of clock {clock} over time", caption) as figure:
                plot_lag(alignment, clock=clock, ax=figure.subplots())
        if "posterior" in alignment:
            caption = f"Posterior over the lag of clock '{clock}' at every moment. {excerpt}"
            with drawn(out["attention"], 8.6, 3.2, f"Lag posterior of clock {clock}", caption) as figure:
                plot_attention(alignment, clock=clock, start_s=start_s, stop_s=stop_s, ax=figure.subplots())


def _draw_recording(out: dict[str, Figures], prediction: xr.Dataset, recording: Recording) -> None:
    first_s, last_s = recording.span_s
    if prediction.sizes.get("time", 0):
        latest_s = max(first_s, last_s - RECORDING_S)
        first_s = float(np.clip(prediction["time"].values[0], first_s, latest_s))
    stop_s = min(first_s + RECORDING_S, last_s)
    if not stop_s > first_s:
        return
    n = len(recording.streams) + (recording.movement is not None)
    caption = (
        f"{stop_s - first_s:.3g} s of the recording as it was given; every stream is drawn on its own clock."
    )
    with drawn(out["recording"], 8.6, 0.5 + 1.6 * n, "Streams and movement", caption) as figure:
        panels = figure.subplots(n, 1, sharex=True, squeeze=False)[:, 0]
        plot_recording(recording, start_s=first_s, stop_s=stop_s, ax=panels)


@contextmanager
def drawn(into: Figures, width_in: float, height_in: float, alt: str, caption: str = "") -> Iterator[Figure]:
    """A figure to draw on; once drawn it is added to `into` as a PNG inside a data URI."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()  # the page does not depend on the style of the user's own figures
        matplotlib.rcParams.update({"font.size": 9, "axes.linewidth": 0.7})
        # Names may be in any script; a missing glyph is drawn as a box, without a warning.
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*missing.*")
        figure = Figure(figsize=(width_in, height_in), layout="constrained")
        yield figure
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    src = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
    into.append({"src": src, "alt": alt, "caption": caption, "width": str(round(width_in * 96))})


def _excerpt(time_s: np.ndarray, longest_s: float) -> tuple[float | None, float | None, str]:
    """The earliest stretch of `longest_s` that holds most samples, and a sentence that calls it an excerpt."""
    span_s = float(time_s[-1] - time_s[0])
    if span_s <= longest_s:
        return None, None, "The whole test time."
    count = np.searchsorted(time_s, time_s + longest_s) - np.arange(time_s.size)
    start_s = float(time_s[int(np.argmax(count))])
    excerpt = f"{longest_s:g} s out of a test time of {span_s:.0f} s, from {start_s:.1f} s on."
    return start_s, start_s + longest_s, excerpt


def _score_rows(metrics: Mapping[str, Any]) -> list[dict[str, str]]:
    r2, ridge = metrics.get("r2") or {}, metrics.get("baseline_ridge_r2") or {}
    rows = [{"axis": str(a), "decoder": _number(v), "ridge": _number(ridge.get(a))} for a, v in r2.items()]
    mean = {
        "axis": "mean",
        "decoder": _number(metrics.get("r2_mean")),
        "ridge": _number(metrics.get("baseline_ridge_r2_mean")),
    }
    return [*rows, mean]


def _has_ridge(metrics: Mapping[str, Any]) -> bool:
    return bool(metrics.get("baseline_ridge_r2")) or metrics.get("baseline_ridge_r2_mean") is not None


def _lag_facts(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    facts = []
    if (hit := _finite(metrics.get("lag_hit_rate"))) is not None:
        facts.append(("Lag hit rate, share of the test time", f"{100 * hit:.0f} %"))
    if (error_s := _finite(metrics.get("lag_median_abs_error_s"))) is not None:
        facts.append(("Median error of the lag", _milliseconds(error_s)))
    if (coverage := _finite(metrics.get("lag_coverage_90"))) is not None:
        facts.append(("True lag inside the 90 % interval (ideally 90 %)", f"{100 * coverage:.0f} %"))
    return facts


def _clock_rows(alignment: xr.Dataset) -> list[dict[str, str]]:
    from neurofuse.scores import share_inside  # it imports scikit-learn

    rows = []
    for k, clock in enumerate(map(str, alignment["clock"].values)):
        one = alignment.isel(clock=k)
        row = {"clock": clock, "lag": "–", "band": "–", "moves": "–", "truth": "–"}
        if "lag_mean_s" in one:
            row["lag"] = _milliseconds(float(np.nanmedian(one["lag_mean_s"].values)))
        if {"lag_drift", "lag_jumps"} <= set(one):
            drift, jumps = float(one["lag_drift"]), 60 * float(one["lag_jumps"])
            row["moves"] = f"{_milliseconds(drift)}/√s, {jumps:.2g} jumps/min"
        if {"lag_q05_s", "lag_q95_s"} <= set(one):
            low, high = one["lag_q05_s"].values, one["lag_q95_s"].values
            row["band"] = _milliseconds(float(np.nanmedian(high - low)))
            if "true_lag_s" in one and np.isfinite(one["true_lag_s"].values).any():
                truth = one["true_lag_s"].values
                known = np.isfinite(truth)
                inside = share_inside(truth, low, high, float(one.attrs.get("truth_step_s", 0.0)))
                row["truth"] = f"{100 * inside[known].mean():.0f} %"
                if not known.all():
                    row["truth"] += f" (known {100 * known.mean():.0f} % of the time)"
        rows.append(row)
    return rows


def _quality_facts(metrics: Mapping[str, Any], prediction: xr.Dataset) -> list[tuple[str, str]]:
    facts = [
        (label, str(metrics[key]))
        for label, key in (("Units", "n_units"), ("Channels", "n_channels"))
        if metrics.get(key) is not None
    ]
    rows = metrics.get("quality") or []
    if rows:
        facts.append(("Bad channels", f"{sum(bool(r.get('bad')) for r in rows)} of {len(rows)}"))
    time_s = prediction["time"].values
    if time_s.size > 1:
        sample_s = _finite(prediction.attrs.get("sample_s")) or float(np.median(np.diff(time_s)))
        stretches = intervals_of(time_s, sample_s)
        facts.append(("Movement scored", f"{time_s.size * sample_s:.1f} s"))
        facts.append(("Gaps in the scored time", _gap_text(stretches)))
    return facts


def _split_rows(metrics: Mapping[str, Any]) -> list[dict[str, str]]:
    """Windows of each split and seconds of each stage, in one table where the names are the same."""
    windows, seconds = metrics.get("n_windows") or {}, metrics.get("seconds") or {}
    return [
        {
            "name": str(name),
            "windows": str(windows.get(name, "–")),
            "seconds": "–" if _finite(seconds.get(name)) is None else f"{float(seconds[name]):.1f}",
        }
        for name in dict.fromkeys([*windows, *seconds])
    ]


def _bad_rows(metrics: Mapping[str, Any]) -> list[dict[str, str]]:
    return [
        {"name": str(r.get("name", "")), "why": str(r.get("why", ""))}
        for r in metrics.get("quality") or ()
        if r.get("bad")
    ]


def _line_remark(metrics: Mapping[str, Any]) -> str:
    rows = metrics.get("quality") or []
    for hz in (50, 60):
        n_loud = sum((_finite(r.get(f"line_{hz}")) or 0) > LINE_RATIO for r in rows)
        if 2 * n_loud > len(rows):
            return (
                f"Line noise at {hz} Hz stands out in {n_loud} of {len(rows)} channels as recorded; "
                f"line_hz={hz} in the feature settings removes it."
            )
    return ""


def _stream_rows(recording: Recording) -> list[dict[str, str]]:
    rows = []
    for s in recording.streams:
        if isinstance(s, Spikes):
            size = f"{s.n_units} units"
        else:
            size = f"{s.n_channels} {'units' if s.kind == 'counts' else 'channels'}"
        rows.append(
            {
                "name": s.name,
                "clock": s.clock,
                "kind": "spikes" if isinstance(s, Spikes) else s.kind,
                "size": size,
                "rate": "" if isinstance(s, Spikes) else f"{s.rate_hz:.6g} Hz",
                "seconds": f"{float((s.support[:, 1] - s.support[:, 0]).sum()):.1f}",
                "gaps": _gap_text(s.support),
            }
        )
    return rows


def _gap_text(stretches: np.ndarray) -> str:
    if len(stretches) < 2:
        return "none"
    return f"{len(stretches) - 1}, {float((stretches[1:, 0] - stretches[:-1, 1]).sum()):.3g} s together"


def _scoring(metrics: Mapping[str, Any], prediction: xr.Dataset, alignment: xr.Dataset | None) -> list[str]:
    scored = str(metrics.get("scored") or prediction.attrs.get("scored") or "")
    how = {
        "stitched": "The test windows were joined into one run over time, and each axis was scored over it.",
        "per window": "Each test window was decoded on its own, and all of them were scored together.",
    }
    out = [how[scored]] if scored in how else [f"Scored: {scored}."] if scored else []
    out.append(
        "R² is one minus the squared error over the variance of the measured movement, for each axis: 1 is "
        "perfect, 0 is the score of predicting the mean, below 0 is worse. The mean is over axes."
    )
    if _has_ridge(metrics):
        out.append("Ridge is a linear decoder on the same windows, fitted and scored on the same stretches.")
    if alignment is not None:
        tolerance_s = _finite(alignment.attrs.get("hit_tolerance_s"))
        max_lag_s = _finite(alignment.attrs.get("max_lag_s"))
        if max_lag_s is not None:
            out.append(f"Lags were searched from {-max_lag_s:g} to {max_lag_s:g} s.")
        if tolerance_s is not None:
            out.append(f"A lag within {1000 * tolerance_s:.3g} ms of the true lag counts as found.")
        out.append("A narrow interval means that the posterior is concentrated, not that it is correct.")
    return out


def flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as dotted names, in order."""
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{name}.")
        elif isinstance(value, Sequence) and not isinstance(value, str):
            yield name, ", ".join(map(str, value)) or "none"
        else:
            yield name, "none" if value is None or value == {} else str(value)


def _finite(value: object) -> float | None:
    """A number that can be shown, or None; JSON has no NaN, so null stands for it."""
    if value is None or isinstance(value, str | bool):
        return None
    number = float(value)  # type: ignore[arg-type]
    return number if math.isfinite(number) else None


def _number(value: object) -> str:
    number = _finite(value)
    if number is None:
        return "–"
    text = f"{number:.2f}"
    return "0.00" if text == "-0.00" else text.replace("-", "−")


def _milliseconds(seconds: float) -> str:
    return "–" if not math.isfinite(seconds) else f"{1000 * seconds:.0f} ms".replace("-", "−")


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
