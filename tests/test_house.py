"""Limits on the structure and the language of the package, and that each counter finds what is planted."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from benchmarks import house

ROOT = Path(__file__).resolve().parent.parent

# The most that is allowed of each figure; beside it, where the tree is not there yet, what is aimed at.
LIMITS = {
    "modules that tokenize": 1,
    "training loops": 1,
    "circles of imports": 0,
    "circles with typing": 0,
    "bindings with forbidden words": 0,
    "prose with forbidden words": 0,
    "module names twice": 0,
    "classes twice": 0,
    "constants twice": 0,
    "settings twice": 0,
    "settings again in a command": 7,
    "keyword-passing lines": 237,  # 80
    "functions over 80 lines": 0,
    "functions over complexity 20": 10,  # 0
    "submodule imports in documents": 0,
    "private imports": 0,
    "functions without types": 0,
    "longest function": 80,
    "largest complexity": 29,  # 20
    "lines to add a decoder": 444,  # 450
    "lines to add a network": 1082,  # 900
    "lines to add a format": 798,  # 600
    "lines to add a study metric": 1081,  # 800
    "package lines": 28625,  # 24000
}


@pytest.fixture(scope="module")
def tree() -> house.Tree:
    return house.Tree(ROOT)


@pytest.mark.parametrize("name", house.PLACES)
def test_places_stay_within_their_limit(tree, name):
    places = house.PLACES[name](tree)
    listed = "\n  ".join(places[:60])
    assert len(places) <= LIMITS[name], f"{name}: {len(places)} of at most {LIMITS[name]}\n  {listed}"


@pytest.mark.parametrize("name", house.SIZES)
def test_sizes_stay_within_their_limit(tree, name):
    assert house.SIZES[name](tree) <= LIMITS[name]


def test_every_figure_has_a_limit():
    assert set(LIMITS) == set(house.PLACES) | set(house.SIZES)


@pytest.mark.parametrize("what", house.READING)
def test_the_files_a_newcomer_reads_exist(what):
    for alternatives in house.READING[what]:
        assert any((ROOT / name).exists() for name in alternatives), alternatives


def planted(tmp_path: Path, **modules: str) -> house.Tree:
    """A tree of modules of `neurofuse`; `__` in a name is a folder."""
    for name, text in modules.items():
        path = tmp_path / "neurofuse" / (name.replace("__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return house.Tree(tmp_path)


def test_a_recording_tokenized_outside_its_module_is_found(tmp_path):
    tree = planted(
        tmp_path,
        tokens="def tokenize(x): return tokenize(x)",
        prepare="import neurofuse\nneurofuse.tokenize(1)",
        other="tokenize = 1",
    )
    assert house.tokenizing_modules(tree) == ["neurofuse/prepare.py"]


def test_a_training_loop_is_a_backward_pass_and_a_step_without_a_closure(tmp_path):
    tree = planted(
        tmp_path,
        loop="def fit(o, x):\n    x.backward()\n    o.step()",
        closure="def fit(o, x):\n    def f():\n        x.backward()\n    o.step(f)",
        gradient="def one(x):\n    x.backward()",
    )
    assert house.training_loops(tree) == ["neurofuse/loop.py:1 fit"]


@pytest.mark.parametrize(
    ("second", "real", "typed"),
    [
        ("from neurofuse.a import x", 1, 1),
        ("from neurofuse import a", 1, 1),
        ("def f():\n    import neurofuse.a", 1, 1),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from neurofuse.a import x", 0, 1),
        ("from typing import TYPE_CHECKING\nif not TYPE_CHECKING:\n    from neurofuse.a import x", 1, 1),
        ("from neurofuse.c import x", 0, 0),
    ],
)
def test_circles_of_imports_are_found_through_any_number_of_modules(tmp_path, second, real, typed):
    tree = planted(tmp_path, __init__="", a="from neurofuse.b import y", b="import neurofuse.c", c=second)
    circle = ["neurofuse.a, neurofuse.b, neurofuse.c"]
    assert house.circles(tree, ("import", "lazy")) == circle * real
    assert house.circles(tree, ("import", "lazy", "typing")) == circle * typed


def test_forbidden_words_are_parts_of_names_not_of_words(tmp_path):
    text = "N_HEARD = essays = 1\ndef heard_by(told, *, retold):\n    self.said = 1\nclass WantedLag: pass"
    text += "\nimport x as says"
    found = house.forbidden_bindings(planted(tmp_path, a=text))
    assert [place.split()[1] for place in sorted(found)] == [
        "N_HEARD",
        "heard_by",
        "told",
        "said",
        "WantedLag",
        "says",
    ]


def test_samples_are_lost_outside_of_models(tmp_path):
    tree = planted(tmp_path, jitters__drops="lost = 1", lag__hmm="lost = 1")
    assert [place.split(":")[0] for place in house.forbidden_bindings(tree)] == ["neurofuse/lag/hmm.py"]


def test_forbidden_words_are_found_in_comments_messages_and_docstrings_not_in_code(tmp_path):
    text = '"""What it\nsaid."""\nheard = f"it {told} asks"  # a row a unit\n'
    found = house.forbidden_prose(planted(tmp_path, a=text))
    assert found == ["neurofuse/a.py:2 said", "neurofuse/a.py:3 asks", "neurofuse/a.py:3 row a unit"]


def test_names_with_two_meanings_are_found(tmp_path):
    tree = planted(
        tmp_path,
        one__clock="class A: pass\nSIZE, SAME = 1, 2\nPER_TREE = 0",
        two__clock="class A: pass\n_SIZE: int = 2\nSAME = 2",
        two__lag="SIZE = 1\nclass B: pass",
    )
    assert [x.split(":")[0] for x in house.repeated_modules(tree)] == ["clock"]
    assert [x.split(":")[0] for x in house.repeated_classes(tree)] == ["A"]
    assert [x.split(":")[0] for x in house.repeated_constants(tree)] == ["SIZE"]


def test_settings_declared_twice_are_found_where_they_have_a_default_of_their_own(tmp_path):
    tree = planted(
        tmp_path,
        config="class Settings:\n    seed: int = 0\n    size: int\nclass RunConfig(Settings):\n    window_s: float = 3",
        other="class OtherConfig:\n    seed: int = 1\n    size: int\nclass SimulationConfig:\n    seed: int = 1",
        cli="@app.command\ndef run(path, window=3, *, seed, other=1): pass\ndef helper(seed=0): pass",
    )
    assert [x.split(":")[0] for x in house.repeated_settings(tree)] == ["seed"]
    assert house.settings_of_commands(tree) == ["neurofuse/cli.py:2 run: window"]


def test_lines_that_only_pass_keywords_are_counted(tmp_path):
    text = "f(\n    a=a,\n    b=self.b,\n    c=d,\n    e=e, g=g,\n    h=x.y.h\n)"
    assert len(house.keyword_lines(planted(tmp_path, a=text))) == 3


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("pass", 1),
        ("if a:\n        pass\n    elif b and c:\n        pass", 4),
        ("return [x for x in y if x if z]", 4),
        ("return a if b else c", 2),
        ("try:\n        pass\n    except E:\n        pass", 2),
        ("def inner():\n        if a: pass", 1),
        ("match a:\n        case 1: pass\n        case _: pass", 3),
    ],
)
def test_complexity_is_one_plus_decisions(body, expected):
    assert house.complexity(ast.parse(f"def f():\n    {body}").body[0]) == expected


def test_long_functions_imports_behind_the_names_and_missing_types_are_found(tmp_path):
    tree = planted(
        tmp_path,
        a="from neurofuse.b import _c, d\ndef f(x: int) -> int:\n"
        + "    x += 1\n" * 80
        + "def g(x) -> None: ...",
    )
    (tmp_path / "README.md").write_text(
        "from neurofuse.a import f\nfrom neurofuse import f\nimport data_loaders\n"
    )
    assert house.longest_functions(tree)[0] == (81, "neurofuse/a.py:2 f")
    assert house.private_imports(tree) == ["neurofuse/a.py:1 _c"]
    assert house.unannotated(tree) == ["neurofuse/a.py:83 g"]
    assert house.submodule_imports(tree) == ["README.md:1 from neurofuse.a import f"]
    assert house.package_lines(tree) == 83
