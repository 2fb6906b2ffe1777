"""In: a recording with two clocks. Out: a `SignalPair`, what each clock showed on one token grid, trends taken off.

Two systems that never met can still drift together: electrodes settle, an animal tires. Such trends say nothing about
a lag of seconds but make unrelated recordings look related, so each feature's mean over half a minute is taken off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import xarray as xr
from scipy.ndimage import gaussian_filter1d

from neurofuse.config import FeatureConfig
from neurofuse.features import channel_quality, drop_bad, lfp_features, resample
from neurofuse.recording import FloatArray, NeurofuseError, Recording, Signal, Stream
from neurofuse.tokens import ClockTokens, Tokens, tokenize

# Mean over this long is taken off every feature, seconds.
TREND_S = 30.0
# Lags are injected this finely, seconds; recordings longer than LONG_S are kept half as fine to spare memory.
FINE_S, LONG_S = 0.005, 1200.0
# Channels whose features are taken at once; bounds memory.
CHANNELS_AT_ONCE = 8
# Broadband files are brought down to this before features are taken.
LFP_RATE_HZ = 1000.0
# A linear scan needs no finer steps than this, smoothed as it is.
COARSE_S, SMOOTH_S = 0.04, 0.1
# Most components of a clock that a linear scan looks at.
MOST_COMPONENTS = 48


@dataclass(frozen=True, eq=False)
class SignalPair:
    """Two clocks on one token grid; A is the first, B the one whose lag is looked for.

    Parameters
    ----------
    tokens : Tokens
        Of two clocks, A first, without trends and without movement.
    warnings : tuple of str
        What was noticed on the way.
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
            values, there = clock.gather(per * np.arange(n)[None], per)
            smooth = gaussian_filter1d(values[0], SMOOTH_S / step_s, axis=0)
            sides.append((_components(smooth, there[0]), there[0]))
        return SmoothedPair(step_s, self.tokens.origin_s, *sides[0], *sides[1])


@dataclass(frozen=True, eq=False)
class SmoothedPair:
    """Smoothed signals of both clocks as principal components in common units, zero where absent.

    Parameters
    ----------
    step_s, origin_s : float
    a, b : float32 ndarray, shape (n, n_components)
    a_there, b_there : bool ndarray, shape (n,)
    """

    step_s: float
    origin_s: float
    a: np.ndarray
    a_there: np.ndarray
    b: np.ndarray
    b_there: np.ndarray

    def __len__(self) -> int:
        return len(self.a)

    @property
    def look_s(self) -> float:
        """Seconds that are worth one independent look."""
        return max(2 * np.sqrt(np.pi) * SMOOTH_S, self.step_s)


def _components(x: np.ndarray, there: np.ndarray) -> np.ndarray:
    shown = x[there]
    if len(shown) < 2:
        return np.zeros((len(x), 1), np.float32)
    mean, std = shown.mean(0), shown.std(0)
    z = np.where(there[:, None], (x - mean) / np.where(std > 1e-9, std, np.inf), 0.0)
    values, vectors = np.linalg.eigh(z.T @ z / len(shown))
    kept = np.argsort(values)[::-1][:MOST_COMPONENTS]
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
        Seconds a token; 20 ms, or the recording's own bins where they are longer.
    line_hz : float, optional
        Mains frequency to remove from LFP.

    Raises
    ------
    NeurofuseError
        If there are not two clocks with signals.
    """
    if recording.movement is not None and use_movement:
        moved = _movement_signal(recording)
        recording = recording.but(streams=(*recording.streams, moved))
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
    wanted, warnings = clock or others[0], []
    if clock is None and len(others) > 1:
        warnings.append(
            f"of the clocks {', '.join(others)} only '{wanted}' is aligned; name another with --clock."
        )
    streams: list[Stream] = []
    for stream in (*recording.on(first), *recording.on(wanted)):
        if isinstance(stream, Signal) and stream.kind == "lfp" and stream.name != MOVEMENT:
            feature, said = _features(stream, line_hz)
            warnings += said
            streams.append(feature)
        else:
            streams.append(_centred(stream))
    two = replace(recording, reference=first, streams=tuple(streams), movement=None)
    span_s = two.span_s[1] - two.span_s[0]
    fine_s = FINE_S if span_s <= LONG_S else 2 * FINE_S
    tokens = tokenize(two, token_s=token_s, fine_s=fine_s)
    parts = max(1, round(tokens.fine_s / fine_s))
    step_s = tokens.fine_s / parts
    clocks = tuple(_without_trend(_as_fine(c, parts), step_s) for c in tokens.clocks)
    return SignalPair(replace(tokens, clocks=clocks, per_token=tokens.per_token * parts), tuple(warnings))


MOVEMENT = "movement (as a signal)"


def _movement_signal(recording: Recording) -> Signal:
    movement = recording.movement
    assert movement is not None
    data = xr.DataArray(
        movement.data.values,
        dims=("time", "channel"),
        coords={"time": movement.time_s, "channel": movement.axes},
        attrs={"units": movement.units},
    )
    return Signal(MOVEMENT, recording.reference, data, "lfp", movement.sample_s)


def _features(signal: Signal, line_hz: float | None) -> tuple[Signal, list[str]]:
    """Zero-phase features, a few channels at a time."""
    if signal.rate_hz > 2.5 * LFP_RATE_HZ:
        signal = _joined(
            [
                resample(signal.select(r), LFP_RATE_HZ)
                for r in _in_groups(range(signal.n_channels), CHANNELS_AT_ONCE)
            ],
            signal.name,
        )
    table = channel_quality(signal)
    kept = drop_bad(signal, table)
    n_bad = signal.n_channels - kept.n_channels
    config = FeatureConfig(causal=False, line_hz=line_hz)
    parts = [
        lfp_features(kept.select(r), config=config)
        for r in _in_groups(range(kept.n_channels), CHANNELS_AT_ONCE)
    ]
    said = (
        [f"{n_bad} of {signal.n_channels} channels of '{signal.name}' look bad and were left out."]
        if n_bad
        else []
    )
    return _joined(parts, signal.name), said


def _centred(stream: Stream) -> Stream:
    """Samples half an interval earlier, since a token holds each until the next: so it lies around its own time."""
    if not isinstance(stream, Signal) or stream.kind == "counts":
        return stream
    return replace(stream, data=stream.data.assign_coords(time=stream.time_s - 0.5 * stream.sample_s))


def _in_groups(rows: Sequence[int], n: int) -> list[list[int]]:
    return [list(rows[k : k + n]) for k in range(0, len(rows), n)]


def _joined(parts: list[Signal], name: str) -> Signal:
    data = xr.concat([p.data for p in parts], dim="channel", combine_attrs="override")
    return replace(parts[0], name=name, data=data)


def _as_fine(clock: ClockTokens, per: int) -> ClockTokens:
    """Bins longer than a fine step are parted evenly: a count lies anywhere in its bin."""
    if per == 1:
        return clock
    place = np.arange((len(clock.cover) - 1) * per + 1) / per
    known = np.arange(len(clock.cover))
    total = np.stack([np.interp(place, known, column) for column in clock.total.T], axis=1)
    cover = np.interp(place, known, clock.cover) * per
    # Features that are averaged are sums over fine steps, of which there are more now.
    total[:, ~clock.counted] *= per
    return replace(clock, total=total, cover=cover)


def _without_trend(clock: ClockTokens, step_s: float) -> ClockTokens:
    half = round(TREND_S / 2 / step_s)
    last = len(clock.cover) - 1
    low, high = np.clip(np.arange(last) - half, 0, last), np.clip(np.arange(last) + half, 0, last)
    seen = np.maximum(clock.cover[high] - clock.cover[low], 1e-9)
    own = np.diff(clock.cover)
    total = np.empty_like(clock.total)
    total[0] = 0
    for k in range(clock.n_features):
        column = clock.total[:, k]
        trend = (column[high] - column[low]) / seen
        total[1:, k] = np.cumsum(np.diff(column) - trend * own)
    return replace(clock, total=total)


def lag_grid(max_lag_s: float, step_s: float) -> FloatArray:
    """Lags from -max to max, zero among them."""
    n = int(np.ceil(max_lag_s / step_s - 1e-6))
    return step_s * np.arange(-n, n + 1, dtype=np.float64)
