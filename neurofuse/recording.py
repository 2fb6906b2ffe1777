"""In: arrays whose times are on named clocks. Out: one immutable `Recording`, checked once, here.

A recording holds spikes, sampled signals and movement. Each stream names the clock its times were read
from; two streams on the same clock are aligned, two streams on different clocks may not be. Movement and
trials live on the *reference* clock. Times are float64 seconds. Where nothing was recorded there are no
samples: a gap is an absence, never a run of zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from neurofuse.errors import RecordingError
from neurofuse.html import card, coverage

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
SignalKind = Literal["lfp", "counts", "power"]
# What a stream measures: single units (times or counts) or the field (LFP or its power).
StreamRole = Literal["spikes", "lfp"]

# A pause longer than this many sample intervals is a gap in the recording, not timing noise.
GAP_SAMPLES = 1.5


def as_seconds(times: ArrayLike, *, what: str) -> FloatArray:
    """Return times as a read-only float64 vector, refusing what cannot be a time axis.

    Parameters
    ----------
    times : array_like, shape (n,)
        Seconds.
    what : str
        How the error message names these times.

    Raises
    ------
    RecordingError
        If the times are not one-dimensional, not finite or not in order.
    """
    values = np.array(times, dtype=np.float64)
    if values.ndim != 1:
        raise RecordingError(f"{what}: times must be one vector, got an array of shape {values.shape}.")
    if not np.isfinite(values).all():
        n_bad = int((~np.isfinite(values)).sum())
        raise RecordingError(f"{what}: {n_bad} of {values.size} times are NaN or infinite; drop them first.")
    if values.size > 1 and (np.diff(values) < 0).any():
        where = int(np.argmax(np.diff(values) < 0))
        raise RecordingError(
            f"{what}: times are not in order ({values[where]:.6g} s is followed by {values[where + 1]:.6g} s); "
            "sort them first."
        )
    values.flags.writeable = False
    return values


def intervals_of(time_s: FloatArray, sample_s: float) -> FloatArray:
    """Stretches (n, 2) in seconds covered by samples that each last `sample_s`, split at gaps."""
    if time_s.size == 0:
        return np.empty((0, 2))
    breaks = np.flatnonzero(np.diff(time_s) > GAP_SAMPLES * sample_s)
    starts = np.concatenate([[0], breaks + 1])
    stops = np.concatenate([breaks, [time_s.size - 1]])
    rows = np.stack([time_s[starts], time_s[stops] + sample_s], axis=1)
    rows.flags.writeable = False
    return rows


def _as_support(support: ArrayLike | None, fallback: tuple[float, float], what: str) -> FloatArray:
    rows = np.array([fallback] if support is None else support, dtype=np.float64)
    if rows.ndim != 2 or rows.shape[1] != 2:
        raise RecordingError(
            f"{what}: support must be rows of (start, stop) seconds, got shape {rows.shape}."
        )
    if not np.isfinite(rows).all() or (rows[:, 1] < rows[:, 0]).any():
        raise RecordingError(f"{what}: every stretch of support must start before it stops.")
    if (rows[1:, 0] < rows[:-1, 1]).any():
        raise RecordingError(f"{what}: stretches of support overlap or are out of order.")
    rows.flags.writeable = False
    return rows


def _inside(support: FloatArray, start_s: float, stop_s: float) -> FloatArray:
    rows = np.clip(support, start_s, stop_s)
    return rows[rows[:, 1] > rows[:, 0]]


@dataclass(frozen=True, eq=False)
class Spikes:
    """Spike times of a population, on one clock.

    Parameters
    ----------
    name : str
        What the population is called.
    clock : str
        Name of the clock the times were read from.
    times_s : array_like, shape (n_spikes,)
        Seconds, in order.
    unit : array_like of int, shape (n_spikes,)
        Row of `units` that fired each spike.
    units : DataFrame
        One row per unit, with at least the column `name`.
    support : array_like, shape (n, 2), optional
        Stretches in which spikes could have been recorded. Outside them data is absent, which is not zero spikes.
        By default from the first spike to the last.
    """

    name: str
    clock: str
    times_s: FloatArray
    unit: IntArray
    units: pd.DataFrame
    support: FloatArray = field(default=None)  # type: ignore[arg-type]

    def __post_init__(self) -> None:
        what = f"spikes '{self.name}'"
        times_s = as_seconds(self.times_s, what=what)
        unit = np.array(self.unit, dtype=np.int64)
        units = self.units.reset_index(drop=True).copy()
        if "name" not in units:
            units["name"] = [f"unit{k}" for k in range(len(units))]
        if unit.shape != times_s.shape:
            raise RecordingError(
                f"{what}: {times_s.size} times but {unit.size} unit numbers; give one per spike."
            )
        if unit.size and (unit.min() < 0 or unit.max() >= len(units)):
            raise RecordingError(
                f"{what}: unit numbers run from {unit.min()} to {unit.max()} but the table has {len(units)} rows."
            )
        unit.flags.writeable = False
        ends = (float(times_s[0]), float(times_s[-1])) if times_s.size else (0.0, 0.0)
        support = _as_support(self.support, ends, what)
        for key, value in (("times_s", times_s), ("unit", unit), ("units", units), ("support", support)):
            object.__setattr__(self, key, value)

    @classmethod
    def from_trains(
        cls,
        trains: Sequence[ArrayLike],
        *,
        clock: str,
        name: str = "spikes",
        unit_names: Sequence[str] | None = None,
        units: pd.DataFrame | None = None,
        support: ArrayLike | None = None,
    ) -> Spikes:
        """Merge one sorted vector of seconds per unit into a population."""
        table = (
            pd.DataFrame(index=range(len(trains))) if units is None else units.reset_index(drop=True).copy()
        )
        if unit_names is not None:
            table["name"] = [str(n) for n in unit_names]
        elif "name" not in table:
            table["name"] = [f"unit{k}" for k in range(len(trains))]
        vectors = [
            as_seconds(t, what=f"unit '{n}' of '{name}'") for t, n in zip(trains, table["name"], strict=True)
        ]
        times = np.concatenate(vectors) if vectors else np.empty(0)
        unit = np.repeat(np.arange(len(vectors)), [v.size for v in vectors])
        order = np.argsort(times, kind="stable")
        return cls(name, clock, times[order], unit[order], table, support)  # type: ignore[arg-type]

    @property
    def n_units(self) -> int:
        """Number of units, those without spikes included."""
        return len(self.units)

    @property
    def members(self) -> list[str]:
        """Names of the units."""
        return [str(n) for n in self.units["name"]]

    @property
    def role(self) -> StreamRole:
        """Single units."""
        return "spikes"

    @property
    def trains(self) -> list[FloatArray]:
        """One vector of spike times (s) per unit."""
        order = np.argsort(self.unit, kind="stable")
        edges = np.cumsum(np.bincount(self.unit, minlength=self.n_units))[:-1]
        return np.split(self.times_s[order], edges)

    @property
    def start_s(self) -> float:
        """First moment of support, seconds."""
        return float(self.support[0, 0]) if len(self.support) else 0.0

    @property
    def stop_s(self) -> float:
        """Last moment of support, seconds."""
        return float(self.support[-1, 1]) if len(self.support) else 0.0

    def between(self, start_s: float, stop_s: float) -> Spikes:
        """The spikes in [start_s, stop_s), with the support cut to match."""
        lo, hi = np.searchsorted(self.times_s, [start_s, stop_s])
        support = _inside(self.support, start_s, stop_s)
        return replace(self, times_s=self.times_s[lo:hi], unit=self.unit[lo:hi], support=support)

    def select(self, units: Sequence[int], *, name: str | None = None, clock: str | None = None) -> Spikes:
        """Keep some units, by row, in the order given."""
        rows = np.asarray(units, dtype=np.int64)
        new_row = np.full(self.n_units, -1)
        new_row[rows] = np.arange(rows.size)
        kept = new_row[self.unit] >= 0
        return replace(
            self,
            name=name or self.name,
            clock=clock or self.clock,
            times_s=self.times_s[kept],
            unit=new_row[self.unit[kept]],
            units=self.units.iloc[rows],
        )


@dataclass(frozen=True, eq=False)
class Signal:
    """Sampled channels on one clock: LFP, binned spike counts, or power that was computed elsewhere.

    Parameters
    ----------
    name, clock : str
        What the signal is called, and the clock its sample times were read from.
    data : DataArray, dims (time, channel)
        `time` in seconds, in order; `channel` holds names; `attrs["units"]` is the unit of the numbers.
    kind : {"lfp", "counts", "power"}
        A count belongs to the bin that *starts* at its time; LFP and power are samples at their time.
    sample_s : float, optional
        Nominal sample interval; by default the median difference of `time`.
    """

    name: str
    clock: str
    data: xr.DataArray
    kind: SignalKind = "lfp"
    sample_s: float = 0.0

    def __post_init__(self) -> None:
        what = f"{self.kind} '{self.name}'"
        object.__setattr__(self, "data", _checked_array(self.data, ("time", "channel"), what))
        if self.kind not in ("lfp", "counts", "power"):
            raise RecordingError(f"{what}: kind must be 'lfp', 'counts' or 'power', got '{self.kind}'.")
        if self.sample_s <= 0:
            object.__setattr__(self, "sample_s", _sample_interval(self.time_s, what))
        if self.kind == "counts" and self.data.size and float(self.data.min()) < 0:
            raise RecordingError(f"{what}: spike counts cannot be negative, got {float(self.data.min()):g}.")

    @classmethod
    def from_array(
        cls,
        values: ArrayLike,
        *,
        clock: str,
        name: str = "lfp",
        rate_hz: float | None = None,
        start_s: float = 0.0,
        time_s: ArrayLike | None = None,
        channels: Sequence[str] | None = None,
        units: str = "",
        kind: SignalKind = "lfp",
    ) -> Signal:
        """Build a signal from a plain array (time x channel) and either a rate or a time vector."""
        data, sample_s = _from_array(values, "channel", channels, rate_hz, start_s, time_s, units, name)
        return cls(name, clock, data, kind, sample_s)

    @property
    def time_s(self) -> FloatArray:
        """Sample times, seconds on `clock`."""
        return self.data["time"].values

    @property
    def rate_hz(self) -> float:
        """Samples per second."""
        return 1.0 / self.sample_s

    @property
    def n_channels(self) -> int:
        """Number of channels."""
        return int(self.data.sizes["channel"])

    @property
    def channels(self) -> list[str]:
        """Names of the channels."""
        return [str(c) for c in self.data["channel"].values]

    @property
    def members(self) -> list[str]:
        """Names of the channels."""
        return self.channels

    @property
    def role(self) -> StreamRole:
        """Single units where samples are counts, else the field."""
        return "spikes" if self.kind == "counts" else "lfp"

    @cached_property
    def support(self) -> FloatArray:
        """Stretches (n, 2) in seconds that hold samples, split where samples are missing."""
        return intervals_of(self.time_s, self.sample_s)

    @property
    def start_s(self) -> float:
        """First moment of support, seconds."""
        return float(self.time_s[0]) if self.time_s.size else 0.0

    @property
    def stop_s(self) -> float:
        """Last moment of support, seconds."""
        return float(self.time_s[-1] + self.sample_s) if self.time_s.size else 0.0

    def between(self, start_s: float, stop_s: float) -> Signal:
        """The samples in [start_s, stop_s)."""
        lo, hi = np.searchsorted(self.time_s, [start_s, stop_s])
        return replace(self, data=self.data.isel(time=slice(lo, hi)))

    def select(self, channels: Sequence[int], *, name: str | None = None, clock: str | None = None) -> Signal:
        """Keep some channels, by number, in the order given."""
        data = self.data.isel(channel=list(channels))
        return replace(self, data=data, name=name or self.name, clock=clock or self.clock)


@dataclass(frozen=True, eq=False)
class Movement:
    """What is decoded: position, velocity, force ..., on the reference clock of its recording.

    Parameters
    ----------
    name : str
        What was measured.
    data : DataArray, dims (time, axis)
        `time` in seconds, in order; `axis` holds names; `attrs["units"]` the unit.
    sample_s : float, optional
        Nominal sample interval; by default the median difference of `time`.
    """

    name: str
    data: xr.DataArray
    sample_s: float = 0.0

    def __post_init__(self) -> None:
        what = f"movement '{self.name}'"
        object.__setattr__(self, "data", _checked_array(self.data, ("time", "axis"), what))
        if self.sample_s <= 0:
            object.__setattr__(self, "sample_s", _sample_interval(self.time_s, what))

    @classmethod
    def from_array(
        cls,
        values: ArrayLike,
        *,
        name: str = "movement",
        rate_hz: float | None = None,
        start_s: float = 0.0,
        time_s: ArrayLike | None = None,
        axes: Sequence[str] | None = None,
        units: str = "",
    ) -> Movement:
        """Build movement from a plain array (time x axis) and either a rate or a time vector."""
        data, sample_s = _from_array(values, "axis", axes, rate_hz, start_s, time_s, units, name)
        return cls(name, data, sample_s)

    @property
    def time_s(self) -> FloatArray:
        """Sample times, seconds on the reference clock."""
        return self.data["time"].values

    @property
    def axes(self) -> list[str]:
        """Names of the decoded axes."""
        return [str(a) for a in self.data["axis"].values]

    @property
    def members(self) -> list[str]:
        """Names of the decoded axes."""
        return self.axes

    @property
    def units(self) -> str:
        """Unit of the numbers, as the source states it."""
        return str(self.data.attrs.get("units", ""))

    @cached_property
    def support(self) -> FloatArray:
        """Stretches (n, 2) in seconds that hold samples, split where samples are missing."""
        return intervals_of(self.time_s, self.sample_s)

    def between(self, start_s: float, stop_s: float) -> Movement:
        """The samples in [start_s, stop_s)."""
        lo, hi = np.searchsorted(self.time_s, [start_s, stop_s])
        return replace(self, data=self.data.isel(time=slice(lo, hi)))

    def select(self, axes: Sequence[int]) -> Movement:
        """Keep some axes, by number, in the order given."""
        return replace(self, data=self.data.isel(axis=list(axes)))

    def circular(self, period: float | None = None) -> Movement:
        """Replace every axis by the cosine and sine of its phase, for quantities that wrap around.

        Parameters
        ----------
        period : float, optional
            Length of one turn in the movement's unit; by default the range that the samples cover.
        """
        values = self.data.values
        turn = np.ptp(values, axis=0) if period is None else np.full(values.shape[1], float(period))
        if (turn <= 0).any():
            raise RecordingError(
                f"movement '{self.name}': a circular period must be positive, got {turn.min():g}."
            )
        phase = 2 * np.pi * (values - values.min(axis=0)) / turn
        out = np.stack([np.cos(phase), np.sin(phase)], axis=2).reshape(len(values), -1)
        axes = [f"{f} {a}" for a in self.axes for f in ("cos", "sin")]
        return Movement.from_array(out, name=self.name, time_s=self.time_s, axes=axes, units="1")


Stream = Spikes | Signal


@dataclass(frozen=True, eq=False)
class Recording:
    """Streams on named clocks, movement and trials on the reference clock, and where all of it came from.

    Parameters
    ----------
    name : str
        What the recording is called.
    reference : str
        The clock that movement and trials are timed on.
    streams : sequence of Spikes or Signal
        Their names are unique.
    movement : Movement, optional
    trials : DataFrame, optional
        One row per trial, with `start_s` and `stop_s` on the reference clock.
    provenance : sequence of str, optional
        What was read and what was done to it, oldest first.
    """

    name: str
    reference: str
    streams: tuple[Stream, ...]
    movement: Movement | None = None
    trials: pd.DataFrame = field(default=None)  # type: ignore[assignment]
    provenance: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        streams = tuple(self.streams)
        names = [s.name for s in streams]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise RecordingError(f"recording '{self.name}': two streams are called '{twice[0]}'; rename one.")
        trials = pd.DataFrame({"start_s": [], "stop_s": []}) if self.trials is None else self.trials
        missing = {"start_s", "stop_s"} - set(trials.columns)
        if missing:
            raise RecordingError(
                f"recording '{self.name}': the trial table lacks {sorted(missing)}; it has {list(trials.columns)}."
            )
        object.__setattr__(self, "streams", streams)
        object.__setattr__(self, "trials", trials.reset_index(drop=True).copy())
        object.__setattr__(self, "provenance", tuple(str(p) for p in self.provenance))

    @property
    def clocks(self) -> list[str]:
        """Every clock of the recording, the reference first."""
        found = [self.reference] + [s.clock for s in self.streams]
        return list(dict.fromkeys(found))

    @property
    def spikes(self) -> list[Spikes]:
        """The streams of single spikes."""
        return [s for s in self.streams if isinstance(s, Spikes)]

    @property
    def signals(self) -> list[Signal]:
        """The sampled streams."""
        return [s for s in self.streams if isinstance(s, Signal)]

    @property
    def n_units(self) -> int:
        """Number of units, whether recorded as spike times or as counts."""
        return sum(len(s.members) for s in self.streams if s.role == "spikes")

    @property
    def n_channels(self) -> int:
        """Number of channels of LFP or power."""
        return sum(len(s.members) for s in self.streams if s.role == "lfp")

    def __getitem__(self, name: str) -> Stream:
        for stream in self.streams:
            if stream.name == name:
                return stream
        raise RecordingError(
            f"recording '{self.name}' has no stream '{name}'; it has {[s.name for s in self.streams]}."
        )

    def on(self, clock: str) -> list[Stream]:
        """The streams timed by one clock."""
        if clock not in self.clocks:
            raise RecordingError(f"recording '{self.name}' has no clock '{clock}'; it has {self.clocks}.")
        return [s for s in self.streams if s.clock == clock]

    @property
    def span_s(self) -> tuple[float, float]:
        """Start and stop, in seconds, of what the movement (else the reference clock's streams) covers."""
        if self.movement is not None and self.movement.time_s.size:
            return float(self.movement.support[0, 0]), float(self.movement.support[-1, 1])
        streams = [s for s in self.streams if s.clock == self.reference] or list(self.streams)
        if not streams:
            return 0.0, 0.0
        return min(s.start_s for s in streams), max(s.stop_s for s in streams)

    def between(self, start_s: float, stop_s: float, *, margin_s: float = 0.0) -> Recording:
        """Cut in time; clocks other than the reference keep `margin_s` more on both sides."""
        streams = tuple(
            s.between(start_s, stop_s)
            if s.clock == self.reference
            else s.between(start_s - margin_s, stop_s + margin_s)
            for s in self.streams
        )
        movement = None if self.movement is None else self.movement.between(start_s, stop_s)
        kept = (self.trials["start_s"] >= start_s) & (self.trials["stop_s"] <= stop_s)
        return self.but(
            streams=streams,
            movement=movement,
            trials=self.trials[kept],
            did=f"cut to {start_s:g}-{stop_s:g} s",
        )

    def retimed(self, clock: str, to_new: Callable[[FloatArray], FloatArray], *, did: str) -> Recording:
        """Apply a map old time -> new time (seconds) to every stream of one clock.

        The map must not run backwards where there are samples; spikes are sorted again.
        """
        moved = tuple(_retime(s, to_new) if s.clock == clock else s for s in self.streams)
        return self.but(streams=moved, did=did)

    def but(self, *, did: str | None = None, **changes: object) -> Recording:
        """A copy with some fields replaced and one line added to the provenance."""
        if did:
            changes["provenance"] = (*self.provenance, did)
        return replace(self, **changes)  # type: ignore[arg-type]

    def __repr__(self) -> str:
        start_s, stop_s = self.span_s
        lines = [f"Recording '{self.name}', {start_s:.2f} to {stop_s:.2f} s on clock '{self.reference}'"]
        for s in self.streams:
            size = (
                f"{s.n_units} units, {s.times_s.size} spikes"
                if isinstance(s, Spikes)
                else (f"{s.n_channels} channels at {s.rate_hz:g} Hz ({s.kind})")
            )
            lines.append(f"  {s.name} @ {s.clock}: {size}, {len(s.support)} stretch(es)")
        if self.movement is not None:
            m = self.movement
            lines.append(f"  movement {m.name}: {', '.join(m.axes)} [{m.units}] at {1 / m.sample_s:g} Hz")
        if len(self.trials):
            lines.append(f"  {len(self.trials)} trials")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        parts = [*self.streams, *([] if self.movement is None else [self.movement])]
        edges = [float(edge) for p in parts for edge in p.support.ravel()] or [0.0, 0.0]
        span_s = (min(edges), max(edges))
        rows: list[tuple[object, ...]] = [
            (s.name, s.clock, "spikes", f"{s.n_units} units, {s.times_s.size} spikes", None)
            if isinstance(s, Spikes)
            else (s.name, s.clock, s.kind, f"{s.n_channels} channels", f"{s.rate_hz:g} Hz")
            for s in self.streams
        ]
        if self.movement is not None:
            m = self.movement
            what = f"{', '.join(m.axes)}{f' [{m.units}]' if m.units else ''}"
            rows.append((m.name, self.reference, "movement", what, f"{1 / m.sample_s:g} Hz"))
        return card(
            f"Recording '{self.name}'",
            facts=[
                ("reference clock", self.reference),
                ("span", f"{self.span_s[0]:.2f} to {self.span_s[1]:.2f} s"),
                ("trials", len(self.trials) or None),
            ],
            head=(
                "stream",
                "clock",
                "kind",
                "size",
                "rate",
                f"recorded, {span_s[0]:.4g} to {span_s[1]:.4g} s",
            ),
            rows=[(*row, coverage(p.support.tolist(), span_s)) for row, p in zip(rows, parts, strict=True)],
            folded=("provenance", self.provenance),
        )


def split_units(
    recording: Recording, n_first: int, *, clock: str = "second", rng: np.random.Generator
) -> Recording:
    """Make two systems out of one population: `n_first` units stay, the others get a clock of their own.

    The units that stay are drawn at random. Nothing is moved in time: the new clock still agrees with the
    old one, so a jitter applied to it afterwards has a known truth.

    Raises
    ------
    RecordingError
        If there is no population, or it is too small to leave units on both sides.
    """
    populations = [s for s in recording.streams if s.role == "spikes"]
    if not populations:
        raise RecordingError(
            f"recording '{recording.name}' has no units to split; it needs spikes or counts."
        )
    whole = populations[0]
    n_units = len(whole.members)
    if not 0 < n_first < n_units:
        raise RecordingError(
            f"cannot leave {n_first} of {n_units} units on the first clock; choose between 1 and {n_units - 1}."
        )
    order = rng.permutation(n_units)
    stay, move = np.sort(order[:n_first]), np.sort(order[n_first:])
    parts = (
        whole.select(stay.tolist()),
        whole.select(move.tolist(), name=f"{whole.name} ({clock})", clock=clock),
    )
    others = tuple(s for s in recording.streams if s is not whole)
    return recording.but(
        streams=(*parts, *others), did=f"{n_first} of {n_units} units kept, the rest on clock '{clock}'"
    )


def separate_lfp(recording: Recording, *, clock: str = "second") -> Recording:
    """Give the LFP of a one-system recording a clock of its own, so that a jitter can move it.

    Raises
    ------
    RecordingError
        If the recording does not hold both spikes and LFP.
    """
    fields = [s for s in recording.streams if s.role == "lfp"]
    if not fields or len(fields) == len(recording.streams):
        raise RecordingError(
            f"recording '{recording.name}' has one clock and not both spikes and LFP, so there is no second clock "
            "to move; make one out of its units with --split-units N."
        )
    streams = tuple(replace(s, clock=clock) if s in fields else s for s in recording.streams)
    return recording.but(streams=streams, did=f"LFP put on a clock of its own, '{clock}'")


def _retime(stream: Stream, to_new: Callable[[FloatArray], FloatArray]) -> Stream:
    support = np.maximum.accumulate(to_new(stream.support.ravel())).reshape(-1, 2)
    if isinstance(stream, Spikes):
        times = to_new(stream.times_s)
        order = np.argsort(times, kind="stable")
        return replace(stream, times_s=times[order], unit=stream.unit[order], support=support)
    return replace(stream, data=stream.data.assign_coords(time=to_new(stream.time_s)))


def _sample_interval(time_s: FloatArray, what: str) -> float:
    if time_s.size < 2:
        raise RecordingError(
            f"{what}: {time_s.size} sample(s) do not determine the sampling interval; give sample_s."
        )
    step = float(np.median(np.diff(time_s)))
    if step <= 0:
        raise RecordingError(f"{what}: samples share the same time; every sample needs a time of its own.")
    return step


def _checked_array(data: xr.DataArray, dims: tuple[str, str], what: str) -> xr.DataArray:
    if data.dims != dims:
        raise RecordingError(f"{what}: dims must be {dims}, got {data.dims}; transpose or rename them.")
    if "time" not in data.coords:
        raise RecordingError(f"{what}: the dimension 'time' needs a coordinate in seconds.")
    time_s = as_seconds(data["time"].values, what=what)
    values = np.asarray(data.values)
    if values.dtype.kind not in "fiub":
        raise RecordingError(f"{what}: samples must be numbers, got {values.dtype}.")
    values = values.astype(values.dtype if values.dtype in (np.float32, np.float64) else np.float32)
    if not np.isfinite(values).all():
        n_bad = int((~np.isfinite(values).all(axis=1)).sum())
        raise RecordingError(
            f"{what}: {n_bad} of {len(values)} samples hold NaN or infinity; leave missing samples out "
            "(a gap) or pass --missing drop."
        )
    values.flags.writeable = False
    names = (
        [str(c) for c in data[dims[1]].values]
        if dims[1] in data.coords
        else [f"{dims[1]}{k}" for k in range(values.shape[1])]
    )
    attrs = {str(k): v for k, v in data.attrs.items()}
    return xr.DataArray(values, dims=dims, coords={"time": time_s, dims[1]: names}, attrs=attrs)


def _from_array(
    values: ArrayLike,
    dim: str,
    labels: Sequence[str] | None,
    rate_hz: float | None,
    start_s: float,
    time_s: ArrayLike | None,
    units: str,
    name: str,
) -> tuple[xr.DataArray, float]:
    array = np.asarray(values)
    array = array[:, None] if array.ndim == 1 else array
    if array.ndim != 2:
        raise RecordingError(f"'{name}': samples must be time x {dim}, got an array of shape {array.shape}.")
    if (rate_hz is None) == (time_s is None):
        raise RecordingError(f"'{name}': give either rate_hz or time_s, not both or neither.")
    if rate_hz is not None:
        if not rate_hz > 0:
            raise RecordingError(f"'{name}': the sampling rate must be positive, got {rate_hz:g} Hz.")
        time = start_s + np.arange(len(array)) / rate_hz
        sample_s = 1.0 / rate_hz
    else:
        time = np.asarray(time_s, dtype=np.float64)
        sample_s = 0.0
        if len(time) != len(array):
            raise RecordingError(
                f"'{name}': {len(array)} samples but {len(time)} times; give one time per sample."
            )
    names = [f"{dim}{k}" for k in range(array.shape[1])] if labels is None else [str(x) for x in labels]
    if len(names) != array.shape[1]:
        raise RecordingError(f"'{name}': {array.shape[1]} columns but {len(names)} names.")
    return xr.DataArray(
        array, dims=("time", dim), coords={"time": time, dim: names}, attrs={"units": units}
    ), sample_s
