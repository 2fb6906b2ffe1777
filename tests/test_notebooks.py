"""The notebooks run from top to bottom on small settings, end in a figure or a number, and match their twins."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "notebooks"
NAMES = sorted(p.stem for p in FOLDER.glob("*.py"))
LIMIT_S = 600


def test_there_are_nine_and_each_has_a_twin():
    assert [n[:2] for n in NAMES] == [f"{k:02d}" for k in range(1, 10)]
    assert sorted(p.stem for p in FOLDER.glob("*.ipynb")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_equals_its_twin(name):
    jupytext = pytest.importorskip("jupytext")
    script, notebook = (jupytext.read(FOLDER / f"{name}{end}") for end in (".py", ".ipynb"))
    assert [(c.cell_type, c.source) for c in script.cells] == [
        (c.cell_type, c.source) for c in notebook.cells
    ]


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_uses_public_names_only(name):
    for node in ast.walk(ast.parse((FOLDER / f"{name}.py").read_text(encoding="utf-8"))):
        names = [a.name for a in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
        names += [node.attr] if isinstance(node, ast.Attribute) else []
        assert not [n for n in names if n.startswith("_")]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_and_ends_in_a_figure_or_a_number(name, monkeypatch, tmp_path):
    jupytext = pytest.importorskip("jupytext")
    nbclient = pytest.importorskip("nbclient")
    monkeypatch.setenv("NEUROFUSE_QUICK", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = jupytext.read(FOLDER / f"{name}.py")
    client = nbclient.NotebookClient(
        notebook, timeout=LIMIT_S, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    shown = [kind for c in notebook.cells for o in c.get("outputs", ()) for kind in (o.get("data") or o)]
    assert "image/png" in shown, "no figure"
    last = next(c for c in reversed(notebook.cells) if c.cell_type == "code")
    assert last.outputs, "the last cell shows nothing"
    assert not [
        o
        for c in notebook.cells
        for o in c.get("outputs", ())
        if o.get("name") == "stderr" and "Warning" in o["text"]
    ]
