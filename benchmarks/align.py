"""In: sessions whose second clock errs by a known law. Out: errors of the clock estimated from the signals alone.

`python -m benchmarks.align [--quick] [--only NAME ...] --out DIR`

session    a simulated 20-minute session: offset 0.4 s, skew 30 ppm, one jump of 80 ms
m1         M1 parted into 20 + 64 units: lag of windows of 10, 3 and 1 s of data, offset U(-1, 1) s, no movement; the
           network is trained along the clock of the scan, and the baselines are given the same windows
offset     a constant unknown offset U(-5, 5) s and 30 ppm over the M1 session
walk       simulated spikes and LFP, offset and a random walk of the lag
unrelated  streams of two unrelated stretches, and as many related ones: how many are refused
hour       an hour of 96 units and 32 channels at 1 kHz through the command line: seconds, memory

M1 comes in bins of 50 ms; spikes are taken to lie anywhere in their bin, so lags between bins are possible.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from neurofuse.alignment.align import align
from neurofuse.alignment.baselines import SERIES_LOG_LIK, summed
from neurofuse.alignment.clock_map import ClockMap
from neurofuse.alignment.lag_evidence import lag_summary, on_finer_lags
from neurofuse.alignment.result import AlignmentRefused
from neurofuse.alignment.ridge_scan import RidgePredictor, scan
from neurofuse.alignment.self_supervised import estimate_zero, recorded_by_both, train_along, windows_along
from neurofuse.alignment.signal_pair import SignalPair, signal_pair
from neurofuse.config import AlignConfig
from neurofuse.errors import NeurofuseError
from neurofuse.jitters.lag_laws import Diffusion, LagJitter, move_clock
from neurofuse.recording import Recording, Signal, Spikes, split_units
from neurofuse.scores import share_inside
from neurofuse.simulation import SimulationConfig, simulate

HIT_S = 0.05


@dataclass(frozen=True)
class Session(LagJitter):
    """An offset of `level`, a skew, one jump."""

    ppm: float = 30.0
    jump_s: float = 0.08
    at: float = 0.6
    kind = "session"

    def draw(self, time_s: np.ndarray, *, rng: np.random.Generator) -> np.ndarray:
        """Offset, line and step."""
        return self.level + 1e-6 * self.ppm * time_s + self.jump_s * (time_s > self.at * time_s[-1])


@dataclass(frozen=True)
class Drifting(Diffusion):
    """An offset and a random walk."""

    offset_s: float = 0.0

    def draw(self, time_s: np.ndarray, *, rng: np.random.Generator) -> np.ndarray:
        """The walk, moved."""
        return self.offset_s + super().draw(time_s, rng=rng)


def m1(n_first: int = 20, seed: int = 0) -> Recording:
    """M1 as two systems, without movement, clocks agreeing."""
    import neurofuse

    root = Path(os.environ.get("NEUROFUSE_DATA", Path(__file__).parents[2] / "shared" / "data"))
    path = root / "m1_center_out/center_out_trials_001_143.mat"
    if not path.is_file():
        raise NeurofuseError(f"this row needs '{path}'; name the folder of recordings with NEUROFUSE_DATA.")
    whole = neurofuse.load(path, movement="vel")
    return split_units(whole, n_first, rng=np.random.default_rng([seed, 7])).but(movement=None)


def session(quick: bool) -> dict[str, Any]:
    """The first row."""
    out: dict[str, Any] = {}
    duration_s = 300.0 if quick else 1200.0
    recording, truth = simulate(
        Session(0.4),
        config=SimulationConfig(duration_s=duration_s),
        max_lag_s=1.0,
        rng=np.random.default_rng(3),
    )
    for method in ("ridge", "learned"):
        start = time.process_time()
        found = align(recording, config=AlignConfig(method=method, use_movement=False))
        time_s = np.arange(1.0, duration_s - 1, 0.5)
        error = found.clock.lag_s(time_s) - truth.at(time_s)
        out[method] = {
            "skew_error_ppm": abs(found.skew_ppm[0] - 30),
            "offset_error_ms": 1000 * abs(found.offset_s[0] - 0.4),
            "jump_found_s": min(
                (abs(j.time_s - 0.6 * duration_s) for j in found.jumps), default=float("nan")
            ),
            "n_jumps": len(found.jumps),
            "median_error_ms": 1000 * float(np.median(np.abs(error))),
            "q99_error_ms": 1000 * float(np.quantile(np.abs(error), 0.99)),
            "verdict": found.verdict,
            "cpu_s": time.process_time() - start,
        }
    return out


def windows_of_data(quick: bool) -> dict[str, Any]:
    """Two splits of the units, drawn from two seeds."""
    return {f"split {seed}": windows_of_split(seed, quick) for seed in ((0,) if quick else (0, 1))}


def windows_of_split(seed: int, quick: bool) -> dict[str, Any]:
    """The lag of single windows of M1, by the network and by baselines, without an aligned stretch."""
    pair = signal_pair(m1(seed=seed))
    tokens, coarse = pair.tokens, pair.coarse
    rng = np.random.default_rng(5)
    start = scan(coarse, 0, round(120 / coarse.step_s), max_lag_s=5.0, rng=rng)
    # Trained on the first 70 %, tested on the rest.
    edge_s = tokens.origin_s + 0.7 * tokens.n_tokens * tokens.token_s
    clock = ClockMap.constant(start.best_s, tokens.origin_s, edge_s)
    clock_start = time.process_time()
    estimator, _ = train_along(
        pair, clock, search_s=1.0, span_s=(tokens.origin_s, edge_s), n_steps=150 if quick else 500
    )
    train_s = time.process_time() - clock_start
    ridge = RidgePredictor.fit(
        coarse,
        np.full(round(0.7 * len(coarse)), start.best_s),
        0,
        round(0.7 * len(coarse)),
    )
    first_test = round(0.72 * tokens.n_tokens)
    zero = estimate_zero(pair, clock, (tokens.origin_s, edge_s))
    out: dict[str, Any] = {"start_lag_s": start.best_s, "zero_s": zero, "train_cpu_s": train_s}
    for length_s in (10.0, 3.0, 1.0):
        n = round(length_s / tokens.token_s)
        first = np.arange(first_test, tokens.n_tokens - n, max(1, n // 4))
        first = recorded_by_both(pair, clock, first, n, 1.0)
        first = np.repeat(first, max(1, round((100 if quick else 1000) / max(1, first.size))))
        by = rng.integers(-tokens.per_token * 20, tokens.per_token * 20 + 1, first.size)
        true_s = by * tokens.fine_s
        out[f"{length_s:g} s"] = {"n": int(first.size)} | _network_row(
            pair, estimator, first, n, by, true_s, zero
        )
        out[f"{length_s:g} s"] |= {
            name: _score(_baseline(pair, ridge, name, first, length_s, by), true_s)
            for name in ("xcorr", "gcc-phat", "ridge")
        }
    return out


def _network_row(
    pair: SignalPair,
    estimator: Any,
    first: np.ndarray,
    n: int,
    by: np.ndarray,
    true_s: np.ndarray,
    zero: tuple[float, float],
) -> dict[str, Any]:
    X = windows_along(pair, ClockMap.constant(0.0, 0.0, 1.0), first, n, estimator.max_lag_)
    X = replace(X, shift=X.shift + by[:, None, None])
    token = pair.tokens.token_s
    own_s = token * np.arange(-estimator.max_lag_, estimator.max_lag_ + 1)
    out: dict[str, Any] = {}
    for name, cut in (("network", True), ("network, with A's context", False)):
        log_lik, _ = estimator.log_lik(X, every=n, cut=cut)
        lag_s, fine = on_finer_lags(own_s, log_lik[:, 0].astype(float), 0.005)
        found = lag_summary(np.exp(fine - fine.max(1, keepdims=True)), lag_s, zero_error_s=zero[1])
        # The zero of the network is the clock it was trained along; its correction is that of the session.
        ends = found["lag_q05_s"] + zero[0], found["lag_q95_s"] + zero[0]
        inside = share_inside(true_s, *ends, pair.tokens.fine_s)
        out[name] = _score(found["lag_map_s"] + zero[0], true_s) | {"coverage_90": float(np.mean(inside))}
    return out


def _baseline(
    pair: SignalPair, ridge: RidgePredictor, name: str, first: np.ndarray, length_s: float, by: np.ndarray
) -> np.ndarray:
    """The best lag of each window within +-1 s."""
    coarse = pair.coarse
    n = round(length_s / coarse.step_s)
    every = pair.tokens.token_s / coarse.step_s
    reach = round(1.0 / coarse.step_s)
    moved = np.rint(by * pair.tokens.fine_s / coarse.step_s).astype(int)
    lags = np.arange(-2 * reach, 2 * reach + 1)
    at = np.rint(first * every).astype(int)
    if name == "ridge":
        log_lik = ridge.log_lik(coarse, at, n, lags)
    else:
        own, other = summed(pair, coarse)
        log_lik = SERIES_LOG_LIK[name](own, other, coarse.independent_s / coarse.step_s, at, n, lags)
    # Moved by `by`, a lag l of the recording as it is becomes l + by; the search is +-1 s around zero all the same.
    place = np.arange(-reach, reach + 1)[None] - moved[:, None] + 2 * reach
    own = np.take_along_axis(log_lik, np.clip(place, 0, lags.size - 1), 1)
    return coarse.step_s * (own.argmax(1) - reach)


def _score(found_s: np.ndarray, true_s: np.ndarray) -> dict[str, float]:
    error = np.abs(found_s - true_s)
    return {"hit": float((error <= HIT_S + 1e-6).mean()), "median_ms": 1000 * float(np.median(error))}


def offsets(quick: bool) -> dict[str, Any]:
    """A constant unknown offset and 30 ppm, without an aligned stretch."""
    rows = []
    for draw in range(4 if quick else 20):
        rng = np.random.default_rng([draw, 8])
        offset_s = rng.uniform(-5, 5)
        law = Session(offset_s, jump_s=0.0)
        recording = _between_bins(m1(seed=draw))
        moved, truth = move_clock(recording, "second", law, rng=rng)
        # Offsets are up to 5 s; the search goes a little further.
        found = align(moved, config=AlignConfig(method="ridge", model="linear", max_lag_s=5.5))
        time_s = np.arange(30.0, 690.0, 5)
        error = np.abs(found.clock.lag_s(time_s) - truth.at(time_s))
        rows.append([float(error.max()), abs(found.skew_ppm[0] - 30), float(np.median(error))])
        print(f"  {offset_s:+.2f} s: {rows[-1]}", file=sys.stderr)
    rows_ = np.array(rows)
    return {
        "n": len(rows),
        "within_a_bin": int((rows_[:, 0] <= HIT_S).sum()),
        "median_error_ms": 1000 * float(np.median(rows_[:, 2])),
        "median_skew_error_ppm": float(np.median(rows_[:, 1])),
    }


def _between_bins(recording: Recording) -> Recording:
    """Counts of the second clock as spikes that lie anywhere in their bin, so that any lag can be given to them."""
    rng = np.random.default_rng(0)
    streams = []
    for s in recording.streams:
        if isinstance(s, Signal) and s.clock == "second":
            counts = s.data.values.astype(int)
            trains = [
                np.sort(np.repeat(s.time_s, c) + s.sample_s * rng.uniform(0, 1, int(c.sum())))
                for c in counts.T
            ]
            streams.append(
                Spikes.from_trains(
                    trains, clock=s.clock, name=s.name, unit_names=s.channels, support=s.support
                )
            )
        else:
            streams.append(s)
    return recording.but(streams=tuple(streams))


def walks(quick: bool) -> dict[str, Any]:
    """An offset and a random walk; share of the session within 50 ms, by speed of the walk."""
    out: dict[str, Any] = {}
    for speed in (0.002, 0.01, 0.03) if not quick else (0.01,):
        law = Drifting(speed**2, offset_s=0.3)
        recording, truth = simulate(
            law, config=SimulationConfig(duration_s=300.0), max_lag_s=1.0, rng=np.random.default_rng(4)
        )
        try:
            found = align(recording, config=AlignConfig(model="free", use_movement=False, search_s=0.8))
        except AlignmentRefused as refused:
            out[f"{1000 * speed:g} ms/sqrt(s)"] = refused.alignment.verdict
            continue
        time_s = np.arange(2.0, 298.0, 0.5)
        error = np.abs(found.clock.lag_s(time_s) - truth.at(time_s))
        out[f"{1000 * speed:g} ms/sqrt(s)"] = {
            "hit": float((error <= HIT_S).mean()),
            "median_ms": 1000 * float(np.median(error)),
            "verdict": found.verdict,
        }
    return out


def pairings(quick: bool) -> dict[str, Any]:
    """Stretches of M1 with other stretches of M1, and with their own."""
    refused = {"unrelated": 0, "related": 0}
    n = 10 if quick else 50
    z_score: dict[str, list[float]] = {"unrelated": [], "related": []}
    for draw in range(n):
        rng = np.random.default_rng([draw, 9])
        recording = m1(seed=draw)
        length_s = 120.0
        starts = rng.uniform(0, 590, 2)
        while abs(starts[1] - starts[0]) < length_s + 20:
            starts = rng.uniform(0, 590, 2)
        for kind, other_s in (("related", starts[0]), ("unrelated", starts[1])):
            a, b = recording.streams[:2]
            b = b.between(other_s - 5, other_s + length_s + 5)
            off = starts[0] - other_s + rng.uniform(-1, 1)
            off = 0.05 * round(off / 0.05)
            assert isinstance(b, Signal)
            b = replace(b, data=b.data.assign_coords(time=b.time_s + off))
            two = recording.but(streams=(a.between(starts[0], starts[0] + length_s), b))
            try:
                found = align(two, config=AlignConfig(method="ridge", max_lag_s=2.0))
                z_score[kind].append(found.evidence["scan_z_score"])
            except AlignmentRefused as error:
                refused[kind] += 1
                z_score[kind].append(error.alignment.evidence["scan_z_score"])
    return {
        "n": n,
        "unrelated_refused": refused["unrelated"],
        "related_refused": refused["related"],
        "largest_z_score_unrelated": max(z_score["unrelated"]),
        "smallest_z_score_related": min(z_score["related"]),
    }


def write_session(path: str, duration_s: float) -> None:
    """A simulated session without movement, as a file."""
    import neurofuse

    config = SimulationConfig(duration_s=duration_s, n_units=96, n_channels=32)
    recording, _ = simulate(Session(0.4), config=config, max_lag_s=1.0, rng=np.random.default_rng(6))
    neurofuse.save_recording(recording.but(movement=None), path)


def hour(quick: bool) -> dict[str, Any]:
    """A long session through the command line, from one file to another."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "hour.nc"
        # In a process of its own: memory of the parent counts towards the peak of its child.
        duration_s = 600.0 if quick else 3600.0
        write = f"from benchmarks.align import write_session; write_session({str(path)!r}, {duration_s})"
        subprocess.run([sys.executable, "-c", write], check=True)
        command = ["align", str(path), "--threads", "2", "-o", str(Path(folder) / "aligned.nc")]
        printed = Path(folder) / "clock.json"
        with printed.open("w") as out:
            begun = time.perf_counter()
            process = subprocess.Popen(
                [sys.executable, "-m", "neurofuse", *command, "--out", str(Path(folder) / "out"), "--json"],
                stdout=out,
                stderr=subprocess.DEVNULL,
            )
            _, status, used = os.wait4(process.pid, 0)
            wall_s = time.perf_counter() - begun
        found = json.loads(printed.read_text()) if status == 0 else {"verdict": f"exit status {status}"}
    return {
        "wall_s": wall_s,
        "cpu_s": used.ru_utime + used.ru_stime,
        "peak_gib": used.ru_maxrss / 2**20,
        "verdict": found["verdict"],
        "skew_ppm": found.get("skew_ppm"),
        "offset_s": found.get("offset_s"),
        "jumps": found.get("jumps"),
    }


ROWS: dict[str, Callable[[bool], dict[str, Any]]] = {
    "session": session,
    "m1": windows_of_data,
    "offset": offsets,
    "walk": walks,
    "unrelated": pairings,
    "hour": hour,
}


def main() -> None:
    """Run the chosen rows; each writes one JSON file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small settings")
    parser.add_argument("--only", nargs="*", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        found = ROWS[name](options.quick)
        print(name, json.dumps(found, indent=1))
        (options.out / f"align-{name}.json").write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
