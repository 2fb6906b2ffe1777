"""Figures and page of a study, from tables with a planted course."""

import json
import re

import numpy as np
import pytest
import xarray as xr

from neurofuse.errors import NeurofuseError
from neurofuse.report.figures.plot_study import plot_lag_maps, plot_study, plot_study_attention
from neurofuse.report.study_page import study_verdict, write_study_report
from neurofuse.study.threshold import thresholds

LEVELS = np.geomspace(0.01, 0.2, 6)


def table():
    """Tracked falls from the oracle to early at 0.05 s of spike jitter; a second kind has fewer levels."""
    models, kinds, protocols = ["early", "oracle", "tracked"], ["spike", "delete"], ["test-only"]
    shape = (3, 2, LEVELS.size, 2, 1)
    dims = ("model", "kind", "level", "seed", "protocol")
    left = 1 / (1 + (LEVELS / 0.05) ** 4)
    r2 = np.zeros((*shape, 2))
    r2[0], r2[1] = 0.5, 0.9
    r2[2] = (0.5 + 0.4 * left)[None, :, None, None, None] + 0.01 * np.array([-1, 1])[:, None, None]
    hit = np.full(shape, np.nan)
    hit[1], hit[2] = 1, left[None, :, None, None]
    value = np.stack([LEVELS, np.where(np.arange(LEVELS.size) < 4, LEVELS * 5, np.nan)])
    status = np.full(shape, "ok", dtype=object)
    status[:, 1, 4:] = "missing"  # levels that this kind does not have
    status[2, 0, 5, 0, 0] = "quarantined"
    entropy = np.where(np.isfinite(hit), 1.0, np.nan)
    return xr.Dataset(
        {
            "r2": ((*dims, "axis"), r2),
            "hit_rate": (dims, hit),
            "flicker": (dims, 1 - hit),
            "entropy": (dims, entropy),
            "status": (dims, status),
            "level_value": (("kind", "level"), value),
            "level_unit": ("kind", ["s", "1"]),
            "predicted": ("kind", [0.06, np.nan]),
            "levels_from": ("kind", ["around theory", "given"]),
            "base_lag": ("kind", ["lag:0.2", "lag:0.2"]),
        },
        coords={
            "model": models,
            "kind": kinds,
            "level": np.arange(LEVELS.size),
            "seed": [0, 1],
            "protocol": protocols,
            "axis": ["vx", "vy"],
        },
        attrs={
            "fixed": "early",
            "oracle": "oracle",
            "recording": "<planted>",
            "settings": json.dumps({"seed": 3}),
        },
    )


def maps(levels=(0, 2, 5)):
    n_times, lag_s = 40, np.linspace(-0.5, 0.5, 11)
    posterior = np.full((len(levels), n_times, lag_s.size), 1 / lag_s.size, dtype=np.float16)
    time_s = np.tile(0.02 * np.arange(n_times), (len(levels), 1))
    time_s[-1, 30:] = np.nan  # this cell's stretch is shorter
    names = {"model": "tracked", "kind": "spike", "protocol": "test-only"}
    return xr.Dataset(
        {
            "posterior": (("cell", "time", "lag"), posterior),
            "time_s": (("cell", "time"), time_s),
            "true_lag_s": (("cell", "time"), np.full_like(time_s, 0.1)),
        },
        coords={"lag": lag_s, "level": ("cell", list(levels))}
        | {k: ("cell", np.array([v] * len(levels), dtype=object)) for k, v in names.items()},
    )


def found():
    study = table()
    kept = study.sel(kind=["spike"])
    return [
        {"quantity": q, "method": "isotonic"} | one.as_dict()
        for q in ("gain", "hit_rate")
        for one in thresholds(kept, quantity=q)
    ]


def test_r2_is_drawn_against_the_level_with_thresholds_and_theory():
    panel = plot_study(table(), thresholds=found())
    lines = {line.get_label(): line for line in panel.get_lines()}
    np.testing.assert_allclose(lines["tracked"].get_xdata(), LEVELS)
    np.testing.assert_allclose(lines["oracle"].get_ydata(), 0.9)
    assert lines["theory"].get_xdata()[0] == pytest.approx(0.06)
    upright = [
        line.get_xdata()[0] for line in panel.get_lines() if line.get_color() == lines["tracked"].get_color()
    ]
    assert any(x == pytest.approx(0.05, rel=0.1) for x in upright[1:])
    assert panel.get_xscale() == "log"
    assert panel.get_xlabel() == "level of 'spike' (s)"
    # An interval wider than what was tried does not stretch the axis.
    assert panel.get_xlim()[0] > LEVELS[0] / 2


def test_attention_is_drawn_without_the_oracle():
    axes = plot_study_attention(table(), thresholds=found())
    assert [a.get_ylabel() for a in axes] == ["lag hit rate", "flicker (1/s)", "entropy (nat)"]
    assert "oracle" not in axes[0].get_legend_handles_labels()[1]
    # Of what threshold.json holds, each figure draws its own quantity, and by one method.
    others = [t | {"measured": 0.02, "method": "theory"} for t in found()]
    others += [t | {"measured": 0.03} for t in found() if t["quantity"] == "gain"]
    axes = plot_study_attention(table(), thresholds=others)
    assert [line.get_label() for line in axes[0].get_lines()] == ["tracked", "theory"]
    others = [t | {"measured": 0.03} for t in found() if t["quantity"] == "hit_rate"]
    panel = plot_study(table(), thresholds=others)
    assert sorted(line.get_label() for line in panel.get_lines()) == ["early", "oracle", "theory", "tracked"]
    blind = table().drop_vars(["hit_rate", "flicker", "entropy"])
    with pytest.raises(NeurofuseError, match="no model of this study estimates a lag"):
        plot_study_attention(blind)


def test_title_and_legend_do_not_collide():
    study = table().isel(model=[0, 1, 2, 2, 2]).assign_coords(model=["early", "oracle", "tracked", "b", "c"])
    for axes in ([plot_study(study)], plot_study_attention(study)):
        legend = axes[0].get_legend()
        assert legend.get_title().get_text() == "test-only, under lag:0.2"
        axes[0].figure.draw_without_rendering()
        title = legend.get_title().get_window_extent()
        assert all(not title.overlaps(text.get_window_extent()) for text in legend.get_texts())
        assert axes[0].get_title(loc="left") == ""


def test_lag_maps_are_drawn_from_the_lowest_level_to_the_highest():
    axes = plot_lag_maps(maps(levels=(5, 0, 2)), table())
    titles = [a.get_title(loc="left") for a in axes]
    assert [t.split(": ")[1] for t in titles] == [
        "below the critical level",
        "at the critical level",
        "above the critical level",
    ]
    assert titles[0].startswith("tracked, spike 0.01 s")
    with pytest.raises(NeurofuseError, match="no lag over time was kept of model 'early'"):
        plot_lag_maps(maps(), table(), model="early")


def test_a_kind_or_column_that_is_missing_is_named_in_the_error():
    with pytest.raises(NeurofuseError, match="no kind 'walk'; it has spike, delete"):
        plot_study(table(), kind="walk")
    with pytest.raises(NeurofuseError, match="not the table of a study: it lacks level_value"):
        plot_study(table().drop_vars("level_value"))


def test_the_page_lists_thresholds_and_unfinished_cells_and_escapes_names(tmp_path):
    page = write_study_report(tmp_path / "report.html", study=table(), thresholds=found(), maps=maps())
    text = page.read_text(encoding="utf-8")
    assert re.search(r"Critical levels: tracked, spike 0\.0(4[5-9]|5)\d* s \(theory 0\.06 s\)", text)
    assert "1 of 60 cells are quarantined." in text
    assert "&lt;planted&gt;" in text
    assert "<planted>" not in text
    # R2 and attention of both kinds, and the lag maps of one.
    assert text.count("data:image/png") == 5
    assert "http" not in text.replace("http-equiv", "")


def test_a_threshold_that_was_not_crossed_is_put_in_words():
    one = {"model": "tracked", "kind": "noise", "unit": "1", "measured": None, "censored": "above"}
    assert study_verdict([one]) == "Critical levels: tracked, noise above all levels tested."
    assert study_verdict([]) == "No threshold could be measured."
