"""In: a `SignalPair`, or pulses on both clocks. Out: log-likelihoods of every lag, by simpler methods.

The population rate (or the LFP's envelope) of A against that of B: plain cross-correlation, and the generalised one
with equal weight for all frequencies (GCC-PHAT; Knapp & Carter 1976, IEEE Trans. ASSP 24:320). And pulses: the
histogram of differences between the two trains, which peaks at their lag.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter1d

from neurofuse.alignment.clock_map import ClockFit, ClockMap, fit_clock
from neurofuse.alignment.lag_evidence import LagEvidence
from neurofuse.alignment.ridge_scan import correlation_log_lik
from neurofuse.alignment.signal_pair import SignalPair, SmoothedPair, lag_grid
from neurofuse.config import ClockModel
from neurofuse.errors import NeurofuseError
from neurofuse.jitters.jitter import nearest
from neurofuse.recording import FloatArray, IntArray, Recording, Signal, Spikes

# Kernel (standard deviation) of the histogram of differences, and the largest residual of a matched pair, seconds.
PULSE_S, SAME_PULSE_S = 0.01, 0.03
# Log-likelihood of a window without matching pulses, and of each pulse that matches.
UNMATCHED, PER_PULSE = 2.0, 4.0
# Words in the names of streams, units and channels of pulses.
PULSE_WORDS = ("sync", "pulse", "ttl", "trigger")


def summed(pair: SignalPair, coarse: SmoothedPair) -> tuple[np.ndarray, np.ndarray]:
    """One series per clock: the population rate, or the LFP's envelope; shape (n, 1) each."""
    every = max(1, round(coarse.step_s / pair.tokens.token_s))
    out = []
    for clock, present in zip(pair.tokens.clocks, (coarse.a_present, coarse.b_present), strict=True):
        per = pair.tokens.per_token * every
        values = clock.gather(per * np.arange(len(coarse))[None], per)[0][0]
        chosen = clock.counted
        if not chosen.any():
            chosen = np.array(["gamma" in f for f in clock.features])
        chosen = chosen if chosen.any() else np.ones(clock.n_features, bool)
        std = values[present].std(0) if present.any() else np.ones(values.shape[1])
        z = values / np.where(std > 1e-9, std, np.inf)
        # Rates are summed unscaled, so that active units weigh more; envelopes are standardised first.
        total = (values if clock.counted.any() else z)[:, chosen].sum(1)
        total = gaussian_filter1d(total, max(0.5, 0.05 / coarse.step_s))
        total = np.where(present, total - total[present].mean(), 0.0) if present.any() else total
        out.append(total.astype(np.float32)[:, None])
    return out[0], out[1]


def gcc_phat_log_lik(
    own: np.ndarray, other: np.ndarray, _: float, first: IntArray, n_steps: int, lags: IntArray
) -> FloatArray:
    """Half the square, in standard deviations, of the inverse transform of the cross spectrum's phase.

    Arguments and result are those of `correlation_log_lik`.
    """
    low, high = int(lags[0]), int(lags[-1])
    pad = max(0, -low)
    padded = np.pad(other[:, 0], (pad, max(0, high) + n_steps))
    n = n_steps + lags.size - 1
    size = int(2 ** np.ceil(np.log2(n + n_steps)))
    out = np.zeros((first.size, lags.size))
    for k, f in enumerate(first):
        a = own[f : f + n_steps, 0]
        b = padded[f + low + pad : f + low + pad + n]
        cross = np.conj(np.fft.rfft(a, size)) * np.fft.rfft(b, size)
        power = np.abs(cross)
        # The phase of frequencies without power is noise.
        phase = np.where(power > 1e-3 * power.max(initial=0), cross / np.maximum(power, 1e-12), 0)
        c = np.fft.irfft(phase, size)[: lags.size]
        z = c / max(float(c.std()), 1e-12)
        out[k] = 0.5 * np.square(np.clip(z, 0, None))
    return out


# Log-likelihoods of windows of a series with another, by method; see `correlation_log_lik` for their arguments.
SERIES_LOG_LIK = {"xcorr": correlation_log_lik, "gcc-phat": gcc_phat_log_lik}


def pulses_of(recording: Recording, clock: str) -> FloatArray:
    """Times of the pulses on a clock, found by name: spikes of a unit, or rising edges of a channel.

    Raises
    ------
    NeurofuseError
        If no stream of the clock is called sync, pulse, ttl or trigger.
    """
    for stream in recording.on(clock):
        named = _is_pulse(stream.name)
        if isinstance(stream, Spikes):
            rows = [k for k, n in enumerate(stream.units["name"]) if named or _is_pulse(str(n))]
            if rows:
                return stream.select(rows).times_s
        elif isinstance(stream, Signal):
            for k, channel in enumerate(stream.channels):
                if named or _is_pulse(channel):
                    return _rises(stream, k)
    raise NeurofuseError(
        f"clock '{clock}' has no pulses: no stream, unit or channel on it is called {', '.join(PULSE_WORDS)}; "
        "pass pulses=(times on A, times on B), or leave out --method pulses."
    )


def _is_pulse(name: str) -> bool:
    return any(word in name.lower() for word in PULSE_WORDS)


def _rises(signal: Signal, channel: int) -> FloatArray:
    x = np.asarray(signal.data.values[:, channel], dtype=np.float64)
    low, high = np.percentile(x, [0.5, 99.5]) if np.ptp(x) else (0.0, 0.0)
    low, high = (x.min(), x.max()) if high <= low else (low, high)
    up = x > 0.5 * (low + high)
    return signal.time_s[np.flatnonzero(up[1:] & ~up[:-1]) + 1]


def pulse_evidence(
    a_s: FloatArray, b_s: FloatArray, *, window_s: float, max_lag_s: float, step_s: float = 0.005
) -> LagEvidence:
    """Evidence from the number of pulses of each window that match one of B at each lag."""
    lag_s = lag_grid(max_lag_s, step_s)
    if a_s.size < 2 or b_s.size < 2:
        raise NeurofuseError(
            f"there are {a_s.size} and {b_s.size} pulses on the two clocks; at least two on each are needed."
        )
    n_windows = max(1, int(np.ceil((a_s[-1] - a_s[0] + 1e-9) / window_s)))
    window = np.minimum(((a_s - a_s[0]) / window_s).astype(int), n_windows - 1)
    counts = np.zeros((n_windows, lag_s.size))
    low, high = np.searchsorted(b_s, a_s - max_lag_s), np.searchsorted(b_s, a_s + max_lag_s)
    for w, a, i, j in zip(window, a_s, low, high, strict=True):
        at = np.rint((b_s[i:j] - a - lag_s[0]) / step_s).astype(int)
        np.add.at(counts[w], at[(at >= 0) & (at < lag_s.size)], 1.0)
    kernel = PULSE_S / step_s
    # A match is worth about the logarithm of the number of lags it excludes.
    n_matched = gaussian_filter1d(counts, kernel, axis=1) * kernel * np.sqrt(2 * np.pi)
    time_s = a_s[0] + window_s * (0.5 + np.arange(n_windows))
    return LagEvidence(time_s, lag_s, PER_PULSE * n_matched, np.full(n_windows, UNMATCHED), window_s)


def pulse_clock(
    a_s: FloatArray, b_s: FloatArray, fit: ClockFit, *, model: ClockModel
) -> tuple[ClockMap, float, float]:
    """The clock of a fit; through every matched pulse if the model is "free".

    Returns
    -------
    clock : ClockMap
    matched : float
        Share of A's pulses that match one of B.
    spread_s : float
        Robust standard deviation of the matched pulses about the fit.
    """
    expected_s = fit.clock.to_b(a_s)
    near_s = b_s[nearest(b_s, expected_s)]
    apart = near_s - expected_s
    close = np.abs(apart) < SAME_PULSE_S
    if not close.any():
        return fit.clock, 0.0, float("nan")
    same = np.abs(apart - np.median(apart[close])) <= SAME_PULSE_S
    spread_s = 1.4826 * float(np.median(np.abs(apart[same] - np.median(apart[same]))))
    clock = fit.clock
    if model == "free":
        span_s = float(a_s[0]), float(a_s[-1])
        clock = ClockMap.through(a_s[same], near_s[same] - a_s[same], skew_ppm=fit.skew_ppm[0], span_s=span_s)
    return clock, float(same.mean()), spread_s


def refine_on_pulses(
    a_s: FloatArray, b_s: FloatArray, fit: ClockFit, *, model: ClockModel, span_s: tuple[float, float]
) -> ClockFit:
    """The fit repeated with the difference of every pulse, to a tenth of a millisecond."""
    expected_s = fit.clock.to_b(a_s)
    near_s = b_s[nearest(b_s, expected_s)]
    apart = near_s - a_s
    same = np.abs(near_s - expected_s) <= SAME_PULSE_S
    if same.sum() < 2:
        return fit
    low, high = apart[same].min() - 0.02, apart[same].max() + 0.02
    lag_s = np.arange(low, high, 0.0005)
    log_lik = -0.5 * ((lag_s[None] - apart[same][:, None]) / 0.001) ** 2
    return fit_clock(
        a_s[same],
        log_lik,
        lag_s,
        model=model,
        span_s=span_s,
        around_ppm=fit.skew_ppm[0],
        within_ppm=50.0,
    )
