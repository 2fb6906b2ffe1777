"""In: SNR, bandwidth, window and search range. Out: hits and errors of an ideal observer, by Monte Carlo.

Signals are Gaussian and flat in [0, B]; an SNR is that within the band. The observer cross-correlates and takes the
highest peak. No formula of `neurofuse.theory` is used.
"""

from __future__ import annotations

import numpy as np

OVERSAMPLING = 2  # of the lag axis over the rate 2B, before the peak is refined by a parabola


def band(rng: np.random.Generator, shape: tuple[int, ...], n: int, share: float) -> np.ndarray:
    """Spectra (..., n // 2 + 1) of periodic signals of n samples and unit variance, flat up to `share` of the rate."""
    top = max(1, int(np.floor(share * n)))
    spectrum = np.zeros((*shape, n // 2 + 1), dtype=np.complex128)
    parts = rng.standard_normal((2, *shape, top))
    spectrum[..., 1 : top + 1] = (parts[0] + 1j * parts[1]) * n / (2 * np.sqrt(top))
    return spectrum


def peaks(correlation: np.ndarray, lag_s: np.ndarray) -> np.ndarray:
    """Lag of the highest peak of each row, refined by a parabola."""
    at = correlation.argmax(axis=-1)
    inner = np.clip(at, 1, lag_s.size - 2)
    rows = np.arange(len(correlation))
    left, mid, right = (correlation[rows, inner + k] for k in (-1, 0, 1))
    bend = left - 2 * mid + right
    shift = np.where((bend < 0) & (at == inner), 0.5 * (left - right) / np.where(bend < 0, bend, 1), 0.0)
    return lag_s[at] + np.clip(shift, -0.5, 0.5) * (lag_s[1] - lag_s[0])


def search(
    rng: np.random.Generator,
    n_trials: int,
    *,
    snr1: float,
    snr2: float,
    bandwidth_hz: float,
    window_s: float,
    range_s: float,
    rate_hz: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """True and found lags (s), shape (n_trials,) each; the truth is uniform over the search range.

    With `rate_hz` the second stream has white noise over its whole band at that rate; by default noise is within B.
    """
    rate = rate_hz or 2 * bandwidth_hz * OVERSAMPLING
    n_window, reach = round(window_s * rate), round(range_s / 2 * rate)
    n = 1 << int(np.ceil(np.log2(n_window + 4 * reach + 4)))
    share = bandwidth_hz / rate
    truth, found = [], []
    while sum(map(len, truth)) < n_trials:
        size = min(max(1, 2_000_000 // n), n_trials - sum(map(len, truth)))
        lag_s = range_s * (rng.random(size) - 0.5)
        signal = band(rng, (size,), n, share)
        turn = np.exp(-2j * np.pi * np.fft.rfftfreq(n, 1 / rate) * lag_s[:, None])
        one = np.fft.irfft(signal + band(rng, (size,), n, share) / np.sqrt(snr1), n)
        if rate_hz is None:
            two = np.fft.irfft(signal * turn + band(rng, (size,), n, share) / np.sqrt(snr2), n)
        else:
            noise = rng.standard_normal((size, n)) / np.sqrt(2 * share * snr2)
            two = np.fft.irfft(signal * turn, n) + noise
        one[:, :reach] = 0
        one[:, reach + n_window :] = 0
        # Circular correlations do not wrap for lags up to `reach`: the window is that far from both ends.
        product = np.fft.irfft(np.conj(np.fft.rfft(one)) * np.fft.rfft(two), n)
        lags = np.arange(-reach, reach + 1)
        found.append(peaks(product[:, lags], lags / rate))
        truth.append(lag_s)
    return np.concatenate(truth), np.concatenate(found)


def retrieval(
    rng: np.random.Generator, n_trials: int, *, sigma: float, n_keys: int, dim: int | None, noise: str
) -> float:
    """Fraction of trials in which the matching one of N keys of unit norm scores highest."""
    n_hits = 0
    for size in np.diff(np.append(np.arange(0, n_trials, 250), n_trials)):
        if noise == "orthonormal":
            score = sigma * rng.standard_normal((size, n_keys))
            score[:, 0] += 1
        else:
            keys = rng.standard_normal((size, n_keys, dim)) / np.sqrt(dim)
            keys[:, 0] /= np.linalg.norm(keys[:, 0], axis=-1, keepdims=True)
            query = keys[:, 0].copy()
            if noise in ("queries", "both"):
                query += sigma * rng.standard_normal(query.shape)
            if noise in ("keys", "both"):
                keys = keys + sigma * rng.standard_normal(keys.shape)
            score = np.einsum("tnd,td->tn", keys, query)
        n_hits += int((score.argmax(axis=1) == 0).sum())
    return n_hits / n_trials


def softmax_weights(
    rng: np.random.Generator, n_trials: int, *, gap: float, spread: float, beta: float, n_keys: int
) -> np.ndarray:
    """Weights (n_trials, n_keys) of attention whose first key is the matching one."""
    score = spread * rng.standard_normal((n_trials, n_keys))
    score[:, 0] += gap
    weight = np.exp(beta * (score - score.max(axis=1, keepdims=True)))
    return weight / weight.sum(axis=1, keepdims=True)


def smooth_scores(
    rng: np.random.Generator,
    n_trials: int,
    *,
    mu: float,
    search_s: float,
    rms_hz: float,
    shape: str,
    fine: int,
) -> float:
    """Fraction of trials in which the highest of smooth scores is at the true lag; `fine` samples per correlation time.

    The score at the true lag is a normal with mean mu; a peak within half a lobe of it is a hit.
    """
    length_s = 1 / (2 * np.pi * rms_hz)
    step_s = length_s / fine
    n = int(np.ceil(search_s / step_s))
    padded = 1 << int(np.ceil(np.log2(n + 12 * fine + 16)))
    f = np.fft.rfftfreq(padded, step_s)
    top_hz = np.sqrt(3) * rms_hz
    power = np.exp(-((2 * np.pi * f * length_s) ** 2) / 2) if shape == "gaussian" else 1.0 * (f <= top_hz)
    kernel = np.fft.irfft(power)
    kernel /= kernel[0]
    bump = np.roll(kernel, n // 2)[:n]
    # Half the lag at which scores are independent again.
    near = np.abs(np.arange(n) - n // 2) * step_s <= (0.5 / top_hz if shape == "flat" else 1.8 * length_s)
    n_hits = 0
    for size in np.diff(np.append(np.arange(0, n_trials, 500), n_trials)):
        noise = np.fft.irfft(np.fft.rfft(rng.standard_normal((size, padded))) * np.sqrt(power), padded)
        noise /= np.sqrt((power[1:-1].sum() * 2 + power[0] + power[-1]) / padded)
        n_hits += int(near[(noise[:, :n] + mu * bump).argmax(axis=1)].sum())
    return n_hits / n_trials


def poisson_search(
    rng: np.random.Generator,
    n_trials: int,
    *,
    total_rate_hz: float,
    modulation: float,
    noise: float,
    jitter_s: float,
    bandwidth_hz: float,
    window_s: float,
    range_s: float,
) -> np.ndarray:
    """Errors (s) of the lag between Poisson spikes, each jittered, and a field with noise in the band."""
    rate = 16 * bandwidth_hz
    n_window, reach = round(window_s * rate), round(range_s / 2 * rate)
    n = 1 << int(np.ceil(np.log2(n_window + 4 * reach + 4)))
    share, lags = bandwidth_hz / rate, np.arange(-reach, reach + 1)
    errors = []
    for size in np.diff(np.append(np.arange(0, n_trials, 500), n_trials)):
        lag_s = range_s * (rng.random(size) - 0.5)
        signal = band(rng, (size,), n, share)
        turn = np.exp(-2j * np.pi * np.fft.rfftfreq(n, 1 / rate) * lag_s[:, None])
        field = np.fft.irfft(signal * turn + noise * band(rng, (size,), n, share), n)
        drive = np.clip(total_rate_hz * (1 + modulation * np.fft.irfft(signal, n)), 0, None)
        count = rng.poisson(drive / rate)
        row, column = np.nonzero(count)
        many = count[row, column]
        row, time = np.repeat(row, many), np.repeat(column, many) + rng.random(many.sum()) - 0.5
        time = np.rint(time + rate * jitter_s * rng.standard_normal(time.size)).astype(int) % n
        spikes = np.bincount(row * n + time, minlength=size * n).reshape(size, n) - total_rate_hz / rate
        spikes[:, :reach] = 0
        spikes[:, reach + n_window :] = 0
        product = np.fft.irfft(np.conj(np.fft.rfft(spikes)) * np.fft.rfft(field), n)
        errors.append(peaks(product[:, lags], lags / rate) - lag_s)
    return np.concatenate(errors)


def lagged_taps(
    rng: np.random.Generator,
    n_trials: int,
    *,
    autocorrelation: str,
    length_s: float,
    jitter_s: float,
    n_taps: int,
    spacing_s: float,
    snr: float = np.inf,
) -> tuple[np.ndarray, np.ndarray]:
    """A smooth signal (n_trials,) and taps (n_trials, n_taps) of it under a lag N(0, s^2) and white noise.

    The autocorrelation is Gaussian or exponential of that length. `snr` is that of one tap.
    """
    tap_s = spacing_s * (np.arange(n_taps) - (n_taps - 1) / 2)
    place = np.concatenate(
        [np.zeros((n_trials, 1)), tap_s + jitter_s * rng.standard_normal((n_trials, 1))], axis=1
    )
    # Random Fourier features have the exact covariance on average, and least squares depends on nothing else.
    k = 100
    draw = (
        rng.standard_normal((n_trials, k))
        if autocorrelation == "gaussian"
        else rng.standard_cauchy((n_trials, k))
    )
    a, b = rng.standard_normal((2, n_trials, k)) / np.sqrt(k)
    values = np.empty(place.shape)
    for j in range(place.shape[1]):
        angle = draw * place[:, j : j + 1] / length_s
        values[:, j] = (a * np.cos(angle) + b * np.sin(angle)).sum(axis=1)
    taps = values[:, 1:] + rng.standard_normal((n_trials, n_taps)) / np.sqrt(snr)
    return values[:, 0], taps


def linear_r2(target: np.ndarray, taps: np.ndarray) -> float:
    """R2 of least squares on the first half of the trials, on the second."""
    half = len(target) // 2
    weight = np.linalg.lstsq(taps[:half], target[:half], rcond=1e-3)[0]
    residual = target[half:] - taps[half:] @ weight
    return float(1 - (residual**2).sum() / (target[half:] ** 2).sum())
