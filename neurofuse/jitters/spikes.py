"""In: spike times, or counts. Out: the same with timing errors, missed, false and mislabelled spikes, and the truth.

Counts are jittered as the spikes they count: each is placed at random inside its bin, jittered, and counted again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from neurofuse.errors import NeurofuseError
from neurofuse.jitters.jitter import Jitter, JitterResult, Moved, pick
from neurofuse.recording import GAP_SAMPLES, FloatArray, IntArray, Recording, Signal, Spikes, Stream
from neurofuse.theory.decoding import gaussian_attenuation

Edge = Literal["reflect", "wrap", "drop"]


@dataclass(frozen=True)
class SpikeJitter(Jitter):
    """A jitter of populations, by default of all of them.

    Parameters
    ----------
    level : float
    stream : str, optional
        The one population to jitter.
    """

    level: float
    stream: str | None = None

    acts_on = "spikes"

    def targets(self, recording: Recording) -> tuple[str, ...]:
        """Every population, as spikes or as counts."""
        found = [s for s in recording.streams if _is_population(s)]
        names = pick(recording, self.stream, found, f"no spikes or counts for jitter '{self.kind}' to act on")
        if not all(_is_population(recording[n]) for n in names):
            raise NeurofuseError(
                f"jitter '{self.kind}' acts on spikes, but '{names[0]}' holds LFP; choose one of "
                f"{[s.name for s in found]}."
            )
        return names

    def act(
        self, recording: Recording, streams: tuple[str, ...], *, rng: np.random.Generator
    ) -> JitterResult:
        """Change each population, with a generator of its own."""
        out: dict[str, Stream] = {}
        moved: dict[str, Moved] = {}
        realised: dict[str, Any] = {}
        for name, own in zip(streams, rng.spawn(len(streams)), strict=True):
            stream = recording[name]
            # Counts are placed in their bins by a generator of their own, with the same draws at every level.
            placing, acting = own.spawn(2)
            spikes = stream if isinstance(stream, Spikes) else unbin(stream, rng=placing)
            new, moved[name], drawn = self.change(spikes, rng=acting)
            out[name] = new if isinstance(stream, Spikes) else rebin(new, stream)
            realised.update({f"{name}: {k}": v for k, v in drawn.items()})
        return JitterResult(out, moved, realised)

    def change(self, spikes: Spikes, *, rng: np.random.Generator) -> tuple[Spikes, Moved, dict[str, Any]]:
        """The population after the jitter, displacement and origin of its spikes, and other values drawn."""
        raise TypeError(f"{type(self).__name__} does not define change().")


@dataclass(frozen=True)
class TimingJitter(SpikeJitter):
    """Spikes move in time; subclasses draw the displacements.

    Parameters
    ----------
    edge : {"reflect", "wrap", "drop"}
        Treatment of a spike that would leave its stretch of support: mirrored at the end, moved to the other end, or
        removed.
    """

    edge: Edge = "reflect"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.edge not in ("reflect", "wrap", "drop"):
            raise NeurofuseError(
                f"jitter '{self.kind}': the edge must be reflect, wrap or drop, got '{self.edge}'."
            )

    def displace(self, spikes: Spikes, *, rng: np.random.Generator) -> tuple[FloatArray, dict[str, Any]]:
        """Displacement of each spike in seconds, and other values drawn."""
        raise TypeError(f"{type(self).__name__} does not define displace().")

    def change(self, spikes: Spikes, *, rng: np.random.Generator) -> tuple[Spikes, Moved, dict[str, Any]]:
        """Move, keep inside the support, sort."""
        displacement_s, drawn = self.displace(spikes, rng=rng)
        new_s = spikes.times_s + displacement_s
        kept = keep_inside(spikes.times_s, new_s, spikes.support, self.edge)
        if kept is None:
            return *_moved_to(spikes, new_s), drawn
        order = np.flatnonzero(kept)
        order = order[np.argsort(new_s[order], kind="stable")]
        displacement_s = np.where(kept, new_s - spikes.times_s, np.nan)
        new = _reordered(spikes, new_s, order)
        return new, Moved(displacement_s, order), drawn | {"n_lost": int((~kept).sum())}


@dataclass(frozen=True)
class GaussianSpikes(TimingJitter):
    """Every spike moves by its own draw from N(0, level).

    Phase locking falls by exp(-(2 pi f s)^2 / 2), the characteristic function of the displacement.
    """

    kind = "spike"
    unit = "s"
    description = "every spike moves by its own normal error; level is its std"

    def displace(self, spikes: Spikes, *, rng: np.random.Generator) -> tuple[FloatArray, dict[str, Any]]:
        """Normal."""
        return self.level * rng.standard_normal(spikes.times_s.size), {}

    def phi(self, f_hz: ArrayLike, *, span_s: float = float("nan")) -> FloatArray:
        """exp(-(2 pi f s)^2 / 2)."""
        return gaussian_attenuation(f_hz, self.level)


@dataclass(frozen=True)
class UniformSpikes(TimingJitter):
    """Every spike moves by its own draw from U(-level, level): the dither of Date et al. (1998), as in elephant."""

    kind = "spike-uniform"
    unit = "s"
    description = "every spike moves by its own uniform error; level is half its range"

    def displace(self, spikes: Spikes, *, rng: np.random.Generator) -> tuple[FloatArray, dict[str, Any]]:
        """Uniform."""
        return self.level * rng.uniform(-1.0, 1.0, spikes.times_s.size), {}

    def phi(self, f_hz: ArrayLike, *, span_s: float = float("nan")) -> FloatArray:
        """|sinc(2 f w)|."""
        return np.abs(np.sinc(2 * np.asarray(f_hz) * self.level))


@dataclass(frozen=True)
class LaplaceSpikes(TimingJitter):
    """Every spike moves by its own draw from a Laplace distribution of std level, which has heavy tails."""

    kind = "spike-laplace"
    unit = "s"
    description = "every spike moves by its own Laplace error; level is its std"

    def displace(self, spikes: Spikes, *, rng: np.random.Generator) -> tuple[FloatArray, dict[str, Any]]:
        """Laplace of scale level / sqrt 2."""
        return self.level / np.sqrt(2) * rng.laplace(size=spikes.times_s.size), {}

    def phi(self, f_hz: ArrayLike, *, span_s: float = float("nan")) -> FloatArray:
        """1 / (1 + (2 pi f s)^2 / 2)."""
        return 1 / (1 + 0.5 * (2 * np.pi * np.asarray(f_hz) * self.level) ** 2)


@dataclass(frozen=True)
class DelayUnits(TimingJitter):
    """Every unit is late by a constant of its own from N(0, level), as along different cables or filters.

    The phase locking of each unit stays; phi is that of the units pooled.
    """

    kind = "unit-delay"
    unit = "s"
    description = "every unit is late by a constant of its own; level is the std over units"

    def displace(self, spikes: Spikes, *, rng: np.random.Generator) -> tuple[FloatArray, dict[str, Any]]:
        """One normal draw per unit."""
        delay_s = self.level * rng.standard_normal(spikes.n_units)
        return delay_s[spikes.unit], {"delay_s": delay_s}

    def phi(self, f_hz: ArrayLike, *, span_s: float = float("nan")) -> FloatArray:
        """exp(-(2 pi f s)^2 / 2), of many units pooled."""
        return gaussian_attenuation(f_hz, self.level)


@dataclass(frozen=True)
class IntervalSpikes(SpikeJitter):
    """Every spike moves to a random place in its bin of length level, as elephant's `jitter_spikes`.

    Bins are counted from the start of each stretch of support; its last bin may be short. This is the interval jitter
    of Amarasingham et al. (2012) J. Neurophysiol. 107:517. Rates on time scales above a bin stay.
    """

    kind = "spike-interval"
    unit = "s"
    description = "every spike moves to a random place in its bin; level is the bin"
    edge = "no spike leaves its bin; the last bin of a stretch ends with it"

    def change(self, spikes: Spikes, *, rng: np.random.Generator) -> tuple[Spikes, Moved, dict[str, Any]]:
        """Draw a new place in each bin."""
        left_s, right_s = _bins_of(spikes, self.level)
        new_s = left_s + (right_s - left_s) * rng.uniform(0.0, 1.0, left_s.size)
        return *_moved_to(spikes, new_s), {}

    def phi(self, f_hz: ArrayLike, *, span_s: float = float("nan")) -> FloatArray:
        """sinc(f w)^2: one factor for the old place in the bin, which is lost, one for the new."""
        return np.sinc(np.asarray(f_hz) * self.level) ** 2


@dataclass(frozen=True)
class OrderedSpikes(SpikeJitter):
    """Every spike moves by up to level, but not past the middle between it and its unit's neighbours.

    The order stays and no interval gets shorter than `refractory_s` unless it was. The largest displacement depends
    on the intervals, so there is no phi. (elephant's dither with a refractory period draws one spike after the other
    and so lets a spike use the room that its neighbour left; that does not vectorise.)
    """

    refractory_s: float = 0.0

    kind = "spike-ordered"
    unit = "s"
    description = "every spike moves uniformly by up to level and stays between its unit's neighbours"
    edge = "no spike passes the end of its stretch"

    def change(self, spikes: Spikes, *, rng: np.random.Generator) -> tuple[Spikes, Moved, dict[str, Any]]:
        """Uniform between bounds half way to the neighbours."""
        by_unit = _by_unit(spikes)
        times_s, unit = spikes.times_s[by_unit], spikes.unit[by_unit]
        lo_s, hi_s = (np.broadcast_to(x, unit.shape) for x in _stretch_of(spikes.times_s, spikes.support))
        room_s = np.where(np.diff(unit) == 0, np.diff(times_s) - self.refractory_s, np.inf)
        room_s = np.maximum(0.5 * room_s, 0.0)
        to_left = np.minimum(self.level, np.append(np.inf, room_s))
        to_right = np.minimum(self.level, np.append(room_s, np.inf))
        to_left = np.minimum(to_left, np.maximum(times_s - lo_s[by_unit], 0.0))
        to_right = np.minimum(to_right, np.maximum(hi_s[by_unit] - times_s, 0.0))
        new_s = np.empty_like(times_s)
        new_s[by_unit] = times_s - to_left + (to_left + to_right) * rng.uniform(0.0, 1.0, times_s.size)
        return *_moved_to(spikes, new_s), {}


@dataclass(frozen=True)
class Quantise(SpikeJitter):
    """Times are rounded to the middle of a tick of length level."""

    kind = "quantise"
    unit = "s"
    description = "spike times are rounded to the middle of a tick; level is the tick"
    edge = "ticks are counted from the start of each stretch; its last tick ends with it"

    def change(self, spikes: Spikes, *, rng: np.random.Generator) -> tuple[Spikes, Moved, dict[str, Any]]:
        """Round; nothing is drawn."""
        left_s, right_s = _bins_of(spikes, self.level)
        new_s = 0.5 * (left_s + right_s)
        return *_moved_to(spikes, new_s), {}

    def phi(self, f_hz: ArrayLike, *, span_s: float = float("nan")) -> FloatArray:
        """|sinc(f w)|, if ticks and phase have no common period."""
        return np.abs(np.sinc(np.asarray(f_hz) * self.level))


@dataclass(frozen=True)
class Delete(SpikeJitter):
    """Every spike is missed with probability level. Locking stays; the rate, and with it the SNR, falls."""

    kind = "delete"
    unit = "1"
    description = "spikes are missed at random; level is their share"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_share(self)

    def change(self, spikes: Spikes, *, rng: np.random.Generator) -> tuple[Spikes, Moved, dict[str, Any]]:
        """Keep spikes whose uniform draw is at least the level; a higher level misses the same ones and more."""
        return _kept(spikes, rng.uniform(0.0, 1.0, spikes.times_s.size) >= self.level)

    def phi(self, f_hz: ArrayLike, *, span_s: float = float("nan")) -> FloatArray:
        """1."""
        return np.ones(np.shape(f_hz))


@dataclass(frozen=True)
class Insert(SpikeJitter):
    """Every unit gets false spikes at level times its own mean rate, at random times of its support."""

    kind = "insert"
    unit = "1"
    description = "false spikes at random times; level is their number per true spike"

    def change(self, spikes: Spikes, *, rng: np.random.Generator) -> tuple[Spikes, Moved, dict[str, Any]]:
        """Poisson, uniform over the support."""
        n_own = np.bincount(spikes.unit, minlength=spikes.n_units)
        n_new = rng.poisson(self.level * n_own)
        length_s = np.diff(spikes.support, axis=1)[:, 0]
        knots = np.concatenate([[0.0], np.cumsum(length_s)])
        place_s = knots[-1] * rng.uniform(0.0, 1.0, int(n_new.sum()))
        row = np.clip(np.searchsorted(knots, place_s, side="right") - 1, 0, max(0, len(length_s) - 1))
        false_s = (spikes.support[row, 0] + place_s - knots[row]) if len(length_s) else np.empty(0)
        times_s = np.concatenate([spikes.times_s, false_s])
        unit = np.concatenate([spikes.unit, np.repeat(np.arange(spikes.n_units), n_new)])
        order = np.argsort(times_s, kind="stable")
        source = np.where(order < spikes.times_s.size, order, -1)
        new = replace(spikes, times_s=times_s[order], unit=unit[order])
        return new, Moved(np.zeros(spikes.times_s.size), source), {"n_inserted": int(n_new.sum())}

    def phi(self, f_hz: ArrayLike, *, span_s: float = float("nan")) -> FloatArray:
        """1 / (1 + level): false spikes are not locked."""
        return np.full(np.shape(f_hz), 1 / (1 + self.level))


@dataclass(frozen=True)
class Mislabel(SpikeJitter):
    """Sorting errors: every spike goes, with probability level, to the one unit that its own is confused with.

    Units are confused in a random circle. The locking of the pooled population stays, so there is no phi.
    """

    kind = "mislabel"
    unit = "1"
    description = "spikes go to another unit, always the same one; level is their share"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_share(self)

    def change(self, spikes: Spikes, *, rng: np.random.Generator) -> tuple[Spikes, Moved, dict[str, Any]]:
        """Change labels."""
        if spikes.n_units < 2:
            raise NeurofuseError(
                f"jitter 'mislabel' needs two units to confuse, and '{spikes.name}' has {spikes.n_units}; "
                "choose another population."
            )
        circle = rng.permutation(spikes.n_units)
        partner = np.empty_like(circle)
        partner[circle] = np.roll(circle, 1)
        wrong = rng.uniform(0.0, 1.0, spikes.times_s.size) < self.level
        new = replace(spikes, unit=np.where(wrong, partner[spikes.unit], spikes.unit))
        drawn = {"partner": partner, "mislabelled": wrong, "n_mislabelled": int(wrong.sum())}
        return new, Moved.unmoved(wrong.size), drawn


@dataclass(frozen=True)
class DeadTime(SpikeJitter):
    """No spike of a unit is recorded for level seconds after each recorded one (a non-paralysable dead time).

    A Poisson unit of rate r is recorded at r / (1 + r level).
    """

    kind = "dead-time"
    unit = "s"
    description = "no spike of a unit is recorded just after another; level is the dead time"

    def change(self, spikes: Spikes, *, rng: np.random.Generator) -> tuple[Spikes, Moved, dict[str, Any]]:
        """Nothing is drawn."""
        left = _by_unit(spikes)
        while left.size > 1:
            times_s, unit = spikes.times_s[left], spikes.unit[left]
            early = np.append(False, (np.diff(unit) == 0) & (np.diff(times_s) < self.level))
            # In a run of early spikes only the first surely followed a recorded one.
            lost = early & ~np.append(False, early[:-1])
            if not lost.any():
                break
            left = left[~lost]
        kept = np.zeros(spikes.times_s.size, dtype=bool)
        kept[left] = True
        return _kept(spikes, kept)


@dataclass(frozen=True)
class DropUnits(SpikeJitter):
    """A share of the units records no more spikes after a share `after` of the recording.

    Parameters
    ----------
    after : float
        0 is from the beginning, 0.5 from the middle.
    """

    after: float = 0.0

    kind = "drop-unit"
    unit = "1"
    description = "units are lost; level is their share"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_share(self)

    def change(self, spikes: Spikes, *, rng: np.random.Generator) -> tuple[Spikes, Moved, dict[str, Any]]:
        """A higher level loses the same units and more."""
        lost = rng.permutation(spikes.n_units)[: round(self.level * spikes.n_units)]
        since_s = spikes.start_s + self.after * (spikes.stop_s - spikes.start_s)
        kept = ~(np.isin(spikes.unit, lost) & (spikes.times_s >= since_s))
        new, moved, drawn = _kept(spikes, kept)
        return new, moved, drawn | {"units": np.sort(lost), "since_s": since_s}

    def phi(self, f_hz: ArrayLike, *, span_s: float = float("nan")) -> FloatArray:
        """1: the locking of the other units stays."""
        return np.ones(np.shape(f_hz))


def keep_inside(old_s: FloatArray, new_s: FloatArray, support: FloatArray, edge: Edge) -> np.ndarray | None:
    """Move `new_s` (in place) back into the stretch that each spike came from, or select the spikes to keep.

    Returns
    -------
    ndarray of bool, or None
        Which spikes to keep; None for all.
    """
    if not old_s.size:
        return None
    lo_s, hi_s = _stretch_of(old_s, support)
    outside = np.flatnonzero((new_s < lo_s) | (new_s > hi_s))
    if edge == "drop":
        kept = np.ones(old_s.size, dtype=bool)
        kept[outside] = False
        return kept if outside.size else None
    if not outside.size:
        return None
    lo_s, hi_s = (np.broadcast_to(x, old_s.shape)[outside] for x in (lo_s, hi_s))
    length_s = np.maximum(hi_s - lo_s, np.finfo(float).tiny)
    past_s = new_s[outside] - lo_s
    if edge == "wrap":
        past_s = past_s % length_s
    else:
        past_s = length_s - np.abs(past_s % (2 * length_s) - length_s)
    new_s[outside] = np.minimum(lo_s + past_s, hi_s)
    return None


def unbin(counts: Signal, *, rng: np.random.Generator) -> Spikes:
    """The spikes of a matrix of counts, each at a random place in its bin."""
    values = np.asarray(counts.data.values)
    whole = np.rint(values).astype(np.int64)
    if not np.allclose(values, whole):
        raise NeurofuseError(
            f"counts '{counts.name}' are not whole numbers, so they cannot be turned into spikes; "
            "jitter the recording before smoothing or scaling it."
        )
    row, unit = np.nonzero(whole)
    n = whole[row, unit]
    row, unit = np.repeat(row, n), np.repeat(unit, n)
    # Kept off the very ends, where rounding could carry a spike into the next bin.
    times_s = counts.time_s[row] + counts.sample_s * rng.uniform(1e-6, 1 - 1e-6, row.size)
    order = np.argsort(times_s, kind="stable")
    names = pd.DataFrame({"name": counts.channels})
    return Spikes(counts.name, counts.clock, times_s[order], unit[order], names, counts.support)


def rebin(spikes: Spikes, counts: Signal) -> Signal:
    """Count spikes again in the bins of `counts`; those in no bin are removed."""
    row = np.searchsorted(counts.time_s, spikes.times_s, side="right") - 1
    inside = row >= 0
    inside &= spikes.times_s < counts.time_s[np.maximum(row, 0)] + GAP_SAMPLES * counts.sample_s
    flat = row[inside] * counts.n_channels + spikes.unit[inside]
    values = np.bincount(flat, minlength=counts.data.size).reshape(counts.data.shape)
    return replace(counts, data=counts.data.copy(data=values.astype(counts.data.dtype)))


def _is_population(stream: Stream) -> bool:
    return isinstance(stream, Spikes) or stream.kind == "counts"


def _by_unit(spikes: Spikes) -> IntArray:
    """Order by unit, then by time. numpy sorts short integers by radix, in a fifth of the time."""
    short = spikes.unit.astype(np.uint16) if spikes.n_units < 2**16 else spikes.unit
    return np.argsort(short, kind="stable")


def _stretch_of(times_s: FloatArray, support: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Start and stop of the stretch that each time lies in; broadcastable where there is only one."""
    if len(support) == 1:
        return support[:1, 0], support[:1, 1]
    row = np.clip(np.searchsorted(support[:, 0], times_s, side="right") - 1, 0, None)
    return support[row, 0], support[row, 1]


def _bins_of(spikes: Spikes, bin_s: float) -> tuple[FloatArray, FloatArray]:
    """Start and stop of the bin that each spike lies in."""
    lo_s, hi_s = _stretch_of(spikes.times_s, spikes.support)
    left_s = lo_s + bin_s * np.floor((spikes.times_s - lo_s) / bin_s)
    return left_s, np.minimum(left_s + bin_s, np.maximum(hi_s, spikes.times_s))


def _reordered(spikes: Spikes, times_s: FloatArray, order: IntArray) -> Spikes:
    return replace(spikes, times_s=times_s[order], unit=spikes.unit[order])


def _moved_to(spikes: Spikes, new_s: FloatArray) -> tuple[Spikes, Moved]:
    """The same spikes at other times, sorted."""
    order = np.argsort(new_s, kind="stable")
    return _reordered(spikes, new_s, order), Moved(new_s - spikes.times_s, order)


def _kept(spikes: Spikes, kept: np.ndarray) -> tuple[Spikes, Moved, dict[str, Any]]:
    source = np.flatnonzero(kept)
    moved = Moved(np.where(kept, 0.0, np.nan), source)
    return _reordered(spikes, spikes.times_s, source), moved, {"n_lost": int((~kept).sum())}


def _check_share(jitter: Jitter) -> None:
    if jitter.level > 1:
        raise NeurofuseError(
            f"jitter '{jitter.kind}': the level is a share and cannot be {jitter.level:g}; give 0 to 1."
        )
