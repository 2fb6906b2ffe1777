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
# # 08 Your own data in ten lines
#
# Three files from three systems, as a laboratory has them: spike times with their units, an LFP matrix, and a table of
# the hand. The first cell only writes them; yours are there already.

# %%
import os
from pathlib import Path
from tempfile import mkdtemp

import numpy as np

import neurofuse

QUICK = os.environ.get("NEUROFUSE_QUICK") == "1"
SMALL = {"duration_s": 40.0, "n_units": 12, "n_channels": 4, "lfp_rate_hz": 500.0}

folder = Path(mkdtemp())
session, _ = neurofuse.simulate(
    neurofuse.demo_law("demo:offset"),
    config=neurofuse.SimulationConfig(**(SMALL | ({} if QUICK else {"duration_s": 150.0, "n_units": 48}))),
    rng=np.random.default_rng([0, 7]),
)
spikes, lfp = session["spikes"], session["lfp"]
np.savez(folder / "units.npz", spike_times=spikes.times_s, unit_id=spikes.unit)
np.savez(folder / "field.npz", lfp=lfp.data.values, t=lfp.time_s)
hand = session.movement.data.to_pandas().rename_axis("time").reset_index()
hand.to_csv(folder / "hand.csv", index=False)

# %% [markdown]
# The ten lines:

# %%
recording = neurofuse.load(
    None, spikes=folder / "units.npz", lfp=folder / "field.npz", movement=f"{folder / 'hand.csv'}::vx,vy"
)
config = neurofuse.DecodeConfig(window_s=1.0 if QUICK else 2.0, n_steps=4 if QUICK else 150)
result = neurofuse.decode_recording(recording, config=config)
start_s = float(result.prediction["time"][0])
axes = neurofuse.plot_decoded(result.prediction, stop_s=start_s + 10)
print({axis: round(value, 2) for axis, value in result.metrics["r2"].items()})

# %%
recording
