"""In: windows and a torch module. Out: the module trained on the movement loss, stopped on the validation stretch."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable, Collection
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from neurofuse.decoders.balance import (
    N_JUDGED,
    N_WATCHED,
    Balance,
    Blend,
    Watch,
    check_balance,
    clock_parts,
    draw_views,
    drop_clocks,
    keep_only,
    modulated,
    take,
    update_scales,
)
from neurofuse.decoders.base import Decoder, Prediction, hold_back
from neurofuse.nets.device import check_device
from neurofuse.nets.encoders import initialise
from neurofuse.recording import NeurofuseError
from neurofuse.windows import Batch, Windows

# Windows decoded at once; bounds memory, does not change numbers.
DECODE_BATCH = 32


class TorchDecoder(Decoder):
    """A decoder whose weights are learned by gradient descent.

    Subclasses build `_network(n_inputs, n_axes, max_lag)`: a module called with scaled inputs (one tensor
    (B, W, U) a clock), presence masks (B, W), and the reach, which returns movement (B, T, A) in standard
    units and a `LagReadout` of lags, or None.

    Parameters
    ----------
    width : int
        Features of every layer.
    dropout : float
    modality_dropout : float
        Probability that a training window misses a clock, throughout or for a stretch; see `drop_clocks`. It lets a
        decoder go on when a stream fails. Nothing happens with a single clock.
    balance : "none", "ogm-ge" or "blend"
        Hold back the encoder of a clock that is ahead (`update_scales`, `modulated`), or weigh the losses of all
        clocks together and of each alone (`blend_weights`).
    n_steps : int
        Most gradient steps taken.
    batch_size : int
        Windows a step.
    learning_rate, weight_decay : float
        Of AdamW; the rate warms up, then falls along a cosine.
    patience : int
        Validation checks without improvement before stopping.
    check_every : int
        Steps between validation checks.
    causal : bool
        See the past alone.
    seed : int
        Of everything random.
    device : str
        "auto" takes a GPU where there is one.
    progress : bool
        Show a bar on stderr.
    """

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

    network_: Any  # an nn.Module; what more it offers is its own affair

    def _network(self, n_inputs: list[int], n_axes: int, max_lag: int) -> nn.Module:
        raise TypeError(f"{type(self).__name__} does not say what network it trains.")

    @property
    def n_parameters_(self) -> int:
        """Learned numbers."""
        return sum(p.numel() for p in self.network_.parameters())

    def fit(
        self, X: Windows, y: np.ndarray | None = None, *, validation: Windows | None = None
    ) -> TorchDecoder:
        """Train on windows in time order.

        Parameters
        ----------
        X : Windows
        y : ndarray, shape (n_windows, n_steps, n_axes), optional
            Movement; by default the windows' own.
        validation : Windows, optional
            A later stretch to stop on; by default the last 15 % of the training windows.
        """
        if len(X) == 0:
            raise NeurofuseError("there are no training windows; the recording is shorter than one window.")
        check_balance(self.balance, self.modality_dropout)
        target = self._target(X, y)
        if validation is None:
            X, validation, target, check = hold_back(X, target)
        else:
            check = self._target(validation, None)
        self._learn_scales(X, target)
        rng = np.random.default_rng([self.seed, 1])
        generator = torch.Generator().manual_seed(self.seed)
        self.network_ = self._network([len(f) for f in self.features_], self.n_axes_, self.max_lag_)
        initialise(self.network_, generator)
        device = torch.device(check_device(self.device))
        self.network_.to(device)
        if device.type != "cpu":
            _move_dropout(self.network_, torch.Generator(device).manual_seed(self.seed))
        self._descend(X, target, validation, check, rng)
        return self

    history_: dict[str, list[float]]
    """One entry a validation check: `step`; mean losses `train` (as trained, masks and all) and `validation`;
    `gradient/PART`, mean norm since the last check, and `update/PART`, the last update over the weights it
    changed; with more than one clock `only/CLOCK` and `without/CLOCK`, the validation loss with every other
    clock absent and with that one absent; `scale/CLOCK` under "ogm-ge", `weight/...` under "blend"."""

    def _descend(
        self, X: Windows, target: np.ndarray, validation: Windows, check: np.ndarray, rng: np.random.Generator
    ) -> None:
        net = self.network_
        clocks = range(len(self.clocks_))
        parts = clock_parts(net, [len(f) for f in self.features_])
        balance = self.balance if len(clocks) > 1 else "none"
        if balance == "ogm-ge" and not parts:
            raise NeurofuseError(
                f"'{self.name}' has no encoders of single clocks to hold back; choose balance 'blend' or 'none'."
            )
        watch, blend = Watch(net, parts), Blend(len(clocks))
        noise = torch.Generator().manual_seed(self.seed)
        watched, seen = spread_over(validation, N_WATCHED), spread_over(X, N_WATCHED)
        decay, plain = _by_decay(net)
        optimizer = torch.optim.AdamW(
            [{"params": decay, "weight_decay": self.weight_decay}, {"params": plain, "weight_decay": 0.0}],
            lr=self.learning_rate,
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _warm_cosine(self.n_steps))
        best, best_state, waited = math.inf, copy.deepcopy(net.state_dict()), 0
        self.history_ = {}
        recent: list[float] = []
        scales: list[np.ndarray] = []
        order = np.empty(0, dtype=np.int64)
        bar = tqdm(
            total=self.n_steps,
            desc=f"train {self.name}",
            unit="step",
            file=sys.stderr,
            disable=not self.progress,
            # A log file gets a line now and then, a terminal a moving bar.
            mininterval=0.1 if sys.stderr.isatty() else 20.0,
            maxinterval=0.1 if sys.stderr.isatty() else 60.0,
        )
        with bar:
            for step in range(1, self.n_steps + 1):
                if order.size < min(self.batch_size, len(X)):
                    order = np.concatenate([order, rng.permutation(len(X))])
                rows, order = order[: self.batch_size], order[self.batch_size :]
                whole = self._draw(X, rows, rng)
                batch = draw_views(whole, blend.weights, rng) if balance == "blend" else whole
                net.train()
                loss = self._loss(drop_clocks(batch, self.modality_dropout, rng), target[rows])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                watch.see_gradients()
                nn.utils.clip_grad_norm_(net.parameters(), 1.0)
                at_check = step % self.check_every == 0 or step == self.n_steps
                before = watch.copy() if at_check else {}
                holding: Any = nullcontext()
                if balance == "ogm-ge":
                    scales.append(self._update_scales(whole, target[rows]))
                    holding = modulated(parts, scales[-1], generator=noise)
                with holding:
                    optimizer.step()
                schedule.step()
                recent.append(float(loss.detach()))
                bar.update()
                if not at_check:
                    continue
                held = self._mean_loss(validation, check)
                found = {"step": step, "train": float(np.mean(recent)), "validation": held}
                found |= watch.report(before)
                if len(clocks) > 1:
                    found |= self._apart(validation[watched], check[watched])
                if scales:
                    found |= self._by_clock("scale", np.mean(scales, axis=0))
                if balance == "blend":
                    found |= {"weight/all": float(blend.weights[0])}
                    found |= self._by_clock("weight", blend.weights[1:])
                    blend.judge(
                        self._views(X[seen], target[seen]), self._views(validation[watched], check[watched])
                    )
                for name, value in found.items():
                    self.history_.setdefault(name, []).append(value)
                recent, scales = [], []
                bar.set_postfix(validation=f"{held:.3f}", best=f"{min(best, held):.3f}", refresh=False)
                if held < best:
                    best, best_state, waited = held, copy.deepcopy(net.state_dict()), 0
                else:
                    waited += 1
                    if waited >= self.patience:
                        break
        net.load_state_dict(best_state)
        net.eval()

    def _draw(self, X: Windows, rows: np.ndarray, rng: np.random.Generator) -> Batch:
        """A batch to learn from; injected lags are drawn anew."""
        return X.batch(rows, rng=rng)

    def _loss(self, batch: Batch, target: np.ndarray) -> Tensor:
        """Mean squared error in standard units over the tokens where movement is known."""
        said, reading = self.network_(*self._inputs(batch))
        scaled = (target - self.movement_scale_.mean) / self.movement_scale_.std
        true = torch.as_tensor(scaled, dtype=torch.float32, device=said.device)
        # Where another window's stream stands in for the window's own, the movement cannot be asked for.
        foreign = torch.as_tensor(np.isinf(batch.lag).any(axis=(1, 2)), device=said.device)
        there = torch.isfinite(true) & ~foreign[:, None, None]
        wanted = torch.nan_to_num(true)
        loss = torch.where(there, (said - wanted).square(), 0.0).sum() / there.sum().clamp_min(1)
        if not self.network_.training:
            return loss
        return loss + self._more_loss(reading, batch)

    def _more_loss(self, reading: Any, batch: Batch) -> Tensor | float:
        """What training adds to the movement loss; nothing, for decoders that look for no lag."""
        return 0.0

    def _by_clock(self, name: str, values: Any) -> dict[str, float]:
        return {f"{name}/{clock}": float(v) for clock, v in zip(self.clocks_, values, strict=True)}

    def _apart(self, X: Windows, target: np.ndarray) -> dict[str, float]:
        """Loss with only, and without, each clock. Of two clocks one question answers both."""
        clocks = range(len(self.clocks_))
        only = [self._mean_loss(X, target, only=[k]) for k in clocks]
        rest = [[j for j in clocks if j != k] for k in clocks]
        without = only[::-1] if len(only) == 2 else [self._mean_loss(X, target, only=r) for r in rest]
        return self._by_clock("only", only) | self._by_clock("without", without)

    def _views(self, X: Windows, target: np.ndarray) -> list[float]:
        """Loss with all clocks, then with each alone."""
        return [
            self._mean_loss(X, target, only=only) for only in (None, *([k] for k in range(len(self.clocks_))))
        ]

    @torch.no_grad()
    def _update_scales(self, batch: Batch, target: np.ndarray) -> np.ndarray:
        """How far each clock's encoder may go this step, from what each says of some windows alone."""
        self.network_.eval()
        few, said = take(batch, slice(N_JUDGED)), target[:N_JUDGED]
        alone = [float(self._loss(keep_only(few, [k]), said)) for k in range(len(self.clocks_))]
        return update_scales(alone)

    @torch.no_grad()
    def _mean_loss(self, X: Windows, target: np.ndarray, *, only: Collection[int] | None = None) -> float:
        """Of windows as they are, or with some clocks only."""
        self.network_.eval()
        starts = range(0, len(X), DECODE_BATCH)
        losses = []
        for k in starts:
            batch = X.batch(slice(k, k + DECODE_BATCH))
            shown = batch if only is None else keep_only(batch, only)
            losses.append(self._loss(shown, target[k : k + DECODE_BATCH]))
        sizes = [min(DECODE_BATCH, len(X) - k) for k in starts]
        return float(np.average([float(x) for x in losses], weights=sizes))

    def _inputs(self, batch: Batch) -> tuple[Any, ...]:
        device = next(self.network_.parameters()).device
        values = []
        for x, present, scale in zip(batch.values, batch.present, self.input_scales_, strict=True):
            scaled = (x - scale.mean) / scale.std * present[..., None]
            values.append(torch.as_tensor(scaled, dtype=torch.float32, device=device))
        return values, [torch.as_tensor(p, device=device) for p in batch.present], batch.reach

    def decode(self, X: Windows) -> Prediction:
        """Movement and lag posteriors of some windows."""
        self._check_like_training(X)
        return self._decode(X)

    @torch.no_grad()
    def _decode(self, X: Windows, more: Callable[[Windows], tuple[Any, ...]] | None = None) -> Prediction:
        """Decode in batches, with more inputs than a batch gives."""
        self.network_.eval()
        said: list[np.ndarray] = []
        posterior: dict[str, list[np.ndarray]] = {c: [] for c in self.clocks_[1:]}
        path: dict[str, list[np.ndarray]] = {c: [] for c in self.clocks_[1:]}
        match: dict[str, list[np.ndarray]] = {c: [] for c in self.clocks_[1:]}
        for k in range(0, len(X), DECODE_BATCH):
            part = X[k : k + DECODE_BATCH]
            movement, reading = self.network_(
                *self._inputs(part.batch(slice(None))), *(more(part) if more else ())
            )
            said.append(movement.cpu().numpy() * self.movement_scale_.std + self.movement_scale_.mean)
            if reading is None:
                continue
            for clock, p, b, m in zip(
                self.clocks_[1:],
                reading.p_lag,
                self.network_.paths(reading),
                reading.p_matched,
                strict=True,
            ):
                posterior[clock].append(p.cpu().numpy())
                path[clock].append(b.cpu().numpy())
                match[clock].append(m.cpu().numpy())
        found = [c for c in posterior if posterior[c]]
        n_lags = posterior[found[0]][0].shape[-1] if found else 0
        reach_s = self.max_lag_ * self.token_s_
        return Prediction(
            np.concatenate(said) if said else np.empty((0, X.n_steps, self.n_axes_), np.float32),
            {c: np.concatenate(posterior[c]) for c in found},
            {c: np.concatenate(path[c]) for c in found},
            np.linspace(-reach_s, reach_s, n_lags),
            {c: np.concatenate(match[c]) for c in found},
        )

    def _state(self) -> dict[str, np.ndarray]:
        return {k: v.detach().cpu().numpy() for k, v in self.network_.state_dict().items()}

    def _restore(self, state: dict[str, np.ndarray]) -> None:
        self.network_ = self._network([len(f) for f in self.features_], self.n_axes_, self.max_lag_)
        self.network_.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()})
        self.network_.to(check_device(self.device)).eval()


def _by_decay(net: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    matrices = [p for p in net.parameters() if p.ndim >= 2]
    return matrices, [p for p in net.parameters() if p.ndim < 2]


def spread_over(X: Windows, n: int) -> np.ndarray:
    """At most `n` windows, evenly spaced."""
    return np.unique(np.linspace(0, len(X) - 1, min(n, len(X))).round().astype(np.int64))


def _warm_cosine(n_steps: int) -> Callable[[int], float]:
    warm = max(1, n_steps // 20)
    return lambda step: min(
        (step + 1) / warm, 0.5 * (1 + math.cos(math.pi * min(step / n_steps, 1.0))) + 0.01
    )


def _move_dropout(net: nn.Module, generator: torch.Generator) -> None:
    for part in net.modules():
        if hasattr(part, "generator"):
            part.generator = generator  # type: ignore[assignment]
