"""In: predictions, lag posteriors and their targets. Out: R2, lag scores, and overlapping windows joined in time."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import r2_score

from neurofuse.recording import FloatArray

# A lag this near the truth is a hit, seconds; where tokens are longer, one within a token.
HIT_TOLERANCE_S = 0.05


def r2_per_axis(target: np.ndarray, prediction: np.ndarray) -> FloatArray:
    """R2 of each axis, over all tokens whose target is known.

    Parameters
    ----------
    target, prediction : ndarray, shape (..., n_axes)

    Returns
    -------
    ndarray, shape (n_axes,)
        NaN where fewer than two targets are known, or where a prediction at one of them is not a number.
    """
    known = np.isfinite(target).all(axis=-1)
    if known.sum() < 2 or not np.isfinite(prediction[known]).all():
        return np.full(target.shape[-1], np.nan)
    return np.asarray(r2_score(target[known], prediction[known], multioutput="raw_values"), dtype=np.float64)


def hit_tolerance_s(token_s: float, *, bandwidth_hz: float | None = None, lag_step_s: float = 0.0) -> float:
    """Largest distance (s) between a lag and the truth that is a hit: one token, and never less than 50 ms.

    Parameters
    ----------
    token_s : float
    bandwidth_hz : float, optional
        One-sided bandwidth B of what two clocks share. Lags within +-1/(2B) count as one, so that is the
        tolerance instead, and never less than half of `lag_step_s`, the step of the lag grid.
    """
    if bandwidth_hz is not None:
        return max(0.5 / bandwidth_hz, 0.5 * lag_step_s) + 1e-6
    return max(HIT_TOLERANCE_S, token_s) + 1e-6


def hits(lag_s: FloatArray, true_s: FloatArray, *, tolerance_s: float) -> np.ndarray:
    """Moments at which a lag lies within the tolerance of the truth, bool; False where no truth is known."""
    return np.asarray(np.abs(lag_s - true_s) <= tolerance_s)


def hit_rate(lag_s: FloatArray, true_s: FloatArray, *, tolerance_s: float) -> float:
    """Share of the moments with a known truth at which a lag is a hit; NaN where no truth is known."""
    known = np.isfinite(true_s)
    return float(hits(lag_s, true_s, tolerance_s=tolerance_s)[known].mean()) if known.any() else float("nan")


def lag_scores(
    true_s: FloatArray,
    path_s: FloatArray,
    mean_s: FloatArray,
    low_s: FloatArray,
    high_s: FloatArray,
    *,
    token_s: float,
    truth_step_s: float = 0.0,
) -> dict[str, float | None]:
    """Hit rate, error and coverage of an estimated lag, over the moments with a known truth.

    Parameters
    ----------
    true_s, path_s, mean_s, low_s, high_s : ndarray, one shape
        The true lag; the most probable path; mean and ends of the 90 % interval of the posterior.
    token_s : float
        Length of a token.
    truth_step_s : float
        Resolution of the truth: a lag injected into bins of 50 ms stands for the 50 ms around it, so an interval
        may hold it in part.

    Returns
    -------
    dict
        `lag_hit_rate`: `hit_rate` of the most probable path. `lag_median_abs_error_s`: of the posterior mean.
        `lag_coverage_90`: how often the 90 % interval holds the truth. All None where no truth is known.
    """
    known = np.isfinite(true_s)
    if not known.any():
        return {"lag_hit_rate": None, "lag_median_abs_error_s": None, "lag_coverage_90": None}
    error_s = np.abs(mean_s - true_s)[known]
    inside = share_inside(true_s, low_s, high_s, truth_step_s)[known]
    return {
        "lag_hit_rate": hit_rate(path_s, true_s, tolerance_s=hit_tolerance_s(token_s)),
        "lag_median_abs_error_s": float(np.median(error_s)),
        "lag_coverage_90": float(inside.mean()),
    }


def share_inside(
    true_s: FloatArray, low_s: FloatArray, high_s: FloatArray, truth_step_s: float
) -> FloatArray:
    """Share of the `truth_step_s` around each true lag that lies between the ends of an interval."""
    half = truth_step_s / 2
    if half <= 0:
        return ((true_s >= low_s) & (true_s <= high_s)).astype(np.float64)
    shared = np.minimum(high_s, true_s + half) - np.maximum(low_s, true_s - half)
    return np.clip(shared / truth_step_s, 0, 1)


def stitch(first: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Join overlapping windows into one series: a weighted mean in which the middle of a window counts most.

    Parameters
    ----------
    first : ndarray of int, shape (n_windows,)
        First token of each window.
    values : ndarray, shape (n_windows, n_steps, ...)

    Returns
    -------
    token : ndarray of int, shape (n,)
        Tokens covered by a window, in order.
    joined : ndarray, shape (n, ...)
    window : ndarray of int, shape (n,)
        For each token the window with the largest weight.
    """
    n_steps = values.shape[1]
    weight = np.minimum(np.arange(n_steps) + 1, n_steps - np.arange(n_steps)).astype(np.float64)
    index = first[:, None] + np.arange(n_steps)
    token, inverse = np.unique(index, return_inverse=True)
    inverse = inverse.reshape(index.shape)
    total = np.zeros((token.size, *values.shape[2:]))
    norm, most, window = np.zeros(token.size), np.zeros(token.size), np.zeros(token.size, dtype=np.int64)
    shape = (n_steps, *[1] * (values.ndim - 2))
    for k, places in enumerate(inverse):
        total[places] += weight.reshape(shape) * values[k]
        norm[places] += weight
        better = weight > most[places]
        window[places[better]] = k
        most[places] = np.maximum(most[places], weight)
    return token, total / norm.reshape(-1, *shape[1:]), window


def posterior_summary(posterior: np.ndarray, lag_s: FloatArray) -> dict[str, FloatArray]:
    """Mean, spread, quantiles, mode and entropy of lag posteriors, shape (..., n_lags) -> (...).

    A lag of the grid stands for the interval around it, so quantiles are read off a piecewise linear
    distribution function and never fall short of half a grid step.
    """
    step = float(lag_s[1] - lag_s[0]) if lag_s.size > 1 else 0.0
    p = posterior.astype(np.float64)
    p = p / p.sum(axis=-1, keepdims=True)
    mean = p @ lag_s
    variance = p @ lag_s**2 - mean**2 + step**2 / 12
    return {
        "lag_mean_s": mean,
        "lag_std_s": np.sqrt(np.maximum(variance, 0)),
        "lag_q05_s": posterior_quantile(p, lag_s, 0.05),
        "lag_q95_s": posterior_quantile(p, lag_s, 0.95),
        "lag_map_s": lag_s[p.argmax(axis=-1)],
        "entropy": -(p * np.log(np.maximum(p, 1e-300))).sum(axis=-1),
    }


def posterior_quantile(posterior: np.ndarray, lag_s: FloatArray, level: float) -> FloatArray:
    """Lag below which a share `level` of each posterior lies, shape (..., n_lags) -> (...)."""
    step = float(lag_s[1] - lag_s[0]) if lag_s.size > 1 else 0.0
    edges = np.concatenate([lag_s - step / 2, [lag_s[-1] + step / 2]])
    cdf = np.concatenate([np.zeros((*posterior.shape[:-1], 1)), np.cumsum(posterior, axis=-1)], axis=-1)
    above = np.clip((cdf < level).sum(axis=-1), 1, edges.size - 1)
    low = np.take_along_axis(cdf, above[..., None] - 1, -1)[..., 0]
    high = np.take_along_axis(cdf, above[..., None], -1)[..., 0]
    share = np.clip((level - low) / np.maximum(high - low, 1e-12), 0, 1)
    return edges[above - 1] + share * (edges[above] - edges[above - 1])
