"""In: single spikes of all clocks. Out: movement from latents that attend to events in continuous time: a perceiver.

After POYO (Azabou et al. 2023, arXiv:2310.16046): a spike is a token, the embedding of its unit at its time; latents
on a regular grid attend to the events, then to each other, and queries at the decoded moments attend to the latents.
Time enters through rotary encoding, so attention depends on time differences only. The clocks are assumed to agree; a
lag between them can only be learned implicitly.

An event is as exact as the fine grid of the tokens that it comes from (5 ms, or the recording's own bins): its time is
the middle of its fine step, and a count of n weighs as much as n events. LFP features enter as one event per token and
clock, a linear map of all channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neurofuse.decoders.base import Prediction
from neurofuse.decoders.neural import TorchDecoder
from neurofuse.errors import NeurofuseError
from neurofuse.nets.encoders import SeededDropout
from neurofuse.windows import EDGE_TOKENS, Batch, Windows

# Shortest and longest period of the rotary encoding, seconds: finer than movement, longer than a window.
PERIODS_S = (0.1, 10.0)
# Added to queries and keys alike, so that attention starts near in time. After 150 steps on the simulation R2 was .47
# with 1 at a rate of 3e-3, .86 with 2, .87 with 1 at a rate of 1e-3.
START_OFFSET = 2.0
LEARNING_RATE = 1e-3
BATCH_SIZE = 16


@dataclass
class Events:
    """The events of some windows, padded to the longest: E events, in any order.

    Times are seconds since the first token of the window began; `due_BE` is the moment from which a causal decoder may
    read an event, for other clocks the largest lag before their time stamp.
    """

    feature_BE: Tensor  # int64, numbered over all features of all clocks
    weight_BE: Tensor  # number of spikes; zero for padding
    time_BE: Tensor
    due_BE: Tensor
    field: list[Tensor]  # (B, W, U) per clock: LFP features of its tokens, zero where spikes are counted
    on: list[Tensor]  # (B, W) per clock: where there is LFP
    field_time: list[Tensor]  # (W,) per clock
    field_due: list[Tensor]  # (W,) per clock


def rotate(x_BHED: Tensor, time_BE: Tensor) -> Tensor:
    """Turn pairs of features by angles that grow with time (Su et al. 2021); products depend on differences only."""
    half = x_BHED.shape[-1] // 2
    low, high = PERIODS_S
    period = low * (high / low) ** (torch.arange(half, device=x_BHED.device) / max(half - 1, 1))
    angle = (2 * math.pi * time_BE[..., None] / period).unsqueeze(-3)
    cos, sin = angle.cos(), angle.sin()
    a, b = x_BHED[..., :half], x_BHED[..., half:]
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


class RotaryAttention(nn.Module):
    """Attention in which keys, queries and values are turned by their times.

    A further key with a score and a value of zero is always there: attention to the events can be small, so that their
    number is not normalised away, and no window is without a key.
    """

    def __init__(self, width: int, *, n_heads: int, head_width: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        inner = n_heads * head_width
        self.query, self.output = nn.Linear(width, inner), nn.Linear(inner, width)
        self.key, self.value = nn.Linear(width, inner), nn.Linear(width, inner)
        self.offset = nn.Parameter(torch.full((inner,), START_OFFSET))

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values before they are turned: the same for all events of one unit."""
        return self.key(x) + self.offset, self.value(x)

    def forward(
        self,
        query_in_BQD: Tensor,
        query_time_Q: Tensor,
        key_BED: Tensor,
        value_BED: Tensor,
        key_time_BE: Tensor,
        bias_BQE: Tensor | None = None,
    ) -> Tensor:
        """Attended values, one per query; `bias_BQE` (its Q may be 1) is added to the scores."""
        query = rotate(self._heads(self.query(query_in_BQD) + self.offset), query_time_Q)
        key, value = (rotate(self._heads(x), key_time_BE) for x in (key_BED, value_BED))
        key, value = F.pad(key, (0, 0, 0, 1)), F.pad(value, (0, 0, 0, 1))
        mask = None if bias_BQE is None else F.pad(bias_BQE, (0, 1))[:, None]
        read = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.output(rotate(read, -query_time_Q).transpose(1, 2).flatten(-2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)


class FeedForward(nn.Module):
    """The second half of a transformer block."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.input, self.output = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.drop = SeededDropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.output(self.drop(F.gelu(self.input(self.norm(x)))))


class PerceiverNetwork(nn.Module):
    """Events to latents, latents among themselves, latents to movement."""

    def __init__(
        self,
        n_inputs: list[int],
        n_axes: int,
        *,
        token_s: float,
        width: int,
        n_heads: int,
        head_width: int,
        n_layers: int,
        latent_every: int,
        n_latents: int,
        dropout: float,
        causal: bool,
    ) -> None:
        super().__init__()
        self.token_s, self.latent_every, self.causal = token_s, latent_every, causal
        kind = {"n_heads": n_heads, "head_width": head_width}
        self.embed = nn.ModuleList(nn.Linear(n, width) for n in n_inputs)
        self.norm = nn.LayerNorm(width)
        self.latent_ND = nn.Parameter(torch.zeros(n_latents, width))
        self.query_D = nn.Parameter(torch.zeros(width))
        self.read_events = RotaryAttention(width, **kind)
        self.feed_events = FeedForward(width, dropout)
        self.attentions = nn.ModuleList(RotaryAttention(width, **kind) for _ in range(n_layers))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(n_layers))
        self.blocks = nn.ModuleList(FeedForward(width, dropout) for _ in range(n_layers))
        self.read_norm = nn.LayerNorm(width)
        self.read_latents = RotaryAttention(width, **kind)
        self.feed_output = FeedForward(width, dropout)
        self.out_norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, n_axes)
        self.drop_events = SeededDropout(dropout)

    def draw_latents(self, generator: torch.Generator) -> None:
        """Draw latents and the query; latents of one moment must differ, or they would stay equal."""
        for p in (self.latent_ND, self.query_D):
            nn.init.normal_(p, std=0.1, generator=generator)

    def forward(self, events: Events, n_tokens: int) -> tuple[Tensor, None]:
        device = self.query_D.device
        # The first latent stands at the start of the window, so that even its first moment has one to attend to.
        latent_s = torch.arange(0, n_tokens + 1, self.latent_every, device=device) * self.token_s
        # A causal decoder reads a token from its end on.
        query_s = (torch.arange(n_tokens, device=device) + (1.0 if self.causal else 0.5)) * self.token_s
        return self.decode(events, latent_s, query_s), None

    def decode(self, events: Events, latent_s: Tensor, query_s: Tensor) -> Tensor:
        """Movement at the moments `query_s` through latents at the moments `latent_s`, shape (B, T, A)."""
        key, value, time_BE, due_BE, log_weight_BE = self._encode_events(events)
        n_latents = len(self.latent_ND)
        time_Q = latent_s.repeat_interleave(n_latents)
        x = self.latent_ND.repeat(len(latent_s), 1).expand(len(key), -1, -1)
        bias = log_weight_BE[:, None]
        if self.causal:
            bias = bias + _not_before(due_BE[:, None], time_Q[:, None], self.token_s)
        x = self.feed_events(x + self.read_events(x, time_Q, key, value, time_BE, bias))
        among = _not_before(time_Q, time_Q[:, None], self.token_s)[None] if self.causal else None
        for norm, attention, block in zip(self.norms, self.attentions, self.blocks, strict=True):
            assert isinstance(attention, RotaryAttention)
            h = norm(x)
            x = block(x + attention(h, time_Q, *attention.keys_values(h), time_Q, among))
        h = self.read_norm(x)
        query_in = self.query_D.expand(len(x), len(query_s), -1)
        over = _not_before(time_Q, query_s[:, None], self.token_s)[None] if self.causal else None
        read = self.read_latents(query_in, query_s, *self.read_latents.keys_values(h), time_Q, over)
        return self.output(self.out_norm(self.feed_output(query_in + read)))

    def _encode_events(self, events: Events) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Keys, values, times, dues and log weights of all events: spikes, then field."""
        table = torch.cat([e.weight.T + e.bias for e in self.embed if isinstance(e, nn.Linear)])
        # Computed once per unit, not once per spike.
        key_U, value_U = self.read_events.keys_values(self.norm(table))
        keys, values = [key_U[events.feature_BE]], [value_U[events.feature_BE]]
        times, dues, weights = [events.time_BE], [events.due_BE], [events.weight_BE]
        for embed, x, on, time, due in zip(
            self.embed, events.field, events.on, events.field_time, events.field_due, strict=True
        ):
            key, value = self.read_events.keys_values(self.norm(embed(x)))
            keys.append(key)
            values.append(value)
            times.append(time.expand(len(x), -1))
            dues.append(due.expand(len(x), -1))
            weights.append(on.to(x.dtype))
        weight = torch.cat(weights, 1)
        kept = weight * (self.drop_events(torch.ones_like(weight)) > 0)
        return torch.cat(keys, 1), torch.cat(values, 1), torch.cat(times, 1), torch.cat(dues, 1), kept.log()


def _not_before(due: Tensor, now: Tensor, token_s: float) -> Tensor:
    """Zero where `due` is not after `now`, to within rounding, for times lie on a grid; minus infinity elsewhere."""
    return torch.where(due <= now + 1e-3 * token_s, 0.0, -math.inf)


class EventWindows(Windows):
    """Windows whose batches are on the fine grid."""

    @classmethod
    def of(cls, windows: Windows) -> EventWindows:
        """The same windows."""
        return cls(**{f.name: getattr(windows, f.name) for f in fields(windows)})

    def batch(self, rows: np.ndarray | slice, **how: Any) -> Batch:
        """Gather some windows; see `Windows.batch`."""
        return super().batch(rows, **({"fine": True} | how))


class PerceiverDecoder(TorchDecoder):
    """A perceiver over single spikes.

    Parameters
    ----------
    n_heads, head_width : int
        Heads of every attention and their size, which must be even.
    n_layers : int
        Self-attention layers of the latents.
    latent_every : int
        Tokens between latents. A causal decoder reads the last ones before a moment, so its information is up to this
        much less one token old.
    n_latents : int
        Latents at each moment of their grid.
    context_s : float
        Events this long before and after a window are read, and those of other clocks the largest lag further.
    **training
        See `TorchDecoder`; `dropout` leaves out events too. By default 16 windows per step at a rate of 1e-3.
    """

    name = "perceiver"

    def __init__(
        self,
        *,
        n_heads: int = 2,
        head_width: int = 32,
        n_layers: int = 2,
        latent_every: int = 2,
        n_latents: int = 1,
        context_s: float = 0.2,
        **training: Any,
    ) -> None:
        super().__init__(**({"learning_rate": LEARNING_RATE, "batch_size": BATCH_SIZE} | training))
        self.n_heads = n_heads
        self.head_width = head_width
        self.n_layers = n_layers
        self.latent_every = latent_every
        self.n_latents = n_latents
        self.context_s = context_s

    def fit(
        self, X: Windows, y: np.ndarray | None = None, *, validation: Windows | None = None
    ) -> PerceiverDecoder:
        """Train on windows in time order; see `TorchDecoder.fit`."""
        target = self.target_of(X, y)
        if validation is not None:
            validation = EventWindows.of(validation)
        super().fit(EventWindows.of(X), target, validation=validation)
        return self

    def decode(self, X: Windows) -> Prediction:
        """Movement of some windows."""
        self.check_windows(X)
        return self.decode_with(EventWindows.of(X))

    def learn_scales(self, X: Windows, target: np.ndarray) -> None:
        super().learn_scales(X, target)
        self.counted_ = [c.counted for c in X.tokens.clocks]

    def network_inputs(self, batch: Batch) -> Any:
        """Non-zero counts of a batch as events, and its LFP features as tokens."""
        n_tokens = batch.movement.shape[1]
        per = batch.values[0].shape[1] // (n_tokens + 2 * batch.reach)
        step_s = self.token_s_ / per
        context = min(math.ceil(self.context_s / self.token_s_), EDGE_TOKENS)
        spikes, field, on, field_time, field_due = [], [], [], [], []
        n_before = 0
        for k, (x, present, scale, counted) in enumerate(
            zip(batch.values, batch.present, self.input_scales_, self.counted_, strict=True)
        ):
            ahead = self.max_lag_ if k else 0
            spare = batch.reach - ahead - context
            x = x[:, spare * per : x.shape[1] - spare * per]
            begin_s = -(ahead + context) * self.token_s_
            window, step, unit = np.nonzero(x * counted)
            end_s = begin_s + (step + 1) * step_s
            spikes.append(
                np.stack(
                    [
                        window,
                        n_before + unit,
                        x[window, step, unit],
                        end_s - step_s / 2,
                        end_s - ahead * self.token_s_,
                    ]
                )
            )
            n_before += len(counted)
            if counted.all():
                field.append(np.zeros((len(x), 0, len(counted))))
                on.append(np.zeros((len(x), 0), dtype=bool))
            else:
                n_recorded = present[:, spare * per : present.shape[1] - spare * per]
                n_recorded = n_recorded.reshape(len(x), -1, per).sum(-1)
                mean = x.reshape(len(x), -1, per, x.shape[-1]).sum(2) / np.maximum(n_recorded, 1)[..., None]
                field.append(scale.to_standard(mean) * ((n_recorded > 0)[..., None] & ~counted))
                on.append(n_recorded > 0)
            token = np.arange(on[-1].shape[1])
            field_time.append(begin_s + (token + 0.5) * self.token_s_)
            field_due.append(begin_s + (token + 1 - ahead) * self.token_s_)
        feature, weight, time, due = _padded(np.concatenate(spikes, axis=1), len(batch.movement))
        device = next(self.network_.parameters()).device

        def tensor(a: np.ndarray) -> Tensor:
            return torch.as_tensor(a, dtype=torch.float32, device=device)

        events = Events(
            tensor(feature).long(),
            tensor(weight),
            tensor(time),
            tensor(due),
            *([tensor(a) for a in part] for part in (field, on, field_time, field_due)),
        )
        return events, n_tokens

    def build_network(self, n_inputs: list[int], n_axes: int, max_lag: int) -> PerceiverNetwork:
        if self.head_width % 2 or self.latent_every < 1 or self.n_latents < 1:
            raise NeurofuseError(
                "head_width must be even, latent_every and n_latents one or more; got "
                f"{self.head_width}, {self.latent_every} and {self.n_latents}."
            )
        network = PerceiverNetwork(
            n_inputs,
            n_axes,
            token_s=self.token_s_,
            width=self.width,
            n_heads=self.n_heads,
            head_width=self.head_width,
            n_layers=self.n_layers,
            latent_every=self.latent_every,
            n_latents=self.n_latents,
            dropout=self.dropout,
            causal=self.causal,
        )
        network.draw_latents(torch.Generator().manual_seed(self.seed))
        return network

    def state(self) -> dict[str, np.ndarray]:
        return super().state() | {f"counted{k}": c for k, c in enumerate(self.counted_)}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        self.counted_ = [state[f"counted{k}"] for k in range(len(self.clocks_))]
        super().restore({k: v for k, v in state.items() if not k.startswith("counted")})


def _padded(event: np.ndarray, n_windows: int) -> np.ndarray:
    """Rows (window, feature, weight, time, due) of events as (4, n_windows, longest), zero where there is none."""
    event = event[:, np.argsort(event[0], kind="stable")]
    window = event[0].astype(np.int64)
    count = np.bincount(window, minlength=n_windows)
    place = np.arange(window.size) - np.repeat(np.cumsum(count) - count, count)
    out = np.zeros((4, n_windows, int(count.max(initial=0))))
    out[:, window, place] = event[1:]
    return out
