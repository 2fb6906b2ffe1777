"""In: nothing. Out: cost of tracking a lag relative to early fusion, and its growth with the recording's length.

`python -m benchmarks.decode_cost` prints ratios within one run on one thread, in process time, so that they depend
little on the machine and its load.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from neurofuse.config import FeatureConfig
from neurofuse.decoders.registry import make_decoder
from neurofuse.decoders.tracked import LagNetwork
from neurofuse.features import lfp_features
from neurofuse.simulation import SimulationConfig, demo_law, simulate
from neurofuse.tokens import Tokens, tokenize
from neurofuse.windows import EDGE_TOKENS, Split, split_windows

TOKEN_S = 0.02
N_INPUTS = [48, 64]


def median_s(work: Callable[[], object], *, n: int = 5) -> float:
    """Median process seconds of a call, after one that is not measured."""
    work()
    seconds = []
    for _ in range(n):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return statistics.median(seconds)


def demo_tokens(duration_s: float) -> Tokens:
    """The simulated recording of the demo, of the given duration."""
    config = SimulationConfig(duration_s=duration_s)
    recording, _ = simulate(demo_law("demo"), config=config, rng=np.random.default_rng(0))
    features = lfp_features(recording["lfp"], config=FeatureConfig(causal=False))
    return tokenize(recording.but(streams=(recording["spikes"], features)))


def training(parts: Split, *, batch_size: int) -> dict[str, float]:
    """Process seconds of twenty gradient steps of each decoder, on the same windows, at the same width."""
    out = {}
    for name in ("early", "softmax", "constant", "tracked"):
        seconds = []
        for _ in range(3):
            decoder = make_decoder(name, n_steps=20, check_every=1000, batch_size=batch_size)
            start = time.process_time()
            decoder.fit(parts.train, validation=parts.validation)
            seconds.append(time.process_time() - start)
        out[name] = statistics.median(seconds)
    return out


def network(max_lag: int, *, lag_steps: int = 1) -> LagNetwork:
    """A tracking network of the default sizes."""
    return LagNetwork(
        N_INPUTS,
        2,
        max_lag,
        width=64,
        n_heads=4,
        head_width=8,
        kernel=5,
        dilations=(1, 4),
        dropout=0.0,
        lag_model="tracked",
        fine_lags_per_token=lag_steps,
        tokens_per_block=4,
        bidirectional=False,
        causal=False,
    ).eval()


def tracked_pass(n_tokens: int, *, max_lag: int = 25, lag_steps: int = 1) -> Callable[[], torch.Tensor]:
    """A forward pass over one long stretch."""
    generator = torch.Generator().manual_seed(0)
    reach = max_lag + EDGE_TOKENS
    values = [torch.randn(1, n_tokens + 2 * reach, n, generator=generator) for n in N_INPUTS]
    present = [torch.ones(1, n_tokens + 2 * reach, dtype=torch.bool) for _ in N_INPUTS]
    net = network(max_lag, lag_steps=lag_steps)

    def run() -> torch.Tensor:
        with torch.no_grad():
            return net(values, present, reach)[0]

    return run


def dense_pass(n_tokens: int) -> Callable[[], torch.Tensor]:
    """Softmax attention from every token to every other, the scores alone of the same size and heads."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 4, n_tokens, 16, generator=generator) for _ in range(3))
    return lambda: ((query @ key.transpose(-1, -2)).softmax(-1) @ value).detach()


def peak_bytes(work: Callable[[], object]) -> int:
    """Peak memory of tensors during a call."""
    with torch.profiler.profile(profile_memory=True) as profile:
        work()
    now = most = 0
    for event in profile.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


def exponent(lengths: tuple[int, ...], costs: list[float]) -> float:
    """Slope of cost against length in logarithms."""
    return float(np.polyfit(np.log(lengths), np.log(costs), 1)[0])


def main() -> None:
    """Print the tables."""
    torch.set_num_threads(1)
    tokens = demo_tokens(300.0)
    print("| decoder | training / early fusion, windows of 3 s | of 30 s |")
    print("|---|---|---|")
    columns = []
    for window_s, batch_size in ((3.0, 32), (30.0, 4)):
        rng = np.random.default_rng(0)
        parts = split_windows(tokens, window_s=window_s, max_lag_s=0.5, train=0.6, validation=0.2, rng=rng)
        columns.append(training(parts, batch_size=batch_size))
    for name in columns[0]:
        print(f"| {name} | " + " | ".join(f"{c[name] / c['early']:.2f}" for c in columns) + " |")

    lengths_s, dense_s = (10, 100, 600), (10, 50, 100)
    times = [median_s(tracked_pass(int(s / TOKEN_S)), n=3) for s in lengths_s]
    memory = [float(peak_bytes(tracked_pass(int(s / TOKEN_S)))) for s in lengths_s]
    dense_times = [median_s(dense_pass(int(s / TOKEN_S)), n=3) for s in dense_s]
    dense_memory = [float(peak_bytes(dense_pass(int(s / TOKEN_S)))) for s in dense_s]
    print("\n| forward pass over | tracked: time / that of 10 s | memory / that of 10 s |")
    print("|---|---|---|")
    for k, s in enumerate(lengths_s):
        print(f"| {s} s | {times[k] / times[0]:.1f} | {memory[k] / memory[0]:.1f} |")
    print("\n| forward pass over | dense softmax: time / that of 10 s | memory / that of 10 s |")
    print("|---|---|---|")
    for k, s in enumerate(dense_s):
        print(f"| {s} s | {dense_times[k] / dense_times[0]:.1f} | {dense_memory[k] / dense_memory[0]:.1f} |")
    print(
        f"\nexponents: tracked {exponent(lengths_s, times):.2f} in time, {exponent(lengths_s, memory):.2f} in memory; "
        f"dense softmax {exponent(dense_s, dense_times):.2f} and {exponent(dense_s, dense_memory):.2f}"
    )

    print("\n| search | tracked, forward pass over 60 s / that of +-0.5 s at 20 ms |")
    print("|---|---|")
    base = median_s(tracked_pass(3000))
    for label, max_lag, steps in (
        ("+-0.5 s at 5 ms", 25, 4),
        ("+-2 s at 20 ms", 100, 1),
        ("+-2 s at 5 ms", 100, 4),
    ):
        print(f"| {label} | {median_s(tracked_pass(3000, max_lag=max_lag, lag_steps=steps)) / base:.2f} |")


if __name__ == "__main__":
    main()
