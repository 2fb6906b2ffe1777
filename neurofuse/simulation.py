"""In: a random seed and a lag law. Out: a recording with a known movement code on two clocks, and the true lag.

The hand moves smoothly in two dimensions. Units fire as Poisson processes whose rates depend on the velocity,
mostly its first axis, and on a fast drive shared with the field. The LFP is recorded by another logger: its slow
potential depends on the velocity, mostly the second axis; its high-gamma power on the shared drive; its beta power
decreases with speed; and it contains 1/f noise. Neither stream by itself determines the movement, and only the
shared drive and movement determine the lag between the two clocks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from neurofuse.errors import NeurofuseError
from neurofuse.jitters.jitter import LagTruth
from neurofuse.jitters.lag_laws import (
    Jumps,
    LagJitter,
    NoLag,
    Offset,
    Skew,
    Walk,
    Wander,
    WindowLag,
    draw_truth,
)
from neurofuse.recording import FloatArray, Movement, Recording, Signal, Spikes

SPIKE_CLOCK = "array"
LFP_CLOCK = "logger"


@dataclass(frozen=True)
class SimulationConfig:
    """Sizes and strengths of a simulation. The defaults are those of the demo."""

    duration_s: float = 300.0
    n_units: int = 48
    n_channels: int = 16
    lfp_rate_hz: float = 1000.0
    movement_rate_hz: float = 100.0
    movement_hz: float = 1.2  # bandwidth of the hand velocity
    drive_hz: float = 6.0  # bandwidth of the drive that spikes and field share
    n_drives: int = 4
    mean_rate_hz: float = 10.0  # of a unit
    tuning: float = 0.7  # log-rate modulation by one std of velocity
    drive_gain: float = 0.6  # log-rate modulation by one std of drive
    lfp_tuning: float = 0.35  # slow potential per std of velocity, in units of its own noise
    lfp_drive_gain: float = 0.7  # log-amplitude modulation of high gamma by one std of drive
    share: float = 0.25  # tuning of each stream to the other stream's axis, relative to its own
    field_only: float = 0.0  # share of the movement's variance that the field depends on and no unit does


# One modality dominates. Many well-tuned units encode both axes, and a decoder of a short recording can fit its
# training windows from spikes only. The field also encodes the corrections, a fifth of the movement, which come from
# where the array has no electrodes, in a few noisy channels. The part that the units leave unexplained can be
# memorised from spikes, so that little is learned from the field; benchmarks/balance.py measures how little.
DOMINANCE = SimulationConfig(
    duration_s=150.0, n_units=96, n_channels=6, tuning=1.0, share=1.0, lfp_tuning=0.25, field_only=0.2
)


def simulate(
    law: LagJitter | None = None,
    *,
    config: SimulationConfig | None = None,
    max_lag_s: float = 0.5,
    rng: np.random.Generator,
) -> tuple[Recording, LagTruth]:
    """Simulate a recording whose LFP clock has a lag drawn from a known law.

    Parameters
    ----------
    law : LagJitter, optional
        Of the LFP clock; by default no lag.
    config : SimulationConfig, optional
    max_lag_s : float
        The lag is clipped to this range.
    rng : numpy Generator
        Draws the movement, the streams and the lag.

    Returns
    -------
    recording : Recording
        Spikes and hand velocity on clock `array`, LFP on clock `logger`.
    truth : LagTruth
        The lag of `logger` at every moment of `array`.

    Raises
    ------
    NeurofuseError
        If the recording would be shorter than 5 s.
    """
    c = config or SimulationConfig()
    if c.duration_s < 5:
        raise NeurofuseError(
            f"a simulation of {c.duration_s:g} s is too short for movement; use 5 s or more."
        )
    # Latents extend beyond the recording, so that there is content at every lag.
    pad_s = max_lag_s + 1.0
    step_s = 1.0 / c.lfp_rate_hz
    time_s = np.arange(-pad_s, c.duration_s + pad_s, step_s)
    velocity = _smooth_noise(time_s.size, 2, c.movement_hz, step_s, rng)
    drive = _smooth_noise(time_s.size, c.n_drives, c.drive_hz, step_s, rng)
    spikes = _fire(time_s, velocity, drive, c, rng)
    if c.field_only:
        corrections = _smooth_noise(time_s.size, 2, c.movement_hz, step_s, rng)
        velocity = np.sqrt(1 - c.field_only) * velocity + np.sqrt(c.field_only) * corrections
    stamp_s, source_s, truth = draw_truth(
        law or NoLag(), LFP_CLOCK, 0.0, c.duration_s, max_lag_s=max_lag_s, rng=rng
    )
    lfp_time_s = np.arange(round(c.duration_s * c.lfp_rate_hz)) * step_s
    content_s = np.interp(lfp_time_s, stamp_s, source_s)
    index = np.clip(np.rint((content_s + pad_s) / step_s).astype(int), 0, time_s.size - 1)
    lfp = _field(velocity[index], drive[index], c, rng)
    every = max(1, round(c.lfp_rate_hz / c.movement_rate_hz))
    inside = np.flatnonzero((time_s >= -1e-9) & (time_s < c.duration_s - 1e-9))[::every]
    movement = Movement.from_array(
        10.0 * velocity[inside],
        name="hand velocity",
        rate_hz=c.lfp_rate_hz / every,
        axes=("vx", "vy"),
        units="cm/s",
    )
    signal = Signal.from_array(
        lfp,
        name="lfp",
        clock=LFP_CLOCK,
        rate_hz=c.lfp_rate_hz,
        channels=[f"ch{k:02d}" for k in range(c.n_channels)],
        units="uV",
    )
    recording = Recording(
        "simulation",
        SPIKE_CLOCK,
        (spikes, signal),
        movement,
        provenance=(
            f"simulated: {c.duration_s:g} s, {c.n_units} units, {c.n_channels} channels, lag {law or 'none'}",
        ),
    )
    return recording, truth


# The law of `demo:NAME`. The levels make each of them hard for a decoder with one fixed alignment.
DEMO_LAWS: dict[str, LagJitter] = {
    "wander": Wander(0.15),
    "block": WindowLag(0.2),
    "offset": Offset(0.2),
    "walk": Walk(0.2),
    "jump": Jumps(0.2),
    "skew": Skew(1500.0),
    "none": NoLag(),
}


def demo_law(path: str) -> LagJitter:
    """The lag law of `demo` or `demo:NAME`.

    Raises
    ------
    NeurofuseError
        If there is no such demo.
    """
    name = path.partition(":")[2] or "wander"
    if name not in DEMO_LAWS:
        raise NeurofuseError(
            f"there is no demo '{name}'; choose demo or demo:NAME with NAME in {', '.join(DEMO_LAWS)}."
        )
    return DEMO_LAWS[name]


def two_files(recording: Recording) -> tuple[Recording, Recording]:
    """Split a simulation into the recordings that each of its two systems would have written."""
    first = recording.but(name="demo_array", streams=tuple(recording.on(recording.reference)))
    others = tuple(s for s in recording.streams if s.clock != recording.reference)
    second = replace(recording, name="demo_logger", reference=others[0].clock, streams=others, movement=None)
    return first, second


def _smooth_noise(
    n: int, n_series: int, cutoff_hz: float, step_s: float, rng: np.random.Generator
) -> FloatArray:
    """Unit-variance Gaussian noise whose power halves at `cutoff_hz` and falls fast above, one column per series."""
    return _shaped_noise(n, n_series, lambda f_hz: 1 / np.sqrt(1 + (f_hz / cutoff_hz) ** 8), step_s, rng)


def _shaped_noise(
    n: int, n_series: int, gain: Callable[[FloatArray], FloatArray], step_s: float, rng: np.random.Generator
) -> FloatArray:
    spectrum = np.fft.rfft(rng.standard_normal((n, n_series)), axis=0)
    frequency_hz = np.arange(len(spectrum)) / (n * step_s)
    out = np.fft.irfft(spectrum * gain(frequency_hz)[:, None], n=n, axis=0)
    return (out - out.mean(0)) / out.std(0)


def _fire(
    time_s: FloatArray, velocity: FloatArray, drive: FloatArray, c: SimulationConfig, rng: np.random.Generator
) -> Spikes:
    angle = rng.uniform(0, 2 * np.pi, c.n_units)
    tuning = c.tuning * np.stack([np.cos(angle), c.share * np.sin(angle)])
    gains = c.drive_gain * rng.standard_normal((c.n_drives, c.n_units)) / np.sqrt(c.n_drives)
    base_hz = c.mean_rate_hz * np.exp(0.4 * rng.standard_normal(c.n_units))
    log_gain = velocity @ tuning + drive @ gains
    log_gain -= 0.5 * (tuning**2).sum(0) + 0.5 * (gains**2).sum(0)
    step_s = float(time_s[1] - time_s[0])
    counts = rng.poisson(base_hz * np.exp(log_gain) * step_s)
    where, unit = np.nonzero(counts)
    repeat = counts[where, unit]
    where, unit = np.repeat(where, repeat), np.repeat(unit, repeat)
    times = time_s[where] + step_s * rng.uniform(0, 1, where.size)
    inside = (times >= 0) & (times < c.duration_s)
    order = np.argsort(times[inside], kind="stable")
    units = pd.DataFrame({"name": [f"unit{k:02d}" for k in range(c.n_units)], "preferred_angle_rad": angle})
    return Spikes(
        "spikes",
        SPIKE_CLOCK,
        times[inside][order],
        unit[inside][order],
        units,
        np.array([[0.0, c.duration_s]]),
    )


def _field(
    velocity: FloatArray, drive: FloatArray, c: SimulationConfig, rng: np.random.Generator
) -> FloatArray:
    n = len(velocity)
    step_s = 1.0 / c.lfp_rate_hz
    mix = rng.standard_normal((2, c.n_channels))
    mix *= np.array([[c.share], [1.0]]) * c.lfp_tuning
    loads = rng.standard_normal((c.n_drives, c.n_channels)) / np.sqrt(c.n_drives)
    speed = np.hypot(velocity[:, 0], velocity[:, 1])[:, None]
    slow = velocity @ mix
    gamma = _shaped_noise(n, c.n_channels, _band(70.0, 150.0), step_s, rng) * np.exp(
        c.lfp_drive_gain * (drive @ loads)
    )
    beta = _shaped_noise(n, c.n_channels, _band(14.0, 28.0), step_s, rng) * np.exp(-0.5 * speed)
    field = slow + 0.4 * gamma + 0.5 * beta + _shaped_noise(n, c.n_channels, _pink, step_s, rng)
    return (60.0 * field).astype(np.float32)


def _band(lo_hz: float, hi_hz: float) -> Callable[[FloatArray], FloatArray]:
    return lambda f_hz: ((f_hz >= lo_hz) & (f_hz <= hi_hz)).astype(float)


def _pink(f_hz: FloatArray) -> FloatArray:
    """Amplitude of noise whose power falls as 1/f, flat below 0.2 Hz."""
    return 1 / np.sqrt(np.maximum(f_hz, 0.2))
