"""In: what was typed. Out: data on stdout, progress and errors on stderr, and an exit code.

Exit codes: 0 done, 1 a fault of ours, 2 something given cannot be used, 130 interrupted.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass, field, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, cast

from cyclopts import App, CycloptsError, Parameter

import neurofuse
from neurofuse.config import AlignConfig, DecodeConfig, Settings, StudyConfig, flags
from neurofuse.errors import NeurofuseError
from neurofuse.extensions import ExtensionWarning

if TYPE_CHECKING:
    from typing import Any as AlignOptions
    from typing import Any as DecodeOptions
    from typing import Any as StudyOptions

    from neurofuse.decoders.base import Decoder
    from neurofuse.jitters.jitter import LagTruth
    from neurofuse.recording import Recording

app = App(
    name="neurofuse",
    help="Decode movement from spikes and LFP whose clocks do not agree.",
    version=neurofuse.__version__,
    help_format="plaintext",
    suppress_keyboard_interrupt=False,
)
app.register_install_completion_command()


def _whole(_: Any, tokens: Sequence[Any]) -> int:
    """A whole number as typed; without this 1.5 would be rounded."""
    try:
        return int(tokens[0].value)
    except ValueError:
        raise ValueError(f"'{tokens[0].value}' is not a whole number.") from None


Paths = Annotated[
    str,
    Parameter(
        help="Recordings, one or several; each file has a clock of its own. Or 'demo', an embedded simulation."
    ),
]


Format = Annotated[
    str | None,
    Parameter(name="--format", help="Name of the format, where suffix and content do not show it."),
]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Source:
    """What to read and how, shared by every command that reads a recording; see `data_loaders.load`."""

    spikes: Annotated[
        str | None, Parameter(help="NAME, PATH or PATH::NAME[,NAME]; 'none' leaves spikes out.")
    ] = None
    lfp: Annotated[str | None, Parameter(help="The same for LFP.")] = None
    movement: Annotated[str | None, Parameter(help="The same for movement, e.g. HandXcm,HandYcm.")] = None
    bin_s: Annotated[
        float | None, Parameter(name="--bin", help="Bin width of plain count matrices, seconds.")
    ] = None
    rate_hz: Annotated[
        float | None, Parameter(name="--rate", help="Sampling rate of plain LFP matrices, Hz.")
    ] = None
    time_unit: Annotated[str, Parameter(help="Unit of times in plain files: s, ms, us or samples@RATE.")] = (
        "s"
    )
    format: Format = None
    gap_tolerance_ms: Annotated[
        float | None, Parameter(help="Pauses up to this long in a maker's file are no gap.")
    ] = None
    circular: Annotated[
        str | None,
        Parameter(help="Movement wraps around: decode cosine and sine. 'auto' or the length of a turn."),
    ] = None
    missing: Annotated[
        Literal["refuse", "drop"], Parameter(help="What to do with samples that hold NaN.")
    ] = "refuse"
    allow_negative_times: Annotated[
        bool, Parameter(negative="", help="Spikes before time zero are meant.")
    ] = False


EVERYTHING = Source()


def _options(config: type[Settings]) -> type:
    """A dataclass of command-line options, one for each setting of a configuration that has a flag."""
    types = {
        "count": int,
        "whole": int,
        "positive": float,
        "zero or more": float,
        "mains": float,
        "share": float,
    }
    rows: list[Any] = []
    for name, (flag, text, check, default) in flags(config).items():
        kind: Any = bool if isinstance(default, bool) else types.get(check, str)
        convert = _whole if kind is int else None
        shown = Parameter(
            name=flag, help=text, negative="", show_default=default is not None, converter=convert
        )
        rows.append(
            (name, Annotated[kind if default is not None else kind | None, shown], field(default=default))
        )
    made = make_dataclass(
        f"{config.__name__}Options", rows, frozen=True, kw_only=True, namespace={"__module__": __name__}
    )
    return Parameter(name="*")(made)


if not TYPE_CHECKING:
    DecodeOptions = _options(DecodeConfig)
    StudyOptions = _options(StudyConfig)
    AlignOptions = _options(AlignConfig)
DECODE_DEFAULTS, STUDY_DEFAULTS, ALIGN_DEFAULTS = (
    cast(Callable[[], Any], kind)() for kind in (DecodeOptions, StudyOptions, AlignOptions)
)


# Options of how a command runs, not of what it computes.
Threads = Annotated[
    int,
    Parameter(
        converter=_whole, help="Threads of PyTorch; more help on an idle machine, and hurt on a busy one."
    ),
]
Json = Annotated[bool, Parameter(name="--json", negative="", help="Print the result as JSON on stdout.")]
Out = Annotated[Path | None, Parameter(help="Folder for the results (out/NAME).")]
Set = Annotated[
    list[str] | None,
    Parameter(
        name="--set",
        negative="",
        help="NAME=VALUE, an option of the decoder, such as width=32; may be repeated.",
    ),
]


@app.command
def decode(
    *paths: Paths,
    source: Source = EVERYTHING,
    settings: DecodeOptions = DECODE_DEFAULTS,
    options: Set = None,
    threads: Threads = 1,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Train on the first part of a recording, decode movement from the last, and report both movement and lag.

    Try it with `neurofuse decode demo`. The error of a demo's clock can be chosen:
    demo:walk, demo:jump, demo:skew, demo:block, demo:offset or demo:none.
    """
    import time

    from neurofuse.decode import decode_recording
    from neurofuse.prepare import check_names
    from neurofuse.report.save import save_result

    start = time.perf_counter()
    config = DecodeConfig(**asdict(settings), options=_set(options))
    check_names(config)
    _use_threads(threads)
    folder = out if out is not None else Path("out") / _name_of(paths, source)
    with _new_folder(folder, marker="metrics.json") as partial:
        truths: dict[str, LagTruth] = {}
        if _is_demo(paths):
            recording, truths = _demo(paths[0], config.seed, partial / "input")
        else:
            recording = _load(paths, source)
        load_s = time.perf_counter() - start
        result = decode_recording(recording, config=config, truths=truths, progress=True)
        result.metrics["seconds"] = {"load": round(load_s, 3), **result.metrics["seconds"]}
        save_result(result, partial)
    _report(result.metrics, result.alignment, folder, as_json)


@app.command
def align(
    *paths: Paths,
    source: Source = EVERYTHING,
    settings: AlignOptions = ALIGN_DEFAULTS,
    save_as: Annotated[
        Path | None, Parameter(name="-o", help="Write the re-timed recording: .nwb, .nc or .nix.")
    ] = None,
    threads: Threads = 1,
    out: Annotated[Path | None, Parameter(help="Folder for the results (out/NAME-aligned).")] = None,
    as_json: Json = False,
) -> None:
    """Find the map between two clocks from the signals alone, and re-time the second to the first.

    Two files, or one recording with two clocks; movement, if there is any, counts as a signal of its clock. A recording
    whose clocks share no signal is refused. Try it with `neurofuse align demo:skew`.
    """
    from neurofuse.alignment.align import align as align_recording
    from neurofuse.prepare import check_names
    from neurofuse.report.save import save_alignment

    config = AlignConfig(**asdict(settings))
    check_names(config)
    if save_as is not None:
        if save_as.suffix not in (".nwb", ".nc", ".nix"):
            raise NeurofuseError(f"-o writes .nwb, .nc or .nix, got '{save_as}'.")
        _check_not_input(save_as, paths, source)
    _use_threads(threads)
    folder = out if out is not None else Path("out") / f"{_name_of(paths, source)}-aligned"
    with _new_folder(folder, marker="clock.json") as partial:
        if _is_demo(paths):
            recording, _ = _demo(paths[0], config.seed, partial / "input")
        else:
            recording = _load(paths, source)
        found = align_recording(recording, config=config, progress=True)
        save_alignment(found, partial)
    if save_as is not None and found.status == "aligned":
        from data_loaders import save

        save(found.apply(found.recording), save_as)
        _print(f"wrote {save_as}")
    elif save_as is not None:
        _print(f"warning: '{save_as}' was not written: the alignment is {found.status}.")
    _print(repr(recording))
    for warning in found.warnings:
        _print(f"warning: {warning}")
    _print(found.verdict)
    _print(f"results in {folder}")
    if as_json:
        print(json.dumps(found.as_dict(), indent=2))


@app.command
def study(
    *paths: Paths,
    source: Source = EVERYTHING,
    jitter: Annotated[
        str, Parameter(help="KIND[,KIND]: lag, walk, spike, delete, noise ...; a wrong name lists all.")
    ] = "lag",
    levels: Annotated[
        str,
        Parameter(help="a,b,c; KIND=a,b,c[;KIND=a,b,c]; or auto, around the predicted critical level."),
    ] = "auto",
    decoders: Annotated[
        str, Parameter(help="NAME[:OPTION=VALUE][,NAME ...]; early and oracle are added as references.")
    ] = "tracked,softmax",
    references: Annotated[
        bool, Parameter(negative="--no-references", help="Add early and oracle.", show_default=False)
    ] = True,
    protocol: Annotated[
        str,
        Parameter(
            help="train-matched (trained at every level), test-only (trained once), or both, by comma."
        ),
    ] = "train-matched",
    settings: StudyOptions = STUDY_DEFAULTS,
    options: Set = None,
    jobs: Annotated[int, Parameter(converter=_whole, help="Processes of this machine.")] = 1,
    scheduler: Annotated[
        str | None, Parameter(help="Address of a Dask scheduler to run on instead, tcp://HOST:8786.")
    ] = None,
    resume: Annotated[bool, Parameter(negative="", help="Go on with the study that --out holds.")] = False,
    out: Annotated[Path, Parameter(help="Folder for the results.")],
    as_json: Json = False,
) -> None:
    """Plant a growing error in a recording, train decoders on it, and measure at which level each of them fails.

    The clocks of the recording should agree: the study plants every error itself. `demo` is the simulation
    without a lag. Try it with
    `neurofuse study demo --jitter lag --levels 0.1,0.3 --decoders ridge --seeds 1 --out out/study`.
    """
    from neurofuse.prepare import check_names
    from neurofuse.study.run import run_study

    kinds = _names(jitter)
    config = StudyConfig(
        **asdict(settings),
        decoders=_decoders(decoders, _set(options)),
        kinds=kinds,
        levels=_levels(levels, kinds),
        protocols=_names(protocol),
        references=references,
    )
    check_names(config)
    if jobs < 1:
        raise NeurofuseError(f"--jobs must be one or more, got {jobs}.")
    if _is_demo(paths):
        if paths[0] not in ("demo", "demo:none"):
            raise NeurofuseError(
                f"'{paths[0]}' has a lag of its own, and a study plants every error; take demo, whose clocks agree."
            )
        recording, _ = _simulated("demo:none", config.seed)
    else:
        recording = _load(paths, source)
    table = run_study(
        recording, config=config, jobs=jobs, scheduler=scheduler, out=out, resume=resume, progress=True
    )
    _print(repr(recording))
    _report_study(table, out, as_json)


def _report_study(table: Any, out: Path, as_json: bool) -> None:
    """Write thresholds and page of a study, and print what it found."""
    from neurofuse.report.save import save_study_report, save_thresholds
    from neurofuse.study.run import as_json as study_json

    for kind, origin in zip(table["kind"].values, table["levels_from"].values, strict=True):
        _print(f"levels of {kind}: {origin}")
    status = table["status"].values
    short = table["message"].values == "this kind has fewer levels"
    for state in ("failed", "quarantined", "missing"):
        there = (status == state) & ~short
        if there.any():
            whys = dict.fromkeys(table["message"].values[there])
            _print(f"warning: {there.sum()} cells {state}: {'; '.join(list(whys)[:3])}")
    found = save_thresholds(out, table)
    for note in found["notes"]:
        _print(f"warning: no thresholds of {note}")
    page = save_study_report(out, table, found)
    for one in found["thresholds"]:
        if one["method"] == "isotonic":
            _print(_threshold_line(one))
    _print(f"{(status == 'ok').sum()} cells in {out / 'study.nc'}; read {page}")
    if as_json:
        print(json.dumps(study_json(table) | {"thresholds": found["thresholds"]}, indent=2))


@app.command
def predict(
    checkpoint: Path,
    *paths: Paths,
    source: Source = EVERYTHING,
    out: Annotated[Path | None, Parameter(help="Folder for the results (out/NAME-predicted).")] = None,
    as_json: Json = False,
) -> None:
    """Decode a whole recording with a decoder that was fitted before (the `checkpoint` folder of a decode)."""
    from neurofuse.decode import predict_recording
    from neurofuse.report.save import save_tables

    fitted, settings = _checkpoint(checkpoint)
    folder = out if out is not None else Path("out") / f"{_name_of(paths, source)}-predicted"
    if folder.resolve() in (checkpoint.resolve(), *checkpoint.resolve().parents):
        raise NeurofuseError(
            f"'{folder}' holds the checkpoint '{checkpoint}', which would be lost; choose another --out."
        )
    with _new_folder(folder, marker="metrics.json") as partial:
        if _is_demo(paths):
            recording, _ = _demo(paths[0], int(settings["seed"]), partial / "input")
        else:
            recording = _load(paths, source)
        metrics, prediction, alignment = predict_recording(recording, fitted, settings)
        save_tables(partial, metrics, prediction, alignment)
    _report(metrics, alignment, folder, as_json)


@app.command
def info(
    path: Path,
    *,
    format: Format = None,
    as_json: Json = False,
) -> None:
    """List what a file holds, and how to choose from it."""
    found = neurofuse.info(path, format=format)
    print(json.dumps(found.to_dict(), indent=2) if as_json else str(found))


@app.command
def convert(
    *paths: Paths,
    out: Annotated[Path, Parameter(name=["--out", "-o"], help="File to write: .nwb, .nc or .nix.")],
    source: Source = EVERYTHING,
    seed: Annotated[int, Parameter(converter=_whole, help="Of the demo.")] = 0,
) -> None:
    """Read a recording and write it as one NWB, netCDF or NIX file, every clock kept by name."""
    from data_loaders import save

    Settings(seed=seed)
    _check_not_input(out, paths, source)
    if _is_demo(paths):
        recording, _ = _simulated(paths[0], seed)
    else:
        recording = _load(paths, source)
    save(recording, out)
    _print(repr(recording))
    _print(f"wrote {out}")


@app.command
def fetch(
    name: Annotated[str | None, Parameter(help="A data set; without it all are listed.")] = None,
    *,
    file: Annotated[str | None, Parameter(help="Another file of the set, as its archive names it.")] = None,
    out: Annotated[Path | None, Parameter(help="Folder to keep it in (the user's cache).")] = None,
    as_json: Json = False,
) -> None:
    """Download a public recording, checked where its archive publishes a checksum, or list what there is."""
    from data_loaders.fetch import RECIPES, recipe

    if name is None:
        rows = [asdict(r) | {"load": dict(r.load), "checksum": r.checksum} for r in RECIPES.values()]
        listing = "\n".join(f"{r.name:18s}{r.what} [{r.licence}; {r.checksum}]" for r in RECIPES.values())
        print(json.dumps(rows, indent=2) if as_json else listing)
        return
    chosen = recipe(name)
    path = neurofuse.fetch(name, file=file, folder=out, progress=True)
    options = " ".join(f"--{key} {value}" for key, value in chosen.load)
    _print(f"licence: {chosen.licence}; cite: {chosen.citation}")
    _print(f"go on with: neurofuse {'decode' if options else 'info'} {path} {options}".rstrip())
    print(json.dumps({"path": str(path)}) if as_json else path)


def main(tokens: list[str] | None = None) -> None:
    """Run the command line and exit with its code."""

    try:
        with _persistent_interrupt(), warnings.catch_warnings():
            # Warnings of libraries about their own code are not for the user of this one.
            warnings.simplefilter("ignore")
            warnings.simplefilter("once", ExtensionWarning)
            warnings.showwarning = lambda message, *_, **__: _print(f"warning: {message}")
            app(tokens, exit_on_error=False, print_error=False)
    except NeurofuseError as error:
        _fail(str(error))
    except CycloptsError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        _print("neurofuse: interrupted")
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except MemoryError as error:
        _fail(
            f"there is not enough memory ({error}); take fewer channels, longer tokens or a shorter recording."
        )
    except OSError as error:
        _fail(f"cannot read or write '{error.filename or 'a file'}' ({error.strerror or error}).")


# Seconds after which an interrupt is raised again.
RAISE_AGAIN_S = 10.0


@contextmanager
def _persistent_interrupt() -> Iterator[None]:
    """Ctrl-C once is enough, though a library may swallow it: it is raised again until it has come through."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: Any) -> NoReturn:
        signal.setitimer(signal.ITIMER_REAL, RAISE_AGAIN_S)
        raise KeyboardInterrupt

    before = [(s, signal.signal(s, interrupt)) for s in (signal.SIGINT, signal.SIGALRM)]
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before:
            signal.signal(number, handler or signal.SIG_DFL)


def _fail(reason: str) -> NoReturn:
    """One sentence on one line, and the exit code of what cannot be used."""
    _print(f"neurofuse: error: {' '.join(reason.split())}")
    sys.exit(2)


def _threshold_line(one: dict[str, Any]) -> str:
    """One threshold on one line."""
    unit = "" if one["unit"] == "1" else f" {one['unit']}"
    if one["measured"] is None:
        sides = {"above": "above the levels tried", "below": "below the levels tried"}
        sides |= {"both": "above the levels tried for some seeds, below for others"}
        level = f"censored ({sides.get(one['censored'], 'too little was measured')})"
    else:
        low, high = (("?" if x is None else f"{x:.3g}") for x in one["ci95"] or (None, None))
        level = f"{one['measured']:.3g}{unit} (95 % {low} to {high})"
    predicted = "" if one["predicted"] is None else f", predicted {one['predicted']:.3g}{unit}"
    name = f"{one['model']}, {one['kind']}, {one['protocol']}, {one['quantity']}"
    return f"{name}: {level}{predicted}, {one['n_seeds']} seeds"


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _levels(text: str, kinds: tuple[str, ...]) -> dict[str, tuple[float, ...]]:
    """Levels by kind from `a,b,c` (for all kinds), `KIND=a,b,c;KIND=a,b,c`, or `auto`."""

    out: dict[str, tuple[float, ...]] = {}
    for part in text.split(";") if text != "auto" else ():
        kind, equals, numbers = part.rpartition("=")
        try:
            levels = tuple(float(x) for x in numbers.split(","))
        except ValueError:
            raise NeurofuseError(
                f"--levels takes 'auto', numbers such as 0.1,0.2,0.4, or KIND=0.1,0.2;KIND=1,2, got '{text}'."
            ) from None
        out |= {kind.strip(): levels} if equals else dict.fromkeys(kinds, levels)
    return out


def _check_not_input(written: Path, paths: tuple[str, ...], source: Source) -> None:
    """Refuse to write over a recording that is read."""

    read = [*paths, *(s for s in (source.spikes, source.lfp, source.movement) if s)]
    for one in read:
        path = Path(one.partition("::")[0])
        if _is_file(path) and _is_file(written) and path.samefile(written):
            raise NeurofuseError(f"'{written}' is the recording that is read; write to another file.")


def _load(paths: tuple[str, ...], source: Source) -> Recording:

    options: dict[str, Any] = asdict(source)
    if source.circular is not None:
        try:
            turn = True if source.circular == "auto" else float(source.circular)
        except ValueError:
            turn = 0.0
        if turn is not True and not 0 < turn < float("inf"):
            raise NeurofuseError(
                "--circular takes 'auto' or the length of one turn in the movement's unit, "
                f"got '{source.circular}'."
            )
        options["circular"] = turn
    # Libraries that print while they read must not mix with what --json puts on stdout.
    with redirect_stdout(sys.stderr):
        return neurofuse.load(list(paths) or None, **options)


def _checkpoint(folder: Path) -> tuple[Decoder, dict[str, Any]]:
    """A fitted decoder and the settings of the run that made it."""
    from neurofuse.decoders.base import Decoder
    from neurofuse.report.save import settings_of

    try:
        return Decoder.from_pretrained(folder), settings_of(folder)
    except NeurofuseError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise NeurofuseError(
            f"the checkpoint '{folder}' is damaged ({type(error).__name__}: {error}); "
            "make it again with `neurofuse decode`."
        ) from error


def _is_demo(paths: tuple[str, ...]) -> bool:
    return (
        len(paths) == 1
        and (paths[0] == "demo" or paths[0].startswith("demo:"))
        and not Path(paths[0]).exists()
    )


def _simulated(path: str, seed: int) -> tuple[Recording, LagTruth]:
    """The demo of that name: the same for every command, given the seed."""
    import numpy as np

    from neurofuse.simulation import demo_law, simulate

    return simulate(demo_law(path), rng=np.random.default_rng([seed, 7]))


def _demo(path: str, seed: int, folder: Path) -> tuple[Recording, dict[str, LagTruth]]:
    """Simulate, write what each of the two systems would have written, and read both files as a user would."""
    from data_loaders import save
    from neurofuse.simulation import two_files

    simulated, truth = _simulated(path, seed)
    folder.mkdir()
    names = []
    for part in two_files(simulated):
        names.append(folder / f"{part.name}.nwb")
        save(part, names[-1])
    recording = neurofuse.load(names)
    return recording.but(name=path), {truth.clock: truth}


def _name_of(paths: tuple[str, ...], source: Source) -> str:
    """A short folder name for what is decoded."""
    choices = (source.spikes, source.lfp, source.movement)
    first = next(iter(paths), None) or next((c for c in choices if c and c != "none"), "recording")
    return Path(first.split("::")[0]).absolute().resolve().stem.replace(":", "-") or "recording"


def _use_threads(threads: int) -> None:
    from neurofuse.nets.device import use_threads

    if threads < 1:
        raise NeurofuseError(f"--threads must be one or more, got {threads}.")
    use_threads(threads)


def _set(words: list[str] | None) -> dict[str, Any]:
    """Options of a decoder from NAME=VALUE."""
    return dict(_option(word) for word in words or ())


def _option(word: str) -> tuple[str, Any]:
    name, equals, text = word.partition("=")
    if not (equals and name.strip() and text.strip()):
        raise NeurofuseError(f"an option of a decoder is NAME=VALUE, such as width=32, got '{word}'.")
    try:
        return name.strip(), ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return name.strip(), {"true": True, "false": False}.get(text.strip().lower(), text.strip())


def _decoders(text: str, shared: dict[str, Any]) -> tuple[Any, ...]:
    """Decoders from NAME[:OPTION=VALUE], by comma; shared options go to all that have them."""
    from neurofuse.decoders.registry import options_of

    chosen = []
    for part in re.split(r",(?![^(]*\))", text):
        name, *words = part.strip().split(":")
        own = dict(_option(word) for word in words)
        known = options_of(name) if shared else set()
        chosen.append((name, {k: v for k, v in shared.items() if k in known} | own))
    unused = sorted(k for k in shared if not any(k in options for _, options in chosen))
    if unused:
        raise NeurofuseError(f"none of the decoders '{text}' has the option '{unused[0]}' given with --set.")
    return tuple(name if not options else (name, options) for name, options in chosen)


@contextmanager
def _new_folder(folder: Path, *, marker: str) -> Iterator[Path]:
    """A working folder beside `folder`, moved into place on success and removed on failure.

    A folder that is already there is replaced only if it is empty or one of ours, which `marker` shows.
    """

    made: list[Path] = []
    try:
        if "\0" in str(folder):
            raise ValueError("a path cannot hold a zero byte")
        if folder.exists() and (
            not folder.is_dir() or (any(folder.iterdir()) and not (folder / marker).exists())
        ):
            raise NeurofuseError(
                f"'{folder}' exists and holds something other than results of neurofuse; choose another --out."
            )
        above = [p for p in folder.absolute().parents if not p.exists()]
        for parent in reversed(above):
            parent.mkdir()
            made.append(parent)
        partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".neurofuse-"))
    except NeurofuseError:
        raise
    except (OSError, ValueError) as error:
        _remove_empty(made)
        file = next((p for p in folder.absolute().parents if _is_file(p)), None)
        why = f"'{file}' is a file" if file else str(getattr(error, "strerror", None) or error)
        raise NeurofuseError(
            f"cannot write to '{folder}' ({why}); choose an --out you may write to."
        ) from None
    try:
        yield partial
        partial.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        _remove_empty(made)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _remove_empty(folders: list[Path]) -> None:
    """Take back folders that were made on the way, innermost first, as far as they are empty."""
    for folder in reversed(folders):
        try:
            folder.rmdir()
        except OSError:
            return


def _report(metrics: dict[str, Any], alignment: Any, folder: Path, as_json: bool) -> None:
    """The verdict on stderr and, with --json, all metrics on stdout."""
    from neurofuse.report.decode_page import verdict

    _print(metrics["recording"])
    for warning in metrics["warnings"]:
        _print(f"warning: {warning}")
    if metrics.get("r2_mean") is not None:
        _print(verdict(metrics, alignment))
    _print(f"results in {folder}")
    if as_json:
        print(json.dumps(metrics, indent=2))


def _print(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    main()
