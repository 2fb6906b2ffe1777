"""In: tokens of an anchor clock and of clocks that may lag. Out: movement, and a posterior of each clock's lag.

Queries come from the anchor's stream, keys and values from each other clock's. Attention weighs lags, not positions,
and the weights are a posterior: the scores of a band of lags are log-likelihoods of a hidden Markov model whose lag
drifts and jumps. "constant" has one lag per window instead, "softmax" is softmax cross-attention without a lag model,
and "oracle" is given the lag. They differ in nothing else.
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
from neurofuse.errors import NeurofuseError
from neurofuse.lag.attention import LagAttention, LagModel
from neurofuse.lag.banded import band_read
from neurofuse.lag.calibration import calibrate
from neurofuse.lag.hmm import LagGrid, LagLogLik, LagPosterior, LagPrior
from neurofuse.lag.losses import alignment_losses, mismatch_some, recognition_loss
from neurofuse.lag.session import track_lags
from neurofuse.nets.device import check_device
from neurofuse.nets.encoders import MovementHead, StreamEncoder, encode
from neurofuse.windows import EDGE_TOKENS, Batch, Windows, filled

# Validation windows to calibrate on, and lags drawn for each.
N_CALIBRATED = 64
CALIBRATION_DRAWS = 4
# The head convolves the values read together with the anchor's tokens, as early fusion would.
HEAD_DILATIONS = (1, 4, 12)
# A unimodal decoder is trained with this share of the batch size, and of the steps, of the fusion.
UNIMODAL_SHARE = 0.5


@dataclass
class LagReadout:
    """Intermediate results of one pass, for losses and figures: one entry per clock but the anchor."""

    # Of the window's tokens; the mean over heads where heads differ.
    posteriors: list[LagPosterior]
    # Of the window's tokens, where a lag model computed the posterior.
    log_liks: list[LagLogLik]
    # The same in training: queries (B, H, T + edges, D) and keys (B, H, W, D).
    queries_keys: list[tuple[Tensor, Tensor]]
    # Movement predicted from each clock alone, the anchor first, at the lags of the posterior, (B, T, A).
    unimodal: list[Tensor]

    @property
    def p_lag(self) -> list[Tensor]:
        """Probability of each lag, shape (B, T, G)."""
        return [p.p_lag_BTG for p in self.posteriors]

    @property
    def p_matched(self) -> list[Tensor]:
        """Probability of a match, shape (B, T)."""
        return [p.p_matched_BT for p in self.posteriors]


class LagNetwork(nn.Module):
    """One encoder per clock, one attention per clock but the anchor, one head."""

    unimodal_weight_KA: Tensor

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
        lag_model: LagModel,
        fine_lags_per_token: int,
        tokens_per_block: int,
        bidirectional: bool,
        causal: bool,
        prior: LagPrior | None = None,
    ) -> None:
        super().__init__()
        self.max_lag, self.lag_model, self.causal = max_lag, lag_model, causal
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
                lag_model=lag_model,
                fine_lags_per_token=fine_lags_per_token,
                tokens_per_block=tokens_per_block,
                bidirectional=bidirectional,
                causal=causal,
                prior=prior,
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
        # A network per clock, trained by itself: its prediction replaces that of the fusion where all other clocks are
        # missing, and is mixed with it elsewhere, with a weight per axis that held-back windows determined.
        self.unimodal = nn.ModuleList()
        self.register_buffer("unimodal_weight_KA", torch.zeros(len(n_inputs), n_axes))

    @property
    def lag_attentions(self) -> list[LagAttention]:
        """The attentions, one per clock but the anchor."""
        return [a for a in self.attentions if isinstance(a, LagAttention)]

    def forward(
        self,
        values: list[Tensor],
        present: list[Tensor],
        reach: int,
        posteriors: list[LagPosterior] | None = None,
    ) -> tuple[Tensor, LagReadout]:
        """Decode windows; with `posteriors`, one per clock over T and the edges, the lag is not estimated.

        Returns
        -------
        movement, shape (B, T, A), in standard units, and the readout of lags
        """
        # The anchor's own context is EDGE_TOKENS; that of the others reaches the largest lag further.
        edge, spare = EDGE_TOKENS, reach - EDGE_TOKENS
        anchor_present = _trim(present[0], spare)
        embedded, query_in = encode(self.encoders[0], _trim(values[0], spare), anchor_present)
        features, readout = [embedded, query_in], LagReadout([], [], [], [])
        inner_present = [_trim(anchor_present, edge)]
        for c, (encoder, attention) in enumerate(zip(self.encoders[1:], self.lag_attentions, strict=True)):
            value_in, key_in = encode(encoder, values[c + 1], present[c + 1])
            if posteriors is not None:
                posterior = posteriors[c]
                found = attention.read(posterior, query_in, value_in, key_in)
            else:
                query = attention.queries(query_in, anchor_present)
                key = attention.keys(key_in, present[c + 1])
                if self.lag_model == "softmax":
                    found, weight_BHTL = attention.softmax_read(query, key, query_in, value_in, key_in)
                    posterior = LagPosterior.from_weights(weight_BHTL.mean(1))
                else:
                    log_lik = attention.log_lik(query, key)
                    posterior = attention.posterior(*log_lik)
                    found = attention.read(posterior, query_in, value_in, key_in)
                    readout.log_liks.append(LagLogLik(*(_trim(x, edge) for x in log_lik)))
                    if self.training:
                        readout.queries_keys.append((query, key))
            features.append(found)
            inner_present.append(_trim(present[c + 1], reach))
            readout.posteriors.append(posterior.map(lambda x: _trim(x, edge)))
        movement = _trim(self.head(torch.cat(features, -1)), edge)
        if self.unimodal:
            movement = self._mixed(movement, inner_present, values, present, reach, readout)
        return movement, readout

    def _mixed(
        self,
        fused_BTA: Tensor,
        inner_present: list[Tensor],
        values: list[Tensor],
        present: list[Tensor],
        reach: int,
        readout: LagReadout,
    ) -> Tensor:
        """The fusion mixed with unimodal predictions; one of those alone where all other clocks are missing."""
        n_present_BT = torch.stack(inner_present).sum(0)
        movement = fused_BTA
        for k, (net, present_BT) in enumerate(zip(self.unimodal, inner_present, strict=True)):
            if k == 0:
                moved = own = net(values, present, reach)[0]
            elif self.causal:
                # Its prediction reads stamps up to the largest lag ahead, too late to be moved any further.
                moved, own = fused_BTA, net(values, present, reach)[0]
            else:
                whole = net(values, present, 0)[0]
                own = _trim(whole, reach)
                weight_BTL = readout.posteriors[k - 1].p_lag_BTG @ self.lag_attentions[k - 1].hmm.to_tokens_GL
                moved = band_read(weight_BTL[:, None], _trim(whole, EDGE_TOKENS)[:, None])[:, 0]
            readout.unimodal.append(moved)
            both_BT = inner_present[0] & present_BT & (n_present_BT > 1)
            movement = movement + self.unimodal_weight_KA[k] * both_BT[..., None] * (moved - fused_BTA)
            movement = torch.where((present_BT & (n_present_BT == 1))[..., None], own, movement)
        return movement

    def paths(self, readout: LagReadout) -> list[Tensor]:
        """Most probable sequence of lags of each clock, shape (B, T), as indices of fine lags."""
        if not readout.log_liks:
            return [posterior.log_lag_BTG.argmax(-1) for posterior in readout.posteriors]
        return [
            attention.path(*log_lik, posterior)
            for attention, log_lik, posterior in zip(
                self.lag_attentions, readout.log_liks, readout.posteriors, strict=True
            )
        ]


def point_posterior(lag_BT: Tensor, max_lag: int, n_fine: int) -> LagPosterior:
    """All probability on one lag per token, in tokens; split between the two fine lags around it."""
    place = ((lag_BT / max_lag + 1) * (n_fine - 1) / 2).clamp(0, n_fine - 1)
    below = place.floor().clamp(0, n_fine - 2).long()[..., None]
    share = place[..., None] - below
    p_lag_BTG = lag_BT.new_zeros(*lag_BT.shape, n_fine)
    p_lag_BTG.scatter_(-1, below, 1 - share).scatter_add_(-1, below + 1, share)
    return LagPosterior.from_weights(p_lag_BTG)


def _trim(x: Tensor, n: int) -> Tensor:
    return x[:, n:-n] if n else x


class TrackedDecoder(TorchDecoder):
    """Cross-attention whose weights are a lag posterior tracked in time.

    Parameters
    ----------
    n_heads, head_width : int
        Heads of the attention and the size of their queries and keys.
    kernel : int
        Tokens that a convolution spans.
    dilations : sequence of int
        One temporal block each, in every stream's encoder.
    fine_lags_per_token : int
        Resolution of the lag grid. The posterior mean falls between lags at any resolution.
    tokens_per_block : int
        Tokens that share one lag; the hidden Markov model moves from block to block.
    drift : float, optional
        Standard deviation of the lag's random walk after one second, s per root second. By default 0.3 tokens per
        block, which for tokens of 20 ms in blocks of 4 is 0.021 s per root second.
    jumps : float, optional
        Jumps of the lag per second; by default one in 100 blocks, which for the same blocks is 0.125 per second. 0 for
        a lag that never jumps.
    skew_ppm : float, optional
        Instead of `drift`, a clock that runs fast or slow by so many parts per million. The lag then moves by one step
        of its grid now and then, on average m = skew * block / step steps per block, and `drift` is set to that of the
        random walk whose steps have the same mean square: m steps squared per block while m is below 1, which is
        sqrt(skew * step) s per root second. 20 ppm at steps of 20 ms are 0.0006 s per root second.
    adapt_rates : bool
        Drift and jumps start as above, are learned in training, and are estimated anew from every recording that is
        decoded as a session, with a prior centred on what was given here, or else on what was learned (see
        `adapt_rates` in `neurofuse.lag.calibration`). With False they stay as they start.
    bidirectional : bool
        Add to the other clock's tokens what they read of the anchor's, through the same posterior. Not causal.
    align_weight : float
        Weight of the alignment loss, added to the movement loss; see `alignment_loss`. With 0 the lag is learned from
        the movement loss alone.
    unimodal : bool
        Also train a network on each clock by itself. Its prediction replaces that of the fusion where all other clocks
        are missing, and is mixed with it elsewhere, at the lags of the posterior and with weights fitted to held-back
        windows.
    mismatched : float
        Share of training windows whose other clocks are taken from other windows, from which the unmatched state is
        learned.
    augment : float
        Share of training windows with a known lag that are given any lag of the search range instead, constant,
        drifting or jumping, so that a lag absent from the recording can be found.
    **training
        See `TorchDecoder`.
    """

    name = "tracked"
    lag_model: LagModel = "tracked"

    def __init__(
        self,
        *,
        n_heads: int = 4,
        head_width: int = 8,
        kernel: int = 5,
        dilations: tuple[int, ...] = (1, 4),
        fine_lags_per_token: int = 1,
        tokens_per_block: int = 4,
        drift: float | None = None,
        jumps: float | None = None,
        skew_ppm: float | None = None,
        adapt_rates: bool = True,
        bidirectional: bool = False,
        align_weight: float = 0.1,
        unimodal: bool = True,
        mismatched: float = 0.05,
        augment: float = 0.25,
        **training: Any,
    ) -> None:
        super().__init__(**training)
        self.n_heads = n_heads
        self.head_width = head_width
        self.kernel = kernel
        self.dilations = dilations
        self.fine_lags_per_token = fine_lags_per_token
        self.tokens_per_block = tokens_per_block
        self.drift = drift
        self.jumps = jumps
        self.skew_ppm = skew_ppm
        self.adapt_rates = adapt_rates
        self.bidirectional = bidirectional
        self.align_weight = align_weight
        self.unimodal = unimodal
        self.mismatched = mismatched
        self.augment = augment

    def fit(
        self, X: Windows, y: np.ndarray | None = None, *, validation: Windows | None = None
    ) -> TrackedDecoder:
        """Train, then calibrate the posterior on validation windows with a known lag."""
        super().fit(X, y, validation=validation)
        if len(self.clocks_) < 2:
            return self
        if self.lag_model in ("tracked", "constant"):
            self._calibrate(hold_back(X, self.target_of(X, y))[1] if validation is None else validation)
        if self.unimodal:
            self._fit_unimodal(X, y, validation)
        return self

    def _fit_unimodal(self, X: Windows, y: np.ndarray | None, validation: Windows | None) -> None:
        """Train a network per clock, and fit the weights of the mixture on held-back windows."""
        decoders = [
            self._unimodal_decoder(k).fit(X, y, validation=validation) for k in range(len(self.clocks_))
        ]
        target = self.target_of(X, y)
        if validation is None:
            _, check, _, check_target = hold_back(X, target)
        else:
            check, check_target = validation, self.target_of(validation, None)
        self.network_.unimodal.extend(d.network_ for d in decoders)
        predicted_VNTA = np.stack(self._mixture_parts(check))
        scaled = (check_target - self.movement_scale_.mean) / self.movement_scale_.std
        known = np.isfinite(check_target).all(axis=-1)
        for a in range(self.n_axes_):
            weights = convex_weights(predicted_VNTA[:, known, a].T, scaled[known, a])
            self.network_.unimodal_weight_KA[:, a] = torch.as_tensor(weights[1:])

    @torch.no_grad()
    def _mixture_parts(self, X: Windows) -> list[np.ndarray]:
        """Predictions in standard units: of the fusion, then of each clock alone at the lags of the posterior."""
        parts = []
        for k in range(0, len(X), DECODE_BATCH):
            fused, readout = self.network_(*self.network_inputs(X.batch(slice(k, k + DECODE_BATCH))))
            parts.append([x.cpu().numpy() for x in (fused, *readout.unimodal)])
        return [np.concatenate(part) for part in zip(*parts, strict=True)]

    def _unimodal_decoder(self, clock: int) -> StreamDecoder:
        network = ("width", "dropout", "kernel", "causal")
        training = ("learning_rate", "weight_decay", "patience", "check_every", "seed", "device", "progress")
        sizes = {k: max(1, round(UNIMODAL_SHARE * getattr(self, k))) for k in ("n_steps", "batch_size")}
        shared = {name: getattr(self, name) for name in network + training}
        return StreamDecoder(clock=clock, modality_dropout=0.0, **sizes, **shared)

    def restore(self, state: dict[str, np.ndarray]) -> None:
        super().restore({k: v for k, v in state.items() if not k.startswith("unimodal.")})
        sizes = [len(f) for f in self.features_]
        for k in range(len(sizes)):
            prefix = f"unimodal.{k}."
            kept = {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}
            if kept:
                net = self._unimodal_decoder(k).new_network(sizes, self.n_axes_, self.max_lag_)
                net.load_state_dict({n: torch.from_numpy(v) for n, v in kept.items()})
                self.network_.unimodal.append(net.to(check_device(self.device)).eval())

    def _calibrate(self, check: Windows) -> None:
        # On lags drawn as in training, with augmentation.
        rng = np.random.default_rng([self.seed, 3])
        some = spread_over(check, N_CALIBRATED)
        batches = [check.batch(some, rng=rng, augment=self.augment) for _ in range(CALIBRATION_DRAWS)]
        own = self._log_liks(batches)
        mismatched = self._log_liks([mismatch_some(b, 1.0, rng) for b in batches])
        for c, attention in enumerate(self.network_.lag_attentions):
            lag_BT = torch.as_tensor(
                np.concatenate([b.lag[..., c] for b in batches]), device=own[c].unmatched_BT.device
            )
            if bool(torch.isfinite(lag_BT).any()) and len(check) > 1:
                calibrate(
                    attention.hmm,
                    attention.posterior,
                    own[c],
                    mismatched[c],
                    lag_BT,
                    self.max_lag_,
                    self.tokens_per_block,
                )

    @torch.no_grad()
    def _log_liks(self, batches: list[Batch]) -> list[LagLogLik]:
        """Log-likelihoods of the lag of each clock but the anchor, of all windows of some batches."""
        parts = [self.network_(*self.network_inputs(b))[1].log_liks for b in batches]
        return [
            LagLogLik(*(torch.cat(x) for x in zip(*(p[c] for p in parts), strict=True)))
            for c in range(len(self.clocks_) - 1)
        ]

    def draw_batch(self, X: Windows, rows: np.ndarray, rng: np.random.Generator) -> Batch:
        batch = X.batch(rows, rng=rng, augment=self.augment)
        # Softmax attention, and one whose lag is given, have no unmatched state.
        if self.lag_model not in ("tracked", "constant"):
            return batch
        return mismatch_some(batch, self.mismatched, rng)

    @torch.no_grad()
    def decode_session(self, X: Windows) -> Prediction:
        """Movement of some windows of one recording, the lag tracked through all of it.

        The hidden Markov model is not restarted at the edge of a window: every window is decoded with the lag posterior
        given all of them, and in a gap between windows the model goes on without observations. Windows with a lag each
        are decoded one by one.
        """
        if self.lag_model != "tracked" or X.own_lag or len(self.clocks_) < 2 or not len(X):
            return self.decode(X)
        self.check_windows(X)
        self.network_.eval()
        tracks = track_lags(self.network_, X, self.network_inputs, tokens_per_block=self.tokens_per_block)
        prediction = self.decode_with(X, lambda part: ([t.posterior_of(part) for t in tracks],))
        by_clock = dict(zip(self.clocks_[1:], tracks, strict=True))
        return replace(
            prediction,
            path={c: t.path_of(X) for c, t in by_clock.items()},
            rates={c: LagRates(*t.rates.in_seconds(self._grid())) for c, t in by_clock.items()},
        )

    def _grid(self) -> LagGrid:
        return LagGrid(self.tokens_per_block * self.token_s_, self.token_s_ / self.fine_lags_per_token)

    def lag_readout(self, readout: LagReadout) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Posterior, path and probability of a match of each clock but the anchor."""
        paths = self.network_.paths(readout)
        return list(zip(readout.p_lag, paths, readout.p_matched, strict=True))

    def _lag_prior(self) -> LagPrior:
        """The start of drift and jumps; rates that have no effect are refused."""
        given = {"drift": self.drift, "jumps": self.jumps, "skew_ppm": self.skew_ppm}
        without_effect = [name for name, value in given.items() if value is not None]
        if self.lag_model != "tracked" and without_effect:
            raise NeurofuseError(
                f"'{self.name}' has no lag that drifts or jumps, so {without_effect[0]} has no effect; leave it out, "
                "or choose 'tracked'."
            )
        return LagPrior.from_seconds(self._grid(), **given, fixed=not self.adapt_rates)

    def extra_loss(self, readout: LagReadout, batch: Batch) -> Tensor | float:
        loss = self.align_weight * alignment_losses(readout.posteriors, batch, self.max_lag_)
        for c, (query, key) in enumerate(readout.queries_keys):
            unknown = (
                np.isnan(batch.lag[..., c]).all(axis=1)
                & batch.present[0].any(axis=1)
                & batch.present[c + 1].any(axis=1)
            )
            # Where no lag is known, alignment is learned from the contrast between own and other windows.
            if unknown.sum() > 1:
                rows = torch.as_tensor(np.flatnonzero(unknown), device=query.device)
                prior_L = self.network_.lag_attentions[c].hmm.log_prior_L
                loss = loss + self.align_weight * recognition_loss(query[rows], key[rows], prior_L)
        return loss

    def build_network(self, n_inputs: list[int], n_axes: int, max_lag: int) -> LagNetwork:
        if self.bidirectional and self.causal:
            raise NeurofuseError(
                f"'{self.name}' cannot be causal in both directions: what the other clock's tokens read of the anchor "
                "may lie ahead of the moment that is decoded; set bidirectional=False or causal=False."
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
            lag_model=self.lag_model,
            fine_lags_per_token=1 if self.lag_model == "softmax" else self.fine_lags_per_token,
            tokens_per_block=self.tokens_per_block,
            bidirectional=self.bidirectional,
            causal=self.causal,
            prior=self._lag_prior(),
        )


def convex_weights(predicted_NV: np.ndarray, target_N: np.ndarray) -> np.ndarray:
    """Least-squares weights that are not negative and sum to one; shape (V,)."""
    # A heavy last row holds the sum.
    heavy = 1e3 * np.sqrt(np.square(predicted_NV).sum() + 1)
    rows = np.vstack([predicted_NV.astype(np.float64), np.full(predicted_NV.shape[1], heavy)])
    weights, _ = nnls(rows, np.append(target_N, heavy))
    return weights / weights.sum()


class ConstantDecoder(TrackedDecoder):
    """The same with one constant lag per window."""

    name = "constant"
    lag_model: LagModel = "constant"


class SoftmaxDecoder(TrackedDecoder):
    """The same without a lag model: softmax cross-attention, separate for every token and head."""

    name = "softmax"
    lag_model: LagModel = "softmax"


class BidirectionalSoftmaxDecoder(SoftmaxDecoder):
    """Softmax cross-attention in both directions: the other clock's tokens read the anchor's before they are read."""

    name = "softmax-bidirectional"

    def __init__(self, *, bidirectional: bool = True, **more: Any) -> None:
        super().__init__(bidirectional=bidirectional, **more)


class OracleDecoder(TrackedDecoder):
    """The same with the true lag given, in training and test: an upper bound of what tracking can reach.

    Moments whose lag is unknown take that of the nearest moment where it is known, or zero.
    """

    name = "oracle"
    lag_model: LagModel = "given"

    def network_inputs(self, batch: Batch) -> tuple[Any, ...]:
        lag_BTC = torch.as_tensor(filled(batch.lag), device=next(self.network_.parameters()).device)
        wider = (
            F.pad(lag_BTC, (0, 0, EDGE_TOKENS, EDGE_TOKENS), mode="replicate")
            if lag_BTC.shape[-1]
            else lag_BTC
        )
        n_fine = 2 * self.max_lag_ * self.fine_lags_per_token + 1
        return (
            *super().network_inputs(batch),
            [point_posterior(x, self.max_lag_, n_fine) for x in wider.unbind(-1)],
        )
