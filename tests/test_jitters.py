"""One contract for every jitter, and each of them acts as its formula predicts."""

import json
import warnings
from dataclasses import dataclass
from importlib.metadata import Distribution, EntryPoint

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from neurofuse import extensions
from neurofuse.errors import NeurofuseError, RecordingError
from neurofuse.jitters import kinds
from neurofuse.jitters.jitter import Chain, Jitter, JitterResult, LagTruth, Moved, compose
from neurofuse.jitters.kinds import (
    JITTERS,
    find_jitter,
    is_lag,
    make_jitter,
    parse_jitter,
    parse_lag,
    register_jitter,
    registered_jitters,
)
from neurofuse.jitters.lag_laws import (
    AnyLag,
    Diffusion,
    Hops,
    Jumps,
    LagJitter,
    OffsetSkew,
    Sinusoid,
    Skew,
    Walk,
    Wander,
    Warp,
    WindowLag,
)
from neurofuse.jitters.lfp import band_std
from neurofuse.jitters.spikes import keep_inside, rebin, unbin
from neurofuse.recording import Movement, Recording, Signal, Spikes

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
    "any": 0.2,
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
KINDS = [k for k in JITTERS if k != "none"]
LAG_KINDS = [k for k in KINDS if is_lag(k)]
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


def test_every_kind_is_tested_and_described():
    assert set(LEVEL) == set(KINDS)
    for kind, jitter in JITTERS.items():
        assert jitter.kind == kind
        assert jitter.unit in ("s", "1", "ppm", "s^2/s")
        assert jitter.acts_on in ("spikes", "lfp", "clock")
        assert "level" in jitter.description
        assert is_lag(kind) == issubclass(jitter, LagJitter)
    for kind in KINDS:
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
    assert set(truth.parameters) == set(JITTERS[kind].settings())
    json.dumps(truth.as_dict())
    assert (truth.clock is not None) == (JITTERS[kind].acts_on == "clock" and kind != "drop-marked")


@pytest.mark.parametrize("kind", KINDS)
def test_one_seed_repeats_a_jitter_and_so_does_the_seed_in_the_truth(both, kind):
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
    # Counts are taken apart by draws of their own.
    alike = [np.array_equal(numbers(first[n]), numbers(other[n])) for n in truth.streams if n != "counts"]
    assert all(alike) == (kind in fixed)


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
def test_the_truth_has_the_displacement_and_origin_of_every_event(both, kind):
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
def test_the_map_of_time_has_an_inverse(both, kind):
    _, truth = make_jitter(kind, LEVEL[kind]).jitter(both, rng=rng())
    t = np.sort(rng(5).uniform(1, 39, 400))
    after_s = truth.forward(t)
    # Where two moments share a stamp either is an inverse; its stamp must be the same one.
    back = truth.backward(after_s)
    np.testing.assert_allclose(truth.forward(back), after_s, atol=1e-6)
    if kind in ("offset", "skew", "offset-skew", "sinusoid", "warp", "filter-delay", "drop-marked"):
        np.testing.assert_allclose(back, t, atol=1e-6 if kind in ("offset", "filter-delay") else 6e-3)
    if "units" not in truth.streams:
        np.testing.assert_array_equal(truth.forward(t, "units"), t)


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
    first_only, _ = first.jitter(both, rng=rng(4))
    chain = first | make_jitter(second, LEVEL[second])
    assert isinstance(chain, Chain)
    after, truth = chain.jitter(both, rng=rng(4))
    middle, first_truth = truth.parts[0].jitter.jitter(both, rng=rng(4))
    assert same(first_only, middle)
    last, _ = truth.parts[1].jitter.jitter(middle, rng=truth.parts[1].seed.generator())
    assert same(after, last)
    assert parse_jitter(str(chain)) == chain == compose([first, make_jitter(second, LEVEL[second])])
    np.testing.assert_array_equal(first_truth.moved["units"].source, truth.parts[0].moved["units"].source)
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


def test_jitters_compose_from_lists_and_not_from_nothing(both):
    a, b, c = (parse_jitter(x) for x in ("spike:0.01", "delete:0.1", "noise:1"))
    assert a | [b, c] == a | b | c == compose([a | b, c])
    assert compose([a]) is a
    with pytest.raises(NeurofuseError, match="no jitter to compose; give one or more"):
        compose([])


# ---- refusals


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("shake:1", "unknown jitter 'shake' in 'shake:1'; choose one of spike, "),
        (
            "spike",
            r"jitter 'spike' has no level; write spike:LEVEL with a number in s, such as spike:0.3 \(every spike",
        ),
        ("spike:much", "has no level; write spike:LEVEL"),
        ("spike:-0.1", "'spike:-0.1': the level is a size in s and cannot be negative; give zero or more"),
        ("walk:-1", "'walk:-1': the level is a size in s and cannot be negative"),
        ("delete", r"write delete:LEVEL with a number, such as delete:0.2 \(spikes are missed"),
        ("spike:nan", r"write spike:LEVEL with a number in s, such as spike:0.3"),
        ("skew:inf", r"write skew:LEVEL with a number in ppm, such as skew:30"),
        ("none:1", "'none' has no level, got 1; write none"),
        ("delete:1.5", "'delete': the level is a share and cannot be 1.5; give 0 to 1"),
        ("drop-hidden:1", "must be a share below 1 and burst_s longer than 0 s, got 1 and 0.01 s"),
        ("spike:0.1:edge=bounce", "the edge must be reflect, wrap or drop, got 'bounce'"),
        ("spike:0.1:colour=red", "'spike' has no setting 'colour'; it has stream, edge"),
        ("spike:0.1:drop", "'drop' is no setting; write name=value"),
        ("noise:1:hi_hz=high", "hi_hz must be a number, got 'high'"),
        ("noise:1:hi_hz=0", "the band must run from 0 or more up to something higher"),
    ],
)
def test_a_text_that_is_no_jitter_is_refused_in_one_sentence(text, message):
    with pytest.raises(NeurofuseError, match=message):
        parse_jitter(text)


@pytest.mark.parametrize("level", [np.nan, np.inf])
def test_a_level_must_be_finite(level):
    for kind in ("spike", "skew"):
        with pytest.raises(NeurofuseError, match=f"'{kind}:{level:g}': the level must be a finite number"):
            make_jitter(kind, level)


def test_only_lag_laws_are_read_where_a_lag_law_is_needed():
    assert parse_lag("walk:0.2:return_s=5") == Walk(0.2, return_s=5.0)
    for text in ("spike:0.1", "lag:0.1 | spike:0.1", "drop-hidden:0.01"):
        with pytest.raises(NeurofuseError, match="is no lag law; choose one of none, lag, offset, skew"):
            parse_lag(text)
    with pytest.raises(
        NeurofuseError, match="unknown jitter 'drift' in 'drift:1'; choose one of none, lag, offset, skew"
    ):
        parse_lag("drift:1")


def test_what_a_recording_lacks_is_named(both):
    units, fields = both["units"], both["lfp"]
    only_spikes, only_lfp = Recording("s", "array", (units,)), Recording("f", "logger", (fields,))
    for text, recording, message in [
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
        ("propagation:100", both, "would leave no sample of 'lfp'"),
        (
            "line:1:line_hz=500",
            both,
            "line noise at 500 Hz cannot be represented in 'lfp', sampled at 200 Hz",
        ),
    ]:
        with pytest.raises(NeurofuseError, match=message):
            parse_jitter(text).jitter(recording, rng=rng())
    half = Signal.from_array(
        rng().uniform(0, 1, (100, 2)), clock="array", rate_hz=10, kind="counts", name="soft"
    )
    with pytest.raises(NeurofuseError, match="'soft' are not whole numbers"):
        parse_jitter("spike:0.1").jitter(Recording("s", "array", (half,)), rng=rng())
    assert issubclass(RecordingError, NeurofuseError)


# ---- spikes


def locked(f_hz: float, *, n_units: int = 1, stop_s: float = 4000.0, rate_hz: float = 100.0) -> Recording:
    """Spikes that follow 1 + 0.9 cos(2 pi f t), dealt at random to units."""
    g = rng(11)
    t = np.sort(g.uniform(0, stop_s, int(2 * rate_hz * stop_s)))
    t = t[g.uniform(0, 1.9, t.size) < 1 + 0.9 * np.cos(2 * np.pi * f_hz * t)]
    unit = g.integers(0, n_units, t.size)
    units = Spikes("units", "c", t, unit, pd.DataFrame(index=range(n_units)), [[0, stop_s]])
    return Recording("l", "c", (units,))


def locking(recording: Recording, f_hz: float) -> complex:
    return np.exp(2j * np.pi * f_hz * recording["units"].times_s).mean()


@pytest.mark.parametrize("f_hz", [1.7, 7.3, 13.1])
@pytest.mark.parametrize(
    ("text", "n_units"),
    [
        ("spike:0.02", 1),
        ("spike-uniform:0.03", 1),
        ("spike-laplace:0.02", 1),
        ("spike-interval:0.05", 1),
        ("quantise:0.05", 1),
        ("unit-delay:0.02", 20000),
        ("delete:0.4", 1),
        ("insert:0.5", 1),
        ("drop-unit:0.5", 100),
        ("spike:0.01 | spike-laplace:0.01 | insert:0.2", 1),
    ],
)
def test_phase_locking_falls_by_phi(text, n_units, f_hz):
    recording = locked(f_hz, n_units=n_units)
    jitter = parse_jitter(text)
    after, truth = jitter.jitter(recording, rng=rng(2))
    was, now = locking(recording, f_hz), locking(after, f_hz)
    # One independent error a spike, or a unit.
    n_free = n_units if text.startswith("unit-delay") else after["units"].times_s.size
    error = 4.5 / np.sqrt(2 * n_free)
    assert abs(now) == pytest.approx(float(truth.phi(f_hz)) * abs(was), abs=error)
    n = after["units"].times_s.size
    consistency = (n * abs(now) ** 2 - 1) / (n - 1)
    expected = (float(truth.phi(f_hz)) * abs(was)) ** 2
    assert consistency == pytest.approx(expected, abs=2 * error * abs(was) + error**2)


@pytest.mark.parametrize(
    ("kind", "law"),
    [
        ("spike", stats.norm(scale=0.02)),
        ("spike-uniform", stats.uniform(-0.02, 0.04)),
        ("spike-laplace", stats.laplace(scale=0.02 / np.sqrt(2))),
    ],
)
def test_displacements_have_the_stated_distribution(kind, law):
    recording = poisson()
    _, truth = make_jitter(kind, 0.02).jitter(recording, rng=rng(1))
    t, moved_s = recording["units"].times_s, truth.moved["units"].displacement_s
    inner = moved_s[(t > 1) & (t < 199)]
    assert stats.kstest(inner, law.cdf).pvalue > 1e-3
    assert abs(np.corrcoef(inner[:-1], inner[1:])[0, 1]) < 5 / np.sqrt(inner.size), "each errs by itself"
    # The level is the std, or half the range, and one seed draws alike at all levels.
    _, twice = make_jitter(kind, 0.04).jitter(recording, rng=rng(1))
    np.testing.assert_allclose(twice.moved["units"].displacement_s[(t > 1) & (t < 199)], 2 * inner, atol=1e-9)


@pytest.mark.parametrize("kind", ["spike-uniform", "spike-interval", "spike-ordered"])
def test_displacements_are_those_of_elephants_surrogates(kind):
    elephant = pytest.importorskip("elephant.spike_train_surrogates")
    import neo
    import quantities as pq

    np.random.seed(5)  # noqa: NPY002  (elephant draws from the global generator)

    def surrogate(times: np.ndarray, stop_s: float) -> np.ndarray:
        train = neo.SpikeTrain(times * pq.s, t_stop=stop_s * pq.s)
        if kind == "spike-interval":
            return elephant.jitter_spikes(train, bin_size=0.1 * pq.s)[0].rescale("s").magnitude
        refractory = 1 * pq.ms if kind == "spike-ordered" else None
        done = elephant.dither_spikes(train, 0.1 * pq.s, refractory_period=refractory)
        return done[0].rescale("s").magnitude

    def ours(times: np.ndarray, stop_s: float) -> np.ndarray:
        units = Spikes.from_trains([times], clock="c", name="units", support=[[0, stop_s]])
        text = f"{kind}:0.1" + {"spike-uniform": ":edge=drop", "spike-ordered": ":refractory_s=0.001"}.get(
            kind, ""
        )
        return parse_jitter(text).jitter(Recording("r", "c", (units,)), rng=rng(6))[0]["units"].times_s

    # Far apart, so that who went where is known.
    sparse = np.arange(4000) + rng(1).uniform(0.3, 0.7, 4000)
    assert stats.ks_2samp(surrogate(sparse, 4000.0) - sparse, ours(sparse, 4000.0) - sparse).pvalue > 1e-3
    if kind == "spike-ordered":  # close together elephant's rule is another one
        return
    dense = np.sort(rng(2).uniform(0, 500, 5000))
    theirs, own = surrogate(dense, 500.0), ours(dense, 500.0)
    assert stats.ks_2samp(np.diff(theirs), np.diff(own)).pvalue > 1e-3
    assert abs(theirs.size - own.size) <= 8


@pytest.mark.parametrize("edge", ["reflect", "wrap", "drop"])
@pytest.mark.parametrize("kind", ["spike", "spike-uniform", "spike-laplace", "unit-delay"])
def test_edges_are_as_stated(both, kind, edge):
    jitter = make_jitter(kind, 0.5, edge=edge)
    after, truth = jitter.jitter(both, rng=rng())
    assert truth.edge == edge
    t = after["units"].times_s
    assert (((t >= 0) & (t <= 18)) | ((t >= 20) & (t <= 40))).all(), "nothing moves into a gap"
    lost = np.isnan(truth.moved["units"].displacement_s).sum()
    assert (lost > 0) == (edge == "drop")
    assert t.size == both["units"].times_s.size - lost
    if edge == "drop":
        assert truth.realised["units: n_lost"] == lost
    if edge == "wrap" and kind == "spike":
        assert np.abs(truth.moved["units"].displacement_s).max() > 10


@given(
    old=st.lists(st.floats(0, 10), min_size=1, max_size=30),
    step=st.floats(-100, 100),
    edge=st.sampled_from(["reflect", "wrap"]),
)
@settings(max_examples=80, deadline=None)
def test_spikes_kept_inside_are_inside_and_those_that_were_inside_stay(old, step, edge):
    support = np.array([[0.0, 4.0], [6.0, 10.0]])
    old_s = np.sort([t for t in old if t <= 4 or t >= 6])
    new_s = old_s + step
    target_s = new_s.copy()
    assert keep_inside(old_s, new_s, support, edge) is None
    lo = np.where(old_s < 5, 0.0, 6.0)
    assert ((new_s >= lo) & (new_s <= lo + 4)).all()
    fine = (target_s >= lo) & (target_s <= lo + 4)
    np.testing.assert_array_equal(new_s[fine], target_s[fine])
    for t, goal, start in zip(new_s, target_s, lo, strict=True):  # step by step
        while not start <= goal <= start + 4:
            if edge == "wrap":
                goal += 4 if goal < start else -4
            else:
                goal = 2 * start - goal if goal < start else 2 * (start + 4) - goal
        assert min(abs(t - goal), abs(abs(t - goal) - 4) if edge == "wrap" else 9) < 1e-9


@given(
    seed=st.integers(0, 2**32 - 1),
    level=st.floats(1e-4, 1.0),
    kind=st.sampled_from([k for k in KINDS if JITTERS[k].acts_on == "spikes"]),
)
@settings(max_examples=60, deadline=None)
def test_only_the_jitters_that_remove_or_add_spikes_change_their_number(seed, level, kind):
    trains = [np.sort(rng(seed + k).uniform(0, 5, 30)) for k in range(3)]
    units = Spikes.from_trains(trains, clock="c", name="units", support=[[0, 5]])
    after, _ = make_jitter(kind, level).jitter(Recording("r", "c", (units,)), rng=rng(seed))
    now = after["units"]
    assert ((now.times_s >= 0) & (now.times_s <= 5)).all()
    was_n, now_n = (np.bincount(s.unit, minlength=3) for s in (units, now))
    if kind in TIMING:
        np.testing.assert_array_equal(was_n, now_n)
    elif kind == "insert":
        assert (now_n >= was_n).all()
    elif kind == "mislabel":
        np.testing.assert_array_equal(now.times_s, units.times_s)
    else:
        assert (now_n <= was_n).all()


@given(seed=st.integers(0, 10**6), level=st.floats(1e-3, 2.0), refractory_s=st.floats(0, 0.01))
@settings(max_examples=40, deadline=None)
def test_ordered_spikes_keep_order_and_distance(seed, level, refractory_s):
    trains = [np.sort(rng(seed + k).uniform(0, 5, 40)) for k in range(3)]
    units = Spikes.from_trains(trains, clock="c", name="units", support=[[0, 5]])
    jitter = make_jitter("spike-ordered", level, refractory_s=refractory_s)
    after, truth = jitter.jitter(Recording("r", "c", (units,)), rng=rng(seed))
    moved_s = truth.moved["units"].displacement_s
    assert np.abs(moved_s).max() <= level + 1e-12
    for k, was in enumerate(units.trains):
        now = was + moved_s[units.unit == k]
        np.testing.assert_allclose(after["units"].trains[k], now, atol=1e-12)
        assert (np.diff(now) >= np.minimum(np.diff(was), refractory_s) - 1e-12).all()


def test_interval_and_quantised_spikes_stay_in_their_bins(both):
    for kind in ("spike-interval", "quantise"):
        after, truth = make_jitter(kind, 0.3).jitter(both, rng=rng())
        t, now = both["units"].times_s, both["units"].times_s + truth.moved["units"].displacement_s
        start = np.where(t < 19, 0.0, 20.0)
        np.testing.assert_array_equal(np.floor((t - start) / 0.3), np.floor((now - start) / 0.3 - 1e-12))
        assert after["units"].times_s.max() <= 40
    place = (now - start) / 0.3 % 1
    assert np.abs(place[(t < 17.9) | ((t > 20) & (t < 39.5))] - 0.5).max() < 1e-6


def test_every_unit_is_late_by_its_own_delay():
    recording = poisson(n_units=2000, rate_hz=1.0)
    _, truth = make_jitter("unit-delay", 0.03).jitter(recording, rng=rng())
    delay_s = truth.realised["units: delay_s"]
    t, unit = recording["units"].times_s, recording["units"].unit
    inner = (t > 1) & (t < 199)
    np.testing.assert_allclose(truth.moved["units"].displacement_s[inner], delay_s[unit[inner]], atol=1e-9)
    assert stats.kstest(delay_s, stats.norm(scale=0.03).cdf).pvalue > 1e-3


def test_deletion_and_insertion_have_their_shares_and_a_lower_level_loses_fewer_of_the_same():
    recording = poisson()
    n = recording["units"].times_s.size
    lost = {}
    for level in (0.1, 0.3):
        _, truth = make_jitter("delete", level).jitter(recording, rng=rng(1))
        lost[level] = np.isnan(truth.moved["units"].displacement_s)
        assert lost[level].mean() == pytest.approx(level, abs=5 * np.sqrt(level / n))
    assert lost[0.3][lost[0.1]].all()
    after, truth = make_jitter("insert", 0.2).jitter(recording, rng=rng(1))
    false = truth.moved["units"].source < 0
    assert false.sum() == truth.realised["units: n_inserted"] == pytest.approx(0.2 * n, abs=5 * np.sqrt(n))
    assert stats.kstest(after["units"].times_s[false], stats.uniform(0, 200).cdf).pvalue > 1e-3


def test_false_spikes_fall_into_the_support_only(both):
    after, truth = make_jitter("insert", 3.0).jitter(both, rng=rng())
    t = after["units"].times_s[truth.moved["units"].source < 0]
    assert not ((t > 18) & (t < 20)).any()
    assert (t < 18).mean() == pytest.approx(18 / 38, abs=5 / np.sqrt(t.size))


def test_a_mislabelled_spike_goes_to_the_one_unit_its_own_is_confused_with():
    recording = poisson()
    after, truth = make_jitter("mislabel", 0.25).jitter(recording, rng=rng())
    was, now = recording["units"].unit, after["units"].unit
    wrong, partner = truth.realised["units: mislabelled"], truth.realised["units: partner"]
    np.testing.assert_array_equal(now, np.where(wrong, partner[was], was))
    assert wrong.mean() == pytest.approx(0.25, abs=5 / np.sqrt(was.size))
    assert (partner != np.arange(40)).all()
    assert sorted(partner) == list(range(40))


def test_a_dead_time_equals_a_plain_loop_over_spikes():
    recording = poisson(rate_hz=80.0, n_units=3, stop_s=50.0)
    after, _ = make_jitter("dead-time", 0.02).jitter(recording, rng=rng())
    for was, now in zip(recording["units"].trains, after["units"].trains, strict=True):
        recorded, last = [], -np.inf
        for t in was:
            if t - last >= 0.02:
                recorded.append(t)
                last = t
        np.testing.assert_array_equal(now, recorded)
    n = sum(len(x) for x in after["units"].trains)
    assert n / 150 == pytest.approx(80 / (1 + 80 * 0.02), rel=0.03)


def test_dropped_units_have_no_spikes_after_they_were_dropped():
    recording = poisson()
    after, truth = make_jitter("drop-unit", 0.25, after=0.5).jitter(recording, rng=rng())
    lost = truth.realised["units: units"]
    assert lost.size == 10
    for k, (was, now) in enumerate(zip(recording["units"].trains, after["units"].trains, strict=True)):
        np.testing.assert_array_equal(now, was[was < 100] if k in lost else was)
    _, more = make_jitter("drop-unit", 0.5).jitter(recording, rng=rng())
    assert set(lost) < set(more.realised["units: units"])


# ---- counts


@given(seed=st.integers(0, 10**6), rate_hz=st.sampled_from([20.0, 100.0, 30.0]))
@settings(max_examples=30, deadline=None)
def test_counts_turned_into_spikes_and_counted_again_are_the_same(seed, rate_hz):
    values = rng(seed).poisson(1.5, (50, 3))
    counts = Signal.from_array(values, clock="c", rate_hz=rate_hz, kind="counts", start_s=3.3)
    spikes = unbin(counts, rng=rng(seed))
    assert spikes.times_s.size == values.sum()
    np.testing.assert_array_equal(rebin(spikes, counts).data.values, values)


def test_jittered_counts_spread_as_the_jittered_spikes_would():
    values = np.zeros((41, 2))
    values[20, 0] = 200000
    counts = Signal.from_array(values, clock="c", rate_hz=20, kind="counts", name="n")
    recording = Recording("r", "c", (counts,))
    after, _ = parse_jitter("spike:0.04").jitter(recording, rng=rng())
    spread = after["n"].data.values
    assert spread.sum() == 200000
    assert not spread[:, 1].any()
    edges = counts.time_s - 1.0
    place = np.linspace(0, 0.05, 2001)[:-1] + 0.0000125
    expected = [
        np.diff(stats.norm.cdf([a - place, a + 0.05 - place], scale=0.04), axis=0).mean() for a in edges
    ]
    np.testing.assert_allclose(spread[:, 0] / 200000, expected, atol=5 / np.sqrt(200000))


# ---- lags


def measured_phi(lag_s: np.ndarray, f_hz: float) -> float:
    """Share of the amplitude that is left on average over draws (rows) and moments (columns)."""
    return abs(np.exp(2j * np.pi * f_hz * lag_s).mean())


@pytest.mark.parametrize("f_hz", [0.7, 2.1, 4.0])
@pytest.mark.parametrize(
    "law",
    [
        Skew(20000.0),
        OffsetSkew(20000.0),
        Walk(0.06),
        Walk(0.06, return_s=1.0),
        Jumps(0.06),
        Diffusion(0.001),
        Hops(0.08, rate_hz=0.4),
        Sinusoid(0.15),
        Warp(0.06),
        Wander(0.05),
        AnyLag(0.2),
        WindowLag(0.06),
    ],
    ids=str,
)
def test_phi_of_a_lag_law_is_that_of_its_draws(law, f_hz):
    n, span_s = 3000, 10.0
    time_s = np.arange(0, span_s, 0.05) + 0.025
    lag_s = np.array([law.draw(time_s, rng=r) for r in rng(7).spawn(n)])
    # Draws of 10 s hold at least one independent lag each; the mean of n phasors is off by less than 1 / sqrt(2 n).
    assert measured_phi(lag_s, f_hz) == pytest.approx(
        float(law.phi(f_hz, span_s=span_s)), abs=4.5 / np.sqrt(2 * n)
    )


@pytest.mark.parametrize("f_hz", [1.0, 3.0])
def test_phi_of_hidden_drops_is_that_of_their_maps(f_hz):
    units = Spikes.from_trains([[1.0, 9.0]], clock="late", name="units", support=[[0, 10]])
    recording = Recording("r", "ref", (units,), Movement.from_array(np.zeros((100, 1)), rate_hz=10))
    jitter = make_jitter("drop-hidden", 0.01, burst_s=0.05)
    t = np.linspace(0, 9.9, 200)
    lag_s = np.array([jitter.jitter(recording, rng=r)[1].forward(t) - t for r in rng(1).spawn(2000)])
    assert measured_phi(lag_s, f_hz) == pytest.approx(
        float(jitter.phi(f_hz, span_s=10.0)), abs=4.5 / np.sqrt(4000)
    )


def test_drops_that_are_marked_leave_times_as_they_were_over_any_span():
    np.testing.assert_array_equal(make_jitter("drop-marked", 0.1).phi([1.0, 3.0]), 1)


def test_theory_numbers_of_lags():
    f = np.array([0.0, 1.0, 5.0])
    np.testing.assert_allclose(Skew(30.0).phi(f, span_s=600.0), np.sinc(f * 30e-6 * 600))
    a = (2 * np.pi * f[1:]) ** 2 * 0.001 * 10 / 2
    np.testing.assert_allclose(Diffusion(0.001).phi(f[1:], span_s=10.0), (1 - np.exp(-a)) / a)
    assert Diffusion(0.001).phi(0.0, span_s=10.0) == 1
    assert np.isnan(Diffusion(0.001).phi(1.0)), "a lag that grows has no phi without a span"


@pytest.mark.parametrize("law", [Diffusion(0.004), Hops(0.1)], ids=str)
def test_growing_lags_start_at_zero_grow_at_their_speed_and_stay_inside(law):
    t = np.arange(0, 20, 0.1)
    lag_s = np.array([law.draw(t, rng=r) for r in rng(1).spawn(2000)])
    assert not lag_s[:, 0].any()
    q = law.level if isinstance(law, Diffusion) else law.rate_hz * law.level**2
    for k in (20, 100):
        assert lag_s[:, k].var() == pytest.approx(q * t[k], rel=0.15)
    wild = type(law)(10.0).draw(np.arange(0, 2000, 0.1), rng=rng())
    assert 0.4 < np.abs(wild).max() <= 0.5
    # Sections have the statistics of windows cut from such recordings.
    cut = np.array([row[k : k + 20] for row, k in zip(lag_s, rng(2).integers(0, 180, 2000), strict=True)])
    sections = law.sections(2000, 20, step_s=0.1, span_s=20.0, rng=rng(3))
    assert sections[:, 0].std() == pytest.approx(cut[:, 0].std(), rel=0.12)
    assert (sections[:, -1] - sections[:, 0]).std() == pytest.approx((cut[:, -1] - cut[:, 0]).std(), rel=0.15)


def test_a_clock_set_before_the_recording_has_a_lag_from_the_start():
    lag_s = OffsetSkew(50.0, set_s=1000.0).draw(np.array([10.0, 110.0]), rng=rng())
    np.testing.assert_allclose(lag_s, [0.05, 0.055])
    sections = OffsetSkew(50.0, set_s=1000.0).sections(4000, 5, step_s=0.1, span_s=200.0, rng=rng())
    assert np.abs(sections[:, 0]).min() >= 0.05
    assert np.abs(sections).max() <= 0.0601


def test_a_warp_is_smooth_and_a_sinusoid_is_one():
    t = np.arange(0, 20000, 0.5)
    lag_s = Warp(0.1).draw(t, rng=rng())
    assert lag_s.std() == pytest.approx(0.1, rel=0.08)
    for after_s in (5.0, 10.0, 20.0):
        k = round(after_s / 0.5)
        assert np.mean(lag_s[:-k] * lag_s[k:]) / lag_s.var() == pytest.approx(
            np.exp(-0.5 * (after_s / 10) ** 2), abs=0.08
        )
    assert np.abs(np.diff(lag_s)).max() < 0.5 * 0.1 / 10 * 6
    swing = Sinusoid(0.2, period_s=5.0).draw(t, rng=rng())
    np.testing.assert_allclose(swing[:-10], swing[10:], atol=1e-9)
    assert np.abs(swing).max() == pytest.approx(0.2, rel=0.06)


@pytest.mark.parametrize("kind", LAG_KINDS)
def test_a_lag_jitter_moves_the_clock_by_its_law(both, kind):
    after, truth = make_jitter(kind, LEVEL[kind], max_lag_s=0.3).jitter(both, rng=rng())
    lag = truth.realised["lag"]
    t = both["other"].times_s
    kept = np.sort(t + lag.at(np.clip(t, 0, 40)))
    np.testing.assert_array_equal(after["other"].times_s, kept)
    assert np.abs(lag.lag_s).max() <= 0.3
    np.testing.assert_allclose(truth.lags(0, 40)["logger"].at(t), lag.at(t), atol=1e-9)


def test_a_lag_of_zero_is_a_known_lag_and_no_lag_is_none(both):
    _, truth = parse_jitter("offset:0").jitter(both, rng=rng())
    lag = truth.lags(*both.span_s)["logger"]
    assert (lag.at(np.linspace(0, 40, 9)) == 0).all()
    after, truth = parse_jitter("none").jitter(both, rng=rng())
    assert after is both
    assert (truth.streams, truth.clock, truth.lags(*both.span_s)) == ((), None, {})
    one_clock = Recording("s", "array", (both["units"],))
    assert parse_jitter("none").jitter(one_clock, rng=rng())[0] is one_clock


# ---- kinds


@dataclass(frozen=True)
class Reversal(LagJitter):
    """The lag changes sign halfway."""

    at: float = 0.5
    smooth: bool = False

    kind = "reversal"
    description = "a lag of level that changes sign; level is its size"

    def draw(self, time_s, *, rng):
        return np.where(time_s < time_s[0] + self.at * np.ptp(time_s), self.level, -self.level)


@pytest.fixture
def registry(monkeypatch):
    """The kinds, restored afterwards."""
    monkeypatch.setattr(kinds, "JITTERS", dict(JITTERS))
    monkeypatch.setattr(kinds, "_INSTALLED", set(kinds._INSTALLED))
    kinds._add_installed.cache_clear()
    yield kinds.JITTERS
    kinds._add_installed.cache_clear()


def test_a_registered_jitter_is_one_of_the_family(registry, both):
    with pytest.raises(NeurofuseError, match="unknown jitter 'reversal'"):
        parse_jitter("reversal:0.1")
    assert registered_jitters() == ()
    assert register_jitter(Reversal) is Reversal
    assert registered_jitters() == (Reversal,)
    assert is_lag("reversal")
    assert find_jitter("reversal") is Reversal
    jitter = parse_jitter("reversal:0.1:at=0.25:smooth=true:clock=logger")
    assert jitter == Reversal(0.1, at=0.25, smooth=True, clock="logger")
    assert parse_jitter(str(jitter)) == jitter
    _, truth = jitter.jitter(both, rng=rng())
    np.testing.assert_allclose(truth.lags(*both.span_s)["logger"].at(np.array([2.0, 30.0])), [0.1, -0.1])
    with pytest.raises(NeurofuseError, match="smooth must be true or false, got 'maybe'"):
        parse_jitter("reversal:0.1:smooth=maybe")
    register_jitter(Reversal)
    assert registered_jitters() == (Reversal,), "twice is once"


def test_a_class_defined_again_replaces_itself_and_no_other(registry):
    def define():
        @register_jitter
        @dataclass(frozen=True)
        class Mine(Walk):
            kind = "mine"
            description = "level"

        return Mine

    define()
    again = define()
    assert registry["mine"] is again
    with pytest.raises(
        NeurofuseError, match=r"Taken has the kind 'walk', which is that of .*lag_laws\.Walk; choose"
    ):

        @register_jitter
        @dataclass(frozen=True)
        class Taken(Walk):
            pass

    assert registry["walk"] is Walk


def test_what_a_jitter_needs_to_be_registered_is_named(registry):
    class Plain(Walk):
        kind = "plain"

    @dataclass
    class Thawed:
        level: float

    @dataclass(frozen=True)
    class NoLevel(Jitter):
        kind, unit, acts_on, description = "no-level", "s", "spikes", "level"

    def made(**attributes):
        return dataclass(frozen=True)(type("Made", (Reversal,), attributes))

    for jitter, message in [
        (Plain, "Plain must be a frozen dataclass; write @dataclass.frozen=True. below @register_jitter"),
        (Thawed, "Thawed is no jitter; derive a class from neurofuse.Jitter"),
        (NoLevel, "NoLevel has no field 'level', its strength; add level: float"),
        (made(kind=""), "Made has no kind; set it as a class attribute"),
        (made(description=""), "Made has no description"),
        (made(unit=""), "Made has no unit"),
        (made(acts_on=""), "Made has no acts_on"),
        (made(kind="a:b"), "Made has the kind 'a:b'; use letters, digits"),
        (made(acts_on="units"), "acts on 'units'; acts_on must be one of spikes, lfp, clock"),
    ]:
        with pytest.raises(NeurofuseError, match=message):
            register_jitter(jitter)
    assert registry == JITTERS


class Package(Distribution):
    """An installed package of that name."""

    name = "lab-jitters"

    def read_text(self, filename):
        return None

    def locate_file(self, path):
        raise NotImplementedError


def test_jitters_of_installed_packages_are_found_once_and_a_broken_one_is_a_warning(registry, monkeypatch):
    sound = EntryPoint("reversal", f"{__name__}:Reversal", kinds.GROUP)._for(Package())
    broken = EntryPoint("gone", "no_such_module:Gone", kinds.GROUP)._for(Package())
    n_searches = []
    monkeypatch.setattr(extensions, "entry_points", lambda group: n_searches.append(group) or (broken, sound))
    with pytest.warns(UserWarning, match=r"'gone' of the package 'lab-jitters' is left out \(No module"):
        assert parse_jitter("reversal:0.1") == Reversal(0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert parse_jitter("reversal:0.2").level == 0.2
        with pytest.raises(NeurofuseError, match=r"unknown jitter 'gone'; choose one of spike, .*, reversal"):
            find_jitter("gone")
    assert n_searches == [kinds.GROUP]
    assert registered_jitters() == (), "every process finds those by itself"


def test_a_jitter_of_one_stream_needs_targets_and_act_alone(registry, both):
    @register_jitter
    @dataclass(frozen=True)
    class Gain(Jitter):
        level: float

        kind, unit, acts_on, description = "gain", "1", "lfp", "LFP times 1 + level"

        def targets(self, recording):
            return ("lfp",)

        def act(self, recording, streams, *, rng):
            was = recording["lfp"]
            now = Signal("lfp", was.clock, (1 + self.level) * was.data, was.kind, was.sample_s)
            return JitterResult({"lfp": now}, {"lfp": Moved.unmoved(was.time_s.size)})

    after, truth = parse_jitter("gain:1 | offset:0.1").jitter(both, rng=rng())
    assert truth.parts[0].kind == "gain"
    assert np.abs(after["lfp"].data.values).max() == pytest.approx(
        2 * np.abs(both["lfp"].data.values).max(), rel=0.01
    )


# ---- lost samples


@pytest.mark.parametrize("kind", ["drop-hidden", "drop-marked"])
def test_lost_samples_are_lost_from_every_stream_of_the_clock_at_once(kind):
    t = np.arange(0, 200, 0.002)
    spikes_s = np.sort(rng().uniform(0, 200, 3000))
    streams = (
        Signal.from_array(t, clock="late", name="lfp", rate_hz=500),
        Signal.from_array(t[::10], clock="late", name="power", rate_hz=50, kind="power"),
        Spikes.from_trains([spikes_s], clock="late", name="other", support=[[0, 200]]),
    )
    recording = Recording("r", "ref", streams, Movement.from_array(t[::10], rate_hz=50))
    after, truth = make_jitter(kind, 0.05, burst_s=0.06).jitter(recording, rng=rng(2))
    share = truth.realised["lost_s"] / 200
    assert share == pytest.approx(0.05, abs=4 * np.sqrt(0.05 * 0.06 / 200))
    for name in ("lfp", "power", "other"):
        gone = np.isnan(truth.moved[name].displacement_s).mean()
        assert gone == pytest.approx(share, abs=1e-9 if name != "other" else 0.015)
    # The value of a sample is the time it was taken at, so each stream contains its own lag.
    for name in ("lfp", "power"):
        signal = after[name]
        lag_s = signal.time_s - signal.data.values[:, 0]
        np.testing.assert_allclose(
            lag_s, truth.forward(signal.data.values[:, 0]) - signal.data.values[:, 0], atol=2e-3
        )
        if kind == "drop-hidden":
            np.testing.assert_allclose(np.diff(signal.time_s), signal.sample_s, atol=1e-9)
            assert lag_s[-1] == pytest.approx(-truth.realised["lost_s"], abs=1e-6)
        else:
            assert np.abs(lag_s).max() < 1e-5
            # Bursts that touch make one gap.
            begin_s, end_s = truth.realised["bursts"].T
            touching = np.isclose(begin_s[1:], end_s[:-1]).sum()
            assert len(signal.support) == pytest.approx(len(begin_s) - touching + 1, abs=1)
    kept = truth.moved["other"].source
    np.testing.assert_allclose(after["other"].times_s, truth.forward(spikes_s)[kept], atol=1e-9)
    covered = np.diff(after["other"].support, axis=1).sum()
    assert covered == pytest.approx(200 * (1 - share), abs=0.01)


# ---- LFP


def shared_band(rate_hz: float, *, stop_s: float = 100.0, band_hz: float = 6.0, n: int = 4) -> Recording:
    """The same flat-band signals at any sampling rate."""
    k = np.arange(1, int(band_hz * stop_s))
    weight = rng(1).standard_normal((2, k.size, n))
    t = np.arange(round(stop_s * rate_hz)) / rate_hz
    spectrum = np.zeros((t.size // 2 + 1, n), dtype=complex)
    spectrum[k] = (weight[0] + 1j * weight[1]) * t.size / 2 / np.sqrt(k.size)
    values = 30 * np.fft.irfft(spectrum, n=t.size, axis=0) + 100
    return Recording("b", "ref", (Signal.from_array(values, clock="late", name="lfp", rate_hz=rate_hz),))


@pytest.mark.parametrize("kind", ["noise", "pink"])
@pytest.mark.parametrize("level", [0.5, 2.0])
def test_the_snr_in_the_band_is_that_of_the_level_at_any_sampling_rate(kind, level):
    from scipy.signal import welch

    in_band = {}
    for rate_hz in (50.0, 250.0, 1000.0):
        recording = shared_band(rate_hz)
        after, truth = make_jitter(kind, level, hi_hz=6.0).jitter(recording, rng=rng(2))
        was = np.asarray(recording["lfp"].data.values)
        noise = np.asarray(after["lfp"].data.values) - was
        # By another method than in the code: a Welch spectrum, summed over the band.
        n = round(20 * rate_hz)
        power = [
            p[(f > 0.15) & (f <= 6.0)].sum(axis=0)
            for f, p in (welch(x, rate_hz, nperseg=n, axis=0) for x in (was, noise))
        ]
        own = (power[1] / power[0]).mean()
        assert own == pytest.approx(level**2, rel=0.25 if kind == "pink" else 0.12)
        in_band[rate_hz] = (truth.realised["lfp: noise_std"] / truth.realised["lfp: signal_std"]).mean()
        assert in_band[rate_hz] == pytest.approx(level, rel=1e-9)
    if kind == "noise":
        assert noise.std() / was.std() > 5 * level, "all of it is far more than what is in the band"


def test_the_std_in_a_band_is_that_of_a_sine_in_it():
    t = np.arange(0, 50, 0.01)
    wave = 3 * np.sin(2 * np.pi * 4 * t) + np.sin(2 * np.pi * 20 * t) + 7
    signal = Signal.from_array(wave, clock="c", time_s=np.where(t < 25, t, t + 5))
    got = [band_std(signal, signal.data.values, *band)[0] for band in ((0, 10), (10, 30), (0, 50), (30, 50))]
    np.testing.assert_allclose(got, [3 / np.sqrt(2), 1 / np.sqrt(2), np.sqrt(5), 0], atol=0.02)


def test_pink_noise_falls_as_one_over_f():
    from scipy.signal import welch

    after, _ = make_jitter("pink", 1.0, hi_hz=6.0).jitter(shared_band(500.0), rng=rng(2))
    noise = np.asarray(after["lfp"].data.values) - np.asarray(shared_band(500.0)["lfp"].data.values)
    f, p = welch(noise, 500.0, nperseg=10000, axis=0)
    kept = (f > 1) & (f < 200)
    slope, _ = np.polyfit(np.log(f[kept]), np.log(p[kept].mean(axis=1)), 1)
    assert slope == pytest.approx(-1, abs=0.05)


@pytest.mark.parametrize("kind", ["counts", "spikes"])
def test_a_population_on_the_second_clock_can_replace_a_field(kind):
    if kind == "counts":
        second = Signal.from_array(
            rng().poisson(2, (400, 3)), clock="second", name="rest", rate_hz=20, kind="counts"
        )
    else:
        trains = [np.sort(rng(k).uniform(0, 20, 800)) for k in range(3)]
        second = Spikes.from_trains(trains, clock="second", name="rest", support=[[0, 20]])
    first = Spikes.from_trains([[1.0, 19.0]], clock="first", name="few", support=[[0, 20]])
    recording = Recording("m1", "first", (first, second))
    after, truth = parse_jitter("noise:1.5:bin_s=0.05").jitter(recording, rng=rng())
    assert truth.streams == ("rest",)
    field_like = after["rest"]
    assert isinstance(field_like, Signal)
    assert (field_like.kind, field_like.n_channels, field_like.time_s.size) == ("power", 3, 400)
    assert field_like.clock == "second"
    assert after["few"] is first
    # A field that a chain made of spikes has no spikes to follow.
    assert "rest" not in parse_jitter("spike:0.01 | noise:1").jitter(recording, rng=rng())[1].moved
    if kind == "spikes":
        quiet, _ = parse_jitter("noise:1e-9:bin_s=0.05").jitter(recording, rng=rng())
        by_hand = [np.histogram(t, bins=np.linspace(0, 20, 401))[0] for t in second.trains]
        np.testing.assert_allclose(quiet["rest"].data.values, np.transpose(by_hand), atol=1e-6)


def test_a_line_has_its_harmonics_and_its_rms():
    recording = shared_band(1000.0)
    after, truth = make_jitter("line", 2.0, line_hz=60.0, hi_hz=6.0).jitter(recording, rng=rng())
    hum = np.asarray(after["lfp"].data.values) - np.asarray(recording["lfp"].data.values)
    np.testing.assert_allclose(hum.std(axis=0), 2 * truth.realised["lfp: signal_std"], rtol=1e-3)
    tall = np.abs(np.fft.rfft(hum[:, 0])) / hum.shape[0]
    f_hz = np.fft.rfftfreq(hum.shape[0], 0.001)
    found = np.sort(f_hz[np.argsort(tall)[-3:]])
    np.testing.assert_allclose(found, [60, 120, 180])
    np.testing.assert_allclose(
        tall[np.searchsorted(f_hz, [60, 120, 180])] / tall.max(), [1, 1 / 2, 1 / 3], rtol=1e-3
    )


def test_artefacts_come_at_their_rate_and_decay_on_all_channels():
    recording = shared_band(500.0)
    after, truth = make_jitter("artefact", 10.0, rate_hz=0.3, hi_hz=6.0).jitter(recording, rng=rng())
    wave = np.asarray(after["lfp"].data.values) - np.asarray(recording["lfp"].data.values)
    wave = wave / truth.realised["lfp: signal_std"]
    np.testing.assert_allclose(wave, np.broadcast_to(wave[:, :1], wave.shape), atol=1e-3)
    hits = np.flatnonzero(np.abs(np.diff(wave[:, 0])) > 5)
    assert hits.size == pytest.approx(30, abs=5 * np.sqrt(30))
    isolated = hits[:-1][np.diff(hits) > 150][3]
    later = wave[isolated + 1 : isolated + 100, 0]
    np.testing.assert_allclose(later / later[0], np.exp(-np.arange(99) * 0.002 / 0.05), atol=0.02)


def test_a_saturated_channel_is_clipped_at_its_std():
    g = rng().standard_normal((200000, 2)) * [1, 50] + 3
    recording = Recording("r", "c", (Signal.from_array(g, clock="c", rate_hz=1000),))
    after, _ = make_jitter("saturate", 1.0).jitter(recording, rng=rng())
    clipped = np.asarray(after["lfp"].data.values) != np.asarray(recording["lfp"].data.values)
    np.testing.assert_allclose(clipped.mean(axis=0), 2 * stats.norm.sf(1), atol=0.005)


@pytest.mark.parametrize("level", [0.003, 0.02, 0.074])
@pytest.mark.parametrize("rate_hz", [500.0, 2000.0])
def test_a_filter_is_late_by_its_group_delay(level, rate_hz):
    t = np.arange(0, 30, 1 / rate_hz)
    f_hz = 0.2 / level / (2 * np.pi)
    wave = np.exp(2j * np.pi * f_hz * t)
    recording = Recording(
        "r", "c", (Signal.from_array(np.stack([wave.real, wave.imag], 1), clock="c", rate_hz=rate_hz),)
    )
    after, truth = make_jitter("filter-delay", level).jitter(recording, rng=rng())
    out = after["lfp"].data.values @ [1, 1j]
    late_s = -np.angle((out * wave.conj())[t.size // 2 :].mean()) / (2 * np.pi * f_hz)
    assert late_s == pytest.approx(level, rel=0.01)
    np.testing.assert_allclose(truth.forward(t) - t, level)
    # A step passes with no overshoot to speak of, and a constant passes as it is.
    flat = Recording("r", "c", (Signal.from_array(np.full((500, 1), 7.0), clock="c", rate_hz=rate_hz),))
    np.testing.assert_allclose(
        make_jitter("filter-delay", level).jitter(flat, rng=rng())[0]["lfp"].data.values, 7
    )


def test_a_filtered_sample_comes_from_its_own_side_of_a_gap(both):
    _, truth = make_jitter("filter-delay", 0.1).jitter(both, rng=rng())
    t, source = both["lfp"].time_s, truth.moved["lfp"].source
    late_s = np.minimum(0.1, t - np.where(t < 19, 0.0, 20.0))
    np.testing.assert_allclose(t - t[source], late_s, atol=1e-9)


def test_a_wave_reaches_one_channel_after_the_other_and_their_mean_fades_by_phi():
    t = np.arange(0, 20, 0.002)
    for f_hz in (2.0, 6.0):
        waves = np.repeat(np.sin(2 * np.pi * f_hz * t)[:, None], 64, axis=1)
        recording = Recording("r", "c", (Signal.from_array(waves, clock="c", rate_hz=500),))
        jitter = make_jitter("propagation", 0.1)
        after, truth = jitter.jitter(recording, rng=rng())
        out, delay_s = after["lfp"], truth.realised["lfp: delay_s"]
        assert np.ptp(delay_s) == pytest.approx(0.1)
        expected = np.sin(2 * np.pi * f_hz * (out.time_s[:, None] - delay_s))
        np.testing.assert_allclose(out.data.values, expected, atol=1e-4)
        mean = out.data.values.mean(axis=1)
        assert mean.std() / waves.std() == pytest.approx(float(jitter.phi(f_hz)), abs=0.02)
        assert out.time_s[0] == pytest.approx(0.05)
