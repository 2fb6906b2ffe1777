"""In: a recording and a law for how one clock errs. Out: the recording with that clock moved, and the truth.

Sign, everywhere in neurofuse: an event at reference time t carries the stamp t + lag on the other clock.
So a lag of +0.2 s means that the other clock reads 0.2 s late numbers, and the sample of that stream which
belongs to the query at t is found at t + 0.2 s.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike
from scipy.interpolate import make_interp_spline
from scipy.special import j0

from neurofuse.recording import (
    FloatArray,
    IntArray,
    NeurofuseError,
    Recording,
    RecordingError,
    Signal,
    Spikes,
    Stream,
)
from neurofuse.theory.decoding import gaussian_attenuation

# Truth is kept on a grid this fine; finer than any lag a spike-LFP decoder can resolve.
TRUTH_STEP_S = 0.005


@dataclass(frozen=True, eq=False)
class LagTruth:
    """What one clock really did: its lag at every moment of the reference clock.

    Parameters
    ----------
    clock : str
        The clock that was moved.
    time_s : ndarray, shape (n,)
        Moments on the reference clock, in order.
    lag_s : ndarray, shape (n,)
        Stamp on `clock` minus reference time, at those moments.
    law : str
        The law and level that drew it, as `KIND:LEVEL`.
    """

    clock: str
    time_s: FloatArray
    lag_s: FloatArray
    law: str

    def at(self, time_s: FloatArray) -> FloatArray:
        """Lag (s) at reference times, NaN where nothing is known."""
        time_s = np.asarray(time_s, dtype=np.float64)
        if self.time_s.size == 0:
            return np.full(time_s.shape, np.nan)
        nearest = np.clip(
            np.rint((time_s - self.time_s[0]) / TRUTH_STEP_S).astype(int), 0, self.time_s.size - 1
        )
        inside = np.abs(self.time_s[nearest] - time_s) <= TRUTH_STEP_S
        return np.where(inside, self.lag_s[nearest], np.nan)

    def held(self, time_s: ArrayLike) -> FloatArray:
        """Lag (s) at any reference times, beyond the ends that of the ends."""
        return self.at(np.clip(np.asarray(time_s, dtype=np.float64), self.time_s[0], self.time_s[-1]))


@dataclass(frozen=True)
class LagLaw:
    """How a clock errs. Subclasses draw the lag at a grid of times; `level` is their one strength."""

    level: float

    kind = ""
    unit = "s"
    says = ""
    # Whether the level may be negative: how large it is counts.
    signed = False

    def draw(self, time_s: FloatArray, *, rng: np.random.Generator) -> FloatArray:
        """Lag in seconds at each of `time_s` (a regular grid on the moved clock)."""
        raise TypeError(f"{type(self).__name__} does not say how its lag is drawn.")

    def sections(
        self, n: int, n_steps: int, *, step_s: float, span_s: float, rng: np.random.Generator
    ) -> FloatArray:
        """What `n` short looks at a recording of `span_s` seconds see of the lag, at places drawn at random.

        Returns
        -------
        ndarray, shape (n, n_steps)
            Seconds, on a grid of `step_s`. Laws that are the same at all times are drawn on the short grid itself.
        """
        time_s = step_s * np.arange(n_steps, dtype=np.float64)
        return np.stack([self.draw(time_s, rng=rng) for _ in range(n)]) if n else np.empty((0, n_steps))

    def reach_s(self, span_s: float) -> float:
        """How far the lag typically goes in a recording of `span_s` seconds."""
        return abs(self.level)

    def phi(self, f_hz: ArrayLike, *, span_s: float = float("nan")) -> FloatArray:
        """Share of a coherence's amplitude at each frequency that one fixed alignment keeps; NaN if unknown.

        The alignment lasts `span_s` seconds. It is the best one on average for laws that are alike at all times, and
        that of the beginning for laws whose lag grows (`diffusion`, `hop`).
        """
        return np.full(np.shape(f_hz), np.nan)

    def __str__(self) -> str:
        return f"{self.kind}:{self.level:g}"


@dataclass(frozen=True)
class NoLag(LagLaw):
    """Clocks that agree."""

    level: float = 0.0
    kind = "none"
    says = "clocks agree"

    def draw(self, time_s: FloatArray, *, rng: np.random.Generator) -> FloatArray:
        """Zero everywhere."""
        return np.zeros_like(time_s)

    def phi(self, f_hz: ArrayLike, *, span_s: float = float("nan")) -> FloatArray:
        """1."""
        return np.ones(np.shape(f_hz))


@dataclass(frozen=True)
class WindowLag(LagLaw):
    """One lag a window, drawn from N(0, level). Windows redraw it; see `neurofuse.windows`.

    Drawn on a whole recording it holds for blocks of `block_s`, as when a logger restarts at each trial.
    """

    block_s: float = 3.0
    kind = "lag"
    says = "one normal lag a window; level is its std"

    def draw(self, time_s: FloatArray, *, rng: np.random.Generator) -> FloatArray:
        """Piecewise constant, one value a block."""
        block = np.floor((time_s - time_s[0]) / self.block_s).astype(int)
        return self.level * rng.standard_normal(block[-1] + 1)[block]

    def phi(self, f_hz: ArrayLike, *, span_s: float = float("nan")) -> FloatArray:
        """exp(-(2 pi f s)^2 / 2)."""
        return gaussian_attenuation(f_hz, self.level)


@dataclass(frozen=True)
class Offset(LagLaw):
    """A constant lag of exactly `level` seconds."""

    kind = "offset"
    says = "a constant lag of level"
    signed = True

    def draw(self, time_s: FloatArray, *, rng: np.random.Generator) -> FloatArray:
        """`level` everywhere."""
        return np.full_like(time_s, self.level)

    def phi(self, f_hz: ArrayLike, *, span_s: float = float("nan")) -> FloatArray:
        """1: an alignment found once holds."""
        return np.ones(np.shape(f_hz))


@dataclass(frozen=True)
class Skew(LagLaw):
    """A clock that runs fast by `level` ppm, right in the middle of the recording."""

    kind = "skew"
    unit = "ppm"
    says = "a clock that runs fast by level, right in the middle of the recording"
    signed = True

    def draw(self, time_s: FloatArray, *, rng: np.random.Generator) -> FloatArray:
        """A straight line through zero at mid-recording."""
        return 1e-6 * self.level * (time_s - 0.5 * (time_s[0] + time_s[-1]))

    def sections(
        self, n: int, n_steps: int, *, step_s: float, span_s: float, rng: np.random.Generator
    ) -> FloatArray:
        """Pieces of the line, of either sign: which clock is the fast one is not for a decoder to learn."""
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
class Walk(LagLaw):
    """A lag that wanders: diffusion that returns to zero over `return_s`, with stationary std `level`."""

    return_s: float = 60.0
    kind = "walk"
    says = "a lag that wanders and returns (Ornstein-Uhlenbeck); level is its std"

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
class Jumps(LagLaw):
    """A lag that holds, then jumps to a fresh draw from N(0, level), on average every `every_s`."""

    every_s: float = 8.0
    kind = "jump"
    says = "a lag that jumps to a fresh value now and then; level is the std of the values"

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
class Wander(LagLaw):
    """What two free-running loggers do on a bad day: a fixed offset, a slow walk, and a jump now and then."""

    kind = "wander"
    says = "an offset of level, a walk of half that std, jumps of that std"

    def draw(self, time_s: FloatArray, *, rng: np.random.Generator) -> FloatArray:
        """Offset `level`, plus a walk of half that size, plus jumps of the same size every 20 s or so."""
        walk = Walk(0.5 * self.level).draw(time_s, rng=rng)
        return self.level + walk + Jumps(self.level, every_s=20.0).draw(time_s, rng=rng)

    def phi(self, f_hz: ArrayLike, *, span_s: float = float("nan")) -> FloatArray:
        """exp(-(2 pi f)^2 1.25 s^2 / 2), walk and jumps being independent."""
        return gaussian_attenuation(f_hz, np.sqrt(1.25) * self.level)


@dataclass(frozen=True)
class AnyLag(LagLaw):
    """Any lag up to `level`: a third of all looks see it stand still, a third drift, a third jump.

    Not how clocks err but what a decoder should be ready for; the speed of a drift is log-uniform.
    """

    slow: float = 0.005  # s per square root of a second
    fast: float = 0.1

    kind = "roam"
    says = "any lag up to level, standing, drifting or jumping"

    def draw(self, time_s: FloatArray, *, rng: np.random.Generator) -> FloatArray:
        """Uniform in [-level, level] at the start, reflected at the ends."""
        lag_s = np.full(time_s.size, rng.uniform(-self.level, self.level))
        way = rng.integers(3)
        if way == 1 and time_s.size > 1:
            speed = self.slow * (self.fast / self.slow) ** rng.uniform()
            step_s = float(time_s[1] - time_s[0])
            lag_s += speed * np.sqrt(step_s) * np.cumsum(rng.standard_normal(time_s.size))
        elif way == 2:
            lag_s[rng.integers(time_s.size) :] = rng.uniform(-self.level, self.level)
        return _folded(lag_s, self.level)

    def phi(self, f_hz: ArrayLike, *, span_s: float = float("nan")) -> FloatArray:
        """|sinc(2 f level)|: at any moment the lag is uniform."""
        return np.abs(np.sinc(2 * np.asarray(f_hz) * self.level))


@dataclass(frozen=True)
class OffsetSkew(LagLaw):
    """A clock that was set `set_s` seconds before the recording began and has run fast by `level` ppm since."""

    set_s: float = 600.0

    kind = "offset-skew"
    unit = "ppm"
    says = "a clock set ten minutes before the recording that runs fast by level"
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
        """|sinc(f eps T)|, as for a skew alone: an offset is found once."""
        return Skew(self.level).phi(f_hz, span_s=span_s)


@dataclass(frozen=True)
class Diffusion(LagLaw):
    """A pure random walk of the lag: its variance grows by `level` = q seconds squared a second.

    It starts at zero and is reflected at +-`within_s`, so that what a study varies is the speed and not how far the
    lag ends up. Speed in s per square root of a second is sqrt(q).
    """

    within_s: float = 0.5

    kind = "diffusion"
    unit = "s^2/s"
    says = "a lag that walks at random; level is the growth of its variance"

    def draw(self, time_s: FloatArray, *, rng: np.random.Generator) -> FloatArray:
        """Brownian, zero at the start."""
        steps = np.sqrt(self.level * np.diff(time_s)) * rng.standard_normal(max(0, time_s.size - 1))
        return _folded(np.concatenate([[0.0], np.cumsum(steps)])[: time_s.size], self.within_s)

    def sections(
        self, n: int, n_steps: int, *, step_s: float, span_s: float, rng: np.random.Generator
    ) -> FloatArray:
        """Looks at a walk that has been going on for a random part of the recording."""
        gone_s = span_s * rng.uniform(0.0, 1.0, (n, 1))
        steps = np.sqrt(self.level * step_s) * rng.standard_normal((n, n_steps))
        start = np.sqrt(self.level * gone_s) * rng.standard_normal((n, 1))
        return _folded(start + np.cumsum(steps, axis=1), self.within_s)

    def reach_s(self, span_s: float) -> float:
        """Std of the lag at the end, or where it is reflected."""
        return float(min(np.sqrt(self.level * span_s), self.within_s))

    def phi(self, f_hz: ArrayLike, *, span_s: float = float("nan")) -> FloatArray:
        """(1 - e^-a) / a, a = (2 pi f)^2 q T / 2, while the walk stays clear of its ends (q T << within^2)."""
        return _mean_decay(0.5 * (2 * np.pi * np.asarray(f_hz)) ** 2 * self.level * span_s)


@dataclass(frozen=True)
class Hops(LagLaw):
    """A lag that hops by N(0, level) from where it is, `rate_hz` times a second on average, starting at zero.

    It is reflected at +-`within_s`. `jump` draws a fresh lag instead.
    """

    rate_hz: float = 0.1
    within_s: float = 0.5

    kind = "hop"
    says = "a lag that hops away from where it is now and then; level is the std of a hop"

    def draw(self, time_s: FloatArray, *, rng: np.random.Generator) -> FloatArray:
        """Compound Poisson."""
        span_s = float(time_s[-1] - time_s[0])
        edges = time_s[0] + np.sort(rng.uniform(0, span_s, rng.poisson(self.rate_hz * span_s)))
        at = np.concatenate([[0.0], np.cumsum(self.level * rng.standard_normal(edges.size))])
        return _folded(at[np.searchsorted(edges, time_s, side="right")], self.within_s)

    def sections(
        self, n: int, n_steps: int, *, step_s: float, span_s: float, rng: np.random.Generator
    ) -> FloatArray:
        """Looks at a lag that has hopped for a random part of the recording."""
        n_hops = rng.poisson(self.rate_hz * step_s, (n, n_steps))
        n_hops[:, :1] += rng.poisson(self.rate_hz * span_s * rng.uniform(0.0, 1.0, (n, 1)))
        hops = self.level * np.sqrt(n_hops) * rng.standard_normal((n, n_steps))
        return _folded(np.cumsum(hops, axis=1), self.within_s)

    def reach_s(self, span_s: float) -> float:
        """Std of the lag at the end, or where it is reflected."""
        return float(min(self.level * np.sqrt(self.rate_hz * span_s), self.within_s))

    def phi(self, f_hz: ArrayLike, *, span_s: float = float("nan")) -> FloatArray:
        """(1 - e^-k) / k, k = r T (1 - phi_hop(f)), while the lag stays clear of its ends."""
        return _mean_decay(self.rate_hz * span_s * (1 - gaussian_attenuation(f_hz, self.level)))


@dataclass(frozen=True)
class Sinusoid(LagLaw):
    """A lag that swings by +-`level` once every `period_s`, from a random phase, as with temperature or breathing."""

    period_s: float = 20.0

    kind = "sinusoid"
    says = "a lag that swings; level is its amplitude"

    def draw(self, time_s: FloatArray, *, rng: np.random.Generator) -> FloatArray:
        """A sine."""
        return self.level * np.sin(2 * np.pi * (time_s / self.period_s + rng.uniform()))

    def phi(self, f_hz: ArrayLike, *, span_s: float = float("nan")) -> FloatArray:
        """|J0(2 pi f L0)|, over whole periods or random phases."""
        return np.abs(j0(2 * np.pi * np.asarray(f_hz) * self.level))


@dataclass(frozen=True)
class Warp(LagLaw):
    """A smooth warp of time: a Gaussian process of std `level` and autocorrelation exp(-t^2 / (2 smooth_s^2))."""

    smooth_s: float = 10.0

    kind = "warp"
    says = "a lag that bends smoothly; level is its std"

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


LAWS: dict[str, type[LagLaw]] = {
    law.kind: law
    for law in (
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
    )
}


def parse_law(text: str) -> LagLaw:
    """Read `KIND:LEVEL`, such as `lag:0.3` or `skew:30`.

    Raises
    ------
    NeurofuseError
        If the kind is unknown or the level is not a number.
    """
    kind, _, level = text.partition(":")
    if kind not in LAWS:
        raise NeurofuseError(f"unknown jitter '{kind}' in '{text}'; choose one of {', '.join(LAWS)}.")
    if kind == "none":
        return NoLag()
    try:
        value = float(level)
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise NeurofuseError(
            f"jitter '{text}' has no level; write {kind}:LEVEL with a number in {LAWS[kind].unit}, such as "
            f"{kind}:{'30' if LAWS[kind].unit == 'ppm' else '0.3'}."
        )
    if value < 0 and not LAWS[kind].signed:
        raise NeurofuseError(f"jitter '{text}': the level is a standard deviation and cannot be negative.")
    return LAWS[kind](value)


def draw_truth(
    law: LagLaw,
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
        A grid of stamps on the moved clock, and the reference time whose content each of them shows.
    truth : LagTruth
        The same lag, told on the reference clock.
    """
    stamp_s = np.arange(start_s, stop_s + TRUTH_STEP_S, TRUTH_STEP_S)
    lag_s = law.draw(stamp_s, rng=rng)
    if max_lag_s is not None:
        lag_s = np.clip(lag_s, -max_lag_s, max_lag_s)
    # The law speaks on the moved clock; on the reference clock the lag solves lag(t) = law(t + lag(t)).
    on_reference = lag_s.copy()
    for _ in range(20):
        where = np.clip(
            np.rint((stamp_s + on_reference - start_s) / TRUTH_STEP_S).astype(int), 0, stamp_s.size - 1
        )
        on_reference = lag_s[where]
    return stamp_s, stamp_s - lag_s, LagTruth(clock, stamp_s, on_reference, str(law))


def move_clock(
    recording: Recording, clock: str, law: LagLaw, *, max_lag_s: float | None = None, rng: np.random.Generator
) -> tuple[Recording, LagTruth]:
    """Make one clock of a recording err by a law.

    Spikes get new times. Sampled streams keep their sampling grid and show the content of another moment
    (cubic interpolation for LFP, the nearest bin for counts and power), as a logger with that clock would
    have written. Stamps whose content lies outside the recording are dropped.

    Parameters
    ----------
    recording : Recording
    clock : str
        A clock other than the reference.
    law : LagLaw
    max_lag_s : float, optional
        Clip the drawn lag to this range.
    rng : numpy Generator

    Returns
    -------
    moved : Recording
    truth : LagTruth

    Raises
    ------
    RecordingError
        If nothing is timed by `clock`, or it is the reference.
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
        times = stream.times_s + truth.held(stream.times_s)
        order = np.argsort(times, kind="stable")
        edges = stream.support.ravel()
        support = np.maximum.accumulate(edges + truth.held(edges)).reshape(-1, 2)
        return replace(stream, times_s=times[order], unit=stream.unit[order], support=support)
    return _resample_content(stream, np.interp(stream.time_s, stamp_s, source_s))


def _resample_content(signal: Signal, source_s: FloatArray) -> Signal:
    """Fill each sample of the grid with the content of time `source_s`; drop what was never recorded."""
    time_s = signal.time_s
    near = nearest(time_s, source_s)
    there = np.abs(time_s[near] - source_s) <= 0.75 * signal.sample_s
    values = np.asarray(signal.data.values)
    if signal.kind == "lfp":
        moved = np.empty_like(values)
        for start_s, stop_s in signal.support:
            lo, hi = np.searchsorted(time_s, [start_s, stop_s - 0.5 * signal.sample_s])
            mine = there & (source_s >= start_s - signal.sample_s) & (source_s <= stop_s)
            if hi - lo > 3:
                moved[mine] = make_interp_spline(time_s[lo:hi], values[lo:hi], k=3)(
                    np.clip(source_s[mine], time_s[lo], time_s[hi - 1])
                )
            else:
                moved[mine] = values[near[mine]]
    else:
        moved = values[near]
    data = signal.data.copy(data=moved).isel(time=np.flatnonzero(there))
    return replace(signal, data=data)


def _folded(lag_s: FloatArray, level: float) -> FloatArray:
    """Lags reflected at +-level, as often as needed: a triangle wave folds any value into the range."""
    if level == 0:
        return np.zeros_like(lag_s)
    return level - np.abs((lag_s + level) % (4 * level) - 2 * level)


def nearest(time_s: FloatArray, wanted_s: FloatArray) -> IntArray:
    """Index of the one of `time_s`, in order, that is nearest to each wanted time."""
    if time_s.size < 2:
        return np.zeros(np.shape(wanted_s), dtype=np.int64)
    at = np.clip(np.searchsorted(time_s, wanted_s), 1, time_s.size - 1)
    return at - ((wanted_s - time_s[at - 1]) < (time_s[at] - wanted_s))


def _mean_decay(a: FloatArray) -> FloatArray:
    """(1 - e^-a) / a, the mean of e^-a u over u in [0, 1]."""
    a = np.asarray(a, dtype=np.float64)
    return np.where(
        a > 1e-12, -np.expm1(-a) / np.where(a > 1e-12, a, 1.0), np.where(np.isnan(a), np.nan, 1.0)
    )
