"""In: two noisy copies of one Gaussian signal. Out: the critical noise of the second, measured and by theory.

`python -m benchmarks.critical_level [--seeds K] [--jobs N] [--decoder NAME ...] --out DIR`

The matched case of the law: a shared signal with a flat band of B Hz, recorded on two clocks with in-band SNR g1 and
g2; the second is late by one lag per window. A decoder is trained once per seed, on noise that changes every
`STRETCH_S` around the critical level, and tested on new recordings at levels from a quarter to four times that level.
`kappa` is the measured critical noise over the predicted one: below 1 a decoder is less efficient than the law, above 1
it has information that the law leaves out.

T of the law is the window and the tokens of context on both sides of it, all of which the lag model reads.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from neurofuse.jitters.lag_laws import WindowLag
from neurofuse.recording import Movement, Recording, Signal
from neurofuse.report.figures.panel import BLACK, legend_above, tidy
from neurofuse.report.figures.plot_attention import SERIES
from neurofuse.study.coherence import integration_time_s
from neurofuse.study.threshold import threshold_of
from neurofuse.theory import anomaly_probability, critical_noise
from neurofuse.tokens import Tokens, tokenize
from neurofuse.windows import EDGE_TOKENS, cut_windows, split_windows

BAND_HZ, TOKEN_S, WINDOW_S, MAX_LAG_S, SNR_ANCHOR = 5.0, 0.02, 4.0, 0.5, 1.0
INTEGRATION_S = integration_time_s(WINDOW_S, context_s=EDGE_TOKENS * TOKEN_S)
LAW: dict[str, Any] = {"bandwidth_hz": BAND_HZ, "window_s": INTEGRATION_S, "range_s": 2 * MAX_LAG_S}
TRAIN_S, TEST_S, STRETCH_S = 600.0, 900.0, 20.0
FACTORS = np.geomspace(0.25, 4.0, 11)


def flat(n: int, rng: np.random.Generator) -> np.ndarray:
    """Unit-variance Gaussian noise, flat up to the band's edge and zero above."""
    spectrum = np.fft.rfft(rng.standard_normal(n))
    spectrum[np.fft.rfftfreq(n, TOKEN_S) > BAND_HZ] = 0
    x = np.fft.irfft(spectrum, n)
    return x / x.std()


def pair(duration_s: float, level: float | np.ndarray, *, rng: np.random.Generator) -> Tokens:
    """Tokens of two noisy copies of one signal, which is also the movement; `level` is the noise of the second."""
    n = round(duration_s / TOKEN_S)
    signal, first, second = (flat(n, rng) for _ in range(3))
    copies = {"a": signal + first / np.sqrt(SNR_ANCHOR), "b": signal + level * second}
    streams = tuple(
        Signal.from_array(x[:, None], clock=clock, name=clock, rate_hz=1 / TOKEN_S, kind="power", units="1")
        for clock, x in copies.items()
    )
    movement = Movement.from_array(
        signal[:, None], name="signal", rate_hz=1 / TOKEN_S, axes=("x",), units="1"
    )
    return tokenize(Recording("pair", "a", streams, movement), token_s=TOKEN_S, fine_s=TOKEN_S)


def run(name: str, seed: int, critical: float) -> list[float]:
    """Train once, and return the fraction of lags found at every level."""
    import torch

    from neurofuse.decoders.registry import make_decoder

    torch.set_num_threads(1)
    rng = np.random.default_rng([seed, 41])
    # Nearly uniform over the search range, as in theory.
    law = WindowLag(2 * MAX_LAG_S)
    stretch = (np.arange(round(TRAIN_S / TOKEN_S)) * TOKEN_S // STRETCH_S).astype(int)
    tokens = pair(TRAIN_S, critical * rng.uniform(0.25, 1.25, stretch[-1] + 1)[stretch], rng=rng)
    parts = split_windows(
        tokens, window_s=WINDOW_S, max_lag_s=MAX_LAG_S, train=0.8, validation=0.15, jitter=law, rng=rng
    )
    # The law assumes one lag per window, so lags are not augmented in training.
    decoder = make_decoder(name, seed=seed, unimodal=False, augment=0.0)
    decoder.fit(parts.train, validation=parts.validation)
    hits = []
    for k, factor in enumerate(FACTORS):
        draw = np.random.default_rng([seed, 42, k])
        test = cut_windows(
            pair(TEST_S, factor * critical, rng=draw),
            window_s=WINDOW_S,
            stride_s=WINDOW_S,
            max_lag_s=MAX_LAG_S,
            jitter=law,
            whole=False,
            rng=draw,
        )
        prediction = decoder.decode(test)
        found_s = prediction.lag_s[prediction.path["b"]]
        hits.append(float((np.abs(found_s - test.lag_s[..., 0]) <= 0.5 / BAND_HZ).mean()))
    print(name, seed, " ".join(f"{h:.2f}" for h in hits), flush=True)
    return hits


def main() -> None:
    """Run all decoders and seeds; print the table, save it and the figure."""
    from joblib import Parallel, delayed

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--decoder", nargs="+", default=["tracked", "constant", "softmax"], metavar="NAME")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    critical = critical_noise(snr_other=SNR_ANCHOR, **LAW)
    levels = FACTORS * critical
    cells = [(name, seed) for seed in range(options.seeds) for name in options.decoder]
    found = Parallel(n_jobs=options.jobs)(delayed(run)(name, seed, critical) for name, seed in cells)
    curves = {
        n: np.array([h for (m, _), h in zip(cells, found, strict=True) if m == n]) for n in options.decoder
    }
    rows = {
        name: threshold_of(levels, curve, predicted=critical, quantity="hit_rate")
        for name, curve in curves.items()
    }
    lines = [
        f"Predicted critical noise {critical:.3f} of the signal (B = {BAND_HZ:g} Hz, T = {INTEGRATION_S:g} s, "
        f"search +-{MAX_LAG_S:g} s, SNR of the anchor {SNR_ANCHOR:g}).",
        "",
        "| decoder | measured | 95 % | kappa | 95 % | seeds |",
        "|---|---|---|---|---|---|",
    ]
    for name, one in rows.items():
        measured = "censored" if one.measured is None else f"{one.measured:.3f}"
        kappa = "" if one.kappa is None else f"{one.kappa:.2f}"
        ends = ["" if e is None else " to ".join("?" if x is None else f"{x:.3f}" for x in e)
                for e in (one.ci95, one.kappa_ci95)]  # fmt: skip
        lines.append(f"| {name} | {measured} | {ends[0]} | {kappa} | {ends[1]} | {one.n_seeds} |")
    print("\n".join(lines))
    (options.out / "critical_level.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    kept = {"predicted": critical, "levels": levels.tolist()}
    kept |= {"hit_rate": {n: c.tolist() for n, c in curves.items()}}
    kept |= {"thresholds": {n: t.as_dict() for n, t in rows.items()}}
    (options.out / "critical_level.json").write_text(json.dumps(kept, indent=1), encoding="utf-8")
    draw(levels, curves, critical).savefig(options.out / "critical_level.png", dpi=140)


def draw(levels: np.ndarray, curves: dict[str, np.ndarray], critical: float) -> Figure:
    """Hit rate against noise, of decoders and of an ideal correlator."""
    figure = Figure(figsize=(6.0, 3.6), layout="constrained")
    panel = figure.subplots()
    fine = np.geomspace(levels[0], levels[-1], 60)
    ideal = [1 - anomaly_probability(snr1=SNR_ANCHOR, snr2=x**-2, **LAW) for x in fine]
    panel.plot(fine, ideal, color=BLACK, ls=":", label="theory")
    panel.axvline(critical, color=BLACK, lw=0.8)
    for k, (name, curve) in enumerate(curves.items()):
        colour, marker, line = SERIES[k % len(SERIES)]
        panel.plot(levels, curve.mean(0), color=colour, marker=marker, ls=line, ms=4, label=name)
        panel.fill_between(levels, curve.min(0), curve.max(0), color=colour, alpha=0.15, lw=0)
    panel.set_xscale("log")
    panel.set_xlabel("noise of the second stream (std over that of the signal, in the band)")
    panel.set_ylabel(f"lags found within {500 / BAND_HZ:g} ms")
    panel.set_ylim(0, 1.05)
    tidy(panel)
    legend_above(panel)
    return figure


if __name__ == "__main__":
    # Workers find functions by the name of their module, which this is not when run by `-m`.
    from benchmarks.critical_level import main as run_main

    run_main()
