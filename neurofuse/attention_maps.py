"""In: a fitted decoder and windows, or lag posteriors. Out: attention over lags, its quality, and contributions to R2.

Attention over lags may lie on the truth or not, it may flicker, and it may be sharp and wrong, so no single number
shows whether it works.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from neurofuse.errors import NeurofuseError
from neurofuse.recording import GAP_SAMPLES, FloatArray
from neurofuse.scores import hit_tolerance_s, hits, posterior_quantile, r2_per_axis, share_inside
from neurofuse.tokens import ClockTokens
from neurofuse.variables import labelled
from neurofuse.windows import Windows

if TYPE_CHECKING:
    from neurofuse.decoders.base import Decoder

# Probability inside the central intervals whose coverage is measured.
CREDIBLE_LEVELS = (0.5, 0.8, 0.9, 0.95)
# Equal bins of confidence (Guo et al. 2017, "On calibration of modern neural networks").
N_BINS = 10


def attention(
    decoder: Decoder, windows: Windows, *, truth_s: Mapping[str, ArrayLike] | None = None
) -> xr.Dataset:
    """Attention of a decoder over lags at every token of some windows.

    Parameters
    ----------
    decoder : Decoder
        Fitted, and one that estimates a lag.
    windows : Windows
    truth_s : mapping of clock -> array_like, optional
        True lag (s) of a clock, of a shape that broadcasts to (n_windows, n_steps), where it is known and the
        windows do not hold it; `LagTruth.at(windows.time_s)` is one.

    Returns
    -------
    Dataset, dims (clock, window, step, lag)
        `posterior`, which sums to one over lags (the mean over heads where they differ); `lag_path_s`, the most
        probable sequence of lags; `true_lag_s` if it is known anywhere. `time` (s, window by step) is on the
        anchor's clock, `lag` in seconds: what happened at t is stamped t + lag.

    Raises
    ------
    NeurofuseError
        If the decoder estimates no lag, or `truth_s` names a clock that is not searched.
    """
    found = decoder.decode(windows)
    tokens, clocks = windows.tokens, list(found.posterior)
    if not clocks:
        raise NeurofuseError(
            f"decoder '{decoder.name}' has no attention over lags on clocks {[c.clock for c in tokens.clocks]}; take a "
            "decoder that estimates a lag, such as 'tracked', and a recording with a second clock."
        )
    if unknown := sorted(set(truth_s or {}) - set(clocks)):
        raise NeurofuseError(f"truth_s names clock '{unknown[0]}', but the clocks searched are {clocks}.")
    known_s = dict(zip([c.clock for c in tokens.clocks[1:]], np.moveaxis(windows.lag_s, -1, 0), strict=True))
    known_s |= {c: np.broadcast_to(np.asarray(v, float), windows.shape) for c, v in (truth_s or {}).items()}
    steps = ("clock", "window", "step")
    table = xr.Dataset(
        {
            "posterior": ((*steps, "lag"), np.stack([found.posterior[c] for c in clocks])),
            "lag_path_s": (steps, np.stack([found.lag_s[found.path[c]] for c in clocks])),
            "true_lag_s": (steps, np.stack([known_s[c] for c in clocks])),
        },
        coords={"clock": clocks, "time": (("window", "step"), windows.time_s), "lag": found.lag_s},
        attrs={
            "decoder": decoder.name,
            "reference": tokens.clocks[0].clock,
            "token_s": tokens.token_s,
            "hit_tolerance_s": hit_tolerance_s(tokens.token_s),
            "truth_step_s": tokens.fine_s,
        },
    )
    return labelled(table if np.isfinite(table["true_lag_s"]).any() else table.drop_vars("true_lag_s"))


def attention_scores(table: xr.Dataset, *, bandwidth_hz: float | None = None) -> xr.Dataset:
    """Accuracy, steadiness and calibration of attention over lags.

    Parameters
    ----------
    table : Dataset, dims (clock, window, step, lag) or (clock, time, lag)
        From `attention`, or the `alignment` of `decode_recording`. With `posterior`, and `true_lag_s` where known.
    bandwidth_hz : float, optional
        One-sided bandwidth B of what the clocks share: lags within +-1/(2B) count as one lag, since the streams do
        not separate them (never less than half a step of the lag grid). By default the tolerance is that of a hit.

    Returns
    -------
    Dataset, dims (clock,), (clock, credible_level) and (clock, bin)
        `entropy` (nats) and `relative_entropy` (over log L, the largest there can be); `flicker`, the rate (1/s) at
        which the most probable lag changes by more than the tolerance between neighbouring tokens of one window.

        Where a truth is known: `mass_on_truth`, the mean probability within the tolerance of it; `anomaly_rate`,
        one minus the hit rate of the most probable lag of each token; `true_flicker`, the rate of such changes of the
        truth itself; `coverage` (credible_level), how often a central interval of that probability holds the truth;
        `calibration_error`, the expected gap between `confidence` (the probability within the tolerance of the most
        probable lag) and `accuracy` (how often the truth is there), over bins of confidence with their `share` of
        the time; `known_share`, the share of tokens all these are taken over.

    Raises
    ------
    NeurofuseError
        If the table holds no posterior, or the bandwidth is not positive.

    Notes
    -----
    `lag_scores` takes the hit rate of the most probable path, this one that of each token's most probable lag; the
    definition of a hit and its tolerance are the same, unless a bandwidth is given.

    Mean mass on the truth is an improper score: it rewards sharpness beyond what the data support, so nothing should
    be tuned on it. Entropy alone cannot detect failure: past the critical noise level attention is sharp and wrong.
    """
    if "posterior" not in table or not {"clock", "lag"} <= set(table["posterior"].dims):
        raise NeurofuseError(
            "the table holds no 'posterior' over clocks and lags; give one from attention() or the alignment of "
            f"decode_recording(), not one with {sorted(map(str, table.variables))}."
        )
    if bandwidth_hz is not None and not bandwidth_hz > 0:
        raise NeurofuseError(f"bandwidth_hz must be positive, got {bandwidth_hz:g}.")
    posterior_CML, steps = _flattened(table)
    lag_s = table["lag"].values
    lag_step_s = float(lag_s[1] - lag_s[0]) if lag_s.size > 1 else 0.0
    tolerance_s = hit_tolerance_s(steps.token_s, bandwidth_hz=bandwidth_hz, lag_step_s=lag_step_s)
    best_CM = lag_s[posterior_CML.argmax(axis=-1)]
    entropy = -(posterior_CML * np.log(np.maximum(posterior_CML, 1e-300))).sum(axis=-1).mean(axis=-1)
    out = xr.Dataset(
        {
            "entropy": ("clock", entropy),
            "relative_entropy": ("clock", entropy / np.log(max(lag_s.size, 2))),
            "flicker": ("clock", [steps.rate_of_changes(x, tolerance_s) for x in best_CM]),
        },
        coords={"clock": table["clock"].values},
        attrs={k: table.attrs[k] for k in ("decoder",) if k in table.attrs}
        | {"tolerance_s": tolerance_s, "n_lags": lag_s.size},
    )
    if "true_lag_s" in table:
        true_CM = table["true_lag_s"].transpose("clock", *steps.dims).values.reshape(best_CM.shape)
        truth_step_s = float(table.attrs.get("truth_step_s", 0.0))
        found = [
            _scores_of_clock(*one, lag_s, tolerance_s, truth_step_s)
            for one in zip(posterior_CML, best_CM, true_CM, strict=True)
        ]
        out = out.assign({n: (("clock", *d), np.stack([f[n] for f in found])) for n, d in _DIMS.items()})
        out = out.assign_coords(credible_level=list(CREDIBLE_LEVELS))
        out["true_flicker"] = ("clock", [steps.rate_of_changes(x, tolerance_s) for x in true_CM])
    return labelled(out)


@dataclass(frozen=True, eq=False)
class _Steps:
    """The M tokens of a table in one row.

    Parameters
    ----------
    dims : tuple of str
        The dimensions of the table that became one.
    token_s : float
    joined : ndarray of bool, shape (M - 1,)
        False between windows and over a gap, where a change of lag is no flicker.
    """

    dims: tuple[str, ...]
    token_s: float
    joined: np.ndarray

    def rate_of_changes(self, value_s: FloatArray, tolerance_s: float) -> float:
        """Changes beyond the tolerance per second, shape (M,) -> one number; NaN where no neighbours are known."""
        known = self.joined & np.isfinite(np.diff(value_s))
        changes = np.abs(np.diff(value_s))[known] > tolerance_s
        return float(changes.mean() / self.token_s) if known.any() else np.nan


def _flattened(table: xr.Dataset) -> tuple[FloatArray, _Steps]:
    """Posteriors of clock by token by lag, each summing to one, and the tokens they belong to."""
    dims = ("window", "step") if "step" in table["posterior"].dims else ("time",)
    posterior_CML = table["posterior"].transpose("clock", *dims, "lag").values.astype(np.float64)
    time_s = np.asarray(table["time"].values)
    token_s = float(table.attrs.get("token_s") or np.median(np.diff(time_s, axis=-1)))
    window = np.indices(time_s.shape)[0] if time_s.ndim == 2 else np.zeros(time_s.shape)
    if time_s.ndim == 1 and "window" in table:
        window = table["window"].values
    time_s, window = time_s.ravel(), window.ravel()
    posterior_CML = posterior_CML.reshape(len(posterior_CML), time_s.size, -1)
    posterior_CML /= posterior_CML.sum(axis=-1, keepdims=True)
    joined = (np.diff(time_s) <= GAP_SAMPLES * token_s) & (np.diff(time_s) > 0) & (np.diff(window) == 0)
    return posterior_CML, _Steps(dims, token_s, joined)


# What `_scores_of_clock` returns, and the dimensions of each after the clock.
_DIMS: dict[str, tuple[str, ...]] = {
    "mass_on_truth": (),
    "anomaly_rate": (),
    "calibration_error": (),
    "known_share": (),
    "coverage": ("credible_level",),
    "confidence": ("bin",),
    "accuracy": ("bin",),
    "share": ("bin",),
}


def _scores_of_clock(
    posterior_ML: FloatArray,
    best_s: FloatArray,
    true_s: FloatArray,
    lag_s: FloatArray,
    tolerance_s: float,
    truth_step_s: float,
) -> dict[str, FloatArray | float]:
    """The scores of one clock that need a truth; NaN where none is known."""
    known = np.isfinite(true_s)
    p, best_s, true_s = posterior_ML[known], best_s[known], true_s[known]

    def mass(centre_s: FloatArray) -> FloatArray:
        return (p * (np.abs(lag_s - centre_s[:, None]) <= tolerance_s)).sum(axis=-1)

    def mean(values: np.ndarray) -> float:
        return float(values.mean()) if values.size else np.nan

    hit, near_best = hits(best_s, true_s, tolerance_s=tolerance_s), mass(best_s)
    bin_ = np.minimum((near_best * N_BINS).astype(np.int64), N_BINS - 1)
    count, probability, n_hits = (
        np.bincount(bin_, weights=w, minlength=N_BINS) for w in (np.ones_like(near_best), near_best, hit)
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        confidence, accuracy, share = probability / count, n_hits / count, count / count.sum()
        calibration_error = float(np.abs(probability - n_hits).sum() / count.sum())

    def coverage(level: float) -> float:
        low_s, high_s = (posterior_quantile(p, lag_s, 0.5 + side * level / 2) for side in (-1, 1))
        return mean(share_inside(true_s, low_s, high_s, truth_step_s))

    return {
        "mass_on_truth": mean(mass(true_s)),
        "anomaly_rate": mean(~hit),
        "calibration_error": calibration_error,
        "known_share": mean(known),
        "coverage": np.array([coverage(level) for level in CREDIBLE_LEVELS]),
        "confidence": confidence,
        "accuracy": accuracy,
        "share": share,
    }


def contribution(
    decoder: Decoder, windows: Windows, *, by: Literal["stream", "feature"] = "stream"
) -> xr.Dataset:
    """Drop in R2 of a fitted decoder, of any kind, when a part of its input is masked.

    A whole clock is masked as absent. A stream or feature that shares its clock with others is set to its training
    mean, since absence belongs to a clock. This measures what the decoder uses, not what the stream carries: of two
    redundant streams neither may seem to matter, and a decoder that never met an absent clock in training can drop
    by more than the stream was worth.

    Parameters
    ----------
    decoder : Decoder
        Fitted.
    windows : Windows
        With movement; overlapping windows count their tokens as often as they hold them.
    by : {"stream", "feature"}
        Mask every clock, and every stream of a clock that has several; or every unit and channel by itself.

    Returns
    -------
    Dataset, dims (part, axis)
        `r2` (axis) with everything, `r2_without` each part, and their difference `contribution`; `clock` and
        `n_features` of each part.

    Raises
    ------
    NeurofuseError
        If the windows hold no movement, or `by` is something else.
    """
    if by not in ("stream", "feature"):
        raise NeurofuseError(f"by must be 'stream' or 'feature', got {by!r}.")
    tokens = windows.tokens
    if not tokens.axes:
        raise NeurofuseError(
            "these windows hold no movement, so no contribution to it can be measured; load some."
        )
    r2 = r2_per_axis(windows.movement, decoder.predict(windows))
    names, clocks, sizes, without = [], [], [], []
    for k, clock in enumerate(tokens.clocks):
        for name, columns in _parts_of(clock, by):
            if columns.all():
                rest = windows.without(k)
            else:
                masked = _at_mean(clock, columns, decoder.input_scales_[k].mean, tokens.per_token)
                rest_clocks = (*tokens.clocks[:k], masked, *tokens.clocks[k + 1 :])
                rest = replace(windows, tokens=replace(tokens, clocks=rest_clocks))
            without.append(r2_per_axis(windows.movement, decoder.predict(rest)))
            names.append(name)
            clocks.append(clock.clock)
            sizes.append(int(columns.sum()))
    return labelled(
        xr.Dataset(
            {
                "r2": ("axis", r2),
                "r2_without": (("part", "axis"), np.stack(without)),
                "contribution": (("part", "axis"), r2 - np.stack(without)),
            },
            coords={
                "part": names,
                "axis": list(tokens.axes),
                "clock": ("part", clocks),
                "n_features": ("part", sizes),
            },
            attrs={"decoder": decoder.name, "by": by},
        )
    )


def _parts_of(clock: ClockTokens, by: str) -> Iterator[tuple[str, np.ndarray]]:
    """Name and columns of every part of a clock that is masked by itself."""
    features = np.array(clock.features)
    if by == "feature":
        yield from ((str(f), np.arange(features.size) == k) for k, f in enumerate(features))
        return
    yield clock.clock, np.ones(features.size, dtype=bool)
    streams = np.array([f.partition("/")[0] for f in clock.features])
    if len(set(streams)) > 1:
        yield from ((f"{clock.clock}: {s}", streams == s) for s in dict.fromkeys(streams.tolist()))


def _at_mean(clock: ClockTokens, columns: np.ndarray, mean: np.ndarray, per_token: int) -> ClockTokens:
    """The clock with some features at their mean per token wherever it was recorded."""
    total = clock.total.copy()
    mean_per_fine_step = mean[columns] / np.where(clock.counted[columns], per_token, 1)
    total[:, columns] = clock.cover[:, None] * mean_per_fine_step
    return replace(clock, total=total)
