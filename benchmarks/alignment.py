"""In: scenarios with a known lag, and decoders. Out: R2 and lag scores, and the fraction of lost R2 regained.

`python -m benchmarks.alignment [--quick] [--scenario NAME ...] [--decoder NAME ...] [--seeds K] [--jobs N] --out DIR`

A scenario is a data set and a law of the lag of its second clock: `sim-jump`, `m1-constant`. Decoders train on windows
with new lags of that law and are tested on one lag path through the last stretch (one lag per window for `constant`).
`-none` is the data set without any lag; `-testonly` is trained without and tested with it. A decoder's name followed by
`-causal` decodes from the past alone, on causal features.

`gap_closed = (R2 - early) / (oracle - early)`, `early` being the best early-fusion decoder on the same row and `oracle`
the tracking decoder with the true lag given, which has the same context; for causal decoders both are causal. Every
trained decoder writes one JSON file in DIR/cells, so that an interrupted run can be resumed.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from neurofuse.errors import NeurofuseError
from neurofuse.jitters.lag_laws import Jumps, LagJitter, NoLag, Skew, Walk, WindowLag
from neurofuse.tokens import Tokens
from neurofuse.windows import Windows, split_windows

SIM_S = 300.0
# Lags of 0.2 s (simulation) or 0.3 s (recordings) standard deviation. A line through the recording has this spread
# over its length when its ends are sqrt(3) of it away from zero.
SIM_LEVEL_S, REAL_LEVEL_S = 0.2, 0.3
SKEW_PPM = round(1e6 * 2 * np.sqrt(3) * SIM_LEVEL_S / SIM_S)

LAWS: dict[str, dict[str, LagJitter]] = {
    "sim": {
        "constant": WindowLag(SIM_LEVEL_S),
        "walk": Walk(SIM_LEVEL_S),
        "jump": Jumps(SIM_LEVEL_S),
        "skew": Skew(SKEW_PPM),
    },
    "m1": {"constant": WindowLag(REAL_LEVEL_S), "walk": Walk(REAL_LEVEL_S), "jump": Jumps(REAL_LEVEL_S)},
    "hippocampus": {"constant": WindowLag(REAL_LEVEL_S)},
}
# Window and largest lag searched, seconds.
SIZES = {"sim": (3.0, 0.5), "m1": (3.2, 1.0), "hippocampus": (3.2, 1.0)}
EARLY = ("early", "early-mlp", "early-attention")
ORACLE = "oracle"
DECODERS = (
    "tracked",
    "tracked-causal",
    "constant",
    "oracle",
    "oracle-causal",
    *EARLY,
    "early-causal",
    "late",
    "late-variance",
    "softmax",
    "autoregressive",
    "perceiver",
    "gru",
    "ridge",
    "wiener-cascade",
    "kalman",
    "align-ridge",
    "align-early",
    "spikes",
    "lfp",
)
QUICK = (("sim-jump", "m1-constant"), ("tracked", "oracle", "early", "softmax", "align-ridge", "ridge"))
MEASURES = ("r2", "lag_hit_rate", "coverage_90", "lag_std_s", "p_matched", "seconds", "n_parameters")


@dataclass(frozen=True)
class Training:
    """One decoder trained once: on a data set, under a law, from a seed."""

    data: str
    law: str
    decoder: str
    seed: int

    @property
    def name(self) -> str:
        """Name of its file."""
        return f"{self.data}-{self.law}.{self.decoder}.{self.seed}"

    @property
    def rows(self) -> dict[str, LagJitter]:
        """The scenarios that this training can be tested on."""
        if self.law != "none":
            return {f"{self.data}-{self.law}": LAWS[self.data][self.law]}
        tested = {f"{self.data}-{law}-testonly": kind for law, kind in LAWS[self.data].items()}
        return {f"{self.data}-none": NoLag()} | tested


def scenarios() -> list[str]:
    """Names of all of them."""
    names = []
    for data, laws in LAWS.items():
        names += (
            [f"{data}-{law}" for law in laws] + [f"{data}-none"] + [f"{data}-{law}-testonly" for law in laws]
        )
    return names


@cache
def tokens_of(data: str, causal: bool, seed: int) -> Tokens:
    """Tokens of a data set whose clocks agree."""
    import neurofuse
    from neurofuse.config import FeatureConfig
    from neurofuse.features import lfp_features
    from neurofuse.recording import separate_lfp, split_units
    from neurofuse.simulation import SimulationConfig, simulate

    if data == "sim":
        recording, _ = simulate(
            config=SimulationConfig(duration_s=SIM_S), rng=np.random.default_rng([seed, 7])
        )
        features = lfp_features(recording["lfp"], config=FeatureConfig(causal=causal))
        return neurofuse.tokenize(recording.but(streams=(recording["spikes"], features)))
    root = Path(os.environ.get("NEUROFUSE_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not root.is_dir():
        raise NeurofuseError(
            f"scenario '{data}' needs recordings in '{root}'; name their folder with NEUROFUSE_DATA, "
            "or run the sim scenarios only."
        )
    if data == "m1":
        whole = neurofuse.load(root / "m1_center_out/center_out_trials_001_143.mat", movement="vel")
        return neurofuse.tokenize(split_units(whole, 12, rng=np.random.default_rng([seed, 7])))
    track = root / "hippocampus_rat_track/Figure2_source_data_wake.mat"
    rat = neurofuse.load(
        None,
        spikes=f"{track}::Spikes",
        lfp=f"{track}::FPAuhf",
        movement=f"{track}::Position",
        bin_s=0.1,
        circular=True,
    )
    return neurofuse.tokenize(separate_lfp(rat))


def run(training: Training) -> dict[str, dict[str, float]]:
    """Train, and test on every scenario of this training; measures by scenario."""
    import torch

    from neurofuse.decoders.registry import make_decoder

    torch.set_num_threads(1)
    causal = training.decoder.endswith("-causal")
    tokens = tokens_of(training.data, causal, training.seed)
    window_s, max_lag_s = SIZES[training.data]

    def cut(law: LagJitter) -> Any:
        rng = np.random.default_rng([training.seed, 5])
        return split_windows(tokens, window_s=window_s, max_lag_s=max_lag_s, jitter=law, rng=rng)

    parts = cut(LAWS[training.data].get(training.law, NoLag()))
    decoder = make_decoder(training.decoder.removesuffix("-causal"), causal=causal, seed=training.seed)
    start = time.process_time()
    decoder.fit(parts.train, validation=parts.validation)
    costs = {
        "seconds": time.process_time() - start,
        "n_parameters": float(getattr(decoder, "n_parameters_", np.nan)),
    }
    return {name: measure(decoder, cut(law).test) | costs for name, law in training.rows.items()}


def measure(decoder: Any, test: Windows) -> dict[str, float]:
    """R2 and lag scores on test windows."""
    from neurofuse.scores import lag_scores, posterior_summary, r2_per_axis, stitch

    prediction = decoder.decode_session(test)
    token, joined, _ = stitch(test.first, prediction.movement)
    out = {"r2": float(np.mean(r2_per_axis(test.tokens.movement[token], joined)))}
    for clock, posterior in prediction.posterior.items():
        c = decoder.clocks_[1:].index(clock)
        found = posterior_summary(posterior, prediction.lag_s)
        scores = lag_scores(
            test.lag_s[..., c],
            prediction.lag_s[prediction.path[clock]],
            *(found[k] for k in ("lag_mean_s", "lag_q05_s", "lag_q95_s")),
            token_s=test.tokens.token_s,
            truth_step_s=test.tokens.fine_s,
        )
        out |= {
            "lag_hit_rate": float(scores["lag_hit_rate"] or np.nan),
            "coverage_90": float(scores["lag_coverage_90"] or np.nan),
            "lag_std_s": float(found["lag_std_s"].mean()),
        }
        if clock in prediction.p_matched:
            out["p_matched"] = float(prediction.p_matched[clock].mean())
    return out


def once(training: Training, folder: Path) -> None:
    """Run unless its file exists; the file is renamed into place when complete."""
    file = folder / f"{training.name}.json"
    if file.exists():
        return
    result = run(training)
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(result, indent=1), encoding="utf-8")
    partial.replace(file)
    print(training.name, {k: round(v["r2"], 3) for k, v in result.items()}, flush=True)


def collect(trainings: list[Training], folder: Path, chosen: list[str]) -> xr.Dataset:
    """All measures, dims (scenario, decoder, seed), with the gap that each decoder closes."""
    rows = [s for s in scenarios() if s in chosen]
    decoders, seeds = list(dict.fromkeys(t.decoder for t in trainings)), sorted({t.seed for t in trainings})
    shape = (len(rows), len(decoders), len(seeds))
    table = xr.Dataset(
        {m: (("scenario", "decoder", "seed"), np.full(shape, np.nan)) for m in MEASURES},
        coords={"scenario": rows, "decoder": decoders, "seed": seeds},
        attrs={
            "gap_closed": "(r2 - best early fusion) / (oracle - best early fusion), same scenario and seed"
        },
    )
    for t in trainings:
        file = folder / f"{t.name}.json"
        if file.exists():
            for row, found in json.loads(file.read_text(encoding="utf-8")).items():
                for m in set(found) & set(MEASURES) if row in rows else ():
                    table[m].loc[{"scenario": row, "decoder": t.decoder, "seed": t.seed}] = found[m]
    # Without a lag, or trained without one, there is no gap to be closed.
    has_gap = [row.rsplit("-", 1)[1] not in ("none", "testonly") for row in rows]
    gap = xr.full_like(table["r2"], np.nan)
    # Causal decoders are compared with causal references.
    for causal in (False, True):
        compared = [d for d in decoders if d.endswith("-causal") == causal]
        early = [d for d in compared if d.removesuffix("-causal") in EARLY]
        ceiling = ORACLE + "-causal" * causal
        if early and ceiling in compared:
            r2 = table["r2"].sel(decoder=compared)
            floor, top = r2.sel(decoder=early).max("decoder"), r2.sel(decoder=ceiling, drop=True)
            closed = ((r2 - floor) / (top - floor)).where(xr.DataArray(has_gap, dims="scenario"))
            gap.loc[{"decoder": compared}] = closed.transpose("scenario", "decoder", "seed")
    table["gap_closed"] = gap
    return table


def markdown(table: xr.Dataset) -> str:
    """Mean over seeds, and standard deviation where there are several, one line per scenario and decoder."""
    shown = [
        m
        for m in ("r2", "gap_closed", "lag_hit_rate", "coverage_90", "seconds", "n_parameters")
        if m in table
    ]
    lines = ["| scenario | decoder | " + " | ".join(shown) + " |", "|---" * (len(shown) + 2) + "|"]
    for row in table["scenario"].values:
        for decoder in table["decoder"].values:
            cell = table.sel(scenario=row, decoder=decoder)
            if np.isnan(cell["r2"]).all():
                continue
            lines.append(
                f"| {row} | {decoder} | " + " | ".join(_cell(cell[m].values, m) for m in shown) + " |"
            )
    return "\n".join(lines)


def _cell(values: np.ndarray, measure: str) -> str:
    values = values[np.isfinite(values)]
    if not values.size:
        return ""
    if measure in ("seconds", "n_parameters"):
        return f"{values.mean():.0f}"
    spread = f" ± {values.std(ddof=1):.3f}" if values.size > 1 else ""
    return f"{values.mean():.3f}{spread}"


def main() -> None:
    """Run what has no result yet; print and save the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help=f"{', '.join(QUICK[0])} with {', '.join(QUICK[1])}"
    )
    parser.add_argument("--scenario", nargs="+", choices=scenarios(), metavar="NAME", help="by default all")
    parser.add_argument("--decoder", nargs="+", choices=DECODERS, metavar="NAME", help="by default all")
    parser.add_argument("--seeds", type=int, default=None, help="by default 3, with --quick 1")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    chosen = options.scenario or (list(QUICK[0]) if options.quick else scenarios())
    decoders = options.decoder or (QUICK[1] if options.quick else DECODERS)
    seeds = options.seeds or (1 if options.quick else 3)
    folder = options.out / "cells"
    folder.mkdir(parents=True, exist_ok=True)
    keys = dict.fromkeys((row.split("-")[0], _trained_on(row)) for row in chosen)
    trainings = [
        Training(data, law, d, seed) for seed in range(seeds) for data, law in keys for d in decoders
    ]
    from joblib import Parallel, delayed

    Parallel(n_jobs=options.jobs)(delayed(once)(t, folder) for t in trainings)
    table = collect(trainings, folder, chosen)
    text = markdown(table)
    print(text)
    (options.out / "alignment.md").write_text(text + "\n", encoding="utf-8")
    table.to_netcdf(options.out / "alignment.nc", engine="h5netcdf")


def _trained_on(scenario: str) -> str:
    law = scenario.split("-")[1]
    return "none" if scenario.endswith("-testonly") else law


if __name__ == "__main__":
    # Workers find functions by the name of their module, which this is not when run by `-m`.
    from benchmarks.alignment import main as run_main

    run_main()
