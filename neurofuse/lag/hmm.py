"""In: log-likelihood of each lag at each token. Out: posterior of a hidden lag that drifts, jumps, and may not match.

A hidden Markov model in the sense of Rabiner 1989 (Proc. IEEE 77, 257-286), with his symbols in brackets:

    states [S]       (match, lag): whether the two streams match at all, and at which of G lags. Unmatched states
                     keep their lag, so that it is remembered through a stretch without a match. N = 2 G states.
    initial [pi]     the stationary probability of a match, times a learned prior over lags.
    transition [A]   the match changes by a 2 x 2 matrix. Independently the lag makes a step of a random walk (drift)
                     or, with a small probability, is drawn anew from the prior (jump).
    emission [b]     log-likelihoods given from outside, one per lag and one for no match, whatever the lag.

Log-likelihoods are summed over blocks of tokens and interpolated to a finer grid of lags, so the HMM runs at a coarser
time step than the tokens and finds lags between them. Its cost is (blocks) * (lags), in a few vector operations per
block: the recursion is one autograd function with an explicit backward pass, which saves no graph per block.

Rates are set and reported in physical units (drift in s per root second, jumps per second), and are relative to a grid
of blocks and fine lags inside the HMM; `LagGrid` is the one place that converts.

Dimensions in addition to those of `banded.py`: R direction in time, M matched (0) or unmatched (1), G fine lag, K step
of the drift, P probability of a jump, of the end of a match, and of its return.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neurofuse.errors import NeurofuseError
from neurofuse.lag.banded import cubic_taps

# Drift is a step of at most so many fine lags per block.
REACH = 6
# Frequencies that the probability of a step is summed over; more than enough for steps that small.
N_ANGLES = 64
# Lags that one small matrix moves at a time.
SLAB = 32
# With so few states at most, one matrix over all of them is faster still.
MOST_DENSE = 256
# Where learning starts without a given prior: a lag drifts by so many tokens per block, jumps once in a hundred blocks,
# and a match ends or begins again as rarely.
START_DRIFT = 0.3
START_JUMP = 0.01
START_UNMATCH = 0.005
START_REMATCH = 0.02
# Adam moves a parameter by about its learning rate per step; rates are logarithms that may have far to go.
PACE = 10.0
# Probabilities below this are replaced by it before a logarithm.
TINY = 1e-30


@dataclass(frozen=True)
class LagGrid:
    """Length of a block and of a step of the lag: what rates of the HMM are relative to.

    Parameters
    ----------
    block_s : float
        Seconds per block.
    lag_step_s : float
        Seconds per step of the fine lag grid.
    """

    block_s: float
    lag_step_s: float

    def drift_steps(self, drift: float) -> float:
        """Standard deviation of a block's step, in fine lags, of a drift in s per root second."""
        return drift * self.block_s**0.5 / self.lag_step_s

    def drift_s(self, steps: float) -> float:
        """The inverse: s per root second."""
        return steps * self.lag_step_s / self.block_s**0.5

    def jump_probability(self, jumps: float) -> float:
        """Probability of a jump per block, of jumps per second."""
        return jumps * self.block_s

    def jumps_hz(self, probability: float) -> float:
        """The inverse: jumps per second."""
        return probability / self.block_s

    def skew_steps(self, skew_ppm: float) -> float:
        """Root mean square step per block, in fine lags, of a lag that grows steadily.

        On the grid such a lag stays, or moves by one step now and then: by m = skew * block / lag step on average, with
        a mean square of m^2 + f (1 - f), where f is the part of m after the decimal point. A random walk with that
        mean square moves as far per block, and is about the one under which a skewed lag is most probable.
        """
        mean = 1e-6 * abs(skew_ppm) * self.block_s / self.lag_step_s
        part = mean - math.floor(mean)
        return math.sqrt(mean**2 + part * (1 - part))


@dataclass
class HMMRates:
    """How the hidden lag moves from one block of tokens to the next.

    Parameters
    ----------
    drift : Tensor, scalar
        Standard deviation of a block's step, in fine lags.
    jump : Tensor, scalar in (0, 1)
        Probability of a fresh draw from the prior.
    unmatch, rematch : Tensor, scalar in (0, 1)
        Probability that a match ends, and that it begins again.
    log_prior_G : Tensor, shape (G,)
        Log prior probability of each lag, up to a constant.
    """

    drift: Tensor
    jump: Tensor
    unmatch: Tensor
    rematch: Tensor
    log_prior_G: Tensor

    @classmethod
    def from_seconds(
        cls,
        grid: LagGrid,
        *,
        drift: float,
        jumps: float,
        unmatch: float,
        rematch: float,
        log_prior_G: Tensor,
    ) -> HMMRates:
        """From a drift in s per root second and jumps per second; all else as in the class, per block."""
        scalar = log_prior_G.new_tensor
        return cls(
            scalar(grid.drift_steps(drift)),
            scalar(grid.jump_probability(jumps)),
            scalar(unmatch),
            scalar(rematch),
            log_prior_G,
        )

    def in_seconds(self, grid: LagGrid) -> tuple[float, float]:
        """Drift in s per root second, and jumps per second."""
        return grid.drift_s(self.drift.item()), grid.jumps_hz(self.jump.item())

    def detach(self) -> HMMRates:
        """The same numbers without their graph."""
        return HMMRates(*(getattr(self, f.name).detach() for f in fields(self)))

    def probabilities(self) -> tuple[Tensor, Tensor, Tensor]:
        """Prior over lags (G,), and of the match its transition matrix (2, 2) and initial state (2,)."""
        mix_MM = torch.stack([1 - self.unmatch, self.unmatch, self.rematch, 1 - self.rematch]).unflatten(
            0, (2, 2)
        )
        initial_M = torch.stack([self.rematch, self.unmatch]) / (self.rematch + self.unmatch).clamp_min(TINY)
        return self.log_prior_G.softmax(0), mix_MM, initial_M


@dataclass(frozen=True)
class LagPrior:
    """Where drift and jumps of a `LagHMM` start, relative to its grid; see `from_seconds`.

    Parameters
    ----------
    drift : float, optional
        Standard deviation of a block's step, in fine lags; by default `START_DRIFT` tokens.
    jump : float, optional
        Probability of a jump per block; by default `START_JUMP`.
    fixed : bool
        Keep both rates as they are, in training and on a new recording.
    """

    drift: float | None = None
    jump: float | None = None
    fixed: bool = False

    @classmethod
    def from_seconds(
        cls,
        grid: LagGrid,
        *,
        drift: float | None = None,
        jumps: float | None = None,
        skew_ppm: float | None = None,
        fixed: bool = False,
    ) -> LagPrior:
        """From physical units, checked.

        Parameters
        ----------
        grid : LagGrid
        drift : float, optional
            Standard deviation of the lag's random walk after one second, s per root second.
        jumps : float, optional
            Jumps per second; 0 for a lag that never jumps.
        skew_ppm : float, optional
            A steady skew instead of `drift`, of either sign, in parts per million; see `LagGrid.skew_steps`.
        fixed : bool
            See the class.

        Raises
        ------
        NeurofuseError
            If a rate is no number of its range, is faster than the grid can follow, or both `drift` and `skew_ppm`
            are given.
        """
        if drift is not None and skew_ppm is not None:
            raise NeurofuseError(
                f"drift={drift} and skew_ppm={skew_ppm} are both given, and a skew is converted to a drift; give one."
            )
        steps = None
        if drift is not None:
            _check_rate("drift", drift, lambda x: x > 0, "a positive number, in s per root second")
            steps = grid.drift_steps(drift)
            _check_reach("drift", drift, steps, f"{grid.drift_s(REACH):.3g} s per root second", grid)
        elif skew_ppm is not None:
            _check_rate("skew_ppm", skew_ppm, lambda x: x != 0, "a number of either sign, not 0")
            steps = grid.skew_steps(skew_ppm)
            most_ppm = 1e6 * REACH * grid.lag_step_s / grid.block_s
            _check_reach("skew_ppm", skew_ppm, steps, f"{most_ppm:.3g} ppm", grid)
        if jumps is not None:
            most = grid.jumps_hz(1.0)
            _check_rate(
                "jumps", jumps, lambda x: 0 <= x < most, f"a number per second from 0 to less than {most:g}"
            )
        jump = None if jumps is None else grid.jump_probability(jumps)
        return cls(steps, jump, fixed)


def _check_rate(name: str, value: float, good: Callable[[float], bool], remedy: str) -> None:
    if not (isinstance(value, Real) and math.isfinite(value) and good(value)):
        raise NeurofuseError(f"{name} must be {remedy}, got {value!r}.")


def _check_reach(name: str, value: float, steps: float, most: str, grid: LagGrid) -> None:
    if steps > REACH:
        raise NeurofuseError(
            f"{name}={value:g} moves the lag by {steps:.3g} steps of {grid.lag_step_s:g} s per block of "
            f"{grid.block_s:g} s, more than the {REACH} that can be tracked; give at most {most}."
        )


class LagLogLik(NamedTuple):
    """Log-likelihoods of every lag (B, T, L), and of no match (B, T), up to a constant per token."""

    log_lik_BTL: Tensor
    unmatched_BT: Tensor


def drift_taps(drift: Tensor) -> Tensor:
    """Probability of each step of a block, shape (K,): a random walk in continuous time on the grid of fine lags.

    The discrete analogue of a Gaussian, exp(-v) I_k(v) with the variance v = drift^2 (Lindeberg 1990), truncated at
    `REACH` fine lags. A sampled Gaussian does not move, and has no gradient, where the drift is a fraction of a step.
    """
    step_K = torch.arange(-REACH, REACH + 1, device=drift.device, dtype=torch.float64)
    angle_F = torch.arange(N_ANGLES, device=drift.device, dtype=torch.float64) * (2 * torch.pi / N_ANGLES)
    # The walk's characteristic function, and its inverse transform. Beyond the largest step a faster walk is the same.
    characteristic_F = (drift.double().clamp_max(REACH).square() * (angle_F.cos() - 1)).exp()
    taps_K = ((step_K[:, None] * angle_F).cos() @ characteristic_F).clamp_min(0)
    return (taps_K / taps_K.sum()).to(drift.dtype)


def _slab(drift: Tensor) -> Tensor:
    """The drift as a matrix from `SLAB` lags and their surroundings to those lags: far faster than a convolution."""
    taps_K = drift_taps(drift)
    place = torch.arange(SLAB + 2 * REACH, device=drift.device)[:, None] - torch.arange(
        SLAB, device=drift.device
    )
    inside = (place >= 0) & (place <= 2 * REACH)
    return torch.where(inside, taps_K[place.clamp(0, 2 * REACH)], 0.0)


def _drifted(x_XG: Tensor, slab: Tensor) -> Tensor:
    """Every lag's probability moved by one step; what leaves the range is dropped."""
    n_lags = x_XG.shape[-1]
    padded = F.pad(x_XG, (REACH, REACH + (-n_lags) % SLAB)).unfold(-1, SLAB + 2 * REACH, SLAB)
    moved = padded.reshape(-1, SLAB + 2 * REACH) @ slab
    return moved.view(*padded.shape[:-1], SLAB).flatten(-2)[..., :n_lags]


def _step(
    x_XMG: Tensor, slab: Tensor, jump_to_G: Tensor, jump_from_G: Tensor, jump: Tensor, mix_MM: Tensor
) -> Tensor:
    """One step of the HMM: the match changes; the lag drifts, or jumps from any lag to the prior.

    Called with arguments that broadcast against (..., 2, G), so that one call serves both directions in time.
    """
    stay_M1, other_M1 = (
        mix_MM.diagonal(dim1=-2, dim2=-1)[..., None],
        mix_MM.flip(-2).diagonal(dim1=-2, dim2=-1)[..., None],
    )
    mixed = torch.addcmul(x_XMG * stay_M1, x_XMG.flip(-2), other_M1)
    jumped = (mixed * jump_from_G).sum(-1, keepdim=True)
    return torch.lerp(_drifted(mixed, slab), jumped * jump_to_G, jump)


def _steps(
    drift: Tensor, jump_to: Tensor, jump_from: Tensor, jump: Tensor, mix: Tensor, *, like: Tensor
) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """A step of the HMM and its adjoint, of states (R, B, 2, G): one matrix for few lags, small ones for many."""
    slab = _slab(drift)
    n_directions, _, n_match, n_lags = like.shape[1:]
    n_states = n_match * n_lags
    if n_states > MOST_DENSE:
        mix_back = mix.transpose(-1, -2)
        return (
            lambda x: _step(x, slab, jump_to, jump_from, jump, mix),
            lambda x: _step(x, slab, jump_from, jump_to, jump, mix_back),
        )
    each = torch.eye(n_states, dtype=like.dtype, device=like.device).view(n_states, n_match, n_lags)
    forth_RSS = _step(each.expand(n_directions, -1, -1, -1), slab, jump_to, jump_from, jump, mix).flatten(-2)
    back_RSS = forth_RSS.mT.contiguous()
    return (
        lambda x: torch.bmm(x.flatten(-2), forth_RSS).view(x.shape),
        lambda x: torch.bmm(x.flatten(-2), back_RSS).view(x.shape),
    )


class _Recursion(torch.autograd.Function):
    """m_(j+1) = step(m_j * lik_j / sum), for all directions in one loop; the adjoint runs the same loop backwards.

    Backwards in time the HMM moves by its transpose, and so does the adjoint: jump_to and jump_from change places.
    """

    @staticmethod
    def forward(
        ctx: Any,
        lik_JRBMG: Tensor,
        initial_RMG: Tensor,
        drift: Tensor,
        jump_to_RG: Tensor,
        jump_from_RG: Tensor,
        jump: Tensor,
        mix_RMM: Tensor,
    ) -> Tensor:
        parts = (drift, jump_to_RG[:, None, None], jump_from_RG[:, None, None], jump, mix_RMM[:, None])
        forth, _ = _steps(*parts, like=lik_JRBMG)
        message = initial_RMG[:, None].expand(lik_JRBMG.shape[1:])
        messages, totals = [message], []
        for lik in lik_JRBMG.unbind()[:-1]:
            weighted = message * lik
            total = weighted.sum((-2, -1), keepdim=True).clamp_min_(TINY)
            message = forth(weighted.div_(total))
            messages.append(message)
            totals.append(total)
        message_JRBMG = torch.stack(messages)
        total_JRBMG = torch.stack(totals) if totals else lik_JRBMG.new_empty(0, *message.shape[:2], 1, 1)
        ctx.save_for_backward(lik_JRBMG, message_JRBMG, total_JRBMG, *parts)
        return message_JRBMG

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        lik_JRBMG, message_JRBMG, total_JRBMG, *rates = ctx.saved_tensors
        _, back = _steps(*rates, like=lik_JRBMG)
        scaled_JRBMG = lik_JRBMG[:-1] / total_JRBMG
        weighted_JRBMG = message_JRBMG[:-1] * scaled_JRBMG
        *earlier, arrived = grads[0].unbind()
        grad_messages, grad_weighted = [arrived], []
        for grad_message, weighted, scaled in zip(
            reversed(earlier), weighted_JRBMG.flip(0).unbind(), scaled_JRBMG.flip(0).unbind(), strict=True
        ):
            grad = back(arrived)
            grad.sub_((grad * weighted).sum((-2, -1), keepdim=True))
            arrived = torch.addcmul(grad_message, grad, scaled)
            grad_messages.append(arrived)
            grad_weighted.append(grad)
        grad_JRBMG = torch.stack(grad_messages[::-1])
        grad_lik = torch.zeros_like(lik_JRBMG)
        if grad_weighted:
            torch.mul(torch.stack(grad_weighted[::-1]), message_JRBMG[:-1] / total_JRBMG, out=grad_lik[:-1])
        # All steps moved alike, so the gradient of the rates is that of one big step.
        parts = [p.detach().requires_grad_() for p in rates]
        with torch.enable_grad():
            moved = _step(weighted_JRBMG, _slab(parts[0]), *parts[1:])
            of_drift, of_to, of_from, of_jump, of_mix = torch.autograd.grad(
                (moved * grad_JRBMG[1:]).sum(), parts
            )
        of_initial = grad_JRBMG[0].sum(1)
        return grad_lik, of_initial, of_drift, of_to[:, 0, 0], of_from[:, 0, 0], of_jump, of_mix[:, 0]


def forward_backward(log_lik_BJMG: Tensor, rates: HMMRates, *, directions: int = 2) -> Tensor:
    """Messages to every block: the probability of each state given the past, and that of the future given each state.

    Rabiner's alpha without the block's own emission, and his beta; both scaled.

    Parameters
    ----------
    log_lik_BJMG : Tensor
        Log-likelihood of each state, up to a constant per block.
    rates : HMMRates
    directions : int
        1 for the forward pass alone, 2 for both.

    Returns
    -------
    Tensor, shape (directions, B, J, 2, G)
        Up to a factor for each block and direction.
    """
    prior_G, mix_MM, initial_M = rates.probabilities()
    lik = (log_lik_BJMG - log_lik_BJMG.amax((-2, -1), keepdim=True)).exp().transpose(0, 1)
    one_G = torch.ones_like(prior_G)
    initial_MG = initial_M[:, None] * prior_G
    # A jump leads from any lag to the prior; backwards in time it is the other way round.
    jump_to, jump_from, mix, initial, both = [prior_G], [one_G], [mix_MM], [initial_MG], [lik]
    if directions == 2:
        jump_to.append(one_G)
        jump_from.append(prior_G)
        mix.append(mix_MM.T)
        initial.append(torch.full_like(initial_MG, 1 / initial_MG.numel()))
        both.append(lik.flip(0))
    out_JRBMG = _Recursion.apply(
        torch.stack(both, 1),
        torch.stack(initial),
        rates.drift,
        torch.stack(jump_to),
        torch.stack(jump_from),
        rates.jump,
        torch.stack(mix),
    )
    out = [out_JRBMG[:, 0], *([out_JRBMG[:, 1].flip(0)] if directions == 2 else [])]
    return torch.stack(out).transpose(1, 2)


@dataclass
class LagPosterior:
    """Posterior of lag and match at every token.

    Parameters
    ----------
    log_lag_BTG : Tensor
        Log probability of each lag, given a match.
    matched_logit_BT : Tensor
        Log odds that the streams match at all.
    """

    log_lag_BTG: Tensor
    matched_logit_BT: Tensor

    @classmethod
    def from_log_joint(cls, log_joint_BTMG: Tensor) -> LagPosterior:
        """From log probabilities of match and lag together, up to a constant per token."""
        matched_BT, unmatched_BT = log_joint_BTMG.logsumexp(-1).unbind(-1)
        return cls(log_joint_BTMG[..., 0, :].log_softmax(-1), matched_BT - unmatched_BT)

    @classmethod
    def from_weights(cls, p_lag_BTG: Tensor) -> LagPosterior:
        """From weights over lags, of a model without an unmatched state."""
        return cls(p_lag_BTG.clamp_min(TINY).log(), torch.full_like(p_lag_BTG[..., 0], torch.inf))

    @property
    def p_lag_BTG(self) -> Tensor:
        """Probability of each lag, given a match; sums to one."""
        return self.log_lag_BTG.exp()

    @property
    def p_matched_BT(self) -> Tensor:
        """Probability of a match."""
        return self.matched_logit_BT.sigmoid()

    def map(self, change: Callable[[Tensor], Tensor]) -> LagPosterior:
        """The same function of both tensors, such as a choice of tokens."""
        return LagPosterior(change(self.log_lag_BTG), change(self.matched_logit_BT))


def lag_posterior(
    log_lik_BTL: Tensor,
    unmatched_BT: Tensor,
    rates: HMMRates,
    to_fine_LG: Tensor,
    *,
    tokens_per_block: int,
    causal: bool,
) -> LagPosterior:
    """Posterior of a lag that drifts, jumps and may not match, at every token.

    The lag is constant within blocks of `tokens_per_block`, whose log-likelihoods are summed. The smoother gives
    p(lag | all tokens); the filter gives p(lag | tokens up to this one), exactly, within blocks too.

    Parameters
    ----------
    log_lik_BTL : Tensor
        Log-likelihood of each lag at each token, up to a constant per token.
    unmatched_BT : Tensor
        Log-likelihood that the streams do not match, up to the same constant.
    rates : HMMRates
    to_fine_LG : Tensor
        Interpolates lags to the fine grid, see `fine_grid`.
    tokens_per_block : int
    causal : bool
        Filter instead of smoothing.
    """
    if causal:
        return _filter(log_lik_BTL, unmatched_BT, rates, to_fine_LG, tokens_per_block)
    block = smoother(block_log_lik(log_lik_BTL, unmatched_BT, to_fine_LG, tokens_per_block), rates)
    return _per_token(block, tokens_per_block, log_lik_BTL.shape[1])


def _filter(
    log_lik_BTL: Tensor, unmatched_BT: Tensor, rates: HMMRates, to_fine_LG: Tensor, tokens_per_block: int
) -> LagPosterior:
    log_lik_BJEL, unmatched_BJE = (_in_blocks(x, tokens_per_block) for x in (log_lik_BTL, unmatched_BT))
    running = joint_log_lik(log_lik_BJEL.cumsum(2) @ to_fine_LG, unmatched_BJE.cumsum(2))
    ahead_BJMG = forward_backward(running[:, :, -1], rates, directions=1)[0]
    log_joint = running + ahead_BJMG.clamp_min(TINY).log()[:, :, None]
    return LagPosterior.from_log_joint(log_joint.flatten(1, 2)[:, : log_lik_BTL.shape[1]])


def block_log_lik(
    log_lik_BTL: Tensor, unmatched_BT: Tensor, to_fine_LG: Tensor, tokens_per_block: int
) -> Tensor:
    """Log-likelihood of match and lag of every block, the sum over its tokens; shape (B, J, 2, G)."""
    return joint_log_lik(
        _in_blocks(log_lik_BTL, tokens_per_block).sum(2) @ to_fine_LG,
        _in_blocks(unmatched_BT, tokens_per_block).sum(2),
    )


def _in_blocks(x_BTX: Tensor, tokens_per_block: int) -> Tensor:
    """Tokens in blocks, the last one padded with zeros: the same log-likelihood for every state."""
    tail = [0, 0] * (x_BTX.ndim - 2)
    return F.pad(x_BTX, (*tail, 0, -x_BTX.shape[1] % tokens_per_block)).unflatten(1, (-1, tokens_per_block))


def marginal_log_lik(block_BJMG: Tensor, rates: HMMRates) -> Tensor:
    """Log probability of all observations, summed over every sequence of states; shape (B,)."""
    ahead_BJMG = forward_backward(block_BJMG, rates, directions=1)[0]
    ahead_BJMG = ahead_BJMG / ahead_BJMG.sum((-2, -1), keepdim=True)
    return (block_BJMG + ahead_BJMG.clamp_min(TINY).log()).logsumexp((-2, -1)).sum(1)


def smoother(block_BJMG: Tensor, rates: HMMRates) -> LagPosterior:
    """Posterior of every block, given all of them."""
    past, future = forward_backward(block_BJMG, rates, directions=2).clamp_min(TINY).log()
    return LagPosterior.from_log_joint(block_BJMG + past + future)


def _per_token(block: LagPosterior, tokens_per_block: int, n_tokens: int) -> LagPosterior:
    """The posterior of blocks, for each of their tokens."""
    return block.map(lambda x: x.repeat_interleave(tokens_per_block, 1)[:, :n_tokens])


def joint_log_lik(log_lik_XG: Tensor, unmatched_X: Tensor) -> Tensor:
    """Log-likelihood of match and lag; without a match it is the same for every lag. Shape (..., 2, G)."""
    return torch.stack([log_lik_XG, unmatched_X[..., None].expand_as(log_lik_XG)], -2)


def constant_posterior(
    log_lik_BTL: Tensor, unmatched_BT: Tensor, rates: HMMRates, to_fine_LG: Tensor, *, causal: bool
) -> LagPosterior:
    """Posterior of one constant state per window: one lag, matched or not throughout."""
    prior_G, _, initial_M = rates.probabilities()
    if causal:
        total = joint_log_lik(log_lik_BTL.cumsum(1) @ to_fine_LG, unmatched_BT.cumsum(1))
    else:
        total = joint_log_lik(
            log_lik_BTL.sum(1, keepdim=True) @ to_fine_LG, unmatched_BT.sum(1, keepdim=True)
        )
    found = LagPosterior.from_log_joint(total + (initial_M[:, None] * prior_G).clamp_min(TINY).log())
    return found if causal else _per_token(found, log_lik_BTL.shape[1], log_lik_BTL.shape[1])


def fine_grid(n_lags: int, per_token: int) -> tuple[Tensor, Tensor]:
    """Matrices between lags in tokens and a grid `per_token` times finer.

    Returns
    -------
    to_fine_LG : Tensor, shape (L, G)
        Cubic interpolation of log-likelihoods (`cubic_taps`), so that a peak may lie between two lags.
    to_tokens_GL : Tensor, shape (G, L)
        Each fine lag shared between the lags on its two sides: values read there are interpolated linearly.
    """
    place = torch.arange((n_lags - 1) * per_token + 1, dtype=torch.float64) / per_token
    below = place.floor().clamp(0, max(n_lags - 2, 0)).long()
    t = (place - below)[:, None]
    to_fine_GL = torch.zeros(place.numel(), n_lags, dtype=torch.float64)
    for k, tap in enumerate(cubic_taps(t)):
        to_fine_GL.scatter_add_(1, (below + k - 1).clamp(0, n_lags - 1)[:, None], tap)
    to_tokens_GL = torch.zeros_like(to_fine_GL)
    to_tokens_GL.scatter_add_(1, below[:, None], 1 - t)
    to_tokens_GL.scatter_add_(1, (below + 1).clamp(0, n_lags - 1)[:, None], t)
    return to_fine_GL.T.float().contiguous(), to_tokens_GL.float()


class LagHMM(nn.Module):
    """The learned rates of one clock's lag.

    Parameters
    ----------
    n_lags : int
        Lags searched, in tokens.
    fine_lags_per_token : int
        Resolution of the lag grid.
    prior : LagPrior
        Where drift and jumps start, and whether they stay there. Other rates always start at `START_UNMATCH`,
        `START_REMATCH` and an even prior over lags, and are learned.
    """

    def __init__(self, n_lags: int, fine_lags_per_token: int, *, prior: LagPrior | None = None) -> None:
        super().__init__()
        self.prior = prior or LagPrior()
        # Parameters are scaled by PACE, and are zero where learning starts.
        self.prior_L = nn.Parameter(torch.zeros(n_lags))
        self.log_drift = nn.Parameter(torch.zeros(()))
        self.log_odds_P = nn.Parameter(torch.zeros(3))
        # Of all log-likelihoods, as the logarithm of a factor; not learned in training but by `calibrate`.
        self.log_inverse_temperature = nn.Parameter(torch.zeros(()), requires_grad=False)
        self.register_buffer("calibrated", torch.tensor(False))
        jump = START_JUMP if self.prior.jump is None else self.prior.jump
        start_P = torch.tensor([jump, START_UNMATCH, START_REMATCH]).logit()
        self.register_buffer("start_P", start_P, persistent=False)
        drift = self.prior.drift
        self.start_drift = START_DRIFT * fine_lags_per_token if drift is None else drift
        # Zero for rates that are fixed, whose parameters then have no effect.
        learned = 0.0 if self.prior.fixed else 1.0
        self.register_buffer("learned_P", torch.tensor([learned, 1.0, 1.0]), persistent=False)
        to_fine_LG, to_tokens_GL = fine_grid(n_lags, fine_lags_per_token)
        self.register_buffer("to_fine_LG", to_fine_LG, persistent=False)
        self.register_buffer("to_tokens_GL", to_tokens_GL, persistent=False)

    calibrated: Tensor
    to_fine_LG: Tensor
    to_tokens_GL: Tensor
    start_P: Tensor
    learned_P: Tensor

    @property
    def rates(self) -> HMMRates:
        """All rates at the current parameters."""
        jump, unmatch, rematch = (self.start_P + PACE * self.log_odds_P * self.learned_P).sigmoid()
        drift = self.start_drift * (PACE * self.log_drift * self.learned_P[0]).exp()
        # Linear, not cubic: a prior may not overshoot.
        return HMMRates(drift, jump, unmatch, rematch, self.log_prior_L @ self.to_tokens_GL.T)

    @property
    def log_prior_L(self) -> Tensor:
        """Log prior probability of each lag, up to a constant."""
        return PACE * self.prior_L


@torch.no_grad()
def viterbi(block_BJMG: Tensor, rates: HMMRates) -> Tensor:
    """Most probable sequence of lags (Viterbi) through matched and unmatched states, as fine lags, shape (B, J).

    A drift and a jump to the same lag are two paths, of which the better one counts. (The clock map of `align` has a
    Viterbi of its own: one price for every change, no unmatched state, and the score of the best path as a result.)
    """
    prior_G, mix_MM, initial_M = (x.clamp_min(TINY).log() for x in rates.probabilities())
    taps_K = ((1 - rates.jump) * drift_taps(rates.drift)).clamp_min(TINY).log()
    n_lags = block_BJMG.shape[-1]
    jump_G = rates.jump.clamp_min(TINY).log() + prior_G
    index_G = torch.arange(n_lags, device=block_BJMG.device)
    source_KG = index_G + torch.arange(-REACH, REACH + 1, device=index_G.device)[:, None]
    best = block_BJMG[:, 0] + initial_M[:, None] + prior_G
    came_from = []
    for j in range(1, block_BJMG.shape[1]):
        # The match first: from which of the two states, for each of the two.
        mixed, was_M = (best[:, :, None] + mix_MM[None, :, :, None]).max(1)
        padded = F.pad(mixed, (REACH, REACH), value=float("-inf")).unfold(-1, n_lags, 1)
        top, top_G = mixed.max(-1, keepdim=True)
        options = torch.cat([padded + taps_K[:, None], (top + jump_G)[:, :, None]], 2)
        best, choice = options.max(2)
        sources = torch.cat(
            [source_KG.expand(*padded.shape), top_G[:, :, None].expand_as(padded[:, :, :1])], 2
        )
        lag = sources.gather(2, choice[:, :, None])[:, :, 0]
        match = was_M.gather(-1, lag)
        came_from.append(match * n_lags + lag)
        best = best + block_BJMG[:, j]
    state = best.flatten(1).argmax(-1, keepdim=True)
    states = [state]
    for source in reversed(came_from):
        states.append(source.flatten(1).gather(-1, states[-1]))
    return torch.cat(states[::-1], 1) % n_lags
