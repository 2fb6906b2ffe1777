"""Every Python block of the documentation runs, page by page and in order, on files such as the pages name."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import scipy.io

from data_loaders import save
from neurofuse.jitters.lag_laws import Offset
from neurofuse.simulation import SimulationConfig, simulate, two_files

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(p for p in DOCS.rglob("*.md") if "```python" in p.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """One minute of one system in `session.nwb`, and of two systems in files as a laboratory has them."""
    folder = tmp_path_factory.mktemp("files")
    config = SimulationConfig(duration_s=60.0, n_units=10, n_channels=3, lfp_rate_hz=500.0)
    recording, _ = simulate(Offset(0.1), config=config, rng=np.random.default_rng(1))
    for part, name in zip(two_files(recording), ("array", "logger"), strict=True):
        save(part, folder / f"{name}.nwb")
    spikes, lfp, hand = recording["spikes"], recording["lfp"], recording.movement
    save(recording.but(streams=(spikes,)), folder / "session.nwb")
    np.savez(folder / "units.npz", spike_times=spikes.times_s, unit_id=spikes.unit)
    np.savez(folder / "field.npz", lfp=lfp.data.values, t=lfp.time_s)
    hand.data.to_pandas().rename_axis("time").reset_index().to_csv(folder / "hand.csv", index=False)
    counts = np.random.default_rng(0).poisson(1.0, (600, 8))
    scipy.io.savemat(
        folder / "data.mat", {"Spikes": counts, "Position": np.cumsum(counts[:, :2] - 1.0, axis=0)}
    )
    return folder


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(DOCS)))
def test_the_code_of_a_page_runs(page, files, tmp_path, monkeypatch):
    from neurofuse.decoders.registry import DECODERS
    from neurofuse.jitters.kinds import JITTERS

    for path in files.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(mpl.rcParams, "backend", "agg")
    kept = [(family, dict(family)) for family in (DECODERS, JITTERS)]
    module = types.ModuleType("a_page_of_the_documentation")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    text = page.read_text(encoding="utf-8")
    try:
        for block in re.finditer(r"^```python\n(.*?)^```", text, flags=re.M | re.S):
            line = text[: block.start(1)].count("\n")
            # Where a reader takes few steps for a first look, a test takes fewer.
            code = "\n" * line + block.group(1).replace("n_steps=20", "n_steps=2")
            exec(compile(code, str(page), "exec"), vars(module))
    finally:
        for family, before in kept:
            family.clear()
            family.update(before)


def test_every_page_is_in_the_menu_and_every_link_leads_somewhere():
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in DOCS.rglob("*.md"):
        assert f": {page.relative_to(DOCS)}" in menu
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#]+\.md)", text):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
        for notebook in re.findall(r"`(notebooks/\w+\.py)`", text):
            assert (ROOT / notebook).exists(), f"{page.name} names {notebook}"


@pytest.mark.parametrize("page", sorted((DOCS / "api").glob("*.md")), ids=lambda p: p.stem)
def test_every_object_of_the_api_pages_exists(page):
    import importlib

    for name in re.findall(r"^::: (\S+)", page.read_text(encoding="utf-8"), flags=re.M):
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            module, _, attribute = name.rpartition(".")
            assert hasattr(importlib.import_module(module), attribute), name


def test_how_to_cite_names_this_version():
    import neurofuse

    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {neurofuse.__version__}\n" in text
    assert f"Version {neurofuse.__version__}." in (DOCS / "cite.md").read_text(encoding="utf-8")


def test_equations_become_mathml_and_code_is_left_alone():
    pytest.importorskip("latex2mathml")
    namespace: dict[str, object] = {}
    exec((DOCS / "equations.py").read_text(encoding="utf-8"), namespace)
    page = "a $x^2$ b `$HOME` \n```sh\necho $A $B\n```\n$$\\frac{1}{2}$$"
    html = namespace["on_page_markdown"](page)
    assert html.count("<math") == 2
    assert "<mfrac>" in html
    assert "`$HOME`" in html
    assert "echo $A $B" in html
