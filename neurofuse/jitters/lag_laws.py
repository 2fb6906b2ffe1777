"""In: a recording and a law of how one clock errs. Out: the recording with that clock moved, and the truth.

Every law is a jitter of all streams of one clock; see `neurofuse.jitters.jitter` for the sign of a lag.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike
from scipy.interpolate import make_interp_spline
from scipy.special import j0

from neurofuse.errors import NeurofuseError, RecordingError
from neurofuse.jitters.jitter import (
    TRUTH_STEP_S,
    Jitter,
    JitterResult,
    LagTruth,
    Moved,
    TimeMap,
    nearest,
    second_clock,
)
from neurofuse.recording import FloatArray, Recording, Signal, Spikes, Stream
from neurofuse.theory.decoding import gaussian_attenuation


@dataclass(frozen=True)
class LagJitter(Jitter):
    """A clock with a lag. Subclasses draw the lag at a grid of times.

    Parameters
    ----------
    level : float
        Strength of the law, in `unit`.
    clock : str, optional
        The clock to move; by default the first other than the reference.
    max_lag_s : float, optional
        Clip the lag to this range.
    """

    level: float
    clock: str | None = field(default=None, kw_only=True)
    max_lag_s: float | None = field(default=None, kw_only=True)

    unit = "s"
    acts_on = "clock"
    edge = "stamps whose content was never recorded are dropped; spikes and their support move past the ends"

    def draw(self, time_s: FloatArray, *, rng: np.random.Generator) -> FloatArray:
        """Lag in seconds at each of `time_s` (a regular grid on the moved clock)."""
        raise TypeError(f"{type(self).__name__} does not define draw().")

    def sections(
        self, n: int, n_steps: int, *, step_s: float, span_s: float, rng: np.random.Generator
    ) -> FloatArray:
        """Lags of `n` short stretches at random places of a recording of `span_s` seconds.

        Returns
        -------
        ndarray, shape (n, n_steps)
            Seconds, on a grid of `step_s`. Stationary laws are drawn on the short grid itself.
        """
        time_s = step_s * np.arange(n_steps, dtype=np.float64)
        return np.stack([self.draw(time_s, rng=rng) for _ in range(n)]) if n else np.empty((0, n_steps))

    def reach_s(self, span_s: float) -> float:
        """Typical largest lag in a recording of `span_s` seconds."""
        return abs(self.level)

    def phi(self, f_hz: ArrayLike, *, span_s: float = float("nan")) -> FloatArray:
        """Factor on a coherence's amplitude at each frequency under one fixed alignment; NaN if unknown.

        The alignment lasts `span_s` seconds. For stationary laws it is the best one on average; for laws whose lag
        grows (`diffusion`, `hop`) it is that of the beginning.
        """
        return np.full(np.shape(f_hz), np.nan)

    def limit_s(self, max_lag_s: float | None) -> float:
        """Range (s) to which the lag is clipped: the narrower of `max_lag_s` and the law's own; infinite for none."""
        return min(np.inf if x is None else x for x in (max_lag_s, self.max_lag_s))

    def targets(self, recording: Recording) -> tuple[str, ...]:
        """Every stream of the clock."""
        return tuple(s.name for s in recording.on(second_clock(recording, self.clock, self.kind)))

    def act(
        self, recording: Recording, streams: tuple[str, ...], *, rng: np.random.Generator
    ) -> JitterResult:
        """Move the clock."""
        clock = second_clock(recording, self.clock, self.kind)
        after, lag = move_clock(recording, clock, self, rng=rng)
        inverse = _inverse(lag)
        moved: dict[str, Moved] = {}
        for name in streams:
            before, now = recording[name], after[name]
            if isinstance(before, Spikes):
                lag_s = lag.clamped(before.times_s)
                moved[name] = Moved(lag_s, np.argsort(before.times_s + lag_s, kind="stable"))
            elif isinstance(now, Signal):
                source = nearest(before.time_s, inverse(now.time_s))
                moved[name] = Moved(lag.clamped(before.time_s), source)
        return JitterResult(
            {n: after[n] for n in streams},
            moved,
            {"lag": lag, "largest_s": float(np.abs(lag.lag_s).max())},
            (lambda t: t + lag.clamped(t), inverse),
            clock,
        )

    def unchanged(self, recording: Recording, streams: tuple[str, ...]) -> JitterResult:
        """A lag of zero, which the truth contains as such."""
        clock = second_clock(recording, self.clock, self.kind)
        return replace(super().unchanged(recording, streams), clock=clock)


@dataclass(frozen=True)
class NoLag(LagJitter):
    """No lag; the recording stays as it is."""

    level: float = 0.0

    kind = "none"
    description = "no lag; it has no level"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.level:
            raise NeurofuseError(f"jitter 'none' has no level, got {self.level:g}; write none.")

    def targets(self, recording: Recording) -> tuple[str, ...]:
        """None."""
        return ()

    def unchanged(self, recording: Recording, streams: tuple[str, ...]) -> JitterResult:
        """Nothing, and no clock with a known lag."""
        return JitterResult({}, {})

    def draw(self, time_s: FloatArray, *, rng: np.random.Generator) -> FloatArray:
        """Zero everywhere."""
        return np.zeros_like(time_s)

    def phi(self, f_hz: ArrayLike, *, span_s: float = float("nan")) -> FloatArray:
        """1."""
        return np.ones(np.shape(f_hz))


@dataclass(frozen=True)
class WindowLag(LagJitter):
    """One lag per window, drawn from N(0, level). Windows redraw it; see `neurofuse.windows`.

    Drawn on a whole recording it is constant in blocks of `block_s`, as when a logger restarts at each trial.
    """

    block_s: float = 3.0

    kind = "lag"
    description = "one normal lag per window; level is its std"

    def draw(self, time_s: FloatArray, *, rng: np.random.Generator) -> FloatArray:
        """Piecewise constant, one value per block."""
        block = np.floor((time_s - time_s[0]) / self.block_s).astype(int)
        return self.level * rng.standard_normal(block[-1] + 1)[block]

    def phi(self, f_hz: ArrayLike, *, span_s: float = float("nan")) -> FloatArray:
        """exp(-(2 pi f s)^2 / 2)."""
        return gaussian_attenuation(f_hz, self.level)


@dataclass(frozen=True)
class Offset(LagJitter):
    """A constant lag of exactly `level` seconds."""

    kind = "offset"
    description = "a constant lag of level"
    signed = True

    def draw(self, time_s: FloatArray, *, rng: np.random.Generator) -> FloatArray:
        """`level` everywhere."""
        return np.full_like(time_s, self.level)

    def phi(self, f_hz: ArrayLike, *, span_s: float = float("nan")) -> FloatArray:
        """1: one alignment fits throughout."""
        return np.ones(np.shape(f_hz))


@dataclass(frozen=True)
class Skew(LagJitter):
    """A clock that runs fast by `level` ppm, right in the middle of the recording."""

    kind = "skew"
    unit = "ppm"
    description = "a clock that runs fast by level, right in the middle of the recording"
    signed = True

    def draw(self, time_s: FloatArray, *, rng: np.random.Generator) -> FloatArray:
        """A straight line through zero at mid-recording."""
        return 1e-6 * self.level * (time_s - 0.5 * (time_s[0] + time_s[-1]))

    def sections(
        self, n: int, n_steps: int, *, step_s: float, span_s: float, rng: np.random.Generator
    ) -> FloatArray:
        """Pieces of the line, of either sign, so that a decoder cannot learn which clock is the fast one."""
        place_s = span_s * rng.uniform(-0.5, 0.5, (n, 1))
        sign = rng.choice([-1.0, 1.0], (n, 1))
        return sign * 1e-6 * self.level * (place_s + step_s * np.arange(n_steps))

    def reach_s(self, span_s: float) -> float:
        """Half the drift of the whole recording."""
        return 0.5e-6 * abs(self.level) * span_s

    def phi(self, f_hz: ArrayLike, *, span_s: float = float("nan")) -> FloatArray:
        """|sinc(f eps T)|, the lag being uniform over eps T."""
        return np.abs(np.sinc(np.asarray(f_hz) * 1e-6 * self.level * span_s))


@dataclass(frozen=True)
class Walk(LagJitter):
    """A lag that diffuses and returns to zero over `return_s`, with stationary std `level`."""

    return_s: float = 60.0

    kind = "walk"
    description = "a lag that diffuses and returns (Ornstein-Uhlenbeck); level is its std"

    def draw(self, time_s: FloatArray, *, rng: np.random.Generator) -> FloatArray:
        """An Ornstein-Uhlenbeck path started from its stationary law."""
        from scipy.signal import lfilter

        step_s = float(time_s[1] - time_s[0]) if time_s.size > 1 else 1.0
        keep = np.exp(-step_s / self.return_s)
        push = self.level * np.sqrt(1 - keep**2) * rng.standard_normal(time_s.size)
        push[0] = self.level * rng.standard_normal()
        return lfilter([1.0], [1.0, -keep], push)

    def phi(self, f_hz: ArrayLike, *, span_s: float = float("nan")) -> FloatArray:
        """exp(-(2 pi f s)^2 / 2)."""
        return gaussian_attenuation(f_hz, self.level)


@dataclass(frozen=True)
class Jumps(LagJitter):
    """A lag that is constant, then jumps to a new draw from N(0, level), on average every `every_s`."""

    every_s: float = 8.0

    kind = "jump"
    description = "a lag that jumps to a new value now and then; level is the std of the values"

    def draw(self, time_s: FloatArray, *, rng: np.random.Generator) -> FloatArray:
        """Piecewise constant, with exponential holding times."""
        span_s = float(time_s[-1] - time_s[0])
        n_jumps = rng.poisson(span_s / self.every_s)
        edges = time_s[0] + np.sort(rng.uniform(0, span_s, n_jumps))
        values = self.level * rng.standard_normal(n_jumps + 1)
        return values[np.searchsorted(edges, time_s, side="right")]

    def phi(self, f_hz: ArrayLike, *, span_s: float = float("nan")) -> FloatArray:
        """exp(-(2 pi f s)^2 / 2)."""
        return gaussian_attenuation(f_hz, self.level)


@dataclass(frozen=True)
class Wander(LagJitter):
    """A fixed offset, a slow walk, and a jump now and then, as two free-running loggers can have."""

    kind = "wander"
    description = "an offset of level, a walk of half that std, jumps of that std"

    def draw(self, time_s: FloatArray, *, rng: np.random.Generator) -> FloatArray:
        """Offset `level`, plus a walk of half that size, plus jumps of the same size every 20 s or so."""
        walk = Walk(0.5 * self.level).draw(time_s, rng=rng)
        return self.level + walk + Jumps(self.level, every_s=20.0).draw(time_s, rng=rng)

    def phi(self, f_hz: ArrayLike, *, span_s: float = float("nan")) -> FloatArray:
        """exp(-(2 pi f)^2 1.25 s^2 / 2), walk and jumps being independent."""
        return gaussian_attenuation(f_hz, np.sqrt(1.25) * self.level)


@dataclass(frozen=True)
class AnyLag(LagJitter):
    """Any lag up to `level`: constant in a third of all stretches, drifting in a third, jumping in a third.

    Not a model of clocks but the law of lag augmentation in training; the speed of a drift is log-uniform.
    """

    slow: float = 0.005  # s per square root of a second
    fast: float = 0.1

    kind = "any"
    description = "any lag up to level, constant, drifting or jumping"

    def draw(self, time_s: FloatArray, *, rng: np.random.Generator) -> FloatArray:
        """Uniform in [-level, level] at the start, reflected at the ends."""
        lag_s = np.full(time_s.size, rng.uniform(-self.level, self.level))
        course = rng.integers(3)
        if course == 1 and time_s.size > 1:
            speed = self.slow * (self.fast / self.slow) ** rng.uniform()
            step_s = float(time_s[1] - time_s[0])
            lag_s += speed * np.sqrt(step_s) * np.cumsum(rng.standard_normal(time_s.size))
        elif course == 2:
            lag_s[rng.integers(time_s.size) :] = rng.uniform(-self.level, self.level)
        return _reflected(lag_s, self.level)

    def phi(self, f_hz: ArrayLike, *, span_s: float = float("nan")) -> FloatArray:
        """|sinc(2 f level)|: at any moment the lag is uniform."""
        return np.abs(np.sinc(2 * np.asarray(f_hz) * self.level))


@dataclass(frozen=True)
class OffsetSkew(LagJitter):
    """A clock that was set `set_s` seconds before the recording began and has run fast by `level` ppm since."""

    set_s: float = 600.0

    kind = "offset-skew"
    unit = "ppm"
    description = "a clock set ten minutes before the recording that runs fast by level"
    signed = True

    def draw(self, time_s: FloatArray, *, rng: np.random.Generator) -> FloatArray:
        """A straight line that is not zero at the start."""
        return 1e-6 * self.level * (self.set_s + time_s - time_s[0])

    def sections(
        self, n: int, n_steps: int, *, step_s: float, span_s: float, rng: np.random.Generator
    ) -> FloatArray:
        """Pieces of the line, of either sign."""
        since_s = self.set_s + span_s * rng.uniform(0.0, 1.0, (n, 1))
        sign = rng.choice([-1.0, 1.0], (n, 1))
        return sign * 1e-6 * self.level * (since_s + step_s * np.arange(n_steps))

    def reach_s(self, span_s: float) -> float:
        """The lag at the end."""
        return 1e-6 * abs(self.level) * (self.set_s + span_s)

    def phi(self, f_hz: ArrayLike, *, span_s: float = float("nan")) -> FloatArray:
        """|sinc(f eps T)|, as for a skew alone: one alignment removes the offset."""
        return Skew(self.level).phi(f_hz, span_s=span_s)


@dataclass(frozen=True)
class Diffusion(LagJitter):
    """A pure random walk of the lag: its variance grows by `level` = q seconds squared per second.

    It starts at zero and is reflected at +-`within_s`, so that a study varies the speed and not the largest lag.
    The speed in s per square root of a second is sqrt(q).
    """

    within_s: float = 0.5

    kind = "diffusion"
    unit = "s^2/s"
    description = "a lag that walks at random; level is the growth of its variance"

    def draw(self, time_s: FloatArray, *, rng: np.random.Generator) -> FloatArray:
        """Brownian, zero at the start."""
        steps = np.sqrt(self.level * np.diff(time_s)) * rng.standard_normal(max(0, time_s.size - 1))
        return _reflected(np.concatenate([[0.0], np.cumsum(steps)])[: time_s.size], self.within_s)

    def sections(
        self, n: int, n_steps: int, *, step_s: float, span_s: float, rng: np.random.Generator
    ) -> FloatArray:
        """Stretches of a walk that began a random part of the recording before."""
        since_s = span_s * rng.uniform(0.0, 1.0, (n, 1))
        steps = np.sqrt(self.level * step_s) * rng.standard_normal((n, n_steps))
        start = np.sqrt(self.level * since_s) * rng.standard_normal((n, 1))
        return _reflected(start + np.cumsum(steps, axis=1), self.within_s)

    def reach_s(self, span_s: float) -> float:
        """Std of the lag at the end, or where it is reflected."""
        return float(min(np.sqrt(self.level * span_s), self.within_s))

    def phi(self, f_hz: ArrayLike, *, span_s: float = float("nan")) -> FloatArray:
        """(1 - e^-a) / a, a = (2 pi f)^2 q T / 2, while the walk stays far from its bounds (q T << within_s^2)."""
        return _mean_decay(0.5 * (2 * np.pi * np.asarray(f_hz)) ** 2 * self.level * span_s)


@dataclass(frozen=True)
class Hops(LagJitter):
    """A lag that changes by N(0, level), `rate_hz` times per second on average, starting at zero.

    It is reflected at +-`within_s`. `jump` draws a new lag instead of a change.
    """

    rate_hz: float = 0.1
    within_s: float = 0.5

    kind = "hop"
    description = "a lag that changes by a hop now and then; level is the std of a hop"

    def draw(self, time_s: FloatArray, *, rng: np.random.Generator) -> FloatArray:
        """Compound Poisson."""
        span_s = float(time_s[-1] - time_s[0])
        edges = time_s[0] + np.sort(rng.uniform(0, span_s, rng.poisson(self.rate_hz * span_s)))
        at = np.concatenate([[0.0], np.cumsum(self.level * rng.standard_normal(edges.size))])
        return _reflected(at[np.searchsorted(edges, time_s, side="right")], self.within_s)

    def sections(
        self, n: int, n_steps: int, *, step_s: float, span_s: float, rng: np.random.Generator
    ) -> FloatArray:
        """Stretches of a lag whose hops began a random part of the recording before."""
        n_hops = rng.poisson(self.rate_hz * step_s, (n, n_steps))
        n_hops[:, :1] += rng.poisson(self.rate_hz * span_s * rng.uniform(0.0, 1.0, (n, 1)))
        hops = self.level * np.sqrt(n_hops) * rng.standard_normal((n, n_steps))
        return _reflected(np.cumsum(hops, axis=1), self.within_s)

    def reach_s(self, span_s: float) -> float:
        """Std of the lag at the end, or where it is reflected."""
        return float(min(self.level * np.sqrt(self.rate_hz * span_s), self.within_s))

    def phi(self, f_hz: ArrayLike, *, span_s: float = float("nan")) -> FloatArray:
        """(1 - e^-k) / k, k = r T (1 - phi_hop(f)), while the lag stays far from its bounds."""
        return _mean_decay(self.rate_hz * span_s * (1 - gaussian_attenuation(f_hz, self.level)))


@dataclass(frozen=True)
class Sinusoid(LagJitter):
    """A lag that oscillates by +-`level` with period `period_s` and random phase, as with temperature or breathing."""

    period_s: float = 20.0

    kind = "sinusoid"
    description = "a lag that oscillates; level is its amplitude"

    def draw(self, time_s: FloatArray, *, rng: np.random.Generator) -> FloatArray:
        """A sine."""
        return self.level * np.sin(2 * np.pi * (time_s / self.period_s + rng.uniform()))

    def phi(self, f_hz: ArrayLike, *, span_s: float = float("nan")) -> FloatArray:
        """|J0(2 pi f L0)|, over whole periods or random phases."""
        return np.abs(j0(2 * np.pi * np.asarray(f_hz) * self.level))


@dataclass(frozen=True)
class Warp(LagJitter):
    """A smooth warp of time: a Gaussian process of std `level` and autocorrelation exp(-t^2 / (2 smooth_s^2))."""

    smooth_s: float = 10.0

    kind = "warp"
    description = "a lag that varies smoothly; level is its std"

    def draw(self, time_s: FloatArray, *, rng: np.random.Generator) -> FloatArray:
        """White noise under a Gaussian of smooth_s / sqrt 2, drawn on a coarse grid and interpolated."""
        step_s = self.smooth_s / 20
        n = int(np.ceil((time_s[-1] - time_s[0]) / step_s)) + 2
        half = 80
        kernel = np.exp(-((np.arange(-half, half + 1) / 20) ** 2))
        white = rng.standard_normal(n + 2 * half)
        smooth = np.convolve(white, kernel / np.sqrt((kernel**2).sum()), mode="valid")
        grid_s = time_s[0] + step_s * np.arange(n)
        return self.level * make_interp_spline(grid_s, smooth, k=min(3, n - 1))(time_s)

    def phi(self, f_hz: ArrayLike, *, span_s: float = float("nan")) -> FloatArray:
        """exp(-(2 pi f s)^2 / 2)."""
        return gaussian_attenuation(f_hz, self.level)


def draw_truth(
    law: LagJitter,
    clock: str,
    start_s: float,
    stop_s: float,
    *,
    max_lag_s: float | None = None,
    rng: np.random.Generator,
) -> tuple[FloatArray, FloatArray, LagTruth]:
    """Draw a lag path over [start_s, stop_s].

    Returns
    -------
    stamp_s, source_s : ndarray, shape (n,)
        A grid of stamps on the moved clock, and the reference time of the content that each of them carries.
    truth : LagTruth
        The same lag as a function of reference time.
    """
    stamp_s = np.arange(start_s, stop_s + TRUTH_STEP_S, TRUTH_STEP_S)
    limit_s = law.limit_s(max_lag_s)
    lag_s = np.clip(law.draw(stamp_s, rng=rng), -limit_s, limit_s)
    # The law is a function of the moved clock; on the reference clock the lag solves lag(t) = law(t + lag(t)).
    on_reference = lag_s.copy()
    for _ in range(20):
        where = np.clip(
            np.rint((stamp_s + on_reference - start_s) / TRUTH_STEP_S).astype(int), 0, stamp_s.size - 1
        )
        on_reference = lag_s[where]
    return stamp_s, stamp_s - lag_s, LagTruth(clock, stamp_s, on_reference, str(law))


def move_clock(
    recording: Recording,
    clock: str,
    law: LagJitter,
    *,
    max_lag_s: float | None = None,
    rng: np.random.Generator,
) -> tuple[Recording, LagTruth]:
    """Make one clock of a recording err by a law.

    Spikes get new times. Sampled streams keep their sampling grid and take the content of another moment
    (cubic interpolation for LFP, the nearest bin for counts and power), as a logger with that clock would
    have written. Stamps whose content lies outside the recording are dropped.

    Parameters
    ----------
    recording : Recording
    clock : str
        A clock other than the reference.
    law : LagJitter
    max_lag_s : float, optional
        Clip the drawn lag to this range, if it is narrower than the law's own.
    rng : numpy Generator
        Draws the lag; no child is spawned.

    Returns
    -------
    moved : Recording
    truth : LagTruth

    Raises
    ------
    RecordingError
        If no stream is on `clock`, or it is the reference.
    """
    if clock == recording.reference:
        raise RecordingError(
            f"'{clock}' is the reference clock, which movement is timed on; move one of "
            f"{[c for c in recording.clocks if c != clock] or 'a second clock (see split_units)'}."
        )
    streams = recording.on(clock)
    start_s = min(s.start_s for s in streams)
    stop_s = max(s.stop_s for s in streams)
    stamp_s, source_s, truth = draw_truth(law, clock, start_s, stop_s, max_lag_s=max_lag_s, rng=rng)
    moved = tuple(_move(s, stamp_s, source_s, truth) if s.clock == clock else s for s in recording.streams)
    return recording.but(streams=moved, did=f"clock '{clock}' moved by {law}"), truth


def _move(stream: Stream, stamp_s: FloatArray, source_s: FloatArray, truth: LagTruth) -> Stream:
    if isinstance(stream, Spikes):
        times = stream.times_s + truth.clamped(stream.times_s)
        order = np.argsort(times, kind="stable")
        edges = stream.support.ravel()
        support = np.maximum.accumulate(edges + truth.clamped(edges)).reshape(-1, 2)
        return replace(stream, times_s=times[order], unit=stream.unit[order], support=support)
    return _resample_content(stream, np.interp(stream.time_s, stamp_s, source_s))


def _resample_content(signal: Signal, source_s: FloatArray) -> Signal:
    """Fill each sample of the grid with the content of time `source_s`; drop what was never recorded."""
    time_s = signal.time_s
    near = nearest(time_s, source_s)
    recorded = np.abs(time_s[near] - source_s) <= 0.75 * signal.sample_s
    values = np.asarray(signal.data.values)
    if signal.kind == "lfp":
        moved = np.empty_like(values)
        for start_s, stop_s in signal.support:
            lo, hi = np.searchsorted(time_s, [start_s, stop_s - 0.5 * signal.sample_s])
            inside = recorded & (source_s >= start_s - signal.sample_s) & (source_s <= stop_s)
            if hi - lo > 3:
                moved[inside] = make_interp_spline(time_s[lo:hi], values[lo:hi], k=3)(
                    np.clip(source_s[inside], time_s[lo], time_s[hi - 1])
                )
            else:
                moved[inside] = values[near[inside]]
    else:
        moved = values[near]
    data = signal.data.copy(data=moved).isel(time=np.flatnonzero(recorded))
    return replace(signal, data=data)


def _reflected(lag_s: FloatArray, level: float) -> FloatArray:
    """Lags reflected at +-level, as often as needed, by a triangle wave."""
    if level == 0:
        return np.zeros_like(lag_s)
    return level - np.abs((lag_s + level) % (4 * level) - 2 * level)


def _inverse(lag: LagTruth) -> TimeMap:
    """Stamp -> reference time: the moment of the truth's grid whose stamp is nearest."""
    stamp_s = lag.time_s + lag.lag_s
    order = np.argsort(stamp_s, kind="stable")
    return lambda time_s: time_s - lag.lag_s[order[nearest(stamp_s[order], time_s)]]


def _mean_decay(a: FloatArray) -> FloatArray:
    """(1 - e^-a) / a, the mean of e^-a u over u in [0, 1]."""
    a = np.asarray(a, dtype=np.float64)
    return np.where(
        a > 1e-12, -np.expm1(-a) / np.where(a > 1e-12, a, 1.0), np.where(np.isnan(a), np.nan, 1.0)
    )
