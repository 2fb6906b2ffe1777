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
# # 02 Decode movement
#
# The LFP's clock wanders by a fifth of a second, and no lag is given to the decoder: it estimates the lag at every
# moment and reads the LFP through it. `decode_recording` trains on the first part and scores the last.

# %%
import os

import numpy as np

import neurofuse

QUICK = os.environ.get("NEUROFUSE_QUICK") == "1"
SMALL = {"duration_s": 40.0, "n_units": 12, "n_channels": 4, "lfp_rate_hz": 500.0}

recording, truth = neurofuse.simulate(
    neurofuse.demo_law("demo:walk"),
    config=neurofuse.SimulationConfig(**(SMALL if QUICK else {"duration_s": 150.0})),
    rng=np.random.default_rng([0, 7]),
)
config = neurofuse.DecodeConfig(n_steps=4 if QUICK else 200, window_s=1.0 if QUICK else 2.0)
result = neurofuse.decode_recording(recording, config=config, truths={truth.clock: truth})
result

# %%
start_s = float(result.prediction["time"][0])
axes = neurofuse.plot_decoded(result.prediction, stop_s=start_s + 10)

# %%
panel = neurofuse.plot_trajectory(result.prediction, stop_s=start_s + 10)

# %% [markdown]
# Attention: the posterior over lags, with the planted lag dashed.

# %%
panel = neurofuse.plot_attention(result.alignment)

# %%
print(f"R2 {result.metrics['r2_mean']:.2f}, ridge {result.metrics['baseline_ridge_r2_mean']:.2f}")
print(f"lag within 50 ms in {100 * result.metrics['lag_hit_rate']:.0f} % of the test time")
