"""In: the table of `neurofuse.tuning`. Out: matplotlib axes, the variance of every feature that movement explains."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from neurofuse.errors import NeurofuseError
from neurofuse.report.figures.panel import (
    BLUE,
    MAP,
    MAX_NAME_Y,
    MAX_TRACES,
    NOTHING,
    TITLE,
    AxesArray,
    panels_for,
    safe_text,
    tidy,
)


def plot_tuning(table: xr.Dataset, *, ax: Axes | Sequence[Axes] | AxesArray | None = None) -> AxesArray:
    """Draw how much of every unit, channel and band movement explains.

    A stream of units is drawn in descending order of R2, coloured by preferred direction where there are two axes; a
    stream of LFP features as a map, channel by band.

    Parameters
    ----------
    table : Dataset, dims (feature, lead, axis)
        From `neurofuse.tuning`.
    ax : sequence of Axes, optional
        One per stream.

    Returns
    -------
    array of Axes

    Raises
    ------
    NeurofuseError
        If the table holds no tuning, or `ax` has another number of axes.
    """
    if "best_r2" not in table or not table.sizes.get("feature"):
        raise NeurofuseError(f"the table holds no 'best_r2'; it has {sorted(map(str, table.variables))}.")
    streams = list(dict.fromkeys(table["stream"].values.tolist()))
    axes = panels_for(ax, len(streams), height_in=2.4, width_in=7.0)
    for panel, stream in zip(axes, streams, strict=True):
        part = table.isel(feature=table["stream"].values == stream)
        names, bands = part["channel"].values, part["band"].values
        channels, kinds = list(dict.fromkeys(names.tolist())), list(dict.fromkeys(bands.tolist()))
        if kinds != [""] and len(channels) * len(kinds) == names.size:
            grid = np.full((len(channels), len(kinds)), np.nan)
            for channel, band, value in zip(names, bands, part["best_r2"].values, strict=True):
                grid[channels.index(channel), kinds.index(band)] = value
            _map(panel, grid, channels, kinds)
        else:
            _ranked(panel, part)
        panel.set_title(safe_text(stream), **TITLE)
    return axes


def _map(panel: Axes, grid: np.ndarray, channels: Sequence[str], bands: Sequence[str]) -> None:
    image = panel.imshow(
        np.ma.masked_invalid(grid),
        aspect="auto",
        interpolation="nearest",
        cmap=MAP,
        vmin=0,
        vmax=max(float(np.nanmax(grid, initial=0)), 1e-3),
    )
    panel.set_facecolor(NOTHING)
    panel.set_xticks(range(len(bands)), [safe_text(b, 14) for b in bands])
    step = -(-len(channels) // MAX_TRACES)
    shown = range(0, len(channels), step)
    panel.set_yticks(list(shown), [safe_text(channels[k], MAX_NAME_Y) for k in shown])
    panel.tick_params(axis="both", labelsize="small", length=0)
    bar = panel.figure.colorbar(image, ax=panel, pad=0.01, fraction=0.04)
    bar.set_label("R² of the feature")
    bar.outline.set_visible(False)


def _ranked(panel: Axes, part: xr.Dataset) -> None:
    r2 = part["best_r2"].values
    order = np.argsort(-np.nan_to_num(r2, nan=-1.0), kind="stable")
    rank = np.arange(1, r2.size + 1)
    if "preferred_rad" in part:
        degrees = np.degrees(part["preferred_rad"].values[order]) % 360
        points = panel.scatter(
            rank,
            r2[order],
            c=degrees,
            cmap="twilight",
            vmin=0,
            vmax=360,
            s=26,
            zorder=2,
            edgecolors="#888888",
            linewidths=0.6,
        )
        bar = panel.figure.colorbar(points, ax=panel, pad=0.01, fraction=0.04, ticks=[0, 90, 180, 270, 360])
        x, y = (safe_text(a, 10) for a in part["axis"].values[:2])
        bar.set_label(f"preferred direction\nfrom {x} to {y} (°)", fontsize="small")
        bar.outline.set_visible(False)
    else:
        panel.plot(rank, r2[order], "o", color=BLUE, ms=4)
    if r2.size <= MAX_TRACES:
        names = [safe_text(n, MAX_NAME_Y) for n in part["channel"].values[order]]
        panel.set_xticks(rank, names, rotation=45, ha="right", fontsize="small")
    else:
        panel.set_xlabel("unit, in descending order of R²")
    panel.set_ylabel("R² of the feature")
    panel.set_ylim(bottom=min(0.0, float(np.nanmin(r2, initial=0))))
    tidy(panel)
