"""Formats of other packages: `load` selects and checks names, whatever their readers do."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest

from data_loaders import FileInfo, Format, Item, LoadError, Request, detect, info, load, register_format
from neurofuse import extensions
from neurofuse.errors import NeurofuseError
from neurofuse.recording import Movement, Recording, Signal, Spikes

ROOT = Path(__file__).parent.parent


def everything(clock: str) -> Recording:
    """Two populations (one as counts), two LFPs that share a channel name, and movement on one clock."""
    rng = np.random.default_rng(0)
    spikes = Spikes.from_trains([[0.1, 0.2], [0.5], [0.3]], clock=clock, unit_names=["a", "b", "c"])
    fields = [
        Signal.from_array(rng.normal(size=(50, 3)), clock=clock, name=n, rate_hz=50.0, channels=[*c])
        for n, c in (("left", ["c1", "c2", "ref"]), ("right", ["c3", "c4", "ref"]))
    ]
    counts = Signal.from_array(
        rng.poisson(1.0, (20, 2)),
        clock=clock,
        name="binned",
        rate_hz=20.0,
        channels=["k1", "k2"],
        kind="counts",
    )
    hand = Movement.from_array(rng.normal(size=(50, 3)), name="hand", rate_hz=50.0, axes=["x", "y", "z"])
    return Recording(clock, clock, (fields[0], spikes, counts, fields[1]), hand, provenance=("read by toy",))


def read_toy(path: Path, clock: str) -> Recording:
    del path
    return everything(clock)


def read_ignoring(path: Path, request: Request) -> Recording:
    """A reader that is given names and ignores them."""
    del path
    return everything(request.clock)


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(detect, "_REGISTERED", {})
    detect._installed.cache_clear()
    yield
    detect._installed.cache_clear()


@pytest.fixture(
    params=[Format("toy", (".toy",), read_toy), Format("toy", (".toy",), read_parts=read_ignoring)]
)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    register_format(request.param)
    (tmp_path / "a.toy").write_text("toy")
    return tmp_path / "a.toy"


def held(recording: Recording) -> dict[str, list[str]]:
    return {s.name: s.members for s in recording.streams}


def test_by_default_all_is_taken(path):
    recording = load(path)
    assert list(held(recording)) == ["left", "spikes", "binned", "right"]
    assert recording.movement.axes == ["x", "y", "z"]
    assert recording.clocks == ["a"]


def test_none_leaves_a_role_out_and_touches_no_other(path):
    assert list(held(load(path, spikes="none"))) == ["left", "right"]
    assert list(held(load(path, lfp="none"))) == ["spikes", "binned"]
    assert load(path, movement="none").movement is None


@pytest.mark.parametrize(
    ("role", "names", "found"),
    [
        ("spikes", "binned", {"binned": ["k1", "k2"]}),
        ("spikes", "c,a", {"spikes": ["c", "a"]}),
        ("spikes", "binned,b", {"binned": ["k1", "k2"], "spikes": ["b"]}),
        ("spikes", "k2,a,k1", {"binned": ["k2", "k1"], "spikes": ["a"]}),
        ("spikes", "a,spikes", {"spikes": ["a", "b", "c"]}),
        ("lfp", "right", {"right": ["c3", "c4", "ref"]}),
        ("lfp", "right,left", {"right": ["c3", "c4", "ref"], "left": ["c1", "c2", "ref"]}),
        ("lfp", "c2,c4,c1", {"left": ["c2", "c1"], "right": ["c4"]}),
    ],
)
def test_names_pick_streams_units_and_channels_in_the_order_given(path, role, names, found):
    others = {r: "none" for r in ("spikes", "lfp", "movement") if r != role}
    recording = load(path, **{role: names}, **others)
    assert list(held(recording).items()) == list(found.items())
    whole = everything("a")
    for stream in recording.streams:
        of = whole[stream.name]
        if isinstance(stream, Spikes):
            for name, train in zip(stream.members, stream.trains, strict=True):
                np.testing.assert_array_equal(train, of.trains[of.members.index(name)])
        else:
            columns = [of.members.index(c) for c in stream.members]
            np.testing.assert_array_equal(stream.data.values, of.data.values[:, columns])


def test_axes_of_movement_are_picked_in_the_order_given(path):
    movement = load(path, movement="z,x").movement
    assert movement.axes == ["z", "x"]
    np.testing.assert_array_equal(movement.data.values, everything("a").movement.data.values[:, [2, 0]])
    assert load(path, movement="hand").movement.axes == ["x", "y", "z"]


@pytest.mark.parametrize(
    ("role", "known"),
    [
        ("spikes", "'spikes', 'binned', 'a', 'b', 'c', 'k1', 'k2'"),
        ("lfp", "'left', 'right', 'c1', 'c2', 'ref', 'c3', 'c4'"),
        ("movement", "'hand', 'x', 'y', 'z'"),
    ],
)
@pytest.mark.parametrize("name", ["nonsense", "trials"])
def test_a_name_that_is_not_there_is_refused_with_those_that_are(path, role, known, name):
    with pytest.raises(LoadError, match=rf"^'a\.toy' has no {role} called '{name}'; it has {known}\.$"):
        load(path, **{role: name})
    with pytest.raises(LoadError, match=f"'{name}'"):
        load(None, **{role: f"{path}::{name}"})


def test_a_channel_of_two_streams_is_refused(path):
    with pytest.raises(
        LoadError, match=r"'a\.toy' has 'ref' in 'left', 'right'; select one of these as a whole"
    ):
        load(path, lfp="ref")


def test_what_leaves_nothing_is_refused_in_one_sentence(tmp_path):
    register_format(
        Format("toy", (".toy",), lambda p, c: everything(c).but(streams=(everything(c)["spikes"],)))
    )
    (tmp_path / "a.toy").write_text("toy")
    with pytest.raises(
        LoadError, match=r"nothing is left of 'a\.toy' \(toy\) without its movement and spikes"
    ):
        load(tmp_path / "a.toy", spikes="none", movement="none")
    with pytest.raises(LoadError, match=r"'a\.toy' \(toy\) offers no lfp by default"):
        load(None, lfp=tmp_path / "a.toy", spikes=tmp_path / "a.toy")


def test_what_a_listing_does_not_mark_is_taken_by_name_only(tmp_path):
    def describe(path: Path, clock: str) -> FileInfo:
        marked = {"spikes": "spikes", "left": "lfp", "hand": "movement"}
        items = [Item(n, r, default=n != "hand", clock=clock) for n, r in marked.items()]
        return FileInfo(str(path), "toy", (*items, Item("right", "other"), Item("binned", "counts")))

    register_format(Format("toy", (".toy",), read_toy, describe))
    (tmp_path / "a.toy").write_text("toy")
    recording = load(tmp_path / "a.toy")
    assert list(held(recording)) == ["left", "spikes"]
    assert recording.movement is None
    assert list(held(load(tmp_path / "a.toy", lfp="right", spikes="none"))) == ["right"]
    assert load(tmp_path / "a.toy", movement="hand").movement is not None
    assert not info(tmp_path / "a.toy").offers("movement")


def test_without_a_listing_of_its_own_a_format_is_listed_by_what_it_reads(path):
    listing = info(path)
    assert {i.name: i.role for i in listing.items} == {
        "spikes": "spikes",
        "left": "lfp",
        "binned": "counts",
        "right": "lfp",
        "hand": "movement",
    }
    assert listing.has("c4")
    assert listing.has("b")
    assert all(i.default for i in listing.items)


def test_a_reader_that_picks_reads_only_what_is_selected(tmp_path):
    read: list[str] = []

    def read_parts(path: Path, request: Request) -> Recording:
        columns = {"one": 0, "two": 1, "both": 2}
        chosen = request.pick(path, "lfp", columns, default=("both",))
        read.extend(n for n, k in columns.items() if k in chosen)
        # Named after nothing that was selected, as readers of large files do.
        signals = [
            Signal.from_array(np.arange(10.0), clock=request.clock, name=f"lfp {k}", rate_hz=1.0)
            for k in chosen
        ]
        return Recording(request.clock, request.clock, tuple(signals))

    register_format(Format("lazy", (".lazy",), read_parts=read_parts))
    (tmp_path / "a.lazy").write_text("lazy")
    assert list(held(load(tmp_path / "a.lazy", lfp="two"))) == ["lfp 1"]
    assert read == ["two"]
    assert list(held(load(tmp_path / "a.lazy", lfp="two,one,two"))) == ["lfp 1", "lfp 0"]
    assert list(held(load(tmp_path / "a.lazy"))) == ["lfp 2"]
    with pytest.raises(LoadError, match=r"'a\.lazy' has no lfp called 'x'; it has 'one', 'two', 'both'"):
        load(tmp_path / "a.lazy", lfp="x")
    with pytest.raises(LoadError, match=r"'a\.lazy' has no spikes called 'one'; it has none"):
        load(tmp_path / "a.lazy", spikes="one")


# Registration


def test_a_format_that_could_never_read_is_refused():
    with pytest.raises(LoadError, match="'toy' needs one of read and read_parts"):
        Format("toy", (".toy",))
    with pytest.raises(
        LoadError, match=r"claims the suffix 'TOY'; give a tuple of endings such as \('\.spk',\)"
    ):
        Format("toy", ("TOY",), read_toy)
    with pytest.raises(LoadError, match=r"claims the suffix '\.toy'; give a tuple"):
        Format("toy", ".toy", read_toy)


def test_a_built_in_format_cannot_be_replaced_but_ones_own_can(tmp_path):
    with pytest.raises(LoadError, match="'edf' is built in; give yours another name"):
        register_format(Format("edf", (".edf",), read_toy))
    with pytest.raises(LoadError, match=r"must be a data_loaders\.Format, got a int"):
        register_format(3)
    first = Format("toy", (".toy",), lambda path, clock: everything(clock).but(movement=None))
    assert register_format(first) is first
    register_format(Format("toy", (".toy",), read_toy))
    (tmp_path / "a.toy").write_text("toy")
    assert load(tmp_path / "a.toy").movement is not None


def read_numbers(path: Path, clock: str) -> Recording:
    times = [float(line) for line in path.read_text().split()]
    return Recording(clock, clock, (Spikes.from_trains([times], clock=clock),))


TOY = Format("toy", (".toy",), read_numbers)
NOT_A_FORMAT = 3
TAKEN = Format("nix", (".toy",), read_numbers)


def with_entry_point(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    point = EntryPoint("toy", f"{__name__}:{name}", detect.ENTRY_POINTS)
    monkeypatch.setattr(
        extensions, "entry_points", lambda group: [point] if group == "neurofuse.formats" else []
    )


def test_a_format_of_another_package_is_found_by_its_entry_point(tmp_path, monkeypatch):
    with_entry_point(monkeypatch, "TOY")
    (tmp_path / "a.toy").write_text("0.1 0.2 0.9")
    recording = load(tmp_path / "a.toy")
    assert recording.spikes[0].times_s.tolist() == [0.1, 0.2, 0.9]
    assert recording.clocks == ["a"]
    assert info(tmp_path / "a.toy").format == "toy"
    (tmp_path / "b.toy").write_text("0.2 0.1")
    with pytest.raises(LoadError, match=r"'b\.toy'.*not in order"):
        load(tmp_path / "b.toy")
    (tmp_path / "c.toy").write_text("zero")
    with pytest.raises(LoadError, match=r"'c\.toy' cannot be read as toy \(ValueError: could not convert"):
        load(tmp_path / "c.toy")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("NOT_A_FORMAT", r"it is a int, not a data_loaders\.Format"),
        ("GONE", "has no attribute 'GONE'"),
        ("TAKEN", "the format 'nix' is built in"),
    ],
)
def test_a_broken_entry_point_is_one_warning_and_stops_nothing_else(tmp_path, monkeypatch, name, why):
    with_entry_point(monkeypatch, name)
    np.savez(tmp_path / "a.npz", spikes=np.ones((60, 2), int), t=np.arange(60) * 0.05)
    (tmp_path / "a.toy").write_text("0.1")
    with pytest.warns(
        UserWarning, match=rf"'toy' of the package '{__name__}' is left out \(.*{why}"
    ) as caught:
        assert load(tmp_path / "a.npz").n_units == 2
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(LoadError, match="no reader claims"):
            load(tmp_path / "a.toy")


# The page of the documentation


def test_the_package_of_the_page_is_known_to_the_command_line_once_it_is_installed(tmp_path):
    page = (ROOT / "docs" / "extend" / "loader.md").read_text(encoding="utf-8")
    reader = re.search(r"^```python\n(.*?)^```", page, flags=re.M | re.S).group(1)
    group, point = re.search(
        r'^```toml\n\[project\.entry-points\."(.+)"\]\n(.+)\n```', page, flags=re.M
    ).groups()
    site = tmp_path / "site"
    (site / "mypackage").mkdir(parents=True)
    (site / "mypackage" / "__init__.py").write_text("")
    (site / "mypackage" / "twocolumn.py").write_text(reader)
    (site / "mypackage-1.0.dist-info").mkdir()
    (site / "mypackage-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: mypackage\nVersion: 1.0\n"
    )
    entry_points = site / "mypackage-1.0.dist-info" / "entry_points.txt"
    entry_points.write_text(f"[{group}]\n{point.replace(chr(34), '')}\n")
    (tmp_path / "session.spk").write_text("0.5 1\n0.7 2\n1.25 1\n")

    def run(*words: str, via: tuple[str, ...] = ("-m", "neurofuse")) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "PYTHONPATH": os.pathsep.join((str(site), str(ROOT)))}
        line = [sys.executable, *via, *words]
        return subprocess.run(line, cwd=tmp_path, env=env, capture_output=True, text=True)

    listing = run("info", "session.spk")
    assert (listing.returncode, listing.stderr) == (0, "")
    assert "session.spk (two-column)" in listing.stdout
    assert "2 units, 3 spikes" in listing.stdout
    refused = run("decode", "session.spk", "--spikes", "nonsense")
    assert refused.returncode == 2
    assert "'session.spk' has no spikes called 'nonsense'; it has 'spikes', 'u1', 'u2'." in refused.stderr
    entry_points.write_text(f"[{group}]\ntwo-column = mypackage.gone:FORMAT\n")
    code = "import data_loaders.detect as d; d.known_formats(); assert 'two-column' not in d.known_formats()"
    broken = run(code, via=("-c",))
    assert broken.returncode == 0
    assert broken.stderr.count("'two-column' of the package 'mypackage' is left out") == 1


def test_the_sentences_of_the_page_are_those_that_are_raised(tmp_path):
    page = (ROOT / "docs" / "extend" / "loader.md").read_text(encoding="utf-8")
    reader = re.search(r"^```python\n(.*?)^```", page, flags=re.M | re.S).group(1)
    namespace: dict[str, object] = {}
    exec(reader, namespace)
    register_format(namespace["FORMAT"])
    path = tmp_path / "session.spk"
    path.write_text("0.5 1\n0.7 2\n1.25 1\n")
    raised = []
    for spikes in ("nonsense", "none"):
        with pytest.raises(NeurofuseError) as caught:
            load(path, spikes=spikes)
        raised.append(str(caught.value))
    assert re.search(r"^```text\n(.*?)\n```", page, flags=re.M | re.S).group(1).splitlines() == raised
