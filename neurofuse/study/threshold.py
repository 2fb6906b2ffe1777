"""In: curves over levels, a seed each, or the table of a study. Out: the level at which each decoder fails, with doubt.

A curve is the share of a gain that is left, `G = (model - fixed) / (oracle - fixed)` in R2, or a rate of hits. Seeds
are independent trainings and draws, so intervals are over seeds; more trials within one seed say nothing of another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any, Literal, get_args

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike
from scipy.optimize import isotonic_regression, least_squares
from scipy.stats import binom, t

from neurofuse.recording import FloatArray, NeurofuseError
from neurofuse.theory import anomaly_probability

Method = Literal["isotonic", "theory", "knee"]
Quantity = Literal["gain", "hit_rate"]
Censored = Literal["above", "below", "both", "unmeasured"]
# What a curve of theory leaves at level / threshold: 1 far below, 1/2 at 1, 0 far above.
Curve = Callable[[FloatArray], ArrayLike]

FEWEST_LEVELS = 4
# A seed that never has this share of the scale was past its threshold at the lowest level already.
LEAST_TOP = 0.5
WHAT = {
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
        In the unit of the level: geometric mean over seeds, or the median where some seeds are censored. None where no
        more than half of the seeds cross.
    ci95 : pair of float or None
        The 95 % t-interval over seeds, on the logarithm of the level. Where seeds are censored: a one-sided 95 % bound
        on the median over seeds, the open end None. None with a single seed.
    predicted, kappa : float or None
        The level predicted, and measured / predicted.
    criterion : str
        What the level means.
    censored : {"above", "below", "both", "unmeasured"} or None
        Side of the levels tried on which thresholds of some seeds lie; nothing is extrapolated. "unmeasured" where no
        seed has enough of a curve.
    n_seeds, n_censored : int
        Seeds used, and how many of them do not cross.
    levels : pair of float
        Lowest and highest level tried.
    per_seed : tuple of float or None
        Threshold of each seed, None where censored.
    kappa_ci95 : pair of float or None
        `ci95 / predicted`.
    model, kind, protocol, unit, note : str
        Where it was measured, and what to know about it.
    """

    measured: float | None
    ci95: tuple[float | None, float | None] | None
    predicted: float | None
    kappa: float | None
    criterion: str
    censored: Censored | None
    n_seeds: int
    n_censored: int = 0
    levels: tuple[float, float] | None = None
    per_seed: tuple[float | None, ...] = ()
    kappa_ci95: tuple[float | None, float | None] | None = None
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
    """Where curves over levels fall to half of their maximum, a curve a seed.

    Parameters
    ----------
    level : array_like, shape (n_levels,)
        Positive, different; at least 4 and better 10, evenly spread on a log scale around the threshold.
    curves : array_like, shape (n_seeds, n_levels) or (n_levels,)
        1 where everything is found, 0 where nothing is. NaN where a level was not measured.
    predicted : float, optional
        Critical level of theory, for `kappa`.
    method : {"isotonic", "theory", "knee"}
        "isotonic": half of the maximum of the closest falling curve, on ln(level). "theory": least squares of
        `(1 - lapse) h((level / threshold)^slope)`. "knee" is another quantity, the onset: where a broken line (flat,
        straight in ln(level), flat) begins to fall, less than half of the threshold.
    quantity : str
        What the curves are, for the criterion.
    larger_is_worse : bool
        False for a level such as an SNR, that helps.
    curve : function of level / threshold, optional
        h of "theory"; by default the hit rate of `neurofuse.theory.anomaly_probability` at BT = 20, BW = 10.

    Raises
    ------
    NeurofuseError
        If levels and curves do not fit together, or levels are too few.
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
    criterion = WHAT[method].format(quantity.replace("_", " "))
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
    """Threshold of one curve; 0 below and infinite above the levels tried, NaN where too little was measured."""
    known = np.isfinite(values)
    if known.sum() < FEWEST_LEVELS:
        return float("nan")
    order = np.argsort(level[known])
    x, y = np.log(level[known][order]), values[known][order]
    falling = isotonic_regression(y, increasing=False).x
    top = float(falling[0])
    if top < LEAST_TOP:
        return 0.0
    half = np.flatnonzero(falling >= top / 2)[-1]
    if half == x.size - 1:
        return float("inf")
    if method == "isotonic":
        share = (falling[half] - top / 2) / (falling[half] - falling[half + 1])
        return float(np.exp(x[half] + share * (x[half + 1] - x[half])))
    at = _fitted(x, y, top, x[half], curve) if method == "theory" else _broken_line(x, y)
    if at < x[0]:
        return 0.0
    return float(np.exp(at)) if at <= x[-1] else float("inf")


def _fitted(x: FloatArray, y: FloatArray, top: float, start: float, curve: Curve | None) -> float:
    """ln(threshold) of the best curve of theory, slope and lapse free."""
    h = curve or _law_curve

    def off(p: FloatArray) -> FloatArray:
        ratio = np.exp(np.clip(np.exp(p[1]) * (x - p[0]), -30, 30))
        return (1 - p[2]) * np.asarray(h(ratio)) - y

    tries = [
        least_squares(
            off,
            [start, np.log(slope), min(1 - top, 0.49)],
            bounds=([x[0] - 2, np.log(0.2), -0.5], [x[-1] + 2, np.log(20), 0.5]),
        )
        for slope in (0.7, 2.0)
    ]
    return float(min(tries, key=lambda r: r.cost).x[0])


@lru_cache(maxsize=1)
def _law_table() -> tuple[FloatArray, FloatArray]:
    band = {"bandwidth_hz": 1.0, "window_s": 20.0, "range_s": 10.0}
    strength = np.linspace(0, 6.3, 400)  # A, up to sqrt(2BT)
    share = (strength / np.sqrt(40.0)) ** 2
    hits = np.array([1 - anomaly_probability(snr1=np.inf, snr2=c / (1 - c), **band) for c in share])
    above_chance = (hits - hits[0]) / (1 - hits[0])
    half = float(np.interp(0.5, above_chance, strength))
    return strength / half, above_chance


def _law_curve(ratio: FloatArray) -> FloatArray:
    """Hits above chance where strength falls as 1/level."""
    strength, hits = _law_table()
    return np.interp(1 / np.asarray(ratio), strength, hits)


def _broken_line(x: FloatArray, y: FloatArray) -> float:
    """ln(level) where the best flat-straight-flat line begins to fall; both ends within the levels tried."""
    places = np.linspace(x[0], x[-1], 8 * x.size)
    best, knee = np.inf, x[0]
    for i, begin in enumerate(places[:-1]):
        for end in places[i + 1 :]:
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
    ends: tuple[float | None, float | None] | None = None
    censored: Censored | None = None
    note = ""
    if n == 0:
        censored, note = "unmeasured", f"no seed was measured at {FEWEST_LEVELS} levels or more."
    elif not above and not below:
        logs = np.log(found)
        measured = float(np.exp(logs.mean()))
        if n > 1:
            half = float(t.ppf(0.975, n - 1) * logs.std(ddof=1) / np.sqrt(n))
            ends = (float(np.exp(logs.mean() - half)), float(np.exp(logs.mean() + half)))
    else:
        censored = "both" if above and below else "above" if above else "below"
        note = _censored_note(n, above, below, levels)
        ranked = np.sort(found)
        middle = ranked[[(n - 1) // 2, n // 2]]
        if (np.isfinite(middle) & (middle > 0)).all():
            measured = float(np.sqrt(middle.prod()))
        # With k - 1 of n thresholds below it at most, the k-th is below the median in 95 % or more of cases.
        rank = int(binom.ppf(0.05, n, 0.5))
        if rank >= 1 and censored == "above":
            ends = (float(min(ranked[rank - 1], levels[1])), None)
        elif rank >= 1 and censored == "below":
            ends = (None, float(max(ranked[n - rank], levels[0])))
    kappa = measured / predicted if measured is not None and predicted is not None else None
    kappa_ends = None
    if ends is not None and predicted is not None:
        low, high = (None if e is None else e / predicted for e in ends)
        kappa_ends = (low, high)
    return Threshold(
        measured=measured,
        ci95=ends,
        predicted=predicted,
        kappa=kappa,
        criterion=criterion,
        censored=censored,
        n_seeds=n,
        n_censored=above + below,
        levels=levels,
        per_seed=tuple(float(v) if np.isfinite(v) and v > 0 else None for v in found),
        kappa_ci95=kappa_ends,
        note=note,
    )


def _censored_note(n: int, above: int, below: int, levels: tuple[float, float]) -> str:
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
        Goes before what the study says.
    fixed, oracle : str
        Models between which a gain is measured; they get no threshold of their own for "gain".
    least_gap : float
        Levels at which the oracle gains less than this in R2 are left out: there is nothing to lose there.

    Returns
    -------
    list of Threshold
        In the order of the study: model, then kind, then protocol.

    Raises
    ------
    NeurofuseError
        If the study lacks what the quantity needs.
    """
    if quantity not in get_args(Quantity):
        raise NeurofuseError(f"quantity must be one of {', '.join(get_args(Quantity))}, got '{quantity}'.")
    values = _values(study, quantity, fixed, oracle, least_gap)
    out = []
    for model in values["model"].values:
        for kind in values["kind"].values:
            level = _levels(study, kind)
            there = np.isfinite(level) & (level > 0)
            guess = _predicted(study, str(kind), predicted)
            for protocol in values["protocol"].values:
                cells = values.sel(model=model, kind=kind, protocol=protocol).transpose("seed", "level")
                if there.sum() < FEWEST_LEVELS:
                    raise NeurofuseError(
                        f"a threshold needs {FEWEST_LEVELS} levels or more, the study has {int(there.sum())} of "
                        f"'{kind}'; take 10."
                    )
                one = threshold_of(
                    level[there],
                    cells.values[:, there],
                    predicted=guess,
                    method=method,
                    quantity=quantity,
                    curve=curve,
                )
                note = one.note
                if left_out := int(np.isnan(cells.values[:, there]).all(axis=0).sum()):
                    why = "with too little to gain or no result" if quantity == "gain" else "without a result"
                    note = f"{left_out} of {int(there.sum())} levels left out, {why}. {note}".rstrip()
                unit = str(study["level_unit"].sel(kind=kind).item()) if "level_unit" in study else ""
                out.append(
                    replace(
                        one, model=str(model), kind=str(kind), protocol=str(protocol), unit=unit, note=note
                    )
                )
    return out


def _values(study: xr.Dataset, quantity: str, fixed: str, oracle: str, least_gap: float) -> xr.DataArray:
    """What is 1 where everything is found and 0 where nothing is; NaN where a cell has no result."""
    name = "r2" if quantity == "gain" else quantity
    wanted = ("model", "kind", "level", "seed", "protocol")
    if name not in study or (lacking := [d for d in wanted if d not in study[name].dims]):
        what = f"dims {', '.join(lacking)}" if name in study else f"'{name}'"
        raise NeurofuseError(
            f"the study lacks {what}; thresholds of {quantity} need '{name}' over {', '.join(wanted)}."
        )
    values = study[name]
    if "status" in study:
        values = values.where(study["status"] == "ok")
    if "axis" in values.dims:
        values = values.mean("axis", skipna=False)
    if quantity == "hit_rate":
        # The oracle is told what the others look for.
        looking = values.notnull().any([d for d in values.dims if d != "model"]) & (values["model"] != oracle)
        return values.sel(model=looking)
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
    if "level_value" in study:
        level = study["level_value"]
        return np.asarray(level.sel(kind=kind) if "kind" in level.dims else level, dtype=np.float64)
    return np.asarray(study["level"], dtype=np.float64)


def _predicted(study: xr.Dataset, kind: str, given: Mapping[str, float] | None) -> float | None:
    if given is not None and kind in given:
        return given[kind]
    if "predicted" not in study:
        return None
    value = float(study["predicted"].sel(kind=kind))
    return value if 0 < value < np.inf else None
