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
# # 01 Load any recording
#
# A `Recording` holds spikes, LFP and movement, each on the clock of the system that recorded it. Here two systems write
# a file each, and both are read back. With files of your own, only the paths change.

# %%
from pathlib import Path
from tempfile import mkdtemp

import numpy as np

import neurofuse

folder = Path(mkdtemp())
simulated, _ = neurofuse.simulate(
    neurofuse.demo_law("demo:offset"),
    config=neurofuse.SimulationConfig(duration_s=30.0),
    rng=np.random.default_rng(0),
)
array, logger = neurofuse.two_files(simulated)
neurofuse.save(array, folder / "array.nwb")
neurofuse.save(logger, folder / "logger.nwb")

# %% [markdown]
# What is in a file, without reading it all:

# %%
print(neurofuse.info(folder / "array.nwb"))

# %% [markdown]
# Both files, each on a clock of its own. Movement is on the reference clock.

# %%
recording = neurofuse.load([folder / "array.nwb", folder / "logger.nwb"])
recording

# %% [markdown]
# Parts are picked by name; nothing is ever edited in place.

# %%
few = neurofuse.load(folder / "logger.nwb", lfp="ch00,ch05")
print(few)

# %%
axes = neurofuse.plot_recording(recording, stop_s=6)
