"""In: tokens of all clocks. Out: movement from one network over all of them stacked: early fusion.

Four networks with one assumption: that the clocks agree. Each reads every clock over the lags that the tracking
decoders search. Causal ones read the anchor up to the present and other clocks, as those decoders do, up to
time stamps that are the largest lag ahead.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neurofuse.decoders.neural import TorchDecoder
from neurofuse.errors import NeurofuseError
from neurofuse.nets.encoders import MovementHead, SeededDropout, StreamEncoder, encode

# Tokens read to each side where there is no lag to cover.
NEAR_TOKENS = 14
# More inputs per moment make a flattened window slow and no better; neighbouring tokens are averaged.
MOST_INPUTS = 4096


def delayed(x: Tensor, n: int) -> Tensor:
    """Tokens `n` steps behind their place; shape (B, W, ...), zero (absent) before the first one."""
    return torch.cat([torch.zeros_like(x[:, :n]), x[:, : x.shape[1] - n]], 1) if n else x


def stacked(
    values: list[Tensor], present: list[Tensor], *, clocks: Sequence[int], late: int
) -> tuple[Tensor, Tensor]:
    """Tokens of some clocks side by side, each with its own presence; the anchor is delayed by `late` tokens.

    Delaying the anchor lets a causal network read other clocks ahead of it.

    Returns
    -------
    stacked_BWU, anywhere_BW
    """
    delays = [0 if k else late for k in clocks]
    recorded = torch.stack([delayed(present[k], n) for k, n in zip(clocks, delays, strict=True)], -1)
    inputs = [delayed(values[k], n) for k, n in zip(clocks, delays, strict=True)]
    return torch.cat([*inputs, recorded.to(inputs[0].dtype)], -1), recorded.any(-1)


def inner(x_BWD: Tensor, reach: int, late: int) -> Tensor:
    """The tokens of the window itself, without its context."""
    return x_BWD[:, reach + late : x_BWD.shape[1] - reach + late]


class EarlyNetwork(nn.Module):
    """Concatenation, convolutions of growing dilation, a linear map to movement."""

    def __init__(
        self,
        n_inputs: list[int],
        n_axes: int,
        *,
        clocks: Sequence[int],
        late: int,
        width: int,
        kernel: int,
        dilations: tuple[int, ...],
        dropout: float,
        causal: bool,
    ) -> None:
        super().__init__()
        self.clocks, self.late = clocks, late
        self.encoder = StreamEncoder(
            sum(n_inputs[k] + 1 for k in clocks),
            width,
            kernel=kernel,
            dilations=dilations,
            dropout=dropout,
            causal=causal,
        )
        self.head = MovementHead(width, width, n_axes, kernel=kernel, dropout=dropout, causal=causal)

    def forward(self, values: list[Tensor], present: list[Tensor], reach: int) -> tuple[Tensor, None]:
        inputs, anywhere = stacked(values, present, clocks=self.clocks, late=self.late)
        return inner(self.head(encode(self.encoder, inputs, anywhere)[1]), reach, self.late), None


class EarlyDecoder(TorchDecoder):
    """Early fusion by temporal convolution.

    Parameters
    ----------
    kernel : int
        Tokens per convolution.
    **training
        See `TorchDecoder`.
    """

    name = "early"

    def __init__(
        self,
        *,
        kernel: int = 5,
        **training: Any,
    ) -> None:
        super().__init__(**training)
        self.kernel = kernel

    def _streams(self, n_clocks: int) -> Sequence[int]:
        """The clocks that are read; the anchor is 0."""
        return range(n_clocks)

    def build_network(self, n_inputs: list[int], n_axes: int, max_lag: int) -> EarlyNetwork:
        return EarlyNetwork(
            n_inputs,
            n_axes,
            clocks=self._streams(len(n_inputs)),
            late=max_lag if self.causal else 0,
            width=self.width,
            kernel=self.kernel,
            # A causal convolution reads behind it as far as a centred one to both sides.
            dilations=dilations_over(max(max_lag, NEAR_TOKENS), self.kernel),
            dropout=self.dropout,
            causal=self.causal,
        )


def dilations_over(reach: int, kernel: int) -> tuple[int, ...]:
    """Doubling dilations whose convolutions together read `reach` tokens to each side."""
    out: list[int] = []
    while sum(out) * (kernel // 2) < reach:
        out.append(2 ** len(out))
    return tuple(out)


class WindowNetwork(nn.Module):
    """All tokens within `side` of a moment, flattened, through a multilayer perceptron.

    Where they are more than `MOST_INPUTS`, neighbouring tokens are averaged in groups of equal size, at near lags as
    at far ones: where the lag is unknown, all lags of another clock are equally near.
    """

    def __init__(
        self,
        n_inputs: list[int],
        n_axes: int,
        *,
        side: int,
        late: int,
        width: int,
        n_layers: int,
        dropout: float,
        causal: bool,
    ) -> None:
        super().__init__()
        n_features = sum(n_inputs) + len(n_inputs)
        self.late = late
        self.pool = math.ceil((2 * side + 1) * n_features / MOST_INPUTS)
        # An odd number of groups, so that they lie evenly around the moment.
        n_groups = 2 * math.ceil((2 * side + 1 - self.pool) / (2 * self.pool)) + 1
        span = n_groups * self.pool - 1
        self.pad = (span, 0) if causal else (span - span // 2, span // 2)
        self.drop = SeededDropout(dropout)
        # A linear layer on the flattened window is a convolution whose kernel is as long as the window.
        self.input = nn.Conv1d(n_features, width, n_groups, dilation=self.pool)
        self.norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(n_layers - 1))
        self.output = nn.Linear(width, n_axes)

    def forward(self, values: list[Tensor], present: list[Tensor], reach: int) -> tuple[Tensor, None]:
        inputs, _ = stacked(values, present, clocks=range(len(values)), late=self.late)
        x_BUW = F.pad(self.drop(inputs).transpose(1, 2), self.pad)
        if self.pool > 1:
            x_BUW = F.avg_pool1d(x_BUW, self.pool, stride=1)
        h_BTD = inner(self.input(x_BUW).transpose(1, 2), reach, self.late)
        h_BTD = self.drop(F.gelu(self.norm(h_BTD)))
        for layer in self.layers:
            h_BTD = self.drop(F.gelu(layer(h_BTD)))
        return self.output(h_BTD), None


class EarlyMLPDecoder(TorchDecoder):
    """Early fusion by a multilayer perceptron on the flattened window of tokens around each moment.

    Parameters
    ----------
    width : int
        Units of every hidden layer.
    n_layers : int
        Hidden layers.
    **training
        See `TorchDecoder`.
    """

    name = "early-mlp"

    def __init__(self, *, width: int = 256, n_layers: int = 2, dropout: float = 0.3, **training: Any) -> None:
        super().__init__(width=width, dropout=dropout, **training)
        self.n_layers = n_layers

    def build_network(self, n_inputs: list[int], n_axes: int, max_lag: int) -> WindowNetwork:
        return WindowNetwork(
            n_inputs,
            n_axes,
            side=max(max_lag, NEAR_TOKENS),
            late=max_lag if self.causal else 0,
            width=self.width,
            n_layers=self.n_layers,
            dropout=self.dropout,
            causal=self.causal,
        )


class JointAttention(nn.Module):
    """Self-attention over the tokens of all clocks at once, then a feed-forward layer; both residual."""

    def __init__(self, width: int, *, n_heads: int, dropout: float) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.norm_attend, self.norm_feed = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.mix = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.drop = SeededDropout(dropout)

    def forward(self, x_BND: Tensor, turn: tuple[Tensor, Tensor], mask_NN: Tensor) -> Tensor:
        qkv = self.qkv(self.norm_attend(x_BND)).unflatten(-1, (3, self.n_heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        read = F.scaled_dot_product_attention(
            rotated(query, *turn), rotated(key, *turn), value, attn_mask=mask_NN
        )
        x_BND = x_BND + self.drop(self.mix(read.transpose(1, 2).flatten(-2)))
        return x_BND + self.drop(self.down(F.gelu(self.up(self.norm_feed(x_BND)))))


def turns(place_N: Tensor, head_width: int, reach: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine by which queries and keys are turned, so that their product depends on the time between them.

    Rotary encoding (Su et al. 2021), with periods from 4 tokens to eight times the reach.
    """
    n = head_width // 2
    period = 4.0 * (2.0 * reach) ** (torch.arange(n, device=place_N.device) / max(n - 1, 1))
    angle = 2 * math.pi * place_N[:, None] / period
    return angle.cos(), angle.sin()


def rotated(x_BHND: Tensor, cos_NE: Tensor, sin_NE: Tensor) -> Tensor:
    """Pairs of features turned by an angle."""
    one, two = x_BHND.chunk(2, -1)
    return torch.cat([one * cos_NE - two * sin_NE, one * sin_NE + two * cos_NE], -1)


class AttentionNetwork(nn.Module):
    """One token per clock and moment, self-attention among all of them within reach, movement from the anchor's."""

    def __init__(
        self,
        n_inputs: list[int],
        n_axes: int,
        *,
        side: int,
        late: int,
        width: int,
        kernel: int,
        n_heads: int,
        n_layers: int,
        dropout: float,
        causal: bool,
    ) -> None:
        super().__init__()
        self.side, self.late, self.causal = side, late, causal
        self.head_width = width // n_heads
        # One short convolution before attention, since a single token holds a few spikes at most.
        self.encoders = nn.ModuleList(
            StreamEncoder(n, width, kernel=kernel, dilations=(1,), dropout=dropout, causal=causal)
            for n in n_inputs
        )
        self.clock_CD = nn.Parameter(torch.zeros(len(n_inputs), width))
        self.layers = nn.ModuleList(
            JointAttention(width, n_heads=n_heads, dropout=dropout) for _ in range(n_layers)
        )
        self.head = MovementHead(width, width, n_axes, kernel=kernel, dropout=dropout, causal=causal)

    def forward(self, values: list[Tensor], present: list[Tensor], reach: int) -> tuple[Tensor, None]:
        n_clocks, n_tokens = len(values), values[0].shape[1]
        token_N = torch.arange(n_tokens, device=values[0].device).repeat(n_clocks)
        after_NN = token_N[None] - token_N[:, None]
        mask_NN = (
            (after_NN <= 0) & (after_NN >= -2 * self.side) if self.causal else after_NN.abs() <= self.side
        )
        # Where the anchor is delayed, its tokens keep the times at which they were recorded.
        stamp_N = token_N.clone()
        stamp_N[:n_tokens] -= self.late
        turn = turns(stamp_N, self.head_width, self.side)
        delays = [self.late, *[0] * (n_clocks - 1)]
        x_BND = torch.cat(
            [
                encode(encoder, delayed(x, n), delayed(p, n))[1] + clock
                for encoder, x, p, clock, n in zip(
                    self.encoders, values, present, self.clock_CD, delays, strict=True
                )
            ],
            1,
        )
        for layer in self.layers:
            x_BND = layer(x_BND, turn, mask_NN)
        return inner(self.head(x_BND[:, :n_tokens]), reach, self.late), None


class EarlyAttentionDecoder(TorchDecoder):
    """Early fusion by joint self-attention over the tokens of all clocks.

    A token is one clock at one moment, so that any moment of one clock can be matched with any of another.

    Parameters
    ----------
    n_heads : int
        Must divide `width` into even parts.
    n_layers : int
        Layers of attention.
    kernel : int
        Tokens per convolution, before and after attention.
    **training
        See `TorchDecoder`.
    """

    name = "early-attention"

    def __init__(self, *, n_heads: int = 4, n_layers: int = 2, kernel: int = 5, **training: Any) -> None:
        super().__init__(**training)
        self.n_heads = n_heads
        self.n_layers = n_layers
        self.kernel = kernel

    def build_network(self, n_inputs: list[int], n_axes: int, max_lag: int) -> AttentionNetwork:
        if self.width % (2 * self.n_heads):
            raise NeurofuseError(
                f"a width of {self.width} does not split into {self.n_heads} heads of an even size; "
                f"take a width that {2 * self.n_heads} divides."
            )
        return AttentionNetwork(
            n_inputs,
            n_axes,
            side=max(max_lag, NEAR_TOKENS),
            late=max_lag if self.causal else 0,
            width=self.width,
            kernel=self.kernel,
            n_heads=self.n_heads,
            n_layers=self.n_layers,
            dropout=self.dropout,
            causal=self.causal,
        )


class RecurrentNetwork(nn.Module):
    """Gated recurrent units over stacked tokens, in both directions unless causal."""

    def __init__(
        self,
        n_inputs: list[int],
        n_axes: int,
        *,
        late: int,
        width: int,
        n_layers: int,
        dropout: float,
        causal: bool,
    ) -> None:
        super().__init__()
        self.late = late
        self.drop = SeededDropout(dropout)
        self.input = nn.Linear(sum(n_inputs) + len(n_inputs), width)
        n_ways = 1 if causal else 2
        self.layers = nn.ModuleList(
            nn.GRU(width * (n_ways if k else 1), width, batch_first=True, bidirectional=not causal)
            for k in range(n_layers)
        )
        self.output = nn.Linear(n_ways * width, n_axes)

    def forward(self, values: list[Tensor], present: list[Tensor], reach: int) -> tuple[Tensor, None]:
        inputs, _ = stacked(values, present, clocks=range(len(values)), late=self.late)
        h_BWD = self.input(self.drop(inputs))
        for layer in self.layers:
            h_BWD = self.drop(layer(h_BWD)[0])
        return self.output(inner(h_BWD, reach, self.late)), None


class GRUDecoder(TorchDecoder):
    """Early fusion by gated recurrent units: bidirectional, or forward in time only when causal.

    They read the window and all of its context, which reaches beyond the largest lag.

    Parameters
    ----------
    n_layers : int
        Recurrent layers.
    **training
        See `TorchDecoder`.
    """

    name = "gru"

    def __init__(self, *, n_layers: int = 1, **training: Any) -> None:
        super().__init__(**training)
        self.n_layers = n_layers

    def build_network(self, n_inputs: list[int], n_axes: int, max_lag: int) -> RecurrentNetwork:
        return RecurrentNetwork(
            n_inputs,
            n_axes,
            late=max_lag if self.causal else 0,
            width=self.width,
            n_layers=self.n_layers,
            dropout=self.dropout,
            causal=self.causal,
        )
