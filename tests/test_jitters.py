"""One contract for every jitter, and each of them does what its formula says."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from neurofuse.jitters.contract import Chain, compose
from neurofuse.jitters.family import JITTERS, make_jitter, parse_jitter
from neurofuse.jitters.lag import (
    LAWS,
    Diffusion,
    Hops,
    Jumps,
    LagTruth,
    OffsetSkew,
    Sinusoid,
    Skew,
    Walk,
    Warp,
)
from neurofuse.jitters.lfp import band_std
from neurofuse.jitters.spikes import hold_inside, rebin, unbin
from neurofuse.recording import Movement, NeurofuseError, Recording, RecordingError, Signal, Spikes

# A level of each kind that does something visible to a recording of 40 s.
LEVEL = {
    "spike": 0.02,
    "spike-uniform": 0.03,
    "spike-laplace": 0.02,
    "spike-interval": 0.05,
    "spike-ordered": 0.05,
    "quantise": 0.01,
    "unit-delay": 0.02,
    "delete": 0.2,
    "insert": 0.3,
    "mislabel": 0.2,
    "dead-time": 0.02,
    "drop-unit": 0.5,
    "lag": 0.1,
    "offset": 0.2,
    "skew": 4000.0,
    "offset-skew": 300.0,
    "walk": 0.1,
    "diffusion": 0.001,
    "jump": 0.1,
    "hop": 0.1,
    "sinusoid": 0.1,
    "warp": 0.1,
    "wander": 0.1,
    "roam": 0.2,
    "drop-hidden": 0.01,
    "drop-marked": 0.05,
    "filter-delay": 0.02,
    "propagation": 0.02,
    "noise": 1.0,
    "pink": 1.0,
    "line": 1.0,
    "artefact": 5.0,
    "saturate": 0.7,
}
KINDS = list(JITTERS)
LAG_KINDS = [k for k in KINDS if k in LAWS]
TIMING = [
    "spike",
    "spike-uniform",
    "spike-laplace",
    "spike-interval",
    "spike-ordered",
    "quantise",
    "unit-delay",
]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def field(t: np.ndarray) -> np.ndarray:
    return np.stack(
        [np.sin(2 * np.pi * 0.9 * t + k) + 0.5 * np.cos(2 * np.pi * 2.3 * t) for k in range(3)], axis=1
    )


@pytest.fixture(scope="module")
def both() -> Recording:
    """Spikes on the reference clock; LFP, power, counts and spikes on the clock of a logger; one gap."""
    support = [[0.0, 18.0], [20.0, 40.0]]
    trains = [np.sort(rng(k).uniform(0, 40, 500)) for k in range(6)]
    trains = [t[(t < 18) | (t >= 20)] for t in trains]
    t = np.concatenate([np.arange(0, 18, 0.005), np.arange(20, 40, 0.005)])
    slow = t[::4]
    streams = (
        Spikes.from_trains(trains, clock="array", name="units", support=support),
        Signal.from_array(field(t), clock="logger", name="lfp", time_s=t),
        Signal.from_array(field(slow), clock="logger", name="power", time_s=slow, kind="power"),
        Signal.from_array(
            rng(9).poisson(0.8, (slow.size, 4)), clock="logger", name="counts", time_s=slow, kind="counts"
        ),
        Spikes.from_trains(trains[:2], clock="logger", name="other", support=support),
    )
    return Recording("r", "array", streams, Movement.from_array(field(np.arange(0, 40, 0.02)), rate_hz=50))


def numbers(stream) -> np.ndarray:
    return (
        np.column_stack([stream.times_s, stream.unit]) if isinstance(stream, Spikes) else stream.data.values
    )


def times(stream) -> np.ndarray:
    return stream.times_s if isinstance(stream, Spikes) else stream.time_s


def same(a: Recording, b: Recording) -> bool:
    return all(
        np.array_equal(times(x), times(y))
        and np.array_equal(numbers(x), numbers(y))
        and np.array_equal(x.support, y.support)
        for x, y in zip(a.streams, b.streams, strict=True)
    )


def poisson(rate_hz: float = 50.0, n_units: int = 40, stop_s: float = 200.0) -> Recording:
    n = rng(3).poisson(rate_hz * n_units * stop_s)
    t = np.sort(rng(4).uniform(0, stop_s, n))
    units = pd.DataFrame(index=range(n_units))
    return Recording(
        "p", "c", (Spikes("units", "c", t, rng(5).integers(0, n_units, n), units, [[0, stop_s]]),)
    )


# ---- the contract


def test_every_kind_is_tested_and_told():
    assert set(LEVEL) == set(JITTERS)
    for kind, entry in JITTERS.items():
        assert entry.kind == kind
        assert entry.unit in ("s", "1", "ppm", "s^2/s")
        assert entry.acts_on in ("spikes", "lfp", "clock")
        assert "level" in entry.says or kind in ("lag", "offset", "roam")
        assert parse_jitter(f"{kind}:0.5").level == 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_a_jitter_returns_a_new_recording_and_the_truth_and_leaves_the_old_one_alone(both, kind):
    before = {s.name: (times(s).copy(), numbers(s).copy()) for s in both.streams}
    jitter = make_jitter(kind, LEVEL[kind])
    after, truth = jitter.jitter(both, rng=rng())
    for s in both.streams:
        np.testing.assert_array_equal(times(s), before[s.name][0])
        np.testing.assert_array_equal(numbers(s), before[s.name][1])
    assert not same(both, after)
    assert after.movement is both.movement
    assert [s.name for s in after.streams] == [s.name for s in both.streams]
    for s in both.streams:
        if s.name not in truth.streams:
            assert after[s.name] is s, "a stream that is no target was touched"
    assert after.provenance[-1].endswith(f"jittered by {jitter}")
    assert (truth.kind, truth.level, truth.unit) == (kind, LEVEL[kind], JITTERS[kind].unit)
    assert truth.edge
    assert set(truth.parameters) == set(JITTERS[kind].settings)
    json.dumps(truth.as_dict())
    assert (truth.clock is not None) == (JITTERS[kind].acts_on == "clock" and kind != "drop-marked")


@pytest.mark.parametrize("kind", KINDS)
def test_one_seed_does_the_same_and_the_truth_can_do_it_again(both, kind):
    jitter = make_jitter(kind, LEVEL[kind])
    first, truth = jitter.jitter(both, rng=rng(1))
    again, _ = jitter.jitter(both, rng=rng(1))
    assert same(first, again)
    replayed, _ = truth.jitter.jitter(both, rng=truth.seed.generator())
    assert same(first, replayed)
    other, _ = jitter.jitter(both, rng=rng(2))
    fixed = {
        "quantise",
        "dead-time",
        "offset",
        "skew",
        "offset-skew",
        "filter-delay",
        "propagation",
        "saturate",
    }
    drawn = kind not in fixed or (kind in ("quantise", "dead-time") and not same(first, other))
    assert same(first, other) != drawn


@pytest.mark.parametrize("kind", KINDS)
def test_level_zero_changes_nothing(both, kind):
    after, truth = make_jitter(kind, 0.0).jitter(both, rng=rng())
    assert same(both, after)
    assert after.provenance[-1].endswith(f"jittered by {kind}:0")
    t = np.linspace(0, 40, 9)
    np.testing.assert_array_equal(truth.forward(t), t)
    np.testing.assert_array_equal(truth.backward(t), t)
    for moved in truth.moved.values():
        assert not moved.displacement_s.any()
    phi = truth.phi([0.5, 3.0])
    assert np.isnan(phi).all() or np.allclose(phi, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_the_truth_says_where_every_event_went(both, kind):
    after, truth = make_jitter(kind, LEVEL[kind]).jitter(both, rng=rng())
    for name, moved in truth.moved.items():
        was, now = both[name], after[name]
        if not isinstance(was, Spikes) and was.kind == "counts" and JITTERS[kind].acts_on == "spikes":
            continue
        assert len(moved.displacement_s) == times(was).size
        assert len(moved.source) == times(now).size
        known = moved.source >= 0
        if isinstance(was, Spikes):
            gone_to = times(was)[moved.source[known]] + moved.displacement_s[moved.source[known]]
            np.testing.assert_allclose(times(now)[known], gone_to, atol=1e-9)
            kept = np.isin(np.arange(times(was).size), moved.source)
            np.testing.assert_array_equal(kept, np.isfinite(moved.displacement_s))
        elif kind.startswith("drop"):
            gone_to = times(was)[moved.source] + moved.displacement_s[moved.source]
            np.testing.assert_allclose(times(now), gone_to, atol=1e-9)
            np.testing.assert_array_equal(numbers(now), numbers(was)[moved.source])


@pytest.mark.parametrize("kind", KINDS)
def test_the_map_of_time_runs_both_ways(both, kind):
    _, truth = make_jitter(kind, LEVEL[kind]).jitter(both, rng=rng())
    t = np.sort(rng(5).uniform(1, 39, 400))
    there = truth.forward(t)
    # Where two moments share a stamp either may come back; having come back, it must go there again.
    back = truth.backward(there)
    np.testing.assert_allclose(truth.forward(back), there, atol=1e-6)
    if kind in ("offset", "skew", "offset-skew", "sinusoid", "warp", "filter-delay", "drop-marked"):
        np.testing.assert_allclose(back, t, atol=1e-6 if kind in ("offset", "filter-delay") else 6e-3)
    np.testing.assert_array_equal(truth.forward(t, "units"), t) if "units" not in truth.streams else None


@pytest.mark.parametrize("kind", KINDS)
def test_a_stronger_jitter_has_a_smaller_phi(kind):
    f_hz = np.array([0.01, 0.5])
    weak, strong = (make_jitter(kind, LEVEL[kind] * x).phi(f_hz, span_s=10.0) for x in (0.01, 0.5))
    if not np.isnan(weak).any():
        assert (strong <= weak + 1e-12).all()
        assert ((weak <= 1) & (weak > 0)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_jitter_reads_back_as_it_is_written(kind):
    jitter = make_jitter(kind, LEVEL[kind])
    assert parse_jitter(str(jitter)) == jitter
    named = {"clock": "logger"} if JITTERS[kind].acts_on == "clock" else {"stream": "units"}
    jitter = make_jitter(kind, LEVEL[kind], **named)
    assert parse_jitter(str(jitter)) == jitter


# ---- chains


@pytest.mark.parametrize("second", KINDS)
def test_a_jitter_added_later_leaves_the_draws_of_the_first(both, second):
    first = parse_jitter("spike:0.02:stream=units")
    alone, _ = first.jitter(both, rng=rng(4))
    chain = first | make_jitter(second, LEVEL[second])
    assert isinstance(chain, Chain)
    after, truth = chain.jitter(both, rng=rng(4))
    middle, told = truth.parts[0].jitter.jitter(both, rng=rng(4))
    assert same(alone, middle)
    last, _ = truth.parts[1].jitter.jitter(middle, rng=truth.parts[1].seed.generator())
    assert same(after, last)
    assert parse_jitter(str(chain)) == chain == compose([first, make_jitter(second, LEVEL[second])])
    np.testing.assert_array_equal(told.moved["units"].source, truth.parts[0].moved["units"].source)
    json.dumps(truth.as_dict())
    assert len(after.provenance) == len(both.provenance) + 2


def test_a_chain_follows_every_spike(both):
    chain = parse_jitter(
        "spike:0.02 | delete:0.2 | insert:0.3 | spike-uniform:0.1:edge=drop | dead-time:0.005"
    )
    after, truth = chain.jitter(both, rng=rng(1))
    for name in ("units", "other"):
        moved, was, now = truth.moved[name], both[name].times_s, after[name].times_s
        known = moved.source >= 0
        assert (~known).any()
        np.testing.assert_allclose(
            now[known], was[moved.source[known]] + moved.displacement_s[moved.source[known]]
        )
        np.testing.assert_array_equal(
            np.flatnonzero(np.isfinite(moved.displacement_s)), np.sort(moved.source[known])
        )
        np.testing.assert_array_equal(after[name].unit[known], both[name].unit[moved.source[known]])
    assert "counts" not in truth.moved


def test_the_maps_of_a_chain_compose(both):
    chain = parse_jitter("offset:0.2 | skew:4000 | drop-hidden:0.01 | spike:0.01:stream=units")
    after, truth = chain.jitter(both, rng=rng(1))
    t = np.linspace(1, 39, 300)
    by_hand = t
    for part in truth.parts:
        by_hand = part.forward(by_hand)
    np.testing.assert_array_equal(truth.forward(t), by_hand)
    np.testing.assert_array_equal(truth.forward(t, "units"), t)
    np.testing.assert_allclose(truth.forward(truth.backward(truth.forward(t))), truth.forward(t), atol=1e-6)
    moved = truth.moved["other"]
    kept = np.isfinite(moved.displacement_s)
    np.testing.assert_allclose(
        both["other"].times_s[kept] + moved.displacement_s[kept],
        truth.forward(both["other"].times_s, "other")[kept],
        atol=1e-4,
    )
    # What the field shows at the new time is what happened at the old one.
    lfp = after["lfp"]
    calm = np.isfinite(truth.moved["lfp"].displacement_s)
    at = both["lfp"].time_s[calm]
    at = at[(at > 2) & (at < 38) & ((at < 17) | (at > 21))]
    shown = np.interp(truth.forward(at, "lfp"), lfp.time_s, lfp.data.values[:, 0])
    assert np.abs(shown - field(at)[:, 0]).mean() < 0.05
    lags = truth.lags(0, 40)
    assert set(lags) == {"logger"}
    assert isinstance(lags["logger"], LagTruth)
    np.testing.assert_allclose(lags["logger"].at(t), truth.forward(t, "lfp") - t, atol=1e-2)
    assert truth.phi(0.5) == pytest.approx(np.prod([p.phi(0.5) for p in truth.parts]))


def test_samples_are_followed_through_a_chain_too(both):
    after, truth = parse_jitter("drop-marked:0.05 | offset:0.2 | noise:1 | propagation:0.02").jitter(
        both, rng=rng(1)
    )
    moved = truth.moved["lfp"]
    assert moved.displacement_s.shape == both["lfp"].data.shape
    assert moved.source.size == after["lfp"].time_s.size
    kept = np.isfinite(moved.displacement_s).all(axis=1)
    assert 0.9 < kept.mean() < 0.99
    np.testing.assert_allclose(
        moved.displacement_s[kept], np.broadcast_to(0.2 + 0.02 * np.array([-0.5, 0, 0.5]), (kept.sum(), 3))
    )


def test_jitters_compose_from_lists_and_only_from_something(both):
    a, b, c = (parse_jitter(x) for x in ("spike:0.01", "delete:0.1", "noise:1"))
    assert a | [b, c] == a | b | c == compose([a | b, c])
    assert compose([a]) is a
    with pytest.raises(NeurofuseError, match="no jitter to compose; give one or more"):
        compose([])


# ---- refusals


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("shake:1", "unknown jitter 'shake' in 'shake:1'; choose one of spike, "),
        ("spike", r"jitter 'spike' has no level; write spike:LEVEL with a number in s \(every spike"),
        ("spike:much", "has no level; write spike:LEVEL"),
        ("spike:-0.1", "'spike': the level is a size in s and cannot be -0.1; give zero or more"),
        ("walk:-1", "'walk': the level is a size in s and cannot be -1"),
        ("spike:nan", "cannot be nan"),
        ("skew:inf", "cannot be inf"),
        ("delete:1.5", "'delete': the level is a share and cannot be 1.5; give 0 to 1"),
        ("drop-hidden:1", "loses a share below 1"),
        ("spike:0.1:edge=bounce", "the edge must be reflect, wrap or drop, got 'bounce'"),
        ("spike:0.1:colour=red", "'spike' has no setting 'colour'; it has stream, edge"),
        ("spike:0.1:drop", "'drop' is no setting; write name=value"),
        ("noise:1:hi_hz=high", "hi_hz must be a number, got 'high'"),
        ("noise:1:hi_hz=0", "the band must run from 0 or more up to something higher"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_sentence(text, said):
    with pytest.raises(NeurofuseError, match=said):
        parse_jitter(text)


def test_what_a_recording_lacks_is_named(both):
    units, fields = both["units"], both["lfp"]
    only_spikes, only_lfp = Recording("s", "array", (units,)), Recording("f", "logger", (fields,))
    for text, recording, said in [
        ("spike:0.1", only_lfp, r"recording 'f' has no spikes or counts for jitter 'spike'.*lfp \(lfp\)"),
        ("noise:1", only_spikes, "no LFP and no stream off the reference clock.*split_units"),
        ("propagation:0.1", only_spikes, "has no LFP for jitter 'propagation'"),
        ("walk:0.1", only_spikes, "only the clock 'array', so there is no second clock to move"),
        ("walk:0.1:clock=gps", both, r"no stream on clock 'gps'; choose one of \['array', 'logger'\]"),
        ("walk:0.1:clock=array", both, "'array' is the reference clock"),
        ("drop-hidden:0.1", only_spikes, "no second clock to move"),
        ("spike:0.1:stream=lfp", both, "acts on spikes, but 'lfp' holds LFP; choose one of"),
        ("filter-delay:0.1:stream=units", both, "acts on LFP, but 'units' holds spikes"),
        ("spike:0.1:stream=none", both, "has no stream 'none'"),
        ("mislabel:0.1", Recording("s", "array", (units.select([0]),)), "needs two units to confuse"),
        ("propagation:100", both, "would leave nothing of 'lfp'"),
        ("line:1:line_hz=500", both, "a line at 500 Hz cannot be heard in 'lfp', sampled at 200 Hz"),
    ]:
        with pytest.raises(NeurofuseError, match=said):
            parse_jitter(text).jitter(recording, rng=rng())
    half = Signal.from_array(
        rng().uniform(0, 1, (100, 2)), clock="array", rate_hz=10, kind="counts", name="soft"
    )
    with pytest.raises(NeurofuseError, match="'soft' are not whole numbers"):
        parse_jitter("spike:0.1").jitter(Recording("s", "array", (half,)), rng=rng())
    assert issubclass(RecordingError, NeurofuseError)
