"""In: the table of a study, its thresholds and lag maps. Out: one self-contained HTML page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from neurofuse.report.decode_page import Figures, drawn, flat, write_page
from neurofuse.report.figures.plot_study import ATTENTION, plot_lag_maps, plot_study, plot_study_attention

# Quantities of a threshold by their names on the page.
QUANTITIES = {"gain": "gain in R²", "hit_rate": "lag hit rate"}
CRITERION = "isotonic"


def write_study_report(
    path: str | Path,
    *,
    study: xr.Dataset,
    thresholds: Sequence[Mapping[str, Any]] = (),
    maps: xr.Dataset | None = None,
    notes: Sequence[str] = (),
) -> Path:
    """Write a study as one HTML page; the file appears whole or not at all.

    Parameters
    ----------
    path : str or Path
        Where the page goes.
    study : Dataset, dims (model, kind, level, seed, protocol)
        From `neurofuse.run_study`.
    thresholds : sequence of mapping
        Entries of `threshold.json`.
    maps : Dataset, dims (cell, time, lag), optional
        `maps.nc` of the study: the lag over time at three levels.
    notes : sequence of str
        Warnings to open the page with.

    Returns
    -------
    Path
    """
    main = [t for t in thresholds if t.get("method", CRITERION) == CRITERION]
    kinds = [str(k) for k in study["kind"].values]
    return write_page(
        path,
        "study.html.j2",
        {
            "title": f"Jitter study of {study.attrs.get('recording', '')}".strip(),
            "verdict": study_verdict(main),
            "warnings": [*notes, *_unfinished(study)],
            "thresholds": [_row(t) for t in main],
            "sections": [_section(study, kind, main, maps) for kind in kinds],
            "settings": list(flat(json.loads(study.attrs.get("settings", "{}")))),
            "version": str(study.attrs.get("version", "")),
        },
    )


def study_verdict(thresholds: Sequence[Mapping[str, Any]]) -> str:
    """One sentence with the critical level of each decoder.

    Examples
    --------
    >>> study_verdict([{"model": "tracked", "kind": "spike", "unit": "s", "measured": 0.021, "predicted": 0.02}])
    'Critical levels: tracked, spike 0.021 s (theory 0.02 s).'
    """
    parts = []
    best: dict[tuple[str, str], Mapping[str, Any]] = {}
    for one in thresholds:
        best.setdefault((str(one["model"]), str(one["kind"])), one)
    for (model, kind), one in best.items():
        unit = "" if one.get("unit") in (None, "", "1") else f" {one['unit']}"
        if one.get("measured") is None:
            sides = {"above": "above all levels tested", "below": "below all levels tested"}
            parts.append(f"{model}, {kind} {sides.get(str(one.get('censored')), 'not measured')}")
            continue
        predicted = one.get("predicted")
        theory = "" if predicted is None else f" (theory {predicted:.3g}{unit})"
        parts.append(f"{model}, {kind} {one['measured']:.3g}{unit}{theory}")
    return f"Critical levels: {'; '.join(parts)}." if parts else "No threshold could be measured."


def _row(one: Mapping[str, Any]) -> dict[str, str]:
    unit = "" if one.get("unit") in (None, "", "1") else f" {one['unit']}"

    def level(value: float | None) -> str:
        return "" if value is None else f"{value:.3g}{unit}"

    low, high = one.get("ci95") or (None, None)
    interval = "" if low is None and high is None else f"{level(low) or '…'} to {level(high) or '…'}"
    censored = f"censored ({one['censored']})" if one.get("censored") else ""
    kappa = one.get("kappa")
    return {
        "model": str(one["model"]),
        "kind": str(one["kind"]),
        "protocol": str(one.get("protocol", "")),
        "quantity": QUANTITIES.get(str(one.get("quantity")), str(one.get("quantity", ""))),
        "measured": " ".join(x for x in (level(one.get("measured")), censored) if x),
        "interval": interval,
        "predicted": level(one.get("predicted")),
        "kappa": "" if kappa is None else f"{kappa:.2f}",
        "seeds": str(one.get("n_seeds", "")),
    }


def _unfinished(study: xr.Dataset) -> list[str]:
    """One line per status of cells other than ok; levels that a kind does not have are no cells."""
    if "status" not in study:
        return []
    there = study["level_value"].notnull().broadcast_like(study["status"])
    states = study["status"].values[there.transpose(*study["status"].dims).values]
    return [
        f"{int((states == s).sum())} of {states.size} cells are {s}." for s in np.unique(states) if s != "ok"
    ]


def _section(
    study: xr.Dataset, kind: str, thresholds: Sequence[Mapping[str, Any]], maps: xr.Dataset | None
) -> dict[str, Any]:
    """The figures of one kind of jitter, protocol by protocol."""
    figures: Figures = []
    has_attention = "entropy" in study and bool(np.isfinite(study["entropy"].sel(kind=kind)).any())
    for protocol in map(str, study["protocol"].values):
        caption = (
            "Lines are means over seeds, bands reach from the worst seed to the best; the references are grey. "
            "Vertical lines: the level at which half of the gain is left, with its 95 % interval; dotted: theory."
        )
        with drawn(figures, 6.4, 3.6, f"R² against the level of {kind}, {protocol}", caption) as figure:
            plot_study(study, kind=kind, protocol=protocol, thresholds=thresholds, ax=figure.subplots())
        if has_attention:
            here = study.sel({"kind": kind, "protocol": protocol})
            n = sum(bool(here[m].notnull().any()) for m in ATTENTION if m in here)
            alt = f"Hits, anomalies and flicker against the level of {kind}, {protocol}"
            caption = "Vertical lines: the level at which half of the lags are found; dotted: theory."
            with drawn(figures, 6.4, 1.5 * n, alt, caption) as figure:
                panels = figure.subplots(n, 1, sharex=True, squeeze=False)[:, 0]
                plot_study_attention(study, kind=kind, protocol=protocol, thresholds=thresholds, ax=panels)
        if maps is None:
            continue
        kept = (maps["kind"].values == kind) & (maps["protocol"].values == protocol)
        for model in dict.fromkeys(map(str, maps["model"].values[kept])):
            n = int((kept & (maps["model"].values == model)).sum())
            alt = f"Lag over time at {n} levels of {kind}, {model}, {protocol}"
            caption = "Lag posterior over time, first seed; dashed: the true lag."
            with drawn(figures, 8.0, 2.3 * n, alt, caption) as figure:
                panels = figure.subplots(n, 1, squeeze=False)[:, 0]
                plot_lag_maps(maps, study, model=model, kind=kind, protocol=protocol, ax=panels)
    origin = str(study["levels_from"].sel(kind=kind).item()) if "levels_from" in study else ""
    return {"name": kind, "levels": f"Levels: {origin}." if origin else "", "figures": figures}
