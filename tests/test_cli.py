"""The command line: what it refuses and how, what it leaves behind, what it prints."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
import xarray as xr

import neurofuse.cli as command_line
from data_loaders import load, save
from neurofuse.cli import main
from neurofuse.jitters.lag_laws import Offset
from neurofuse.recording import Recording, Signal, Spikes
from neurofuse.simulation import SimulationConfig, simulate, two_files

# Movement and LFP of small files: long tokens and a short search keep every run to a second.
QUICK = ("--token", "0.1", "--window", "1", "--max-lag", "0.3")
RIDGE = ("--decoder", "ridge")
BIN = ("--bin", "0.1")


@dataclass(frozen=True)
class Run:
    """What a run of the command line did."""

    code: int
    out: str
    err: str


@pytest.fixture
def cli(capsys):
    """Run the command line in this process."""

    def run(*words: object) -> Run:
        code = 0
        try:
            main([str(w) for w in words])
        except SystemExit as stop:
            code = int(stop.code or 0)
        printed = capsys.readouterr()
        return Run(code, printed.out, printed.err)

    return run


@pytest.fixture
def refused(cli, tmp_path):
    """Run what cannot work: one sentence on stderr, exit code 2, nothing left behind. Returns the sentence."""

    def run(*words: object, out: bool = True, sentence: str = "") -> str:
        folder = tmp_path / "deep" / "out"
        before = sorted(tmp_path.rglob("*"))
        done = cli(*words, *(("--out", folder) if out else ()))
        lines = done.err.splitlines()
        assert len(lines) == 1, done.err
        assert lines[0].startswith("neurofuse: error: "), done.err
        assert "Traceback" not in done.err
        assert done.code == 2
        assert done.out == ""
        assert sorted(tmp_path.rglob("*")) == before, "something was left behind"
        assert sentence in lines[0]
        return lines[0]

    return run


def subprocess_of(*words: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "neurofuse", *(str(w) for w in words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=cwd, check=False)


@pytest.fixture(scope="module")
def two() -> Recording:
    """40 s of two systems: spikes and movement on clock `array`, LFP 0.2 s off on clock `logger`."""
    config = SimulationConfig(duration_s=40.0, n_units=10, n_channels=3, lfp_rate_hz=500.0)
    return simulate(Offset(0.2), config=config, rng=np.random.default_rng(1))[0]


@pytest.fixture(scope="module")
def files(two, tmp_path_factory) -> tuple[Path, Path]:
    """What the two systems wrote."""
    folder = tmp_path_factory.mktemp("systems")
    array, logger = two_files(two)
    return save(array, folder / "array.nwb"), save(logger, folder / "logger.nwb")


@pytest.fixture(scope="module")
def decoded(files, tmp_path_factory) -> Path:
    """Results of a short decode of both files."""
    folder = tmp_path_factory.mktemp("decoded") / "results"
    words = "decode", *files, *QUICK, "--steps", "10", "--out", folder
    with pytest.raises(SystemExit) as stop:
        main([str(w) for w in words])
    assert not stop.value.code
    return folder


def counts(path: Path, **changes: np.ndarray) -> Path:
    """60 s of plain count bins and a position."""
    rng = np.random.default_rng(0)
    arrays = {"spikes": rng.poisson(0.5, (600, 8)), "pos": np.cumsum(rng.standard_normal((600, 2)), axis=0)}
    np.savez(path, **(arrays | changes))
    return path


def trains(path: Path, change=lambda t: t) -> Path:
    """Plain spike times of eight units over 60 s, with refractoriness."""
    rng = np.random.default_rng(0)
    cells = np.empty(8, object)
    for k in range(8):
        cells[k] = change(np.cumsum(0.002 + rng.exponential(0.19, 300)))
    scipy.io.savemat(path, {"spikes": cells})
    return path


def part_of(source: Path, target: Path, share: float) -> Path:
    content = source.read_bytes()
    target.write_bytes(content[: int(len(content) * share)])
    return target


# Help, version, and what they cost


@pytest.mark.parametrize("words", [("--help",), ("decode", "--help"), ("predict", "--help"), ("--version",)])
def test_help_and_version_print_on_stdout(cli, words):
    done = cli(*words)
    assert done.code == 0
    assert done.err == ""
    assert len(done.out.splitlines()) < 70


def test_help_names_every_command_and_decode_its_options(cli):
    assert all(c in cli("--help").out for c in ("decode", "predict", "info", "convert"))
    listed = cli("decode", "--help").out
    assert all(o in listed for o in ("--spikes", "--lfp", "--movement", "--max-lag", "--jitter", "--out"))


@pytest.mark.parametrize(
    "code",
    [
        "import neurofuse",
        "import data_loaders",
        "import neurofuse.cli as c\ntry:\n    c.main(['--help'])\nexcept SystemExit:\n    pass",
    ],
)
def test_help_and_import_load_no_heavy_library(code):
    heavy = "torch", "mne", "neo", "pynwb", "sklearn", "matplotlib", "scipy"
    check = f"{code}\nimport sys\nprint([m for m in {heavy} if m in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


# Exit codes of a process


def test_a_process_exits_with_2_and_one_sentence(tmp_path):
    done = subprocess_of("decode", "nope.nwb", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("neurofuse: error: there is no file 'nope.nwb'")
    assert list(tmp_path.iterdir()) == [], "not even the folder `out` is left"


def test_ctrl_c_exits_with_130_and_leaves_nothing(tmp_path):
    command = [sys.executable, "-m", "neurofuse", "decode", "demo", "--out", str(tmp_path / "a" / "b")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("a/.neurofuse-*")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 130, printed
    assert printed.splitlines()[-1] == "neurofuse: interrupted"
    assert "Traceback" not in printed
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_that_a_library_swallows_comes_again(monkeypatch):
    monkeypatch.setattr(command_line, "RAISE_AGAIN_S", 0.05)
    swallowed = 0
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGALRM)

    def work():
        nonlocal swallowed
        with command_line._persistent_interrupt():
            for _ in range(2):
                try:
                    if not swallowed:
                        signal.raise_signal(signal.SIGINT)
                    time.sleep(5)
                except KeyboardInterrupt:
                    swallowed += 1
            time.sleep(5)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert swallowed == 2
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGALRM)) == before
    time.sleep(0.1)  # and not once it has come through


# What was typed


def test_an_unknown_command_option_or_missing_path(refused, tmp_path):
    path = counts(tmp_path / "a.npz")
    assert "decode, align, study, predict, info, convert, fetch" in refused("decipher", path, out=False)
    assert "Did you mean --movement?" in refused("decode", path, "--movment", "pos")
    refused("decode", sentence="no file was given; pass a path, or PATH::NAME")
    refused("decode", path, "--movement", out=False, sentence="--movement requires an argument")
    refused("predict", sentence="--checkpoint requires an argument")
    refused("info", out=False, sentence="--path requires an argument")
    refused("convert", path, out=False, sentence="--out requires an argument")


NUMBERS = {
    "--window": "0 -1 nan inf abc",
    "--max-lag": "0 -1 nan inf",
    "--token": "0 -1 nan inf",
    "--steps": "0 -3 nan 1.5",
    "--seed": "-1 nan 1.5",
    "--split-units": "0 -1 8 99 x",
    "--line-hz": "0 nan inf 400",
    "--bin": "0 -1 nan inf abc",
    "--gap-tolerance-ms": "-1 nan",
    "--circular": "nonsense 0 -1 nan inf",
    "--device": "nonsense mps cuda:99",
    "--decoder": "nope",
    "--missing": "keep",
    "--time-unit": "hours samples@0",
    "--jitter": "nonsense lag lag: lag:a lag:nan lag:-1 :",
}


@pytest.mark.parametrize("option", NUMBERS)
def test_nonsense_after_an_option_is_named(refused, tmp_path, option):
    path = counts(tmp_path / "a.npz")
    for value in NUMBERS[option].split():
        words = ["decode", path, "--movement", "pos", *RIDGE]
        if option == "--decoder":
            words = words[:-2]
        if option != "--bin":
            words += BIN
        sentence = refused(*words, f"{option}={value}")
        assert value.lstrip("-") in sentence or "window of" in sentence, "the sentence shows what was given"


def test_the_remedies_of_wrong_settings(refused, tmp_path):
    path = counts(tmp_path / "a.npz")
    words = "decode", path, "--movement", "pos", *BIN
    refused(
        *words,
        "--decoder",
        "nope",
        sentence="choose one of tracked, constant, softmax, softmax-bidirectional",
    )
    refused(*words, "--jitter", "nope:1", sentence="choose one of spike, spike-uniform, spike-laplace")
    refused(*words, "--jitter", "lag", sentence="such as lag:0.3")
    refused(*words, "--jitter", "lag:0.1", sentence="there is no second clock to move; make one")
    refused(*words, "--split-units", "8", sentence="choose between 1 and 7")
    refused(
        *words, "--max-lag", "4", sentence="must be shorter than a window (3 s); lower max_lag_s (--max-lag)"
    )
    refused(*words, "--circular", "x", sentence="takes 'auto' or the length of one turn")
    refused(*words, "--device", "tpu", sentence="choose auto, cpu, cuda")
    refused("decode", "demo:nope", sentence="there is no demo 'nope'; choose demo or demo:NAME")


def test_a_gpu_that_is_not_there_is_one_sentence(refused, tmp_path, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    words = "decode", counts(tmp_path / "a.npz"), "--movement", "pos", *BIN
    refused(*words, "--device", "cuda", sentence="PyTorch finds 0 NVIDIA GPU(s) here; choose auto or cpu")


def test_a_lag_beyond_the_search_range_is_refused_not_cut_off(refused, files):
    refused("decode", *files, *QUICK, "--jitter", "offset:5", sentence="beyond the search range of +-0.3 s")
    refused("decode", *files, *QUICK, "--jitter", "skew:1e9", sentence="lower its level or raise --max-lag")


# Files that cannot be read


def test_files_that_are_not_there_or_of_no_known_kind(refused, tmp_path):
    path = counts(tmp_path / "a.npz")
    (tmp_path / "a.xyz").write_text("hello")
    (tmp_path / "empty.nev").write_bytes(b"")
    refused("decode", tmp_path / "b.npz", sentence="check the path (files like it there: a.npz)")
    refused("decode", tmp_path / "a.xyz", sentence="which no reader claims; known are")
    refused("decode", tmp_path / "empty.nev", sentence="is empty (0 bytes)")
    refused("decode", tmp_path, sentence="pass --format NAME")
    refused("decode", path, "--format", "nope", sentence="the formats are 'neurofuse'")
    refused("decode", f"{path}::pos", sentence="a path takes no ::NAME")
    refused("info", tmp_path / "b.npz", out=False, sentence="there is no file")


@pytest.mark.parametrize("share", [0.02, 0.5, 0.95])
@pytest.mark.parametrize("suffix", [".nwb", ".nix", ".nc", ".mat", ".npz"])
def test_a_file_cut_short(refused, two, tmp_path, suffix, share):
    whole = tmp_path / f"whole{suffix}"
    if suffix == ".mat":
        trains(whole)
    elif suffix == ".npz":
        counts(whole)
    else:
        save(two, whole)
    cut = part_of(whole, tmp_path / f"cut{suffix}", share)
    for command in ("decode", "info"):
        assert "cut short or damaged" in refused(command, cut, out=command == "decode")


@pytest.mark.parametrize("share", [0.5, 0.95])
def test_a_blackrock_file_cut_short(refused, shared_data, tmp_path, share):
    whole = shared_data / "native_formats" / "blackrock" / "FileSpec2.3001.nev"
    refused("decode", part_of(whole, tmp_path / "a.nev", share), sentence="is cut short")


# Recordings that cannot be decoded


def test_what_a_file_does_not_hold(refused, files, tmp_path):
    path = counts(tmp_path / "a.npz")
    words = "decode", path, *BIN
    assert "it has 'spikes', 'pos'" in refused(*words, "--movement", "vel")
    assert "it has 'spikes', 'pos'" in refused(*words, "--movement", "pos", "--lfp", "field")
    assert "it has 'spikes', 'pos'" in refused(*words, "--movement", f"{path}::vel")
    refused(*words, "--movement", "pos", "--spikes", "none", sentence="neither spikes nor LFP")
    refused(
        "decode", files[1], sentence="has no movement to decode; 'neurofuse info' lists what a file holds"
    )
    refused("decode", files[0], "--lfp", "ch00", sentence="lfp called 'ch00'")
    refused("decode", path, "--movement", "pos", sentence="pass --bin SECONDS")
    no_spikes = counts(tmp_path / "no_spikes.npz", spikes=np.zeros((600, 8), int))
    refused("decode", no_spikes, "--movement", "pos", *BIN, sentence="holds no spikes")


@pytest.mark.parametrize("n_units", [0, 1])
def test_a_population_of_none_or_one(refused, tmp_path, n_units):
    path = counts(tmp_path / "a.npz", spikes=np.random.default_rng(0).poisson(1.0, (600, n_units)))
    sentence = refused("decode", path, "--movement", "pos", *BIN)
    assert ("needs at least two" in sentence) if n_units else ("neither spikes nor LFP" in sentence)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("array", ["spikes", "pos"])
def test_samples_that_are_no_numbers(refused, cli, tmp_path, array, bad):
    path = counts(tmp_path / "a.npz")
    with np.load(path) as held:
        values = held[array].astype(float)
    values[50, 0] = bad
    path = counts(path, **{array: values})
    words = "decode", path, "--movement", "pos", *BIN, *RIDGE
    refused(*words, sentence="1 of 600 samples hold NaN or infinity")
    assert cli(*words, "--missing", "drop", "--out", tmp_path / "out").code == 0


SPIKE_TIMES = {
    "not in order": (lambda t: t[::-1], "times are not in order"),
    "negative": (lambda t: t - 5, "pass --allow-negative-times"),
    "milliseconds": (lambda t: 1e3 * t, "pass --time-unit ms"),
    "microseconds": (lambda t: 1e6 * t, "pass --time-unit us"),
    "not finite": (lambda t: np.r_[t, np.nan], "are NaN or infinite"),
    "later": (lambda t: t + 500, "share no time; the clocks may start at different zeros"),
    "since 1970": (lambda t: t + 1.7e9, "share no time; the clocks may start at different zeros"),
    "none": (lambda t: t[:0], "holds no spikes"),
}


@pytest.mark.parametrize("kind", SPIKE_TIMES)
def test_spike_times_that_cannot_be_meant(refused, tmp_path, kind):
    change, sentence = SPIKE_TIMES[kind]
    path = trains(tmp_path / "spikes.mat", change)
    movement = f"{counts(tmp_path / 'video.npz')}::pos"
    refused("decode", "--spikes", path, "--movement", movement, *BIN, sentence=sentence)


def test_time_units_are_converted(cli, tmp_path):
    path = trains(tmp_path / "spikes.mat", lambda t: 1e3 * t)
    words = "--spikes", path, "--movement", f"{counts(tmp_path / 'video.npz')}::pos", *BIN, *RIDGE
    done = cli("decode", *words, "--time-unit", "ms", "--out", tmp_path / "out")
    assert done.code == 0
    assert "which no spikes or LFP share" in done.err, "the clock of the video is taken on trust"


def test_units_that_cannot_be_converted(refused, two, tmp_path):
    path = save(two, tmp_path / "a.nix")

    def corrupt(_: str, node: h5py.HLObject) -> None:
        if "unit" in node.attrs:
            node.attrs["unit"] = "kg"

    with h5py.File(path, "r+") as file:
        file.visititems(corrupt)
    refused("decode", path, sentence="states a unit that does not fit what it measures (Unable to convert")


def test_clocks_that_share_no_time(refused, two, files, tmp_path):
    logger = two_files(two)[1].retimed("logger", lambda t: t + 1000, did="late")
    late = save(logger, tmp_path / "late.nwb")
    sentence = refused("decode", files[0], late)
    assert "clock 'logger' (1000.00 to 1040.00 s)" in sentence


def test_movement_shorter_than_a_window(refused, files, tmp_path):
    short = counts(
        tmp_path / "a.npz",
        spikes=np.random.default_rng(0).poisson(1.0, (12, 8)),
        pos=np.random.default_rng(1).standard_normal((12, 2)),
    )
    refused("decode", short, "--movement", "pos", *BIN, sentence="or a longer recording")
    refused("decode", files[0], "--window", "30", sentence="no room for a window of 30 s")


def test_movement_that_never_changes(refused, tmp_path):
    path = counts(tmp_path / "a.npz", pos=np.stack([np.arange(600.0), np.ones(600)], axis=1))
    refused("decode", path, "--movement", "pos", *BIN, sentence="'pos 2' never changes")


def test_movement_that_stands_still_where_it_would_be_scored(refused, cli, tmp_path):
    moving = np.cumsum(np.random.default_rng(0).standard_normal((600, 2)), axis=0)
    moving[400:] = moving[400]
    path = counts(tmp_path / "a.npz", pos=moving)
    words = "decode", path, "--movement", "pos", *BIN, *RIDGE
    refused(*words, sentence="'pos 1' never changes in the test stretch (50 to 60 s)")
    moving[400:] += 1e-3 * np.random.default_rng(1).standard_normal((200, 2))
    counts(path, pos=moving)
    done = cli(*words, "--out", tmp_path / "out")
    assert done.code == 0
    assert "'pos 1' hardly moves in the test stretch" in done.err


def constant_channels(two: Recording, path: Path, rows: list[int]) -> Path:
    logger = two_files(two)[1]
    lfp = logger["lfp"]
    assert isinstance(lfp, Signal)
    values = lfp.data.values.copy()
    values[:, rows] = 5.0
    return save(logger.but(streams=(replace(lfp, data=lfp.data.copy(data=values)),)), path)


def test_constant_channels_are_left_out_and_named_and_all_of_them_refused(cli, refused, two, files, tmp_path):
    all_flat = constant_channels(two, tmp_path / "all.nwb", [0, 1, 2])
    refused("decode", files[0], all_flat, sentence="all 3 channels of lfp 'lfp' are bad")
    some = constant_channels(two, tmp_path / "some.nwb", [1])
    done = cli("decode", files[0], some, *QUICK, *RIDGE, "--out", tmp_path / "out")
    assert done.code == 0
    assert "warning: 1 of 3 channels of 'lfp' were left out: ch01 (flat" in done.err
    quality = json.loads((tmp_path / "out" / "metrics.json").read_text())["quality"]
    assert [row["bad"] for row in quality] == [False, True, False]


def test_a_long_recording_with_a_short_movement_is_cut_to_it(cli, tmp_path):
    path = trains(tmp_path / "a.mat", lambda t: np.r_[t, t + 2000])
    words = "--spikes", path, "--movement", f"{counts(tmp_path / 'video.npz')}::pos", *BIN, *RIDGE
    done = cli("decode", *words, "--out", tmp_path / "out", "--json")
    assert any("cut to" in line for line in json.loads(done.out)["provenance"])


# Where results go


@pytest.mark.parametrize("where", ["/proc/neurofuse", "FILE/deeper", "FILE", "x" * 300, "nul\0byte"])
def test_an_out_that_cannot_be_written(refused, tmp_path, where):
    file = counts(tmp_path / "a.npz")
    content = file.read_bytes()
    out = Path(where.replace("FILE", str(file))) if where[0] in "/F" else tmp_path / where
    refused("decode", file, "--movement", "pos", *BIN, "--out", out, out=False, sentence="choose an")
    assert file.read_bytes() == content


def test_an_out_of_someone_else_is_untouched(refused, tmp_path):
    path = counts(tmp_path / "a.npz")
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "thesis.txt").write_text("years of work")
    words = "decode", path, "--movement", "pos", *BIN, *RIDGE, "--out", theirs
    refused(
        *words, out=False, sentence="holds something other than results of neurofuse; choose another --out"
    )
    assert (theirs / "thesis.txt").read_text() == "years of work"


def test_an_out_of_ours_is_replaced_and_kept_if_the_run_fails(cli, refused, tmp_path):
    path, out = counts(tmp_path / "a.npz"), tmp_path / "out"
    words = "decode", path, "--movement", "pos", *BIN, *RIDGE, "--out", out
    assert cli(*words).code == 0
    (out / "note.txt").write_text("of the first run")
    refused(*words, "--window", "100", out=False)
    assert (out / "note.txt").exists(), "a run that fails leaves the older results"
    assert cli(*words).code == 0
    assert not (out / "note.txt").exists()
    assert {"metrics.json", "prediction.nc", "report.html", "checkpoint"} <= set(os.listdir(out))
    assert not list(tmp_path.glob(".neurofuse-*"))


# What a run prints and writes


def test_json_alone_is_on_stdout(cli, tmp_path):
    path = counts(tmp_path / "a.npz")
    done = cli("decode", path, "--movement", "pos", *BIN, *RIDGE, "--json", "--out", tmp_path / "out")
    assert json.loads(done.out) == json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert "too little to trust these scores" in done.err
    assert f"results in {tmp_path / 'out'}" in done.err


def test_two_files_are_decoded_with_their_lag(decoded):
    metrics = json.loads((decoded / "metrics.json").read_text())
    assert metrics["clocks"] == ["array", "logger"]
    with xr.open_dataset(decoded / "alignment.nc") as table:
        assert table["clock"].values.tolist() == ["logger"]
        assert np.allclose(table["posterior"].sum("lag"), 1.0, atol=1e-3)


def test_nothing_that_is_read_is_written_over(refused, files, decoded):
    kept = sorted(p.name for p in decoded.iterdir())
    words = ["predict", decoded / "checkpoint", *files, "--out", decoded]
    refused(*words, out=False, sentence="which would be lost; choose another --out")
    assert sorted(p.name for p in decoded.iterdir()) == kept
    before = [Path(f).read_bytes() for f in files]
    refused("convert", files[0], "--out", files[0], out=False, sentence="is the recording that is read")
    refused("align", *files, "-o", files[1], sentence="is the recording that is read")
    assert [Path(f).read_bytes() for f in files] == before


def test_an_oracle_needs_a_lag_that_is_known(refused, files):
    refused("decode", *files, "--decoder", "oracle", sentence="is given the true lag, and none is known here")


@pytest.mark.parametrize("suffix", [".nwb", ".nc", ".nix"])
def test_a_converted_recording_is_predicted_as_it_was_decoded(cli, files, decoded, tmp_path, suffix):
    one = tmp_path / f"one{suffix}"
    assert cli("convert", *files, "--out", one).code == 0
    assert load(one).clocks == ["array", "logger"]
    done = cli("predict", decoded / "checkpoint", one, "--out", tmp_path / "out", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["r2_mean"] is not None
    with (
        xr.open_dataset(tmp_path / "out" / "prediction.nc") as again,
        xr.open_dataset(decoded / "prediction.nc") as first,
    ):
        same = again["prediction"].sel(time=first["time"], method="nearest", tolerance=1e-3).values
        error = np.sqrt(np.mean((same - first["prediction"].values) ** 2))
        # Windows begin elsewhere, so what a window sees at its edges differs a little.
        assert error < 0.35 * first["prediction"].values.std()


def test_predict_refuses_what_is_no_checkpoint(refused, files, decoded, tmp_path):
    refused("predict", decoded, *files, sentence="give the folder that holds config.json")
    refused("predict", tmp_path / "nope", *files, sentence="is not a neurofuse checkpoint")
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in (decoded / "checkpoint").iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    (broken / "settings.json").write_text("{}")
    refused("predict", broken, *files, sentence="has no settings.json of this version")
    (broken / "weights.safetensors").write_bytes(b"short")
    refused("predict", broken, *files, sentence="is not a neurofuse checkpoint")


def test_predict_refuses_other_units_and_other_axes(refused, two, files, decoded, tmp_path):
    checkpoint = decoded / "checkpoint"
    array = two_files(two)[0]
    spikes = array["spikes"]
    assert isinstance(spikes, Spikes)
    fewer = save(array.but(streams=(spikes.select([0, 1, 2]),)), tmp_path / "fewer.nwb")
    refused("predict", checkpoint, fewer, files[1], sentence="load the same units and channels")
    order = list(range(spikes.n_units))[::-1]
    turned = save(array.but(streams=(spikes.select(order),)), tmp_path / "turned.nwb")
    refused("predict", checkpoint, turned, files[1], sentence="in the same order")
    refused("predict", checkpoint, files[0], sentence="load the same units and channels")
    refused("predict", checkpoint, *files, "--movement", "vx", sentence="pick the same ones with --movement")


def test_predict_needs_no_movement(cli, files, decoded, tmp_path):
    done = cli("predict", decoded / "checkpoint", *files, "--movement", "none", "--out", tmp_path / "out")
    assert done.code == 0, done.err
    assert "r2_mean" not in json.loads((tmp_path / "out" / "metrics.json").read_text())


def test_convert_refuses_what_it_cannot_write(refused, files, tmp_path):
    for out in (tmp_path / "a.xyz", tmp_path / "a"):
        refused("convert", files[0], "--out", out, out=False, sentence="use .nc, .nwb, .nix")
    refused("convert", files[0], "--out", files[0] / "a.nc", out=False, sentence="cannot write")
    refused("convert", tmp_path / "b.nwb", "--out", tmp_path / "deep" / "a.nc", out=False)


def test_info_lists_what_a_file_holds(cli, files):
    done = cli("info", files[0])
    assert done.code == 0
    assert "10 units" in done.out
    found = json.loads(cli("info", files[0], "--json").out)
    assert {"spikes", "movement"} <= {item["role"] for item in found["items"]}


# Real recordings


INFO = {
    "m1_center_out/center_out_trials_001_143.mat": "84 units, 11149 bins",
    "hippocampus_rat_track/Figure2_source_data_wake.mat": "2650x77",
    "ca1_tracks/linear-track/spikes.mat": "31 units, 28829 spikes",
    "ca1_tracks/linear-track/trajectory.videoPositionTracking": "2 channels x 118965 samples",
    "native_formats/blackrock/PauseCorrect/pause_correct.nev": "195 units, 11183 spikes",
    "native_formats/blackrock/blackrock_2_1/l101210-001.nev": "218 units, 14210 spikes",
    "native_formats/nwb/ecephys_tutorial_v2.5.0.nwb": "10 units, 195 spikes",
    "native_formats/nix/nixio_fr.nix": "1 units, 20 spikes",
    "native_formats/plexon/File_plexon_1.plx": "4 units, 24717 spikes",
    "native_formats/spike2/File_spike2_1.smr": "15 units, 247 spikes",
    "native_formats/neuralynx/Cheetah_v5.6.3/original_data": "4 units, 22796 spikes",
    "native_formats/spikeglx/Noise4Sam_g0": "384 channels x 1155 samples",
    "native_formats/openephysbinary/v0.4.4.1_with_video_tracking": "32 channels x 49408 samples",
    "native_formats/brainvision/File_brainvision_3_int16.vhdr": "13 channels x 9996 samples",
    "native_formats/edf/edf+C.edf": "5 channels x 256 samples",
}


@pytest.mark.parametrize("name", INFO)
def test_info_of_a_real_file(cli, shared_data, name):
    path = shared_data / name
    if not path.exists():
        pytest.skip(f"{path} is not here")
    done = cli("info", path)
    assert (done.code, done.err) == (0, "")
    assert INFO[name] in done.out
    assert done.out.splitlines()[-1].startswith("* is taken by default")
    assert json.loads(cli("info", path, "--json").out)["format"] in done.out.splitlines()[0]


def test_a_real_recording_with_a_pause_is_decoded_with_a_warning(cli, shared_data, tmp_path):
    path = shared_data / "native_formats" / "blackrock" / "PauseCorrect" / "pause_correct.nev"
    words = "decode", path, "--movement", "HandXcm,HandYcm", *RIDGE, "--json", "--out", tmp_path / "out"
    done = cli(*words)
    assert done.code == 0, done.err
    assert "too little to trust these scores" in done.err
    assert "2 stretch(es)" in json.loads(done.out)["recording"]


def test_a_real_track_position_is_decoded_as_a_circle(cli, shared_data, tmp_path):
    path = shared_data / "hippocampus_rat_track" / "Figure2_source_data_wake.mat"
    words = "--spikes", f"{path}::Spikes", "--movement", f"{path}::Position", *BIN, "--circular", "auto"
    done = cli("decode", *words, *RIDGE, "--json", "--out", tmp_path / "out")
    assert json.loads(done.out)["r2_mean"] > 0.6


def test_a_real_rat_whose_tracking_stands_still_is_not_scored(refused, shared_data):
    folder = shared_data / "ca1_tracks" / "linear-track"
    words = "--spikes", folder / "spikes.mat", "--movement", folder / "trajectory.videoPositionTracking"
    refused("decode", *words, *RIDGE, sentence="'xloc' never changes in the test stretch")


def test_real_files_without_movement_are_refused_with_the_way_to_find_some(refused, shared_data):
    for name in ("nwb/ecephys_tutorial_v2.5.0.nwb", "nix/nixio_fr.nix", "plexon/File_plexon_1.plx"):
        refused("decode", shared_data / "native_formats" / name, sentence="'neurofuse info' lists")
