"""In: nothing. Out: coverage of the interval of each estimator of a threshold, on curves with a known threshold.

`python -m benchmarks.threshold` prints a markdown table. Curves fall as the hit rate of an ideal correlator (the law at
BT = 20, BW = 10, SNR falling as level^-slope, with a lapse) at ten levels, x1/4 to x4 around the true threshold on
average. The threshold of each seed is log-normal around the true one, and its hits are counted in a number of trials.
The true threshold is drawn within one step of the grid each time, so that levels favour no estimator.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import curve_fit, isotonic_regression
from scipy.stats import t
from tqdm import tqdm

from neurofuse.study.threshold import Curve, Method, threshold_of
from neurofuse.theory import anomaly_probability


@dataclass(frozen=True)
class Curves:
    """Parameters of simulated curves."""

    name: str
    slope: float = 1.0
    lapse: float = 0.08
    spread: float = 0.15  # of ln(threshold) over seeds
    n_trials: int = 200
    n_seeds: int = 5
    n_levels: int = 10


CASES = (
    Curves("the law"),
    Curves("steeper, few trials", slope=1.6, n_trials=60),
    Curves("no lapse, many trials", lapse=0.0, n_trials=1000),
    Curves("much lapse", lapse=0.2),
    Curves("seeds much alike", spread=0.03),
    Curves("ten seeds", n_seeds=10),
)


def table() -> tuple[np.ndarray, np.ndarray]:
    """SNR of the correlation in units of its threshold, and hit rate above chance."""
    strength = np.linspace(0, 6.2, 300)
    hits = []
    for a in strength:
        share = a**2 / 40
        snr = share / (1 - share)
        hits.append(1 - anomaly_probability(snr1=np.inf, snr2=snr, bandwidth_hz=1, window_s=20, range_s=10))
    above = (np.array(hits) - hits[0]) / (1 - hits[0])
    return strength / np.interp(0.5, above, strength), above


STRENGTH, HITS = table()


def draw(rng: np.random.Generator, case: Curves) -> tuple[np.ndarray, np.ndarray, float]:
    """Levels, curves (n_seeds, n_levels) and the true ln(threshold)."""
    level = np.geomspace(0.25, 4, case.n_levels)
    truth = (rng.random() - 0.5) * float(np.log(level[1] / level[0]))
    own = truth + case.spread * rng.standard_normal((case.n_seeds, 1))
    ratio = np.exp(case.slope * (np.log(level) - own))
    p = (1 - case.lapse) * np.interp(1 / ratio, STRENGTH, HITS)
    return level, rng.binomial(case.n_trials, p) / case.n_trials, truth


# ln(threshold) and the ends of its interval; None where it is censored.
Estimate = tuple[float, float, float] | None


def of_neurofuse(method: Method, curve: Curve | None = None) -> Callable[..., Estimate]:
    """An estimator of `neurofuse.study.threshold`."""

    def estimate(level: np.ndarray, curves: np.ndarray, **_: object) -> Estimate:
        found = threshold_of(level, curves, method=method, curve=curve)
        if found.censored is not None or found.ci95 is None:
            return None
        measured, low, high = np.log([found.measured, *found.ci95])
        return measured, low, high

    return estimate


def no_lapse(level: np.ndarray, curves: np.ndarray, **_: object) -> Estimate:
    """A logistic curve per seed that starts at 1, t-interval."""

    def logistic(x: np.ndarray, at: float, slope: float) -> np.ndarray:
        return 1 / (1 + np.exp(np.clip(slope * (x - at), -50, 50)))

    logs = np.array([curve_fit(logistic, np.log(level), c, p0=[0, 2], maxfev=5000)[0][0] for c in curves])
    half = t.ppf(0.975, logs.size - 1) * logs.std(ddof=1) / np.sqrt(logs.size)
    return logs.mean(), logs.mean() - half, logs.mean() + half


def trials_only(
    level: np.ndarray, curves: np.ndarray, *, n_trials: int, rng: np.random.Generator
) -> Estimate:
    """Isotonic half-maximum of all seeds pooled; the interval resamples trials and not seeds."""
    x, pooled = np.log(level), curves.mean(axis=0)

    def root(y: np.ndarray) -> float:
        falling = isotonic_regression(y, increasing=False).x
        k = min(int(np.flatnonzero(falling >= falling[0] / 2)[-1]), x.size - 2)
        share = (falling[k] - falling[0] / 2) / (falling[k] - falling[k + 1])
        return float(x[k] + share * (x[k + 1] - x[k]))

    n = n_trials * len(curves)
    resampled = [root(rng.binomial(n, pooled) / n) for _ in range(200)]
    low, high = np.quantile(resampled, [0.025, 0.975])
    return root(pooled), low, high


ESTIMATORS = {
    "isotonic half-maximum (default)": of_neurofuse("isotonic"),
    "curve of theory, slope and lapse": of_neurofuse("theory"),
    "logistic, slope and lapse": of_neurofuse("theory", lambda r: 1 / (1 + r)),
    "Weibull, slope and lapse": of_neurofuse("theory", lambda r: np.exp(-np.log(2) * r)),
    "logistic, lapse fixed at 0": no_lapse,
    "bootstrap over trials only": trials_only,
}


def main() -> None:
    """Print coverage and bias of every estimator on every kind of curve."""
    parser = argparse.ArgumentParser(
        description="Coverage of threshold estimators on curves with a known threshold."
    )
    parser.add_argument("--repetitions", type=int, default=200)
    options = parser.parse_args()
    print("| estimator | " + " | ".join(c.name for c in CASES) + " |")
    print("|---" * (len(CASES) + 1) + "|")
    for name, estimate in ESTIMATORS.items():
        cells = []
        for k, case in enumerate(tqdm(CASES, desc=name, leave=False)):
            rng = np.random.default_rng(k)
            covered, errors, n_censored = [], [], 0
            for _ in range(options.repetitions):
                level, curves, truth = draw(rng, case)
                found = estimate(level, curves, n_trials=case.n_trials, rng=rng)
                if found is None:
                    n_censored += 1
                    continue
                covered.append(found[1] <= truth <= found[2])
                errors.append(found[0] - truth)
            error = np.std(errors, ddof=1) / np.sqrt(len(errors))
            censored = f", {n_censored} censored" if n_censored else ""
            cells.append(f"{np.mean(covered):.3f}, {np.mean(errors):+.3f} ± {error:.3f}{censored}")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
