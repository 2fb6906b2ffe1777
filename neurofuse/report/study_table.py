"""In: the table of a study. Out: its thresholds, curves, figures and summary, at `.study` of the table."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from neurofuse.config import ORACLE
from neurofuse.errors import NeurofuseError
from neurofuse.html import card
from neurofuse.study.run import STUDY_LAYOUT
from neurofuse.study.threshold import Quantity, Threshold, thresholds

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from neurofuse.report.figures.panel import AxesArray


def open_study(path: str | Path) -> xr.Dataset:
    """Read the table of a study from its folder or its `study.nc`; `.study` of it has figures and thresholds.

    Raises
    ------
    NeurofuseError
        If there is no table of a study.
    """
    path = Path(path)
    file = path / "study.nc" if path.is_dir() else path
    if not file.exists():
        raise NeurofuseError(f"there is no study at '{path}'; give the --out folder of a `neurofuse study`.")
    try:
        table = xr.load_dataset(file, engine="h5netcdf")
    except (OSError, ValueError) as error:
        raise NeurofuseError(
            f"'{file}' cannot be read ({error}); it may be cut short: run the study again with --resume."
        ) from None
    if table.attrs.get("layout") != STUDY_LAYOUT:
        raise NeurofuseError(f"'{file}' has the layout {table.attrs.get('layout')!r}, not {STUDY_LAYOUT!r}.")
    return table


def with_threshold(study: xr.Dataset, quantity: Quantity) -> xr.Dataset:
    """The models of a study that have a threshold of a quantity; the oracle, given the lag, has no hit rate."""
    return study if quantity == "gain" else study.drop_sel(model=ORACLE, errors="ignore")


@xr.register_dataset_accessor("study")
class StudyTable:
    """Methods of the table that `run_study` returns, at `table.study`."""

    def __init__(self, table: xr.Dataset) -> None:
        missing = [n for n in ("model", "kind", "level", "seed", "protocol") if n not in table.dims]
        if missing or "level_value" not in table:
            lacks = missing[0] if missing else "level_value"
            raise NeurofuseError(f"this table is no study: it lacks '{lacks}'; take one from `run_study`.")
        self._table = table

    def frame(self, measures: Sequence[str] = ("r2", "hit_rate")) -> pd.DataFrame:
        """One row per cell that was measured: its coordinates, its level in physical units, and some measures.

        Parameters
        ----------
        measures : sequence of str
            Of the table; those with an axis are averaged over it.
        """
        table = self._table
        unknown = [m for m in measures if m not in table]
        if unknown:
            raise NeurofuseError(
                f"the study has no measure '{unknown[0]}'; it has {sorted(map(str, table.data_vars))}."
            )
        chosen = xr.Dataset(
            {m: table[m].mean("axis") if "axis" in table[m].dims else table[m] for m in measures}
        )
        more = {n: table[n] for n in ("level_value", "status") if n in table}
        rows = chosen.assign(more).to_dataframe().reset_index()
        if "status" in rows:
            rows = rows[rows["status"] == "ok"].drop(columns="status")
        return rows.reset_index(drop=True)

    def curve(self, measure: str = "r2", *, kind: str | None = None) -> pd.DataFrame:
        """A measure over levels, averaged over seeds: one row per level, one column per model.

        Parameters
        ----------
        measure : str
        kind : str, optional
            Kind of jitter, by default the first.
        """
        kind = self._kind(kind)
        rows = self.frame((measure,))
        rows = rows[rows["kind"] == kind]
        return rows.pivot_table(index="level_value", columns="model", values=measure, sort=True).rename_axis(
            f"{kind} ({self._unit(kind)})"
        )

    def thresholds(self, **options: Any) -> list[Threshold]:
        """The critical level of each model; see `neurofuse.thresholds` for the options."""
        return thresholds(self._table, **options)

    def plot(self, *, kind: str | None = None, ax: Axes | None = None) -> Axes:
        """R2 against level with the thresholds there are; see `neurofuse.report.figures.plot_study`."""
        from neurofuse.report.figures import plot_study

        return plot_study(self._table, kind=kind, thresholds=self._found(), ax=ax)

    def plot_attention_quality(self, *, kind: str | None = None, ax: Any = None) -> AxesArray:
        """Quality of attention against level; see `neurofuse.report.figures.plot_study_attention`."""
        from neurofuse.report.figures import plot_study_attention

        return plot_study_attention(self._table, kind=kind, thresholds=self._found("hit_rate"), ax=ax)

    def _found(self, quantity: Quantity = "gain") -> list[Mapping[str, Any]]:
        try:
            found = thresholds(with_threshold(self._table, quantity), quantity=quantity)
        except NeurofuseError:
            # Without references, or with too few levels, there is a study but no threshold.
            return []
        return [{"quantity": quantity} | one.as_dict() for one in found]

    def _kind(self, kind: str | None) -> str:
        kinds = [str(k) for k in self._table["kind"].values]
        if kind is not None and kind not in kinds:
            raise NeurofuseError(f"the study has no kind of jitter '{kind}'; it has {kinds}.")
        return kinds[0] if kind is None else kind

    def _unit(self, kind: Hashable) -> str:
        return str(self._table["level_unit"].sel(kind=kind).item()) if "level_unit" in self._table else "1"

    def _repr_html_(self) -> str:
        table = self._table
        status = table["status"].values if "status" in table else np.empty(0)
        short = table["message"].values == "this kind has fewer levels" if "message" in table else False
        cells = {s: int(((status == s) & ~short).sum()) for s in ("ok", "failed", "quarantined", "missing")}
        rows = []
        for one in self._found():
            ends = [None if x is None else f"{x:.3g}" for x in one.get("ci95") or (None, None)]
            rows.append(
                (
                    one["model"],
                    one["kind"],
                    None if one["measured"] is None else f"{one['measured']:.3g} {one['unit']}",
                    "-" if ends == [None, None] else f"{ends[0] or '...'} to {ends[1] or '...'}",
                    one["predicted"],
                    one["kappa"],
                    one["censored"],
                )
            )
        return card(
            f"Study of '{table.attrs.get('recording', '')}'",
            facts=[
                ("models", ", ".join(map(str, table["model"].values))),
                ("jitter", ", ".join(f"{k} ({self._unit(k)})" for k in table["kind"].values)),
                ("levels, seeds", f"{table.sizes['level']}, {table.sizes['seed']}"),
                ("protocols", ", ".join(map(str, table["protocol"].values))),
                ("cells", ", ".join(f"{n} {s}" for s, n in cells.items() if n)),
            ],
            head=("model", "jitter", "threshold", "95 %", "theory", "kappa", "censored"),
            rows=rows,
        )
