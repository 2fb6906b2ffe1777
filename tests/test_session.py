"""A lag that drifts and jumps through a whole session is tracked, whatever made its log-likelihoods."""

import numpy as np
import pytest

from neurofuse.errors import NeurofuseError
from neurofuse.lag.session import track_session

STEP_S = 0.01
N_LAGS = 41


def session(row_s, *, drift, seconds=600.0, height=2.0, seed=0):
    """Log-likelihoods of a lag that walks, in rows; the lag in seconds, and the rows without a match."""
    rng = np.random.default_rng(seed)
    n = round(seconds / row_s)
    lag_s = np.cumsum(drift * np.sqrt(row_s) * rng.standard_normal(n))
    limit = STEP_S * (N_LAGS // 2 - 1)
    lag_s = limit - np.abs((lag_s + limit) % (4 * limit) - 2 * limit)  # reflected at both ends
    matched = np.ones(n, bool)
    matched[n // 2 : n // 2 + n // 10] = False
    score = rng.normal(size=(n, N_LAGS))
    rows = np.flatnonzero(matched)
    score[rows, np.rint(lag_s[rows] / STEP_S).astype(int) + N_LAGS // 2] += height
    return height * score - height**2 / 2, lag_s, matched


@pytest.mark.parametrize("row_s", [0.2, 0.8])
@pytest.mark.parametrize("adapt", [False, True])
def test_a_walk_is_tracked_at_its_own_drift(row_s, adapt):
    log_lik, lag_s, matched = session(row_s, drift=0.01)
    p_lag, p_matched = track_session(
        log_lik, np.zeros(len(log_lik)), row_s=row_s, lag_step_s=STEP_S, drift=0.01, jumps=1e-3, adapt=adapt
    )
    np.testing.assert_allclose(p_lag.sum(1), 1, atol=1e-5)
    grid_s = STEP_S * (np.arange(N_LAGS) - N_LAGS // 2)
    error_s = (p_lag @ grid_s - lag_s)[matched]
    single = grid_s[log_lik.argmax(1)] - lag_s
    assert np.sqrt(np.mean(error_s**2)) < 0.012
    assert np.sqrt(np.mean(error_s**2)) < 0.3 * np.sqrt(np.mean(single[matched] ** 2))
    assert p_matched[matched].mean() > 0.9
    assert p_matched[~matched].mean() < 0.3


def test_a_drift_that_was_assumed_far_too_small_is_corrected_by_the_session():
    log_lik, lag_s, matched = session(0.2, drift=0.03)
    grid_s = STEP_S * (np.arange(N_LAGS) - N_LAGS // 2)

    def error_s(**more):
        p_lag, _ = track_session(
            log_lik, np.zeros(len(log_lik)), row_s=0.2, lag_step_s=STEP_S, jumps=1e-4, **more
        )
        return np.sqrt(np.mean((p_lag @ grid_s - lag_s)[matched] ** 2))

    right = error_s(drift=0.03)
    assert error_s(drift=0.002) > 1.5 * right
    assert error_s(drift=0.002, adapt=True) < 1.1 * right


def test_the_default_is_half_a_lag_step_per_row_and_a_jump_in_a_thousand_rows():
    log_lik, _, _ = session(0.8, drift=0.01)
    unmatched = np.zeros(len(log_lik))
    by_default = track_session(log_lik, unmatched, row_s=0.8, lag_step_s=STEP_S)
    given = track_session(
        log_lik,
        unmatched,
        row_s=0.8,
        lag_step_s=STEP_S,
        drift=0.5 * STEP_S / np.sqrt(0.8),
        jumps=1e-3 / 0.8,
    )
    for a, b in zip(by_default, given, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_drift_beyond_the_grid_is_refused():
    with pytest.raises(
        NeurofuseError, match=r"drift=0\.5 moves the lag by 44\.7 steps of 0\.01 s per block of 0\.8 s"
    ):
        track_session(np.zeros((5, N_LAGS)), np.zeros(5), row_s=0.8, lag_step_s=STEP_S, drift=0.5)
