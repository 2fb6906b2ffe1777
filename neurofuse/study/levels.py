"""In: a kind of jitter and the recording it will be applied to. Out: the levels to measure at, and their origin.

Where theory predicts a critical level, levels are spaced evenly on a log scale from a quarter of it to four times it.
Elsewhere they span a physical range of the kind. The table records which of the two.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from neurofuse.jitters.jitter import Jitter
from neurofuse.jitters.kinds import is_lag, parse_lag

# Levels extend by this factor to either side of the critical one.
AROUND = 4.0
# Largest level of kinds without a prediction; the smallest is AROUND^2 times smaller.
LARGEST = {
    # Beyond the correlation time of a movement, a few hundred milliseconds, spikes carry no timing of it.
    "spikes, s": 0.4,
    # A fraction of all spikes, units or samples: at one nothing is left.
    "share": 0.96,
    # Delays of filters reach 74 ms, and those of waves across an array the same order; twice that is beyond both.
    "lfp, s": 0.16,
    # A walk of this diffusion has a standard deviation of 0.22 s after half a second, near the limits of the search.
    "s^2/s": 0.1,
    # Noise of the same in-band power as the signal lies in the middle of the range.
    "ratio": 4.0,
}
# Kinds whose level is a fraction, at most one.
SHARE_KINDS = ("delete", "mislabel", "drop-unit", "drop-hidden", "drop-marked")


@dataclass(frozen=True)
class Levels:
    """The levels of one kind.

    Parameters
    ----------
    values : tuple of float
        In increasing order, in `unit`.
    unit : str
    predicted : float
        Critical level of theory, NaN where there is none.
    origin : str
        "given", "around the predicted critical level", or the range that was used without a prediction.
    """

    values: tuple[float, ...]
    unit: str
    predicted: float
    origin: str


def spaced(low: float, high: float, n: int) -> tuple[float, ...]:
    """`n` levels, evenly spaced on a log scale, to four digits."""
    return tuple(float(f"{x:.4g}") for x in np.geomspace(low, high, n))


def plan_levels(
    jitter: Jitter,
    *,
    given: tuple[float, ...] | None,
    predicted: float,
    n_levels: int,
    span_s: float,
    max_lag_s: float,
) -> Levels:
    """Levels of one kind.

    Parameters
    ----------
    jitter : Jitter
        Of the kind, at any level.
    given : tuple of float, optional
        Levels of the user, which take precedence.
    predicted : float
        Critical level, NaN if there is no prediction.
    n_levels : int
        Number of levels where none are given.
    span_s, max_lag_s : float
        Length of the recording, and the largest lag searched.
    """
    kind, unit = jitter.kind, jitter.unit
    if given:
        return Levels(tuple(sorted(given)), unit, predicted, "given")
    top = largest(kind, unit, jitter.acts_on, span_s=span_s, max_lag_s=max_lag_s)
    if np.isfinite(predicted) and predicted < (1.0 if kind in SHARE_KINDS else np.inf):
        # At most what the kind can be: a fraction below one, a lag within the search.
        high = min(AROUND * predicted, top if is_lag(kind) or kind in SHARE_KINDS else np.inf)
        if high > predicted / AROUND:
            values = spaced(predicted / AROUND, high, n_levels)
            return Levels(values, unit, predicted, "around the predicted critical level")
    # A level that is a variance spans the square of the range of a standard deviation.
    low = top / AROUND ** (4 if unit == "s^2/s" else 2)
    origin = f"no prediction; the range {low:.3g} to {top:.3g} {unit}"
    return Levels(spaced(low, top, n_levels), unit, predicted, origin)


def largest(kind: str, unit: str, acts_on: str, *, span_s: float, max_lag_s: float) -> float:
    """The largest level of a kind without a prediction, in `unit`."""
    if unit == "ppm":
        return _largest_within(kind, span_s, max_lag_s)
    if is_lag(kind):
        return LARGEST.get(unit, max_lag_s)
    if kind in SHARE_KINDS:
        return LARGEST["share"]
    if unit == "s":
        return LARGEST["lfp, s" if acts_on == "lfp" else "spikes, s"]
    return LARGEST["ratio"]


def _largest_within(kind: str, span_s: float, max_lag_s: float) -> float:
    """The level at which the lags of a law reach `max_lag_s`, by bisection, rounded down so as not to exceed it."""
    low, high = 1e-3, 1e9
    for _ in range(100):
        middle = float(np.sqrt(low * high))
        within = parse_lag(f"{kind}:{middle!r}").reach_s(span_s) <= max_lag_s
        low, high = (middle, high) if within else (low, middle)
    digits = 10 ** (np.floor(np.log10(low)) - 3)
    return float(f"{np.floor(low * (1 + 1e-9) / digits) * digits:.4g}")
