"""In: a recording, and what is varied. Out: one table of what every decoder did at every level of every jitter.

The cells are run by `neurofuse.study.tasks`; `neurofuse.study.cell` defines each of them. A study that was stopped goes
on from the files of its finished tasks, and ends in the same table.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from neurofuse.config import FIXED, MAX_LAG_S, ORACLE, WINDOW_S, StudyConfig
from neurofuse.decoders.registry import registered_decoders
from neurofuse.errors import NeurofuseError
from neurofuse.jitters.kinds import parse_jitter, registered_jitters
from neurofuse.jitters.lag_laws import LagJitter
from neurofuse.prepare import check_names, check_reach, clean_recording, windows_of
from neurofuse.recording import Recording
from neurofuse.storage import whole_file
from neurofuse.study.cell import (
    MEASURES,
    at_level,
    digest,
    generator,
    install,
    is_lag,
    of_kind,
    packed_recording,
    run_task,
    tokens_at,
    two_clocks,
    unpacked,
)
from neurofuse.study.coherence import HIT_CRITERION, predict_critical_level
from neurofuse.study.levels import AROUND, SHARE_KINDS, Levels, largest, plan_levels
from neurofuse.study.tasks import Record, Task, run_tasks
from neurofuse.tokens import Tokens
from neurofuse.variables import labelled

STUDY_LAYOUT = "neurofuse-study-1"


def run_study(
    recording: Recording,
    *,
    config: StudyConfig | None = None,
    jobs: int = 1,
    scheduler: Any = None,
    out: str | Path | None = None,
    resume: bool = False,
    progress: bool = False,
) -> xr.Dataset:
    """Run decoders x kinds of jitter x levels x seeds x protocols on one recording.

    Parameters
    ----------
    recording : Recording
        With movement, its clocks agreeing: the study plants every error itself.
    config : StudyConfig, optional
    jobs : int
        Worker processes, of one thread each; 0 works in this process, and leaves torch and BLAS with one thread.
    scheduler : str or distributed.Client, optional
        A Dask cluster instead. Neither changes a number.
    out : path, optional
        Folder for `study.nc`, `maps.nc` and one file per finished task in `tasks`.
    resume : bool
        Go on with the study that `out` holds, if it is this one; what failed is tried again.
    progress : bool
        Show a bar with the time left on stderr.

    Returns
    -------
    Dataset, dims (model, kind, level, seed, protocol)
        `r2` (with axis), `hit_rate`, `mass_on_truth`, `anomaly_rate`, `flicker` (1/s), `entropy` (nat),
        `coverage_90`, each the mean over the clocks searched, NaN for decoders that search no lag; `seconds` of
        training (shared out where one training serves several cells) and test, the one thing that differs between
        runs; `status` ("ok", "failed", "quarantined", "missing") and why, `message`. `level` counts from 0, the
        least jitter first; `level_value` (kind, level) is in `level_unit` (kind), NaN where a kind has fewer levels;
        `predicted` (kind) is the critical level of theory (see `neurofuse.study.coherence`), NaN where there is none,
        and `levels_from` is where levels came from.

    Raises
    ------
    NeurofuseError
        If the study cannot be run on this recording, or `out` holds something else.
    """
    config = config or StudyConfig()
    check_names(config)
    ready = clean_recording(recording, config).recording
    content = packed_recording(ready)
    config = _sized(content, config)
    plans = _plan_levels(ready, content, config)
    config = replace(config, levels={kind: p.values for kind, p in plans.items()})
    tasks = plan_tasks(config)
    context = {
        "config": json.loads(json.dumps(asdict(config))),
        "recording": content,
        "maps": {kind: _map_levels(p) for kind, p in plans.items()},
    }
    origin = {"layout": STUDY_LAYOUT, "version": version("neurofuse"), "recording": digest(ready)}
    settings = origin | context["config"]
    with _in_folder(out, settings, resume=resume) as folder:
        records = run_tasks(
            run_task,
            tasks,
            folder=folder / "tasks",
            context=context,
            jobs=jobs,
            scheduler=scheduler,
            progress=progress,
            extensions=(*registered_decoders(), *registered_jitters()),
            install=install,
        )
        table = collect(config, plans, tasks, records, axes=ready.movement.axes if ready.movement else ())
        table.attrs |= {"recording": recording.name, "settings": json.dumps(settings)}
        if out is not None:
            _write(folder / "study.nc", table)
            _write(folder / "maps.nc", collect_maps(tasks, records))
    return table


def _write(path: Path, table: xr.Dataset | None) -> None:
    if table is not None:
        packed = {"posterior": {"zlib": True}} if "posterior" in table else {}
        with whole_file(path) as partial:
            table.to_netcdf(partial, engine="h5netcdf", encoding=packed)


def plan_tasks(config: StudyConfig) -> list[Task]:
    """Every training of a study and the cells it serves; those of one jittered recording side by side."""
    tasks = []
    for protocol in config.protocols:
        for seed in range(config.n_seeds):
            if protocol == "train-matched":
                for kind in config.kinds:
                    for index, level in enumerate(config.levels[kind]):
                        for model in config.choices:
                            coordinates = {
                                "model": model,
                                "seed": seed,
                                "base": f"{kind}:{level:.12g}" if is_lag(kind) else base_of(kind, config),
                                "train": [kind, level],
                                "tests": [[kind, index, level]],
                            }
                            key = f"{protocol}.{model}.{_file_name(kind)}.{index:02d}.{seed}"
                            tasks.append(Task(key, {"protocol": protocol} | coordinates))
                continue
            for base in dict.fromkeys(base_of(kind, config) for kind in config.kinds):
                tests = [
                    [kind, index, level]
                    for kind in config.kinds
                    if base_of(kind, config) == base
                    for index, level in enumerate(config.levels[kind])
                ]
                for model in config.choices:
                    coordinates = {"model": model, "seed": seed, "base": base, "train": None, "tests": tests}
                    key = f"{protocol}.{model}.{_file_name(base)}.{seed}"
                    tasks.append(Task(key, {"protocol": protocol} | coordinates))
    return tasks


def base_of(kind: str, config: StudyConfig) -> str:
    """The lag law under which alignment has to be found while a kind is varied; none under another lag."""
    return "none" if of_kind(kind).acts_on == "clock" else config.base_lag


def _file_name(kind: str) -> str:
    return kind.replace(":", "-").replace("/", "_")


def _sized(content: bytes, config: StudyConfig) -> StudyConfig:
    """The configuration with its windows and largest lag fitted to the recording, the same for every cell."""
    tokenized = tokens_at(content, json.dumps(asdict(config)), 0, "none", None, 0.0)
    split, _ = windows_of(tokenized, config, rng=generator(config, "windows", "none", 0))
    token_s = tokenized.tokens.token_s
    window_s = round(split.test.n_steps * token_s, 9) if config.window_s is None else config.window_s
    max_lag_s = round(split.test.max_lag * token_s, 9) if config.max_lag_s is None else config.max_lag_s
    return replace(config, window_s=window_s, max_lag_s=max_lag_s)


def _max_lag_s(config: StudyConfig) -> float:
    return MAX_LAG_S if config.max_lag_s is None else config.max_lag_s


def _plan_levels(ready: Recording, content: bytes, config: StudyConfig) -> dict[str, Levels]:
    """Levels of every kind, each of which the recording can be given and the search can reach."""
    recording = two_clocks(ready, config, 0)
    span_s = recording.span_s[1] - recording.span_s[0]
    for kind in config.kinds:
        of_kind(kind).targets(recording)
    laws = [parse_jitter(config.base_lag)]
    laws += [at_level(k, x) for k in config.kinds if is_lag(k) for x in config.levels.get(k, ())]
    for law in laws:
        assert isinstance(law, LagJitter)
        check_reach(law, recording, config)
    for kind, levels in config.levels.items():
        for level in levels:
            at_level(kind, level)
    return {
        kind: plan_levels(
            of_kind(kind),
            given=config.levels.get(kind),
            predicted=_predicted(kind, content, config, span_s),
            n_levels=config.n_levels,
            span_s=span_s,
            max_lag_s=_max_lag_s(config),
        )
        for kind in config.kinds
    }


def _predicted(kind: str, content: bytes, config: StudyConfig, span_s: float) -> float:
    """Critical level from the coherence between the clocks; NaN for lags, which a decoder can undo."""
    jitter = of_kind(kind)
    if jitter.acts_on == "clock":
        return float("nan")
    top = largest(jitter.kind, jitter.unit, jitter.acts_on, span_s=span_s, max_lag_s=_max_lag_s(config))
    settings = json.dumps(asdict(config))

    def jittered(level: float) -> Tokens:
        return tokens_at(content, settings, 0, "none", kind if level else None, level).tokens

    limit = min(AROUND * top, 0.99) if jitter.kind in SHARE_KINDS else AROUND * top
    window_s = WINDOW_S if config.window_s is None else config.window_s
    return predict_critical_level(jittered, largest=limit, window_s=window_s, max_lag_s=_max_lag_s(config))[0]


def _map_levels(plan: Levels) -> list[int]:
    """Three levels at which the lag over time is worth seeing: below the critical one, at it, and beyond."""
    values = np.log(plan.values)
    middle = np.log(plan.predicted) if np.isfinite(plan.predicted) else values.mean()
    centres = middle + np.log(3) * np.array([-1, 0, 1])
    return sorted({int(np.abs(values - w).argmin()) for w in centres})


def collect(
    config: StudyConfig,
    plans: Mapping[str, Levels],
    tasks: Sequence[Task],
    records: Mapping[str, Record],
    *,
    axes: Sequence[str],
) -> xr.Dataset:
    """All cells as one table; see `run_study`."""
    dims = ("model", "kind", "level", "seed", "protocol")
    models = list(config.choices)
    n_levels = max(len(p.values) for p in plans.values())
    shape = (len(config.choices), len(plans), n_levels, config.n_seeds, len(config.protocols))
    values = {name: np.full(shape, np.nan) for name in MEASURES}
    r2 = np.full((*shape, len(axes)), np.nan)
    status, message = np.full(shape, "missing", dtype=object), np.full(shape, "", dtype=object)
    kinds = list(plans)
    for task in tasks:
        c, record = task.coordinates, records[task.key]
        found = {(x["kind"], x["level"]): x for x in (record.result or {}).get("cells", ())}
        for kind, index, _ in c["tests"]:
            at = (
                models.index(c["model"]),
                kinds.index(kind),
                index,
                c["seed"],
                config.protocols.index(c["protocol"]),
            )
            status[at], message[at] = record.status, record.message
            cell = found.get((kind, index), {})
            for name in MEASURES:
                values[name][at] = np.nan if cell.get(name) is None else cell[name]
            if cell:
                r2[at] = [np.nan if x is None else x for x in cell["r2"]]
    for k, plan in enumerate(plans.values()):
        message[:, k, len(plan.values) :] = "this kind has fewer levels"
    level_value = np.full((len(plans), n_levels), np.nan)
    for row, plan in zip(level_value, plans.values(), strict=True):
        row[: len(plan.values)] = plan.values
    table = xr.Dataset(
        {"r2": ((*dims, "axis"), r2)}
        | {name: (dims, values[name], {"units": unit}) for name, unit in MEASURES.items()}
        | {"status": (dims, status), "message": (dims, message)}
        | {
            "level_value": (("kind", "level"), level_value),
            "level_unit": ("kind", np.array([p.unit for p in plans.values()], dtype=object)),
            "predicted": ("kind", [p.predicted for p in plans.values()]),
            "levels_from": ("kind", np.array([p.origin for p in plans.values()], dtype=object)),
            "base_lag": ("kind", np.array([base_of(k, config) for k in kinds], dtype=object)),
        },
        coords={
            "model": models,
            "kind": kinds,
            "level": np.arange(n_levels),
            "seed": np.arange(config.n_seeds),
            "protocol": list(config.protocols),
            "axis": list(axes),
        },
        attrs={
            "layout": STUDY_LAYOUT,
            "version": version("neurofuse"),
            "fixed": FIXED,
            "oracle": ORACLE,
            "criterion": HIT_CRITERION,
            "window_s": config.window_s,
            "max_lag_s": config.max_lag_s,
        },
    )
    return labelled(table, level=" or ".join(dict.fromkeys(p.unit for p in plans.values())))


def collect_maps(tasks: Sequence[Task], records: Mapping[str, Record]) -> xr.Dataset | None:
    """The lag over time that was kept of a few cells, dims (cell, time, lag); None where nothing was.

    `posterior` (float16), `time_s`, `lag_path_s`, `true_lag_s`, NaN beyond the end of a cell's stretch; every cell
    is identified by `model`, `kind`, `level` (index) and `protocol`, all of the first seed.
    """
    found = [
        {"model": t.coordinates["model"], "protocol": t.coordinates["protocol"]} | kept
        for t in tasks
        for kept in (records[t.key].result or {}).get("maps", ())
    ]
    if not found:
        return None
    n_times, lag_s = max(len(f["time_s"]) for f in found), found[0]["lag_s"]
    found = [f for f in found if f["lag_s"] == lag_s]

    def padded(name: str) -> np.ndarray:
        out = np.full((len(found), n_times), np.nan)
        for row, f in zip(out, found, strict=True):
            row[: len(f["time_s"])] = [
                np.nan if x is None else x for x in f.get(name, [np.nan] * len(f["time_s"]))
            ]
        return out

    posterior = np.full((len(found), n_times, len(lag_s)), np.nan, dtype=np.float16)
    for row, f in zip(posterior, found, strict=True):
        row[: len(f["time_s"])] = unpacked(f)
    table = xr.Dataset(
        {"posterior": (("cell", "time", "lag"), posterior)}
        | {name: (("cell", "time"), padded(name)) for name in ("time_s", "lag_path_s", "true_lag_s")},
        coords={"lag": lag_s}
        | {
            name: ("cell", np.array([f[name] for f in found], dtype=object))
            for name in ("model", "kind", "protocol")
        }
        | {"level": ("cell", [f["level"] for f in found])},
    )
    return labelled(table)


def as_json(table: xr.Dataset) -> dict[str, Any]:
    """A study as JSON takes it: what was varied, and every measure as nested lists in the order of `dims`."""

    def plain(values: np.ndarray) -> Any:
        if values.dtype.kind == "f":
            out = values.astype(object)
            out[~np.isfinite(values)] = None
            return out.tolist()
        return values.tolist()

    return {
        "layout": STUDY_LAYOUT,
        "settings": json.loads(table.attrs["settings"]),
        "dims": [str(d) for d in table["hit_rate"].dims],
        **{str(name): plain(table[name].values) for name in (*table.coords, *table.data_vars)},
    }


@contextmanager
def _in_folder(out: str | Path | None, settings: dict[str, Any], *, resume: bool) -> Iterator[Path]:
    """The folder of a study: new, or that of the same study to go on with. What began nothing leaves nothing."""
    if out is None:
        with tempfile.TemporaryDirectory(prefix="neurofuse-") as name:
            yield Path(name)
        return
    folder = Path(out)
    made = _begin(folder, settings, resume=resume)
    with ExitStack() as stack:
        stack.enter_context(_locked(folder))
        try:
            yield folder
        except BaseException:
            if made and not any((folder / "tasks").glob("*.json")):
                shutil.rmtree(folder, ignore_errors=True)
                for parent in made:
                    parent.rmdir()
            raise


def _begin(folder: Path, settings: dict[str, Any], *, resume: bool) -> list[Path]:
    """Check or make the folder; return what was made on the way to it, innermost first, the folder left out."""
    try:
        kept = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        kept = None
    except (OSError, ValueError):
        kept = {}
    if kept is None:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise NeurofuseError(
                f"'{folder}' exists and holds something other than a study; choose another --out."
            )
        above = [p for p in folder.absolute().parents if not p.exists()]
        with whole_file(folder / "settings.json") as partial:
            partial.write_text(json.dumps(settings, indent=2), encoding="utf-8")
        return above
    if not isinstance(kept, dict) or kept.get("layout") != STUDY_LAYOUT:
        raise NeurofuseError(
            f"'{folder}' exists and holds something other than a study; choose another --out."
        )
    other = [k for k in {**kept, **settings} if kept.get(k) != settings.get(k)]
    if other:
        raise NeurofuseError(
            f"'{folder}' holds another study ({other[0]} {_short(kept.get(other[0]))} there, "
            f"{_short(settings.get(other[0]))} here); choose another --out."
        )
    if not resume:
        raise NeurofuseError(
            f"'{folder}' holds this study already; pass --resume to go on with it, or another --out."
        )
    return []


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Refuse to write where another study is at work; the lock dies with whoever holds it."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with open(folder / "settings.json", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise NeurofuseError(
                f"another study is at work in '{folder}'; wait for it, or choose another --out."
            ) from None
        yield
