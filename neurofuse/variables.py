"""In: a table of results. Out: the same table, each variable and coordinate with its unit and its long name.

`VARIABLES` is the one place that defines what every column of `prediction.nc`, `alignment.nc`, `lag.nc`, `study.nc`,
`maps.nc` and of the tables returned in Python means. Attributes follow the CF conventions: `units` is "1" for a number
without a unit, and absent for text.
"""

from __future__ import annotations

import xarray as xr

# What `labelled` writes where a unit differs from table to table and none was given.
UNKNOWN = "unknown"

# Name: (unit, long name). A unit in braces is filled in by the keyword of that name; "" marks text.
VARIABLES: dict[str, tuple[str, str]] = {
    # Coordinates.
    "time": ("s", "time on the reference clock"),
    "lag": ("s", "lag: stamp on the clock minus time on the reference clock"),
    "window": ("1", "index of the window"),
    "axis": ("", "movement axis"),
    "clock": ("", "clock"),
    # Movement.
    "movement": ("{movement}", "measured movement"),
    "prediction": ("{movement}", "movement predicted by the decoder"),
    "ridge": ("{movement}", "movement predicted by ridge regression"),
    # Lag posteriors.
    "posterior": ("1", "posterior probability of each lag"),
    "lag_mean_s": ("s", "mean of the lag posterior"),
    "lag_std_s": ("s", "standard deviation of the lag posterior"),
    "lag_q05_s": ("s", "lower end of the 90 % interval of the lag"),
    "lag_q95_s": ("s", "upper end of the 90 % interval of the lag"),
    "lag_map_s": ("s", "most probable lag of each moment"),
    "lag_path_s": ("s", "most probable sequence of lags"),
    "true_lag_s": ("s", "true lag"),
    "entropy": ("nat", "entropy of the lag posterior"),
    "p_matched": ("1", "probability that the streams match"),
    "lag_drift": ("s/sqrt(s)", "drift rate of the lag"),
    "lag_jumps": ("1/s", "rate of jumps of the lag"),
    "fitted_lag_s": ("s", "lag by the fitted clock"),
    "trusted": ("1", "1 where the posterior confirms the fitted clock, else 0"),
    # Measures of attention.
    "relative_entropy": ("1", "entropy of the lag posterior over that of a uniform one"),
    "flicker": ("1/s", "rate of changes of the most probable lag"),
    "true_flicker": ("1/s", "rate of changes of the true lag"),
    "mass_on_truth": ("1", "posterior probability within the tolerance of the true lag"),
    "anomaly_rate": ("1", "share of time with the most probable lag outside the tolerance"),
    "hit_rate": ("1", "share of time with the lag within the tolerance"),
    "known_share": ("1", "share of tokens with a known true lag"),
    "calibration_error": ("1", "expected calibration error"),
    "credible_level": ("1", "probability inside a central interval of the lag posterior"),
    "coverage": ("1", "share of time with the true lag inside the interval"),
    "coverage_90": ("1", "share of time with the true lag inside the 90 % interval"),
    "confidence": ("1", "mean posterior probability near the most probable lag"),
    "accuracy": ("1", "share of time with the true lag near the most probable one"),
    "share": ("1", "share of time in the bin of confidence"),
    # Contributions of parts of the input.
    "part": ("", "part of the input"),
    "n_features": ("1", "number of features"),
    "r2": ("1", "coefficient of determination (R²)"),
    "r2_without": ("1", "R² without the part"),
    "contribution": ("1", "drop in R² without the part"),
    # Tuning.
    "feature": ("", "unit, or channel and band"),
    "stream": ("", "stream"),
    "channel": ("", "unit or channel"),
    "band": ("", "frequency band"),
    "lead": ("s", "lead: time of the movement minus time of the feature"),
    "best_r2": ("1", "R² at the best lead"),
    "best_lead_s": ("s", "lead with the largest R²"),
    "weight": ("1", "standardised regression weight at the best lead"),
    "preferred_rad": ("rad", "preferred direction"),
    # Gradients.
    "module": ("", "module of the network"),
    "offset": ("s", "time of the input token minus time of the scored token"),
    "step": ("1", "gradient step"),
    "gradient_norm": ("1", "norm of the gradient of the loss"),
    "relative_norm": ("1", "gradient norm over that at the decoded movement"),
    "shortest": ("1", "fewest nonlinear layers between the loss and the module"),
    "longest": ("1", "most nonlinear layers between the loss and the module"),
    # Studies.
    "model": ("", "decoder"),
    "kind": ("", "kind of jitter, or of module"),
    "protocol": ("", "training protocol"),
    "seed": ("1", "random seed"),
    "level": ("1", "index of the jitter level"),
    "level_value": ("{level}", "jitter level"),
    "level_unit": ("", "unit of the jitter level"),
    "levels_from": ("", "origin of the jitter levels"),
    "predicted": ("{level}", "critical jitter level predicted by theory"),
    "base_lag": ("", "lag under which the jitter is varied"),
    "seconds": ("s", "computing time"),
    "status": ("", "status of the cell"),
    "message": ("", "reason for the status"),
    "time_s": ("s", "time on the reference clock"),
}


def labelled(table: xr.Dataset, **units: str) -> xr.Dataset:
    """A copy of a table with `units` and `long_name` on every variable and coordinate of `VARIABLES`.

    Parameters
    ----------
    table : Dataset
        Variables that `VARIABLES` does not list are left as they are.
    **units : str
        The units that depend on the recording: `movement`, and `level` of a jitter. An empty one counts as unknown.

    Examples
    --------
    >>> table = labelled(xr.Dataset({"movement": ("time", [0.1])}, coords={"time": [2.0]}), movement="cm/s")
    >>> table["movement"].attrs["units"], table["time"].attrs["units"]
    ('cm/s', 's')
    """
    out = table.copy()
    for name in out.variables:
        unit, long_name = VARIABLES.get(str(name), (None, ""))
        if unit is None:
            continue
        if unit.startswith("{"):
            unit = units.get(unit.strip("{}")) or UNKNOWN
        out[name].attrs.update(({"units": unit} if unit else {}) | {"long_name": long_name})
    return out
