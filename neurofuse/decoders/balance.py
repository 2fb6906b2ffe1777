"""In: batches, losses and the network in training. Out: clocks masked, scored and balanced, so that none is neglected.

A decoder of two streams may learn the easier one, satisfy its loss with it, and leave the other unread. Two remedies
act in training alone. *Modality dropout* masks a clock, or a stretch of it, in some windows. *OGM-GE* slows the encoder
of a clock that is ahead. It scores clocks on masked batches: the same network with every other clock absent. That is
meaningful only for a network trained with absent clocks, so modality dropout should stay on.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from neurofuse.errors import NeurofuseError
from neurofuse.nets.fit import Callback
from neurofuse.recording import FloatArray
from neurofuse.windows import Batch

Balance = Literal["none", "ogm-ge"]
# Windows and their movement, shape (n_windows, n_steps, n_axes).
Sample = tuple[Batch, np.ndarray]

# Share of the masked windows in which a clock is missing throughout; in the others a stretch of it is.
WHOLE = 0.75
# OGM-GE: how much a clock that is ahead is slowed, what keeps scores finite, and windows per batch that are scored.
ALPHA = 0.3
SCORE_EPS = 1e-3
N_SCORED = 8


def check_balance(balance: str, modality_dropout: float) -> None:
    """Refuse settings outside their range.

    Raises
    ------
    NeurofuseError
        If there is no such way of balancing, or the probability is none.
    """
    if balance not in get_args(Balance):
        raise NeurofuseError(
            f"there is no balancing '{balance}'; choose one of {', '.join(get_args(Balance))}."
        )
    if not 0 <= modality_dropout <= 1:
        raise NeurofuseError(
            f"modality_dropout is the probability that a window misses a clock, got {modality_dropout}; "
            "give a number between 0 and 1."
        )


def drop_clocks(batch: Batch, rate: float, rng: np.random.Generator) -> Batch:
    """Modality dropout: with probability `rate` a window misses a clock, throughout or for a stretch.

    Of more than two clocks any number but all is masked. A token at which any clock was recorded keeps at least one:
    where the others were not recorded nothing is masked. With one clock nothing happens, and nothing is drawn.

    Source: Neverova et al. 2016, ModDrop (IEEE TPAMI 38:1692), in time.
    """
    if len(batch.present) < 2 or rate == 0:
        return batch
    present_KBW = np.stack(batch.present)
    n_clocks, n_windows, n_tokens = len(batch.present), len(batch.movement), present_KBW.shape[-1]
    chosen_B = rng.random(n_windows) < rate
    n_masked_B = rng.integers(1, n_clocks, n_windows)
    rank_BK = np.argsort(np.argsort(rng.random((n_windows, n_clocks)), axis=1), axis=1)
    whole_B = rng.random(n_windows) < WHOLE
    length_B = np.where(whole_B, n_tokens, rng.integers(1, n_tokens + 1, n_windows))
    begin_B = rng.integers(0, n_tokens - length_B + 1)
    after_BW = np.arange(n_tokens) - begin_B[:, None]
    masked_KB = chosen_B & (rank_BK < n_masked_B[:, None]).T
    masked_KBW = masked_KB[..., None] & (after_BW >= 0) & (after_BW < length_B[:, None])
    left_BW = (present_KBW & ~masked_KBW).any(0)
    return _masked(batch, masked_KBW & left_BW)


def keep_only(batch: Batch, clocks: Collection[int]) -> Batch:
    """The same windows with every clock absent but these."""
    absent = [np.full(p.shape, k not in clocks) for k, p in enumerate(batch.present)]
    return _masked(batch, np.stack(absent))


def take(batch: Batch, rows: np.ndarray | slice) -> Batch:
    """Some windows of a batch."""
    return Batch(
        tuple(v[rows] for v in batch.values),
        tuple(p[rows] for p in batch.present),
        batch.movement[rows],
        batch.lag[rows],
        batch.reach,
    )


def _masked(batch: Batch, masked_KBW: np.ndarray) -> Batch:
    present = tuple(p & ~m for p, m in zip(batch.present, masked_KBW, strict=True))
    values = tuple(
        np.where(m[..., None], np.float32(0), v) for v, m in zip(batch.values, masked_KBW, strict=True)
    )
    return replace(batch, values=values, present=present)


@dataclass(frozen=True)
class Part:
    """A parameter that belongs to one clock, or the columns of it that do."""

    parameter: nn.Parameter
    columns: tuple[int, ...] | None = None

    def of(self, like: Tensor) -> Tensor:
        """The clock's share of a tensor shaped like the parameter."""
        return like if self.columns is None else like[:, list(self.columns)]

    def put(self, like: Tensor, values: Tensor) -> None:
        """Write the clock's share of a tensor shaped like the parameter."""
        if self.columns is None:
            like.copy_(values)
        else:
            like[:, list(self.columns)] = values


def clock_parts(network: nn.Module, n_inputs: Sequence[int]) -> list[list[Part]]:
    """What encodes each clock: its own of `network.encoders`, or its columns of the first map over all clocks stacked.

    Stacked inputs may be followed by one presence flag per clock. Empty where a network has neither.
    """
    encoders = getattr(network, "encoders", None)
    if isinstance(encoders, nn.ModuleList) and len(encoders) == len(n_inputs):
        return [[Part(p) for p in encoder.parameters()] for encoder in encoders]
    edges = np.concatenate([[0], np.cumsum(n_inputs)])
    total, n_clocks = int(edges[-1]), len(n_inputs)
    for p in network.parameters():
        if p.ndim < 2 or p.shape[1] not in (total, total + n_clocks):
            continue
        flags = [(total + k,) if p.shape[1] > total else () for k in range(n_clocks)]
        return [[Part(p, (*range(edges[k], edges[k + 1]), *flags[k]))] for k in range(n_clocks)]
    return []


def update_scales(losses: Sequence[float]) -> FloatArray:
    """OGM: factors on the updates of the clocks' encoders, from the mean squared error with each clock only.

    s_u = 1 / (MSE_u + eps), rho_u = s_u / mean of the others' s, k_u = 1 - tanh(alpha * max(rho_u - 1, 0)).
    Peng et al. 2022 (CVPR, "Balanced multimodal learning via on-the-fly gradient modulation") score by the
    probability of the right class and scale by 1 - tanh(alpha * rho) once rho exceeds 1; without their jump at 1,
    clocks that are level are not slowed in turns.
    """
    score = 1 / (np.asarray(losses, dtype=np.float64) + SCORE_EPS)
    rho = score * (len(score) - 1) / (score.sum() - score)
    return 1 - np.tanh(ALPHA * np.maximum(rho - 1, 0))


@contextmanager
def modulated(
    parts: Sequence[Sequence[Part]], scales: FloatArray, *, generator: torch.Generator | None
) -> Iterator[None]:
    """Around an optimizer's step: scale the update of each clock's encoder, after generalisation enhancement.

    Adam divides a constant factor on gradients out again, so it is the update that is scaled. Noise that the scaling
    takes from a slowed encoder is added to its gradient again, with the gradient's own spread (Peng et al. 2022);
    without a generator it is not.
    """
    slowed = [(part, k) for own, k in zip(parts, scales, strict=True) if k < 1 for part in own]
    with torch.no_grad():
        before = [part.of(part.parameter).clone() for part, _ in slowed]
        for part, _ in slowed:
            gradient = part.parameter.grad
            if gradient is None or generator is None:
                continue
            own = part.of(gradient)
            noise = torch.randn(own.shape, generator=generator).to(own)
            part.put(gradient, own + noise * own.std(correction=0))
    yield
    with torch.no_grad():
        for (part, k), was in zip(slowed, before, strict=True):
            part.put(part.parameter, was + k * (part.of(part.parameter) - was))


class OGMGE(Callback[Sample]):
    """OGM-GE in training; reports `scale/CLOCK`, the mean factor on a clock's updates since the last check.

    Parameters
    ----------
    network : nn.Module
    parts : list of list of Part
        Of `clock_parts`.
    clocks : sequence of str
    loss : callable
        Of windows and their movement.
    seed : int
        Of the noise.
    """

    def __init__(
        self,
        network: nn.Module,
        parts: list[list[Part]],
        clocks: Sequence[str],
        loss: Callable[[Batch, np.ndarray], Tensor],
        *,
        seed: int,
    ) -> None:
        self.network, self.parts, self.clocks, self.loss = network, parts, clocks, loss
        self._noise = torch.Generator().manual_seed(seed)
        self._scales: list[FloatArray] = []

    @contextmanager
    def around_update(self, batch: Sample) -> Iterator[None]:
        """Slow the encoders of clocks that are ahead on a few windows of the batch."""
        windows, target = take(batch[0], slice(N_SCORED)), batch[1][:N_SCORED]
        self.network.eval()
        with torch.no_grad():
            losses = [float(self.loss(keep_only(windows, [k]), target)) for k in range(len(self.clocks))]
        self._scales.append(update_scales(losses))
        with modulated(self.parts, self._scales[-1], generator=self._noise):
            yield

    def report(self) -> dict[str, float]:
        """Mean factors since the last check."""
        mean, self._scales = np.mean(self._scales, axis=0), []
        return {f"scale/{clock}": float(k) for clock, k in zip(self.clocks, mean, strict=True)}


class ClockLosses(Callback[Sample]):
    """Reports `only/CLOCK` and `without/CLOCK`: the loss with every other clock absent, and with that one absent.

    Parameters
    ----------
    clocks : sequence of str
    loss : callable
        Mean loss with some clocks, given by their numbers, and no other.
    """

    def __init__(self, clocks: Sequence[str], loss: Callable[[list[int]], float]) -> None:
        self.clocks, self.loss = clocks, loss

    def report(self) -> dict[str, float]:
        """Losses of the network as it is."""
        numbers = range(len(self.clocks))
        only = [self.loss([k]) for k in numbers]
        # Of two clocks, a loss without one is the loss with only the other.
        without = (
            only[::-1] if len(only) == 2 else [self.loss([j for j in numbers if j != k]) for k in numbers]
        )
        return {f"only/{c}": x for c, x in zip(self.clocks, only, strict=True)} | {
            f"without/{c}": x for c, x in zip(self.clocks, without, strict=True)
        }


def clock_callbacks(
    balance: Balance,
    network: nn.Module,
    sizes: dict[str, int],
    loss: Callable[[Batch, np.ndarray], Tensor],
    loss_with: Callable[[list[int]], float],
    *,
    seed: int,
) -> list[Callback[Sample]]:
    """Callbacks that score clocks one by one, and balance them; none for a single clock.

    Parameters
    ----------
    balance : "none" or "ogm-ge"
    network : nn.Module
    sizes : dict of clock -> int
        Features of each.
    loss : callable
        Of windows and their movement.
    loss_with : callable
        Mean validation loss with some clocks, given by their numbers, and no other.
    seed : int

    Raises
    ------
    NeurofuseError
        If the network has no encoders of single clocks, and they are to be balanced.
    """
    if len(sizes) < 2:
        return []
    scores: list[Callback[Sample]] = [ClockLosses(list(sizes), loss_with)]
    if balance == "none":
        return scores
    parts = clock_parts(network, list(sizes.values()))
    if not parts:
        raise NeurofuseError("this decoder has no encoders of single clocks to slow; choose balance 'none'.")
    return [*scores, OGMGE(network, parts, list(sizes), loss, seed=seed)]
