"""Every bad input gives one sentence: what is wrong, what was given, what would be right."""

from __future__ import annotations

import pickle
from pathlib import Path

import h5py
import neo
import numpy as np
import pytest
import scipy.io

from data_loaders import info, load
from neurofuse.errors import NeurofuseError

RNG = np.random.default_rng(0)


def npz(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def spike_list(path: Path, times: np.ndarray, unit: np.ndarray | None = None) -> Path:
    return npz(path, spike_times=times, unit=np.zeros(times.size, int) if unit is None else unit)


def good(path: Path) -> Path:
    return npz(
        path,
        spikes=RNG.poisson(1.0, (100, 4)),
        lfp=RNG.normal(size=(100, 2)),
        vel=RNG.normal(size=(100, 2)),
        flat=np.stack([np.arange(100.0), np.ones(100)], axis=1),
        empty=np.zeros((100, 3), int),
    )


def refused(sentence: str, *args, **kwargs) -> None:
    with pytest.raises(NeurofuseError, match=sentence) as caught:
        load(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    assert "Traceback" not in message


def cut(source: Path, target: Path, part: float) -> Path:
    content = source.read_bytes()
    target.write_bytes(content[: int(len(content) * part)])
    return target


# What is not there


def test_a_missing_file(tmp_path):
    good(tmp_path / "a.npz")
    refused(
        r"there is no file '.*b\.npz'; check the path \(files like it there: a\.npz\)", tmp_path / "b.npz"
    )
    refused(r"there is no file .*there is no folder", tmp_path / "nowhere" / "b.npz")


def test_a_folder_that_no_maker_writes(tmp_path):
    refused(
        r"is a folder that looks like none of 'neuralynx', 'spikeglx', 'openephys'; pass --format", tmp_path
    )


def test_an_unknown_ending(tmp_path):
    (tmp_path / "a.xyz").write_text("hello")
    refused(r"ends in '\.xyz', which no reader claims; known are .*\.nev.*\.nwb", tmp_path / "a.xyz")


def test_an_unknown_format(tmp_path):
    refused(
        r"format 'blackbox' is not known; the formats are .*'blackrock'",
        good(tmp_path / "a.npz"),
        format="blackbox",
    )


def test_nothing_at_all():
    refused("no file was given", None)
    refused("there is no file 'spikes'", None, spikes="spikes")


def test_everything_left_out(tmp_path):
    refused("all 'none'", good(tmp_path / "a.npz"), spikes="none", lfp="none", movement="none")


@pytest.mark.parametrize("role", ["spikes", "lfp", "movement"])
def test_a_wrong_name_lists_what_there_is(tmp_path, role):
    path = good(tmp_path / "a.npz")
    sentence = rf"'a\.npz' has no {role} called 'hand'; it has 'spikes', 'lfp', 'vel'"
    refused(sentence, path, **{role: "hand"})
    refused(sentence, None, **{role: f"{path}::hand"})


def test_a_file_without_what_is_selected(tmp_path):
    path = npz(tmp_path / "a.npz", spike_times=np.arange(5.0), unit=np.zeros(5, int))
    refused("does not state which|offers no lfp", None, spikes=path, lfp=path)
    refused(
        r"none of a\.npz, b\.npz offers",
        [npz(tmp_path / "a.npz", x=np.ones(5)), npz(tmp_path / "b.npz", y=np.ones(5))],
    )


def test_a_plain_file_whose_names_give_no_role(tmp_path):
    path = npz(tmp_path / "a.npz", a=np.ones((5, 2)), b=np.ones((5, 2)))
    refused(r"nothing in 'a\.npz' is spikes or LFP by its name; it has 'a', 'b'", path)
    refused(
        r"does not state which of its arrays is the movement; it has 'a', 'b': pass --movement",
        None,
        movement=path,
    )


# What is damaged


def nix(path: Path) -> Path:
    block = neo.Block(name="b")
    segment = neo.Segment()
    segment.spiketrains.append(neo.SpikeTrain([0.1, 0.2], units="s", t_stop=1.0, name="u"))
    block.segments.append(segment)
    with neo.io.NixIO(str(path), "ow") as file:
        file.write_block(block)
    return path


def mat(path: Path) -> Path:
    scipy.io.savemat(path, {"spikes": RNG.poisson(1.0, (200, 5))})
    return path


def hdf5(path: Path) -> Path:
    with h5py.File(path, "w") as file:
        file["spikes"] = RNG.poisson(1.0, (2000, 5))
    return path


@pytest.mark.parametrize(
    ("write", "name"),
    [(nix, "a.nix"), (mat, "a.mat"), (hdf5, "a.h5"), (hdf5, "a.nwb"), (good, "a.npz"), (hdf5, "a.nc")],
)
def test_a_file_that_is_cut_short_is_named(tmp_path, write, name):
    path = cut(write(tmp_path / f"whole{Path(name).suffix}"), tmp_path / name, 0.5)
    refused(rf"'{name}'.*(cut short|damaged)", path, spikes="spikes", bin_s=0.1)


@pytest.mark.parametrize(
    "name",
    [
        "a.nev",
        "a.ns2",
        "a.nwb",
        "a.mat",
        "a.nix",
        "a.npz",
        "a.h5",
        "a.plx",
        "a.smr",
        "a.edf",
        "a.vhdr",
        "a.fif",
        "a.nc",
        "a.npy",
        "a.pl2",
        "a.videoPositionTracking",
    ],
)
@pytest.mark.parametrize("content", [b"", b"not of this format" * 40])
def test_a_file_that_is_something_else_is_named(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    refused(r"'?a\.", path)
    with pytest.raises(NeurofuseError, match=r"a\."):
        info(path)


def test_a_blackrock_file_with_half_a_packet(tmp_path):
    head = b"NEURALEV\x02\x03\x00\x00" + (336).to_bytes(4, "little") + (104).to_bytes(4, "little")
    (tmp_path / "a.nev").write_bytes(head.ljust(336 + 104 * 3 + 17, b"\0"))
    refused(r"'a\.nev' is cut short: its 665 bytes do not end with a whole packet of 104", tmp_path / "a.nev")


def test_pickles_are_never_opened(tmp_path):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"spikes": 1}))
    refused(r"'a\.pkl' is a pickle, which can run code", tmp_path / "a.pkl")
    refused(r"'a\.pkl' is a pickle", None, spikes=tmp_path / "a.pkl")
    np.savez(tmp_path / "o.npz", spikes=np.array([[1, 2], [3]], dtype=object))
    refused(r"'spikes' holds pickled Python objects", tmp_path / "o.npz", spikes="spikes")
    np.save(tmp_path / "o.npy", np.array([{}], dtype=object))
    refused(r"holds pickled Python objects", tmp_path / "o.npy", spikes="o")
    assert info(tmp_path / "o.npz").items[0].role == "other"


# What is refused for its numbers


def test_spike_times_that_are_not_finite(tmp_path):
    refused(r"1 of 3 times are NaN or infinite", spike_list(tmp_path / "a.npz", np.array([0.1, np.nan, 0.3])))


def test_spike_times_out_of_order(tmp_path):
    refused(
        r"'a\.npz'.*not in order \(0\.3 s is followed by 0\.2 s\)",
        spike_list(tmp_path / "a.npz", np.array([0.3, 0.2])),
    )


def test_negative_spike_times_need_a_flag(tmp_path):
    path = spike_list(tmp_path / "a.npz", np.array([-0.5, 0.2]))
    refused(r"1 spike time\(s\) are negative \(the first is -0\.5 s\); pass --allow-negative-times", path)
    assert load(path, allow_negative_times=True).spikes[0].times_s[0] == -0.5


def poisson_ms(n: int = 200) -> np.ndarray:
    return np.cumsum(2.0 + np.random.default_rng(0).exponential(40.0, n))


def test_milliseconds_are_recognised(tmp_path):
    path = spike_list(tmp_path / "a.npz", poisson_ms())
    refused(r"look like milliseconds.*pass --time-unit ms", path)
    assert load(path, time_unit="ms").spikes[0].times_s[-1] < 15


def test_ordinary_seconds_are_not_taken_for_milliseconds(tmp_path):
    times = np.cumsum(np.random.default_rng(0).exponential(5.0, 500))
    assert load(spike_list(tmp_path / "a.npz", times)).spikes[0].times_s.size == 500


def test_spikes_far_longer_than_the_movement(tmp_path):
    times = np.sort(np.random.default_rng(0).uniform(0, 10000, 5000))
    spikes = spike_list(tmp_path / "a.npz", times)
    movement = npz(tmp_path / "m.npz", pos=RNG.normal(size=(1000, 2)), t=np.arange(1000) / 100)
    refused(
        r"last .* s but the movement only 10 s.*--time-unit ms",
        None,
        spikes=spikes,
        movement=f"{movement}::pos",
    )


def test_no_spikes(tmp_path):
    refused(
        r"'empty' holds no spikes; every count is zero", good(tmp_path / "a.npz"), spikes="empty", bin_s=0.1
    )
    block = neo.Block(name="b")
    block.segments.append(neo.Segment())
    block.segments[0].spiketrains.append(neo.SpikeTrain([], units="s", t_stop=1.0, name="u"))
    with neo.io.NixIO(str(tmp_path / "a.nix"), "ow") as file:
        file.write_block(block)
    refused(r"'spikes' holds no spikes \(1 units, all empty\)", tmp_path / "a.nix")


def test_movement_that_never_moves(tmp_path):
    refused(
        r"movement axis 'flat 2' never changes in 100 samples; the axes that do are flat 1",
        good(tmp_path / "a.npz"),
        movement="flat",
        spikes="none",
        bin_s=0.1,
    )


def test_flat_lfp_is_not_refused(tmp_path):
    recording = load(good(tmp_path / "a.npz"), lfp="flat", spikes="none", rate_hz=1000.0)
    assert recording.n_channels == 2


def test_samples_that_are_missing(tmp_path):
    values = RNG.normal(size=(100, 2))
    values[3] = np.inf
    path = npz(tmp_path / "a.npz", pos=values)
    refused(r"1 of 100 samples hold NaN or infinity.*--missing drop", path, movement="pos", bin_s=0.1)
    values[:, 0] = np.nan
    refused(
        r"every sample holds NaN",
        npz(tmp_path / "b.npz", pos=values),
        movement="pos",
        bin_s=0.1,
        missing="drop",
    )


def test_the_rate_of_plain_samples_must_be_given(tmp_path):
    path = good(tmp_path / "a.npz")
    refused(
        r"how fast 'spikes' \(100 samples\) was sampled; pass --bin SECONDS",
        path,
        spikes="spikes",
        lfp="none",
    )
    refused(r"how fast 'lfp' .*--rate HZ or --bin", path, spikes="none", lfp="lfp")


def test_a_rate_that_contradicts_the_time_vector(tmp_path):
    path = npz(tmp_path / "a.npz", lfp=RNG.normal(size=(100, 2)), t=np.arange(100) / 1000)
    refused(
        r"--rate is 0\.002 s per sample for 'lfp' but its time vector 't' steps by 0\.001 s",
        path,
        rate_hz=500.0,
    )


def test_counts_that_are_no_counts(tmp_path):
    refused(r"'lfp' is no matrix of spike counts", good(tmp_path / "a.npz"), spikes="lfp", bin_s=0.1)


def test_matrices_that_slip_against_each_other(tmp_path):
    path = npz(tmp_path / "a.npz", spikes=RNG.poisson(1.0, (100, 4)), vel=RNG.normal(size=(99, 2)))
    refused(r"must be equally long, but samples are 'spikes' 100, 'vel' 99", path, movement="vel", bin_s=0.1)


def test_arrays_that_are_no_samples(tmp_path):
    path = npz(tmp_path / "a.npz", s=np.array(["a", "b"]), none=np.ones((0, 3)), cube=np.ones((4, 3, 2)))
    refused(r"'s' does not hold real numbers, so it cannot be lfp", path, lfp="s", rate_hz=1000.0)
    refused(r"'none' is empty \(shape \(0, 3\)\)", path, lfp="none,none", rate_hz=1000.0)
    refused(r"'cube' has shape \(4, 3, 2\); a matrix of samples is needed", path, lfp="cube", rate_hz=1000.0)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"time_unit": "minutes"},
            r"time unit 'minutes' is not known; give 's', 'ms', 'us' or 'samples@RATE'",
        ),
        ({"time_unit": "samples@0"}, r"not known"),
        ({"bin_s": -1.0}, r"--bin must be a positive number, got -1"),
        ({"rate_hz": 0.0}, r"--rate must be a positive number"),
        ({"missing": "ignore"}, r"--missing must be 'refuse' or 'drop', got 'ignore'"),
        ({"gap_tolerance_ms": -1.0}, r"--gap-tolerance-ms must be zero or more"),
        ({"bin_s": 0.1, "circular": True}, r"--circular needs a movement"),
    ],
)
def test_options_that_make_no_sense(tmp_path, options, sentence):
    refused(sentence, good(tmp_path / "a.npz"), lfp="none", **options)


def test_a_time_unit_for_a_file_that_states_its_own(tmp_path):
    refused(
        r"--time-unit ms has no effect: 'a\.nix' states its own unit", nix(tmp_path / "a.nix"), time_unit="ms"
    )


def test_names_that_a_block_of_neo_does_not_hold(tmp_path):
    path = nix(tmp_path / "a.nix")
    refused(r"'a\.nix' has no movement called 'Hand'; it has none", path, movement="Hand")
    refused(r"'a\.nix' has no spikes called 'v'; it has 'spikes', 'u'", path, spikes="v")


def test_a_cell_that_is_not_a_number_is_named_and_keeps_its_column(tmp_path):
    rows = [f"{0.01 * k:.2f},{k % 7},{k % 5}" for k in range(200)]
    rows[40] = "0.40,3,oops"
    path = tmp_path / "hand.csv"
    path.write_text("time,vx,vy\n" + "\n".join(rows) + "\n")
    with pytest.raises(NeurofuseError, match=r"'hand.csv', line 42, column 'vy': 'oops' is not a number"):
        info(path)
