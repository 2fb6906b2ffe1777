"""In: nothing. Out: how often the interval of each estimator of a threshold holds the truth, on curves that know it.

`python -m benchmarks.threshold` prints a markdown table. Curves fall as the hit rate of an ideal correlator does (the
law at BT = 20, BW = 10, strength falling as level^-slope, with a lapse) at ten levels, x1/4 to x4 around the truth on
average; each seed has a threshold of its own, log-normal around the truth, and counts hits in a number of trials. The
truth is drawn anew within a step of the grid each time, so levels favour nobody.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np
from scipy.optimize import curve_fit, isotonic_regression
from scipy.stats import t
from tqdm import tqdm

from neurofuse.study.threshold import threshold_of
from neurofuse.theory import anomaly_probability


@dataclass(frozen=True)
class Curves:
    """What simulated curves are like."""

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
    """Strength in units of its threshold, and hits above chance."""
    strength = np.linspace(0, 6.2, 300)
    hits = []
    for a in strength:
        share = a**2 / 40
        found = anomaly_probability(
            snr1=np.inf, snr2=share / (1 - share), bandwidth_hz=1, window_s=20, range_s=10
        )
        hits.append(1 - found)
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


def ours(method: str, **more: object):
    """An estimator of `neurofuse.study.threshold`: ln(threshold) and the ends of its interval."""

    def estimate(level: np.ndarray, curves: np.ndarray, **_: object):
        found = threshold_of(level, curves, method=method, **more)
        if found.censored is not None:
            return None
        return np.log([found.measured, *found.ci95])

    return estimate


def no_lapse(level: np.ndarray, curves: np.ndarray, **_: object):
    """A logistic curve that starts at 1, a seed each, t-interval."""

    def logistic(x: np.ndarray, at: float, slope: float) -> np.ndarray:
        return 1 / (1 + np.exp(np.clip(slope * (x - at), -50, 50)))

    at = np.array([curve_fit(logistic, np.log(level), c, p0=[0, 2], maxfev=5000)[0][0] for c in curves])
    half = t.ppf(0.975, at.size - 1) * at.std(ddof=1) / np.sqrt(at.size)
    return at.mean(), at.mean() - half, at.mean() + half


def trials_only(level: np.ndarray, curves: np.ndarray, *, n_trials: int, rng: np.random.Generator):
    """Isotonic half-maximum of all seeds pooled; the interval redraws trials and never seeds."""
    x, pooled = np.log(level), curves.mean(axis=0)

    def root(y: np.ndarray) -> float:
        falling = isotonic_regression(y, increasing=False).x
        k = min(int(np.flatnonzero(falling >= falling[0] / 2)[-1]), x.size - 2)
        share = (falling[k] - falling[0] / 2) / (falling[k] - falling[k + 1])
        return float(x[k] + share * (x[k + 1] - x[k]))

    n = n_trials * len(curves)
    redrawn = [root(rng.binomial(n, pooled) / n) for _ in range(200)]
    return root(pooled), *np.quantile(redrawn, [0.025, 0.975])


ESTIMATORS = {
    "isotonic half-maximum (default)": ours("isotonic"),
    "curve of theory, slope and lapse": ours("theory"),
    "logistic, slope and lapse": ours("theory", curve=lambda r: 1 / (1 + r)),
    "Weibull, slope and lapse": ours("theory", curve=lambda r: np.exp(-np.log(2) * r)),
    "logistic, lapse fixed at 0": no_lapse,
    "bootstrap over trials only": trials_only,
}


def main() -> None:
    """Print coverage and bias of every estimator on every kind of curve."""
    parser = argparse.ArgumentParser(
        description="Coverage of threshold estimators on curves that know the truth."
    )
    parser.add_argument("--repetitions", type=int, default=200)
    options = parser.parse_args()
    print("| estimator | " + " | ".join(c.name for c in CASES) + " |")
    print("|---" * (len(CASES) + 1) + "|")
    for name, estimate in ESTIMATORS.items():
        cells = []
        for k, case in enumerate(tqdm(CASES, desc=name, leave=False)):
            rng = np.random.default_rng(k)
            held, off, lost = [], [], 0
            for _ in range(options.repetitions):
                level, curves, truth = draw(rng, case)
                found = estimate(level, curves, n_trials=case.n_trials, rng=rng)
                if found is None:
                    lost += 1
                    continue
                held.append(found[1] <= truth <= found[2])
                off.append(found[0] - truth)
            error = np.std(off, ddof=1) / np.sqrt(len(off))
            cells.append(
                f"{np.mean(held):.3f}, {np.mean(off):+.3f} ± {error:.3f}"
                + (f", {lost} censored" if lost else "")
            )
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
