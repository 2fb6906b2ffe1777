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
# # 03 Where attention looks
#
# Attention here is a posterior over lags, and is scored as one: does it lie on the true lag, does it stay there, and is it
# calibrated. How much the decoder depends on each clock is measured by masking.

# %%
import os

import numpy as np

import neurofuse

QUICK = os.environ.get("NEUROFUSE_QUICK") == "1"
SMALL = {"duration_s": 40.0, "n_units": 12, "n_channels": 4, "lfp_rate_hz": 500.0}

recording, _ = neurofuse.simulate(
    config=neurofuse.SimulationConfig(**(SMALL if QUICK else {"duration_s": 150.0})),
    rng=np.random.default_rng([0, 7]),
)
config = neurofuse.DecodeConfig(window_s=1.0 if QUICK else 2.0, max_lag_s=0.4, jitter="lag:0.15")
prepared = neurofuse.prepare_recording(recording, config=config)
parts = prepared.split
decoder = neurofuse.make_decoder("tracked", n_steps=4 if QUICK else 200, seed=0)
decoder.fit(parts.train, validation=parts.validation)
decoder

# %% [markdown]
# Every window carries a lag of its own. One of them:

# %%
table = neurofuse.attention(decoder, parts.test)
panel = neurofuse.plot_window_attention(table, window=1)

# %% [markdown]
# All of them, in numbers: mass on the truth, hits, anomalies (the most probable lag is another one), flicker.

# %%
scores = neurofuse.attention_scores(table)
axes = neurofuse.plot_attention_quality(scores)

# %% [markdown]
# What R2 is lost when a clock is masked:

# %%
lost = neurofuse.contribution(decoder, parts.test)
panel = neurofuse.plot_contribution(lost)

# %% [markdown]
# And how much of each unit, channel and band movement explains by itself:

# %%
axes = neurofuse.plot_tuning(neurofuse.unit_tuning(prepared.tokens))
