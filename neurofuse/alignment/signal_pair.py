"""In: a recording with two clocks. Out: a `SignalPair`, the signals of both on one token grid, without slow trends.

Unrelated recordings can drift alike: electrodes settle, an animal tires. Such trends carry no information about a lag
of seconds but correlate unrelated recordings, so each feature's mean over half a minute is subtracted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import xarray as xr
from scipy.ndimage import gaussian_filter1d

from neurofuse.config import FeatureConfig
from neurofuse.errors import NeurofuseError
from neurofuse.prepare import featured_recording, tokenized_recording, without_bad_channels
from neurofuse.recording import FloatArray, Recording, Signal, Stream
from neurofuse.tokens import ClockTokens, Tokens

# The mean of every feature over this long is subtracted, seconds.
TREND_S = 30.0
# Step of injected lags, seconds; twice that for recordings longer than LONG_S, which halves memory.
FINE_S, LONG_S = 0.005, 1200.0
# Step of a linear scan, and the kernel (standard deviation) its signals are smoothed with, seconds.
COARSE_S, SMOOTH_S = 0.04, 0.1
# Most principal components of a clock in a linear scan.
MAX_COMPONENTS = 48


@dataclass(frozen=True, eq=False)
class SignalPair:
    """Two clocks on one token grid; A is the reference, B the one whose lag is estimated.

    Parameters
    ----------
    tokens : Tokens
        Of two clocks, A first, without trends and without movement.
    warnings : tuple of str
    """

    tokens: Tokens
    warnings: tuple[str, ...] = ()

    @property
    def clocks(self) -> tuple[str, str]:
        """Names of A and B."""
        a, b = self.tokens.clocks
        return a.clock, b.clock

    @cached_property
    def coarse(self) -> SmoothedPair:
        """Both clocks smoothed, for linear scans."""
        every = max(1, round(COARSE_S / self.tokens.token_s))
        step_s = every * self.tokens.token_s
        n = self.tokens.n_tokens // every
        sides = []
        for clock in self.tokens.clocks:
            per = self.tokens.per_token * every
            values, present = clock.gather(per * np.arange(n)[None], per)
            smooth = gaussian_filter1d(values[0], SMOOTH_S / step_s, axis=0)
            sides.append((_components(smooth, present[0]), present[0]))
        return SmoothedPair(step_s, self.tokens.origin_s, *sides[0], *sides[1])


@dataclass(frozen=True, eq=False)
class SmoothedPair:
    """Smoothed signals of both clocks as principal components of standardised features, zero where absent.

    Parameters
    ----------
    step_s, origin_s : float
    a, b : float32 ndarray, shape (n, n_components)
    a_present, b_present : bool ndarray, shape (n,)
    """

    step_s: float
    origin_s: float
    a: np.ndarray
    a_present: np.ndarray
    b: np.ndarray
    b_present: np.ndarray

    def __len__(self) -> int:
        return len(self.a)

    @property
    def independent_s(self) -> float:
        """Seconds per independent sample, given the smoothing."""
        return max(2 * np.sqrt(np.pi) * SMOOTH_S, self.step_s)


def _components(x: np.ndarray, present: np.ndarray) -> np.ndarray:
    samples = x[present]
    if len(samples) < 2:
        return np.zeros((len(x), 1), np.float32)
    mean, std = samples.mean(0), samples.std(0)
    z = np.where(present[:, None], (x - mean) / np.where(std > 1e-9, std, np.inf), 0.0)
    values, vectors = np.linalg.eigh(z.T @ z / len(samples))
    kept = np.argsort(values)[::-1][:MAX_COMPONENTS]
    kept = kept[values[kept] > 1e-6 * max(values[-1], 1e-12)]
    return (z @ vectors[:, kept]).astype(np.float32)


def signal_pair(
    recording: Recording,
    *,
    clock: str | None = None,
    token_s: float | None = None,
    line_hz: float | None = None,
    use_movement: bool = True,
) -> SignalPair:
    """Put two clocks of a recording on one grid.

    Parameters
    ----------
    recording : Recording
        Movement, if there is any and `use_movement`, counts as one more signal of the reference clock.
    clock : str, optional
        The clock to align to the reference; by default the only other, or the first of them.
    token_s : float, optional
        Length of a token, seconds; 20 ms, or the recording's own bins where they are longer.
    line_hz : float, optional
        Mains frequency to remove from LFP.

    Raises
    ------
    NeurofuseError
        If there are not two clocks with signals.
    """
    movement = [_movement_signal(recording)] if recording.movement is not None and use_movement else []
    first, second, warnings = _choose_clocks(recording.but(streams=(*recording.streams, *movement)), clock)
    streams = tuple(_centred(s) for c in (first, second) for s in recording.on(c))
    two = replace(recording, reference=first, streams=streams, movement=None)
    clean = without_bad_channels(two, causal=False)
    two = featured_recording(clean.recording, FeatureConfig(causal=False, line_hz=line_hz))
    two = two.but(streams=(*two.streams, *movement))
    span_s = two.span_s[1] - two.span_s[0]
    fine_s = FINE_S if span_s <= LONG_S else 2 * FINE_S
    tokens = tokenized_recording(two, token_s=token_s, fine_s=fine_s)
    parts = max(1, round(tokens.fine_s / fine_s))
    clocks = tuple(_without_trend(_subdivided(c, parts), tokens.fine_s / parts) for c in tokens.clocks)
    tokens = replace(tokens, clocks=clocks, per_token=tokens.per_token * parts)
    return SignalPair(tokens, (*warnings, *clean.warnings))


def _choose_clocks(recording: Recording, clock: str | None) -> tuple[str, str, list[str]]:
    """Names of A and B, and warnings."""
    with_data = [c for c in recording.clocks if recording.on(c)]
    if len(with_data) < 2:
        raise NeurofuseError(
            f"recording '{recording.name}' has signals on one clock only ({', '.join(with_data) or 'none'}); give two "
            "files, or make two systems out of one population with --split-units N."
        )
    first = recording.reference if recording.reference in with_data else with_data[0]
    others = [c for c in with_data if c != first]
    if clock is not None and clock not in others:
        raise NeurofuseError(
            f"there is no clock '{clock}' to align to '{first}'; choose one of {', '.join(others)}."
        )
    if clock is not None or len(others) == 1:
        return first, clock or others[0], []
    warning = f"of the clocks {', '.join(others)} only '{others[0]}' is aligned; name another with --clock."
    return first, others[0], [warning]


def _movement_signal(recording: Recording) -> Signal:
    movement = recording.movement
    assert movement is not None
    data = xr.DataArray(
        movement.data.values,
        dims=("time", "channel"),
        coords={"time": movement.time_s - 0.5 * movement.sample_s, "channel": movement.axes},
        attrs={"units": movement.units},
    )
    return Signal("movement (as a signal)", recording.reference, data, "lfp", movement.sample_s)


def _centred(stream: Stream) -> Stream:
    """Power, half a sample earlier: a token holds each sample until the next, which is then centred on its own time."""
    if not isinstance(stream, Signal) or stream.kind != "power":
        return stream
    return replace(stream, data=stream.data.assign_coords(time=stream.time_s - 0.5 * stream.sample_s))


def _subdivided(clock: ClockTokens, per: int) -> ClockTokens:
    """Bins longer than a fine step, divided evenly: a count lies anywhere in its bin."""
    if per == 1:
        return clock
    place = np.arange((len(clock.cover) - 1) * per + 1) / per
    edges = np.arange(len(clock.cover))
    total = np.stack([np.interp(place, edges, column) for column in clock.total.T], axis=1)
    cover = np.interp(place, edges, clock.cover) * per
    # Features that are averaged are sums over fine steps, of which there are `per` times as many.
    total[:, ~clock.counted] *= per
    return replace(clock, total=total, cover=cover)


def _without_trend(clock: ClockTokens, step_s: float) -> ClockTokens:
    half = round(TREND_S / 2 / step_s)
    last = len(clock.cover) - 1
    low, high = np.clip(np.arange(last) - half, 0, last), np.clip(np.arange(last) + half, 0, last)
    covered = np.maximum(clock.cover[high] - clock.cover[low], 1e-9)
    own = np.diff(clock.cover)
    total = np.empty_like(clock.total)
    total[0] = 0
    for k in range(clock.n_features):
        column = clock.total[:, k]
        trend = (column[high] - column[low]) / covered
        total[1:, k] = np.cumsum(np.diff(column) - trend * own)
    return replace(clock, total=total)


def lag_grid(max_lag_s: float, step_s: float) -> FloatArray:
    """Lags from -max to max, zero among them."""
    n = int(np.ceil(max_lag_s / step_s - 1e-6))
    return step_s * np.arange(-n, n + 1, dtype=np.float64)
