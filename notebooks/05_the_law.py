# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 05 The law: theory against measurement
#
# Two noisy views of one band-limited signal are cross-correlated to find their lag. Theory predicts when the tallest of the
# wrong peaks overtakes the right one: at `sqrt(2 B T) rho = m(N_eff)`. The same equation holds for attention over
# noisy keys. Here it is checked by a few hundred trials per level.

# %%
import os

import numpy as np
from matplotlib import pyplot as plt

from neurofuse import theory

QUICK = os.environ.get("NEUROFUSE_QUICK") == "1"

BAND_HZ, WINDOW_S, RANGE_S, RATE_HZ = 5.0, 4.0, 1.0, 100.0
N_TRIALS = 60 if QUICK else 400
snr = np.geomspace(0.08, 1.0, 7)
rng = np.random.default_rng(0)


def band_noise(n: int) -> np.ndarray:
    """White in [0, 5] Hz, nothing above, unit variance; one row per trial."""
    spectrum = np.fft.rfft(rng.standard_normal((N_TRIALS, n)), axis=1)
    spectrum[:, np.fft.rfftfreq(n, 1 / RATE_HZ) > BAND_HZ] = 0
    values = np.fft.irfft(spectrum, n, axis=1)
    return values / values.std()


n, reach = int(WINDOW_S * RATE_HZ), int(RANGE_S / 2 * RATE_HZ)
hits = []
for level in snr:
    signal = band_noise(n + 2 * reach + 400)
    noise = 1 / np.sqrt(level)
    first = signal[:, 200 + reach : 200 + reach + n] + noise * band_noise(n + 400)[:, 200 : 200 + n]
    second = (signal + noise * band_noise(signal.shape[1]))[:, 200 : 200 + n + 2 * reach]
    scores = np.stack([(first * second[:, k : k + n]).mean(1) for k in range(2 * reach + 1)], axis=1)
    lag_s = (scores.argmax(1) - reach) / RATE_HZ
    hits.append(np.mean(np.abs(lag_s) <= 1 / (2 * BAND_HZ)))

# %%
span = {"bandwidth_hz": BAND_HZ, "window_s": WINDOW_S, "range_s": RANGE_S}
fine = np.geomspace(snr[0], snr[-1], 60)
predicted = [1 - theory.anomaly_probability(snr1=g, snr2=g, **span) for g in fine]
critical = theory.critical_snr(criterion="half_hit", **span)

figure, panel = plt.subplots(figsize=(6, 3.4), layout="constrained")
panel.plot(fine, predicted, color="#000000", label="theory")
panel.plot(snr, hits, "o", color="#0072B2", label=f"measured, {N_TRIALS} trials per level")
panel.axvline(critical, color="#000000", ls=":", lw=1, label=f"critical SNR {critical:.2f}")
panel.set(xscale="log", xlabel="SNR of each stream in its band", ylabel="lag within 1/(2B)", ylim=(0, 1.03))
panel.legend(frameon=False)
panel.spines[["top", "right"]].set_visible(False)

# %%
difference = np.abs(np.interp(snr, fine, predicted) - hits)
print(f"largest difference above the critical SNR: {difference[snr > critical].max():.3f}")
print(f"below it, where the integral is only an approximation: {difference[snr <= critical].max():.3f}")
