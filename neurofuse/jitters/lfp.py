"""In: LFP, power, or a population in place of a field. Out: the same, noisier, filtered or late, and the truth.

Noise is measured in the band of the signal that the streams share, [lo_hz, hi_hz]: `level` is the std of the noise in
that band over the std of the signal in that band, per channel, so that the in-band SNR (power) is 1 / level^2 and does
not depend on the sampling rate. Noise adds power and moves no event in time: it has no phi.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike
from scipy.interpolate import make_interp_spline
from scipy.signal import bessel, bilinear_zpk, sosfilt, sosfilt_zi, zpk2sos

from neurofuse.errors import NeurofuseError
from neurofuse.jitters.jitter import Jitter, JitterResult, Moved, pick
from neurofuse.recording import FloatArray, Recording, Signal, Spikes, Stream


@dataclass(frozen=True)
class FieldNoise(Jitter):
    """Noise added to sampled signals.

    By default to LFP; where there is none to power; and where there is neither to the populations that are not on
    the reference clock, which then take the place of a field. Counts become real-valued and so of kind "power"; spikes
    are counted in bins of `bin_s` first.

    Parameters
    ----------
    level : float
        Noise std over signal std, both in the band.
    hi_hz, lo_hz : float
        The band of the shared signal. Cut at half the sampling rate.
    stream : str, optional
        The one stream to add noise to.
    bin_s : float
        Bins for streams of spikes.
    """

    level: float
    hi_hz: float = 20.0
    lo_hz: float = 0.0
    stream: str | None = None
    bin_s: float = 0.02

    unit = "1"
    acts_on = "lfp"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.lo_hz < self.hi_hz:
            raise NeurofuseError(
                f"jitter '{self.kind}': the band must run from 0 or more up to something higher, got "
                f"{self.lo_hz:g} to {self.hi_hz:g} Hz."
            )

    def targets(self, recording: Recording) -> tuple[str, ...]:
        """LFP, else power, else populations off the reference clock."""
        lfp = [s for s in recording.signals if s.kind == "lfp"]
        power = [s for s in recording.signals if s.kind == "power"]
        others = [s for s in recording.streams if s.clock != recording.reference]
        what = (
            f"no LFP and no stream off the reference clock for jitter '{self.kind}' to act on (give a population a "
            "clock of its own with split_units)"
        )
        return pick(recording, self.stream, lfp or power or others, what)

    def act(
        self, recording: Recording, streams: tuple[str, ...], *, rng: np.random.Generator
    ) -> JitterResult:
        """Add independent noise to each stream."""
        out: dict[str, Stream] = {}
        moved: dict[str, Moved] = {}
        realised: dict[str, Any] = {}
        for name, own in zip(streams, rng.spawn(len(streams)), strict=True):
            stream = recording[name]
            signal = binned(stream, self.bin_s) if isinstance(stream, Spikes) else stream
            values = np.asarray(signal.data.values, dtype=np.float64)
            signal_std = band_std(signal, values, self.lo_hz, self.hi_hz)
            new = self.noisy(signal, values, signal_std, rng=own)
            out[name] = _with(signal, new)
            if isinstance(stream, Signal) and stream.kind != "counts":
                moved[name] = Moved.unmoved(len(values))
            realised[f"{name}: signal_std"] = signal_std
            realised[f"{name}: noise_std"] = band_std(signal, new - values, self.lo_hz, self.hi_hz)
        return JitterResult(out, moved, realised)

    def noisy(
        self, signal: Signal, values: FloatArray, signal_std: FloatArray, *, rng: np.random.Generator
    ) -> FloatArray:
        """The samples afterwards; `signal_std` is the in-band std of each channel."""
        noise = self.noise(signal, values.shape, rng=rng)
        own = band_std(signal, noise, self.lo_hz, self.hi_hz)
        if (own == 0).any():
            raise NeurofuseError(
                f"'{signal.name}' at {signal.rate_hz:g} Hz is too short to hold noise in the band from "
                f"{self.lo_hz:g} to {self.hi_hz:g} Hz; widen the band."
            )
        # Scaled by the std of the draw itself, so that the SNR is exact and not only expected.
        return values + self.level * (signal_std / own) * noise

    def noise(self, signal: Signal, shape: tuple[int, ...], *, rng: np.random.Generator) -> FloatArray:
        """Noise of any std; it is scaled afterwards."""
        raise TypeError(f"{type(self).__name__} does not define noise().")


@dataclass(frozen=True)
class WhiteNoise(FieldNoise):
    """Noise of equal power at all frequencies, up to half the sampling rate."""

    kind = "noise"
    description = "white noise; level is its std over the signal's, both in the shared band"

    def noise(self, signal: Signal, shape: tuple[int, ...], *, rng: np.random.Generator) -> FloatArray:
        """Normal."""
        return rng.standard_normal(shape)


@dataclass(frozen=True)
class PinkNoise(FieldNoise):
    """Noise whose power falls as 1/f, flat below `knee_hz`."""

    knee_hz: float = 0.2

    kind = "pink"
    description = "1/f noise; level is its std over the signal's, both in the shared band"

    def noise(self, signal: Signal, shape: tuple[int, ...], *, rng: np.random.Generator) -> FloatArray:
        """White noise, filtered in each stretch."""
        out = rng.standard_normal(shape)
        for run in runs(signal):
            n = run.stop - run.start
            f_hz = np.fft.rfftfreq(n, signal.sample_s)
            gain = 1 / np.sqrt(np.maximum(f_hz, self.knee_hz))
            out[run] = np.fft.irfft(np.fft.rfft(out[run], axis=0) * gain[:, None], n=n, axis=0)
        return out


@dataclass(frozen=True)
class LineNoise(FieldNoise):
    """Mains: a sine and its harmonics, the k-th 1/k as large, with one random phase each, the same on all channels.

    The level is the rms of their sum over the signal's std in the shared band, whatever the line frequency.
    """

    line_hz: float = 50.0
    n_harmonics: int = 3

    kind = "line"
    description = "mains hum; level is its rms over the signal's std in the shared band"

    def noisy(
        self, signal: Signal, values: FloatArray, signal_std: FloatArray, *, rng: np.random.Generator
    ) -> FloatArray:
        """Sines."""
        k = np.arange(1, self.n_harmonics + 1)
        phase = rng.uniform(0, 2 * np.pi, k.size)
        below_nyquist = k * self.line_hz < 0.5 * signal.rate_hz
        if not below_nyquist.any():
            raise NeurofuseError(
                f"line noise at {self.line_hz:g} Hz cannot be represented in '{signal.name}', sampled at "
                f"{signal.rate_hz:g} Hz; add it before features are computed."
            )
        k, phase = k[below_nyquist], phase[below_nyquist]
        wave = (np.sin(2 * np.pi * self.line_hz * np.outer(signal.time_s, k) + phase) / k).sum(axis=1)
        wave /= np.sqrt(0.5 * (1.0 / k**2).sum())
        return values + self.level * signal_std * wave[:, None]


@dataclass(frozen=True)
class Artefacts(FieldNoise):
    """Transients on all channels at once, `rate_hz` per second, of either sign, that decay over `decay_s`.

    The level is their peak over the signal's std in the shared band.
    """

    rate_hz: float = 0.5
    decay_s: float = 0.05

    kind = "artefact"
    description = "transients on all channels; level is their peak over the signal's std in the shared band"

    def noisy(
        self, signal: Signal, values: FloatArray, signal_std: FloatArray, *, rng: np.random.Generator
    ) -> FloatArray:
        """Exponential pulses at Poisson times."""
        n = len(values)
        hits = rng.poisson(self.rate_hz * signal.sample_s, n) * rng.choice([-1.0, 1.0], n)
        keep = np.exp(-signal.sample_s / self.decay_s)
        wave = np.concatenate(
            [sosfilt([[1.0, 0.0, 0.0, 1.0, -keep, 0.0]], hits[run]) for run in runs(signal)] or [hits]
        )
        return values + self.level * signal_std * wave[:, None]


@dataclass(frozen=True)
class Saturate(FieldNoise):
    """The amplifier clips each channel at its mean +- std / level: at level 1 at one std, at level 0 never."""

    kind = "saturate"
    description = "clipping; level is a channel's std over the clipping range"

    def noisy(
        self, signal: Signal, values: FloatArray, signal_std: FloatArray, *, rng: np.random.Generator
    ) -> FloatArray:
        """Clip; nothing is drawn, and the std is that of the whole channel."""
        mean, room = values.mean(axis=0), values.std(axis=0) / self.level
        return np.clip(values, mean - room, mean + room)


@dataclass(frozen=True)
class FieldPath(Jitter):
    """A jitter of the path from the electrode to the file, by default of all LFP, else of all power.

    Parameters
    ----------
    level : float
    stream : str, optional
        The one signal to act on.
    """

    level: float
    stream: str | None = None

    unit = "s"
    acts_on = "lfp"

    def targets(self, recording: Recording) -> tuple[str, ...]:
        """LFP, else power."""
        lfp = [s for s in recording.signals if s.kind == "lfp"]
        power = [s for s in recording.signals if s.kind == "power"]
        names = pick(recording, self.stream, lfp or power, f"no LFP for jitter '{self.kind}' to act on")
        if not all(isinstance(s := recording[n], Signal) and s.kind != "counts" for n in names):
            raise NeurofuseError(
                f"jitter '{self.kind}' acts on LFP, but '{names[0]}' holds spikes; choose one of "
                f"{[s.name for s in (*lfp, *power)]}."
            )
        return names


@dataclass(frozen=True)
class FilterDelay(FieldPath):
    """A causal Bessel low-pass whose group delay at low frequencies is level, as of an amplifier's filter.

    A filter shifts all phases of one frequency alike, so phase locking stays (phi = 1) at another phase. The map of
    time is the delay at low frequencies. Frequencies above 1 / (2 pi level) Hz are also attenuated.

    Parameters
    ----------
    order : int
    """

    order: int = 4

    kind = "filter-delay"
    description = "a causal low-pass filter; level is its group delay"
    edge = "every stretch starts as if its first sample had been constant before"

    def act(
        self, recording: Recording, streams: tuple[str, ...], *, rng: np.random.Generator
    ) -> JitterResult:
        """Filter; nothing is drawn."""
        out: dict[str, Stream] = {}
        moved = {}
        for name in streams:
            signal = recording[name]
            assert isinstance(signal, Signal)
            sos = self.sections(signal.rate_hz)
            values = np.array(signal.data.values, dtype=np.float64)
            source = np.arange(len(values))
            for run in runs(signal):
                source[run] = np.maximum(source[run] - round(self.level * signal.rate_hz), run.start)
                start = sosfilt_zi(sos)[:, :, None] * values[run][0]
                values[run], _ = sosfilt(sos, values[run], axis=0, zi=start)
            out[name] = _with(signal, values)
            moved[name] = Moved(np.full(len(values), self.level), source)
        return JitterResult(out, moved, maps=(lambda t: t + self.level, lambda t: t - self.level))

    def sections(self, rate_hz: float) -> FloatArray:
        """Second-order sections. The bilinear map preserves the delay at low frequencies."""
        z, p, k = bessel(self.order, 1 / self.level, analog=True, norm="delay", output="zpk")
        return zpk2sos(*bilinear_zpk(z, p, k, rate_hz))

    def phi(self, f_hz: ArrayLike, *, span_s: float = float("nan")) -> FloatArray:
        """1."""
        return np.ones(np.shape(f_hz))


@dataclass(frozen=True)
class Propagation(FieldPath):
    """A wave that travels across the array: the last channel is late by level against the first, the mean by zero.

    phi is that of the mean of many channels; the locking of each channel stays.
    """

    kind = "propagation"
    description = "a wave across the channels; level is the delay from first to last"
    edge = "samples without content on some channel, half a level at both ends of a stretch, are dropped"

    def act(
        self, recording: Recording, streams: tuple[str, ...], *, rng: np.random.Generator
    ) -> JitterResult:
        """Cubic interpolation; nothing is drawn."""
        out: dict[str, Stream] = {}
        moved = {}
        realised = {}
        for name in streams:
            signal = recording[name]
            assert isinstance(signal, Signal)
            delay_s = self.level * (
                np.linspace(-0.5, 0.5, signal.n_channels) if signal.n_channels > 1 else np.zeros(1)
            )
            values = np.array(signal.data.values, dtype=np.float64)
            time_s = signal.time_s
            kept = np.zeros(len(values), dtype=bool)
            for run in runs(signal):
                own_s = time_s[run]
                inside = (own_s - delay_s.max() >= own_s[0] - 1e-9) & (
                    own_s - delay_s.min() <= own_s[-1] + 1e-9
                )
                kept[run] = inside
                if own_s.size < 4 or not inside.any():
                    continue
                for c, late_s in enumerate(delay_s):
                    curve = make_interp_spline(own_s, values[run][:, c], k=3)
                    values[run, c] = curve(np.clip(own_s - late_s, own_s[0], own_s[-1]))
            if not kept.any():
                raise NeurofuseError(
                    f"jitter '{self}' would leave no sample of '{name}', whose longest stretch lasts "
                    f"{np.diff(signal.support, axis=1).max():.3g} s; lower the level."
                )
            after = _with(signal, values)
            out[name] = replace(after, data=after.data.isel(time=np.flatnonzero(kept)))
            moved[name] = Moved(np.broadcast_to(delay_s, values.shape), np.flatnonzero(kept))
            realised[f"{name}: delay_s"] = delay_s
        return JitterResult(out, moved, realised)

    def phi(self, f_hz: ArrayLike, *, span_s: float = float("nan")) -> FloatArray:
        """|sinc(f level)|, of the mean of many channels."""
        return np.abs(np.sinc(np.asarray(f_hz) * self.level))


def runs(signal: Signal) -> list[slice]:
    """The samples of each stretch without a gap."""
    edges = np.searchsorted(signal.time_s, signal.support[:, 0] - 0.5 * signal.sample_s)
    return [slice(int(a), int(b)) for a, b in zip(edges, [*edges[1:], signal.time_s.size], strict=True)]


def band_std(signal: Signal, values: FloatArray, lo_hz: float, hi_hz: float) -> FloatArray:
    """Std of each channel's content in [lo_hz, hi_hz], means removed, by Parseval over the stretches."""
    power = np.zeros(values.shape[1])
    n_samples = 0
    for run in runs(signal):
        part = values[run] - values[run].mean(axis=0)
        n = len(part)
        f_hz = np.fft.rfftfreq(n, signal.sample_s)
        weight = np.full(f_hz.size, 2.0)
        weight[0] = 0.0
        if n % 2 == 0:
            weight[-1] = 1.0
        weight[(f_hz < lo_hz) | (f_hz > hi_hz)] = 0.0
        power += (weight[:, None] * np.abs(np.fft.rfft(part, axis=0)) ** 2).sum(axis=0) / n
        n_samples += n
    return np.sqrt(power / max(1, n_samples))


def binned(spikes: Spikes, bin_s: float) -> Signal:
    """Counts of every unit in bins of `bin_s` that lie inside the support."""
    time_s = []
    for start_s, stop_s in spikes.support:
        time_s.append(start_s + bin_s * np.arange(int((stop_s - start_s) / bin_s + 1e-6)))
    grid_s = np.concatenate(time_s) if time_s else np.empty(0)
    if grid_s.size < 2:
        raise NeurofuseError(f"'{spikes.name}' is too short for bins of {bin_s:g} s; give a shorter bin_s.")
    row = np.searchsorted(grid_s, spikes.times_s, side="right") - 1
    inside = (row >= 0) & (spikes.times_s < grid_s[np.maximum(row, 0)] + bin_s)
    flat = row[inside] * spikes.n_units + spikes.unit[inside]
    values = np.bincount(flat, minlength=grid_s.size * spikes.n_units).reshape(grid_s.size, spikes.n_units)
    names = [str(n) for n in spikes.units["name"]]
    data = xr.DataArray(
        values.astype(np.float64), dims=("time", "channel"), coords={"time": grid_s, "channel": names}
    )
    return Signal(spikes.name, spikes.clock, data, "counts", bin_s)


def _with(signal: Signal, values: FloatArray) -> Signal:
    """The signal with other values; counts become real-valued."""
    kind = "power" if signal.kind == "counts" else signal.kind
    return replace(signal, data=signal.data.copy(data=values.astype(signal.data.dtype)), kind=kind)
