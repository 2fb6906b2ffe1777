"""The report page: one self-contained file with the verdict, in which every name is escaped."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from neurofuse.errors import NeurofuseError
from neurofuse.recording import Movement, Recording, Signal, Spikes
from neurofuse.report.decode_page import verdict, write_report

HOSTILE = "<script>alert('$x_1$')</script>"


# What metrics hold besides scores.
FACTS: dict[str, Any] = {
    "n_units": 84,
    "n_channels": 16,
    "n_windows": {"train": 400, "validation": 60, "test": 11},
    "seconds": {"train": 812.4, "validation": 120.0, "test": 34.0},
    "scored": "stitched",
    "warnings": ["34 s of test time are too few to resolve a difference of 0.02 in R²."],
    "settings": {"seed": 1, "decoder": {"name": "tracked", "lags_s": [-1, 1]}, "features": {}},
    "provenance": ["read session.nwb", "cut to 0-240 s", "clock 'lfp' drifted by 12 ppm"],
    "recording": "Recording 'session', 0.00 to 240.00 s on clock 'spikes'",
    "quality": [
        {
            "name": f"ch{k}",
            "bad": k == 3,
            "why": "flat: every sample is the same" * (k == 3),
            "line_50": 40.0,
            "line_60": None,
        }
        for k in range(16)
    ],
    "history": {
        "train": (0.2 + 0.8 * np.exp(-np.arange(24) / 5)).tolist(),
        "validation": (0.27 + 0.75 * np.exp(-np.arange(24) / 5)).tolist(),
    },
    "version": "0.1.0",
}


def make_alignment(time_s: np.ndarray, clocks: tuple[str, ...], *, truth: bool) -> xr.Dataset:
    """Lag posteriors that follow a slow drift, wide for a while; the truth is known from 203 s on."""
    lag_s = np.arange(-50, 51) * 0.02
    drift = [0.18 + 0.25 * np.sin(2 * np.pi * (time_s - 200) / 55) for _ in clocks]
    true_s = np.stack([d * (-1) ** k for k, d in enumerate(drift)])
    found_s = true_s + 0.008 * np.sin(2 * np.pi * time_s / 3.1)
    spread_s = 0.02 + 0.05 * np.exp(-0.5 * ((time_s - 228) / 2) ** 2)
    z = (lag_s[None, None, :] - found_s[:, :, None]) / spread_s[None, :, None]
    posterior = np.exp(-0.5 * z**2) + 1e-5
    posterior /= posterior.sum(axis=2, keepdims=True)
    mean_s = posterior @ lag_s
    std_s = np.sqrt(np.maximum(posterior @ lag_s**2 - mean_s**2, 0))
    variables = {
        "lag_mean_s": mean_s,
        "lag_std_s": std_s,
        "lag_q05_s": mean_s - 1.645 * std_s,
        "lag_q95_s": mean_s + 1.645 * std_s,
        "lag_map_s": lag_s[posterior.argmax(axis=2)],
        "lag_path_s": lag_s[posterior.argmax(axis=2)],
        "entropy": -(posterior * np.log(posterior)).sum(axis=2),
    }
    if truth:
        variables["true_lag_s"] = np.where(time_s < 203, np.nan, true_s)
    return xr.Dataset(
        {k: (("clock", "time"), v) for k, v in variables.items()}
        | {"posterior": (("clock", "time", "lag"), posterior.astype(np.float32))},
        coords={"clock": list(clocks), "time": time_s, "lag": lag_s},
        attrs={"decoder": "tracked", "max_lag_s": 1.0, "token_s": 0.02, "hit_tolerance_s": 0.025},
    ).assign(window=("time", np.arange(time_s.size) // 160))


def make_tables(
    *,
    seed: int = 0,
    axes: tuple[str, ...] = ("x", "y"),
    clocks: tuple[str, ...] = ("lfp", "imu"),
    truth: bool = True,
    ridge: bool = True,
) -> tuple[dict[str, Any], xr.Dataset, xr.Dataset | None]:
    """Metrics, prediction and alignment as a decode writes them: 40 s of test time with a gap of 6 s."""
    rng = np.random.default_rng(seed)
    time_s = np.concatenate([np.arange(700) * 0.02 + 200, np.arange(1000) * 0.02 + 220])
    phase = np.stack([np.sin(2 * np.pi * (0.3 + 0.17 * k) * time_s + k) for k in range(len(axes))], axis=1)
    movement = 12 * phase + 3 * np.sin(2 * np.pi * 0.9 * time_s)[:, None]

    def decoded(sd: float) -> np.ndarray:
        wander = rng.standard_normal((time_s.size + 24, len(axes)))
        kernel = np.hanning(25) / np.hanning(25).sum()
        smooth = np.stack([np.convolve(w, kernel, mode="valid") for w in wander.T], axis=1)
        return movement + sd * smooth / smooth.std()

    tables = {"movement": movement, "prediction": decoded(2.6)} | ({"ridge": decoded(4.5)} if ridge else {})
    prediction = xr.Dataset(
        {k: (("time", "axis"), v) for k, v in tables.items()},
        coords={"time": time_s, "axis": list(axes)},
        attrs={
            "units": "cm/s",
            "reference": "spikes",
            "movement_name": "velocity",
            "sample_s": 0.02,
            "scored": "stitched",
            "decoder": "tracked",
        },
    ).assign(window=("time", np.arange(time_s.size) // 160))
    alignment = make_alignment(time_s, clocks, truth=truth) if clocks else None
    scores = {v: 1 - ((tables[v] - movement) ** 2).sum(0) / movement.var(0) / time_s.size for v in tables}
    metrics: dict[str, Any] = {
        "r2": dict(zip(axes, scores["prediction"].tolist(), strict=True)),
        "r2_mean": float(scores["prediction"].mean()),
        "decoder": "tracked",
    } | FACTS
    if ridge:
        metrics["baseline_ridge_r2"] = dict(zip(axes, scores["ridge"].tolist(), strict=True))
        metrics["baseline_ridge_r2_mean"] = float(scores["ridge"].mean())
    if clocks and truth:
        metrics |= {"lag_hit_rate": 0.97, "lag_median_abs_error_s": 0.009, "lag_coverage_90": 0.93}
    return metrics, prediction, alignment


def make_recording(
    *, name: str = "session", channel: str = "ch", clock: str = "lfp", axis: str = "x"
) -> Recording:
    """Spikes, counts and LFP of four minutes; the LFP has a gap of 2 s."""
    rng = np.random.default_rng(5)
    trains = [np.sort(rng.uniform(0, 240, rng.integers(200, 3000))) for _ in range(30)]
    t = np.arange(0, 240, 1 / 250)
    kept = (t < 205) | (t > 207)
    brain = np.cumsum(rng.standard_normal((t.size, 6)), axis=0)
    brain -= pd.DataFrame(brain).rolling(250, min_periods=1, center=True).mean().to_numpy()
    channels = [f"{channel}{k}" for k in range(6)]
    lfp = Signal.from_array(
        brain[kept], clock=clock, name=f"{name} lfp", time_s=t[kept], channels=channels, units="uV"
    )
    counts = Signal.from_array(
        rng.poisson(1.5 + np.sin(np.arange(12000) / 40)[:, None], (12000, 20)),
        clock="reference",
        name="sorted",
        rate_hz=50,
        kind="counts",
    )
    moved = Movement.from_array(
        np.stack([np.sin(t[::5]), np.cos(t[::5])], axis=1),
        time_s=t[::5],
        axes=[axis, "y"],
        units="cm",
        name="cursor",
    )
    spikes = Spikes.from_trains(trains, clock="reference", name="units")
    return Recording(name, "reference", (spikes, counts, lfp), moved, provenance=("read it",))


class Page(HTMLParser):
    """What a browser would see: elements, their attributes, and the text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.raw = path.read_text(encoding="utf-8")
        self.feed(self.raw)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data

    def images(self) -> list[dict[str, str | None]]:
        return [a for t, a in self.tags if t == "img"]


def written(folder: Path, tables: tuple[dict[str, Any], xr.Dataset, xr.Dataset | None], **more: Any) -> Page:
    metrics, prediction, alignment = tables
    path = folder / "report.html"
    return Page(write_report(path, metrics=metrics, prediction=prediction, alignment=alignment, **more))


def test_the_page_opens_with_the_verdict_and_the_warnings(tmp_path: Path) -> None:
    metrics, prediction, alignment = make_tables(clocks=("lfp",))
    metrics |= {"r2_mean": 0.912, "baseline_ridge_r2_mean": 0.74}
    page = written(tmp_path, (metrics, prediction, alignment))
    sentence = "R² 0.91 (ridge 0.74); the clock 'lfp' was found within 25 ms in 97 % of the test time."
    assert sentence in page.text
    order = [page.text.index(x) for x in (sentence, "too few to resolve", "mean", "Predicted and measured")]
    assert order == sorted(order)
    assert page.open == []


def test_every_section_is_there_with_its_figures_inside_the_file(tmp_path: Path) -> None:
    metrics, prediction, alignment = make_tables()
    path = write_report(
        tmp_path / "report.html",
        metrics=metrics,
        prediction=prediction,
        alignment=alignment,
        recording=make_recording(),
    )
    page = Page(path)
    for heading in (
        "Predicted and measured movement",
        "Trajectory",
        "The lag between the clocks",
        "The data",
        "Attention over lags",
        "Scoring",
        "Origin of the data",
        "Settings",
    ):
        assert heading in page.text
    # scores, decoded, trajectory, two clocks twice, training, the recording
    assert len(page.images()) == 9
    assert all((a["src"] or "").startswith("data:image/png;base64,") and a["alt"] for a in page.images())
    for fact in (
        "1 of 16",
        "flat: every sample is the same",
        "1, 6 s together",
        "812.4",
        "decoder.lags_s",
        "-1, 1",
        "clock 'lfp' drifted by 12 ppm",
        "Line noise at 50 Hz",
    ):
        assert fact in page.text
    assert path.stat().st_size < 3e6


def test_the_page_loads_nothing_from_the_network(tmp_path: Path) -> None:
    page = written(tmp_path, make_tables())
    assert not re.search(r"https?:|//|url\(|@import", re.sub(r'src="data:[^"]*"', "", page.raw))
    assert {t for t, _ in page.tags}.isdisjoint({"script", "link", "iframe", "object", "base"})
    policy = next(a for t, a in page.tags if t == "meta" and "http-equiv" in a)
    assert (policy["content"] or "").startswith("default-src 'none'")


# What other tests left to be collected is theirs.
@pytest.mark.filterwarnings("error", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_every_name_from_a_file_is_escaped(tmp_path: Path) -> None:
    metrics, prediction, alignment = make_tables(axes=(HOSTILE, "_$a_$b"), clocks=(HOSTILE, 'q" onload="x'))
    metrics |= {
        "name": HOSTILE,
        "recording": HOSTILE,
        "provenance": [HOSTILE],
        "warnings": [HOSTILE],
        "settings": {HOSTILE: {HOSTILE: HOSTILE}},
        "decoder": HOSTILE,
        "version": HOSTILE,
        "scored": HOSTILE,
        "quality": [{"name": HOSTILE, "bad": True, "why": HOSTILE}],
        "n_windows": {HOSTILE: HOSTILE},
        "n_units": HOSTILE,
    }
    prediction.attrs |= {"units": "$\\frac{", "reference": HOSTILE, "movement_name": HOSTILE}
    recording = make_recording(name=HOSTILE, channel=HOSTILE, clock=HOSTILE, axis=HOSTILE)
    page = written(tmp_path, (metrics, prediction, alignment), recording=recording)
    assert "<script" not in page.raw
    assert {t for t, _ in page.tags}.isdisjoint({"script"})
    assert {k for _, attributes in page.tags for k in attributes} <= {
        "lang",
        "charset",
        "name",
        "content",
        "http-equiv",
        "class",
        "role",
        "src",
        "alt",
        "width",
        "scope",
    }
    # Once in each place a name is shown, whole, as text.
    assert page.text.count(HOSTILE) >= 14
    assert len(page.images()) == 9


def test_names_no_encoding_can_write_still_give_a_page(tmp_path: Path) -> None:
    page = written(tmp_path, make_tables(axes=("脳\udcff\n\x00",), clocks=("\udcff\U0001f9e0",)))
    assert "脳?" in page.text


@pytest.mark.parametrize("axes", [("angle",), ("x", "y", "z")])
@pytest.mark.parametrize("clocks", [(), ("lfp",)])
@pytest.mark.parametrize(("truth", "ridge"), [(False, False), (True, True)])
def test_what_is_missing_is_left_out_of_the_page(
    tmp_path: Path, axes: tuple[str, ...], clocks: tuple[str, ...], truth: bool, ridge: bool
) -> None:
    page = written(tmp_path, make_tables(axes=axes, clocks=clocks, truth=truth, ridge=ridge))
    assert ("ridge" in page.text) == ridge
    assert ("There is no lag to show" in page.text) == (not clocks)
    assert len(page.images()) == 4 + 2 * len(clocks)
    assert "nan" not in page.text.lower()


def test_empty_tables_give_a_page(tmp_path: Path) -> None:
    _, prediction, alignment = make_tables(ridge=False)
    assert alignment is not None
    page = written(tmp_path / "new" / "folder", ({}, prediction, alignment.isel(clock=[])))
    assert "R² could not be computed; no lag was searched." in page.text
    page = written(tmp_path, ({"r2": {"x": None}}, prediction.isel(time=[]), None))
    assert "No movement was decoded." in page.text


def test_a_single_decoded_sample_gives_a_page(tmp_path: Path) -> None:
    metrics, prediction, alignment = make_tables()
    assert alignment is not None
    page = written(tmp_path, (metrics, prediction.isel(time=[0]), alignment.isel(time=[0])))
    assert len(page.images()) == 8


def test_a_page_that_fails_leaves_the_old_one_and_no_partial_file(tmp_path: Path) -> None:
    metrics, prediction, alignment = make_tables()
    path = tmp_path / "report.html"
    path.write_text("old")
    with pytest.raises(NeurofuseError, match=r"lacks 'prediction'; it has \['axis', 'movement'"):
        write_report(
            path, metrics=metrics, prediction=prediction.drop_vars("prediction"), alignment=alignment
        )
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize(
    ("metrics", "part"),
    [
        ({"lag_hit_rate": 0.5}, "; the clocks 'lfp' and 'imu' were found within 25 ms in 50 % of the test"),
        ({"r2_mean": 0.7, "baseline_ridge_r2_mean": 0.74}, "R² 0.70 (ridge 0.74, which is as good or"),
        ({"r2_mean": -0.2}, "R² −0.20, no better than predicting the mean; "),
        ({"r2_mean": None}, "R² could not be computed; "),
        (
            {"r2_mean": 0.5},
            "lag of the clocks 'lfp' and 'imu' is 80.3 ms wide (median), and no true lag is known",
        ),
    ],
)
def test_the_verdict_states_the_result_and_no_more(metrics: dict[str, Any], part: str) -> None:
    assert part in verdict(metrics, make_tables()[2])


def test_the_same_tables_give_the_same_page_twice_whatever_the_users_style(tmp_path: Path) -> None:
    import matplotlib

    metrics, prediction, alignment = make_tables()
    first = write_report(tmp_path / "1.html", metrics=metrics, prediction=prediction, alignment=alignment)
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "black", "savefig.dpi": 30}):
        again = write_report(tmp_path / "2.html", metrics=metrics, prediction=prediction, alignment=alignment)
        assert matplotlib.rcParams["font.size"] == 20
    assert first.read_bytes() == again.read_bytes()


def test_report_and_figures_load_no_torch_mne_neo_or_sklearn() -> None:
    code = (
        "import sys, neurofuse.report.decode_page, neurofuse.report.figures; "
        "heavy = [m for m in ('torch', 'mne', 'neo', 'sklearn', 'matplotlib.pyplot') if m in sys.modules]; "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
