"""In: a `SignalPair`. Out: the lag at which a ridge reads one clock from the other best, and how much stands out.

Real clocks drift slowly (30 ppm is 4 ms in two minutes), so over a short stretch the lag is one number, and no aligned
stretch is needed to find it: for every lag of the range a ridge is fitted on most of the stretch and scored on the
rest. Whether the best lag is more than the best of so many tries is judged by the same search among lags at which the
two cannot belong together.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.fft import irfft, next_fast_len, rfft

from neurofuse.alignment.signal_pair import SmoothedPair, lag_grid
from neurofuse.recording import FloatArray

N_FOLDS = 4
# Penalties tried, as shares of the number of samples.
PENALTIES = (0.03, 0.3, 3.0)
# Searches among wrong lags.
N_FAKES = 8
# Share of a window that B must have been recorded in for it to say anything.
LEAST_KNOWN = 0.1


@dataclass(frozen=True, eq=False)
class Scan:
    """Held-out score of every lag.

    Parameters
    ----------
    lag_s : ndarray, shape (L,)
    score : ndarray, shape (L,)
        Share of the variance of A that B reads, on held-out time.
    fakes : ndarray, shape (N_FAKES,)
        Best scores of searches of the same width among wrong lags.
    """

    lag_s: FloatArray
    score: FloatArray
    fakes: FloatArray

    @property
    def best_s(self) -> float:
        """Lag of the best score, between grid points by a parabola."""
        k = int(self.score.argmax())
        return peak(self.lag_s, self.score) if 0 < k < self.score.size - 1 else float(self.lag_s[k])

    @property
    def surprise(self) -> float:
        """How far the best score lies above those of searches among wrong lags, in their standard deviations."""
        spread = max(float(self.fakes.std(ddof=1)), 0.1 * float(self.fakes.max()), 1e-3)
        return float((self.score.max() - self.fakes.mean()) / spread)


def peak(lag_s: FloatArray, score: FloatArray) -> float:
    """Top of the parabola through the best and the two beside it, at most a step from the middle one."""
    k = int(np.clip(score.argmax(), 1, score.size - 2))
    below, here, above = score[k - 1 : k + 2]
    bend = below - 2 * here + above
    part = 0.5 * (below - above) / bend if bend < 0 else 0.0
    return float(lag_s[k] + np.clip(part, -1, 1) * (lag_s[1] - lag_s[0]))


def scan(coarse: SmoothedPair, start: int, stop: int, *, max_lag_s: float, rng: np.random.Generator) -> Scan:
    """Scan the lag over the steps [start, stop) of A.

    Parameters
    ----------
    coarse : SmoothedPair
    start, stop : int
    max_lag_s : float
    rng : numpy Generator
        Draws the wrong lags.
    """
    lag_s = lag_grid(max_lag_s, coarse.step_s)
    half = lag_s.size // 2
    scores = _scores(coarse, start, stop, np.arange(-half, half + 1))
    # Wrong lags wrap around the end, where two ends meet that never did. They keep clear of the lags searched, which
    # come again a whole recording later.
    n, width = len(coarse), lag_s.size
    room = n - 3 * width
    if room >= width:
        centres = width + half + np.sort(rng.choice(room, size=N_FAKES, replace=room < N_FAKES))
    else:
        centres = np.linspace(2 * half, n - 2 * half, N_FAKES).astype(int)
    fakes = [_scores(coarse, start, stop, c + np.arange(-half, half + 1, 2)).max() for c in centres]
    return Scan(lag_s, scores, np.array(fakes))


def _scores(coarse: SmoothedPair, start: int, stop: int, lags: np.ndarray) -> FloatArray:
    """Held-out R2 at each lag, with the penalty that does best over all of them."""
    wanted, there = coarse.a[start:stop], coarse.a_there[start:stop]
    n = len(coarse)
    rows = np.arange(start, stop)
    fold = np.arange(stop - start) * N_FOLDS // max(1, stop - start)
    out = np.zeros((len(PENALTIES), lags.size))
    for j, lag in enumerate(lags):
        at = (rows + lag) % n
        both = there & coarse.b_there[at]
        if both.sum() < 50:
            continue
        x, y, f = coarse.b[at][both], wanted[both], fold[both]
        out[:, j] = held_out(x, y, f)
    return out[out.max(axis=1).argmax()]


def held_out(x: np.ndarray, y: np.ndarray, fold: np.ndarray) -> FloatArray:
    """Share of `y`'s square that a ridge on `x` reads on held-out folds (numbered in order), for each penalty."""
    edges = np.searchsorted(fold, np.arange(N_FOLDS + 1))
    parts = [slice(a, b) for a, b in pairwise(edges)]
    grams = [x[p].T @ x[p] for p in parts]
    moments = [x[p].T @ y[p] for p in parts]
    gram, moment = sum(grams), sum(moments)
    total = float(np.square(y).sum()) + 1e-12
    gained = np.zeros(len(PENALTIES))
    for own_gram, own_moment in zip(grams, moments, strict=True):
        rest = (gram - own_gram).astype(np.float64)
        loaded = rest + len(x) * np.asarray(PENALTIES)[:, None, None] * np.eye(len(rest))
        for k, w in enumerate(np.linalg.solve(loaded, (moment - own_moment).astype(np.float64))):
            gained[k] += 2 * float((w * own_moment).sum()) - float(((own_gram @ w) * w).sum())
    return gained / total


@dataclass(frozen=True, eq=False)
class RidgeReader:
    """A ridge that reads A's smoothed signals from B's, fitted along a lag."""

    weights: np.ndarray  # (n_components of B, n_components of A)

    @classmethod
    def fit(cls, coarse: SmoothedPair, lag_s: FloatArray, start: int, stop: int) -> RidgeReader:
        """Fit on the steps [start, stop) of A, whose lags are `lag_s`, NaN where B should not be used."""
        n = len(coarse)
        at = np.arange(start, stop) + np.rint(np.nan_to_num(lag_s) / coarse.step_s).astype(int)
        inside = (at >= 0) & (at < n) & np.isfinite(lag_s)
        at = np.clip(at, 0, n - 1)
        both = inside & coarse.a_there[start:stop] & coarse.b_there[at]
        x, y = coarse.b[at[both]], coarse.a[start:stop][both]
        gram = (x.T @ x).astype(np.float64)
        return cls(np.linalg.solve(gram + 0.3 * max(1, len(x)) * np.eye(len(gram)), x.T @ y))

    def curves(self, coarse: SmoothedPair, first: np.ndarray, n_steps: int, lags: np.ndarray) -> FloatArray:
        """Log evidence of every lag in windows that start at `first` of A, shape (n_windows, n_lags).

        -n/2 log(1 - r^2) for each component, r its correlation with what is read at that lag and n the number of
        independent looks: the logarithm of a profile likelihood under Gaussian signals.
        """
        said = (coarse.b @ self.weights).astype(np.float32)
        return correlation_evidence(coarse.a, said, coarse.look_s / coarse.step_s, first, n_steps, lags)


def correlation_evidence(
    a: np.ndarray, b: np.ndarray, apart: float, first: np.ndarray, n_steps: int, lags: np.ndarray
) -> FloatArray:
    """-n/2 sum log(1 - r^2) over columns, r the correlation where positive, of windows of `a` with `b` moved by lags.

    Parameters
    ----------
    a, b : ndarray, shape (n, n_columns)
        Zero where absent.
    apart : float
        Steps worth one independent look.
    first : ndarray of int, shape (n_windows,)
    lags : ndarray of int
        In steps, without gaps.
    """
    low, high = int(lags[0]), int(lags[-1])
    padded = np.pad(b, ((max(0, -low), max(0, high) + n_steps), (0, 0)))
    out = np.zeros((first.size, lags.size))
    power = np.concatenate(
        [np.zeros((1, b.shape[1])), np.cumsum(np.square(padded, dtype=np.float64), axis=0)]
    )
    # Where B is absent, looks are as many fewer, and a correlation of next to nothing is none.
    known = np.concatenate([[0], np.cumsum(padded.any(axis=1))])
    size = next_fast_len(n_steps + lags.size - 1, real=True)
    for k, f in enumerate(first):
        own = a[f : f + n_steps]
        begin = f + low + max(0, -low)
        near = padded[begin : begin + n_steps + lags.size - 1]
        spectrum = np.conj(rfft(own, size, axis=0)) * rfft(near, size, axis=0)
        product = irfft(spectrum, size, axis=0)[: lags.size]
        starts = begin + np.arange(lags.size)
        norm = np.sqrt(np.maximum(power[starts + n_steps] - power[starts], 0) * np.square(own).sum(0))
        share = (known[starts + n_steps] - known[starts]) / n_steps
        r = np.where(share[:, None] < LEAST_KNOWN, 0.0, np.clip(product / np.maximum(norm, 1e-9), 0, 0.999))
        looks = max(1.0, len(own) / apart) * share
        out[k] = -0.5 * looks * np.log1p(-(r**2)).sum(-1)
    return out
