"""Files of makers and of exchange formats, written here by hand, become recordings with the same numbers."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import mne
import neo
import numpy as np
import pynwb
import pytest
import quantities as pq

from data_loaders import from_neo, info, load
from data_loaders.guess_roles import channel_role
from data_loaders.readers.neo_files import _Channels, _load

RNG = np.random.default_rng(0)


# NIX, through neo


def block(*, starts=(0.0,), rate_hz=1000.0, n=500) -> neo.Block:
    """Segments with two units, two LFP channels, hand position and a 10 Hz temperature."""
    rng = np.random.default_rng(1)
    out = neo.Block(name="session")
    for k, start_s in enumerate(starts):
        segment = neo.Segment(name=f"part {k}")
        stop_s = start_s + n / rate_hz
        for unit in range(2):
            times = np.sort(rng.uniform(start_s, stop_s, 20))
            segment.spiketrains.append(
                neo.SpikeTrain(times, units="s", t_start=start_s, t_stop=stop_s, name=f"unit {unit}")
            )
        common = {"t_start": start_s * pq.s, "sampling_rate": rate_hz * pq.Hz}
        for name, channels, unit in (
            ("raw", ["c1", "c2"], "uV"),
            ("kin", ["HandX", "HandY"], "cm"),
            ("aux", ["trig"], "V"),
        ):
            segment.analogsignals.append(
                neo.AnalogSignal(
                    rng.normal(size=(n, len(channels))),
                    units=unit,
                    name=name,
                    array_annotations={"channel_names": np.array(channels)},
                    **common,
                )
            )
        segment.analogsignals.append(
            neo.AnalogSignal(
                rng.normal(size=(5, 1)),
                units="mV",
                t_start=start_s * pq.s,
                sampling_rate=10 * pq.Hz,
                name="slow",
            )
        )
        out.segments.append(segment)
    return out


def write_nix(path: Path, made: neo.Block) -> Path:
    with neo.io.NixIO(str(path), "ow") as file:
        file.write_block(made)
    return path


def test_a_nix_file_gives_units_electrodes_and_movement_by_name(tmp_path):
    made = block()
    path = write_nix(tmp_path / "session.nix", made)
    recording = load(path, movement="HandX,HandY")
    assert recording.clocks == ["session"]
    assert recording["lfp"].channels == ["c1", "c2"], "not the hand, the trigger, or what is sampled at 10 Hz"
    np.testing.assert_array_equal(recording["lfp"].data.values, made.segments[0].analogsignals[0].magnitude)
    np.testing.assert_array_equal(recording.movement.data.values, made.segments[0].analogsignals[1].magnitude)
    assert recording.movement.axes == ["HandX", "HandY"]
    assert recording.movement.units == "cm"
    for train, truth in zip(recording["spikes"].trains, made.segments[0].spiketrains, strict=True):
        np.testing.assert_array_equal(train, truth.magnitude)
    np.testing.assert_array_equal(recording["spikes"].support, [[0.0, 0.5]])


def test_names_pick_whole_signals_units_and_channels_across_signals(tmp_path):
    path = write_nix(tmp_path / "session.nix", block())
    recording = load(path, spikes="unit 1", lfp="c2,slow", movement="kin")
    assert list(recording["spikes"].units["name"]) == ["unit 1"]
    assert [s.channels for s in recording.signals] == [["c2"], ["slow"]]
    assert recording.movement.axes == ["HandX", "HandY"]
    with pytest.raises(ValueError, match=r"movement comes from 'kin at 1000 Hz', 'slow at 10 Hz'"):
        load(path, movement="HandX,slow")


def test_names_with_colons_are_names_unless_a_file_is_before_them(tmp_path):
    made = block()
    made.segments[0].analogsignals[0].name = "Seg 0 :: Data 1"
    path = write_nix(tmp_path / "session.nix", made)
    assert load(path, lfp="Seg 0 :: Data 1").n_channels == 2
    assert load(path, lfp=f"{path}::Seg 0 :: Data 1").n_channels == 2
    with pytest.raises(ValueError, match=r"there is no file 'gone\.nix'"):
        load(path, lfp="gone.nix::Data 1")


def test_segments_with_a_pause_keep_the_pause(tmp_path):
    path = write_nix(tmp_path / "session.nix", block(starts=(0.0, 30.0)))
    recording = load(path, movement="kin")
    np.testing.assert_allclose(recording["spikes"].support, [[0, 0.5], [30, 30.5]])
    np.testing.assert_allclose(recording["lfp"].support, [[0, 0.5], [30, 30.5]])
    np.testing.assert_allclose(recording.movement.support, [[0, 0.5], [30, 30.5]])
    assert info(path).items[0].n_segments == 2


def test_segments_that_all_start_at_zero_are_set_apart_and_it_is_noted(tmp_path):
    path = write_nix(tmp_path / "session.nix", block(starts=(0.0, 0.0)))
    recording = load(path, movement="kin")
    np.testing.assert_allclose(recording.movement.support, [[0, 0.5], [10.5, 11.0]])
    np.testing.assert_allclose(recording["spikes"].support, [[0, 0.5], [10.5, 11.0]])
    assert any("placed one after another" in line for line in recording.provenance)


def test_a_block_in_memory_gives_what_its_file_gives():
    recording = from_neo(block(), movement=("kin",))
    assert recording.reference == "session"
    assert recording["lfp"].n_channels == 2
    assert recording.n_units == 2


def test_a_file_whose_pauses_need_a_decision_names_the_option(tmp_path, monkeypatch):
    def refuse(self, *args, **kwargs):
        raise ValueError("Detected 3 timestamp gaps.\nTo load this data, provide gap_tolerance_ms parameter")

    monkeypatch.setattr(neo.io.Spike2IO, "read_block", refuse)
    monkeypatch.setattr(neo.io.Spike2IO, "__init__", lambda self, filename: None)
    (tmp_path / "a.smr").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"'a\.smr' has pauses .*pass --gap-tolerance-ms MS"):
        load(tmp_path / "a.smr")


def test_epochs_called_trials_are_the_trials():
    made = block()
    made.segments[0].epochs.append(
        neo.Epoch([0.1, 0.3] * pq.s, durations=[0.1, 0.2] * pq.s, labels=np.array(["a", "b"]), name="trials")
    )
    np.testing.assert_allclose(from_neo(made).trials[["start_s", "stop_s"]], [[0.1, 0.2], [0.3, 0.5]])


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("HandXcm", "movement"),
        ("MOV_RIGHT", "movement"),
        ("EOG+", "movement"),
        ("L1VelocityRS", "movement"),
        ("Respi", "movement"),
        ("ainp9", "other"),
        ("SyncPulseCB1", "other"),
        ("XA0", "other"),
        ("SY0", "other"),
        ("LFP_RIGHT_0", "lfp"),
        ("ECOG_RIGHT_5", "lfp"),
        ("AP12", "lfp"),
        ("CH64", "lfp"),
        ("ACC1", "lfp"),
        ("Pz", "lfp"),
    ],
)
def test_the_role_of_a_channel_is_guessed_from_its_name(name, role):
    assert channel_role(name) == role


class LazySignal:
    """A signal as neo's lazy readers give it, one that reads columns in the order of the file."""

    t_start = 0.0 * pq.s

    def __init__(self, values: np.ndarray) -> None:
        self.values, self.shape = values, values.shape

    def load(self, channel_indexes: list[int] | None = None) -> pq.Quantity:
        columns = range(self.shape[1]) if channel_indexes is None else sorted(channel_indexes)
        return self.values[:, list(columns)] * pq.uV


@pytest.mark.parametrize("columns", [[0, 1, 2], [2, 1, 0], [2, 0], [1]])
def test_channels_keep_their_samples_in_whatever_order_they_are_selected(columns):
    values = RNG.normal(size=(20, 3))
    signal = _Channels("raw", ((0, LazySignal(values)),), ("a", "b", "c"), 100.0, "uV")
    loaded, time_s = _load(signal, columns, [5.0])
    np.testing.assert_array_equal(loaded, values[:, columns])
    np.testing.assert_array_equal(time_s, 5.0 + np.arange(20) / 100)


def test_units_are_taken_in_the_order_in_which_they_are_selected(tmp_path):
    path = write_nix(tmp_path / "session.nix", block())
    names = ["unit 1", "unit 0"]
    spikes, whole = load(path, spikes=",".join(names))["spikes"], load(path)["spikes"]
    assert spikes.members == names
    for name, train in zip(names, spikes.trains, strict=True):
        np.testing.assert_array_equal(train, whole.trains[whole.members.index(name)])


# NWB, through pynwb


def write_nwb(path: Path, *, series=("hand",), bad_times: bool = False) -> dict[str, np.ndarray]:
    nwb = pynwb.NWBFile("test", "id", datetime(2020, 1, 1, tzinfo=UTC))
    rng = np.random.default_rng(0)
    device = nwb.create_device("d")
    group = nwb.create_electrode_group("g", "d", "M1", device)
    nwb.add_electrode_column("label", "name")
    for k in range(3):
        nwb.add_electrode(group=group, location="M1", label=f"e{k}")
    region = nwb.create_electrode_table_region([0, 1, 2], "all")
    raw = rng.integers(-100, 100, (500, 3)).astype(np.int16)
    lfp = pynwb.ecephys.ElectricalSeries(
        name="lfp", data=raw, electrodes=region, rate=1000.0, starting_time=2.0, conversion=1e-6
    )
    module = nwb.create_processing_module("ecephys", "x")
    module.add(pynwb.ecephys.LFP(lfp))
    nwb.add_acquisition(
        pynwb.ecephys.ElectricalSeries(name="wide", data=raw, electrodes=region, rate=30000.0)
    )
    behaviour = nwb.create_processing_module("behavior", "x")
    xy = rng.normal(size=(200, 2))
    position = pynwb.behavior.Position()
    for name in series:
        position.add_spatial_series(
            pynwb.behavior.SpatialSeries(
                name=name, data=xy, reference_frame="lab", timestamps=2 + np.arange(200) / 400.0, unit="cm"
            )
        )
    behaviour.add(position)
    nwb.add_unit_column("quality", "x")
    trains = [np.sort(rng.uniform(2, 2.5, 10)), np.sort(rng.uniform(2, 2.5, 7))]
    for k, t in enumerate(trains):
        nwb.add_unit(
            spike_times=t[::-1] if bad_times else t, obs_intervals=[[2.0, 2.5]], quality="good" if k else "ok"
        )
    nwb.add_trial_column("target", "x")
    nwb.add_trial(start_time=2.1, stop_time=2.2, target=3)
    with pynwb.NWBHDF5IO(str(path), "w") as io:
        io.write(nwb)
    return {"lfp": raw * 1e-6, "xy": xy, "t0": trains[0], "t1": trains[1]}


def test_nwb_gives_units_lfp_in_volts_behaviour_and_trials(tmp_path):
    truth = write_nwb(tmp_path / "s.nwb")
    recording = load(tmp_path / "s.nwb")
    np.testing.assert_array_equal(recording["units"].trains[0], truth["t0"])
    np.testing.assert_array_equal(recording["units"].support, [[2.0, 2.5]])
    assert list(recording["units"].units["quality"]) == ["ok", "good"]
    np.testing.assert_allclose(recording["lfp"].data.values, truth["lfp"], rtol=1e-6)
    assert recording["lfp"].channels == ["e0", "e1", "e2"]
    assert recording["lfp"].start_s == 2.0
    assert recording["lfp"].data.attrs["units"] == "V"
    np.testing.assert_array_equal(recording.movement.data.values, truth["xy"])
    assert recording.movement.axes == ["hand x", "hand y"]
    assert recording.movement.units == "cm"
    assert recording.trials.to_dict("records") == [{"start_s": 2.1, "stop_s": 2.2, "target": 3}]


def test_nwb_items_are_picked_by_path_by_last_name_or_by_column(tmp_path):
    write_nwb(tmp_path / "s.nwb")
    recording = load(tmp_path / "s.nwb", spikes="unit 1", lfp="wide", movement="hand y")
    assert recording["units"].n_units == 1
    assert recording["lfp"].rate_hz == pytest.approx(30000)
    assert recording.movement.axes == ["hand y"]
    assert load(tmp_path / "s.nwb", movement="behavior/Position/hand").movement.axes == ["hand x", "hand y"]
    assert load(tmp_path / "s.nwb", lfp="e1").n_channels == 1


def test_nwb_with_several_behaviour_series_needs_a_name(tmp_path):
    write_nwb(tmp_path / "s.nwb", series=("hand", "eye"))
    with pytest.raises(ValueError, match=r"several behaviour series .*hand.*eye.*--movement NAME"):
        load(tmp_path / "s.nwb")
    assert load(tmp_path / "s.nwb", movement="eye").movement.name == "eye"
    assert load(tmp_path / "s.nwb", movement="none").movement is None


def test_nwb_units_that_are_not_in_order_are_refused(tmp_path):
    write_nwb(tmp_path / "s.nwb", bad_times=True)
    with pytest.raises(ValueError, match=r"'s.nwb': .*not in order"):
        load(tmp_path / "s.nwb")


# BrainVision and EDF, written by hand


def write_brainvision(
    path: Path, *, names=("F3", "MOV_RIGHT", "F4"), segments=(1,), dates=None, n=600
) -> np.ndarray:
    values = np.random.default_rng(0).integers(-1000, 1000, (n, len(names))).astype("<i2")
    path.with_suffix(".eeg").write_bytes(values.tobytes())
    channels = "\n".join(f"Ch{k + 1}={name},,0.5,µV" for k, name in enumerate(names))
    path.with_suffix(".vhdr").write_text(
        "Brain Vision Data Exchange Header File Version 1.0\n\n[Common Infos]\nCodepage=UTF-8\n"
        f"DataFile={path.stem}.eeg\nMarkerFile={path.stem}.vmrk\nDataFormat=BINARY\nDataOrientation=MULTIPLEXED\n"
        f"NumberOfChannels={len(names)}\nSamplingInterval=2000\n\n[Binary Infos]\nBinaryFormat=INT_16\n\n"
        f"[Channel Infos]\n{channels}\n",
        encoding="utf-8",
    )
    dates = dates or [""] * len(segments)
    marks = "\n".join(
        f"Mk{k + 1}=New Segment,,{s},1,0,{d}" for k, (s, d) in enumerate(zip(segments, dates, strict=True))
    )
    path.with_suffix(".vmrk").write_text(
        "Brain Vision Data Exchange Marker File, Version 1.0\n\n[Common Infos]\nCodepage=UTF-8\n"
        f"DataFile={path.stem}.eeg\n\n[Marker Infos]\n{marks}\n",
        encoding="utf-8",
    )
    return values * 0.5e-6


@pytest.mark.parametrize("suffix", [".vhdr", ".eeg", ".vmrk"])
def test_brainvision_gives_volts_and_movement_by_name(tmp_path, suffix):
    truth = write_brainvision(tmp_path / "a.vhdr")
    recording = load(tmp_path / f"a{suffix}", movement="MOV_RIGHT")
    assert recording["lfp"].channels == ["F3", "F4"]
    np.testing.assert_allclose(recording["lfp"].data.values, truth[:, [0, 2]], rtol=1e-6)
    np.testing.assert_allclose(recording.movement.data.values, truth[:, [1]], rtol=1e-6)
    assert recording["lfp"].rate_hz == pytest.approx(500)
    assert recording.clocks == ["a"]
    assert load(tmp_path / f"a{suffix}")["lfp"].channels == ["F3", "F4"], (
        "grip force is no LFP even if it is not selected"
    )


def test_brainvision_segments_are_placed_by_their_dates(tmp_path):
    dates = ["20200101120000000000", "20200101120010500000"]
    write_brainvision(tmp_path / "a.vhdr", segments=(1, 301), dates=dates)
    np.testing.assert_allclose(load(tmp_path / "a.vhdr")["lfp"].support, [[0, 0.6], [10.5, 11.1]])
    write_brainvision(tmp_path / "b.vhdr", segments=(1, 301))
    recording = load(tmp_path / "b.vhdr")
    np.testing.assert_allclose(recording["lfp"].support, [[0, 0.6], [10.6, 11.2]])
    assert any("10 s apart" in line for line in recording.provenance)


def test_brainvision_without_its_parts_is_refused_by_the_part_that_is_missing(tmp_path):
    write_brainvision(tmp_path / "a.vhdr")
    (tmp_path / "a.eeg").write_bytes((tmp_path / "a.eeg").read_bytes()[:-3])
    with pytest.raises(ValueError, match=r"'a\.eeg' is cut short"):
        load(tmp_path / "a.vhdr")
    (tmp_path / "a.eeg").unlink()
    with pytest.raises(ValueError, match=r"needs its samples 'a\.eeg'"):
        load(tmp_path / "a.vhdr")


def test_a_header_with_impossible_volts_is_noted(tmp_path):
    write_brainvision(tmp_path / "a.vhdr")
    text = (tmp_path / "a.vhdr").read_text(encoding="utf-8").replace("0.5,µV", "1000,mV")
    (tmp_path / "a.vhdr").write_text(text, encoding="utf-8")
    assert any("unit scaling is probably off" in line for line in load(tmp_path / "a.vhdr").provenance)


def write_edf(path: Path, *, kind: str = "", n_records: int = 3, rate: int = 100) -> np.ndarray:
    labels = ["LFP1", "LFP2", "GRIP"]
    values = np.random.default_rng(0).integers(-2000, 2000, (len(labels), n_records * rate)).astype("<i2")

    def column(items: list[object], width: int) -> bytes:
        return b"".join(str(i).encode().ljust(width) for i in items)

    n = len(labels)
    head = b"".join(
        [
            column(["0"], 8),
            column(["X X X X"], 80),
            column(["Startdate X X X X"], 80),
            column(["01.01.20"], 8),
            column(["12.00.00"], 8),
            column([256 * (n + 1)], 8),
            column([kind], 44),
            column([n_records], 8),
            column([1], 8),
            column([n], 4),
            column(labels, 16),
            column([""] * n, 80),
            column(["uV"] * n, 8),
            column([-3276.8] * n, 8),
            column([3276.7] * n, 8),
            column([-32768] * n, 8),
            column([32767] * n, 8),
            column([""] * n, 80),
            column([rate] * n, 8),
            column([""] * n, 32),
        ]
    )
    body = b"".join(
        values[c, r * rate : (r + 1) * rate].tobytes() for r in range(n_records) for c in range(n)
    )
    path.write_bytes(head + body)
    return values.T * 0.1e-6


def test_edf_gives_volts(tmp_path):
    truth = write_edf(tmp_path / "a.edf")
    recording = load(tmp_path / "a.edf", movement="GRIP")
    np.testing.assert_allclose(recording["lfp"].data.values, truth[:, :2], atol=1e-12)
    np.testing.assert_allclose(recording.movement.data.values, truth[:, 2:], atol=1e-12)
    listing = info(tmp_path / "a.edf")
    assert {i.role: i.n_channels for i in listing.items} == {"lfp": 2, "movement": 1}


def test_fif_is_read_by_channel_type(tmp_path):
    values = np.random.default_rng(0).normal(size=(3, 400)) * 1e-6
    made = mne.create_info(["E1", "E2", "lever"], 200.0, ["ecog", "seeg", "misc"])
    mne.io.RawArray(values, made, verbose="ERROR").save(tmp_path / "a_raw.fif", fmt="double", verbose="ERROR")
    recording = load(tmp_path / "a_raw.fif", movement="lever")
    assert recording["lfp"].channels == ["E1", "E2"]
    np.testing.assert_array_equal(recording.movement.data.values[:, 0], values[2])
    assert recording.clocks == ["a_raw"]


def test_edf_with_pauses_is_refused(tmp_path):
    write_edf(tmp_path / "a.edf", kind="EDF+D")
    with pytest.raises(ValueError, match=r"EDF\+D: it has pauses"):
        load(tmp_path / "a.edf")


def test_by_default_what_a_listing_marks_is_taken_and_nothing_else(tmp_path):
    write_nwb(tmp_path / "s.nwb")
    write_brainvision(tmp_path / "b.vhdr")
    write_edf(tmp_path / "e.edf")
    write_nix(tmp_path / "n.nix", block())
    for name in ("s.nwb", "b.vhdr", "e.edf", "n.nix"):
        listing, recording = info(tmp_path / name), load(tmp_path / name)
        assert listing.offers("movement") == (recording.movement is not None), name
        for role in ("spikes", "lfp"):
            assert listing.offers(role) == any(s.role == role for s in recording.streams), (name, role)
        marked = {m for i in listing.items if i.default and i.role == "lfp" for m in i.members}
        assert {c for s in recording.signals for c in s.channels} == marked, name
