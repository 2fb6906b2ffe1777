"""In: a `SignalPair` and a first clock. Out: log-likelihoods of lags along the session, and the clock fitted to them.

Training windows follow the first clock, which need not be exact: its constant error shifts the zero of the lag axis,
which is estimated afterwards, and its varying errors average out over the session and show up in the estimates.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.ndimage import gaussian_filter1d

from neurofuse.alignment.clock_map import ClockFit, ClockMap, fit_clock
from neurofuse.alignment.lag_estimator import LagEstimator
from neurofuse.alignment.lag_evidence import LagEvidence, MismatchTest, SessionFit, follow_posterior
from neurofuse.alignment.ridge_scan import N_FOLDS, cross_validated_r2
from neurofuse.alignment.signal_pair import SMOOTH_S, SignalPair
from neurofuse.config import AlignConfig, ClockModel
from neurofuse.errors import NeurofuseError
from neurofuse.jitters.jitter import TRUTH_STEP_S, LagTruth
from neurofuse.lag.banded import cubic_taps
from neurofuse.recording import FloatArray
from neurofuse.windows import EDGE_TOKENS, Windows

# Length of a window and of a block, whose lag is estimated, seconds; blocks per window that the clock is fitted to.
NET_WINDOW_S, BLOCK_S, BLOCKS = 3.2, 0.8, 5
# One stretch in so many is kept for validation, and its length, seconds.
ONE_IN, TRAIN_STRETCH_S = 4, 20.0
# Smallest share of a window that both clocks recorded, in training and in estimation.
TRAIN_PRESENT, ESTIMATE_PRESENT = 0.8, 0.25
# Most gradient steps where nothing is given.
ALIGN_STEPS = 400
# Step of the lag grid, seconds.
STEP_S = 0.005
# Mismatched partners of each validation window.
N_PAIRINGS = 5
# Skews searched around that of the first clock.
WITHIN_PPM = 400.0
# The zero of the lag axis is estimated by a ridge at these lags around the clock, over so much of the session.
ZERO_S, ZERO_STEP_S, ZERO_SPAN_S = 0.08, 0.01, 900.0


def fit_self_supervised(
    pair: SignalPair,
    start: ClockFit,
    config: AlignConfig,
    *,
    span_s: tuple[float, float],
    progress: bool = False,
) -> SessionFit:
    """Train along a first clock, estimate the lag along the whole session, fit a clock.

    Parameters
    ----------
    pair : SignalPair
    start : ClockFit
        The first clock.
    config : AlignConfig
    span_s : tuple of float
        Start and stop of A, seconds.
    """
    # The first clock has local errors where the clock wanders, and a network reproduces the errors of its training
    # windows: each stretch is estimated by a network that was trained on the others.
    free = config.model == "free"
    turns = range(ONE_IN) if free else (ONE_IN - 1,)
    parts, tests = [], []
    for turn in turns:
        estimator, validation = train_along(
            pair,
            start.clock,
            search_s=config.search_s,
            span_s=span_s,
            n_steps=config.n_steps or ALIGN_STEPS,
            device=config.device,
            validation_turn=turn,
            seed=config.seed,
            progress=progress,
        )
        parts.append(session_evidence(estimator, pair, start.clock, span_s=span_s))
        tests.append(mismatch_test(estimator, validation))
    test = MismatchTest(
        np.concatenate([t.own for t in tests]), np.concatenate([t.mismatched for t in tests], axis=1)
    )
    blocks = parts[0]
    if len(parts) > 1:
        token = np.rint((blocks.time_s - pair.tokens.origin_s) / pair.tokens.token_s).astype(np.int64)
        turn_of = _stretches(pair, span_s).of(token)[0] % ONE_IN
        blocks = replace(
            blocks,
            log_lik=np.choose(turn_of[:, None], [p.log_lik for p in parts]),
            unmatched=np.choose(turn_of, [p.unmatched for p in parts]),
        )
    fit = _fit(blocks, start, config.model, span_s)
    if free:
        fit = follow_posterior(blocks, fit, config)
    zero = estimate_zero(pair, fit.clock, span_s)
    return SessionFit(
        replace(blocks, lag_s=blocks.lag_s + zero[0], zero_error_s=zero[1]), shifted(fit, zero), test
    )


def _fit(blocks: LagEvidence, start: ClockFit, model: ClockModel, span_s: tuple[float, float]) -> ClockFit:
    windows = blocks.merged(BLOCKS)
    return fit_clock(
        windows.time_s,
        windows.log_lik,
        windows.lag_s,
        model=model,
        span_s=span_s,
        around_ppm=start.skew_ppm[0] if model != "offset" else 0.0,
        within_ppm=WITHIN_PPM,
        fine=(blocks.time_s, blocks.log_lik),
    )


def windows_along(
    pair: SignalPair, clock: ClockMap, first: np.ndarray, n_steps: int, max_lag: int
) -> Windows:
    """Windows whose B is moved back by the clock's lag at their middles; what is left of that lag is their truth."""
    tokens = pair.tokens
    width = n_steps + 2 * (max_lag + EDGE_TOKENS)
    shift = -offsets_along(pair, clock, first, n_steps)
    n = int(np.ceil(tokens.n_tokens * tokens.token_s / TRUTH_STEP_S)) + 1
    time_s = tokens.origin_s + TRUTH_STEP_S * np.arange(n, dtype=np.float64)
    truth = LagTruth(pair.clocks[1], time_s, clock.lag_s(time_s), "the first clock")
    return Windows(
        tokens,
        first,
        n_steps,
        max_lag,
        np.broadcast_to(shift[:, None, None], (first.size, width, 1)).copy(),
        truths=(truth,),
    )


def offsets_along(pair: SignalPair, clock: ClockMap, first: np.ndarray, n_steps: int) -> np.ndarray:
    """The clock's lag at the middle of windows, in whole fine steps, shape (n_windows,)."""
    tokens = pair.tokens
    middle_s = tokens.origin_s + (first + 0.5 * n_steps) * tokens.token_s
    return np.rint(clock.lag_s(middle_s) / tokens.fine_s).astype(np.int64)


def recorded_by_both(
    pair: SignalPair, clock: ClockMap, first: np.ndarray, n_steps: int, least: float
) -> np.ndarray:
    """First tokens of those windows of which A, and B along the clock, recorded at least a share `least`."""
    per = pair.tokens.per_token
    a, b = pair.tokens.clocks
    stop = len(a.cover) - 1

    def share(cover: FloatArray, at: np.ndarray) -> FloatArray:
        low, high = np.clip(at, 0, stop), np.clip(at + n_steps * per, 0, stop)
        return (cover[high] - cover[low]) / (n_steps * per)

    on_b = first * per + offsets_along(pair, clock, first, n_steps)
    return first[np.minimum(share(a.cover, first * per), share(b.cover, on_b)) >= least]


@dataclass(frozen=True)
class _Stretches:
    """Stretches of a session, for training or for validation.

    Parameters
    ----------
    low, high : int
        First token, and the one after the last.
    length : int
        Tokens per stretch.
    window : int
        Tokens per window.
    """

    low: int
    high: int
    length: int
    window: int

    def of(self, token: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Number of the stretch of each token, and the token's place in it."""
        return (token - self.low) // self.length, (token - self.low) % self.length

    def split(self, first: np.ndarray, turn: int, gap: int) -> tuple[np.ndarray, np.ndarray]:
        """First tokens of the training windows, and of the validation windows.

        Validation stretches are every `ONE_IN`th from `turn`; training windows keep a distance of `gap` tokens.
        """
        number, place = self.of(first)
        in_validation = number % ONE_IN == turn
        before, after = (number + 1) % ONE_IN == turn, (number - 1) % ONE_IN == turn
        clear = ~before | (place + self.window <= self.length - gap)
        clear &= ~after | (number == 0) | (place >= gap)
        inside = place + self.window <= self.length
        return first[~in_validation & clear], first[in_validation & inside]


def _stretches(pair: SignalPair, span_s: tuple[float, float]) -> _Stretches:
    tokens = pair.tokens
    low, high = _token_span(pair, span_s)
    window = max(8, round(NET_WINDOW_S / tokens.token_s))
    length = min(round(TRAIN_STRETCH_S / tokens.token_s), max(2 * window, (high - low) // (2 * ONE_IN)))
    return _Stretches(low, high, length, window)


def _token_span(pair: SignalPair, span_s: tuple[float, float]) -> tuple[int, int]:
    low, high = (round((s - pair.tokens.origin_s) / pair.tokens.token_s) for s in span_s)
    return low, high


def train_along(
    pair: SignalPair,
    clock: ClockMap,
    *,
    search_s: float,
    span_s: tuple[float, float],
    n_steps: int = ALIGN_STEPS,
    device: str = "auto",
    validation_turn: int = ONE_IN - 1,
    seed: int = 0,
    progress: bool = False,
) -> tuple[LagEstimator, Windows]:
    """A network trained on three of four stretches of the session, and windows of the fourth, side by side.

    `validation_turn` is the first of the stretches that are kept for validation.
    """
    tokens = pair.tokens
    stretches = _stretches(pair, span_s)
    n = stretches.window
    max_lag = max(1, int(np.ceil(search_s / tokens.token_s - 1e-6)))
    last = min(tokens.n_tokens, stretches.high) - n
    first = np.arange(max(0, stretches.low), last + 1, max(1, n // 4))
    first = recorded_by_both(pair, clock, first, n, TRAIN_PRESENT)
    # As far as B can be moved.
    gap = min(max_lag + EDGE_TOKENS, stretches.length // 4)
    train, validation = stretches.split(first, validation_turn, gap)
    if train.size < 4 or validation.size < 2:
        raise NeurofuseError(
            f"the two clocks share too little to learn from ({train.size} windows of {NET_WINDOW_S:g} s to train on, "
            f"{validation.size} for validation); give a longer recording or --method ridge."
        )
    estimator = LagEstimator(n_steps=n_steps, seed=seed, device=device, progress=progress)
    estimator.fit(
        windows_along(pair, clock, train, n, max_lag),
        validation=windows_along(pair, clock, validation, n, max_lag),
    )
    apart = [int(validation[0])]
    for f in validation[1:]:
        if f - apart[-1] >= n:
            apart.append(int(f))
    return estimator, windows_along(pair, clock, np.array(apart), n, max_lag)


def session_evidence(
    estimator: LagEstimator, pair: SignalPair, clock: ClockMap, *, span_s: tuple[float, float]
) -> LagEvidence:
    """Log-likelihoods of lags in blocks along the whole session, on one grid of lags."""
    tokens = pair.tokens
    every = max(1, round(BLOCK_S / tokens.token_s))
    n = every * max(1, round(NET_WINDOW_S / BLOCK_S))
    low, high = _token_span(pair, span_s)
    first = np.arange(max(0, low), min(tokens.n_tokens, high) - n + 1, n)
    first = recorded_by_both(pair, clock, first, n, ESTIMATE_PRESENT)
    max_lag = estimator.max_lag_
    offset_s = tokens.fine_s * offsets_along(pair, clock, first, n).astype(np.float64)
    log_lik, unmatched = estimator.log_lik(windows_along(pair, clock, first, n, max_lag), every=every)
    n_blocks = log_lik.shape[1]
    own_s = tokens.token_s * np.arange(-max_lag, max_lag + 1, dtype=np.float64)
    begin = np.floor((offset_s.min() + own_s[0]) / STEP_S)
    lag_s = STEP_S * np.arange(begin, np.ceil((offset_s.max() + own_s[-1]) / STEP_S) + 1)
    out = np.empty((first.size, n_blocks, lag_s.size))
    for k, offset in enumerate(offset_s):
        out[k] = _at_lags(own_s, log_lik[k], lag_s - offset)
    start_s = tokens.origin_s + tokens.token_s * first
    time_s = start_s[:, None] + tokens.token_s * every * (np.arange(n_blocks) + 0.5)
    return LagEvidence(
        time_s.ravel(), lag_s, out.reshape(-1, lag_s.size), unmatched.ravel(), every * tokens.token_s
    )


def _at_lags(own_s: np.ndarray, log_lik: np.ndarray, lag_s: np.ndarray) -> np.ndarray:
    """Log-likelihoods (n, L) at other lags, cubic (Catmull-Rom) in between; outside, the minimum."""
    place = (lag_s - own_s[0]) / (own_s[1] - own_s[0])
    inside = (place >= 0) & (place <= own_s.size - 1)
    below = np.clip(np.floor(place).astype(int), 0, own_s.size - 2)
    t = np.where(inside, place - below, 0.0)
    out = sum(c * log_lik[:, np.clip(below + k - 1, 0, own_s.size - 1)] for k, c in enumerate(cubic_taps(t)))
    return np.where(inside, out, log_lik.min(1, keepdims=True))


def mismatch_test(estimator: LagEstimator, validation: Windows) -> MismatchTest:
    """Best scores of validation windows as recorded, and with B of other validation windows."""
    tokens = validation.tokens

    def best(X: Windows) -> FloatArray:
        log_lik, unmatched = estimator.log_lik(X, every=X.n_steps)
        return (log_lik[:, 0].max(1) - unmatched[:, 0]).astype(np.float64)

    n = len(validation)
    least = 2 * validation.max_lag + validation.n_steps
    mismatched = []
    for k in range(1, N_PAIRINGS + 1):
        partner = np.roll(np.arange(n), 1 + (k - 1) * max(1, (n - 1) // N_PAIRINGS))
        apart = validation.first[partner] - validation.first
        # A partner within the range of lags is replaced by one at twice its width, on the side with room.
        has_room = validation.first + 2 * least < tokens.n_tokens
        apart = np.where(np.abs(apart) < least, np.where(has_room, 2 * least, -2 * least), apart)
        shift = validation.shift - (tokens.per_token * apart)[:, None, None]
        mismatched.append(best(replace(validation, shift=shift)))
    return MismatchTest(best(validation), np.array(mismatched))


def shifted(fit: ClockFit, zero: tuple[float, float]) -> ClockFit:
    """The clock with its zero corrected, and the error of the correction added to its own."""
    by, error = zero
    o, low, high = fit.offset_s
    half = float(np.hypot(0.5 * (high - low), error))
    return replace(
        fit,
        clock=ClockMap(fit.clock.a_s, fit.clock.b_s + by),
        offset_s=(o + by, o + by - half, o + by + half),
        half_width_s=float(np.hypot(fit.half_width_s, error)),
        second_best_s=fit.second_best_s + by,
    )


def estimate_zero(pair: SignalPair, clock: ClockMap, span_s: tuple[float, float]) -> tuple[float, float]:
    """Lag around the clock at which each side is best predicted from the other, and half a 95 % interval, seconds.

    The zero of a network's lag axis is the clock it was trained along, whatever that is. The zero is therefore defined
    here: the lag at which ridges from A to B and from B to A have the best cross-validated R2, the mean of the two.
    """
    by_s, error_s = 0.0, 0.0
    # Repeated around the first estimate: the parabola is biased when its top is off the middle of the range.
    for _ in range(2):
        more_s, error_s = _zero_near(pair, ClockMap(clock.a_s, clock.b_s + by_s), span_s)
        by_s += more_s
    return by_s, error_s


def _zero_near(pair: SignalPair, clock: ClockMap, span_s: tuple[float, float]) -> tuple[float, float]:
    """The top of a parabola through the scores of all lags near the clock, and half a 95 % interval.

    The single best lag would be biased: between bins tokens are smoothed as well as moved.
    """
    tokens = pair.tokens
    n_parts, fine_step = 4, max(1, round(ZERO_STEP_S / tokens.fine_s))
    reach_s = max(ZERO_S, 2 * tokens.token_s)
    n = round(reach_s / (fine_step * tokens.fine_s))
    lags = fine_step * np.arange(-n, n + 1)
    lags_s, r2 = _r2_around(pair, clock, span_s, lags, n_parts)
    # Parts without data do not count.
    parts = [p for p in range(n_parts) if r2[:, p].any()]
    if not parts:
        return 0.0, reach_s
    peaks = np.array([_top(lags_s, side.sum(0)) for side in r2])
    if len(parts) < 2:
        return float(peaks.mean()), reach_s
    each = np.array([np.mean([_top(lags_s, side[p]) for side in r2]) for p in parts])
    error = max(float(each.std(ddof=1)) / np.sqrt(len(parts)), abs(float(np.diff(peaks)[0])) / 4)
    return float(peaks.mean()), 2 * float(error)


def _r2_around(
    pair: SignalPair, clock: ClockMap, span_s: tuple[float, float], lags: np.ndarray, n_parts: int
) -> tuple[FloatArray, FloatArray]:
    """Lags around the clock, and R2 from B to A and from A to B in parts of the session, (2, n_parts, n_lags)."""
    tokens = pair.tokens
    low, high = _token_span(pair, span_s)
    high = min(high, low + round(ZERO_SPAN_S / tokens.token_s), tokens.n_tokens)
    token = np.arange(max(0, low), high)
    lag_fine = clock.lag_s(tokens.origin_s + (token + 0.5) * tokens.token_s) / tokens.fine_s
    along = np.rint(lag_fine).astype(np.int64)
    # Streams are moved by whole fine steps; with little skew the rounding has one sign throughout.
    lags_s = tokens.fine_s * (lags.astype(np.float64) + float(np.mean(along - lag_fine)))
    sigma = 0.5 * SMOOTH_S / tokens.token_s

    def scaled(side: int, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        values, present = (x[0] for x in tokens.clocks[side].gather(at[None], tokens.per_token))
        smooth = gaussian_filter1d(values, sigma, axis=0)
        std = smooth[present].std(0) if present.any() else np.ones(values.shape[1])
        z = np.where(present[:, None], smooth / np.where(std > 1e-9, std, np.inf), 0).astype(np.float32)
        return z, present

    fold = np.arange(token.size) * N_FOLDS * n_parts // token.size
    # Smoothed tokens are redundant.
    keep = slice(None, None, max(1, round(0.04 / tokens.token_s)))
    x_a, a_present = scaled(0, tokens.per_token * token)
    r2 = np.zeros((2, n_parts, lags.size))
    for j, lag in enumerate(lags):
        x_b, b_present = scaled(1, tokens.per_token * token + along + lag)
        both = a_present & b_present
        for part in range(n_parts):
            rows = np.flatnonzero(both & (fold // N_FOLDS == part))[keep]
            if rows.size < 100:
                continue
            f = fold[rows] % N_FOLDS
            r2[0, part, j] = cross_validated_r2(x_b[rows], x_a[rows], f).max()
            r2[1, part, j] = cross_validated_r2(x_a[rows], x_b[rows], f).max()
    return lags_s, r2


def _top(lag_s: FloatArray, score: FloatArray) -> float:
    """Top of the least-squares parabola through all scores; the best lag if that lies outside."""
    bend, slope, _ = np.polyfit(lag_s, score, 2)
    top = -0.5 * slope / bend if bend < 0 else np.inf
    return float(top) if lag_s[0] <= top <= lag_s[-1] else float(lag_s[score.argmax()])
