"""In: a `Recording`. Out: `Tokens`, every clock's streams on one grid of steps, ready to be cut into windows.

A token is what one clock recorded during one step of `token_s` seconds: spike counts of every unit, the mean
of every LFP feature. Pooling spike events onto the grid loses nothing that an embedding could use: a sum of
unit embeddings over the events of a token equals a linear map of its counts.

Each clock is kept as running sums on a grid `per_token` times finer than the tokens. A window whose second
clock is moved, by any number of fine steps per token, is then the difference of two sums.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from neurofuse.errors import NeurofuseError
from neurofuse.recording import FloatArray, Recording, Signal, Spikes, Stream

# A token with less of its length recorded than this counts as absent.
MIN_COVER = 0.5
# Resolution of injected lags where nothing else is given, seconds.
FINE_STEP_S = 0.005


@dataclass(frozen=True, eq=False)
class ClockTokens:
    """The streams of one clock on the fine grid.

    Parameters
    ----------
    clock : str
    features : tuple of str
        `stream/unit` or `stream/channel`, one per column.
    total : ndarray, shape (n_fine + 1, n_features)
        Running sum of what fell into the fine steps.
    cover : ndarray, shape (n_fine + 1,)
        Running sum of the recorded fraction of the fine steps.
    counted : ndarray of bool, shape (n_features,)
        Counts are summed over a token, everything else is averaged.
    """

    clock: str
    features: tuple[str, ...]
    total: FloatArray
    cover: FloatArray
    counted: np.ndarray

    @property
    def n_features(self) -> int:
        """Number of columns."""
        return len(self.features)

    def gather(self, begin: np.ndarray, per_token: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of many windows at once.

        Parameters
        ----------
        begin : ndarray of int, shape (n_windows, n_tokens)
            Fine step at which each token begins; may lie outside the grid, where data is absent.
        per_token : int
            Fine steps per token.

        Returns
        -------
        values : float32 ndarray, shape (n_windows, n_tokens, n_features)
            Zero where absent.
        present : bool ndarray, shape (n_windows, n_tokens)
        """
        last = len(self.cover) - 1
        if (np.diff(begin, axis=1) == per_token).all():
            # Consecutive tokens share their edges, which halves the work.
            edges = np.clip(np.concatenate([begin, begin[:, -1:] + per_token], axis=1), 0, last)
            cover, values = np.diff(self.cover[edges], axis=1), np.diff(self.total[edges], axis=1)
        else:
            low, high = np.clip(begin, 0, last), np.clip(begin + per_token, 0, last)
            cover, values = self.cover[high] - self.cover[low], self.total[high] - self.total[low]
        cover = cover / per_token
        present = cover >= MIN_COVER
        # A partly recorded token: the rate while it was recorded, as a count or a mean over the whole token.
        share = np.where(present, 1.0 / np.maximum(cover, 1e-9), 0.0)
        values *= share[..., None]
        values[..., ~self.counted] /= per_token
        return values.astype(np.float32), present


@dataclass(frozen=True, eq=False)
class Tokens:
    """A recording as tokens: one `ClockTokens` per clock on a common grid, and movement on its tokens.

    The first clock is the anchor: its tokens are the queries, the tokens of the others the keys. Token k covers
    `origin_s + k * token_s` to one step later.
    """

    token_s: float
    per_token: int
    origin_s: float
    clocks: tuple[ClockTokens, ...]
    movement: np.ndarray  # float32 (n_tokens, n_axes), NaN where absent
    axes: tuple[str, ...]
    units: str

    @property
    def n_tokens(self) -> int:
        """Tokens from the origin to the end of the grid."""
        return len(self.movement)

    @property
    def fine_s(self) -> float:
        """Seconds of a fine step, the resolution of injected lags."""
        return self.token_s / self.per_token

    def time_s(self, token: np.ndarray | int) -> FloatArray:
        """Middle of a token, seconds on the anchor's clock."""
        return self.origin_s + (np.asarray(token, dtype=np.float64) + 0.5) * self.token_s


def default_token_s(recording: Recording) -> float:
    """20 ms, or the coarsest bin or sample interval that the recording comes in, if that is longer."""
    coarse = [s.sample_s for s in recording.signals]
    return max([0.02, *coarse])


def anchor_clock(recording: Recording) -> str:
    """The clock of the queries: the reference if anything was recorded on it, else that of the first stream."""
    if any(s.clock == recording.reference for s in recording.streams):
        return recording.reference
    return next((s.clock for s in recording.spikes), recording.streams[0].clock)


def tokenize(recording: Recording, *, token_s: float | None = None, fine_s: float = FINE_STEP_S) -> Tokens:
    """Put every stream of a recording on one token grid.

    Parameters
    ----------
    recording : Recording
        Its LFP should already be features (`neurofuse.features`): tokens average what they are given.
    token_s : float, optional
        Length of a token; by default 20 ms, or the recording's coarsest bin.
    fine_s : float
        Resolution of injected lags; coarser where the recording itself is.

    Raises
    ------
    NeurofuseError
        If there are no streams, or a token is shorter than the bins it should hold.
    """
    if not recording.streams:
        raise NeurofuseError(
            f"recording '{recording.name}' has no spikes and no LFP; there is nothing to decode from."
        )
    coarsest = default_token_s(recording)
    token_s = coarsest if token_s is None else float(token_s)
    bins = [s for s in recording.signals if s.kind != "lfp"]
    bin_s = max((s.sample_s for s in bins), default=0.0)
    if token_s < bin_s * (1 - 1e-6):
        raise NeurofuseError(
            f"tokens of {token_s:g} s are shorter than the {bin_s:g} s bins of this recording; "
            f"give {bin_s:g} s or more."
        )
    per_token = max(1, round(token_s / max(fine_s, bin_s)))
    fine_s = token_s / per_token
    anchor = anchor_clock(recording)
    order = [anchor, *(c for c in recording.clocks if c != anchor and recording.on(c))]
    origin_s = _origin(recording, anchor)
    stop_s = max([recording.span_s[1], *(s.stop_s for s in recording.streams if len(s.support))])
    n_tokens = int(np.ceil((stop_s - origin_s) / token_s - 1e-6))
    if n_tokens < 2:
        raise NeurofuseError(
            f"recording '{recording.name}' lasts {stop_s - origin_s:g} s, less than two tokens."
        )
    n_fine = n_tokens * per_token
    clocks = tuple(_clock_tokens(recording.on(c), c, origin_s, fine_s, n_fine) for c in order)
    movement, axes, units = _movement_tokens(recording, origin_s, token_s, n_tokens)
    return Tokens(token_s, per_token, origin_s, clocks, movement, axes, units)


def _origin(recording: Recording, anchor: str) -> float:
    """Where token 0 starts: on the anchor's bin edges where it has bins, at or before all data.

    Shifting by whole bins keeps every bin of counts inside one token.
    """
    # A stream with nothing in it has no start; the zero it reports must not stretch the grid.
    binned = [s for s in recording.signals if s.kind != "lfp" and len(s.support)]
    binned.sort(key=lambda s: (s.clock != anchor, -s.sample_s))
    first = min([recording.span_s[0], *(s.start_s for s in recording.streams if len(s.support))])
    if not binned:
        return first
    edge, step = binned[0].start_s, binned[0].sample_s
    return edge - np.ceil((edge - first) / step - 1e-6) * step


def _clock_tokens(
    streams: list[Stream], clock: str, origin_s: float, fine_s: float, n_fine: int
) -> ClockTokens:
    parts = [_fine(s, origin_s, fine_s, n_fine) for s in streams]
    names = [
        f"{s.name}/{n}" for s in streams for n in (s.units["name"] if isinstance(s, Spikes) else s.channels)
    ]
    counted = np.concatenate(
        [
            np.full(p[0].shape[1], isinstance(s, Spikes) or s.kind == "counts")
            for s, p in zip(streams, parts, strict=True)
        ]
    )
    # Streams of one clock are one input: a step counts as recorded as far as all of them were.
    cover = np.min([p[1] for p in parts], axis=0)
    # A step counts by how much of it was recorded: a mean in full, a count by the share in all streams.
    per_step = np.concatenate(
        [
            values * (cover / np.maximum(own, 1e-9) if is_count else cover)[:, None]
            for (values, own), is_count in zip(
                parts, (isinstance(s, Spikes) or s.kind == "counts" for s in streams), strict=True
            )
        ],
        axis=1,
    )
    total = np.concatenate([np.zeros((1, per_step.shape[1])), np.cumsum(per_step, axis=0)])
    return ClockTokens(clock, tuple(names), total, np.concatenate([[0.0], np.cumsum(cover)]), counted)


def _fine(stream: Stream, origin_s: float, fine_s: float, n_fine: int) -> tuple[FloatArray, FloatArray]:
    """What fell into each fine step, and how much of the step was recorded."""
    cover = _cover(stream.support, origin_s, fine_s, n_fine)
    if isinstance(stream, Spikes):
        step = np.floor((stream.times_s - origin_s) / fine_s + 1e-6).astype(np.int64)
        kept = (step >= 0) & (step < n_fine)
        flat = step[kept] * stream.n_units + stream.unit[kept]
        counts = np.bincount(flat, minlength=n_fine * stream.n_units).reshape(n_fine, stream.n_units)
        return counts.astype(np.float64), cover
    return _fine_signal(stream, origin_s, fine_s, n_fine), cover


def _fine_signal(signal: Signal, origin_s: float, fine_s: float, n_fine: int) -> FloatArray:
    """Counts of each fine step, or mean values over what of it was recorded.

    A sample holds until the next is due. So steps share the counts of a bin that reaches into several, and values weigh
    by the time they lasted.
    """
    start_s = signal.time_s
    if start_s.size == 0:
        return np.zeros((n_fine, signal.n_channels))
    lasting_s = np.minimum(signal.sample_s, np.append(np.diff(start_s), np.inf))
    edge_s = origin_s + fine_s * np.arange(n_fine + 1)
    at = np.searchsorted(start_s, edge_s, side="right") - 1
    # How much of its sample lies before each edge.
    share = np.clip((edge_s - start_s[at]) / lasting_s[at], 0.0, 1.0) * (at >= 0)
    at = np.maximum(at, 0)

    def between(mass: FloatArray) -> FloatArray:
        before = np.concatenate([[0.0], np.cumsum(mass)])
        return np.diff(before[at] + share * mass[at])

    known_s = np.maximum(between(lasting_s), 1e-12)
    out = np.empty((n_fine, signal.n_channels))
    # One by one: all at once would take several times the memory of the result.
    for k in range(signal.n_channels):
        samples = signal.data.values[:, k].astype(np.float64)
        out[:, k] = between(samples) if signal.kind == "counts" else between(samples * lasting_s) / known_s
    return out


def _cover(support: FloatArray, origin_s: float, fine_s: float, n_fine: int) -> FloatArray:
    """Fraction of each fine step that lies inside the support."""
    edges = origin_s + fine_s * np.arange(n_fine + 1)
    if len(support) == 0:
        return np.zeros(n_fine)
    knots = support.ravel()
    covered_s = np.concatenate(
        [[0.0], np.cumsum(np.where(np.arange(len(knots) - 1) % 2 == 0, np.diff(knots), 0.0))]
    )
    cover = np.diff(np.interp(edges, knots, covered_s)) / fine_s
    return np.where(cover > 1 - 1e-6, 1.0, np.maximum(cover, 0.0))


def _movement_tokens(
    recording: Recording, origin_s: float, token_s: float, n_tokens: int
) -> tuple[np.ndarray, tuple[str, ...], str]:
    """Movement on tokens: the mean of the samples in a token, or interpolated where they come slower."""
    movement = recording.movement
    if movement is None:
        return np.full((n_tokens, 0), np.nan, dtype=np.float32), (), ""
    time_s, values = movement.time_s, np.asarray(movement.data.values, dtype=np.float64)
    out = np.full((n_tokens, values.shape[1]), np.nan)
    if movement.sample_s <= 1.001 * token_s:
        token = np.floor((time_s - origin_s) / token_s + 1e-3).astype(np.int64)
        kept = (token >= 0) & (token < n_tokens)
        count = np.bincount(token[kept], minlength=n_tokens)
        for k in range(values.shape[1]):
            total = np.bincount(token[kept], weights=values[kept, k], minlength=n_tokens)
            out[:, k] = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    if movement.sample_s > 0.5 * token_s:
        middle = origin_s + token_s * (np.arange(n_tokens) + 0.5)
        empty = np.isnan(out[:, 0]) & (_cover(movement.support, origin_s, token_s, n_tokens) >= MIN_COVER)
        for k in range(values.shape[1]):
            out[empty, k] = np.interp(middle[empty], time_s, values[:, k])
    return out.astype(np.float32), tuple(movement.axes), movement.units
