"""In: a recording and a jitter. Out: the recording misaligned or made noisier, and the truth of what was done to it.

Every jitter keeps the same promises. The recording given is not touched. `level` is its one strength, in `unit`; at
level 0 nothing changes, and a larger level is always worse. Chance comes from the generator given, and only through
generators spawned from it, one a jitter and one a stream: a jitter added later, or a stream added behind the others,
changes no draw of those before, and one seed at several levels makes the same draws at several strengths.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from neurofuse.jitters.lag_laws import TRUTH_STEP_S, LagTruth, nearest
from neurofuse.recording import (
    FloatArray,
    IntArray,
    NeurofuseError,
    Recording,
    Signal,
    Spikes,
    Stream,
)

TimeMap = Callable[[FloatArray], FloatArray]


@dataclass(frozen=True)
class Seed:
    """Where a generator stood when a jitter began, so that this jitter can be run again alone.

    Parameters
    ----------
    bits : str
        Class of the bit generator, as numpy calls it.
    entropy : int or tuple of int
    spawn_key : tuple of int
    n_spawned : int
        Children spawned before.
    """

    bits: str
    entropy: Any
    spawn_key: tuple[int, ...]
    n_spawned: int

    @classmethod
    def of(cls, rng: np.random.Generator) -> Seed:
        """Read it off a generator."""
        sequence = rng.bit_generator.seed_seq
        if not isinstance(sequence, np.random.SeedSequence):
            raise NeurofuseError(
                f"the generator was not made from a numpy SeedSequence but from {type(sequence).__name__}, so its "
                "children cannot be repeated; give numpy.random.default_rng(SEED)."
            )
        entropy = sequence.entropy
        entropy = tuple(int(e) for e in entropy) if isinstance(entropy, (list, tuple)) else entropy
        key = tuple(int(k) for k in sequence.spawn_key)
        return cls(type(rng.bit_generator).__name__, entropy, key, sequence.n_children_spawned)

    def generator(self) -> np.random.Generator:
        """A generator with which the jitter does again what it did."""
        sequence = np.random.SeedSequence(
            self.entropy, spawn_key=self.spawn_key, n_children_spawned=self.n_spawned
        )
        return np.random.Generator(getattr(np.random, self.bits)(sequence))


@dataclass(frozen=True, eq=False)
class Moved:
    """What became of the events (spikes, samples) of one stream.

    Parameters
    ----------
    displacement_s : ndarray, shape (n_before,), or (n_before, n_channels) where channels part
        New time minus old time of every event there was, in seconds; NaN for one that is gone.
    source : ndarray of int, shape (n_after,)
        Which event of before each event of after is (for resampled signals: the nearest); -1 for one that is new.
    """

    displacement_s: FloatArray
    source: IntArray

    @classmethod
    def unmoved(cls, n: int) -> Moved:
        """All events where they were."""
        return cls(np.zeros(n), np.arange(n))


@dataclass(frozen=True, eq=False)
class JitterTruth:
    """What a jitter did.

    Parameters
    ----------
    jitter : Jitter
        The jitter, with its level and parameters.
    seed : Seed
        `jitter.jitter(recording, rng=seed.generator())` does the same again.
    streams : tuple of str
        The streams it acted on.
    clock : str or None
        The clock it moved, if it moved a clock.
    span_s : float
        How long the recording was.
    moved : dict of str to Moved
        By stream. Of a stream of counts: of its spikes as `neurofuse.jitters.spikes.unbin` placed them; a chain
        does not follow these.
    realised : dict
        What else was drawn or measured: delays, counts of lost spikes, noise in physical units.
    maps : pair of functions
        Time before -> time after, and back, in seconds; the identity where every event errs by itself.
    parts : tuple of JitterTruth
        The steps of a chain, in order.
    """

    jitter: Jitter
    seed: Seed
    streams: tuple[str, ...]
    span_s: float
    clock: str | None = None
    moved: dict[str, Moved] = field(default_factory=dict)
    realised: dict[str, Any] = field(default_factory=dict)
    maps: tuple[TimeMap, TimeMap] | None = None
    parts: tuple[JitterTruth, ...] = ()

    @property
    def kind(self) -> str:
        """What kind of jitter it was."""
        return self.jitter.kind

    @property
    def level(self) -> float:
        """Its strength, in `unit`; NaN for a chain."""
        return self.jitter.level

    @property
    def unit(self) -> str:
        """Unit of the level."""
        return self.jitter.unit

    @property
    def edge(self) -> str:
        """What happened at the edges of what was recorded."""
        return self.jitter.edge

    @property
    def parameters(self) -> dict[str, Any]:
        """Every setting of the jitter other than its level."""
        return self.jitter.parameters

    def forward(self, time_s: ArrayLike, stream: str | None = None) -> FloatArray:
        """Where a moment went: time before -> time after, in seconds, as `stream` (or whatever moved) shows it."""
        out = np.asarray(time_s, dtype=np.float64)
        for part in self.parts:
            out = part.forward(out, stream)
        if self.maps is None or (stream is not None and stream not in self.streams):
            return out
        return self.maps[0](out)

    def backward(self, time_s: ArrayLike, stream: str | None = None) -> FloatArray:
        """Where a moment came from: time after -> time before; where two moments share a time, one of them."""
        out = np.asarray(time_s, dtype=np.float64)
        for part in reversed(self.parts):
            out = part.backward(out, stream)
        if self.maps is None or (stream is not None and stream not in self.streams):
            return out
        return self.maps[1](out)

    def phi(self, f_hz: ArrayLike, *, span_s: float | None = None) -> FloatArray:
        """Predicted attenuation at each frequency; see `Jitter.phi`. By default over the whole recording."""
        return self.jitter.phi(f_hz, span_s=self.span_s if span_s is None else span_s)

    def lags(self, start_s: float, stop_s: float) -> dict[str, LagTruth]:
        """The lag of every clock that moved, along [start_s, stop_s] of the time before."""
        steps = self.parts or (self,)
        time_s = np.arange(start_s, stop_s + TRUTH_STEP_S, TRUTH_STEP_S)
        out = {}
        for clock in dict.fromkeys(s.clock for s in steps if s.clock is not None):
            there = time_s
            for step in steps:
                if step.clock == clock and step.maps is not None:
                    there = step.maps[0](there)
            law = " | ".join(str(s.jitter) for s in steps if s.clock == clock)
            out[clock] = LagTruth(clock, time_s, there - time_s, law)
        return out

    def as_dict(self) -> dict[str, Any]:
        """What can be told without arrays, ready for JSON."""
        return {
            "jitter": str(self.jitter),
            "kind": self.kind,
            "level": None if self.parts else self.level,
            "unit": self.unit,
            "parameters": self.parameters,
            "seed": [self.seed.bits, self.seed.entropy, list(self.seed.spawn_key), self.seed.n_spawned],
            "streams": list(self.streams),
            "clock": self.clock,
            "edge": self.edge,
            "realised": {k: v for k, v in self.realised.items() if isinstance(v, (int, float, str))},
            "parts": [p.as_dict() for p in self.parts],
        }


class Jitter:
    """One way in which a recording goes wrong. Subclasses are frozen dataclasses that say what `act` does.

    Attributes
    ----------
    level : float
        Strength in `unit`; 0 changes nothing and larger is worse.
    kind, unit, says : str
        Name, unit of the level, and one line of description.
    acts_on : {"spikes", "lfp", "clock"}
        What is touched: populations (spike times, or counts), sampled signals, or all streams of one clock.
    edge : str
        What happens at the edges of what was recorded.
    """

    level: float
    kind: str = ""
    unit: str = ""
    acts_on: str = ""
    says: str = ""
    edge: str = "nothing reaches an edge"

    def __post_init__(self) -> None:
        if not (np.isfinite(self.level) and self.level >= 0):
            raise NeurofuseError(
                f"jitter '{self.kind}': the level is a size in {self.unit} and cannot be {self.level:g}; "
                "give zero or more."
            )

    def targets(self, recording: Recording) -> tuple[str, ...]:
        """Names of the streams this jitter acts on, or an error that says what is missing."""
        raise TypeError(f"{type(self).__name__} does not say what it acts on.")

    def act(self, recording: Recording, streams: tuple[str, ...], *, rng: np.random.Generator) -> Done:
        """Do it, at a level above zero; the streams as they are afterwards and what happened to them."""
        raise TypeError(f"{type(self).__name__} does not say what it does.")

    def phi(self, f_hz: ArrayLike, *, span_s: float = float("nan")) -> FloatArray:
        """Predicted attenuation |phi(f)|, NaN where theory gives none.

        Jittered spikes lock to a phase at frequency f by |phi(f)| of what they did (pairwise phase consistency: by
        its square), and a moved clock keeps that share of the coherence's amplitude under one fixed alignment.

        Parameters
        ----------
        f_hz : array_like
            Frequencies, Hz.
        span_s : float
            How long one alignment has to last, in seconds; only lags that grow depend on it.
        """
        return np.full(np.shape(f_hz), np.nan)

    def jitter(self, recording: Recording, *, rng: np.random.Generator) -> tuple[Recording, JitterTruth]:
        """The recording after this jitter, and the truth.

        Parameters
        ----------
        recording : Recording
        rng : numpy Generator
            One child of it is spawned for this jitter; no number is drawn from it.

        Raises
        ------
        NeurofuseError
            If the recording lacks what the jitter acts on.
        """
        streams = self.targets(recording)
        seed = Seed.of(rng)
        (child,) = rng.spawn(1)
        if self.level == 0:
            done = Done({}, {n: Moved.unmoved(_n_events(recording[n])) for n in streams})
        else:
            done = self.act(recording, streams, rng=child)
        after = tuple(done.streams.get(s.name, s) for s in recording.streams)
        start_s, stop_s = recording.span_s
        truth = JitterTruth(
            self, seed, streams, stop_s - start_s, done.clock, done.moved, done.realised, done.maps
        )
        what = ", ".join(f"'{n}'" for n in streams)
        return recording.but(streams=after, did=f"{what} jittered by {self}"), truth

    def __or__(self, other: Jitter | Sequence[Jitter]) -> Jitter:
        """This jitter, then the other."""
        return compose([self, *([other] if isinstance(other, Jitter) else other)])

    def __str__(self) -> str:
        """`KIND:LEVEL`, with every setting that is not the default behind it, as `parse_jitter` reads it."""
        own = fields(self)  # type: ignore[arg-type]
        told = [(f.name, getattr(self, f.name)) for f in own if f.name in self.parameters]
        changed = [f":{n}={v}" for (n, v) in told if v != _default(type(self), n)]
        return f"{self.kind}:{self.level:.12g}" + "".join(changed)

    @property
    def parameters(self) -> dict[str, Any]:
        """Every setting other than the level."""
        own = fields(self)  # type: ignore[arg-type]
        return {f.name: getattr(self, f.name) for f in own if f.name != "level"}


@dataclass(frozen=True, eq=False)
class Done:
    """What `Jitter.act` hands back: changed streams by name, and what the truth is made of."""

    streams: dict[str, Stream]
    moved: dict[str, Moved]
    realised: dict[str, Any] = field(default_factory=dict)
    maps: tuple[TimeMap, TimeMap] | None = None
    clock: str | None = None


@dataclass(frozen=True)
class Chain(Jitter):
    """Several jitters, one after the other."""

    steps: tuple[Jitter, ...]

    def __post_init__(self) -> None:
        names = {
            "level": float("nan"),
            "kind": " | ".join(s.kind for s in self.steps),
            "unit": " | ".join(s.unit for s in self.steps),
            "acts_on": " | ".join(dict.fromkeys(s.acts_on for s in self.steps)),
            "edge": " | ".join(s.edge for s in self.steps),
            "says": "; then ".join(s.says for s in self.steps),
        }
        for name, value in names.items():
            object.__setattr__(self, name, value)

    def targets(self, recording: Recording) -> tuple[str, ...]:
        """All streams that any step acts on."""
        return tuple(dict.fromkeys(n for s in self.steps for n in s.targets(recording)))

    def phi(self, f_hz: ArrayLike, *, span_s: float = float("nan")) -> FloatArray:
        """The product of the steps, which err independently."""
        return np.prod([s.phi(f_hz, span_s=span_s) for s in self.steps], axis=0)

    def jitter(self, recording: Recording, *, rng: np.random.Generator) -> tuple[Recording, JitterTruth]:
        """The recording after every step, and a truth whose `parts` are those of the steps."""
        seed, start = Seed.of(rng), recording
        truths: list[JitterTruth] = []
        moved: dict[str, Moved] = {}
        for step in self.steps:
            before = recording
            recording, truth = step.jitter(recording, rng=rng)
            truths.append(truth)
            for name, now in truth.moved.items():
                first = moved.get(name)
                moved[name] = now if first is None else _after(start[name], before[name], first, now)
        # What was binned, or comes as counts, has no event that could be followed from one step to the next.
        moved = {n: m for n, m in moved.items() if _followed(start[n]) and _same(start[n], recording[n])}
        streams = tuple(dict.fromkeys(n for t in truths for n in t.streams))
        start_s, stop_s = start.span_s
        return recording, JitterTruth(self, seed, streams, stop_s - start_s, moved=moved, parts=tuple(truths))

    @property
    def parameters(self) -> dict[str, Any]:
        """None; the steps have theirs."""
        return {}

    def __str__(self) -> str:
        return " | ".join(str(s) for s in self.steps)


def compose(jitters: Sequence[Jitter]) -> Jitter:
    """One jitter that does all of them in order.

    Raises
    ------
    NeurofuseError
        If there are none.
    """
    steps = tuple(
        step for jitter in jitters for step in (jitter.steps if isinstance(jitter, Chain) else (jitter,))
    )
    if not steps:
        raise NeurofuseError("there is no jitter to compose; give one or more.")
    return steps[0] if len(steps) == 1 else Chain(steps)


def pick(recording: Recording, stream: str | None, found: Sequence[Stream], what: str) -> tuple[str, ...]:
    """The stream asked for, or all that were found; refused in one sentence where there are none."""
    if stream is not None:
        recording[stream]
        return (stream,)
    if not found:
        raise NeurofuseError(f"recording '{recording.name}' has {what}; it has {_names(recording)}.")
    return tuple(s.name for s in found)


def second_clock(recording: Recording, clock: str | None, kind: str) -> str:
    """The clock asked for, or the first that is not the reference and times something."""
    if clock is not None:
        if clock not in recording.clocks or not recording.on(clock):
            raise NeurofuseError(
                f"jitter '{kind}': recording '{recording.name}' has no stream on clock '{clock}'; "
                f"choose one of {[c for c in recording.clocks if recording.on(c)]}."
            )
        return clock
    others = [c for c in recording.clocks if c != recording.reference and recording.on(c)]
    if not others:
        raise NeurofuseError(
            f"jitter '{kind}': recording '{recording.name}' has only the clock '{recording.reference}', so there is "
            "no second clock to move; make one with split_units (--split-units N) or separate_lfp."
        )
    return others[0]


def _names(recording: Recording) -> list[str]:
    return [f"{s.name} ({'spikes' if isinstance(s, Spikes) else s.kind})" for s in recording.streams]


def _n_events(stream: Stream) -> int:
    if isinstance(stream, Spikes):
        return stream.times_s.size
    if stream.kind == "counts":
        return int(np.asarray(stream.data.values).sum())
    return stream.time_s.size


def _default(kind: type, name: str) -> Any:
    return next(f.default for f in fields(kind) if f.name == name)


def _followed(stream: Stream) -> bool:
    return isinstance(stream, Spikes) or stream.kind != "counts"


def _same(a: Stream, b: Stream) -> bool:
    return isinstance(a, Spikes) == isinstance(b, Spikes)


def _after(before: Stream, middle: Stream, first: Moved, then: Moved) -> Moved:
    """Two displacements in a row, from `before` to `middle` and on."""
    if not (_followed(before) and _same(before, middle)):
        return then
    d1, d2 = first.displacement_s, then.displacement_s
    source = np.where(then.source >= 0, first.source[then.source], -1)
    if isinstance(middle, Spikes):
        to = np.full(d1.size, -1)
        to[first.source[first.source >= 0]] = np.flatnonzero(first.source >= 0)
        return Moved(np.where(to >= 0, d1 + d2[to], np.nan) if d2.size else np.full(d1.size, np.nan), source)
    # A sample goes on from the sample that is nearest to where it went.
    assert isinstance(before, Signal)
    parts = np.broadcast_shapes(
        (len(d1), 1), d1.reshape(len(d1), -1).shape, (1, d2.reshape(len(d2), -1).shape[1])
    )
    one = np.broadcast_to(d1.reshape(len(d1), -1), parts)
    gone = ~np.isfinite(one)
    now_s = np.where(gone, middle.time_s[0], before.time_s[:, None] + one)
    two = np.broadcast_to(d2.reshape(len(d2), -1), (len(d2), parts[1]))
    two = np.take_along_axis(two, nearest(middle.time_s, now_s), axis=0)
    total = np.where(gone, np.nan, one + two)
    return Moved(total[:, 0] if parts[1] == 1 else total, source)
