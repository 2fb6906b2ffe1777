"""Windows do not reach into gaps, into each other's stretches, or to lags beyond the search range."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import truncnorm
from sklearn.model_selection import GroupKFold, cross_val_score
from sklearn.utils import _safe_indexing

from neurofuse.decoders.registry import DECODERS, make_decoder
from neurofuse.errors import NeurofuseError
from neurofuse.jitters.jitter import LagTruth
from neurofuse.jitters.lag_laws import (
    Jumps,
    NoLag,
    Offset,
    Skew,
    Walk,
    WindowLag,
    move_clock,
)
from neurofuse.recording import Movement, Recording, Signal, Spikes
from neurofuse.tokens import Tokens, tokenize
from neurofuse.windows import EDGE_TOKENS, Windows, cut_windows, draw_path, draw_shifts, filled, split_windows


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def plain(*, stop_s=60.0, clocks=("ref", "amp"), gaps=(), movement_gaps=()) -> Recording:
    """Spikes on every clock; the first and movement have gaps."""

    def support(holes):
        edges = [0.0, *(e for hole in holes for e in hole), stop_s]
        return np.reshape(edges, (-1, 2))

    streams = [
        Spikes.from_trains(
            [np.sort(rng(k).uniform(0, stop_s, 900))],
            clock=c,
            name=c,
            support=support(gaps if k == 0 else ()),
        )
        for k, c in enumerate(clocks)
    ]
    t = np.arange(0, stop_s, 0.01)
    for lo, hi in movement_gaps:
        t = t[(t < lo) | (t >= hi)]
    return Recording("r", clocks[0], tuple(streams), Movement.from_array(np.sin(t), time_s=t, axes=["x"]))


@pytest.fixture(scope="module")
def tokens() -> Tokens:
    return tokenize(plain())


def corrupted(tokens: Tokens, first: int) -> Tokens:
    """The same recording with other values from a token on."""
    clocks = []
    for clock in tokens.clocks:
        step = np.diff(clock.total, axis=0)
        step[first * tokens.per_token :] += 1000.0
        total = np.concatenate([np.zeros((1, step.shape[1])), np.cumsum(step, axis=0)])
        clocks.append(replace(clock, total=total))
    movement = tokens.movement.copy()
    movement[first:] += 1000
    return replace(tokens, clocks=tuple(clocks), movement=movement)


@pytest.mark.parametrize("jitter", [None, WindowLag(0.4)], ids=str)
@pytest.mark.parametrize("max_lag_s", [0.1, 0.5])
def test_no_test_sample_reaches_training_or_validation(tokens, jitter, max_lag_s):
    """The whole test stretch is replaced: batches before it, context and redrawn lags included, stay the same."""
    parts = split_windows(tokens, window_s=1.0, max_lag_s=max_lag_s, jitter=jitter, rng=rng())
    for early, late in ((parts.train, parts.validation), (parts.validation, parts.test)):
        other = replace(early, tokens=corrupted(tokens, int(late.first.min())))
        for seed in range(8):
            a, b = (w.batch(slice(None), rng=rng(seed)) for w in (early, other))
            for x, y in zip((*a.values, a.movement), (*b.values, b.movement), strict=True):
                np.testing.assert_array_equal(x, y)
        assert early.first.max() + early.n_steps + early.reach <= late.first.min()
    last = int(parts.test.first.max()) + parts.test.n_steps
    assert last <= tokens.n_tokens
    assert {len(w.truths) for w in (parts.train, parts.validation, parts.test)} == {0}


def test_the_shares_of_a_split_are_the_given_ones(tokens):
    parts = split_windows(tokens, window_s=1.0, max_lag_s=0.1, train=0.5, validation=0.2, rng=rng())
    for part, lo, hi in ((parts.train, 0, 0.5), (parts.validation, 0.5, 0.7), (parts.test, 0.7, 1.0)):
        covered = np.unique(part.first[:, None] + np.arange(part.n_steps)) / tokens.n_tokens
        assert covered.min() == pytest.approx(lo, abs=0.01)
        assert covered.max() == pytest.approx(hi, abs=0.01)


def test_windows_lie_within_stretches_of_movement_and_anchor():
    recording = plain(gaps=[(10, 12)], movement_gaps=[(30, 30.5), (40, 45)])
    windows = cut_windows(tokenize(recording), window_s=2.0, stride_s=0.1, max_lag_s=0.3, rng=rng())
    batch = windows.batch(slice(None))
    inside = slice(batch.reach, batch.reach + windows.n_steps)
    assert np.isfinite(batch.movement).all()
    assert batch.present[0][:, inside].all()
    assert not batch.present[0].all(), "context may be absent"
    for lo, hi in ((10, 12), (30, 30.5), (40, 45)):
        assert not ((windows.time_s > lo + 0.02) & (windows.time_s < hi - 0.02)).any()
    covered = np.unique(windows.time_s)
    assert covered.size * 0.02 == pytest.approx(60 - 2 - 0.5 - 5, abs=0.1), "nothing usable is left out"


@given(
    window_s=st.floats(0.1, 3.0),
    stride_s=st.floats(0.02, 3.0),
    start=st.integers(0, 900),
    whole=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_windows_stay_inside_their_stretch_at_the_given_stride(tokens, window_s, stride_s, start, whole):
    stop = start + 700
    windows = cut_windows(
        tokens,
        window_s=window_s,
        stride_s=stride_s,
        max_lag_s=0.05,
        start=start,
        stop=stop,
        whole=whole,
        rng=rng(),
    )
    assert windows.first.min() == start
    assert windows.first.max() + windows.n_steps <= stop
    regular = windows.first[:-1] if whole and len(windows) > 1 else windows.first
    assert (np.diff(regular) == max(1, round(stride_s / 0.02))).all()
    if whole:
        assert windows.first.max() + windows.n_steps == stop


def inner(windows):
    """Injected lag of the tokens of each window, without the context."""
    return windows.shift[:, windows.reach : -windows.reach]


@pytest.mark.parametrize("steps", [-37, 0, 60])
def test_an_injected_lag_gives_the_tokens_of_the_moved_recording(tiny, steps):
    recording = tiny.but(streams=(tiny["spikes"], tiny["lfp"].between(2, 20)))
    tokens = tokenize(recording)
    windows = cut_windows(tokens, window_s=1.0, max_lag_s=0.7, rng=rng())
    shifted = replace(windows, shift=np.full_like(windows.shift, steps), jitter=WindowLag(0.1))
    lag_s = steps * tokens.fine_s
    moved = tokenize(recording.retimed("logger", lambda t: t + lag_s, did="moved"))
    a, b = shifted.batch(slice(None)), replace(windows, tokens=moved).batch(slice(None))
    np.testing.assert_array_equal(a.present[1], b.present[1])
    np.testing.assert_allclose(a.values[1], b.values[1], atol=2e-4)
    np.testing.assert_array_equal(a.values[0], b.values[0])
    np.testing.assert_array_equal(a.movement, b.movement)
    np.testing.assert_allclose(a.lag, lag_s / tokens.token_s, rtol=1e-6)
    np.testing.assert_allclose(shifted.lag_s, lag_s)


def test_an_injected_lag_is_the_lag_that_the_moved_clock_has():
    """Windows move by indexing, `move_clock` moves the spikes themselves: the sign is the same."""
    recording = plain(stop_s=20.0)
    tokens = tokenize(recording)
    windows = cut_windows(tokens, window_s=1.0, max_lag_s=0.4, rng=rng())
    injected = replace(windows, shift=np.full_like(windows.shift, 50))
    moved, truth = move_clock(recording, "amp", Offset(50 * tokens.fine_s), rng=rng())
    known = replace(windows, tokens=tokenize(moved), truths=(truth,))
    inner = slice(5, -5)
    np.testing.assert_array_equal(
        injected[inner].batch(slice(None)).values[1], known[inner].batch(slice(None)).values[1]
    )
    np.testing.assert_allclose(known[inner].lag_s, 0.25)


@pytest.mark.parametrize("law", [Skew(20_000.0), Walk(0.1, return_s=5.0), Jumps(0.15, every_s=2.0)])
def test_windows_under_a_path_have_the_content_of_the_moved_clock(law):
    """Windows under a path against the recording moved by that very path."""
    recording = plain(stop_s=20.0)
    tokens = tokenize(recording)
    path = draw_path(law, tokens, max_lag_s=0.4, rng=rng(3))
    windows = cut_windows(tokens, window_s=1.0, max_lag_s=0.4, jitter=law, path=path, rng=rng())
    assert not windows.own_lag
    got = windows.batch(slice(None))
    assert np.ptp(windows.lag_s[np.isfinite(windows.lag_s)]) > 0.1
    amp = tokens.clocks[1]
    for row in (3, len(windows) // 2, len(windows) - 4):
        stamps = windows.first[row] - windows.reach + np.arange(got.values[1].shape[1])
        content = stamps * tokens.per_token - path[np.clip(stamps, 0, len(path) - 1), 0]
        whole = (content >= 0) & (content + tokens.per_token < len(amp.cover))
        target = amp.total[(content + tokens.per_token)[whole]] - amp.total[content[whole]]
        np.testing.assert_allclose(
            got.values[1][row][whole], target / np.where(amp.counted, 1, tokens.per_token), atol=1e-4
        )
        # The event of moment t is found at t + lag, with the lag of the truth.
        for step in range(0, windows.n_steps, 7):
            lag = got.lag[row, step, 0]
            if np.isfinite(lag):
                stamp = windows.first[row] + step + int(np.rint(lag))
                moment = stamp - path[np.clip(stamp, 0, len(path) - 1), 0] / tokens.per_token
                assert abs(moment - (windows.first[row] + step)) <= 1.0 + 1e-6


def test_a_path_runs_through_windows_of_any_cut(tokens):
    law = Walk(0.1, return_s=5.0)
    path = draw_path(law, tokens, max_lag_s=0.3, rng=rng(1))
    windows = cut_windows(tokens, window_s=1.0, max_lag_s=0.3, jitter=law, path=path, rng=rng())
    other = windows.recut(windows.first[:2] + 10, 30)
    np.testing.assert_allclose(other.lag_s, windows.lag_s[:2, 10:40])
    np.testing.assert_array_equal(
        other.batch([0]).values[1][0, 40:60], windows.batch([0]).values[1][0, 50:70]
    )
    own = cut_windows(tokens, window_s=1.0, max_lag_s=0.3, jitter=WindowLag(0.1), rng=rng())
    with pytest.raises(NeurofuseError, match="have a lag each"):
        own.recut(own.first, 30)


def test_training_draws_sections_anew_and_the_test_follows_one_path(tokens):
    parts = split_windows(tokens, window_s=2.0, max_lag_s=0.3, jitter=Jumps(0.1), rng=rng())
    assert [w.own_lag for w in (parts.train, parts.validation, parts.test)] == [True, True, False]
    one, other = (parts.train.batch(slice(0, 8), rng=rng(k)).lag for k in (1, 2))
    assert not np.array_equal(one, other)
    still = parts.test.batch(slice(0, 8)).lag
    np.testing.assert_array_equal(still, parts.test.batch(slice(0, 8)).lag)
    agree = split_windows(tokens, window_s=2.0, max_lag_s=0.3, jitter=NoLag(), rng=rng())
    assert (agree.train.batch(slice(0, 8), rng=rng(1)).lag == 0).all()


def test_windows_without_a_clock_lose_it_and_nothing_else(tokens):
    windows = cut_windows(tokens, window_s=1.0, jitter=WindowLag(0.2), rng=rng())
    was, now = windows.batch(slice(0, 9)), windows.without(1).batch(slice(0, 9))
    assert was.present[1].any()
    assert not now.present[1].any()
    assert not now.values[1].any()
    np.testing.assert_array_equal(now.values[0], was.values[0])


def test_unknown_lags_are_replaced_by_the_nearest_known_one():
    nan = np.nan
    lag = np.array([[nan, 1, nan, nan, nan, 3, nan], [nan] * 7, [np.inf] * 7])[..., None]
    target = [[1, 1, 1, 1, 3, 3, 3], [0] * 7, [0] * 7]
    got = filled(lag)[..., 0]
    np.testing.assert_array_equal(np.delete(got, 3, axis=1), np.delete(np.array(target), 3, axis=1))
    assert got[0, 3] in (1, 3), "half way between two"


def test_augmented_windows_get_any_lag_and_contain_its_truth(tokens):
    parts = split_windows(tokens, window_s=2.0, max_lag_s=0.3, jitter=NoLag(), rng=rng())
    rows = np.arange(300) % len(parts.train)
    batch = parts.train.batch(rows, rng=rng(1), augment=0.5)
    moved = (batch.lag != 0).any(axis=(1, 2))
    assert 0.4 < moved.mean() < 0.6
    lag_s = batch.lag[moved] * tokens.token_s
    assert np.nanmax(np.abs(lag_s)) <= 0.3 + 1e-6
    assert np.nanstd(lag_s) == pytest.approx(0.6 / np.sqrt(12), rel=0.15), "spread over the whole range"
    moving = np.nanmax(lag_s, axis=1) - np.nanmin(lag_s, axis=1) > 1e-6
    assert 0.4 < moving.mean() < 0.8
    # Where a lag is constant, the stamps inside the window have the content that they have under a lag so everywhere.
    k = np.flatnonzero(moved)[np.flatnonzero(~moving)[0]]
    like = parts.train[rows[k]]
    steps = np.rint(batch.lag[k, 0, 0] * tokens.per_token).astype(int)
    same = replace(like, shift=np.full_like(like.shift, steps)).batch(slice(None))
    inside = batch.reach + steps // tokens.per_token + np.arange(2, like.n_steps - 2)
    np.testing.assert_array_equal(same.values[1][0, inside], batch.values[1][k, inside])
    still = parts.train.batch(rows, rng=rng(1))
    np.testing.assert_array_equal(batch.values[1][~moved], still.values[1][~moved])


def test_windows_with_an_unknown_lag_are_not_augmented(tokens):
    windows = cut_windows(tokens, window_s=1.0, rng=rng())
    a, b = windows.batch(slice(0, 20), rng=rng(1), augment=1.0), windows.batch(slice(0, 20))
    np.testing.assert_array_equal(a.values[1], b.values[1])


def test_augmentation_of_a_recording_with_a_known_lag_stays_within_the_search_range():
    recording = plain(stop_s=60.0)
    moved, truth = move_clock(recording, "amp", Offset(0.2), rng=rng())
    windows = cut_windows(tokenize(moved), window_s=1.0, max_lag_s=0.3, truths=(truth,), rng=rng())[5:-5]
    lag_s = windows.batch(slice(None), rng=rng(2), augment=1.0).lag * windows.tokens.token_s
    assert np.nanmax(np.abs(lag_s)) <= 0.3 + 0.006
    assert np.nanmin(lag_s) < -0.2


def test_an_augmented_lag_that_changes_is_that_of_the_content_whatever_the_clocks_own_lag():
    """The value of the second stream is the time of its content."""
    own_s, stop_s = 0.4, 60.0
    time_s = 0.02 * np.arange(round(stop_s / 0.02))
    b = Signal.from_array((time_s - own_s)[:, None], clock="amp", name="t", rate_hz=50, kind="power")
    tokens = tokenize(plain(stop_s=stop_s).but(streams=(plain(stop_s=stop_s).streams[0], b)))
    grid_s = np.arange(-1.0, stop_s + 1, 0.005)
    truth = LagTruth("amp", grid_s, np.full(grid_s.size, own_s), f"offset:{own_s}")
    windows = cut_windows(tokens, window_s=2.0, stride_s=3.0, max_lag_s=0.5, truths=(truth,), rng=rng())[2:-2]
    batch = windows.batch(slice(None), rng=rng(3), augment=1.0)
    content_s = batch.values[1][..., 0] + 0.01  # a token's middle
    stamp_s = tokens.time_s(windows.first[:, None] - batch.reach + np.arange(content_s.shape[1]))
    moving = 0
    for row in range(len(windows)):
        away = np.abs(content_s[row][None] - windows.time_s[row][:, None])
        lag_s = stamp_s[row][away.argmin(1)] - windows.time_s[row]
        known_s = batch.lag[row, :, 0] * tokens.token_s
        known = np.isfinite(known_s) & (away.min(1) < 0.02)
        moving += np.ptp(known_s[known]) > 0.05
        assert np.abs(known_s - lag_s)[known].max(initial=0) <= 0.05
    assert moving >= 3


@pytest.mark.parametrize("shares", [(0.8, 0.2), (0.9, 0.0), (1.0, 0.1), (0.0, 0.1)])
def test_shares_of_a_split_leave_something_for_each_part(tokens, shares):
    with pytest.raises(NeurofuseError, match=r"both must be positive and add up to less than 1"):
        split_windows(tokens, train=shares[0], validation=shares[1], rng=rng())


def test_a_lag_is_known_only_where_it_was_injected_or_a_truth_is_given(tokens):
    assert np.isnan(cut_windows(tokens, window_s=1.0, rng=rng()).lag_s).all()
    drawn = cut_windows(tokens, window_s=1.0, jitter=WindowLag(0.2), rng=rng())
    np.testing.assert_allclose(drawn.lag_s, inner(drawn) * tokens.fine_s)
    time_s = np.arange(0, 60, 0.005)
    truth = LagTruth("amp", time_s, 0.01 * time_s, "skew:10000")
    both = replace(drawn, truths=(truth,))
    np.testing.assert_allclose(
        both.lag_s[..., 0], 0.01 * both.time_s + inner(drawn)[..., 0] * tokens.fine_s, atol=0.01 * 0.006
    )


@pytest.mark.parametrize("level", [0.1, 0.4, 5.0])
def test_injected_lags_are_a_normal_truncated_at_the_search_range(tokens, level):
    windows = cut_windows(tokens, window_s=1.0, max_lag_s=0.5, rng=rng())
    many = windows[np.zeros(20000, dtype=int)]
    lag_s = draw_shifts(WindowLag(level), many, rng=rng(1))[:, 0] * tokens.fine_s
    assert np.abs(lag_s).max() <= 0.5
    limit = 0.5 / level
    assert lag_s.std() == pytest.approx(truncnorm.std(-limit, limit, scale=level), rel=0.03)
    assert np.mean(np.abs(lag_s) > 0.4999) < 0.02, "they do not pile up at the ends"


def test_lags_are_redrawn_only_with_a_generator_and_alike_from_one_seed(tokens):
    windows = cut_windows(tokens, window_s=1.0, jitter=WindowLag(0.2), rng=rng())
    assert np.unique(windows.shift).size > 10
    again = cut_windows(tokens, window_s=1.0, jitter=WindowLag(0.2), rng=rng())
    np.testing.assert_array_equal(windows.shift, again.shift)
    rows = slice(0, 9)
    still, one, two, other = (windows.batch(rows, rng=r) for r in (None, rng(1), rng(1), rng(2)))
    np.testing.assert_allclose(still.lag, inner(windows[rows]) / tokens.per_token)
    np.testing.assert_array_equal(one.values[1], two.values[1])
    assert not np.array_equal(one.lag, other.lag)
    np.testing.assert_array_equal(one.values[0], still.values[0])


def test_batches_in_parts_are_the_batch_of_all(tokens):
    windows = cut_windows(tokens, window_s=1.0, max_lag_s=0.2, jitter=WindowLag(0.1), rng=rng())
    whole = windows.batch(slice(None))
    assert whole.values[0].shape == (len(windows), 50 + 2 * (10 + EDGE_TOKENS), 1)
    assert whole.movement.shape == (len(windows), 50, 1)
    for k in (0, 7, len(windows) - 1):
        one = windows.batch(slice(k, k + 1))
        np.testing.assert_array_equal(one.values[1][0], whole.values[1][k])
        np.testing.assert_array_equal(one.movement[0], windows.movement[k])


def test_windows_can_be_indexed_in_every_way_scikit_learn_does(tokens):
    windows = cut_windows(tokens, window_s=1.0, jitter=WindowLag(0.2), rng=rng())
    n = len(windows)
    assert windows.shape == (n, 50)
    mask = np.arange(n) % 3 == 0
    rows = np.array([5, 1, 2])
    for rows_given, expected in (
        ([1, 2], [1, 2]),
        (rows, rows),
        ((rows, ...), rows),
        (mask, np.flatnonzero(mask)),
        (slice(2, 9, 2), [2, 4, 6, 8]),
        (-1, [n - 1]),
        (np.int64(3), [3]),
        (np.array([], dtype=int), []),
    ):
        got = windows[rows_given]
        assert isinstance(got, Windows)
        np.testing.assert_array_equal(got.first, windows.first[np.array(expected, dtype=int)])
        np.testing.assert_array_equal(got.shift, windows.shift[np.array(expected, dtype=int)])
    np.testing.assert_array_equal(_safe_indexing(windows, rows).first, windows.first[rows])
    assert sum(len(w) for w in windows) == n
    with pytest.raises(IndexError):
        windows[n]


@given(first=st.lists(st.integers(0, 400), min_size=1, max_size=30))
@settings(max_examples=50, deadline=None)
def test_windows_of_different_groups_share_no_token(tokens, first):
    windows = replace(cut_windows(tokens, window_s=1.0, rng=rng()), first=np.array(first))
    covered: dict[int, set[int]] = {}
    for f, group in zip(first, windows.groups, strict=True):
        covered.setdefault(int(group), set()).update(range(f, f + 50))
    assert sum(len(c) for c in covered.values()) == len(set().union(*covered.values()))


def test_windows_side_by_side_are_groups_of_their_own_and_overlapping_ones_are_not(tokens):
    apart = cut_windows(tokens, window_s=1.0, stride_s=1.0, rng=rng())
    np.testing.assert_array_equal(apart.groups, np.arange(60))
    assert set(cut_windows(tokens, window_s=1.0, rng=rng()).groups) == {0}
    assert apart[[]].groups.size == 0


def test_grouped_cross_validation_of_ridge_decodes_the_tiny_recording(tiny):
    windows = cut_windows(tokenize(tiny, token_s=0.05), window_s=1.0, stride_s=1.0, max_lag_s=0.2, rng=rng())
    scores = cross_val_score(
        make_decoder("ridge", context_s=0.2), windows, cv=GroupKFold(3), groups=windows.groups
    )
    assert scores.shape == (3,)
    assert scores.mean() > 0.15


@pytest.mark.parametrize("jitter", [None, WindowLag(0.2)], ids=str)
def test_the_error_on_a_short_recording_gives_the_length_it_needs(jitter):
    def attempt(stop_s):
        return split_windows(
            tokenize(plain(stop_s=stop_s)), window_s=2.0, max_lag_s=0.5, jitter=jitter, rng=rng()
        )

    with pytest.raises(
        NeurofuseError, match=r"the validation stretch has no room for a window of 2 s"
    ) as caught:
        attempt(20.0)
    message = str(caught.value)
    assert "movement covers 20.0 s" in message
    assert "use a shorter --window or --max-lag, or a longer recording" in message
    need_s = float(message.split("about ")[1].split(" s")[0])
    assert 20 < need_s < 45
    parts = attempt(need_s)
    assert min(len(w) for w in (parts.train, parts.validation, parts.test)) > 0
    with pytest.raises(NeurofuseError, match="no room"):
        attempt(need_s - 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window_s": 0.02}, r"a window of 0.02 s has 1 token\(s\) of 0.02 s; windows need at least two"),
        (
            {"window_s": 1.0, "max_lag_s": 1.0},
            r"search range of \+-1 s must be shorter than a window \(1 s\); lower --max-lag or raise --window",
        ),
    ],
)
def test_impossible_windows_are_refused_in_one_sentence(tokens, options, message):
    for function in (cut_windows, split_windows):
        with pytest.raises(NeurofuseError, match=message):
            function(tokens, rng=rng(), **options)


def test_movement_from_another_time_is_refused():
    recording = plain(stop_s=10.0)
    nowhere = replace(tokenize(recording), movement=np.full((500, 1), np.nan, dtype=np.float32))
    with pytest.raises(
        NeurofuseError, match="no movement falls into the time of the recording; check that both"
    ):
        split_windows(nowhere, rng=rng())


def test_a_single_clock_is_not_searched():
    single = tokenize(plain(clocks=("ref",)))
    windows = cut_windows(single, window_s=1.0, max_lag_s=5.0, jitter=WindowLag(0.2), rng=rng())
    assert (windows.max_lag, windows.reach) == (0, EDGE_TOKENS)
    assert windows.batch(slice(0, 3)).lag.shape == (3, 50, 0)


def test_a_law_that_names_a_clock_or_a_range_keeps_to_them():
    tokens = tokenize(plain(clocks=("ref", "amp", "third")))
    for law in (WindowLag(0.2, clock="third", max_lag_s=0.1), Walk(0.2, clock="third", max_lag_s=0.1)):
        shift = cut_windows(tokens, window_s=1.0, jitter=law, rng=rng()).shift
        assert not shift[..., 0].any()
        assert 0.05 < np.abs(shift[..., 1]).max() * tokens.fine_s <= 0.1
        path = draw_path(law, tokens, max_lag_s=0.5, rng=rng())
        assert not path[:, 0].any()
        assert 0.05 < np.abs(path[:, 1]).max() * tokens.fine_s <= 0.1
    with pytest.raises(
        NeurofuseError, match=r"moves clock 'ref', which is none.*choose one of \['amp', 'third'\]"
    ):
        cut_windows(tokens, window_s=1.0, jitter=WindowLag(0.2, clock="ref"), rng=rng())


def test_windows_batches_and_splits_print_in_one_line(tokens):
    parts = split_windows(tokens, window_s=2.0, max_lag_s=0.4, jitter=WindowLag(0.1), rng=rng())
    sizes = "windows of 2 s (100 tokens of 20 ms) on clock 'ref' and 'amp', largest lag 0.4 s, jitter lag:0.1"
    n = [len(w) for w in (parts.train, parts.validation, parts.test)]
    assert repr(parts.train) == f"Windows: {n[0]} {sizes}"
    assert repr(parts) == f"Split: {n[0]} training, {n[1]} validation, {n[2]} test {sizes}"
    assert repr(parts.train.batch(slice(0, 7))) == (
        "Batch: 7 windows of 100 tokens with 36 of context on each side, 1 + 1 features, 1 movement axes"
    )
    assert "jitter" not in repr(cut_windows(tokens, window_s=2.0, rng=rng()))


# ---- windows from arrays


def as_arrays(windows: Windows) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
    """Values, presence and movement of windows, without their context."""
    batch = windows.batch(slice(None))
    inside = slice(batch.reach, batch.reach + windows.n_steps)
    return [v[:, inside] for v in batch.values], [p[:, inside] for p in batch.present], batch.movement


@pytest.mark.parametrize("n_clocks", [1, 2])
@pytest.mark.parametrize("max_lag_s", [0.06, 0.4])
def test_windows_from_arrays_have_the_values_of_windows_cut_from_a_recording(tiny, n_clocks, max_lag_s):
    recording = tiny.but(streams=(tiny["spikes"], tiny["lfp"].between(2, 20))[:n_clocks])
    windows = cut_windows(tokenize(recording), window_s=1.0, max_lag_s=max_lag_s, rng=rng())
    values, present, movement = as_arrays(windows)
    assert (n_clocks == 1) or not present[1].all()
    made = Windows.from_arrays(
        values, movement, token_s=0.02, max_lag_s=max_lag_s, present=present, axes=("vx", "vy"), units="cm/s"
    )
    assert (made.shape, made.max_lag) == (windows.shape, windows.max_lag)
    again, mask, moved = as_arrays(made)
    for k in range(n_clocks):
        np.testing.assert_allclose(again[k], values[k], atol=1e-4)
        np.testing.assert_array_equal(mask[k], present[k])
    np.testing.assert_array_equal(moved, movement)
    assert (made.tokens.axes, made.tokens.units) == (("vx", "vy"), "cm/s")
    assert np.isnan(made.lag_s).all()
    context = made.batch(slice(None))
    outside = np.r_[: made.reach, -made.reach : 0]
    assert not any(a[:, outside].any() for a in (*context.present, *context.values))


@pytest.mark.parametrize("steps", [-20, 13, 20])
def test_no_lag_moves_one_window_from_arrays_into_another(steps):
    values = np.arange(1.0, 7.0)[:, None, None] * np.ones((6, 30, 2))
    made = Windows.from_arrays([values, values], values[..., :1], token_s=0.02, max_lag_s=0.4)
    batch = replace(made, shift=np.full_like(made.shift, steps)).batch(slice(None))
    for row, content, present in zip(values, batch.values[1], batch.present[1], strict=True):
        assert present.sum() == 30
        assert (content[present] == row[0, 0]).all()
    assert made.batch(slice(None), rng=rng(), augment=1.0).values[1].any()


def test_arrays_can_be_recut_grouped_and_indexed():
    g = rng()
    values, movement = g.standard_normal((9, 40, 3)), g.standard_normal((9, 40, 2))
    made = Windows.from_arrays(values, movement, token_s=0.05, max_lag_s=0.2)
    assert [c.clock for c in made.tokens.clocks] == ["clock0"]
    assert made.tokens.axes == ("axis0", "axis1")
    np.testing.assert_array_equal(made.groups, np.arange(9))
    np.testing.assert_array_equal(
        _safe_indexing(made, np.array([4, 2])).movement, movement[[4, 2]].astype(np.float32)
    )
    recut = made.recut(made.first[3:4] + 5, 20)
    np.testing.assert_array_equal(recut.movement[0], movement[3, 5:25].astype(np.float32))
    np.testing.assert_allclose(as_arrays(recut)[0][0][0], values[3, 5:25], atol=1e-5)
    assert Windows.from_arrays(values, token_s=0.05, max_lag_s=0.2).tokens.axes == ()


def linear(
    n_clocks: int, *, n: int = 40, n_steps: int = 30, seed: int = 0
) -> tuple[list[np.ndarray], np.ndarray]:
    """Smooth movement, and noisy linear functions of it on each clock."""
    g = rng(seed)
    kernel = np.hanning(9) / np.hanning(9).sum()
    movement = g.standard_normal((n, n_steps + 8, 2))
    movement = np.apply_along_axis(np.convolve, 1, movement, kernel, "valid")
    movement /= movement.std()
    views = [
        movement @ g.standard_normal((2, 6)) + 0.5 * g.standard_normal((n, n_steps, 6))
        for _ in range(n_clocks)
    ]
    return views, movement


@pytest.mark.parametrize("n_clocks", [1, 2])
def test_grouped_cross_validation_of_ridge_decodes_arrays(n_clocks):
    views, movement = linear(n_clocks)
    made = Windows.from_arrays(views, movement, token_s=0.05, max_lag_s=0.2)
    decoder = make_decoder("ridge", context_s=0.2)
    scores = cross_val_score(decoder, made, cv=GroupKFold(4), groups=made.groups)
    assert scores.min() > 0.7
    np.testing.assert_allclose(
        cross_val_score(decoder, made, movement, cv=GroupKFold(4), groups=made.groups), scores, atol=1e-6
    )


@pytest.mark.parametrize("name", list(DECODERS))
def test_every_decoder_takes_windows_from_arrays(name):
    views, movement = linear(2)
    made = Windows.from_arrays(views, movement, token_s=0.05, max_lag_s=0.2)
    if name == "oracle":  # it needs a known lag
        made = replace(made, jitter=NoLag())
    decoder = make_decoder(name)
    if "n_steps" in decoder.get_params():
        decoder.set_params(n_steps=2)
    decoder.fit(made)
    assert decoder.predict(made).shape == movement.shape
    assert np.isfinite(decoder.score(made))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"arrays": [np.ones((5, 20))]},
            r"arrays must be one array of shape \(n_windows, n_steps, n_features\)",
        ),
        (
            {"arrays": [np.ones((5, 20, 2)), np.ones((5, 21, 2))]},
            r"same windows.*got \(5, 20, 2\), \(5, 21, 2\)",
        ),
        ({"arrays": []}, "got no array"),
        ({"arrays": np.ones((0, 20, 2))}, r"none of them empty.*got \(0, 20, 2\)"),
        ({"y": np.ones((5, 20))}, r"y must have the shape \(5, 20, 'n_axes'\), got \(5, 20\)"),
        ({"y": np.ones((4, 20, 2))}, r"y must have the shape .*got \(4, 20, 2\)"),
        ({"present": np.ones((5, 20))}, r"one array of shape \(5, 20\) for each of 2 clocks, got \(5, 20\)"),
        ({"present": [np.ones((5, 20)), np.ones((5, 19))]}, r"got \(5, 20\), \(5, 19\)"),
        ({"clocks": ("a",)}, r"2 different clock names are needed, got \['a'\]"),
        ({"clocks": ("a", "a")}, r"2 different clock names are needed, got \['a', 'a'\]"),
        ({"y": np.ones((5, 20, 2)), "axes": ("x",)}, "2 different axis names are needed"),
        (
            {"arrays": [np.ones((5, 20, 2)), np.full((5, 20, 2), np.nan)]},
            "'clock1' has values that are not finite",
        ),
        ({"token_s": 0.0}, "token_s must be a positive number of seconds, got 0"),
        ({"max_lag_s": 2.0}, r"search range of \+-2 s must be shorter than a window \(1 s\)"),
        ({"arrays": [np.ones((5, 1, 2))] * 2}, "has 1 token"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_in_one_sentence(change, message):
    given = {"arrays": [np.ones((5, 20, 2)), np.ones((5, 20, 3))], "token_s": 0.05, "max_lag_s": 0.2} | change
    with pytest.raises(NeurofuseError, match=message):
        Windows.from_arrays(given.pop("arrays"), given.pop("y", None), **given)
