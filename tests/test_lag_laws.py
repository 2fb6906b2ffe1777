"""Every lag law has its stated distribution, and a moved recording has exactly the lag of the truth."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neurofuse.errors import NeurofuseError, RecordingError
from neurofuse.jitters.jitter import TRUTH_STEP_S, LagTruth
from neurofuse.jitters.kinds import JITTERS, is_lag, parse_jitter
from neurofuse.jitters.lag_laws import (
    Jumps,
    NoLag,
    Offset,
    Skew,
    Walk,
    Wander,
    WindowLag,
    draw_truth,
    move_clock,
)
from neurofuse.recording import Movement, Recording, Signal, Spikes

EVERY_LAW = [
    NoLag(),
    WindowLag(0.15),
    Offset(0.2),
    Offset(-0.2),
    Skew(4000.0),
    Walk(0.2),
    Jumps(0.2),
    Wander(0.1),
]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def field(t: np.ndarray) -> np.ndarray:
    return np.sin(2 * np.pi * 0.9 * t) + 0.5 * np.cos(2 * np.pi * 2.3 * t + 1)


def two_clocks(*, stop_s: float = 40.0, rate_hz: float = 500.0) -> Recording:
    """A known field, one spike a unit so that each can be followed, counts and power, all on clock `late`."""
    t = np.arange(round(stop_s * rate_hz)) / rate_hz
    times = np.sort(rng(9).uniform(0, stop_s, 300))
    streams = (
        Spikes.from_trains([[x] for x in times], clock="late", name="spikes", support=[[0, stop_s]]),
        Spikes.from_trains([times], clock="ref", name="still", support=[[0, stop_s]]),
        Signal.from_array(field(t), clock="late", name="lfp", rate_hz=rate_hz),
        Signal.from_array(field(t[::10]), clock="late", name="power", rate_hz=rate_hz / 10, kind="power"),
        Signal.from_array(field(t), clock="ref", name="still lfp", rate_hz=rate_hz),
    )
    return Recording("r", "ref", streams, Movement.from_array(field(t[::5]), rate_hz=rate_hz / 5))


def shown_moments(law, t: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Those of `t` that have a stamp and lie away from jumps, and the law as a function of stamps.

    Where a lag jumps down, the moments between are never written: they have no lag.
    """
    stamp_s, source_s, truth = draw_truth(law, "late", 0.0, 40.0, max_lag_s=0.5, rng=rng())
    content_s = np.sort(source_s)
    # How far the written moments lie apart around t: 5 ms, or as far as a lag jumped down.
    after = np.clip([np.searchsorted(content_s, t + d) for d in (-0.02, 0.0, 0.02)], 1, content_s.size - 1)
    apart_s = (content_s[after] - content_s[after - 1]).max(axis=0)
    around = np.ptp([truth.at(t + d) for d in np.linspace(-0.03, 0.03, 13)], axis=0)
    calm = around < (0.02 if isinstance(law, (Walk, Wander)) else 1e-3)
    return t[(apart_s < 0.02) & calm & (t > 1) & (t < 39)], stamp_s, source_s


@pytest.mark.parametrize("law", EVERY_LAW, ids=str)
def test_a_spike_at_t_is_stamped_t_plus_the_lag_at_t(law):
    recording = two_clocks()
    moved, truth = move_clock(recording, "late", law, max_lag_s=0.5, rng=rng())
    t = np.array([x[0] for x in recording["spikes"].trains])
    stamped = np.array([x[0] for x in moved["spikes"].trains])
    np.testing.assert_array_equal(stamped, t + truth.at(t))
    # By another method: the law is a function of the moved clock, so a stamp less the law at it is the moment.
    shown, stamp_s, source_s = shown_moments(law, t)
    assert shown.size > 200
    back = np.interp(stamped[np.isin(t, shown)], stamp_s, source_s)
    assert np.abs(back - shown).max() < 0.012


@pytest.mark.parametrize("law", EVERY_LAW, ids=str)
def test_the_moved_field_has_at_t_plus_lag_the_content_of_t(law):
    moved, truth = move_clock(two_clocks(), "late", law, max_lag_s=0.5, rng=rng())
    t, _, _ = shown_moments(law, np.arange(1.0, 39.0, 0.0137))
    assert t.size > 2000
    shown = np.interp(t + truth.at(t), moved["lfp"].time_s, moved["lfp"].data.values[:, 0])
    error = np.abs(shown - field(t))
    if isinstance(law, (Walk, Wander)):  # the truth has steps of 5 ms, and the field changes by 13 per second
        assert error.max() < 0.2
        assert error.mean() < 0.02
    else:
        assert error.max() < 2e-3
    # Power is taken from the nearest bin: at most half a bin of 20 ms off.
    shown = np.interp(t + truth.at(t), moved["power"].time_s, moved["power"].data.values[:, 0])
    assert np.abs(shown - field(t)).mean() < 0.06


@pytest.mark.parametrize("law", EVERY_LAW, ids=str)
def test_only_the_named_clock_moves_and_the_original_stays(law):
    recording = two_clocks()
    before = {
        s.name: (s.times_s if isinstance(s, Spikes) else s.data.values).copy() for s in recording.streams
    }
    moved, truth = move_clock(recording, "late", law, rng=rng())
    assert moved["still"] is recording["still"]
    assert moved["still lfp"] is recording["still lfp"]
    assert moved.movement is recording.movement
    for s in recording.streams:
        now = s.times_s if isinstance(s, Spikes) else s.data.values
        np.testing.assert_array_equal(now, before[s.name])
    assert moved.provenance == (f"clock 'late' moved by {law}",)
    assert (truth.clock, truth.law) == ("late", str(law))


@pytest.mark.parametrize("law", EVERY_LAW, ids=str)
def test_the_same_seed_moves_alike_and_another_does_not(law):
    recording = two_clocks(stop_s=10)
    a, truth = move_clock(recording, "late", law, rng=rng(4))
    b, again = move_clock(recording, "late", law, rng=rng(4))
    np.testing.assert_array_equal(truth.lag_s, again.lag_s)
    np.testing.assert_array_equal(a["lfp"].data.values, b["lfp"].data.values)
    np.testing.assert_array_equal(a["spikes"].times_s, b["spikes"].times_s)
    _, other = move_clock(recording, "late", law, rng=rng(5))
    fixed = isinstance(law, (NoLag, Offset, Skew))
    assert np.array_equal(truth.lag_s, other.lag_s) == fixed


@pytest.mark.parametrize("lag_s", [0.2, -0.2])
def test_an_offset_is_exact_and_what_was_never_recorded_is_dropped(lag_s):
    recording = two_clocks(stop_s=10)
    moved, truth = move_clock(recording, "late", Offset(lag_s), rng=rng())
    assert (truth.lag_s == lag_s).all()
    np.testing.assert_allclose(moved["spikes"].times_s, recording["spikes"].times_s + lag_s, atol=1e-12)
    np.testing.assert_allclose(moved["spikes"].support, recording["spikes"].support + lag_s)
    n = round(abs(lag_s) * 500)
    was, now = recording["lfp"], moved["lfp"]
    assert len(now.time_s) == len(was.time_s) - n
    still, shown = (slice(n, None), slice(None, -n)) if lag_s > 0 else (slice(None, -n), slice(n, None))
    np.testing.assert_array_equal(now.time_s, was.time_s[still])
    np.testing.assert_allclose(now.data.values, was.data.values[shown], atol=1e-9)


def test_no_lag_changes_nothing():
    recording = two_clocks(stop_s=10)
    moved, truth = move_clock(recording, "late", NoLag(), rng=rng())
    assert (truth.lag_s == 0).all()
    np.testing.assert_array_equal(moved["spikes"].times_s, recording["spikes"].times_s)
    np.testing.assert_allclose(moved["lfp"].data.values, recording["lfp"].data.values, atol=1e-12)
    np.testing.assert_array_equal(moved["power"].data.values, recording["power"].data.values)


def test_counts_move_whole_bin_by_bin():
    counts = np.zeros((50, 1))
    counts[20] = 7
    signal = Signal.from_array(counts, clock="late", rate_hz=50, kind="counts", name="n")
    recording = Recording("r", "ref", (signal,), Movement.from_array(counts, rate_hz=50))
    moved, _ = move_clock(recording, "late", Offset(0.1), rng=rng())
    at = np.flatnonzero(moved["n"].data.values[:, 0])
    np.testing.assert_allclose(moved["n"].time_s[at], [0.5])
    assert moved["n"].data.values.sum() == 7


def test_a_gap_moves_with_its_clock_and_is_not_filled():
    t = np.concatenate([np.arange(0, 4, 0.002), np.arange(6, 10, 0.002)])
    signal = Signal.from_array(field(t), clock="late", time_s=t)
    units = Spikes.from_trains([[1.0, 7.0]], clock="late", name="u", support=[[0, 4], [6, 10]])
    recording = Recording("r", "ref", (signal, units), Movement.from_array(np.zeros(100), rate_hz=10))
    moved, _ = move_clock(recording, "late", Offset(0.5), rng=rng())
    # Stamps sit on the grid of the logger: where it wrote nothing before, it writes nothing after.
    np.testing.assert_allclose(moved["lfp"].support, [[0.5, 4], [6.5, 10]], atol=0.003)
    np.testing.assert_allclose(moved["u"].support, [[0.5, 4.5], [6.5, 10.5]])
    shown = moved["lfp"]
    np.testing.assert_allclose(shown.data.values[:, 0], field(shown.time_s - 0.5), atol=1e-4)


def test_streams_of_one_clock_stay_together():
    """A bump of the field under every spike is still there after both went through a walk."""
    times = np.arange(1.0, 39.0, 0.7)
    t = np.arange(0, 40, 0.002)
    bumps = np.exp(-0.5 * ((t[:, None] - times) / 0.02) ** 2).sum(1)
    signal = Signal.from_array(bumps, clock="late", rate_hz=500)
    units = Spikes.from_trains([times], clock="late", name="u", support=[[0, 40]])
    recording = Recording("r", "ref", (signal, units), Movement.from_array(bumps, rate_hz=500))
    moved, truth = move_clock(recording, "late", Walk(0.3), rng=rng(2))
    assert np.ptp(truth.lag_s) > 0.2
    under = np.interp(moved["u"].times_s, moved["lfp"].time_s, moved["lfp"].data.values[:, 0])
    assert under.min() > 0.85


def test_a_lag_beyond_the_range_is_clipped_to_it():
    for law in (WindowLag(5.0), Walk(5.0), Offset(5.0)):
        _, truth = move_clock(two_clocks(stop_s=10), "late", law, max_lag_s=0.3, rng=rng())
        assert np.abs(truth.lag_s).max() == 0.3


def test_the_narrower_of_two_ranges_clips_a_lag():
    recording = two_clocks(stop_s=10)
    for own, other, largest in ((0.1, None, 0.1), (0.1, 0.3, 0.1), (0.4, 0.3, 0.3), (None, None, 5.0)):
        _, truth = move_clock(recording, "late", Offset(5.0, max_lag_s=own), max_lag_s=other, rng=rng())
        assert np.abs(truth.lag_s).max() == largest


def test_the_truth_is_unknown_outside_its_time():
    truth = LagTruth("c", 10 + TRUTH_STEP_S * np.arange(100), np.linspace(0, 1, 100), "walk:1")
    lag_s = truth.at(np.array([9.9, 10.0, 10.2475, 10.495, 10.6]))
    np.testing.assert_allclose(lag_s[1:4], [0, 0.5, 1], atol=0.01)
    assert np.isnan(lag_s[[0, 4]]).all()
    assert np.isnan(LagTruth("c", np.empty(0), np.empty(0), "none:0").at(np.zeros((2, 3)))).all()


def test_a_window_lag_has_its_std_and_is_constant_in_a_block():
    t = np.arange(0, 30000, 0.5)
    lag_s = WindowLag(0.3).draw(t, rng=rng())
    blocks = lag_s.reshape(-1, 6)
    assert (np.ptp(blocks, axis=1) == 0).all()
    assert blocks[:, 0].std() == pytest.approx(0.3, rel=0.03)
    assert abs(blocks[:, 0].mean()) < 0.01
    assert abs(np.corrcoef(blocks[:-1, 0], blocks[1:, 0])[0, 1]) < 0.03


@pytest.mark.parametrize("ppm", [30.0, -1500.0])
def test_a_skewed_clock_runs_fast_by_its_ppm_and_is_right_in_the_middle(ppm):
    t = np.arange(100, 700, 0.5)
    lag_s = Skew(ppm).draw(t, rng=rng())
    slope, _ = np.polyfit(t, lag_s, 1)
    assert slope == pytest.approx(1e-6 * ppm)
    assert lag_s[0] == pytest.approx(-lag_s[-1])


def test_a_walk_is_an_ornstein_uhlenbeck_path():
    t = np.arange(0, 300000.0, 3.0)
    law = Walk(0.2)
    lag_s = law.draw(t, rng=rng())
    assert lag_s.std() == pytest.approx(0.2, rel=0.05)
    for n in (5, 20, 40):
        correlation = np.mean(lag_s[:-n] * lag_s[n:]) / lag_s.var()
        assert correlation == pytest.approx(np.exp(-3.0 * n / law.return_s), abs=0.05)
    starts = np.array([law.draw(t[:2], rng=rng(k))[0] for k in range(2000)])
    assert starts.std() == pytest.approx(0.2, rel=0.05), "it starts from its stationary law"


def test_jumps_come_at_their_rate_and_hold_between():
    t = np.arange(0, 40000.0, 0.1)
    lag_s = Jumps(0.2).draw(t, rng=rng())
    at = np.flatnonzero(np.diff(lag_s))
    assert len(at) / 40000 == pytest.approx(1 / 8, rel=0.04)
    holds = np.diff(at) * 0.1
    assert holds.std() == pytest.approx(holds.mean(), rel=0.05), "holding times are exponential"
    assert lag_s[at].std() == pytest.approx(0.2, rel=0.04)


def test_wander_is_an_offset_a_walk_and_jumps_together():
    ends = np.array([Wander(0.15).draw(np.arange(0, 2, 0.5), rng=rng(k))[-1] for k in range(4000)])
    assert ends.mean() == pytest.approx(0.15, abs=0.01)
    assert ends.std() == pytest.approx(0.15 * np.sqrt(1 + 0.25), rel=0.04)


@given(
    kind=st.sampled_from([k for k in JITTERS if is_lag(k) and k != "none"]),
    level=st.floats(0, 1000).map(lambda x: float(f"{x:g}")),
)
@settings(max_examples=40, deadline=None)
def test_a_law_reads_back_as_it_is_written(kind, level):
    law = parse_jitter(f"{kind}:{level}")
    assert isinstance(law, JITTERS[kind])
    assert law.level == level
    assert parse_jitter(str(law)) == law


def test_agreeing_clocks_need_no_level():
    assert parse_jitter("none") == NoLag() == parse_jitter(str(NoLag()))
    assert parse_jitter("offset:-0.2") == Offset(-0.2)
    assert parse_jitter("skew:-30") == Skew(-30.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "drift:0.2",
            r"unknown jitter 'drift' in 'drift:0.2'; choose one of spike, .*, none, lag, offset, skew",
        ),
        ("", "unknown jitter '' in ''; choose one of"),
        ("lag", r"jitter 'lag' has no level; write lag:LEVEL with a number in s, such as lag:0\.3"),
        ("lag:big", r"jitter 'lag:big' has no level; write lag:LEVEL"),
        ("skew:nan", r"write skew:LEVEL with a number in ppm, such as skew:30"),
        ("offset:inf", r"write offset:LEVEL with a number in s"),
        ("walk:-0.1", "'walk:-0.1': the level is a size in s and cannot be negative; give zero or more"),
    ],
)
def test_an_error_shows_how_to_write_a_law(text, message):
    with pytest.raises(NeurofuseError, match=message):
        parse_jitter(text)


def test_the_reference_and_unknown_clocks_cannot_be_moved():
    with pytest.raises(RecordingError, match=r"'ref' is the reference clock.*move one of \['late'\]"):
        move_clock(two_clocks(stop_s=10), "ref", Offset(0.1), rng=rng())
    one_clock = Recording("r", "ref", (two_clocks(stop_s=10)["still"],))
    with pytest.raises(RecordingError, match=r"move one of a second clock \(see split_units\)"):
        move_clock(one_clock, "ref", Offset(0.1), rng=rng())
    with pytest.raises(RecordingError, match=r"has no clock 'gps'; it has \['ref', 'late'\]"):
        move_clock(two_clocks(stop_s=10), "gps", Offset(0.1), rng=rng())
