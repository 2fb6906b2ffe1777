"""In: a `Recording`, or the tables of a decode (prediction, alignment, metrics). Out: matplotlib axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from neurofuse.errors import NeurofuseError
from neurofuse.recording import Recording, Signal, Spikes
from neurofuse.report.figures.panel import (
    BLACK,
    BLUE,
    GREEN,
    MAP,
    MAX_COLUMNS,
    MAX_NAME_Y,
    MAX_TRACES,
    NOTHING,
    ORANGE,
    TITLE,
    VERMILLION,
    AxesArray,
    after_gaps,
    broken_line,
    clock_stretch,
    draw_posterior,
    legend_above,
    line_breaks,
    panels_for,
    safe_label,
    safe_text,
    stretch_of,
    tidy,
    time_columns,
    time_label,
    usual_step,
    with_unit,
    y_label,
)


def plot_recording(
    recording: Recording,
    *,
    start_s: float | None = None,
    stop_s: float | None = None,
    ax: Axes | Sequence[Axes] | AxesArray | None = None,
) -> AxesArray:
    """Draw a recording: spikes as a raster, counts and power as maps, LFP as traces, and the movement.

    Every stream is drawn against its own clock, as it was stamped; nothing is aligned here.

    Parameters
    ----------
    recording : Recording
    start_s, stop_s : float, optional
        Seconds to show; by default the first ten of `recording.span_s`.
    ax : sequence of Axes, optional
        One per stream, and one for the movement if there is any.

    Returns
    -------
    array of Axes

    Raises
    ------
    NeurofuseError
        If there is nothing to show, or `ax` has another number of axes.
    """
    first_s, last_s = recording.span_s
    start_s = first_s if start_s is None else float(start_s)
    stop_s = min(last_s, start_s + 10) if stop_s is None else float(stop_s)
    if not stop_s > start_s:
        raise NeurofuseError(
            f"recording '{recording.name}' cannot be shown from {start_s:g} to {stop_s:g} s; "
            f"choose a stretch inside {first_s:g} to {last_s:g} s."
        )
    n_panels = len(recording.streams) + (recording.movement is not None)
    if n_panels == 0:
        raise NeurofuseError(f"recording '{recording.name}' has no streams and no movement to show.")
    axes = panels_for(ax, n_panels, height_in=1.7, share_x=True)
    for panel, stream in zip(axes, recording.streams, strict=False):
        part = stream.between(start_s, stop_s)
        kind = "spikes" if isinstance(part, Spikes) else part.kind
        what = "" if kind.lower() in part.name.lower() else f" ({kind})"
        panel.set_title(f"{safe_text(part.name)}{what} on clock '{safe_text(part.clock)}'", **TITLE)
        if isinstance(part, Spikes):
            _draw_raster(panel, part)
        elif part.kind == "lfp":
            _draw_traces(panel, part)
        else:
            _draw_channels(panel, part)
    if recording.movement is not None:
        moved, panel = recording.movement.between(start_s, stop_s), axes[-1]
        clock = safe_text(recording.reference)
        panel.set_title(f"{safe_text(moved.name)} on the reference clock '{clock}'", **TITLE)
        for k, name in enumerate(moved.axes):
            gaps = after_gaps(moved.time_s, moved.sample_s)
            time_s, values = broken_line(moved.time_s, moved.data.values[:, k], gaps)
            colour = (BLACK, BLUE, ORANGE, GREEN, VERMILLION)[k % 5]
            panel.plot(time_s, values, color=colour, lw=1.1, label=safe_label(name))
        panel.set_ylabel(y_label("movement", moved.units))
        legend_above(panel)
    for panel in axes:
        panel.set_xlim(start_s, stop_s)
        tidy(panel)
    axes[-1].set_xlabel("time, each stream on its own clock (s)")
    return axes


def plot_decoded(
    prediction: xr.Dataset,
    *,
    start_s: float | None = None,
    stop_s: float | None = None,
    ax: Axes | Sequence[Axes] | AxesArray | None = None,
) -> AxesArray:
    """Draw measured and predicted movement over time, one panel per axis; gaps stay gaps.

    Parameters
    ----------
    prediction : Dataset, dims (time, axis)
        `movement`, `prediction` and, if there is one, `ridge`, in the units of `attrs["units"]`.
    start_s, stop_s : float, optional
        Seconds on the reference clock to show; by default all.
    ax : sequence of Axes, optional
        One per movement axis.

    Returns
    -------
    array of Axes

    Raises
    ------
    NeurofuseError
        If the table lacks what is drawn, holds nothing in that stretch, or `ax` has another number of axes.
    """
    table = stretch_of(
        prediction, ("movement", "prediction"), ("time", "axis"), "prediction", start_s, stop_s
    )
    names = [str(a) for a in table["axis"].values]
    axes = panels_for(ax, len(names), height_in=1.7, share_x=True)
    breaks = line_breaks(table, float(table.attrs.get("sample_s", 0)))
    lines = [("ridge", "ridge", ORANGE, 0.9, "--"), ("movement", "measured", BLACK, 1.3, "-")]
    lines += [("prediction", "predicted", BLUE, 1.3, "-")]
    for k, (panel, name) in enumerate(zip(axes, names, strict=True)):
        for variable, label, colour, width, style in lines:
            if variable not in table:
                continue
            values = table[variable].transpose("time", "axis").values[:, k]
            panel.plot(
                *broken_line(table["time"].values, values, breaks),
                color=colour,
                lw=width,
                ls=style,
                label=label,
            )
        panel.set_ylabel(y_label(name, table.attrs.get("units", "")))
        tidy(panel)
    legend_above(axes[0], order=("measured", "predicted", "ridge"))
    axes[-1].set_xlabel(time_label(table))
    return axes


def plot_trajectory(
    prediction: xr.Dataset,
    *,
    start_s: float | None = None,
    stop_s: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the measured and the predicted path through the first two axes; of one axis predicted against measured.

    Parameters
    ----------
    prediction : Dataset, dims (time, axis)
        As for `plot_decoded`.
    start_s, stop_s : float, optional
        Seconds on the reference clock to show; by default all.
    ax : Axes, optional

    Raises
    ------
    NeurofuseError
        If the table lacks what is drawn or holds nothing in that stretch.
    """
    table = stretch_of(
        prediction, ("movement", "prediction"), ("time", "axis"), "prediction", start_s, stop_s
    )
    names = [str(a) for a in table["axis"].values]
    units = table.attrs.get("units", "")
    (panel,) = panels_for(ax, 1, height_in=4.5, width_in=4.8)
    measured, predicted = (table[v].transpose("time", "axis").values for v in ("movement", "prediction"))
    if len(names) == 1:
        panel.plot(measured[:, 0], predicted[:, 0], ".", color=BLUE, ms=2.5, alpha=0.5, rasterized=True)
        both = np.concatenate([measured, predicted])
        ends = [np.nanmin(both), np.nanmax(both)]
        panel.plot(ends, ends, color=BLACK, lw=0.9, label="predicted = measured")
        panel.set_xlabel(with_unit(f"measured {names[0]}", units))
        panel.set_ylabel(with_unit(f"predicted {names[0]}", units))
    else:
        breaks = line_breaks(table, float(table.attrs.get("sample_s", 0)))
        for values, label, colour in ((measured, "measured", BLACK), (predicted, "predicted", BLUE)):
            _, path = broken_line(table["time"].values, values, breaks)
            panel.plot(path[:, 0], path[:, 1], color=colour, lw=1.1, alpha=0.85, label=label)
        panel.set_xlabel(with_unit(names[0], units))
        panel.set_ylabel(with_unit(names[1], units))
    panel.set_aspect("equal", adjustable="datalim")
    panel.locator_params(nbins=6)
    legend_above(panel)
    tidy(panel)
    return panel


def plot_lag(
    alignment: xr.Dataset,
    *,
    clock: str | None = None,
    start_s: float | None = None,
    stop_s: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the lag of one clock over time: posterior mean, 90 % interval, most probable path, true lag if known.

    Parameters
    ----------
    alignment : Dataset, dims (clock, time, lag)
        With `lag_mean_s`, `lag_q05_s`, `lag_q95_s` and, if there are any, `lag_path_s` and `true_lag_s`. An
        event at reference time t is stamped t + lag on the clock.
    clock : str, optional
        By default the first.
    start_s, stop_s : float, optional
        Seconds on the reference clock to show; by default all.
    ax : Axes, optional

    Raises
    ------
    NeurofuseError
        If there is no such clock, or the table lacks what is drawn or holds nothing in that stretch.
    """
    table, name = clock_stretch(
        alignment, ("lag_mean_s", "lag_q05_s", "lag_q95_s"), ("time",), clock, start_s, stop_s
    )
    (panel,) = panels_for(ax, 1, height_in=2.8)
    breaks = line_breaks(table, float(table.attrs.get("token_s", 0)))
    line = {v: broken_line(table["time"].values, table[v].values, breaks) for v in _LAGS if v in table}
    time_s, low_s = line["lag_q05_s"]
    panel.fill_between(
        time_s, low_s, line["lag_q95_s"][1], color=BLUE, alpha=0.22, lw=0, label="90 % interval"
    )
    panel.plot(*line["lag_mean_s"], color=BLUE, lw=2.0, label="posterior mean", zorder=2.2)
    if "lag_path_s" in line:
        # Below the mean: it steps from one lag of the grid to the next, and would chop the mean up.
        panel.plot(*line["lag_path_s"], color=VERMILLION, lw=1.1, ls="--", label="most probable path")
    if "true_lag_s" in line and np.isfinite(line["true_lag_s"][1]).any():
        panel.plot(*line["true_lag_s"], color=BLACK, lw=0.8, label="true lag", zorder=2.4)
    panel.set_ylabel(f"lag of clock '{safe_text(name, MAX_NAME_Y)}' (s)")
    panel.set_xlabel(time_label(table))
    panel.margins(x=0.01)
    legend_above(panel)
    tidy(panel)
    return panel


def plot_attention(
    alignment: xr.Dataset,
    *,
    clock: str | None = None,
    start_s: float | None = None,
    stop_s: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the posterior over lags at every moment, with the true lag if known.

    Parameters
    ----------
    alignment : Dataset, dims (clock, time, lag)
        With `posterior`, whose rows sum to 1, and `true_lag_s` if there is one.
    clock : str, optional
        By default the first.
    start_s, stop_s : float, optional
        Seconds on the reference clock to show; by default all.
    ax : Axes, optional

    Raises
    ------
    NeurofuseError
        If there is no such clock, or the table lacks what is drawn or holds nothing in that stretch.
    """
    table, name = clock_stretch(alignment, ("posterior",), ("time", "lag"), clock, start_s, stop_s)
    (panel,) = panels_for(ax, 1, height_in=3.2)
    token_s = float(table.attrs.get("token_s", 0)) or usual_step(table["time"].values)
    draw_posterior(panel, table["time"].values, table["lag"].values, table["posterior"].values, token_s)
    frame = (*panel.get_xlim(), *panel.get_ylim())
    if "true_lag_s" in table and np.isfinite(table["true_lag_s"].values).any():
        breaks = line_breaks(table, token_s)
        # Dashed, so that the posterior under it stays visible.
        panel.plot(
            *broken_line(table["time"].values, table["true_lag_s"].values, breaks),
            color="white",
            lw=1.0,
            ls=(0, (4, 3)),
            label="true lag",
        )
        legend_above(panel, on=MAP)
    panel.set_ylabel(f"lag of clock '{safe_text(name, MAX_NAME_Y)}' (s)")
    panel.set_xlabel(time_label(table))
    panel.axis(frame)
    return panel


def plot_scores(metrics: Mapping[str, Any], *, ax: Axes | None = None) -> Axes:
    """Draw R2 of the decoder and of ridge, one pair of bars per axis and one for the mean.

    Parameters
    ----------
    metrics : mapping
        With `r2` {axis: value or None} and `r2_mean`; `baseline_ridge_r2` and `baseline_ridge_r2_mean` if
        ridge was fitted. Bars stop at -0.25; the number at each is its full length.
    ax : Axes, optional

    Raises
    ------
    NeurofuseError
        If there are no scores.
    """
    r2 = metrics.get("r2") or {}
    if not r2:
        raise NeurofuseError(f"metrics hold no 'r2' to draw; they hold {sorted(map(str, metrics))}.")
    ridge = metrics.get("baseline_ridge_r2") or {}
    groups = [str(a) for a in r2]
    columns = [("decoder", [*r2.values(), metrics.get("r2_mean")], BLUE)]
    if ridge or metrics.get("baseline_ridge_r2_mean") is not None:
        ridge_mean = metrics.get("baseline_ridge_r2_mean")
        columns.append(("ridge", [*(ridge.get(a) for a in r2), ridge_mean], ORANGE))
    (panel,) = panels_for(ax, 1, height_in=2.8, width_in=max(4.0, 1.1 * (len(groups) + 2)))
    # The mean is set apart from the axes it is the mean of.
    place = np.array([*range(len(groups)), len(groups) + 0.4])
    width = 0.8 / len(columns)
    lowest = 0.0
    for k, (label, values, colour) in enumerate(columns):
        score = np.array([np.nan if v is None else float(v) for v in values])
        x = place + (k - (len(columns) - 1) / 2) * width
        shown = np.clip(score, -0.25, None)
        lowest = min([lowest, *shown[np.isfinite(shown)]])
        panel.bar(x, np.nan_to_num(shown), width=0.92 * width, color=colour, label=label)
        for where, value, top in zip(x, score, shown, strict=True):
            text = f"{value:.2f}".replace("-", "−") if np.isfinite(value) else "–"
            below = top < 0
            panel.annotate(
                text,
                (where, top if np.isfinite(top) else 0.0),
                xytext=(0, -2 if below else 2),
                textcoords="offset points",
                ha="center",
                va="top" if below else "bottom",
                fontsize="small",
            )
    panel.axhline(0, color=BLACK, lw=0.8)
    panel.set_xticks(place, [*(safe_text(g, MAX_NAME_Y) for g in groups), "mean"])
    if len(groups) > 4 or max(map(len, groups)) > 10:
        panel.tick_params(axis="x", rotation=30)
        for tick in panel.get_xticklabels():
            tick.set_horizontalalignment("right")
    panel.set_ylim(1.8 * lowest, 1.08)
    panel.set_ylabel("R² on the test stretch")
    legend_above(panel)
    tidy(panel)
    return panel


def plot_training(history: Mapping[str, Sequence[float | None]], *, ax: Axes | None = None) -> Axes:
    """Draw the loss in the course of training, on training and on validation windows.

    Parameters
    ----------
    history : mapping
        `train` and `validation`, one loss per check (None or NaN where it was not computed), and `step`,
        the gradient steps taken by then; without it checks are counted.
    ax : Axes, optional

    Raises
    ------
    NeurofuseError
        If there is no loss at all.
    """
    curves = {
        name: np.array([np.nan if v is None else float(v) for v in history.get(name) or ()])
        for name in ("train", "validation")
    }
    if not any(np.isfinite(c).any() for c in curves.values()):
        raise NeurofuseError(
            f"the history holds no loss to draw; it holds {sorted(map(str, history))}, "
            "and 'train' or 'validation' is needed."
        )
    n_checks = max(c.size for c in curves.values())
    steps = [float(v) for v in history.get("step") or () if v is not None]
    steps = steps if len(steps) == n_checks else []
    taken = np.array(steps) if steps else 1.0 + np.arange(n_checks)
    (panel,) = panels_for(ax, 1, height_in=2.6, width_in=5.0)
    for (name, loss), colour, style in zip(curves.items(), (BLUE, VERMILLION), ("-", "--"), strict=True):
        if loss.size:
            marker = "o" if loss.size < 30 else ""
            panel.plot(taken[: loss.size], loss, style, color=colour, lw=1.4, marker=marker, ms=3, label=name)
    panel.set_xlabel("gradient step" if steps else "check")
    panel.set_xlim(0, taken[-1] + 0.5)
    panel.set_ylabel("loss (no unit)")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend_above(panel)
    tidy(panel)
    return panel


_LAGS = ("lag_mean_s", "lag_q05_s", "lag_q95_s", "lag_path_s", "true_lag_s")


def _draw_raster(panel: Axes, spikes: Spikes) -> None:
    size = float(np.clip(90 / max(spikes.n_units, 1), 0.8, 8))
    panel.plot(spikes.times_s, spikes.unit, "|", color=BLACK, ms=size, mew=0.5, rasterized=True)
    panel.set_ylim(spikes.n_units - 0.5, -0.5)
    panel.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    panel.set_ylabel("unit")


def _draw_channels(panel: Axes, signal: Signal) -> None:
    panel.set_facecolor(NOTHING)
    panel.set_ylabel("unit" if signal.kind == "counts" else "feature")
    if not signal.time_s.size:
        return
    values = signal.data.values.astype(np.float64)
    label = f"spikes per {1000 * signal.sample_s:.3g} ms"
    if signal.kind == "power":
        # Channels differ in scale by orders of magnitude, so each is drawn against its own mean and spread.
        values = (values - values.mean(axis=0)) / np.maximum(values.std(axis=0), 1e-12)
        label = "power (z-score)"
    grid, left_s, right_s = time_columns(signal.time_s, values, signal.sample_s)
    finite = grid[np.isfinite(grid)]
    image = panel.imshow(
        np.ma.masked_invalid(grid.T),
        aspect="auto",
        interpolation="nearest",
        extent=(left_s, right_s, signal.n_channels - 0.5, -0.5),
        cmap=MAP,
        vmin=float(np.percentile(finite, 1)),
        vmax=max(float(np.percentile(finite, 99)), float(np.percentile(finite, 1)) + 1e-9),
    )
    panel.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    bar = panel.figure.colorbar(image, ax=panel, pad=0.01, fraction=0.04)
    bar.set_label(label)
    bar.outline.set_visible(False)


def _draw_traces(panel: Axes, signal: Signal) -> None:
    rows = np.unique(np.linspace(0, signal.n_channels - 1, min(signal.n_channels, MAX_TRACES)).astype(int))
    if signal.n_channels > rows.size:
        title = panel.get_title(loc="left")
        panel.set_title(f"{title}: {rows.size} of {signal.n_channels} channels", **TITLE)
    if not signal.time_s.size:
        panel.set_ylabel("channel")
        return
    values = signal.data.values[:, rows].astype(np.float64)
    values -= np.median(values, axis=0)
    spacing = 5 * float(np.median(values.std(axis=0))) or 1.0
    for k in range(rows.size):
        # Smallest and largest of each run of samples: no peak is dropped, and no trace outgrows the page.
        time_s, trace = broken_line(signal.time_s, values[:, k], after_gaps(signal.time_s, signal.sample_s))
        run = max(1, trace.size // (2 * MAX_COLUMNS))
        if run > 1:
            n_runs = trace.size // run
            by_run = trace[: n_runs * run].reshape(n_runs, run)
            trace = np.stack([by_run.min(axis=1), by_run.max(axis=1)], axis=1).ravel()
            time_s = np.repeat(time_s[: n_runs * run : run], 2)
        panel.plot(time_s, trace - k * spacing, color=(BLUE, BLACK)[k % 2], lw=0.5, rasterized=True)
    named = range(0, rows.size, -(-rows.size // 8))  # more than eight names would run into each other
    panel.set_yticks([-k * spacing for k in named], [safe_text(signal.channels[rows[k]], 12) for k in named])
    panel.tick_params(axis="y", labelsize="small", length=0)
    panel.set_ylim(-(rows.size - 0.2) * spacing, 0.8 * spacing)
    unit = safe_text(signal.data.attrs.get("units", ""), 10) or "units"
    panel.set_ylabel(f"channels\n{spacing:.3g} {unit} apart")
