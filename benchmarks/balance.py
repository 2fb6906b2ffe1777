"""In: nothing. Out: R2 of decoders when one stream is missing, by what was done in training so that none is neglected.

`python -m benchmarks.balance --out DIR` prints a markdown table and writes `balance.png` and `balance.nc`. One seed and
few gradient steps with `--quick`.

In the recording `simulation.DOMINANCE` spikes are strong and the field is weak. Scores are R2 on the test stretch, with
both streams, with spikes missing and with the field missing. The bound of a missing stream is a decoder trained on the
other stream only. The recording and its windows have the seed 0; seeds vary what a decoder draws.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from matplotlib.figure import Figure

from neurofuse.config import FeatureConfig
from neurofuse.decoders.registry import make_decoder
from neurofuse.features import lfp_features
from neurofuse.simulation import DOMINANCE, simulate
from neurofuse.tokens import tokenize
from neurofuse.windows import Split, split_windows

DECODERS = ("tracked", "early")
# OGM-GE scores clocks on masked batches, so modality dropout stays on.
METHODS: dict[str, dict[str, Any]] = {
    "none": {"modality_dropout": 0.0},
    "modality dropout": {},
    "modality dropout and OGM-GE": {"balance": "ogm-ge"},
}
SCORES = ("both streams", "spikes missing", "field missing")
# Decoders of one stream, and the score that they bound.
BOUNDS = {"lfp": "spikes missing", "spikes": "field missing"}
SETTINGS = {"width": 32, "batch_size": 16, "n_steps": 250}


def dominated() -> Split:
    """Windows of the recording in which spikes dominate."""
    recording, _ = simulate(config=DOMINANCE, rng=np.random.default_rng(0))
    features = lfp_features(recording["lfp"], config=FeatureConfig(causal=False))
    tokens = tokenize(recording.but(streams=(recording["spikes"], features)), token_s=0.04)
    return split_windows(tokens, window_s=2.0, max_lag_s=0.4, rng=np.random.default_rng(0))


def scores(parts: Split, name: str, **options: Any) -> list[float]:
    """R2 of one trained decoder, in the order of `SCORES`."""
    decoder = make_decoder(name, **options).fit(parts.train, validation=parts.validation)
    return [decoder.score(windows) for windows in (parts.test, parts.test.without(0), parts.test.without(1))]


def measure(n_seeds: int, n_steps: int) -> xr.Dataset:
    """Every decoder, method and seed, and the bounds."""
    parts, settings = dominated(), SETTINGS | {"n_steps": n_steps}
    r2 = [
        [[scores(parts, d, seed=s, **settings, **m) for s in range(n_seeds)] for m in METHODS.values()]
        for d in DECODERS
    ]
    bound = [[scores(parts, d, seed=s, **settings)[0] for s in range(n_seeds)] for d in BOUNDS]
    return xr.Dataset(
        {
            "r2": (("decoder", "training", "seed", "score"), np.array(r2)),
            "r2_bound": (("stream", "seed"), np.array(bound)),
        },
        coords={
            "decoder": list(DECODERS),
            "training": list(METHODS),
            "score": list(SCORES),
            "stream": list(BOUNDS),
        },
        attrs={"recording": repr(DOMINANCE), "settings": repr(settings)},
    )


def draw(found: xr.Dataset) -> Figure:
    """R2 with spikes missing, one bar per method and one dot per seed, and the bound."""
    figure = Figure(figsize=(3.4 * len(DECODERS), 3.0), layout="constrained")
    panels = figure.subplots(1, len(DECODERS), sharey=True, squeeze=False)[0]
    values = found["r2"].sel(score="spikes missing")
    place = np.arange(len(METHODS))
    for panel, decoder in zip(panels, DECODERS, strict=True):
        panel.bar(place, values.sel(decoder=decoder).mean("seed"), width=0.6, color="#0072B2")
        panel.plot(place, values.sel(decoder=decoder).transpose("training", "seed"), "k.", ms=4)
        panel.axhline(float(found["r2_bound"].sel(stream="lfp").mean()), color="0.3", lw=0.8, ls="--")
        panel.set_xticks(
            place, [m.replace(" and ", "\nand ").replace("modality ", "modality\n") for m in METHODS]
        )
        panel.set_title(decoder, loc="left", fontsize="medium")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("R² with spikes missing\n(dashed: trained on the field)")
    return figure


def table(found: xr.Dataset) -> str:
    """Mean and standard deviation over seeds as markdown."""

    def cell(values: xr.DataArray) -> str:
        spread = f" ± {float(values.std('seed', ddof=1)):.3f}" if values.sizes["seed"] > 1 else ""
        return f"{float(values.mean('seed')):.3f}{spread}"

    lines = [f"| decoder | in training | {' | '.join(SCORES)} |", "|---" * (len(SCORES) + 2) + "|"]
    for decoder in DECODERS:
        for method in METHODS:
            own = found["r2"].sel(decoder=decoder, training=method)
            lines.append(f"| {decoder} | {method} | {' | '.join(cell(own.sel(score=s)) for s in SCORES)} |")
    for stream, score in BOUNDS.items():
        own = [cell(found["r2_bound"].sel(stream=stream)) if s == score else "" for s in SCORES]
        lines.append(f"| {stream} | trained on one stream | {' | '.join(own)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print the table, write the figure and the numbers."""
    parser = argparse.ArgumentParser(description="R2 of decoders when one stream is missing.")
    parser.add_argument("--out", type=Path, required=True, help="folder for balance.png and balance.nc")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each kind")
    parser.add_argument("--quick", action="store_true", help="one seed and 20 gradient steps")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = measure(1, 20) if options.quick else measure(options.seeds, SETTINGS["n_steps"])
    options.out.mkdir(parents=True, exist_ok=True)
    found.to_netcdf(options.out / "balance.nc", engine="h5netcdf")
    draw(found).savefig(options.out / "balance.png", dpi=160)
    print(table(found))


if __name__ == "__main__":
    main()
