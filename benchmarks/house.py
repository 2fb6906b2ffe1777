"""In: a source tree. Out: figures of its structure and its language, counted from the source text alone.

`python -m benchmarks.house [--tree DIR ...] [--places FIGURE]` prints a markdown table with one column per tree;
`--places` lists where one figure comes from. Nothing of the package is imported, so any state of the tree can be
counted. `tests/test_house.py` holds each figure to its limit.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import tokenize
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

PACKAGES = ("neurofuse", "data_loaders")

# Words that no methods paper would use in this sense, and what to write. They are no part of any identifier.
REPLACEMENTS = {
    "told tell tells say says said saying": "prediction, estimate, log_lik, score, row, message, description",
    "heard hear hears listen listens": "value, feature, received",
    "ask asks asked asking": "query, query_in, key_in, requested",
    "answer answers": "value, key, estimate",
    "wanted wants held": "target, validation, expected",
    "foreign swapped": "mismatched",
    "lost": "unmatched",
    "roam roams roaming": "augment",
    "voice voices beside alone": "unimodal",
    "trust trusted": "inverse_temperature",
    "surprise": "z_score, neg_log_lik",
    "belief believed believes": "posterior",
    "freed sharpened judged judge": "follow_posterior, refine_on_pulses, check_channels",
    "spotlight": "attention",
    "spoil spoils": "corrupt",
    "deaf silent speak speaks": "without data, no evidence",
    "door dialect": "checks",
}
FORBIDDEN = {word: instead for words, instead in REPLACEMENTS.items() for word in words.split()}
# Words that are forbidden only where networks are trained and lags are found; elsewhere samples may be lost, and a
# result trusted.
MODELS = ("neurofuse.decoders", "neurofuse.nets", "neurofuse.lag", "neurofuse.alignment", "neurofuse.study")
NETWORKS = ("neurofuse.decoders", "neurofuse.nets", "neurofuse.lag")
WITHIN = {"held": MODELS, "lost": MODELS, "alone": MODELS, "trust": NETWORKS, "trusted": NETWORKS}
# Constants of one name that every module of a kind has by agreement.
BY_AGREEMENT = ("FORMAT", "FORMATS", "PUBLIC", "BUILT_IN", "ENTRY_POINTS")

# Words of the list that have no innocent use in docstrings, comments and messages of this package.
PROSE = (
    "tells?|told|say|says|said|knows|sees|hear|hears|heard|listens?|asks|asked|asking|answers|answered|"
    "spotlights?|spoils?|voices?|roams?|roaming|wanted|wants|believes?|believed|beliefs?|deaf|speaks?|"
    "(?:seconds|samples|tokens|one|row|lag|curve|value) an? (?:second|token|window|block|clock|bin|seed|unit|level)"
)

# Files that a newcomer reads to add one thing; alternatives are earlier names of the same file.
READING: dict[str, tuple[tuple[str, ...], ...]] = {
    "decoder": (
        ("neurofuse/decoders/base.py", "neurofuse/decoders/contract.py"),
        ("neurofuse/decoders/registry.py", "neurofuse/decoders/family.py"),
        ("docs/extend/decoder.md",),
    ),
    "network": (
        ("neurofuse/decoders/base.py", "neurofuse/decoders/contract.py"),
        ("neurofuse/decoders/registry.py", "neurofuse/decoders/family.py"),
        ("docs/extend/decoder.md",),
        ("neurofuse/nets/fit.py",),
        ("neurofuse/decoders/neural.py", "neurofuse/decoders/training.py"),
        ("neurofuse/nets/encoders.py", "neurofuse/decoders/encoders.py"),
    ),
    "format": (
        ("data_loaders/formats.py",),
        ("data_loaders/load.py", "data_loaders/loading.py", "data_loaders/assemble.py"),
        ("docs/extend/loader.md",),
    ),
    "study metric": (
        ("neurofuse/study/run.py", "neurofuse/study.py"),
        ("neurofuse/study/cell.py", "neurofuse/cells.py"),
        ("neurofuse/config.py",),
    ),
}

# Settings of one step, whose names may be those of a run: a simulation has a seed of its own.
OF_ONE_STEP = ("FeatureConfig", "SimulationConfig")
SETTINGS = re.compile(r"(Config|Settings)$")


@dataclass(frozen=True)
class Module:
    """One module of the package."""

    name: str
    path: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        """Its syntax tree."""
        return ast.parse(self.text)

    @cached_property
    def lines(self) -> list[str]:
        """Its lines."""
        return self.text.splitlines()

    @property
    def stem(self) -> str:
        """Last part of the name."""
        return self.name.rsplit(".", 1)[-1]

    @property
    def is_package(self) -> bool:
        """Whether it is the `__init__` of a folder."""
        return self.path.endswith("__init__.py")

    def at(self, node: ast.AST) -> str:
        """PATH:LINE of a node."""
        return f"{self.path}:{getattr(node, 'lineno', 1)}"


@dataclass(frozen=True)
class Tree:
    """A state of the source."""

    root: Path

    @cached_property
    def modules(self) -> list[Module]:
        """Modules of both packages, by name."""
        return [
            Module(
                ".".join(path.relative_to(self.root).with_suffix("").parts).removesuffix(".__init__"),
                path.relative_to(self.root).as_posix(),
                path.read_text(encoding="utf-8"),
            )
            for package in PACKAGES
            for path in sorted((self.root / package).rglob("*.py"))
        ]

    @cached_property
    def documents(self) -> list[tuple[str, str]]:
        """Path and text of the README, the documentation and the notebooks."""
        paths = [
            self.root / "README.md",
            *sorted((self.root / "docs").rglob("*.md")),
            *sorted((self.root / "notebooks").glob("*.py")),
        ]
        return [
            (p.relative_to(self.root).as_posix(), p.read_text(encoding="utf-8")) for p in paths if p.exists()
        ]


Function = ast.FunctionDef | ast.AsyncFunctionDef
BLOCKS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def functions(tree: ast.AST) -> Iterator[Function]:
    """Every function, nested ones and methods as well."""
    return (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))


def own_nodes(function: ast.AST) -> Iterator[ast.AST]:
    """Nodes of a function without those of functions and classes defined in it."""
    for child in ast.iter_child_nodes(function):
        if not isinstance(child, BLOCKS):
            yield child
            yield from own_nodes(child)


def called(node: ast.AST) -> str:
    """Last part of the name of what is called; empty for what is no call."""
    if not isinstance(node, ast.Call):
        return ""
    return getattr(node.func, "attr", getattr(node.func, "id", ""))


# One figure is a list of places; most count them.


def tokenizing_modules(tree: Tree) -> list[str]:
    """Modules of `neurofuse` that turn a recording into tokens, other than the one that defines how."""
    return [
        m.path
        for m in tree.modules
        if m.name.startswith("neurofuse.") and m.stem != "tokens" and any(map(_tokenizes, ast.walk(m.tree)))
    ]


def _tokenizes(node: ast.AST) -> bool:
    return called(node) == "tokenize"


def training_loops(tree: Tree) -> list[str]:
    """Functions that take gradient steps: a backward pass and a step without a closure (LBFGS takes one)."""
    found = []
    for module in tree.modules:
        for function in functions(module.tree):
            calls = [n for n in own_nodes(function) if isinstance(n, ast.Call)]
            steps = [c for c in calls if called(c) == "step" and not c.args and not c.keywords]
            if steps and any(called(c) == "backward" for c in calls):
                found.append(f"{module.at(function)} {function.name}")
    return found


def import_edges(module: Module, known: set[str]) -> Iterator[tuple[str, str]]:
    """(module, kind) of what a module imports of the package; kinds are "import", "lazy" and "typing"."""

    def visit(node: ast.AST, kind: str) -> Iterator[tuple[str, str]]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            inverse = isinstance(node.test, ast.UnaryOp)
            for part, seen in ((node.body, inverse), (node.orelse, not inverse)):
                for statement in part:
                    yield from visit(statement, kind if seen else "typing")
            return
        if isinstance(node, ast.Import):
            yield from ((alias.name, kind) for alias in node.names if alias.name in known)
        if isinstance(node, ast.ImportFrom) and node.module:
            targets = (f"{node.module}.{alias.name}" for alias in node.names)
            found = {target if target in known else node.module for target in targets}
            yield from ((target, kind) for target in found & known)
        deferred = kind == "import" and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        inside = "lazy" if deferred else kind
        for child in ast.iter_child_nodes(node):
            yield from visit(child, inside)

    return visit(module.tree, "import")


def circles(tree: Tree, kinds: tuple[str, ...]) -> list[str]:
    """Groups of modules each of which can be reached from any other of its group through imports of these kinds.

    The package itself is left out: its `__init__` lists public names of all modules.
    """
    names = {m.name for m in tree.modules} - set(PACKAGES)
    edges: dict[str, set[str]] = defaultdict(set)
    for module in tree.modules:
        if module.name in names:
            edges[module.name] = {
                to for to, kind in import_edges(module, names) if kind in kinds and to != module.name
            }
    reached = {name: _reachable(name, edges) for name in names}
    groups = {
        frozenset(other for other in reached[name] if name in reached[other])
        for name in names
        if name in reached[name]
    }
    return sorted(", ".join(sorted(group)) for group in groups)


def _reachable(start: str, edges: dict[str, set[str]]) -> set[str]:
    found: set[str] = set()
    queue = [start]
    while queue:
        new = edges.get(queue.pop(), set()) - found
        found |= new
        queue.extend(new)
    return found


def parts_of(name: str) -> list[str]:
    """Words of an identifier, split at `_` and at capitals."""
    return [w.lower() for w in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]


def bound_names(tree: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Names that a module gives: of functions, classes, parameters, variables, attributes and imports under another."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name, node
            case ast.arg(arg=name):
                yield name, node
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield name, node
            case ast.alias(asname=str(name)):
                yield name, node


def forbidden_bindings(tree: Tree) -> list[str]:
    """Bindings that have a forbidden word among their parts, with what to write instead."""
    found = []
    for module in tree.modules:
        for name, node in bound_names(module.tree):
            words = {
                w
                for w in parts_of(name)
                if w in FORBIDDEN and module.name.startswith(WITHIN.get(w, PACKAGES))
            }
            if words:
                found.append(f"{module.at(node)} {name} ({'; '.join(FORBIDDEN[w] for w in sorted(words))})")
    return found


def forbidden_prose(tree: Tree) -> list[str]:
    """Forbidden words in docstrings, comments and messages, by the list of those without an innocent use."""
    pattern = re.compile(rf"\b(?:{PROSE})\b", flags=re.IGNORECASE)
    return [
        f"{module.path}:{line} {match.group()}"
        for module in tree.modules
        for line, text in prose_of(module)
        for match in pattern.finditer(text)
    ]


def prose_of(module: Module) -> Iterator[tuple[int, str]]:
    """(line, text) of strings, the fixed parts of f-strings, and comments."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from enumerate(node.value.splitlines(), node.lineno)
    for token in tokenize.generate_tokens(io.StringIO(module.text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def repeated_modules(tree: Tree) -> list[str]:
    """Names that several modules or folders have."""
    places = defaultdict(list)
    for module in tree.modules:
        places[module.stem].append(module.path)
    places.pop("__main__", None)
    return [f"{name}: {', '.join(p)}" for name, p in places.items() if len(p) > 1]


def repeated_classes(tree: Tree) -> list[str]:
    """Classes of the top level of several modules under one name."""
    places = defaultdict(list)
    for module in tree.modules:
        for node in module.tree.body:
            if isinstance(node, ast.ClassDef):
                places[node.name].append(module.at(node))
    return [f"{name}: {', '.join(p)}" for name, p in places.items() if len(p) > 1]


def repeated_constants(tree: Tree) -> list[str]:
    """Constants of several modules under one name and of different values."""
    places: dict[str, dict[str, str]] = defaultdict(dict)
    values: dict[str, set[str]] = defaultdict(set)
    for module in tree.modules:
        for name, node, value in _constants(module.tree):
            places[name].setdefault(module.name, module.at(node))
            values[name].add(value)
    return [
        f"{name}: {', '.join(p.values())}"
        for name, p in places.items()
        if len(p) > 1 and len(values[name]) > 1 and name not in BY_AGREEMENT
    ]


def _constants(tree: ast.Module) -> Iterator[tuple[str, ast.AST, str]]:
    """Name, statement and value of every constant."""
    for node in tree.body:
        if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
            continue
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            whole = isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple)
            names = target.elts if isinstance(target, ast.Tuple) else [target]
            values = (
                node.value.elts if whole and isinstance(node.value, ast.Tuple) else [node.value] * len(names)
            )
            for one, value in zip(names, values, strict=True):
                if isinstance(one, ast.Name) and re.fullmatch(r"_?[A-Z][A-Z0-9_]+", one.id):
                    yield one.id.lstrip("_"), node, ast.unparse(value)


def lines_to_read(tree: Tree, what: str) -> int:
    """Lines of the files that a newcomer reads to add a decoder, a network, a format or a study metric."""
    total = 0
    for alternatives in READING[what]:
        path = next((tree.root / a for a in alternatives if (tree.root / a).exists()), None)
        total += 0 if path is None else len(path.read_text(encoding="utf-8").splitlines())
    return total


def repeated_settings(tree: Tree) -> list[str]:
    """Settings with a default of their own in several configurations of a run; inherited ones stand in one place."""
    places = defaultdict(list)
    for module in tree.modules:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ClassDef) and SETTINGS.search(node.name) and node.name not in OF_ONE_STEP:
                for field in node.body:
                    if isinstance(field, ast.AnnAssign) and field.value is not None:
                        places[ast.unparse(field.target)].append(f"{module.at(field)} {node.name}")
    return [f"{name}: {', '.join(p)}" for name, p in places.items() if len(p) > 1]


def settings_of_commands(tree: Tree) -> list[str]:
    """Options that a command declares with a default of its own although a configuration of a run has them."""
    known = set()
    for module in tree.modules:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ClassDef) and SETTINGS.search(node.name) and node.name not in OF_ONE_STEP:
                known |= {
                    ast.unparse(f.target) for f in node.body if isinstance(f, ast.AnnAssign) and f.value
                }
    # `--window` is window_s, `--steps` is n_steps.
    known |= {name.removesuffix("_s").removeprefix("n_") for name in known}
    found = []
    for module in tree.modules:
        for function in functions(module.tree):
            if any(ast.unparse(d).startswith("app.command") for d in function.decorator_list):
                found += [
                    f"{module.at(function)} {function.name}: {a}" for a in _optional(function) if a in known
                ]
    return found


def _optional(function: Function) -> list[str]:
    """Parameters that have a default."""
    a = function.args
    plain = [*a.posonlyargs, *a.args]
    named = [x for x, default in zip(a.kwonlyargs, a.kw_defaults, strict=True) if default is not None]
    return [x.arg for x in (*plain[len(plain) - len(a.defaults) :], *named)]


def keyword_lines(tree: Tree) -> list[str]:
    """Lines that only pass a keyword on, `name=name,` or `name=config.name,`."""
    pattern = re.compile(r"\s+(\w+)=(?:\w+\.)*\1,?")
    return [
        f"{m.path}:{k} {line.strip()}"
        for m in tree.modules
        for k, line in enumerate(m.lines, 1)
        if pattern.fullmatch(line)
    ]


def longest_functions(tree: Tree) -> list[tuple[int, str]]:
    """(lines, place) of functions from their `def` on, the longest first; those inside count for both."""
    found = [
        ((f.end_lineno or f.lineno) - f.lineno + 1, f"{m.at(f)} {f.name}")
        for m in tree.modules
        for f in functions(m.tree)
    ]
    return sorted(found, reverse=True)


def complexity(function: ast.AST) -> int:
    """Cyclomatic complexity (McCabe 1976): one plus decisions; functions defined inside count by themselves.

    Decisions are branches, loops, handlers, cases, conditional expressions, clauses of comprehensions, and every
    `and` and `or`.
    """
    total = 1
    for node in own_nodes(function):
        match node:
            case ast.If() | ast.For() | ast.AsyncFor() | ast.While() | ast.ExceptHandler() | ast.IfExp():
                total += 1
            case ast.match_case():
                total += 1
            case ast.BoolOp(values=values):
                total += len(values) - 1
            case ast.comprehension(ifs=conditions):
                total += 1 + len(conditions)
    return total


def most_complex(tree: Tree) -> list[tuple[int, str]]:
    """(complexity, place) of functions, the most complex first."""
    found = [(complexity(f), f"{m.at(f)} {f.name}") for m in tree.modules for f in functions(m.tree)]
    return sorted(found, reverse=True)


def submodule_imports(tree: Tree) -> list[str]:
    """Imports that reach behind the public names, in the README, the documentation and the notebooks."""
    pattern = re.compile(r"\s*(?:from (?:neurofuse\.|data_loaders)|import (?:neurofuse\.|data_loaders\.))")
    return [
        f"{path}:{k} {line.strip()}"
        for path, text in tree.documents
        for k, line in enumerate(text.splitlines(), 1)
        if pattern.match(line)
    ]


def package_lines(tree: Tree) -> int:
    """Lines of all modules, and of the stubs beside them."""
    stubs = [path for package in PACKAGES for path in (tree.root / package).rglob("*.pyi")]
    return sum(len(m.lines) for m in tree.modules) + sum(
        len(p.read_text("utf-8").splitlines()) for p in stubs
    )


def private_imports(tree: Tree) -> list[str]:
    """Imports of private names from another module."""
    return [
        f"{m.at(node)} {alias.name}"
        for m in tree.modules
        for node in ast.walk(m.tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PACKAGES
        for alias in node.names
        if alias.name.startswith("_") and not alias.name.startswith("__")
    ]


def unannotated(tree: Tree) -> list[str]:
    """Functions that lack the type of a parameter or of what they return."""
    return [f"{m.at(f)} {f.name}" for m in tree.modules for f in functions(m.tree) if not _annotated(f)]


def _annotated(function: Function) -> bool:
    a = function.args
    every = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]
    named = [x for x in every if x.arg not in ("self", "cls")]
    return function.returns is not None and all(x.annotation is not None for x in named)


# What is counted, by its name in the table: the places of a figure, or its size.
PLACES: dict[str, Callable[[Tree], list[str]]] = {
    "modules that tokenize": tokenizing_modules,
    "training loops": training_loops,
    "circles of imports": lambda tree: circles(tree, ("import", "lazy")),
    "circles with typing": lambda tree: circles(tree, ("import", "lazy", "typing")),
    "bindings with forbidden words": forbidden_bindings,
    "prose with forbidden words": forbidden_prose,
    "module names twice": repeated_modules,
    "classes twice": repeated_classes,
    "constants twice": repeated_constants,
    "settings twice": repeated_settings,
    "settings again in a command": settings_of_commands,
    "keyword-passing lines": keyword_lines,
    "functions over 80 lines": lambda tree: [f"{n} {p}" for n, p in longest_functions(tree) if n > 80],
    "functions over complexity 20": lambda tree: [f"{n} {p}" for n, p in most_complex(tree) if n > 20],
    "submodule imports in documents": submodule_imports,
    "private imports": private_imports,
    "functions without types": unannotated,
}
SIZES: dict[str, Callable[[Tree], int]] = {
    "longest function": lambda tree: longest_functions(tree)[0][0],
    "largest complexity": lambda tree: most_complex(tree)[0][0],
    **{f"lines to add a {what}": partial(lines_to_read, what=what) for what in READING},
    "package lines": package_lines,
}


def figures(tree: Tree) -> dict[str, int]:
    """All figures of a tree by name."""
    counts = {name: len(places(tree)) for name, places in PLACES.items()}
    return counts | {name: size(tree) for name, size in SIZES.items()}


def main() -> None:
    """Print the table, or the places of one figure."""
    parser = argparse.ArgumentParser(description="Figures of structure and language, from the source alone.")
    here = Path(__file__).resolve().parent.parent
    parser.add_argument("--tree", type=Path, nargs="+", default=[here], metavar="DIR")
    parser.add_argument("--places", choices=PLACES, metavar="FIGURE", help=", ".join(PLACES))
    options = parser.parse_args()
    trees = [Tree(root) for root in options.tree]
    if options.places:
        for tree in trees:
            print(f"{tree.root}:", *PLACES[options.places](tree), sep="\n  ")
        return
    columns = [figures(tree) for tree in trees]
    print("| | " + " | ".join(str(tree.root) for tree in trees) + " |")
    print("|---" * (len(trees) + 1) + "|")
    for name in columns[0]:
        print(f"| {name} | " + " | ".join(f"{column[name]:,}" for column in columns) + " |")


if __name__ == "__main__":
    main()
