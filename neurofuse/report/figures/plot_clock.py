"""In: an `Alignment`. Out: matplotlib axes, the clock of a session and the evidence for it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from neurofuse.alignment.result import Alignment
from neurofuse.recording import FloatArray
from neurofuse.report.figures.panel import (
    BLACK,
    BLUE,
    MAP,
    ORANGE,
    TITLE,
    VERMILLION,
    AxesArray,
    after_gaps,
    broken_line,
    draw_posterior,
    legend_above,
    panels_for,
    safe_text,
    tidy,
    usual_step,
)

# The map covers this much around the fitted lags, seconds.
AROUND_S = 0.25


def plot_clock(
    found: Alignment,
    *,
    truth_s: tuple[FloatArray, FloatArray] | None = None,
    ax: Axes | Sequence[Axes] | AxesArray | None = None,
) -> AxesArray:
    """Draw the clock of a session: lag posterior with the fitted clock, residual lag, and probability of a match.

    Parameters
    ----------
    found : Alignment
    truth_s : tuple of ndarray, optional
        Times on A and true lags, seconds.
    ax : sequence of three Axes, optional

    Returns
    -------
    array of three Axes
    """
    panels = panels_for(ax, 3, height_in=2.1, share_x=True)
    one = found.lag.isel(clock=0)
    _draw_lag(panels, found, one, truth_s)
    _draw_residual(panels[1], found, one, truth_s)
    _draw_matched(panels[2], found, one)
    panels[2].set_xlabel(f"time on clock '{safe_text(found.clock_a)}' (s)")
    panels[2].set_xlim(*panels[0].get_xlim())
    for panel in panels[1:]:
        tidy(panel)
    return panels


def _draw_lag(
    panels: AxesArray, found: Alignment, one: xr.Dataset, truth_s: tuple[FloatArray, FloatArray] | None
) -> None:
    """The lag posterior around the fitted clock, on the first of the panels."""
    panel: Axes = panels[0]
    time_s, lag_s, fitted_s = (one[v].values for v in ("time", "lag", "fitted_lag_s"))
    inside = (lag_s >= fitted_s.min() - AROUND_S) & (lag_s <= fitted_s.max() + AROUND_S)
    # The colour bar takes its room from all panels, so that their time axes stay in line.
    bar = {"ax": list(panels), "fraction": 0.03, "shrink": 0.3, "anchor": (0.0, 1.0), "aspect": 12}
    draw_posterior(
        panel, time_s, lag_s[inside], one["posterior"].values[:, inside], usual_step(time_s), bar=bar
    )
    frame = (*panel.get_xlim(), *panel.get_ylim())
    line_s = np.union1d(np.linspace(time_s[0], time_s[-1], 400), found.clock.a_s)
    line_s = line_s[(line_s >= time_s[0]) & (line_s <= time_s[-1])]
    panel.plot(line_s, found.clock.lag_s(line_s), color="white", lw=1.2, ls=(0, (4, 3)), label="fitted clock")
    if truth_s is not None:
        panel.plot(*truth_s, color=ORANGE, lw=1.0, ls=":", label="true lag")
    panel.axis(frame)
    panel.set_ylabel(f"lag of '{safe_text(found.clock_b, 18)}' (s)")
    legend_above(panel, on=MAP)
    # Above the legend, which would cover the end of a long verdict.
    panel.set_title(safe_text(_headline(found), 90), pad=24, **TITLE)


def _draw_residual(
    panel: Axes, found: Alignment, one: xr.Dataset, truth_s: tuple[FloatArray, FloatArray] | None
) -> None:
    """The lag posterior minus the fitted clock, and the interval of that clock."""
    time_s, fitted_s = one["time"].values, one["fitted_lag_s"].values
    step_s = usual_step(time_s)
    gaps = after_gaps(time_s, step_s)
    low, high, mean = (
        broken_line(time_s, 1000 * (one[v].values - fitted_s), gaps)
        for v in ("lag_q05_s", "lag_q95_s", "lag_mean_s")
    )
    panel.fill_between(low[0], low[1], high[1], color=BLUE, alpha=0.25, lw=0, label="90 % of the posterior")
    panel.plot(*mean, color=BLUE, lw=1.2, label="posterior mean")
    half_width_ms = 1000 * found.half_width_s
    reach_ms = max(20.0, 1.2 * float(np.nanquantile(np.abs(high[1]), 0.9)))
    if np.isfinite(half_width_ms):
        panel.axhspan(
            -half_width_ms, half_width_ms, color=ORANGE, alpha=0.35, lw=0, label="95 % of the fitted clock"
        )
        reach_ms = max(reach_ms, 3 * half_width_ms)
    panel.axhline(0, color=BLACK, lw=0.8)
    if truth_s is not None:
        residual_ms = 1000 * (truth_s[1] - found.clock.lag_s(truth_s[0]))
        panel.plot(truth_s[0], residual_ms, color=BLACK, ls=":", label="true lag")
    panel.set_ylim(-reach_ms, reach_ms)
    panel.set_ylabel("lag minus\nfitted clock (ms)")
    _shade(panel, time_s, step_s, one["trusted"].values < 0.5)
    legend_above(panel)


def _draw_matched(panel: Axes, found: Alignment, one: xr.Dataset) -> None:
    """The probability that the streams match, and the jumps of the clock."""
    time_s = one["time"].values
    step_s = usual_step(time_s)
    matched = broken_line(time_s, one["p_matched"].values, after_gaps(time_s, step_s))
    panel.plot(*matched, color=BLACK, lw=1.2, label="streams match")
    _shade(panel, time_s, step_s, one["trusted"].values < 0.5)
    for j in found.jumps:
        panel.axvspan(j.time_low_s, j.time_high_s, color=VERMILLION, alpha=0.5, lw=0)
        panel.annotate(
            f"{1000 * j.size_s:+.0f} ms",
            (j.time_s, 0.5),
            xytext=(4, 0),
            textcoords="offset points",
            fontsize="small",
            color=VERMILLION,
        )
    panel.set_ylim(-0.03, 1.05)
    panel.set_ylabel("probability\nof a match")
    legend_above(panel)


def _headline(found: Alignment) -> str:
    parts = [found.verdict]
    if np.isfinite(found.skew_ppm[0]):
        n = len(found.jumps)
        parts.append(f"skew {found.skew_ppm[0]:+.1f} ppm, {n} jump{'s' * (n != 1)}")
    return "; ".join(parts)


def _shade(panel: Axes, time_s: FloatArray, step_s: float, unconfirmed: np.ndarray) -> None:
    """Hatch the stretches in which the posterior does not confirm the fitted clock."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], unconfirmed.astype(int), [0]])))
    for k, (a, b) in enumerate(zip(edges[::2], edges[1::2], strict=True)):
        panel.axvspan(
            time_s[a] - step_s / 2,
            time_s[b - 1] + step_s / 2,
            facecolor="#BBBBBB",
            hatch="//",
            edgecolor="white",
            alpha=0.6,
            lw=0,
            label="clock not confirmed" if k == 0 else None,
        )
