"""In: a fitted clock and its evidence. Out: an `Alignment` to read, save and apply, or a refusal."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import xarray as xr

from neurofuse.alignment.clock_map import ClockFit, ClockMap, Jump
from neurofuse.config import AlignConfig
from neurofuse.errors import NeurofuseError
from neurofuse.html import card, trace
from neurofuse.recording import Recording

Status = Literal["aligned", "ambiguous", "refused"]


@dataclass(frozen=True, eq=False)
class Alignment:
    """The map between two clocks, and how reliable it is.

    Parameters
    ----------
    clock_a, clock_b : str
        Names of the clocks; the map leads from B to A.
    status : {"aligned", "ambiguous", "refused"}
    verdict : str
        The status in a sentence.
    clock : ClockMap
        `clock.to_a(stamps on B)`, and back. The best estimate, whatever the status.
    model : str
    method : str
    offset_s, skew_ppm : tuple of 3 float
        Lag (stamp on B minus time on A) at the start of the session, and relative speed of B, each with a 95 %
        interval.
    jumps : tuple of Jump
    half_width_s : float
        Half of the widest 95 % interval of the map over the session.
    lag : Dataset, dims (clock, time, lag)
        Over the session: `posterior`, `lag_mean_s`, `lag_q05_s`, `lag_q95_s`, `p_matched`, `fitted_lag_s`, and
        `trusted`, whether the posterior confirms the fitted clock.
    evidence : dict
        Numbers that the verdict rests on.
    warnings : tuple of str
    recording : Recording, optional
        What was aligned, after the split of units and the planted error.
    """

    clock_a: str
    clock_b: str
    status: Status
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
    recording: Recording | None = None

    @classmethod
    def of(
        cls,
        recording: Recording,
        clocks: tuple[str, str],
        config: AlignConfig,
        fit: ClockFit,
        lag: xr.Dataset,
        *,
        status: Status,
        verdict: str,
        evidence: dict[str, float],
        warnings: tuple[str, ...] = (),
    ) -> Alignment:
        """Of a fitted clock."""
        return cls(
            *clocks,
            status=status,
            verdict=verdict,
            clock=fit.clock,
            model=config.model,
            method=config.method,
            offset_s=fit.offset_s,
            skew_ppm=fit.skew_ppm,
            jumps=fit.jumps,
            half_width_s=fit.half_width_s,
            lag=lag,
            evidence=evidence,
            warnings=warnings,
            recording=recording,
        )

    def apply(self, recording: Recording | None = None) -> Recording:
        """A recording, by default the one that was aligned, with everything of clock B re-timed to clock A."""
        recording = self.recording if recording is None else recording
        if recording is None:
            raise NeurofuseError("this alignment holds no recording; give the one to re-time.")
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
        def interval(x: tuple[float, float, float], scale: float, unit: str) -> str:
            return f"{scale * x[0]:.5g} {unit} ({scale * x[1]:.5g} to {scale * x[2]:.5g})"

        one = self.lag.isel(clock=0)
        return card(
            f"Clock '{self.clock_b}' against '{self.clock_a}': {self.status}",
            facts=[
                ("verdict", self.verdict),
                ("lag at the start", interval(self.offset_s, 1000.0, "ms")),
                ("skew", interval(self.skew_ppm, 1.0, "ppm")),
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

        def finite(value: float) -> float | None:
            return float(value) if np.isfinite(value) else None

        def three(x: tuple[float, float, float]) -> dict[str, float | None]:
            return {"value": finite(x[0]), "low": finite(x[1]), "high": finite(x[2])}

        return {
            "layout": "neurofuse-alignment-2",
            "clock_a": self.clock_a,
            "clock_b": self.clock_b,
            "status": self.status,
            "verdict": self.verdict,
            "method": self.method,
            "model": self.model,
            "offset_s": three(self.offset_s),
            "skew_ppm": three(self.skew_ppm),
            "jumps": [{k: finite(v) for k, v in asdict(j).items()} for j in self.jumps],
            "half_width_s": finite(self.half_width_s),
            "trusted_share": finite(float(self.lag["trusted"].mean())),
            "map": {"a_s": self.clock.a_s.tolist(), "b_s": self.clock.b_s.tolist()},
            "evidence": {k: finite(v) for k, v in self.evidence.items()},
            "warnings": list(self.warnings),
        }


class AlignmentRefused(NeurofuseError):
    """The streams of two clocks share no detectable signal; `alignment` holds the best estimate all the same."""

    def __init__(self, alignment: Alignment) -> None:
        super().__init__(alignment.verdict)
        self.alignment = alignment
