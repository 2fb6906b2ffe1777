"""Tokens hold what was recorded, no more and no less: against loops, histograms and moved recordings."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neurofuse.errors import NeurofuseError
from neurofuse.recording import Movement, Recording, Signal, Spikes
from neurofuse.tokens import ClockTokens, Tokens, anchor_clock, default_token_s, tokenize


def side_by_side(first, n_tokens, per_token):
    """Where the tokens of windows begin that start at `first`, in fine steps."""
    return np.atleast_1d(first)[:, None] + per_token * np.arange(n_tokens)


def everything(tokens: Tokens, clock: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """All tokens of a clock, (n_tokens, n_features), and where it was recorded."""
    values, present = tokens.clocks[clock].gather(
        side_by_side(0, tokens.n_tokens, tokens.per_token), tokens.per_token
    )
    return values[0], present[0]


def units(*, stop_s=10.0, n_units=4, clock="ref", name="spikes", support=None, seed=0) -> Spikes:
    rng = np.random.default_rng(seed)
    trains = [np.sort(rng.uniform(0, stop_s, 60 + 10 * k)) for k in range(n_units)]
    return Spikes.from_trains(trains, clock=clock, name=name, support=support or [[0, stop_s]])


def noise(time_s, *, clock="amp", name="lfp", kind="lfp", seed=0) -> Signal:
    values = np.random.default_rng(seed).standard_normal((len(time_s), 3))
    return Signal.from_array(values, clock=clock, name=name, time_s=time_s, kind=kind)


def hand(*, stop_s=10.0, rate_hz=100.0) -> Movement:
    t = np.arange(round(stop_s * rate_hz)) / rate_hz
    return Movement.from_array(
        np.stack([np.sin(t), np.cos(3 * t)], 1), rate_hz=rate_hz, axes=["x", "y"], units="cm"
    )


@given(token_s=st.floats(0.02, 1.0), fine_s=st.floats(0.001, 0.02), n_bins=st.integers(100, 500))
@settings(max_examples=40, deadline=None)
def test_no_spike_and_no_count_is_lost_whatever_the_token_length(token_s, fine_s, n_bins):
    binned = np.random.default_rng(n_bins).poisson(1.5, (n_bins, 2))
    counts = Signal.from_array(binned, clock="amp", name="counts", rate_hz=50, kind="counts")
    spikes = units()
    tokens = tokenize(Recording("r", "ref", (spikes, counts), hand()), token_s=token_s, fine_s=fine_s)
    np.testing.assert_array_equal(tokens.clocks[0].total[-1], [t.size for t in spikes.trains])
    np.testing.assert_allclose(tokens.clocks[1].total[-1], binned.sum(0), rtol=1e-12)


@given(token_s=st.floats(0.02, 0.7))
@settings(max_examples=25, deadline=None)
def test_spike_counts_are_those_of_a_histogram(token_s):
    spikes = units()
    tokens = tokenize(Recording("r", "ref", (spikes,), hand()), token_s=token_s)
    values, present = everything(tokens)
    edges = tokens.origin_s + token_s * np.arange(tokens.n_tokens + 1)
    counted = np.stack([np.histogram(t, edges)[0] for t in spikes.trains], axis=1)
    full = edges[1:] <= 10
    assert present[full].all()
    np.testing.assert_array_equal(values[full], counted[full])


def test_a_token_of_lfp_is_the_mean_of_its_samples():
    signal = noise(np.arange(10000) / 1000)
    tokens = tokenize(Recording("r", "ref", (units(), signal), hand()), token_s=0.02)
    values, present = everything(tokens, 1)
    assert present.all()
    for k in range(tokens.n_tokens):
        inside = (signal.time_s >= k * 0.02 - 1e-9) & (signal.time_s < (k + 1) * 0.02 - 1e-9)
        assert inside.sum() == 20
        np.testing.assert_allclose(values[k], signal.data.values[inside].mean(0), atol=1e-6)


def test_bins_of_counts_are_summed_whole():
    binned = np.random.default_rng(0).poisson(2, (300, 3))
    counts = Signal.from_array(binned, clock="ref", name="n", rate_hz=50, start_s=0.013, kind="counts")
    tokens = tokenize(Recording("r", "ref", (counts,), hand()), token_s=0.06)
    values, present = everything(tokens)
    # The grid starts on a bin edge at or before all data, here that of movement.
    first = round((0.013 - tokens.origin_s) / 0.02)
    assert tokens.origin_s == pytest.approx(0.013 - 0.02 * first)
    assert tokens.origin_s <= 0
    whole = np.concatenate([np.zeros((first, 3)), binned, np.zeros((600, 3))])
    sums = whole[: 3 * tokens.n_tokens].reshape(tokens.n_tokens, 3, 3).sum(1)
    covered = np.arange(tokens.n_tokens) * 3
    full = (covered >= first) & (covered + 3 <= first + 300)
    assert full.sum() > 90
    assert present[full].all()
    np.testing.assert_array_equal(values[full], sums[full])


def test_samples_slower_than_tokens_hold_until_the_next_is_due():
    values = np.array([3.0, 5.0, 7.0, 11.0])
    slow = Signal.from_array(values, clock="amp", rate_hz=10)
    tokens = tokenize(Recording("r", "ref", (units(stop_s=1), slow)), token_s=0.02)
    found, present = everything(tokens, 1)
    np.testing.assert_array_equal(present, np.arange(tokens.n_tokens) < 20)
    np.testing.assert_array_equal(found[:20, 0], np.repeat(values, 5))


@given(
    gap=st.tuples(st.floats(2, 4), st.floats(4.1, 7)),
    token_s=st.floats(0.02, 0.3),
    rate_hz=st.sampled_from([1000.0, 317.0, 100.0, 60.0]),
)
@settings(max_examples=40, deadline=None)
def test_a_constant_field_is_constant_up_to_the_edge_of_every_gap(gap, token_s, rate_hz):
    t = np.arange(0, 10, 1 / rate_hz)
    t = t[(t < gap[0]) | (t >= gap[1])]
    signal = Signal.from_array(np.full(t.size, 5.0), clock="amp", time_s=t)
    tokens = tokenize(Recording("r", "ref", (units(), signal), hand()), token_s=max(token_s, 1 / rate_hz))
    values, present = everything(tokens, 1)
    np.testing.assert_allclose(values[present], 5.0, rtol=1e-5)
    assert (values[~present] == 0).all()


def test_a_token_that_was_recorded_in_part_shows_the_rate_it_had():
    regular = np.arange(0, 10, 0.001) + 0.0005
    gone = (regular > 3.013) & (regular < 5.0)
    spikes = Spikes.from_trains([regular[~gone]], clock="ref", support=[[0, 3.013], [5, 10]])
    tokens = tokenize(Recording("r", "ref", (spikes,)), token_s=0.02)
    values, present = everything(tokens)
    np.testing.assert_allclose(values[present], 20, atol=0.5)
    assert present[150], "13 of 20 ms were recorded"
    assert not present[151:250].any()


def test_a_gap_is_absent_and_silence_is_not():
    spikes = Spikes.from_trains([[0.5, 9.5]], clock="ref", support=[[0, 3], [6, 10]])
    signal = noise(np.r_[0:2:0.001, 7:10:0.001])
    tokens = tokenize(Recording("r", "ref", (spikes, signal), hand()), token_s=0.02)
    time_s = tokens.time_s(np.arange(tokens.n_tokens))
    for k, (lo, hi) in enumerate([(3, 6), (2, 7)]):
        values, present = everything(tokens, k)
        np.testing.assert_array_equal(present, (time_s < lo) | (time_s > hi))
        assert (values[~present] == 0).all()


def test_streams_of_one_clock_are_present_where_all_of_them_are():
    signal = noise(np.arange(2.0, 8.0, 0.001), clock="ref")
    tokens = tokenize(Recording("r", "ref", (units(), signal), hand()), token_s=0.02)
    _, present = everything(tokens)
    time_s = tokens.time_s(np.arange(tokens.n_tokens))
    np.testing.assert_array_equal(present, (time_s > 2) & (time_s < 8))
    assert tokens.clocks[0].features == (
        *(f"spikes/unit{k}" for k in range(4)),
        *(f"lfp/channel{k}" for k in range(3)),
    )
    np.testing.assert_array_equal(tokens.clocks[0].counted, [True] * 4 + [False] * 3)


@given(steps=st.integers(-300, 300), first=st.integers(-40, 380))
@settings(max_examples=30, deadline=None)
def test_gathering_at_a_shift_is_tokenizing_the_moved_recording(steps, first):
    """A clock whose stamps are late by n fine steps shows in its tokens what the still one shows n earlier."""
    inside = np.arange(3.0, 7.0, 0.001) + 0.0004
    other = units(clock="amp", name="others", seed=1).between(3, 7)
    recording = Recording("r", "ref", (units(), noise(inside), other), hand())
    still = tokenize(recording, token_s=0.02)
    moved = tokenize(recording.retimed("amp", lambda t: t + steps * still.fine_s, did="moved"), token_s=0.02)
    assert moved.origin_s == still.origin_s
    a, a_there = still.clocks[1].gather(side_by_side(first * 4 - steps, 50, 4), 4)
    b, b_there = moved.clocks[1].gather(side_by_side(first * 4, 50, 4), 4)
    np.testing.assert_array_equal(a_there, b_there)
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_windows_outside_the_grid_are_absent():
    tokens = tokenize(Recording("r", "ref", (units(),), hand()), token_s=0.02)
    values, present = tokens.clocks[0].gather(side_by_side([-4000, -8, 4000], 10, 4), 4)
    np.testing.assert_array_equal(present.sum(1), [0, 8, 0])
    assert (values[[0, 2]] == 0).all()
    inside, _ = tokens.clocks[0].gather(side_by_side(0, 8, 4), 4)
    np.testing.assert_array_equal(values[1, 2:], inside[0])
    assert values.dtype == np.float32


@pytest.mark.parametrize("per_token", [1, 4])
def test_gather_equals_a_loop_over_fine_steps(per_token):
    rng = np.random.default_rng(0)
    step, cover = rng.poisson(1.0, (200, 3)).astype(float), np.ones(200)
    cover[50:90] = 0
    step[50:90] = 0
    running = [np.concatenate([np.zeros((1, *x.shape[1:])), np.cumsum(x, axis=0)]) for x in (step, cover)]
    clock = ClockTokens("c", ("a", "b", "c"), *running, counted=np.array([True, True, False]))
    first = np.array([0, 37, 81])
    values, present = clock.gather(side_by_side(first, 20, per_token), per_token)
    for w, begin in enumerate(first):
        for k in range(20):
            where = slice(begin + k * per_token, begin + (k + 1) * per_token)
            share = cover[where].mean()
            assert present[w, k] == (share >= 0.5)
            if present[w, k]:
                expected = step[where].sum(0) / share / np.array([1, 1, per_token])
                np.testing.assert_allclose(values[w, k], expected, rtol=1e-6)


def test_movement_on_tokens_is_the_mean_of_its_samples():
    movement = hand()
    tokens = tokenize(Recording("r", "ref", (units(),), movement), token_s=0.05)
    np.testing.assert_allclose(tokens.movement, movement.data.values.reshape(200, 5, 2).mean(1), atol=1e-6)
    assert (tokens.axes, tokens.units) == (("x", "y"), "cm")
    assert tokens.movement.dtype == np.float32


def test_movement_slower_than_tokens_is_interpolated_but_never_over_a_gap():
    t = np.r_[0:4:0.1, 6:10:0.1]
    movement = Movement.from_array(2 * t + 1, time_s=t)
    tokens = tokenize(Recording("r", "ref", (units(),), movement), token_s=0.02)
    time_s = tokens.time_s(np.arange(tokens.n_tokens))
    known = np.isfinite(tokens.movement[:, 0])
    np.testing.assert_array_equal(known, (time_s < 4) | (time_s > 6))
    # A token that holds a sample takes it; the others lie on the line between.
    inner = known & ~((time_s > 3.88) & (time_s < 4)) & (time_s < 9.88)
    np.testing.assert_allclose(tokens.movement[inner, 0], 2 * time_s[inner] + 1, atol=0.021)


def test_movement_in_a_gap_is_not_a_number():
    t = np.r_[0:4:0.01, 6:10:0.01]
    tokens = tokenize(Recording("r", "ref", (units(),), Movement.from_array(t, time_s=t)), token_s=0.02)
    time_s = tokens.time_s(np.arange(tokens.n_tokens))
    np.testing.assert_array_equal(np.isnan(tokens.movement[:, 0]), (time_s > 4) & (time_s < 6))


def test_tokens_are_20_ms_or_the_coarsest_bin():
    fast, slow = noise(np.arange(100) / 1000), noise(np.arange(100) / 20, name="slow", kind="power")
    assert default_token_s(Recording("r", "ref", (fast,))) == 0.02
    recording = Recording("r", "ref", (units(), fast, slow), hand())
    assert default_token_s(recording) == pytest.approx(0.05)
    assert tokenize(recording).token_s == pytest.approx(0.05)
    assert tokenize(recording).per_token == 1, "lags finer than the bins would be invented"
    assert tokenize(Recording("r", "ref", (units(),), hand())).fine_s == pytest.approx(0.005)


def test_the_clock_that_asks_is_the_reference_if_anything_is_on_it():
    assert anchor_clock(Recording("r", "ref", (noise(np.arange(5.0)), units()))) == "ref"
    assert anchor_clock(Recording("r", "video", (noise(np.arange(5.0)), units(clock="array")))) == "array"
    assert anchor_clock(Recording("r", "video", (noise(np.arange(5.0)),))) == "amp"
    tokens = tokenize(Recording("r", "ref", (noise(np.arange(0, 10, 0.01)), units()), hand()))
    assert [c.clock for c in tokens.clocks] == ["ref", "amp"]


def test_a_stream_with_nothing_in_it_does_not_stretch_the_grid():
    late = Recording("r", "ref", (units(stop_s=130), noise(np.arange(0, 50, 0.01))), hand(stop_s=130))
    tokens = tokenize(late.between(100, 120))
    assert tokens.origin_s == pytest.approx(100)
    assert tokens.n_tokens == 1000
    assert not everything(tokens, 1)[1].any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: tokenize(Recording("r", "ref", (), hand())),
            "'r' has no spikes and no LFP; there is nothing to",
        ),
        (
            lambda: tokenize(
                Recording("r", "ref", (noise(np.arange(0, 10, 0.05), kind="power"),)), token_s=0.02
            ),
            "tokens of 0.02 s are shorter than the 0.05 s bins of this recording; give 0.05 s or more",
        ),
        (
            lambda: tokenize(Recording("r", "ref", (units(stop_s=0.01),))),
            "lasts 0.01 s, less than two tokens",
        ),
    ],
)
def test_what_cannot_be_tokenized_is_refused_with_a_sentence(make, message):
    with pytest.raises(NeurofuseError, match=message):
        make()


def test_bins_that_no_token_holds_a_whole_number_of_are_shared():
    counts = Signal.from_array(np.ones((500, 2)), clock="ref", name="n", rate_hz=50, kind="counts")
    tokens = tokenize(Recording("r", "ref", (counts,), hand()), token_s=0.05)
    values, _ = everything(tokens)
    np.testing.assert_allclose(values[:200], 2.5)
    assert tokens.clocks[0].total[-1] == pytest.approx(500)


def test_values_weigh_by_the_time_they_held():
    """250 samples per second in steps of 5 ms: every step holds one and a quarter of them."""
    samples = np.random.default_rng(0).standard_normal((2500, 1))
    signal = Signal.from_array(samples, clock="lfp", name="x", rate_hz=250, kind="power")
    tokens = tokenize(Recording("r", "ref", (units(), signal), hand()), token_s=0.02)
    assert tokens.fine_s == pytest.approx(0.005)
    fine = np.diff(tokens.clocks[1].total[:2001, 0])
    np.testing.assert_allclose(fine, np.repeat(samples[:, 0], 4).reshape(2000, 5).mean(1), atol=1e-9)
