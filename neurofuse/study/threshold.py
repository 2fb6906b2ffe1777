"""In: curves over levels, one per seed, or the table of a study. Out: each decoder's threshold, with its interval.

A curve is a relative gain, `G = (model - fixed) / (oracle - fixed)` in R2, or a hit rate. Seeds are independent
trainings and draws, so intervals are over seeds: more trials within one seed do not narrow them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from itertools import product
from typing import Any, Literal, get_args

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike
from scipy.optimize import isotonic_regression, least_squares
from scipy.stats import binom, t

from neurofuse.errors import NeurofuseError
from neurofuse.recording import FloatArray
from neurofuse.theory import anomaly_probability

Method = Literal["isotonic", "theory", "knee"]
Quantity = Literal["gain", "hit_rate"]
Censored = Literal["above", "below", "both", "unmeasured"]
# Value of a theoretical curve at level / threshold: 1 far below, 1/2 at 1, 0 far above.
Curve = Callable[[FloatArray], ArrayLike]
# Ends of an interval, None where it is open.
Ends = tuple[float | None, float | None]

FEWEST_LEVELS = 4
# The threshold of a seed whose curve stays below this value is censored below the lowest level.
LEAST_MAXIMUM = 0.5
CRITERION_OF = {
    "isotonic": "level at half of the maximum of {}, isotonic",
    "theory": "level at half of the maximum of {}, curve of theory with slope and lapse",
    "knee": "onset: level at which {} begins to fall, broken line",
}


@dataclass(frozen=True)
class Threshold:
    """A measured critical level.

    Parameters
    ----------
    measured : float or None
        In the unit of the level: geometric mean over seeds, or the median where some seeds are censored. None where
        half of the seeds or fewer cross.
    ci95 : pair of float or None
        The 95 % t-interval over seeds, on the logarithm of the level. Where seeds are censored: a one-sided 95 % bound
        on the median over seeds, the open end None. None with a single seed.
    predicted, kappa : float or None
        The predicted level, and measured / predicted.
    criterion : str
        Definition of the threshold, in words.
    censored : {"above", "below", "both", "unmeasured"} or None
        Side of the measured levels on which thresholds of some seeds lie; nothing is extrapolated. "unmeasured" where
        no seed has enough levels.
    n_seeds, n_censored : int
        Seeds used, and how many of them do not cross.
    levels : pair of float
        Lowest and highest level.
    per_seed : tuple of float or None
        Threshold of each seed, None where censored.
    kappa_ci95 : pair of float or None
        `ci95 / predicted`.
    model, kind, protocol, unit, note : str
        Coordinates and unit of the measurement, and a remark.
    """

    measured: float | None
    ci95: Ends | None
    predicted: float | None
    kappa: float | None
    criterion: str
    censored: Censored | None
    n_seeds: int
    n_censored: int = 0
    levels: tuple[float, float] | None = None
    per_seed: tuple[float | None, ...] = ()
    kappa_ci95: Ends | None = None
    model: str = ""
    kind: str = ""
    protocol: str = ""
    unit: str = ""
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def threshold_of(
    level: ArrayLike,
    curves: ArrayLike,
    *,
    predicted: float | None = None,
    method: Method = "isotonic",
    quantity: str = "gain",
    larger_is_worse: bool = True,
    curve: Curve | None = None,
) -> Threshold:
    """Level at which curves over levels fall to half of their maximum, one curve per seed.

    Parameters
    ----------
    level : array_like, shape (n_levels,)
        Positive, without repeats; at least 4 and better 10, evenly spaced on a log scale around the threshold.
    curves : array_like, shape (n_seeds, n_levels) or (n_levels,)
        1 at full performance, 0 at none. NaN where a level was not measured.
    predicted : float, optional
        Critical level of theory, for `kappa`.
    method : {"isotonic", "theory", "knee"}
        "isotonic": half of the maximum of the best non-increasing curve, on ln(level). "theory": least squares of
        `(1 - lapse) h((level / threshold)^slope)`. "knee" is another quantity, the onset: the level at which a broken
        line (flat, straight in ln(level), flat) begins to fall, less than half of the threshold.
    quantity : str
        Name of what the curves measure, for the criterion.
    larger_is_worse : bool
        False for a level that improves performance, such as an SNR.
    curve : function of level / threshold, optional
        h of "theory"; by default the hit rate of `neurofuse.theory.anomaly_probability` at BT = 20, BW = 10.

    Raises
    ------
    NeurofuseError
        If the shapes of levels and curves do not match, or levels are too few.
    """
    if method not in get_args(Method):
        raise NeurofuseError(f"method must be one of {', '.join(get_args(Method))}, got '{method}'.")
    x = np.asarray(level, dtype=np.float64)
    y = np.atleast_2d(np.asarray(curves, dtype=np.float64))
    _check(x, y)
    if predicted is not None and not 0 < predicted < np.inf:
        raise NeurofuseError(
            f"the predicted level must be positive and finite, got {predicted!r}; leave it out."
        )
    found = np.array([_of_seed(x if larger_is_worse else 1 / x, row, method, curve) for row in y])
    if not larger_is_worse:
        with np.errstate(divide="ignore"):
            found = 1 / found
    criterion = CRITERION_OF[method].format(quantity.replace("_", " "))
    return _over_seeds(found, (float(x.min()), float(x.max())), predicted, criterion)


def _check(x: FloatArray, y: FloatArray) -> None:
    if x.ndim != 1 or y.ndim != 2 or y.shape[1] != x.size:
        raise NeurofuseError(
            f"curves must be (n_seeds, n_levels) over n_levels levels, got {y.shape} over {x.shape}."
        )
    if x.size < FEWEST_LEVELS:
        raise NeurofuseError(f"a threshold needs {FEWEST_LEVELS} levels or more, got {x.size}; take 10.")
    if not (np.isfinite(x) & (x > 0)).all() or np.unique(x).size < x.size:
        raise NeurofuseError(
            f"levels must be positive and differ, got {', '.join(f'{v:g}' for v in x)}; leave out level 0."
        )


def _of_seed(level: FloatArray, values: FloatArray, method: str, curve: Curve | None) -> float:
    """Threshold of one curve; 0 below and infinite above the measured levels, NaN where too few were measured."""
    known = np.isfinite(values)
    if known.sum() < FEWEST_LEVELS:
        return float("nan")
    order = np.argsort(level[known])
    x, y = np.log(level[known][order]), values[known][order]
    falling = isotonic_regression(y, increasing=False).x
    top = float(falling[0])
    if top < LEAST_MAXIMUM:
        return 0.0
    half = np.flatnonzero(falling >= top / 2)[-1]
    if half == x.size - 1:
        return float("inf")
    if method == "isotonic":
        share = (falling[half] - top / 2) / (falling[half] - falling[half + 1])
        return float(np.exp(x[half] + share * (x[half + 1] - x[half])))
    log_level = _fitted(x, y, top, x[half], curve) if method == "theory" else _broken_line(x, y)
    if log_level < x[0]:
        return 0.0
    return float(np.exp(log_level)) if log_level <= x[-1] else float("inf")


def _fitted(x: FloatArray, y: FloatArray, top: float, start: float, curve: Curve | None) -> float:
    """ln(threshold) of the least-squares theoretical curve, with slope and lapse as parameters."""
    h = curve or _law_curve

    def residual(p: FloatArray) -> FloatArray:
        ratio = np.exp(np.clip(np.exp(p[1]) * (x - p[0]), -30, 30))
        return (1 - p[2]) * np.asarray(h(ratio)) - y

    fits = [
        least_squares(
            residual,
            [start, np.log(slope), min(1 - top, 0.49)],
            bounds=([x[0] - 2, np.log(0.2), -0.5], [x[-1] + 2, np.log(20), 0.5]),
        )
        for slope in (0.7, 2.0)
    ]
    return float(min(fits, key=lambda fit: fit.cost).x[0])


@lru_cache(maxsize=1)
def _law_table() -> tuple[FloatArray, FloatArray]:
    """A over A at the threshold, and hit rate above chance."""
    band = {"bandwidth_hz": 1.0, "window_s": 20.0, "range_s": 10.0}
    strength = np.linspace(0, 6.3, 400)  # A, up to sqrt(2BT)
    share = (strength / np.sqrt(40.0)) ** 2
    hits = np.array([1 - anomaly_probability(snr1=np.inf, snr2=c / (1 - c), **band) for c in share])
    above_chance = (hits - hits[0]) / (1 - hits[0])
    half = float(np.interp(0.5, above_chance, strength))
    return strength / half, above_chance


def _law_curve(ratio: FloatArray) -> FloatArray:
    """Hit rate above chance where the SNR of the correlation falls as 1/level."""
    strength, hits = _law_table()
    return np.interp(1 / np.asarray(ratio), strength, hits)


def _broken_line(x: FloatArray, y: FloatArray) -> float:
    """ln(level) at which the best flat-straight-flat line begins to fall; both bends within the measured levels."""
    grid = np.linspace(x[0], x[-1], 8 * x.size)
    best, knee = np.inf, x[0]
    for i, begin in enumerate(grid[:-1]):
        for end in grid[i + 1 :]:
            ramp = np.clip((x - begin) / (end - begin), 0, 1)
            centred = ramp - ramp.mean()
            fall = centred @ y / max(centred @ centred, 1e-12)
            cost = float(np.sum((y - y.mean() - fall * centred) ** 2))
            if fall < 0 and cost < best - 1e-12:
                best, knee = cost, begin
    return float(knee)


def _over_seeds(
    found: FloatArray, levels: tuple[float, float], predicted: float | None, criterion: str
) -> Threshold:
    """Thresholds of seeds, 0 or infinite where censored, as one."""
    found = found[~np.isnan(found)]
    n, above, below = found.size, int(np.isposinf(found).sum()), int((found == 0).sum())
    measured: float | None = None
    ends: Ends | None = None
    censored: Censored | None = None
    note = ""
    if n == 0:
        censored, note = "unmeasured", f"no seed was measured at {FEWEST_LEVELS} levels or more."
    elif above or below:
        censored = "both" if above and below else "above" if above else "below"
        note = _censored_note(n, above, below, levels)
        measured, ends = _median(found, levels, censored)
    else:
        measured, ends = _geometric_mean(found)
    per_seed = tuple(float(v) if np.isfinite(v) and v > 0 else None for v in found)

    def relative(level: float | None) -> float | None:
        return None if level is None or predicted is None else level / predicted

    kappa_ends = None if ends is None or predicted is None else (relative(ends[0]), relative(ends[1]))
    counts = (n, above + below, levels, per_seed, kappa_ends)
    return Threshold(measured, ends, predicted, relative(measured), criterion, censored, *counts, note=note)


def _geometric_mean(found: FloatArray) -> tuple[float, Ends | None]:
    """Geometric mean of thresholds, and the t-interval of their logarithms; no interval of a single seed."""
    n, logs = found.size, np.log(found)
    mean = logs.mean()
    if n == 1:
        return float(np.exp(mean)), None
    half = float(t.ppf(0.975, n - 1) * logs.std(ddof=1) / np.sqrt(n))
    return float(np.exp(mean)), (float(np.exp(mean - half)), float(np.exp(mean + half)))


def _median(
    found: FloatArray, levels: tuple[float, float], censored: Censored
) -> tuple[float | None, Ends | None]:
    """Median of thresholds some of which are censored, if it is not censored itself, and its one-sided bound."""
    n, ranked = found.size, np.sort(found)
    middle = ranked[[(n - 1) // 2, n // 2]]
    median = float(np.sqrt(middle.prod())) if (np.isfinite(middle) & (middle > 0)).all() else None
    # With k - 1 of n thresholds below it at most, the k-th is below the median in 95 % or more of cases.
    rank = int(binom.ppf(0.05, n, 0.5))
    if rank >= 1 and censored == "above":
        return median, (float(min(ranked[rank - 1], levels[1])), None)
    if rank >= 1 and censored == "below":
        return median, (None, float(max(ranked[n - rank], levels[0])))
    return median, None


def _censored_note(n: int, above: int, below: int, levels: tuple[float, float]) -> str:
    """How many seeds do not cross, and on which side."""
    parts = []
    if above:
        parts.append(f"{above} of {n} seeds do not cross up to {levels[1]:.4g}")
    if below:
        parts.append(f"{below} of {n} have crossed at {levels[0]:.4g} already")
    return " and ".join(parts) + "; nothing is extrapolated."


def thresholds(
    study: xr.Dataset,
    *,
    quantity: Quantity = "gain",
    method: Method = "isotonic",
    predicted: Mapping[str, float] | None = None,
    fixed: str = "early",
    oracle: str = "oracle",
    least_gap: float = 0.02,
    curve: Curve | None = None,
) -> list[Threshold]:
    """Threshold of every model, kind of jitter and protocol of a study.

    Parameters
    ----------
    study : Dataset, dims (model, kind, level, seed, protocol)
        With `level_value` (kind, level) in physical units, or levels in `level` itself; `r2`, which may have an axis,
        or `hit_rate`; `status` where cells can fail. `predicted` and `level_unit` (kind) are used where present.
    quantity : {"gain", "hit_rate"}
        "gain": `(model - fixed) / (oracle - fixed)` in R2, the mean over axes; numerators are paired within a seed,
        the denominator is the mean over seeds. "hit_rate" needs no references.
    method, curve
        See `threshold_of`.
    predicted : mapping of kind -> level, optional
        Takes precedence over predictions of the study.
    fixed, oracle : str
        Models between which a gain is measured; they have no threshold of their own for "gain".
    least_gap : float
        Levels at which the oracle gains less than this in R2 are left out: no relative gain is defined there.

    Returns
    -------
    list of Threshold
        In the order of the study: model, then kind, then protocol.

    Raises
    ------
    NeurofuseError
        If the study lacks variables, dimensions, models or levels that the quantity needs.
    """
    if quantity not in get_args(Quantity):
        raise NeurofuseError(f"quantity must be one of {', '.join(get_args(Quantity))}, got '{quantity}'.")
    values = _values(study, quantity, fixed, oracle, least_gap)
    measure = partial(threshold_of, method=method, quantity=quantity, curve=curve)
    out = []
    for model, kind in product(values["model"].values, values["kind"].values):
        level = _levels(study, kind)
        usable = np.isfinite(level) & (level > 0)
        if usable.sum() < FEWEST_LEVELS:
            raise NeurofuseError(
                f"a threshold needs {FEWEST_LEVELS} levels or more, the study has {int(usable.sum())} of '{kind}'; "
                "take 10."
            )
        level_predicted = _predicted(study, str(kind), predicted)
        unit = str(study["level_unit"].sel(kind=kind).item()) if "level_unit" in study else ""
        for protocol in values["protocol"].values:
            cells = values.sel(model=model, kind=kind, protocol=protocol).transpose("seed", "level")
            curves = cells.values[:, usable]
            one = measure(level[usable], curves, predicted=level_predicted)
            note = f"{_left_out_note(curves, quantity)} {one.note}".strip()
            out.append(
                replace(one, model=str(model), kind=str(kind), protocol=str(protocol), unit=unit, note=note)
            )
    return out


def _left_out_note(curves: FloatArray, quantity: str) -> str:
    """How many levels have no value in any seed, and why."""
    left_out = int(np.isnan(curves).all(axis=0).sum())
    if not left_out:
        return ""
    why = "with too little to gain or no result" if quantity == "gain" else "without a result"
    return f"{left_out} of {curves.shape[1]} levels left out, {why}."


def _values(study: xr.Dataset, quantity: str, fixed: str, oracle: str, least_gap: float) -> xr.DataArray:
    """The quantity over cells, 1 at full performance and 0 at none; NaN where a cell has no result."""
    name = "r2" if quantity == "gain" else quantity
    dims = ("model", "kind", "level", "seed", "protocol")
    if name not in study or (lacking := [d for d in dims if d not in study[name].dims]):
        what = f"dims {', '.join(lacking)}" if name in study else f"'{name}'"
        raise NeurofuseError(
            f"the study lacks {what}; thresholds of {quantity} need '{name}' over {', '.join(dims)}."
        )
    values = study[name]
    if "status" in study:
        values = values.where(study["status"] == "ok")
    if "axis" in values.dims:
        values = values.mean("axis", skipna=False)
    if quantity == "hit_rate":
        # The oracle is given the lag that the others estimate.
        estimated = values.notnull().any([d for d in values.dims if d != "model"]) & (
            values["model"] != oracle
        )
        return values.sel(model=estimated)
    models = [str(m) for m in values["model"].values]
    for reference in (fixed, oracle):
        if reference not in models:
            raise NeurofuseError(
                f"a gain is measured between '{fixed}' and '{oracle}', but the study has {', '.join(models)}; add "
                "both, or take quantity='hit_rate'."
            )
    base = values.sel(model=fixed, drop=True)
    gap = (values.sel(model=oracle, drop=True) - base).mean("seed")
    return ((values - base) / gap.where(gap >= least_gap)).sel(
        model=[m for m in models if m not in (fixed, oracle)]
    )


def _levels(study: xr.Dataset, kind: str) -> FloatArray:
    """Levels of a kind in physical units, shape (n_levels,)."""
    if "level_value" in study:
        level = study["level_value"]
        return np.asarray(level.sel(kind=kind) if "kind" in level.dims else level, dtype=np.float64)
    return np.asarray(study["level"], dtype=np.float64)


def _predicted(study: xr.Dataset, kind: str, given: Mapping[str, float] | None) -> float | None:
    """Critical level of a kind: a given one, that of the study, or None."""
    if given is not None and kind in given:
        return given[kind]
    if "predicted" not in study:
        return None
    value = float(study["predicted"].sel(kind=kind))
    return value if 0 < value < np.inf else None
