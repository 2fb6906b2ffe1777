"""In: tokens of all clocks. Out: movement predicted chunk by chunk, each chunk attending given those before it.

At every step the query is made of the movement predicted so far and the anchor's tokens of that moment; keys and values
are the encoded tokens of all clocks in a band around the moment. Log-likelihood of the lag of each other clock is
accumulated over steps, so that a step need not search anew; a decoder that is not causal starts from that of the whole
window. Tokens are encoded once, and a step reads its own band only: time grows linearly with the length of a window.

In training the history is given (teacher forcing): the true movement, with noise, or, for a share of the windows, the
decoder's own prediction (scheduled sampling). In decoding it is always the prediction, and at first there is none.
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
from neurofuse.errors import NeurofuseError
from neurofuse.lag.banded import band_read, band_scores
from neurofuse.lag.hmm import LagPosterior
from neurofuse.lag.losses import alignment_losses
from neurofuse.nets.encoders import SeededDropout, StreamEncoder, encode
from neurofuse.windows import EDGE_TOKENS, Batch, Windows

# Tokens of the anchor's own stream that can be attended to, on each side; its encoder reads further.
ANCHOR_BAND = 8
# Initial values: inverse temperature of scores, gain of a token's log-likelihood, and what is kept of it per step.
START_INVERSE_TEMPERATURE = 4.0
START_GAIN = 0.25
START_KEEP = 0.95


@dataclass
class Attention:
    """Readout of one pass: the attention weights of every head over the band of every clock, the anchor first.

    `weights` are (B, H, T, L) and sum to one over all clocks together; `p_lag` (B, T, L) are, for each clock but
    the anchor, the heads' weights added and normalised over its own lags.
    """

    weights: list[Tensor]
    p_lag: list[Tensor]


@dataclass
class _Code:
    """Encoded tokens of a stretch; keys and values reach a band further on both sides."""

    anchor_BTD: Tensor
    keys: list[Tensor]  # (B, H, T + L - 1, D), one per clock
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
    """One encoder per clock, one of the predicted movement, attention over all bands, a map to movement."""

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
        n_history: int,
        causal: bool,
    ) -> None:
        super().__init__()
        self.n_heads, self.chunk, self.n_history, self.causal = n_heads, chunk, n_history, causal
        # The anchor's band ends at the present in a causal decoder; time stamps of other clocks are read up to the
        # largest lag ahead, as in every causal decoder.
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
        self.log_inverse_temperature_H = nn.Parameter(torch.full((n_heads,), START_INVERSE_TEMPERATURE).log())
        self.log_gain = nn.Parameter(torch.tensor(START_GAIN).log())
        self.keep_logit = nn.Parameter(torch.tensor(START_KEEP).logit())
        self.embed_movement = nn.Linear(n_axes, width)
        self.no_movement_D = nn.Parameter(torch.zeros(width))
        self.history_conv = nn.Conv1d(width, width, n_history, stride=chunk)
        self.place_CD = nn.Parameter(torch.zeros(chunk, width))
        self.drop = SeededDropout(dropout)
        self.query = nn.Linear(2 * width, n_heads * head_width)
        self.input = nn.Linear(3 * width, 2 * width)
        self.norm = nn.LayerNorm(2 * width)
        self.output = nn.Linear(2 * width, n_axes)

    def forward(self, values: list[Tensor], present: list[Tensor], reach: int) -> tuple[Tensor, Attention]:
        """Free-running: predict a chunk, append it to the history, predict the next."""
        code = self.encode(values, present, reach)
        n_tokens = code.anchor_BTD.shape[1]
        history_BKD = self.no_movement_D.expand(len(values[0]), self.n_history, -1)
        log_lik = self._initial_log_lik(code)
        movement: list[Tensor] = []
        weights: list[list[Tensor]] = []
        for start in range(0, n_tokens, self.chunk):
            part = code.part(start, min(start + self.chunk, n_tokens))
            context_BTD = self._encode_history(history_BKD, part.anchor_BTD.shape[1])
            score = self._scores(context_BTD, part)
            log_weight = self._log_weights(score, log_lik)
            movement.append(self._movement(context_BTD, part, log_weight))
            weights.append(log_weight)
            history_BKD = torch.cat([history_BKD, self.embed_movement(movement[-1])], 1)[:, -self.n_history :]
            log_lik = [self._accumulate(x, s) for x, s in zip(log_lik, score[1:], strict=True)]
        joined = [torch.cat(w, 2) for w in zip(*weights, strict=True)]
        return torch.cat(movement, 1), _attention(joined)

    def forced(
        self, values: list[Tensor], present: list[Tensor], reach: int, history_BTA: Tensor
    ) -> tuple[Tensor, Attention]:
        """Teacher forcing: all steps at once, each given the movement before it, NaN in `history_BTA` where unknown."""
        code = self.encode(values, present, reach)
        n_tokens = code.anchor_BTD.shape[1]
        known = torch.isfinite(history_BTA).all(-1, keepdim=True)
        embedded_BTD = torch.where(
            known, self.embed_movement(torch.nan_to_num(history_BTA)), self.no_movement_D
        )
        # Nothing follows the last chunk.
        n_before = (n_tokens - 1) // self.chunk * self.chunk
        empty = self.no_movement_D.expand(len(embedded_BTD), self.n_history, -1)
        context_BTD = self._encode_history(torch.cat([empty, embedded_BTD[:, :n_before]], 1), n_tokens)
        score = self._scores(context_BTD, code)
        log_lik = []
        for x, s in zip(self._initial_log_lik(code), score[1:], strict=True):
            steps = [x]
            for chunk in s[:, :, :n_before].unflatten(2, (-1, self.chunk)).unbind(2):
                steps.append(self._accumulate(steps[-1], chunk))
            log_lik.append(torch.cat(steps, 1).repeat_interleave(self.chunk, 1)[:, :n_tokens])
        log_weight = self._log_weights(score, log_lik)
        return self._movement(context_BTD, code, log_weight), _attention(log_weight)

    def encode(self, values: list[Tensor], present: list[Tensor], reach: int) -> _Code:
        """Everything that does not depend on predicted movement."""
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

    def _encode_history(self, history_BKD: Tensor, n_tokens: int) -> Tensor:
        """Movement before each chunk, and the place of each token in its chunk, encoded; shape (B, T, D)."""
        chunk_BJD = F.gelu(self.history_conv(history_BKD.transpose(1, 2))).transpose(1, 2)
        context_BTD = chunk_BJD[:, :, None] + self.place_CD
        return self.drop(context_BTD.flatten(1, 2)[:, :n_tokens])

    def _scores(self, context_BTD: Tensor, code: _Code) -> list[Tensor]:
        query_in = self._heads(self.query(torch.cat([context_BTD, code.anchor_BTD], -1)))
        query = F.normalize(query_in, dim=-1) * self.log_inverse_temperature_H.exp()[:, None, None]
        return [band_scores(query, key) for key in code.keys]

    def _initial_log_lik(self, code: _Code) -> list[Tensor]:
        """Log-likelihood of each other clock's lag before the first step, (B, 1, L): of the whole window, or zero."""
        n_windows, n_tokens = code.anchor_BTD.shape[:2]
        empty = [code.anchor_BTD.new_zeros(n_windows, 1, k.shape[2] - n_tokens + 1) for k in code.keys[1:]]
        if self.causal or not empty:
            return empty
        chunk_BCD = self._encode_history(self.no_movement_D.expand(n_windows, self.n_history, -1), self.chunk)
        context_BTD = chunk_BCD.repeat(1, -(-n_tokens // self.chunk), 1)[:, :n_tokens]
        score = self._scores(context_BTD, code)[1:]
        return [self._accumulate(x, s) for x, s in zip(empty, score, strict=True)]

    def _accumulate(self, log_lik_B1L: Tensor, score_BHTL: Tensor) -> Tensor:
        """Log-likelihood after some tokens: scores of these tokens and all heads are added, and the sum decays."""
        added_B1L = score_BHTL.sum((1, 2))[:, None]
        return self.keep_logit.sigmoid() * (log_lik_B1L + self.log_gain.exp() * added_B1L)

    def _log_weights(self, score: list[Tensor], log_lik: list[Tensor]) -> list[Tensor]:
        """Log weights over the lags of all clocks: one softmax, in which `log_lik` moves weight within a clock."""
        logit = [s + b[:, None] for s, b in zip(score, self.bias_HL, strict=True)]
        for k, x in enumerate(log_lik, 1):
            # Its mean over lags is normalised to one, so that it does not move weight between clocks.
            logit[k] = logit[k] + (x.log_softmax(-1) + np.log(x.shape[-1]))[:, None]
        return list(torch.cat(logit, -1).log_softmax(-1).split([s.shape[-1] for s in score], -1))

    def _movement(self, context_BTD: Tensor, code: _Code, log_weight: list[Tensor]) -> Tensor:
        read = sum(band_read(w.exp(), v) for w, v in zip(log_weight, code.values, strict=True))
        assert isinstance(read, Tensor)
        joined = torch.cat([context_BTD, code.anchor_BTD, read.transpose(1, 2).flatten(-2)], -1)
        return self.output(self.drop(F.gelu(self.norm(self.input(joined)))))


def _attention(log_weight: list[Tensor]) -> Attention:
    p_lag = [w.logsumexp(1).softmax(-1) for w in log_weight[1:]]
    return Attention([w.exp() for w in log_weight], p_lag)


class AutoregressiveDecoder(TorchDecoder):
    """Autoregressive cross-attention: the movement predicted so far determines what is attended to next.

    Parameters
    ----------
    n_heads, head_width : int
        Heads of the attention and the size of their queries and keys.
    kernel : int
        Tokens per convolution.
    dilations : sequence of int
        One temporal block each, in every stream's encoder.
    chunk : int
        Tokens predicted per step.
    n_history : int
        Tokens of movement before a step that it is given.
    scheduled_sampling : float
        Share of training windows whose history is the decoder's own free-running prediction; that of the others is the
        true movement (Bengio et al. 2015). Each takes a further pass per gradient step.
    history_noise : float
        Noise added to true histories, in standard deviations of the movement, so that a step does not rely on the last
        token; as good against accumulating errors as scheduled sampling, and without its cost.
    align_weight : float
        Weight of minus the log probability of the injected lag, where one is known, added to the movement loss.
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
        n_history: int = 16,
        scheduled_sampling: float = 0.0,
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
        self.n_history = n_history
        self.scheduled_sampling = scheduled_sampling
        self.history_noise = history_noise
        self.align_weight = align_weight

    def predict_forced(self, X: Windows, y: np.ndarray | None = None) -> np.ndarray:
        """Movement when each step is given the true movement before it: a diagnosis, not a way to decode.

        Parameters
        ----------
        X : Windows
        y : ndarray, shape (n_windows, n_steps, n_axes), optional
            The movement given; by default the windows' own.

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
                scaled, _ = self.network_.forced(*inputs, self._standard(target[k : k + DECODE_BATCH]))
                out.append(self.movement_scale_.from_standard(scaled.cpu().numpy()))
        return np.concatenate(out)

    def attend(self, X: Windows) -> xr.Dataset:
        """Which tokens of which clock every step attended to, free-running.

        Returns
        -------
        Dataset, one variable per clock, dims (window, head, step, lag_CLOCK)
            Weights sum to one over the lags of all clocks together; lags in seconds.
        """
        self.check_windows(X)
        self.network_.eval()
        net, parts = self.network_, []
        with torch.no_grad():
            for k in range(0, len(X), DECODE_BATCH):
                _, readout = net(*self.network_inputs(X.batch(slice(k, k + DECODE_BATCH))))
                parts.append([w.cpu().numpy() for w in readout.weights])
        table = xr.Dataset()
        for clock, weights, before, after in zip(
            self.clocks_, zip(*parts, strict=True), net.before, net.after, strict=True
        ):
            table[clock] = (("window", "head", "step", f"lag_{clock}"), np.concatenate(weights))
            table[f"lag_{clock}"] = np.arange(-before, after + 1) * self.token_s_
        return table

    def loss(self, batch: Batch, target: np.ndarray) -> Tensor:
        """Teacher forcing in training; free-running on validation windows."""
        if not self.network_.training:
            return super().loss(batch, target)
        inputs, scaled = self.network_inputs(batch), self._standard(target)
        movement, readout = self.network_.forced(*inputs, self._history(inputs, scaled))
        known = torch.isfinite(scaled)
        error = torch.where(known, movement - torch.nan_to_num(scaled), 0.0).square().sum()
        return error / known.sum().clamp_min(1) + self.extra_loss(readout, batch)

    def lag_readout(self, readout: Attention) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Posterior of each clock but the anchor and its maximum; a match is assumed."""
        return [(p, p.argmax(-1), torch.ones_like(p[..., 0])) for p in readout.p_lag]

    @torch.no_grad()
    def _history(self, inputs: Any, target_BTA: Tensor) -> Tensor:
        net, generator = self.network_, self.network_.drop.generator
        draw = {"generator": generator, "device": target_BTA.device}
        history = target_BTA + self.history_noise * torch.randn(target_BTA.shape, **draw)
        if not self.scheduled_sampling:
            return history
        own = torch.rand(len(target_BTA), **draw) < self.scheduled_sampling
        if own.any():
            values, present, reach = inputs
            net.eval()
            history[own] = net([v[own] for v in values], [p[own] for p in present], reach)[0]
            net.train()
        return history

    def _standard(self, target: np.ndarray) -> Tensor:
        device = next(self.network_.parameters()).device
        return torch.as_tensor(self.movement_scale_.to_standard(target), dtype=torch.float32, device=device)

    def extra_loss(self, readout: Attention, batch: Batch) -> Tensor | float:
        """Minus the log probability of the known lag."""
        posteriors = [LagPosterior.from_weights(p) for p in readout.p_lag]
        return self.align_weight * alignment_losses(posteriors, batch, self.max_lag_)

    def build_network(self, n_inputs: list[int], n_axes: int, max_lag: int) -> AutoregressiveNetwork:
        if self.chunk < 1 or self.n_history < 1:
            raise NeurofuseError(
                f"chunk and n_history must be one token or more, got {self.chunk} and {self.n_history}."
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
            n_history=self.n_history,
            causal=self.causal,
        )


def error_by_step(
    decoder: AutoregressiveDecoder, windows: Windows, movement: np.ndarray | None = None
) -> xr.Dataset:
    """Error of decoding by the time since a window's first token, free-running and with teacher forcing.

    Where errors accumulate, the free-running error grows with the step; where the lag has to be found first, it falls.

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
    target = decoder.target_of(windows, movement).astype(np.float64)
    n_steps, n_axes = target.shape[1:]
    variance = np.nanvar(target.reshape(-1, n_axes), axis=0)
    axes = windows.tokens.axes if len(windows.tokens.axes) == n_axes else range(n_axes)
    step = np.arange(n_steps)
    table = xr.Dataset(
        coords={
            "step": step,
            "axis": list(axes),
            "time_s": ("step", (step + 0.5) * windows.tokens.token_s),
        }
    )
    for name, decoded in (
        ("free", decoder.predict(windows)),
        ("forced", decoder.predict_forced(windows, movement)),
    ):
        square = np.nanmean((decoded - target) ** 2, axis=0)
        table[f"r2_{name}"] = (("step", "axis"), 1 - square / variance)
        table[f"rmse_{name}"] = (("step", "axis"), np.sqrt(square))
    return table
