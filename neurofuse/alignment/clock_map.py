"""In: log evidence of every lag in windows of a session. Out: the clock that explains them: offset, skew, jumps, map.

A window's say is bounded: its posterior over lags is mixed with a uniform one, so a window that is wrong costs so much
and no more. For every skew of a grid the best sequence of offsets, each jump at a fixed price, is found by dynamic
programming over all lags; the price is that of BIC for where a jump is and where it leads. What lies near the winner
is then fitted by weighted least squares; errors come from leaving out stretches of the session in turn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import log_softmax

from neurofuse.recording import FloatArray

Model = Literal["offset", "linear", "piecewise", "free"]
MODELS: tuple[Model, ...] = ("offset", "linear", "piecewise", "free")
# Share of windows whose evidence is taken to be about nothing.
OUTLIERS = 0.1
# Skews searched at most, and how many of them.
MOST_SKEW_PPM, MOST_SKEWS = 3000.0, 201
# Clocks whose speeds differ by more than this factor have jumped.
MOST_SLOPE = 1.1
# Windows count as inliers this near the fitted line, seconds.
NEAR_S = 0.1
# Stretches left out in turn.
N_LEFT_OUT = 20
# Half-width of a 95 % interval in standard errors, of so many stretches (Student's t, 15 or so degrees of freedom).
WIDE = 2.13
# Jumps smaller than so many of their standard errors are taken back.
LEAST_JUMP = 5.0
# Moments of a jump stay in its interval while they are no less likely than the best by this factor's logarithm.
SPLIT_NATS = 3.0


@dataclass(frozen=True, eq=False)
class ClockMap:
    """A map between two clocks: a line from knot to knot that never runs backwards, straight on beyond its ends.

    Parameters
    ----------
    a_s, b_s : ndarray, shape (n_knots,)
        What A and B read at the same moments. Where B jumped ahead two knots share a time of A, where it lost time
        two knots share a time of B.
    """

    a_s: FloatArray
    b_s: FloatArray

    def to_b(self, a_s: ArrayLike) -> FloatArray:
        """What B reads when A reads `a_s`."""
        return _straight(np.asarray(a_s, dtype=np.float64), self.a_s, self.b_s)

    def to_a(self, b_s: ArrayLike) -> FloatArray:
        """What A reads when B reads `b_s`."""
        return _straight(np.asarray(b_s, dtype=np.float64), self.b_s, self.a_s)

    def lag_s(self, a_s: ArrayLike) -> FloatArray:
        """Stamp on B minus time of A, at times of A."""
        return self.to_b(a_s) - np.asarray(a_s, dtype=np.float64)

    @classmethod
    def of_lags(cls, time_s: FloatArray, lag_s: FloatArray) -> ClockMap:
        """Through lags at times of A; a time given twice is a jump.

        Where B fell back by a jump, the same stamps would come twice: the map leaves A without B for as long,
        around the jump.
        """
        a, b = [float(time_s[0])], [float(time_s[0] + lag_s[0])]
        for k in range(1, len(time_s)):
            t, fell = float(time_s[k]), float(lag_s[k - 1] - lag_s[k])
            if time_s[k] == time_s[k - 1] and fell > 0:
                a[-1] -= fell / 2
                b[-1] -= fell / 2
                t += fell / 2
            a.append(t)
            b.append(t + float(lag_s[k]))
        return cls(np.maximum.accumulate(a), np.maximum.accumulate(b))

    @classmethod
    def through(
        cls, time_s: FloatArray, lag_s: FloatArray, *, skew_ppm: float, span_s: tuple[float, float]
    ) -> ClockMap:
        """Through lags at times of A, and on at one speed to the ends of the session and beyond."""
        # The last lags of all are too near each other to say how fast it goes on.
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
        """One lag."""
        return cls.of_lags(np.array([start_s, stop_s]), np.full(2, lag_s))


def _straight(x: FloatArray, known: FloatArray, values: FloatArray) -> FloatArray:
    out = np.interp(x, known, values)
    if known.size > 1:
        for beyond, i, j in ((x < known[0], 0, 1), (x > known[-1], -1, -2)):
            apart = known[j] - known[i]
            slope = (values[j] - values[i]) / apart if abs(apart) > 1e-6 else 1.0
            # A jump right at the end says nothing about what comes after it; the same one either way through the map.
            slope = slope if 1 / MOST_SLOPE < slope < MOST_SLOPE else 1.0
            out = np.where(beyond, values[i] + slope * (x - known[i]), out)
    return out


@dataclass(frozen=True)
class Jump:
    """A lag that changed at once.

    Parameters
    ----------
    time_s, time_low_s, time_high_s : float
        When, on clock A, and a 95 % interval.
    size_s, size_low_s, size_high_s : float
        By how much the lag grew, and a 95 % interval.
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
        Lag at the start of the session, and how fast B runs; each with both ends of a 95 % interval.
    jumps : tuple of Jump
    half_width_s : float
        Half of the widest 95 % interval of the fitted lag over the session; of a clock that follows the posterior, one
        that nine in ten of its intervals are no wider than.
    inlier : ndarray, shape (N,)
        Probability that each window agrees with the fit.
    score : float
        Log evidence of the winner.
    rival_s, rival_score : float
        The best offset of another peak, at the start too, and its log evidence; where there are no jumps.
    """

    clock: ClockMap
    offset_s: tuple[float, float, float]
    skew_ppm: tuple[float, float, float]
    jumps: tuple[Jump, ...]
    half_width_s: float
    inlier: FloatArray
    score: float
    rival_s: float
    rival_score: float


def bounded(evidence_NG: FloatArray) -> FloatArray:
    """Log of each window's posterior over uniform, its say bounded; zero where it says nothing."""
    n = evidence_NG.shape[1]
    return np.logaddexp(np.log1p(-OUTLIERS) + log_softmax(evidence_NG, axis=1) + np.log(n), np.log(OUTLIERS))


def fit_clock(
    time_s: FloatArray,
    evidence_NG: FloatArray,
    lag_s: FloatArray,
    *,
    model: Model = "piecewise",
    span_s: tuple[float, float],
    around_ppm: float = 0.0,
    within_ppm: float = MOST_SKEW_PPM,
    fine: tuple[FloatArray, FloatArray] | None = None,
) -> ClockFit:
    """Fit a clock.

    Parameters
    ----------
    time_s : ndarray, shape (N,)
        Middle of each window, on A.
    evidence_NG : ndarray, shape (N, G)
        Log-likelihood of each lag in each window, up to a constant a window.
    lag_s : ndarray, shape (G,)
        Evenly spaced.
    model : {"offset", "linear", "piecewise", "free"}
        What the clock may do: differ, also run at another speed, also jump. "free" is fitted as "piecewise".
    span_s : tuple of float
        Start and stop of the session on A.
    around_ppm, within_ppm : float
        Skews to search.
    fine : tuple of ndarray (n,) and ndarray (n, G), optional
        Times and evidence of shorter windows, to place jumps by.
    """
    say = bounded(evidence_NG)
    middle_s = 0.5 * (span_s[0] + span_s[1])
    since = time_s - middle_s
    step_s = float(lag_s[1] - lag_s[0])
    if model == "offset":
        skews: np.ndarray = np.zeros(1)
    else:
        reach = max(float(np.ptp(time_s)), 1.0)
        each = 1e6 * step_s / reach
        n = min(MOST_SKEWS // 2, int(np.ceil(within_ppm / each)))
        skews = around_ppm + each * np.arange(-n, n + 1)
    price = np.log(max(2, len(say))) + np.log(lag_s.size)
    best: tuple[float, float, np.ndarray] | None = None
    for skew in skews[np.argsort(np.abs(skews - around_ppm))]:
        sheared = _sheared(say, 1e-6 * skew * since / step_s)
        if model in ("offset", "linear"):
            total = sheared.sum(0)
            found = float(total.max()), np.full(len(say), int(total.argmax()))
        else:
            found = _steps(sheared, price)
        # A skew must earn its keep, as a jump does.
        worth = found[0] - (0.5 * np.log(max(2, len(say))) if skew != 0 else 0.0)
        if best is None or worth > best[0]:
            best = (worth, float(skew), found[1])
    assert best is not None
    score, skew, path = best
    label = np.concatenate([[0], np.cumsum(np.diff(path) != 0)]).astype(np.int64)
    while True:
        offsets = lag_s[path[np.unique(label, return_index=True)[1]]]
        fit = _refined(since, say, lag_s, label, offsets, 1e-6 * skew, with_skew=model != "offset")
        weakest = _weakest_jump(fit, step_s)
        if weakest is None:
            break
        label = label - (label > weakest)
    rival_s, rival_score = _rival(_sheared(say, 1e-6 * skew * since / step_s), lag_s, label)
    # Told where the offset is told, at the start.
    rival_s += 1e-6 * skew * (span_s[0] - middle_s)
    return _told(fit, time_s, say, lag_s, span_s, middle_s, score, rival_s, rival_score, fine)


@dataclass
class _Lines:
    label: np.ndarray
    theta: FloatArray  # offsets of all segments at the middle, then the skew as a share
    cov: FloatArray
    inlier: FloatArray


def _sheared(say: FloatArray, by: FloatArray) -> FloatArray:
    """Row i moved so that entry g holds what was at g + by[i]; nothing is said beyond the ends."""
    width = say.shape[1]
    whole = np.floor(by).astype(int)
    part = (by - whole)[:, None]
    at = np.arange(width) + whole[:, None]
    low = np.take_along_axis(say, np.clip(at, 0, width - 1), 1)
    high = np.take_along_axis(say, np.clip(at + 1, 0, width - 1), 1)
    out = (1 - part) * low + part * high
    return np.where((at >= 0) & (at + 1 < width), out, np.log(OUTLIERS))


def _steps(say: FloatArray, price: float) -> tuple[float, np.ndarray]:
    """Best sequence of lags that stays, or changes at a price (Potts; Viterbi, exact)."""
    best = say[0].copy()
    came, tops = np.zeros(say.shape, dtype=bool), np.zeros(len(say), dtype=int)
    for i in range(1, len(say)):
        tops[i] = best.argmax()
        jumped = best[tops[i]] - price
        came[i] = best < jumped
        best = np.maximum(best, jumped) + say[i]
    path = np.zeros(len(say), dtype=int)
    path[-1] = int(best.argmax())
    for i in range(len(say) - 1, 0, -1):
        path[i - 1] = tops[i] if came[i, path[i]] else path[i]
    return float(best.max()), path


def _refined(
    since: FloatArray,
    say: FloatArray,
    lag_s: FloatArray,
    label: np.ndarray,
    offsets: FloatArray,
    skew: float,
    *,
    with_skew: bool,
) -> _Lines:
    """Least squares through what each window says near the line, and its errors."""
    n_segments = label.max() + 1
    design = np.zeros((len(since), n_segments + 1))
    design[np.arange(len(since)), label] = 1
    design[:, -1] = since if with_skew else 0.0
    theta = np.append(offsets, skew)
    p = np.exp(say)  # posterior over uniform
    for _ in range(8):
        line = design @ theta
        near = np.abs(lag_s - line[:, None]) <= NEAR_S
        mass = np.where(near, np.maximum(p - OUTLIERS, 0), 0)
        total = mass.sum(1)
        inlier = total / lag_s.size
        mean = np.where(total > 0, (mass * lag_s).sum(1) / np.maximum(total, 1e-12), line)
        var = (mass * (lag_s - mean[:, None]) ** 2).sum(1) / np.maximum(total, 1e-12)
        var += (lag_s[1] - lag_s[0]) ** 2 / 12
        weight = np.where(total > 0, inlier / var, 0.0)
        theta = _solve(design, mean, weight, theta)
    return _Lines(label, theta, _errors(design, mean, weight, theta), inlier)


def _solve(design: FloatArray, y: FloatArray, weight: FloatArray, fallback: FloatArray) -> np.ndarray:
    gram = (design * weight[:, None]).T @ design
    # What no window speaks about stays where it was.
    ridge = 1e-9 * max(float(np.trace(gram)), 1e-9) * np.eye(len(gram))
    return np.linalg.solve(gram + ridge, (design * weight[:, None]).T @ y + ridge @ fallback)


def _errors(design: FloatArray, y: FloatArray, weight: FloatArray, theta: FloatArray) -> np.ndarray:
    """Covariance by leaving out stretches in turn, and never less than that of independent windows."""
    n = len(y)
    gram = (design * weight[:, None]).T @ design
    # A column no window speaks about (a skew that is not fitted) has no error.
    inverse = np.linalg.pinv(gram)
    spread = float((weight * (y - design @ theta) ** 2).sum() / max(1, n - design.shape[1]))
    plain = inverse * max(1.0, spread)
    groups = np.array_split(np.arange(n), min(N_LEFT_OUT, n))
    if len(groups) < 5:
        return plain
    left = []
    for g in groups:
        w = weight.copy()
        w[g] = 0
        # A segment that lies in the stretch alone cannot be judged by leaving it out.
        left.append(_solve(design, y, w, theta))
    apart = np.array(left) - np.mean(left, axis=0)
    jack = (len(groups) - 1) / len(groups) * apart.T @ apart
    # Both are covariances; the larger scale of the two is kept.
    grow = np.sqrt(np.maximum(1.0, np.diag(jack) / np.maximum(np.diag(plain), 1e-30)))
    return plain * np.outer(grow, grow)


def _weakest_jump(lines: _Lines, step_s: float) -> int | None:
    """The segment after the jump that least deserves its name: no larger than a grid step, or than its error allows."""
    size = np.diff(lines.theta[:-1])
    if not size.size:
        return None
    var = np.diag(lines.cov)[:-1]
    both = np.diag(lines.cov, 1)[: size.size]
    z = np.abs(size) / np.sqrt(np.maximum(var[1:] + var[:-1] - 2 * both, 1e-18))
    # Steps of a grid and windows surer than they should be are what small jumps are made of.
    worth = np.where(np.abs(size) <= 1.5 * step_s, 0.0, z)
    k = int(worth.argmin())
    return k if worth[k] < LEAST_JUMP else None


def _rival(sheared: FloatArray, lag_s: FloatArray, label: np.ndarray) -> tuple[float, float]:
    """The best other peak of the longest stretch without a jump, and how much less it explains than the best."""
    mine = sheared[label == np.bincount(label).argmax()].sum(0)
    apart = np.abs(lag_s - lag_s[mine.argmax()]) > NEAR_S
    if not apart.any():
        return float("nan"), float("-inf")
    other = np.where(apart, mine, -np.inf)
    return float(lag_s[other.argmax()]), float(other.max() - mine.max())


def _told(
    lines: _Lines,
    time_s: FloatArray,
    say: FloatArray,
    lag_s: FloatArray,
    span_s: tuple[float, float],
    middle_s: float,
    score: float,
    rival_s: float,
    rival_score: float,
    fine: tuple[FloatArray, FloatArray] | None,
) -> ClockFit:
    # Tiny negative numbers are rounding.
    theta, cov, label = lines.theta, lines.cov + 1e-18 * np.eye(lines.theta.size), lines.label
    n = theta.size - 1
    skew = float(theta[-1])

    def at(segment: int, t: float) -> tuple[float, float]:
        x = np.zeros(theta.size)
        x[segment], x[-1] = 1, t - middle_s
        return float(x @ theta), float(x @ cov @ x) ** 0.5

    jumps, knots, lags = [], [span_s[0]], [at(0, span_s[0])[0]]
    widths = [at(0, span_s[0])[1]]
    for k in range(1, n):
        first = int(np.flatnonzero(label == k)[0])
        t, low, high = _placed(first, time_s, say, lag_s, fine, lambda s, k=k: (at(k - 1, s)[0], at(k, s)[0]))
        x = np.zeros(theta.size)
        x[k - 1], x[k] = -1, 1
        size, error = float(x @ theta), float(x @ cov @ x) ** 0.5
        jumps.append(Jump(t, low, high, size, size - WIDE * error, size + WIDE * error))
        knots += [t, t]
        lags += [at(k - 1, t)[0], at(k, t)[0]]
        widths += [at(k - 1, t)[1], at(k, t)[1]]
    knots.append(span_s[1])
    lags.append(at(n - 1, span_s[1])[0])
    widths.append(at(n - 1, span_s[1])[1])
    offset, error = at(0, span_s[0])
    skew_error = WIDE * 1e6 * float(cov[-1, -1]) ** 0.5
    return ClockFit(
        ClockMap.of_lags(np.array(knots), np.array(lags)),
        (offset, offset - WIDE * error, offset + WIDE * error),
        (1e6 * skew, 1e6 * skew - skew_error, 1e6 * skew + skew_error),
        tuple(jumps),
        WIDE * max(widths),
        lines.inlier,
        score,
        rival_s,
        rival_score,
    )


def _placed(
    first: int,
    time_s: FloatArray,
    say: FloatArray,
    lag_s: FloatArray,
    fine: tuple[FloatArray, FloatArray] | None,
    lines: Any,
) -> tuple[float, float, float]:
    """When a jump was: the moment before which windows prefer one line and after which they prefer the other."""
    times = time_s if fine is None else fine[0]
    step_s = float(np.median(np.diff(time_s)))
    around_s = 0.5 * (time_s[first - 1] + time_s[first])
    # Windows may lie far apart where nothing was recorded: those on both sides are asked all the same.
    reach_s = 2.5 * step_s + 0.5 * (time_s[first] - time_s[first - 1])
    rows = np.flatnonzero(np.abs(times - around_s) <= reach_s)
    says = say[rows] if fine is None else bounded(fine[1][rows])
    place = np.arange(lag_s.size)
    before, after = np.array([lines(t) for t in times[rows]]).T
    gain = np.array(
        [
            np.interp((b - lag_s[0]) / (lag_s[1] - lag_s[0]), place, said)
            - np.interp((a - lag_s[0]) / (lag_s[1] - lag_s[0]), place, said)
            for said, b, a in zip(says, before, after, strict=True)
        ]
    )
    # Entry k: the jump comes before row k.
    total = np.concatenate([[0.0], np.cumsum(gain)])
    each_s = float(np.median(np.diff(times[rows])))
    beside = np.concatenate([[times[rows[0]] - each_s], times[rows], [times[rows[-1]] + each_s]])
    best = int(total.argmax())
    likely = np.flatnonzero(total >= total.max() - SPLIT_NATS)
    return (
        float(0.5 * (beside[best] + beside[best + 1])),
        float(beside[likely[0]]),
        float(beside[likely[-1] + 1]),
    )
