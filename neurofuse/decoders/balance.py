"""In: batches, a network in training, its losses. Out: clocks masked, watched and balanced, so that none is neglected.

A decoder of two streams may learn the easier one, satisfy its loss with it, and leave the other unread. Three
remedies act in training alone. *Modality dropout* takes a clock, or a stretch of it, from some windows, so that
each must do without the other. *OGM-GE* holds back the encoder of a clock that is ahead. *Gradient-Blending*
weighs the losses of all clocks together and of each alone by how well they generalise. The last two judge a
clock by masked passes: the same network with every other clock absent. They mean something only to a network
that has met absent clocks, so modality dropout should stay on.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from neurofuse.recording import FloatArray, NeurofuseError
from neurofuse.windows import Batch

Balance = Literal["none", "ogm-ge", "blend"]

# Share of the masked windows in which a clock is missing throughout; in the others a stretch of it is.
WHOLE = 0.75
# OGM-GE: how hard a clock that is ahead is held back, and what keeps scores finite. Of each batch so many are judged.
ALPHA = 0.3
SCORE_EPS = 1e-3
N_JUDGED = 8
# Blending: checks a period, overfitting below which a loss counts as not overfitting at all (in standard units
# squared; the quotient explodes there), and the least share a loss keeps, without which it could not be judged.
PERIOD_CHECKS = 2
LEAST_OVERFIT = 0.02
LEAST_SHARE = 0.1
# Windows of the validation stretch on which clocks are watched.
N_WATCHED = 16


def check_balance(balance: str, modality_dropout: float) -> None:
    """Refuse settings that mean nothing.

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

    Of more than two clocks any number but all is masked. A token that holds anything keeps something: where the
    other clocks were not recorded nothing is taken. With one clock nothing happens, and nothing is drawn.

    Source: Neverova et al. 2016, ModDrop (IEEE TPAMI 38:1692), in time.
    """
    if len(batch.present) < 2 or rate == 0:
        return batch
    present_KBW = np.stack(batch.present)
    n_clocks, n_windows, n_tokens = len(batch.present), len(batch.movement), present_KBW.shape[-1]
    struck_B = rng.random(n_windows) < rate
    n_lost_B = rng.integers(1, n_clocks, n_windows)
    rank_BK = np.argsort(np.argsort(rng.random((n_windows, n_clocks)), axis=1), axis=1)
    whole_B = rng.random(n_windows) < WHOLE
    length_B = np.where(whole_B, n_tokens, rng.integers(1, n_tokens + 1, n_windows))
    begin_B = rng.integers(0, n_tokens - length_B + 1)
    after_BW = np.arange(n_tokens) - begin_B[:, None]
    lost_KB = struck_B & (rank_BK < n_lost_B[:, None]).T
    masked_KBW = lost_KB[..., None] & (after_BW >= 0) & (after_BW < length_B[:, None])
    left_BW = (present_KBW & ~masked_KBW).any(0)
    return _masked(batch, masked_KBW & left_BW)


def keep_only(batch: Batch, clocks: Collection[int]) -> Batch:
    """The same windows with every clock absent but these."""
    absent = [np.full(p.shape, k not in clocks) for k, p in enumerate(batch.present)]
    return _masked(batch, np.stack(absent))


def draw_views(batch: Batch, weights: FloatArray, rng: np.random.Generator) -> Batch:
    """Show each window whole or through one clock alone, as often as the weights say: first the whole, then each clock.

    The expected loss is the weighted sum of the losses, at the cost of one pass.
    """
    n_windows = len(batch.movement)
    # Evenly spaced quantiles: every batch holds the shares to within a window. Its windows come in random order.
    place = (np.arange(n_windows) + rng.random()) / n_windows
    view_B = np.minimum(np.searchsorted(np.cumsum(weights), place, side="right"), len(weights) - 1)
    absent = [
        np.repeat(((view_B > 0) & (view_B != k + 1))[:, None], p.shape[1], axis=1)
        for k, p in enumerate(batch.present)
    ]
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


def clock_parts(net: nn.Module, n_inputs: Sequence[int]) -> list[list[Part]]:
    """What encodes each clock: its own of `net.encoders`, or its columns of the first map over all clocks stacked.

    Stacked inputs may be followed by one presence flag a clock. Empty where a network has neither.
    """
    encoders = getattr(net, "encoders", None)
    if isinstance(encoders, nn.ModuleList) and len(encoders) == len(n_inputs):
        return [[Part(p) for p in encoder.parameters()] for encoder in encoders]
    edges = np.concatenate([[0], np.cumsum(n_inputs)])
    total, n_clocks = int(edges[-1]), len(n_inputs)
    for p in net.parameters():
        if p.ndim < 2 or p.shape[1] not in (total, total + n_clocks):
            continue
        flags = [(total + k,) if p.shape[1] > total else () for k in range(n_clocks)]
        return [[Part(p, (*range(edges[k], edges[k + 1]), *flags[k]))] for k in range(n_clocks)]
    return []


def update_scales(losses: Sequence[float]) -> FloatArray:
    """OGM: by how much the update of each clock's encoder is scaled, from the mean squared error of each alone.

    s_u = 1 / (MSE_u + eps), rho_u = s_u / mean of the others' s, k_u = 1 - tanh(alpha * max(rho_u - 1, 0)).
    Peng et al. 2022 (CVPR, "Balanced multimodal learning via on-the-fly gradient modulation") score by the
    probability of the right class and scale by 1 - tanh(alpha * rho) once rho exceeds 1; without their jump at 1,
    clocks that are level are not held back in turns.
    """
    score = 1 / (np.asarray(losses, dtype=np.float64) + SCORE_EPS)
    rho = score * (len(score) - 1) / (score.sum() - score)
    return 1 - np.tanh(ALPHA * np.maximum(rho - 1, 0))


@contextmanager
def modulated(
    parts: Sequence[Sequence[Part]], scales: FloatArray, *, generator: torch.Generator | None
) -> Iterator[None]:
    """Around an optimizer's step: scale what it does to each clock's encoder; generalisation enhancement on top.

    Adam divides a constant factor on gradients out again, so it is the update that is scaled. What noise the
    scaling takes from an encoder that is held back is given back to its gradient, with the gradient's own spread
    (Peng et al. 2022); without a generator it is not.
    """
    held = [(part, k) for own, k in zip(parts, scales, strict=True) if k < 1 for part in own]
    with torch.no_grad():
        before = [part.of(part.parameter).clone() for part, _ in held]
        for part, _ in held:
            gradient = part.parameter.grad
            if gradient is None or generator is None:
                continue
            own = part.of(gradient)
            noise = torch.randn(own.shape, generator=generator).to(own)
            part.put(gradient, own + noise * own.std(correction=0))
    yield
    with torch.no_grad():
        for (part, k), was in zip(held, before, strict=True):
            part.put(part.parameter, was + k * (part.of(part.parameter) - was))


def blend_weights(
    train_before: Sequence[float],
    validation_before: Sequence[float],
    train_after: Sequence[float],
    validation_after: Sequence[float],
) -> FloatArray | None:
    """Gradient-Blending: weights of losses proportional to generalisation gain over overfitting squared.

    With O = validation - train: G = validation_before - validation_after, w ~ max(G, 0) / (O_after - O_before)^2
    (Wang et al. 2020, CVPR, "What makes training multi-modal classification networks hard?", proposition 1).
    Overfitting below `LEAST_OVERFIT` counts as that much.

    Returns
    -------
    ndarray, shape (n_losses,), or None
        Sums to one; None where nothing generalised, and the weights should stay.
    """
    t0, v0, t1, v1 = (
        np.asarray(x, dtype=np.float64)
        for x in (train_before, validation_before, train_after, validation_after)
    )
    gain = np.maximum(v0 - v1, 0)
    overfit = np.maximum((v1 - t1) - (v0 - t0), LEAST_OVERFIT)
    raw = gain / overfit**2
    return raw / raw.sum() if raw.sum() > 0 else None


class Blend:
    """Gradient-Blending online: weights of the whole and of each clock alone, estimated anew every period."""

    def __init__(self, n_clocks: int) -> None:
        self.weights: FloatArray = np.full(n_clocks + 1, 1 / (n_clocks + 1))
        self._start: tuple[Sequence[float], Sequence[float]] | None = None
        self._checks = 0

    def judge(self, train: Sequence[float], validation: Sequence[float]) -> None:
        """Take the losses of one check: the whole first, then each clock alone."""
        if self._start is None:
            self._start = (train, validation)
            return
        self._checks += 1
        if self._checks % PERIOD_CHECKS:
            return
        found = blend_weights(*self._start, train, validation)
        if found is not None:
            self.weights = LEAST_SHARE + (1 - LEAST_SHARE * len(found)) * found
        self._start = (train, validation)


class Watch:
    """Norms of gradients and sizes of updates in every part of a network, gathered from check to check."""

    def __init__(self, net: nn.Module, parts: Sequence[Sequence[Part]]) -> None:
        self.groups: dict[str, list[Part]] = {}
        for name, child in net.named_children():
            members = child.named_children() if isinstance(child, nn.ModuleList) else [("", child)]
            for k, member in members:
                self.groups[f"{name}.{k}".rstrip(".")] = [Part(p) for p in member.parameters()]
        if any(part.columns is not None for own in parts for part in own):
            self.groups |= {f"inputs.{k}": list(own) for k, own in enumerate(parts)}
        self.groups = {name: own for name, own in self.groups.items() if own}
        self._norms: dict[str, list[float]] = {name: [] for name in self.groups}

    @torch.no_grad()
    def see_gradients(self) -> None:
        """Note the norms of the gradients as they stand."""
        for name, own in self.groups.items():
            seen = [part.of(part.parameter.grad) for part in own if part.parameter.grad is not None]
            self._norms[name].append(_norm(seen))

    def copy(self) -> dict[str, list[Tensor]]:
        """The weights as they stand."""
        return {
            name: [part.of(part.parameter).detach().clone() for part in own]
            for name, own in self.groups.items()
        }

    @torch.no_grad()
    def report(self, before: dict[str, list[Tensor]]) -> dict[str, float]:
        """Mean gradient norms since the last report; the last update over the weights it changed."""
        out = {f"gradient/{name}": float(np.mean(norms)) for name, norms in self._norms.items()}
        for name, own in self.groups.items():
            change = [part.of(part.parameter) - was for part, was in zip(own, before[name], strict=True)]
            out[f"update/{name}"] = _norm(change) / max(_norm(before[name]), 1e-12)
        self._norms = {name: [] for name in self.groups}
        return out


def _norm(tensors: Sequence[Tensor]) -> float:
    if not tensors:
        return 0.0
    return math.sqrt(float(torch.stack([t.square().sum() for t in tensors]).sum()))
