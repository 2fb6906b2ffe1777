"""In: tokens of all clocks. Out: movement from a temporal convolution over all of them stacked: early fusion.

It takes the clocks at their word. Its receptive field covers the same lags that the tracking decoders search.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from neurofuse.decoders.encoders import MovementHead, StreamEncoder
from neurofuse.decoders.training import TorchDecoder


class EarlyNetwork(nn.Module):
    """Concatenate, convolve with growing dilation, read out."""

    def __init__(
        self,
        n_inputs: list[int],
        n_axes: int,
        *,
        width: int,
        kernel: int,
        dilations: tuple[int, ...],
        dropout: float,
        causal: bool,
    ) -> None:
        super().__init__()
        # Each clock says for itself where it was recorded.
        self.encoder = StreamEncoder(
            sum(n_inputs) + len(n_inputs),
            width,
            kernel=kernel,
            dilations=dilations,
            dropout=dropout,
            causal=causal,
        )
        self.head = MovementHead(width, width, n_axes, kernel=kernel, dropout=dropout, causal=causal)

    def forward(self, values: list[Tensor], present: list[Tensor], reach: int) -> tuple[Tensor, None]:
        stacked = torch.cat([*values, torch.stack(present, -1).to(values[0].dtype)], -1)
        anywhere = torch.stack(present, -1).any(-1)
        return self.head(self.encoder(stacked, anywhere))[:, reach:-reach], None


class EarlyDecoder(TorchDecoder):
    """Early fusion by temporal convolution.

    Parameters
    ----------
    kernel : int
        Tokens seen by a convolution.
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

    def _network(self, n_inputs: list[int], n_axes: int, max_lag: int) -> EarlyNetwork:
        reach = max_lag if len(n_inputs) > 1 else 0
        return EarlyNetwork(
            n_inputs,
            n_axes,
            width=self.width,
            kernel=self.kernel,
            dilations=dilations_over(max(reach, 14), self.kernel),
            dropout=self.dropout,
            causal=self.causal,
        )


def dilations_over(reach: int, kernel: int) -> tuple[int, ...]:
    """Doubling dilations whose convolutions together see `reach` tokens to each side."""
    out: list[int] = []
    while sum(out) * (kernel // 2) < reach:
        out.append(2 ** len(out))
    return tuple(out)
