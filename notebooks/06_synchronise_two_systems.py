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
# # 06 Synchronise two systems
#
# Two systems recorded one session, the pulse cable was out, and their clocks differ: the second was set ten minutes before
# and has run 500 ppm fast since, so it is 0.3 s ahead and drifting (real clocks drift ten times less). `align` needs no
# pulses, no movement and no stretch that is aligned already: a scan gives the start, and a network is
# trained on windows moved by known lags to find the lag of any window.

# %%
import os

import numpy as np

import neurofuse

QUICK = os.environ.get("NEUROFUSE_QUICK") == "1"
SMALL = {"duration_s": 80.0, "n_units": 12, "n_channels": 4, "lfp_rate_hz": 500.0}

recording, truth = neurofuse.simulate(
    neurofuse.parse_jitter("offset-skew:500"),
    config=neurofuse.SimulationConfig(**(SMALL if QUICK else {"duration_s": 240.0})),
    max_lag_s=1.0,
    rng=np.random.default_rng([0, 7]),
)
config = neurofuse.AlignConfig(
    method="ridge" if QUICK else "learned", model="linear", max_lag_s=1.0, n_steps=150
)
found = neurofuse.align(recording.but(movement=None), config=config)
found

# %%
time_s = np.linspace(*recording.span_s, 200)
axes = neurofuse.plot_clock(found, truth_s=(time_s, truth.at(time_s)))

# %%
error_ms = 1000 * np.abs(found.clock.lag_s(time_s) - truth.at(time_s))
print(f"{found.verdict}; largest error over the session {error_ms.max():.1f} ms")
aligned = found.apply(recording)
print(aligned)

# %% [markdown]
# `neurofuse.explore(recording, alignment=found)` shows in a live notebook what a lag changes.
