"""In: `Tokens`. Out: `Windows`, stretches of equal length cut in time order, and the splits between them.

Windows are what every decoder's `fit`, `predict` and `score` take. They hold no data of their own: a batch
is gathered from the tokens when it is asked for, with the second clock moved by the window's injected lag.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from neurofuse.jitters.lag_laws import AnyLag, LagLaw, LagTruth, NoLag, WindowLag
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
    shift : ndarray of int, shape (n_windows, n_steps + 2 * reach, n_clocks - 1)
        Lag injected into each token of each other clock, in fine steps, by its stamp.
    jitter : LagLaw, optional
        The law that drew `shift`. Decoders in training draw from it again at every pass.
    path : ndarray of int, shape (n_tokens, n_clocks - 1), optional
        Where one lag runs through the whole recording: that lag by stamp, of which `shift` is a part.
    truths : tuple of LagTruth, optional
        What is known of the clocks beyond `shift`, one a other clock: given where the recording was moved by
        a known law. Decoders may learn from it.
    """

    tokens: Tokens
    first: np.ndarray
    n_steps: int
    max_lag: int
    shift: np.ndarray
    jitter: LagLaw | None = None
    path: np.ndarray | None = None
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
    def own_lag(self) -> bool:
        """Each window has a lag of its own, so that neighbours say nothing about each other."""
        return self.shift.shape[-1] > 0 and self.jitter is not None and self.path is None

    def without(self, clock: int) -> Windows:
        """The same windows as if the clock of this number had recorded nothing."""
        clocks = [
            replace(c, cover=np.zeros_like(c.cover)) if k == clock else c
            for k, c in enumerate(self.tokens.clocks)
        ]
        return replace(self, tokens=replace(self.tokens, clocks=tuple(clocks)))

    def recut(self, first: np.ndarray, n_steps: int) -> Windows:
        """Windows of another length or place under the same lag, which must run through the recording."""
        if self.own_lag:
            raise NeurofuseError(
                "these windows have a lag each, so they cannot be cut anew; cut them with a path."
            )
        like = replace(self, first=first, n_steps=n_steps)
        return replace(like, shift=_along(self.path, like))

    @property
    def time_s(self) -> np.ndarray:
        """Middle of every token, shape (n_windows, n_steps), seconds on the anchor's clock."""
        return self.tokens.time_s(self.first[:, None] + np.arange(self.n_steps))

    @property
    def lag_s(self) -> np.ndarray:
        """Known lag (s) of each other clock, shape (n_windows, n_steps, n_clocks - 1); NaN where unknown."""
        lag_s = self.injected_s
        if self.truths:
            return lag_s + np.stack([t.at(self.time_s) for t in self.truths], axis=-1)
        return lag_s if self.jitter is not None else np.full_like(lag_s, np.nan)

    @property
    def injected_s(self) -> np.ndarray:
        """The part of the lag (s) that `shift` injects, shape (n_windows, n_steps, n_clocks - 1)."""
        # Which stamp shows a moment depends on all of its clock's lag, not on the injected part alone.
        own = self._own_shift()
        whole = _on_reference(self.shift + own, self.reach, self.n_steps, self.tokens.per_token)
        return self.tokens.fine_s * (whole - own)

    def _own_shift(self) -> np.ndarray:
        """Known lag of the clocks themselves in fine steps, the mean over each window, (n_windows, 1, n_clocks - 1)."""
        if not self.truths:
            return np.zeros((len(self), 1, self.shift.shape[-1]), dtype=np.int64)
        own_s = np.stack([t.at(self.time_s) for t in self.truths], axis=-1)
        there = np.isfinite(own_s)
        mean_s = np.where(there, own_s, 0).sum(axis=1, keepdims=True) / np.maximum(
            there.sum(axis=1, keepdims=True), 1
        )
        return np.rint(mean_s / self.tokens.fine_s).astype(np.int64)

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
        self,
        rows: np.ndarray | slice,
        *,
        rng: np.random.Generator | None = None,
        roam: float = 0.0,
        fine: bool = False,
    ) -> Batch:
        """Gather some windows.

        Parameters
        ----------
        rows : ndarray of int, or slice
        rng : numpy Generator, optional
            Draw the injected lags anew.
        roam : float
            Share of the windows whose lag is known that are then given any lag of the search range instead.
        fine : bool
            Values and presence on the fine grid, `per_token` steps a token; all else, `reach` too, stays in tokens.
        """
        chosen = self[rows]
        if rng is not None and self.jitter is not None:
            chosen = replace(chosen, shift=draw_shifts(self.jitter, chosen, rng=rng))
        if rng is not None and roam:
            chosen = chosen._roaming(roam, rng)
        return chosen._gather(fine=fine)

    def _roaming(self, share: float, rng: np.random.Generator) -> Windows:
        if self.jitter is None and not self.truths:
            return self
        rows = np.flatnonzero(rng.random(len(self)) < share)
        if not rows.size or not self.shift.shape[-1]:
            return self
        # What lag the recording has of itself is taken off, as far as it stays the same all window long.
        wanted = draw_shifts(AnyLag(self.max_lag * self.tokens.token_s), self[rows], rng=rng)
        shift = self.shift.copy()
        shift[rows] = wanted - self[rows]._own_shift()
        return replace(self, shift=shift)

    def _gather(self, *, fine: bool) -> Batch:
        per = self.tokens.per_token
        begin = (self.first[:, None] - self.reach + np.arange(self.n_steps + 2 * self.reach)) * per
        values, present = [], []
        for k, clock in enumerate(self.tokens.clocks):
            # What carries stamp s on a clock that lags by `shift` happened at s - shift.
            moved = begin if k == 0 else begin - self.shift[..., k - 1]
            if fine:
                v, p = clock.gather((moved[..., None] + np.arange(per)).reshape(len(moved), -1), 1)
            else:
                v, p = clock.gather(moved, per)
            values.append(v)
            present.append(p)
        lag = (self.lag_s / self.tokens.token_s).astype(np.float32)
        return Batch(tuple(values), tuple(present), self.movement, lag, self.reach)


@dataclass(frozen=True, eq=False)
class Split:
    """Training, validation and test windows: three stretches in time order with a gap between them."""

    train: Windows
    validation: Windows
    test: Windows


def draw_shifts(law: LagLaw, windows: Windows, *, rng: np.random.Generator) -> np.ndarray:
    """A lag for every token of every window from `law`, within the search range, in fine steps.

    Returns
    -------
    ndarray of int, shape (n_windows, n_steps + 2 * reach, n_clocks - 1)
        One value a window under `WindowLag` (normal, cut off at the search range); a section of a path, clipped
        to it, under any other law.
    """
    tokens = windows.tokens
    n, others, width = len(windows), len(tokens.clocks) - 1, windows.n_steps + 2 * windows.reach
    limit = windows.max_lag * tokens.per_token
    if isinstance(law, NoLag) or not others:
        return np.zeros((n, width, others), dtype=np.int64)
    if isinstance(law, WindowLag):
        drawn = law.level / tokens.fine_s * rng.standard_normal((n, others))
        for _ in range(100):
            outside = np.abs(drawn) > limit
            if not outside.any():
                break
            drawn[outside] = law.level / tokens.fine_s * rng.standard_normal(int(outside.sum()))
        drawn = np.repeat(drawn[:, None], width, axis=1)
    else:
        span_s = tokens.n_tokens * tokens.token_s
        lag_s = law.sections(n * others, width, step_s=tokens.token_s, span_s=span_s, rng=rng)
        drawn = lag_s.reshape(n, others, width).swapaxes(1, 2) / tokens.fine_s
    return np.rint(np.clip(drawn, -limit, limit)).astype(np.int64)


def draw_path(law: LagLaw, tokens: Tokens, *, max_lag_s: float, rng: np.random.Generator) -> np.ndarray:
    """One lag from `law` through a whole recording, by stamp, in fine steps, shape (n_tokens, n_clocks - 1)."""
    time_s = tokens.time_s(np.arange(tokens.n_tokens))
    lag_s = [law.draw(time_s, rng=rng) for _ in tokens.clocks[1:]]
    clipped = np.clip(np.reshape(lag_s, (-1, tokens.n_tokens)).T, -max_lag_s, max_lag_s)
    return np.rint(clipped / tokens.fine_s).astype(np.int64)


def _along(path: np.ndarray | None, windows: Windows) -> np.ndarray:
    """The part of a path that each window and its context sees."""
    stamp = windows.first[:, None] - windows.reach + np.arange(windows.n_steps + 2 * windows.reach)
    if path is None:
        return np.zeros((*stamp.shape, len(windows.tokens.clocks) - 1), dtype=np.int64)
    return path[np.clip(stamp, 0, len(path) - 1)]


def filled(lag_BTC: np.ndarray) -> np.ndarray:
    """Lags with every unknown one taken from the nearest moment of its window where it is known, or zero."""
    known = np.isfinite(lag_BTC)
    n_steps = lag_BTC.shape[1]
    step = np.arange(n_steps)[None, :, None]
    before = np.maximum.accumulate(np.where(known, step, -1), axis=1)
    after = np.minimum.accumulate(np.where(known, step, n_steps)[:, ::-1], axis=1)[:, ::-1]
    nearer = np.where((before < 0) | ((after < n_steps) & (after - step < step - before)), after, before)
    near = np.take_along_axis(lag_BTC, np.clip(nearer, 0, n_steps - 1), axis=1)
    return np.where(np.isfinite(near), near, 0.0)


def _on_reference(shift: np.ndarray, reach: int, n_steps: int, per_token: int) -> np.ndarray:
    """Lag by reference token, in fine steps, from the lag by stamp; NaN where a moment is never shown, or shown twice.

    The lag of moment t is that of the stamp whose content is nearest to t.
    """
    inner = shift[:, reach : reach + n_steps].astype(np.float64)
    moving = (shift != shift[:, :1]).any(axis=1)  # (n_windows, n_clocks - 1)
    stamp = per_token * np.arange(shift.shape[1])
    wanted = per_token * (reach + np.arange(n_steps))
    for row, clock in zip(*np.nonzero(moving), strict=True):
        lag = shift[row, :, clock]
        away = np.abs((stamp - lag)[None, :] - wanted[:, None])
        best = lag[away.argmin(axis=1)]
        never = away.min(axis=1) > per_token
        # After a jump back the same content comes again, under another lag: either would be right.
        twice = ((away <= 0.5 * per_token) & (np.abs(lag[None, :] - best[:, None]) > per_token)).any(axis=1)
        inner[row, :, clock] = np.where(never | twice, np.nan, best)
    return inner


def cut(
    tokens: Tokens,
    *,
    window_s: float = 3.0,
    stride_s: float | None = None,
    max_lag_s: float = 0.5,
    start: int = 0,
    stop: int | None = None,
    whole: bool = True,
    jitter: LagLaw | None = None,
    path: np.ndarray | None = None,
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
    jitter : LagLaw, optional
        Draw a lag for each window and other clock.
    path : ndarray of int, shape (n_tokens, n_clocks - 1), optional
        One lag through the whole recording instead, drawn from `jitter`; see `draw_path`.
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
    windows = Windows(tokens, first, n_steps, max_lag, np.empty((len(first), 0, 0)), jitter, path, truths)
    if jitter is None or path is not None:
        return replace(windows, shift=_along(path, windows))
    return replace(windows, shift=draw_shifts(jitter, windows, rng=rng))


def split(
    tokens: Tokens,
    *,
    window_s: float = 3.0,
    max_lag_s: float = 0.5,
    train: float = 0.7,
    validation: float = 0.1,
    jitter: LagLaw | None = None,
    truths: tuple[LagTruth, ...] = (),
    rng: np.random.Generator,
) -> Split:
    """Part a recording into training, validation and test windows.

    The three are stretches in time order, `train` and `validation` being their shares of the movement. Between
    them lies a gap as long as the context a window reads and a lag of the other clock on top, so that no decoder
    sees test samples in training. With a `jitter`, training and validation windows carry a lag each. Test windows
    do so under `WindowLag` and then lie side by side; under any other law one lag runs through the recording, and
    they overlap by half.

    Raises
    ------
    NeurofuseError
        If a stretch has no room for a window; the sentence says how long the recording would have to be. If the
        shares are not positive, or leave nothing for the test.
    """
    left = 1 - train - validation
    if not (train > 0 and validation > 0 and left > 1e-9):
        raise NeurofuseError(
            f"a share of {train:g} for training and {validation:g} for validation was asked for; both must be "
            "positive and add up to less than 1, for what is left is the test."
        )
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
    own_lag = isinstance(jitter, WindowLag) and len(tokens.clocks) > 1
    path = None
    if jitter is not None and not own_lag:
        path = draw_path(jitter, tokens, max_lag_s=max_lag * tokens.token_s, rng=rng)
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
            path=through,
            truths=truths,
            rng=rng,
        )
        for (lo, hi), stride, through in zip(stretches, strides, (None, None, path), strict=True)
    ]
    for name, part in zip(("training", "validation", "test"), parts, strict=True):
        if len(part) == 0:
            need_s = (n_steps + gap) * tokens.token_s / min(validation, left)
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
