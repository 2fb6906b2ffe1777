"""Which module may import which, and what costs nothing to import."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# In flow order; a module may import those above it, and its neighbours in its own folder.
FLOW = [
    "errors",
    "extensions",
    "config",
    "html",
    "variables",
    "recording",
    "theory",
    "storage",
    "jitters",
    "simulation",
    "features",
    "tokens",
    "windows",
    "tuning",
    "scores",
    "nets",
    "lag",
    "decoders",
    "attention_maps",
    "prepare",
    "decode",
    "study",
    "alignment",
    "report",
    "cli",
]
# What is heavy, and the only places that may import it at all.
HEAVY = {
    "torch": {
        "neurofuse.nets",
        "neurofuse.lag",
        "neurofuse.decoders",
        "neurofuse.alignment",
        "data_loaders.torch_dataset",
    },
    "sklearn": {"neurofuse.decoders", "neurofuse.scores"},
    "safetensors": {"neurofuse.decoders"},
    "mne": {"data_loaders", "neurofuse.features"},
    "neo": {"data_loaders"},
    "pynwb": {"data_loaders"},
    "nixio": {"data_loaders"},
    "pooch": {"data_loaders"},
    "matplotlib": {"neurofuse.report"},
    "ipywidgets": {"neurofuse.report"},
    "jinja2": {"neurofuse.report"},
    "cyclopts": {"neurofuse.cli"},
    "distributed": {"neurofuse.study.tasks"},
    "dask": set(),
}
LAZY = ("torch", "mne", "neo", "pynwb", "pooch", "sklearn", "matplotlib", "ipywidgets", "distributed")


def modules():
    for folder in ("neurofuse", "data_loaders"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"), path


def imports(path):
    """(name, at import time) of everything a module imports outside TYPE_CHECKING blocks."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = []

    def visit(node, top):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        if isinstance(node, ast.Import):
            found.extend((alias.name, top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            found.append((node.module, top))
        inner = top and not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        for child in ast.iter_child_nodes(node):
            visit(child, inner)

    visit(tree, True)
    return found


def stage(name):
    return name.split(".")[1]


@pytest.mark.parametrize(("name", "path"), list(modules()), ids=lambda x: x if isinstance(x, str) else "")
def test_imports_point_backwards(name, path):
    if name in ("neurofuse", "neurofuse.__main__"):
        return
    for imported, top in imports(path):
        if name.startswith("data_loaders") and imported.startswith("neurofuse."):
            allowed = {"config", "errors", "extensions", "recording", "storage"}
            if name == "data_loaders.torch_dataset":
                allowed |= {"tokens", "windows"}
            assert stage(imported) in allowed, f"{name} imports {imported}"
        if not name.startswith("neurofuse."):
            continue
        assert imported != "neurofuse" or stage(name) == "cli", f"{name} imports its own package"
        if imported.startswith("data_loaders"):
            assert stage(name) == "cli", f"{name} imports {imported}"
            assert not top, f"{name} imports {imported} at import time"
        if imported.startswith("neurofuse."):
            assert FLOW.index(stage(imported)) <= FLOW.index(stage(name)), (
                f"{name} imports {imported}, which comes later"
            )


@pytest.mark.parametrize(("name", "path"), list(modules()), ids=lambda x: x if isinstance(x, str) else "")
def test_heavy_libraries_stay_where_they_belong(name, path):
    for imported, top in imports(path):
        library = imported.split(".")[0]
        if library in HEAVY:
            assert any(name == p or name.startswith(p + ".") for p in HEAVY[library]), (
                f"{name} imports {library}"
            )
            if name.startswith("data_loaders") and name != "data_loaders.torch_dataset":
                assert not top, f"{name} imports {library} at import time"


@pytest.mark.parametrize("code", ["import neurofuse", "import data_loaders", "import neurofuse.cli"])
def test_importing_costs_nothing(code):
    check = f"{code}; import sys; print([m for m in {LAZY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_both_packages_import_from_another_folder(tmp_path):
    code = "import data_loaders, neurofuse; print(neurofuse.load.__module__, data_loaders.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("data_loaders.")


def test_a_folder_that_hides_the_loaders_is_named(tmp_path):
    (tmp_path / "data_loaders").mkdir()
    (tmp_path / "data_loaders" / "__init__.py").write_text("")
    code = "import neurofuse\ntry:\n    neurofuse.load\nexcept ImportError as error:\n    print(error)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "a folder of that name in your project hides it, so rename that folder" in done.stdout


def test_every_public_name_can_be_had():
    import neurofuse

    for name in neurofuse.__all__:
        assert getattr(neurofuse, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = neurofuse.nothing


def test_the_documentation_lists_the_modules_in_flow_order():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `neurofuse\.(\w+)`", text, flags=re.M) == FLOW
    found = {stage(n) for n, _ in modules() if n.startswith("neurofuse.")} - {"__main__"}
    assert found == set(FLOW)


def test_every_module_says_what_comes_in_and_what_goes_out():
    for name, path in modules():
        first = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n\n")[0]
        if not name.endswith("__main__") and path.name != "__init__.py":
            assert re.search(r"^In: .+\bOut: ", first.replace("\n", " ")), f"{name}: {first!r}"
