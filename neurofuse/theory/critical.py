"""In: bandwidth, integration time, search range, and a kind of jitter or noise. Out: its critical level.

The law: `sqrt(d_eff) rho = m(N_eff)`, with `d_eff = 2 B T` times the channels, `rho^2 = g1/(1+g1) g2/(1+g2)` and
`N_eff = 2 B W`. The left side is the signal-to-noise ratio after integration, A; the right side is the expected score
of the highest peak at a wrong lag. Noisy attention over keys and the estimation of a delay obey the same equation.
"Critical" has several meanings, so a criterion is always named. Levels are those of an ideal correlator: a trained
decoder above them has information that the law leaves out, such as a leak.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq

from neurofuse.errors import NeurofuseError
from neurofuse.recording import FloatArray
from neurofuse.theory.decoding import gaussian_attenuation, spike_snr
from neurofuse.theory.delay import (
    anomaly_at,
    correlation_snr,
    effective_keys,
    outlier_variance_s2,
    residual_attenuation,
    signal_share,
    time_bandwidth,
)
from neurofuse.theory.retrieval import m_of_n, positive

Criterion = Literal["law", "half_hit", "half_gain", "anomaly_0.1", "leaves_bound"]
CRITERIA: tuple[Criterion, ...] = get_args(Criterion)
# phi(f, level): what a jitter of that level leaves of a frequency.
Attenuation = Callable[[FloatArray, float], ArrayLike]

# The error has left the Cramer-Rao bound where its mean square is this many times the bound: a factor of two in s.
BOUND_FACTOR = 4.0
# Centres of equal bins of a band, as fractions of its width.
BAND = (np.arange(200) + 0.5) / 200


def critical_correlation(
    criterion: Criterion = "half_hit",
    *,
    bandwidth_hz: float,
    window_s: float,
    range_s: float,
    n_channels: float = 1,
) -> float:
    """Signal-to-noise ratio A of the correlation below which the lag is no longer found, by a named criterion.

    Parameters
    ----------
    criterion : {"law", "half_hit", "half_gain", "anomaly_0.1", "leaves_bound"}
        "law": `A = m(N_eff)`, inaccurate for N_eff <= 8. "half_hit": the lag is correct in half of the windows, by
        `anomaly_probability`. "half_gain": a decoder that aligns and then decodes keeps half of the gain in R2 of the
        oracle over a fixed lag (`residual_attenuation`, flat spectrum). "anomaly_0.1": one lag in ten is wrong.
        "leaves_bound": the error is twice the Cramer-Rao bound.
    bandwidth_hz, window_s, range_s, n_channels : float
        B, T, W, and the number of pairs of channels that share the lag.

    Raises
    ------
    NeurofuseError
        If the criterion is unknown, or so few lags are searched that chance already meets it.
    """
    if criterion not in CRITERIA:
        raise NeurofuseError(f"criterion must be one of {', '.join(CRITERIA)}, got '{criterion}'.")
    bt, bw = time_bandwidth(bandwidth_hz, window_s, range_s, n_channels)
    if criterion == "law":
        return float(m_of_n(effective_keys(bandwidth_hz=bandwidth_hz, range_s=range_s)))
    f = BAND  # in units of B; times in units of 1/B
    fixed_r2 = float((np.sinc(f * bw) ** 2).mean())

    def excess(snr: float) -> float:
        """Decreases with A, and is zero at the threshold."""
        p = anomaly_at(snr, bt, bw)
        share = snr**2 / (2 * bt)
        bound = 3 * (1 - share) / share / (8 * np.pi**2 * bt)
        local = min(bound, 1 / 12)
        if criterion == "half_gain":
            residual = residual_attenuation(f, anomaly=p, local_s2=local, range_s=bw)
            return 0.5 - float(((residual**2).mean() - fixed_r2) / (1 - fixed_r2))
        if criterion == "leaves_bound":
            error = (1 - p) * local + p * outlier_variance_s2(bandwidth_hz=1, range_s=bw)
            return float(np.log(error / bound / BOUND_FACTOR))
        return p - (0.5 if criterion == "half_hit" else 0.1)

    grid = np.linspace(0.02, 0.9999 * np.sqrt(2 * bt), 160)
    above = np.flatnonzero([excess(a) > 0 for a in grid])
    if not above.size or above[-1] == grid.size - 1:
        raise NeurofuseError(
            f"criterion '{criterion}' is not met at any SNR with BT = {bt:.3g} and BW = {bw:.3g}; "
            "search a wider range of lags or take a longer window."
        )
    return float(brentq(excess, grid[above[-1]], grid[above[-1] + 1]))


def critical_snr(
    *,
    bandwidth_hz: float,
    window_s: float,
    range_s: float,
    snr_other: float | None = None,
    n_channels: float = 1,
    criterion: Criterion = "half_hit",
) -> float:
    """In-band SNR (power) of a stream below which the lag is no longer found: the law solved for g.

    Parameters
    ----------
    bandwidth_hz, window_s, range_s : float
        B, T and W.
    snr_other : float, optional
        SNR of the other stream; by default both are the same.
    n_channels : float
    criterion : str
        See `critical_correlation`.

    Returns
    -------
    float
        Infinite where the SNR of the other stream alone is too low: then no SNR of this one suffices.
    """
    a = critical_correlation(
        criterion, bandwidth_hz=bandwidth_hz, window_s=window_s, range_s=range_s, n_channels=n_channels
    )
    squared = a**2 / (2 * bandwidth_hz * window_s * n_channels)
    other = np.sqrt(squared) if snr_other is None else float(signal_share(snr_other))
    share = squared / other if other > 0 else np.inf
    return float(share / (1 - share)) if share < 1 else float("inf")


def critical_noise(
    *,
    bandwidth_hz: float,
    window_s: float,
    range_s: float,
    snr_other: float | None = None,
    n_channels: float = 1,
    criterion: Criterion = "half_hit",
) -> float:
    """Critical noise of a stream in standard deviations of its shared signal, both in the band: `1/sqrt(g)`.

    Parameters as `critical_snr`; 0 where the SNR of the other stream alone is too low.
    """
    band = {"bandwidth_hz": bandwidth_hz, "window_s": window_s, "range_s": range_s, "n_channels": n_channels}
    g = critical_snr(**band, snr_other=snr_other, criterion=criterion)
    return 0.0 if np.isinf(g) else float(1 / np.sqrt(g))


def critical_level(strength: Callable[[float], float], *, needed: float, low: float, high: float) -> float:
    """Level at which the SNR of a correlation, which falls with level, meets the required one; infinite beyond `high`.

    Parameters
    ----------
    strength : function of level -> A
        For instance `correlation_snr` with the `attenuation` of a jitter at that level. Must not increase with level.
    needed : float
        From `critical_correlation`.
    low, high : float
        Positive levels between which to search, on a log scale. 0 where it is already too weak at `low`.
    """
    positive(low=low, high=high)
    if strength(low) < needed:
        return 0.0
    if strength(high) >= needed:
        return float("inf")
    return float(
        np.exp(brentq(lambda x: strength(float(np.exp(x))) - needed, np.log(low), np.log(high), xtol=1e-9))
    )


def critical_spike_jitter(
    *,
    total_rate_hz: float,
    modulation: float,
    snr_field: float,
    bandwidth_hz: float,
    window_s: float,
    range_s: float,
    attenuation: Attenuation = gaussian_attenuation,
    criterion: Criterion = "half_hit",
    weighted: bool = False,
) -> float:
    """Jitter of every spike beyond which the lag between spikes and field is no longer found, in the unit of its level.

    Solves `A(level) = A_c` with `g1(f) = |phi(f)|^2 R0 m^2 / (2B)`: jitter attenuates signal and leaves shot noise.

    Parameters
    ----------
    total_rate_hz, modulation : float
        R0, spikes per second of the whole population, and m, the standard deviation of its rate over the mean.
    snr_field : float
        In-band SNR of the field.
    bandwidth_hz, window_s, range_s : float
        B, T and W.
    attenuation : function of (f, level) -> phi
        By default that of Gaussian jitter with standard deviation `level`.
    criterion : str
        See `critical_correlation`.
    weighted : bool
        See `correlation_snr`: an ideal correlator that weights by the known phi, rather than a plain one.

    Returns
    -------
    float
        0 where the lag is not found even without jitter; infinite where it is found under jitter of one second.
    """
    snr = float(spike_snr(total_rate_hz=total_rate_hz, modulation=modulation, bandwidth_hz=bandwidth_hz))
    streams = {"snr1": snr, "snr2": snr_field, "bandwidth_hz": bandwidth_hz, "window_s": window_s}

    def strength(level: float) -> float:
        phi = attenuation(bandwidth_hz * BAND, level)
        return correlation_snr(**streams, attenuation=phi, weighted=weighted)

    needed = critical_correlation(criterion, bandwidth_hz=bandwidth_hz, window_s=window_s, range_s=range_s)
    return critical_level(strength, needed=needed, low=1e-6, high=1.0)


def critical_deletion(
    *,
    total_rate_hz: float,
    modulation: float,
    snr_field: float,
    bandwidth_hz: float,
    window_s: float,
    range_s: float,
    criterion: Criterion = "half_hit",
) -> float:
    """Fraction of spikes deleted at random beyond which the lag between spikes and field is no longer found.

    Deleting a fraction p leaves `g1 = (1 - p) R0 m^2 / (2B)`. Parameters as `critical_spike_jitter`; 0 where the lag is
    not found even with all spikes.
    """
    band = {"bandwidth_hz": bandwidth_hz, "window_s": window_s, "range_s": range_s}
    needed = critical_snr(**band, snr_other=snr_field, criterion=criterion)
    snr = float(spike_snr(total_rate_hz=total_rate_hz, modulation=modulation, bandwidth_hz=bandwidth_hz))
    return max(0.0, 1 - needed / snr)


def critical_walk(
    *,
    snr1: float,
    snr2: float,
    bandwidth_hz: float,
    window_s: float,
    range_s: float,
    criterion: Criterion = "half_hit",
) -> float:
    """Diffusion q (s^2/s) of a lag that follows a random walk beyond which no integration time finds it.

    Over T the walk attenuates the cross-spectrum by `phi(f) = (1 - e^-a)/a`, `a = (2 pi f)^2 q T / 2`. At the threshold
    the best T, from 1/B to `window_s`, gives exactly the A that the criterion requires at that T.

    Raises
    ------
    NeurofuseError
        As `critical_correlation`, or if `window_s` is shorter than 1/B.
    """

    def needed_at(length: float) -> float:
        return critical_correlation(criterion, bandwidth_hz=bandwidth_hz, window_s=length, range_s=range_s)

    # Outside of the loop: an error of the longest window holds for all shorter ones and is raised.
    longest = needed_at(window_s)
    lengths = np.geomspace(1.0001 / bandwidth_hz, window_s, 24)
    needed = []
    for length in lengths[:-1]:
        try:
            needed.append(needed_at(length))
        except NeurofuseError:  # a window this short never meets the criterion
            needed.append(np.inf)
    needed.append(longest)

    def strength(speed: float) -> float:
        best = 0.0
        for length, a_c in zip(lengths, needed, strict=True):
            a = np.maximum((2 * np.pi * bandwidth_hz * BAND) ** 2 * speed * length / 2, 1e-12)
            streams = {"snr1": snr1, "snr2": snr2, "bandwidth_hz": bandwidth_hz, "window_s": length}
            best = max(best, correlation_snr(**streams, attenuation=-np.expm1(-a) / a) / a_c)
        return best

    return critical_level(strength, needed=1.0, low=1e-12, high=1e3)


def moving_lag_window_s(*, speed: float, bound_s3: float) -> float:
    """Best integration time (s) for a lag that follows a random walk, `T* = sqrt(12 a / q)`.

    A window of T has the mean squared error `a/T + q T/12`: of estimation, and of the lag around its mean within T.

    Parameters
    ----------
    speed : float
        q, increase of the lag's variance per second (s^2/s).
    bound_s3 : float
        a = T times the Cramer-Rao bound, `T * delay_bound_s2(..., window_s=T)`.

    Notes
    -----
    Valid where B T* >= 20: shorter windows do not approach the bound.
    """
    positive(speed=speed, bound_s3=bound_s3)
    return float(np.sqrt(12 * bound_s3 / speed))


def moving_lag_error_s(*, speed: float, bound_s3: float) -> float:
    """Root mean squared error (s) at the best integration time, `RMSE* = (a q / 3)^(1/4)`.

    Parameters as `moving_lag_window_s`.
    """
    positive(speed=speed, bound_s3=bound_s3)
    return float((bound_s3 * speed / 3) ** 0.25)
