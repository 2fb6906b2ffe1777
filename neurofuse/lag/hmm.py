"""In: how well each lag explains each moment. Out: a posterior over a hidden lag that drifts, jumps, and may be lost.

The hidden state is a lag and whether the two streams match at all; a stretch without a match keeps the lag in mind.
Evidence is summed over blocks of tokens and interpolated to a finer grid of lags, so the chain runs on a coarser clock
than the tokens and finds lags between them. Its cost is (blocks) * (lags), in a few vector operations a block:
the recursion is one autograd function whose backward pass is written out, not recorded.

Dimensions beside those of `lag.py`: R direction in time, M match (0) or no match (1), G fine lag, K tap of the drift.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Drift is a step of at most so many fine lags a block.
REACH = 6
# Frequencies that the probability of a step is summed over; more than enough for steps that small.
N_ANGLES = 64
# Lags that one small matrix moves at a time.
SLAB = 32
# With so few states at most, one matrix over all of them is faster still.
MOST_DENSE = 256
# Where learning starts: a lag drifts by so many tokens a block, jumps once in a hundred blocks, and a match is lost
# or found again as rarely.
START_DRIFT = 0.3
START_JUMP = 0.01
START_LOSE = 0.005
START_FIND = 0.02
# Adam moves a number by about its learning rate a step; rates are logarithms that may have far to go.
PACE = 10.0
# Probabilities below this are taken for it before a logarithm.
TINY = 1e-30


@dataclass
class HMMRates:
    """How the hidden lag moves from one block of tokens to the next.

    Parameters
    ----------
    drift : Tensor, scalar
        Standard deviation of a block's step, in fine lags.
    jump : Tensor, scalar in (0, 1)
        Probability of a fresh draw from the prior.
    lose, find : Tensor, scalar in (0, 1)
        Probability that a match is lost, and that it is found again.
    log_prior_G : Tensor, shape (G,)
        Log probability of each lag before anything was seen, up to a constant.
    """

    drift: Tensor
    jump: Tensor
    lose: Tensor
    find: Tensor
    log_prior_G: Tensor

    def detach(self) -> HMMRates:
        """Without what they were computed from."""
        return HMMRates(*(getattr(self, f.name).detach() for f in fields(self)))

    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """Prior (G,), and transitions (2, 2) and first state (2,) of the match."""
        mix_MM = torch.stack([1 - self.lose, self.lose, self.find, 1 - self.find]).unflatten(0, (2, 2))
        first_M = torch.stack([self.find, self.lose]) / (self.find + self.lose).clamp_min(TINY)
        return self.log_prior_G.softmax(0), mix_MM, first_M


def drift_taps(drift: Tensor) -> Tensor:
    """Probability of each step of a block, shape (K,): a random walk in continuous time on the grid of fine lags.

    The discrete analogue of a Gaussian, exp(-v) I_k(v) with the variance v = drift^2 (Lindeberg 1990), cut off at
    `REACH` fine lags. A sampled Gaussian stands still, without a gradient, where the drift is a fraction of a step.
    """
    step_K = torch.arange(-REACH, REACH + 1, device=drift.device, dtype=torch.float64)
    angle_F = torch.arange(N_ANGLES, device=drift.device, dtype=torch.float64) * (2 * torch.pi / N_ANGLES)
    # The walk's characteristic function, and its inverse transform. Beyond the largest step a faster walk is the same.
    turned_F = (drift.double().clamp_max(REACH).square() * (angle_F.cos() - 1)).exp()
    taps_K = ((step_K[:, None] * angle_F).cos() @ turned_F).clamp_min(0)
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
    """Every lag's probability moved by one step; what would leave the range is lost."""
    n_lags = x_XG.shape[-1]
    padded = F.pad(x_XG, (REACH, REACH + (-n_lags) % SLAB)).unfold(-1, SLAB + 2 * REACH, SLAB)
    moved = padded.reshape(-1, SLAB + 2 * REACH) @ slab
    return moved.view(*padded.shape[:-1], SLAB).flatten(-2)[..., :n_lags]


def _move(
    seen_XMG: Tensor, slab: Tensor, land_G: Tensor, weigh_G: Tensor, jump: Tensor, mix_MM: Tensor
) -> Tensor:
    """One step of the chain: the match changes, the lag drifts or lands on the prior.

    Called with arguments that broadcast against (..., 2, G), so that one call moves both directions in time.
    """
    stay_M1, other_M1 = (
        mix_MM.diagonal(dim1=-2, dim2=-1)[..., None],
        mix_MM.flip(-2).diagonal(dim1=-2, dim2=-1)[..., None],
    )
    mixed = torch.addcmul(seen_XMG * stay_M1, seen_XMG.flip(-2), other_M1)
    fresh = (mixed * weigh_G).sum(-1, keepdim=True)
    return torch.lerp(_drifted(mixed, slab), fresh * land_G, jump)


def _steps(
    drift: Tensor, land: Tensor, weigh: Tensor, jump: Tensor, mix: Tensor, *, like: Tensor
) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """A step of the chain and its adjoint, of states (R, B, 2, G): one matrix for few lags, small ones for many."""
    slab = _slab(drift)
    n_directions, _, n_match, n_lags = like.shape[1:]
    n_states = n_match * n_lags
    if n_states > MOST_DENSE:
        unmix = mix.transpose(-1, -2)
        return (
            lambda x: _move(x, slab, land, weigh, jump, mix),
            lambda x: _move(x, slab, weigh, land, jump, unmix),
        )
    each = torch.eye(n_states, dtype=like.dtype, device=like.device).view(n_states, n_match, n_lags)
    move_RSS = _move(each.expand(n_directions, -1, -1, -1), slab, land, weigh, jump, mix).flatten(-2)
    back_RSS = move_RSS.mT.contiguous()
    return (
        lambda x: torch.bmm(x.flatten(-2), move_RSS).view(x.shape),
        lambda x: torch.bmm(x.flatten(-2), back_RSS).view(x.shape),
    )


class _Messages(torch.autograd.Function):
    """m_(j+1) = move(m_j * likely_j / sum), for all directions in one loop; the adjoint runs the same loop back.

    Backwards in time the chain moves by its transpose, and so does the adjoint: landing and weighing change places.
    """

    @staticmethod
    def forward(
        ctx: Any,
        likely_JRBMG: Tensor,
        first_RMG: Tensor,
        drift: Tensor,
        land_RG: Tensor,
        weigh_RG: Tensor,
        jump: Tensor,
        mix_RMM: Tensor,
    ) -> Tensor:
        parts = (drift, land_RG[:, None, None], weigh_RG[:, None, None], jump, mix_RMM[:, None])
        forth, _ = _steps(*parts, like=likely_JRBMG)
        message = first_RMG[:, None].expand(likely_JRBMG.shape[1:])
        messages, totals = [message], []
        for likely in likely_JRBMG.unbind()[:-1]:
            seen = message * likely
            total = seen.sum((-2, -1), keepdim=True).clamp_min_(TINY)
            message = forth(seen.div_(total))
            messages.append(message)
            totals.append(total)
        message_JRBMG = torch.stack(messages)
        total_JRBMG = torch.stack(totals) if totals else likely_JRBMG.new_empty(0, *message.shape[:2], 1, 1)
        ctx.save_for_backward(likely_JRBMG, message_JRBMG, total_JRBMG, *parts)
        return message_JRBMG

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        likely_JRBMG, message_JRBMG, total_JRBMG, *rates = ctx.saved_tensors
        _, back = _steps(*rates, like=likely_JRBMG)
        now = likely_JRBMG[:-1] / total_JRBMG
        seen_JRBMG = message_JRBMG[:-1] * now
        *earlier, arrived = grads[0].unbind()
        grad_messages, grad_raws = [arrived], []
        for grad_message, seen, likely in zip(
            reversed(earlier), seen_JRBMG.flip(0).unbind(), now.flip(0).unbind(), strict=True
        ):
            grad = back(arrived)
            grad.sub_((grad * seen).sum((-2, -1), keepdim=True))
            arrived = torch.addcmul(grad_message, grad, likely)
            grad_messages.append(arrived)
            grad_raws.append(grad)
        grad_JRBMG = torch.stack(grad_messages[::-1])
        grad_likely = torch.zeros_like(likely_JRBMG)
        if grad_raws:
            torch.mul(torch.stack(grad_raws[::-1]), message_JRBMG[:-1] / total_JRBMG, out=grad_likely[:-1])
        # All steps moved alike, so the gradient of the rates is that of one big step.
        parts = [p.detach().requires_grad_() for p in rates]
        with torch.enable_grad():
            moved = _move(seen_JRBMG, _slab(parts[0]), *parts[1:])
            of_drift, of_land, of_weigh, of_jump, of_mix = torch.autograd.grad(
                (moved * grad_JRBMG[1:]).sum(), parts
            )
        of_first = grad_JRBMG[0].sum(1)
        return grad_likely, of_first, of_drift, of_land[:, 0, 0], of_weigh[:, 0, 0], of_jump, of_mix[:, 0]


def messages(log_likely_BJMG: Tensor, rates: HMMRates, *, directions: int) -> Tensor:
    """What the past (and, with two directions, the future) of every block says about its state.

    Parameters
    ----------
    log_likely_BJMG : Tensor
        Log-likelihood of each state, up to a constant a block.
    rates : HMMRates
    directions : int
        1 for the past alone, 2 for both.

    Returns
    -------
    Tensor, shape (directions, B, J, 2, G)
        Up to a factor for each block and direction.
    """
    prior_G, mix_MM, first_M = rates.parts()
    likely = (log_likely_BJMG - log_likely_BJMG.amax((-2, -1), keepdim=True)).exp().transpose(0, 1)
    one_G = torch.ones_like(prior_G)
    past_MG = first_M[:, None] * prior_G
    # A jump forgets where it came from and lands on the prior; backwards in time it is the other way round.
    land, weigh, mix, first, both = [prior_G], [one_G], [mix_MM], [past_MG], [likely]
    if directions == 2:
        land.append(one_G)
        weigh.append(prior_G)
        mix.append(mix_MM.T)
        first.append(torch.full_like(past_MG, 1 / past_MG.numel()))
        both.append(likely.flip(0))
    out_JRBMG = _Messages.apply(
        torch.stack(both, 1),
        torch.stack(first),
        rates.drift,
        torch.stack(land),
        torch.stack(weigh),
        rates.jump,
        torch.stack(mix),
    )
    out = [out_JRBMG[:, 0], *([out_JRBMG[:, 1].flip(0)] if directions == 2 else [])]
    return torch.stack(out).transpose(1, 2)


@dataclass
class LagPosterior:
    """What is believed about the lag at every token.

    Parameters
    ----------
    log_lag_BTG : Tensor
        Log probability of each lag, given that there is a match.
    match_logit_BT : Tensor
        Log odds that the streams match at all.
    """

    log_lag_BTG: Tensor
    match_logit_BT: Tensor

    @classmethod
    def of(cls, log_joint_BTMG: Tensor) -> LagPosterior:
        """From log probabilities of match and lag together, up to a constant a token."""
        match_BT, lost_BT = log_joint_BTMG.logsumexp(-1).unbind(-1)
        return cls(log_joint_BTMG[..., 0, :].log_softmax(-1), match_BT - lost_BT)

    @classmethod
    def of_weights(cls, lag_BTG: Tensor) -> LagPosterior:
        """From weights over lags that take a match for granted."""
        return cls(lag_BTG.clamp_min(TINY).log(), torch.full_like(lag_BTG[..., 0], torch.inf))

    @property
    def lag_BTG(self) -> Tensor:
        """Probability of each lag, given a match; sums to one."""
        return self.log_lag_BTG.exp()

    @property
    def match_BT(self) -> Tensor:
        """Probability of a match."""
        return self.match_logit_BT.sigmoid()

    def map(self, change: Callable[[Tensor], Tensor]) -> LagPosterior:
        """Another choice of tokens."""
        return LagPosterior(change(self.log_lag_BTG), change(self.match_logit_BT))


def lag_posterior(
    score_BTL: Tensor, lost_BT: Tensor, rates: HMMRates, up_LG: Tensor, *, every: int, causal: bool
) -> LagPosterior:
    """LagPosterior over a lag that drifts, jumps and may be lost: forward-backward.

    The lag is held for blocks of `every` tokens; what their tokens say adds up. Smoothing gives p(l | all tokens);
    the causal version gives p(l | tokens up to this one), exactly, inside blocks too.

    Parameters
    ----------
    score_BTL : Tensor
        Log-likelihood of each lag at each token, up to a constant a token.
    lost_BT : Tensor
        Log-likelihood that the streams do not match, on the same scale.
    rates : HMMRates
    up_LG : Tensor
        Interpolates lags to the fine grid, see `finer`.
    every : int
        Tokens a block.
    causal : bool
        Filter instead of smoothing.
    """
    n_tokens = score_BTL.shape[1]
    if not causal:
        block = smooth(block_log_lik(score_BTL, lost_BT, up_LG, every), rates)
        return spread(block, every, n_tokens)
    score_BJEL, lost_BJE = _in_blocks(score_BTL, every), _in_blocks(lost_BT, every)
    running = joint_log_lik(score_BJEL.cumsum(2) @ up_LG, lost_BJE.cumsum(2))
    ahead_BJMG = messages(running[:, :, -1], rates, directions=1)[0]
    log_joint = running + ahead_BJMG.clamp_min(TINY).log()[:, :, None]
    return LagPosterior.of(log_joint.flatten(1, 2)[:, :n_tokens])


def block_log_lik(score_BTL: Tensor, lost_BT: Tensor, up_LG: Tensor, every: int) -> Tensor:
    """Log-likelihood of lag and match of every block: what its tokens say adds up. Shape (B, J, 2, G)."""
    return joint_log_lik(_in_blocks(score_BTL, every).sum(2) @ up_LG, _in_blocks(lost_BT, every).sum(2))


def _in_blocks(x_BTX: Tensor, every: int) -> Tensor:
    """Tokens in blocks of `every`, the last filled up with zeros, which say nothing."""
    tail = [0, 0] * (x_BTX.ndim - 2)
    return F.pad(x_BTX, (*tail, 0, -x_BTX.shape[1] % every)).unflatten(1, (-1, every))


def marginal_log_lik(block_BJMG: Tensor, rates: HMMRates) -> Tensor:
    """Log probability of everything that was seen, whatever the lag and the match; shape (B,)."""
    ahead_BJMG = messages(block_BJMG, rates, directions=1)[0]
    ahead_BJMG = ahead_BJMG / ahead_BJMG.sum((-2, -1), keepdim=True)
    return (block_BJMG + ahead_BJMG.clamp_min(TINY).log()).logsumexp((-2, -1)).sum(1)


def smooth(block_BJMG: Tensor, rates: HMMRates) -> LagPosterior:
    """LagPosterior of every block, given all of them."""
    past, future = messages(block_BJMG, rates, directions=2).clamp_min(TINY).log()
    return LagPosterior.of(block_BJMG + past + future)


def spread(block: LagPosterior, every: int, n_tokens: int) -> LagPosterior:
    """The posterior of blocks, for each of their tokens."""
    return block.map(lambda x: x.repeat_interleave(every, 1)[:, :n_tokens])


def joint_log_lik(score_XG: Tensor, lost_X: Tensor) -> Tensor:
    """Log-likelihood of lag and match: a lost match has one likelihood, whatever the lag. Shape (..., 2, G)."""
    return torch.stack([score_XG, lost_X[..., None].expand_as(score_XG)], -2)


def constant_posterior(
    score_BTL: Tensor, lost_BT: Tensor, rates: HMMRates, up_LG: Tensor, *, causal: bool
) -> LagPosterior:
    """The chain that never moves: one lag for the whole window, matching or not."""
    prior_G, _, first_M = rates.parts()
    if causal:
        total = joint_log_lik(score_BTL.cumsum(1) @ up_LG, lost_BT.cumsum(1))
    else:
        total = joint_log_lik(score_BTL.sum(1, keepdim=True) @ up_LG, lost_BT.sum(1, keepdim=True))
    believed = LagPosterior.of(total + (first_M[:, None] * prior_G).clamp_min(TINY).log())
    return believed if causal else spread(believed, score_BTL.shape[1], score_BTL.shape[1])


def finer(n_lags: int, steps: int) -> tuple[Tensor, Tensor]:
    """Between lags and a grid `steps` times finer.

    Returns
    -------
    up_LG : Tensor, shape (L, G)
        Cubic (Catmull-Rom) interpolation of evidence, so that a peak may lie between two lags.
    down_GL : Tensor, shape (G, L)
        Each fine lag shared between the lags on its two sides: reading at it interpolates linearly.
    """
    place = torch.arange((n_lags - 1) * steps + 1, dtype=torch.float64) / steps
    below = place.floor().clamp(0, max(n_lags - 2, 0)).long()
    t = (place - below)[:, None]
    cubic = torch.cat(
        [
            -0.5 * t + t**2 - 0.5 * t**3,
            1 - 2.5 * t**2 + 1.5 * t**3,
            0.5 * t + 2 * t**2 - 1.5 * t**3,
            -0.5 * t**2 + 0.5 * t**3,
        ],
        1,
    )
    up_GL = torch.zeros(place.numel(), n_lags, dtype=torch.float64)
    for k in range(4):
        up_GL.scatter_add_(1, (below + k - 1).clamp(0, n_lags - 1)[:, None], cubic[:, k : k + 1])
    down_GL = torch.zeros_like(up_GL)
    down_GL.scatter_add_(1, below[:, None], 1 - t)
    down_GL.scatter_add_(1, (below + 1).clamp(0, n_lags - 1)[:, None], t)
    return up_GL.T.float().contiguous(), down_GL.float()


class LagHMM(nn.Module):
    """The learned rates of one clock's lag.

    Parameters
    ----------
    n_lags : int
        Lags searched, in tokens.
    steps : int
        Fine lags a token.
    """

    def __init__(self, n_lags: int, steps: int) -> None:
        super().__init__()
        self.prior_L = nn.Parameter(torch.zeros(n_lags))
        self.drift = nn.Parameter(torch.zeros(()))
        self.odds_JLF = nn.Parameter(torch.zeros(3))
        # What the evidence is worth, as the logarithm of a factor; not learned in training but by `calibrate`.
        self.trust = nn.Parameter(torch.zeros(()), requires_grad=False)
        self.register_buffer("calibrated", torch.tensor(False))
        start_JLF = torch.tensor([START_JUMP, START_LOSE, START_FIND]).logit()
        self.register_buffer("start_JLF", start_JLF, persistent=False)
        self.start_drift = START_DRIFT * steps
        up_LG, down_GL = finer(n_lags, steps)
        self.register_buffer("up_LG", up_LG, persistent=False)
        self.register_buffer("down_GL", down_GL, persistent=False)

    calibrated: Tensor
    up_LG: Tensor
    down_GL: Tensor
    start_JLF: Tensor

    @property
    def rates(self) -> HMMRates:
        """Drift, jump, loss, return and prior as they stand."""
        jump, lose, find = (self.start_JLF + PACE * self.odds_JLF).sigmoid()
        drift = self.start_drift * (PACE * self.drift).exp()
        # Linear, not cubic: a prior may not overshoot.
        return HMMRates(drift, jump, lose, find, self.log_prior_L @ self.down_GL.T)

    @property
    def log_prior_L(self) -> Tensor:
        """Log probability of each lag before anything was seen, up to a constant."""
        return PACE * self.prior_L


@torch.no_grad()
def viterbi(block_BJMG: Tensor, rates: HMMRates) -> Tensor:
    """Most probable sequence of lags (Viterbi) through matched and lost stretches, as fine lags, shape (B, J)."""
    prior_G, mix_MM, first_M = (x.clamp_min(TINY).log() for x in rates.parts())
    taps_K = ((1 - rates.jump) * drift_taps(rates.drift)).clamp_min(TINY).log()
    n_lags = block_BJMG.shape[-1]
    fresh_G = rates.jump.clamp_min(TINY).log() + prior_G
    index_G = torch.arange(n_lags, device=block_BJMG.device)
    source_KG = index_G + torch.arange(-REACH, REACH + 1, device=index_G.device)[:, None]
    best = block_BJMG[:, 0] + first_M[:, None] + prior_G
    came_from = []
    for j in range(1, block_BJMG.shape[1]):
        # The match first: from which of the two states, for each of the two.
        turned, was_M = (best[:, :, None] + mix_MM[None, :, :, None]).max(1)
        padded = F.pad(turned, (REACH, REACH), value=float("-inf")).unfold(-1, n_lags, 1)
        top, top_G = turned.max(-1, keepdim=True)
        options = torch.cat([padded + taps_K[:, None], (top + fresh_G)[:, :, None]], 2)
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
