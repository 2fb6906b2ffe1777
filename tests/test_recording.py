"""A recording holds together or is refused with a sentence, and nothing that is done to it changes it."""

from dataclasses import FrozenInstanceError

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from neurofuse.errors import NeurofuseError, RecordingError
from neurofuse.recording import (
    Movement,
    Recording,
    Signal,
    Spikes,
    as_seconds,
    intervals_of,
    separate_lfp,
    split_units,
)


def spikes(trains=((0.1, 0.5, 2.5), (0.3,)), *, clock="ref", name="spikes", **more) -> Spikes:
    return Spikes.from_trains(trains, clock=clock, name=name, **more)


def lfp(n=30, *, rate_hz=10.0, clock="amp", name="lfp", n_channels=2, **more) -> Signal:
    values = np.arange(n * n_channels, dtype=float).reshape(n, n_channels)
    return Signal.from_array(values, clock=clock, name=name, rate_hz=rate_hz, **more)


def whole() -> Recording:
    hand = Movement.from_array(np.arange(60.0).reshape(30, 2), rate_hz=10, axes=["x", "y"], units="cm")
    trials = pd.DataFrame({"start_s": [0.0, 1.0, 2.0], "stop_s": [0.9, 1.9, 2.9], "target": ["a", "b", "c"]})
    return Recording("r", "ref", (spikes(), lfp()), hand, trials)


def test_every_error_is_a_value_error_of_ours():
    assert issubclass(RecordingError, NeurofuseError)
    assert issubclass(NeurofuseError, ValueError)


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([[0.0, 1.0]], r"spikes 'a': times must be one vector, got an array of shape \(1, 2\)"),
        ([0.0, np.nan, np.inf], r"spikes 'a': 2 of 3 times are NaN or infinite; drop them first"),
        ([0.0, 3.5, 1.25], r"not in order \(3.5 s is followed by 1.25 s\); sort them first"),
    ],
)
def test_what_cannot_be_a_time_axis_is_refused(times, message):
    with pytest.raises(RecordingError, match=message):
        as_seconds(times, what="spikes 'a'")


def test_nothing_in_a_recording_can_be_edited_in_place():
    recording = whole()
    stream, signal, hand = recording["spikes"], recording["lfp"], recording.movement
    for array in (
        stream.times_s,
        stream.unit,
        stream.support,
        signal.time_s,
        signal.data.values,
        signal.support,
        hand.time_s,
        hand.data.values,
        hand.support,
    ):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 7
    for thing in (recording, stream, signal, hand):
        with pytest.raises(FrozenInstanceError):
            thing.name = "other"


def test_the_callers_arrays_and_the_recordings_are_not_the_same_memory():
    times, unit, values, clock_s = np.arange(5.0), np.zeros(5, dtype=np.int64), np.arange(5.0), np.arange(5.0)
    table, trials = pd.DataFrame({"name": ["u"]}), pd.DataFrame({"start_s": [0.0], "stop_s": [1.0]})
    stream = Spikes("s", "c", times, unit, table)
    signal = Signal.from_array(values, clock="c", time_s=clock_s)
    recording = Recording("r", "c", (stream, signal), trials=trials)
    for array in (times, unit, values, clock_s):
        array[:] = -9
    table.loc[0, "name"] = "changed"
    trials.loc[0, "stop_s"] = 99.0
    np.testing.assert_array_equal(stream.times_s, np.arange(5.0))
    np.testing.assert_array_equal(signal.data.values[:, 0], np.arange(5.0))
    np.testing.assert_array_equal(signal.time_s, np.arange(5.0))
    assert (stream.unit == 0).all()
    assert list(stream.units["name"]) == ["u"]
    assert recording.trials["stop_s"][0] == 1.0


@given(
    trains=st.lists(st.lists(st.floats(-1e5, 1e5), max_size=12).map(sorted), min_size=1, max_size=5),
)
@settings(max_examples=30, deadline=None)
def test_trains_go_in_and_come_out_the_same(trains):
    stream = spikes(trains)
    assert stream.n_units == len(trains)
    assert (np.diff(stream.times_s) >= 0).all()
    for a, b in zip(stream.trains, trains, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Spikes("a", "c", [0.1, 0.2], [0], pd.DataFrame({"name": ["u"]})),
            "spikes 'a': 2 times but 1 unit numbers; give one per spike",
        ),
        (
            lambda: Spikes("a", "c", [0.1, 0.2], [0, 3], pd.DataFrame({"name": ["u"]})),
            "unit numbers run from 0 to 3 but the table has 1 rows",
        ),
        (lambda: spikes([[0.2, 0.1]]), "unit 'unit0' of 'spikes': times are not in order .* sort them first"),
        (
            lambda: spikes(support=[0, 1]),
            r"support must be rows of \(start, stop\) seconds, got shape \(2,\)",
        ),
        (lambda: spikes(support=[[1, 0]]), "must start before it stops"),
        (lambda: spikes(support=[[0, 2], [1, 3]]), "overlap or are out of order"),
        (lambda: lfp(kind="eeg"), "kind must be 'lfp', 'counts' or 'power', got 'eeg'"),
        (lambda: lfp(rate_hz=0.0), "sampling rate must be positive, got 0 Hz"),
        (lambda: lfp(channels=["a"]), "'lfp': 2 columns but 1 names"),
        (
            lambda: Signal.from_array([[1.0, np.nan], [1, 1]], clock="c", rate_hz=1),
            "1 of 2 samples hold NaN or infinity; leave missing samples out",
        ),
        (
            lambda: Signal.from_array([1.0, 2.0], clock="c", time_s=[0.0, 1.0, 2.0]),
            "2 samples but 3 times; give one time per sample",
        ),
        (lambda: Signal.from_array([1.0], clock="c"), "give either rate_hz or time_s, not both or neither"),
        (
            lambda: Signal.from_array([1.0], clock="c", time_s=[0.0]),
            r"1 sample\(s\) do not determine the sampling interval; give sample_s",
        ),
        (
            lambda: Signal.from_array([1.0, 2.0], clock="c", time_s=[0.0, 0.0]),
            "every sample needs a time of its own",
        ),
        (
            lambda: Signal.from_array(np.zeros((2, 2, 2)), clock="c", rate_hz=1),
            r"samples must be time x channel, got an array of shape \(2, 2, 2\)",
        ),
        (lambda: Signal.from_array(["a", "b"], clock="c", rate_hz=1), "samples must be numbers"),
        (
            lambda: Signal.from_array([-1, 2], clock="c", rate_hz=1, kind="counts"),
            "spike counts cannot be negative, got -1",
        ),
        (
            lambda: Movement("hand", xr.DataArray(np.zeros((2, 1)), dims=("t", "axis"))),
            r"dims must be \('time', 'axis'\), got \('t', 'axis'\); transpose or rename them",
        ),
        (
            lambda: Movement("hand", xr.DataArray(np.zeros((2, 1)), dims=("time", "axis"))),
            "'time' needs a coordinate in seconds",
        ),
        (
            lambda: Movement.from_array([[np.inf], [0.0]], rate_hz=1, name="hand"),
            "movement 'hand': 1 of 2 samples hold NaN or infinity",
        ),
        (lambda: Recording("r", "c", (spikes(), spikes())), "two streams are called 'spikes'; rename one"),
        (
            lambda: Recording("r", "c", (), trials=pd.DataFrame({"start_s": [0.0]})),
            r"the trial table lacks \['stop_s'\]; it has \['start_s'\]",
        ),
        (lambda: whole()["eeg"], r"has no stream 'eeg'; it has \['spikes', 'lfp'\]"),
        (lambda: whole().on("gps"), r"has no clock 'gps'; it has \['ref', 'amp'\]"),
        (
            lambda: whole().movement.circular(0.0),
            "movement 'movement': a circular period must be positive, got 0",
        ),
    ],
)
def test_what_does_not_hold_together_is_refused_with_a_sentence(make, message):
    with pytest.raises(RecordingError, match=message):
        make()


def test_a_pause_longer_than_a_sample_and_a_half_is_a_gap():
    time_s = np.array([0.0, 0.1, 0.2, 0.34, 0.5, 0.6])
    np.testing.assert_allclose(intervals_of(time_s, 0.1), [[0, 0.44], [0.5, 0.7]])
    assert intervals_of(np.empty(0), 0.1).shape == (0, 2)


def test_a_slice_keeps_the_support_inside_it_and_nothing_else():
    stream = spikes([[0.1, 0.9, 2.1, 2.9]], support=[[0, 1], [2, 3]])
    part = stream.between(0.5, 2.5)
    np.testing.assert_array_equal(part.times_s, [0.9, 2.1])
    np.testing.assert_array_equal(part.support, [[0.5, 1], [2, 2.5]])
    assert part.n_units == 1
    outside = stream.between(1.2, 1.8)
    assert outside.support.shape == (0, 2)
    assert outside.n_units == 1

    field = Signal.from_array(np.arange(20.0), clock="c", time_s=np.r_[0:1:0.1, 2:3:0.1])
    np.testing.assert_allclose(field.support, [[0, 1], [2, 3]])
    cut = field.between(0.5, 2.5)
    np.testing.assert_allclose(cut.support, [[0.5, 1], [2, 2.5]])
    assert cut.sample_s == field.sample_s


@given(edges=st.lists(st.floats(0, 3), min_size=2, max_size=5).map(sorted))
@settings(max_examples=30, deadline=None)
def test_slices_side_by_side_make_up_the_whole(edges):
    recording = whole()
    parts = [recording.between(a, b) for a, b in zip([-1.0, *edges], [*edges, 4.0], strict=True)]
    for name, values in (("spikes", lambda s: s.times_s), ("lfp", lambda s: s.data.values)):
        np.testing.assert_array_equal(
            np.concatenate([values(p[name]) for p in parts]), values(recording[name])
        )
    moved = np.concatenate([p.movement.data.values for p in parts])
    np.testing.assert_array_equal(moved, recording.movement.data.values)


def test_a_cut_keeps_a_margin_of_the_other_clocks_and_whole_trials_only():
    part = whole().between(0.95, 2.0, margin_s=0.5)
    assert list(part.trials["target"]) == ["b"]
    assert part.provenance == ("cut to 0.95-2 s",)
    np.testing.assert_allclose(part.movement.time_s[[0, -1]], [1.0, 1.9])
    np.testing.assert_allclose(part["lfp"].time_s[[0, -1]], [0.5, 2.4])
    np.testing.assert_array_equal(part["spikes"].times_s, [])


def test_the_span_is_that_of_movement_or_else_of_the_reference_clock():
    recording = whole()
    assert recording.span_s == pytest.approx((0, 3))
    assert recording.but(movement=None).span_s == (0.1, 2.5)
    assert Recording("r", "ref", ()).span_s == (0.0, 0.0)
    assert recording.clocks == ["ref", "amp"]
    assert (recording.n_units, recording.n_channels) == (2, 2)
    for part in ("2 units, 4 spikes", "2 channels at 10 Hz", "x, y [cm] at 10 Hz", "3 trials"):
        assert part in repr(recording)


def test_retiming_a_clock_moves_its_streams_and_no_others():
    recording = whole()
    late = recording.retimed("amp", lambda t: 1.001 * t + 5, did="late")
    np.testing.assert_allclose(late["lfp"].time_s, 1.001 * recording["lfp"].time_s + 5)
    assert late["spikes"] is recording["spikes"]
    assert late.movement is recording.movement
    assert late.provenance == ("late",)
    folded = recording.retimed("ref", lambda t: np.where(t > 0.4, t - 0.4, t), did="folded")
    np.testing.assert_allclose(folded["spikes"].times_s, np.sort([0.1, 0.5 - 0.4, 2.5 - 0.4, 0.3]))
    np.testing.assert_allclose(np.sort(folded["spikes"].trains[0]), [0.1, 0.1, 2.1])


def test_units_selected_keep_their_trains_in_the_order_asked_for():
    stream = spikes([[0.1, 0.4], [0.2], [0.3, 0.5]], unit_names=["a", "b", "c"])
    part = stream.select([2, 0])
    assert list(part.units["name"]) == ["c", "a"]
    np.testing.assert_array_equal(part.trains[0], [0.3, 0.5])
    np.testing.assert_array_equal(part.trains[1], [0.1, 0.4])
    assert lfp().select([1]).channels == ["channel1"]


def test_split_units_makes_two_clocks_that_still_agree_and_lose_no_spike():
    rng = np.random.default_rng(0)
    trains = [np.sort(rng.uniform(0, 10, 20)) for _ in range(9)]
    recording = Recording("r", "ref", (spikes(trains), lfp()))
    parted = split_units(recording, 4, rng=np.random.default_rng(1))
    assert parted.clocks == ["ref", "second", "amp"]
    first, second = parted.on("ref")[0], parted.on("second")[0]
    assert (first.n_units, second.n_units) == (4, 5)
    back = {n: t for s in (first, second) for n, t in zip(s.units["name"], s.trains, strict=True)}
    for k, train in enumerate(trains):
        np.testing.assert_array_equal(back[f"unit{k}"], train)
    np.testing.assert_array_equal(first.support, second.support)
    again = split_units(recording, 4, rng=np.random.default_rng(1))
    assert list(again.on("ref")[0].units["name"]) == list(first.units["name"])
    other = split_units(recording, 4, rng=np.random.default_rng(2))
    assert list(other.on("ref")[0].units["name"]) != list(first.units["name"])


def test_split_units_parts_a_population_of_counts_too():
    counts = lfp(kind="counts", name="binned", n_channels=5, clock="ref")
    parted = split_units(Recording("r", "ref", (counts,)), 2, rng=np.random.default_rng(0))
    both = list(parted.signals)
    assert [s.n_channels for s in both] == [2, 3]
    assert sorted(both[0].channels + both[1].channels) == counts.channels


@pytest.mark.parametrize("n_first", [0, 2, 5])
def test_a_population_too_small_to_split_is_refused(n_first):
    with pytest.raises(RecordingError, match=f"cannot leave {n_first} of 2 units .* between 1 and 1"):
        split_units(whole(), n_first, rng=np.random.default_rng(0))
    with pytest.raises(RecordingError, match="has no units to split; it needs spikes or counts"):
        split_units(Recording("r", "amp", (lfp(),)), 1, rng=np.random.default_rng(0))


def test_the_lfp_of_one_system_can_be_given_a_clock_of_its_own():
    recording = Recording("r", "ref", (spikes(), lfp(clock="ref")))
    apart = separate_lfp(recording)
    assert (apart["spikes"].clock, apart["lfp"].clock) == ("ref", "second")
    np.testing.assert_array_equal(apart["lfp"].data.values, recording["lfp"].data.values)
    with pytest.raises(RecordingError, match=r"not both spikes and LFP.* --split-units N"):
        separate_lfp(Recording("r", "ref", (spikes(),)))


@pytest.mark.parametrize("period", [None, 4.0])
def test_a_circular_quantity_becomes_a_point_on_a_circle(period):
    place = np.linspace(0, 4, 9)
    hand = Movement.from_array(place, rate_hz=10, axes=["place"]).circular(period)
    assert hand.axes == ["cos place", "sin place"]
    np.testing.assert_allclose(np.hypot(*hand.data.values.T), 1)
    np.testing.assert_allclose(hand.data.values[0], hand.data.values[-1], atol=1e-12)
    angle = np.unwrap(np.arctan2(hand.data.values[:, 1], hand.data.values[:, 0]))
    np.testing.assert_allclose(angle, 2 * np.pi * place / 4)
