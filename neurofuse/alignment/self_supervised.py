"""In: a `SignalPair` and a first clock. Out: log-likelihoods of lags along the session, and the clock fitted to them.

Training windows follow the first clock, which need not be exact: what is left of its errors, a network that looks at
the whole session averages out, and what varies of them it reports.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.ndimage import gaussian_filter1d

from neurofuse.alignment.clock_map import ClockFit, ClockMap, Model, fit_clock
from neurofuse.alignment.lag_estimator import LagEstimator
from neurofuse.alignment.lag_evidence import LagEvidence, MismatchTest, follow_posterior
from neurofuse.alignment.ridge_scan import N_FOLDS, held_out
from neurofuse.alignment.signal_pair import SMOOTH_S, SignalPair
from neurofuse.recording import FloatArray, NeurofuseError
from neurofuse.windows import EDGE_TOKENS, Windows

# Seconds of a window; seconds of a block that is heard by itself, and blocks a window that the clock is fitted to.
WINDOW_S, BLOCK_S, BLOCKS = 3.2, 0.8, 5
# Held back: one in four stretches of this length.
STRETCH_S, ONE_IN = 20.0, 4
# Steps of the lag grid, seconds.
STEP_S = 0.005
# Wrong partners a held-back window is heard with.
N_WRONG = 5
# Skews looked at around the first clock's.
WITHIN_PPM = 400.0
# The zero of the lag axis is read off a ridge at these lags along the clock, over so much of the session.
ZERO_S, ZERO_STEP_S, ZERO_SPAN_S = 0.08, 0.01, 900.0


@dataclass(frozen=True, eq=False)
class Learned:
    """What networks hear along a session, and the clock that explains it."""

    evidence: LagEvidence
    fit: ClockFit
    foreign: MismatchTest


def learn(
    pair: SignalPair,
    start: ClockFit,
    *,
    model: Model,
    search_s: float,
    span_s: tuple[float, float],
    n_steps: int = 400,
    seed: int = 0,
    progress: bool = False,
) -> Learned:
    """Train along a first clock, listen to the whole session, fit a clock.

    Parameters
    ----------
    pair : SignalPair
    start : ClockFit
        The first clock.
    model : str
        See `fit_clock`.
    search_s : float
        How far around the first clock the network looks, seconds.
    span_s : tuple of float
        Start and stop of A, seconds.
    """
    # Where a clock wanders the first one errs everywhere, and a network repeats the errors that it was trained on: each
    # stretch is heard by one that was trained on the others.
    turns = range(ONE_IN) if model == "free" else (ONE_IN - 1,)
    told, foreigns = [], []
    for turn in turns:
        finder, held = train_along(
            pair,
            start.clock,
            search_s=search_s,
            span_s=span_s,
            n_steps=n_steps,
            held_back=turn,
            seed=seed,
            progress=progress,
        )
        told.append(listen(finder, pair, start.clock, span_s=span_s))
        foreigns.append(heard_wrong(finder, held))
    foreign = MismatchTest(
        np.concatenate([f.own for f in foreigns]), np.concatenate([f.other for f in foreigns], axis=1)
    )
    blocks = told[0]
    if len(told) > 1:
        number, _ = _stretches(pair, span_s).of(
            np.rint((blocks.time_s - pair.tokens.origin_s) / pair.tokens.token_s).astype(np.int64)
        )
        mine = number[:, None] % ONE_IN
        score = np.choose(mine, [t.score for t in told])
        blocks = replace(blocks, score=score, lost=np.choose(mine[:, 0], [t.lost for t in told]))
    fit = _fit(blocks, start, model, span_s)
    if model == "free":
        fit = follow_posterior(blocks, fit)
    zero = zero_of(pair, fit.clock, span_s)
    return Learned(
        replace(blocks, lag_s=blocks.lag_s + zero[0], zero_error_s=zero[1]), moved_by(fit, zero), foreign
    )


def _fit(blocks: LagEvidence, start: ClockFit, model: Model, span_s: tuple[float, float]) -> ClockFit:
    edges = np.arange(0, len(blocks.time_s), BLOCKS)
    size = np.diff(np.append(edges, len(blocks.time_s)))
    return fit_clock(
        np.add.reduceat(blocks.time_s, edges) / size,
        np.add.reduceat(blocks.score, edges),
        blocks.lag_s,
        model=model,
        span_s=span_s,
        around_ppm=start.skew_ppm[0] if model != "offset" else 0.0,
        within_ppm=WITHIN_PPM,
        fine=(blocks.time_s, blocks.score),
    )


def windows_along(
    pair: SignalPair, clock: ClockMap, first: np.ndarray, n_steps: int, max_lag: int
) -> tuple[Windows, np.ndarray, np.ndarray]:
    """Windows whose B is moved back by the clock's lag, constant in each.

    Returns
    -------
    windows : Windows
    rest : ndarray
        What is left of the lag in each, in tokens: less than a fine step.
    lag_s : ndarray
        What was taken off.
    """
    tokens = pair.tokens
    middle_s = tokens.origin_s + (first + 0.5 * n_steps) * tokens.token_s
    lag = clock.lag_s(middle_s) / tokens.fine_s
    off = np.rint(lag).astype(np.int64)
    width = n_steps + 2 * (max_lag + EDGE_TOKENS)
    shift = np.broadcast_to(-off[:, None, None], (first.size, width, 1)).copy()
    return (
        Windows(tokens, first, n_steps, max_lag, shift),
        (lag - off) / tokens.per_token,
        off.astype(np.float64) * tokens.fine_s,
    )


def present_firsts(
    pair: SignalPair, clock: ClockMap, first: np.ndarray, n_steps: int, least: float
) -> np.ndarray:
    """Those of the windows that A, and B along the clock, recorded at least a share `least` of."""
    tokens = pair.tokens
    per = tokens.per_token
    a, b = tokens.clocks
    stop = len(a.cover) - 1

    def share(cover: FloatArray, at: np.ndarray) -> FloatArray:
        low, high = np.clip(at, 0, stop), np.clip(at + n_steps * per, 0, stop)
        return (cover[high] - cover[low]) / (n_steps * per)

    _, _, lag_s = windows_along(pair, clock, first, n_steps, 1)
    there = np.minimum(
        share(a.cover, first * per), share(b.cover, first * per + np.rint(lag_s / tokens.fine_s).astype(int))
    )
    return first[there >= least]


@dataclass(frozen=True)
class _Stretches:
    """A session cut into stretches that networks are trained on or kept from.

    Parameters
    ----------
    low, high : int
        First token, and the one after the last.
    length : int
        Tokens a stretch.
    window : int
        Tokens a window.
    """

    low: int
    high: int
    length: int
    window: int

    def of(self, token: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Number of the stretch of each token, and its place there."""
        return (token - self.low) // self.length, (token - self.low) % self.length


def _stretches(pair: SignalPair, span_s: tuple[float, float]) -> _Stretches:
    tokens = pair.tokens
    low, high = (round((s - tokens.origin_s) / tokens.token_s) for s in span_s)
    n = max(8, round(WINDOW_S / tokens.token_s))
    length = min(round(STRETCH_S / tokens.token_s), max(2 * n, (high - low) // (2 * ONE_IN)))
    return _Stretches(low, high, length, n)


def train_along(
    pair: SignalPair,
    clock: ClockMap,
    *,
    search_s: float,
    span_s: tuple[float, float],
    n_steps: int = 400,
    held_back: int = ONE_IN - 1,
    seed: int = 0,
    progress: bool = False,
) -> tuple[LagEstimator, Windows]:
    """A network trained on three of four stretches of the session, and windows of the fourth, side by side.

    `held_back` is the first of the stretches that are kept from it.
    """
    tokens = pair.tokens
    cut = _stretches(pair, span_s)
    n = cut.window
    max_lag = max(1, int(np.ceil(search_s / tokens.token_s - 1e-6)))
    every = np.arange(max(0, cut.low), min(tokens.n_tokens, cut.high) - n + 1, max(1, n // 4))
    every = present_firsts(pair, clock, every, n, 0.8)
    number, place = cut.of(every)
    is_held = number % ONE_IN == held_back
    inside = place + n <= cut.length
    # Training windows keep clear of held-back stretches by as much as B can be moved.
    gap = min(max_lag + EDGE_TOKENS, cut.length // 4)
    before, after = (number + 1) % ONE_IN == held_back, (number - 1) % ONE_IN == held_back
    clear = ~is_held & (~before | (place + n <= cut.length - gap)) & (~after | (number == 0) | (place >= gap))
    train, held = every[clear], every[is_held & inside]
    if train.size < 4 or held.size < 2:
        raise NeurofuseError(
            f"the two clocks share too little to learn from ({train.size} windows of {WINDOW_S:g} s to train on, "
            f"{held.size} held back); give a longer recording or --method ridge."
        )
    X, rest, _ = windows_along(pair, clock, train, n, max_lag)
    check, check_rest, _ = windows_along(pair, clock, held, n, max_lag)
    finder = LagEstimator(n_steps=n_steps, seed=seed, progress=progress).fit(X, rest, check, check_rest)
    kept = [int(held[0])]
    for f in held[1:]:
        if f - kept[-1] >= n:
            kept.append(int(f))
    return finder, windows_along(pair, clock, np.array(kept), n, max_lag)[0]


def listen(
    finder: LagEstimator, pair: SignalPair, clock: ClockMap, *, span_s: tuple[float, float]
) -> LagEvidence:
    """What the network says about the lag in blocks along the whole session, on one grid of lags."""
    tokens = pair.tokens
    every = max(1, round(BLOCK_S / tokens.token_s))
    n = every * max(1, round(WINDOW_S / BLOCK_S))
    low, high = (round((s - tokens.origin_s) / tokens.token_s) for s in span_s)
    first = np.arange(max(0, low), min(tokens.n_tokens, high) - n + 1, n)
    first = present_firsts(pair, clock, first, n, 0.25)
    X, _, off_s = windows_along(pair, clock, first, n, finder.max_lag)
    score, lost = finder.hear(X, every=every)
    n_blocks = score.shape[1]
    own_s = tokens.token_s * np.arange(-finder.max_lag, finder.max_lag + 1, dtype=np.float64)
    lag_s = np.arange(
        np.floor((off_s.min() + own_s[0]) / STEP_S), np.ceil((off_s.max() + own_s[-1]) / STEP_S) + 1
    )
    lag_s = STEP_S * lag_s
    out = np.empty((first.size, n_blocks, lag_s.size))
    for k, off in enumerate(off_s):
        out[k] = _placed(own_s, score[k], lag_s - off)
    start_s = tokens.origin_s + tokens.token_s * first
    time_s = start_s[:, None] + tokens.token_s * every * (np.arange(n_blocks) + 0.5)
    return LagEvidence(
        time_s.ravel(), lag_s, out.reshape(-1, lag_s.size), lost.ravel(), every * tokens.token_s
    )


def _placed(own_s: np.ndarray, score: np.ndarray, lag_s: np.ndarray) -> np.ndarray:
    """Scores (n, L) at other lags, cubic in between; outside, as low as the lowest."""
    place = (lag_s - own_s[0]) / (own_s[1] - own_s[0])
    inside = (place >= 0) & (place <= own_s.size - 1)
    below = np.clip(np.floor(place).astype(int), 0, own_s.size - 2)
    t = np.where(inside, place - below, 0.0)
    taps = (
        -0.5 * t + t**2 - 0.5 * t**3,
        1 - 2.5 * t**2 + 1.5 * t**3,
        0.5 * t + 2 * t**2 - 1.5 * t**3,
        -0.5 * t**2 + 0.5 * t**3,
    )
    out = sum(c * score[:, np.clip(below + k - 1, 0, own_s.size - 1)] for k, c in enumerate(taps))
    return np.where(inside, out, score.min(1, keepdims=True))


def heard_wrong(finder: LagEstimator, held: Windows) -> MismatchTest:
    """Best scores of held-back windows with their own other stream, and with that of other held-back moments."""
    tokens = held.tokens

    def best(X: Windows) -> FloatArray:
        score, lost = finder.hear(X, every=X.n_steps)
        return (score[:, 0].max(1) - lost[:, 0]).astype(np.float64)

    own = best(held)
    n = len(held)
    least = 2 * held.max_lag + held.n_steps
    wrong = []
    for k in range(1, N_WRONG + 1):
        partner = np.roll(np.arange(n), 1 + (k - 1) * max(1, (n - 1) // N_WRONG)) if n > 1 else np.arange(n)
        apart = held.first[partner] - held.first
        near = np.abs(apart) < least
        # Too near to be wrong: as far again, to whichever side there is room.
        apart = np.where(
            near, np.where(held.first + 2 * least < tokens.n_tokens, 2 * least, -2 * least), apart
        )
        shift = held.shift - (tokens.per_token * apart)[:, None, None]
        wrong.append(best(Windows(tokens, held.first, held.n_steps, held.max_lag, shift)))
    return MismatchTest(own, np.array(wrong))


def moved_by(fit: ClockFit, zero: tuple[float, float]) -> ClockFit:
    """The clock with its zero corrected, and the correction's error added to its own."""
    by, error = zero
    o, low, high = fit.offset_s
    half = float(np.hypot(0.5 * (high - low), error))
    return replace(
        fit,
        clock=ClockMap(fit.clock.a_s, fit.clock.b_s + by),
        offset_s=(o + by, o + by - half, o + by + half),
        half_width_s=float(np.hypot(fit.half_width_s, error)),
        rival_s=fit.rival_s + by,
    )


def zero_of(pair: SignalPair, clock: ClockMap, span_s: tuple[float, float]) -> tuple[float, float]:
    """Where along the clock each side is read from the other best, and half a 95 % interval of it, seconds.

    A network trained along a clock calls that clock zero, wherever it is. What zero means is settled here: the lag at
    which ridges from A to B and from B to A do best on held-out time, the mean of the two.
    """
    by_s, error_s = 0.0, 0.0
    # Once more around what was found: off the middle of its range the parabola leans.
    for _ in range(2):
        more_s, error_s = _zero_near(pair, ClockMap(clock.a_s, clock.b_s + by_s), span_s)
        by_s += more_s
    return by_s, error_s


def _zero_near(pair: SignalPair, clock: ClockMap, span_s: tuple[float, float]) -> tuple[float, float]:
    """The top of a parabola through all lags near the clock, and half a 95 % interval.

    Between bins tokens are smoothed as well as moved, and the single best lag follows that instead.
    """
    tokens = pair.tokens
    low, high = (round((s - tokens.origin_s) / tokens.token_s) for s in span_s)
    high = min(high, low + round(ZERO_SPAN_S / tokens.token_s), tokens.n_tokens)
    token = np.arange(max(0, low), high)
    lag_fine = clock.lag_s(tokens.origin_s + (token + 0.5) * tokens.token_s) / tokens.fine_s
    a, b = tokens.clocks
    sigma = 0.5 * SMOOTH_S / tokens.token_s

    def scaled(values: np.ndarray, there: np.ndarray) -> np.ndarray:
        smooth = gaussian_filter1d(values, sigma, axis=0)
        std = smooth[there].std(0) if there.any() else np.ones(values.shape[1])
        return np.where(there[:, None], smooth / np.where(std > 1e-9, std, np.inf), 0).astype(np.float32)

    own, own_there = a.gather(tokens.per_token * token[None], tokens.per_token)
    x_a = scaled(own[0], own_there[0])
    step = max(1, round(ZERO_STEP_S / tokens.fine_s))
    reach_s = max(ZERO_S, 2 * tokens.token_s)
    lags = step * np.arange(
        -round(reach_s / (step * tokens.fine_s)), round(reach_s / (step * tokens.fine_s)) + 1
    )
    along = np.rint(lag_fine).astype(np.int64)
    # Streams are moved by whole fine steps, which a clock that hardly runs off leaves on one side of it throughout.
    lags_s = tokens.fine_s * (lags.astype(np.float64) + float(np.mean(along - lag_fine)))
    n_parts = 4
    fold = np.arange(token.size) * N_FOLDS * n_parts // token.size
    found = np.zeros((2, n_parts, lags.size))
    keep = slice(None, None, max(1, round(0.04 / tokens.token_s)))
    for j, lag in enumerate(lags):
        at = tokens.per_token * token + along + lag
        other, there = b.gather(at[None], tokens.per_token)
        x_b = scaled(other[0], there[0])
        both = own_there[0] & there[0]
        for part in range(n_parts):
            rows = np.flatnonzero(both & (fold // N_FOLDS == part))[keep]
            if rows.size < 100:
                continue
            f = fold[rows] % N_FOLDS
            found[0, part, j] = held_out(x_b[rows], x_a[rows], f).max()
            found[1, part, j] = held_out(x_a[rows], x_b[rows], f).max()
    # Parts in which nothing was recorded have no say.
    heard = [p for p in range(n_parts) if found[:, p].any()]
    if not heard:
        return 0.0, reach_s
    peaks = np.array([_top(lags_s, side.sum(0)) for side in found])
    if len(heard) < 2:
        return float(peaks.mean()), reach_s
    each = np.array([np.mean([_top(lags_s, found[s, p]) for s in range(2)]) for p in heard])
    error = max(float(each.std(ddof=1)) / np.sqrt(len(heard)), abs(float(np.diff(peaks)[0])) / 4)
    return float(peaks.mean()), 2 * float(error)


def _top(lag_s: FloatArray, score: FloatArray) -> float:
    """Where the parabola closest to all scores is highest; the best lag where it has no top among them."""
    bend, slope, _ = np.polyfit(lag_s, score, 2)
    top = -0.5 * slope / bend if bend < 0 else np.inf
    return float(top) if lag_s[0] <= top <= lag_s[-1] else float(lag_s[score.argmax()])
