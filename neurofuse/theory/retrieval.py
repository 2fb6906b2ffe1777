"""In: number, dimension and noise of keys. Out: how often the matching key scores highest, and its attention weight.

The energy of attention over random keys is that of a random-energy model (Derrida 1981, Phys. Rev. B 24, 2613) with
one planted state: noise lowers the planted score, which is compared with the maximum of the others.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.special import chdtri, log_ndtr, ndtri, roots_hermitenorm, roots_legendre

from neurofuse.errors import NeurofuseError
from neurofuse.recording import FloatArray

Noise = Literal["orthonormal", "queries", "keys", "both"]

# A standard normal as nodes and weights: for expectations of smooth functions, and of steep ones on a fine grid.
NODES, WEIGHTS = roots_hermitenorm(81)
WEIGHTS = WEIGHTS / WEIGHTS.sum()
FINE_NODES = np.linspace(-7, 7, 281)
FINE_WEIGHTS = np.exp(-0.5 * FINE_NODES**2)
FINE_WEIGHTS /= FINE_WEIGHTS.sum()


def positive(**values: ArrayLike) -> None:
    """Raise an error that names the first value that is not a positive number."""
    for name, value in values.items():
        if not (np.asarray(value, dtype=np.float64) > 0).all():
            raise NeurofuseError(f"{name} must be positive, got {value!r}.")


def m_of_n(n_keys: ArrayLike) -> FloatArray:
    """Median of the highest score among the wrong keys, in standard deviations of a score.

    `m(N) = Phi^-1(2^(-1/(N-1)))`, the median of the maximum of N - 1 independent standard normals. Its limit
    sqrt(2 ln N) is 18 to 31 % higher for N = 512 to 32, so it is not used.

    Parameters
    ----------
    n_keys : array_like
        Number of keys N, the matching one included. May be a fraction: an effective number.

    Raises
    ------
    NeurofuseError
        If N is not above 1.
    """
    n = np.asarray(n_keys, dtype=np.float64)
    if not (n > 1).all():
        raise NeurofuseError(f"n_keys must be above 1, got {n_keys!r}: with a single key none is wrong.")
    return np.asarray(ndtri(np.exp2(-1 / (n - 1))))


def _check(noise: str, n_keys: float, dim: float | None) -> None:
    if noise not in get_args(Noise):
        raise NeurofuseError(f"noise must be one of {', '.join(get_args(Noise))}, got '{noise}'.")
    m_of_n(n_keys)
    if noise != "orthonormal" and (dim is None or dim < 2):
        raise NeurofuseError(f"noise on {noise} needs the dimension of a key, dim >= 2; got {dim}.")


def retrieval_probability(
    sigma: float, *, n_keys: float, dim: int | None = None, noise: Noise = "both", signal: float = 1.0
) -> float:
    """How often the matching key scores highest among noisy random keys.

    `P_c = E_theta Int phi(z) Phi((sqrt(S) cos(theta) + sigma_k z) / tau)^(N-1) dz`, `tau^2 = S/d + sigma_k^2`,
    where theta is the angle by which noise rotates the query,
    `cos(theta) = (sqrt(S) + sigma_q e) / sqrt((sqrt(S) + sigma_q e)^2 + sigma_q^2 chi2_(d-1))`. Exact for Gaussian
    random keys: given the query, their scores are independent. With orthonormal keys wrong scores are noise alone.
    It decreases with noise where d > m(N)^2; with fewer dimensions weak noise on keys increases it.

    Parameters
    ----------
    sigma : float
        Standard deviation of the noise, per dimension.
    n_keys : float
        N, the matching key included.
    dim : int, optional
        Dimension d of a key; not needed for orthonormal keys.
    noise : {"orthonormal", "queries", "keys", "both"}
        Where the noise is; on "both" it is independent and of equal variance. "orthonormal": noise on orthonormal keys.
    signal : float
        Squared norm S of a key.
    """
    _check(noise, n_keys, dim)
    positive(sigma=sigma, signal=signal)
    root = np.sqrt(signal)
    if noise == "orthonormal":
        log_p = (n_keys - 1) * log_ndtr(root / sigma + NODES)
        return float(WEIGHTS @ np.exp(log_p))
    assert dim is not None
    sigma_k = sigma if noise in ("keys", "both") else 0.0
    cosine, share = np.ones(1), np.ones(1)
    if noise in ("queries", "both"):
        parallel = root + sigma * NODES[:, None]
        quantile, weight = roots_legendre(48)
        squared_rest = sigma**2 * chdtri(dim - 1, 0.5 * (1 - quantile))  # chi2 at equally weighted quantiles
        cosine = (parallel / np.sqrt(parallel**2 + squared_rest)).ravel()
        share = (WEIGHTS[:, None] * (0.5 * weight)).ravel()
    tau = np.sqrt(signal / dim + sigma_k**2)
    height = (root * cosine[:, None] + sigma_k * NODES) / tau
    return float(share @ np.exp((n_keys - 1) * log_ndtr(height)) @ WEIGHTS)


def critical_sigma(
    *,
    n_keys: float,
    dim: int | None = None,
    noise: Noise = "both",
    signal: float = 1.0,
    probability: float = 0.5,
) -> float:
    """Noise at which the matching key scores highest with the given probability, from `retrieval_probability`.

    Returns infinity where no noise makes the probability that low (below chance, 1/N).
    """
    _check(noise, n_keys, dim)

    def excess(log_sigma: float) -> float:
        p = retrieval_probability(
            float(np.exp(log_sigma)), n_keys=n_keys, dim=dim, noise=noise, signal=signal
        )
        return p - probability

    low, high = np.log(np.sqrt(signal) * 1e-3), np.log(np.sqrt(signal) * 1e3)
    if excess(low) < 0:
        return 0.0
    return float(np.exp(brentq(excess, low, high, xtol=1e-10))) if excess(high) < 0 else float("inf")


def critical_sigma_closed(
    *, n_keys: float, dim: int | None = None, noise: Noise = "both", signal: float = 1.0
) -> float:
    """Noise at which the mean score of the matching key equals the median highest wrong score, in closed form.

    With m = m(N): orthonormal keys `S/m^2`; noise on queries or on keys `S (1/m^2 - 1/d)`; on both
    `S (1/(m sqrt(d)) - 1/d)`, all squared. 0 unless d > m^2: too few dimensions for that many keys.
    """
    _check(noise, n_keys, dim)
    m = float(m_of_n(n_keys))
    if m <= 0:
        return float("inf")
    if noise == "orthonormal":
        squared = 1 / m**2
    else:
        assert dim is not None
        squared = 1 / (m * np.sqrt(dim)) - 1 / dim if noise == "both" else 1 / m**2 - 1 / dim
    return float(np.sqrt(signal * max(squared, 0.0)))


def attention_mass(*, gap: float, spread: float, beta: float, n_keys: int) -> float:
    """Mean softmax weight of the matching key, with score N(gap, spread^2); the others have N(0, spread^2).

    Exact by the Gumbel trick: a softmax weight is the probability that its score plus standard Gumbel noise is the
    largest, so `E[w_0] = P(beta a_0 + G_0 > max_j beta a_j + G_j) = Int dF_0 F_1^(N-1)`, with F_1 the distribution
    of normal plus Gumbel (Gumbel 1954; Maddison et al. 2014). A log-normal approximation has errors up to .68.

    Parameters
    ----------
    gap : float
        Mean excess of the matching key's score, mu.
    spread : float
        Standard deviation of every score, s.
    beta : float
        Inverse temperature.
    n_keys : int
        N, the matching key included.

    Notes
    -----
    Mass on the truth is an improper score: it increases with beta beyond the best temperature. Do not tune on it.
    """
    positive(spread=spread, beta=beta)
    m_of_n(n_keys)
    x = np.linspace(-8 * (beta * spread + 1), 8 * beta * spread + 40, 6001)
    # F_1(x) = E exp(-exp(-(x - beta s z))); the matching key's is the same, shifted by beta mu.
    other = np.exp(-np.exp(np.clip(-(x[:, None] - beta * spread * FINE_NODES), -700, 700))) @ FINE_WEIGHTS
    # Int dF_0 F_1^(N-1), with x relative to the matching key: F_0(x) = F_1(x), the others are at x + beta mu.
    shifted = np.interp(x + beta * gap, x, other, left=0.0, right=1.0)
    power = np.exp((n_keys - 1) * np.log(np.maximum(shifted, 1e-300)))
    return float(np.sum(0.5 * (power[1:] + power[:-1]) * np.diff(other)))


def critical_spread(*, gap: float, beta: float, n_keys: float) -> tuple[float, str]:
    """Spread of scores at which attention leaves the matching key, and the phase it enters there.

    Liquid (many keys share the weight): `s_c = sqrt(2 (beta mu - ln N)) / beta`. Frozen (one wrong key has it):
    `s_c = mu / sqrt(2 ln N)`, at any temperature. The wrong keys freeze where `beta s > sqrt(2 ln N)` (Derrida 1981).

    Returns
    -------
    spread : float
        0 where `beta mu < ln N`: attention is unfocused even without noise.
    phase : {"unfocused", "liquid", "frozen"}
    """
    positive(gap=gap, beta=beta)
    log_n = float(np.log(n_keys))
    if beta * gap < log_n:
        return 0.0, "unfocused"
    freezing = np.sqrt(2 * log_n)
    liquid = np.sqrt(2 * (beta * gap - log_n)) / beta
    return (float(liquid), "liquid") if beta * liquid <= freezing else (gap / freezing, "frozen")


def best_temperature(*, gap: float, spread: float) -> float:
    """Inverse temperature at which softmax weights are the posterior over keys, `beta* = mu / s^2`.

    The log-likelihood ratio of one score being N(mu, s^2) rather than N(0, s^2) is `mu a / s^2` and a constant.
    """
    positive(spread=spread)
    return gap / spread**2
