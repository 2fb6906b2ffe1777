"""In: tokens of an anchor clock and of clocks that may lag. Out: movement read through the lags that were found.

Queries come from the anchor's stream, keys and values from each other clock's. What attention weighs is not
positions but lags, and the weights are a posterior: the scores of a band of lags are log-block_log_lik of a
hidden Markov chain that drifts and jumps. With a chain that never moves it is one constant lag a window;
without a chain it is softmax cross-attention; with the lag given it is the oracle. They differ in nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import nnls
from torch import Tensor, nn

from neurofuse.decoders.base import LagRates, Prediction, hold_back
from neurofuse.decoders.late import StreamDecoder
from neurofuse.decoders.neural import DECODE_BATCH, TorchDecoder, spread_over
from neurofuse.lag.attention import Chain, LagAttention
from neurofuse.lag.banded import band_read
from neurofuse.lag.calibration import LagLogLik, calibrate
from neurofuse.lag.hmm import (
    HMMRates,
    LagPosterior,
)
from neurofuse.lag.losses import alignment_losses, mismatch_some, recognition_loss
from neurofuse.lag.session import track_lags
from neurofuse.nets.device import check_device
from neurofuse.nets.encoders import MovementHead, StreamEncoder, encode
from neurofuse.recording import NeurofuseError
from neurofuse.windows import EDGE_TOKENS, Batch, Windows, filled

# Validation windows to calibrate on, and lags drawn for each.
N_CALIBRATED = 64
CALIBRATION_DRAWS = 4
# The head convolves what it read together with the anchor's tokens, as early fusion would.
HEAD_DILATIONS = (1, 4, 12)
# A clock alone is learned from so much of the batches, and of the steps, that clocks together take.
ALONE_SHARE = 0.5


@dataclass
class LagReadout:
    """What one pass of the network leaves behind for losses and figures: one entry a clock but the anchor."""

    beliefs: list[LagPosterior]  # of the window's tokens; the mean over heads where heads differ
    # Where a chain weighed it, evidence of the window's tokens: every lag (B, T, L), and no match (B, T).
    evidence: list[tuple[Tensor, Tensor]]
    asked: list[
        tuple[Tensor, Tensor]
    ]  # with it in training, queries (B, H, T + edges, D) and keys (B, H, W, D)
    voices: list[Tensor]  # with networks for clocks alone, what each says through the alignment, (B, T, A)

    @property
    def posteriors(self) -> list[Tensor]:
        """Probability of each lag, shape (B, T, G)."""
        return [b.lag_BTG for b in self.beliefs]

    @property
    def matches(self) -> list[Tensor]:
        """Probability of a match, shape (B, T)."""
        return [b.match_BT for b in self.beliefs]


class LagNetwork(nn.Module):
    """One encoder a clock, one attention for each clock but the anchor, one head."""

    share_KA: Tensor

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
        chain: Chain,
        lag_steps: int,
        every: int,
        bidirectional: bool,
        causal: bool,
    ) -> None:
        super().__init__()
        self.max_lag, self.chain, self.causal = max_lag, chain, causal
        # Tokens of a window whose encoding lacks context that lies beyond its edges.
        self.warm_up = max(0, (kernel - 1) * sum(dilations) // (1 if causal else 2) - EDGE_TOKENS)
        self.encoders = nn.ModuleList(
            StreamEncoder(n, width, kernel=kernel, dilations=dilations, dropout=dropout, causal=causal)
            for n in n_inputs
        )
        self.attentions = nn.ModuleList(
            LagAttention(
                width,
                n_heads=n_heads,
                head_width=head_width,
                max_lag=max_lag,
                chain=chain,
                lag_steps=lag_steps,
                every=every,
                bidirectional=bidirectional,
                causal=causal,
            )
            for _ in n_inputs[1:]
        )
        self.head = MovementHead(
            width * (len(n_inputs) + 1),
            width,
            n_axes,
            kernel=kernel,
            dilations=HEAD_DILATIONS,
            dropout=dropout,
            causal=causal,
        )
        # A network for each clock, trained by itself, for moments when all others are missing. It speaks beside the
        # fusion too, through the alignment, as much of each axis as held-back windows gave it.
        self.alone = nn.ModuleList()
        self.register_buffer("share_KA", torch.zeros(len(n_inputs), n_axes))

    @property
    def attending(self) -> list[LagAttention]:
        """The attentions, one a clock but the anchor."""
        return [a for a in self.attentions if isinstance(a, LagAttention)]

    def forward(
        self,
        values: list[Tensor],
        present: list[Tensor],
        reach: int,
        beliefs: list[LagPosterior] | None = None,
    ) -> tuple[Tensor, LagReadout]:
        """Decode windows; with `beliefs`, one a clock over T and the edges, the lag is not looked for.

        Returns
        -------
        movement, shape (B, T, A), in standard units, and what was found on the way
        """
        # The anchor's own context is EDGE_TOKENS; that of the others reaches the largest lag further.
        edge, spare = EDGE_TOKENS, reach - EDGE_TOKENS
        there = _trim(present[0], spare)
        plain, asking = encode(self.encoders[0], _trim(values[0], spare), there)
        features, reading = [plain, asking], LagReadout([], [], [], [])
        shown = [_trim(there, edge)]
        for c, (encoder, attention) in enumerate(zip(self.encoders[1:], self.attending, strict=True)):
            told, asked = encode(encoder, values[c + 1], present[c + 1])
            if beliefs is not None:
                belief = beliefs[c]
                found = attention.read(belief, asking, told, asked)
            else:
                query, key = attention.queries(asking, there), attention.keys(asked, present[c + 1])
                if self.chain == "softmax":
                    found, weight_BHTL = attention.softmax_read(query, key, asking, told, asked)
                    belief = LagPosterior.of_weights(weight_BHTL.mean(1))
                else:
                    score, lost = attention.evidence(query, key)
                    belief = attention.posterior(score, lost)
                    found = attention.read(belief, asking, told, asked)
                    reading.evidence.append((_trim(score, edge), _trim(lost, edge)))
                    if self.training:
                        reading.asked.append((query, key))
            features.append(found)
            shown.append(_trim(present[c + 1], reach))
            reading.beliefs.append(belief.map(lambda x: _trim(x, edge)))
        said = _trim(self.head(torch.cat(features, -1)), edge)
        if self.alone:
            said = self._beside(said, shown, values, present, reach, reading)
        return said, reading

    def _beside(
        self,
        fused_BTA: Tensor,
        shown: list[Tensor],
        values: list[Tensor],
        present: list[Tensor],
        reach: int,
        reading: LagReadout,
    ) -> Tensor:
        """Fused movement with shares of what each clock says; of a clock alone where it is all there is."""
        n_shown_BT = torch.stack(shown).sum(0)
        said = fused_BTA
        for k, (net, is_there_BT) in enumerate(zip(self.alone, shown, strict=True)):
            if k == 0:
                voice = own = net(values, present, reach)[0]
            elif self.causal:
                # Its decode of a moment reads stamps up to the largest lag ahead, too late to be moved any further.
                voice, own = fused_BTA, net(values, present, reach)[0]
            else:
                whole = net(values, present, 0)[0]
                own = _trim(whole, reach)
                weight_BTL = reading.beliefs[k - 1].lag_BTG @ self.attending[k - 1].track.down_GL
                voice = band_read(weight_BTL[:, None], _trim(whole, EDGE_TOKENS)[:, None])[:, 0]
            reading.voices.append(voice)
            both_BT = shown[0] & is_there_BT & (n_shown_BT > 1)
            said = said + self.share_KA[k] * both_BT[..., None] * (voice - fused_BTA)
            said = torch.where((is_there_BT & (n_shown_BT == 1))[..., None], own, said)
        return said

    def paths(self, reading: LagReadout) -> list[Tensor]:
        """Most probable sequence of lags of each clock, shape (B, T), as indices of fine lags."""
        if not reading.evidence:
            return [belief.log_lag_BTG.argmax(-1) for belief in reading.beliefs]
        return [
            attention.path(*evidence, belief)
            for attention, evidence, belief in zip(
                self.attending, reading.evidence, reading.beliefs, strict=True
            )
        ]


def on_lag(lag_BT: Tensor, max_lag: int, n_fine: int) -> LagPosterior:
    """All belief on one lag for each token, in tokens; split between the two fine lags around it."""
    place = ((lag_BT / max_lag + 1) * (n_fine - 1) / 2).clamp(0, n_fine - 1)
    below = place.floor().clamp(0, n_fine - 2).long()[..., None]
    share = place[..., None] - below
    lag_BTG = lag_BT.new_zeros(*lag_BT.shape, n_fine)
    lag_BTG.scatter_(-1, below, 1 - share).scatter_add_(-1, below + 1, share)
    return LagPosterior.of_weights(lag_BTG)


def _trim(x: Tensor, n: int) -> Tensor:
    return x[:, n:-n] if n else x


class TrackedDecoder(TorchDecoder):
    """Cross-attention whose weights are a lag posterior tracked in time.

    Parameters
    ----------
    n_heads, head_width : int
        Heads of the attention and the size of their queries and keys.
    kernel : int
        Tokens seen by a convolution.
    dilations : sequence of int
        One temporal block each, in every stream's encoder.
    lag_steps : int
        Fine lags a token, the resolution at which the chain runs. The posterior mean falls between lags anyway.
    track_every : int
        Tokens that share one lag; the chain runs on this coarser clock.
    bidirectional : bool
        Let the other clock's stream read the anchor's through the same posterior before it is read. Not causal.
    align_weight : float
        Weight of the alignment loss beside the movement loss; see `alignment_loss`. With 0 the movement loss
        alone has to find the lag.
    alone : bool
        Also train a network on each clock by itself, which goes on alone where all other clocks are missing, and
        otherwise adds what it says, read through the alignment, as far as held-back windows say that it helps.
    foreign : float
        Share of training windows whose other clocks are taken from other windows, to learn what no match is.
    roam : float
        Share of training windows with a known lag that are given any lag of the search range instead, constant,
        drifting or jumping, so that a lag not met in the recording can be found.
    **training
        See `TorchDecoder`.
    """

    name = "tracked"
    chain: Chain = "tracked"

    def __init__(
        self,
        *,
        n_heads: int = 4,
        head_width: int = 8,
        kernel: int = 5,
        dilations: tuple[int, ...] = (1, 4),
        lag_steps: int = 1,
        track_every: int = 4,
        bidirectional: bool = False,
        align_weight: float = 0.1,
        alone: bool = True,
        foreign: float = 0.05,
        roam: float = 0.25,
        **training: Any,
    ) -> None:
        super().__init__(**training)
        self.n_heads = n_heads
        self.head_width = head_width
        self.kernel = kernel
        self.dilations = dilations
        self.lag_steps = lag_steps
        self.track_every = track_every
        self.bidirectional = bidirectional
        self.align_weight = align_weight
        self.alone = alone
        self.foreign = foreign
        self.roam = roam

    def fit(
        self, X: Windows, y: np.ndarray | None = None, *, validation: Windows | None = None
    ) -> TrackedDecoder:
        """Train, then make the posterior as sure as validation windows with a known lag say it may be."""
        super().fit(X, y, validation=validation)
        if len(self.clocks_) < 2:
            return self
        if self.chain in ("tracked", "constant"):
            self._calibrate(hold_back(X, self._target(X, y))[1] if validation is None else validation)
        if self.alone:
            self._add_alone(X, y, validation)
        return self

    def _add_alone(self, X: Windows, y: np.ndarray | None, validation: Windows | None) -> None:
        """Train a network for each clock, and see on held-back windows how much of the movement each says best."""
        members = [self._member(k).fit(X, y, validation=validation) for k in range(len(self.clocks_))]
        target = self._target(X, y)
        if validation is None:
            _, check, _, true = hold_back(X, target)
        else:
            check, true = validation, self._target(validation, None)
        self.network_.alone.extend(m.network_ for m in members)
        said_VNTA = np.stack(self._voices(check))
        scaled = (true - self.movement_scale_.mean) / self.movement_scale_.std
        there = np.isfinite(true).all(axis=-1)
        for a in range(self.n_axes_):
            weights = convex_weights(said_VNTA[:, there, a].T, scaled[there, a])
            self.network_.share_KA[:, a] = torch.as_tensor(weights[1:])

    @torch.no_grad()
    def _voices(self, X: Windows) -> list[np.ndarray]:
        """What the fusion, then each clock through the alignment, says, in standard units."""
        parts = []
        for k in range(0, len(X), DECODE_BATCH):
            fused, reading = self.network_(*self._inputs(X.batch(slice(k, k + DECODE_BATCH))))
            parts.append([x.cpu().numpy() for x in (fused, *reading.voices)])
        return [np.concatenate(voice) for voice in zip(*parts, strict=True)]

    def _member(self, clock: int) -> StreamDecoder:
        """The decoder of one clock by itself."""
        like = ("width", "dropout", "kernel", "learning_rate", "weight_decay", "patience")
        more = ("check_every", "causal", "seed", "device", "progress")
        sizes = {k: max(1, round(ALONE_SHARE * getattr(self, k))) for k in ("n_steps", "batch_size")}
        shared = {name: getattr(self, name) for name in like + more}
        return StreamDecoder(clock=clock, modality_dropout=0.0, **sizes, **shared)

    def _restore(self, state: dict[str, np.ndarray]) -> None:
        super()._restore({k: v for k, v in state.items() if not k.startswith("alone.")})
        sizes = [len(f) for f in self.features_]
        for k in range(len(sizes)):
            kept = {n.removeprefix(f"alone.{k}."): v for n, v in state.items() if n.startswith(f"alone.{k}.")}
            if kept:
                net = self._member(k)._network(sizes, self.n_axes_, self.max_lag_)
                net.load_state_dict({n: torch.from_numpy(v) for n, v in kept.items()})
                self.network_.alone.append(net.to(check_device(self.device)).eval())

    def _calibrate(self, check: Windows) -> None:
        # On lags drawn as in training, roaming ones among them.
        rng = np.random.default_rng([self.seed, 3])
        some = spread_over(check, N_CALIBRATED)
        batches = [check.batch(some, rng=rng, augment=self.roam) for _ in range(CALIBRATION_DRAWS)]
        own = self._hear(batches)
        foreign = self._hear([mismatch_some(b, 1.0, rng) for b in batches])
        for c, attention in enumerate(self.network_.attending):
            lag_BT = torch.as_tensor(
                np.concatenate([b.lag[..., c] for b in batches]), device=own[c].lost_BT.device
            )
            if bool(torch.isfinite(lag_BT).any()) and len(check) > 1:
                calibrate(
                    attention.track,
                    attention.posterior,
                    own[c],
                    foreign[c],
                    lag_BT,
                    self.max_lag_,
                    self.track_every,
                )

    @torch.no_grad()
    def _hear(self, batches: list[Batch]) -> list[LagLogLik]:
        """Evidence on the lag of each clock but the anchor."""
        heard = [self.network_(*self._inputs(b))[1].evidence for b in batches]
        return [
            LagLogLik(*(torch.cat([h[c][k] for h in heard]) for k in (0, 1)))
            for c in range(len(self.clocks_) - 1)
        ]

    def _draw(self, X: Windows, rows: np.ndarray, rng: np.random.Generator) -> Batch:
        batch = X.batch(rows, rng=rng, augment=self.roam)
        # Without a chain, or told the lag, it has no notion of streams that do not match.
        if self.chain not in ("tracked", "constant"):
            return batch
        return mismatch_some(batch, self.foreign, rng)

    @torch.no_grad()
    def decode_session(self, X: Windows) -> Prediction:
        """Movement of some windows of one recording, the lag tracked through all of it.

        The chain is not restarted at the edge of a window: every window is decoded with what all of them say about
        the lag, and across a gap between them it goes on without evidence. Windows with a lag each are decoded
        one by one.
        """
        if self.chain != "tracked" or X.own_lag or len(self.clocks_) < 2 or not len(X):
            return self.decode(X)
        self._check_like_training(X)
        self.network_.eval()
        tracks = track_lags(self.network_, X, self._inputs, every=self.track_every)
        said = self._decode(X, lambda part: ([t.belief(part) for t in tracks],))
        by_clock = dict(zip(self.clocks_[1:], tracks, strict=True))
        return replace(
            said,
            path={c: t.path_of(X) for c, t in by_clock.items()},
            rates={c: self._in_seconds(t.rates) for c, t in by_clock.items()},
        )

    def _in_seconds(self, rates: HMMRates) -> LagRates:
        block_s, fine_s = self.track_every * self.token_s_, self.token_s_ / self.lag_steps
        return LagRates(float(rates.drift) * fine_s / block_s**0.5, float(rates.jump) / block_s)

    def _more_loss(self, reading: LagReadout, batch: Batch) -> Tensor | float:
        loss = self.align_weight * alignment_losses(reading.beliefs, batch, self.max_lag_)
        for c, (query, key) in enumerate(reading.asked):
            own = (
                np.isnan(batch.lag[..., c]).all(axis=1)
                & batch.present[0].any(axis=1)
                & batch.present[c + 1].any(axis=1)
            )
            # Where no lag is known, telling its own stream from others is what alignment is learned from.
            if own.sum() > 1:
                rows = torch.as_tensor(np.flatnonzero(own), device=query.device)
                prior_L = self.network_.attending[c].track.log_prior_L
                loss = loss + self.align_weight * recognition_loss(query[rows], key[rows], prior_L)
        return loss

    def _network(self, n_inputs: list[int], n_axes: int, max_lag: int) -> LagNetwork:
        if self.bidirectional and self.causal:
            raise NeurofuseError(
                f"'{self.name}' cannot be causal in both directions: what the other clock reads of the anchor may lie "
                "ahead of the moment that asks; set bidirectional=False or causal=False."
            )
        return LagNetwork(
            n_inputs,
            n_axes,
            max_lag,
            width=self.width,
            n_heads=self.n_heads,
            head_width=self.head_width,
            kernel=self.kernel,
            dilations=tuple(self.dilations),
            dropout=self.dropout,
            chain=self.chain,
            lag_steps=1 if self.chain == "softmax" else self.lag_steps,
            every=self.track_every,
            bidirectional=self.bidirectional,
            causal=self.causal,
        )


def convex_weights(said_NV: np.ndarray, true_N: np.ndarray) -> np.ndarray:
    """Weights that are not negative, add up to one, and come closest to the truth in squares; shape (V,)."""
    # A heavy last row holds the sum.
    heavy = 1e3 * np.sqrt(np.square(said_NV).sum() + 1)
    rows = np.vstack([said_NV.astype(np.float64), np.full(said_NV.shape[1], heavy)])
    weights, _ = nnls(rows, np.append(true_N, heavy))
    return weights / weights.sum()


class ConstantDecoder(TrackedDecoder):
    """The same with a lag that never moves inside a window."""

    name = "constant"
    chain: Chain = "constant"


class SoftmaxDecoder(TrackedDecoder):
    """The same without a chain: every token of every head attends for itself, plain softmax cross-attention."""

    name = "softmax"
    chain: Chain = "softmax"


class BidirectionalSoftmaxDecoder(SoftmaxDecoder):
    """Plain softmax cross-attention in both directions: the other clock's stream reads the anchor's, then is read."""

    name = "softmax-bidirectional"

    def __init__(self, *, bidirectional: bool = True, **more: Any) -> None:
        super().__init__(bidirectional=bidirectional, **more)


class OracleDecoder(TrackedDecoder):
    """The same with the true lag given, in training and test: what tracking could reach at best.

    Moments whose lag is not known take that of the nearest moment where it is, or none.
    """

    name = "oracle"
    chain: Chain = "given"

    def _inputs(self, batch: Batch) -> tuple[Any, ...]:
        lag_BTC = torch.as_tensor(filled(batch.lag), device=next(self.network_.parameters()).device)
        wider = (
            F.pad(lag_BTC, (0, 0, EDGE_TOKENS, EDGE_TOKENS), mode="replicate")
            if lag_BTC.shape[-1]
            else lag_BTC
        )
        n_fine = 2 * self.max_lag_ * self.lag_steps + 1
        return (*super()._inputs(batch), [on_lag(x, self.max_lag_, n_fine) for x in wider.unbind(-1)])
