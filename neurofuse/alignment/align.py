"""In: a recording with two clocks. Out: an `Alignment`, the map between them from the signals alone, or a refusal.

A lag scan over the first minutes gives the start, a ridge carries it through the session, and along that first clock a
network learns from windows moved by known lags to find the lag of any window. What it says, window by window, is
fitted by a clock, and is trusted only if it says more about the streams as they were recorded than about the same
streams put together wrongly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import numpy as np
import xarray as xr

from neurofuse.alignment.baselines import (
    gcc_phat_curves,
    pulse_clock,
    pulse_evidence,
    pulses_of,
    refine_on_pulses,
    summed,
    xcorr_curves,
)
from neurofuse.alignment.clock_map import ClockFit, ClockMap, fit_clock
from neurofuse.alignment.lag_evidence import (
    LagEvidence,
    MismatchTest,
    follow_posterior,
    lag_table,
    on_finer_lags,
)
from neurofuse.alignment.result import AlignConfig, Alignment, AlignmentRefused
from neurofuse.alignment.ridge_scan import RidgeReader, Scan, scan
from neurofuse.alignment.self_supervised import learn
from neurofuse.alignment.signal_pair import SignalPair, SmoothedPair, lag_grid, signal_pair
from neurofuse.recording import FloatArray, NeurofuseError, Recording

# The start is looked for in so much of a session, at so many places at most.
START_S, N_STARTS = 120.0, 5
# How far the best lag of a scan must stand out among wrong ones, in their standard deviations; unrelated recordings
# reach 1 or 2, related ones 6 and more.
LEAST_SURPRISE = 4.0
# How many standard errors windows as recorded must lie above windows put together wrongly.
LEAST_EVIDENCE = 4.0
# Another lag that explains the session nearly as well as the best, by this factor's logarithm, makes it ambiguous:
# for each window and at least in all.
RIVAL_NATS, RIVAL_NATS_ALL = 0.1, 5.0
SHORTEST_S = 20.0
# So many windows at least; fewer could not differ enough from wrong ones to be trusted.
FEWEST_WINDOWS = 3
# So many steps of the coarse grid must fit into the largest lag, for a peak to have sides.
FEWEST_STEPS = 4
# Stretches that ridges are fitted on and read in turn, seconds.
SIDE_S = 60.0


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
        If the streams say no more about each other than streams put together wrongly do.
    NeurofuseError
        If there are not two clocks, or the recording is too short.
    """
    config = config or AlignConfig()
    config.check()
    if config.method == "pulses":
        return _by_pulses(recording, config, pulses)
    pair = signal_pair(
        recording,
        clock=config.clock,
        token_s=config.token_s,
        line_hz=config.line_hz,
        use_movement=config.use_movement,
    )
    rng = np.random.default_rng([config.seed, 31])
    span_s = _shared_span(pair, config, recording)
    evidence: dict[str, float] = {}
    if config.method in ("xcorr", "gcc-phat"):
        heard, fit, foreign = _by_curves(pair, config, span_s, _sum_curves(pair, config.method), rng)
    else:
        start, reader = _start(pair, config, span_s, rng)
        evidence |= {
            "scan_lag_s": start.best_s,
            "scan_score": float(start.score.max()),
            "scan_surprise": start.surprise,
        }
        if start.surprise < LEAST_SURPRISE:
            clock = ClockMap.constant(start.best_s, *span_s)
            return _refuse(pair, config, clock, span_s, evidence)
        heard, fit, foreign = _by_reading(pair, config, span_s, reader, rng)
        if config.method == "learned":
            found = learn(
                pair,
                fit,
                model=config.model,
                search_s=config.search_s,
                span_s=span_s,
                n_steps=config.n_steps,
                seed=config.seed,
                progress=progress,
            )
            if found.foreign.surprise >= LEAST_EVIDENCE or foreign.surprise < LEAST_EVIDENCE:
                heard, fit, foreign = found.evidence, found.fit, found.foreign
            else:
                pair = replace(
                    pair,
                    warnings=(*pair.warnings, "the network learned too little; a ridge found this clock."),
                )
    evidence |= {
        "own": float(foreign.own.mean()),
        "foreign": float(foreign.other.mean()),
        "evidence": foreign.surprise,
        "inliers": float(fit.inlier.mean()),
    }
    if foreign.surprise < LEAST_EVIDENCE:
        return _refuse(pair, config, fit.clock, span_s, evidence)
    return _told(pair, config, heard, fit, evidence)


def _shared_span(pair: SignalPair, config: AlignConfig, recording: Recording) -> tuple[float, float]:
    """Start and stop of A, after a check that both clocks recorded for long enough."""
    spans = []
    for clock in pair.tokens.clocks:
        there = np.flatnonzero(np.diff(clock.cover[:: pair.tokens.per_token]) > 0)
        if there.size == 0:
            raise NeurofuseError(f"clock '{clock.clock}' of '{recording.name}' recorded nothing.")
        token = pair.tokens.token_s
        spans.append(
            (pair.tokens.origin_s + token * there[0], pair.tokens.origin_s + token * (there[-1] + 1))
        )
    (a0, a1), (b0, b1) = spans
    overlap = min(a1, b1 + config.max_lag_s) - max(a0, b0 - config.max_lag_s)
    least_s = FEWEST_STEPS * pair.coarse.step_s
    if config.max_lag_s < least_s:
        raise NeurofuseError(
            f"a largest lag of {config.max_lag_s:g} s leaves too few lags of {pair.coarse.step_s:g} s to choose from; "
            f"give --max-lag {least_s:g} or more."
        )
    need = max(SHORTEST_S, FEWEST_WINDOWS * config.window_s)
    if min(overlap, a1 - a0, b1 - b0) < need:
        raise NeurofuseError(
            f"the two clocks share {max(0.0, min(overlap, a1 - a0, b1 - b0)):.1f} s within +-{config.max_lag_s:g} s "
            f"of each other and {need:g} s are needed; raise --max-lag if their zeros lie further apart."
        )
    return max(a0, b0 - config.max_lag_s), min(a1, b1 + config.max_lag_s)


def _start(
    pair: SignalPair, config: AlignConfig, span_s: tuple[float, float], rng: np.random.Generator
) -> tuple[Scan, RidgeReader]:
    """The scan that stands out most, of the first minutes or, if those say little, of later ones."""
    coarse = pair.coarse
    low, high = (round((s - coarse.origin_s) / coarse.step_s) for s in span_s)
    low, high = max(0, low), min(len(coarse), high)
    n = min(high - low, round(START_S / coarse.step_s))
    best: tuple[Scan, int] | None = None
    firsts = np.unique(np.linspace(low, high - n, N_STARTS).astype(int)) if high - low > n else [low]
    for first in firsts:
        found = scan(coarse, int(first), int(first) + n, max_lag_s=config.max_lag_s, rng=rng)
        if best is None or found.surprise > best[0].surprise:
            best = found, int(first)
        if found.surprise >= 2 * LEAST_SURPRISE:
            break
    assert best is not None
    return best[0], RidgeReader.fit(coarse, np.full(n, best[0].best_s), best[1], best[1] + n)


def _windows_of(
    pair: SignalPair, config: AlignConfig, span_s: tuple[float, float]
) -> tuple[np.ndarray, int, FloatArray]:
    """First steps of windows side by side that A was there for half of, their length, and their middles."""
    coarse = pair.coarse
    n = max(4, round(config.window_s / coarse.step_s))
    low, high = (round((s - coarse.origin_s) / coarse.step_s) for s in span_s)
    first = np.arange(max(0, low), min(len(coarse), high) - n + 1, n)
    there = np.array([coarse.a_there[f : f + n].mean() >= 0.5 for f in first], dtype=bool)
    first = first[there]
    if first.size < FEWEST_WINDOWS:
        raise NeurofuseError(
            f"there are {first.size} windows of {config.window_s:g} s in which '{pair.clocks[0]}' was recorded; "
            f"{FEWEST_WINDOWS} or more are needed."
        )
    return first, n, coarse.origin_s + (first + 0.5 * n) * coarse.step_s


Curves = Callable[[np.ndarray, np.ndarray, int, np.ndarray], FloatArray]


def _sum_curves(pair: SignalPair, method: str) -> Curves:
    coarse = pair.coarse
    own, other = summed(pair, coarse)
    make = xcorr_curves if method == "xcorr" else gcc_phat_curves
    apart = coarse.look_s / coarse.step_s
    return lambda roll, first, n, lags: make(own, np.roll(other, int(roll), axis=0), apart, first, n, lags)


def _by_curves(
    pair: SignalPair,
    config: AlignConfig,
    span_s: tuple[float, float],
    curves: Curves,
    rng: np.random.Generator,
) -> tuple[LagEvidence, ClockFit, MismatchTest]:
    """LagEvidence from correlations of windows with all of the other stream, and of the same rolled round."""
    coarse = pair.coarse
    first, n, time_s = _windows_of(pair, config, span_s)
    grid_s = lag_grid(config.max_lag_s, coarse.step_s)
    lags = np.arange(-(grid_s.size // 2), grid_s.size // 2 + 1)
    score = curves(np.array(0), first, n, lags)
    away = rng.integers(len(coarse) // 4, 3 * len(coarse) // 4, 3)
    other = np.stack([curves(a, first, n, lags).max(1) for a in away])
    foreign = MismatchTest(score.max(1), other)
    fine_s, fine = on_finer_lags(grid_s, score)
    fit = fit_clock(time_s, fine, fine_s, model=config.model, span_s=span_s)
    heard = LagEvidence(
        time_s, fine_s, fine, np.full(len(first), float(np.quantile(other, 0.95))), config.window_s
    )
    return heard, follow_posterior(heard, fit) if config.model == "free" else fit, foreign


def _by_reading(
    pair: SignalPair,
    config: AlignConfig,
    span_s: tuple[float, float],
    reader: RidgeReader,
    rng: np.random.Generator,
) -> tuple[LagEvidence, ClockFit, MismatchTest]:
    """Carry the start through the session by a ridge, fitted again along the clock it finds.

    Windows are then read by a ridge that was fitted on others: those of every other minute read the rest.
    """
    coarse = pair.coarse
    starts, n, _ = _windows_of(pair, config, span_s)

    def rolled(roll: np.ndarray) -> SmoothedPair:
        return replace(coarse, b=np.roll(coarse.b, int(roll), axis=0))

    def alike(roll: np.ndarray, first: np.ndarray, n: int, lags: np.ndarray) -> FloatArray:
        return reader.curves(rolled(roll), first, n, lags)

    _, fit, _ = _by_curves(pair, config, span_s, alike, rng)
    step = np.arange(len(coarse))
    lag_s = fit.clock.lag_s(coarse.origin_s + coarse.step_s * (step + 0.5))
    # Sides of whole windows, so that none is read by a ridge that was fitted on part of it.
    n_side = n * max(1, round(min(SIDE_S / coarse.step_s, len(coarse) / 4) / n))
    side = (step - starts[0]) // n_side % 2
    readers = [RidgeReader.fit(coarse, np.where(side == k, lag_s, np.nan), 0, len(coarse)) for k in (0, 1)]

    def crossed(roll: np.ndarray, first: np.ndarray, n: int, lags: np.ndarray) -> FloatArray:
        out = np.zeros((first.size, lags.size))
        for k in (0, 1):
            mine = side[first] == k
            out[mine] = readers[1 - k].curves(rolled(roll), first[mine], n, lags)
        return out

    return _by_curves(pair, config, span_s, crossed, rng)


def _by_pulses(
    recording: Recording, config: AlignConfig, pulses: tuple[FloatArray, FloatArray] | None
) -> Alignment:
    others = [c for c in recording.clocks if c != recording.reference]
    if not others:
        raise NeurofuseError(f"recording '{recording.name}' has one clock; there is nothing to align.")
    names = recording.reference, config.clock or others[0]
    a_s, b_s = pulses or (pulses_of(recording, names[0]), pulses_of(recording, names[1]))
    a_s, b_s = np.sort(np.asarray(a_s, dtype=np.float64)), np.sort(np.asarray(b_s, dtype=np.float64))
    time_s, lag_s, score = pulse_evidence(a_s, b_s, window_s=config.window_s, max_lag_s=config.max_lag_s)
    span_s = (float(a_s[0]), float(a_s[-1]))
    fit = fit_clock(time_s, score, lag_s, model=config.model, span_s=span_s)
    rival = fit.rival_s, fit.rival_score
    fit = refine_on_pulses(a_s, b_s, fit, model=config.model, span_s=span_s)
    clock, matched, spread_s = pulse_clock(a_s, b_s, fit, model=config.model)
    fit = replace(fit, clock=clock, rival_s=rival[0], rival_score=rival[1])
    evidence = {"matched": matched, "spread_s": spread_s, "n_a": float(a_s.size), "n_b": float(b_s.size)}
    heard = LagEvidence(time_s, lag_s, score, np.full(time_s.size, 2.0), config.window_s)
    if matched < 0.5:
        table = lag_table(heard, fit, names[1], names[0])
        verdict = f"no shared pulses: refused, {100 * matched:.0f} % of those on '{names[0]}' have one on '{names[1]}'."
        raise AlignmentRefused(_alignment(names, config, "refused", verdict, fit, table, evidence, ()))
    status, verdict = _verdict(fit, names)
    table = lag_table(heard, fit, names[1], names[0])
    return _alignment(names, config, status, verdict, fit, table, evidence, ())


def _refuse(
    pair: SignalPair,
    config: AlignConfig,
    clock: ClockMap,
    span_s: tuple[float, float],
    evidence: dict[str, float],
) -> Alignment:
    a, b = pair.clocks
    how = (
        f"the best lag stands out by {evidence['scan_surprise']:.1f} standard deviations among wrong ones, "
        f"{LEAST_SURPRISE:g} are needed"
        if "evidence" not in evidence
        else f"windows as recorded lie {evidence['evidence']:.1f} standard errors above windows put together wrongly, "
        f"{LEAST_EVIDENCE:g} are needed"
    )
    verdict = f"no shared signal between '{a}' and '{b}': refused; {how}."
    nothing = float("nan"), float("nan"), float("nan")
    fit = ClockFit(clock, nothing, nothing, (), float("nan"), np.zeros(1), 0.0, float("nan"), float("-inf"))
    time_s = np.linspace(*span_s, 5)
    lag_s = lag_grid(config.max_lag_s, 0.1)
    heard = LagEvidence(time_s, lag_s, np.zeros((5, lag_s.size)), np.full(5, 10.0), config.window_s)
    table = lag_table(heard, fit, b, a)
    raise AlignmentRefused(
        _alignment(pair.clocks, config, "refused", verdict, fit, table, evidence, pair.warnings)
    )


def _told(
    pair: SignalPair,
    config: AlignConfig,
    heard: LagEvidence,
    fit: ClockFit,
    evidence: dict[str, float],
) -> Alignment:
    warnings = list(pair.warnings)
    table = lag_table(heard, fit, pair.clocks[1], pair.clocks[0], free=config.model == "free")
    if len(fit.jumps) > max(3, len(fit.inlier) // 20):
        warnings.append(
            f"{len(fit.jumps)} jumps were needed: this clock wanders; --model free follows it as it goes."
        )
    trusted = float(table["trusted"].mean())
    if trusted < 0.8:
        warnings.append(
            f"the fitted clock is confirmed in {100 * trusted:.0f} % of the session only; see the figure."
        )
    status, verdict = _verdict(fit, pair.clocks)
    return _alignment(pair.clocks, config, status, verdict, fit, table, evidence, tuple(warnings))


def _verdict(fit: ClockFit, names: tuple[str, str]) -> tuple[Literal["aligned", "ambiguous"], str]:
    if fit.rival_score > -max(RIVAL_NATS_ALL, RIVAL_NATS * fit.inlier.size):
        best = fit.offset_s[0]
        return "ambiguous", f"ambiguous between lags of {best:+.3f} s and {fit.rival_s:+.3f} s"
    return "aligned", f"'{names[1]}' aligned to '{names[0]}' to +-{1000 * fit.half_width_s:.1f} ms"


def _alignment(
    names: tuple[str, str],
    config: AlignConfig,
    status: Literal["aligned", "ambiguous", "refused"],
    verdict: str,
    fit: ClockFit,
    table: xr.Dataset,
    evidence: dict[str, float],
    warnings: tuple[str, ...],
) -> Alignment:
    return Alignment(
        names[0],
        names[1],
        status,
        verdict,
        fit.clock,
        config.model,
        config.method,
        fit.offset_s,
        fit.skew_ppm,
        fit.jumps,
        fit.half_width_s,
        table,
        evidence,
        warnings,
    )
