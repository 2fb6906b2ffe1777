"""In: evidence about the lag along a session. Out: what is believed of it at every moment, as a table."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import xarray as xr
from scipy.interpolate import make_interp_spline

from neurofuse.alignment.clock_map import NEAR_S, ClockFit, ClockMap
from neurofuse.lag.session import track_session
from neurofuse.recording import FloatArray
from neurofuse.scores import posterior_summary
from neurofuse.variables import labelled

# Baselines' lags are told this finely, seconds.
FINER_S = 0.01
# At most so many moments are kept in the table.
MOST_ROWS = 4000


@dataclass(frozen=True, eq=False)
class LagEvidence:
    """What windows of a session say about the lag.

    Parameters
    ----------
    time_s : ndarray, shape (N,)
        Their middles, on A.
    lag_s : ndarray, shape (G,)
        Evenly spaced.
    score : ndarray, shape (N, G)
        Log-likelihood of each lag.
    lost : ndarray, shape (N,)
        Log-likelihood of no match, on the same scale.
    window_s : float
    zero_error_s : float
        Half of a 95 % interval of what all of them call zero.
    """

    time_s: FloatArray
    lag_s: FloatArray
    score: FloatArray
    lost: FloatArray
    window_s: float
    zero_error_s: float = 0.0


@dataclass(frozen=True, eq=False)
class MismatchTest:
    """The best score of windows as recorded, and of windows put together wrongly.

    Parameters
    ----------
    own : ndarray, shape (N,)
    other : ndarray, shape (K, N)
        K ways to put each window together wrongly.
    """

    own: FloatArray
    other: FloatArray

    @property
    def surprise(self) -> float:
        """How far the mean of the first lies above that of the second, in standard errors.

        The scores are turned into ranks first, so that a few windows of huge evidence do not decide.
        """
        n = self.own.size
        ranks = np.argsort(np.argsort(np.concatenate([self.own, self.other.ravel()]))) / (n + self.other.size)
        mine, theirs = ranks[:n], ranks[n:].reshape(self.other.shape).mean(0)
        # The variance of a uniform rank, in case windows are few.
        error = np.sqrt(max(float(np.var(mine - theirs)), 1 / 24) / n)
        return float((mine - theirs).mean() / error)


def on_finer_lags(
    lag_s: FloatArray, score: FloatArray, step_s: float = FINER_S
) -> tuple[FloatArray, FloatArray]:
    """LagEvidence interpolated (cubic) to a finer grid of lags."""
    n = max(1, round(float(lag_s[1] - lag_s[0]) / step_s))
    fine_s = lag_s[0] + (lag_s[1] - lag_s[0]) / n * np.arange((lag_s.size - 1) * n + 1)
    return fine_s, make_interp_spline(lag_s, score, k=3, axis=1)(fine_s)


def tracked(heard: LagEvidence, *, free: bool) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Times (N,), the lag posterior there (N, G), and that of a match (N,); neighbours are merged if too many."""
    every = _merged(heard)
    score, lost, time_s = heard.score, heard.lost, heard.time_s
    if every > 1:
        edges = np.arange(0, len(time_s), every)
        score, lost = np.add.reduceat(score, edges), np.add.reduceat(lost, edges)
        time_s = np.add.reduceat(time_s, edges) / np.diff(np.append(edges, len(time_s)))
    row_s, lag_step_s = every * heard.window_s, float(heard.lag_s[1] - heard.lag_s[0])
    return (time_s, *track_session(score, lost, row_s=row_s, lag_step_s=lag_step_s, adapt=free))


def _merged(heard: LagEvidence) -> int:
    """How many neighbours become one row of the table."""
    return max(1, -(-len(heard.time_s) // MOST_ROWS))


def lag_summary(posterior: FloatArray, lag_s: FloatArray, *, zero_error_s: float) -> dict[str, np.ndarray]:
    """`posterior_summary`, its 90 % intervals widened by the error of a zero that all moments share."""
    found = posterior_summary(posterior, lag_s)
    # Both errors are independent, so their squares add up; 1.64 standard errors for the 1.96 of a 95 % interval.
    half_s = 0.5 * (found["lag_q95_s"] - found["lag_q05_s"])
    more_s = np.hypot(half_s, 0.84 * zero_error_s) - half_s
    return found | {"lag_q05_s": found["lag_q05_s"] - more_s, "lag_q95_s": found["lag_q95_s"] + more_s}


def follow_posterior(heard: LagEvidence, fit: ClockFit) -> ClockFit:
    """The clock that follows the posterior wherever it goes, straight where it is not to be trusted."""
    time_s, posterior, match = tracked(heard, free=True)
    sure = match >= 0.5
    if sure.sum() < 2:
        return fit
    found = posterior_summary(posterior, heard.lag_s)
    span_s = float(fit.clock.a_s[0]), float(fit.clock.a_s[-1])
    clock = ClockMap.through(time_s[sure], found["lag_mean_s"][sure], skew_ppm=fit.skew_ppm[0], span_s=span_s)
    # From a 90 % interval to a 95 % one. Where nothing was heard yet it is as wide as the lag may have drifted.
    width = 1.19 / 2 * (found["lag_q95_s"] - found["lag_q05_s"])
    start_s = float(clock.lag_s(span_s[0]))
    return replace(
        fit,
        clock=clock,
        offset_s=(start_s, start_s - float(width[0]), start_s + float(width[0])),
        jumps=(),
        half_width_s=float(np.quantile(width[sure], 0.9)),
    )


def lag_table(
    heard: LagEvidence, fit: ClockFit, clock: str, reference: str, *, free: bool = False
) -> xr.Dataset:
    """The lag posterior of one clock along a session, and the fitted clock beside it."""
    time_s, posterior, match = tracked(heard, free=free)
    found = lag_summary(posterior, heard.lag_s, zero_error_s=heard.zero_error_s)
    fitted = fit.clock.lag_s(time_s)
    near = np.abs(heard.lag_s - fitted[:, None]) <= NEAR_S
    agrees = (posterior * near).sum(1) >= 0.5
    columns = {
        **{k: found[k] for k in ("lag_mean_s", "lag_q05_s", "lag_q95_s", "lag_map_s")},
        "p_matched": match,
        "fitted_lag_s": fitted,
        "trusted": ((match >= 0.5) & (agrees | free)).astype(np.int8),
    }
    table = xr.Dataset(
        {name: (("clock", "time"), np.asarray(v)[None]) for name, v in columns.items()}
        | {"posterior": (("clock", "time", "lag"), posterior[None].astype(np.float32))},
        coords={"clock": [clock], "time": time_s, "lag": heard.lag_s},
        attrs={
            "reference": reference,
            "token_s": float(heard.window_s * _merged(heard)),
            "half_width_s": fit.half_width_s,
        },
    )
    return labelled(table)
