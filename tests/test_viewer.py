"""The viewer without a browser: what a slider does to the picture, and what a lag does to what is drawn."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

from neurofuse.errors import NeurofuseError
from neurofuse.jitters.lag_laws import Offset
from neurofuse.recording import Recording, Spikes
from neurofuse.report.viewer import View, correlation, draw, explore, second_clock, shown
from neurofuse.simulation import SimulationConfig, simulate

LAG_S = 0.23


@pytest.fixture(scope="module")
def late() -> Recording:
    """30 s in which the second clock is stamped 0.23 s late."""
    config = SimulationConfig(duration_s=30.0, n_units=10, n_channels=3, lfp_rate_hz=500.0)
    return simulate(Offset(LAG_S), config=config, rng=np.random.default_rng(2))[0]


def two_populations(lag_s: float) -> Recording:
    """One inhomogeneous rate seen by two clocks, the second `lag_s` late."""
    rng = np.random.default_rng(3)
    t = np.arange(0, 40, 0.001)
    rate = 40 * np.exp(np.convolve(rng.standard_normal(t.size), np.hanning(300), "same") / 8)

    def population(name, clock, shift):
        trains = [t[rng.random(t.size) < np.minimum(rate * 0.001, 0.9)] + shift for _ in range(8)]
        return Spikes.from_trains(trains, clock=clock, name=name)

    return Recording("two", "a", (population("first", "a", 0.0), population("second", "b", lag_s)))


def test_a_lag_moves_the_second_clock_and_nothing_else(late):
    view = View(5.0, 4.0, channels=(0, 1))
    before, after = shown(late, view), shown(late, replace(view, lag_s=LAG_S))
    np.testing.assert_array_equal(before["spikes"].times_s, after["spikes"].times_s)
    np.testing.assert_array_equal(before.movement.time_s, after.movement.time_s)
    stamps = late["lfp"].time_s
    drawn = after["lfp"].time_s
    np.testing.assert_allclose(
        drawn + LAG_S, stamps[np.searchsorted(stamps, drawn[0] + LAG_S - 1e-4) :][: drawn.size]
    )
    assert drawn[0] <= 5.0
    assert drawn[-1] >= 9.0 - 0.01
    assert after["lfp"].channels == late["lfp"].channels[:2]


@pytest.mark.parametrize("lag_s", [-0.3, 0.0, LAG_S])
def test_the_correlation_of_two_clocks_peaks_at_their_lag(lag_s):
    lags, r = correlation(two_populations(lag_s), View(5.0, 30.0), max_lag_s=0.5)
    assert lags[np.argmax(r)] == pytest.approx(lag_s, abs=0.021)
    assert r.max() > 0.5


def test_without_a_second_clock_there_is_no_correlation_and_no_lag():
    one = Recording("one", "a", (Spikes.from_trains([np.arange(0, 20, 0.1)], clock="a"),))
    assert second_clock(one) is None
    assert np.isnan(correlation(one, View(0.0))[1]).all()
    assert explore(one).lag.disabled
    with pytest.raises(NeurofuseError, match="there is no clock 'z' besides the reference"):
        second_clock(one, "z")


def posterior(lag_s: float) -> xr.Dataset:
    lags = np.linspace(-0.4, 0.4, 81)
    rows = np.exp(-0.5 * ((lags - lag_s) / 0.02) ** 2)
    return xr.Dataset(
        {"posterior": (("clock", "time", "lag"), np.tile(rows / rows.sum(), (1, 60, 1)))},
        coords={"clock": ["logger"], "time": np.arange(60) / 2, "lag": lags},
    )


def test_sliders_redraw_the_picture(late):
    pytest.importorskip("ipywidgets")
    view = explore(late, alignment=posterior(LAG_S))
    view.width.value = 2.0  # every sample is drawn
    first = bytes(view.picture.value)
    assert first.startswith(b"\x89PNG")
    (left, right) = view.figure.subfigs
    marks = [x.get_xdata()[0] for panel in right.axes for x in panel.lines if len(x.get_xdata()) == 2]
    assert marks == [0.0, 0.0]
    trace = left.axes[1].lines[0].get_xdata()
    view.go_to_estimate()
    assert view.lag.value == pytest.approx(LAG_S, abs=0.011)
    assert bytes(view.picture.value) != first
    (left, right) = view.figure.subfigs
    marks = [x.get_xdata()[0] for panel in right.axes for x in panel.lines if len(x.get_xdata()) == 2]
    assert marks == [view.lag.value] * 2
    moved = left.axes[1].lines[0].get_xdata()
    inside = np.round(moved + view.lag.value, 6)
    assert np.isin(np.round(trace, 6), inside).mean() > 0.8, "the same samples, drawn earlier"
    for control, value in (
        (view.start, 7.0),
        (view.width, 3.0),
        (view.units, (2, 4)),
        (view.channels, (1, 1)),
    ):
        before = bytes(view.picture.value)
        control.value = value
        assert bytes(view.picture.value) != before
    assert view.view == View(7.0, 3.0, (2, 4), (1, 1), view.lag.value)
    assert "application/vnd.jupyter.widget-view+json" in view._repr_mimebundle_()


def test_a_window_between_two_rows_of_a_posterior_shows_the_nearest(late):
    figure = draw(late, View(5.1, 0.3), posterior=posterior(0.1)["posterior"].isel(clock=0))
    line = figure.subfigs[1].axes[1].lines[0]
    assert line.get_xdata()[np.argmax(line.get_ydata())] == pytest.approx(0.1, abs=0.006)


def test_what_is_no_alignment_is_refused(late):
    pytest.importorskip("ipywidgets")
    with pytest.raises(NeurofuseError, match="an alignment is what `align` or `decode_recording` returned"):
        explore(late, alignment=3)
    with pytest.raises(NeurofuseError, match=r"no clock 'logger'; it has \['other'\]"):
        explore(late, alignment=posterior(0.0).assign_coords(clock=["other"]))


def test_a_missing_package_is_named(late, monkeypatch):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    with pytest.raises(NeurofuseError, match="explore needs ipywidgets; install it with"):
        explore(late)
