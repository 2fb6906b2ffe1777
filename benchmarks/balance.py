"""In: nothing. Out: what a weak modality adds to a decoder beside a dominant one, under each way of balancing them.

`python -m benchmarks.balance --out DIR` prints a markdown table and writes `balance.png` and `balance.nc`.

The recording is `simulate.DOMINANCE`: spikes are strong, the field is weak and holds a fifth of the movement that
spikes do not. Defined before anything was measured, all on the test stretch:

- contribution of the field: R2 with both clocks minus R2 of the same decoder with the field masked at test;
- gain over spikes: R2 with both clocks minus R2 of the same kind of decoder trained, with the same settings, on
  spikes alone. A decoder that never met an absent clock may fall apart when the field is masked, which inflates its
  contribution; the gain has one bound for all and does not;
- field alone: R2 of the decoder with spikes masked at test.

The simulation and the split have the seed 0; seeds vary what a decoder draws.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from matplotlib.figure import Figure

from neurofuse.config import FeatureConfig
from neurofuse.decoders.registry import make_decoder
from neurofuse.features import lfp_features
from neurofuse.simulation import DOMINANCE, simulate
from neurofuse.tokens import tokenize
from neurofuse.windows import Split, Windows, split_windows

DECODERS = ("tracked", "early")
# What each way of balancing is asked for; OGM-GE and blending judge by masked passes, and so keep modality dropout.
WAYS: dict[str, dict[str, object]] = {
    "none": {"modality_dropout": 0.0},
    "modality dropout": {},
    "OGM-GE": {"balance": "ogm-ge"},
    "blending": {"balance": "blend"},
}
SCORES = ("both", "field masked", "field alone", "contribution", "gain over spikes")
SETTINGS = {"width": 32, "batch_size": 16, "n_steps": 250}


def dominated() -> Split:
    """Windows of the recording in which spikes dominate."""
    recording, _ = simulate(config=DOMINANCE, rng=np.random.default_rng(0))
    features = lfp_features(recording["lfp"], config=FeatureConfig(causal=False))
    tokens = tokenize(recording.but(streams=(recording["spikes"], features)), token_s=0.04)
    return split_windows(tokens, window_s=2.0, max_lag_s=0.4, rng=np.random.default_rng(0))


def spikes_alone(parts: Split) -> Split:
    """The same windows as if the second clock had never been recorded."""

    def alone(windows: Windows) -> Windows:
        tokens = replace(windows.tokens, clocks=windows.tokens.clocks[:1])
        return replace(windows, tokens=tokens, shift=windows.shift[..., :0])

    return Split(alone(parts.train), alone(parts.validation), alone(parts.test))


def measure(parts: Split, *, decoder: str, seed: int) -> tuple[np.ndarray, float]:
    """R2 under every way of balancing, shape (n_ways, n_scores), and that of spikes alone."""
    lone = spikes_alone(parts)
    bound = make_decoder(decoder, seed=seed, **SETTINGS)
    spikes = bound.fit(lone.train, validation=lone.validation).score(lone.test)
    rows = []
    for way in WAYS.values():
        fitted = make_decoder(decoder, seed=seed, **SETTINGS, **way)
        fitted.fit(parts.train, validation=parts.validation)
        both, masked, field = (
            fitted.score(w) for w in (parts.test, parts.test.without(1), parts.test.without(0))
        )
        rows.append([both, masked, field, both - masked, both - spikes])
    return np.array(rows), spikes


def table(seeds: int) -> xr.Dataset:
    """Every decoder, seed and way of balancing."""
    parts = dominated()
    found = [[measure(parts, decoder=d, seed=s) for s in range(seeds)] for d in DECODERS]
    return xr.Dataset(
        {
            "r2": (("decoder", "seed", "way", "score"), np.array([[f[0] for f in row] for row in found])),
            "r2_spikes_alone": (("decoder", "seed"), np.array([[f[1] for f in row] for row in found])),
        },
        coords={"decoder": list(DECODERS), "seed": range(seeds), "way": list(WAYS), "score": list(SCORES)},
        attrs={"recording": repr(DOMINANCE), "settings": repr(SETTINGS)},
    )


def draw(found: xr.Dataset) -> Figure:
    """Contribution of the field and gain over spikes, a bar a way of balancing, a dot a seed."""
    figure = Figure(figsize=(3.4 * len(DECODERS), 3.0), layout="constrained")
    panels = figure.subplots(1, len(DECODERS), sharey=True, squeeze=False)[0]
    for panel, decoder in zip(panels, DECODERS, strict=True):
        for k, (score, colour) in enumerate((("contribution", "0.75"), ("gain over spikes", "#0072B2"))):
            values = found["r2"].sel(decoder=decoder, score=score)
            place = np.arange(len(WAYS)) + 0.4 * k - 0.2
            panel.bar(place, values.mean("seed"), width=0.38, color=colour, label=score)
            for seed in found["seed"].values:
                panel.plot(place, values.sel(seed=seed), "k.", ms=4)
        panel.axhline(0, color="0.3", lw=0.6)
        panel.set_xticks(np.arange(len(WAYS)), [w.replace(" ", "\n") for w in WAYS])
        panel.set_title(decoder, loc="left", fontsize="medium")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("R² owed to the field")
    panels[0].legend(frameon=False)
    return figure


def main() -> None:
    """Measure, print the table, write the figure and the numbers."""
    parser = argparse.ArgumentParser(description="What a weak modality adds beside a dominant one.")
    parser.add_argument("--out", type=Path, required=True, help="folder for balance.png and balance.nc")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each kind")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = table(options.seeds)
    options.out.mkdir(parents=True, exist_ok=True)
    found.to_netcdf(options.out / "balance.nc", engine="h5netcdf")
    draw(found).savefig(options.out / "balance.png", dpi=160)
    print(f"| decoder | balancing | {' | '.join(SCORES)} |")
    print("|---" * (len(SCORES) + 2) + "|")
    for decoder in DECODERS:
        spikes = found["r2_spikes_alone"].sel(decoder=decoder)
        print(f"| {decoder} | trained on spikes alone | {spikes.mean():.3f} | | | | |")
        for way in WAYS:
            cell = found["r2"].sel(decoder=decoder, way=way)
            mean, spread = cell.mean("seed").values, cell.std("seed", ddof=1).values
            print(
                f"| {decoder} | {way} | "
                + " | ".join(f"{m:.3f} ± {s:.3f}" for m, s in zip(mean, spread, strict=True))
                + " |"
            )


if __name__ == "__main__":
    main()
