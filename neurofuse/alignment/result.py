"""In: a fitted clock and what it rests on. Out: an `Alignment` to read, save and apply; and how one is asked for."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import xarray as xr

from neurofuse.alignment.clock_map import MODELS, ClockMap, Jump, Model
from neurofuse.html import card, trace
from neurofuse.recording import NeurofuseError, Recording

Method = Literal["learned", "ridge", "xcorr", "gcc-phat", "pulses"]
METHODS: tuple[Method, ...] = ("learned", "ridge", "xcorr", "gcc-phat", "pulses")


@dataclass(frozen=True)
class AlignConfig:
    """How two clocks are aligned."""

    # "learned": self-supervised attention; the others are baselines, see `neurofuse.alignment.baselines`.
    method: Method = "learned"
    # What B's clock may do: differ, also run at another speed, also jump, anything.
    model: Model = "piecewise"
    # Largest lag looked for, seconds.
    max_lag_s: float = 5.0
    # The network looks so far around the first clock, seconds.
    search_s: float = 0.5
    # Seconds of a window whose lag baselines look for.
    window_s: float = 10.0
    # Seconds a token; None takes 20 ms, or the recording's own bins where they are longer.
    token_s: float | None = None
    # The clock to align, where there are more than two.
    clock: str | None = None
    # Count movement as a signal of its clock.
    use_movement: bool = True
    # Mains frequency to remove from LFP.
    line_hz: float | None = None
    # Gradient steps at most.
    n_steps: int = 400
    seed: int = 0

    def check(self) -> None:
        """Refuse settings that no recording could satisfy."""
        if self.method not in METHODS:
            raise NeurofuseError(f"there is no method '{self.method}'; choose one of {', '.join(METHODS)}.")
        if self.model not in MODELS:
            raise NeurofuseError(
                f"there is no clock model '{self.model}'; choose one of {', '.join(MODELS)}."
            )
        for name in ("max_lag_s", "search_s", "window_s", "n_steps"):
            value = getattr(self, name)
            if not 0 < value < float("inf"):
                raise NeurofuseError(f"{name} must be a positive number, got {value:g}.")


@dataclass(frozen=True, eq=False)
class Alignment:
    """The map between two clocks, and how far it is to be trusted.

    Parameters
    ----------
    clock_a, clock_b : str
        Names of the clocks; the map leads from B to A.
    status : {"aligned", "ambiguous", "refused"}
    verdict : str
        The same in a sentence.
    clock : ClockMap
        `clock.to_a(stamps on B)`, and back. The best guess, whatever the status.
    model : str
    method : str
    offset_s, skew_ppm : tuple of 3 float
        Lag (stamp on B minus time on A) at the start of the session, and how fast B runs, each with a 95 % interval.
    jumps : tuple of Jump
    half_width_s : float
        Half of the widest 95 % interval of the map over the session.
    lag : Dataset, dims (clock, time, lag)
        Over the session: `posterior`, `lag_mean_s`, `lag_q05_s`, `lag_q95_s`, `p_matched`, `fitted_lag_s`, `trusted`.
    evidence : dict
        What the verdict rests on.
    warnings : tuple of str
    """

    clock_a: str
    clock_b: str
    status: Literal["aligned", "ambiguous", "refused"]
    verdict: str
    clock: ClockMap
    model: str
    method: str
    offset_s: tuple[float, float, float]
    skew_ppm: tuple[float, float, float]
    jumps: tuple[Jump, ...]
    half_width_s: float
    lag: xr.Dataset
    evidence: dict[str, float]
    warnings: tuple[str, ...] = ()

    def apply(self, recording: Recording) -> Recording:
        """The recording with everything of clock B re-timed to clock A."""
        moved = recording.retimed(
            self.clock_b,
            self.clock.to_a,
            did=f"clock '{self.clock_b}' aligned to '{self.clock_a}': {self.verdict}",
        )
        streams = tuple(
            replace(s, clock=self.clock_a) if s.clock == self.clock_b else s for s in moved.streams
        )
        return moved.but(streams=streams)

    def _repr_html_(self) -> str:
        def told(x: tuple[float, float, float], scale: float, unit: str) -> str:
            return f"{scale * x[0]:.5g} {unit} ({scale * x[1]:.5g} to {scale * x[2]:.5g})"

        one = self.lag.isel(clock=0)
        return card(
            f"Clock '{self.clock_b}' against '{self.clock_a}': {self.status}",
            facts=[
                ("verdict", self.verdict),
                ("lag at the start", told(self.offset_s, 1000.0, "ms")),
                ("skew", told(self.skew_ppm, 1.0, "ppm")),
                ("method", f"{self.method}, clock {self.model}"),
                ("trusted", f"{100 * float(one['trusted'].mean()):.0f} % of the session"),
                ("lag, mean and 90 %", trace(*(one[f"lag_{k}_s"].values for k in ("mean", "q05", "q95")))),
            ],
            head=("jump at (s)", "between", "by (ms)", "between"),
            rows=[
                (
                    j.time_s,
                    f"{j.time_low_s:.1f} and {j.time_high_s:.1f}",
                    1000 * j.size_s,
                    f"{1000 * j.size_low_s:.1f} and {1000 * j.size_high_s:.1f}",
                )
                for j in self.jumps
            ],
            warnings=self.warnings,
        )

    def as_dict(self) -> dict[str, Any]:
        """Everything but the posterior, JSON-safe."""

        def plain(value: float) -> float | None:
            return float(value) if np.isfinite(value) else None

        def three(x: tuple[float, float, float]) -> dict[str, float | None]:
            return {"value": plain(x[0]), "low": plain(x[1]), "high": plain(x[2])}

        return {
            "layout": "neurofuse-alignment-1",
            "clock_a": self.clock_a,
            "clock_b": self.clock_b,
            "status": self.status,
            "verdict": self.verdict,
            "method": self.method,
            "model": self.model,
            "offset_s": three(self.offset_s),
            "skew_ppm": three(self.skew_ppm),
            "jumps": [{k: plain(v) for k, v in asdict(j).items()} for j in self.jumps],
            "half_width_s": plain(self.half_width_s),
            "trusted_share": plain(float(self.lag["trusted"].mean())),
            "map": {"a_s": self.clock.a_s.tolist(), "b_s": self.clock.b_s.tolist()},
            "evidence": {k: plain(v) for k, v in self.evidence.items()},
            "warnings": list(self.warnings),
        }


class AlignmentRefused(NeurofuseError):
    """Two streams that show no sign of belonging together; `alignment` holds what was found all the same."""

    def __init__(self, alignment: Alignment) -> None:
        super().__init__(alignment.verdict)
        self.alignment = alignment
