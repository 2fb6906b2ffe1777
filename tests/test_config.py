"""Settings: each stands once, and Python and the command line refuse the same values with the same sentence."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest

from neurofuse.cli import main
from neurofuse.config import AlignConfig, DecodeConfig, Settings, StudyConfig, flags, label_of, named
from neurofuse.decode import decode_recording
from neurofuse.errors import NeurofuseError
from neurofuse.simulation import SimulationConfig, simulate

CONFIGS = (DecodeConfig, StudyConfig, AlignConfig)
# Setting, value in Python, words on the command line.
REFUSED = [
    ("n_steps", -3, "--steps=-3"),
    ("n_steps", 0, "--steps=0"),
    ("line_hz", 55, "--line-hz=55"),
    ("window_s", float("nan"), "--window=nan"),
    ("window_s", float("inf"), "--window=inf"),
    ("max_lag_s", -1.0, "--max-lag=-1"),
    ("token_s", 0.0, "--token=0"),
    ("seed", -1, "--seed=-1"),
    ("split_units", 0, "--split-units=0"),
    ("drift", -0.1, "--drift=-0.1"),
    ("jumps", float("nan"), "--jumps=nan"),
    ("skew_ppm", -5.0, "--skew=-5"),
    ("device", "gpu", "--device=gpu"),
    ("jitter", "nonsense:1", "--jitter=nonsense:1"),
    ("decoder", "nobody", "--decoder=nobody"),
    ("options", {"nothing": 1}, "--set=nothing=1"),
    ("options", {"width": "wide"}, "--set=width=wide"),
    ("options", {"width": -3}, "--set=width=-3"),
]


@pytest.fixture(scope="module")
def recording():
    config = SimulationConfig(duration_s=40.0, n_units=10, n_channels=3, lfp_rate_hz=500.0)
    return simulate(config=config, rng=np.random.default_rng(1))[0]


@pytest.mark.parametrize(("name", "value", "words"), REFUSED)
def test_python_and_the_command_line_refuse_with_one_sentence(
    name, value, words, recording, tmp_path, capsys
):
    with pytest.raises(NeurofuseError) as refused:
        decode_recording(recording, config=DecodeConfig(**{name: value}))
    with pytest.raises(SystemExit) as stop:
        main(["decode", "demo", words, "--out", str(tmp_path / "out")])
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"neurofuse: error: {refused.value}\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("config", CONFIGS)
def test_a_number_is_refused_by_every_configuration_that_has_it(config):
    for name, value, _ in REFUSED[:12]:
        with pytest.raises(NeurofuseError, match=f"^{name} "):
            config(**{name: value})


def test_a_lag_as_long_as_a_window_is_refused_where_windows_are_searched():
    for config in (DecodeConfig, StudyConfig):
        with pytest.raises(
            NeurofuseError, match=r"shorter than a window \(3 s\); lower max_lag_s \(--max-lag\)"
        ):
            config(max_lag_s=3.0)
        assert config(max_lag_s=3.0, window_s=4.0).max_lag_s == 3.0
    assert AlignConfig(max_lag_s=30.0).max_lag_s == 30.0


def test_a_drift_and_a_skew_are_not_given_together():
    for config in CONFIGS:
        with pytest.raises(
            NeurofuseError, match=r"drift \(--drift\) 0.1 and skew_ppm \(--skew\) 20 are both given"
        ):
            config(drift=0.1, skew_ppm=20.0)


def test_shares_that_leave_no_test_are_refused():
    with pytest.raises(NeurofuseError, match="leave nothing for the test"):
        DecodeConfig(train=0.8, validation=0.2)


def test_every_setting_stands_once_and_has_a_help_line():
    declared = [
        (name, kind.__name__)
        for kind in {base for config in CONFIGS for base in config.__mro__ if base is not object}
        for name in vars(kind).get("__annotations__", {})
    ]
    names = [name for name, _ in declared]
    assert len(set(names)) == len(names), sorted({d for d in declared if names.count(d[0]) > 1})
    for config in CONFIGS:
        used = [flag for flag, *_ in flags(config).values()]
        assert len(set(used)) == len(used)
        assert all(one.metadata["help"] for one in fields(config))


def test_what_the_three_configurations_share_has_the_same_defaults():
    for one in fields(Settings):
        assert len({getattr(config(), one.name) for config in CONFIGS}) == 1


def test_a_decoder_is_chosen_by_name_or_with_options():
    assert named("tracked") == ("tracked", {})
    assert named(["tracked", {"width": 32}]) == ("tracked", {"width": 32})
    assert label_of(("tracked", {"width": 32, "n_heads": 2})) == "tracked(width=32, n_heads=2)"
    with pytest.raises(NeurofuseError, match=r"write \('tracked', {'width': 32}\)"):
        named(3)
    with pytest.raises(NeurofuseError, match=r"decoder 'tracked\(width=32\)' is named twice"):
        StudyConfig(decoders=(("tracked", {"width": 32}), ("tracked", {"width": 32})))
