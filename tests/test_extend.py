"""The pages of docs/extend, followed as a package: installed, their classes work on the command line and in workers."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from neurofuse.simulation import SimulationConfig, simulate
from neurofuse.storage import save_recording

ROOT = Path(__file__).parent.parent
PAGES = ROOT / "docs" / "extend"
SIZES = ["--token", "0.05", "--window", "1", "--max-lag", "0.3", "--split-units", "5", "--steps", "2"]


def definitions(page: str) -> str:
    """The blocks of a page that import and define, without those that load and run."""
    text = (PAGES / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, flags=re.M | re.S)
    kept = []
    for block in blocks:
        lines = []
        for line in block.splitlines():
            # What follows a definition and is not indented runs it.
            if re.match(
                r"(recording|result|config|table|assert|print|late|again|two|moved|for|register|Path)\b", line
            ):
                break
            lines.append(line)
        kept.append("\n".join(lines))
    return "\n\n".join(kept)


def entry_points(page: str) -> str:
    text = (PAGES / page).read_text(encoding="utf-8")
    found = "\n".join(re.findall(r"^```toml\n(.*?)^```", text, flags=re.M | re.S))
    group = re.search(r'entry-points\."([\w.]+)"', found)
    assert group is not None
    rows = re.findall(r'^([\w-]+) = "([\w.:]+)"', found, flags=re.M)
    return f"[{group.group(1)}]\n" + "".join(f"{name} = {target}\n" for name, target in rows)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A folder of installed packages that holds `mypackage`, made of what the pages define."""
    folder = tmp_path_factory.mktemp("site")
    package = folder / "mypackage"
    package.mkdir()
    (package / "__init__.py").write_text("")
    for page, module in (("decoder.md", "decoders"), ("jitter.md", "jitters"), ("loader.md", "twocolumn")):
        (package / f"{module}.py").write_text(definitions(page), encoding="utf-8")
    info = folder / "mypackage-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mypackage\nVersion: 1.0\n")
    pages = ("decoder.md", "jitter.md", "loader.md")
    (info / "entry_points.txt").write_text("\n".join(entry_points(page) for page in pages))
    config = SimulationConfig(duration_s=50.0, n_units=10, n_channels=3, lfp_rate_hz=500.0)
    recording, _ = simulate(config=config, rng=np.random.default_rng(0))
    save_recording(recording.but(streams=(recording["spikes"],)), folder / "session.nc")
    (folder / "session.spk").write_text("0.5 1\n0.7 2\n1.25 1\n")
    return folder


def neurofuse(site: Path, *words: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(site), str(ROOT)])}
    command = [sys.executable, "-m", "neurofuse", *map(str, words)]
    return subprocess.run(command, cwd=site, env=environment, capture_output=True, text=True, timeout=250)


def test_an_installed_decoder_decodes_predicts_and_takes_options(site, tmp_path):
    words = ("session.nc", "--decoder", "rate", "--set", "penalty=3", *SIZES)
    done = neurofuse(site, "decode", *words, "--out", tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    settings = json.loads(done.stdout)["settings"]
    assert (settings["decoder"], settings["options"]) == ("rate", {"penalty": 3})
    done = neurofuse(site, "predict", tmp_path / "out" / "checkpoint", "session.nc", "--out", tmp_path / "p")
    assert done.returncode == 0, done.stderr
    refused = neurofuse(site, "decode", "session.nc", "--decoder", "rate", "--set", "width=3")
    assert refused.returncode == 2
    assert "decoder 'rate' has no option 'width'; it has penalty" in refused.stderr


def test_installed_decoders_and_jitters_are_compared_by_two_workers(site, tmp_path):
    words = (
        "session.nc",
        "--jitter",
        "spike-late",
        "--levels",
        "0.05",
        "--seeds",
        1,
        "--no-references",
        *SIZES,
    )
    decoders = ("--decoders", "rate,rate:penalty=100,lstm:width=16", "--jobs", 2)
    done = neurofuse(site, "study", *words, *decoders, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    with xr.open_dataset(tmp_path / "out" / "study.nc", engine="h5netcdf") as table:
        assert list(table["model"].values) == ["rate", "rate(penalty=100)", "lstm(width=16)"]
        assert (table["status"] == "ok").all(), table["message"].values
        narrow, wide, _ = table["r2"].mean("axis").values.ravel()
        assert narrow != wide


def test_an_installed_format_is_listed_and_selected_from(site):
    done = neurofuse(site, "info", "session.spk")
    assert done.returncode == 0, done.stderr
    assert "two-column" in done.stdout
    refused = neurofuse(site, "decode", "session.spk", "--spikes", "nonsense")
    assert refused.returncode == 2
    assert "has no spikes called 'nonsense'; it has 'spikes', 'u1', 'u2'" in refused.stderr
