"""In: a recording and what one of its clocks does wrong. Out: every stream of that clock misplaced, and the truth.

Sign as everywhere: an event at reference time t carries the stamp t + lag.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace

import numpy as np
from numpy.typing import ArrayLike

from neurofuse.jitters.jitter import Done, Jitter, Moved, TimeMap, second_clock
from neurofuse.jitters.lag_laws import LagLaw, LagTruth, move_clock, nearest
from neurofuse.recording import (
    FloatArray,
    NeurofuseError,
    Recording,
    Signal,
    Spikes,
    Stream,
)


@dataclass(frozen=True)
class ClockLag(Jitter):
    """One clock errs by a law (`neurofuse.jitters.lag_laws`).

    Parameters
    ----------
    law : LagLaw
        How; its kind, level and unit are those of the jitter.
    clock : str, optional
        Which; by default the first that is not the reference.
    max_lag_s : float, optional
        Clip the lag to this range.
    """

    law: LagLaw
    clock: str | None = None
    max_lag_s: float | None = None
    level: float = field(init=False)
    kind: str = field(init=False)
    unit: str = field(init=False)
    says: str = field(init=False)

    acts_on = "clock"
    edge = "stamps whose content was never recorded are dropped; spikes and their support move past the ends"

    def __post_init__(self) -> None:
        for name in ("level", "kind", "unit", "says"):
            object.__setattr__(self, name, getattr(self.law, name))
        if not (self.law.signed and np.isfinite(self.level)):
            super().__post_init__()

    def targets(self, recording: Recording) -> tuple[str, ...]:
        """Every stream of the clock."""
        return tuple(s.name for s in recording.on(second_clock(recording, self.clock, self.kind)))

    def act(self, recording: Recording, streams: tuple[str, ...], *, rng: np.random.Generator) -> Done:
        """Move the clock."""
        clock = second_clock(recording, self.clock, self.kind)
        after, lag = move_clock(recording, clock, self.law, max_lag_s=self.max_lag_s, rng=rng)
        back = _inverse(lag)
        moved: dict[str, Moved] = {}
        for name in streams:
            before, now = recording[name], after[name]
            if isinstance(before, Spikes):
                wanted_s = lag.held(before.times_s)
                moved[name] = Moved(wanted_s, np.argsort(before.times_s + wanted_s, kind="stable"))
            elif isinstance(now, Signal):
                source = nearest(before.time_s, back(now.time_s))
                moved[name] = Moved(lag.held(before.time_s), source)
        return Done(
            {n: after[n] for n in streams},
            moved,
            {"lag": lag, "largest_s": float(np.abs(lag.lag_s).max())},
            (lambda t: t + lag.held(t), back),
            clock,
        )

    def phi(self, f_hz: ArrayLike, *, span_s: float = float("nan")) -> FloatArray:
        """That of the law."""
        return self.law.phi(f_hz, span_s=span_s)

    @property
    def parameters(self) -> dict[str, object]:
        """Those of the law, the clock, and the range."""
        law = {f.name: getattr(self.law, f.name) for f in fields(self.law) if f.name != "level"}
        return law | {"clock": self.clock, "max_lag_s": self.max_lag_s}

    def __str__(self) -> str:
        default = type(self)(type(self.law)(self.level))
        changed = [f":{k}={v}" for k, v in self.parameters.items() if v != default.parameters[k]]
        return f"{self.kind}:{self.level:.12g}" + "".join(changed)


@dataclass(frozen=True)
class HiddenDrops(Jitter):
    """A logger loses bursts of samples and does not notice: all that follows is stamped too early.

    Bursts begin at random, `level / burst_s` times a second, and every stream of the clock loses the same ones. A
    burst is rounded to whole samples of the slowest stream, and is one sample at least; the truth has all of them.

    Parameters
    ----------
    level : float
        Share of the time that is lost.
    burst_s : float
        Length of a burst.
    clock : str, optional
        By default the first that is not the reference.
    """

    level: float
    burst_s: float = 0.01
    clock: str | None = None

    kind = "drop-hidden"
    unit = "1"
    acts_on = "clock"
    says = "samples are lost and what follows moves up; level is the share lost"
    edge = "the last stretch ends earlier by what was lost"

    hidden = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.level < 1 and self.burst_s > 0):
            raise NeurofuseError(
                f"jitter '{self.kind}': it loses a share below 1 in bursts longer than 0 s, not {self.level:g} in "
                f"bursts of {self.burst_s:g} s."
            )

    def targets(self, recording: Recording) -> tuple[str, ...]:
        """Every stream of the clock."""
        return tuple(s.name for s in recording.on(second_clock(recording, self.clock, self.kind)))

    def act(self, recording: Recording, streams: tuple[str, ...], *, rng: np.random.Generator) -> Done:
        """Lose the same bursts from every stream."""
        clock = second_clock(recording, self.clock, self.kind)
        bursts = self._bursts(recording.on(clock), rng)
        out: dict[str, Stream] = {}
        moved: dict[str, Moved] = {}
        for name in streams:
            out[name], moved[name] = self._without(recording[name], bursts)
        lost_s = np.diff(bursts, axis=1)[:, 0]
        told = {"bursts": bursts, "n_bursts": len(bursts), "lost_s": float(lost_s.sum())}
        if not self.hidden:
            return Done(out, moved, told)
        knots = np.concatenate([[0.0], np.cumsum(lost_s)])
        ends = bursts[:, 1] - knots[1:]
        return Done(
            out,
            moved,
            told,
            (
                lambda t: t - _lost_before(t, bursts),
                lambda t: t + knots[np.searchsorted(ends, t, side="right")],
            ),
            clock,
        )

    def phi(self, f_hz: ArrayLike, *, span_s: float = float("nan")) -> FloatArray:
        """|(1 - e^-k) / k|, k = r T (1 - e^(-2 pi i f b)): hops of one size and sign, aligned at the start."""
        k = self.level / self.burst_s * span_s * (1 - np.exp(-2j * np.pi * np.asarray(f_hz) * self.burst_s))
        small = np.abs(k) < 1e-9
        return np.where(small, 1.0, np.abs((1 - np.exp(-k)) / np.where(small, 1.0, k)))

    def _bursts(self, streams: list[Stream], rng: np.random.Generator) -> FloatArray:
        """Stretches (n, 2) that are lost, merged where they overlap, on the grid of the slowest stream."""
        start_s, stop_s = min(s.start_s for s in streams), max(s.stop_s for s in streams)
        steps = [s for s in streams if isinstance(s, Signal)]
        slowest = max(steps, key=lambda s: s.sample_s, default=None)
        burst_s = self.burst_s
        if slowest is not None:
            step_s = slowest.sample_s
            burst_s = max(1, round(burst_s / step_s)) * step_s
        n = rng.poisson((stop_s - start_s) * self.level / burst_s)
        begin_s = np.sort(rng.uniform(start_s, stop_s, n))
        if slowest is not None:
            # Half a fast sample before the slow one, so that rounding cannot part them.
            early_s = 0.5 * min(s.sample_s for s in steps)
            begin_s = slowest.start_s + step_s * np.floor((begin_s - slowest.start_s) / step_s) - early_s
        rows = np.stack([begin_s, begin_s + burst_s], axis=1)
        # Bursts that overlap run into one another: the later begins where the earlier ends.
        for k in range(1, n):
            if rows[k, 0] < rows[k - 1, 1]:
                rows[k] += rows[k - 1, 1] - rows[k, 0]
        return rows[rows[:, 1] <= stop_s]

    def _without(self, stream: Stream, bursts: FloatArray) -> tuple[Stream, Moved]:
        times_s = stream.times_s if isinstance(stream, Spikes) else stream.time_s
        inside = _inside(times_s, bursts)
        source = np.flatnonzero(~inside)
        back_s = np.zeros(times_s.size)
        if self.hidden:
            # Samples step back by whole samples, so that their grid stays a grid.
            lost = _lost_before(times_s, bursts)
            back_s = lost if isinstance(stream, Spikes) else stream.sample_s * np.rint(lost / stream.sample_s)
        moved = Moved(np.where(inside, np.nan, -back_s), source)
        new_s = (times_s - back_s)[source]
        if isinstance(stream, Signal):
            data = stream.data.isel(time=source).assign_coords(time=new_s)
            return replace(stream, data=data), moved
        if self.hidden:
            support = stream.support - _lost_before(stream.support.ravel(), bursts).reshape(-1, 2)
        else:
            support = _cut_out(stream.support, bursts)
        return replace(stream, times_s=new_s, unit=stream.unit[source], support=support), moved


@dataclass(frozen=True)
class MarkedDrops(HiddenDrops):
    """A logger loses bursts of samples and says so: what is left keeps its times, with gaps between."""

    kind = "drop-marked"
    says = "samples are lost and leave gaps; level is the share lost"
    edge = "a burst beyond the end of the recording is not drawn"

    hidden = False

    def phi(self, f_hz: ArrayLike, *, span_s: float = float("nan")) -> FloatArray:
        """1: what is left keeps its times."""
        return np.ones(np.shape(f_hz))


def _inverse(lag: LagTruth) -> TimeMap:
    """Stamp -> reference time: the moment of the truth's grid that is nearest to having this stamp."""
    stamp_s = lag.time_s + lag.lag_s
    order = np.argsort(stamp_s, kind="stable")
    return lambda time_s: time_s - lag.lag_s[order[nearest(stamp_s[order], time_s)]]


def _lost_before(time_s: ArrayLike, bursts: FloatArray) -> FloatArray:
    """Seconds lost before each time; inside a burst, up to there."""
    if not len(bursts):
        return np.zeros(np.shape(time_s))
    lost_s = np.diff(bursts, axis=1)[:, 0]
    knots = np.cumsum(lost_s)
    at = np.concatenate([[0.0], np.stack([knots - lost_s, knots], axis=1).ravel()])
    return np.interp(np.asarray(time_s), np.concatenate([[bursts[0, 0] - 1], bursts.ravel()]), at)


def _cut_out(support: FloatArray, bursts: FloatArray) -> FloatArray:
    """Stretches of support with the bursts taken out."""
    edges = np.unique(np.concatenate([support.ravel(), bursts.ravel()]))
    rows = np.stack([edges[:-1], edges[1:]], axis=1)
    middle = rows.mean(axis=1)
    return rows[_inside(middle, support) & ~_inside(middle, bursts)] if len(bursts) else support


def _inside(time_s: FloatArray, stretches: FloatArray) -> np.ndarray:
    """Which times lie in one of the stretches (n, 2), which are in order."""
    if not len(stretches):
        return np.zeros(time_s.size, dtype=bool)
    row = np.searchsorted(stretches[:, 0], time_s, side="right") - 1
    return (row >= 0) & (time_s < stretches[np.maximum(row, 0), 1])
