"""In: a decoder trained by gradient descent, and windows. Out: how much of the loss's gradient reaches each module.

What is measured is the gradient of the loss with respect to a module's output, so that modules with many and with few
weights can be compared: everything below the module learns from this signal.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
import xarray as xr
from sklearn.base import clone
from torch import Tensor, nn

from neurofuse.decoders.base import Decoder
from neurofuse.decoders.neural import TorchDecoder
from neurofuse.errors import NeurofuseError
from neurofuse.variables import labelled
from neurofuse.windows import Windows

# Operations of the autograd graph that count as a nonlinear layer. Normalisations rescale, and are not counted.
NONLINEAR = frozenset(
    ("Gelu", "Relu", "LeakyRelu", "Elu", "Silu", "Softplus", "Tanh", "Sigmoid", "Softmax", "LogSoftmax")
    + ("Logsumexp", "Exp", "Log")
)


def gradient_path(decoder: Decoder, windows: Windows) -> xr.Dataset:
    """Size of the movement loss's gradient at every module of a decoder, and the number of layers on its way there.

    Parameters
    ----------
    decoder : TorchDecoder
        Fitted; if not, the network with its initial weights is taken.
    windows : Windows
        With movement; taken as one batch, without dropout.

    Returns
    -------
    Dataset, dims (module,)
        From the loss backwards. `gradient_norm` of the loss with respect to the module's output, in standard units of
        movement, over all windows, tokens and features; `relative_norm`, divided by that at the decoded movement.
        `shortest` and `longest`, the least and the most nonlinear layers between the two, which differ for a residual
        stack. `kind` is the module's class.

    Raises
    ------
    NeurofuseError
        If the decoder is not trained by gradient descent, or there are no windows.
    """
    decoder = _ready(decoder, windows)
    outputs: list[tuple[str, nn.Module, Tensor]] = []
    norms: dict[str, Tensor] = {}

    def note(name: str, module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.requires_grad:
            outputs.append((name, module, output))
            output.register_hook(partial(_add_squares, norms, name))

    def note_movement(_: nn.Module, __: Any, output: Any) -> None:
        outputs.append(("movement", decoder.network_, output[0]))
        output[0].register_hook(partial(_add_squares, norms, "movement"))

    hooks = [m.register_forward_hook(partial(note, name)) for name, m in _watched(decoder.network_)]
    hooks.append(decoder.network_.register_forward_hook(note_movement))
    try:
        _backward(decoder, windows)
    finally:
        for hook in hooks:
            hook.remove()
    movement = outputs[-1][2]
    depth = {pick: _depths(movement, nearest=pick) for pick in (True, False)}
    rows: dict[str, tuple[str, float, int, int]] = {}
    for name, module, output in reversed(outputs):
        if name in norms:
            near, far = (depth[pick].get(output.grad_fn, 0) for pick in (True, False))
            if name in rows:  # called several times: the nearest and the farthest of the calls
                near, far = min(near, rows[name][2]), max(far, rows[name][3])
            rows[name] = (type(module).__name__, float(norms[name].sqrt()), near, far)
    kind, norm, shortest, longest = zip(*rows.values(), strict=True)
    table = xr.Dataset(
        {
            "gradient_norm": ("module", np.array(norm)),
            "relative_norm": ("module", np.array(norm) / max(norm[0], 1e-30)),
            "shortest": ("module", np.array(shortest)),
            "longest": ("module", np.array(longest)),
        },
        coords={"module": list(rows), "kind": ("module", list(kind))},
        attrs={"decoder": decoder.name},
    )
    return labelled(table)


def gradient_over_time(decoder: Decoder, windows: Windows) -> xr.Dataset:
    """Gradient of the loss at the middle token of each window with respect to input tokens, by their distance in time.

    Parameters
    ----------
    decoder : TorchDecoder
        Fitted or not, as for `gradient_path`.
    windows : Windows
        With movement; taken as one batch, without dropout.

    Returns
    -------
    Dataset, dims (clock, offset)
        `gradient_norm` with respect to the scaled input tokens of every clock, over windows and features; `offset` (s)
        is the time stamp of a token minus that of the middle token.
    """
    decoder = _ready(decoder, windows)
    inputs: list[Tensor] = []

    def require_grad(_: nn.Module, arguments: tuple[list[Tensor], list[Tensor], int]) -> None:
        inputs.extend(x.requires_grad_() for x in arguments[0])

    hook = decoder.network_.register_forward_pre_hook(require_grad)
    middle = windows.n_steps // 2
    try:
        _backward(decoder, windows, step=middle)
    finally:
        hook.remove()
    norms = [
        np.zeros(x.shape[1]) if x.grad is None else x.grad.square().sum((0, 2)).sqrt().cpu().numpy()
        for x in inputs
    ]
    offset = np.arange(norms[0].size) - windows.reach - middle
    table = xr.Dataset(
        {"gradient_norm": (("clock", "offset"), np.stack(norms))},
        coords={"clock": decoder.clocks_, "offset": offset * windows.tokens.token_s},
        attrs={"decoder": decoder.name, "token_s": windows.tokens.token_s},
    )
    return labelled(table)


class GradientWatch:
    """Gradient norms recorded by `watch_gradients`, one row per gradient step."""

    def __init__(self) -> None:
        self._rows: list[dict[str, Tensor]] = []
        self._hooks: list[Any] = []

    def attach(self, network: nn.Module) -> None:
        """Record every module that has weights, from the next gradient step on."""
        self._hooks.append(network.register_forward_pre_hook(self._begin))
        self._hooks += [m.register_forward_hook(partial(self._note, name)) for name, m in _watched(network)]

    def detach(self) -> None:
        """Stop recording; the rows are kept."""
        while self._hooks:
            self._hooks.pop().remove()

    def table(self) -> xr.Dataset:
        """Gradient norms by step.

        Returns
        -------
        Dataset, dims (step, module)
            `gradient_norm` of the training loss with respect to each module's output; modules from the input on, NaN
            where one was not reached. Steps count from 1.
        """
        rows = [row for row in self._rows if row]
        names = list(dict.fromkeys(name for row in rows for name in reversed(row)))
        values = [[float(row[n].sqrt()) if n in row else np.nan for n in names] for row in rows]
        table = xr.Dataset(
            {"gradient_norm": (("step", "module"), np.array(values).reshape(len(rows), len(names)))},
            coords={"step": np.arange(1, len(rows) + 1), "module": names},
        )
        return labelled(table)

    def _begin(self, _: nn.Module, __: Any) -> None:
        if torch.is_grad_enabled():
            self._rows.append({})

    def _note(self, name: str, _: nn.Module, __: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.requires_grad:
            output.register_hook(partial(_add_squares, self._rows[-1], name))


@contextmanager
def watch_gradients(decoder: Decoder) -> Iterator[GradientWatch]:
    """Record gradient norms of every module while a decoder is fitted inside the block.

    Training is the same to the last bit, and nothing of the recording stays with the decoder; `table()` has the norms.

    Parameters
    ----------
    decoder : TorchDecoder

    Raises
    ------
    NeurofuseError
        If the decoder is not trained by gradient descent.

    Examples
    --------
    ::

        with watch_gradients(decoder) as watch:
            decoder.fit(parts.train, validation=parts.validation)
        watch.table()["gradient_norm"].sel(module="encoders.1")
    """
    _check_torch(decoder)
    watch = GradientWatch()
    build = decoder.build_network

    def network(*arguments: Any) -> nn.Module:
        built = build(*arguments)
        watch.attach(built)
        return built

    decoder.build_network = network
    try:
        yield watch
    finally:
        del decoder.build_network
        watch.detach()


def _watched(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules that have weights, their own or below them, but for the network as a whole."""
    for name, module in network.named_modules():
        if name and next(module.parameters(), None) is not None:
            yield name, module


def _add_squares(norms: dict[str, Tensor], name: str, gradient: Tensor) -> None:
    squares = gradient.detach().square().sum()
    norms[name] = norms[name] + squares if name in norms else squares


def _check_torch(decoder: Decoder) -> None:
    if not isinstance(decoder, TorchDecoder):
        raise NeurofuseError(
            f"decoder '{decoder.name}' is not trained by gradient descent, so it has no gradients; take one that "
            "is, such as 'tracked'."
        )


def _ready(decoder: Decoder, windows: Windows) -> TorchDecoder:
    """The decoder itself if it is fitted, else a copy with its initial weights."""
    _check_torch(decoder)
    assert isinstance(decoder, TorchDecoder)
    if len(windows) == 0:
        raise NeurofuseError("there are no windows to send a gradient through; give at least one.")
    if hasattr(decoder, "network_"):
        decoder.check_windows(windows)
        decoder.network_.eval()
        return decoder
    fresh: TorchDecoder = clone(decoder)
    fresh.learn_scales(windows, fresh.target_of(windows, None))
    fresh.network_ = fresh.new_network([len(f) for f in fresh.features_], fresh.n_axes_, fresh.max_lag_)
    fresh.network_.eval()
    return fresh


def _backward(decoder: TorchDecoder, windows: Windows, *, step: int | None = None) -> None:
    """Back-propagate the movement loss of one batch, without dropout, of all tokens or of one per window."""
    target = decoder.target_of(windows, None)
    if step is not None:
        # The loss leaves out unknown movement.
        target = np.where(np.arange(windows.n_steps)[:, None] == step, target, np.nan)
    decoder.loss(windows.batch(slice(None)), target).backward()
    decoder.network_.zero_grad(set_to_none=True)


def _depths(output: Tensor, *, nearest: bool) -> dict[Any, int]:
    """Nonlinear operations from `output` back to every node of its graph, by the shortest or the longest path."""
    start: Any = output.grad_fn
    parents: dict[Any, int] = {start: 0}
    stack = [start]
    while stack:
        for node, _ in stack.pop().next_functions:
            if node is not None:
                if node not in parents:
                    parents[node] = 0
                    stack.append(node)
                parents[node] += 1
    # In topological order every node is settled once all nodes that used it are.
    depth, waiting = {start: 0}, deque([start])
    while waiting:
        node = waiting.popleft()
        passed = depth[node] + (node.name().split("Backward")[0].lstrip("_") in NONLINEAR)
        for below, _ in node.next_functions:
            if below is None:
                continue
            depth[below] = (min if nearest else max)(depth.get(below, passed), passed)
            parents[below] -= 1
            if parents[below] == 0:
                waiting.append(below)
    return depth
