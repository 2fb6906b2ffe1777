"""In: a kind and a level, as text or values. Out: a jitter.

A kind is a class. Some are built in, some are added by installed packages (entry point group `neurofuse.jitters`) and
by `register_jitter` at run time.
"""

from __future__ import annotations

import math
import re
from dataclasses import fields
from functools import cache
from typing import Any, TypeVar

from neurofuse.errors import NeurofuseError
from neurofuse.extensions import from_packages, same_definition
from neurofuse.jitters.dropped_samples import HiddenDrops, MarkedDrops
from neurofuse.jitters.jitter import Jitter, compose
from neurofuse.jitters.lag_laws import (
    AnyLag,
    Diffusion,
    Hops,
    Jumps,
    LagJitter,
    NoLag,
    Offset,
    OffsetSkew,
    Sinusoid,
    Skew,
    Walk,
    Wander,
    Warp,
    WindowLag,
)
from neurofuse.jitters.lfp import (
    Artefacts,
    FilterDelay,
    LineNoise,
    PinkNoise,
    Propagation,
    Saturate,
    WhiteNoise,
)
from neurofuse.jitters.spikes import (
    DeadTime,
    DelayUnits,
    Delete,
    DropUnits,
    GaussianSpikes,
    Insert,
    IntervalSpikes,
    LaplaceSpikes,
    Mislabel,
    OrderedSpikes,
    Quantise,
    UniformSpikes,
)

GROUP = "neurofuse.jitters"
ACTS_ON = ("spikes", "lfp", "clock")
# A level of each unit, for error messages.
_EXAMPLES = {"s": "0.3", "ppm": "30", "1": "0.2", "s^2/s": "0.001"}

J = TypeVar("J", bound=type[Jitter])

# Kind -> class. Those of installed packages are added by the first `find_jitter` or `find_jitters`.
JITTERS: dict[str, type[Jitter]] = {
    jitter.kind: jitter
    for jitter in (
        GaussianSpikes,
        UniformSpikes,
        LaplaceSpikes,
        IntervalSpikes,
        OrderedSpikes,
        Quantise,
        DelayUnits,
        Delete,
        Insert,
        Mislabel,
        DeadTime,
        DropUnits,
        NoLag,
        WindowLag,
        Offset,
        Skew,
        Walk,
        Jumps,
        Wander,
        AnyLag,
        OffsetSkew,
        Diffusion,
        Hops,
        Sinusoid,
        Warp,
        HiddenDrops,
        MarkedDrops,
        FilterDelay,
        Propagation,
        WhiteNoise,
        PinkNoise,
        LineNoise,
        Artefacts,
        Saturate,
    )
}
# Kinds that every process has without `register_jitter`.
_INSTALLED = set(JITTERS)


def register_jitter(jitter: J) -> J:
    """Add a class to `JITTERS`, for `parse_jitter` and for studies; usable as a decorator.

    A class defined again, as in a cell of a notebook that is run twice, replaces itself.

    Parameters
    ----------
    jitter : subclass of Jitter
        A frozen dataclass with a field `level` and class attributes `kind`, `unit`, `acts_on` and `description`.

    Returns
    -------
    type
        The class.

    Raises
    ------
    NeurofuseError
        If it is no such class, or another class has its kind.
    """
    _check(jitter)
    other = JITTERS.get(jitter.kind, jitter)
    if not same_definition(other, jitter):
        raise NeurofuseError(
            f"{jitter.__qualname__} has the kind '{jitter.kind}', which is that of {other.__module__}."
            f"{other.__qualname__}; choose another kind."
        )
    JITTERS[jitter.kind] = jitter
    return jitter


def _check(jitter: type[Jitter]) -> None:
    name = getattr(jitter, "__qualname__", repr(jitter))
    if not (isinstance(jitter, type) and issubclass(jitter, Jitter)):
        raise NeurofuseError(f"{name} is no jitter; derive a class from neurofuse.Jitter.")
    parameters = vars(jitter).get("__dataclass_params__")
    if parameters is None or not parameters.frozen:
        raise NeurofuseError(
            f"{name} must be a frozen dataclass; write @dataclass(frozen=True) below @register_jitter."
        )
    if "level" not in {f.name for f in fields(jitter)}:  # type: ignore[arg-type]
        raise NeurofuseError(f"{name} has no field 'level', its strength; add level: float.")
    missing = [n for n in ("kind", "unit", "acts_on", "description") if not getattr(jitter, n)]
    if missing:
        raise NeurofuseError(f"{name} has no {missing[0]}; set it as a class attribute.")
    if not re.fullmatch(r"[\w-]+", jitter.kind):
        raise NeurofuseError(
            f"{name} has the kind '{jitter.kind}'; use letters, digits, - and _, as in 'spike-late'."
        )
    if jitter.acts_on not in ACTS_ON:
        raise NeurofuseError(
            f"{name} acts on '{jitter.acts_on}'; acts_on must be one of {', '.join(ACTS_ON)}."
        )


@cache
def _add_installed() -> None:
    """Add the jitters of installed packages, once per process."""
    _INSTALLED.update(jitter.kind for jitter in from_packages(GROUP, "jitter", register_jitter))


def find_jitters() -> dict[str, type[Jitter]]:
    """Every kind and its class, those of installed packages included."""
    _add_installed()
    return JITTERS


def find_jitter(kind: str) -> type[Jitter]:
    """The class of a kind.

    Raises
    ------
    NeurofuseError
        If there is no such kind.
    """
    return _find(kind)


def _find(kind: str, where: str = "") -> type[Jitter]:
    if kind not in JITTERS and kind not in find_jitters():
        raise NeurofuseError(f"unknown jitter '{kind}'{where}; choose one of {', '.join(JITTERS)}.")
    return JITTERS[kind]


def registered_jitters() -> tuple[type[Jitter], ...]:
    """Classes added by `register_jitter` in this process, which another process has to register as well."""
    return tuple(jitter for kind, jitter in JITTERS.items() if kind not in _INSTALLED)


def is_lag(kind: str) -> bool:
    """Whether a kind (without settings) is a lag law."""
    return kind in find_jitters() and issubclass(JITTERS[kind], LagJitter)


def make_jitter(kind: str, level: float, **settings: Any) -> Jitter:
    """Build a jitter by its kind.

    Raises
    ------
    NeurofuseError
        If there is no such kind, it has no such setting, or the level is out of range.
    """
    jitter = find_jitter(kind)
    known = jitter.settings()
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise NeurofuseError(f"jitter '{kind}' has no setting '{unknown[0]}'; it has {', '.join(known)}.")
    return jitter(level, **settings)  # type: ignore[call-arg]


def parse_jitter(text: str) -> Jitter:
    """Read `KIND:LEVEL`, optionally followed by `:name=value` for settings; several are joined by `|`.

    `none` needs no level.

    Examples
    --------
    >>> print(parse_jitter("spike:0.01"))
    spike:0.01
    >>> print(parse_jitter("noise:2:hi_hz=6 | walk:0.2:clock=logger"))
    noise:2:hi_hz=6.0 | walk:0.2:clock=logger

    Raises
    ------
    NeurofuseError
        If a kind is unknown, or a level or setting cannot be read.
    """
    return compose([_parse_one(part.strip()) for part in text.split("|")])


def parse_lag(text: str) -> LagJitter:
    """`parse_jitter` where only a lag law will do.

    Raises
    ------
    NeurofuseError
        If the text cannot be read, or is another kind of jitter.
    """
    kind = text.partition(":")[0].strip()
    jitter = parse_jitter(text) if is_lag(kind) else None
    if not isinstance(jitter, LagJitter):
        problem = (
            f"jitter '{text}' is no lag law" if kind in JITTERS else f"unknown jitter '{kind}' in '{text}'"
        )
        raise NeurofuseError(f"{problem}; choose one of {', '.join(k for k in JITTERS if is_lag(k))}.")
    return jitter


def _parse_one(text: str) -> Jitter:
    kind, *rest = text.split(":")
    jitter = _find(kind, f" in '{text}'")
    if text == NoLag.kind:
        return NoLag()
    try:
        level = float(rest[0])
    except (IndexError, ValueError):
        level = float("nan")
    if not math.isfinite(level):
        unit = "" if jitter.unit == "1" else f" in {jitter.unit}"
        example = _EXAMPLES.get(jitter.unit, "1")
        raise NeurofuseError(
            f"jitter '{text}' has no level; write {kind}:LEVEL with a number{unit}, such as {kind}:{example} "
            f"({jitter.description})."
        )
    types = jitter.settings()
    settings: dict[str, Any] = {}
    for word in rest[1:]:
        name, equals, value = word.partition("=")
        if not equals:
            raise NeurofuseError(f"jitter '{text}': '{word}' is no setting; write name=value.")
        try:
            settings[name] = _value(value, types.get(name, "str"))
        except ValueError:
            needed = "true or false" if "bool" in types[name] else "a number"
            raise NeurofuseError(f"jitter '{text}': {name} must be {needed}, got '{value}'.") from None
    return make_jitter(kind, level, **settings)


def _value(text: str, of: str) -> Any:
    """A setting from text, by the type in its annotation."""
    words = re.findall(r"\w+", of)
    if "float" in words:
        return float(text)
    if "int" in words:
        return int(text)
    if "bool" in words:
        if text.lower() not in ("true", "false"):
            raise ValueError(text)
        return text.lower() == "true"
    return text
