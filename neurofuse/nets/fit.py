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
        On its device.
    draw, loss : callable
        A training batch of row numbers, ndarray of int, shape (batch_size,); and the scalar loss of such a batch.
    validation_loss : callable
        Scalar, every `check_every` steps and after the last one; without gradients and in evaluation mode.
    n_rows, batch_size : int
        Training rows, of which each is drawn once before any is drawn again; and rows per step.
    rng : numpy Generator
        Orders the rows.
    n_steps, patience : int
        Most gradient steps taken, and checks in a row without improvement before training stops.
    learning_rate, weight_decay : float
        Weights of two and more dimensions decay; with `decay_all` biases, norms and gains do as well.
    schedule : callable
        Makes a scheduler, stepped once per gradient step, from the optimizer and `n_steps`.
    title : str
        Of the progress bar, which `progress` shows on stderr.

    Returns
    -------
    dict of str -> list of float
        One entry per check: `step`, `train` (mean loss since the last check), `validation`, and what callbacks report.
    """
    optimizer = torch.optim.AdamW(_decay_groups(network, weight_decay, decay_all), lr=learning_rate)
    scheduler = schedule(optimizer, n_steps)
    best = _Best(network)
    history: dict[str, list[float]] = {}
    recent, rows = [], shuffled(n_rows, batch_size, rng)
    with progress_bar(n_steps, title, shown=progress) as bar:
        for step in range(1, n_steps + 1):
            batch = draw(next(rows))
            network.train()
            value = loss(batch)
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            _update(network, optimizer, [c.around_update(batch) for c in callbacks])
            scheduler.step()
            recent.append(float(value.detach()))
            bar.update()
            if step % check_every and step != n_steps:
                continue
            network.eval()
            with torch.no_grad():
                entry = {"step": step, "train": float(np.mean(recent)), "validation": validation_loss()}
                for callback in callbacks:
                    entry |= callback.report()
            for name, number in entry.items():
                history.setdefault(name, []).append(number)
            recent = []
            if best.update(entry["validation"]) >= patience:
                break
            bar.set_postfix(validation=f"{entry['validation']:.3f}", best=f"{best.loss:.3f}", refresh=False)
    network.load_state_dict(best.state)
    network.eval()
    return history


def _update(
    network: nn.Module, optimizer: torch.optim.Optimizer, around: Sequence[AbstractContextManager[None]]
) -> None:
    nn.utils.clip_grad_norm_(network.parameters(), MAX_GRADIENT_NORM)
    with ExitStack() as stack:
        for context in around:
            stack.enter_context(context)
        optimizer.step()


class _Best:
    """The weights of the lowest validation loss so far, and how many checks have been worse since."""

    def __init__(self, network: nn.Module) -> None:
        self.network, self.loss, self.n_worse = network, math.inf, 0
        self.state = copy.deepcopy(network.state_dict())

    def update(self, loss: float) -> int:
        self.n_worse += 1
        if loss < self.loss:
            self.loss, self.n_worse, self.state = loss, 0, copy.deepcopy(self.network.state_dict())
        return self.n_worse


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
