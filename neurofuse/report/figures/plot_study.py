"""In: the table of a study, its lag maps and thresholds. Out: matplotlib axes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from neurofuse.errors import NeurofuseError
from neurofuse.report.figures.panel import (
    BLACK,
    TITLE,
    AxesArray,
    legend_above,
    panels_for,
    safe_label,
    safe_text,
    tidy,
    with_unit,
)
from neurofuse.report.figures.plot_attention import SERIES
from neurofuse.report.figures.plot_decode import plot_attention

GREY = "#777777"
# Measures of attention that are drawn against the level, and their labels.
ATTENTION = {
    "hit_rate": "lag hit rate",
    "mass_on_truth": "mass on the\ntrue lag",
    "anomaly_rate": "anomaly rate",
    "flicker": "flicker (1/s)",
    "entropy": "entropy (nat)",
}
PLACES = ("below the critical level", "at the critical level", "above the critical level")


def plot_study(
    study: xr.Dataset,
    *,
    kind: str | None = None,
    protocol: str | None = None,
    thresholds: Iterable[Mapping[str, Any]] = (),
    ax: Axes | None = None,
) -> Axes:
    """Draw R2 against the level of one kind of jitter, for every model.

    The mean over axes; lines are means over seeds, bands reach from the worst seed to the best. The fixed decoder and
    the oracle, between which a gain is measured, are grey. Thresholds stand as vertical lines in the colour of their
    model, with the 95 % interval shaded; the level predicted by theory is dotted.

    Parameters
    ----------
    study : Dataset, dims (model, kind, level, seed, protocol)
        From `neurofuse.run_study`.
    kind, protocol : str, optional
        By default the first.
    thresholds : iterable of mapping
        As in `threshold.json`: those of the gain by "isotonic" are drawn; of other kinds and protocols, none.
    ax : Axes, optional

    Raises
    ------
    NeurofuseError
        If the study has no such kind or protocol, or lacks R2.
    """
    table, level = _of_kind(study, kind, protocol, ("r2",))
    (panel,) = panels_for(ax, 1, height_in=3.4, width_in=6.0)
    r2 = table["r2"].mean("axis") if "axis" in table["r2"].dims else table["r2"]
    references = {study.attrs.get("fixed"): "--", study.attrs.get("oracle"): "-"}
    colours: dict[str, str] = {}
    for model in map(str, table["model"].values):
        if model in references:
            colour, marker, line = GREY, "", references[model]
        else:
            colour, marker, line = SERIES[len(colours) % len(SERIES)]
            colours[model] = colour
        _line(panel, level, r2.sel(model=model), safe_label(model), colour, marker, line)
    for model, one in _found(thresholds, table, "gain").items():
        if model in colours:
            panel.axvline(one["measured"], color=colours[model], lw=1.0)
            low, high = one.get("ci95") or (None, None)
            if low is not None and high is not None:
                panel.axvspan(low, high, color=colours[model], alpha=0.15, lw=0)
    predicted = float(table["predicted"]) if "predicted" in table else np.nan
    if np.isfinite(predicted):
        panel.axvline(predicted, color=BLACK, lw=1.2, ls=":", label="theory")
    _level_axis(panel, table, level)
    panel.set_ylabel("R²")
    shown = r2.values[np.isfinite(r2.values)]
    if shown.size:
        # A decoder that fails altogether would squeeze all others into a line.
        panel.set_ylim(max(float(shown.min()) - 0.03, -0.25), min(1.0, float(shown.max()) + 0.05))
    tidy(panel)
    legend_above(panel, title=_title(table))
    return panel


def plot_study_attention(
    study: xr.Dataset,
    *,
    kind: str | None = None,
    protocol: str | None = None,
    thresholds: Iterable[Mapping[str, Any]] = (),
    ax: Sequence[Axes] | AxesArray | None = None,
) -> AxesArray:
    """Draw the quality of attention against jitter: hits, mass on the true lag, anomalies, flicker, entropy.

    Parameters
    ----------
    study, kind, protocol, thresholds
        As for `plot_study`, but thresholds of the hit rate; models that estimate no lag are left out.
    ax : sequence of Axes, optional
        One per measure that the study has.

    Returns
    -------
    array of Axes
    """
    table, level = _of_kind(study, kind, protocol, ())
    names = [n for n in ATTENTION if n in table and bool(np.isfinite(table[n]).any())]
    if not names:
        raise NeurofuseError(
            "no model of this study estimates a lag, so there is no attention to draw; add one such as 'tracked'."
        )
    axes = panels_for(ax, len(names), height_in=1.7, width_in=6.0, share_x=True)
    found = _found(thresholds, table, "hit_rate")
    # The oracle is given the lag and estimates none.
    others = [str(m) for m in table["model"].values if str(m) != study.attrs.get("oracle")]
    models = [m for m in others if bool(table["entropy"].sel(model=m).notnull().any())]
    for panel, name in zip(axes, names, strict=True):
        for model, (colour, marker, line) in zip(models, SERIES * len(models), strict=False):
            _line(panel, level, table[name].sel(model=model), safe_label(model), colour, marker, line)
            if model in found:
                panel.axvline(found[model]["measured"], color=colour, lw=1.0)
        if "predicted" in table and np.isfinite(float(table["predicted"])):
            panel.axvline(float(table["predicted"]), color=BLACK, lw=1.2, ls=":", label="theory")
        panel.set_ylabel(ATTENTION[name])
        panel.set_ylim(bottom=0)
        tidy(panel)
    for panel in axes[:-1]:
        panel.set_xscale("log")
    _level_axis(axes[-1], table, level)
    legend_above(axes[0], title=_title(table))
    return axes


def plot_lag_maps(
    maps: xr.Dataset,
    study: xr.Dataset,
    *,
    model: str | None = None,
    kind: str | None = None,
    protocol: str | None = None,
    ax: Sequence[Axes] | AxesArray | None = None,
) -> AxesArray:
    """Draw the posterior over lags in time at the levels that were kept: below, at and above the critical one.

    Above it the posterior flickers between lags.

    Parameters
    ----------
    maps : Dataset, dims (cell, time, lag)
        `maps.nc` of the study.
    study : Dataset
        For the level in physical units.
    model, kind, protocol : str, optional
        By default the first that was kept.
    ax : sequence of Axes, optional
        One per level kept.

    Returns
    -------
    array of Axes
    """
    chosen = {"model": model, "kind": kind, "protocol": protocol}
    kept = np.ones(maps.sizes["cell"], dtype=bool)
    for name, value in chosen.items():
        first = maps[name].values[np.flatnonzero(kept)[0]] if kept.any() else ""
        kept &= maps[name].values == (first if value is None else value)
    rows = np.flatnonzero(kept)
    if not rows.size:
        names = ", ".join(f"{k} '{v}'" for k, v in chosen.items() if v is not None)
        cells = zip(*(maps[name].values for name in chosen), strict=True)
        kept_of = sorted({" / ".join(map(str, cell)) for cell in cells})
        raise NeurofuseError(f"no lag over time was kept of {names}; there are {', '.join(kept_of)}.")
    rows = rows[np.argsort(maps["level"].values[rows])]
    axes = panels_for(ax, len(rows), height_in=2.0, width_in=7.0, share_x=False)
    words = PLACES if len(rows) == len(PLACES) else ("",) * len(rows)
    for panel, row, place in zip(axes, rows, words, strict=True):
        cell = maps.isel(cell=int(row))
        there = np.flatnonzero(np.isfinite(cell["time_s"].values))
        one = cell.isel(time=there)
        table = xr.Dataset(
            {
                "posterior": (("clock", "time", "lag"), one["posterior"].values[None].astype(np.float32)),
                "true_lag_s": (("clock", "time"), one["true_lag_s"].values[None]),
            },
            coords={"clock": ["second"], "time": one["time_s"].values, "lag": maps["lag"].values},
        )
        plot_attention(table, ax=panel)
        of_kind = study.sel({"kind": cell["kind"].item()})
        level = float(of_kind["level_value"].isel(level=int(cell["level"])))
        jitter = f"{safe_text(cell['kind'].item())} {level:.3g} {_unit(of_kind)}".rstrip()
        title = f"{safe_text(cell['model'].item())}, {jitter}"
        panel.set_title(title + (f": {place}" if place else ""), **TITLE)
        panel.set_ylabel("lag (s)")
    return axes


def _of_kind(
    study: xr.Dataset, kind: str | None, protocol: str | None, needed: Sequence[str]
) -> tuple[xr.Dataset, np.ndarray]:
    """The part of a study of one kind and protocol, levels that exist alone, and their values."""
    if lacking := [n for n in ("level_value", *needed) if n not in study]:
        raise NeurofuseError(f"this is not the table of a study: it lacks {', '.join(lacking)}.")
    chosen = {}
    for name, value in (("kind", kind), ("protocol", protocol)):
        there = [str(v) for v in study[name].values]
        if value is not None and value not in there:
            raise NeurofuseError(f"the study has no {name} '{value}'; it has {', '.join(there)}.")
        chosen[name] = value or there[0]
    table = study.sel(chosen)
    there = np.isfinite(table["level_value"].values)
    table = table.isel(level=np.flatnonzero(there))
    return table, table["level_value"].values


def _found(
    thresholds: Iterable[Mapping[str, Any]], table: xr.Dataset, quantity: str
) -> dict[str, Mapping[str, Any]]:
    """By model, the threshold of a quantity at this kind and protocol, where it was measured."""
    here = (str(table["kind"].item()), str(table["protocol"].item()), quantity, "isotonic")
    out: dict[str, Mapping[str, Any]] = {}
    for one in thresholds:
        at = (
            one.get("kind"),
            one.get("protocol"),
            one.get("quantity", quantity),
            one.get("method", "isotonic"),
        )
        if at == here and one.get("measured") is not None:
            out.setdefault(str(one.get("model")), one)
    return out


def _line(
    panel: Axes, level: np.ndarray, values: xr.DataArray, label: str, colour: str, marker: str, line: str
) -> None:
    y = values.transpose("level", "seed").values
    known = np.isfinite(y).any(axis=1)
    if not known.any():
        return
    x, y = level[known], y[known]
    panel.plot(x, np.nanmean(y, axis=1), color=colour, marker=marker, ls=line, ms=4, lw=1.4, label=label)
    if y.shape[1] > 1:
        panel.fill_between(x, np.nanmin(y, axis=1), np.nanmax(y, axis=1), color=colour, alpha=0.15, lw=0)


def _level_axis(panel: Axes, table: xr.Dataset, level: np.ndarray) -> None:
    if (level > 0).all():
        panel.set_xscale("log")
    shown = level[level > 0]
    predicted = float(table["predicted"]) if "predicted" in table else np.nan
    if shown.size > 1:
        # Intervals may reach far beyond the tested levels; the level of theory is drawn up to a decade away.
        low, high = float(shown.min()), float(shown.max())
        if low / 10 < predicted < 10 * high:
            low, high = min(low, predicted), max(high, predicted)
        panel.set_xlim(low / 1.15, high * 1.15)
    panel.set_xlabel(with_unit(f"level of '{table['kind'].item()}'", _unit(table)))


def _unit(table: xr.Dataset) -> str:
    text = str(table["level_unit"].item()) if "level_unit" in table else ""
    return "" if text == "1" else text


def _title(table: xr.Dataset) -> str:
    lag = str(table["base_lag"].item()) if "base_lag" in table else ""
    protocol = safe_text(table["protocol"].item())
    return f"{protocol}, under {safe_text(lag)}" if lag not in ("", "none") else protocol
