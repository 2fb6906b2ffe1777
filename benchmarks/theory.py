"""In: nothing. Out: every formula of `neurofuse.theory`, with reference numbers and a Monte Carlo estimate.

`python -m benchmarks.theory --out DIR` prints markdown tables and writes three figures: the threshold SNR against
integration time, against search range, and against the sampling rate of the LFP. `--quick` takes a tenth of the trials.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import norm, t

from benchmarks.ideal import (
    band,
    lagged_taps,
    linear_r2,
    peaks,
    poisson_search,
    retrieval,
    search,
    smooth_scores,
    softmax_weights,
)
from neurofuse import theory

BLUE, ORANGE = "#0072B2", "#D55E00"


def row(*cells: object) -> None:
    """One row of a markdown table."""
    print("| " + " | ".join(f"{c:.4g}" if isinstance(c, float) else str(c) for c in cells) + " |")


def header(title: str, cells: str) -> None:
    """A title and the head of a table, its cells separated by bars."""
    print(f"\n### {title}\n")
    print(f"| {cells} |")
    row(*["---"] * len(cells.split(" | ")))


def share(p: float, n: int) -> str:
    """A fraction with its standard error."""
    return f"{p:.3f} ± {np.sqrt(max(p * (1 - p), 1 / n) / n):.3f}"


def keys(rng: np.random.Generator, n: int) -> None:
    """(a) retrieval."""
    references = {
        ("orthonormal", 128, None): (0.387, 0.393),
        ("queries", 128, 64): (0.364, 0.372),
        ("keys", 128, 64): (0.366, 0.372),
        ("both", 128, 64): (0.181, 0.183),
        ("both", 512, 64): (0.160, None),
        ("both", 128, 256): (0.142, None),
    }
    cells = (
        "noise | N | d | sigma_c, reference | exact | closed, reference | closed | P at exact, Monte Carlo"
    )
    header("Retrieval: critical noise", cells)
    for (noise, n_keys, dim), (exact, closed) in references.items():
        sigma = theory.critical_sigma(n_keys=n_keys, dim=dim, noise=noise)
        p = retrieval(rng, n, sigma=sigma, n_keys=n_keys, dim=dim, noise=noise)
        simple = theory.critical_sigma_closed(n_keys=n_keys, dim=dim, noise=noise)
        row(noise, n_keys, dim, exact, sigma, closed or "", simple, share(p, n))
    header("sqrt(2 ln N) instead of m(N)", "N | m | sqrt(2 ln N) | the limit is higher by")
    for n_keys in (32, 128, 512):
        m, limit = float(theory.m_of_n(n_keys)), float(np.sqrt(2 * np.log(n_keys)))
        row(n_keys, m, limit, f"{100 * (limit / m - 1):.0f} %")


def mass(rng: np.random.Generator, n: int) -> None:
    """(b) attention mass and its phases."""
    worst, at = 0.0, None
    for gap in (2.0, 4.0, 6.0, 8.0, 12.0):
        for spread in (0.3, 0.7, 1.0, 2.0, 3.0):
            for n_keys in (16, 64, 256):
                point = {"gap": gap, "spread": spread, "beta": 1.5, "n_keys": n_keys}
                found = softmax_weights(rng, 10 * n, **point)[:, 0].mean()
                error = abs(theory.attention_mass(**point) - found)
                if error > worst:
                    worst, at = error, point
    print(
        f"\nAttention mass at 75 points: largest |exact - Monte Carlo| {worst:.4f} at {at} (target <= .006)."
    )
    header("Phases", "beta | predicted spread, phase | mass at x0.7 | at x1 | at x1.4")
    for beta in (0.5, 1.5, 4.0):
        spread, phase = theory.critical_spread(gap=6.0, beta=beta, n_keys=256)
        at_scale = [
            theory.attention_mass(gap=6.0, spread=max(spread, 0.1) * k, beta=beta, n_keys=256)
            for k in (0.7, 1, 1.4)
        ]
        row(beta, f"{spread:.3f}, {phase}", *at_scale)
    weights = softmax_weights(rng, n, gap=3.0, spread=3.0, beta=6.0, n_keys=128)
    wrong, width = (weights.argmax(axis=1) != 0).mean(), np.median(1 / (weights**2).sum(axis=1))
    print(
        f"\nSharp and wrong (mu = s = 3, beta = 6, N = 128): argmax wrong in {wrong:.0%}, 1/sum w^2 = {width:.2f}."
    )


def smooth(rng: np.random.Generator, n: int) -> None:
    """(c) smooth scores."""
    errors, naive, shift = [], [], []
    for shape in ("flat", "gaussian"):
        for rms_hz in (2.0, 6.0):
            for mu in (1.5, 2.0, 2.5, 3.0, 3.5):
                p = theory.smooth_retrieval_probability(mu, search_s=2.0, rms_hz=rms_hz)
                hits = [
                    smooth_scores(rng, n, mu=mu, search_s=2.0, rms_hz=rms_hz, shape=shape, fine=fine)
                    for fine in (2, 8)
                ]
                errors.append(p - hits[1])
                shift.append(hits[1] - hits[0])
                grid = int(2.0 * 2 * np.pi * rms_hz * 8)
                sigma = 1 / mu
                naive.append(theory.retrieval_probability(sigma, n_keys=grid, noise="orthonormal") - hits[1])
    rms = [float(np.sqrt(np.mean(np.square(e)))) for e in (errors, naive, shift)]
    print(
        f"\nSmooth scores, 20 points: rms error {rms[0]:.3f} (reference .018), counting every grid key {rms[1]:.3f} "
        f"(reference .205); sampling four times finer changes P by {np.mean(shift):+.4f} on average, rms {rms[2]:.3f} "
        f"(Monte Carlo alone {np.sqrt(0.5 / n):.3f})."
    )


def delay(rng: np.random.Generator, n: int) -> None:
    """(d) anomalies and the error of a delay."""
    delay_errors(rng, n)
    anomaly_levels(rng, n)
    criteria()


def delay_errors(rng: np.random.Generator, n: int) -> None:
    """Probability of an anomaly and RMSE."""
    header("Delay", "B | T | W | g | A | P_A | Monte Carlo | RMSE (ms) | Monte Carlo | ratio | CRLB (ms)")
    ratios, errors = [], []
    for b, t_s, w in (
        (5.0, 4.0, 1.0),
        (10.0, 2.0, 1.0),
        (20.0, 2.0, 0.4),
        (10.0, 10.0, 2.0),
        (40.0, 1.0, 1.0),
    ):
        for a in (1.5, 2.2, 3.0, 4.0):
            rho = a / np.sqrt(2 * b * t_s)
            g = rho / (1 - rho)
            point = {"snr1": g, "snr2": g, "bandwidth_hz": b, "window_s": t_s, "range_s": w}
            truth, found = search(rng, n, **point)
            p = theory.anomaly_probability(**point)
            wrong = float((np.abs(found - truth) > 0.5 / b).mean())
            predicted = float(np.sqrt(theory.delay_error_s2(**point)))
            rmse = float(np.sqrt(((found - truth) ** 2).mean()))
            bound = {k: v for k, v in point.items() if k != "range_s"}
            ratios.append(predicted / rmse)
            errors.append(p - wrong)
            crlb = 1e3 * float(np.sqrt(theory.delay_bound_s2(**bound)))
            row(b, t_s, w, g, a, p, share(wrong, n), 1e3 * predicted, 1e3 * rmse, predicted / rmse, crlb)
    print(
        f"\nRMSE theory / Monte Carlo: median {np.median(ratios):.3f} (reference .998), range {min(ratios):.2f}-"
        f"{max(ratios):.2f}; P_A: rms error {np.sqrt(np.mean(np.square(errors))):.3f}."
    )


def anomaly_levels(rng: np.random.Generator, n: int) -> None:
    """A at given probabilities of an anomaly."""
    header("A at P_A = .5 / .1 / .01, M = 20 lags (2BW = 20)", "BT | A | reference | P_A there, Monte Carlo")
    for bt in (20.0, 28.0, 40.0):
        levels, hits = [], []
        band = {"bandwidth_hz": 10.0, "window_s": bt / 10, "range_s": 1.0}
        for p in (0.5, 0.1, 0.01):
            grid = np.linspace(1, 0.99 * np.sqrt(2 * bt), 2000)
            g = grid / np.sqrt(2 * bt) / (1 - grid / np.sqrt(2 * bt))
            values = np.array([theory.anomaly_probability(snr1=x, snr2=x, **band) for x in g])
            k = int(np.flatnonzero(values <= p)[0])
            levels.append(f"{grid[k]:.2f}")
            truth, found = search(rng, n, snr1=g[k], snr2=g[k], **band)
            hits.append(share(float((np.abs(found - truth) > 0.05).mean()), n))
        row(bt, " / ".join(levels), "1.73 / 3.17 / 4.18", ", ".join(hits))


def criteria() -> None:
    """A at every criterion."""
    header("Criteria", "BT | BW | law | half_hit | half_gain | of sqrt(2 ln N) | anomaly_0.1 | leaves_bound")
    for bt, bw in ((20, 5), (20, 10), (40, 10), (40, 32), (200, 64)):
        band = {"bandwidth_hz": 1.0, "window_s": bt, "range_s": bw}
        a = {c: theory.critical_correlation(c, **band) for c in theory.CRITERIA}
        ratio = a["half_gain"] / np.sqrt(2 * np.log(2 * bw))
        row(bt, bw, a["law"], a["half_hit"], a["half_gain"], ratio, a["anomaly_0.1"], a["leaves_bound"])


def decoders(rng: np.random.Generator, n: int) -> None:
    """(e) R2 under lag jitter."""
    header(
        "Fixed decoders under lag jitter", "autocorrelation | s / l | taps | R2 | Monte Carlo, least squares"
    )
    for kind in ("gaussian", "exponential"):
        for s in (0.5, 1.0, 2.0):
            point = {"autocorrelation": kind, "length_s": 1.0, "jitter_s": s}
            for n_taps, formula in ((1, theory.one_tap_r2), (61, theory.any_window_r2)):
                target, taps = lagged_taps(rng, 4 * n, **point, n_taps=n_taps, spacing_s=0.1 + 0.1 * s)
                row(
                    kind,
                    s,
                    n_taps if n_taps == 1 else "any (61)",
                    float(formula(s, length_s=1.0, autocorrelation=kind)),
                    linear_r2(target, taps),
                )
    header("Early fusion and align-then-decode, flat band", "what | largest error in R2 | conditions")
    early, aligned = fusion_errors(rng, n), aligned_errors(rng, n)
    row("early fusion of a stream without and one with a lag", max(early), len(early))
    row("align, then decode (target <= .012 in 42)", max(aligned), len(aligned))


def fusion_errors(rng: np.random.Generator, n: int) -> list[float]:
    """|theory - least squares| of early fusion of two flat-band streams, B = 1."""
    f = (np.arange(400) + 0.5) / 400
    out = []
    for s in (0.1, 0.25, 0.5):
        for g1, g2 in ((0.5, 1.0), (1.0, 4.0)):
            target, taps = flat_taps(rng, 8 * n, lags=s * rng.standard_normal(8 * n), snr2=g2, snr1=g1)
            predicted = theory.early_fusion_r2(theory.gaussian_attenuation(f, s), snr1=g1, snr2=g2)
            out.append(abs(predicted - linear_r2(target, taps)))
    return out


def aligned_errors(rng: np.random.Generator, n: int) -> list[float]:
    """|theory - least squares| of decoding the second stream at the lag estimated by cross-correlation."""
    f = (np.arange(400) + 0.5) / 400
    out = []
    for b, t_s, w in ((5.0, 4.0, 1.0), (10.0, 4.0, 1.0), (10.0, 10.0, 2.0)):
        for a in (1.7, 2.4, 3.0, 4.0):
            rho = a / np.sqrt(2 * b * t_s)
            g = rho / (1 - rho)
            point = {"snr1": g, "snr2": g, "bandwidth_hz": b, "window_s": t_s}
            truth, found = search(rng, 8 * n, **point, range_s=w)
            p = theory.anomaly_probability(**point, range_s=w)
            local = min(theory.delay_bound_s2(**point), 1 / (12 * b**2))
            residual = theory.residual_attenuation(f * b, anomaly=p, local_s2=local, range_s=w)
            predicted = theory.aligned_r2(residual, noise=1 / g)
            target, taps = flat_taps(rng, 8 * n, lags=b * (found - truth), snr2=g)
            out.append(abs(predicted - linear_r2(target, taps)))
    return out


def flat_taps(
    rng: np.random.Generator, n: int, *, lags: np.ndarray, snr2: float, snr1: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """A flat-band signal (B = 1) at 0, and Nyquist taps of noisy copies: one lagged, and one on time if `snr1`."""
    n_taps = 25
    tap = 0.5 * (np.arange(n_taps) - n_taps // 2)
    target, second = np.empty(n), np.empty((n, n_taps))
    first = np.empty((n, n_taps))
    k = 60
    for rows in np.array_split(np.arange(n), max(1, n // 500)):
        f = rng.random((rows.size, k))
        a, b = rng.standard_normal((2, rows.size, k)) / np.sqrt(k)

        def signal(time: np.ndarray, f: np.ndarray = f, a: np.ndarray = a, b: np.ndarray = b) -> np.ndarray:
            angle = 2 * np.pi * f[:, None] * time[..., None]
            return np.einsum("rtk,rk->rt", np.cos(angle), a) + np.einsum("rtk,rk->rt", np.sin(angle), b)

        target[rows] = signal(np.zeros((rows.size, 1)))[:, 0]
        second[rows] = signal(tap + lags[rows, None])
        first[rows] = signal(np.broadcast_to(tap, (rows.size, n_taps)))
    # In-band noise at the Nyquist rate is white.
    second += rng.standard_normal(second.shape) / np.sqrt(snr2)
    if snr1 is None:
        return target, second
    first += rng.standard_normal(first.shape) / np.sqrt(snr1)
    return target, np.concatenate([first, second], axis=1)


def moving(rng: np.random.Generator, n: int) -> None:
    """(f) a lag that follows a random walk, and (e) the temperature of the posterior."""
    b, g = 20.0, 4.0
    a = theory.delay_bound_s2(snr1=g, snr2=g, bandwidth_hz=b, window_s=1.0)
    speed = 12 * a / 1.5**2
    best_s = theory.moving_lag_window_s(speed=speed, bound_s3=a)
    header(
        f"Moving lag (B = 20, g = 4, q = {speed:.2g} s, T* = {best_s:.2f} s)",
        "T / T* | RMSE (ms) | Monte Carlo",
    )
    for ratio in (0.4, 0.7, 1.0, 1.4, 2.5):
        window_s = ratio * best_s
        error = walking_errors(rng, n // 4, snr=g, bandwidth_hz=b, window_s=window_s, speed=speed)
        rmse = float(np.sqrt((error**2).mean()))
        row(ratio, 1e3 * float(np.sqrt(a / window_s + speed * window_s / 12)), 1e3 * rmse)
    print(f"\nRMSE* = {1e3 * theory.moving_lag_error_s(speed=speed, bound_s3=a):.3f} ms.")
    header(
        "Softmax over lags of the raw cross-correlation",
        "g1, g2 | beta / beta* | log score (nat) | confidence - hits",
    )
    for g1, g2 in ((0.3, 0.3), (0.2, 1.0)):
        for ratio in (0.5, 1.0, 2.0):
            score, gap = lag_posterior(rng, n, g1, g2, ratio * theory.bayes_temperature(g1, g2))
            row(f"{g1}, {g2}", ratio, score, gap)


def walking_errors(
    rng: np.random.Generator, n: int, *, snr: float, bandwidth_hz: float, window_s: float, speed: float
) -> np.ndarray:
    """Errors (s) of the lag in the middle of a window in which it follows a random walk."""
    rate = 32 * bandwidth_hz
    size, reach = round(window_s * rate), round(1.5 / bandwidth_hz * rate)
    length = 1 << int(np.ceil(np.log2(size + 6 * reach)))
    errors = []
    for _ in range(n):
        signal, noise1, noise2 = np.fft.irfft(band(rng, (3,), length, bandwidth_hz / rate), length)
        walk = np.cumsum(np.sqrt(speed / rate) * rng.standard_normal(length))
        middle = 2 * reach + size // 2
        walk -= walk[middle]
        moved = np.interp(np.arange(length) - rate * walk, np.arange(length), signal)
        one = (signal + noise1 / np.sqrt(snr))[2 * reach : 2 * reach + size]
        two = (moved + noise2 / np.sqrt(snr))[reach : 3 * reach + size]
        product = np.correlate(two, one, "valid")
        errors.append(peaks(product[None], np.arange(-reach, reach + 1) / rate)[0])
    return np.array(errors)


def lag_posterior(
    rng: np.random.Generator, n: int, snr1: float, snr2: float, beta: float
) -> tuple[float, float]:
    """Mean log weight on the true lag, and mean highest weight minus hit rate, over 64 circular lags."""
    size = 64
    signal = rng.standard_normal((n, size))
    one = signal + rng.standard_normal((n, size)) / np.sqrt(snr1)
    two = signal + rng.standard_normal((n, size)) / np.sqrt(snr2)
    # B Int x y dt is half the sum over independent samples, of which there are 2B per second.
    product = 0.5 * np.fft.irfft(np.conj(np.fft.rfft(one)) * np.fft.rfft(two), size)
    weight = np.exp(beta * (product - product.max(axis=1, keepdims=True)))
    weight /= weight.sum(axis=1, keepdims=True)
    hits = (weight.argmax(axis=1) == 0).mean()
    return float(np.log(weight[:, 0]).mean()), float(weight.max(axis=1).mean() - hits)


def spikes(rng: np.random.Generator, n: int) -> None:
    """(g) Poisson units."""
    band = {"bandwidth_hz": 20.0, "window_s": 2.0, "range_s": 0.4}
    header("Poisson units (B = 20, T = 2, +-200 ms, m = .3)", "what | reference | theory | simulated | ratio")

    def crossing(level: np.ndarray, **given: float) -> tuple[float, float]:
        """Where hits fall to 1/2, with its standard error."""
        hits = []
        for value in level:
            point = {"total_rate_hz": 600.0, "noise": 1.0, "jitter_s": 0.0} | given
            point = {k: (value if np.isnan(v) else v) for k, v in point.items()}
            error = poisson_search(rng, n, modulation=0.3, **point, **band)
            hits.append(float((np.abs(error) <= 0.025).mean()))
        return half(np.log(level), np.array(hits), n, rng)

    g = float(theory.spike_snr(total_rate_hz=600, modulation=0.3, bandwidth_hz=20))
    predicted = theory.critical_noise(snr_other=g, **band)
    at, error = crossing(predicted * np.exp(np.linspace(-0.4, 0.4, 7)), noise=np.nan)
    row(
        "LFP noise std at R0 = 600/s",
        "4.07 (simulated 4.00)",
        predicted,
        f"{np.exp(at):.2f} ± {np.exp(at) * error:.2f}",
        np.exp(at) / predicted,
    )
    predicted = theory.critical_spike_jitter(total_rate_hz=150, modulation=0.3, snr_field=1.0, **band)
    at, error = crossing(predicted * np.exp(np.linspace(-0.4, 0.5, 7)), jitter_s=np.nan, total_rate_hz=150.0)
    row(
        "spike jitter (ms) at R0 = 150/s, LFP noise std 1",
        "21.1 (simulated 24.3)",
        1e3 * predicted,
        f"{1e3 * np.exp(at):.1f} ± {1e3 * np.exp(at) * error:.1f}",
        np.exp(at) / predicted,
    )


def half(x: np.ndarray, hits: np.ndarray, n: int, rng: np.random.Generator) -> tuple[float, float]:
    """x at which hits cross 1/2, by a straight probit line, and its standard error by resampling the counts."""

    def root(p: np.ndarray) -> float:
        slope, base = np.polyfit(x, norm.ppf(np.clip(p, 0.5 / n, 1 - 0.5 / n)), 1)
        return float(-base / slope)

    resampled = [root(rng.binomial(n, hits) / n) for _ in range(200)]
    return root(hits), float(np.std(resampled))


def slope_of(x: np.ndarray, y: np.ndarray, error: np.ndarray) -> tuple[float, float, float]:
    """Weighted slope, intercept, and half width of the slope's 95 % t-interval."""
    weight = 1 / error**2
    centre = (weight * x).sum() / weight.sum()
    spread = (weight * (x - centre) ** 2).sum()
    slope = float((weight * (x - centre) * y).sum() / spread)
    base = float((weight * (y - slope * x)).sum() / weight.sum())
    residual = float((weight * (y - base - slope * x) ** 2).sum() / (x.size - 2))
    return slope, base, float(t.ppf(0.975, x.size - 2) * np.sqrt(max(residual, 1.0) / spread))


def law(rng: np.random.Generator, n: int, out: Path) -> None:
    """Threshold SNR (of both streams) against T, against W and against the sampling rate of the LFP."""
    base = {"bandwidth_hz": 10.0, "window_s": 4.0, "range_s": 1.0}
    sweeps = {
        "window_s": (np.geomspace(2, 32, 7), "integration time T (s)", "threshold_against_time.png"),
        "range_s": (np.geomspace(0.8, 25.6, 6), "search range W (s)", "threshold_against_range.png"),
        "rate_hz": (np.geomspace(25, 800, 6), "sampling rate of the LFP (Hz)", "threshold_against_rate.png"),
    }
    header("The law: SNR of both streams at which the lag is right half the time", "against | values")
    for name, (values, label, file) in sweeps.items():
        found, expected = [], []
        for value in values:
            point = base | ({name: value} if name != "rate_hz" else {})
            critical = theory.critical_snr(**point)
            levels = critical * np.exp(np.linspace(-0.35, 0.35, 7))
            hits = []
            for g in levels:
                more = {"rate_hz": value} if name == "rate_hz" else {}
                truth, lag = search(rng, n, snr1=g, snr2=g, **point, **more)
                hits.append(float((np.abs(lag - truth) <= 0.5 / base["bandwidth_hz"]).mean()))
            found.append(half(np.log(levels), np.array(hits), n, rng))
            expected.append(critical)
        at, error = np.array(found).T
        g, predicted = np.exp(at), np.array(expected)
        row(
            name,
            ", ".join(
                f"{v:.3g}: {a:.3f} (theory {p:.3f})" for v, a, p in zip(values, g, predicted, strict=True)
            ),
        )
        draw(name, values, g, error, predicted, base, label, out / file)


def draw(
    name: str,
    values: np.ndarray,
    g: np.ndarray,
    error: np.ndarray,
    predicted: np.ndarray,
    base: dict[str, float],
    label: str,
    path: Path,
) -> None:
    """One prediction of the law: measured, theory, and a fitted slope."""
    figure = Figure(figsize=(4.2, 3.2), layout="constrained")
    ax = figure.subplots()
    if name == "range_s":
        # A^2 = 2BT rho^2 against ln W has the slope 2 in the limit, and that of m(N)^2 before it.
        d = 2 * base["bandwidth_hz"] * base["window_s"]

        def shown(x: np.ndarray) -> np.ndarray:
            return d * (x / (1 + x)) ** 2

        y, bars = shown(g), 2 * shown(g) * error / (1 + g)
        x, unit = np.log(values), "A² per ln W"
        ax.set_ylabel("A² at threshold")
    else:

        def shown(x: np.ndarray) -> np.ndarray:
            return x / (1 + x)

        y, bars = np.log(shown(g)), error / (1 + g)
        x, unit = np.log(values), "of ln ρ on ln T" if name == "window_s" else "of ln ρ on ln rate"
        ax.set_ylabel("coherence ρ = g/(1+g) at threshold")
        ax.set_yscale("log")
    slope, start, half_width = slope_of(x, y, bars)
    expected = shown(predicted) if name == "range_s" else np.log(shown(predicted))
    slope_predicted = slope_of(x, expected, np.ones(x.size))[0]
    line = start + slope * x
    inverse = (lambda v: v) if name == "range_s" else np.exp
    ax.errorbar(
        values,
        inverse(y),
        yerr=1.96 * (bars if name == "range_s" else bars * np.exp(y)),
        fmt="o",
        color=BLUE,
        label="cross-correlation, Monte Carlo",
    )
    ax.plot(values, shown(predicted), color=ORANGE, label=f"theory, slope {slope_predicted:.3f}")
    ax.plot(values, inverse(line), "--", color="0.4", label=f"fit, slope {slope:.3f} ± {half_width:.3f}")
    ax.set_xscale("log")
    ticks = values if name != "rate_hz" else values[::2]
    ax.set_xticks(ticks, [f"{v:.3g}" for v in ticks])
    ax.minorticks_off()
    if name != "range_s":
        low, high = inverse(y).min() / 1.3, inverse(y).max() * 1.6
        marks = np.array([m for m in (0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5) if low <= m <= high])
        ax.set_ylim(low, high)
        ax.set_yticks(marks, [f"{m:g}" for m in marks])
        ax.minorticks_off()
    ax.set_xlabel(label)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=160)
    print(f"\nslope {unit}: {slope:.3f} ± {half_width:.3f} (95 %), theory {slope_predicted:.3f}\n")


def main() -> None:
    """Print the tables, write the figures."""
    parser = argparse.ArgumentParser(description="Theory beside its Monte Carlo.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the three figures")
    parser.add_argument("--quick", action="store_true", help="a tenth of the trials")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    n = 400 if options.quick else 4000
    rng = np.random.default_rng(0)
    for part in (keys, mass, smooth, delay, decoders, moving, spikes):
        part(rng, n)
    law(rng, n, options.out)


if __name__ == "__main__":
    main()
