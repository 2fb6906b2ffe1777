"""Which file gives what, what its clock is called, and what `info` lists."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data_loaders import LoadError, info, load, save
from neurofuse.recording import Movement, Recording, Signal, Spikes


def counts(path: Path, n: int = 60) -> Path:
    np.savez(path, spikes=np.random.default_rng(0).poisson(1.0, (n, 4)), t=np.arange(n) * 0.05)
    return path


def movement(path: Path, n: int = 60) -> Path:
    np.savez(path, vel=np.random.default_rng(1).normal(size=(n, 2)), t=np.arange(n) * 0.05)
    return path


def lfp(path: Path, n: int = 3000) -> Path:
    np.savez(path, lfp=np.random.default_rng(2).normal(size=(n, 3)), t=np.arange(n) / 1000)
    return path


def test_every_file_is_a_clock_and_the_movement_has_the_reference(tmp_path):
    a, b, c = counts(tmp_path / "neural.npz"), lfp(tmp_path / "field.npz"), movement(tmp_path / "hand.npz")
    recording = load([a, b, c], movement="vel")
    assert recording.reference == "hand"
    assert recording.clocks == ["hand", "neural", "field"]
    assert [(s.name, s.clock) for s in recording.streams] == [("spikes", "neural"), ("lfp", "field")]
    same = load(None, spikes=a, lfp=f"{b}::lfp", movement=f"{c}::vel")
    assert same.clocks == recording.clocks
    assert load([a, b]).reference == "neural", "without movement the spikes have it"
    assert load(b).reference == "field"


def test_streams_of_one_file_share_its_clock(tmp_path):
    path = tmp_path / "all.npz"
    np.savez(
        path,
        spikes=np.ones((60, 2), int),
        lfp=np.random.default_rng(0).normal(size=(60, 2)),
        t=np.arange(60) * 0.05,
    )
    assert load(path).clocks == ["all"]
    assert load(None, spikes=f"{path}::spikes", lfp=f"{path}::lfp").clocks == ["all"]


def test_files_of_one_name_in_two_folders_are_two_clocks(tmp_path):
    for folder in ("left", "right"):
        (tmp_path / folder).mkdir()
    a, b = counts(tmp_path / "left" / "s.npz"), movement(tmp_path / "right" / "s.npz")
    recording = load(None, spikes=a, movement=f"{b}::vel")
    assert recording.clocks == ["right/s", "left/s"]


def test_of_several_files_the_first_that_has_it_gives_it(tmp_path):
    first, second = counts(tmp_path / "first.npz"), counts(tmp_path / "second.npz", n=50)
    recording = load([first, second])
    assert recording["spikes"].time_s.size == 60
    assert load([first, second], spikes=str(second))["spikes"].time_s.size == 50
    with pytest.raises(
        LoadError, match=r"'first\.npz, second\.npz' has no movement called 'hand'; it has 'spikes'"
    ):
        load([first, second], movement="hand")


def two_clocks() -> Recording:
    rng = np.random.default_rng(0)
    spikes = Spikes.from_trains([[0.1, 0.2], [0.5]], clock="probe")
    field = Signal.from_array(rng.normal(size=(100, 2)), clock="amp", rate_hz=100.0)
    hand = Movement.from_array(rng.normal(size=(100, 2)), rate_hz=100.0, axes=["x", "y"], units="cm")
    return Recording("session", "camera", (spikes, field), hand, provenance=("planted",))


@pytest.mark.parametrize("suffix", [".nc", ".nwb", ".nix"])
def test_our_own_files_keep_the_clock_names_stored_in_them(tmp_path, suffix):
    path = save(two_clocks(), tmp_path / f"saved{suffix}")
    recording = load(path)
    assert recording.clocks == ["camera", "probe", "amp"]
    assert recording.name == "session"
    assert recording.provenance == ("planted",)
    part = load(path, lfp="channel1", movement="y", spikes="none")
    assert part.clocks == ["camera", "amp"]
    assert part["lfp"].channels == ["channel1"]
    assert part.movement.axes == ["y"]
    with pytest.raises(LoadError, match=r"has no spikes called 'q'; it has 'spikes'"):
        load(path, spikes="q")
    assert {i.name for i in info(path).items} == {"spikes", "lfp", "movement"}


def test_clocks_of_the_same_name_in_two_of_our_files_stay_apart(tmp_path):
    a, b = save(two_clocks(), tmp_path / "a.nc"), save(two_clocks(), tmp_path / "b.nc")
    recording = load(None, movement=a, spikes=b)
    assert recording.reference == "camera"
    assert recording["spikes"].clock == "probe"
    other = load(None, spikes=a, lfp=f"{b}::lfp", movement=b)
    assert other["spikes"].clock != other["lfp"].clock


def test_files_of_one_stem_in_one_folder_are_told_apart_by_their_endings(tmp_path):
    a = counts(tmp_path / "s.npz")
    (tmp_path / "s.csv").write_text("t,x\n" + "\n".join(f"{k * 0.05},{k % 7}" for k in range(60)))
    assert load(None, spikes=f"{a}::spikes", movement=f"{tmp_path / 's.csv'}::x").clocks == ["s.csv", "s.npz"]


def test_a_folder_named_like_a_makers_file_does_not_get_in_its_way(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a.nev").write_bytes(b"NEURALEV")
    with pytest.raises(LoadError, match=r"'a\.nev' is not a Blackrock"):
        load(tmp_path / "a.nev")


# info


def test_info_prints_a_table_and_how_to_select(tmp_path):
    listing = info(counts(tmp_path / "a.npz"))
    text = str(listing)
    assert "60x4" in text
    assert "spikes" in text
    assert "PATH::NAME" in text
    assert json.loads(json.dumps(listing.to_dict()))["items"][0]["name"] == "spikes"
    assert listing.has("spikes")
    assert listing.offers("spikes")
    assert not listing.offers("movement")


def test_importing_the_package_reads_no_heavy_library():
    code = (
        "import sys, data_loaders; "
        "print([m for m in ('numpy', 'neo', 'mne', 'pynwb', 'h5py', 'torch') if m in sys.modules])"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )


def test_finding_a_reader_imports_no_reader_library(tmp_path):
    path = counts(tmp_path / "a.npz")
    code = (
        f"import sys; from data_loaders import load; load({str(path)!r}); "
        "print([m for m in ('neo', 'mne', 'pynwb', 'torch', 'sklearn', 'matplotlib') if m in sys.modules])"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )


def test_a_format_can_be_named(tmp_path):
    assert load(counts(tmp_path / "a.npz"), format="npz").n_units == 4
