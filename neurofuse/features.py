"""In: a `Signal` of kind "lfp". Out: a `Signal` of kind "power", a few numbers a channel at a feature rate.

The features are those that decoders of movement use: the low-frequency potential and the power in a few
bands. Filters look only backwards by default, and every gap in the recording starts them anew. What was
done, and by how much each band is late, travels with the data in `attrs["features"]`.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import asdict, replace
from fractions import Fraction
from math import ceil, pi, sqrt

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from neurofuse.config import FeatureConfig
from neurofuse.recording import FloatArray, NeurofuseError, Signal

# The last tenth below half the sampling rate belongs to the recorder's anti-alias filter, not to the brain.
NYQUIST_SHARE = 0.9
# Width of a line notch. At 2 Hz, mains that wander by 0.05 Hz are still 26 dB down.
NOTCH_HZ = 2.0
# A band is reported once its filter, started cold, has let through this share of an impulse's energy.
SETTLED = 0.9
# Power is held this far (100 dB) above nothing, measured from the largest power seen so far, so that the
# logarithm of a run of zeros stays finite; far enough that no plausible artefact reaches the signal.
POWER_FLOOR = 1e-10
# Log variances of healthy channels of one array differ by about this much or more; a smaller spread
# (copied or simulated channels) must not turn an ordinary channel into an outlier.
LOG_VARIANCE_SPREAD = 0.25
# With fewer channels there is no crowd for one of them to stand out from.
MIN_CROWD = 4
# Spectra for the line-noise ratio are taken from at most this much of the longest stretch.
SPECTRUM_S = 60.0
# Broadband signals are brought down to this before features are taken.
LFP_RATE_HZ = 1000.0


def lfp_features(signal: Signal, *, config: FeatureConfig | None = None) -> Signal:
    """Turn LFP into the features a movement decoder reads: low-frequency potential and band power.

    Every stretch of support is filtered on its own, so nothing leaks across a gap. A causal band needs a
    moment after the start of a stretch before its filter says anything (`settle_s` in the record); until
    then there is no feature. Power is averaged over the last `smooth_s` (fewer right after the start).

    Parameters
    ----------
    signal : Signal
        LFP, (time, channel). Signals of kind "power" or "counts" come back unchanged.
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
    config = config or FeatureConfig()
    rate_hz = signal.rate_hz
    limit_hz = NYQUIST_SHARE * rate_hz / 2
    used = [band for band in config.bands if band[2] <= limit_hz]
    left_out = [band for band in config.bands if band[2] > limit_hz]
    if not used:
        lowest = min(config.bands, key=lambda band: band[2])
        raise NeurofuseError(
            f"lfp '{signal.name}' has {rate_hz:g} samples a second, too few for any band (the lowest is "
            f"'{lowest[0]}', up to {lowest[2]:g} Hz); give bands that end below {limit_hz:g} Hz."
        )
    # A hundredth of slack, so that 999.9 Hz counts as 1000.
    step = max(1, int(1.01 * rate_hz / config.rate_hz))
    out_s = step * signal.sample_s
    n_smooth = max(1, round(config.smooth_s / out_s))
    if not config.causal:
        n_smooth += 1 - n_smooth % 2  # an odd number of bins has a middle
    filters = [_band_filter(lo, hi, rate_hz, config.order) for _, lo, hi in used]
    notches_hz = _notches(config.line_hz, rate_hz, max(hi for _, _, hi in used))
    notch = _notch_filter(notches_hz, rate_hz)
    potentials = [lo == 0 for _, lo, _ in used]
    settle = 0
    if config.causal:
        cold = [f for f, is_potential in zip(filters, potentials, strict=True) if not is_potential]
        settle = max((_settling(f) for f in cold), default=0)
    skip = ceil(settle / step)

    pieces = [
        (start, n_bins) for start, stop in _stretches(signal) if (n_bins := (stop - start) // step - skip) > 0
    ]
    if not pieces:
        longest = max((b - a for a, b in _stretches(signal)), default=0) * signal.sample_s
        raise NeurofuseError(
            f"lfp '{signal.name}': no stretch is long enough for a feature; the longest has {longest:.3g} s, "
            f"but {(skip + 1) * out_s:.3g} s are needed; use wider bands, a lower order or causal=False."
        )
    n_out = sum(n for _, n in pieces)
    values = signal.data.values
    times = np.empty(n_out)
    out = np.empty((n_out, signal.n_channels * len(used)), dtype=np.float32)
    row = 0
    for start, n_bins in pieces:
        rows = slice(row, row + n_bins)
        first, n_in = start + skip * step, (skip + n_bins) * step
        in_bins = signal.time_s[first : start + n_in].reshape(n_bins, step)
        # A token holds a value until the next is due, so one about a stretch of time is stamped where that begins.
        times[rows] = in_bins[:, -1] if config.causal else in_bins.mean(axis=1) - 0.5 * out_s
        for c in range(signal.n_channels):
            # One channel at a time: hours of many channels never exist twice, let alone as float64.
            x = np.ascontiguousarray(values[start : start + n_in, c], dtype=np.float64)
            if notch is not None:
                x = _filtered(notch, x, rate_hz, NOTCH_HZ, x[0] if config.causal else None)
            # What a filter believes came before: for the potential the mean up to the first feature, as one
            # sample alone is mostly noise; for a band the first sample, so that it meets no step.
            before = (x[: (skip + 1) * step].mean(), x[0])
            for b, (_, lo, hi) in enumerate(used):
                held = before[0 if potentials[b] else 1] if config.causal else None
                y = _filtered(filters[b], x, rate_hz, hi - lo, held)[skip * step :]
                bins = y.reshape(n_bins, step)
                if potentials[b]:
                    feature = bins.mean(axis=1)
                else:
                    power = np.einsum("ij,ij->i", bins, bins) / step
                    feature = _running_mean(power, n_smooth, config.causal)
                    if config.log_power:
                        floor = POWER_FLOOR * np.maximum.accumulate(feature)
                        feature = np.log(np.maximum(np.maximum(feature, floor), 1e-30))
                out[rows, c * len(used) + b] = feature
        row += n_bins

    bands = []
    for (name, lo, hi), sos, is_potential in zip(used, filters, potentials, strict=True):
        delay = 0.0
        if config.causal:
            window = step if is_potential else step * n_smooth
            centre_hz = hi / 2 if is_potential else sqrt(lo * hi)
            delay = _group_delay(sos, centre_hz, rate_hz) + (window - 1) / 2 * signal.sample_s
        measure = "potential" if is_potential else "log power" if config.log_power else "power"
        bands.append(
            {"name": name, "lo_hz": lo, "hi_hz": hi, "measure": measure}
            | {"order": config.order, "group_delay_s": round(delay, 9)}
        )
    why = f"ends above {NYQUIST_SHARE:g} of half the sampling rate, {limit_hz:g} Hz"
    record = {
        "settings": asdict(config),
        "causal": config.causal,
        "source_rate_hz": rate_hz,
        "rate_hz": 1 / out_s,
        "smooth_s": n_smooth * out_s,
        "settle_s": skip * out_s,
        "line_notches_hz": notches_hz,
        "bands": bands,
        "left_out": [{"name": n, "lo_hz": lo, "hi_hz": hi, "why": why} for n, lo, hi in left_out],
    }
    unit = str(signal.data.attrs.get("units", "")) or "1"
    power_unit = f"ln {unit}^2" if config.log_power else f"{unit}^2"
    units = unit if all(potentials) else f"{unit} (potential), {power_unit} (power)"
    data = xr.DataArray(
        out,
        dims=("time", "channel"),
        coords={"time": times, "channel": [f"{c} {name}" for c in signal.channels for name, _, _ in used]},
        attrs={
            **signal.data.attrs,
            "units": units if any(potentials) else power_unit,
            "features": json.dumps(record),
        },
    )
    return Signal(signal.name, signal.clock, data, "power", out_s)


def channel_quality(
    signal: Signal, *, max_outlier_z: float = 5.0, max_saturation: float = 0.05
) -> pd.DataFrame:
    """Say of every channel whether it can be trusted, and why not.

    A channel is bad if it is flat, if it sits at the ends of its range too often, or if its variance does
    not belong among the others. Line noise is measured but not held against a channel: `line_hz` in
    `FeatureConfig` removes it.

    Parameters
    ----------
    signal : Signal
        Any kind; line noise and saturation are measured on LFP only.
    max_outlier_z : float
        Largest robust z (median and MAD over channels) of a log variance; at least 4 channels are needed.
    max_saturation : float
        Largest share of samples at a channel's smallest or largest value.

    Returns
    -------
    DataFrame
        One row a channel: `name`, `flat`, `variance` (squared units), `line_50`, `line_60` (power density
        at the line over that of its neighbours, 1 is none, NaN if it cannot be told), `saturation` (share of
        samples), `outlier_z`, `bad`, `why`.

    Raises
    ------
    NeurofuseError
        If the signal holds no samples.
    """
    values = signal.data.values
    if not values.size:
        raise NeurofuseError(f"{signal.kind} '{signal.name}' holds no samples to judge; give a longer one.")
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
    if (~flat).sum() >= MIN_CROWD:
        level = np.log(variance[~flat])
        spread = 1.4826 * np.median(np.abs(level - np.median(level)))  # MAD of a normal is sigma / 1.4826
        outlier_z[~flat] = (level - np.median(level)) / max(float(spread), LOG_VARIANCE_SPREAD)

    why = []
    for c in range(n_channels):
        said = []
        if flat[c]:
            said.append("flat: every sample is the same")
        if saturation[c] > max_saturation:
            said.append(f"saturated: {100 * saturation[c]:.0f} % of samples at the ends of its range")
        if abs(outlier_z[c]) > max_outlier_z:
            word = "larger" if outlier_z[c] > 0 else "smaller"
            said.append(f"variance far {word} than the other channels' (z = {outlier_z[c]:.1f})")
        why.append("; ".join(said))
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
    """Keep the channels that `channel_quality` did not call bad.

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
    """LFP at a rate that features need no more of, its bad channels left out, and the quality of every channel.

    Parameters
    ----------
    signal : Signal
    causal : bool
        Resample causally.
    keep : collection of str, optional
        Names of the channels to keep instead, bad or not; all of them if none is known.
    """
    if signal.rate_hz > 2.5 * LFP_RATE_HZ:
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
        Samples a second that are wanted; met exactly or to a few parts in a million.
    causal : bool
        False: linear phase (`scipy.signal.resample_poly`). True: a low-pass that looks only backwards, then
        the newest sample at or before each wanted moment, stamped with that sample's own time.

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
            f"{signal.kind} '{signal.name}' has {signal.rate_hz:g} samples a second and cannot be brought to "
            f"{rate_hz:g} Hz causally; ask for a lower rate, or causal=False."
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
    sos: NDArray[np.float64], x: FloatArray, rate_hz: float, width_hz: float, held: float | None
) -> FloatArray:
    """Filter one channel of one stretch: causally after a long run of `held`, or zero-phase (None)."""
    from scipy.signal import sosfilt, sosfilt_zi, sosfiltfilt

    if held is not None:
        return sosfilt(sos, x, zi=sosfilt_zi(sos) * held)[0]
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
    """Power density at the line over the median density of its neighbourhood, one number a channel."""
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
