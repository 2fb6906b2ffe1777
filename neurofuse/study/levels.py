"""In: a kind of jitter and the recording it will spoil. Out: the levels to try, and where they come from.

Where theory predicts a critical level, levels are spaced evenly in the logarithm from a quarter of it to four times
it. Elsewhere they span a range that is physical for the kind, and the table says so.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from neurofuse.jitters.jitter import Jitter
from neurofuse.jitters.kinds import is_lag, parse_lag

# Levels reach this factor to either side of the critical one.
AROUND = 4.0
# Largest level of kinds without a prediction; the least is AROUND^2 times smaller.
LARGEST = {
    # Spikes of one movement code are still locked to it within its own time scale, some hundred milliseconds.
    "spikes, s": 0.4,
    # A share of everything; at all of it there is nothing left to find.
    "share": 0.96,
    # Delays of filters reach 74 ms, waves across an array the same order; twice that is beyond both.
    "lfp, s": 0.16,
    # In half a second, the evidence of a window's worth, such a walk is as far as is searched.
    "s^2/s": 0.1,
    # Noise of the same in-band power as the signal lies in the middle.
    "ratio": 4.0,
}
# Levels that are a share, and so end at one.
SHARES = ("delete", "mislabel", "drop-unit", "drop-hidden", "drop-marked")


@dataclass(frozen=True)
class Levels:
    """The levels of one kind.

    Parameters
    ----------
    values : tuple of float
        In rising order, in `unit`.
    unit : str
    predicted : float
        Critical level of theory, NaN where there is none.
    origin : str
        Where the levels come from: "given", "around the predicted critical level", or the range that was taken.
    """

    values: tuple[float, ...]
    unit: str
    predicted: float
    origin: str


def spaced(low: float, high: float, n: int) -> tuple[float, ...]:
    """`n` levels, evenly in the logarithm, to four digits."""
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
        Levels asked for.
    predicted : float
        Critical level, NaN if there is no prediction.
    n_levels : int
    span_s, max_lag_s : float
        Length of the recording, and how far a lag is searched.
    """
    kind, unit = jitter.kind, jitter.unit
    if given:
        return Levels(tuple(sorted(given)), unit, predicted, "given")
    top = largest(kind, unit, jitter.acts_on, span_s=span_s, max_lag_s=max_lag_s)
    limit = 1.0 if kind in SHARES else np.inf
    if np.isfinite(predicted) and predicted < limit:
        # Never past what the kind can be: a share below one, a lag within the search.
        high = min(AROUND * predicted, top if is_lag(kind) or kind in SHARES else np.inf)
        if high > predicted / AROUND:
            return Levels(
                spaced(predicted / AROUND, high, n_levels),
                unit,
                predicted,
                "around the predicted critical level",
            )
    # What varies with a variance varies with the square of a size.
    low = top / AROUND ** (4 if unit == "s^2/s" else 2)
    return Levels(
        spaced(low, top, n_levels), unit, predicted, f"no prediction; the range {low:.3g} to {top:.3g} {unit}"
    )


def largest(kind: str, unit: str, acts_on: str, *, span_s: float, max_lag_s: float) -> float:
    """The largest level worth trying where theory says nothing."""
    if unit == "ppm":
        return _reaching(kind, span_s, max_lag_s)
    if is_lag(kind):
        return LARGEST.get(unit, max_lag_s)
    if kind in SHARES:
        return LARGEST["share"]
    if unit == "s":
        return LARGEST["lfp, s" if acts_on == "lfp" else "spikes, s"]
    return LARGEST["ratio"]


def _reaching(kind: str, span_s: float, max_lag_s: float) -> float:
    """The level at which a lag law reaches as far as is searched, rounded down so as not to reach beyond."""
    low, high = 1e-3, 1e9
    for _ in range(100):
        middle = float(np.sqrt(low * high))
        low, high = (
            (middle, high) if parse_lag(f"{kind}:{middle!r}").reach_s(span_s) <= max_lag_s else (low, middle)
        )
    digits = 10 ** (np.floor(np.log10(low)) - 3)
    return float(f"{np.floor(low * (1 + 1e-9) / digits) * digits:.4g}")
