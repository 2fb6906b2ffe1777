"""In: tokens of an anchor clock and of clocks that may lag. Out: movement read through the lags that were found.

Queries come from the anchor's stream, keys and values from each other clock's. What attention weighs is not
positions but lags, and the weights are a posterior: the scores of a band of lags are log-likelihoods of a
hidden Markov chain that drifts and jumps. With a chain that never moves it is one constant lag a window;
without a chain it is softmax cross-attention. The three differ in nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neurofuse.decoders.encoders import MovementHead, StreamEncoder
from neurofuse.decoders.lag import (
    Chain,
    ChainRates,
    band_read,
    band_scores,
    constant_posterior,
    lag_path,
    lag_posterior,
)
from neurofuse.decoders.training import TorchDecoder
from neurofuse.windows import EDGE_TOKENS, Batch

# Where learning starts: a lag holds for long, drifts rarely, and jumps once in some hundred blocks.
START_STEP = 0.05
START_LEAK = 0.01
START_TEMPERATURE = 4.0

# Recognition: how many windows of a batch are asked, how many others each is told from, in how many stretches,
# and how many independent looks a stretch is worth.
N_ASKED = 16
N_OTHERS = 3
N_STRETCHES = 4
TOKENS_APART = 8.0


class LagAttention(nn.Module):
    """Cross-attention from the anchor to one other clock, over lags.

    Each head has queries and keys of its own, normalised, and an inverse temperature. With a chain the heads'
    evidence adds up to one posterior, since two clocks have one lag; without it each head attends for itself.
    """

    def __init__(
        self,
        width: int,
        *,
        n_heads: int,
        head_width: int,
        max_lag: int,
        chain: Chain,
        every: int,
        causal: bool,
    ) -> None:
        super().__init__()
        self.n_heads, self.head_width = n_heads, head_width
        self.chain, self.every, self.causal = chain, every, causal
        self.query = nn.Linear(width, n_heads * head_width)
        self.key = nn.Linear(width, n_heads * head_width)
        self.value = nn.Linear(width, width)
        self.log_temperature_H = nn.Parameter(torch.full((n_heads,), START_TEMPERATURE).log())
        self.log_prior_L = nn.Parameter(torch.zeros(2 * max_lag + 1))
        # What a token says about the lag when the anchor is absent: nothing asks, and the usual lag is read.
        self.unasked_L = nn.Parameter(torch.zeros(2 * max_lag + 1))
        self.step_logit = nn.Parameter(torch.tensor(2 * START_STEP).logit())
        self.leak_logit = nn.Parameter(torch.tensor(START_LEAK).logit())

    @property
    def rates(self) -> ChainRates:
        """Drift, jump and prior as they stand."""
        return ChainRates(0.5 * self.step_logit.sigmoid(), self.leak_logit.sigmoid(), self.log_prior_L)

    def queries(self, asking_BTD: Tensor, present_BT: Tensor) -> Tensor:
        """Unit vectors times the inverse temperature, zero where absent; shape (B, H, T, D)."""
        query = F.normalize(self.query(asking_BTD).unflatten(-1, (self.n_heads, -1)).transpose(1, 2), dim=-1)
        return query * (self.log_temperature_H.exp()[:, None, None] * present_BT[:, None, :, None])

    def keys(self, asked_BWD: Tensor, present_BW: Tensor) -> Tensor:
        """Unit vectors, zero where absent; shape (B, H, W, D)."""
        key = F.normalize(self.key(asked_BWD).unflatten(-1, (self.n_heads, -1)).transpose(1, 2), dim=-1)
        return key * present_BW[:, None, :, None]

    def posterior(self, score_BHTL: Tensor) -> Tensor:
        """Weights over lags; shape (B, 1, T, L) with a chain, (B, H, T, L) without."""
        if self.chain == "softmax":
            return (score_BHTL + self.log_prior_L).softmax(-1)
        score_BTL = score_BHTL.sum(1)
        if self.chain == "constant":
            return constant_posterior(score_BTL, self.log_prior_L, causal=self.causal)[:, None]
        return lag_posterior(score_BTL, self.rates, every=self.every, causal=self.causal)[:, None]

    def path(self, score_BHTL: Tensor, posterior_BTL: Tensor) -> Tensor:
        """Most probable lags as indices, shape (B, T)."""
        if self.chain == "tracked" and not self.causal:
            return lag_path(score_BHTL.sum(1), self.rates, every=self.every)
        return posterior_BTL.argmax(-1)

    def read(self, posterior_BHTL: Tensor, asked_BWD: Tensor) -> Tensor:
        """The other stream through the alignment, shape (B, T, D)."""
        value = self.value(asked_BWD)
        if posterior_BHTL.shape[1] == 1:
            return band_read(posterior_BHTL[:, 0], value)
        heads = value.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
        return band_read(posterior_BHTL, heads).transpose(1, 2).flatten(-2)


@dataclass
class Reading:
    """What one pass of the network leaves behind for losses and figures: one entry a clock but the anchor."""

    posteriors: list[Tensor]  # (B, T, L), the mean over heads where heads differ
    scores: list[Tensor]  # (B, H, T + context, L)
    queries: list[Tensor]  # (B, H, T + context, D)
    keys: list[Tensor]  # (B, H, W, D)


class LagNetwork(nn.Module):
    """One encoder a clock, one attention for each clock but the anchor, one head."""

    def __init__(
        self,
        n_inputs: list[int],
        n_axes: int,
        max_lag: int,
        *,
        width: int,
        n_heads: int,
        head_width: int,
        kernel: int,
        dilations: tuple[int, ...],
        dropout: float,
        chain: Chain,
        every: int,
        causal: bool,
    ) -> None:
        super().__init__()
        self.max_lag = max_lag
        self.encoders = nn.ModuleList(
            StreamEncoder(n, width, kernel=kernel, dilations=dilations, dropout=dropout, causal=causal)
            for n in n_inputs
        )
        self.attentions = nn.ModuleList(
            LagAttention(
                width,
                n_heads=n_heads,
                head_width=head_width,
                max_lag=max_lag,
                chain=chain,
                every=every,
                causal=causal,
            )
            for _ in n_inputs[1:]
        )
        self.head = MovementHead(
            width * len(n_inputs), width, n_axes, kernel=kernel, dropout=dropout, causal=causal
        )

    @property
    def attending(self) -> list[LagAttention]:
        """The attentions, one a clock but the anchor."""
        return [a for a in self.attentions if isinstance(a, LagAttention)]

    def forward(self, values: list[Tensor], present: list[Tensor], reach: int) -> tuple[Tensor, Reading]:
        # The anchor's own context is EDGE_TOKENS; that of the others reaches the largest lag further.
        edge, spare = EDGE_TOKENS, reach - EDGE_TOKENS
        there = _trim(present[0], spare)
        asking = self.encoders[0](_trim(values[0], spare), there)
        features, reading = [asking], Reading([], [], [], [])
        for encoder, attention, x, on in zip(
            self.encoders[1:], self.attending, values[1:], present[1:], strict=True
        ):
            asked = encoder(x, on)
            query, key = attention.queries(asking, there), attention.keys(asked, on)
            unasked_BTL = ~there[..., None] * attention.unasked_L / attention.n_heads
            score = band_scores(query, key) + unasked_BTL[:, None]
            weights = attention.posterior(score)
            features.append(attention.read(weights, asked))
            reading.posteriors.append(weights.mean(1)[:, edge:-edge])
            reading.scores.append(score)
            reading.queries.append(query)
            reading.keys.append(key)
        return self.head(torch.cat(features, -1))[:, edge:-edge], reading

    def paths(self, reading: Reading) -> list[Tensor]:
        """Most probable sequence of lags of each clock, shape (B, T), as indices."""
        return [
            attention.path(score, posterior)
            for attention, score, posterior in zip(
                self.attending,
                (s[:, :, EDGE_TOKENS:-EDGE_TOKENS] for s in reading.scores),
                reading.posteriors,
                strict=True,
            )
        ]

    def alignment_loss(self, reading: Reading, lag_BTC: Tensor, both_BC: Tensor) -> Tensor:
        """How badly the streams are matched: by the known lag where there is one, else by recognition.

        Windows that miss one of the two streams throughout (`both_BC` False) are left out.
        """
        losses = []
        for c, attention in enumerate(self.attending):
            both = both_BC[:, c]
            known = torch.isfinite(lag_BTC[..., c]) & (lag_BTC[..., c].abs() <= self.max_lag)
            if bool(known.any()):
                known = known & both[:, None]
                if bool(known.any()):
                    losses.append(lag_loss(reading.posteriors[c], lag_BTC[..., c], known, self.max_lag))
            elif int(both.sum()) > 1:
                query, key, score = (x[c][both] for x in (reading.queries, reading.keys, reading.scores))
                losses.append(recognition_loss(query, key, score, attention.log_prior_L))
        return torch.stack(losses).sum() if losses else lag_BTC.new_zeros(())


def lag_loss(posterior_BTL: Tensor, lag_BT: Tensor, known_BT: Tensor, max_lag: int) -> Tensor:
    """Minus the log probability of the known lag, interpolated between the lags on its two sides."""
    place = torch.where(known_BT, lag_BT, 0.0) + max_lag
    below = place.floor().clamp(0, posterior_BTL.shape[-1] - 2).long()
    share = (place - below)[..., None]
    pair = torch.cat(
        [posterior_BTL.gather(-1, below[..., None]), posterior_BTL.gather(-1, below[..., None] + 1)], -1
    )
    likely = (pair * torch.cat([1 - share, share], -1)).sum(-1).clamp_min(1e-8)
    return -(likely.log() * known_BT).sum() / known_BT.sum()


def recognition_loss(query_BHTD: Tensor, key_BHWD: Tensor, score_BHTL: Tensor, log_prior_L: Tensor) -> Tensor:
    """How badly a window tells its own other stream from those of other windows, whatever the lag.

    Needs no lag to be known: the evidence of a stretch, summed over lags, must be larger for the stream that
    was recorded with it than for streams recorded at other times (InfoNCE over a batch). It keeps queries and
    keys from settling on a lag that merely suits the movement.
    """
    n_asked = min(len(score_BHTL), N_ASKED)
    query, score = query_BHTD[:n_asked], score_BHTL[:n_asked]
    evidence = [_stretch_evidence(score, log_prior_L)]
    for k in range(1, min(N_OTHERS, len(score_BHTL) - 1) + 1):
        other = band_scores(query, key_BHWD.roll(-k, 0)[:n_asked])
        evidence.append(_stretch_evidence(other, log_prior_L))
    return -torch.stack(evidence).log_softmax(0)[0].mean()


def _stretch_evidence(score_BHTL: Tensor, log_prior_L: Tensor) -> Tensor:
    """Log evidence of stretches of a window under one lag each; neighbouring tokens count as one in part."""
    n_block = max(1, score_BHTL.shape[2] // N_STRETCHES)
    whole = score_BHTL.sum(1)[:, : n_block * N_STRETCHES].unflatten(1, (-1, n_block))
    return (TOKENS_APART * whole.mean(2) + log_prior_L.log_softmax(-1)).logsumexp(-1)


def _trim(x: Tensor, n: int) -> Tensor:
    return x[:, n:-n] if n else x


class TrackedDecoder(TorchDecoder):
    """Cross-attention whose weights are a lag posterior tracked in time.

    Parameters
    ----------
    n_heads, head_width : int
        Heads of the attention and the size of their queries and keys.
    kernel : int
        Tokens seen by a convolution.
    dilations : sequence of int
        One temporal block each, in every stream's encoder.
    track_every : int
        Tokens that share one lag; the chain runs on this coarser clock.
    align_weight : float
        Weight of the alignment loss beside the movement loss; see `LagNetwork.alignment_loss`. With 0 the
        movement loss alone has to find the lag.
    **training
        See `TorchDecoder`.
    """

    name = "tracked"
    chain: Chain = "tracked"

    def __init__(
        self,
        *,
        n_heads: int = 4,
        head_width: int = 16,
        kernel: int = 5,
        dilations: tuple[int, ...] = (1, 2, 4),
        track_every: int = 4,
        align_weight: float = 0.1,
        **training: Any,
    ) -> None:
        super().__init__(**training)
        self.n_heads = n_heads
        self.head_width = head_width
        self.kernel = kernel
        self.dilations = dilations
        self.track_every = track_every
        self.align_weight = align_weight

    def _alignment_loss(self, reading: Reading, batch: Batch) -> Tensor | float:
        if not self.align_weight:
            return 0.0
        device = next(self.network_.parameters()).device
        there = np.stack([p.any(1) for p in batch.present], axis=-1)
        both_BC = torch.as_tensor(there[:, 1:] & there[:, :1], device=device)
        lag_BTC = torch.as_tensor(batch.lag, device=device)
        return self.align_weight * self.network_.alignment_loss(reading, lag_BTC, both_BC)

    def _network(self, n_inputs: list[int], n_axes: int, max_lag: int) -> LagNetwork:
        return LagNetwork(
            n_inputs,
            n_axes,
            max_lag,
            width=self.width,
            n_heads=self.n_heads,
            head_width=self.head_width,
            kernel=self.kernel,
            dilations=tuple(self.dilations),
            dropout=self.dropout,
            chain=self.chain,
            every=self.track_every,
            causal=self.causal,
        )


class ConstantDecoder(TrackedDecoder):
    """The same with a lag that never moves inside a window."""

    name = "constant"
    chain: Chain = "constant"


class SoftmaxDecoder(TrackedDecoder):
    """The same without a chain: every token of every head attends for itself, plain softmax cross-attention."""

    name = "softmax"
    chain: Chain = "softmax"
