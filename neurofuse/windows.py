"""In: `Tokens`. Out: `Windows`, stretches of equal length in time order, and their splits.

Windows are the input of every decoder's `fit`, `predict` and `score`. They contain no data of their own: a batch is
gathered from the tokens on demand, with the other clocks moved by the window's injected lag.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from neurofuse.errors import NeurofuseError
from neurofuse.jitters.jitter import LagTruth
from neurofuse.jitters.lag_laws import AnyLag, LagJitter, NoLag, WindowLag
from neurofuse.tokens import ClockTokens, Tokens

# Tokens of context on both sides of a window, beyond the largest lag, for the receptive fields of encoders.
EDGE_TOKENS = 16


@dataclass(frozen=True, eq=False)
class Batch:
    """Some windows as arrays: T tokens per window, W = T + 2 * reach with the context on both sides.

    Parameters
    ----------
    values : tuple of float32 ndarray, shape (B, W, n_features)
        One per clock, the anchor first.
    present : tuple of bool ndarray, shape (B, W)
        Where each clock was recorded.
    movement : float32 ndarray, shape (B, T, n_axes)
        NaN where absent.
    lag : float32 ndarray, shape (B, T, n_clocks - 1)
        True lag of each other clock in tokens; NaN where unknown.
    reach : int
        Tokens of context on each side.
    """

    values: tuple[np.ndarray, ...]
    present: tuple[np.ndarray, ...]
    movement: np.ndarray
    lag: np.ndarray
    reach: int

    def __repr__(self) -> str:
        n, n_steps, n_axes = self.movement.shape
        features = " + ".join(str(v.shape[-1]) for v in self.values)
        return (
            f"Batch: {n} windows of {n_steps} tokens with {self.reach} of context on each side, {features} features, "
            f"{n_axes} movement axes"
        )


@dataclass(frozen=True, eq=False)
class Windows:
    """Windows of one recording: a sequence that scikit-learn can index and split.

    Parameters
    ----------
    tokens : Tokens
    first : ndarray of int, shape (n_windows,)
        First token of each window.
    n_steps : int
        Tokens per window.
    max_lag : int
        Largest lag searched, in tokens; windows have that much context on both sides.
    shift : ndarray of int, shape (n_windows, n_steps + 2 * reach, n_clocks - 1)
        Lag injected into each token of each other clock, in fine steps, by its stamp.
    jitter : LagJitter, optional
        The law that drew `shift`. Decoders draw from it again at every pass of training.
    path : ndarray of int, shape (n_tokens, n_clocks - 1), optional
        If one lag runs through the whole recording: that lag by stamp, of which `shift` is a part.
    truths : tuple of LagTruth, optional
        True lag of the recording itself, in addition to `shift`, one per other clock; given if the recording was
        moved by a known law. Decoders may use it in training.
    """

    tokens: Tokens
    first: np.ndarray
    n_steps: int
    max_lag: int
    shift: np.ndarray
    jitter: LagJitter | None = None
    path: np.ndarray | None = None
    truths: tuple[LagTruth, ...] = ()

    @classmethod
    def from_arrays(
        cls,
        arrays: np.ndarray | Sequence[np.ndarray],
        y: np.ndarray | None = None,
        *,
        token_s: float,
        max_lag_s: float,
        present: np.ndarray | Sequence[np.ndarray] | None = None,
        clocks: Sequence[str] | None = None,
        axes: Sequence[str] | None = None,
        units: str = "",
    ) -> Windows:
        """Windows of arrays that were cut elsewhere, such as trials.

        The windows lie apart in time, by gaps without data that are longer than the context of a window; their order
        is that of the rows, and their times are those of this layout.

        Parameters
        ----------
        arrays : sequence of ndarray, shape (n_windows, n_steps, n_features)
            One per clock, the anchor first: spike counts or LFP features in steps of `token_s`. A single array is one
            clock.
        y : ndarray, shape (n_windows, n_steps, n_axes), optional
            Movement, NaN where absent.
        token_s : float
            Length of a step (s).
        max_lag_s : float
            Largest lag searched (s), shorter than a window; without effect for one clock.
        present : sequence of bool ndarray, shape (n_windows, n_steps), optional
            One per clock: where it was recorded; by default everywhere. Values elsewhere are not used.
        clocks : sequence of str, optional
            Names of the clocks; by default clock0, clock1, ...
        axes : sequence of str, optional
            Names of the movement axes; by default axis0, axis1, ...
        units : str
            Unit of the movement.

        Raises
        ------
        NeurofuseError
            If shapes disagree, or values are not finite where the clock was recorded.
        """
        if not 0 < token_s < np.inf:
            raise NeurofuseError(f"token_s must be a positive number of seconds, got {token_s:g}.")
        values = _per_clock(arrays)
        n, n_steps = values[0].shape[:2]
        names = _names(clocks, len(values), "clock")
        n_steps, max_lag = _in_tokens(token_s, len(values), n_steps * token_s, max_lag_s)
        # No lag moves a sample of one window into the context of the next; as between the parts of a split.
        stride = n_steps + 2 * max_lag + EDGE_TOKENS
        first = stride * np.arange(n)
        rows = first[:, None] + np.arange(n_steps)
        masks = _masks(present, len(values), rows.shape)
        parts = tuple(_spread(*c, rows, stride * n) for c in zip(names, values, masks, strict=True))
        movement, axes = _spread_movement(y, axes, rows, stride * n)
        tokens = Tokens(token_s, 1, 0.0, parts, movement, axes, units)
        windows = cls(tokens, first, n_steps, max_lag, np.empty((n, 0, 0)))
        return replace(windows, shift=_along(None, windows))

    def __len__(self) -> int:
        return len(self.first)

    def __repr__(self) -> str:
        return f"Windows: {len(self)} {_summary(self)}"

    @property
    def shape(self) -> tuple[int, int]:
        """(n_windows, n_steps)."""
        return len(self.first), self.n_steps

    def __getitem__(self, rows: Any) -> Windows:
        if isinstance(rows, tuple):  # scikit-learn indexes X[rows, ...]
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
        """Whether each window has a lag of its own, independent of its neighbours."""
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
                "these windows have a lag each, so they cannot be cut again; cut them with a path."
            )
        like = replace(self, first=first, n_steps=n_steps)
        return replace(like, shift=_along(self.path, like))

    @property
    def time_s(self) -> np.ndarray:
        """Middle of every token, shape (n_windows, n_steps), seconds on the anchor's clock."""
        return self.tokens.time_s(self.first[:, None] + np.arange(self.n_steps))

    @property
    def lag_s(self) -> np.ndarray:
        """True lag (s) of each other clock, shape (n_windows, n_steps, n_clocks - 1); NaN where unknown."""
        lag_s = self.injected_s
        if self.truths:
            return lag_s + np.stack([t.at(self.time_s) for t in self.truths], axis=-1)
        return lag_s if self.jitter is not None else np.full_like(lag_s, np.nan)

    @property
    def injected_s(self) -> np.ndarray:
        """The part of the lag (s) that `shift` injects, shape (n_windows, n_steps, n_clocks - 1)."""
        # The stamp of a moment depends on the total lag of its clock, not on the injected part alone.
        own = self._own_shift()
        total = _on_reference(self.shift + own, self.reach, self.n_steps, self.tokens.per_token)
        return self.tokens.fine_s * (total - own)

    def _own_shift(self) -> np.ndarray:
        """True lag of the recording itself in fine steps, mean of each window, (n_windows, 1, n_clocks - 1)."""
        if not self.truths:
            return np.zeros((len(self), 1, self.shift.shape[-1]), dtype=np.int64)
        own_s = np.stack([t.at(self.time_s) for t in self.truths], axis=-1)
        known = np.isfinite(own_s)
        mean_s = np.where(known, own_s, 0).sum(axis=1, keepdims=True) / np.maximum(
            known.sum(axis=1, keepdims=True), 1
        )
        return np.rint(mean_s / self.tokens.fine_s).astype(np.int64)

    @property
    def movement(self) -> np.ndarray:
        """Movement, shape (n_windows, n_steps, n_axes), NaN where absent."""
        return self.tokens.movement[self.first[:, None] + np.arange(self.n_steps)]

    @property
    def groups(self) -> np.ndarray:
        """A label per window such that windows of different labels share no token, for grouped splits.

        Windows that overlap form one group, so a stride of a whole window gives many groups.
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
        augment: float = 0.0,
        fine: bool = False,
    ) -> Batch:
        """Gather some windows.

        Parameters
        ----------
        rows : ndarray of int, or slice
        rng : numpy Generator, optional
            Draw the injected lags again.
        augment : float
            Lag augmentation: share of the windows, among those whose lag is known, that get any lag of the search
            range (`AnyLag`) instead.
        fine : bool
            Values and presence on the fine grid, `per_token` steps per token; all else, `reach` too, stays in tokens.
        """
        chosen = self[rows]
        if rng is not None and self.jitter is not None:
            chosen = replace(chosen, shift=draw_shifts(self.jitter, chosen, rng=rng))
        if rng is not None and augment:
            chosen = chosen._augmented(augment, rng)
        return chosen._gather(fine=fine)

    def _augmented(self, share: float, rng: np.random.Generator) -> Windows:
        if self.jitter is None and not self.truths:
            return self
        rows = np.flatnonzero(rng.random(len(self)) < share)
        if not rows.size or not self.shift.shape[-1]:
            return self
        # The recording's own lag is subtracted, as far as it is constant over the window.
        total = draw_shifts(AnyLag(self.max_lag * self.tokens.token_s), self[rows], rng=rng)
        shift = self.shift.copy()
        shift[rows] = total - self[rows]._own_shift()
        return replace(self, shift=shift)

    def _gather(self, *, fine: bool) -> Batch:
        per = self.tokens.per_token
        begin = (self.first[:, None] - self.reach + np.arange(self.n_steps + 2 * self.reach)) * per
        values, present = [], []
        for k, clock in enumerate(self.tokens.clocks):
            # The content of stamp s on a clock with the lag `shift` happened at s - shift.
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

    def __repr__(self) -> str:
        return (
            f"Split: {len(self.train)} training, {len(self.validation)} validation, {len(self.test)} test "
            f"{_summary(self.train)}"
        )


def _summary(windows: Windows) -> str:
    """Sizes of windows in a few words."""
    token_s, n_steps = windows.tokens.token_s, windows.n_steps
    names = " and ".join(f"'{c.clock}'" for c in windows.tokens.clocks)
    jitter = "" if windows.jitter is None else f", jitter {windows.jitter}"
    return (
        f"windows of {n_steps * token_s:g} s ({n_steps} tokens of {1000 * token_s:g} ms) on clock {names}, "
        f"largest lag {windows.max_lag * token_s:g} s{jitter}"
    )


def draw_shifts(law: LagJitter, windows: Windows, *, rng: np.random.Generator) -> np.ndarray:
    """A lag for every token of every window from `law`, within the search range, in fine steps.

    Returns
    -------
    ndarray of int, shape (n_windows, n_steps + 2 * reach, n_clocks - 1)
        One value per window under `WindowLag` (normal, truncated at the search range); a section of a path, clipped
        to the range, under any other law.
    """
    tokens = windows.tokens
    n, others, width = len(windows), len(tokens.clocks) - 1, windows.n_steps + 2 * windows.reach
    if isinstance(law, NoLag) or not others:
        return np.zeros((n, width, others), dtype=np.int64)
    limit = min(windows.max_lag * tokens.per_token, law.limit_s(None) / tokens.fine_s)
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
    return np.rint(np.clip(drawn, -limit, limit)).astype(np.int64) * _moved(law, tokens)


def draw_path(law: LagJitter, tokens: Tokens, *, max_lag_s: float, rng: np.random.Generator) -> np.ndarray:
    """One lag from `law` through a whole recording, by stamp, in fine steps, shape (n_tokens, n_clocks - 1)."""
    time_s = tokens.time_s(np.arange(tokens.n_tokens))
    lag_s = [law.draw(time_s, rng=rng) for _ in tokens.clocks[1:]]
    limit_s = law.limit_s(max_lag_s)
    clipped = np.clip(np.reshape(lag_s, (-1, tokens.n_tokens)).T, -limit_s, limit_s)
    return np.rint(clipped / tokens.fine_s).astype(np.int64) * _moved(law, tokens)


def _moved(law: LagJitter, tokens: Tokens) -> np.ndarray:
    """Whether a law moves each other clock: all of them, or the one that it names."""
    others = [c.clock for c in tokens.clocks[1:]]
    if law.clock is not None and law.clock not in others:
        raise NeurofuseError(
            f"jitter '{law}' moves clock '{law.clock}', which is none of the other clocks of these windows; "
            f"choose one of {others}."
        )
    return np.array([law.clock in (None, name) for name in others], dtype=np.int64)


def _along(path: np.ndarray | None, windows: Windows) -> np.ndarray:
    """The part of a path in each window and its context."""
    stamp = windows.first[:, None] - windows.reach + np.arange(windows.n_steps + 2 * windows.reach)
    if path is None:
        return np.zeros((*stamp.shape, len(windows.tokens.clocks) - 1), dtype=np.int64)
    return path[np.clip(stamp, 0, len(path) - 1)]


def filled(lag_BTC: np.ndarray) -> np.ndarray:
    """Lags with every unknown one replaced by the nearest known one of its window, or by zero."""
    known = np.isfinite(lag_BTC)
    n_steps = lag_BTC.shape[1]
    step = np.arange(n_steps)[None, :, None]
    before = np.maximum.accumulate(np.where(known, step, -1), axis=1)
    after = np.minimum.accumulate(np.where(known, step, n_steps)[:, ::-1], axis=1)[:, ::-1]
    nearer = np.where((before < 0) | ((after < n_steps) & (after - step < step - before)), after, before)
    near = np.take_along_axis(lag_BTC, np.clip(nearer, 0, n_steps - 1), axis=1)
    return np.where(np.isfinite(near), near, 0.0)


def _on_reference(shift: np.ndarray, reach: int, n_steps: int, per_token: int) -> np.ndarray:
    """Lag by reference token, in fine steps, from the lag by stamp; NaN where a moment has no stamp, or two.

    The lag of moment t is that of the stamp whose content is nearest to t.
    """
    inner = shift[:, reach : reach + n_steps].astype(np.float64)
    moving = (shift != shift[:, :1]).any(axis=1)  # (n_windows, n_clocks - 1)
    stamp = per_token * np.arange(shift.shape[1])
    moment = per_token * (reach + np.arange(n_steps))
    for row, clock in zip(*np.nonzero(moving), strict=True):
        lag = shift[row, :, clock]
        away = np.abs((stamp - lag)[None, :] - moment[:, None])
        best = lag[away.argmin(axis=1)]
        never = away.min(axis=1) > per_token
        # After a jump back the same content appears again, under another lag: either would be right.
        twice = ((away <= 0.5 * per_token) & (np.abs(lag[None, :] - best[:, None]) > per_token)).any(axis=1)
        inner[row, :, clock] = np.where(never | twice, np.nan, best)
    return inner


def cut_windows(
    tokens: Tokens,
    *,
    window_s: float = 3.0,
    stride_s: float | None = None,
    max_lag_s: float = 0.5,
    start: int = 0,
    stop: int | None = None,
    whole: bool = True,
    jitter: LagJitter | None = None,
    path: np.ndarray | None = None,
    truths: tuple[LagTruth, ...] = (),
    rng: np.random.Generator,
) -> Windows:
    """Cut the tokens [start, stop) into windows.

    Movement and the anchor are present throughout every window; other clocks may be absent in part.

    Parameters
    ----------
    tokens : Tokens
    window_s, stride_s : float
        Length of a window, and the step to the next one (by default a quarter of the length).
    max_lag_s : float
        Largest lag searched.
    start, stop : int
        First and one-past-last token.
    whole : bool
        Add a last window at the end of each stretch, so that all of it is covered.
    jitter : LagJitter, optional
        Draw a lag for each window and each other clock.
    path : ndarray of int, shape (n_tokens, n_clocks - 1), optional
        One lag through the whole recording instead, drawn from `jitter`; see `draw_path`.
    truths : tuple of LagTruth
        True lags of the other clocks; see `Windows`.
    rng : numpy Generator
    """
    n_steps, max_lag = _in_tokens(tokens.token_s, len(tokens.clocks), window_s, max_lag_s)
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


def split_windows(
    tokens: Tokens,
    *,
    window_s: float = 3.0,
    max_lag_s: float = 0.5,
    train: float = 0.7,
    validation: float = 0.1,
    jitter: LagJitter | None = None,
    truths: tuple[LagTruth, ...] = (),
    rng: np.random.Generator,
) -> Split:
    """Split a recording into training, validation and test windows.

    The three are stretches in time order; `train` and `validation` are their shares of the movement. The gap between
    them is as long as the context of a window plus the largest lag, so that no test sample is used in training.
    With a `jitter`, every training and validation window has a lag of its own. Under `WindowLag` so have the test
    windows, which then do not overlap; under any other law one lag runs through the test stretch, and its windows
    overlap by half.

    Raises
    ------
    NeurofuseError
        If a stretch has no room for a window; the sentence gives the length that the recording needs. If the shares
        are not positive, or leave nothing for the test.
    """
    left = 1 - train - validation
    if not (train > 0 and validation > 0 and left > 1e-9):
        raise NeurofuseError(
            f"the shares are {train:g} for training and {validation:g} for validation; both must be positive and add "
            "up to less than 1, since the rest is the test."
        )
    n_steps, max_lag = _in_tokens(tokens.token_s, len(tokens.clocks), window_s, max_lag_s)
    moving = (
        np.flatnonzero(np.isfinite(tokens.movement).all(axis=1))
        if tokens.axes
        else np.arange(tokens.n_tokens)
    )
    if moving.size == 0:
        raise NeurofuseError(
            "no movement falls into the time of the recording; check that both are on the same clock."
        )
    own_lag = isinstance(jitter, WindowLag) and len(tokens.clocks) > 1
    path = None
    if jitter is not None and not own_lag:
        path = draw_path(jitter, tokens, max_lag_s=max_lag * tokens.token_s, rng=rng)
    # With a lag, the edge of a window's context contains samples from up to `max_lag` beyond it.
    gap = 2 * max_lag + EDGE_TOKENS
    begin, end = int(moving[0]), int(moving[-1]) + 1
    cuts = [moving[min(int(share * moving.size), moving.size - 1)] for share in (train, train + validation)]
    stretches = ((begin, cuts[0]), (cuts[0] + gap, cuts[1]), (cuts[1] + gap, end))
    strides = (window_s / 12, window_s / 2, window_s if own_lag else window_s / 2)
    parts = [
        cut_windows(
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
                f"{moving.size * tokens.token_s:.1f} s and about {np.ceil(need_s):.0f} s are needed; "
                "use a shorter --window or --max-lag, or a longer recording."
            )
    return Split(*parts)


def _in_tokens(token_s: float, n_clocks: int, window_s: float, max_lag_s: float) -> tuple[int, int]:
    n_steps = round(window_s / token_s)
    if n_steps < 2:
        raise NeurofuseError(
            f"a window of {window_s:g} s has {n_steps} token(s) of {token_s:g} s; windows need at least two."
        )
    if n_clocks > 1 and not 0 <= max_lag_s < window_s:
        raise NeurofuseError(
            f"the search range of +-{max_lag_s:g} s must be shorter than a window ({window_s:g} s); "
            "lower --max-lag or raise --window."
        )
    return n_steps, max(1, int(np.ceil(max_lag_s / token_s - 1e-6))) if n_clocks > 1 else 0


def _usable(tokens: Tokens, start: int, stop: int) -> list[tuple[int, int]]:
    """Stretches of tokens in which movement and the anchor are present throughout."""
    per = tokens.per_token
    cover = np.diff(tokens.clocks[0].cover[::per]) / per
    good = cover >= 0.5
    if tokens.axes:
        good &= np.isfinite(tokens.movement).all(axis=1)
    good[:start] = False
    good[stop:] = False
    edges = np.flatnonzero(np.diff(np.concatenate([[0], good.astype(np.int8), [0]])))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def _per_clock(arrays: np.ndarray | Sequence[np.ndarray]) -> list[np.ndarray]:
    """The arrays of `Windows.from_arrays`, one per clock."""
    given = [arrays] if isinstance(arrays, np.ndarray) and arrays.ndim == 3 else arrays
    values = [np.asarray(v, dtype=np.float64) for v in given]
    shapes = [v.shape for v in values]
    if not shapes or len({s[:2] for s in shapes}) > 1 or any(len(s) != 3 or 0 in s for s in shapes):
        raise NeurofuseError(
            "arrays must be one array of shape (n_windows, n_steps, n_features) per clock, none of them empty and all "
            f"with the same windows and steps, got {', '.join(map(str, shapes)) or 'no array'}."
        )
    return values


def _masks(
    present: np.ndarray | Sequence[np.ndarray] | None, n_clocks: int, shape: tuple[int, ...]
) -> list[np.ndarray]:
    """Where each clock of `Windows.from_arrays` was recorded."""
    if present is None:
        return [np.ones(shape, dtype=bool)] * n_clocks
    given = [present] if isinstance(present, np.ndarray) and present.ndim == 2 else present
    masks = [np.asarray(p, dtype=bool) for p in given]
    if [m.shape for m in masks] != [shape] * n_clocks:
        raise NeurofuseError(
            f"present must be one array of shape {shape} for each of {n_clocks} clocks, got "
            f"{', '.join(str(m.shape) for m in masks) or 'no array'}."
        )
    return masks


def _names(given: Sequence[str] | None, n: int, what: str) -> tuple[str, ...]:
    names = tuple(f"{what}{k}" for k in range(n)) if given is None else tuple(given)
    if len(names) != n or len(set(names)) != n:
        raise NeurofuseError(f"{n} different {what} names are needed, got {list(names)}.")
    return names


def _spread(
    clock: str, values: np.ndarray, present: np.ndarray, rows: np.ndarray, n_tokens: int
) -> ClockTokens:
    """One clock of `Windows.from_arrays`: its values at the tokens `rows`, no data elsewhere."""
    values = np.where(present[..., None], values, 0.0)
    if not np.isfinite(values).all():
        raise NeurofuseError(
            f"clock '{clock}' has values that are not finite where it was recorded; set present to False there."
        )
    cover, total = np.zeros(n_tokens + 1), np.zeros((n_tokens + 1, values.shape[-1]))
    cover[rows + 1], total[rows + 1] = present, values
    features = tuple(f"{clock}/feature{k}" for k in range(values.shape[-1]))
    return ClockTokens(
        clock, features, total.cumsum(axis=0), cover.cumsum(), np.zeros(values.shape[-1], dtype=bool)
    )


def _spread_movement(
    y: np.ndarray | None, axes: Sequence[str] | None, rows: np.ndarray, n_tokens: int
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Movement of `Windows.from_arrays` at the tokens `rows`, and its axes."""
    if y is None:
        return np.full((n_tokens, 0), np.nan, dtype=np.float32), ()
    y = np.asarray(y, dtype=np.float32)
    if y.ndim != 3 or y.shape[:2] != rows.shape or not y.shape[2]:
        raise NeurofuseError(f"y must have the shape {(*rows.shape, 'n_axes')}, got {y.shape}.")
    movement = np.full((n_tokens, y.shape[2]), np.nan, dtype=np.float32)
    movement[rows] = y
    return movement, _names(axes, y.shape[2], "axis")
