"""In: log-likelihoods of lags in windows of a session. Out: the clock that explains them: offset, skew, jumps, map.

The influence of a window is bounded: its posterior over lags is mixed with a uniform one, so the cost of an outlying
window is limited. For every skew of a grid the best sequence of offsets, with a fixed penalty per jump, is found by
dynamic programming over all lags; the penalty is that of BIC for the time and the size of a jump. The neighbourhood of
the optimum is then fitted by weighted least squares; standard errors are a jackknife over stretches of the session.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import log_softmax

from neurofuse.config import ClockModel
from neurofuse.recording import FloatArray

# Prior share of windows that carry no information about the lag.
OUTLIER_SHARE = 0.1
# Largest skew searched, and the most skews on the grid.
MAX_SKEW_PPM, MAX_SKEWS = 3000.0, 201
# A slope beyond this factor is a jump and not a difference of speed.
MAX_SLOPE = 1.1
# Windows count as inliers this near the fitted line, seconds.
NEAR_S = 0.1
# Stretches of the session that the jackknife leaves out in turn.
N_JACKKNIFE = 20
# Half-width of a 95 % interval in standard errors, from that many stretches (Student's t, about 15 degrees of freedom).
T_95 = 2.13
# Jumps smaller than this many of their standard errors are removed.
MIN_JUMP_Z = 5.0
# The interval of a jump's time holds every moment whose log-likelihood is within this of the largest.
JUMP_TIME_NATS = 3.0


@dataclass(frozen=True, eq=False)
class ClockMap:
    """A map between two clocks: piecewise linear between knots, never decreasing, extrapolated beyond its ends.

    Parameters
    ----------
    a_s, b_s : ndarray, shape (n_knots,)
        Readings of A and B at the same moments. Where B jumped ahead two knots share a time of A, where it lost time
        two knots share a time of B.
    """

    a_s: FloatArray
    b_s: FloatArray

    def to_b(self, a_s: ArrayLike) -> FloatArray:
        """Readings of B when A reads `a_s`."""
        return _interpolate(np.asarray(a_s, dtype=np.float64), self.a_s, self.b_s)

    def to_a(self, b_s: ArrayLike) -> FloatArray:
        """Readings of A when B reads `b_s`."""
        return _interpolate(np.asarray(b_s, dtype=np.float64), self.b_s, self.a_s)

    def lag_s(self, a_s: ArrayLike) -> FloatArray:
        """Stamp on B minus time of A, at times of A."""
        return self.to_b(a_s) - np.asarray(a_s, dtype=np.float64)

    @classmethod
    def of_lags(cls, time_s: FloatArray, lag_s: FloatArray) -> ClockMap:
        """Through lags at times of A; a time given twice is a jump.

        After a jump back of B the same stamps would occur twice: the map leaves a gap of that length on A, centred on
        the jump.
        """
        a, b = [float(time_s[0])], [float(time_s[0] + lag_s[0])]
        for k in range(1, len(time_s)):
            t, drop = float(time_s[k]), float(lag_s[k - 1] - lag_s[k])
            if time_s[k] == time_s[k - 1] and drop > 0:
                a[-1] -= drop / 2
                b[-1] -= drop / 2
                t += drop / 2
            a.append(t)
            b.append(t + float(lag_s[k]))
        return cls(np.maximum.accumulate(a), np.maximum.accumulate(b))

    @classmethod
    def through(
        cls, time_s: FloatArray, lag_s: FloatArray, *, skew_ppm: float, span_s: tuple[float, float]
    ) -> ClockMap:
        """Through lags at times of A, extended at one speed to the ends of the session and beyond."""
        # Neighbouring lags are too close together to give the speed of the extrapolation.
        ends_s = min(span_s[0], float(time_s[0]) - 1), max(span_s[1], float(time_s[-1]) + 1)
        before, after = (
            float(lag_s[k]) + 1e-6 * skew_ppm * (end_s - float(time_s[k]))
            for k, end_s in zip((0, -1), ends_s, strict=True)
        )
        return cls.of_lags(
            np.concatenate([[ends_s[0]], time_s, [ends_s[1]]]), np.concatenate([[before], lag_s, [after]])
        )

    @classmethod
    def constant(cls, lag_s: float, start_s: float, stop_s: float) -> ClockMap:
        """One lag throughout."""
        return cls.of_lags(np.array([start_s, stop_s]), np.full(2, lag_s))


def _interpolate(x: FloatArray, knots: FloatArray, values: FloatArray) -> FloatArray:
    out = np.interp(x, knots, values)
    if knots.size > 1:
        for beyond, i, j in ((x < knots[0], 0, 1), (x > knots[-1], -1, -2)):
            step = knots[j] - knots[i]
            slope = (values[j] - values[i]) / step if abs(step) > 1e-6 else 1.0
            # A jump at the very end gives no slope beyond it; the limits are the same in both directions of the map.
            slope = slope if 1 / MAX_SLOPE < slope < MAX_SLOPE else 1.0
            out = np.where(beyond, values[i] + slope * (x - knots[i]), out)
    return out


@dataclass(frozen=True)
class Jump:
    """A sudden change of the lag.

    Parameters
    ----------
    time_s, time_low_s, time_high_s : float
        When, on clock A, and a 95 % interval.
    size_s, size_low_s, size_high_s : float
        Increase of the lag, and a 95 % interval.
    """

    time_s: float
    time_low_s: float
    time_high_s: float
    size_s: float
    size_low_s: float
    size_high_s: float


@dataclass(frozen=True, eq=False)
class ClockFit:
    """A clock fitted to a session.

    Parameters
    ----------
    clock : ClockMap
    offset_s, skew_ppm : tuple of 3 float
        Lag at the start of the session, and relative speed of B; each with both ends of a 95 % interval.
    jumps : tuple of Jump
    half_width_s : float
        Half of the widest 95 % interval of the fitted lag over the session; of a clock that follows the posterior, the
        90 % quantile of these half-widths.
    inlier : ndarray, shape (N,)
        Probability that each window agrees with the fit.
    score : float
        Penalised log-likelihood of the fit.
    second_best_s, second_best_score : float
        Offset (at the start) of the best other peak without a jump, and its log-likelihood relative to the best.
    """

    clock: ClockMap
    offset_s: tuple[float, float, float]
    skew_ppm: tuple[float, float, float]
    jumps: tuple[Jump, ...]
    half_width_s: float
    inlier: FloatArray
    score: float
    second_best_s: float
    second_best_score: float

    @classmethod
    def without_errors(cls, clock: ClockMap) -> ClockFit:
        """A clock that nothing supports: every estimate of it is NaN."""
        nan = float("nan")
        return cls(clock, (nan, nan, nan), (nan, nan, nan), (), nan, np.zeros(1), 0.0, nan, float("-inf"))


def bounded_log_ratio(log_lik_NG: FloatArray) -> FloatArray:
    """Log of each window's posterior over a uniform one, with bounded influence; zero for a window without evidence."""
    n = log_lik_NG.shape[1]
    log_posterior = log_softmax(log_lik_NG, axis=1)
    return np.logaddexp(np.log1p(-OUTLIER_SHARE) + log_posterior + np.log(n), np.log(OUTLIER_SHARE))


def fit_clock(
    time_s: FloatArray,
    log_lik_NG: FloatArray,
    lag_s: FloatArray,
    *,
    model: ClockModel = "piecewise",
    span_s: tuple[float, float],
    around_ppm: float = 0.0,
    within_ppm: float = MAX_SKEW_PPM,
    fine: tuple[FloatArray, FloatArray] | None = None,
) -> ClockFit:
    """Fit a clock.

    Parameters
    ----------
    time_s : ndarray, shape (N,)
        Middle of each window, on A.
    log_lik_NG : ndarray, shape (N, G)
        Log-likelihood of each lag in each window, up to a constant per window.
    lag_s : ndarray, shape (G,)
        Evenly spaced.
    model : {"offset", "linear", "piecewise", "free"}
        An offset; and a skew; and jumps. "free" is fitted as "piecewise".
    span_s : tuple of float
        Start and stop of the session on A.
    around_ppm, within_ppm : float
        Centre and half-width of the skews searched.
    fine : tuple of ndarray (n,) and ndarray (n, G), optional
        Times and log-likelihoods of shorter windows, from which jumps are timed.
    """
    log_ratio = bounded_log_ratio(log_lik_NG)
    middle_s = 0.5 * (span_s[0] + span_s[1])
    since_s = time_s - middle_s
    step_s = float(lag_s[1] - lag_s[0])
    if model == "offset":
        skews: np.ndarray = np.zeros(1)
    else:
        each_ppm = 1e6 * step_s / max(float(np.ptp(time_s)), 1.0)
        n = min(MAX_SKEWS // 2, int(np.ceil(within_ppm / each_ppm)))
        skews = around_ppm + each_ppm * np.arange(-n, n + 1)
    score, skew_ppm, path = -np.inf, 0.0, np.zeros(len(log_ratio), dtype=int)
    for skew in skews[np.argsort(np.abs(skews - around_ppm))]:
        sheared = _sheared(log_ratio, 1e-6 * skew * since_s / step_s)
        found, found_path = _best_path(sheared, with_jumps=model not in ("offset", "linear"))
        # A skew is one more parameter (BIC).
        found -= 0.5 * np.log(max(2, len(log_ratio))) if skew != 0 else 0.0
        if found > score:
            score, skew_ppm, path = found, float(skew), found_path
    segments = _segments(since_s, log_ratio, lag_s, path, 1e-6 * skew_ppm, with_skew=model != "offset")
    second_s, second_score = _second_best(
        _sheared(log_ratio, 1e-6 * skew_ppm * since_s / step_s), lag_s, segments.label
    )
    # Offsets are searched at the middle of the session and reported at its start.
    second_s += 1e-6 * skew_ppm * (span_s[0] - middle_s)
    timed = (time_s, log_ratio) if fine is None else (fine[0], bounded_log_ratio(fine[1]))
    return replace(
        _clock_fit(segments, time_s, timed, lag_s, span_s),
        score=score,
        second_best_s=second_s,
        second_best_score=second_score,
    )


def _sheared(log_ratio: FloatArray, by: FloatArray) -> FloatArray:
    """Row i moved so that entry g holds the value at g + by[i]; no information beyond the ends."""
    width = log_ratio.shape[1]
    whole = np.floor(by).astype(int)
    part = (by - whole)[:, None]
    at = np.arange(width) + whole[:, None]
    low = np.take_along_axis(log_ratio, np.clip(at, 0, width - 1), 1)
    high = np.take_along_axis(log_ratio, np.clip(at + 1, 0, width - 1), 1)
    out = (1 - part) * low + part * high
    return np.where((at >= 0) & (at + 1 < width), out, np.log(OUTLIER_SHARE))


def _best_path(log_ratio: FloatArray, *, with_jumps: bool) -> tuple[float, np.ndarray]:
    """Score and lags, as indices, of the best sequence: constant, or with jumps at a penalty (Potts; exact Viterbi)."""
    if not with_jumps:
        total = log_ratio.sum(0)
        return float(total.max()), np.full(len(log_ratio), int(total.argmax()))
    penalty = np.log(max(2, len(log_ratio))) + np.log(log_ratio.shape[1])
    best = log_ratio[0].copy()
    jumps, tops = np.zeros(log_ratio.shape, dtype=bool), np.zeros(len(log_ratio), dtype=int)
    for i in range(1, len(log_ratio)):
        tops[i] = best.argmax()
        after_jump = best[tops[i]] - penalty
        jumps[i] = best < after_jump
        best = np.maximum(best, after_jump) + log_ratio[i]
    path = np.zeros(len(log_ratio), dtype=int)
    path[-1] = int(best.argmax())
    for i in range(len(log_ratio) - 1, 0, -1):
        path[i - 1] = tops[i] if jumps[i, path[i]] else path[i]
    return float(best.max()), path


@dataclass
class _Segments:
    """A line per segment of the session, between jumps; all have one slope."""

    label: np.ndarray  # segment of each window
    theta: FloatArray  # offsets of all segments at the middle of the session, then the slope
    cov: FloatArray
    inlier: FloatArray

    def line(self, segment: int, since_s: float) -> tuple[float, float]:
        """Lag, `since_s` after the middle of the session, and its standard error."""
        x = np.zeros(self.theta.size)
        x[segment], x[-1] = 1, since_s
        return self.contrast(x)

    def jump(self, segment: int) -> tuple[float, float]:
        """Increase of the lag at the start of a segment, and its standard error."""
        x = np.zeros(self.theta.size)
        x[segment - 1], x[segment] = -1, 1
        return self.contrast(x)

    def contrast(self, x: FloatArray) -> tuple[float, float]:
        """A linear combination of the parameters, and its standard error."""
        # Variances that rounding made negative are zero.
        cov = self.cov + 1e-18 * np.eye(self.theta.size)
        return float(x @ self.theta), float(x @ cov @ x) ** 0.5


def _segments(
    since_s: FloatArray,
    log_ratio: FloatArray,
    lag_s: FloatArray,
    path: np.ndarray,
    slope: float,
    *,
    with_skew: bool,
) -> _Segments:
    """Lines near the best path, fitted anew after the removal of each jump that is too small for its error."""
    label = np.concatenate([[0], np.cumsum(np.diff(path) != 0)]).astype(np.int64)
    while True:
        offsets = lag_s[path[np.unique(label, return_index=True)[1]]]
        fit = _least_squares(since_s, log_ratio, lag_s, label, np.append(offsets, slope), with_skew=with_skew)
        weakest = _weakest_jump(fit, float(lag_s[1] - lag_s[0]))
        if weakest is None:
            return fit
        label = label - (label > weakest)


def _least_squares(
    since_s: FloatArray,
    log_ratio: FloatArray,
    lag_s: FloatArray,
    label: np.ndarray,
    theta: FloatArray,
    *,
    with_skew: bool,
) -> _Segments:
    """Weighted least squares through each window's posterior near the line, reweighted, from a start `theta`."""
    n_segments = label.max() + 1
    design = np.zeros((len(since_s), n_segments + 1))
    design[np.arange(len(since_s)), label] = 1
    design[:, -1] = since_s if with_skew else 0.0
    ratio = np.exp(log_ratio)
    for _ in range(8):
        line = design @ theta
        near = np.abs(lag_s - line[:, None]) <= NEAR_S
        mass = np.where(near, np.maximum(ratio - OUTLIER_SHARE, 0), 0)
        total = mass.sum(1)
        inlier = total / lag_s.size
        mean = np.where(total > 0, (mass * lag_s).sum(1) / np.maximum(total, 1e-12), line)
        var = (mass * (lag_s - mean[:, None]) ** 2).sum(1) / np.maximum(total, 1e-12)
        var += (lag_s[1] - lag_s[0]) ** 2 / 12
        weight = np.where(total > 0, inlier / var, 0.0)
        theta = _solve(design, mean, weight, theta)
    return _Segments(label, theta, _covariance(design, mean, weight, theta), inlier)


def _solve(design: FloatArray, y: FloatArray, weight: FloatArray, fallback: FloatArray) -> np.ndarray:
    gram = (design * weight[:, None]).T @ design
    # Parameters that no window constrains keep their value.
    ridge = 1e-9 * max(float(np.trace(gram)), 1e-9) * np.eye(len(gram))
    return np.linalg.solve(gram + ridge, (design * weight[:, None]).T @ y + ridge @ fallback)


def _covariance(design: FloatArray, y: FloatArray, weight: FloatArray, theta: FloatArray) -> np.ndarray:
    """Covariance by a jackknife over stretches, and never less than that of independent windows."""
    n = len(y)
    gram = (design * weight[:, None]).T @ design
    # A column that no window constrains (a skew that is not fitted) has no error.
    inverse = np.linalg.pinv(gram)
    spread = float((weight * (y - design @ theta) ** 2).sum() / max(1, n - design.shape[1]))
    independent = inverse * max(1.0, spread)
    groups = np.array_split(np.arange(n), min(N_JACKKNIFE, n))
    if len(groups) < 5:
        return independent
    estimates = []
    for group in groups:
        kept = weight.copy()
        kept[group] = 0
        # A segment that lies within the omitted stretch keeps its value.
        estimates.append(_solve(design, y, kept, theta))
    apart = np.array(estimates) - np.mean(estimates, axis=0)
    jackknife = (len(groups) - 1) / len(groups) * apart.T @ apart
    scale = np.sqrt(np.maximum(1.0, np.diag(jackknife) / np.maximum(np.diag(independent), 1e-30)))
    return independent * np.outer(scale, scale)


def _weakest_jump(segments: _Segments, step_s: float) -> int | None:
    """The segment before the least significant jump, if that is within a grid step or within its error."""
    size = np.diff(segments.theta[:-1])
    if not size.size:
        return None
    var = np.diag(segments.cov)[:-1]
    covariance = np.diag(segments.cov, 1)[: size.size]
    z = np.abs(size) / np.sqrt(np.maximum(var[1:] + var[:-1] - 2 * covariance, 1e-18))
    # The grid and overconfident windows produce small jumps of their own.
    z = np.where(np.abs(size) <= 1.5 * step_s, 0.0, z)
    k = int(z.argmin())
    return k if z[k] < MIN_JUMP_Z else None


def _second_best(sheared: FloatArray, lag_s: FloatArray, label: np.ndarray) -> tuple[float, float]:
    """The best other peak of the longest segment, and its log-likelihood relative to the best."""
    total = sheared[label == np.bincount(label).argmax()].sum(0)
    apart = np.abs(lag_s - lag_s[total.argmax()]) > NEAR_S
    if not apart.any():
        return float("nan"), float("-inf")
    other = np.where(apart, total, -np.inf)
    return float(lag_s[other.argmax()]), float(other.max() - total.max())


def _clock_fit(
    segments: _Segments,
    time_s: FloatArray,
    timed: tuple[FloatArray, FloatArray],
    lag_s: FloatArray,
    span_s: tuple[float, float],
) -> ClockFit:
    """The clock along all segments; jumps are timed by `timed`, times and log-ratios of windows."""
    middle_s = 0.5 * (span_s[0] + span_s[1])
    start_s, stop_s = (s - middle_s for s in span_s)
    last = int(segments.label.max())
    knots_s, lines, jumps = [span_s[0]], [segments.line(0, start_s)], []
    for k in range(1, last + 1):
        first = int(np.flatnonzero(segments.label == k)[0])

        def before_after(at_s: float, k: int = k) -> tuple[float, float]:
            return segments.line(k - 1, at_s - middle_s)[0], segments.line(k, at_s - middle_s)[0]

        moment = _jump_time(first, time_s, timed, lag_s, before_after)
        jumps.append(Jump(*moment, *_interval(*segments.jump(k))))
        knots_s += [moment[0], moment[0]]
        lines += [segments.line(k - 1, moment[0] - middle_s), segments.line(k, moment[0] - middle_s)]
    knots_s.append(span_s[1])
    lines.append(segments.line(last, stop_s))
    skew, skew_error = segments.contrast(np.eye(last + 2)[-1])
    return ClockFit(
        ClockMap.of_lags(np.array(knots_s), np.array([lag for lag, _ in lines])),
        _interval(*lines[0]),
        _interval(1e6 * skew, 1e6 * skew_error),
        tuple(jumps),
        T_95 * max(error for _, error in lines),
        segments.inlier,
        float("nan"),
        float("nan"),
        float("nan"),
    )


def _interval(value: float, error: float) -> tuple[float, float, float]:
    """A value, and both ends of its 95 % interval."""
    return value, value - T_95 * error, value + T_95 * error


def _jump_time(
    first: int,
    time_s: FloatArray,
    timed: tuple[FloatArray, FloatArray],
    lag_s: FloatArray,
    before_after: Callable[[float], tuple[float, float]],
) -> tuple[float, float, float]:
    """Time of a jump, and an interval: windows before it favour one line, windows after it the other.

    The jump lies between windows `first` - 1 and `first`; `before_after` gives the lags on both lines at a time.
    """
    times, log_ratio = timed
    step_s = float(np.median(np.diff(time_s)))
    around_s = 0.5 * (time_s[first - 1] + time_s[first])
    # Across a gap in the recording the windows on both of its sides are used.
    reach_s = 2.5 * step_s + 0.5 * (time_s[first] - time_s[first - 1])
    rows = np.flatnonzero(np.abs(times - around_s) <= reach_s)
    place = np.arange(lag_s.size)
    before, after = (np.array([before_after(t) for t in times[rows]]).T - lag_s[0]) / (lag_s[1] - lag_s[0])
    gain = np.array(
        [
            np.interp(b, place, row) - np.interp(a, place, row)
            for row, b, a in zip(log_ratio[rows], before, after, strict=True)
        ]
    )
    # Entry k: the jump comes before row k.
    total = np.concatenate([[0.0], np.cumsum(gain)])
    each_s = float(np.median(np.diff(times[rows])))
    edges_s = np.concatenate([[times[rows[0]] - each_s], times[rows], [times[rows[-1]] + each_s]])
    best = int(total.argmax())
    likely = np.flatnonzero(total >= total.max() - JUMP_TIME_NATS)
    return (
        float(0.5 * (edges_s[best] + edges_s[best + 1])),
        float(edges_s[likely[0]]),
        float(edges_s[likely[-1] + 1]),
    )
