"""Planted thresholds and their estimates, coverage of intervals, and curves that never cross."""

import json
import subprocess
import sys

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import norm, t

from neurofuse.errors import NeurofuseError
from neurofuse.study.threshold import threshold_of, thresholds
from neurofuse.theory import anomaly_probability

LEVEL = np.geomspace(0.25, 4, 10)


def curve(ratio, slope=2.0):
    """1 far below the threshold, 1/2 at it, 0 far above it."""
    return norm.sf(slope * np.log(ratio))


def planted(rng, *, at=1.0, n_seeds=5, spread=0.15, noise=0.03, lapse=0.05, level=LEVEL):
    """Curves whose thresholds scatter around `at`."""
    own = at * np.exp(spread * rng.standard_normal((n_seeds, 1)))
    values = (1 - lapse) * curve(level / own)
    return values + noise * rng.standard_normal(values.shape)


def law(ratio):
    """Hits above chance of an ideal correlator whose strength falls as 1/level (BT = 20, BW = 10)."""

    def hits(a):
        share = a**2 / 40
        wrong = anomaly_probability(
            snr1=np.inf, snr2=share / (1 - share), bandwidth_hz=5, window_s=4, range_s=2
        )
        return (0.9 - wrong) / 0.9

    at_half = brentq(lambda a: hits(a) - 0.5, 0.5, 4)
    return np.array([hits(min(at_half / r, 6.2)) for r in ratio])


@pytest.mark.parametrize(("method", "shape"), [("isotonic", curve), ("isotonic", law), ("theory", law)])
@pytest.mark.parametrize("at", [0.7, 1.0, 1.6])
def test_a_planted_threshold_is_found(method, shape, at):
    own = at * np.array([0.9, 1.0, 1.1, 0.95, 1.05])
    values = np.array([0.9 * shape(LEVEL / o) for o in own])
    found = threshold_of(LEVEL, values, predicted=2.0, method=method)
    assert found.measured == pytest.approx(at, rel=0.05)
    assert found.ci95[0] < at < found.ci95[1]
    assert found.kappa == found.measured / 2
    assert found.kappa_ci95 == tuple(e / 2 for e in found.ci95)
    assert (found.n_seeds, found.n_censored, found.censored) == (5, 0, None)


def test_the_curve_of_theory_is_fitted_exactly_where_it_is_true():
    own = np.array([0.8, 1.1, 1.3])
    values = np.array([0.85 * (1 / (1 + (LEVEL / o) ** 1.7)) for o in own])
    found = threshold_of(LEVEL, values, method="theory", curve=lambda r: 1 / (1 + r))
    np.testing.assert_allclose(found.per_seed, own, rtol=1e-5)


def test_the_interval_is_a_t_interval_over_seeds_on_the_log():
    values = planted(np.random.default_rng(0), n_seeds=4)
    found = threshold_of(LEVEL, values)
    logs = np.log([threshold_of(LEVEL, v).measured for v in values])
    low, high = t.interval(0.95, 3, logs.mean(), logs.std(ddof=1) / 2)
    np.testing.assert_allclose(found.ci95, np.exp([low, high]))
    np.testing.assert_allclose(found.per_seed, np.exp(logs))
    assert threshold_of(LEVEL, values[0]).ci95 is None


def test_intervals_cover_the_true_threshold_as_often_as_they_should():
    rng, level, covered, error = np.random.default_rng(11), np.geomspace(0.25, 4, 12), [], []
    for _ in range(100):
        found = threshold_of(level, planted(rng, level=level))
        covered.append(found.ci95[0] <= 1 <= found.ci95[1])
        error.append(np.log(found.measured))
    # 95 of 100, and three standard errors of 2.2 for so few repetitions.
    assert np.mean(covered) >= 0.88
    assert np.mean(error) == pytest.approx(0, abs=0.02 + 3 * np.std(error) / 10)


@settings(max_examples=30, deadline=None)
@given(scale=st.floats(1e-6, 1e6), seed=st.integers(0, 20))
def test_the_unit_of_the_level_does_not_matter(scale, seed):
    values = planted(np.random.default_rng(seed))
    found, other = threshold_of(LEVEL, values), threshold_of(scale * LEVEL, values)
    assert other.measured == pytest.approx(scale * found.measured, rel=1e-9)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), at=st.floats(0.1, 10), noise=st.floats(0, 0.3))
def test_nothing_is_extrapolated(seed, at, noise):
    rng = np.random.default_rng(seed)
    found = threshold_of(LEVEL, planted(rng, at=at, noise=noise))
    for value in (found.measured, *found.per_seed, *(found.ci95 or ()) * bool(found.censored)):
        assert value is None or LEVEL[0] <= value <= LEVEL[-1]
    assert found.n_censored == sum(v is None for v in found.per_seed)
    assert (found.censored is None) == (found.n_censored == 0)
    json.dumps(found.as_dict(), allow_nan=False)


def test_order_of_levels_and_direction_do_not_matter():
    values = planted(np.random.default_rng(1))
    found = threshold_of(LEVEL, values, predicted=1.0)
    shuffled = np.random.default_rng(2).permutation(LEVEL.size)
    assert threshold_of(LEVEL[shuffled], values[:, shuffled], predicted=1.0) == found
    snr = threshold_of(1 / LEVEL, values, larger_is_worse=False)
    assert snr.measured == pytest.approx(1 / found.measured)
    np.testing.assert_allclose(snr.ci95, 1 / np.array(found.ci95[::-1]))


def test_a_curve_that_never_falls_is_censored_above():
    found = threshold_of(LEVEL, planted(np.random.default_rng(0), at=50.0), predicted=1.0)
    assert (found.measured, found.kappa, found.censored, found.n_censored) == (None, None, "above", 5)
    assert found.ci95 == (pytest.approx(4.0), None)
    assert found.note == "5 of 5 seeds do not cross up to 4; nothing is extrapolated."
    helps = threshold_of(
        1 / LEVEL, planted(np.random.default_rng(0), at=50.0), predicted=1.0, larger_is_worse=False
    )
    assert helps.censored == "below"
    assert helps.ci95 == (None, pytest.approx(0.25))


def test_a_curve_that_is_down_from_the_start_is_censored_below():
    found = threshold_of(LEVEL, planted(np.random.default_rng(0), at=0.05, noise=0.01))
    assert (found.measured, found.censored) == (None, "below")
    assert found.ci95 == (None, pytest.approx(0.25))
    assert found.note == "5 of 5 have crossed at 0.25 already; nothing is extrapolated."


def test_seeds_partly_censored_leave_a_median_and_a_one_sided_bound():
    values = np.array([curve(LEVEL / at) for at in (0.8, 0.9, 1.2, 1.4, 90.0)])
    found = threshold_of(LEVEL, values)
    assert found.censored == "above"
    assert found.n_censored == 1
    assert found.measured == pytest.approx(1.2, rel=0.05)
    # Lowest of five: below the median over seeds with 1 - 1/32.
    assert found.ci95 == (pytest.approx(0.8, rel=0.05), None)
    mostly = threshold_of(LEVEL, np.array([curve(LEVEL / at) for at in (0.8, 90.0, 90.0, 90.0, 90.0)]))
    assert mostly.measured is None
    assert mostly.ci95 == (pytest.approx(0.8, rel=0.05), None)
    both = threshold_of(LEVEL, np.array([curve(LEVEL / at) for at in (0.01, 1.0, 1.1, 0.9, 90.0)]))
    assert (both.censored, both.ci95) == ("both", None)
    assert both.measured == pytest.approx(1.0, rel=0.05)


def test_bounds_of_partly_censored_seeds_cover_the_median():
    rng, covered = np.random.default_rng(4), []
    for _ in range(300):
        own = np.exp(0.4 * rng.standard_normal(7)) * 3.2
        found = threshold_of(LEVEL, np.array([curve(LEVEL / o, slope=8) for o in own]))
        if found.censored == "above":
            covered.append(found.ci95[0] <= 3.2 * 1.01)
    assert len(covered) > 100
    assert np.mean(covered) >= 0.92


def test_the_knee_comes_before_the_threshold_and_has_its_own_name():
    values = np.clip(1 - np.log(LEVEL / 0.5) / np.log(4), 0, 1)
    knee, found = threshold_of(LEVEL, values, method="knee"), threshold_of(LEVEL, values)
    assert knee.measured == pytest.approx(0.5, rel=0.05)
    assert found.measured == pytest.approx(1.0, rel=0.05)
    assert knee.criterion == "onset: level at which gain begins to fall, broken line"
    assert found.criterion == "level at half of the maximum of gain, isotonic"


@pytest.mark.parametrize(
    ("level", "values", "more", "message"),
    [
        (LEVEL, np.ones((2, 9)), {}, r"\(n_seeds, n_levels\).*got \(2, 9\) over \(10,\)"),
        (LEVEL[:3], np.ones(3), {}, "4 levels or more, got 3; take 10"),
        (np.r_[0, LEVEL[1:]], np.ones(10), {}, "positive and differ, got 0, 0.34.*leave out level 0"),
        (np.r_[1, 1, 2, 3], np.ones(4), {}, "positive and differ, got 1, 1, 2, 3"),
        (LEVEL, np.ones(10), {"method": "logistic"}, "one of isotonic, theory, knee, got 'logistic'"),
        (LEVEL, np.ones(10), {"predicted": 0.0}, "positive and finite, got 0.0; leave it out"),
    ],
)
def test_an_error_explains_what_is_wrong_with_curves(level, values, more, message):
    with pytest.raises(NeurofuseError, match=message):
        threshold_of(level, values, **more)


def test_a_seed_with_too_few_levels_is_not_counted():
    values = planted(np.random.default_rng(0))
    values[2] = np.nan
    values[3, 1] = np.nan
    assert threshold_of(LEVEL, values).n_seeds == 4
    none = threshold_of(LEVEL, np.full((3, 10), np.nan), predicted=1.0)
    assert (none.censored, none.measured, none.ci95, none.n_seeds) == ("unmeasured", None, None, 0)
    json.dumps(none.as_dict(), allow_nan=False)


# Of a study


@pytest.fixture
def study():
    """Two decoders between two references, two kinds; thresholds at 1 and 0.5 of `tracked`, hits likewise."""
    rng = np.random.default_rng(0)
    models, kinds = ["early", "softmax", "tracked", "oracle"], ["noise", "spike"]
    level = np.array([LEVEL, 0.01 * LEVEL])
    gain = np.zeros((4, 2, 10, 5, 1))
    for s in range(5):
        own = np.exp(0.1 * rng.standard_normal())
        for k in range(2):
            for m, at in ((1, 0.5), (2, 1.0)):
                gain[m, k, :, s, 0] = 0.95 * curve(LEVEL / (at * own))
    gain[3] = 1
    fixed = 0.6 + 0.05 * rng.standard_normal((1, 2, 10, 5, 1))
    r2 = fixed + 0.3 * gain
    dims = ("model", "kind", "level", "seed", "protocol")
    return xr.Dataset(
        {
            "r2": ((*dims, "axis"), np.stack([r2 - 0.05, r2 + 0.05], axis=-1)),
            "hit_rate": (
                dims,
                np.where(np.isin(np.arange(4), [1, 2])[:, None, None, None, None], gain, np.nan),
            ),
            "status": (dims, np.full(gain.shape, "ok", dtype=object)),
            "level_value": (("kind", "level"), level),
            "predicted": (("kind",), [1.25, np.nan]),
            "level_unit": (("kind",), ["1", "s"]),
        },
        coords={
            "model": models,
            "kind": kinds,
            "level": np.arange(10),
            "seed": np.arange(5),
            "protocol": ["train-matched"],
        },
    )


@pytest.mark.parametrize("quantity", ["gain", "hit_rate"])
def test_a_study_gives_one_threshold_per_model_kind_and_protocol(study, quantity):
    found = thresholds(study, quantity=quantity)
    assert [(f.model, f.kind, f.protocol) for f in found] == [
        (m, k, "train-matched") for m in ("softmax", "tracked") for k in ("noise", "spike")
    ]
    for one, at in zip(found, (0.5, 0.005, 1.0, 0.01), strict=True):
        assert one.measured == pytest.approx(at, rel=0.15)
        assert quantity.replace("_", " ") in one.criterion
    assert found[0].kappa == pytest.approx(found[0].measured / 1.25)
    assert (found[1].predicted, found[1].kappa, found[1].unit) == (None, None, "s")
    given = thresholds(study, quantity=quantity, predicted={"spike": 0.02})
    assert given[3].kappa == pytest.approx(0.5, rel=0.15)
    json.dumps([f.as_dict() for f in found], allow_nan=False)


def test_the_table_read_back_from_a_file_gives_the_same(study, tmp_path):
    study["status"] = study["status"].astype(str)
    study.to_netcdf(tmp_path / "study.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "study.nc", engine="h5netcdf") as back:
        assert thresholds(back) == thresholds(study)


def test_cells_that_failed_and_levels_with_nothing_to_gain_are_left_out(study):
    study["status"][2, 0, 3, 1, 0] = "failed"
    study["r2"][2, 0, 3, 1] = 99.0
    gain = study["r2"].sel(model="oracle") - study["r2"].sel(model="early")
    study["r2"].loc[{"model": "oracle", "kind": "noise", "level": 9}] -= (
        gain.sel(kind="noise", level=9) - 0.01
    )
    found = {(f.model, f.kind): f for f in thresholds(study)}
    one = found["tracked", "noise"]
    assert one.measured == pytest.approx(1.0, rel=0.15)
    assert one.note.startswith("1 of 10 levels left out, with too little to gain or no result.")
    assert one.n_seeds == 5


def test_an_error_names_what_a_study_lacks(study):
    with pytest.raises(NeurofuseError, match=r"between 'early' and 'oracle'.*has softmax, tracked; add both"):
        thresholds(study.sel(model=["softmax", "tracked"]))
    with pytest.raises(NeurofuseError, match="lacks 'hit_rate'"):
        thresholds(study.drop_vars("hit_rate"), quantity="hit_rate")
    with pytest.raises(NeurofuseError, match="lacks dims protocol"):
        thresholds(study.isel(protocol=0))
    with pytest.raises(NeurofuseError, match="4 levels or more, the study has 2 of 'noise'"):
        thresholds(study.isel(level=slice(2)))
    with pytest.raises(NeurofuseError, match="quantity must be one of gain, hit_rate, got 'r2'"):
        thresholds(study, quantity="r2")


def test_thresholds_need_neither_torch_nor_matplotlib():
    heavy = ("torch", "matplotlib", "sklearn")
    code = f"import neurofuse.study.threshold, sys; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
