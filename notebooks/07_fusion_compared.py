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

QUICK = os.environ.get("NEUROFUSE_QUICK") == "1"
SMALL = {"duration_s": 40.0, "n_units": 12, "n_channels": 4, "lfp_rate_hz": 500.0}
N_STEPS = 3 if QUICK else 60
NAMES = ("ridge", "early", "late", "early-attention", "softmax", "softmax-bidirectional", "tracked", "oracle")


def windows_of(simulation: neurofuse.SimulationConfig, *, jitter: str | None):
    recording, _ = neurofuse.simulate(config=simulation, rng=np.random.default_rng([0, 7]))
    config = neurofuse.DecodeConfig(token_s=0.05, window_s=1.5, max_lag_s=0.4, jitter=jitter)
    return neurofuse.prepare_recording(recording, config=config).split


def fitted(name: str, parts):
    few = {} if name == "ridge" else {"n_steps": N_STEPS}
    return neurofuse.make_decoder(name, seed=0, **few).fit(parts.train, validation=parts.validation)


config = neurofuse.SimulationConfig(**(SMALL if QUICK else {"duration_s": 90.0}))
parts = windows_of(config, jitter="lag:0.15")
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
# In `DOMINANCE` the units predict both axes nearly by themselves, and only a few noisy channels hold the rest. A decoder
# that was never trained on one clock alone depends on the spikes; with modality dropout in training it decodes on when a
# clock fails.

# %%
parts = windows_of(neurofuse.SimulationConfig(**SMALL) if QUICK else neurofuse.DOMINANCE, jitter=None)
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
