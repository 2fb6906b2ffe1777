"""In: tokens of a recording, clean and jittered. Out: coherence between its clocks, and the predicted critical level.

By the law of `neurofuse.theory` a lag is found as long as A = sqrt(2 T sum of coherence over frequency and dimension)
reaches the value that the criterion requires. The coherence is measured between features of the clocks on the jittered
recording itself, so no model of how spikes and field arise is needed. It is an estimate from one recording: on five
minutes of a simulated band of 5 Hz it scatters by a sixth around the level that the law gives for the true SNR.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from neurofuse.errors import NeurofuseError
from neurofuse.recording import FloatArray
from neurofuse.theory.critical import Criterion, critical_correlation
from neurofuse.tokens import ClockTokens, Tokens

# The lag is correct in half of the windows.
HIT_CRITERION: Criterion = "half_hit"
# Largest number of canonical directions; a movement and its drive have a few.
N_DIRECTIONS = 6
# Directions are estimated on moving averages of this many tokens: most of the shared signal is slower than a token.
SMOOTH_TOKENS = 3
# Fraction of the mean variance added to every direction before whitening.
SHRINKAGE = 0.02
# Length of the segments of which spectra are estimated, seconds: 0.5 Hz resolution.
SEGMENT_S = 2.0
# Mismatched pairings of segments, which estimate the coherence expected by chance.
N_SHIFTED = 12
# A frequency counts where its coherence is this many standard errors above chance.
N_ERRORS = 3.0
# Ratio of successive levels at which the coherence is measured.
LEVEL_RATIO = 2.0


def integration_time_s(window_s: float, *, context_s: float = 0.0) -> float:
    """Integration time T of one lag: the window, and the context on both sides that a decoder reads as well, seconds.

    The only definition of T. A study predicts one level for decoders whose contexts differ, so it counts the window
    alone, which all of them read. `benchmarks.critical_level` predicts for decoders of one context, and counts it.
    """
    return window_s + 2 * context_s


@dataclass(frozen=True)
class Coherence:
    """Coherence between two clocks, which determines how well the lag between them can be estimated.

    Parameters
    ----------
    per_s : float
        Sum over frequency (two-sided) and dimension of coherence above chance, 1/s: A^2 per second of integration.
    bandwidth_hz : float
        One-sided bandwidth B of the shared signal; NaN where no frequency is above chance.
    shared : ndarray of bool, shape (n_frequencies,)
        Frequencies at which the coherence is above chance.
    """

    per_s: float
    bandwidth_hz: float
    shared: np.ndarray = field(repr=False)

    def amplitude(self, integration_s: float) -> float:
        """Signal-to-noise ratio A of a lag after that integration time."""
        return float(np.sqrt(max(self.per_s, 0.0) * integration_s))


def required_amplitude(bandwidth_hz: float, *, integration_s: float, max_lag_s: float) -> float:
    """A at which the criterion is met; NaN where none meets it because too few lags are distinguishable."""
    if not np.isfinite(bandwidth_hz):
        return float("nan")
    sizes = {"bandwidth_hz": bandwidth_hz, "window_s": integration_s, "range_s": 2 * max_lag_s}
    try:
        return critical_correlation(HIT_CRITERION, **sizes)
    except NeurofuseError:
        return float("nan")


def measure_coherence(tokens: Tokens, *, shared: np.ndarray | None = None) -> Coherence:
    """Measure the coherence between the anchor and the first other clock.

    Directions are estimated on one half of the recording (canonical correlations, shrunk) and coherence on the other,
    both ways; the coherence of mismatched segments is subtracted.

    Parameters
    ----------
    tokens : Tokens
        Of two clocks or more.
    shared : ndarray of bool, shape (n_frequencies,), optional
        Frequencies to sum over, from a cleaner recording; by default those above chance in this one.
    """
    x, y = _standardised_features(tokens)
    half = len(x) // 2
    excess, spread = [], []
    n_segment = max(8, round(SEGMENT_S / tokens.token_s))
    for fit, test in ((slice(0, half), slice(half, None)), (slice(half, None), slice(0, half))):
        to_x, to_y = _directions(x[fit], y[fit])
        u, v = _spectra(x[test] @ to_x, n_segment), _spectra(y[test] @ to_y, n_segment)
        chance = np.stack([_coherence(u, np.roll(v, k, axis=0)) for k in _shifts(len(u))])
        excess.append(_coherence(u, v) - chance.mean(axis=0))
        spread.append(chance.std(axis=0))
    mean = np.mean(excess, axis=0)[1:]
    error = np.sqrt(np.mean(np.square(spread), axis=0) / 2)[1:]
    step_hz = 1 / (n_segment * tokens.token_s)
    above = mean > N_ERRORS * error
    peak = mean[above]
    width_hz = step_hz * peak.sum() ** 2 / (peak**2).sum() if peak.size else np.nan
    counted = above if shared is None else shared
    return Coherence(float(2 * step_hz * mean[counted].sum()), float(width_hz), above)


def predict_critical_level(
    tokens_at: Callable[[float], Tokens],
    *,
    largest: float,
    window_s: float,
    max_lag_s: float,
    n_steps: int = 10,
) -> tuple[float, Coherence]:
    """Level of a jitter at which the lag is predicted to be correct in half of the windows.

    Parameters
    ----------
    tokens_at : callable
        Level -> tokens of the recording jittered at that level; at 0, of the clean recording.
    largest : float
        Largest level measured; the smallest is `largest / LEVEL_RATIO ** (n_steps - 1)`.
    window_s, max_lag_s : float
        Length of a window, see `integration_time_s`, and the largest lag searched: W = 2 * max_lag_s.

    Returns
    -------
    level : float
        Interpolated in logarithms; NaN where A of the clean recording is too low, or still high enough at the largest
        level.
    clean : Coherence
        Of the clean recording.
    """
    integration_s = integration_time_s(window_s)
    clean = measure_coherence(tokens_at(0.0))
    required = required_amplitude(clean.bandwidth_hz, integration_s=integration_s, max_lag_s=max_lag_s)
    if not clean.amplitude(integration_s) > required:
        return float("nan"), clean
    before, level_before = clean.amplitude(integration_s), 0.0
    for level in largest * LEVEL_RATIO ** np.arange(1 - n_steps, 1.0):
        jittered = measure_coherence(tokens_at(float(level)), shared=clean.shared)
        now = max(jittered.amplitude(integration_s), 1e-3)
        if now <= required:
            if level_before == 0.0:
                return float(level), clean
            share = np.log(before / required) / np.log(before / now)
            return float(level_before * (level / level_before) ** share), clean
        before, level_before = now, float(level)
    return float("nan"), clean


def _standardised_features(tokens: Tokens) -> tuple[FloatArray, FloatArray]:
    """Features of two clocks at every token recorded on both, (n_tokens, n_features) each, mean 0 and variance 1."""
    begin = tokens.per_token * np.arange(tokens.n_tokens)[None]

    def features_of(clock: ClockTokens) -> tuple[np.ndarray, np.ndarray]:
        values, present = clock.gather(begin, tokens.per_token)
        return values[0].astype(np.float64), present[0]

    (x, has_x), (y, has_y) = (features_of(clock) for clock in tokens.clocks[:2])
    both = has_x & has_y

    def standardised(rows: FloatArray) -> FloatArray:
        rows = rows - rows.mean(axis=0)
        std = rows.std(axis=0)
        return rows[:, std > 0] / std[std > 0]

    return standardised(x[both]), standardised(y[both])


def _directions(x: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Weights of the pairs of directions with the largest canonical correlations, (n_features, n_directions) each."""
    kernel = np.ones(SMOOTH_TOKENS) / SMOOTH_TOKENS

    def smoothed(rows: FloatArray) -> FloatArray:
        return np.apply_along_axis(np.convolve, 0, rows, kernel, "valid")

    def whitener(rows: FloatArray) -> FloatArray:
        cov = rows.T @ rows / len(rows)
        value, vector = np.linalg.eigh(cov + SHRINKAGE * np.trace(cov) / len(cov) * np.eye(len(cov)))
        return (vector / np.sqrt(value)) @ vector.T

    x, y = smoothed(x), smoothed(y)
    white_x, white_y = whitener(x), whitener(y)
    left, _, right = np.linalg.svd(white_x @ (x.T @ y / len(x)) @ white_y)
    n = min(N_DIRECTIONS, left.shape[1], right.shape[0])
    return white_x @ left[:, :n], white_y @ right[:n].T


def _spectra(rows: FloatArray, n_segment: int) -> np.ndarray:
    """Spectra of half-overlapping tapered segments, shape (n_segments, n_frequencies, n_series)."""
    first = np.arange(0, max(len(rows) - n_segment, 0) + 1, max(1, n_segment // 2))
    segments = rows[np.minimum(first[:, None] + np.arange(n_segment), len(rows) - 1)]
    segments = segments - segments.mean(axis=1, keepdims=True)
    return np.fft.rfft(segments * np.hanning(n_segment)[None, :, None], axis=1)


def _coherence(u: np.ndarray, v: np.ndarray) -> FloatArray:
    """Squared canonical coherences summed over dimensions, at every frequency."""

    def density(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.einsum("sfi,sfj->fij", a, b.conj()) / len(a)

    def regularised(s: np.ndarray) -> np.ndarray:
        n = s.shape[-1]
        return s + (1e-9 + 1e-6 * np.trace(s, axis1=1, axis2=2).real / n)[:, None, None] * np.eye(n)

    uv = density(u, v)
    explained = np.linalg.solve(regularised(density(u, u)), uv) @ np.linalg.solve(
        regularised(density(v, v)), uv.conj().swapaxes(1, 2)
    )
    return np.trace(explained, axis1=1, axis2=2).real


def _shifts(n_segments: int) -> np.ndarray:
    """Shifts by so many segments that simultaneous ones never overlap."""
    low = min(6, n_segments // 4)
    return np.unique(np.linspace(low, max(n_segments - low, low), N_SHIFTED).astype(int))
