"""In: tokens of one stream. Out: features of each token in its context; and how weights of networks are drawn."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Start at a gain of one and a bias of zero; nothing is drawn.
NORMALISATIONS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


class SeededDropout(nn.Module):
    """Dropout whose masks come from a generator of its own (torch's draws from the global one).

    One random byte per element, drawn eight at a time, is several times faster than one random number each, and dropout
    takes a tenth of a training step. The rate is rounded to a 256th.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.generator: torch.Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        n_dropped = round(256 * self.rate)
        if not self.training or n_dropped == 0:
            return x
        words = torch.empty(-(-x.numel() // 8), dtype=torch.int64, device=x.device)
        words.random_(-(2**63), None, generator=self.generator)
        kept = (words.view(torch.uint8)[: x.numel()] >= n_dropped).view(x.shape)
        return x * kept.to(x.dtype).mul_(256 / (256 - n_dropped))


class TemporalBlock(nn.Module):
    """A residual convolution over time, of the past only where `causal`."""

    def __init__(self, width: int, *, kernel: int, dilation: int, dropout: float, causal: bool) -> None:
        super().__init__()
        reach = (kernel - 1) * dilation
        self.pad = (reach, 0) if causal else (reach // 2, reach - reach // 2)
        self.norm = nn.LayerNorm(width)
        self.conv = nn.Conv1d(width, width, kernel, dilation=dilation)
        self.mix = nn.Linear(width, width)
        self.drop = SeededDropout(dropout)

    def forward(self, x_BWD: Tensor) -> Tensor:
        h_BDW = F.pad(self.norm(x_BWD).transpose(1, 2), self.pad)
        return x_BWD + self.mix(self.drop(F.gelu(self.conv(h_BDW)).transpose(1, 2)))


class StreamEncoder(nn.Module):
    """Tokens of one clock to features: a linear map (the sum of unit embeddings), then temporal blocks.

    Absent tokens are embedded as a learned vector, so that absence differs from a count of zero.
    """

    def __init__(
        self,
        n_inputs: int,
        width: int,
        *,
        kernel: int,
        dilations: tuple[int, ...],
        dropout: float,
        causal: bool,
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(n_inputs, width)
        self.absent = nn.Parameter(torch.zeros(width))
        self.drop = SeededDropout(dropout)
        self.blocks = nn.ModuleList(
            TemporalBlock(width, kernel=kernel, dilation=d, dropout=dropout, causal=causal) for d in dilations
        )
        self.norm = nn.LayerNorm(width)

    def embed_tokens(self, x_BWU: Tensor, present_BW: Tensor) -> Tensor:
        """Each token embedded without its context, shape (B, W, D)."""
        return torch.where(present_BW[..., None], self.embed(self.drop(x_BWU)), self.absent)

    def forward(self, plain_BWD: Tensor) -> Tensor:
        """Embedded tokens encoded in their context, shape (B, W, D)."""
        h_BWD = plain_BWD
        for block in self.blocks:
            h_BWD = block(h_BWD)
        return self.norm(h_BWD)


def encode(encoder: nn.Module, x_BWU: Tensor, present_BW: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens embedded without their context, and encoded in it; both (B, W, D)."""
    assert isinstance(encoder, StreamEncoder)
    plain_BWD = encoder.embed_tokens(x_BWU, present_BW)
    return plain_BWD, encoder(plain_BWD)


class MovementHead(nn.Module):
    """Features to movement: temporal blocks, which may shift them in time, between linear maps."""

    def __init__(
        self,
        n_inputs: int,
        width: int,
        n_axes: int,
        *,
        kernel: int,
        dilations: tuple[int, ...] = (1, 2),
        dropout: float,
        causal: bool,
    ) -> None:
        super().__init__()
        self.input = nn.Linear(n_inputs, width)
        self.blocks = nn.Sequential(
            *(
                TemporalBlock(width, kernel=kernel, dilation=d, dropout=dropout, causal=causal)
                for d in dilations
            )
        )
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, n_axes)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.output(F.gelu(self.norm(self.blocks(self.input(x_BTD)))))


def initialise(network: nn.Module, generator: torch.Generator) -> None:
    """Draw the initial weights of every layer from `generator`, as torch's defaults would; torch's own is untouched.

    Layers with a method `reset_parameters`, torch's or a user's, are drawn by it, the outermost last; normalisations
    start as they were constructed, and so do parameters that belong to no such layer. Seeded dropouts take their masks
    from the generator from then on.
    """
    set_dropout_generator(network, generator)
    for layer in _innermost_first(network, set()):
        if isinstance(layer, (nn.Linear, nn.Conv1d)):
            nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=generator)
            if layer.bias is not None:
                bound = 1 / math.sqrt(layer.weight[0].numel())
                nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
        elif isinstance(layer, nn.GRU):
            for weight in layer.parameters():
                bound = 1 / math.sqrt(layer.hidden_size)
                nn.init.uniform_(weight, -bound, bound, generator=generator)
        elif not isinstance(layer, NORMALISATIONS):
            reset = getattr(layer, "reset_parameters", getattr(layer, "_reset_parameters", None))
            if reset is None:
                continue
            seed = int(torch.randint(2**62, (), generator=generator))
            with torch.random.fork_rng(devices=[]):
                torch.random.default_generator.manual_seed(seed)
                reset()


def set_dropout_generator(network: nn.Module, generator: torch.Generator) -> None:
    """Let every `SeededDropout` of a network draw its masks from `generator`, which is on the network's device."""
    for layer in network.modules():
        if isinstance(layer, SeededDropout):
            layer.generator = generator


def _innermost_first(layer: nn.Module, visited: set[nn.Module]) -> Iterator[nn.Module]:
    for inner in layer.children():
        if inner not in visited:
            yield from _innermost_first(inner, visited)
    if layer not in visited:
        visited.add(layer)
        yield layer
