"""Figures: what is drawn is what the tables hold, gaps stay open, and no name is read as markup."""

from __future__ import annotations

import io
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from neurofuse.alignment.clock_map import ClockMap, Jump
from neurofuse.alignment.result import Alignment
from neurofuse.attention_maps import attention_scores
from neurofuse.errors import NeurofuseError
from neurofuse.recording import Movement, Recording, Signal, Spikes
from neurofuse.report.figures import (
    plot_attention,
    plot_attention_quality,
    plot_calibration,
    plot_clock,
    plot_contribution,
    plot_decoded,
    plot_lag,
    plot_recording,
    plot_scores,
    plot_training,
    plot_trajectory,
    plot_window_attention,
)

STEP_S = 0.05
TIME_S = np.concatenate([np.arange(200) * STEP_S, np.arange(100) * STEP_S + 15])  # 0-10 s and 15-20 s


def make_prediction(axes: tuple[str, ...] = ("x", "y"), *, ridge: bool = True) -> xr.Dataset:
    truth = np.stack([np.sin(TIME_S + k) for k in range(len(axes))], axis=1)
    tables = {"movement": truth, "prediction": truth + 0.1} | ({"ridge": truth + 0.3} if ridge else {})
    return xr.Dataset(
        {k: (("time", "axis"), v) for k, v in tables.items()} | {"window": ("time", np.arange(300) // 50)},
        coords={"time": TIME_S, "axis": list(axes)},
        attrs={"units": "cm", "reference": "array", "sample_s": STEP_S, "scored": "stitched"},
    )


def make_alignment(clocks: tuple[str, ...] = ("lfp", "imu"), *, truth: bool = True) -> xr.Dataset:
    lag_s = np.linspace(-0.5, 0.5, 41)
    centre_s = np.stack([(-1) ** k * 0.3 * np.cos(TIME_S / 5) for k in range(len(clocks))])
    posterior = np.exp(-0.5 * ((lag_s - centre_s[..., None]) / 0.05) ** 2)
    posterior /= posterior.sum(axis=-1, keepdims=True)
    lines = {
        "lag_mean_s": centre_s,
        "lag_q05_s": centre_s - 0.08,
        "lag_q95_s": centre_s + 0.08,
        "lag_path_s": np.round(centre_s / 0.025) * 0.025,
    } | ({"true_lag_s": centre_s + 0.01} if truth else {})
    return xr.Dataset(
        {k: (("clock", "time"), v) for k, v in lines.items()}
        | {"posterior": (("clock", "time", "lag"), posterior.astype(np.float32))}
        | {"window": ("time", np.arange(300) // 50)},
        coords={"clock": list(clocks), "time": TIME_S, "lag": lag_s},
        attrs={"token_s": STEP_S, "max_lag_s": 0.5, "hit_tolerance_s": 0.025},
    )


def make_recording(*, n_channels: int = 3) -> Recording:
    rng = np.random.default_rng(0)
    trains = [np.sort(rng.uniform(0, 20, 60)) for _ in range(5)]
    t = np.arange(5000) / 250
    kept = (t < 3) | (t > 4)
    lfp = Signal.from_array(
        rng.standard_normal((kept.sum(), n_channels)), clock="lfp", time_s=t[kept], units="uV", name="field"
    )
    power = Signal.from_array(
        rng.standard_normal((200, 4)), clock="lfp", rate_hz=10, kind="power", name="bands"
    )
    counts = Signal.from_array(
        rng.poisson(2, (400, 6)), clock="array", rate_hz=20, kind="counts", name="sorted"
    )
    moved = Movement.from_array(np.sin(t)[:, None], time_s=t, axes=["x"], units="cm", name="cursor")
    spikes = Spikes.from_trains(trains, clock="array", name="units")
    return Recording("rec", "array", (spikes, counts, lfp, power), moved)


def line(ax: Axes, label: str) -> tuple[np.ndarray, np.ndarray]:
    (found,) = [x for x in ax.lines if x.get_label() == label]
    return np.asarray(found.get_xdata()), np.asarray(found.get_ydata())


def words(ax: Axes) -> list[str]:
    from matplotlib.text import Text

    return [t.get_text() for t in ax.figure.findobj(Text) if t.get_text()]  # type: ignore[attr-defined]


def rendered(ax: Axes | np.ndarray) -> int:
    """Draw the figure for real; how many bytes came out."""
    figure = np.atleast_1d(np.asarray(ax, dtype=object)).ravel()[0].figure
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=50)
    return len(buffer.getvalue())


def everything() -> dict[str, Any]:
    prediction, alignment = make_prediction(), make_alignment()
    return {
        "recording": lambda **o: plot_recording(make_recording(), **o),
        "decoded": lambda **o: plot_decoded(prediction, **o),
        "trajectory": lambda **o: plot_trajectory(prediction, **o),
        "lag": lambda **o: plot_lag(alignment, clock="imu", **o),
        "attention": lambda **o: plot_attention(alignment, clock="imu", **o),
        "scores": lambda **o: plot_scores({"r2": {"x": 0.9}, "r2_mean": 0.9}, **o),
        "training": lambda **o: plot_training({"train": [1, 0.5], "validation": [1, 0.6]}, **o),
    }


@pytest.mark.parametrize("name", everything())
def test_every_figure_draws_on_new_axes_or_on_the_callers_and_returns_them(name: str) -> None:
    plot = everything()[name]
    made = np.atleast_1d(np.asarray(plot(), dtype=object))
    assert all(isinstance(a, Axes) and a.has_data() for a in made)
    assert rendered(made) > 1000
    figure = Figure()
    mine = figure.subplots(made.size, 1, squeeze=False)[:, 0]
    returned = plot(ax=mine if made.size > 1 else mine[0])
    assert np.atleast_1d(np.asarray(returned, dtype=object)).tolist() == mine.tolist()


@pytest.mark.parametrize("name", everything())
def test_another_number_of_axes_is_refused_with_the_right_one(name: str) -> None:
    with pytest.raises(NeurofuseError, match=r"needs \d axes, got 7; leave ax out"):
        everything()[name](ax=Figure().subplots(7, 1))


def test_no_line_crosses_a_gap() -> None:
    drawn = [
        line(plot_decoded(make_prediction())[0], "predicted"),
        line(plot_lag(make_alignment()), "posterior mean"),
        line(plot_attention(make_alignment()), "true lag"),
    ]
    for x, y in drawn:
        broken = np.flatnonzero(np.isnan(y))
        assert broken.size == 1
        assert x[broken[0] - 1] < 10 < 15 <= x[broken[0] + 1]
    # In the plane the gap is a gap too.
    _, y = line(plot_trajectory(make_prediction()), "measured")
    assert np.isnan(y).sum() == 1


def test_windows_decoded_each_on_its_own_are_not_joined() -> None:
    prediction = make_prediction().assign_attrs(scored="per window")
    _, y = line(plot_decoded(prediction)[0], "measured")
    assert np.isnan(y).sum() == 5


def test_what_is_drawn_is_what_the_table_holds_and_labels_carry_units() -> None:
    prediction = make_prediction()
    axes = plot_decoded(prediction)
    _, y = line(axes[1], "predicted")
    np.testing.assert_array_equal(y[np.isfinite(y)], prediction["prediction"].values[:, 1])
    assert [a.get_ylabel() for a in axes] == ["x (cm)", "y (cm)"]
    assert axes[-1].get_xlabel() == "time on clock 'array' (s)"
    assert {x.get_label() for x in axes[0].lines} == {"measured", "predicted", "ridge"}
    bare = plot_decoded(make_prediction(ridge=False).assign_attrs(units=""))
    assert {x.get_label() for x in bare[0].lines} == {"measured", "predicted"}
    assert bare[0].get_ylabel() == "x"


def test_an_excerpt_shows_only_its_seconds() -> None:
    x, _ = line(plot_decoded(make_prediction(), start_s=2, stop_s=4)[0], "measured")
    assert x[0] >= 2
    assert x[-1] < 4
    with pytest.raises(NeurofuseError, match=r"holds nothing between 11 and 12 s; it covers 0 to 19.95 s"):
        plot_decoded(make_prediction(), start_s=11, stop_s=12)


def test_one_axis_is_drawn_as_predicted_against_measured() -> None:
    ax = plot_trajectory(make_prediction(("force",)))
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("measured force (cm)", "predicted force (cm)")
    dots = ax.lines[0]
    np.testing.assert_allclose(np.asarray(dots.get_ydata()) - np.asarray(dots.get_xdata()), 0.1)


def test_the_lag_figure_shows_the_clock_given_and_the_true_lag_where_it_is_known() -> None:
    alignment = make_alignment()
    alignment["true_lag_s"] = alignment["true_lag_s"].where(alignment["time"] > 5)
    ax = plot_lag(alignment, clock="imu")
    assert ax.get_ylabel() == "lag of clock 'imu' (s)"
    x, y = line(ax, "true lag")
    known = np.isfinite(y)
    assert x[known].min() > 5
    np.testing.assert_array_equal(y[known], alignment["true_lag_s"].sel(clock="imu").dropna("time").values)
    nowhere = make_alignment(truth=False)
    assert "true lag" not in [x.get_label() for x in plot_lag(nowhere).lines]
    assert "true lag" not in [x.get_label() for x in plot_attention(nowhere).lines]


def test_the_attention_map_puts_every_posterior_at_its_time_and_lag_and_leaves_the_gap_empty() -> None:
    alignment = make_alignment()
    ax = plot_attention(alignment, clock="imu")
    (image,) = ax.images
    grid = image.get_array()
    left, right, bottom, top = image.get_extent()
    assert grid.shape == (41, 400)
    assert (left, right) == pytest.approx((-STEP_S / 2, 20 - STEP_S / 2))
    assert (bottom, top) == pytest.approx((-0.5125, 0.5125))
    filled = ~np.ma.getmaskarray(grid)[0]
    column_s = left + (np.arange(400) + 0.5) * STEP_S
    np.testing.assert_allclose(column_s[filled], TIME_S, atol=1e-9)
    np.testing.assert_allclose(grid[:, filled].T, alignment["posterior"].sel(clock="imu").values, rtol=1e-6)
    assert any("probability per\n25 ms of lag" in w for w in words(ax))


def test_a_posterior_of_many_hours_is_averaged_down_to_what_a_page_can_show() -> None:
    n = 30_000
    lag_s = np.array([0.0, 0.1])
    posterior = np.tile([0.25, 0.75], (1, n, 1)).astype(np.float32)
    alignment = xr.Dataset(
        {"posterior": (("clock", "time", "lag"), posterior)},
        coords={"clock": ["a"], "time": np.arange(n) * 0.5, "lag": lag_s},
        attrs={"token_s": 0.5},
    )
    grid = plot_attention(alignment).images[0].get_array()
    assert grid.shape[1] <= 1201
    np.testing.assert_allclose(grid, np.broadcast_to([[0.25], [0.75]], grid.shape), rtol=1e-6)


def test_a_clock_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(NeurofuseError, match=r"no clock 'emg'; it has \['lfp', 'imu'\]"):
        plot_lag(make_alignment(), clock="emg")
    with pytest.raises(NeurofuseError, match="the alignment table has no clock; a lag needs a second clock"):
        plot_attention(make_alignment().isel(clock=[]))
    with pytest.raises(NeurofuseError, match=r"alignment table lacks 'posterior'; it has \['clock'"):
        plot_attention(make_alignment().drop_vars("posterior"))
    with pytest.raises(NeurofuseError, match="prediction table lacks 'movement'"):
        plot_decoded(make_alignment())


def test_score_bars_are_as_high_as_the_scores_and_a_missing_one_is_a_dash() -> None:
    ax = plot_scores(
        {
            "r2": {"x": 0.9, "y": None},
            "r2_mean": 0.9,
            "baseline_ridge_r2": {"x": 0.7, "y": -3.25},
            "baseline_ridge_r2_mean": -1.275,
        }
    )
    decoder, ridge = ([b.get_height() for b in c] for c in ax.containers)  # type: ignore[attr-defined]
    assert decoder == pytest.approx([0.9, 0, 0.9])
    assert ridge == pytest.approx([0.7, -0.25, -0.25])
    assert [t.get_text() for t in ax.texts] == ["0.90", "–", "0.90", "0.70", "−3.25", "−1.27"]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["x", "y", "mean"]
    assert len(plot_scores({"r2": {"x": 0.5}, "r2_mean": 0.5}).containers) == 1
    with pytest.raises(NeurofuseError, match=r"hold no 'r2' to draw; they hold \['r2_mean'\]"):
        plot_scores({"r2_mean": 0.1})


def test_training_shows_every_check_and_nothing_to_show_is_an_error() -> None:
    x, y = line(plot_training({"train": [1.0, None, 0.25], "validation": []}), "train")
    assert x.tolist() == [1, 2, 3]
    np.testing.assert_array_equal(y, [1, np.nan, 0.25])
    with pytest.raises(NeurofuseError, match=r"holds no loss to draw; it holds \['train'\]"):
        plot_training({"train": []})


def test_the_recording_figure_has_a_panel_per_stream_on_its_own_clock() -> None:
    axes = plot_recording(make_recording(), start_s=1, stop_s=6)
    assert [a.get_title(loc="left") for a in axes] == [
        "units (spikes) on clock 'array'",
        "sorted (counts) on clock 'array'",
        "field (lfp) on clock 'lfp'",
        "bands (power) on clock 'lfp'",
        "cursor on the reference clock 'array'",
    ]
    assert axes[0].get_xlim() == (1, 6)
    assert all(np.isnan(np.asarray(trace.get_ydata())).sum() == 1 for trace in axes[2].lines)
    many = plot_recording(make_recording(n_channels=64))
    assert len(many[2].lines) == 16
    assert many[2].get_title(loc="left").endswith("16 of 64 channels")


def test_a_stretch_outside_or_an_empty_recording_is_refused() -> None:
    with pytest.raises(NeurofuseError, match=r"cannot be shown from 5 to 5 s; .* inside 0 to 20 s"):
        plot_recording(make_recording(), start_s=5, stop_s=5)
    with pytest.raises(NeurofuseError, match="no streams and no movement"):
        plot_recording(Recording("empty", "a", ()), start_s=0, stop_s=1)


def test_streams_without_a_sample_in_the_stretch_leave_their_panel_empty() -> None:
    assert rendered(plot_recording(make_recording(), start_s=3.2, stop_s=3.3)) > 1000
    assert rendered(plot_recording(make_recording(), start_s=100, stop_s=101)) > 1000


@pytest.mark.parametrize("name", ["$x_1$", r"a\$b$", "_hidden", "$\\frac{", "new\nline\x07", "x" * 500])
def test_no_name_is_read_as_mathematics_or_breaks_the_figure(name: str) -> None:
    prediction = make_prediction((name, "y")).assign_attrs(units=name, reference=name)
    recording = make_recording()
    recording = recording.but(
        movement=Movement.from_array(np.zeros((100, 2)), rate_hz=10, axes=[name, "y"], units=name, name=name),
        reference=name,
    )
    drawn: list[Any] = [
        *plot_decoded(prediction),
        plot_trajectory(prediction),
        plot_lag(make_alignment((name,))),
        plot_attention(make_alignment((name,))),
        plot_scores({"r2": {name: 0.5, "y": 0.4}, "r2_mean": 0.45}),
        *plot_recording(recording),
    ]
    for ax in drawn:
        assert rendered(ax) > 1000  # a name read as broken mathematics would raise here
        for text in words(ax):
            assert text.count("$") == text.count(r"\$") or "mathdefault" in text
            assert "\x07" not in text
            assert text.count("\n") <= 1
            assert len(text) < 150
    legend = [t.get_text().strip() for t in drawn[-1].get_legend().get_texts()]
    assert len(legend) == 2


def test_nothing_global_is_touched_outside_a_notebook() -> None:
    code = (
        "import io, sys; from neurofuse.report.figures import plot_training; "
        "ax = plot_training({'train': [1.0, 0.5]}); ax.figure.savefig(io.BytesIO()); "
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_inside_a_kernel_a_new_figure_is_one_that_jupyter_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    import types

    from matplotlib import pyplot

    pyplot.switch_backend("agg")
    shell = types.SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    ax = plot_training({"train": [1.0, 0.5]})
    assert ax.figure.number in pyplot.get_fignums()  # type: ignore[union-attr]
    pyplot.close("all")


def make_attention(*, truth: bool = True) -> xr.Dataset:
    """The first 200 rows of the alignment, as four windows of 50 steps."""
    flat = make_alignment(truth=truth).isel(time=slice(0, 200))
    variables = {
        "posterior": (("clock", "window", "step", "lag"), flat["posterior"].values.reshape(2, 4, 50, 41))
    }
    if truth:
        variables["true_lag_s"] = (("clock", "window", "step"), flat["true_lag_s"].values.reshape(2, 4, 50))
    return xr.Dataset(
        variables,
        coords={
            "clock": flat["clock"],
            "time": (("window", "step"), TIME_S[:200].reshape(4, 50)),
            "lag": flat["lag"],
        },
        attrs=flat.attrs,
    )


def test_one_window_of_attention_is_drawn_with_the_true_lag_on_top() -> None:
    table = make_attention()
    ax = plot_window_attention(table, window=-1, clock="imu")
    (image,) = ax.images
    np.testing.assert_allclose(image.get_array(), table["posterior"].sel(clock="imu")[3].values.T, atol=1e-6)
    np.testing.assert_allclose(line(ax, "true lag")[1], table["true_lag_s"].sel(clock="imu")[3])
    assert ax.get_title(loc="left") == "window 3"
    assert "true lag" not in plot_window_attention(make_attention(truth=False)).get_legend_handles_labels()[1]
    with pytest.raises(NeurofuseError, match="there is no window 4; the table has 4"):
        plot_window_attention(table, window=4)
    with pytest.raises(NeurofuseError, match=r"no windows to draw one of; give one from attention\(\)"):
        plot_window_attention(make_alignment())


def test_attention_bars_are_the_scores() -> None:
    scores = attention_scores(make_alignment())
    shares, rates = plot_attention_quality(scores)
    drawn = [bar.get_width() for bar in shares.patches]
    expected = [
        float(scores[v][k])
        for k in range(2)
        for v in ("mass_on_truth", "anomaly_rate", "calibration_error", "relative_entropy")
    ]
    np.testing.assert_allclose(drawn, expected)
    np.testing.assert_allclose([bar.get_width() for bar in rates.patches][:2], [scores["flicker"][0], 0])
    assert "(1/s)" in rates.get_xlabel()
    blind = plot_attention_quality(attention_scores(make_alignment(truth=False)))
    assert [t.get_text() for t in blind[0].get_yticklabels()] == ["entropy / log L"]
    with pytest.raises(NeurofuseError, match="holds no scores of attention"):
        plot_attention_quality(make_alignment())


def test_calibration_shows_every_filled_bin_and_every_level() -> None:
    scores = attention_scores(make_alignment(("lfp",)))
    bins, levels = plot_calibration(scores)
    filled = scores["share"][0] > 0
    np.testing.assert_allclose(bins.collections[0].get_offsets()[:, 0], scores["confidence"][0][filled])
    np.testing.assert_allclose(bins.collections[0].get_offsets()[:, 1], scores["accuracy"][0][filled])
    np.testing.assert_allclose(line(levels, "clock 'lfp'")[1], scores["coverage"][0])
    with pytest.raises(NeurofuseError, match="calibration needs a true lag"):
        plot_calibration(attention_scores(make_alignment(truth=False)))


def make_contribution(n_parts: int = 3) -> xr.Dataset:
    drop = np.linspace(1.9, -0.001, 2 * n_parts).reshape(n_parts, 2)
    return xr.Dataset(
        {"r2": ("axis", [0.9, 0.8]), "contribution": (("part", "axis"), drop)},
        coords={"part": [f"$p{k}" for k in range(n_parts)], "axis": ["x", "_y"]},
    )


def test_contribution_bars_are_the_drop_in_r2_and_the_longest_are_cut() -> None:
    table = make_contribution()
    ax = plot_contribution(table)
    np.testing.assert_allclose(
        [bar.get_width() for bar in ax.patches], np.clip(table["contribution"].values.T.ravel(), None, 1.5)
    )
    words = [t.get_text() for t in ax.texts]
    assert "1.90" in words
    assert words[-1] == "0.00"  # no minus zero
    assert ax.get_yticklabels()[0].get_text() == r"\$p0"
    assert len(ax.get_legend().get_texts()) == 2
    many = plot_contribution(make_contribution(40).isel(part=slice(None, None, -1)))
    assert len(many.get_yticklabels()) == 16
    assert many.get_yticklabels()[0].get_text() == r"\$p0"
    assert many.get_title(loc="left") == "16 of 40 parts"
    with pytest.raises(NeurofuseError, match="holds no 'contribution'"):
        plot_contribution(make_alignment())


def make_clock() -> Alignment:
    """A clock that lags by 50 ms, with one jump, whose posterior lies 10 ms off and is not confirmed at the end."""
    table = make_alignment(("imu",), truth=False).drop_vars("lag_path_s")
    flat = {
        v: table[v] * 0 + 0.06 + d for v, d in (("lag_mean_s", 0), ("lag_q05_s", -0.02), ("lag_q95_s", 0.02))
    }
    confirmed = (TIME_S < 15).astype(float)[None]
    table = table.assign(flat).assign(
        fitted_lag_s=(("clock", "time"), np.full((1, TIME_S.size), 0.05)),
        p_matched=(("clock", "time"), 0.1 + 0.8 * confirmed),
        trusted=(("clock", "time"), confirmed),
    )
    return Alignment(
        "array", "imu", "aligned", "'imu' aligned to 'array' to +-3.0 ms", ClockMap.constant(0.05, 0, 20),
        "piecewise", "ridge", (0.05, 0.049, 0.051), (30.0, 29.0, 31.0), (Jump(5.0, 4.5, 5.5, 0.08, 0.079, 0.081),),
        0.003, table, {},
    )  # fmt: skip


def test_the_clock_figure_shows_the_residual_the_match_and_what_is_not_confirmed() -> None:
    top, residual, matched = plot_clock(make_clock(), truth_s=(TIME_S, np.full(TIME_S.size, 0.07)))
    _, y = line(residual, "posterior mean")
    np.testing.assert_allclose(y[np.isfinite(y)], 10)
    np.testing.assert_allclose(line(residual, "true lag")[1], 20)
    np.testing.assert_allclose(line(top, "fitted clock")[1], 0.05)
    _, y = line(matched, "streams match")
    np.testing.assert_allclose(y[np.isfinite(y)], np.where(TIME_S < 15, 0.9, 0.1))
    assert [t.get_text() for t in matched.texts] == ["+80 ms"]
    (hatched,) = [p for p in matched.patches if p.get_label() == "clock not confirmed"]
    assert hatched.get_x() == pytest.approx(15 - STEP_S / 2)
    assert residual.get_ylabel() == "lag minus\nfitted clock (ms)"


def test_title_and_legend_of_the_clock_figure_do_not_overlap() -> None:
    top = plot_clock(make_clock(), truth_s=(TIME_S, np.full(TIME_S.size, 0.07)))[0]
    top.figure.draw_without_rendering()
    assert top.get_title(loc="left").endswith("skew +30.0 ppm, 1 jump")
    assert not top._left_title.get_window_extent().overlaps(top.get_legend().get_window_extent())
