"""What many tests share: a tiny recording on two clocks, and the real recordings where there are any."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from neurofuse.config import FeatureConfig
from neurofuse.features import lfp_features
from neurofuse.recording import Recording, Signal
from neurofuse.simulation import SimulationConfig, simulate

# Small matrices: more threads only get into each other's way.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny() -> Recording:
    """24 s of spikes and movement on clock `array` and LFP power on clock `logger`; the clocks agree."""
    config = SimulationConfig(duration_s=24.0, n_units=12, n_channels=3, lfp_rate_hz=500.0)
    recording, _ = simulate(config=config, rng=np.random.default_rng(0))
    lfp = recording["lfp"]
    assert isinstance(lfp, Signal)
    bands = (("lmp", 0.0, 5.0), ("high_gamma", 70.0, 150.0))
    power = lfp_features(lfp, config=FeatureConfig(bands=bands))
    return recording.but(streams=(recording["spikes"], power), did="LFP turned into power")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real recordings, or a skip that says how to point to it."""
    folder = Path(os.environ.get("NEUROFUSE_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real recordings at {folder}; set NEUROFUSE_DATA")
    return folder
