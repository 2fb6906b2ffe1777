"""In: nothing. Out: how much of the loss's gradient reaches the LFP, through cross-attention and through stacks.

`python -m benchmarks.gradient_path --out DIR` writes `gradient_path.png` and `gradient_path.nc` and prints tables.

The networks differ in how layers are arranged, not in the layers. In a stack both streams pass every layer, one after
the other. With cross-attention each stream has half of the layers to itself, and the LFP joins where the spikes attend
to it. Layers are plain (a convolution and an activation), plain with weights scaled to keep the variance (He et al.
2015), normalised (LayerNorm before), or residual (normalised, with a skip). Distance in time is compared for a
recurrent network too (GRU, both directions), once with gates that initially keep the past (Tallec & Ollivier 2018). The
LFP is late by 200 ms. The tracked decoder has its alignment loss, all others the movement loss only.

Result: skips, not attention, shorten the path by depth; attention shortens it in time.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import xarray as xr
from matplotlib.figure import Figure
from torch import Tensor, nn

from neurofuse.config import FeatureConfig
from neurofuse.decoders.base import Decoder
from neurofuse.decoders.early import EarlyNetwork
from neurofuse.decoders.gradients import gradient_over_time, gradient_path, watch_gradients
from neurofuse.decoders.neural import TorchDecoder
from neurofuse.decoders.registry import make_decoder
from neurofuse.decoders.tracked import LagNetwork
from neurofuse.features import lfp_features
from neurofuse.jitters.lag_laws import Offset
from neurofuse.nets.encoders import TemporalBlock
from neurofuse.report.figures.panel import BLACK, BLUE, GREEN, ORANGE, TITLE, VERMILLION, tidy
from neurofuse.simulation import SimulationConfig, simulate
from neurofuse.tokens import tokenize
from neurofuse.windows import Split, split_windows

DEPTHS = (4, 8, 16, 32)
BLOCKS = ("plain", "plain He", "normalised", "residual")
N_SEEDS = 3
# Layers of the head, of which every network has as many.
HEAD = 2
KERNEL = 5
# Distances compared in time: near the moment that is decoded, and about as far as the largest lag.
NEAR_S, FAR_S = 0.1, (0.4, 0.5)
TRAINED_DEPTH = 16
LAG_S = 0.2


class Block(TemporalBlock):
    """A temporal block with or without its normalisation and its skip."""

    def __init__(self, width: int, kind: str) -> None:
        super().__init__(width, kernel=KERNEL, dilation=1, dropout=0.0, causal=False)
        self.kind = kind
        if kind.startswith("plain"):
            self.norm, self.mix = nn.Identity(), nn.Identity()  # type: ignore[assignment]
        # What torch draws by default has a sixth of the variance that keeps activations as large as they came in.
        self.gain = math.sqrt(6.0) if kind == "plain He" else 1.0

    def forward(self, x_BWD: Tensor) -> Tensor:
        if self.kind == "residual":
            return super().forward(x_BWD)
        h_BDW = F.pad(self.norm(x_BWD).transpose(1, 2), self.pad)
        return self.mix(F.gelu(self.gain * self.conv(h_BDW)).transpose(1, 2))


class Recurrent(nn.Module):
    """A GRU in both directions; `keep_bias` is added to the bias of the gate that keeps the past."""

    def __init__(self, width: int, *, keep_bias: float) -> None:
        super().__init__()
        self.gru = nn.GRU(width, width // 2, batch_first=True, bidirectional=True)
        self.keep_bias = keep_bias

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Called by `initialise` once the GRU has been drawn."""
        n = self.gru.hidden_size
        for name, weight in self.gru.named_parameters():
            if name.startswith("bias_ih"):
                weight[n : 2 * n] += self.keep_bias

    def forward(self, x_BWD: Tensor) -> Tensor:
        return self.gru(x_BWD)[0]


class ArrangedDecoder(TorchDecoder):
    """Layers of one kind in a `stack`, in two encoders joined by `cross`-attention, or a `gru` in their place."""

    name = "arranged"

    def __init__(
        self,
        *,
        fusion: str = "stack",
        block: str = "plain",
        depth: int = 4,
        keep_bias: float = 0.0,
        **training: Any,
    ) -> None:
        super().__init__(**training)
        self.fusion = fusion
        self.block = block
        self.depth = depth
        self.keep_bias = keep_bias

    def build_network(self, n_inputs: list[int], n_axes: int, max_lag: int) -> nn.Module:
        shared: dict[str, Any] = {"width": self.width, "kernel": KERNEL, "dilations": (), "causal": False}
        shared["dropout"] = self.dropout
        if self.fusion == "cross":
            net: Any = LagNetwork(
                n_inputs,
                n_axes,
                max_lag,
                n_heads=4,
                head_width=8,
                lag_model="softmax",
                fine_lags_per_token=1,
                tokens_per_block=1,
                bidirectional=False,
                **shared,
            )
            encoders, n_each = list(net.encoders), (self.depth - HEAD) // 2
        else:
            net = EarlyNetwork(n_inputs, n_axes, clocks=range(len(n_inputs)), late=0, **shared)
            encoders, n_each = [net.encoder], self.depth - HEAD
        if self.fusion == "gru":
            net.encoder.blocks = nn.ModuleList([Recurrent(self.width, keep_bias=self.keep_bias)])
            net.head.blocks = nn.Sequential()
            return net
        for encoder in encoders:
            encoder.blocks = nn.ModuleList(Block(self.width, self.block) for _ in range(n_each))
        net.head.blocks = nn.Sequential(*(Block(self.width, self.block) for _ in range(HEAD)))
        return net


# What is compared over time and through training: settings of `ArrangedDecoder` by name.
TIMED: dict[str, dict[str, Any]] = {
    "tracked decoder": {"fusion": "tracked"},
    "cross-attention, residual": {"fusion": "cross", "block": "residual", "depth": TRAINED_DEPTH},
    "cross-attention, plain": {"fusion": "cross", "block": "plain", "depth": TRAINED_DEPTH},
    "stack, residual": {"fusion": "stack", "block": "residual", "depth": TRAINED_DEPTH},
    "stack, plain": {"fusion": "stack", "block": "plain", "depth": TRAINED_DEPTH},
    "GRU": {"fusion": "gru"},
    "GRU, gates keep the past": {"fusion": "gru", "keep_bias": 3.0},
}
COLOURS = dict(zip(TIMED, (BLACK, BLUE, BLUE, ORANGE, ORANGE, GREEN, VERMILLION), strict=True))
STYLES = dict(zip(TIMED, ("-", "-", ":", "-", ":", "--", "-."), strict=True))


def simulated_windows() -> Split:
    """Spikes and LFP features of a simulation whose LFP clock is late by a fixed lag."""
    config = SimulationConfig(duration_s=80.0, n_units=24, n_channels=4, lfp_rate_hz=500.0)
    recording, _ = simulate(Offset(LAG_S), config=config, rng=np.random.default_rng(0))
    bands = (("lmp", 0.0, 5.0), ("high_gamma", 70.0, 150.0))
    features = lfp_features(recording["lfp"], config=FeatureConfig(bands=bands, causal=False))
    tokens = tokenize(recording.but(streams=(recording["spikes"], features)))
    return split_windows(tokens, window_s=2.0, max_lag_s=0.5, rng=np.random.default_rng(0))


def first_layer(fusion: str, clock: int) -> str:
    """Name of the first layer that a clock's tokens pass."""
    return f"encoders.{clock}.embed" if fusion in ("cross", "tracked") else "encoder.embed"


def by_depth(parts: Split) -> xr.Dataset:
    """Gradient at the first layer of the LFP, relative to that at the loss, before training."""
    fusions, dims = ("stack", "cross"), ("fusion", "block", "depth", "seed")
    norm = np.empty((2, len(BLOCKS), len(DEPTHS), N_SEEDS))
    shortest, longest = np.empty(norm.shape[:3], int), np.empty(norm.shape[:3], int)
    for i, fusion in enumerate(fusions):
        for j, block in enumerate(BLOCKS):
            for k, depth in enumerate(DEPTHS):
                for seed in range(N_SEEDS):
                    decoder = ArrangedDecoder(fusion=fusion, block=block, depth=depth, width=32, seed=seed)
                    found = gradient_path(decoder, parts.train[:: len(parts.train) // 8])
                    at = found.sel(module=first_layer(fusion, 1))
                    norm[i, j, k, seed] = float(at["relative_norm"])
                shortest[i, j, k], longest[i, j, k] = int(at["shortest"]), int(at["longest"])
    return xr.Dataset(
        {
            "relative_norm": (dims, norm),
            "shortest": (dims[:3], shortest),
            "longest": (dims[:3], longest),
        },
        coords={"fusion": list(fusions), "block": list(BLOCKS), "depth": list(DEPTHS)},
    )


def over_time_and_training(parts: Split, *, n_steps: int) -> xr.Dataset:
    """Gradient against distance in time before and after training, at the first layer in its course, and R2."""
    few = parts.test[:: max(1, len(parts.test) // 8)]
    decoder: Decoder
    before, after, course, r2 = [], [], [], []
    for settings in TIMED.values():
        training: dict[str, Any] = {"n_steps": n_steps, "check_every": 20, "batch_size": 16}
        training |= {"width": 32, "learning_rate": 3e-3}
        if settings["fusion"] == "tracked":
            decoder = make_decoder("tracked", **training)
        else:
            decoder = ArrangedDecoder(**settings, **training)
        before.append(gradient_over_time(decoder, few)["gradient_norm"][1])
        with watch_gradients(decoder) as watch:
            decoder.fit(parts.train, validation=parts.validation)
        after.append(gradient_over_time(decoder, few)["gradient_norm"][1])
        norms = watch.table()["gradient_norm"]
        # Layers of different networks are compared by what they get of what there is.
        course.append(norms.sel(module=first_layer(settings["fusion"], 1)) / norms.sel(module="head.output"))
        r2.append(decoder.score(parts.test))
    architecture = xr.Variable("architecture", list(TIMED))

    def joined(rows: list[xr.DataArray]) -> xr.DataArray:
        return xr.concat([r.drop_vars(("clock", "module"), errors="ignore") for r in rows], architecture)

    return xr.Dataset(
        {
            "fresh_norm": joined(before),
            "trained_norm": joined(after),
            "course": joined(course),
            "test_r2": ("architecture", r2),
        },
        attrs={"lag_s": LAG_S},
    )


def far_to_near(norm: xr.DataArray) -> xr.DataArray:
    """Mean gradient at the far distances over that at the near ones."""
    away = np.abs(norm["offset"])
    near, far = (
        norm[:, away <= NEAR_S].mean("offset"),
        norm[:, (away >= FAR_S[0]) & (away <= FAR_S[1])].mean("offset"),
    )
    return far / near


def tables(depth: xr.Dataset, time: xr.Dataset) -> str:
    """Both results as markdown."""
    mean = np.exp(np.log(depth["relative_norm"]).mean("seed"))
    lines = [
        "| layers | kind | stack | cross-attention | ratio | longest path, stack / cross | shortest path |",
        "|---|---|---|---|---|---|---|",
    ]
    for block in BLOCKS:
        for n in DEPTHS:
            stack, cross = (mean.sel(fusion=f, block=block, depth=n).item() for f in ("stack", "cross"))
            far, near = (
                " / ".join(
                    str(depth[v].sel(fusion=f, block=block, depth=n).item()) for f in ("stack", "cross")
                )
                for v in ("longest", "shortest")
            )
            lines.append(
                f"| {n} | {block} | {stack:.2g} | {cross:.2g} | {cross / stack:.2g} | {far} | {near} |"
            )
    lines += [
        "",
        f"| network | {FAR_S[0]:g}-{FAR_S[1]:g} s away / within {NEAR_S:g} s, fresh | trained, largest at "
        "| first LFP layer / movement, first step | last ten steps | R2 |",
        "|---|---|---|---|---|---|",
    ]
    fresh, peak_s = far_to_near(time["fresh_norm"]), time["trained_norm"].idxmax("offset")
    for k, name in enumerate(time["architecture"].values):
        course = time["course"][k]
        lines.append(
            f"| {name} | {fresh[k]:.2g} | {1000 * peak_s[k]:.0f} ms | {course[0]:.2g} | {course[-10:].mean():.2g} | "
            f"{time['test_r2'][k]:.2f} |"
        )
    return "\n".join(lines)


def figure_of(depth: xr.Dataset, time: xr.Dataset) -> Figure:
    """Gradient against layers, against distance in time, and in the course of training."""
    figure = Figure(figsize=(13.5, 4.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    mean = np.exp(np.log(depth["relative_norm"]).mean("seed"))
    styles = zip(BLOCKS, (BLACK, VERMILLION, GREEN, BLUE), ("v", "s", "^", "o"), strict=True)
    for block, colour, marker in styles:
        for fusion, style in (("cross", "-"), ("stack", "--")):
            left.plot(
                DEPTHS, mean.sel(fusion=fusion, block=block), style, marker=marker, color=colour, ms=4, lw=1.3,
                label=f"{fusion}, {block}",
            )  # fmt: skip
    left.set_xscale("log", base=2)
    left.set_xticks(DEPTHS, [str(d) for d in DEPTHS])
    left.set_yscale("log")
    left.set_xlabel("layers in the network")
    left.set_ylabel("gradient at the first LFP layer / at the movement")
    for name in TIMED:
        style = {"color": COLOURS[name], "ls": STYLES[name], "lw": 1.3, "label": name}
        norm = time["fresh_norm"].sel(architecture=name)
        inside = np.abs(norm["offset"]) <= FAR_S[1] + 0.1
        peak = norm.max()
        middle.plot(norm["offset"][inside], np.maximum(norm / peak, 1e-9)[inside], **style)
        right.plot(time["step"], time["course"].sel(architecture=name), **style)
    middle.set_yscale("log")
    middle.set_ylim(1e-7, 2)
    middle.set_xlabel("LFP stamped after the decoded moment by (s)")
    middle.set_ylabel("gradient at LFP tokens / its largest")
    right.set_yscale("log")
    right.set_xlabel("gradient step")
    right.set_ylabel("gradient at the first LFP layer / at the movement")
    left.set_title("before training, by depth", **TITLE)
    middle.set_title("before training, by distance in time", **TITLE)
    right.set_title("in the course of training", **TITLE)
    left.legend(loc="lower left", fontsize="small", frameon=False)
    right.legend(loc="lower right", fontsize="small", frameon=False)
    for panel in (left, middle, right):
        tidy(panel)
    return figure


def main() -> None:
    """Run everything, write figure and table, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/gradient_path"))
    parser.add_argument("--steps", type=int, default=100, help="gradient steps of each training")
    options = parser.parse_args()
    torch.set_num_threads(1)
    parts = simulated_windows()
    depth = by_depth(parts)
    time = over_time_and_training(parts, n_steps=options.steps)
    print(tables(depth, time))
    options.out.mkdir(parents=True, exist_ok=True)
    figure_of(depth, time).savefig(options.out / "gradient_path.png", dpi=140)
    depth.merge(time).to_netcdf(options.out / "gradient_path.nc", engine="h5netcdf")


if __name__ == "__main__":
    main()
