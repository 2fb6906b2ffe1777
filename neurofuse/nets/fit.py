"""In: a network, training batches, losses. Out: the network at its best validation loss, and the course of training.

The only training loop of the package: decoders and the lag estimator of `neurofuse.alignment` use it alike.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from neurofuse.nets.progress import progress_bar

T = TypeVar("T")
# Gradients longer than this are shortened to it.
MAX_GRADIENT_NORM = 1.0


def warm_cosine(optimizer: torch.optim.Optimizer, n_steps: int) -> LRScheduler:
    """Learning rate that rises over the first twentieth of the steps, then falls along a cosine."""
    n_warm = max(1, n_steps // 20)
    return LambdaLR(
        optimizer,
        lambda k: min((k + 1) / n_warm, 0.5 * (1 + math.cos(math.pi * min(k / n_steps, 1.0))) + 0.01),
    )


class Callback(Generic[T]):
    """Base of what observes or alters training; each method does nothing unless it is overridden."""

    def around_update(self, batch: T) -> AbstractContextManager[None]:
        """Entered before a step of the optimizer, when the gradients are there, and left after it."""
        return nullcontext()

    def report(self) -> dict[str, float]:
        """Entries for the history, once per validation check; the network is in evaluation mode."""
        return {}


def fit_network(
    network: nn.Module,
    *,
    draw: Callable[[np.ndarray], T],
    loss: Callable[[T], Tensor],
    validation_loss: Callable[[], float],
    n_rows: int,
    rng: np.random.Generator,
    n_steps: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float = 1e-2,
    decay_all: bool = False,
    schedule: Callable[[torch.optim.Optimizer, int], LRScheduler] = warm_cosine,
    patience: int = 12,
    check_every: int = 25,
    callbacks: Sequence[Callback[T]] = (),
    title: str = "train",
    progress: bool = False,
) -> dict[str, list[float]]:
    """Train by AdamW; stop early; leave the network in evaluation mode with the weights of its best check.

    Parameters
    ----------
    network : nn.Module
    draw : callable
        Makes a training batch from row numbers, ndarray of int, shape (batch_size,).
    loss : callable
        Scalar Tensor of a batch; the network is in training mode.
    validation_loss : callable
        Scalar, queried every `check_every` steps and after the last one, without gradients and in evaluation mode.
    n_rows, rng : int, numpy Generator
        Training rows, and what orders them. Each is drawn once before any is drawn again.
    n_steps, batch_size : int
        Most gradient steps taken, and rows per step.
    learning_rate, weight_decay : float
        Weights of two and more dimensions decay; with `decay_all` biases, norms and gains do as well.
    schedule : callable
        Makes a scheduler, stepped once per gradient step, from the optimizer and `n_steps`.
    patience : int
        Checks without improvement before training stops.
    title : str
        Of the progress bar, which `progress` shows on stderr.

    Returns
    -------
    dict of str -> list of float
        One entry per check: `step`, `train` (mean loss since the last check), `validation`, and what callbacks report.
    """
    optimizer = torch.optim.AdamW(_decay_groups(network, weight_decay, decay_all), lr=learning_rate)
    scheduler = schedule(optimizer, n_steps)
    best, best_state, n_worse = math.inf, copy.deepcopy(network.state_dict()), 0
    history: dict[str, list[float]] = {}
    recent: list[float] = []
    rows = shuffled(n_rows, batch_size, rng)
    with progress_bar(n_steps, title, shown=progress) as bar:
        for step in range(1, n_steps + 1):
            recent.append(_update(network, draw(next(rows)), loss, optimizer, callbacks))
            scheduler.step()
            bar.update()
            if step % check_every and step != n_steps:
                continue
            network.eval()
            with torch.no_grad():
                validation = validation_loss()
            entry = {"step": step, "train": float(np.mean(recent)), "validation": validation}
            _record(history, entry, callbacks)
            recent = []
            bar.set_postfix(
                validation=f"{validation:.3f}", best=f"{min(best, validation):.3f}", refresh=False
            )
            if validation < best:
                best, best_state, n_worse = validation, copy.deepcopy(network.state_dict()), 0
                continue
            n_worse += 1
            if n_worse >= patience:
                break
    network.load_state_dict(best_state)
    network.eval()
    return history


def _update(
    network: nn.Module,
    batch: T,
    loss: Callable[[T], Tensor],
    optimizer: torch.optim.Optimizer,
    callbacks: Sequence[Callback[T]],
) -> float:
    """One gradient step; the loss before it."""
    network.train()
    value = loss(batch)
    optimizer.zero_grad(set_to_none=True)
    value.backward()
    nn.utils.clip_grad_norm_(network.parameters(), MAX_GRADIENT_NORM)
    with ExitStack() as around:
        for callback in callbacks:
            around.enter_context(callback.around_update(batch))
        optimizer.step()
    return float(value.detach())


def _record(
    history: dict[str, list[float]], entry: dict[str, float], callbacks: Sequence[Callback[T]]
) -> None:
    for callback in callbacks:
        entry |= callback.report()
    for name, number in entry.items():
        history.setdefault(name, []).append(number)


def shuffled(n_rows: int, batch_size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Row numbers of one batch after another, without end; a new order is drawn when the last one runs short."""
    order = np.empty(0, dtype=np.int64)
    while True:
        if order.size < min(batch_size, n_rows):
            order = np.concatenate([order, rng.permutation(n_rows)])
        yield order[:batch_size]
        order = order[batch_size:]


def _decay_groups(network: nn.Module, weight_decay: float, decay_all: bool) -> list[dict]:
    groups: dict[float, list[nn.Parameter]] = {weight_decay: [], 0.0: []}
    for p in network.parameters():
        groups[weight_decay if decay_all or p.ndim >= 2 else 0.0].append(p)
    return [{"params": own, "weight_decay": decay} for decay, own in groups.items()]
