"""In: windows and a network. Out: a decoder, trained on the movement loss and stopped on validation windows."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from neurofuse.decoders.balance import (
    Balance,
    Sample,
    check_balance,
    clock_callbacks,
    drop_clocks,
    keep_only,
)
from neurofuse.decoders.base import Decoder, Prediction
from neurofuse.decoders.scale import standard
from neurofuse.nets.device import check_device
from neurofuse.nets.fit import fit_network
from neurofuse.nets.seeding import new_network, seeded
from neurofuse.windows import Batch, Windows

# Windows decoded at once; bounds memory, does not change numbers.
DECODE_BATCH = 32
# Validation windows on which clocks are scored one by one.
N_CLOCK_SCORED = 16


class TorchDecoder(Decoder):
    """A decoder whose weights are learned by gradient descent. A subclass defines `build_network`.

    Training is reproducible whatever the network is made of: it is constructed and trained under the seed, and torch's
    global generators are left as they were.

    Parameters
    ----------
    width : int
        Features of every layer.
    dropout : float
    modality_dropout : float
        Probability that a training window misses a clock, throughout or for a stretch; see `drop_clocks`. A decoder
        trained with it can decode where a stream fails. Nothing happens with a single clock.
    balance : "none" or "ogm-ge"
        Slow the encoder of a clock that is ahead; see `update_scales`.
    n_steps, batch_size : int
        Most gradient steps taken, and windows per step.
    learning_rate, weight_decay : float
        Of AdamW; the rate warms up, then falls along a cosine.
    patience, check_every : int
        Validation checks without improvement before stopping, and gradient steps between checks.
    causal : bool
        Decode from the past only.
    seed : int
        Random seed.
    device : str
        "auto" takes a GPU where there is one.
    progress : bool
        Show a bar on stderr.
    """

    network_: Any  # an nn.Module, of the class that `build_network` returns
    history_: dict[str, list[float]]
    """One entry per validation check: `step`; mean losses `train` (as trained, masks and all) and `validation`;
    with more than one clock `only/CLOCK` and `without/CLOCK`, the validation loss with every other clock absent and
    with that one absent; `scale/CLOCK` under "ogm-ge". For gradients see `watch_gradients`."""

    def __init__(
        self,
        *,
        width: int = 64,
        dropout: float = 0.1,
        modality_dropout: float = 0.1,
        balance: Balance = "none",
        n_steps: int = 600,
        batch_size: int = 32,
        learning_rate: float = 3e-3,
        weight_decay: float = 1e-2,
        patience: int = 12,
        check_every: int = 25,
        causal: bool = False,
        seed: int = 0,
        device: str = "auto",
        progress: bool = False,
    ) -> None:
        self.width = width
        self.dropout = dropout
        self.modality_dropout = modality_dropout
        self.balance = balance
        self.n_steps = n_steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.patience = patience
        self.check_every = check_every
        self.causal = causal
        self.seed = seed
        self.device = device
        self.progress = progress

    # What a subclass defines.

    def build_network(self, n_inputs: list[int], n_axes: int, max_lag: int) -> nn.Module:
        """The network, on the CPU; its weights are then drawn by `initialise`.

        Parameters
        ----------
        n_inputs : list of int
            Features of each clock, the anchor first.
        n_axes : int
            Axes of movement.
        max_lag : int
            Largest lag searched, tokens.

        Returns
        -------
        nn.Module
            Called with what `network_inputs` makes of a batch, it returns movement in standard units, shape
            (B, T, n_axes), and a readout for `extra_loss` and `lag_readout`, or None.
        """
        raise TypeError(f"{type(self).__name__} does not define build_network.")

    # What a subclass may change.

    def network_inputs(self, batch: Batch) -> tuple[Any, ...]:
        """What the network is called with; override to pass something else.

        Returns
        -------
        values : list of Tensor, shape (B, W, n_features)
            Scaled tokens of each clock, zero where absent; W = T + 2 * reach, T tokens per window.
        present : list of bool Tensor, shape (B, W)
        reach : int
            Tokens of context on each side of a window.
        """
        device = next(self.network_.parameters()).device
        values, present = (
            [torch.as_tensor(x, device=device) for x in arrays]
            for arrays in (standard(batch, self.input_scales_), batch.present)
        )
        return values, present, batch.reach

    def draw_batch(self, X: Windows, rows: np.ndarray, rng: np.random.Generator) -> Batch:
        """A training batch, its injected lags drawn anew; override to augment it further."""
        return X.batch(rows, rng=rng)

    def loss(self, batch: Batch, target: np.ndarray) -> Tensor:
        """Mean squared error in standard units over tokens of known movement, and in training `extra_loss`.

        Parameters
        ----------
        batch : Batch
        target : ndarray, shape (B, T, n_axes)
            In the unit of the movement; NaN where unknown.
        """
        movement, readout = self.network_(*self.network_inputs(batch))
        scaled = self.movement_scale_.to_standard(target).astype(np.float32)
        true = torch.as_tensor(scaled, device=movement.device)
        # Movement cannot be decoded from a stream of another window.
        mismatched = torch.as_tensor(np.isinf(batch.lag).any(axis=(1, 2)), device=movement.device)
        known = torch.isfinite(true) & ~mismatched[:, None, None]
        square = (movement - torch.nan_to_num(true)).square()
        loss = torch.where(known, square, 0.0).sum() / known.sum().clamp_min(1)
        return loss + self.extra_loss(readout, batch) if self.network_.training else loss

    def extra_loss(self, readout: Any, batch: Batch) -> Tensor | float:
        """Added to the movement loss in training; by default nothing."""
        return 0.0

    def lag_readout(self, readout: Any) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Lags that a pass of the network has found; by default none.

        Returns
        -------
        list of (p_lag, path, p_matched), one per clock but the anchor
            Probability of each lag, shape (B, T, G); most probable sequence of lags, as indices, (B, T); probability
            that the clock matches the anchor, (B, T).
        """
        return []

    # What every subclass has.

    @property
    def n_parameters_(self) -> int:
        """Learned numbers."""
        return sum(p.numel() for p in self.network_.parameters())

    def new_network(self, n_inputs: list[int], n_axes: int, max_lag: int, *, device: str = "cpu") -> Any:
        """`build_network` with initial weights, a function of the seed."""
        return new_network(
            lambda: self.build_network(n_inputs, n_axes, max_lag), seed=self.seed, device=device
        )

    def fit(
        self, X: Windows, y: np.ndarray | None = None, *, validation: Windows | None = None
    ) -> TorchDecoder:
        """Train on windows in time order; stop on validation windows."""
        X, target, validation, validation_target = self.training_parts(X, y, validation)
        check_balance(self.balance, self.modality_dropout)
        self.learn_scales(X, target)
        device = check_device(self.device)
        sizes = [len(f) for f in self.features_]
        self.network_ = self.new_network(sizes, self.n_axes_, self.max_lag_, device=device)
        with seeded(self.seed, device):
            self.train(X, target, validation, validation_target)
        return self

    def train(
        self, X: Windows, target: np.ndarray, validation: Windows, validation_target: np.ndarray
    ) -> None:
        """Gradient descent on prepared windows, from the initial weights."""
        rng = np.random.default_rng([self.seed, 1])

        def draw(rows: np.ndarray) -> Sample:
            return self.draw_batch(X, rows, rng), target[rows]

        def loss(sample: Sample) -> Tensor:
            return self.loss(drop_clocks(sample[0], self.modality_dropout, rng), sample[1])

        sizes = {c: len(f) for c, f in zip(self.clocks_, self.features_, strict=True)}
        few = spread_over(validation, N_CLOCK_SCORED)
        few_loss = partial(self._mean_loss, validation[few], validation_target[few])
        self.history_ = fit_network(
            self.network_,
            draw=draw,
            loss=loss,
            validation_loss=lambda: self._mean_loss(validation, validation_target),
            n_rows=len(X),
            rng=rng,
            n_steps=self.n_steps,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            patience=self.patience,
            check_every=self.check_every,
            callbacks=clock_callbacks(
                self.balance, self.network_, sizes, self.loss, few_loss, seed=self.seed
            ),
            title=f"train {self.name}",
            progress=self.progress,
        )

    @torch.no_grad()
    def _mean_loss(self, X: Windows, target: np.ndarray, only: Collection[int] | None = None) -> float:
        """Of windows as they are, or with some clocks only."""
        losses, sizes = [], []
        for k in range(0, len(X), DECODE_BATCH):
            batch, true = X.batch(slice(k, k + DECODE_BATCH)), target[k : k + DECODE_BATCH]
            losses.append(float(self.loss(batch if only is None else keep_only(batch, only), true)))
            sizes.append(len(true))
        return float(np.average(losses, weights=sizes))

    def decode(self, X: Windows) -> Prediction:
        """Movement and lag posteriors of some windows."""
        self.check_windows(X)
        return self.decode_with(X)

    @torch.no_grad()
    def decode_with(self, X: Windows, more: Callable[[Windows], tuple[Any, ...]] | None = None) -> Prediction:
        """Decode in batches; `more` makes further arguments of the network from the windows of a batch."""
        self.network_.eval()
        movement = [np.empty((0, X.n_steps, self.n_axes_), np.float32)]
        lags: dict[str, list[list[np.ndarray]]] = {}
        for k in range(0, len(X), DECODE_BATCH):
            part = X[k : k + DECODE_BATCH]
            inputs = self.network_inputs(part.batch(slice(None)))
            scaled, readout = self.network_(*inputs, *(more(part) if more else ()))
            movement.append(self.movement_scale_.from_standard(scaled.cpu().numpy()))
            for clock, found in zip(self.clocks_[1:], self.lag_readout(readout), strict=False):
                lags.setdefault(clock, []).append([x.cpu().numpy() for x in found])
        posterior, path, p_matched = (
            {clock: np.concatenate([found[i] for found in parts]) for clock, parts in lags.items()}
            for i in range(3)
        )
        reach_s = self.max_lag_ * self.token_s_
        n_lags = max((p.shape[-1] for p in posterior.values()), default=0)
        lag_s = np.linspace(-reach_s, reach_s, n_lags)
        return Prediction(np.concatenate(movement), posterior, path, lag_s, p_matched)

    def state(self) -> dict[str, np.ndarray]:
        """Weights of the network by name."""
        return {k: v.detach().cpu().numpy() for k, v in self.network_.state_dict().items()}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Build the network anew and load its weights."""
        self.network_ = self.new_network([len(f) for f in self.features_], self.n_axes_, self.max_lag_)
        self.network_.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()})
        self.network_.to(check_device(self.device)).eval()


def spread_over(X: Windows, n: int) -> np.ndarray:
    """At most `n` windows, evenly spaced."""
    return np.unique(np.linspace(0, len(X) - 1, min(n, len(X))).round().astype(np.int64))
