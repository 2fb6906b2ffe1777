"""In: tokens with movement. Out: how much of every unit, channel and band movement explains, and at which lead."""

from __future__ import annotations

import numpy as np
import xarray as xr
from scipy.ndimage import gaussian_filter1d

from neurofuse.errors import NeurofuseError
from neurofuse.recording import FloatArray
from neurofuse.tokens import ClockTokens, Tokens
from neurofuse.variables import labelled

# Tuning is not estimated from fewer tokens.
MIN_TOKENS = 50


def unit_tuning(tokens: Tokens, *, max_lead_s: float = 0.3, smooth_s: float = 0.1) -> xr.Dataset:
    """Regress every feature on movement at a range of leads: linear (for two axes of velocity, cosine) tuning.

    Every clock is taken as it was stamped, so where clocks disagree the best lead includes their lag.

    Parameters
    ----------
    tokens : Tokens
        With movement.
    max_lead_s : float
        Leads from minus this to this, one per token: at lead l a feature at t is paired with movement at t + l.
    smooth_s : float
        Standard deviation of the Gaussian by which features and movement are smoothed, seconds.

    Returns
    -------
    Dataset, dims (feature, lead, axis)
        `r2` (feature, lead), the share of a feature's variance that movement explains in the data it was fitted to;
        at the best lead `best_r2`, `best_lead_s` and `weight` (feature, axis), in standard deviations of the feature
        per standard deviation of the axis; for two axes or more `preferred_rad`, the direction in the first two in
        which the feature is largest. `clock`, `stream`, `channel` (or unit) and `band` of every feature.

    Raises
    ------
    NeurofuseError
        If there is no movement, or too little of it.

    References
    ----------
    Moran and Schwartz (1999), Motor cortical representation of speed and direction during reaching.
    """
    if not tokens.axes:
        raise NeurofuseError("these tokens hold no movement to be tuned to; load a recording with movement.")
    known = np.isfinite(tokens.movement).all(axis=1)
    if known.sum() < MIN_TOKENS:
        raise NeurofuseError(
            f"movement covers {int(known.sum())} tokens, too few to estimate tuning; {MIN_TOKENS} are needed."
        )
    sigma = smooth_s / tokens.token_s
    reach = round(max_lead_s / tokens.token_s)
    leads = np.arange(-reach, reach + 1)
    moved = _smoothed(np.where(known[:, None], tokens.movement, 0.0), known, sigma)
    found = [_of_clock(c, tokens, moved, known, leads, sigma) for c in tokens.clocks]
    r2 = np.concatenate([f[0] for f in found])
    weight = np.concatenate([f[1] for f in found])
    counted = np.concatenate([c.counted for c in tokens.clocks])
    best = np.nan_to_num(r2, nan=-1.0).argmax(axis=1)
    rows = np.arange(len(best))
    at_best = weight[rows, best]
    features = [f for c in tokens.clocks for f in c.features]
    streams, channels, bands = zip(
        *(_named(f, bool(k)) for f, k in zip(features, counted, strict=True)), strict=True
    )
    table = xr.Dataset(
        {
            "r2": (("feature", "lead"), r2),
            "best_r2": ("feature", r2[rows, best]),
            "best_lead_s": ("feature", leads[best] * tokens.token_s),
            "weight": (("feature", "axis"), at_best),
        },
        coords={
            "feature": features,
            "lead": leads * tokens.token_s,
            "axis": list(tokens.axes),
            "clock": ("feature", [c.clock for c in tokens.clocks for _ in c.features]),
            "stream": ("feature", list(streams)),
            "channel": ("feature", list(channels)),
            "band": ("feature", list(bands)),
        },
        attrs={"smooth_s": smooth_s, "units": tokens.units},
    )
    if len(tokens.axes) > 1:
        table["preferred_rad"] = ("feature", np.arctan2(at_best[:, 1], at_best[:, 0]))
    return labelled(table)


def _named(feature: str, counted: bool) -> tuple[str, str, str]:
    """Stream, unit or channel, and band of a feature called `stream/unit` or `stream/channel band`."""
    stream, _, rest = feature.partition("/")
    channel, _, band = ("", "", "") if counted else rest.rpartition(" ")
    return (stream, channel, band) if channel else (stream, rest, "")


def _smoothed(values: np.ndarray, present: np.ndarray, sigma: float) -> FloatArray:
    """Gaussian average over time of the rows that are present, shape (n, k)."""
    weight = gaussian_filter1d(present.astype(np.float64), sigma, mode="constant")
    total = gaussian_filter1d(values.astype(np.float64), sigma, axis=0, mode="constant")
    smooth: FloatArray = total / np.maximum(weight, 1e-9)[:, None]
    return smooth


def _of_clock(
    clock: ClockTokens, tokens: Tokens, moved: FloatArray, known: np.ndarray, leads: np.ndarray, sigma: float
) -> tuple[FloatArray, FloatArray]:
    """R2 (feature, lead) and standardised weights (feature, lead, axis) of one clock's features."""
    values, present = clock.gather(tokens.per_token * np.arange(tokens.n_tokens)[None], tokens.per_token)
    y_all, recorded = _smoothed(values[0] * present[0][:, None], present[0], sigma), present[0]
    r2 = np.full((clock.n_features, leads.size), np.nan)
    weight = np.full((clock.n_features, leads.size, moved.shape[1]), np.nan)
    n = tokens.n_tokens
    for k, lead in enumerate(leads):
        a, b = slice(max(0, -lead), n - max(0, lead)), slice(max(0, lead), n - max(0, -lead))
        both = recorded[a] & known[b]
        if both.sum() < MIN_TOKENS:
            continue
        x, y = moved[b][both], y_all[a][both]
        x, y = x - x.mean(axis=0), y - y.mean(axis=0)
        size = x.std(axis=0)
        x = x / np.where(size > 0, size, 1.0)
        spread = y.std(axis=0)
        fit = np.linalg.lstsq(x, y, rcond=None)[0]
        with np.errstate(invalid="ignore", divide="ignore"):
            r2[:, k] = np.where(spread > 0, 1 - (y - x @ fit).var(axis=0) / spread**2, np.nan)
            weight[:, k] = np.where(spread > 0, fit / spread, np.nan).T
    return r2, weight
