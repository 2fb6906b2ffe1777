"""In: tokens of a recording, clean and jittered. Out: what one clock tells of another's lag, and when too little.

By the law of `neurofuse.theory` a lag is told as long as A = sqrt(2 T sum of coherence over frequency and dimension)
is what its criterion needs. The coherence is measured between the clocks' features, on the recording as the jitter
left it, so nothing need be known of how spikes and field come about. It is an estimate from one recording: on five
minutes of a simulated band of 5 Hz it scatters by a sixth around the level that the law gives for the true SNR.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from neurofuse.recording import FloatArray, NeurofuseError
from neurofuse.theory.critical import Criterion, critical_correlation
from neurofuse.tokens import ClockTokens, Tokens

# The lag is right in half of the windows.
CRITERION: Criterion = "half_hit"
# Pairs of directions that are looked at; a movement and what drives it have a few.
N_PAIRS = 6
# Weights are found on tokens averaged over this many, for most of what clocks share is slower than a token.
SMOOTH_TOKENS = 3
# Share of the mean variance added to every direction before whitening.
SHRINK = 0.02
# Length of the segments spectra are taken from, seconds: 0.5 Hz apart.
SEGMENT_S = 2.0
# Pairings of segments that do not belong together, which say how much coherence chance makes.
N_NULL = 12
# Frequencies count to the bandwidth where coherence stands this many standard errors above chance.
SURE = 3.0
# Levels at which the coherence is measured, each this much above the one before.
STEP = 2.0


@dataclass(frozen=True)
class Coherence:
    """What two clocks tell of the lag between them.

    Parameters
    ----------
    per_s : float
        Sum over frequency (two-sided) and dimension of coherence above chance, 1/s: of T seconds, T times as much.
    bandwidth_hz : float
        One-sided bandwidth B of what they share; NaN where nothing stands above chance.
    shared : ndarray of bool, shape (n_frequencies,)
        Where the coherence stands above chance.
    """

    per_s: float
    bandwidth_hz: float
    shared: np.ndarray = field(repr=False)

    def amplitude(self, window_s: float) -> float:
        """Signal-to-noise A of a lag after one window."""
        return float(np.sqrt(max(self.per_s, 0.0) * window_s))


def amplitude_needed(bandwidth_hz: float, *, window_s: float, max_lag_s: float) -> float:
    """A at which the criterion is just met; NaN where no A meets it, so few lags being told apart."""
    if not np.isfinite(bandwidth_hz):
        return float("nan")
    sizes = {"bandwidth_hz": bandwidth_hz, "window_s": window_s, "range_s": 2 * max_lag_s}
    try:
        return critical_correlation(CRITERION, **sizes)
    except NeurofuseError:
        return float("nan")


def evidence(tokens: Tokens, *, shared: np.ndarray | None = None) -> Coherence:
    """Measure the coherence between the anchor and the first other clock.

    Directions are found on one half of the recording (canonical correlations, shrunk) and coherence is measured on the
    other, both ways; what mismatched segments show is taken off. Frequencies are summed over where it stands above
    chance here, or where `shared` says that it did on a cleaner recording.
    """
    x, y = _both(tokens)
    half = len(x) // 2
    found, sure = [], []
    n_segment = max(8, round(SEGMENT_S / tokens.token_s))
    for fit, test in ((slice(0, half), slice(half, None)), (slice(half, None), slice(0, half))):
        to_x, to_y = _directions(x[fit], y[fit])
        u, v = _spectra(x[test] @ to_x, n_segment), _spectra(y[test] @ to_y, n_segment)
        null = np.stack([_coherence(u, np.roll(v, k, axis=0)) for k in _shifts(len(u))])
        found.append(_coherence(u, v) - null.mean(axis=0))
        sure.append(null.std(axis=0))
    excess = np.mean(found, axis=0)[1:]
    error = np.sqrt(np.mean(np.square(sure), axis=0) / 2)[1:]
    step_hz = 1 / (n_segment * tokens.token_s)
    above = excess > SURE * error
    seen = excess[above]
    width_hz = step_hz * seen.sum() ** 2 / (seen**2).sum() if seen.size else np.nan
    counted = above if shared is None else shared
    return Coherence(float(2 * step_hz * excess[counted].sum()), float(width_hz), above)


def critical_level(
    tokens_at: Callable[[float], Tokens],
    *,
    largest: float,
    window_s: float,
    max_lag_s: float,
    n_steps: int = 10,
) -> tuple[float, Coherence]:
    """The level at which a window tells the lag in half of the cases, and what the clean recording tells.

    Parameters
    ----------
    tokens_at : callable
        Level -> tokens of the recording jittered so; at 0, as it is.
    largest : float
        Where to stop looking; the search begins `STEP` to the power of `n_steps` - 1 below.
    window_s, max_lag_s : float
        Integration time T, and the search range, W = 2 * max_lag_s.

    Returns
    -------
    level : float
        Interpolated in the logarithms; NaN where the clean recording tells too little, or the largest level still
        tells enough.
    clean : Coherence
    """
    clean = evidence(tokens_at(0.0))
    needed = amplitude_needed(clean.bandwidth_hz, window_s=window_s, max_lag_s=max_lag_s)
    if not clean.amplitude(window_s) > needed:
        return float("nan"), clean
    before, level_before = clean.amplitude(window_s), 0.0
    for level in largest * STEP ** np.arange(1 - n_steps, 1.0):
        now = max(evidence(tokens_at(float(level)), shared=clean.shared).amplitude(window_s), 1e-3)
        if now <= needed:
            if level_before == 0.0:
                return float(level), clean
            share = np.log(before / needed) / np.log(before / now)
            return float(level_before * (level / level_before) ** share), clean
        before, level_before = now, float(level)
    return float("nan"), clean


def _both(tokens: Tokens) -> tuple[FloatArray, FloatArray]:
    """Features of two clocks at every token that both recorded, in standard units."""
    begin = tokens.per_token * np.arange(tokens.n_tokens)[None]

    def of(clock: ClockTokens) -> tuple[np.ndarray, np.ndarray]:
        values, present = clock.gather(begin, tokens.per_token)
        return values[0].astype(np.float64), present[0]

    (x, has_x), (y, has_y) = of(tokens.clocks[0]), of(tokens.clocks[1])
    there = has_x & has_y

    def scaled(rows: FloatArray) -> FloatArray:
        rows = rows - rows.mean(axis=0)
        std = rows.std(axis=0)
        return rows[:, std > 0] / std[std > 0]

    return scaled(x[there]), scaled(y[there])


def _directions(x: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Weights of the pairs of directions that correlate most."""
    kernel = np.ones(SMOOTH_TOKENS) / SMOOTH_TOKENS

    def slow(rows: FloatArray) -> FloatArray:
        return np.apply_along_axis(np.convolve, 0, rows, kernel, "valid")

    def whitener(rows: FloatArray) -> FloatArray:
        cov = rows.T @ rows / len(rows)
        value, vector = np.linalg.eigh(cov + SHRINK * np.trace(cov) / len(cov) * np.eye(len(cov)))
        return (vector / np.sqrt(value)) @ vector.T

    x, y = slow(x), slow(y)
    white_x, white_y = whitener(x), whitener(y)
    left, _, right = np.linalg.svd(white_x @ (x.T @ y / len(x)) @ white_y)
    n = min(N_PAIRS, left.shape[1], right.shape[0])
    return white_x @ left[:, :n], white_y @ right[:n].T


def _spectra(rows: FloatArray, n_segment: int) -> np.ndarray:
    """Spectra of half-overlapping tapered segments, shape (n_segments, n_frequencies, n_series)."""
    first = np.arange(0, max(len(rows) - n_segment, 0) + 1, max(1, n_segment // 2))
    cut = rows[np.minimum(first[:, None] + np.arange(n_segment), len(rows) - 1)]
    cut = cut - cut.mean(axis=1, keepdims=True)
    return np.fft.rfft(cut * np.hanning(n_segment)[None, :, None], axis=1)


def _coherence(u: np.ndarray, v: np.ndarray) -> FloatArray:
    """Squared canonical coherences summed over dimensions, at every frequency."""

    def density(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.einsum("sfi,sfj->fij", a, b.conj()) / len(a)

    def solid(s: np.ndarray) -> np.ndarray:
        n = s.shape[-1]
        return s + (1e-9 + 1e-6 * np.trace(s, axis1=1, axis2=2).real / n)[:, None, None] * np.eye(n)

    uv = density(u, v)
    explained = np.linalg.solve(solid(density(u, u)), uv) @ np.linalg.solve(
        solid(density(v, v)), uv.conj().swapaxes(1, 2)
    )
    return np.trace(explained, axis1=1, axis2=2).real


def _shifts(n_segments: int) -> np.ndarray:
    """Shifts by many segments, in which nothing that belongs together overlaps."""
    low = min(6, n_segments // 4)
    return np.unique(np.linspace(low, max(n_segments - low, low), N_NULL).astype(int))
