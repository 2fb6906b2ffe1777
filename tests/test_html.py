"""What notebooks show of recordings, decodes, decoders, studies and alignments: the facts, and no markup of theirs."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import neurofuse
from neurofuse.alignment.align import Alignment
from neurofuse.alignment.clock_map import ClockMap, Jump
from neurofuse.decode import DecodeConfig, decode_recording
from neurofuse.decoders.registry import make_decoder
from neurofuse.errors import NeurofuseError
from neurofuse.html import Drawn, card, coverage, trace
from neurofuse.recording import Recording, Spikes
from neurofuse.report.study_table import open_study

HOSTILE = "<script>alert('x')</script>"


def plain(html: str) -> str:
    return re.sub(r"<[^>]+>", " ", html)


def test_every_word_of_a_card_is_escaped_and_what_was_drawn_is_not():
    html = card(
        HOSTILE,
        facts=[(HOSTILE, HOSTILE), ("left out", None)],
        head=(HOSTILE,),
        rows=[(HOSTILE, Drawn("<svg/>"), 0.123456, None)],
        warnings=[HOSTILE],
        folded=(HOSTILE, [HOSTILE]),
    )
    assert "<script>" not in html
    assert html.count("&lt;script&gt;") == 8
    assert "<svg/>" in html
    assert "0.1235" in html
    assert "left out" not in html


def test_a_coverage_bar_fills_what_was_recorded():
    widths = [
        float(w)
        for w in re.findall(r"width='([\d.]+)' height='8' fill='#", coverage([(0, 25), (50, 100)], (0, 100)))
    ]
    np.testing.assert_allclose(widths, [40.0, 80.0])


def test_a_coverage_bar_of_many_stretches_reaches_their_end():
    trials = [(k, k + 0.9) for k in range(2000)]
    bars = re.findall(r"x='([\d.]+)' y='2' width='([\d.]+)' height='8' fill='#", coverage(trials, (0, 2000)))
    assert len(bars) <= 320
    assert float(bars[-1][0]) + float(bars[-1][1]) == pytest.approx(160, abs=0.5)


def test_a_trace_leaves_out_what_is_not_finite():
    assert trace([1.0, np.nan]) == ""
    drawn = trace([0.0, np.nan, 1.0, 2.0], [-1, -1, 0, 1], [1, 1, 2, 3])
    assert "nan" not in drawn
    assert re.search(r"polyline points='([^']*)'", drawn).group(1).count(",") == 3


def test_a_recording_shows_its_streams_clocks_and_gaps(tiny):
    text = plain(tiny._repr_html_())
    for word in ("array", "logger", "12 units", "power", "movement", "reference clock", "provenance"):
        assert word in text
    hostile = Recording(HOSTILE, "a", (Spikes.from_trains([[1.0, 2.0]], clock="a", name=HOSTILE),))
    assert "<script>" not in hostile._repr_html_()
    assert "Recording" in Recording("nothing", "a", ())._repr_html_()


def test_a_decode_and_its_decoder_show_scores_and_sizes(tiny):
    fresh = make_decoder("ridge")
    assert "not fitted" in fresh._repr_html_()
    result = decode_recording(
        tiny, config=DecodeConfig(decoder="ridge", token_s=0.1, window_s=0.5, max_lag_s=0.1)
    )
    text = plain(result._repr_html_())
    assert f"{result.metrics['r2']['vx']:.4g}" in text
    assert "mean" in text
    text = plain(result.decoder._repr_html_())
    assert "12 features" in text
    assert "100 ms" in text
    assert set(result.decoder._repr_mimebundle_()) == {"text/plain", "text/html"}


def test_an_alignment_shows_its_clock_and_jumps():
    time_s = np.arange(10.0)
    lag = xr.Dataset(
        {
            n: (("clock", "time"), np.full((1, 10), v))
            for n, v in (("lag_mean_s", 0.2), ("lag_q05_s", 0.1), ("lag_q95_s", 0.3), ("trusted", 1.0))
        },
        coords={"clock": ["b"], "time": time_s},
    )
    found = Alignment(
        "a", "b", "aligned", "aligned to +-3 ms", ClockMap.constant(0.2, 0, 10), "piecewise", "learned",
        (0.2, 0.199, 0.201), (30.0, 29.0, 31.0),
        (Jump(5.0, 4.5, 5.5, 0.08, 0.079, 0.081),), 0.003, lag, {}, ("few jumps",),
    )  # fmt: skip
    text = plain(found._repr_html_())
    for word in (
        "aligned to +-3 ms",
        "200 ms (199 to 201)",
        "30 ppm (29 to 31)",
        "80",
        "79.0 and 81.0",
        "few jumps",
        "100 % of",
    ):
        assert word in text


@pytest.fixture
def study() -> xr.Dataset:
    """A study whose decoders fail at known levels: `tracked` at 0.2 s, `softmax` at 0.05 s."""
    level = np.geomspace(0.0125, 0.8, 9)
    models, n_seeds = ["tracked", "softmax", "early", "oracle"], 5
    rng = np.random.default_rng(0)
    gain = np.stack([1 / (1 + (level / at) ** 3) for at in (0.2, 0.05)] + [np.zeros(9), np.ones(9)])
    r2 = (
        0.5 + 0.4 * gain[:, None, :, None, None, None] + 0.002 * rng.standard_normal((4, 1, 9, n_seeds, 1, 2))
    )
    dims = ("model", "kind", "level", "seed", "protocol")
    status = np.full((4, 1, 9, n_seeds, 1), "ok", dtype=object)
    status[0, 0, 3, 2, 0] = "failed"
    return xr.Dataset(
        {
            "r2": ((*dims, "axis"), r2),
            "hit_rate": (dims, np.broadcast_to(gain[:, None, :, None, None], status.shape)),
            "status": (dims, status),
            "message": (dims, np.full(status.shape, "", dtype=object)),
            "level_value": (("kind", "level"), level[None]),
            "level_unit": ("kind", ["s"]),
            "predicted": ("kind", [0.2]),
        },
        coords={"model": models, "kind": ["lag"], "level": np.arange(9), "seed": np.arange(n_seeds),
                "protocol": ["train-matched"], "axis": ["vx", "vy"]},
        attrs={"layout": "neurofuse-study-1", "recording": HOSTILE, "fixed": "early", "oracle": "oracle"},
    )  # fmt: skip


def test_a_study_has_frames_curves_and_thresholds(study):
    assert neurofuse.run_study
    frame = study.study.frame()
    assert len(frame) == 4 * 9 * 5 - 1, "the cell that failed is left out"
    first = frame.iloc[0]
    cell = study["r2"].sel(model=first["model"], kind="lag", level=first["level"], seed=first["seed"]).mean()
    assert first["r2"] == pytest.approx(float(cell))
    curve = study.study.curve("r2")
    assert list(curve.columns) == ["early", "oracle", "softmax", "tracked"]
    assert curve.index.name == "lag (s)"
    np.testing.assert_allclose(curve.index, study["level_value"].values[0])
    np.testing.assert_allclose(
        curve["oracle"], study["r2"].sel(model="oracle").mean(("axis", "seed", "protocol", "kind")), rtol=1e-9
    )
    found = {t.model: t.measured for t in study.study.thresholds()}
    assert found["tracked"] == pytest.approx(0.2, rel=0.15)
    assert found["softmax"] == pytest.approx(0.05, rel=0.15)
    assert isinstance(frame, pd.DataFrame)


def test_a_study_shows_its_thresholds_and_draws_them(study):
    html = study.study._repr_html_()
    assert "<script>" not in html
    text = plain(html)
    assert "179 ok, 1 failed" in text
    assert re.search(r"tracked\s+lag\s+0\.\d+ s", text)
    panel = study.study.plot()
    lines = [x for x in panel.lines if len(x.get_xdata()) == 2 and x.get_xdata()[0] == x.get_xdata()[1]]
    assert any(abs(np.log(x.get_xdata()[0] / 0.05)) < 0.2 for x in lines), (
        "the threshold stands in the figure"
    )
    assert len(study.assign(entropy=study["hit_rate"]).study.plot_attention_quality()) == 2


def test_a_study_is_read_back_and_other_tables_are_refused(study, tmp_path):
    study.to_netcdf(tmp_path / "study.nc", engine="h5netcdf")
    assert open_study(tmp_path).study.curve().equals(open_study(tmp_path / "study.nc").study.curve())
    with pytest.raises(NeurofuseError, match="there is no study at"):
        open_study(tmp_path / "nowhere")
    study.assign_attrs(layout="other").to_netcdf(tmp_path / "other.nc", engine="h5netcdf")
    with pytest.raises(NeurofuseError, match="layout 'other'"):
        open_study(tmp_path / "other.nc")
    (tmp_path / "torn.nc").write_bytes(b"no netCDF")
    with pytest.raises(NeurofuseError, match="cannot be read"):
        open_study(tmp_path / "torn.nc")
    with pytest.raises(NeurofuseError, match="this table is no study: it lacks 'model'"):
        _ = xr.Dataset().study
    with pytest.raises(NeurofuseError, match="no kind of jitter 'walk'; it has"):
        study.study.curve(kind="walk")
    with pytest.raises(NeurofuseError, match="no measure 'flair'"):
        study.study.frame(("flair",))
