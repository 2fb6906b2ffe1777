"""In: encoded tokens of an anchor clock and of one other. Out: log-likelihood of every lag, and values read through it.

Queries come from the anchor's stream, keys and values from the other clock's. Attention weighs lags, not positions: the
scores of a band of lags are log-likelihoods of a hidden Markov model, whose posterior are the weights.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neurofuse.lag.banded import band_answer, band_read, band_scores
from neurofuse.lag.hmm import (
    HMMRates,
    LagHMM,
    LagPosterior,
    block_log_lik,
    constant_posterior,
    lag_posterior,
    viterbi,
)

Chain = Literal["tracked", "constant", "softmax", "given"]

START_TEMPERATURE = 4.0


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
        lag_steps: int,
        every: int,
        bidirectional: bool,
        causal: bool,
    ) -> None:
        super().__init__()
        self.n_heads, self.head_width = n_heads, head_width
        self.chain, self.every, self.causal = chain, every, causal
        self.query = nn.Linear(width, n_heads * head_width)
        self.key = nn.Linear(width, n_heads * head_width)
        # Values are the tokens as they are and as their encoder sees them.
        self.value = nn.Linear(2 * width, width)
        # What the other clock reads in the anchor's stream, before it is read itself.
        self.answer = nn.Linear(width, width) if bidirectional else None
        self.log_temperature_H = nn.Parameter(torch.full((n_heads,), START_TEMPERATURE).log())
        # What a moment without a match looks like, and what is read there.
        self.lost_key_D = nn.Parameter(torch.zeros(n_heads * head_width))
        self.lost_bias = nn.Parameter(torch.zeros(()))
        self.nothing = nn.Parameter(torch.zeros(width))
        self.track = LagHMM(2 * max_lag + 1, lag_steps)

    def queries(self, asking_BTD: Tensor, present_BT: Tensor) -> Tensor:
        """Unit vectors times the inverse temperature, zero where absent; shape (B, H, T, D)."""
        query = F.normalize(self.query(asking_BTD).unflatten(-1, (self.n_heads, -1)).transpose(1, 2), dim=-1)
        return query * (self.log_temperature_H.exp()[:, None, None] * present_BT[:, None, :, None])

    def keys(self, asked_BWD: Tensor, present_BW: Tensor) -> Tensor:
        """Unit vectors, zero where absent; shape (B, H, W, D)."""
        key = F.normalize(self.key(asked_BWD).unflatten(-1, (self.n_heads, -1)).transpose(1, 2), dim=-1)
        return key * present_BW[:, None, :, None]

    def evidence(self, query_BHTD: Tensor, key_BHWD: Tensor) -> tuple[Tensor, Tensor]:
        """Log-likelihood of every lag, shape (B, T, L), and of no match, shape (B, T): the heads' summed."""
        query_BTD, key_BWD = (x.transpose(1, 2).flatten(-2) for x in (query_BHTD, key_BHWD))
        trust = self.track.trust.exp()
        score_BTL = band_scores(query_BTD[:, None], key_BWD[:, None])[:, 0]
        return score_BTL * trust, (query_BTD @ self.lost_key_D + self.lost_bias) * trust

    def posterior(self, score_BTL: Tensor, lost_BT: Tensor, rates: HMMRates | None = None) -> LagPosterior:
        """What the chain makes of the evidence, at its own rates or at others."""
        rates, up_LG = rates or self.track.rates, self.track.up_LG
        if self.chain == "constant":
            return constant_posterior(score_BTL, lost_BT, rates, up_LG, causal=self.causal)
        return lag_posterior(score_BTL, lost_BT, rates, up_LG, every=self.every, causal=self.causal)

    def path(
        self, score_BTL: Tensor, lost_BT: Tensor, posterior: LagPosterior, rates: HMMRates | None = None
    ) -> Tensor:
        """Most probable lags as indices of fine lags, shape (B, T)."""
        if self.chain != "tracked" or self.causal:
            return posterior.log_lag_BTG.argmax(-1)
        block = block_log_lik(score_BTL, lost_BT, self.track.up_LG, self.every)
        n_tokens = score_BTL.shape[1]
        return viterbi(block, rates or self.track.rates).repeat_interleave(self.every, 1)[:, :n_tokens]

    def read(
        self, posterior: LagPosterior, asking_BTD: Tensor, told_BWD: Tensor, asked_BWD: Tensor
    ) -> Tensor:
        """The other stream through the alignment, shape (B, T, D)."""
        lag_BTL = (posterior.lag_BTG * posterior.match_BT[..., None]) @ self.track.down_GL
        value_BWD = self._values(lag_BTL, asking_BTD, told_BWD, asked_BWD)
        found = band_read(lag_BTL[:, None], value_BWD[:, None])[:, 0]
        return found + (1 - posterior.match_BT[..., None]) * self.nothing

    def softmax_read(
        self, query_BHTD: Tensor, key_BHWD: Tensor, asking_BTD: Tensor, told_BWD: Tensor, asked_BWD: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Every head attends for itself; what was read, (B, T, D), and the weights, (B, H, T, L)."""
        weight_BHTL = (band_scores(query_BHTD, key_BHWD) + self.track.log_prior_L).softmax(-1)
        value_BWD = self._values(weight_BHTL.mean(1), asking_BTD, told_BWD, asked_BWD)
        value_BHWD = value_BWD.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
        return band_read(weight_BHTL, value_BHWD).transpose(1, 2).flatten(-2), weight_BHTL

    def _values(self, lag_BTL: Tensor, asking_BTD: Tensor, told_BWD: Tensor, asked_BWD: Tensor) -> Tensor:
        if self.answer is not None:
            # The other way through the same weights: each of its moments reads the moments that may belong to it.
            asked_BWD = asked_BWD + self.answer(band_answer(lag_BTL, asking_BTD))
        return self.value(torch.cat([told_BWD, asked_BWD], -1))
