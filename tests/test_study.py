"""A study on a tiny recording: what its table holds, that chance comes from coordinates, and what it refuses."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

from neurofuse.cli import main
from neurofuse.config import DecodeConfig, StudyConfig
from neurofuse.decode import fit_and_evaluate
from neurofuse.errors import NeurofuseError
from neurofuse.prepare import Generators, clean_recording, prepare_recording
from neurofuse.recording import Recording
from neurofuse.report.save import save_thresholds
from neurofuse.scores import r2_per_axis
from neurofuse.simulation import SimulationConfig, simulate
from neurofuse.storage import save_recording
from neurofuse.study import cell as cells
from neurofuse.study.cell import (
    config_from,
    digest,
    generator,
    packed_recording,
    run_task,
    tokens_at,
)
from neurofuse.study.levels import AROUND, Levels, largest, plan_levels
from neurofuse.study.run import collect, plan_tasks, run_study
from neurofuse.study.tasks import Record, read_record

# Long tokens and a short search: a training is a fraction of a second.
SIZES = {"token_s": 0.1, "window_s": 1.0, "max_lag_s": 0.3, "n_steps": 5}
CHEAP = StudyConfig(
    decoders=("ridge",),
    kinds=("lag", "delete"),
    levels={"lag": (0.1, 0.2, 0.3), "delete": (0.9, 0.3)},
    n_seeds=2,
    base_lag="lag:0.1",
    references=False,
    **SIZES,
)
TRAINED = replace(CHEAP, decoders=("softmax",), kinds=("delete",), levels={"delete": (0.5,)}, n_seeds=1)
BOTH = ("train-matched", "test-only")


@pytest.fixture(scope="module")
def two() -> Recording:
    """50 s of two systems whose clocks agree."""
    config = SimulationConfig(duration_s=50.0, n_units=10, n_channels=3, lfp_rate_hz=500.0)
    return simulate(config=config, rng=np.random.default_rng(1))[0]


def same(a: xr.Dataset, b: xr.Dataset) -> bool:
    """Everything but how long it took, and how the run was called."""
    return a.drop_vars("seconds").identical(b.drop_vars("seconds"))


def test_the_table_holds_every_cell_by_its_coordinates(two):
    table = run_study(two, config=replace(CHEAP, protocols=BOTH), jobs=0)
    dims = ("model", "kind", "level", "seed", "protocol")
    assert table["hit_rate"].dims == dims
    assert table["r2"].dims == (*dims, "axis")
    assert dict(table.sizes) == dict(zip((*dims, "axis"), (1, 2, 3, 2, 2, 2), strict=True))
    np.testing.assert_allclose(table["level_value"], [[0.1, 0.2, 0.3], [0.3, 0.9, np.nan]])
    assert list(table["level_unit"].values) == ["s", "1"]
    assert list(table["base_lag"].values) == ["none", "lag:0.1"]
    ran = np.isfinite(table["level_value"])
    assert (table["status"].where(ran, "missing") == table["status"]).all()
    assert (table["status"].sel(kind="lag") == "ok").all()
    assert (table["message"].isel(level=2).sel(kind="delete") == "this kind has fewer levels").all()
    assert np.isfinite(table["r2"].sel(kind="lag")).all()
    # Ridge searches no lag.
    assert np.isnan(table["hit_rate"]).all()
    settings = json.loads(table.attrs["settings"])
    assert settings["n_seeds"] == 2
    assert config_from(
        {k: v for k, v in settings.items() if k not in ("layout", "version", "recording")}
    ).kinds == (
        "lag",
        "delete",
    )
    assert not np.allclose(table["r2"].sel(kind="lag", seed=0), table["r2"].sel(kind="lag", seed=1))
    # Deleting nine spikes in ten lowers R2, for both seeds.
    r2 = table["r2"].sel(kind="delete", protocol="train-matched").mean("axis").squeeze("model")
    assert (r2.isel(level=1) < r2.isel(level=0)).all()


def test_attention_is_measured_where_a_lag_is_searched(two, tmp_path):
    table = run_study(two, config=replace(TRAINED, references=True), jobs=0, out=tmp_path / "out")
    assert list(table["model"].values) == ["softmax", "early", "oracle"]
    searched = table.sel(model="softmax").squeeze()
    for name in ("hit_rate", "mass_on_truth", "anomaly_rate", "coverage_90"):
        assert 0 <= float(searched[name]) <= 1
    assert 0 <= float(searched["entropy"]) <= np.log(7) + 1e-6
    assert np.isnan(table["hit_rate"].sel(model="early")).all()
    assert (table["hit_rate"].sel(model="oracle") == 1).all()
    kept = xr.open_dataset(tmp_path / "out" / "study.nc", engine="h5netcdf").load()
    assert kept.identical(table)
    maps = xr.open_dataset(tmp_path / "out" / "maps.nc", engine="h5netcdf").load()
    assert list(maps["model"].values) == ["softmax", "oracle"]
    assert set(maps["level"].values) == {0}
    posterior = maps["posterior"].astype(float)
    there = np.isfinite(maps["time_s"])
    np.testing.assert_allclose(posterior.sum("lag").values[there.values], 1, atol=0.01)
    # The oracle attends to the truth.
    best_s = posterior["lag"].values[posterior.isel(cell=1).argmax("lag")]
    true_s = maps["true_lag_s"].isel(cell=1).values
    known = np.isfinite(true_s)
    assert (np.abs(best_s - true_s)[known] <= 0.1 + 1e-6).all()


def test_one_process_two_and_a_cell_alone_give_the_same_numbers(two):
    config = replace(
        CHEAP,
        decoders=("ridge", "softmax"),
        kinds=("delete",),
        levels={"delete": (0.5,)},
        protocols=BOTH,
        n_seeds=1,
    )
    one, two_jobs = (run_study(two, config=config, jobs=k) for k in (1, 2))
    assert same(one, two_jobs)
    # One cell, here and by itself, in a study that asks for less.
    alone = run_study(two, config=replace(config, decoders=("softmax",), protocols=BOTH[1:]), jobs=0)
    at = {"model": "softmax", "kind": "delete", "level": 0, "seed": 0, "protocol": "test-only"}
    np.testing.assert_array_equal(alone["r2"].sel(at), one["r2"].sel(at))
    assert float(alone["entropy"].sel(at)) == float(one["entropy"].sel(at))


def test_dask_gives_the_same_numbers(two):
    from distributed import Client, LocalCluster

    here = run_study(two, config=TRAINED, jobs=0)
    with (
        LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        there = run_study(two, config=TRAINED, scheduler=client)
    assert same(here, there)


def test_all_decoders_see_the_same_draw_and_levels_share_it(two):
    content = packed_recording(clean_recording(two, CHEAP).recording)
    settings = json.dumps(context_of(two, CHEAP)["config"])

    def spikes(kind, level, seed):
        tokens_at.cache_clear()
        return tokens_at(content, settings, seed, "none", kind, level).tokens.clocks[0].total[-1]

    np.testing.assert_array_equal(spikes("delete", 0.5, 0), spikes("delete", 0.5, 0))
    assert (spikes("delete", 0.5, 0) != spikes("delete", 0.5, 1)).any()
    # A spike that survives much survives less: a curve is of one recording at growing levels.
    assert (spikes("delete", 0.5, 0) <= spikes("delete", 0.3, 0)).all()
    assert (spikes("delete", 0.3, 0) <= spikes(None, 0.0, 0)).all()


def test_a_cell_makes_the_calls_of_a_decode(two):
    """Given the generators of the cell, a decode gives the same R2 to the last bit."""
    config = replace(TRAINED, decoders=(("softmax", {"width": 16}),))
    coordinates = plan_tasks(config)[0].coordinates
    assert coordinates["model"] == "softmax(width=16)"
    found = run_task(context_of(two, config), coordinates)["cells"][0]
    generators = Generators(
        generator(config, "split", 0),
        generator(config, "jitter", "delete", 0),
        generator(config, "windows", "lag", 0),
    )
    same_config = DecodeConfig(jitter="delete:0.5 | lag:0.1", **SIZES)
    prepared = prepare_recording(two, config=same_config, generators=generators)
    decoder = cells.build("softmax(width=16)", config, 0)
    assert decoder.width == 16
    table = fit_and_evaluate(decoder, prepared.split, {}).prediction
    np.testing.assert_array_equal(
        found["r2"], r2_per_axis(table["movement"].values, table["prediction"].values)
    )


def test_two_settings_of_one_decoder_are_two_models(two):
    choices = (("ridge", {"context_s": 0.1}), ("ridge", {"context_s": 0.5}))
    config = replace(CHEAP, decoders=choices, kinds=("delete",), levels={"delete": (0.5,)}, n_seeds=1)
    table = run_study(two, config=config, jobs=0)
    assert list(table["model"].values) == ["ridge(context_s=0.1)", "ridge(context_s=0.5)"]
    narrow, wide = table["r2"].mean("axis").squeeze().values
    assert narrow != wide


def context_of(recording, config):
    from dataclasses import asdict

    ready = clean_recording(recording, config).recording
    return {
        "config": json.loads(json.dumps(asdict(config))),
        "recording": packed_recording(ready),
        "maps": {},
    }


def test_test_only_trains_once_for_all_levels_and_matched_at_each(two, monkeypatch):
    fits: list[str] = []
    build = cells.build

    def counted(label, config, seed):
        decoder = build(label, config, seed)
        fit = decoder.fit
        decoder.fit = lambda *a, **k: (fits.append(label), fit(*a, **k))[1]
        return decoder

    monkeypatch.setattr(cells, "build", counted)
    config = replace(CHEAP, protocols=("test-only",), n_seeds=1)
    tasks = plan_tasks(config)
    # Lags are varied alone, everything else under the base lag: two trainings.
    assert [t.coordinates["base"] for t in tasks] == ["none", "lag:0.1"]
    for task in tasks:
        found = run_task(context_of(two, config), task.coordinates)
        assert len(found["cells"]) == len(task.coordinates["tests"])
    assert fits == ["ridge", "ridge"]
    matched = plan_tasks(replace(config, protocols=("train-matched",)))
    assert len(matched) == 5
    assert len({t.key for t in tasks + matched}) == 7


def test_generators_are_seeded_by_a_hash_of_coordinates():
    draws = [
        generator(CHEAP, *at).random()
        for at in (("jitter", "lag", 0), ("jitter", "lag", 1), ("jitter", "la", "g0"))
    ]
    assert len(set(draws)) == 3
    assert generator(CHEAP, "jitter", "lag", 0).random() == draws[0]
    assert generator(replace(CHEAP, seed=1), "jitter", "lag", 0).random() != draws[0]


def test_a_moved_clock_is_known_to_the_oracle_and_to_the_scores(two):
    config = replace(TRAINED, decoders=("oracle",), kinds=("sinusoid:period_s=20",), levels={}, n_levels=2)
    table = run_study(two, config=config, jobs=0)
    assert (table["status"] == "ok").all()
    assert float(table["hit_rate"].min()) > 0.9
    assert list(table["base_lag"].values) == ["none"]


def test_a_cell_that_fails_says_why_and_the_others_stand(two, tmp_path):
    config = replace(CHEAP, kinds=("delete",), levels={"delete": (0.3, 0.5)}, n_seeds=1)
    run_study(two, config=config, jobs=0, out=tmp_path / "out")
    tasks = plan_tasks(config)
    records = {t.key: read_record(tmp_path / "out" / "tasks", t.key) for t in tasks}
    records[tasks[1].key] = replace(
        records[tasks[1].key], status="quarantined", message="killed", result=None
    )
    plan = {"delete": Levels((0.3, 0.5), "1", np.nan, "given")}
    table = collect(config, plan, tasks, records, axes=("x", "y")).squeeze(
        ("model", "kind", "seed", "protocol")
    )
    assert list(table["status"].values) == ["ok", "quarantined"]
    assert table["message"].values[1] == "killed"
    assert np.isfinite(table["r2"][0]).all()
    assert np.isnan(table["r2"][1]).all()


def test_levels_are_given_predicted_or_physical():
    spike = cells.of_kind("spike")
    sizes = {"n_levels": 10, "span_s": 300.0, "max_lag_s": 0.5}
    given = plan_levels(spike, given=(0.1, 0.01), predicted=np.nan, **sizes)
    assert (given.values, given.origin) == ((0.01, 0.1), "given")
    predicted = plan_levels(spike, given=None, predicted=0.02, **sizes)
    np.testing.assert_allclose(predicted.values, np.geomspace(0.02 / AROUND, 0.02 * AROUND, 10), rtol=1e-3)
    assert "predicted" in predicted.origin
    without = plan_levels(spike, given=None, predicted=np.nan, **sizes)
    assert without.origin.startswith("no prediction")
    # A skew as large as the search allows, and not a bit more.
    top = largest("skew", "ppm", "clock", span_s=300.0, max_lag_s=0.5)
    assert 0.499 <= 0.5e-6 * top * 300 <= 0.5
    share = plan_levels(cells.of_kind("delete"), given=None, predicted=0.5, **sizes)
    assert share.values[-1] < 1


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"decoders": ("nobody",)}, "there is no decoder 'nobody'"),
        ({"decoders": ()}, "at least one decoder"),
        ({"decoders": ("ridge", "ridge")}, "'ridge' is named twice"),
        ({"kinds": ("nothing",), "levels": {}}, "unknown jitter 'nothing'"),
        ({"protocols": ("untrained",)}, "no protocol 'untrained'; choose from train-matched, test-only"),
        ({"n_seeds": 0}, "n_seeds .--seeds. must be a positive whole number, got 0"),
        ({"base_lag": "lag:often"}, "lag:often"),
        ({"base_lag": "lag:0.4"}, "beyond the search range of"),
        (
            {"levels": {"lag": (0.1, 0.4)}},
            r"'lag:0.4' moves the clock by 0.4 s, beyond the search range of \+-0.3 s",
        ),
        ({"levels": {"lag": (0.1, 0.1)}}, "must be positive and differ, got 0.1, 0.1"),
        ({"levels": {"spike": (0.1,)}}, "levels are given for 'spike', which is not varied"),
        ({"levels": {"delete": (1.5,)}}, "1.5"),
        ({"max_lag_s": 2.0}, "shorter than a window"),
        ({"kinds": ("delete:stream=nobody",), "levels": {}}, "no stream 'nobody'"),
        ({"window_s": 20.0, "max_lag_s": 5.0}, "no room for a window of 20 s"),
    ],
)
def test_what_cannot_be_studied_is_refused_in_one_sentence_and_leaves_nothing(
    two, tmp_path, changes, sentence
):
    with pytest.raises(NeurofuseError, match=sentence):
        run_study(two, config=replace(CHEAP, **changes), jobs=0, out=tmp_path / "deep" / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_another_study_is_refused_and_the_same_is_resumed(two, tmp_path, monkeypatch):
    out = tmp_path / "out"
    config = replace(CHEAP, kinds=("delete",), levels={"delete": (0.5,)}, n_seeds=1)
    first = run_study(two, config=config, jobs=0, out=out)
    with pytest.raises(NeurofuseError, match="holds this study already; pass --resume"):
        run_study(two, config=config, jobs=0, out=out)
    with pytest.raises(NeurofuseError, match=r"holds another study \(n_seeds 1 there, 2 here\)"):
        run_study(two, config=replace(config, n_seeds=2), jobs=0, out=out, resume=True)
    cut = two.between(0.0, 45.0)
    with pytest.raises(NeurofuseError, match=r"holds another study \(recording"):
        run_study(cut, config=config, jobs=0, out=out, resume=True)
    (out / "study.nc").unlink()
    monkeypatch.setattr(cells, "build", None)  # nothing is trained again
    again = run_study(two, config=config, jobs=0, out=out, resume=True)
    assert again.identical(first)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(NeurofuseError, match="holds something other than a study"):
        run_study(two, config=config, jobs=0, out=tmp_path / "mine")


def test_a_scheduler_that_is_not_there_leaves_nothing(two, tmp_path):
    with pytest.raises(NeurofuseError, match="there is no Dask scheduler at 'nowhere'"):
        run_study(two, config=CHEAP, scheduler="nowhere", out=tmp_path / "deep" / "out")
    assert list(tmp_path.iterdir()) == []


# The command line


WORDS = (
    "--jitter delete --levels 0.3,0.5,0.7 --decoders ridge --no-references --seeds 2 --token 0.1 --window 1 "
)
WORDS += "--max-lag 0.3 --base-lag lag:0.1"


def typed(*words: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(w) for w in words])
    return int(stop.value.code or 0)


def test_the_command_line_survives_being_killed_and_prints_the_table(two, tmp_path, capsys):
    path = save_recording(two, tmp_path / "tiny.nc")
    words = ("study", path, *WORDS.split())
    out = tmp_path / "out"
    command = [sys.executable, "-m", "neurofuse", *map(str, words), "--out", str(out)]
    study = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list((out / "tasks").glob("t*.json")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    study.send_signal(signal.SIGKILL)
    study.wait()
    assert not (out / "study.nc").exists()
    assert typed(*words, "--out", out) == 2
    assert "--resume" in capsys.readouterr().err
    assert typed(*words, "--out", out, "--resume", "--json") == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["dims"] == ["model", "kind", "level", "seed", "protocol"]
    assert "levels of delete: given" in printed.err
    # Three levels, no references, and a decoder that searches no lag: stated, not guessed.
    assert json.loads((out / "threshold.json").read_text())["thresholds"] == []
    assert "a gain is measured between 'early' and 'oracle'" in printed.err
    config = replace(CHEAP, kinds=("delete",), levels={"delete": (0.3, 0.5, 0.7)}, n_steps=None)
    undisturbed = run_study(two, config=config, jobs=0)
    kept = xr.open_dataset(out / "study.nc", engine="h5netcdf").load()
    kept.attrs.pop("recording")
    undisturbed.attrs.pop("recording")
    assert same(kept, undisturbed)
    assert not list(out.rglob(".partial-*"))


def test_thresholds_are_written_with_what_was_predicted(two, tmp_path):
    """Curves of known half, in the shape of a study's table."""
    config = replace(
        CHEAP, decoders=("ridge",), references=True, kinds=("delete",), levels={"delete": (0.1,)}
    )
    values = tuple(np.geomspace(0.05, 0.8, 10))
    plan = {"delete": Levels(values, "1", 0.2, "given")}
    tasks = plan_tasks(replace(config, levels={"delete": values}))

    def record(task):
        level = task.coordinates["tests"][0][2]
        left = 1 / (1 + (level / 0.2) ** 6)
        r2 = {"early": 0.2, "oracle": 0.8, "ridge": 0.2 + 0.6 * left}[task.coordinates["model"]]
        cell = {"kind": "delete", "level": task.coordinates["tests"][0][1], "r2": [r2, r2]}
        return Record("ok", "", {"cells": [cell], "maps": []})

    table = collect(config, plan, tasks, {t.key: record(t) for t in tasks}, axes=("x", "y"))
    save_thresholds(tmp_path, table)
    found = json.loads((tmp_path / "threshold.json").read_text())["thresholds"]
    one = next(f for f in found if f["method"] == "isotonic" and f["quantity"] == "gain")
    assert (one["model"], one["kind"], one["protocol"], one["n_seeds"]) == (
        "ridge",
        "delete",
        "train-matched",
        2,
    )
    assert one["measured"] == pytest.approx(0.2, rel=0.05)
    assert one["kappa"] == pytest.approx(1.0, rel=0.05)
    assert one["censored"] is None
    assert {"ci95", "predicted", "criterion"} <= set(one)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("demo:walk",), "'demo:walk' has a lag of its own"),
        (("demo", "--levels", "a,b"), "--levels takes 'auto', numbers such as 0.1,0.2,0.4"),
        (("demo", "--jobs", "0"), "--jobs must be one or more, got 0"),
        (("demo", "--decoders", "nobody"), "there is no decoder 'nobody'"),
        (("nowhere.nc",), "nowhere.nc"),
    ],
)
def test_the_command_line_refuses_in_one_sentence(tmp_path, capsys, words, sentence):
    assert typed("study", *words, "--out", tmp_path / "out") == 2
    printed = capsys.readouterr()
    assert sentence in printed.err
    assert len(printed.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_recording_whose_movement_was_timed_otherwise_is_another(tiny):
    data = tiny.movement.data
    later = replace(tiny.movement, data=data.assign_coords(time=data["time"].values + 0.25))
    assert digest(tiny) == digest(tiny.but(did="nothing"))
    assert digest(tiny.but(movement=later)) != digest(tiny)
