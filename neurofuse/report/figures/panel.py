"""In: names, times and tables as they come. Out: axes, labels and lines that are safe to draw, for all figures."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from neurofuse.errors import NeurofuseError
from neurofuse.recording import GAP_SAMPLES, FloatArray

AxesArray = NDArray[np.object_]

BLACK, BLUE, ORANGE, VERMILLION, GREEN = "#000000", "#0072B2", "#E69F00", "#D55E00", "#009E73"
NOTHING = "#EEEEEE"  # where there is no data: neither end of cividis
MAP = "cividis"
# No page or screen shows more columns than this, so maps are averaged down to it.
MAX_COLUMNS = 1200
# More traces than this on one panel are lines over lines.
MAX_TRACES = 16
# Names longer than these lose their middle, or they would push everything else off the figure. A vertical axis
# leaves less room than a horizontal one.
MAX_NAME, MAX_NAME_Y = 40, 18
TITLE: dict[str, Any] = {"loc": "left", "fontsize": "medium"}


def safe_text(name: object, longest: int = MAX_NAME) -> str:
    """A name from a file, safe on a figure: no mathtext, line breaks or control characters, not too long."""
    text = "".join(c if c.isprintable() else " " for c in str(name)).strip()
    # The middle goes: channels often differ in their last few letters.
    text = text if len(text) <= longest else f"{text[: longest // 2]}…{text[-(longest // 2 - 1) :]}"
    return text.replace("$", r"\$")


def safe_label(name: object) -> str:
    # matplotlib leaves labels that begin with an underscore out of the legend.
    text = safe_text(name)
    return f" {text}" if text.startswith("_") else text


def with_unit(name: object, unit: object) -> str:
    return f"{safe_text(name)} ({safe_text(unit)})" if str(unit) not in ("", "1") else safe_text(name)


def y_label(name: object, unit: object) -> str:
    """A label for a vertical axis: the unit goes below a name that leaves no room for it."""
    text = safe_text(name, MAX_NAME_Y)
    if str(unit) in ("", "1"):
        return text
    unit = safe_text(unit, MAX_NAME_Y)
    return f"{text}{' ' if len(text) + len(unit) < 16 else chr(10)}({unit})"


def time_label(table: xr.Dataset) -> str:
    reference = table.attrs.get("reference")
    return f"time on clock '{safe_text(reference)}' (s)" if reference else "time on the reference clock (s)"


def panels_for(
    ax: Axes | Sequence[Axes] | AxesArray | None,
    n: int,
    *,
    height_in: float,
    width_in: float = 8.5,
    share_x: bool = False,
) -> AxesArray:
    """The caller's axes if there are as many as are needed, else `n` new ones below each other."""
    if ax is None:
        size = (width_in, height_in * n + 0.5 * (n > 1))
        shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
        if shell is not None and hasattr(shell, "kernel"):
            from matplotlib import pyplot

            figure = pyplot.figure(figsize=size, layout="constrained")
        else:
            figure = Figure(figsize=size, layout="constrained")
        return figure.subplots(n, 1, sharex=share_x, squeeze=False)[:, 0]
    given = np.atleast_1d(np.asarray(ax, dtype=object)).ravel()
    if given.size != n or not all(isinstance(a, Axes) for a in given):
        raise NeurofuseError(f"this figure needs {n} axes, got {given.size}; leave ax out to have them made.")
    return given


def tidy(panel: Axes) -> None:
    panel.spines[["top", "right"]].set_visible(False)


def legend_above(panel: Axes, *, order: Sequence[str] = (), on: str = "", title: str = "") -> None:
    """A legend above the data, where it hides none of it; a title given here stands above the legend."""
    handles, labels = panel.get_legend_handles_labels()
    known = [labels.index(o) for o in order if o in labels]
    rows = [*known, *(k for k in range(len(labels)) if k not in known)]
    legend = panel.legend(
        [handles[k] for k in rows],
        [labels[k] for k in rows],
        loc="lower right",
        bbox_to_anchor=(1.0, 1.0),
        ncols=max(1, min(len(rows), 4)),
        borderaxespad=0.2,
        handlelength=1.8,
        fontsize="small",
        frameon=bool(on),
        title=title or None,
        title_fontsize="medium",
        alignment="left",
    )
    if on:
        # White on white cannot be read: the key gets the colour of the map's floor behind it.
        from matplotlib import colormaps

        legend.get_frame().set(facecolor=colormaps[on](0.0), edgecolor="none", alpha=1.0)
        for text in legend.get_texts():
            text.set_color("white")


def usual_step(values: FloatArray) -> float:
    return float(np.median(np.diff(values))) if values.size > 1 else 1.0


def after_gaps(time_s: FloatArray, step_s: float) -> NDArray[np.intp]:
    """Rows that follow a gap."""
    return np.flatnonzero(np.diff(time_s) > GAP_SAMPLES * step_s) + 1


def line_breaks(table: xr.Dataset, step_s: float) -> NDArray[np.intp]:
    """Rows that a line must not be drawn to: after a gap, and where windows were decoded each on its own."""
    time_s = table["time"].values
    breaks = after_gaps(time_s, step_s or usual_step(time_s))
    if table.attrs.get("scored") == "per window" and "window" in table:
        window = table["window"].values
        breaks = np.union1d(breaks, np.flatnonzero(window[1:] != window[:-1]) + 1)
    return breaks


def broken_line(
    time_s: FloatArray, values: NDArray[Any], breaks: NDArray[np.intp]
) -> tuple[FloatArray, FloatArray]:
    """Put a NaN before every break, so that a line (or a band) stops there."""
    return (
        np.insert(time_s, breaks, time_s[breaks - 1]),
        np.insert(np.asarray(values, dtype=np.float64), breaks, np.nan, axis=0),
    )


def time_columns(time_s: FloatArray, values: NDArray[Any], step_s: float) -> tuple[FloatArray, float, float]:
    """Average rows into even columns of time, NaN where there are none; with the outer edges in seconds."""
    span_s = float(time_s[-1] - time_s[0])
    width_s = max(step_s, span_s / MAX_COLUMNS)
    # A hair off the half, so that rounding noise does not throw equally spaced rows to either side.
    column = np.floor((time_s - time_s[0]) / width_s + 0.5 + 1e-6).astype(np.int64)
    n_columns = int(column[-1]) + 1
    total = np.zeros((n_columns, values.shape[1]))
    np.add.at(total, column, values.astype(np.float64))
    count = np.bincount(column, minlength=n_columns)[:, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        grid = total / count
    return grid, float(time_s[0] - width_s / 2), float(time_s[0] + (n_columns - 0.5) * width_s)


def draw_posterior(
    panel: Axes,
    time_s: FloatArray,
    lag_s: FloatArray,
    posterior: NDArray[Any],
    step_s: float,
    *,
    bar: Mapping[str, Any] | None = None,
) -> None:
    """Draw a lag posterior, shape (n_times, n_lags), as a map of lag against time, which fills the panel.

    Times are `step_s` apart; where there are none the map stays empty. `bar` overrides where the colour bar goes.
    """
    grid, left_s, right_s = time_columns(time_s, posterior, step_s)
    half_s = 0.5 * usual_step(lag_s)
    # With the square root a wide posterior, whose probabilities are low, stays visible.
    image = panel.imshow(
        np.ma.masked_invalid(grid.T),
        origin="lower",
        aspect="auto",
        interpolation="nearest",
        extent=(left_s, right_s, lag_s[0] - half_s, lag_s[-1] + half_s),
        cmap=MAP,
        norm=PowerNorm(0.5, vmin=0, vmax=max(float(np.nanmax(grid)), 1e-12)),
    )
    panel.set_facecolor(NOTHING)
    place: dict[str, Any] = {"ax": panel, "pad": 0.01, "fraction": 0.04} | dict(bar or {})
    drawn = panel.figure.colorbar(image, **place)
    drawn.set_label(f"probability per\n{2000 * half_s:.3g} ms of lag")
    drawn.outline.set_visible(False)


def stretch_of(
    table: xr.Dataset,
    variables: Sequence[str],
    dims: Sequence[str],
    what: str,
    start_s: float | None,
    stop_s: float | None,
) -> xr.Dataset:
    """The rows of a table between two moments, after a check that it is the table it should be."""
    missing = [v for v in variables if v not in table]
    missing += [d for d in dims if d not in table.coords]
    if missing:
        found = sorted(map(str, table.variables))
        raise NeurofuseError(f"the {what} table lacks '{missing[0]}'; it has {found}.")
    time_s = table["time"].values
    lo = 0 if start_s is None else int(np.searchsorted(time_s, start_s))
    hi = time_s.size if stop_s is None else int(np.searchsorted(time_s, stop_s))
    if hi <= lo:
        covered = f"it covers {time_s[0]:g} to {time_s[-1]:g} s" if time_s.size else "it is empty"
        between = f" between {start_s} and {stop_s} s" if time_s.size else ""
        raise NeurofuseError(f"the {what} table holds nothing{between}; {covered}.")
    return table.isel(time=slice(lo, hi))


def clock_stretch(
    alignment: xr.Dataset,
    variables: Sequence[str],
    dims: Sequence[str],
    clock: str | None,
    start_s: float | None,
    stop_s: float | None,
) -> tuple[xr.Dataset, str]:
    table = stretch_of(alignment, variables, ("clock", *dims), "alignment", start_s, stop_s)
    clocks = [str(c) for c in table["clock"].values]
    if not clocks:
        raise NeurofuseError("the alignment table has no clock; a lag needs a second clock.")
    name = clocks[0] if clock is None else str(clock)
    if name not in clocks:
        raise NeurofuseError(f"the alignment table has no clock '{name}'; it has {clocks}.")
    one = table.isel(clock=clocks.index(name))
    return one.transpose("time", "lag", missing_dims="ignore"), name
