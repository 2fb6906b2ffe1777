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
# # 07 Fusion compared, and modality dominance
#
# The same windows with the same unknown lags for every decoder: joined before the network (`early`), after it (`late`),
# self-attention over joined tokens (`early-attention`), cross-attention one way and both (`softmax`,
# `softmax-bidirectional`), and cross-attention through a tracked lag (`tracked`). One seed and few steps: a sketch of
# the table in the README, not the table.

# %%
import os

import numpy as np
from matplotlib import pyplot as plt

import neurofuse
from neurofuse.decode import prepare
from neurofuse.jitters.lag_laws import WindowLag
from neurofuse.simulation import DOMINANCE, SimulationConfig, simulate
from neurofuse.windows import split_windows

QUICK = os.environ.get("NEUROFUSE_QUICK") == "1"
SMALL = {"duration_s": 40.0, "n_units": 12, "n_channels": 4, "lfp_rate_hz": 500.0}
N_STEPS = 3 if QUICK else 60
NAMES = ("ridge", "early", "late", "early-attention", "softmax", "softmax-bidirectional", "tracked", "oracle")


def windows_of(config: SimulationConfig, *, lag_s: float):
    recording, _ = simulate(config=config, rng=np.random.default_rng([0, 7]))
    ready = prepare(recording, neurofuse.DecodeConfig()).featured
    tokens = neurofuse.tokenize(ready, token_s=0.05)
    jitter = WindowLag(lag_s) if lag_s else None
    return split_windows(tokens, window_s=1.5, max_lag_s=0.4, jitter=jitter, rng=np.random.default_rng(0))


def fitted(name: str, parts):
    few = {} if name == "ridge" else {"n_steps": N_STEPS}
    return neurofuse.make_decoder(name, seed=0, **few).fit(parts.train, validation=parts.validation)


config = SimulationConfig(**(SMALL if QUICK else {"duration_s": 90.0}))
parts = windows_of(config, lag_s=0.15)
r2 = {name: fitted(name, parts).score(parts.test) for name in NAMES}

# %%
figure, panel = plt.subplots(figsize=(6, 3.2), layout="constrained")
panel.barh(list(r2), list(r2.values()), color="#0072B2")
panel.invert_yaxis()
panel.set_xlabel("R2, every window under a lag of its own, N(0, 0.15 s)")
panel.spines[["top", "right"]].set_visible(False)

# %% [markdown]
# ## One modality dominates
#
# In `DOMINANCE` the units tell both axes nearly by themselves, and only a few noisy channels tell the rest. A decoder
# that never met one clock alone leans on the spikes; modality dropout in training makes it hold when a clock fails.

# %%
parts = windows_of(SimulationConfig(**SMALL) if QUICK else DOMINANCE, lag_s=0.0)
table = {}
for dropout in (0.0, 0.3):
    steps = {"n_steps": N_STEPS, "modality_dropout": dropout}
    decoder = neurofuse.make_decoder("early", seed=0, **steps).fit(parts.train, validation=parts.validation)
    lost = neurofuse.contribution(decoder, parts.test)
    table[dropout] = {
        str(part): round(float(value), 2)
        for part, value in zip(lost["part"].values, lost["r2_without"].mean("axis").values, strict=True)
    } | {"nothing": round(float(lost["r2"].mean()), 2)}
for dropout, row in table.items():
    print(f"modality dropout {dropout}: R2 without {row}")
