"""Public data recipes: resolved and checked against archives that a test plays, read from files of their structure."""

from __future__ import annotations

import hashlib
import json
import threading
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import h5py
import numpy as np
import pytest

import neurofuse
from data_loaders import fetch as module
from data_loaders.fetch import RECIPES, fetch, recipe
from data_loaders.formats import LoadError
from neurofuse.cli import main

CONTENT = b"what the archive keeps"


@pytest.fixture
def archive(monkeypatch):
    """All archives on this machine: content by path, which a test may change."""
    content: dict[str, bytes | int] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = content.get(self.path.split("?")[0], 404)
            self.send_response(found if isinstance(found, int) else 200)
            self.end_headers()
            if isinstance(found, bytes):
                self.wfile.write(found)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    here = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(module, "ZENODO", f"{here}/zenodo")
    monkeypatch.setattr(module, "DANDI", f"{here}/dandi")
    monkeypatch.setattr(module, "GIN", f"{here}/gin")
    indy = RECIPES["indy"].file
    content["/zenodo/3854034"] = json.dumps(
        {
            "files": [
                {
                    "key": indy,
                    "checksum": f"md5:{hashlib.md5(CONTENT).hexdigest()}",
                    "links": {"self": f"{here}/zenodo/content"},
                }
            ]
        }
    ).encode()
    content["/zenodo/content"] = CONTENT
    maze = RECIPES["mc_maze"]
    assets = {"results": [{"path": maze.file, "asset_id": "a1"}]}
    content["/dandi/dandisets/000128/versions/0.220113.0400/assets/"] = json.dumps(assets).encode()
    digest = {"digest": {"dandi:sha2-256": hashlib.sha256(CONTENT).hexdigest()}}
    content["/dandi/assets/a1/"] = json.dumps(digest).encode()
    content["/dandi/assets/a1/download/"] = CONTENT
    grasp = RECIPES["i140703"]
    content[f"/gin/{grasp.record}/{grasp.file}"] = CONTENT
    yield content
    server.shutdown()


@pytest.mark.parametrize("name", ["indy", "mc_maze", "i140703"])
def test_a_file_is_found_in_its_archive_and_kept(archive, tmp_path, name):
    path = fetch(name, folder=tmp_path)
    assert path.read_bytes() == CONTENT
    assert path.name == RECIPES[name].file.rsplit("/", 1)[-1]
    archive.clear()
    assert fetch(name, folder=tmp_path) == path, "the second time nothing is requested"


@pytest.mark.parametrize(
    ("name", "content"), [("indy", "/zenodo/content"), ("mc_maze", "/dandi/assets/a1/download/")]
)
def test_a_file_that_is_not_the_published_one_is_refused(archive, tmp_path, name, content):
    archive[content] = b"something else"
    with pytest.raises(LoadError, match=r"arrived damaged .* fetch it again"):
        fetch(name, folder=tmp_path)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_a_file_that_the_set_does_not_hold_is_refused_with_those_it_holds(archive, tmp_path):
    with pytest.raises(LoadError, match=rf"no file 'indy_1999\.mat'; it has '{RECIPES['indy'].file}'"):
        fetch("indy", file="indy_1999.mat", folder=tmp_path)
    with pytest.raises(LoadError, match=r"returns 404 for 'other.nix'; see https://gin"):
        fetch("i140703", file="other.nix", folder=tmp_path)


def test_a_folder_that_cannot_be_written_is_named(archive, tmp_path):
    (tmp_path / "indy").write_text("a file")
    with pytest.raises(LoadError, match=r"cannot write .* choose another --out"):
        fetch("indy", folder=tmp_path)


@pytest.mark.parametrize("name", ["indy", "mc_rtt", "l101210"])
def test_no_network_is_one_sentence_and_exit_code_2(monkeypatch, capsys, tmp_path, name):
    for place in ("ZENODO", "DANDI", "GIN"):
        monkeypatch.setattr(module, place, "http://127.0.0.1:9")
    with pytest.raises(SystemExit) as stop:
        main(["fetch", name, "--out", str(tmp_path / "data")])
    shown = capsys.readouterr()
    assert stop.value.code == 2
    assert shown.out == ""
    (line,) = shown.err.splitlines()
    assert "cannot be reached" in line
    assert f"by hand from {recipe(name).page}" in line


def test_an_archive_with_accounts_is_refused_with_its_address(tmp_path):
    with pytest.raises(LoadError, match=r"account holders only; download it by hand from https://crcns.org"):
        fetch("hc-11-crcns", folder=tmp_path)


def test_the_command_line_lists_sets_with_licence_and_checksum(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["fetch"])
    assert not stop.value.code
    listing = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listing] == list(RECIPES)
    assert all(
        r.licence in line and r.checksum in line for r, line in zip(RECIPES.values(), listing, strict=True)
    )
    with pytest.raises(SystemExit) as stop:
        main(["fetch", "nothing"])
    assert stop.value.code == 2
    assert "there is no data set 'nothing'; there are 'indy'" in capsys.readouterr().err


def test_every_recipe_says_where_whose_and_how_to_cite():
    for name, r in RECIPES.items():
        assert r.name == name
        assert r.page.startswith("https://")
        assert "https://doi.org/" in r.citation
        assert r.licence


def indy(path, *, n_channels=3, n_cells=3, duration_s=20.0):
    """A file as MATLAB 7.3 writes this set: cells of references, transposed, empty cells as two flagged zeros."""
    rng = np.random.default_rng(0)
    t = 100.0 + np.arange(0, duration_s, 0.004)
    walk = np.cumsum(rng.standard_normal((len(t), 2)), axis=0)
    trains = {}
    with h5py.File(path, "w", userblock_size=512) as file:

        def cell(value, kind="double", empty=False):
            node = file.create_dataset(f"#refs#/{len(file['#refs#'])}", data=value)
            node.attrs["MATLAB_class"] = np.bytes_(kind)
            if empty:
                node.attrs["MATLAB_empty"] = np.uint8(1)
            return node.ref

        file.create_group("#refs#")
        names = [f"{'M1' if k < 2 else 'S1'} {k + 1:03d}" for k in range(n_channels)]
        letters = [cell(np.array([[ord(c)] for c in n], np.uint16), "char") for n in names]
        file["chan_names"] = np.array([letters], dtype=h5py.ref_dtype)
        spikes = np.empty((n_cells, n_channels), dtype=h5py.ref_dtype)
        for u in range(n_cells):
            for c in range(n_channels):
                if u == 2 or (u, c) == (1, 1):
                    spikes[u, c] = cell(np.zeros(2, np.uint64), empty=True)
                    continue
                trains[f"{names[c]} u{u + 1}"] = train = np.sort(rng.uniform(99.0, 121.0, 50))
                spikes[u, c] = cell(train[None])
        file["spikes"] = spikes
        file["wf"] = spikes
        file["t"] = t[None]
        file["cursor_pos"] = walk.T
        file["target_pos"] = np.round(walk).T
        file["finger_pos"] = np.concatenate([walk, walk, walk], axis=1).T
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file".ljust(512))
    return t, walk, trains


def test_a_random_target_session_is_read_with_its_units_and_areas(tmp_path):
    t, walk, trains = indy(tmp_path / "indy.mat")
    recording = neurofuse.load(tmp_path / "indy.mat")
    (spikes,) = recording.spikes
    assert list(spikes.units["name"]) == list(trains), "empty cells are no units"
    for found, written in zip(spikes.trains, trains.values(), strict=True):
        np.testing.assert_array_equal(found, written)
    assert spikes.units["area"].tolist() == ["M1", "M1", "S1", "M1", "S1"]
    assert spikes.units["sorted"].tolist() == [False] * 3 + [True] * 2
    assert recording.movement.axes == ["cursor x", "cursor y"]
    assert recording.movement.units == "mm"
    np.testing.assert_array_equal(recording.movement.data.values, walk)
    np.testing.assert_array_equal(recording.movement.time_s, t)


def test_units_and_axes_of_a_random_target_session_are_picked_by_name(tmp_path):
    _, walk, trains = indy(tmp_path / "indy.mat")
    recording = neurofuse.load(
        tmp_path / "indy.mat", spikes="S1 003 u2,M1 001 u1", movement="finger -x,finger -y"
    )
    assert list(recording.spikes[0].units["name"]) == ["S1 003 u2", "M1 001 u1"]
    np.testing.assert_array_equal(recording.spikes[0].trains[0], trains["S1 003 u2"])
    np.testing.assert_array_equal(recording.movement.data.values, np.stack([walk[:, 1], walk[:, 0]], axis=1))
    assert recording.movement.units == "cm"
    with pytest.raises(LoadError, match="no lfp called 'ecog'; it has none"):
        neurofuse.load(tmp_path / "indy.mat", lfp="ecog")
    info = neurofuse.info(tmp_path / "indy.mat")
    assert info.format == "random-target"
    assert {i.name: i.default for i in info.items} == {
        "spikes": True,
        "cursor_pos": True,
        "finger_pos": False,
        "target_pos": False,
    }


@pytest.mark.parametrize(
    ("name", "inside"), [("mc_maze", None), ("mc_rtt", None), ("miller-centre-out", "Velocity")]
)
def test_a_benchmark_session_is_read_with_the_options_of_its_recipe(tmp_path, name, inside):
    pynwb = pytest.importorskip("pynwb")
    rng = np.random.default_rng(1)
    nwb = pynwb.NWBFile("a benchmark session", "x", datetime(2020, 1, 1, tzinfo=UTC))
    trains = [np.sort(rng.uniform(0, 10, 40)) for _ in range(4)]
    for train in trains:
        nwb.add_unit(spike_times=train, obs_intervals=[[0.0, 10.0]])
    behaviour = nwb.create_processing_module("behavior", "movement")
    velocity = rng.standard_normal((1000, 2))
    series = dict(RECIPES[name].load)["movement"]
    other, at_100_hz = series.replace("vel", "pos"), {"unit": "m/s", "rate": 100.0, "starting_time": 0.0}
    if inside:
        behaviour.add(
            pynwb.behavior.BehavioralTimeSeries(
                pynwb.TimeSeries(name=series, data=velocity, **at_100_hz), name=inside
            )
        )
        position = pynwb.behavior.SpatialSeries(
            name=other, data=velocity, reference_frame="corner", **at_100_hz
        )
        behaviour.add(pynwb.behavior.Position(position, name="Position"))
    else:
        for each in (series, other):
            behaviour.add(pynwb.TimeSeries(name=each, data=velocity, **at_100_hz))
    nwb.add_trial(start_time=0.0, stop_time=5.0)
    with pynwb.NWBHDF5IO(tmp_path / "session.nwb", "w") as io:
        io.write(nwb)
    recording = neurofuse.load(tmp_path / "session.nwb", **dict(RECIPES[name].load))
    for found, written in zip(recording.spikes[0].trains, trains, strict=True):
        np.testing.assert_allclose(found, written)
    np.testing.assert_allclose(recording.movement.data.values, velocity)
    assert recording.movement.time_s[-1] == pytest.approx(9.99)
