"""In: tokens of all clocks. Out: movement said piece by piece, each piece asking what matters next given those before.

At every step the movement said so far, together with the anchor's tokens of that moment, is the query; keys and
values are the encoded tokens of all clocks in a band around the moment. What was matched so far is carried along as
evidence on the lag of each other clock, so that a step need not begin its search anew; a decoder that may see the
future begins with one look over the whole window. Tokens are encoded once, and a step touches its own band alone: time
grows with the length of a window, never with its square.

In training the movement said so far is given: the truth, the truth with noise, or, for a share of the windows, what
the decoder itself said running free. In use it is always that, from "nothing said yet".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import xarray as xr
from torch import Tensor, nn

from neurofuse.decoders.neural import DECODE_BATCH, TorchDecoder
from neurofuse.lag.banded import band_read, band_scores
from neurofuse.lag.hmm import LagPosterior
from neurofuse.lag.losses import alignment_losses
from neurofuse.nets.encoders import SeededDropout, StreamEncoder, encode
from neurofuse.recording import NeurofuseError
from neurofuse.windows import EDGE_TOKENS, Batch, Windows

# Tokens of the anchor's own stream that can be attended to, on each side; its encoder has seen further.
ANCHOR_BAND = 8
# Where learning starts: sharpness of a match, evidence a token adds, and what is left of it a step later.
START_TEMPERATURE = 4.0
START_GAIN = 0.25
START_KEEP = 0.95


@dataclass
class Attention:
    """What one pass leaves behind: for every clock, the anchor first, how each head weighed its band.

    `weights` are (B, H, T, L) and sum to one over all clocks together; `p_lag` (B, T, L) are, for each clock but
    the anchor, the heads' weights added and made to sum to one over its own lags.
    """

    weights: list[Tensor]
    p_lag: list[Tensor]


@dataclass
class _Code:
    """Encoded tokens of a stretch, ready to be asked: keys and values reach a band further on both sides."""

    anchor_BTD: Tensor
    keys: list[Tensor]  # (B, H, T + L - 1, D), one a clock
    values: list[Tensor]  # the same

    def part(self, start: int, stop: int) -> _Code:
        """The tokens [start, stop) and the bands around them; views, nothing is copied."""
        tail = [key.shape[2] - self.anchor_BTD.shape[1] for key in self.keys]
        return _Code(
            self.anchor_BTD[:, start:stop],
            [k[:, :, start : stop + n] for k, n in zip(self.keys, tail, strict=True)],
            [v[:, :, start : stop + n] for v, n in zip(self.values, tail, strict=True)],
        )


class AutoregressiveNetwork(nn.Module):
    """One encoder a clock, one memory of what was said, attention over all bands, one head."""

    def __init__(
        self,
        n_inputs: list[int],
        n_axes: int,
        max_lag: int,
        *,
        width: int,
        n_heads: int,
        head_width: int,
        kernel: int,
        dilations: tuple[int, ...],
        dropout: float,
        chunk: int,
        n_heard: int,
        causal: bool,
    ) -> None:
        super().__init__()
        self.n_heads, self.chunk, self.n_heard, self.causal = n_heads, chunk, n_heard, causal
        # The anchor's band ends at the present in a causal decoder; other clocks' stamps are read up to the largest
        # lag ahead, as everywhere.
        self.before = [ANCHOR_BAND] + [max_lag] * (len(n_inputs) - 1)
        self.after = [0 if causal else ANCHOR_BAND] + [max_lag] * (len(n_inputs) - 1)
        self.encoders = nn.ModuleList(
            StreamEncoder(n, width, kernel=kernel, dilations=dilations, dropout=dropout, causal=causal)
            for n in n_inputs
        )
        self.key = nn.ModuleList(nn.Linear(width, n_heads * head_width) for _ in n_inputs)
        self.value = nn.ModuleList(nn.Linear(width, width) for _ in n_inputs)
        self.bias_HL = nn.ParameterList(
            torch.zeros(n_heads, b + a + 1) for b, a in zip(self.before, self.after, strict=True)
        )
        self.log_temperature_H = nn.Parameter(torch.full((n_heads,), START_TEMPERATURE).log())
        self.log_gain = nn.Parameter(torch.tensor(START_GAIN).log())
        self.keep_logit = nn.Parameter(torch.tensor(START_KEEP).logit())
        self.hear = nn.Linear(n_axes, width)
        self.nothing = nn.Parameter(torch.zeros(width))
        self.recall = nn.Conv1d(width, width, n_heard, stride=chunk)
        self.place_CD = nn.Parameter(torch.zeros(chunk, width))
        self.drop = SeededDropout(dropout)
        self.query = nn.Linear(2 * width, n_heads * head_width)
        self.enter = nn.Linear(3 * width, 2 * width)
        self.norm = nn.LayerNorm(2 * width)
        self.leave = nn.Linear(2 * width, n_axes)

    def forward(self, values: list[Tensor], present: list[Tensor], reach: int) -> tuple[Tensor, Attention]:
        """Run free: say a chunk, hear it, say the next."""
        code = self.encode(values, present, reach)
        n_tokens = code.anchor_BTD.shape[1]
        heard_BKD = self.nothing.expand(len(values[0]), self.n_heard, -1)
        evidence = self._first_look(code)
        said: list[Tensor] = []
        weights: list[list[Tensor]] = []
        for start in range(0, n_tokens, self.chunk):
            part = code.part(start, min(start + self.chunk, n_tokens))
            history_BTD = self._recall(heard_BKD, part.anchor_BTD.shape[1])
            score = self._scores(history_BTD, part)
            log_weight = self._weigh(score, evidence)
            said.append(self._say(history_BTD, part, log_weight))
            weights.append(log_weight)
            heard_BKD = torch.cat([heard_BKD, self.hear(said[-1])], 1)[:, -self.n_heard :]
            evidence = [self._carry(e, s) for e, s in zip(evidence, score[1:], strict=True)]
        joined = [torch.cat(w, 2) for w in zip(*weights, strict=True)]
        return torch.cat(said, 1), _attention(joined)

    def forced(
        self, values: list[Tensor], present: list[Tensor], reach: int, history_BTA: Tensor
    ) -> tuple[Tensor, Attention]:
        """All steps at once, each after the movement before it in `history_BTA`; NaN there counts as not said."""
        code = self.encode(values, present, reach)
        n_tokens = code.anchor_BTD.shape[1]
        known = torch.isfinite(history_BTA).all(-1, keepdim=True)
        heard_BTD = torch.where(known, self.hear(torch.nan_to_num(history_BTA)), self.nothing)
        # What is said in the last chunk, nobody hears.
        n_before = (n_tokens - 1) // self.chunk * self.chunk
        silence = self.nothing.expand(len(heard_BTD), self.n_heard, -1)
        history_BTD = self._recall(torch.cat([silence, heard_BTD[:, :n_before]], 1), n_tokens)
        score = self._scores(history_BTD, code)
        evidence = []
        for e, s in zip(self._first_look(code), score[1:], strict=True):
            carried = [e]
            for seen in s[:, :, :n_before].unflatten(2, (-1, self.chunk)).unbind(2):
                carried.append(self._carry(carried[-1], seen))
            evidence.append(torch.cat(carried, 1).repeat_interleave(self.chunk, 1)[:, :n_tokens])
        log_weight = self._weigh(score, evidence)
        return self._say(history_BTD, code, log_weight), _attention(log_weight)

    def encode(self, values: list[Tensor], present: list[Tensor], reach: int) -> _Code:
        """Everything that does not depend on what was said."""
        edge, spare = EDGE_TOKENS, reach - EDGE_TOKENS
        keys, read = [], []
        anchor_BTD = values[0].new_empty(0)
        for k, (x, on) in enumerate(zip(values, present, strict=True)):
            if k == 0 and spare:
                x, on = x[:, spare:-spare], on[:, spare:-spare]
            features = encode(self.encoders[k], x, on)[1]
            if k == 0:
                anchor_BTD = features[:, edge:-edge]
            begin = edge - self.before[0] if k == 0 else edge
            end = features.shape[1] - (edge - self.after[0] if k == 0 else edge)
            key = self._heads(self.key[k](features[:, begin:end]))
            keys.append(F.normalize(key, dim=-1) * on[:, None, begin:end, None])
            read.append(self._heads(self.value[k](features[:, begin:end])))
        return _Code(anchor_BTD, keys, read)

    def _heads(self, x_BTD: Tensor) -> Tensor:
        return x_BTD.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)

    def _recall(self, heard_BKD: Tensor, n_tokens: int) -> Tensor:
        """What was said before each chunk, and the place of each token in its chunk."""
        memory_BJD = F.gelu(self.recall(heard_BKD.transpose(1, 2))).transpose(1, 2)
        history_BTD = memory_BJD[:, :, None] + self.place_CD
        return self.drop(history_BTD.flatten(1, 2)[:, :n_tokens])

    def _scores(self, history_BTD: Tensor, code: _Code) -> list[Tensor]:
        asking = self._heads(self.query(torch.cat([history_BTD, code.anchor_BTD], -1)))
        query = F.normalize(asking, dim=-1) * self.log_temperature_H.exp()[:, None, None]
        return [band_scores(query, key) for key in code.keys]

    def _first_look(self, code: _Code) -> list[Tensor]:
        """Evidence on each other clock's lag before anything is said, (B, 1, L): of the whole window, or none yet."""
        n_windows, n_tokens = code.anchor_BTD.shape[:2]
        empty = [code.anchor_BTD.new_zeros(n_windows, 1, k.shape[2] - n_tokens + 1) for k in code.keys[1:]]
        if self.causal or not empty:
            return empty
        silence_BCD = self._recall(self.nothing.expand(n_windows, self.n_heard, -1), self.chunk)
        history_BTD = silence_BCD.repeat(1, -(-n_tokens // self.chunk), 1)[:, :n_tokens]
        score = self._scores(history_BTD, code)[1:]
        return [self._carry(e, s) for e, s in zip(empty, score, strict=True)]

    def _carry(self, evidence_B1L: Tensor, score_BHTL: Tensor) -> Tensor:
        """Evidence after some tokens: what there was fades, what these tokens and all heads saw is added."""
        seen_B1L = score_BHTL.sum((1, 2))[:, None]
        return self.keep_logit.sigmoid() * (evidence_B1L + self.log_gain.exp() * seen_B1L)

    def _weigh(self, score: list[Tensor], evidence: list[Tensor]) -> list[Tensor]:
        """Log weights over the lags of all clocks: one softmax, in which evidence moves weight inside a clock."""
        logit = [s + b[:, None] for s, b in zip(score, self.bias_HL, strict=True)]
        for k, e in enumerate(evidence, 1):
            # The mean over lags is kept at one, so that evidence on the lag says nothing on which clock to ask.
            logit[k] = logit[k] + (e.log_softmax(-1) + np.log(e.shape[-1]))[:, None]
        return list(torch.cat(logit, -1).log_softmax(-1).split([s.shape[-1] for s in score], -1))

    def _say(self, history_BTD: Tensor, code: _Code, log_weight: list[Tensor]) -> Tensor:
        read = sum(band_read(w.exp(), v) for w, v in zip(log_weight, code.values, strict=True))
        assert isinstance(read, Tensor)
        known = torch.cat([history_BTD, code.anchor_BTD, read.transpose(1, 2).flatten(-2)], -1)
        return self.leave(self.drop(F.gelu(self.norm(self.enter(known)))))


def _attention(log_weight: list[Tensor]) -> Attention:
    posteriors = [w.logsumexp(1).softmax(-1) for w in log_weight[1:]]
    return Attention([w.exp() for w in log_weight], posteriors)


class AutoregressiveDecoder(TorchDecoder):
    """Autoregressive cross-attention: what it has said so far decides what it attends to next.

    Parameters
    ----------
    n_heads, head_width : int
        Heads of the attention and the size of their queries and keys.
    kernel : int
        Tokens seen by a convolution.
    dilations : sequence of int
        One temporal block each, in every stream's encoder.
    chunk : int
        Tokens said at a step.
    n_heard : int
        Tokens of its own movement that a step remembers.
    own_share : float
        Share of training windows whose history is what the decoder said running free; the rest hear the truth. Each
        takes a free run beside the gradient step.
    history_noise : float
        Noise added to true histories, in standard deviations of the movement, so that a step does not rely on the
        last word; as good against drift as own histories, and free.
    align_weight : float
        Weight of minus the log probability of the injected lag, where one is known, beside the movement loss.
    **training
        See `TorchDecoder`.
    """

    name = "autoregressive"

    def __init__(
        self,
        *,
        n_heads: int = 4,
        head_width: int = 16,
        kernel: int = 5,
        dilations: tuple[int, ...] = (1, 2, 4),
        chunk: int = 4,
        n_heard: int = 16,
        own_share: float = 0.0,
        history_noise: float = 0.5,
        align_weight: float = 0.1,
        **training: Any,
    ) -> None:
        super().__init__(**training)
        self.n_heads = n_heads
        self.head_width = head_width
        self.kernel = kernel
        self.dilations = dilations
        self.chunk = chunk
        self.n_heard = n_heard
        self.own_share = own_share
        self.history_noise = history_noise
        self.align_weight = align_weight

    def predict_forced(self, X: Windows, y: np.ndarray | None = None) -> np.ndarray:
        """Movement when each step is told the true movement before it: a diagnosis, not a way to decode.

        Parameters
        ----------
        X : Windows
        y : ndarray, shape (n_windows, n_steps, n_axes), optional
            The movement told; by default the windows' own.

        Returns
        -------
        float32 ndarray, shape (n_windows, n_steps, n_axes)
        """
        self.check_windows(X)
        target = self.target_of(X, y)
        self.network_.eval()
        out = []
        with torch.no_grad():
            for k in range(0, len(X), DECODE_BATCH):
                inputs = self.network_inputs(X.batch(slice(k, k + DECODE_BATCH)))
                said, _ = self.network_.forced(*inputs, self._standard(target[k : k + DECODE_BATCH]))
                out.append(said.cpu().numpy() * self.movement_scale_.std + self.movement_scale_.mean)
        return np.concatenate(out)

    def attend(self, X: Windows) -> xr.Dataset:
        """Which tokens of which clock every step attended to, running free.

        Returns
        -------
        Dataset, one variable a clock, dims (window, head, step, lag_CLOCK)
            Weights sum to one over the lags of all clocks together; lags in seconds.
        """
        self.check_windows(X)
        self.network_.eval()
        net, found = self.network_, []
        with torch.no_grad():
            for k in range(0, len(X), DECODE_BATCH):
                _, reading = net(*self.network_inputs(X.batch(slice(k, k + DECODE_BATCH))))
                found.append([w.cpu().numpy() for w in reading.weights])
        table = xr.Dataset()
        for clock, weights, before, after in zip(
            self.clocks_, zip(*found, strict=True), net.before, net.after, strict=True
        ):
            table[clock] = (("window", "head", "step", f"lag_{clock}"), np.concatenate(weights))
            table[f"lag_{clock}"] = np.arange(-before, after + 1) * self.token_s_
        return table

    def loss(self, batch: Batch, target: np.ndarray) -> Tensor:
        """In training every step hears a history; on the validation stretch the decoder runs free."""
        if not self.network_.training:
            return super().loss(batch, target)
        inputs, true = self.network_inputs(batch), self._standard(target)
        said, reading = self.network_.forced(*inputs, self._history(inputs, true))
        there = torch.isfinite(true)
        error = torch.where(there, said - torch.nan_to_num(true), 0.0).square().sum()
        return error / there.sum().clamp_min(1) + self._alignment_loss(reading, batch)

    def lag_readout(self, readout: Attention) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Posterior of each clock but the anchor and its maximum; a match is taken for granted."""
        return [(p, p.argmax(-1), torch.ones_like(p[..., 0])) for p in readout.p_lag]

    @torch.no_grad()
    def _history(self, inputs: Any, true_BTA: Tensor) -> Tensor:
        net, generator = self.network_, self.network_.drop.generator
        draw = {"generator": generator, "device": true_BTA.device}
        history = true_BTA + self.history_noise * torch.randn(true_BTA.shape, **draw)
        if not self.own_share:
            return history
        own = torch.rand(len(true_BTA), **draw) < self.own_share
        if own.any():
            values, present, reach = inputs
            net.eval()
            history[own] = net([v[own] for v in values], [p[own] for p in present], reach)[0]
            net.train()
        return history

    def _standard(self, target: np.ndarray) -> Tensor:
        scaled = (target - self.movement_scale_.mean) / self.movement_scale_.std
        return torch.as_tensor(scaled, dtype=torch.float32, device=next(self.network_.parameters()).device)

    def _alignment_loss(self, reading: Attention, batch: Batch) -> Tensor | float:
        beliefs = [LagPosterior.from_weights(p) for p in reading.p_lag]
        return self.align_weight * alignment_losses(beliefs, batch, self.max_lag_)

    def build_network(self, n_inputs: list[int], n_axes: int, max_lag: int) -> AutoregressiveNetwork:
        if self.chunk < 1 or self.n_heard < 1:
            raise NeurofuseError(
                f"chunk and n_heard must be one token or more, got {self.chunk} and {self.n_heard}."
            )
        return AutoregressiveNetwork(
            n_inputs,
            n_axes,
            max_lag,
            width=self.width,
            n_heads=self.n_heads,
            head_width=self.head_width,
            kernel=self.kernel,
            dilations=tuple(self.dilations),
            dropout=self.dropout,
            chunk=self.chunk,
            n_heard=self.n_heard,
            causal=self.causal,
        )


def drift(decoder: AutoregressiveDecoder, windows: Windows, movement: np.ndarray | None = None) -> xr.Dataset:
    """How decoding changes with the time since a window's first token, running free and told the truth.

    A decoder that runs away from the movement shows it as a free error that grows with the step; one that only
    needs to find its lag first, as one that falls.

    Parameters
    ----------
    decoder : AutoregressiveDecoder
        Fitted.
    windows : Windows
        With movement.
    movement : ndarray, shape (n_windows, n_steps, n_axes), optional
        By default the windows' own.

    Returns
    -------
    Dataset, dims (step, axis)
        `r2_free`, `r2_forced`: one minus the squared error of a step, over the windows, as a share of the axis'
        variance over all steps. `rmse_free`, `rmse_forced`: in the unit of the movement. `time_s`: seconds from the
        start of the window to the middle of the step.
    """
    true = decoder.target_of(windows, movement).astype(np.float64)
    variance = np.nanvar(true.reshape(-1, true.shape[-1]), axis=0)
    axes = windows.tokens.axes if len(windows.tokens.axes) == true.shape[-1] else range(true.shape[-1])
    step = np.arange(true.shape[1])
    table = xr.Dataset(
        coords={
            "step": step,
            "axis": list(axes),
            "time_s": ("step", (step + 0.5) * windows.tokens.token_s),
        }
    )
    for name, said in (
        ("free", decoder.predict(windows)),
        ("forced", decoder.predict_forced(windows, movement)),
    ):
        square = np.nanmean((said - true) ** 2, axis=0)
        table[f"r2_{name}"] = (("step", "axis"), 1 - square / variance)
        table[f"rmse_{name}"] = (("step", "axis"), np.sqrt(square))
    return table
