"""In: a `Signal` of kind "lfp". Out: a `Signal` of kind "power", a few numbers per channel at a feature rate.

The features are those that decoders of movement use: the low-frequency potential and the power in a few
bands. Filters are causal by default, and every gap in the recording starts them anew. The settings and the
delay of each band are kept with the data in `attrs["features"]`.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from math import ceil, pi, sqrt

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from neurofuse.config import FeatureConfig
from neurofuse.errors import NeurofuseError
from neurofuse.recording import FloatArray, Signal

# Broadband is brought down to this rate before features are taken, which need no more ...
LFP_RATE_HZ = 1000.0
# ... where it has more than this many times as many samples.
BROADBAND = 2.5
# The last tenth below half the sampling rate belongs to the recorder's anti-alias filter, not to the brain.
NYQUIST_SHARE = 0.9
# Width of a line notch. At 2 Hz, mains that wander by 0.05 Hz are still 26 dB down.
NOTCH_HZ = 2.0
# A band is reported once its filter, started cold, has let through this share of an impulse's energy.
SETTLED = 0.9
# Power is kept above this share (-100 dB) of the largest power so far, so that the logarithm of a run of
# zeros stays finite; low enough that no plausible artefact raises the floor to the signal.
POWER_FLOOR = 1e-10
# Log variances of healthy channels of one array differ by about this much or more; a smaller spread
# (copied or simulated channels) must not turn an ordinary channel into an outlier.
LOG_VARIANCE_SPREAD = 0.25
# With fewer channels the spread over channels does not show an outlier.
MIN_CHANNELS = 4
# Spectra for the line-noise ratio are taken from at most this much of the longest stretch.
SPECTRUM_S = 60.0


def lfp_features(signal: Signal, *, config: FeatureConfig | None = None) -> Signal:
    """Turn LFP into the features a movement decoder uses: low-frequency potential and band power.

    Every stretch of support is filtered on its own, so nothing leaks across a gap. A causal band needs a
    moment after the start of a stretch until its filter has settled (`settle_s` in the record); until then
    there is no feature. Power is averaged over the last `smooth_s` (fewer right after the start).

    Parameters
    ----------
    signal : Signal
        LFP, (time, channel). Signals of kind "power" or "counts" are returned unchanged.
    config : FeatureConfig, optional
        Bands and filters; the defaults of `FeatureConfig` if left out.

    Returns
    -------
    Signal
        Kind "power", same name and clock, channels named "<channel> <band>". Causal features carry the
        time of the newest sample they used; zero-phase features the start of the stretch they average.
        `data.attrs["features"]` is JSON: the settings, the bands used and left out (those that end above
        0.9 of half the sampling rate), filter orders, and `group_delay_s`, by how much a band is late at its
        centre (geometric mean of its edges; half the upper edge for a band from 0 Hz). Line notches delay
        only their immediate neighbourhood and are not counted in it.

    Raises
    ------
    NeurofuseError
        If no band fits below half the sampling rate, or no stretch is long enough for one feature.
    """
    if signal.kind != "lfp":
        return signal
    bank = _filter_bank(signal, config or FeatureConfig())
    step, skip = bank.step, bank.skip
    pieces = [
        (start, n_bins) for start, stop in _stretches(signal) if (n_bins := (stop - start) // step - skip) > 0
    ]
    if not pieces:
        longest = max((b - a for a, b in _stretches(signal)), default=0) * signal.sample_s
        raise NeurofuseError(
            f"lfp '{signal.name}': no stretch is long enough for a feature; the longest has {longest:.3g} s, "
            f"but {(skip + 1) * bank.out_s:.3g} s are needed; use wider bands, a lower order or causal=False."
        )
    values, n_bands = signal.data.values, len(bank.bands)
    n_out = sum(n for _, n in pieces)
    times = np.empty(n_out)
    out = np.empty((n_out, signal.n_channels * n_bands), dtype=np.float32)
    row = 0
    for start, n_bins in pieces:
        rows = slice(row, row + n_bins)
        n_in = (skip + n_bins) * step
        in_bins = signal.time_s[start + skip * step : start + n_in].reshape(n_bins, step)
        # A token holds a value until the next is due, so one about a stretch of time is stamped where that begins.
        causal = bank.config.causal
        times[rows] = in_bins[:, -1] if causal else in_bins.mean(axis=1) - 0.5 * bank.out_s
        for c in range(signal.n_channels):
            # One channel at a time: hours of many channels never exist twice, and never as float64.
            x = np.ascontiguousarray(values[start : start + n_in, c], dtype=np.float64)
            out[rows, c * n_bands : (c + 1) * n_bands] = bank.features(x)
        row += n_bins
    data = xr.DataArray(
        out,
        dims=("time", "channel"),
        coords={
            "time": times,
            "channel": [f"{c} {band}" for c in signal.channels for band, _, _ in bank.bands],
        },
        attrs={
            **signal.data.attrs,
            "units": bank.units(str(signal.data.attrs.get("units", "")) or "1"),
            "features": json.dumps(bank.record()),
        },
    )
    return Signal(signal.name, signal.clock, data, "power", bank.out_s)


@dataclass(frozen=True)
class _FilterBank:
    """The filters of one signal, and the numbers that follow from its sampling rate."""

    config: FeatureConfig
    rate_hz: float
    sample_s: float
    bands: list[tuple[str, float, float]]
    left_out: list[tuple[str, float, float]]
    filters: list[NDArray[np.float64]]
    notches_hz: list[float]
    notch: NDArray[np.float64] | None
    # Samples per feature, features per average of power, and features left out until the filters have settled.
    step: int
    n_smooth: int
    skip: int

    @property
    def out_s(self) -> float:
        """Seconds per feature."""
        return self.step * self.sample_s

    def features(self, x: FloatArray) -> FloatArray:
        """Features (n_bins, n_bands) of one channel of one stretch, `skip` bins later than its first sample."""
        config, step, skip = self.config, self.step, self.skip
        if self.notch is not None:
            x = _filtered(self.notch, x, self.rate_hz, NOTCH_HZ, x[0] if config.causal else None)
        # The level that a filter is started from: for the potential the mean up to the first feature, as one
        # sample alone is mostly noise; for a band the first sample, so that there is no step.
        levels = (x[: (skip + 1) * step].mean(), x[0])
        out = []
        for (_, lo, hi), sos in zip(self.bands, self.filters, strict=True):
            level = levels[0 if lo == 0 else 1] if config.causal else None
            bins = _filtered(sos, x, self.rate_hz, hi - lo, level)[skip * step :].reshape(-1, step)
            if lo == 0:
                out.append(bins.mean(axis=1))
                continue
            power = _running_mean(np.einsum("ij,ij->i", bins, bins) / step, self.n_smooth, config.causal)
            if config.log_power:
                floor = POWER_FLOOR * np.maximum.accumulate(power)
                power = np.log(np.maximum(np.maximum(power, floor), 1e-30))
            out.append(power)
        return np.stack(out, axis=1)

    def units(self, unit: str) -> str:
        """Unit of the features of a signal in `unit`."""
        power = f"ln {unit}^2" if self.config.log_power else f"{unit}^2"
        potentials = [lo == 0 for _, lo, _ in self.bands]
        if not any(potentials):
            return power
        return unit if all(potentials) else f"{unit} (potential), {power} (power)"

    def record(self) -> dict[str, object]:
        """The settings, and what was done, ready for JSON."""
        bands = []
        for (name, lo, hi), sos in zip(self.bands, self.filters, strict=True):
            delay = 0.0
            if self.config.causal:
                window = self.step if lo == 0 else self.step * self.n_smooth
                centre_hz = hi / 2 if lo == 0 else sqrt(lo * hi)
                delay = _group_delay(sos, centre_hz, self.rate_hz) + (window - 1) / 2 * self.sample_s
            measure = "potential" if lo == 0 else "log power" if self.config.log_power else "power"
            bands.append(
                {"name": name, "lo_hz": lo, "hi_hz": hi, "measure": measure}
                | {"order": self.config.order, "group_delay_s": round(delay, 9)}
            )
        limit_hz = NYQUIST_SHARE * self.rate_hz / 2
        why = f"ends above {NYQUIST_SHARE:g} of half the sampling rate, {limit_hz:g} Hz"
        return {
            "settings": asdict(self.config),
            "causal": self.config.causal,
            "source_rate_hz": self.rate_hz,
            "rate_hz": 1 / self.out_s,
            "smooth_s": self.n_smooth * self.out_s,
            "settle_s": self.skip * self.out_s,
            "line_notches_hz": self.notches_hz,
            "bands": bands,
            "left_out": [{"name": n, "lo_hz": lo, "hi_hz": hi, "why": why} for n, lo, hi in self.left_out],
        }


def _filter_bank(signal: Signal, config: FeatureConfig) -> _FilterBank:
    rate_hz = signal.rate_hz
    limit_hz = NYQUIST_SHARE * rate_hz / 2
    bands = [band for band in config.bands if band[2] <= limit_hz]
    if not bands:
        lowest = min(config.bands, key=lambda band: band[2])
        raise NeurofuseError(
            f"lfp '{signal.name}' has {rate_hz:g} samples per second, too few for any band (the lowest is "
            f"'{lowest[0]}', up to {lowest[2]:g} Hz); give bands that end below {limit_hz:g} Hz."
        )
    # A hundredth of slack, so that 999.9 Hz counts as 1000.
    step = max(1, int(1.01 * rate_hz / config.rate_hz))
    n_smooth = max(1, round(config.smooth_s / (step * signal.sample_s)))
    if not config.causal:
        n_smooth += 1 - n_smooth % 2  # an odd number of bins has a middle
    filters = [_band_filter(lo, hi, rate_hz, config.order) for _, lo, hi in bands]
    notches_hz = _notches(config.line_hz, rate_hz, max(hi for _, _, hi in bands))
    settle = 0
    if config.causal:
        settle = max((_settling(f) for f, band in zip(filters, bands, strict=True) if band[1] > 0), default=0)
    return _FilterBank(
        config,
        rate_hz,
        signal.sample_s,
        bands,
        [band for band in config.bands if band[2] > limit_hz],
        filters,
        notches_hz,
        _notch_filter(notches_hz, rate_hz),
        step,
        n_smooth,
        skip=ceil(settle / step),
    )


def channel_quality(
    signal: Signal, *, max_outlier_z: float = 5.0, max_saturation: float = 0.05
) -> pd.DataFrame:
    """Measure every channel, and mark those that are bad.

    A channel is bad if it is flat, if it sits at the ends of its range too often, or if its variance does
    not fit the others. Line noise is measured but makes no channel bad: `line_hz` in
    `FeatureConfig` removes it.

    Parameters
    ----------
    signal : Signal
        Any kind; line noise and saturation are measured on LFP only.
    max_outlier_z : float
        Largest robust z (median and MAD over channels) of a log variance; at least `MIN_CHANNELS` are needed.
    max_saturation : float
        Largest share of samples at the smallest or largest value of a channel.

    Returns
    -------
    DataFrame
        One row per channel: `name`, `flat`, `variance` (squared units), `line_50`, `line_60` (power density
        at the line over that of its neighbours, 1 is none, NaN if it cannot be measured), `saturation` (share of
        samples), `outlier_z`, `bad`, `why`.

    Raises
    ------
    NeurofuseError
        If the signal holds no samples.
    """
    values = signal.data.values
    if not values.size:
        raise NeurofuseError(f"{signal.kind} '{signal.name}' holds no samples to measure; give a longer one.")
    n_channels = signal.n_channels
    variance, saturation = np.empty(n_channels), np.zeros(n_channels)
    flat = np.zeros(n_channels, dtype=bool)
    for c in range(n_channels):
        x = values[:, c].astype(np.float64)
        lowest, highest = float(x.min()), float(x.max())
        variance[c] = x.var()
        flat[c] = highest - lowest <= 1e-6 * max(abs(lowest), abs(highest))
        if signal.kind == "lfp" and not flat[c]:
            slack = 1e-6 * (highest - lowest)
            saturation[c] = np.mean((x <= lowest + slack) | (x >= highest - slack))

    outlier_z = np.full(n_channels, np.nan)
    if (~flat).sum() >= MIN_CHANNELS:
        level = np.log(variance[~flat])
        spread = 1.4826 * np.median(np.abs(level - np.median(level)))  # MAD of a normal is sigma / 1.4826
        outlier_z[~flat] = (level - np.median(level)) / max(float(spread), LOG_VARIANCE_SPREAD)

    why = []
    for c in range(n_channels):
        reasons = []
        if flat[c]:
            reasons.append("flat: every sample is the same")
        if saturation[c] > max_saturation:
            reasons.append(f"saturated: {100 * saturation[c]:.0f} % of samples at the ends of its range")
        if abs(outlier_z[c]) > max_outlier_z:
            word = "larger" if outlier_z[c] > 0 else "smaller"
            reasons.append(f"variance far {word} than the other channels' (z = {outlier_z[c]:.1f})")
        why.append("; ".join(reasons))
    return pd.DataFrame(
        {
            "name": signal.channels,
            "flat": flat,
            "variance": variance,
            "line_50": _line_ratio(signal, 50.0, flat),
            "line_60": _line_ratio(signal, 60.0, flat),
            "saturation": saturation,
            "outlier_z": outlier_z,
            "bad": [bool(w) for w in why],
            "why": why,
        }
    )


def drop_bad(signal: Signal, quality: pd.DataFrame) -> Signal:
    """Keep the channels that `channel_quality` did not mark as bad.

    Raises
    ------
    NeurofuseError
        If the table is of another signal, or if no channel would be left.
    """
    names = [str(n) for n in quality["name"]]
    if names != signal.channels:
        raise NeurofuseError(
            f"the quality table has {len(names)} rows and is not of {signal.kind} '{signal.name}' with its "
            f"{signal.n_channels} channels; compute it with channel_quality on this signal."
        )
    bad = quality["bad"].to_numpy(dtype=bool)
    if bad.all():
        raise NeurofuseError(
            f"all {signal.n_channels} channels of {signal.kind} '{signal.name}' are bad (the first is "
            f"{quality['why'].iloc[0]}); check the recording, or leave this stream out."
        )
    return signal if not bad.any() else signal.select(np.flatnonzero(~bad).tolist())


def clean_lfp(
    signal: Signal, *, causal: bool, keep: Collection[str] | None = None
) -> tuple[Signal, pd.DataFrame]:
    """Bring broadband down to `LFP_RATE_HZ`, and leave out bad channels.

    Both work on one channel at a time, so that memory beyond input and output is that of one channel.

    Parameters
    ----------
    signal : Signal
        LFP; the rate stays if it is at most `BROADBAND` times `LFP_RATE_HZ`.
    causal : bool
        Whether the low-pass uses earlier samples only, as in `resample`.
    keep : collection of str, optional
        Names of the channels to keep instead, bad or not; all of them if the signal has none of these.

    Returns
    -------
    signal : Signal
    quality : DataFrame
        One row per channel, those left out included; see `channel_quality`.

    Raises
    ------
    NeurofuseError
        If the signal holds no samples, or no channel would be left.
    """
    if signal.rate_hz > BROADBAND * LFP_RATE_HZ:
        signal = resample(signal, LFP_RATE_HZ, causal=causal)
    quality = channel_quality(signal)
    if keep is None:
        return drop_bad(signal, quality), quality
    rows = [k for k, name in enumerate(signal.channels) if name in keep]
    return (signal.select(rows) if rows else signal), quality


def resample(signal: Signal, rate_hz: float, *, causal: bool = False) -> Signal:
    """Change the sampling rate of LFP or power without aliasing, each stretch of support on its own.

    Parameters
    ----------
    signal : Signal
        LFP or power.
    rate_hz : float
        Samples per second; met exactly or to a few parts in a million.
    causal : bool
        False: linear phase (`scipy.signal.resample_poly`). True: a causal low-pass, then the newest sample at
        or before each new moment, stamped with that sample's own time.

    Raises
    ------
    NeurofuseError
        If the signal holds counts, the rate is not positive, or a causal rate would be higher than before.
    """
    if signal.kind == "counts":
        raise NeurofuseError(f"counts '{signal.name}' cannot be resampled; bin the spikes again instead.")
    if not 0 < rate_hz < np.inf:
        raise NeurofuseError(f"the new sampling rate must be positive, got {rate_hz:g} Hz.")
    ratio = Fraction(rate_hz / signal.rate_hz).limit_denominator(1000)
    if ratio == 0:
        raise NeurofuseError(
            f"{rate_hz:g} Hz is less than a thousandth of the {signal.rate_hz:g} Hz of {signal.kind} "
            f"'{signal.name}'; resample in two steps."
        )
    if ratio == 1:
        return signal
    if causal and ratio > 1:
        raise NeurofuseError(
            f"{signal.kind} '{signal.name}' has {signal.rate_hz:g} samples per second and cannot be brought to "
            f"{rate_hz:g} Hz causally; give a lower rate, or causal=False."
        )
    from scipy.signal import butter, resample_poly, sosfilt, sosfilt_zi

    up, down = ratio.numerator, ratio.denominator
    # Order 8 at 0.8 of the new half rate: 15 dB down where folding begins, 40 dB at 1.4 of the half rate.
    sos = butter(8, 0.8 * up / down, output="sos") if causal else None
    values, times, parts = signal.data.values, [], []
    for start, stop in _stretches(signal):
        position = np.arange(ceil((stop - start) * up / down)) * (down / up)
        if sos is not None:
            # Position k * down / up in whole numbers: a float just below would pick the sample before.
            picked = np.arange(position.size) * down // up
            times.append(signal.time_s[start:stop][picked])
            part = np.empty((picked.size, signal.n_channels), dtype=values.dtype)
            for c in range(signal.n_channels):
                x = values[start:stop, c].astype(np.float64)
                part[:, c] = sosfilt(sos, x, zi=sosfilt_zi(sos) * x[0])[0][picked]
        else:
            inside = position <= stop - start - 1
            position = position[inside]
            times.append(np.interp(position, np.arange(stop - start), signal.time_s[start:stop]))
            part = np.empty((position.size, signal.n_channels), dtype=values.dtype)
            for c in range(signal.n_channels):
                x = values[start:stop, c].astype(np.float64)
                part[:, c] = resample_poly(x, up, down, padtype="line")[: position.size]
        parts.append(part)
    if not parts:
        return replace(signal, sample_s=signal.sample_s * down / up)
    data = xr.DataArray(
        np.concatenate(parts),
        dims=("time", "channel"),
        coords={"time": np.concatenate(times), "channel": signal.channels},
        attrs=dict(signal.data.attrs),
    )
    return Signal(signal.name, signal.clock, data, signal.kind, signal.sample_s * down / up)


def _stretches(signal: Signal) -> list[tuple[int, int]]:
    """Rows (first, one past last) of every stretch without a gap."""
    starts = np.searchsorted(signal.time_s, signal.support[:, 0]).tolist()
    return list(zip(starts, [*starts[1:], signal.time_s.size], strict=True)) if starts else []


def _band_filter(lo_hz: float, hi_hz: float, rate_hz: float, order: int) -> NDArray[np.float64]:
    from scipy.signal import butter

    if lo_hz == 0:
        return butter(order, hi_hz, btype="lowpass", fs=rate_hz, output="sos")
    return butter(order, (lo_hz, hi_hz), btype="bandpass", fs=rate_hz, output="sos")


def _notches(line_hz: float | None, rate_hz: float, highest_hz: float) -> list[float]:
    """The line and those of its harmonics that reach into the bands."""
    if line_hz is None:
        return []
    top_hz = min(highest_hz + line_hz / 2, NYQUIST_SHARE * rate_hz / 2)
    return [line_hz * k for k in range(1, int(top_hz / line_hz) + 1)]


def _notch_filter(notches_hz: list[float], rate_hz: float) -> NDArray[np.float64] | None:
    from scipy.signal import iirnotch, tf2sos

    if not notches_hz:
        return None
    return np.concatenate([tf2sos(*iirnotch(f, f / NOTCH_HZ, fs=rate_hz)) for f in notches_hz])


def _filtered(
    sos: NDArray[np.float64], x: FloatArray, rate_hz: float, width_hz: float, level: float | None
) -> FloatArray:
    """Filter one channel of one stretch: causally after a long run at `level`, or zero-phase (None)."""
    from scipy.signal import sosfilt, sosfilt_zi, sosfiltfilt

    if level is not None:
        return sosfilt(sos, x, zi=sosfilt_zi(sos) * level)[0]
    # A filter of width w rings for about 1 / w; the mirrored edges must outlast that. An odd mirror keeps a
    # trend but forces a band-pass to zero at the edge, and its log power to a hole; there the mirror is even.
    passes_dc = abs(np.prod(sos[:, :3].sum(axis=1) / sos[:, 3:].sum(axis=1))) > 0.5
    padlen = min(len(x) - 1, int(3 * rate_hz / width_hz))
    return sosfiltfilt(sos, x, padtype="odd" if passes_dc else "even", padlen=padlen)


def _settling(sos: NDArray[np.float64]) -> int:
    """Samples after which a filter started cold has let through most of an impulse's energy."""
    from scipy.signal import sosfilt

    n = 256
    while True:
        impulse = np.zeros(n)
        impulse[0] = 1.0
        energy = np.cumsum(sosfilt(sos, impulse) ** 2)
        if energy[n // 2] > (1 - 1e-6) * energy[-1] or n > 1 << 22:
            return int(np.searchsorted(energy, SETTLED * energy[-1]))
        n *= 2


def _group_delay(sos: NDArray[np.float64], at_hz: float, rate_hz: float) -> float:
    """Seconds by which a filter delays the envelope of a narrow signal, section by section."""
    omega = 2 * pi * at_hz / rate_hz
    z = np.exp(-1j * omega * np.arange(3))
    total = 0.0
    for section in sos:
        # -d(phase)/d(omega) of a polynomial in exp(-i omega) is Re(sum k c_k z^k / sum c_k z^k). Taking the
        # numerator from the unit circle (a zero at 0 or half the rate) has the same half-order limit.
        for sign, c in ((1.0, section[:3]), (-1.0, section[3:])):
            value = np.sum(c * z)
            if abs(value) > 1e-12:
                total += sign * float(np.real(np.sum(np.arange(3) * c * z) / value))
    return total / rate_hz


def _running_mean(x: FloatArray, n: int, causal: bool) -> FloatArray:
    """Mean over the last (causal) or surrounding `n` values, over those that exist near the ends."""
    window = np.ones(n)
    first = 0 if causal else n // 2
    keep = slice(first, first + x.size)
    return np.convolve(x, window)[keep] / np.convolve(np.ones(x.size), window)[keep]


def _line_ratio(signal: Signal, line_hz: float, flat: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Power density at the line over the median density of its neighbourhood, one number per channel."""
    from scipy.signal import welch

    ratio = np.full(signal.n_channels, np.nan)
    rate_hz = signal.rate_hz
    start, stop = max(_stretches(signal), key=lambda rows: rows[1] - rows[0])
    n_spectrum = min(stop - start, int(SPECTRUM_S * rate_hz))
    n_window = int(2 * rate_hz)  # bins of half a hertz
    if signal.kind != "lfp" or line_hz + 8 > rate_hz / 2 or n_spectrum < 2 * n_window:
        return ratio
    first = start + (stop - start - n_spectrum) // 2
    for c in np.flatnonzero(~flat):
        x = signal.data.values[first : first + n_spectrum, c].astype(np.float64)
        frequency, density = welch(x, fs=rate_hz, nperseg=n_window)
        away = np.abs(frequency - line_hz)
        around = float(np.median(density[(away > 2) & (away <= 8)]))
        if around > 0:
            ratio[c] = float(density[away <= 0.6].max()) / around
    return ratio
