"""Plain files (.mat, .npz, .npy, .h5, .csv, .nc), trial_data and Trodes tracking become recordings."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
import xarray as xr

from data_loaders import info, load
from data_loaders.readers.plain_arrays import as_trains

BIN_S = 0.05


def session(n: int = 400, *, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "spikes": rng.poisson(1.0, (n, 6)).astype(np.uint8),
        "lfp": rng.normal(size=(n, 3)),
        "vel": rng.normal(size=(n, 2)),
    }


def as_npz(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    np.savez(path, **arrays)
    return path


def as_mat(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    scipy.io.savemat(path, arrays)
    return path


def as_h5(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[name] = values
    return path


def as_mat73(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, values in arrays.items():
            file[name] = values.T
            file[name].attrs["MATLAB_class"] = np.bytes_("double")
    with path.open("r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file".ljust(512))
    return path


def as_netcdf(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    dataset = xr.Dataset({k: (("time_bin", f"{k}_column"), v) for k, v in arrays.items()})
    dataset.to_netcdf(path, engine="h5netcdf")
    return path


@pytest.mark.parametrize(
    ("write", "name"),
    [(as_npz, "a.npz"), (as_mat, "a.mat"), (as_h5, "a.h5"), (as_mat73, "b.mat"), (as_netcdf, "a.nc")],
)
def test_the_same_arrays_give_the_same_recording_from_every_plain_format(tmp_path, write, name):
    arrays = session()
    path = write(tmp_path / name, arrays)
    recording = load(path, spikes="spikes", lfp="lfp", movement="vel", bin_s=BIN_S)
    counts = recording["spikes"]
    assert counts.kind == "counts"
    np.testing.assert_array_equal(counts.data.values, arrays["spikes"])
    np.testing.assert_array_equal(recording["lfp"].data.values, arrays["lfp"])
    np.testing.assert_array_equal(recording.movement.data.values, arrays["vel"])
    np.testing.assert_array_equal(counts.time_s, np.arange(400) * BIN_S)
    assert recording.reference == path.stem
    assert recording.clocks == [path.stem]
    assert recording["lfp"].kind == "power", "20 Hz cannot show oscillations"


def test_fast_plain_lfp_is_lfp_and_the_rate_wins_over_the_bin(tmp_path):
    path = as_npz(tmp_path / "a.npz", session())
    recording = load(path, spikes="spikes", lfp="lfp", movement="none", bin_s=BIN_S, rate_hz=1000.0)
    assert recording["lfp"].kind == "lfp"
    assert recording["lfp"].rate_hz == pytest.approx(1000.0)
    assert recording["spikes"].sample_s == BIN_S


def test_matrices_lying_on_their_side_are_turned_by_the_axis_they_share(tmp_path):
    arrays = session(n=5)
    turned = {**arrays, "spikes": np.ascontiguousarray(arrays["spikes"].T)}
    path = as_npz(tmp_path / "a.npz", turned)
    recording = load(path, spikes="spikes", lfp="lfp", movement="vel", bin_s=BIN_S)
    np.testing.assert_array_equal(recording["spikes"].data.values, arrays["spikes"])
    assert any("transposed from 6 x 5" in line for line in recording.provenance)


def test_a_time_vector_decides_orientation_rate_and_start(tmp_path):
    values = np.random.default_rng(0).normal(size=(8, 3))
    path = as_npz(tmp_path / "a.npz", {"lfp": values.T, "lfp_time": 5.0 + np.arange(8) / 1000})
    recording = load(path, lfp="lfp", spikes="none", movement="none")
    np.testing.assert_array_equal(recording["lfp"].data.values, values)
    assert recording["lfp"].start_s == 5.0
    assert recording["lfp"].rate_hz == pytest.approx(1000.0)


def test_a_gap_in_the_time_vector_stays_a_gap(tmp_path):
    times = np.concatenate([np.arange(50) / 100, 10 + np.arange(50) / 100])
    path = as_npz(tmp_path / "a.npz", {"pos": np.random.default_rng(0).normal(size=(100, 2)), "t": times})
    recording = load(path, movement="pos", spikes="none", lfp="none")
    assert len(recording.movement.support) == 2


def test_movement_joins_single_columns_under_their_own_names(tmp_path):
    rng = np.random.default_rng(0)
    path = as_h5(
        tmp_path / "a.h5",
        {"kin/x": rng.normal(size=50), "kin/y": rng.normal(size=50), "kin/t": np.arange(50) / 60},
    )
    recording = load(path, movement="kin/x,kin/y", spikes="none", lfp="none")
    assert recording.movement.axes == ["kin/x", "kin/y"]
    assert 1 / recording.movement.sample_s == pytest.approx(60)
    whole = load(path, movement="kin", spikes="none", lfp="none")
    assert whole.movement.axes == ["kin/x", "kin/y"], "the time vector is no axis of movement"


def test_missing_samples_become_a_gap_only_when_allowed(tmp_path):
    arrays = session()
    arrays["lfp"][100:110, 1] = np.nan
    path = as_npz(tmp_path / "a.npz", arrays)
    with pytest.raises(ValueError, match=r"10 of 400 samples hold NaN.*--missing drop"):
        load(path, lfp="lfp", spikes="none", rate_hz=1000.0)
    recording = load(path, lfp="lfp", spikes="none", rate_hz=1000.0, missing="drop")
    assert recording["lfp"].time_s.size == 390
    assert len(recording["lfp"].support) == 2
    assert any("dropped 10 of 400" in line for line in recording.provenance)


def test_a_circular_movement_becomes_cosine_and_sine(tmp_path):
    path = as_npz(tmp_path / "a.npz", {"angle": np.linspace(0, 720, 500) % 360, "t": np.arange(500) / 50})
    recording = load(path, movement="angle", spikes="none", lfp="none", circular=360.0)
    assert recording.movement.axes == ["cos angle", "sin angle"]
    np.testing.assert_allclose((recording.movement.data.values**2).sum(axis=1), 1.0)


# Spike times


TRAINS = [np.array([0.1, 0.25, 0.9, 1.4]), np.array([0.05, 1.2]), np.array([0.7])]


def listed_spikes(scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    times = np.concatenate(TRAINS) * scale
    unit = np.repeat([3, 5, 9], [t.size for t in TRAINS])
    order = np.argsort(times)
    return times[order], unit[order]


def assert_trains(recording, trains=TRAINS) -> None:
    found = recording.spikes[0].trains
    assert len(found) == len(trains)
    for a, b in zip(found, trains, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


@pytest.mark.parametrize(
    ("unit", "scale"), [("s", 1.0), ("ms", 1e3), ("us", 1e6), ("samples@30000", 30000.0)]
)
def test_a_table_of_spikes_is_read_in_the_unit_given(tmp_path, unit, scale):
    times, units = listed_spikes(scale)
    path = tmp_path / "spikes.csv"
    rows = "\n".join(f"{u},{t!r}" for u, t in zip(units.tolist(), times.tolist(), strict=True))
    path.write_text("unit,time\n" + rows + "\n")
    recording = load(path, time_unit=unit)
    assert_trains(recording)
    assert list(recording.spikes[0].units["name"]) == ["3", "5", "9"]


@pytest.mark.parametrize(
    "names", [("spike_times", "unit"), ("times", "unit"), ("t", "index"), ("spike_times", "spike_clusters")]
)
def test_a_pair_of_times_and_units_is_a_population(tmp_path, names):
    times, units = listed_spikes()
    path = as_npz(tmp_path / "a.npz", {names[0]: times, names[1]: units})
    assert_trains(load(path))
    assert info(path).items[0].n_units == 3


def test_nested_cells_of_structs_are_units_with_their_support(tmp_path):
    def unit(times):
        return {"time": times[:, None], "timerange": np.array([0.0, 2.0]), "meanrate": 1.0}

    cells = np.empty(2, dtype=object)
    first = np.empty(3, dtype=object)
    first[:] = [unit(TRAINS[0]), np.empty((0, 0)), unit(TRAINS[1])]
    cells[:] = [first, unit(TRAINS[2])]
    path = tmp_path / "cells.mat"
    scipy.io.savemat(path, {"spikes": cells})
    recording = load(path)
    assert_trains(recording)
    np.testing.assert_array_equal(recording.spikes[0].support, [[0.0, 2.0]])
    assert list(recording.spikes[0].units["name"]) == ["spikes 1.1", "spikes 1.3", "spikes 2"]


def test_plain_cells_of_vectors_are_units(tmp_path):
    cells = np.empty(3, dtype=object)
    cells[:] = TRAINS
    path = tmp_path / "cells.mat"
    scipy.io.savemat(path, {"spike_times": cells})
    assert_trains(load(path))


def test_cells_of_matlab_7_3_are_units(tmp_path):
    path = tmp_path / "v73.mat"
    with h5py.File(path, "w", userblock_size=512) as file:
        refs = []
        for k, train in enumerate(TRAINS):
            file[f"#refs#/{k}"] = train[None, :]
            refs.append(file[f"#refs#/{k}"].ref)
        file.create_dataset(
            "spikes", data=np.array(refs, dtype=h5py.ref_dtype)[:, None], dtype=h5py.ref_dtype
        )
        file["spikes"].attrs["MATLAB_class"] = np.bytes_("cell")
    assert_trains(load(path, spikes="spikes"))


def test_a_group_of_vectors_is_a_population_named_by_them(tmp_path):
    path = as_h5(tmp_path / "a.h5", {f"units/u{k}": t for k, t in enumerate(TRAINS)})
    recording = load(path, spikes="units")
    assert_trains(recording)
    assert list(recording.spikes[0].units["name"]) == ["u0", "u1", "u2"]


def test_a_variable_length_dataset_is_a_population(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        data = file.create_dataset("spike_times", (3,), dtype=h5py.vlen_dtype(np.float64))
        for k, train in enumerate(TRAINS):
            data[k] = train
    assert_trains(load(path))


def test_units_across_a_list_need_not_be_in_order_but_one_unit_must(tmp_path):
    path = as_npz(
        tmp_path / "a.npz", {"times": np.concatenate(TRAINS), "unit": np.repeat([1, 2, 3], [4, 2, 1])}
    )
    assert_trains(load(path))
    bad = as_npz(tmp_path / "b.npz", {"times": np.array([2.0, 1.0]), "unit": np.array([1, 1])})
    with pytest.raises(ValueError, match="not in order"):
        load(bad)


def test_a_table_with_a_time_column_gives_counts_lfp_and_movement(tmp_path):
    path = tmp_path / "a.csv"
    rng = np.random.default_rng(0)
    rows = ["time,n1,n2,lfp,x,y"]
    rows += [
        f"{k * 0.02:.2f},{rng.poisson(1)},{rng.poisson(1)},{rng.normal():.4f},{rng.normal():.4f},{k}"
        for k in range(60)
    ]
    path.write_text("\n".join(rows))
    recording = load(path, spikes="n1,n2", movement="x,y")
    assert recording.n_units == 2
    assert recording["lfp"].kind == "power"
    assert recording.movement.axes == ["x", "y"]
    assert 1 / recording.movement.sample_s == pytest.approx(50)


def test_a_bare_matrix_file_is_taken_whole_for_the_role_it_is_given(tmp_path):
    counts = np.random.default_rng(0).poisson(1.0, (50, 4))
    np.save(tmp_path / "c.npy", counts)
    np.savetxt(tmp_path / "v.csv", np.random.default_rng(1).normal(size=(50, 2)), delimiter=",")
    recording = load(None, spikes=tmp_path / "c.npy", movement=tmp_path / "v.csv", bin_s=0.1)
    assert recording.n_units == 4
    assert recording.movement.axes == ["column0", "column1"]
    assert recording.clocks == ["v", "c"], "every file is a clock, the movement's is the reference"


# trial_data


def write_trials(path: Path, *, jump_at: int | None = None, n_trials: int = 4) -> list[int]:
    rng = np.random.default_rng(0)
    lengths = [10 + k for k in range(n_trials)]
    trials = []
    place = np.zeros(2)
    for k, n in enumerate(lengths):
        steps = rng.uniform(-1, 1, (n, 2))
        pos = place + np.cumsum(steps, axis=0)
        place = pos[-1] + (100.0 if k + 1 == jump_at else 0.0)
        trials.append(
            {
                "target_direction": float(k),
                "bin_size": 0.02,
                "idx_go_cue": 3,
                "idx_movement_on": 5.0,
                "result": "R",
                "pos": pos,
                "vel": steps / 0.02,
                "M1_spikes": rng.poisson(1.0, (n, 3)).astype(np.uint8),
                "M1_unit_guide": np.array([[1, 1], [1, 2], [4, 1]]),
                "PMd_spikes": rng.poisson(1.0, (n, 2)).astype(np.uint8),
            }
        )
    names = list(trials[0])
    array = np.empty((1, n_trials), dtype=[(n, object) for n in names])
    for k, trial in enumerate(trials):
        for name in names:
            array[name][0, k] = trial[name]
    scipy.io.savemat(path, {"trial_data": array})
    return lengths


def test_trial_data_is_one_stretch_with_events_in_seconds(tmp_path):
    lengths = write_trials(tmp_path / "td.mat")
    recording = load(tmp_path / "td.mat")
    assert [s.name for s in recording.signals] == ["M1_spikes", "PMd_spikes"]
    assert {s.kind for s in recording.signals} == {"counts"}
    assert recording["M1_spikes"].channels == ["M1 ch1 u1", "M1 ch1 u2", "M1 ch4 u1"]
    assert recording.movement.name == "vel"
    assert len(recording.movement.support) == 1
    assert recording.movement.time_s.size == sum(lengths)
    trials = recording.trials
    np.testing.assert_allclose(trials["start_s"], np.cumsum([0, *lengths[:-1]]) * 0.02)
    np.testing.assert_allclose(trials["go_cue_s"] - trials["start_s"], 2 * 0.02)
    assert list(trials["result"]) == ["R"] * 4
    both = load(tmp_path / "td.mat", spikes="PMd_spikes", movement="pos,vel")
    assert both.movement.axes == ["pos x", "pos y", "vel x", "vel y"]
    assert both.n_units == 2


def test_trial_data_of_matlab_7_3_is_read_alike(tmp_path):
    write_trials(tmp_path / "td.mat")
    trials = scipy.io.loadmat(tmp_path / "td.mat")["trial_data"]
    with h5py.File(tmp_path / "v73.mat", "w", userblock_size=512) as file:
        file.create_group("trial_data")
        for name in trials.dtype.names:
            refs = []
            for k in range(trials.shape[1]):
                value = np.atleast_2d(trials[name][0, k])
                text = value.dtype.kind == "U"
                value = np.array([[ord(c) for c in value.ravel()[0]]], dtype=np.uint16) if text else value
                file[f"#refs#/{name}{k}"] = value.T
                file[f"#refs#/{name}{k}"].attrs["MATLAB_class"] = np.bytes_("char" if text else "double")
                refs.append(file[f"#refs#/{name}{k}"].ref)
            file["trial_data"].create_dataset(
                name, data=np.array(refs, dtype=h5py.ref_dtype)[:, None], dtype=h5py.ref_dtype
            )
    old, new = load(tmp_path / "td.mat"), load(tmp_path / "v73.mat")
    np.testing.assert_array_equal(new["M1_spikes"].data.values, old["M1_spikes"].data.values)
    np.testing.assert_array_equal(new.movement.data.values, old.movement.data.values)
    assert new["M1_spikes"].channels == old["M1_spikes"].channels
    assert new.trials.sort_index(axis=1).equals(old.trials.sort_index(axis=1))


def test_tables_may_be_parted_by_commas_semicolons_tabs_or_blanks(tmp_path):
    times, units = listed_spikes()
    for name, mark in (("a.csv", ";"), ("b.txt", ","), ("c.tsv", "\t"), ("d.txt", " ")):
        rows = [f"unit{mark}time"] + [
            f"{u}{mark}{t!r}" for u, t in zip(units.tolist(), times.tolist(), strict=True)
        ]
        (tmp_path / name).write_text("\n".join(rows))
        assert_trains(load(tmp_path / name))


def test_trial_data_has_a_gap_where_the_position_jumps(tmp_path):
    lengths = write_trials(tmp_path / "td.mat", jump_at=2)
    recording = load(tmp_path / "td.mat")
    assert len(recording.movement.support) == 2
    first = sum(lengths[:2]) * 0.02
    np.testing.assert_allclose(recording.trials["start_s"][2], first + 10.0)


# Trodes


def write_tracking(path: Path, *, n: int = 50, cut: int = 0) -> None:
    row = np.dtype([("time", "<u4"), ("x", "<u2"), ("y", "<u2"), ("x2", "<u2"), ("y2", "<u2")])
    rows = np.zeros(n, dtype=row)
    rows["time"] = 3000 + 500 * np.arange(n)
    rows["x"], rows["y"] = 100 + np.arange(n), 200 - np.arange(n)
    head = (
        "<Start settings>\nthreshold: 199\nclockrate: 30000\n"
        "Fields: <time uint32><xloc uint16><yloc uint16><xloc2 uint16><yloc2 uint16>\n<End settings>\n"
    )
    body = head.encode() + rows.tobytes()
    path.write_bytes(body[: len(body) - cut])


def test_trodes_tracking_is_movement_of_the_light_that_was_seen(tmp_path):
    write_tracking(tmp_path / "a.videoPositionTracking")
    recording = load(tmp_path / "a.videoPositionTracking")
    assert recording.movement.axes == ["xloc", "yloc"]
    assert recording.movement.time_s[0] == pytest.approx(0.1)
    assert 1 / recording.movement.sample_s == pytest.approx(60)
    assert info(tmp_path / "a.videoPositionTracking").items[0].role == "movement"


def test_trodes_tracking_that_is_cut_short_is_refused(tmp_path):
    write_tracking(tmp_path / "a.videoPositionTracking", cut=5)
    with pytest.raises(ValueError, match="cut short"):
        load(tmp_path / "a.videoPositionTracking")


def test_walking_a_cell_skips_what_is_empty():
    found = as_trains([[{"time": np.array([1.0, 2.0])}, np.empty((0, 0))], [np.array([3.0])]])
    assert [v.tolist() for v in found.vectors] == [[1.0, 2.0], [3.0]]
    assert found.paths == ("1.1", "2.1")
