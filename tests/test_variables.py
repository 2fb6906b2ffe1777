"""Units and long names: every number in a table of results has both, in memory and in its file."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from neurofuse.alignment.align import align
from neurofuse.attention_maps import attention, attention_scores, contribution
from neurofuse.config import AlignConfig, DecodeConfig, StudyConfig
from neurofuse.decode import decode_recording
from neurofuse.decoders.gradients import gradient_over_time, gradient_path, watch_gradients
from neurofuse.decoders.registry import make_decoder
from neurofuse.jitters.lag_laws import Offset, WindowLag
from neurofuse.simulation import SimulationConfig, simulate
from neurofuse.study.run import run_study
from neurofuse.tokens import tokenize
from neurofuse.tuning import unit_tuning
from neurofuse.variables import UNKNOWN, VARIABLES, labelled
from neurofuse.windows import split_windows

SIZES = {"token_s": 0.1, "window_s": 1.0, "max_lag_s": 0.3, "n_steps": 4}


@pytest.fixture(scope="module")
def tables(tiny, tmp_path_factory) -> dict[str, xr.Dataset]:
    """Every kind of table that is written or returned, from the shortest run that makes it."""
    config = SimulationConfig(duration_s=60.0, n_units=8, n_channels=2, lfp_rate_hz=500.0)
    apart, _ = simulate(Offset(0.1), config=config, rng=np.random.default_rng(0))
    decoded = decode_recording(apart, config=DecodeConfig(**SIZES, jitter="offset:0.1"))
    tokens = tokenize(tiny, token_s=0.1)
    sizes = {"window_s": 0.5, "max_lag_s": 0.1, "rng": np.random.default_rng(0)}
    parts = split_windows(tokens, jitter=WindowLag(0.05), **sizes)
    decoder = make_decoder("tracked", n_steps=2)
    with watch_gradients(decoder) as watch:
        decoder.fit(parts.train, validation=parts.validation)
    weights = attention(decoder, parts.test)
    out = tmp_path_factory.mktemp("study") / "out"
    varied = {"kinds": ("delete",), "levels": {"delete": (0.5,)}, "n_seeds": 1, "references": False}
    study = run_study(apart, config=StudyConfig(decoders=("softmax",), **varied, **SIZES), jobs=0, out=out)
    return {
        "prediction.nc": decoded.prediction,
        "alignment.nc": decoded.alignment,
        "lag.nc": align(apart, config=AlignConfig(method="ridge", max_lag_s=0.5)).lag,
        "study.nc": study,
        "maps.nc": xr.load_dataset(out / "maps.nc", engine="h5netcdf"),
        "attention": weights,
        "attention_scores": attention_scores(weights),
        "contribution": contribution(decoder, parts.test),
        "tuning": unit_tuning(tokens),
        "gradient_path": gradient_path(decoder, parts.test),
        "gradient_over_time": gradient_over_time(decoder, parts.test),
        "watch_gradients": watch.table(),
    }


NAMES = (
    "prediction.nc",
    "alignment.nc",
    "lag.nc",
    "study.nc",
    "maps.nc",
    "attention",
    "attention_scores",
    "contribution",
    "tuning",
    "gradient_path",
    "gradient_over_time",
    "watch_gradients",
)


def unlabelled(table: xr.Dataset) -> list[str]:
    """Numbers of a table without a unit or a long name."""
    numbers = [n for n in table.variables if table[n].dtype.kind in "biuf"]
    return [str(n) for n in numbers if not (table[n].attrs.get("units") and table[n].attrs.get("long_name"))]


@pytest.mark.parametrize("name", NAMES)
def test_every_number_has_a_unit_and_a_long_name(tables, name):
    assert unlabelled(tables[name]) == []
    assert unlabelled(tables[name].assign(another=1.0)) == ["another"]


@pytest.mark.parametrize("name", NAMES)
def test_a_table_is_read_back_from_its_file_as_it_was(tables, name, tmp_path):
    tables[name].to_netcdf(tmp_path / "table.nc", engine="h5netcdf")
    xr.testing.assert_identical(xr.load_dataset(tmp_path / "table.nc", engine="h5netcdf"), tables[name])


def test_movement_has_the_unit_of_the_recording_and_levels_that_of_their_kind(tables):
    assert tables["prediction.nc"]["prediction"].attrs["units"] == "cm/s"
    assert tables["prediction.nc"]["movement"].attrs["units"] == "cm/s"
    assert tables["study.nc"]["level_value"].attrs["units"] == tables["study.nc"]["level_unit"].item()
    assert tables["alignment.nc"]["entropy"].attrs["units"] == "nat"
    assert labelled(xr.Dataset({"movement": 1.0}), movement="")["movement"].attrs["units"] == UNKNOWN


def test_names_that_end_in_a_unit_have_that_unit():
    ends = {"_s": "s", "_hz": "Hz", "_rad": "rad"}
    wrong = [n for n, (unit, _) in VARIABLES.items() for e, u in ends.items() if n.endswith(e) and unit != u]
    assert wrong == []


def test_no_entry_is_left_over_from_a_variable_that_is_gone(tables):
    used = {str(n) for table in tables.values() for n in table.variables}
    assert sorted(set(VARIABLES) - used) == []


def test_the_table_that_was_given_and_what_is_not_listed_stay_as_they_were():
    table = xr.Dataset(
        {"lag_mean_s": ("time", [0.1]), "mine": ("time", [1.0], {"units": "V"})}, {"time": [2.0]}
    )
    out = labelled(table)
    assert table["lag_mean_s"].attrs == table["time"].attrs == {}
    assert out["mine"].attrs == {"units": "V"}
    assert out["time"].attrs == {"units": "s", "long_name": "time on the reference clock"}
