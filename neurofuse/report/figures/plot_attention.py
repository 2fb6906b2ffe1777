"""In: tables of attention, its quality, and contributions of the input. Out: matplotlib axes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from neurofuse.errors import NeurofuseError
from neurofuse.report.figures.panel import (
    BLACK,
    BLUE,
    GREEN,
    MAX_NAME_Y,
    MAX_TRACES,
    ORANGE,
    TITLE,
    VERMILLION,
    AxesArray,
    legend_above,
    panels_for,
    safe_label,
    safe_text,
    tidy,
)
from neurofuse.report.figures.plot_decode import plot_attention

# One per clock or axis, in this order, with a marker and a line style of its own so that colour is not needed.
SERIES = (
    (BLUE, "o", "-"),
    (ORANGE, "s", "--"),
    (GREEN, "^", "-."),
    (VERMILLION, "D", ":"),
    (BLACK, "v", "-"),
)
# Scores of attention that are shares, and their labels.
SHARES = {
    "mass_on_truth": "mass on the true lag",
    "anomaly_rate": "anomaly rate",
    "calibration_error": "calibration error",
    "relative_entropy": "entropy / log L",
}
RATES = {"flicker": "most probable lag", "true_flicker": "true lag"}


def plot_window_attention(
    table: xr.Dataset, *, window: int = 0, clock: str | None = None, ax: Axes | None = None
) -> Axes:
    """Draw the lag posterior of one window: lag against time, with the true lag on top if known.

    Parameters
    ----------
    table : Dataset, dims (clock, window, step, lag)
        From `neurofuse.attention`.
    window : int
        Which of its windows; negative ones count from the last.
    clock : str, optional
        By default the first.
    ax : Axes, optional

    Raises
    ------
    NeurofuseError
        If there is no such clock or window.
    """
    if "posterior" not in table or "window" not in table["posterior"].dims:
        raise NeurofuseError(
            "this table has no windows to draw one of; give one from attention(), or draw an alignment with "
            "plot_attention()."
        )
    n_windows = table.sizes["window"]
    if not -n_windows <= window < n_windows:
        raise NeurofuseError(f"there is no window {window}; the table has {n_windows}.")
    one = table.isel(window=window).swap_dims(step="time")
    panel = plot_attention(one, clock=clock, ax=ax)
    panel.set_title(f"window {window % n_windows}", **TITLE)
    return panel


def plot_attention_quality(scores: xr.Dataset, *, ax: Sequence[Axes] | AxesArray | None = None) -> AxesArray:
    """Draw the accuracy and the steadiness of attention: bars for every clock.

    Parameters
    ----------
    scores : Dataset, dims (clock,)
        From `neurofuse.attention_scores`; what needs a truth is left out where there was none.
    ax : sequence of Axes, optional
        Two: shares and rates.

    Returns
    -------
    array of Axes

    Raises
    ------
    NeurofuseError
        If the table holds none of these scores, or `ax` has another number of axes.
    """
    shares, rates = ({k: v for k, v in words.items() if k in scores} for words in (SHARES, RATES))
    if not rates:
        raise NeurofuseError(
            f"the table holds no scores of attention; it has {sorted(map(str, scores.variables))}."
        )
    axes = panels_for(ax, 2, height_in=1.9, width_in=6.5)
    tolerance_ms = 1000 * float(scores.attrs.get("tolerance_s", np.nan))
    clocks = [str(c) for c in scores["clock"].values]
    for panel, words in zip(axes, (shares, rates), strict=True):
        _bars(
            panel,
            [[float(scores[name][k]) for name in words] for k in range(len(clocks))],
            rows=list(words.values()),
            series=[f"clock '{safe_text(c, MAX_NAME_Y)}'" for c in clocks],
        )
        tidy(panel)
    axes[0].set_xlim(0, 1.12)
    axes[0].set_xlabel("share of time, or mean probability")
    if np.isfinite(tolerance_ms):
        axes[0].set_title(f"tolerance {tolerance_ms:.3g} ms", **TITLE)
    axes[1].set_xlabel("rate of changes beyond the tolerance (1/s)")
    axes[1].set_xlim(0, 1.15 * max(0.1, *(p.get_width() for p in axes[1].patches)))
    legend_above(axes[0])
    return axes


def plot_calibration(scores: xr.Dataset, *, ax: Sequence[Axes] | AxesArray | None = None) -> AxesArray:
    """Draw the calibration of attention: accuracy against confidence, and coverage of its intervals.

    On the diagonal it is calibrated, below it overconfident.

    Parameters
    ----------
    scores : Dataset, dims (clock, bin) and (clock, credible_level)
        From `neurofuse.attention_scores`, with a truth. The area of a point grows with the share of time in it.
    ax : sequence of Axes, optional
        Two.

    Returns
    -------
    array of Axes

    Raises
    ------
    NeurofuseError
        If no truth was known, or `ax` has another number of axes.
    """
    if "coverage" not in scores or not np.isfinite(scores["coverage"]).any():
        raise NeurofuseError(
            "calibration needs a true lag, and the table these scores were taken from had none."
        )
    axes = panels_for(ax, 2, height_in=3.4, width_in=4.2)
    for k, clock in enumerate(map(str, scores["clock"].values)):
        colour, marker, style = SERIES[k % len(SERIES)]
        one, label = scores.isel(clock=k), f"clock '{safe_text(clock, MAX_NAME_Y)}'"
        filled = np.flatnonzero(one["share"].values > 0)
        x, y, share = (one[v].values[filled] for v in ("confidence", "accuracy", "share"))
        axes[0].plot(x, y, style, color=colour, lw=1.0)
        axes[0].plot([], [], style, marker=marker, color=colour, label=label)
        axes[0].scatter(x, y, s=12 + 150 * share, color=colour, marker=marker, alpha=0.8)
        axes[1].plot(
            one["credible_level"], one["coverage"], style, marker=marker, color=colour, lw=1.2, label=label
        )
    for panel in axes:
        panel.plot([0, 1], [0, 1], color=BLACK, lw=0.8)
        panel.set_xlim(-0.03, 1.03)
        panel.set_ylim(-0.03, 1.06)
        tidy(panel)
    axes[0].set_xlabel("confidence: probability near the mode")
    axes[0].set_ylabel("accuracy: share of time\nwith the true lag there")
    axes[1].set_xlabel("probability inside the central interval")
    axes[1].set_ylabel("coverage: share of time\nwith the true lag inside")
    legend_above(axes[0])
    return axes


def plot_contribution(table: xr.Dataset, *, ax: Axes | None = None) -> Axes:
    """Draw the drop in R2 when a part of the input is masked: bars for every part, one per movement axis.

    Of more parts than fit the largest are drawn. Bars stop at 1.5; the number at each is its full length.

    Parameters
    ----------
    table : Dataset, dims (part, axis)
        From `neurofuse.contribution`.
    ax : Axes, optional

    Raises
    ------
    NeurofuseError
        If the table holds no contribution.
    """
    if "contribution" not in table or not table.sizes.get("part"):
        raise NeurofuseError(
            f"the table holds no 'contribution'; it has {sorted(map(str, table.variables))}."
        )
    drop = table["contribution"].transpose("axis", "part").values
    n_parts = drop.shape[1]
    shown = np.arange(n_parts)
    if n_parts > MAX_TRACES:
        shown = np.argsort(-np.nanmean(drop, axis=0), kind="stable")[:MAX_TRACES]
    # A short row per bar, however many axes there are.
    height_in = 1.1 + 0.22 * shown.size * max(1.3, drop.shape[0])
    (panel,) = panels_for(ax, 1, height_in=height_in, width_in=6.5)
    whole = zip(table["axis"].values, table["r2"].values, strict=True)
    _bars(
        panel,
        drop[:, shown].tolist(),
        rows=[safe_text(p, MAX_NAME_Y) for p in table["part"].values[shown]],
        series=[f"{safe_label(a)} (R² {r:.2f} with all input)" for a, r in whole],
        most=1.5,
    )
    panel.axvline(0, color=BLACK, lw=0.8)
    panel.margins(x=0.1)
    panel.set_xlabel("drop in R² without it")
    if shown.size < n_parts:
        panel.set_title(f"{shown.size} of {n_parts} parts", **TITLE)
    legend_above(panel)
    tidy(panel)
    return panel


def _bars(
    panel: Axes,
    values: Sequence[Sequence[float]],
    *,
    rows: Sequence[str],
    series: Sequence[str],
    most: float = np.inf,
) -> None:
    """Horizontal bars with their numbers, rows downwards, one colour per series."""
    height = 0.8 / len(series)
    for k, (label, row) in enumerate(zip(series, values, strict=True)):
        value = np.asarray(row, dtype=np.float64)
        y = np.arange(len(rows)) + (k - (len(series) - 1) / 2) * height
        length = np.clip(np.nan_to_num(value), -most, most)
        panel.barh(y, length, height=0.9 * height, color=SERIES[k % len(SERIES)][0], label=label)
        for place, number, end in zip(y, value, length, strict=True):
            panel.annotate(
                _two_decimals(number),
                (end, place),
                xytext=(3 if end >= 0 else -3, 0),
                textcoords="offset points",
                ha="left" if end >= 0 else "right",
                va="center",
                fontsize="small",
            )
    panel.set_yticks(range(len(rows)), list(rows))
    panel.set_ylim(len(rows) - 0.5, -0.5)


def _two_decimals(number: float) -> str:
    # Adding zero turns a negative zero, which is what most rounds to, into a plain one.
    return f"{round(number, 2) + 0.0:.2f}".replace("-", "−") if np.isfinite(number) else "unknown"
