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
# # 04 How much jitter: a study and its threshold
#
# A study plants growing errors in a clean recording, here noise on the LFP, and measures the level at which a decoder
# finds only half of the lags. A real one trains at every one of ten levels, with five seeds (`protocols=("train-matched",)`),
# beside the decoders between which a gain in R2 is measured; this one trains three times, on clean LFP, and is tested at
# five levels. Theory is about an observer to which the noise is known: its level lies above that of a decoder never trained on noise.

# %%
import os

import numpy as np

import neurofuse

QUICK = os.environ.get("NEUROFUSE_QUICK") == "1"

SMALL = {"duration_s": 50.0, "n_units": 16, "n_channels": 4, "lfp_rate_hz": 500.0}

recording, _ = neurofuse.simulate(
    config=neurofuse.SimulationConfig(**(SMALL if QUICK else {"duration_s": 180.0})),
    rng=np.random.default_rng([0, 7]),
)
config = neurofuse.StudyConfig(
    decoders=("tracked",),
    references=False,
    kinds=("noise",),
    levels={"noise": (0.1, 0.3, 1.0, 3.0, 10.0)},
    protocols=("test-only",),
    base_lag="lag:0.15",
    n_seeds=1 if QUICK else 3,
    n_steps=4 if QUICK else 200,
    window_s=3.0,
    max_lag_s=0.4,
    token_s=0.05,
)
table = neurofuse.run_study(recording, config=config, jobs=0)
table.study

# %% [markdown]
# The table is an xarray Dataset; `.study` has its curves, thresholds and figures.

# %%
table.study.curve("hit_rate").round(2)

# %%
panels = table.study.plot_attention_quality()

# %%
for found in table.study.thresholds(quantity="hit_rate"):
    print(found.model, found.measured, found.ci95, found.censored or "", found.note)
