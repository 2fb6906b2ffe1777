"""In: attenuation by jitter, and spectra. Out: the R2 of decoders to which the lag is given, and of those without it.

Decoders are the best linear ones with windows of any length (Wiener 1949). Frequencies are centres of equal parts of
the band: arrays over them may be given on any regular grid, and integrals are means over it.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import erfcx

from neurofuse.errors import NeurofuseError
from neurofuse.recording import FloatArray
from neurofuse.theory.retrieval import positive

Autocorrelation = Literal["gaussian", "exponential"]


def gaussian_attenuation(frequency_hz: ArrayLike, level_s: float) -> FloatArray:
    """Attenuation of a frequency by errors of time from N(0, level^2), `exp(-(2 pi f s)^2 / 2)`."""
    return np.exp(-((2 * np.pi * np.asarray(frequency_hz, dtype=np.float64) * level_s) ** 2) / 2)


def _ratio(jitter_s: ArrayLike, length_s: float, autocorrelation: str) -> FloatArray:
    positive(length_s=length_s)
    if autocorrelation not in ("gaussian", "exponential"):
        raise NeurofuseError(f"autocorrelation must be gaussian or exponential, got '{autocorrelation}'.")
    return np.asarray(jitter_s, dtype=np.float64) / length_s


def one_tap_r2(
    jitter_s: ArrayLike, *, length_s: float, autocorrelation: Autocorrelation = "gaussian"
) -> FloatArray:
    """R2 of a decoder of one sample of a noiseless stream whose lag is N(0, s^2): `(E rho(lag))^2`.

    Gaussian autocorrelation `exp(-t^2/(2 l^2))`: `1/(1 + s^2/l^2)`. Exponential `exp(-|t|/l)`:
    `erfcx(s/(sqrt2 l))^2`.
    """
    x = _ratio(jitter_s, length_s, autocorrelation)
    return 1 / (1 + x**2) if autocorrelation == "gaussian" else erfcx(x / np.sqrt(2)) ** 2


def any_window_r2(
    jitter_s: ArrayLike, *, length_s: float, autocorrelation: Autocorrelation = "gaussian"
) -> FloatArray:
    """Upper bound on the R2 of any fixed linear window over a noiseless stream whose lag is N(0, s^2).

    `Int |phi|^2 S / Int S`, the autocorrelation at the difference of two lags. Gaussian: `1/sqrt(1 + 2 s^2/l^2)`;
    exponential: `erfcx(s/l)`. The loss is of first order in the variance of the lag, whatever the length of the window.
    """
    x = _ratio(jitter_s, length_s, autocorrelation)
    return 1 / np.sqrt(1 + 2 * x**2) if autocorrelation == "gaussian" else erfcx(x)


def aligned_r2(attenuation: ArrayLike, *, signal: ArrayLike = 1.0, noise: ArrayLike = 0.0) -> float:
    """R2 of the best linear decoder of a noisy stream: `R2 = Int |phi|^2 S^2/(S + S_n) df / Int S df`.

    Parameters
    ----------
    attenuation : array_like, shape () or (n,)
        phi(f), the characteristic function of the error of the lag: of the lag itself for a fixed decoder,
        `residual_attenuation` for one that aligns first, 1 for the oracle.
    signal, noise : array_like, shape () or (n,)
        Spectra S of the decoded signal and S_n of the noise, on the same regular grid of frequencies.
    """
    phi, s, s_n = np.broadcast_arrays(
        *(np.asarray(x, dtype=np.float64) for x in (attenuation, signal, noise))
    )
    kept = np.divide(s**2, s + s_n, out=np.zeros_like(s), where=s > 0)
    return float((np.abs(phi) ** 2 * kept).mean() / s.mean())


def early_fusion_r2(
    attenuation: ArrayLike, *, snr1: ArrayLike, snr2: ArrayLike, signal: ArrayLike = 1.0
) -> float:
    """R2 of linear fusion of a stream on the reference clock with one whose lag is uncertain.

    `gamma^2/(1 - gamma^2) = g1 + |phi|^2 / ((1 - |phi|^2) + 1/g2)`, and R2 is the mean of gamma^2 over the spectrum S:
    the power that the uncertain lag removes from the second stream acts as noise on it.

    Parameters
    ----------
    attenuation : array_like, shape () or (n,)
        phi(f) of the second stream's lag.
    snr1, snr2 : array_like, shape () or (n,)
        SNR at each frequency of the first and of the second stream, finite for the first.
    signal : array_like, shape () or (n,)
        Spectrum of the decoded signal.
    """
    parts = (np.asarray(x, dtype=np.float64) for x in (attenuation, snr1, snr2, signal))
    phi, g1, g2, s = np.broadcast_arrays(*parts)
    with np.errstate(divide="ignore"):
        left = 1 / (g1 + np.abs(phi) ** 2 / ((1 - np.abs(phi) ** 2) + 1 / g2))  # (1 - gamma^2)/gamma^2
    return float((s / (1 + left)).mean() / s.mean())


def bayes_temperature(snr1: float, snr2: float) -> float:
    """Inverse temperature at which softmax over lags of a raw cross-correlation is the posterior over lags.

    `beta* = 2 g1 g2 / (1 + g1 + g2)`, for `c(l) = B Int x1(t) x2(t + l) dt` in units of the variance of the shared
    signal: the part of the Gaussian log-likelihood that depends on the lag, from the inverse of the covariance of one
    pair of independent samples, of which there are 2B per second. No decoder without further information exceeds it.
    """
    if min(snr1, snr2) < 0:
        raise NeurofuseError(f"an SNR is a ratio of powers, zero or more; got {snr1} and {snr2}.")
    return 2 * snr1 * snr2 / (1 + snr1 + snr2)


def spike_snr(
    *, total_rate_hz: float, modulation: float, bandwidth_hz: float, attenuation: ArrayLike = 1.0
) -> FloatArray:
    """In-band SNR of a pooled population of Poisson units, `g1(f) = |phi(f)|^2 R0 m^2 / (2B)`.

    The rate `R0 (1 + m x(t))` follows a signal x of unit variance, flat in B; shot noise has the spectrum R0, and
    jitter of spikes does not reduce it.

    Parameters
    ----------
    total_rate_hz : float
        R0, spikes per second of all units together.
    modulation : float
        m, standard deviation of the rate over its mean.
    bandwidth_hz : float
        B.
    attenuation : array_like
        phi(f) of the jitter of spikes.
    """
    positive(total_rate_hz=total_rate_hz, modulation=modulation, bandwidth_hz=bandwidth_hz)
    phi = np.abs(np.asarray(attenuation, dtype=np.float64))
    return phi**2 * total_rate_hz * modulation**2 / (2 * bandwidth_hz)


def phase_locking(attenuation: ArrayLike, *, locking: ArrayLike, squared: bool = False) -> FloatArray:
    """Phase locking after jitter of every spike: `|phi(f)|` times the original; `|phi|^2` if `squared`.

    `squared` is for pairwise phase consistency (Vinck et al. 2010, NeuroImage 51, 112), the square of locking without
    its bias from the number of spikes.
    """
    return np.abs(np.asarray(attenuation, dtype=np.float64)) ** (2 if squared else 1) * np.asarray(locking)


def spike_field_coherence(
    attenuation: ArrayLike,
    *,
    rate_hz: float,
    rate_spectrum: ArrayLike,
    field_spectrum: ArrayLike,
    cross_spectrum: ArrayLike,
) -> FloatArray:
    """Squared coherence of jittered spikes and field, `C = |phi|^2 |S_lx|^2 / ((l0 + |phi|^2 S_ll) S_xx)`.

    Parameters
    ----------
    attenuation : array_like
        phi(f) of the jitter of spikes.
    rate_hz : float
        Mean rate l0: the two-sided spectrum of shot noise, which jitter does not reduce.
    rate_spectrum, field_spectrum, cross_spectrum : array_like
        Two-sided S_ll of the rate, S_xx of the field and S_lx between them.
    """
    phi2 = np.abs(np.asarray(attenuation, dtype=np.float64)) ** 2
    power = (rate_hz + phi2 * np.asarray(rate_spectrum)) * np.asarray(field_spectrum)
    return phi2 * np.abs(np.asarray(cross_spectrum)) ** 2 / power
