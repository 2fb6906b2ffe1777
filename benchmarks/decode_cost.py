"""In: nothing. Out: what tracking a lag costs beside early fusion, and how the cost grows with the recording.

`python -m benchmarks.decode_cost` prints ratios within one run on one thread; seconds are for orientation only.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from neurofuse.decoders.family import make_decoder
from neurofuse.decoders.lag import ChainRates, band_read, band_scores, lag_posterior
from neurofuse.features import FeatureConfig, lfp_features
from neurofuse.simulate import SimulationConfig, demo_law, simulate
from neurofuse.tokens import tokenize
from neurofuse.windows import split


def median_s(work: Callable[[], object], *, n: int = 5) -> float:
    """Median seconds of a call, after one that does not count."""
    work()
    taken = []
    for _ in range(n):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def training_step() -> dict[str, float]:
    """Seconds a gradient step of each decoder, same windows, same width."""
    recording, _ = simulate(
        demo_law("demo"), config=SimulationConfig(duration_s=100), rng=np.random.default_rng(0)
    )
    features = lfp_features(recording["lfp"], config=FeatureConfig(causal=False))
    tokens = tokenize(recording.but(streams=(recording["spikes"], features)))
    parts = split(tokens, window_s=3.0, max_lag_s=0.5, rng=np.random.default_rng(0))
    out = {}
    for name in ("early", "softmax", "constant", "tracked"):
        decoder = make_decoder(name, n_steps=20, check_every=1000)
        start = time.perf_counter()
        decoder.fit(parts.train, validation=parts.validation)
        out[name] = (time.perf_counter() - start) / 20
    return out


def lag_attention(n_tokens: int, *, n_lags: int = 51, width: int = 64) -> Callable[[], torch.Tensor]:
    """A forward pass of scores, chain and reading over one long stretch."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 1, n_tokens, width, generator=generator)
    key = torch.randn(1, 1, n_tokens + n_lags - 1, width, generator=generator)
    rates = ChainRates(torch.tensor(0.05), torch.tensor(0.01), torch.zeros(n_lags))

    def run() -> torch.Tensor:
        with torch.no_grad():
            posterior = lag_posterior(band_scores(query, key)[:, 0], rates, every=4, causal=False)
            return band_read(posterior[:, None], key)

    return run


def main() -> None:
    """Print both tables."""
    torch.set_num_threads(1)
    steps = training_step()
    print("| decoder | gradient step / early fusion |")
    print("|---|---|")
    for name, seconds in steps.items():
        print(f"| {name} | {seconds / steps['early']:.2f} |")
    lengths_s = (10, 100, 600)
    taken = [median_s(lag_attention(int(s / 0.02))) for s in lengths_s]
    exponent = np.polyfit(np.log(lengths_s), np.log(taken), 1)[0]
    print()
    print("| recording | lag attention, forward / that of 10 s |")
    print("|---|---|")
    for seconds, cost in zip(lengths_s, taken, strict=True):
        print(f"| {seconds} s | {cost / taken[0]:.1f} |")
    print(f"\ntime grows with the length to the power {exponent:.2f}")


if __name__ == "__main__":
    main()
