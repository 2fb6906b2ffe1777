"""In: log-likelihoods of lags in windows of a session. Out: the posterior of the lag at every moment, as a table."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import xarray as xr
from scipy.interpolate import make_interp_spline

from neurofuse.alignment.clock_map import NEAR_S, ClockFit, ClockMap
from neurofuse.config import AlignConfig
from neurofuse.lag.hmm import LagGrid, LagPrior
from neurofuse.lag.session import track_session
from neurofuse.recording import FloatArray
from neurofuse.scores import posterior_summary
from neurofuse.variables import labelled

# Lags of the baselines are interpolated to this step, seconds.
FINE_LAG_S = 0.01
# Most rows of the table.
MAX_ROWS = 4000


@dataclass(frozen=True, eq=False)
class LagEvidence:
    """Log-likelihoods of lags in N windows of a session.

    Parameters
    ----------
    time_s : ndarray, shape (N,)
        Middle of each window, on A.
    lag_s : ndarray, shape (G,)
        Evenly spaced.
    log_lik : ndarray, shape (N, G)
        Log-likelihood of each lag.
    unmatched : ndarray, shape (N,)
        Log-likelihood of streams that do not match, on the same scale.
    window_s : float
        Length of a window, seconds.
    zero_error_s : float
        Half of a 95 % interval of the zero of the lag axis, an error that all windows share.
    """

    time_s: FloatArray
    lag_s: FloatArray
    log_lik: FloatArray
    unmatched: FloatArray
    window_s: float
    zero_error_s: float = 0.0

    @property
    def windows_per_row(self) -> int:
        """Windows that are merged into a row of the table."""
        return max(1, -(-len(self.time_s) // MAX_ROWS))

    def merged(self, n: int) -> LagEvidence:
        """Log-likelihoods of `n` neighbouring windows added up, the last of what is left."""
        if n == 1:
            return self
        edges = np.arange(0, len(self.time_s), n)
        return replace(
            self,
            time_s=np.add.reduceat(self.time_s, edges) / np.diff(np.append(edges, len(self.time_s))),
            log_lik=np.add.reduceat(self.log_lik, edges),
            unmatched=np.add.reduceat(self.unmatched, edges),
            window_s=n * self.window_s,
        )


@dataclass(frozen=True, eq=False)
class MismatchTest:
    """Scores of N windows as recorded, and paired with streams of other moments.

    Parameters
    ----------
    own : ndarray, shape (N,)
    mismatched : ndarray, shape (K, N)
        K mismatched pairs per window.
    """

    own: FloatArray
    mismatched: FloatArray

    @property
    def z_score(self) -> float:
        """Difference of the means of own and mismatched windows, in standard errors.

        Scores are ranked first, so that a few windows with very high scores do not decide.
        """
        n = self.own.size
        scores = np.concatenate([self.own, self.mismatched.ravel()])
        ranks = np.argsort(np.argsort(scores)) / scores.size
        difference = ranks[:n] - ranks[n:].reshape(self.mismatched.shape).mean(0)
        # With few windows, no less than the variance of a uniform rank.
        error = np.sqrt(max(float(np.var(difference)), 1 / 24) / n)
        return float(difference.mean() / error)


@dataclass(frozen=True, eq=False)
class SessionFit:
    """A clock fitted to a session, the evidence it was fitted to, and a test of that evidence."""

    evidence: LagEvidence
    fit: ClockFit
    test: MismatchTest


def on_finer_lags(
    lag_s: FloatArray, log_lik: FloatArray, step_s: float = FINE_LAG_S
) -> tuple[FloatArray, FloatArray]:
    """A finer grid of lags, and log-likelihoods there by cubic interpolation."""
    n = max(1, round(float(lag_s[1] - lag_s[0]) / step_s))
    fine_s = lag_s[0] + (lag_s[1] - lag_s[0]) / n * np.arange((lag_s.size - 1) * n + 1)
    return fine_s, make_interp_spline(lag_s, log_lik, k=3, axis=1)(fine_s)


def track(
    evidence: LagEvidence, config: AlignConfig, *, adapt: bool
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Times (N,) of the rows of the table, the posterior of the lag (N, G), and of matched streams (N,).

    Drift and jumps of the lag are those of the configuration; with `adapt` they are estimated from the session, with a
    prior around those.
    """
    rows = evidence.merged(evidence.windows_per_row)
    grid = LagGrid(rows.window_s, float(rows.lag_s[1] - rows.lag_s[0]))
    prior = LagPrior.from_seconds(grid, drift=config.drift, jumps=config.jumps, skew_ppm=config.skew_ppm)
    posterior, p_matched = track_session(
        rows.log_lik,
        rows.unmatched,
        row_s=grid.block_s,
        lag_step_s=grid.lag_step_s,
        drift=None if prior.drift is None else grid.drift_s(prior.drift),
        jumps=config.jumps,
        adapt=adapt,
    )
    return rows.time_s, posterior, p_matched


def lag_summary(posterior: FloatArray, lag_s: FloatArray, *, zero_error_s: float) -> dict[str, np.ndarray]:
    """`posterior_summary`, its 90 % intervals widened by an error of the zero that all moments share."""
    found = posterior_summary(posterior, lag_s)
    # Both errors are independent, so their squares add up; 1.64 standard errors for the 1.96 of a 95 % interval.
    half_s = 0.5 * (found["lag_q95_s"] - found["lag_q05_s"])
    more_s = np.hypot(half_s, 0.84 * zero_error_s) - half_s
    return found | {"lag_q05_s": found["lag_q05_s"] - more_s, "lag_q95_s": found["lag_q95_s"] + more_s}


def follow_posterior(evidence: LagEvidence, fit: ClockFit, config: AlignConfig) -> ClockFit:
    """The clock along the posterior mean, linear where the streams do not match."""
    time_s, posterior, p_matched = track(evidence, config, adapt=True)
    matched = p_matched >= 0.5
    if matched.sum() < 2:
        return fit
    found = posterior_summary(posterior, evidence.lag_s)
    span_s = float(fit.clock.a_s[0]), float(fit.clock.a_s[-1])
    clock = ClockMap.through(
        time_s[matched], found["lag_mean_s"][matched], skew_ppm=fit.skew_ppm[0], span_s=span_s
    )
    # From a 90 % interval to a 95 % one. Before the first match it is as wide as the prior drift makes it.
    width = 1.19 / 2 * (found["lag_q95_s"] - found["lag_q05_s"])
    start_s = float(clock.lag_s(span_s[0]))
    return replace(
        fit,
        clock=clock,
        offset_s=(start_s, start_s - float(width[0]), start_s + float(width[0])),
        jumps=(),
        half_width_s=float(np.quantile(width[matched], 0.9)),
    )


def lag_table(
    evidence: LagEvidence,
    fit: ClockFit,
    clocks: tuple[str, str],
    config: AlignConfig,
    *,
    adapt: bool = False,
) -> xr.Dataset:
    """The lag posterior of the second of two clocks along a session, and the lag of the fitted clock."""
    time_s, posterior, p_matched = track(evidence, config, adapt=adapt)
    found = lag_summary(posterior, evidence.lag_s, zero_error_s=evidence.zero_error_s)
    fitted_s = fit.clock.lag_s(time_s)
    near = np.abs(evidence.lag_s - fitted_s[:, None]) <= NEAR_S
    agrees = (posterior * near).sum(1) >= 0.5
    columns = {
        **{k: found[k] for k in ("lag_mean_s", "lag_q05_s", "lag_q95_s", "lag_map_s")},
        "p_matched": p_matched,
        "fitted_lag_s": fitted_s,
        "trusted": ((p_matched >= 0.5) & (agrees | adapt)).astype(np.int8),
    }
    table = xr.Dataset(
        {name: (("clock", "time"), np.asarray(v)[None]) for name, v in columns.items()}
        | {"posterior": (("clock", "time", "lag"), posterior[None].astype(np.float32))},
        coords={"clock": [clocks[1]], "time": time_s, "lag": evidence.lag_s},
        attrs={
            "reference": clocks[0],
            "token_s": float(evidence.window_s * evidence.windows_per_row),
            "half_width_s": fit.half_width_s,
        },
    )
    return labelled(table)
