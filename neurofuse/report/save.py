"""In: the result of a decode, a study or an alignment. Out: its files; and the settings of a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from itertools import product
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import xarray as xr

from neurofuse.alignment.result import Alignment
from neurofuse.decode import DecodeConfig, DecodeResult
from neurofuse.errors import NeurofuseError
from neurofuse.report.decode_page import write_report
from neurofuse.report.study_page import write_study_report
from neurofuse.report.study_table import with_threshold
from neurofuse.storage import whole_file
from neurofuse.study.threshold import Method, Quantity, thresholds

THRESHOLD_LAYOUT = "neurofuse-threshold-1"


def save_result(result: DecodeResult, folder: Path) -> None:
    """Write metrics, tables, checkpoint and report into a folder that exists."""
    save_tables(folder, result.metrics, result.prediction, result.alignment)
    result.decoder.save_pretrained(folder / "checkpoint", card=_card(result))
    (folder / "checkpoint" / "settings.json").write_text(
        json.dumps(result.metrics["settings"], indent=2), encoding="utf-8"
    )
    write_report(
        folder / "report.html",
        metrics=result.metrics,
        prediction=result.prediction,
        alignment=result.alignment,
        recording=result.recording,
    )


def settings_of(checkpoint: Path) -> dict[str, Any]:
    """The settings of the run that made a checkpoint.

    Raises
    ------
    NeurofuseError
        If the checkpoint was saved without them, as `save_pretrained` alone does.
    """
    path = checkpoint / "settings.json"
    try:
        settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        complete = set(settings) == {f.name for f in fields(DecodeConfig)}
    except (OSError, TypeError, ValueError):
        complete = False
    if not complete:
        raise NeurofuseError(
            f"'{checkpoint}' has no settings.json of this version; give the checkpoint folder of a `neurofuse decode`."
        )
    return settings


def save_tables(
    folder: Path, metrics: dict[str, Any], prediction: xr.Dataset, alignment: xr.Dataset | None
) -> None:
    """Write `metrics.json`, `prediction.nc` and, where a lag was searched, `alignment.nc`."""
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2, allow_nan=False), encoding="utf-8")
    prediction.to_netcdf(folder / "prediction.nc", engine="h5netcdf")
    if alignment is not None:
        packed = {"posterior": {"zlib": True, "complevel": 4}}
        alignment.to_netcdf(folder / "alignment.nc", engine="h5netcdf", encoding=packed)


def save_thresholds(folder: Path, study: xr.Dataset) -> dict[str, Any]:
    """Write `threshold.json`: every critical level that the table of a study gives, and return what it holds.

    `thresholds` holds one entry per quantity (the gain between the references where they are there, the hit rate
    where a lag is estimated), method ("isotonic", the one to quote; "theory"; "knee"), decoder, kind and protocol;
    `notes` gives the reasons for missing ones.
    """
    entries: list[dict[str, Any]] = []
    notes: dict[str, None] = {}
    for quantity, method in product(get_args(Quantity), get_args(Method)):
        try:
            found = thresholds(with_threshold(study, quantity), quantity=quantity, method=method)
        except NeurofuseError as error:
            notes[f"{quantity}: {error}"] = None
            continue
        entries += [{"quantity": quantity, "method": method} | one.as_dict() for one in found]
    out = {"layout": THRESHOLD_LAYOUT, "thresholds": entries, "notes": list(notes)}
    with whole_file(folder / "threshold.json") as partial:
        partial.write_text(json.dumps(out, indent=2, allow_nan=False), encoding="utf-8")
    return out


def save_study_report(folder: Path, study: xr.Dataset, found: Mapping[str, Any]) -> Path:
    """Write `report.html` of a study from its table, its thresholds and the lag maps in the folder."""
    kept = folder / "maps.nc"
    maps = xr.load_dataset(kept, engine="h5netcdf") if kept.exists() else None
    notes = [f"No thresholds of {note}" for note in found["notes"]]
    return write_study_report(
        folder / "report.html", study=study, thresholds=found["thresholds"], maps=maps, notes=notes
    )


def save_alignment(found: Alignment, folder: Path) -> None:
    """Write `clock.json`, `clock.csv`, `lag.nc` and `clock.png` into a folder that exists.

    `clock.csv` has a row per moment of `lag.nc`: the time on A and on B, the lag by the fitted clock, the 90 % interval
    of the lag posterior, the probability of a match, and whether the posterior confirms the fitted clock.
    """
    from neurofuse.report.figures.plot_clock import plot_clock

    (folder / "clock.json").write_text(
        json.dumps(found.as_dict(), indent=2, allow_nan=False), encoding="utf-8"
    )
    one = found.lag.isel(clock=0)
    time_s = one["time"].values
    pd.DataFrame(
        {
            "a_s": time_s,
            "b_s": found.clock.to_b(time_s),
            "lag_s": found.clock.lag_s(time_s),
            "lag_q05_s": one["lag_q05_s"].values,
            "lag_q95_s": one["lag_q95_s"].values,
            "p_matched": one["p_matched"].values,
            "trusted": one["trusted"].values.astype(bool),
        }
    ).to_csv(folder / "clock.csv", index=False, float_format="%.6f")
    packed = {"posterior": {"zlib": True, "complevel": 4}}
    found.lag.to_netcdf(folder / "lag.nc", engine="h5netcdf", encoding=packed)
    figure = np.atleast_1d(plot_clock(found))[0].figure
    figure.savefig(folder / "clock.png", dpi=150)


def _card(result: DecodeResult) -> str:
    m = result.metrics
    return (
        "\n".join(
            [
                f"# neurofuse decoder `{m['decoder']}`",
                "",
                f"Trained on '{m['name']}': {m['n_units']} units, {m['n_channels']} channels, "
                f"{m['n_windows']['train']} windows of {m['settings']['window_s']:g} s, "
                f"clocks {', '.join(m['clocks'])}.",
                "",
                f"R2 on the last stretch of the same recording: {m['r2_mean']}"
                f" (ridge {m.get('baseline_ridge_r2_mean')}), scored {m['scored']}.",
                "",
                *(f"- {w}" for w in m["warnings"]),
                "",
                "Decode another recording with the same units and channels: `neurofuse predict FOLDER PATH`.",
                "`settings.json` holds every setting of the run that made it.",
            ]
        )
        + "\n"
    )
