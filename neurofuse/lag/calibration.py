"""In: log-likelihoods on held-back windows whose lag is known. Out: an HMM whose posterior is calibrated.

Tokens of smooth signals repeat each other, and a network is more certain on windows it was trained on; both make the
summed log-likelihoods too large. Their inverse temperature, and the rates of drift, jumps, and the end and return of a
match, are five numbers, fitted here to the log probability of the true lag in windows that gradient descent did not
use. The score is proper: only the right probabilities maximise it.

A recording may drift faster or jump more often than those windows did. The marginal likelihood of its own observations
is enough to estimate both rates again before it is decoded (empirical Bayes); but only after calibration, for
log-likelihoods that are too large turn noise into jumps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from neurofuse.lag.hmm import HMMRates, LagHMM, LagLogLik, LagPosterior, LagPrior, marginal_log_lik

LBFGS_STEPS = 30
# Prior probability that streams which were recorded together do not match.
P_UNMATCHED = 0.02
# Standard deviation, between recordings, of the logarithms of the drift and of the odds of a jump.
SPREAD = 2.0
# The prior is centred on a learned drift of at least this, in fine lags per block: what learning finds below it is
# arbitrary, since all smaller drifts fit windows equally well.
LEAST_DRIFT = 0.1
# Stretches of so many blocks are computed in parallel, each with the initial state of a recording.
STRETCH = 256


def calibrate(
    hmm: LagHMM,
    posterior: Callable[[Tensor, Tensor], LagPosterior],
    own: LagLogLik,
    mismatched: LagLogLik,
    lag_BT: Tensor,
    max_lag: int,
    tokens_per_block: int,
) -> None:
    """Fit the inverse temperature and all rates of an HMM, in place.

    Parameters
    ----------
    hmm : LagHMM
    posterior : callable
        Posterior of the lag, from log-likelihoods of every lag and of no match.
    own, mismatched : LagLogLik
        Of windows with their own other stream, and with that of other windows.
    lag_BT : Tensor
        The true lag of the first in tokens, NaN where unknown.
    max_lag : int
        Largest lag searched, tokens.
    tokens_per_block : int
        Tokens that share one lag. So near a jump of more than a token the HMM can be wrong at any temperature; such
        moments are left out.
    """
    known = torch.isfinite(lag_BT) & (lag_BT.abs() <= max_lag)
    around_BTE = F.pad(lag_BT[:, None], (tokens_per_block, tokens_per_block), mode="replicate")[:, 0].unfold(
        1, 2 * tokens_per_block + 1, 1
    )
    known &= (around_BTE - lag_BT[..., None]).abs().amax(-1) <= 1
    if not known.any():
        return
    scale = hmm.log_inverse_temperature.detach().exp()
    fitted = [hmm.log_inverse_temperature.requires_grad_(), hmm.log_drift, hmm.log_odds_P]
    n_fine = hmm.to_fine_LG.shape[1]
    # The fine lag nearest to the truth stands for the interval around it.
    place = torch.where(known, lag_BT, 0.0) * ((n_fine - 1) / (2 * max_lag)) + (n_fine - 1) / 2
    nearest = place.round().clamp(0, n_fine - 1).long()[..., None]
    optimizer = torch.optim.LBFGS(fitted, max_iter=LBFGS_STEPS, line_search_fn="strong_wolfe")

    def neg_log_prob() -> Tensor:
        optimizer.zero_grad()
        factor = hmm.log_inverse_temperature.exp() / scale
        found = posterior(own.log_lik_BTL * factor, own.unmatched_BT * factor)
        at_lag = found.log_lag_BTG.gather(-1, nearest)[..., 0]
        matched = ((at_lag + F.logsigmoid(found.matched_logit_BT)) * known).sum() / known.sum()
        other = posterior(mismatched.log_lik_BTL * factor, mismatched.unmatched_BT * factor)
        unmatched = F.logsigmoid(-other.matched_logit_BT)
        loss = -(1 - P_UNMATCHED) * matched - P_UNMATCHED * unmatched.mean()
        loss.backward(inputs=fitted)
        return loss

    before = [p.detach().clone() for p in fitted]
    optimizer.step(neg_log_prob)
    hmm.log_inverse_temperature.requires_grad_(False)
    found = all(bool(torch.isfinite(p).all()) for p in fitted)
    hmm.calibrated.fill_(found)
    for p, value in zip(fitted, before, strict=True):
        p.grad = None
        if not found:
            p.data.copy_(value)


@torch.enable_grad()
def adapt_rates(rates: HMMRates, block_BJMG: Tensor, prior: LagPrior | None = None) -> HMMRates:
    """Estimate drift and jumps of one recording: the rates that maximise its marginal likelihood (empirical Bayes).

    The lag is unknown and summed over. The prior of both rates is log-normal around those given, or else learned.

    Parameters
    ----------
    rates : HMMRates
        As learned.
    block_BJMG : Tensor
        Log-likelihood of match and lag of every block of the recording, see `block_log_lik`.
    prior : LagPrior, optional
        Rates that were given, on which the prior is centred instead of the learned ones; fixed rates are not estimated.
    """
    prior = prior or LagPrior()
    if prior.fixed:
        return rates
    rates, block = rates.detach(), block_BJMG.detach()
    centre_drift = rates.drift.clamp_min(LEAST_DRIFT)
    if prior.drift is not None:
        centre_drift = torch.full_like(rates.drift, prior.drift)
    centre_jump = rates.jump if prior.jump is None else torch.full_like(rates.jump, prior.jump)
    if block.shape[1] > STRETCH:
        # The last stretch is padded with zeros, the same log-likelihood for every state.
        padding = (0, 0, 0, 0, 0, -block.shape[1] % STRETCH)
        block = F.pad(block, padding).unflatten(1, (-1, STRETCH)).flatten(0, 1)
    change = torch.zeros(2, dtype=block.dtype, device=block.device, requires_grad=True)

    def changed() -> HMMRates:
        odds = centre_jump.logit() + change[1]
        return replace(rates, drift=centre_drift * change[0].exp(), jump=odds.sigmoid())

    optimizer = torch.optim.LBFGS([change], max_iter=LBFGS_STEPS, line_search_fn="strong_wolfe")

    def neg_log_prob() -> Tensor:
        optimizer.zero_grad()
        log_prior = -0.5 * (change / SPREAD).square().sum()
        loss = -log_prior - marginal_log_lik(block, changed()).sum()
        loss.backward()
        return loss

    optimizer.step(neg_log_prob)
    return changed().detach() if bool(torch.isfinite(change).all()) else rates
