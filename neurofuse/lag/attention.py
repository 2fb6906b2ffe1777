"""In: encoded tokens of an anchor clock and of one other. Out: log-likelihood of every lag, and values read at them.

Queries come from the anchor's stream, keys and values from the other clock's. Attention weighs lags, not positions: the
scores of a band of lags are log-likelihoods of a hidden Markov model, whose posterior are the weights.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neurofuse.lag.banded import band_read, band_read_reverse, band_scores
from neurofuse.lag.hmm import (
    HMMRates,
    LagHMM,
    LagLogLik,
    LagPosterior,
    LagPrior,
    block_log_lik,
    constant_posterior,
    lag_posterior,
    viterbi,
)

# A hidden Markov model, one constant lag per window, softmax attention per token and head, or a lag given from outside.
LagModel = Literal["tracked", "constant", "softmax", "given"]

START_INVERSE_TEMPERATURE = 4.0


class LagAttention(nn.Module):
    """Cross-attention from the anchor to one other clock, over lags.

    Each head has queries and keys of its own, normalised, and an inverse temperature. Under a lag model the heads'
    log-likelihoods are summed into one posterior, since two clocks have one lag; under "softmax" each head attends
    separately.

    Parameters
    ----------
    width : int
        Features of a token.
    n_heads, head_width : int
    max_lag : int
        Largest lag searched, tokens.
    lag_model : {"tracked", "constant", "softmax", "given"}
    fine_lags_per_token : int
        Resolution of the lag grid.
    tokens_per_block : int
        Tokens that share one lag.
    bidirectional : bool
        Add to the other clock's tokens what they read of the anchor's at the same lags.
    causal : bool
        Filter instead of smoothing.
    prior : LagPrior, optional
        Where drift and jumps start.
    """

    def __init__(
        self,
        width: int,
        *,
        n_heads: int,
        head_width: int,
        max_lag: int,
        lag_model: LagModel,
        fine_lags_per_token: int,
        tokens_per_block: int,
        bidirectional: bool,
        causal: bool,
        prior: LagPrior | None = None,
    ) -> None:
        super().__init__()
        self.n_heads, self.head_width = n_heads, head_width
        self.lag_model, self.tokens_per_block, self.causal = lag_model, tokens_per_block, causal
        self.query = nn.Linear(width, n_heads * head_width)
        self.key = nn.Linear(width, n_heads * head_width)
        # Values are made of the embedded tokens and of the encoded ones.
        self.value = nn.Linear(2 * width, width)
        self.reverse_value = nn.Linear(width, width) if bidirectional else None
        self.log_inverse_temperature_H = nn.Parameter(torch.full((n_heads,), START_INVERSE_TEMPERATURE).log())
        # Score of no match, and the value read there.
        self.unmatched_key_D = nn.Parameter(torch.zeros(n_heads * head_width))
        self.unmatched_bias = nn.Parameter(torch.zeros(()))
        self.unmatched_value_D = nn.Parameter(torch.zeros(width))
        self.hmm = LagHMM(2 * max_lag + 1, fine_lags_per_token, prior=prior)

    def queries(self, query_in_BTD: Tensor, present_BT: Tensor) -> Tensor:
        """Unit vectors times the inverse temperature, zero where absent; shape (B, H, T, D)."""
        query = F.normalize(
            self.query(query_in_BTD).unflatten(-1, (self.n_heads, -1)).transpose(1, 2), dim=-1
        )
        return query * (self.log_inverse_temperature_H.exp()[:, None, None] * present_BT[:, None, :, None])

    def keys(self, key_in_BWD: Tensor, present_BW: Tensor) -> Tensor:
        """Unit vectors, zero where absent; shape (B, H, W, D)."""
        key = F.normalize(self.key(key_in_BWD).unflatten(-1, (self.n_heads, -1)).transpose(1, 2), dim=-1)
        return key * present_BW[:, None, :, None]

    def log_lik(self, query_BHTD: Tensor, key_BHWD: Tensor) -> LagLogLik:
        """Log-likelihood of every lag, shape (B, T, L), and of no match, shape (B, T): the sum over heads."""
        query_BTD, key_BWD = (x.transpose(1, 2).flatten(-2) for x in (query_BHTD, key_BHWD))
        inverse_temperature = self.hmm.log_inverse_temperature.exp()
        score_BTL = band_scores(query_BTD[:, None], key_BWD[:, None])[:, 0]
        unmatched_BT = query_BTD @ self.unmatched_key_D + self.unmatched_bias
        return LagLogLik(score_BTL * inverse_temperature, unmatched_BT * inverse_temperature)

    def posterior(
        self, log_lik_BTL: Tensor, unmatched_BT: Tensor, rates: HMMRates | None = None
    ) -> LagPosterior:
        """Posterior of the lag under the lag model, at its own rates or at others."""
        rates, to_fine_LG = rates or self.hmm.rates, self.hmm.to_fine_LG
        if self.lag_model == "constant":
            return constant_posterior(log_lik_BTL, unmatched_BT, rates, to_fine_LG, causal=self.causal)
        return lag_posterior(
            log_lik_BTL,
            unmatched_BT,
            rates,
            to_fine_LG,
            tokens_per_block=self.tokens_per_block,
            causal=self.causal,
        )

    def path(
        self,
        log_lik_BTL: Tensor,
        unmatched_BT: Tensor,
        posterior: LagPosterior,
        rates: HMMRates | None = None,
    ) -> Tensor:
        """Most probable lags as indices of fine lags, shape (B, T)."""
        if self.lag_model != "tracked" or self.causal:
            return posterior.log_lag_BTG.argmax(-1)
        block = block_log_lik(log_lik_BTL, unmatched_BT, self.hmm.to_fine_LG, self.tokens_per_block)
        path_BJ = viterbi(block, rates or self.hmm.rates)
        return path_BJ.repeat_interleave(self.tokens_per_block, 1)[:, : log_lik_BTL.shape[1]]

    def read(
        self, posterior: LagPosterior, query_in_BTD: Tensor, value_in_BWD: Tensor, key_in_BWD: Tensor
    ) -> Tensor:
        """Expected values of the other stream under the posterior, shape (B, T, D)."""
        lag_BTL = (posterior.p_lag_BTG * posterior.p_matched_BT[..., None]) @ self.hmm.to_tokens_GL
        value_BWD = self._values(lag_BTL, query_in_BTD, value_in_BWD, key_in_BWD)
        found = band_read(lag_BTL[:, None], value_BWD[:, None])[:, 0]
        return found + (1 - posterior.p_matched_BT[..., None]) * self.unmatched_value_D

    def softmax_read(
        self,
        query_BHTD: Tensor,
        key_BHWD: Tensor,
        query_in_BTD: Tensor,
        value_in_BWD: Tensor,
        key_in_BWD: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Values read by each head at its own softmax weights, (B, T, D), and the weights, (B, H, T, L)."""
        weight_BHTL = (band_scores(query_BHTD, key_BHWD) + self.hmm.log_prior_L).softmax(-1)
        value_BWD = self._values(weight_BHTL.mean(1), query_in_BTD, value_in_BWD, key_in_BWD)
        value_BHWD = value_BWD.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
        return band_read(weight_BHTL, value_BHWD).transpose(1, 2).flatten(-2), weight_BHTL

    def _values(
        self, lag_BTL: Tensor, query_in_BTD: Tensor, value_in_BWD: Tensor, key_in_BWD: Tensor
    ) -> Tensor:
        if self.reverse_value is not None:
            key_in_BWD = key_in_BWD + self.reverse_value(band_read_reverse(lag_BTL, query_in_BTD))
        return self.value(torch.cat([value_in_BWD, key_in_BWD], -1))
