"""In: a name and a level. Out: the jitter that goes by it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from neurofuse.jitters.dropped_samples import ClockLag, HiddenDrops, MarkedDrops
from neurofuse.jitters.jitter import Jitter, compose
from neurofuse.jitters.lag_laws import LAWS, LagLaw
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
from neurofuse.recording import NeurofuseError


@dataclass(frozen=True)
class JitterKind:
    """One entry of the family, for a listing or a sweep over levels; a larger level is always worse.

    Attributes
    ----------
    kind, unit, acts_on, says : str
        As in `Jitter`.
    settings : dict of str to str
        What may follow the level, and the type of its value.
    make : callable
        `make(level, **settings)` builds the jitter.
    """

    kind: str
    unit: str
    acts_on: str
    says: str
    settings: dict[str, str]
    make: Callable[..., Jitter]


def _plain(jitter: type[Jitter]) -> JitterKind:
    settings = {f.name: str(f.type) for f in fields(jitter) if f.name != "level"}  # type: ignore[arg-type]
    return JitterKind(jitter.kind, jitter.unit, jitter.acts_on, jitter.says, settings, jitter)


def _of_law(law: type[LagLaw]) -> JitterKind:
    own = {f.name: str(f.type) for f in fields(law) if f.name != "level"}
    theirs = {f.name: str(f.type) for f in fields(ClockLag) if f.init and f.name != "law"}

    def make(level: float, **settings: Any) -> Jitter:
        of_law = {k: v for k, v in settings.items() if k in own}
        return ClockLag(law(level, **of_law), **{k: v for k, v in settings.items() if k not in own})

    return JitterKind(law.kind, law.unit, ClockLag.acts_on, law.says, own | theirs, make)


JITTERS: dict[str, JitterKind] = {
    j.kind: j
    for j in (
        *(
            _plain(j)
            for j in (
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
            )
        ),
        *(_of_law(law) for kind, law in LAWS.items() if kind != "none"),
        *(
            _plain(j)
            for j in (
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
        ),
    )
}


def make_jitter(kind: str, level: float, **settings: Any) -> Jitter:
    """Build a jitter by its kind.

    Raises
    ------
    NeurofuseError
        If there is no such kind, it has no such setting, or the level makes no sense.
    """
    if kind not in JITTERS:
        raise NeurofuseError(f"unknown jitter '{kind}'; choose one of {', '.join(JITTERS)}.")
    entry = JITTERS[kind]
    unknown = sorted(set(settings) - set(entry.settings))
    if unknown:
        raise NeurofuseError(
            f"jitter '{kind}' has no setting '{unknown[0]}'; it has {', '.join(entry.settings)}."
        )
    return entry.make(level, **settings)


def parse_jitter(text: str) -> Jitter:
    """Read `KIND:LEVEL`, with settings behind it where wanted, several of them joined by `|`.

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


def _parse_one(text: str) -> Jitter:
    kind, *rest = text.split(":")
    if kind not in JITTERS:
        raise NeurofuseError(f"unknown jitter '{kind}' in '{text}'; choose one of {', '.join(JITTERS)}.")
    entry = JITTERS[kind]
    try:
        level = float(rest[0])
    except (IndexError, ValueError):
        raise NeurofuseError(
            f"jitter '{text}' has no level; write {kind}:LEVEL with a number"
            + ("" if entry.unit == "1" else f" in {entry.unit}")
            + f" ({entry.says})."
        ) from None
    settings: dict[str, Any] = {}
    for word in rest[1:]:
        name, equals, value = word.partition("=")
        kind_of = entry.settings.get(name, "str")
        if not equals:
            raise NeurofuseError(f"jitter '{text}': '{word}' is no setting; write name=value.")
        try:
            settings[name] = int(value) if kind_of == "int" else float(value) if "float" in kind_of else value
        except ValueError:
            raise NeurofuseError(f"jitter '{text}': {name} must be a number, got '{value}'.") from None
    return make_jitter(kind, level, **settings)
