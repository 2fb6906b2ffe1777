"""In: a recording whose second logger drops samples. Out: its streams without them, and the truth.

A logger that marks what it dropped leaves gaps; one that does not stamps all later samples too early.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from neurofuse.errors import NeurofuseError
from neurofuse.jitters.jitter import Jitter, JitterResult, Moved, second_clock
from neurofuse.recording import FloatArray, Recording, Signal, Spikes, Stream


@dataclass(frozen=True)
class HiddenDrops(Jitter):
    """A logger drops bursts of samples without a mark: all later samples are stamped too early.

    Bursts begin at random, `level / burst_s` times per second, the same ones in every stream of the clock. A burst is
    rounded to whole samples of the slowest stream, at least one; the truth contains all bursts.

    Parameters
    ----------
    level : float
        Share of the time that is dropped.
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
    description = "samples are lost and later ones are stamped too early; level is the share lost"
    edge = "the last stretch ends earlier by the time that was lost"

    hidden = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.level < 1 and self.burst_s > 0):
            raise NeurofuseError(
                f"jitter '{self.kind}': the level must be a share below 1 and burst_s longer than 0 s, got "
                f"{self.level:g} and {self.burst_s:g} s."
            )

    def targets(self, recording: Recording) -> tuple[str, ...]:
        """Every stream of the clock."""
        return tuple(s.name for s in recording.on(second_clock(recording, self.clock, self.kind)))

    def act(
        self, recording: Recording, streams: tuple[str, ...], *, rng: np.random.Generator
    ) -> JitterResult:
        """Drop the same bursts from every stream."""
        clock = second_clock(recording, self.clock, self.kind)
        bursts = self._bursts(recording.on(clock), rng)
        out: dict[str, Stream] = {}
        moved: dict[str, Moved] = {}
        for name in streams:
            out[name], moved[name] = self._without(recording[name], bursts)
        lost_s = np.diff(bursts, axis=1)[:, 0]
        realised = {"bursts": bursts, "n_bursts": len(bursts), "lost_s": float(lost_s.sum())}
        if not self.hidden:
            return JitterResult(out, moved, realised)
        knots = np.concatenate([[0.0], np.cumsum(lost_s)])
        ends = bursts[:, 1] - knots[1:]
        return JitterResult(
            out,
            moved,
            realised,
            (
                lambda t: t - _lost_before(t, bursts),
                lambda t: t + knots[np.searchsorted(ends, t, side="right")],
            ),
            clock,
        )

    def phi(self, f_hz: ArrayLike, *, span_s: float = float("nan")) -> FloatArray:
        """|(1 - e^-k) / k|, k = r T (1 - e^(-2 pi i f b)): equal hops after an alignment at the start."""
        k = self.level / self.burst_s * span_s * (1 - np.exp(-2j * np.pi * np.asarray(f_hz) * self.burst_s))
        small = np.abs(k) < 1e-9
        return np.where(small, 1.0, np.abs((1 - np.exp(-k)) / np.where(small, 1.0, k)))

    def _bursts(self, streams: list[Stream], rng: np.random.Generator) -> FloatArray:
        """Start and stop (s) of the bursts, shape (n, 2), on the grid of the slowest stream; none overlap."""
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
            # Half a fast sample before the slow one, so that rounding cannot separate them.
            early_s = 0.5 * min(s.sample_s for s in steps)
            begin_s = slowest.start_s + step_s * np.floor((begin_s - slowest.start_s) / step_s) - early_s
        rows = np.stack([begin_s, begin_s + burst_s], axis=1)
        # Where two bursts overlap, the later begins where the earlier ends.
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
            # Samples move back by whole samples, so that they stay on their grid.
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
    """A logger drops bursts of samples and marks them: the others keep their times, with gaps between."""

    kind = "drop-marked"
    description = "samples are lost and leave gaps; level is the share lost"
    edge = "a burst beyond the end of the recording is not drawn"

    hidden = False

    def phi(self, f_hz: ArrayLike, *, span_s: float = float("nan")) -> FloatArray:
        """1: the times that are left are correct."""
        return np.ones(np.shape(f_hz))


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
    """Whether each time lies in one of the stretches (n, 2), which are in order."""
    if not len(stretches):
        return np.zeros(time_s.size, dtype=bool)
    row = np.searchsorted(stretches[:, 0], time_s, side="right") - 1
    return (row >= 0) & (time_s < stretches[np.maximum(row, 0), 1])
