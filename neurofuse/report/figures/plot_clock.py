"""In: an `Alignment`. Out: matplotlib axes, a session's clock and how far it is to be trusted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm

from neurofuse.alignment.result import Alignment
from neurofuse.recording import FloatArray
from neurofuse.report.figures.panel import (
    BLACK,
    BLUE,
    MAP,
    NOTHING,
    ORANGE,
    TITLE,
    VERMILLION,
    AxesArray,
    after_gaps,
    broken_line,
    legend_above,
    panels_for,
    safe_text,
    tidy,
    time_columns,
    usual_step,
)

# The map shows so much around the fitted lags, seconds.
AROUND_S = 0.25


def plot_clock(
    found: Alignment,
    *,
    truth_s: tuple[FloatArray, FloatArray] | None = None,
    ax: Axes | Sequence[Axes] | AxesArray | None = None,
) -> AxesArray:
    """Draw a session's clock: the lag's posterior with the fitted clock, what is left of the lag, and the match.

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
    time_s, lag_s = one["time"].values, one["lag"].values
    step_s = usual_step(time_s)
    gaps = after_gaps(time_s, step_s)
    fitted = one["fitted_lag_s"].values
    distrusted = one["trusted"].values < 0.5
    name_a, name_b = safe_text(found.clock_a), safe_text(found.clock_b, 18)

    top = panels[0]
    inside = (lag_s >= fitted.min() - AROUND_S) & (lag_s <= fitted.max() + AROUND_S)
    grid, left_s, right_s = time_columns(time_s, one["posterior"].values[:, inside], step_s)
    half_s = 0.5 * usual_step(lag_s)
    shown_s = lag_s[inside]
    image = top.imshow(
        np.ma.masked_invalid(grid.T),
        origin="lower",
        aspect="auto",
        interpolation="nearest",
        extent=(left_s, right_s, shown_s[0] - half_s, shown_s[-1] + half_s),
        cmap=MAP,
        norm=PowerNorm(0.5, vmin=0, vmax=max(float(np.nanmax(grid)), 1e-12)),
    )
    top.set_facecolor(NOTHING)
    bar = top.figure.colorbar(image, ax=list(panels), pad=0.01, fraction=0.03, aspect=40)
    bar.set_label(f"posterior above: probability per {2000 * half_s:.3g} ms of lag")
    bar.outline.set_visible(False)
    line_s = np.union1d(np.linspace(time_s[0], time_s[-1], 400), found.clock.a_s)
    line_s = line_s[(line_s >= time_s[0]) & (line_s <= time_s[-1])]
    top.plot(line_s, found.clock.lag_s(line_s), color="white", lw=1.2, ls=(0, (4, 3)), label="fitted clock")
    if truth_s is not None:
        top.plot(*truth_s, color=ORANGE, lw=1.0, ls=":", label="truth")
    top.set_ylabel(f"lag of '{name_b}' (s)")
    top.set_ylim(shown_s[0] - half_s, shown_s[-1] + half_s)
    legend_above(top, on=MAP)
    top.set_title(safe_text(_headline(found), 90), **TITLE)

    rest = panels[1]
    low, high, mean = (
        broken_line(time_s, 1000 * (one[v].values - fitted), gaps)
        for v in ("lag_q05_s", "lag_q95_s", "lag_mean_s")
    )
    rest.fill_between(low[0], low[1], high[1], color=BLUE, alpha=0.25, lw=0, label="90 % of the posterior")
    rest.plot(*mean, color=BLUE, lw=1.2, label="posterior mean")
    width = 1000 * found.half_width_s
    if np.isfinite(width):
        rest.axhspan(-width, width, color=ORANGE, alpha=0.35, lw=0, label="95 % of the fitted clock")
    rest.axhline(0, color=BLACK, lw=0.8)
    if truth_s is not None:
        rest.plot(
            truth_s[0],
            1000 * (truth_s[1] - found.clock.lag_s(truth_s[0])),
            color=BLACK,
            ls=":",
            label="truth",
        )
    reach = max(
        20.0, 3 * width if np.isfinite(width) else 20.0, 1.2 * float(np.quantile(np.abs(high[1]), 0.9))
    )
    rest.set_ylim(-reach, reach)
    rest.set_ylabel("lag beside the\nfitted clock (ms)")
    _shade(rest, time_s, step_s, distrusted)
    legend_above(rest)

    match = panels[2]
    match.plot(
        *broken_line(time_s, one["p_matched"].values, gaps), color=BLACK, lw=1.2, label="streams match"
    )
    _shade(match, time_s, step_s, distrusted)
    for j in found.jumps:
        match.axvspan(j.time_low_s, j.time_high_s, color=VERMILLION, alpha=0.5, lw=0)
        match.annotate(
            f"{1000 * j.size_s:+.0f} ms",
            (j.time_s, 0.5),
            xytext=(4, 0),
            textcoords="offset points",
            fontsize="small",
            color=VERMILLION,
        )
    match.set_ylim(-0.03, 1.05)
    match.set_ylabel("probability\nof a match")
    match.set_xlabel(f"time on clock '{name_a}' (s)")
    match.set_xlim(left_s, right_s)
    legend_above(match)
    for panel in panels[1:]:
        tidy(panel)
    return panels


def _headline(found: Alignment) -> str:
    parts = [found.verdict]
    if np.isfinite(found.skew_ppm[0]):
        parts.append(f"skew {found.skew_ppm[0]:+.1f} ppm, {len(found.jumps)} jump(s)")
    return "; ".join(parts)


def _shade(panel: Axes, time_s: FloatArray, step_s: float, distrusted: np.ndarray) -> None:
    """Where the fitted clock is not to be trusted."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], distrusted.astype(int), [0]])))
    for k, (a, b) in enumerate(zip(edges[::2], edges[1::2], strict=True)):
        panel.axvspan(
            time_s[a] - step_s / 2,
            time_s[b - 1] + step_s / 2,
            facecolor="#BBBBBB",
            hatch="//",
            edgecolor="white",
            alpha=0.6,
            lw=0,
            label="not to be trusted" if k == 0 else None,
        )
