"""In: a seed, and how a network is built. Out: the network with weights that depend on the seed only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from neurofuse.nets.encoders import initialise, set_dropout_generator


@contextmanager
def seeded(seed: int, device: str = "cpu") -> Iterator[None]:
    """Seed torch's global generators, of the CPU and of `device`, inside the block; restore them after it.

    Construction and training of layers that draw from them, such as `nn.Dropout`, are reproducible inside.
    """
    on = torch.device(device)
    gpus = [torch.cuda.current_device() if on.index is None else on.index] if on.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        torch.random.default_generator.manual_seed(seed)
        for gpu in gpus:
            torch.cuda.default_generators[gpu].manual_seed(seed)
        yield


def new_network(build: Callable[[], nn.Module], *, seed: int, device: str = "cpu") -> nn.Module:
    """Construct a network on a device, its initial weights a function of the seed; see `initialise`."""
    with seeded(seed):
        network = build()
    # Weights are drawn on the CPU, so that they are the same on every device.
    generator = torch.Generator().manual_seed(seed)
    initialise(network, generator)
    network.to(device)
    if torch.device(device).type != "cpu":
        set_dropout_generator(network, torch.Generator(device).manual_seed(seed))
    return network
