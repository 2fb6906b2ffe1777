"""In: `Tokens`. Out: `Windows`, stretches of equal length cut in time order, and the splits between them.

Windows are what every decoder's `fit`, `predict` and `score` take. They hold no data of their own: a batch
is gathered from the tokens when it is asked for, with the second clock moved by the window's injected lag.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from neurofuse.jitters.lag import LagTruth, WindowLag
from neurofuse.recording import NeurofuseError
from neurofuse.tokens import Tokens

# Real tokens kept on both sides of a window for encoders to see, beyond the largest lag.
EDGE_TOKENS = 16


@dataclass(frozen=True, eq=False)
class Batch:
    """Some windows as arrays. T tokens a window, W = T + 2 * reach with the context on both sides.

    Parameters
    ----------
    values : tuple of float32 ndarray, shape (B, W, n_features)
        One a clock, the anchor first.
    present : tuple of bool ndarray, shape (B, W)
        Where each clock was recorded.
    movement : float32 ndarray, shape (B, T, n_axes)
        NaN where absent.
    lag : float32 ndarray, shape (B, T, n_clocks - 1)
        Lag of each other clock in tokens, where it is known; NaN elsewhere.
    reach : int
        Tokens of context on each side.
    """

    values: tuple[np.ndarray, ...]
    present: tuple[np.ndarray, ...]
    movement: np.ndarray
    lag: np.ndarray
    reach: int


@dataclass(frozen=True, eq=False)
class Windows:
    """Windows of one recording, a sequence that scikit-learn can index and split.

    Parameters
    ----------
    tokens : Tokens
    first : ndarray of int, shape (n_windows,)
        First token of each window.
    n_steps : int
        Tokens a window.
    max_lag : int
        Largest lag searched, in tokens; windows carry that much context on both sides.
    shift : ndarray of int, shape (n_windows, n_clocks - 1)
        Lag injected into each other clock, in fine steps.
    jitter : WindowLag, optional
        The law that drew `shift`. Decoders in training draw from it again at every pass.
    truths : tuple of LagTruth, optional
        What is known of the clocks beyond `shift`, one a other clock: given where the recording was moved by
        a known law. Decoders may learn from it.
    """

    tokens: Tokens
    first: np.ndarray
    n_steps: int
    max_lag: int
    shift: np.ndarray
    jitter: WindowLag | None = None
    truths: tuple[LagTruth, ...] = ()

    def __len__(self) -> int:
        return len(self.first)

    @property
    def shape(self) -> tuple[int, int]:
        """(n_windows, n_steps)."""
        return len(self.first), self.n_steps

    def __getitem__(self, rows: Any) -> Windows:
        if isinstance(rows, tuple):  # scikit-learn asks for X[rows, ...]
            rows = rows[0]
        if isinstance(rows, (int, np.integer)):
            rows = [int(rows)]
        return replace(self, first=self.first[rows], shift=self.shift[rows])

    @property
    def reach(self) -> int:
        """Tokens of context on each side of a window."""
        return self.max_lag + EDGE_TOKENS

    @property
    def time_s(self) -> np.ndarray:
        """Middle of every token, shape (n_windows, n_steps), seconds on the anchor's clock."""
        return self.tokens.time_s(self.first[:, None] + np.arange(self.n_steps))

    @property
    def lag_s(self) -> np.ndarray:
        """Known lag (s) of each other clock, shape (n_windows, n_steps, n_clocks - 1); NaN where unknown."""
        return self._known_lag(self.first, self.shift)

    def _known_lag(self, first: np.ndarray, shift: np.ndarray) -> np.ndarray:
        lag_s = np.repeat(shift[:, None] * self.tokens.fine_s, self.n_steps, axis=1)
        if self.truths:
            time_s = self.tokens.time_s(first[:, None] + np.arange(self.n_steps))
            return lag_s + np.stack([t.at(time_s) for t in self.truths], axis=-1)
        return lag_s if self.jitter is not None else np.full_like(lag_s, np.nan)

    @property
    def movement(self) -> np.ndarray:
        """Movement, shape (n_windows, n_steps, n_axes), NaN where absent."""
        return self.tokens.movement[self.first[:, None] + np.arange(self.n_steps)]

    @property
    def groups(self) -> np.ndarray:
        """A label a window such that windows of different labels share no token, for grouped splits.

        Windows that overlap form one group, so cut with a stride of a whole window to get many.
        """
        order = np.argsort(self.first, kind="stable")
        label = np.zeros(len(self), dtype=np.int64)
        label[order[1:]] = np.cumsum(np.diff(self.first[order]) >= self.n_steps)
        return label

    def batch(
        self, rows: np.ndarray | slice, *, rng: np.random.Generator | None = None, fine: bool = False
    ) -> Batch:
        """Gather some windows; with `rng`, their injected lags are drawn anew.

        With `fine`, the values and presence of every clock come on the fine grid, `per_token` steps a token; the
        rest, `reach` included, stays in tokens.
        """
        first, shift = self.first[rows], self.shift[rows]
        if rng is not None and self.jitter is not None:
            shift = draw_shifts(self.jitter, shift.shape, self, rng)
        per, width = self.tokens.per_token, self.n_steps + 2 * self.reach
        begin = (first - self.reach) * per
        values, present = [], []
        for k, clock in enumerate(self.tokens.clocks):
            # What carries stamp s on a clock that lags by `shift` happened at s - shift.
            moved = begin if k == 0 else begin - shift[:, k - 1]
            v, p = clock.gather(moved, width * per, 1) if fine else clock.gather(moved, width, per)
            values.append(v)
            present.append(p)
        movement = self.tokens.movement[first[:, None] + np.arange(self.n_steps)]
        lag = (self._known_lag(first, shift) / self.tokens.token_s).astype(np.float32)
        return Batch(tuple(values), tuple(present), movement, lag, self.reach)


@dataclass(frozen=True, eq=False)
class Split:
    """Training, validation and test windows: three stretches in time order with a gap between them."""

    train: Windows
    validation: Windows
    test: Windows


def draw_shifts(
    law: WindowLag, shape: tuple[int, ...], windows: Windows, rng: np.random.Generator
) -> np.ndarray:
    """Injected lags in fine steps, from N(0, level) cut off at the search range."""
    limit = windows.max_lag * windows.tokens.per_token
    drawn = law.level / windows.tokens.fine_s * rng.standard_normal(shape)
    for _ in range(100):
        outside = np.abs(drawn) > limit
        if not outside.any():
            break
        drawn[outside] = law.level / windows.tokens.fine_s * rng.standard_normal(int(outside.sum()))
    return np.rint(np.clip(drawn, -limit, limit)).astype(np.int64)


def cut(
    tokens: Tokens,
    *,
    window_s: float = 3.0,
    stride_s: float | None = None,
    max_lag_s: float = 0.5,
    start: int = 0,
    stop: int | None = None,
    whole: bool = True,
    jitter: WindowLag | None = None,
    truths: tuple[LagTruth, ...] = (),
    rng: np.random.Generator,
) -> Windows:
    """Cut the tokens [start, stop) into windows.

    Movement and the anchor were recorded throughout every window; other clocks may be absent in part.

    Parameters
    ----------
    tokens : Tokens
    window_s, stride_s : float
        Length of a window, and the step to the next (by default a quarter of the length).
    max_lag_s : float
        Largest lag searched.
    start, stop : int
        First and one-past-last token.
    whole : bool
        Lay a last window against the end of a stretch, so that all of it is covered.
    jitter : WindowLag, optional
        Draw a lag for each window and other clock.
    truths : tuple of LagTruth
        What is known of the other clocks; see `Windows`.
    rng : numpy Generator
    """
    n_steps, max_lag = _in_tokens(tokens, window_s, max_lag_s)
    stop = tokens.n_tokens if stop is None else stop
    stride = max(1, round((window_s / 4 if stride_s is None else stride_s) / tokens.token_s))
    begins: list[int] = []
    for lo, hi in _usable(tokens, start, stop):
        if hi - lo < n_steps:
            continue
        run = list(range(lo, hi - n_steps + 1, stride))
        if whole and run[-1] != hi - n_steps:
            run.append(hi - n_steps)
        begins += run
    first = np.array(begins, dtype=np.int64)
    others = len(tokens.clocks) - 1
    windows = Windows(
        tokens, first, n_steps, max_lag, np.zeros((len(first), others), dtype=np.int64), jitter, truths
    )
    if jitter is not None and others and len(first):
        windows = replace(windows, shift=draw_shifts(jitter, (len(first), others), windows, rng))
    return windows


def split(
    tokens: Tokens,
    *,
    window_s: float = 3.0,
    max_lag_s: float = 0.5,
    train: float = 0.7,
    validation: float = 0.1,
    jitter: WindowLag | None = None,
    truths: tuple[LagTruth, ...] = (),
    rng: np.random.Generator,
) -> Split:
    """Part a recording into training, validation and test windows.

    The three are stretches in time order, `train` and `validation` being their shares of the movement. Between
    them lies a gap as long as the context a window reads and a lag of the other clock on top, so that no decoder
    sees test samples in training. Test windows overlap by half, unless each carries its own injected lag: then
    they lie side by side.

    Raises
    ------
    NeurofuseError
        If a stretch has no room for a window; the sentence says how long the recording would have to be.
    """
    n_steps, max_lag = _in_tokens(tokens, window_s, max_lag_s)
    there = (
        np.flatnonzero(np.isfinite(tokens.movement).all(axis=1))
        if tokens.axes
        else np.arange(tokens.n_tokens)
    )
    if there.size == 0:
        raise NeurofuseError(
            "no movement falls into the time of the recording; check that both are on the same clock."
        )
    own_lag = jitter is not None and len(tokens.clocks) > 1
    # A clock that lags shows, at the edge of a window's context, content from up to `max_lag` beyond it.
    gap = 2 * max_lag + EDGE_TOKENS
    begin, end = int(there[0]), int(there[-1]) + 1
    cuts = [there[min(int(share * there.size), there.size - 1)] for share in (train, train + validation)]
    stretches = ((begin, cuts[0]), (cuts[0] + gap, cuts[1]), (cuts[1] + gap, end))
    strides = (window_s / 12, window_s / 2, window_s if own_lag else window_s / 2)
    parts = [
        cut(
            tokens,
            window_s=window_s,
            stride_s=stride,
            max_lag_s=max_lag_s,
            start=lo,
            stop=hi,
            whole=not own_lag,
            jitter=jitter,
            truths=truths,
            rng=rng,
        )
        for (lo, hi), stride in zip(stretches, strides, strict=True)
    ]
    for name, part in zip(("training", "validation", "test"), parts, strict=True):
        if len(part) == 0:
            need_s = (n_steps + gap) * tokens.token_s / min(validation, 1 - train - validation)
            raise NeurofuseError(
                f"the {name} stretch has no room for a window of {window_s:g} s: movement covers "
                f"{there.size * tokens.token_s:.1f} s and about {np.ceil(need_s):.0f} s are needed; "
                "use a shorter --window or --max-lag, or a longer recording."
            )
    return Split(*parts)


def _in_tokens(tokens: Tokens, window_s: float, max_lag_s: float) -> tuple[int, int]:
    n_steps = round(window_s / tokens.token_s)
    if n_steps < 2:
        raise NeurofuseError(
            f"a window of {window_s:g} s holds {n_steps} token(s) of {tokens.token_s:g} s; windows need at least two."
        )
    if len(tokens.clocks) > 1 and not 0 <= max_lag_s < window_s:
        raise NeurofuseError(
            f"the search range of +-{max_lag_s:g} s must be shorter than a window ({window_s:g} s); "
            "lower --max-lag or raise --window."
        )
    searched = len(tokens.clocks) > 1
    return n_steps, max(1, int(np.ceil(max_lag_s / tokens.token_s - 1e-6))) if searched else 0


def _usable(tokens: Tokens, start: int, stop: int) -> list[tuple[int, int]]:
    """Stretches of tokens in which movement and the anchor were recorded throughout."""
    per = tokens.per_token
    cover = np.diff(tokens.clocks[0].cover[::per]) / per
    good = cover >= 0.5
    if tokens.axes:
        good &= np.isfinite(tokens.movement).all(axis=1)
    good[:start] = False
    good[stop:] = False
    edges = np.flatnonzero(np.diff(np.concatenate([[0], good.astype(np.int8), [0]])))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]
