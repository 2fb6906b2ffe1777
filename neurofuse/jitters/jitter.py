"""In: a recording and a jitter. Out: the recording misaligned or made noisier, and the truth of what was done to it.

Every jitter follows the same rules. The input recording is left as it is. `level` is the only strength, in `unit`; at
level 0 nothing changes, and a larger level is always worse. Random numbers are drawn only from generators spawned from
the one that is passed, one per jitter and one per stream: a jitter added later, or a stream added behind the others,
changes no earlier draw, and one seed at several levels makes the same draws at several strengths.

Sign of a lag, everywhere in neurofuse: an event at reference time t carries the stamp t + lag on the other clock. With
a lag of +0.2 s the other clock reads 0.2 s too late, and the sample of its streams that belongs to time t is found at
t + 0.2 s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from neurofuse.errors import NeurofuseError
from neurofuse.recording import FloatArray, IntArray, Recording, Signal, Spikes, Stream

TimeMap = Callable[[FloatArray], FloatArray]

# Lags are stored on a grid this fine; finer than any lag a spike-LFP decoder can resolve.
TRUTH_STEP_S = 0.005


@dataclass(frozen=True, eq=False)
class LagTruth:
    """The true lag of one clock at every moment of the reference clock.

    Parameters
    ----------
    clock : str
        The clock that was moved.
    time_s : ndarray, shape (n,)
        Moments on the reference clock, in steps of `TRUTH_STEP_S`.
    lag_s : ndarray, shape (n,)
        Stamp on `clock` minus reference time, at those moments.
    law : str
        The jitter that drew it, as `KIND:LEVEL`.
    """

    clock: str
    time_s: FloatArray
    lag_s: FloatArray
    law: str

    def at(self, time_s: FloatArray) -> FloatArray:
        """Lag (s) at reference times, NaN outside the time of the recording."""
        time_s = np.asarray(time_s, dtype=np.float64)
        if self.time_s.size == 0:
            return np.full(time_s.shape, np.nan)
        row = np.clip(np.rint((time_s - self.time_s[0]) / TRUTH_STEP_S).astype(int), 0, self.time_s.size - 1)
        inside = np.abs(self.time_s[row] - time_s) <= TRUTH_STEP_S
        return np.where(inside, self.lag_s[row], np.nan)

    def clamped(self, time_s: ArrayLike) -> FloatArray:
        """Lag (s) at reference times; before the first and after the last moment, the lag there."""
        return self.at(np.clip(np.asarray(time_s, dtype=np.float64), self.time_s[0], self.time_s[-1]))


@dataclass(frozen=True)
class Seed:
    """State of a generator when a jitter began, with which this jitter alone can be repeated.

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
        """The state of a generator now."""
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
        """A generator in that state."""
        sequence = np.random.SeedSequence(
            self.entropy, spawn_key=self.spawn_key, n_children_spawned=self.n_spawned
        )
        return np.random.Generator(getattr(np.random, self.bits)(sequence))


@dataclass(frozen=True, eq=False)
class Moved:
    """Displacement and origin of the events (spikes, samples) of one stream.

    Parameters
    ----------
    displacement_s : ndarray, shape (n_before,), or (n_before, n_channels) where channels differ
        New time minus old time of every event before the jitter, in seconds; NaN for one that was removed.
    source : ndarray of int, shape (n_after,)
        Index, before the jitter, of every event after it (for resampled signals: the nearest); -1 for one that is new.
    """

    displacement_s: FloatArray
    source: IntArray

    @classmethod
    def unmoved(cls, n: int) -> Moved:
        """All events where they were."""
        return cls(np.zeros(n), np.arange(n))


@dataclass(frozen=True, eq=False)
class JitterTruth:
    """Record of what one jitter changed.

    Parameters
    ----------
    jitter : Jitter
        The jitter, with its level and parameters.
    seed : Seed
        `jitter.jitter(recording, rng=seed.generator())` repeats it.
    streams : tuple of str
        The streams it acted on.
    span_s : float
        Length of the recording.
    clock : str or None
        The clock it moved, if it moved a clock.
    moved : dict of str to Moved
        By stream. For a stream of counts: of its spikes as `neurofuse.jitters.spikes.unbin` placed them; a chain
        does not follow these.
    realised : dict
        Other values that were drawn or measured: delays, counts of lost spikes, noise in physical units.
    maps : pair of functions
        Time before -> time after, and back, in seconds; None where every event has an error of its own.
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
        """Kind of the jitter."""
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
        """Treatment of the edges of what was recorded."""
        return self.jitter.edge

    @property
    def parameters(self) -> dict[str, Any]:
        """Every setting of the jitter other than its level."""
        return self.jitter.parameters

    def forward(self, time_s: ArrayLike, stream: str | None = None) -> FloatArray:
        """Time before -> time after, in seconds, for `stream` (by default for the streams that moved)."""
        out = np.asarray(time_s, dtype=np.float64)
        for part in self.parts:
            out = part.forward(out, stream)
        if self.maps is None or (stream is not None and stream not in self.streams):
            return out
        return self.maps[0](out)

    def backward(self, time_s: ArrayLike, stream: str | None = None) -> FloatArray:
        """Time after -> time before, in seconds; where two moments share a time after, one of them."""
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
        """True lag of every clock that moved, over [start_s, stop_s] of the time before (see `Recording.span_s`)."""
        steps = self.parts or (self,)
        time_s = np.arange(start_s, stop_s + TRUTH_STEP_S, TRUTH_STEP_S)
        out = {}
        for clock in dict.fromkeys(s.clock for s in steps if s.clock is not None):
            after_s = time_s
            for step in steps:
                if step.clock == clock and step.maps is not None:
                    after_s = step.maps[0](after_s)
            law = " | ".join(str(s.jitter) for s in steps if s.clock == clock)
            out[clock] = LagTruth(clock, time_s, after_s - time_s, law)
        return out

    def as_dict(self) -> dict[str, Any]:
        """All but the arrays, ready for JSON."""
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
    """One kind of corruption of a recording. Subclasses are frozen dataclasses that define `targets` and `act`.

    Attributes
    ----------
    level : float
        Strength in `unit`; 0 changes nothing and larger is worse.
    kind, unit, description : str
        Name, unit of the level, and one line of description.
    acts_on : {"spikes", "lfp", "clock"}
        What is changed: populations (spike times, or counts), sampled signals, or all streams of one clock.
    edge : str
        Treatment of the edges of what was recorded.
    signed : bool
        Whether the level may be negative; its size counts.
    """

    level: float
    kind: str = ""
    unit: str = ""
    acts_on: str = ""
    description: str = ""
    edge: str = "nothing reaches an edge"
    signed: bool = False

    def __post_init__(self) -> None:
        if not np.isfinite(self.level):
            raise NeurofuseError(f"jitter '{self.kind}:{self.level:g}': the level must be a finite number.")
        if self.level < 0 and not self.signed:
            size = "a size" if self.unit == "1" else f"a size in {self.unit}"
            raise NeurofuseError(
                f"jitter '{self.kind}:{self.level:g}': the level is {size} and cannot be negative; give zero or more."
            )

    def targets(self, recording: Recording) -> tuple[str, ...]:
        """Names of the streams this jitter acts on; an error names what the recording lacks."""
        raise TypeError(f"{type(self).__name__} does not define targets().")

    def act(
        self, recording: Recording, streams: tuple[str, ...], *, rng: np.random.Generator
    ) -> JitterResult:
        """Change the streams, at a level other than zero."""
        raise TypeError(f"{type(self).__name__} does not define act().")

    def unchanged(self, recording: Recording, streams: tuple[str, ...]) -> JitterResult:
        """The result at level zero."""
        return JitterResult({}, {n: Moved.unmoved(_n_events(recording[n])) for n in streams})

    def phi(self, f_hz: ArrayLike, *, span_s: float = float("nan")) -> FloatArray:
        """Predicted attenuation |phi(f)|, NaN where theory gives none.

        The phase locking of spikes to frequency f is multiplied by |phi(f)| (pairwise phase consistency: by its
        square), and so is the coherence's amplitude between a moved clock and the others under one fixed alignment.

        Parameters
        ----------
        f_hz : array_like
            Frequencies, Hz.
        span_s : float
            How long one alignment is used, in seconds; only lags that grow depend on it.
        """
        return np.full(np.shape(f_hz), np.nan)

    def jitter(self, recording: Recording, *, rng: np.random.Generator) -> tuple[Recording, JitterTruth]:
        """Apply this jitter.

        Parameters
        ----------
        recording : Recording
        rng : numpy Generator
            One child is spawned for this jitter; no number is drawn from the generator itself.

        Returns
        -------
        recording : Recording
            A new one.
        truth : JitterTruth

        Raises
        ------
        NeurofuseError
            If the recording lacks what the jitter acts on.
        """
        streams = self.targets(recording)
        seed = Seed.of(rng)
        (child,) = rng.spawn(1)
        if self.level == 0:
            result = self.unchanged(recording, streams)
        else:
            result = self.act(recording, streams, rng=child)
        start_s, stop_s = recording.span_s
        truth = JitterTruth(
            self, seed, streams, stop_s - start_s, result.clock, result.moved, result.realised, result.maps
        )
        if not streams:
            return recording, truth
        after = tuple(result.streams.get(s.name, s) for s in recording.streams)
        names = ", ".join(f"'{n}'" for n in streams)
        return recording.but(streams=after, did=f"{names} jittered by {self}"), truth

    def __or__(self, other: Jitter | Sequence[Jitter]) -> Jitter:
        """This jitter, then the other."""
        return compose([self, *([other] if isinstance(other, Jitter) else other)])

    def __str__(self) -> str:
        """`KIND:LEVEL`, followed by every setting that is not the default, as `parse_jitter` reads it."""
        changed = [f":{n}={v}" for n, v in self.parameters.items() if v != _default(type(self), n)]
        return f"{self.kind}:{self.level:.12g}" + "".join(changed)

    @classmethod
    def settings(cls) -> dict[str, str]:
        """Name and type of every setting other than the level, those of all jitters of a family last."""
        own = sorted(fields(cls), key=lambda f: bool(f.kw_only))  # type: ignore[arg-type]
        types = {f.name: f.type if isinstance(f.type, str) else getattr(f.type, "__name__", "") for f in own}
        return {name: of for name, of in types.items() if name != "level"}

    @property
    def parameters(self) -> dict[str, Any]:
        """Value of every setting other than the level."""
        return {name: getattr(self, name) for name in self.settings()}


@dataclass(frozen=True, eq=False)
class JitterResult:
    """What `Jitter.act` returns: changed streams by name, and the parts of the truth (see `JitterTruth`)."""

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
            "description": "; then ".join(s.description for s in self.steps),
        }
        for name, value in names.items():
            object.__setattr__(self, name, value)

    def targets(self, recording: Recording) -> tuple[str, ...]:
        """All streams that any step acts on."""
        return tuple(dict.fromkeys(n for s in self.steps for n in s.targets(recording)))

    def phi(self, f_hz: ArrayLike, *, span_s: float = float("nan")) -> FloatArray:
        """The product over the steps, whose errors are independent."""
        return np.prod([s.phi(f_hz, span_s=span_s) for s in self.steps], axis=0)

    def jitter(self, recording: Recording, *, rng: np.random.Generator) -> tuple[Recording, JitterTruth]:
        """Apply every step; the truth has those of the steps as its `parts`."""
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
        # Streams that were binned, or come as counts, have no event that could be followed from step to step.
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
    """One jitter that applies all of them in order.

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
    """The named stream, or all that were found; an error of one sentence where there are none."""
    if stream is not None:
        recording[stream]
        return (stream,)
    if not found:
        raise NeurofuseError(f"recording '{recording.name}' has {what}; it has {_names(recording)}.")
    return tuple(s.name for s in found)


def second_clock(recording: Recording, clock: str | None, kind: str) -> str:
    """The named clock, or the first other than the reference that has a stream."""
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


def nearest(time_s: FloatArray, at_s: FloatArray) -> IntArray:
    """Index of the element of `time_s` (in order) that is nearest to each of `at_s`."""
    if time_s.size < 2:
        return np.zeros(np.shape(at_s), dtype=np.int64)
    row = np.clip(np.searchsorted(time_s, at_s), 1, time_s.size - 1)
    return row - ((at_s - time_s[row - 1]) < (time_s[row] - at_s))


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
    """Two displacements in a row: from `before` to `middle`, then on."""
    if not (_followed(before) and _same(before, middle)):
        return then
    d1, d2 = first.displacement_s, then.displacement_s
    source = np.where(then.source >= 0, first.source[then.source], -1)
    if isinstance(middle, Spikes):
        to = np.full(d1.size, -1)
        to[first.source[first.source >= 0]] = np.flatnonzero(first.source >= 0)
        return Moved(np.where(to >= 0, d1 + d2[to], np.nan) if d2.size else np.full(d1.size, np.nan), source)
    # The second displacement of a sample is that of the sample nearest to its place after the first.
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
