"""Public recordings in the makers' own formats load with the counts that neo, MNE and pynwb find in them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import mne
import neo
import numpy as np
import pytest
import scipy.io

from data_loaders import LoadError, info, load, save
from neurofuse.recording import Recording

DATA = Path(os.environ.get("NEUROFUSE_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
NATIVE = DATA / "native_formats"
pytestmark = [
    pytest.mark.skipif(not NATIVE.is_dir(), reason=f"no real recordings at {DATA}; set NEUROFUSE_DATA"),
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
]


def path_to(*parts: str) -> Path:
    path = DATA.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"{path} is not here")
    return path


def n_spikes(recording: Recording) -> int:
    return sum(s.times_s.size for s in recording.spikes)


MAKERS = {
    "blackrock 2.3": ("blackrock/FileSpec2.3001.nev", neo.io.BlackrockIO, 4, 964),
    "blackrock 2.1": ("blackrock/blackrock_2_1/l101210-001.nev", neo.io.BlackrockIO, 218, 14210),
    "blackrock 2.1, second sorting": (
        "blackrock/blackrock_2_1/l101210-001-02.nev",
        neo.io.BlackrockIO,
        239,
        14051,
    ),
    "blackrock pause": ("blackrock/PauseCorrect/pause_correct.nev", neo.io.BlackrockIO, 195, 11183),
    "plexon": ("plexon/File_plexon_1.plx", neo.io.PlexonIO, 4, 24717),
    "spike2": ("spike2/File_spike2_1.smr", neo.io.Spike2IO, 15, 247),
    "neuralynx": ("neuralynx/Cheetah_v5.6.3/original_data", neo.io.NeuralynxIO, 4, 22796),
}


@pytest.mark.parametrize("name", MAKERS)
def test_units_and_spikes_are_those_neo_reads(name):
    relative, reader, n_units, total = MAKERS[name]
    path = path_to("native_formats", relative)
    recording = load(path)
    block = reader(str(path)).read_block()
    kept = [
        np.concatenate([s.spiketrains[k].rescale("s").magnitude for s in block.segments])
        for k in range(len(block.segments[0].spiketrains))
        if block.segments[0].spiketrains[k].annotations.get("unit_id") != 255
    ]
    assert (recording.n_units, n_spikes(recording)) == (len(kept), sum(map(len, kept))) == (n_units, total)
    for train, truth in zip(recording["spikes"].trains, kept, strict=True):
        np.testing.assert_array_equal(train, truth)
    item = next(i for i in info(path).items if i.role == "spikes")
    assert (item.n_units, item.n_spikes) == (n_units, total)


def test_a_plexon_file_that_stops_early_is_noted(tmp_path):
    content = path_to("native_formats", "plexon/File_plexon_1.plx").read_bytes()
    (tmp_path / "half.plx").write_bytes(content[: len(content) // 2])
    assert any("74.892 s, its data end at 32.6" in line for line in load(tmp_path / "half.plx").provenance)


@pytest.mark.parametrize(
    ("relative", "io", "stream", "shape"),
    [
        ("spikeglx/Noise4Sam_g0", neo.io.SpikeGLXIO, 0, (1155, 384)),
        (
            "spikeglx/Noise4Sam_g0/Noise4Sam_g0_imec0/Noise4Sam_g0_t0.imec0.ap.bin",
            neo.io.SpikeGLXIO,
            0,
            (1155, 384),
        ),
        ("openephysbinary/v0.4.4.1_with_video_tracking", neo.io.OpenEphysBinaryIO, 0, (49408, 32)),
    ],
)
def test_broadband_is_what_neo_reads(relative, io, stream, shape):
    recording = load(path_to("native_formats", relative))
    folder = NATIVE / Path(relative).parts[0] / Path(relative).parts[1]
    truth = io(str(folder)).read_block(lazy=True).segments[0].analogsignals[stream].load()
    assert recording["lfp"].data.shape == truth.shape == shape
    np.testing.assert_array_equal(recording["lfp"].data.values, truth.magnitude)
    assert recording["lfp"].start_s == float(truth.t_start)


def test_a_pause_in_a_blackrock_file_stays_a_pause_with_hand_movement_on_both_sides():
    path = path_to("native_formats", "blackrock/PauseCorrect/pause_correct.nev")
    recording = load(path, movement="HandXcm,HandYcm")
    assert recording.movement.axes == ["HandXcm", "HandYcm"]
    np.testing.assert_allclose(recording.movement.support, [[0, 4], [31.0087, 35.0087]], atol=1e-9)
    np.testing.assert_allclose(recording["spikes"].support, recording.movement.support, atol=2e-3)
    assert recording.movement.time_s.size == 8000
    assert recording.clocks == ["pause_correct"]
    assert not recording.n_channels, "eye, hand and target channels are no LFP"
    family = load(None, spikes=path, movement=f"{path.with_suffix('.ns2')}::HandXcm")
    assert family.clocks == ["pause_correct"], "a .nev and its .ns2 are one clock"


def test_analog_inputs_are_left_out_unless_they_are_named():
    path = path_to("native_formats", "blackrock/blackrock_2_1/l101210-001.nev")
    assert load(path).n_channels == 0
    assert load(path, lfp="nsx2")["lfp"].data.shape == (3640, 6)
    assert load(path, movement="ainp9").movement.axes == ["ainp9"]


def test_segments_of_the_nix_file_are_set_apart():
    path = path_to("native_formats", "nix/nixio_fr.nix")
    recording = load(path, lfp="Seg 0 :: Data 1")
    assert n_spikes(recording) == 20
    assert recording["lfp"].data.shape == (100, 3)
    assert len(recording["lfp"].support) == 2
    assert np.diff(recording["lfp"].support.ravel())[1] >= 10


@pytest.mark.parametrize("kind", ["int16", "float32"])
def test_brainvision_is_what_mne_reads(kind):
    path = path_to("native_formats", "brainvision", f"File_brainvision_3_{kind}.vhdr")
    recording = load(path)
    raw = mne.io.read_raw_brainvision(path, verbose="ERROR")
    names = [n for n in raw.ch_names if not n.startswith("EOG")]
    assert recording["lfp"].channels == names
    np.testing.assert_array_equal(recording["lfp"].data.values, raw.get_data(picks=names).T)
    assert len(recording["lfp"].support) == 34, "34 segments, each placed by the date of its marker"


def test_edf_is_what_mne_reads():
    path = path_to("native_formats", "edf", "edf+C.edf")
    raw = mne.io.read_raw_edf(path, verbose="ERROR")
    np.testing.assert_array_equal(load(path)["lfp"].data.values, raw.get_data().T)


def test_nwb_has_the_units_and_the_lfp_of_the_tutorial():
    path = path_to("native_formats", "nwb", "ecephys_tutorial_v2.5.0.nwb")
    recording = load(path)
    assert (recording.n_units, n_spikes(recording)) == (10, 195)
    assert recording["lfp"].data.shape == (50, 4)
    assert recording["lfp"].rate_hz == pytest.approx(200)
    assert load(path, lfp="ElectricalSeries", spikes="none")["lfp"].rate_hz == pytest.approx(20000)


def test_a_spikeglx_header_without_its_samples_is_refused():
    folder = path_to("native_formats", "spikeglx/Noise4Sam_g0/Noise4Sam_g0_imec0")
    with pytest.raises(LoadError, match=r"lf\.meta' needs its samples '.*lf\.bin' in the same folder"):
        load(folder / "Noise4Sam_g0_t0.imec0.lf.meta")


def test_every_native_file_loads_or_is_refused_by_name():
    for path in sorted(p for p in NATIVE.rglob("*") if p.is_file()):
        try:
            loaded, message = load(path), ""
        except LoadError as error:
            loaded, message = None, str(error)
        assert (loaded is not None and loaded.streams and json.dumps(info(path).to_dict())) or (
            path.name in message and message[-1] == "."
        )


# Sets with movement


def test_centre_out_trials_give_84_units_and_velocity():
    path = path_to("m1_center_out", "center_out_trials_001_143.mat")
    recording = load(path, movement="vel")
    trials = scipy.io.loadmat(path, squeeze_me=True, struct_as_record=False)["trial_data"]
    assert recording.n_units == 84
    np.testing.assert_array_equal(
        recording["M1_spikes"].data.values, np.concatenate([t.M1_spikes for t in trials])
    )
    np.testing.assert_array_equal(recording.movement.data.values, np.concatenate([t.vel for t in trials]))
    assert len(recording.trials) == 143
    assert len(recording.movement.support) == 17, "at 16 borders the hand is somewhere else"
    assert recording["M1_spikes"].sample_s == 0.05
    k = 20
    row = recording.trials.iloc[k]
    at = np.searchsorted(recording.movement.time_s, row["peak_speed_s"] - 1e-9)
    np.testing.assert_array_equal(
        recording.movement.data.values[at], trials[k].vel[trials[k].idx_peak_speed - 1]
    )


def test_the_track_gives_counts_field_power_and_a_circular_position():
    path = path_to("hippocampus_rat_track", "Figure2_source_data_wake.mat")
    recording = load(
        None,
        spikes=f"{path}::Spikes",
        lfp=f"{path}::FPAuhf",
        movement=f"{path}::Position",
        bin_s=0.1,
        circular=True,
    )
    assert recording["Spikes"].data.shape == (2650, 77)
    assert recording["Spikes"].kind == "counts"
    assert recording["FPAuhf"].data.shape == (2650, 128)
    assert recording["FPAuhf"].kind == "power"
    assert recording.movement.axes == ["cos Position", "sin Position"]
    assert recording.clocks == [path.stem]


def test_ca1_spikes_and_tracking_are_two_clocks():
    spikes = path_to("ca1_tracks", "linear-track", "spikes.mat")
    tracking = path_to("ca1_tracks", "linear-track", "trajectory.videoPositionTracking")
    recording = load(None, spikes=str(spikes), movement=str(tracking))
    assert recording.clocks == ["trajectory", "spikes"]
    truth = []
    for tetrode in scipy.io.loadmat(spikes)["spikes"][0, 0].ravel():
        for group in tetrode.ravel():
            for unit in group.ravel() if group.dtype == object else [group]:
                if unit.dtype.names and unit["time"].ravel()[0].size:
                    truth.append(unit["time"].ravel()[0].ravel())
    found = recording.spikes[0].trains
    assert len(found) == len(truth) == 31
    for a, b in zip(found, truth, strict=True):
        np.testing.assert_array_equal(a, b)
    assert recording.movement.units == "pixel"
    assert recording.movement.time_s.size == 118964


def test_grip_force_is_movement_and_the_rest_lfp():
    folder = path_to("ecog_grip_force")
    header = next(folder.rglob("*.vhdr"))
    recording = load(header, movement="MOV_RIGHT")
    assert recording["lfp"].data.shape == (19001, 9)
    assert recording.movement.axes == ["MOV_RIGHT"]
    assert any("unit scaling is probably off" in line for line in recording.provenance)


@pytest.mark.parametrize("suffix", [".nc", ".nwb"])
def test_a_real_recording_with_a_pause_survives_conversion(tmp_path, suffix):
    path = path_to("native_formats", "blackrock/PauseCorrect/pause_correct.nev")
    recording = load(path, movement="HandXcm,HandYcm")
    back = load(save(recording, tmp_path / f"a{suffix}"))
    np.testing.assert_array_equal(back["spikes"].times_s, recording["spikes"].times_s)
    np.testing.assert_array_equal(back["spikes"].support, recording["spikes"].support)
    np.testing.assert_array_equal(back.movement.time_s, recording.movement.time_s)
    np.testing.assert_array_equal(back.movement.data.values, recording.movement.data.values)
    assert repr(back) == repr(recording)
