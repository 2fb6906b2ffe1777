"""A recording on disk is the recording in memory, to the last bit, or there is no file at all."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from neurofuse.errors import NeurofuseError
from neurofuse.recording import Movement, Recording, Signal, Spikes
from neurofuse.storage import open_recording, save_recording, whole_file


def full() -> Recording:
    """Three clocks, gaps, units without spikes, an empty stream, trials with text, numbers and switches."""
    rng = np.random.default_rng(0)
    units = pd.DataFrame({"name": ["a", "b"], "depth/mm": [0.1, np.nan], "good": [True, False]})
    spikes = Spikes.from_trains(
        [[0.1, 0.1 + 0.2, 1 / 3], []], clock="probe", units=units, support=[[0, 1], [2, 3]]
    )
    times = np.concatenate([np.arange(50) / 1000, 1 + np.arange(50) / 1000]) * (1 + 3e-5)
    field = Signal.from_array(
        rng.standard_normal((100, 2)).astype(np.float32), clock="amp", time_s=times, units="uV"
    )
    power = Signal.from_array(rng.standard_normal((9, 2)), clock="amp", name="p", rate_hz=3, kind="power")
    none = Signal.from_array(np.zeros((0, 3)), clock="cam", name="none", rate_hz=20, kind="counts")
    hand = Movement.from_array(rng.standard_normal((30, 2)), rate_hz=30, axes=["x", "y"], units="s")
    trials = pd.DataFrame(
        {
            "start_s": [0.1, 1.0],
            "stop_s": [0.9, 2.0],
            "go/cue 100%": [3, 1],
            "result": ["", "Fehl-Ü"],
            "hit": [True, False],
            "reach_s": [np.nan, 0.1 + 0.2],
        }
    )
    return Recording("ü", "cam", (spikes, field, power, none), hand, trials, ("read", 'cut, "so"\n'))


def assert_equal_to_the_bit(a: Recording, b: Recording) -> None:
    assert (a.name, a.reference, a.provenance, a.clocks) == (b.name, b.reference, b.provenance, b.clocks)
    for s, t in zip(a.streams, b.streams, strict=True):
        assert (type(s), s.name, s.clock) == (type(t), t.name, t.clock)
        if isinstance(s, Spikes):
            assert s.times_s.tobytes() == t.times_s.tobytes()
            assert s.support.tobytes() == t.support.tobytes()
            np.testing.assert_array_equal(s.unit, t.unit)
            pd.testing.assert_frame_equal(s.units, t.units)
        else:
            assert (s.kind, s.sample_s, s.channels) == (t.kind, t.sample_s, t.channels)
            xr.testing.assert_identical(s.data, t.data)
            assert s.data.dtype == t.data.dtype
            assert s.time_s.tobytes() == t.time_s.tobytes()
            np.testing.assert_array_equal(s.support, t.support)
    assert (a.movement is None) == (b.movement is None)
    if a.movement is not None:
        xr.testing.assert_identical(a.movement.data, b.movement.data)
        assert (a.movement.name, a.movement.sample_s) == (b.movement.name, b.movement.sample_s)
    pd.testing.assert_frame_equal(a.trials, b.trials)


def test_all_that_a_recording_holds_comes_back_to_the_bit(tmp_path):
    path = save_recording(full(), tmp_path / "a.nc")
    assert_equal_to_the_bit(open_recording(path), full())


def test_the_tiny_recording_comes_back_to_the_bit(tiny, tmp_path):
    assert_equal_to_the_bit(open_recording(save_recording(tiny, tmp_path / "a.nc")), tiny)


def test_a_recording_without_movement_or_trials_comes_back_without(tmp_path):
    bare = full().but(movement=None, trials=None)
    back = open_recording(save_recording(bare, str(tmp_path / "new" / "folder" / "a.nc")))
    assert back.movement is None
    assert len(back.trials) == 0
    assert {"start_s", "stop_s"} <= set(back.trials.columns)


@pytest.mark.parametrize("unit", ["s", "ms", "days since 2000-01-01", ""])
def test_samples_whose_unit_is_a_time_stay_numbers(tmp_path, unit):
    values = np.array([0.5, 1.5, 2.5])
    signal = Signal.from_array(values, clock="c", rate_hz=10, units=unit)
    recording = Recording("r", "c", (signal,), Movement.from_array(values, rate_hz=10, units=unit))
    back = open_recording(save_recording(recording, tmp_path / "a.nc"))
    np.testing.assert_array_equal(back["lfp"].data.values[:, 0], values)
    np.testing.assert_array_equal(back.movement.data.values[:, 0], values)
    assert back.movement.units == unit


def test_text_that_is_missing_comes_back_empty(tmp_path):
    trials = pd.DataFrame({"start_s": [0.0, 1.0], "stop_s": [1.0, 2.0], "result": ["R", None]})
    recording = full().but(trials=trials)
    back = open_recording(save_recording(recording, tmp_path / "a.nc"))
    assert list(back.trials["result"]) == ["R", ""]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = save_recording(full(), tmp_path / "a.nc")
    before = path.read_bytes()
    calls = []

    def full_disk(self, *args, **more):
        calls.append(1)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        return write(self, *args, **more)

    write = xr.Dataset.to_netcdf
    monkeypatch.setattr(xr.Dataset, "to_netcdf", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_recording(full().but(name="new"), path)
    calls.clear()
    with pytest.raises(OSError, match="No space left"):
        save_recording(full(), tmp_path / "b.nc")
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.nc"]


def test_a_name_that_is_taken_by_a_folder_is_refused_and_leaves_nothing(tmp_path):
    (tmp_path / "a.nc").mkdir()
    with pytest.raises(NeurofuseError, match=r"cannot write '.*a\.nc': Is a directory; choose another name"):
        save_recording(full(), tmp_path / "a.nc")
    assert [p.name for p in tmp_path.iterdir()] == ["a.nc"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        NeurofuseError, match=r"cannot write '.*file/a\.nc'.*choose a folder you may write to"
    ):
        save_recording(full(), tmp_path / "file" / "a.nc")


def test_an_interrupted_write_leaves_nothing(tmp_path):
    def interrupted() -> None:
        with whole_file(tmp_path / "a.txt") as partial:
            partial.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_a_recording_of_ours_is_refused(tmp_path):
    with pytest.raises(NeurofuseError, match=r"there is no file '.*none\.nc'; check the path"):
        open_recording(tmp_path / "none.nc")
    (tmp_path / "text.nc").write_text("hello")
    with pytest.raises(NeurofuseError, match=r"'.*text\.nc' cannot be read .* give a whole \.nc file"):
        open_recording(tmp_path / "text.nc")
    xr.Dataset({"x": 1}).to_netcdf(tmp_path / "other.nc", engine="h5netcdf")
    with pytest.raises(NeurofuseError, match="is not a neurofuse recording; its layout is None"):
        open_recording(tmp_path / "other.nc")
