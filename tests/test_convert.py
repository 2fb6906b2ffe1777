"""What is saved reads back as the same recording, and neo and pynapple objects go both ways."""

from __future__ import annotations

from pathlib import Path

import neo
import numpy as np
import pandas as pd
import pynapple as nap
import pynwb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_loaders import (
    LoadError,
    from_neo,
    from_pynapple,
    load,
    save,
    to_neo,
    to_pynapple,
    write_nix,
    write_nwb,
)
from neurofuse.recording import Movement, Recording, Signal, Spikes


def full() -> Recording:
    """Three clocks, all kinds of stream, gaps, units without spikes, trials with text: all a recording can hold."""
    rng = np.random.default_rng(0)
    units = pd.DataFrame(
        {
            "name": ["a", "b", "c"],
            "channel_id": [1, 1, 7],
            "depth": [0.1, 0.2, np.nan],
            "area": ["M1", "", "S1"],
        }
    )
    spikes = Spikes.from_trains(
        [[0.1, 0.30000000000000004, 2.5], [], [1 / 3]],
        clock="probe",
        name="neurons",
        units=units,
        support=[[0, 1], [2, 3]],
    )
    other = Spikes.from_trains([np.sort(rng.uniform(0, 3, 20))], clock="camera", name="more/units")
    times = np.concatenate([np.arange(200) / 1000, 1 + np.arange(200) / 1000]) * (1 + 3e-5)
    field = Signal.from_array(
        rng.normal(size=(400, 2)).astype(np.float32),
        clock="amp",
        name="lfp",
        time_s=times,
        channels=["F3", "F4"],
        units="uV",
    )
    counts = Signal.from_array(
        rng.poisson(1, (60, 3)), clock="probe", name="counts", rate_hz=20, kind="counts", units="spikes"
    )
    power = Signal.from_array(rng.uniform(size=(30, 4)), clock="amp", name="power", rate_hz=10, kind="power")
    hand = Movement.from_array(
        rng.normal(size=(300, 2)), name="hand", rate_hz=100, start_s=0.05, axes=["x", "y"], units="cm"
    )
    trials = pd.DataFrame(
        {
            "start_s": [0.1, 1.0],
            "stop_s": [0.9, 2.0],
            "target": [3, 1],
            "go_s": [0.2, np.nan],
            "result": ["R", "F"],
        }
    )
    return Recording(
        "session", "camera", (spikes, other, field, counts, power), hand, trials, ("planted", "twice")
    )


def assert_same(a: Recording, b: Recording, *, atol: float = 0.0) -> None:
    """Equal to the last bit, or to `atol` seconds in time."""
    assert (a.name, a.reference, a.provenance) == (b.name, b.reference, b.provenance)
    assert [(type(s), s.name, s.clock) for s in a.streams] == [(type(s), s.name, s.clock) for s in b.streams]

    def same_times(x, y):
        assert x.dtype == y.dtype == np.float64
        np.testing.assert_allclose(x, y, rtol=0, atol=atol)

    for s, t in zip(a.streams, b.streams, strict=True):
        if isinstance(s, Spikes):
            same_times(s.times_s, t.times_s)
            np.testing.assert_array_equal(s.unit, t.unit)
            same_times(s.support, t.support)
            pd.testing.assert_frame_equal(s.units, t.units, check_dtype=False)
        else:
            assert (s.kind, s.channels, s.sample_s) == (t.kind, t.channels, t.sample_s)
            assert str(s.data.attrs.get("units", "")) == str(t.data.attrs.get("units", ""))
            assert s.data.dtype == t.data.dtype
            same_times(s.time_s, t.time_s)
            np.testing.assert_array_equal(s.data.values, t.data.values)
    assert (a.movement is None) == (b.movement is None)
    if a.movement is not None:
        m, n = a.movement, b.movement
        assert (m.name, m.axes, m.units, m.sample_s) == (n.name, n.axes, n.units, n.sample_s)
        same_times(m.time_s, n.time_s)
        np.testing.assert_array_equal(m.data.values, n.data.values)
    pd.testing.assert_frame_equal(a.trials, b.trials, check_dtype=False)


@pytest.mark.parametrize(("suffix", "atol"), [(".nc", 0.0), (".nwb", 0.0), (".nix", 1e-9)])
def test_a_saved_recording_loads_as_the_same(tmp_path, suffix, atol):
    recording = full()
    assert_same(load(save(recording, tmp_path / f"a{suffix}")), recording, atol=atol)


@pytest.mark.parametrize("suffix", [".nc", ".nwb", ".nix"])
def test_saving_over_a_file_replaces_it_whole_and_leaves_nothing_else(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    save(full(), path)
    save(full().but(movement=None, trials=None), path)
    assert load(path).movement is None
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_an_ending_without_a_writer_is_refused(tmp_path):
    with pytest.raises(LoadError, match=r"no writer for '\.mat'; use \.nc, \.nwb, \.nix"):
        save(full(), tmp_path / "a.mat")
    assert list(tmp_path.iterdir()) == []


times = st.lists(st.floats(-1e6, 1e6, allow_nan=False), max_size=8).map(sorted)


@st.composite
def recordings(draw: st.DrawFn) -> Recording:
    n_units = draw(st.integers(1, 3))
    trains = [draw(times) for _ in range(n_units)]
    streams: list = [Spikes.from_trains(trains, clock=draw(st.sampled_from(["ref", "other"])), name="s")]
    start = draw(st.floats(-1e5, 1e5))
    n = draw(st.integers(2, 12))
    steps = draw(st.lists(st.floats(1e-4, 10.0), min_size=n, max_size=n))
    values = np.array(draw(st.lists(st.floats(-1e9, 1e9, width=32), min_size=n, max_size=n)))
    kind = draw(st.sampled_from(["lfp", "power"]))
    units = draw(st.sampled_from(["V", "uV", "", "1"]))
    streams.append(
        Signal.from_array(
            values, clock="other", name="f", time_s=start + np.cumsum(steps), kind=kind, units=units
        )
    )
    movement = Movement.from_array(
        np.stack([values, -values], axis=1), rate_hz=draw(st.floats(0.5, 1e4)), units=units
    )
    n_trials = draw(st.integers(0, 3))
    first = np.arange(n_trials) * 1.5
    labels = draw(st.lists(st.text("abcé ", min_size=1, max_size=4), min_size=n_trials, max_size=n_trials))
    trials = pd.DataFrame({"start_s": first, "stop_s": first + 1})
    if n_trials:  # an empty table has no columns of its own to keep
        trials["label"] = labels
    return Recording("r", "ref", tuple(streams), movement if draw(st.booleans()) else None, trials, ("p",))


@pytest.mark.parametrize("suffix", [".nc", ".nwb"])
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(recording=recordings())
def test_any_recording_survives_a_round_trip_to_the_last_bit(tmp_path, suffix, recording):
    path = save(recording, tmp_path / f"a{suffix}")
    assert_same(load(path), recording)


def test_our_nwb_is_ordinary_nwb_to_others(tmp_path):
    recording = full()
    path = write_nwb(recording, tmp_path / "a.nwb")
    assert pynwb.validate(path=str(path)) in ([], ([], 0))
    with pynwb.NWBHDF5IO(str(path), "r") as io:
        nwb = io.read()
        assert len(nwb.units) == 4
        np.testing.assert_array_equal(nwb.units.get_unit_spike_times(0), recording["neurons"].trains[0])
        np.testing.assert_array_equal(nwb.units["obs_intervals"][0], [[0, 1], [2, 3]])
        assert list(nwb.units["clock"][:]) == ["probe"] * 3 + ["camera"]
        lfp = nwb.processing["ecephys"]["LFP"]["lfp"]
        np.testing.assert_allclose(lfp.get_data_in_units(), recording["lfp"].data.values * 1e-6, rtol=1e-5)
        assert lfp.comments == "clock: amp"
        hand = nwb.processing["behavior"]["BehavioralTimeSeries"]["hand"]
        assert hand.unit == "cm"
        assert list(nwb.trials["result"][:]) == ["R", "F"]


def test_a_neo_block_goes_both_ways():
    recording = full()
    block = to_neo(recording)
    assert isinstance(block, neo.Block)
    assert len(block.segments[0].spiketrains) == 4
    assert len([s for s in block.segments[0].analogsignals if s.name == "lfp"]) == 2, "one for each stretch"
    assert_same(from_neo(block), recording, atol=1e-9)


def test_times_off_the_grid_are_kept_one_by_one(tmp_path):
    times = np.cumsum(np.random.default_rng(0).uniform(0.9, 1.1, 50)) / 100
    signal = Signal.from_array(
        np.random.default_rng(1).normal(size=(50, 1)), clock="c", time_s=times, units="mV"
    )
    recording = Recording("r", "c", (signal,))
    assert len(to_neo(recording).segments[0].irregularlysampledsignals) == 1
    assert_same(load(write_nix(recording, tmp_path / "a.nix")), recording, atol=1e-9)


def test_pynapple_objects_go_both_ways():
    recording = full()
    objects = to_pynapple(recording)
    assert isinstance(objects["neurons"], nap.TsGroup)
    np.testing.assert_allclose(objects["neurons"].time_support.values, [[0, 1], [2, 3]])
    np.testing.assert_allclose(objects["lfp"].time_support.values, recording["lfp"].support, atol=1e-8)
    assert list(objects["movement"].columns) == ["x", "y"]
    assert len(objects["trials"]) == 2
    back = from_pynapple(objects, clock="camera", kinds={"counts": "counts", "power": "power"})
    for name in ("neurons", "more/units"):
        for a, b in zip(back[name].trains, recording[name].trains, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-9)
        assert list(back[name].units["name"]) == list(recording[name].units["name"])
    for name in ("lfp", "counts", "power"):
        np.testing.assert_array_equal(back[name].data.values, recording[name].data.values)
        np.testing.assert_allclose(back[name].time_s, recording[name].time_s, rtol=0, atol=1e-9)
        assert back[name].kind == recording[name].kind
    np.testing.assert_array_equal(back.movement.data.values, recording.movement.data.values)
    np.testing.assert_allclose(back.trials["start_s"], recording.trials["start_s"])


def test_what_is_no_pynapple_object_is_refused():
    with pytest.raises(LoadError, match=r"'x' is a list; give a Ts, TsGroup, Tsd, TsdFrame or IntervalSet"):
        from_pynapple({"x": [1, 2]})
    with pytest.raises(LoadError, match="none of"):
        from_pynapple({})


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    for suffix in (".nc", ".nwb", ".nix"):
        with pytest.raises(ValueError, match="cannot write"):
            save(full(), Path(blocked) / f"a{suffix}")
