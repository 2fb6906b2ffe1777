"""In: a recording with two clocks. Out: an `Alignment`, the map between them from the signals alone, or a refusal.

A lag scan over the first minutes gives the start, a ridge carries it through the session, and a network is trained
along that first clock, on windows moved by known lags, to estimate the lag of any window. A clock is fitted to its
estimates, and is accepted only if windows as recorded score higher than mismatched windows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NoReturn

import numpy as np

from neurofuse.alignment.baselines import (
    SERIES_LOG_LIK,
    pulse_clock,
    pulse_evidence,
    pulses_of,
    refine_on_pulses,
    summed,
)
from neurofuse.alignment.clock_map import ClockFit, ClockMap, fit_clock
from neurofuse.alignment.lag_evidence import (
    LagEvidence,
    MismatchTest,
    SessionFit,
    follow_posterior,
    lag_table,
    on_finer_lags,
)
from neurofuse.alignment.result import Alignment, AlignmentRefused, Status
from neurofuse.alignment.ridge_scan import RidgePredictor, Scan, scan
from neurofuse.alignment.self_supervised import fit_self_supervised
from neurofuse.alignment.signal_pair import SignalPair, SmoothedPair, lag_grid, signal_pair
from neurofuse.config import ALIGN_MAX_LAG_S, ALIGN_WINDOW_S, AlignConfig
from neurofuse.errors import NeurofuseError
from neurofuse.jitters.lag_laws import LagJitter
from neurofuse.lag.hmm import LagGrid, LagPrior
from neurofuse.prepare import check_names, check_reach, parsed, steps_of, with_two_clocks
from neurofuse.recording import FloatArray, Recording

# Length of a scan, seconds, and the most scans along a session.
START_S, N_STARTS = 120.0, 5
# Smallest z-score of a scan among wrong lags; unrelated recordings reach 1 or 2, related ones 6 and more.
MIN_SCAN_Z = 4.0
# Rolls of B that make mismatched windows.
N_ROLLS = 3
# Smallest z-score of windows as recorded against mismatched windows.
MIN_Z = 4.0
# A second lag makes the session ambiguous if its log-likelihood is within this of the best, per window and in total.
AMBIGUOUS_NATS, AMBIGUOUS_NATS_TOTAL = 0.1, 5.0
# Shortest session, seconds.
SHORTEST_S = 20.0
# Fewest windows in which the mismatch test can be significant.
MIN_WINDOWS = 3
# Fewest coarse steps in the largest lag, for a peak to have sides.
MIN_LAG_STEPS = 4
# Length of the stretches that ridges are fitted on and applied to in turn, seconds.
RIDGE_STRETCH_S = 60.0


def align(
    recording: Recording,
    *,
    config: AlignConfig | None = None,
    pulses: tuple[FloatArray, FloatArray] | None = None,
    progress: bool = False,
) -> Alignment:
    """Estimate the map between two clocks of a recording over a whole session, from the signals alone.

    Parameters
    ----------
    recording : Recording
        With signals on two clocks. No stretch needs to be aligned already.
    config : AlignConfig, optional
    pulses : tuple of two ndarray, optional
        Times of shared pulses on A and on B, seconds, for method "pulses"; by default found by name.
    progress : bool
        Show progress on stderr.

    Returns
    -------
    Alignment

    Raises
    ------
    AlignmentRefused
        If the streams as recorded do not match better than mismatched ones.
    NeurofuseError
        If there are not two clocks, or the recording is too short.
    """
    config = config or AlignConfig()
    check_names(config)
    # Refuses a prior that no grid allows, before anything is computed.
    LagPrior.from_seconds(
        LagGrid(1e-3, 1.0), drift=config.drift, jumps=config.jumps, skew_ppm=config.skew_ppm
    )
    recording = _planted(recording, config)
    if config.method == "pulses":
        return _by_pulses(recording, config, pulses)
    session = _session(recording, config)
    warnings = list(session.pair.warnings)
    numbers: dict[str, float] = {}
    if config.method in SERIES_LOG_LIK:
        found = _by_log_lik(session, _series_log_lik(session.pair, config.method))
    else:
        start, ridge = _start(session)
        numbers |= {
            "scan_lag_s": start.best_s,
            "scan_score": float(start.score.max()),
            "scan_z_score": start.z_score,
        }
        if start.z_score < MIN_SCAN_Z:
            reason = f"the best lag has a z-score of {start.z_score:.1f} among wrong ones, {MIN_SCAN_Z:g} is needed"
            _refuse(session, ClockMap.constant(start.best_s, *session.span_s), numbers, reason)
        found = _by_ridge(session, ridge)
        if config.method == "learned":
            learned = fit_self_supervised(
                session.pair, found.fit, config, span_s=session.span_s, progress=progress
            )
            if learned.test.z_score >= MIN_Z or found.test.z_score < MIN_Z:
                found = learned
            else:
                warnings.append("the network did not learn to estimate lags; this clock is from the ridge.")
    z_score = found.test.z_score
    numbers |= {
        "own": float(found.test.own.mean()),
        "mismatched": float(found.test.mismatched.mean()),
        "z_score": z_score,
        "inliers": float(found.fit.inlier.mean()),
    }
    if z_score < MIN_Z:
        reason = f"windows as recorded have a z-score of {z_score:.1f} against mismatched ones, {MIN_Z:g} is needed"
        _refuse(session, found.fit.clock, numbers, reason)
    return _accepted(session, found, numbers, warnings)


def _planted(recording: Recording, config: AlignConfig) -> Recording:
    """With two clocks, and the error that the configuration names."""
    rng = np.random.default_rng([config.seed, 11])
    jitter = parsed(config.jitter)
    recording = with_two_clocks(recording, config, jitter, rng=rng)
    for step in steps_of(jitter):
        if isinstance(step, LagJitter):
            max_lag_s = config.max_lag_s or ALIGN_MAX_LAG_S
            check_reach(step, recording, replace(config, max_lag_s=max_lag_s))
            # Excursions of random laws are clipped.
            step = replace(step, clock=step.clock or config.clock, max_lag_s=step.limit_s(max_lag_s))
        recording, _ = step.jitter(recording, rng=rng)
    return recording


@dataclass(frozen=True, eq=False)
class _Session:
    """Two clocks to align, and how.

    Parameters
    ----------
    recording : Recording
    pair : SignalPair
    config : AlignConfig
    max_lag_s, window_s : float
    span_s : tuple of 2 float
        Start and stop of A, seconds.
    rng : numpy Generator
    """

    recording: Recording
    pair: SignalPair
    config: AlignConfig
    max_lag_s: float
    window_s: float
    span_s: tuple[float, float]
    rng: np.random.Generator

    @property
    def steps(self) -> tuple[int, int]:
        """Start and stop of A, in coarse steps."""
        coarse = self.pair.coarse
        low, high = (round((s - coarse.origin_s) / coarse.step_s) for s in self.span_s)
        return max(0, low), min(len(coarse), high)


def _session(recording: Recording, config: AlignConfig) -> _Session:
    """Signals of both clocks, after a check that both recorded for long enough."""
    pair = signal_pair(
        recording,
        clock=config.clock,
        token_s=config.token_s,
        line_hz=config.line_hz,
        use_movement=config.use_movement,
    )
    max_lag_s, window_s = config.max_lag_s or ALIGN_MAX_LAG_S, config.window_s or ALIGN_WINDOW_S
    spans = []
    for clock in pair.tokens.clocks:
        recorded = np.flatnonzero(np.diff(clock.cover[:: pair.tokens.per_token]) > 0)
        if recorded.size == 0:
            raise NeurofuseError(f"clock '{clock.clock}' of '{recording.name}' recorded nothing.")
        token_s = pair.tokens.token_s
        spans.append(
            (
                pair.tokens.origin_s + token_s * recorded[0],
                pair.tokens.origin_s + token_s * (recorded[-1] + 1),
            )
        )
    (a0, a1), (b0, b1) = spans
    start_s, stop_s = max(a0, b0 - max_lag_s), min(a1, b1 + max_lag_s)
    least_s = MIN_LAG_STEPS * pair.coarse.step_s
    if max_lag_s < least_s:
        raise NeurofuseError(
            f"a largest lag of {max_lag_s:g} s leaves too few lags of {pair.coarse.step_s:g} s to choose from; "
            f"give --max-lag {least_s:g} or more."
        )
    shared_s = min(stop_s - start_s, a1 - a0, b1 - b0)
    need_s = max(SHORTEST_S, MIN_WINDOWS * window_s)
    if shared_s < need_s:
        raise NeurofuseError(
            f"the two clocks share {max(0.0, shared_s):.1f} s within +-{max_lag_s:g} s of each other and "
            f"{need_s:g} s are needed; raise --max-lag if their zeros lie further apart."
        )
    rng = np.random.default_rng([config.seed, 31])
    return _Session(recording, pair, config, max_lag_s, window_s, (start_s, stop_s), rng)


def _start(session: _Session) -> tuple[Scan, RidgePredictor]:
    """The scan with the highest z-score: of the first minutes or, if that is low, of later ones."""
    coarse, (low, high) = session.pair.coarse, session.steps
    n = min(high - low, round(START_S / coarse.step_s))
    firsts = (
        np.unique(np.linspace(low, high - n, N_STARTS).astype(int)) if high - low > n else np.array([low])
    )
    best: tuple[Scan, int] | None = None
    for first in firsts.tolist():
        found = scan(coarse, first, first + n, max_lag_s=session.max_lag_s, rng=session.rng)
        if best is None or found.z_score > best[0].z_score:
            best = found, first
        if found.z_score >= 2 * MIN_SCAN_Z:
            break
    assert best is not None
    start, first = best
    return start, RidgePredictor.fit(coarse, np.full(n, start.best_s), first, first + n)


def _windows_of(session: _Session) -> tuple[np.ndarray, int, FloatArray]:
    """First steps of adjacent windows of which A recorded half or more, their length, and their middles."""
    coarse, (low, high) = session.pair.coarse, session.steps
    n = max(4, round(session.window_s / coarse.step_s))
    first = np.arange(low, high - n + 1, n)
    present = np.array([coarse.a_present[f : f + n].mean() >= 0.5 for f in first], dtype=bool)
    first = first[present]
    if first.size < MIN_WINDOWS:
        raise NeurofuseError(
            f"there are {first.size} windows of {session.window_s:g} s in which '{session.pair.clocks[0]}' was "
            f"recorded; {MIN_WINDOWS} or more are needed."
        )
    return first, n, coarse.origin_s + (first + 0.5 * n) * coarse.step_s


# Log-likelihoods (n_windows, n_lags) of windows of A with B rolled by a number of steps; the other arguments are the
# first steps of the windows, their length, and lags in steps.
WindowLogLik = Callable[[int, np.ndarray, int, np.ndarray], FloatArray]


def _series_log_lik(pair: SignalPair, method: str) -> WindowLogLik:
    coarse = pair.coarse
    own, other = summed(pair, coarse)
    steps = coarse.independent_s / coarse.step_s
    return lambda roll, first, n, lags: SERIES_LOG_LIK[method](
        own, np.roll(other, roll, axis=0), steps, first, n, lags
    )


def _by_log_lik(session: _Session, log_lik_of: WindowLogLik) -> SessionFit:
    """A clock from log-likelihoods of windows, tested against those with B rolled by large lags."""
    coarse, config = session.pair.coarse, session.config
    first, n, time_s = _windows_of(session)
    grid_s = lag_grid(session.max_lag_s, coarse.step_s)
    lags = np.arange(-(grid_s.size // 2), grid_s.size // 2 + 1)
    log_lik = log_lik_of(0, first, n, lags)
    rolls = session.rng.integers(len(coarse) // 4, 3 * len(coarse) // 4, N_ROLLS).tolist()
    mismatched = np.stack([log_lik_of(roll, first, n, lags).max(1) for roll in rolls])
    test = MismatchTest(log_lik.max(1), mismatched)
    lag_s, log_lik = on_finer_lags(grid_s, log_lik)
    fit = fit_clock(time_s, log_lik, lag_s, model=config.model, span_s=session.span_s)
    unmatched = np.full(len(first), float(np.quantile(mismatched, 0.95)))
    evidence = LagEvidence(time_s, lag_s, log_lik, unmatched, session.window_s)
    if config.model == "free":
        fit = follow_posterior(evidence, fit, config)
    return SessionFit(evidence, fit, test)


def _by_ridge(session: _Session, ridge: RidgePredictor) -> SessionFit:
    """A clock from a ridge fitted at the start, then from ridges fitted along that clock.

    The latter are cross-fitted: those of every other minute predict the rest.
    """
    coarse = session.pair.coarse
    starts, n, _ = _windows_of(session)

    def rolled(roll: int) -> SmoothedPair:
        return replace(coarse, b=np.roll(coarse.b, roll, axis=0))

    def at_start(roll: int, first: np.ndarray, n: int, lags: np.ndarray) -> FloatArray:
        return ridge.log_lik(rolled(roll), first, n, lags)

    clock = _by_log_lik(session, at_start).fit.clock
    step = np.arange(len(coarse))
    lag_s = clock.lag_s(coarse.origin_s + coarse.step_s * (step + 0.5))
    # Stretches of whole windows, so that no window is predicted by a ridge that was fitted on part of it.
    n_stretch = n * max(1, round(min(RIDGE_STRETCH_S / coarse.step_s, len(coarse) / 4) / n))
    half = (step - starts[0]) // n_stretch % 2
    ridges = [RidgePredictor.fit(coarse, np.where(half == k, lag_s, np.nan), 0, len(coarse)) for k in (0, 1)]

    def cross_fitted(roll: int, first: np.ndarray, n: int, lags: np.ndarray) -> FloatArray:
        out = np.zeros((first.size, lags.size))
        for k in (0, 1):
            rows = half[first] == k
            out[rows] = ridges[1 - k].log_lik(rolled(roll), first[rows], n, lags)
        return out

    return _by_log_lik(session, cross_fitted)


def _by_pulses(
    recording: Recording, config: AlignConfig, pulses: tuple[FloatArray, FloatArray] | None
) -> Alignment:
    others = [c for c in recording.clocks if c != recording.reference]
    if not others:
        raise NeurofuseError(f"recording '{recording.name}' has one clock; there is nothing to align.")
    a, b = clocks = recording.reference, config.clock or others[0]
    a_s, b_s = pulses or (pulses_of(recording, a), pulses_of(recording, b))
    a_s, b_s = np.sort(np.asarray(a_s, dtype=np.float64)), np.sort(np.asarray(b_s, dtype=np.float64))
    evidence = pulse_evidence(
        a_s,
        b_s,
        window_s=config.window_s or ALIGN_WINDOW_S,
        max_lag_s=config.max_lag_s or ALIGN_MAX_LAG_S,
    )
    span_s = (float(a_s[0]), float(a_s[-1]))
    fit = fit_clock(evidence.time_s, evidence.log_lik, evidence.lag_s, model=config.model, span_s=span_s)
    second_s, second_score = fit.second_best_s, fit.second_best_score
    fit = refine_on_pulses(a_s, b_s, fit, model=config.model, span_s=span_s)
    clock, matched, spread_s = pulse_clock(a_s, b_s, fit, model=config.model)
    fit = replace(fit, clock=clock, second_best_s=second_s, second_best_score=second_score)
    numbers = {"matched": matched, "spread_s": spread_s, "n_a": float(a_s.size), "n_b": float(b_s.size)}
    if matched >= 0.5:
        status, verdict = _verdict(fit, clocks)
    else:
        status = "refused"
        verdict = f"no shared pulses: refused, {100 * matched:.0f} % of those on '{a}' have one on '{b}'."
    table = lag_table(evidence, fit, clocks, config)
    found = Alignment.of(
        recording, clocks, config, fit, table, status=status, verdict=verdict, evidence=numbers
    )
    if status == "refused":
        raise AlignmentRefused(found)
    return found


def _refuse(session: _Session, clock: ClockMap, numbers: dict[str, float], reason: str) -> NoReturn:
    a, b = session.pair.clocks
    fit = ClockFit.without_errors(clock)
    lag_s = lag_grid(session.max_lag_s, 0.1)
    time_s = np.linspace(*session.span_s, 5)
    nothing = LagEvidence(time_s, lag_s, np.zeros((5, lag_s.size)), np.full(5, 10.0), session.window_s)
    raise AlignmentRefused(
        Alignment.of(
            session.recording,
            session.pair.clocks,
            session.config,
            fit,
            # A prior may be faster than this coarse grid can follow.
            lag_table(nothing, fit, session.pair.clocks, AlignConfig()),
            status="refused",
            verdict=f"no shared signal between '{a}' and '{b}': refused; {reason}.",
            evidence=numbers,
            warnings=session.pair.warnings,
        )
    )


def _accepted(
    session: _Session, found: SessionFit, numbers: dict[str, float], warnings: list[str]
) -> Alignment:
    fit, config, clocks = found.fit, session.config, session.pair.clocks
    table = lag_table(found.evidence, fit, clocks, config, adapt=config.model == "free")
    if len(fit.jumps) > max(3, len(fit.inlier) // 20):
        warnings.append(f"{len(fit.jumps)} jumps were fitted: this clock wanders; use --model free.")
    trusted = float(table["trusted"].mean())
    if trusted < 0.8:
        warnings.append(
            f"the fitted clock is confirmed in {100 * trusted:.0f} % of the session only; see the figure."
        )
    status, verdict = _verdict(fit, clocks)
    return Alignment.of(
        session.recording,
        clocks,
        config,
        fit,
        table,
        status=status,
        verdict=verdict,
        evidence=numbers,
        warnings=tuple(warnings),
    )


def _verdict(fit: ClockFit, clocks: tuple[str, str]) -> tuple[Status, str]:
    if fit.second_best_score > -max(AMBIGUOUS_NATS_TOTAL, AMBIGUOUS_NATS * fit.inlier.size):
        best_s = fit.offset_s[0]
        return "ambiguous", f"ambiguous between lags of {best_s:+.3f} s and {fit.second_best_s:+.3f} s"
    return "aligned", f"'{clocks[1]}' aligned to '{clocks[0]}' to +-{1000 * fit.half_width_s:.1f} ms"
