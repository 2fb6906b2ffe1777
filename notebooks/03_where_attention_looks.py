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
# # 03 Where the spotlight looks
#
# Attention here is a posterior over lags, so it can be asked three things: did it lie on the truth, did it stay there,
# and did it know how sure to be. What the decoder leans on is another question, answered by masking.

# %%
import os

import numpy as np

import neurofuse
from neurofuse.decode import prepare
from neurofuse.jitters.lag_laws import WindowLag
from neurofuse.report.figures import (
    plot_attention_quality,
    plot_contribution,
    plot_tuning,
    plot_window_attention,
)
from neurofuse.simulation import SimulationConfig, simulate
from neurofuse.tuning import tuning
from neurofuse.windows import split_windows

QUICK = os.environ.get("NEUROFUSE_QUICK") == "1"
SMALL = {"duration_s": 40.0, "n_units": 12, "n_channels": 4, "lfp_rate_hz": 500.0}

recording, _ = simulate(
    config=SimulationConfig(**(SMALL if QUICK else {"duration_s": 150.0})), rng=np.random.default_rng([0, 7])
)
tokens = neurofuse.tokenize(prepare(recording, neurofuse.DecodeConfig()).featured)
parts = split_windows(
    tokens,
    window_s=1.0 if QUICK else 2.0,
    max_lag_s=0.4,
    jitter=WindowLag(0.15),
    rng=np.random.default_rng(0),
)
decoder = neurofuse.make_decoder("tracked", n_steps=4 if QUICK else 200, seed=0)
decoder.fit(parts.train, validation=parts.validation)
decoder

# %% [markdown]
# Every window carries a lag of its own. One of them:

# %%
looked = neurofuse.attention(decoder, parts.test)
panel = plot_window_attention(looked, window=1)

# %% [markdown]
# All of them, in numbers: mass on the truth, hits, anomalies (it looked elsewhere), flicker.

# %%
scores = neurofuse.attention_scores(looked)
axes = plot_attention_quality(scores)

# %% [markdown]
# What R2 is lost when a clock is masked:

# %%
lost = neurofuse.contribution(decoder, parts.test)
panel = plot_contribution(lost)

# %% [markdown]
# And what each unit, channel and band knows by itself:

# %%
axes = plot_tuning(tuning(tokens))
