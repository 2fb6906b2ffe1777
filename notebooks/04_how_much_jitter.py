# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 04 How much jitter: a study and its threshold
#
# A study spoils a clean recording more and more, here with noise on the LFP, and tells the level at which a decoder has
# lost half of what alignment is worth. A real one trains at every one of ten levels, with five seeds
# (`protocols=("train-matched",)`); this one trains once and is tested at four, and says so in its intervals.

# %%
import os

import numpy as np

import neurofuse
from neurofuse.simulate import SimulationConfig, simulate

QUICK = os.environ.get("NEUROFUSE_QUICK") == "1"

recording, _ = simulate(
    config=SimulationConfig(duration_s=50.0 if QUICK else 100.0, n_units=16, n_channels=4, lfp_rate_hz=500.0),
    rng=np.random.default_rng([0, 7]),
)
config = neurofuse.StudyConfig(
    decoders=("softmax",),
    kinds=("noise",),
    levels={"noise": (0.5, 2.0, 8.0, 32.0)},
    protocols=("test-only",),
    base_lag="lag:0.15",
    n_seeds=1 if QUICK else 2,
    n_steps=4 if QUICK else 80,
    window_s=1.5,
    max_lag_s=0.3,
    token_s=0.05,
)
table = neurofuse.run_study(recording, config=config, jobs=0)
table.study

# %% [markdown]
# The table is an xarray Dataset; `.study` asks it the usual questions.

# %%
table.study.curve("r2").round(2)

# %%
panel = table.study.plot()

# %%
for found in table.study.thresholds(quantity="hit_rate"):
    print(found.model, found.measured, found.ci95, found.censored or "", found.note)
