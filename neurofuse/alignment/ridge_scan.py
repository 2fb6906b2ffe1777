"""In: a `SignalPair`. Out: the lag at which a ridge predicts one clock from the other best, and its z-score.

Real clocks drift slowly (30 ppm is 4 ms in two minutes), so over a short stretch the lag is one number, and no aligned
stretch is needed to find it: for every lag of the range a ridge is fitted on most of the stretch and scored on the
rest. The best score is compared with the best of the same search among lags at which the two clocks cannot match.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.fft import irfft, next_fast_len, rfft

from neurofuse.alignment.signal_pair import SmoothedPair, lag_grid
from neurofuse.recording import FloatArray

N_FOLDS = 4
# Ridge penalties, as shares of the number of samples.
SCAN_PENALTIES = (0.03, 0.3, 3.0)
# Searches among wrong lags.
N_NULL = 8
# Smallest share of a window in which B was recorded, for a correlation to count.
MIN_PRESENT = 0.1


@dataclass(frozen=True, eq=False)
class Scan:
    """Cross-validated score of every lag.

    Parameters
    ----------
    lag_s : ndarray, shape (L,)
    score : ndarray, shape (L,)
        R2 of A predicted from B.
    null : ndarray, shape (N_NULL,)
        Best scores of searches of the same width among wrong lags.
    """

    lag_s: FloatArray
    score: FloatArray
    null: FloatArray

    @property
    def best_s(self) -> float:
        """Lag of the best score, between grid points by a parabola."""
        k = int(self.score.argmax())
        return peak(self.lag_s, self.score) if 0 < k < self.score.size - 1 else float(self.lag_s[k])

    @property
    def z_score(self) -> float:
        """The best score relative to the searches among wrong lags, in their standard deviations."""
        spread = max(float(self.null.std(ddof=1)), 0.1 * float(self.null.max()), 1e-3)
        return float((self.score.max() - self.null.mean()) / spread)


def peak(lag_s: FloatArray, score: FloatArray) -> float:
    """Top of the parabola through the best score and its two neighbours, at most a step from the best."""
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
    # Wrong lags wrap around the end, clear of the lags searched, which recur after the length of the recording.
    n, width = len(coarse), lag_s.size
    room = n - 3 * width
    if room >= width:
        centres = width + half + np.sort(rng.choice(room, size=N_NULL, replace=room < N_NULL))
    else:
        centres = np.linspace(2 * half, n - 2 * half, N_NULL).astype(int)
    null = [_scores(coarse, start, stop, c + np.arange(-half, half + 1, 2)).max() for c in centres]
    return Scan(lag_s, scores, np.array(null))


def _scores(coarse: SmoothedPair, start: int, stop: int, lags: np.ndarray) -> FloatArray:
    """Cross-validated R2 at each lag, with the penalty that is best over all lags."""
    target, present = coarse.a[start:stop], coarse.a_present[start:stop]
    n = len(coarse)
    rows = np.arange(start, stop)
    fold = np.arange(stop - start) * N_FOLDS // max(1, stop - start)
    out = np.zeros((len(SCAN_PENALTIES), lags.size))
    for j, lag in enumerate(lags):
        at = (rows + lag) % n
        both = present & coarse.b_present[at]
        if both.sum() < 50:
            continue
        out[:, j] = cross_validated_r2(coarse.b[at][both], target[both], fold[both])
    return out[out.max(axis=1).argmax()]


def cross_validated_r2(x: np.ndarray, y: np.ndarray, fold: np.ndarray) -> FloatArray:
    """Share of the square of `y` that a ridge on `x` explains across folds (numbered in order), for each penalty."""
    edges = np.searchsorted(fold, np.arange(N_FOLDS + 1))
    parts = [slice(a, b) for a, b in pairwise(edges)]
    grams = [x[p].T @ x[p] for p in parts]
    moments = [x[p].T @ y[p] for p in parts]
    gram, moment = sum(grams), sum(moments)
    total = float(np.square(y).sum()) + 1e-12
    gained = np.zeros(len(SCAN_PENALTIES))
    for own_gram, own_moment in zip(grams, moments, strict=True):
        rest = (gram - own_gram).astype(np.float64)
        loaded = rest + len(x) * np.asarray(SCAN_PENALTIES)[:, None, None] * np.eye(len(rest))
        for k, w in enumerate(np.linalg.solve(loaded, (moment - own_moment).astype(np.float64))):
            gained[k] += 2 * float((w * own_moment).sum()) - float(((own_gram @ w) * w).sum())
    return gained / total


@dataclass(frozen=True, eq=False)
class RidgePredictor:
    """A ridge that predicts the smoothed signals of A from those of B, fitted along a lag."""

    weights: np.ndarray  # (n_components of B, n_components of A)

    @classmethod
    def fit(cls, coarse: SmoothedPair, lag_s: FloatArray, start: int, stop: int) -> RidgePredictor:
        """Fit on the steps [start, stop) of A, whose lags are `lag_s`; those with NaN are left out."""
        n = len(coarse)
        at = np.arange(start, stop) + np.rint(np.nan_to_num(lag_s) / coarse.step_s).astype(int)
        inside = (at >= 0) & (at < n) & np.isfinite(lag_s)
        at = np.clip(at, 0, n - 1)
        both = inside & coarse.a_present[start:stop] & coarse.b_present[at]
        x, y = coarse.b[at[both]], coarse.a[start:stop][both]
        gram = (x.T @ x).astype(np.float64)
        return cls(np.linalg.solve(gram + 0.3 * max(1, len(x)) * np.eye(len(gram)), x.T @ y))

    def log_lik(self, coarse: SmoothedPair, first: np.ndarray, n_steps: int, lags: np.ndarray) -> FloatArray:
        """Log-likelihood of every lag in windows that start at `first` of A, shape (n_windows, n_lags).

        See `correlation_log_lik`, of the components of A with their predictions.
        """
        predicted = (coarse.b @ self.weights).astype(np.float32)
        return correlation_log_lik(
            coarse.a, predicted, coarse.independent_s / coarse.step_s, first, n_steps, lags
        )


def correlation_log_lik(
    a: np.ndarray, b: np.ndarray, steps_per_sample: float, first: np.ndarray, n_steps: int, lags: np.ndarray
) -> FloatArray:
    """-n/2 sum log(1 - r^2) over columns, r the correlation where positive, of windows of `a` with `b` moved by lags.

    With n the number of independent samples this is the profile log-likelihood of Gaussian signals.

    Parameters
    ----------
    a, b : ndarray, shape (n, n_columns)
        Zero where absent.
    steps_per_sample : float
        Steps per independent sample.
    first : ndarray of int, shape (n_windows,)
    n_steps : int
        Length of a window.
    lags : ndarray of int, shape (n_lags,)
        In steps, without gaps.

    Returns
    -------
    ndarray, shape (n_windows, n_lags)
    """
    low, high = int(lags[0]), int(lags[-1])
    padded = np.pad(b, ((max(0, -low), max(0, high) + n_steps), (0, 0)))
    out = np.zeros((first.size, lags.size))
    power = np.concatenate(
        [np.zeros((1, b.shape[1])), np.cumsum(np.square(padded, dtype=np.float64), axis=0)]
    )
    # Where B is absent there are fewer samples; below a minimum the correlation is set to zero.
    present = np.concatenate([[0], np.cumsum(padded.any(axis=1))])
    size = next_fast_len(n_steps + lags.size - 1, real=True)
    for k, f in enumerate(first):
        own = a[f : f + n_steps]
        begin = f + low + max(0, -low)
        near = padded[begin : begin + n_steps + lags.size - 1]
        spectrum = np.conj(rfft(own, size, axis=0)) * rfft(near, size, axis=0)
        product = irfft(spectrum, size, axis=0)[: lags.size]
        starts = begin + np.arange(lags.size)
        norm = np.sqrt(np.maximum(power[starts + n_steps] - power[starts], 0) * np.square(own).sum(0))
        share = (present[starts + n_steps] - present[starts]) / n_steps
        r = np.where(share[:, None] < MIN_PRESENT, 0.0, np.clip(product / np.maximum(norm, 1e-9), 0, 0.999))
        n_samples = max(1.0, len(own) / steps_per_sample) * share
        out[k] = -0.5 * n_samples * np.log1p(-(r**2)).sum(-1)
    return out
