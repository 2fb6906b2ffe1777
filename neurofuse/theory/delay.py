"""In: bandwidth, integration time, search range and SNR. Out: how often a lag is found, and with what error.

Streams are Gaussian, stationary and flat in a known band of B Hz; g are ratios of power within that band.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtr

from neurofuse.errors import NeurofuseError
from neurofuse.recording import FloatArray
from neurofuse.theory.retrieval import NODES, WEIGHTS, positive


def effective_keys(*, bandwidth_hz: float, range_s: float) -> float:
    """Number of distinguishable lags in a search range of W seconds, `N_eff = 2 B W`.

    It does not depend on the sampling rate: lags closer than 1/(2B) have nearly the same score.
    """
    positive(bandwidth_hz=bandwidth_hz, range_s=range_s)
    return 2 * bandwidth_hz * range_s


def signal_share(snr: ArrayLike) -> FloatArray:
    """Share of a stream's power that is signal, g/(1+g); 1 for an infinite ratio."""
    g = np.asarray(snr, dtype=np.float64)
    if not (g >= 0).all():
        raise NeurofuseError(f"an SNR is a ratio of powers, zero or more; got {snr!r}.")
    return np.where(np.isinf(g), 1.0, 1 - 1 / (1 + g))


def coherence(snr1: ArrayLike, snr2: ArrayLike) -> FloatArray:
    """Squared coherence of two noisy views of one signal, `C = rho^2 = g1/(1+g1) g2/(1+g2)`."""
    return signal_share(snr1) * signal_share(snr2)


def correlation_snr(
    *,
    snr1: float,
    snr2: float,
    bandwidth_hz: float,
    window_s: float,
    n_channels: float = 1,
    attenuation: ArrayLike = 1.0,
    weighted: bool = False,
) -> float:
    """Signal-to-noise ratio of the cross-correlation at the true lag, `A = sqrt(2 B T n) rho`.

    Parameters
    ----------
    snr1, snr2 : float
        In-band SNR (power) of the streams; may be infinite.
    bandwidth_hz, window_s : float
        B and T.
    n_channels : float
        Independent pairs of channels that share one lag.
    attenuation : array_like, shape () or (n,)
        phi(f) by which jitter multiplies the signal of the first stream (but not its noise), at the middles of n
        equal parts of [0, B]. Plain correlation then has
        `A = sqrt(2 B T n) <|phi| sqrt(g1 g2)> / sqrt(<(1 + |phi|^2 g1) (1 + g2)>)`.
    weighted : bool
        Weight frequencies as the maximum-likelihood correlator does (Knapp & Carter 1976, IEEE Trans. ASSP 24,
        320): `A^2 = 2 T n Int C(f) df`.
    """
    positive(bandwidth_hz=bandwidth_hz, window_s=window_s, n_channels=n_channels)
    phi = np.minimum(np.atleast_1d(np.abs(np.asarray(attenuation, dtype=np.float64))), 1.0)
    d_eff = 2 * bandwidth_hz * window_s * n_channels
    if weighted or phi.size == 1:
        g1 = np.where(phi > 0, phi**2, 0.0) * snr1 if np.isfinite(snr1) else np.where(phi > 0, np.inf, 0.0)
        return float(np.sqrt(d_eff * coherence(g1, snr2).mean()))
    # Power in units of the signal before attenuation; noise of stream 1 is not attenuated.
    power = (phi**2 + 1 / snr1).mean() * (1 + 1 / snr2) if snr1 > 0 and snr2 > 0 else np.inf
    return float(np.sqrt(d_eff) * phi.mean() / np.sqrt(power))


def smooth_retrieval_probability(mu: float, *, search_s: float, rms_hz: float) -> float:
    """How often the true lag gives the highest peak when scores are a smooth Gaussian process of lag.

    Neighbouring lags are correlated, so peaks are counted rather than keys: above a level u there are
    `N_eff(u) = sqrt(2 pi) u T_s B_rms` of them, by the rate of level crossings (Rice 1944), and
    `P_c = Int phi(z) Phi(u) exp(-T_s B_rms e^(-u^2/2)) dz`, `u = mu + z + 1/(2 mu)`; the last term is the excess of the
    peak over the score at the true lag itself. Finer sampling of the lag axis changes nothing.

    Parameters
    ----------
    mu : float
        Score at the true lag, in standard deviations of the scores.
    search_s : float
        Range of lags searched, T_s.
    rms_hz : float
        Root mean square bandwidth of the scores, `sqrt(-rho''(0)) / (2 pi)`: B/sqrt(3) for a flat band of B,
        1/(2 pi l) for a Gaussian autocorrelation of length l. See `flat_rms_hz`, `gaussian_rms_hz`.
    """
    positive(mu=mu, search_s=search_s, rms_hz=rms_hz)
    u = mu + NODES + _peak_gain(np.asarray(mu))
    return float(WEIGHTS @ (ndtr(u) * np.exp(-search_s * rms_hz * np.exp(-(u**2) / 2))))


def _peak_gain(mu: FloatArray) -> FloatArray:
    """Excess of a peak over the score at the true lag, 1/(2 mu); at most the expected maximum of two."""
    return np.minimum(0.5 / np.maximum(mu, 1e-9), 1 / np.sqrt(np.pi))


def smooth_effective_keys(level: float, *, search_s: float, rms_hz: float) -> float:
    """Effective number of lags at a level of u standard deviations, `N_eff(u) = sqrt(2 pi) u T_s B_rms` (Rice 1944).

    That many independent normals exceed u as often as the smooth process has peaks above it (Mills' ratio).
    """
    positive(level=level, search_s=search_s, rms_hz=rms_hz)
    return float(np.sqrt(2 * np.pi) * level * search_s * rms_hz)


def flat_rms_hz(bandwidth_hz: float) -> float:
    """Root mean square bandwidth of a flat band from 0 to B."""
    return bandwidth_hz / np.sqrt(3)


def gaussian_rms_hz(length_s: float) -> float:
    """Root mean square bandwidth of a signal with autocorrelation `exp(-t^2 / (2 l^2))`."""
    return 1 / (2 * np.pi * length_s)


def delay_bound_s2(
    *, snr1: float, snr2: float, bandwidth_hz: float, window_s: float, n_channels: float = 1
) -> float:
    """Cramer-Rao bound (s^2) on the variance of a delay between two noisy views of a flat-band signal.

    `var >= 1 / (2 T Int (2 pi f)^2 C/(1-C) df)` (Knapp & Carter 1976; Quazi 1981, IEEE Trans. ASSP 29, 527). In a
    flat band with equal SNR it is `3 / (8 pi^2 T B^3) (1 + 2g)/g^2`.
    """
    positive(bandwidth_hz=bandwidth_hz, window_s=window_s, n_channels=n_channels)
    c = float(coherence(snr1, snr2))
    if c <= 0:
        return float("inf")
    return 3 * (1 - c) / c / (8 * np.pi**2 * window_s * n_channels * bandwidth_hz**3)


def anomaly_probability(
    *,
    snr1: float,
    snr2: float,
    bandwidth_hz: float,
    window_s: float,
    range_s: float,
    n_channels: float = 1,
) -> float:
    """How often the highest peak of a cross-correlation is not the one at the true lag.

    Anomalous estimates and their threshold are those of Ianniello (1982, IEEE Trans. ASSP 30, 998); peaks are counted
    as by Rice (1944) on the sample correlation r, which is not Gaussian in short windows:
    `r = tanh(atanh(rho) + z/sqrt(2BT)) + (1 - rho^2)/(2 A sqrt(2BT))`,
    `P_A = 1 - Int phi(z) Phi(sqrt(2BT) r) exp(-(W - 1/B) (B/sqrt(3)) (1 - r_+^2)^(BT-1)) dz`.

    Parameters
    ----------
    snr1, snr2 : float
        In-band SNR (power) of the streams.
    bandwidth_hz, window_s, range_s : float
        B, T, and W = 2 tau_m, the range of lags searched. An anomaly is further than 1/(2B) from the true lag.
    n_channels : float
        Independent pairs of channels that share one lag.

    Returns
    -------
    float
        At most 1 - 1/(BW), the value of chance. The integral is an approximation that decreases again where A falls
        below about .7 (with few lags it is inaccurate below 1.5); below its maximum it is replaced by a straight line
        in A that ends at chance, so the result is monotonic.

    Raises
    ------
    NeurofuseError
        If the window is shorter than 1/B: it does not hold one period of the band.
    """
    rho = float(np.sqrt(coherence(snr1, snr2)))
    bt = time_bandwidth(bandwidth_hz, window_s, range_s, n_channels)[0]
    return anomaly_at(rho * np.sqrt(2 * bt), bt, bandwidth_hz * range_s)


def time_bandwidth(
    bandwidth_hz: float, window_s: float, range_s: float, n_channels: float
) -> tuple[float, float]:
    """BT times the channels, and BW; refuses a window shorter than 1/B."""
    positive(bandwidth_hz=bandwidth_hz, window_s=window_s, range_s=range_s, n_channels=n_channels)
    if bandwidth_hz * window_s < 1:
        raise NeurofuseError(
            f"a window of {window_s:g} s does not hold one period of a band of {bandwidth_hz:g} Hz; "
            f"take {1 / bandwidth_hz:.3g} s or more."
        )
    return bandwidth_hz * window_s * n_channels, bandwidth_hz * range_s


def _integral(snr: FloatArray, bt: float, bw: float) -> FloatArray:
    """The anomaly integral at each A."""
    d = np.sqrt(2 * bt)
    rho = np.minimum(snr / d, 1 - 1e-12)[:, None]
    r = np.tanh(np.arctanh(rho) + NODES / d) + (1 - rho**2) / d * _peak_gain(rho * d)
    n_higher = max(bw - 1, 0.0) / np.sqrt(3) * (1 - np.clip(r, 0, 1) ** 2) ** (bt - 1)
    return 1 - (ndtr(d * r) * np.exp(-n_higher)) @ WEIGHTS


@lru_cache(maxsize=256)
def _envelope(bt: float, bw: float) -> tuple[FloatArray, FloatArray]:
    """The integral on a grid of A from its maximum on, made non-increasing."""
    grid = np.linspace(0.02, min(3.0, 0.999 * np.sqrt(2 * bt)), 600)
    values = _integral(grid, bt, bw)
    top = int(np.argmax(values))
    # With few independent samples it is not monotonic there either, by up to .003.
    return grid[top:], np.maximum.accumulate(values[top:][::-1])[::-1]


def anomaly_at(snr: float, bt: float, bw: float) -> float:
    """`anomaly_probability` as a function of A, BT and BW alone."""
    chance = max(0.0, 1 - 1 / bw)
    grid, values = _envelope(bt, bw)
    if snr < grid[0]:
        value = chance + (values[0] - chance) * snr / grid[0]
    else:
        next_on_grid = values[np.searchsorted(grid, snr) :][:1]
        value = float(np.max([*_integral(np.array([snr]), bt, bw), *next_on_grid]))
    return float(np.clip(value, 0.0, chance))


def outlier_variance_s2(*, bandwidth_hz: float, range_s: float) -> float:
    """Mean squared error (s^2) of an anomalous lag, `E[h^2 | |h| > 1/(2B)]`.

    h is the difference of two lags that are uniform over the search range of W: its density is a triangle.
    """
    positive(bandwidth_hz=bandwidth_hz, range_s=range_s)
    w, h = range_s, 0.5 / bandwidth_hz
    if h >= w:
        return 0.0
    return float((w**4 / 12 - (w * h**3 / 3 - h**4 / 4)) / ((w - h) ** 2 / 2))


def delay_error_s2(
    *,
    snr1: float,
    snr2: float,
    bandwidth_hz: float,
    window_s: float,
    range_s: float,
    n_channels: float = 1,
) -> float:
    """Mean squared error (s^2) of a delay estimated by cross-correlation, above and below its threshold.

    `MSE = (1 - P_A) min(CRLB, 1/(12 B^2)) + P_A E[h^2 | |h| > 1/(2B)]` (after Ianniello 1982). The Ziv-Zakai and
    Weiss-Weinstein bounds are valid but loose around the threshold (Weiss & Weinstein 1983, IEEE Trans. ASSP 31, 472).
    """
    band = {"bandwidth_hz": bandwidth_hz, "window_s": window_s, "n_channels": n_channels}
    p = anomaly_probability(snr1=snr1, snr2=snr2, range_s=range_s, **band)
    local = min(delay_bound_s2(snr1=snr1, snr2=snr2, **band), 1 / (12 * bandwidth_hz**2))
    return (1 - p) * local + p * outlier_variance_s2(bandwidth_hz=bandwidth_hz, range_s=range_s)


def residual_attenuation(
    frequency_hz: ArrayLike, *, anomaly: float, local_s2: float, range_s: float
) -> FloatArray:
    """Attenuation by the error of an estimated lag, the characteristic function of that error.

    `phi_res(f) = (1 - P_A) exp(-(2 pi f)^2 CRLB / 2) + P_A sinc^2(2 f tau_m)`, with W = 2 tau_m.
    """
    f = np.asarray(frequency_hz, dtype=np.float64)
    return (1 - anomaly) * np.exp(-((2 * np.pi * f) ** 2) * local_s2 / 2) + anomaly * np.sinc(
        f * range_s
    ) ** 2
