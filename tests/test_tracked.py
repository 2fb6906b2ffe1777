"""The rates that the tracked decoder starts from, in physical units."""

import json

import numpy as np
import pytest
import torch
from test_decoders import cut, quick, two_systems

from neurofuse.decoders.base import Decoder
from neurofuse.errors import NeurofuseError
from neurofuse.jitters.lag_laws import Walk

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def parts():
    return cut(two_systems())


def start(parts, **more):
    """Drift and jumps before any training, s per root second and per second."""
    decoder = quick("tracked", unimodal=False, **more)
    decoder.token_s_ = parts.train.tokens.token_s
    network = decoder.build_network([9, 9], 2, 10)
    return network.lag_attentions[0].hmm.rates.in_seconds(decoder._grid())


def test_rates_start_where_they_are_set(parts):
    token_s = parts.train.tokens.token_s  # 50 ms, in blocks of 4
    by_default = start(parts)
    assert by_default == pytest.approx((0.3 * token_s / np.sqrt(4 * token_s), 0.01 / (4 * token_s)), rel=1e-5)
    assert start(parts, drift=0.01, jumps=0.2) == pytest.approx((0.01, 0.2), rel=1e-5)
    assert start(parts, drift=0.01, fine_lags_per_token=2) == pytest.approx((0.01, by_default[1]), rel=1e-5)
    # A skew that makes less than a step per block: the root of skew times step.
    assert start(parts, skew_ppm=20) == pytest.approx((np.sqrt(20e-6 * token_s), by_default[1]), rel=1e-4)
    assert start(parts, skew_ppm=-20) == start(parts, skew_ppm=20)


@pytest.mark.parametrize("adapt", [True, False])
def test_rates_are_learned_and_adapted_unless_they_are_fixed(adapt, tmp_path):
    walk = cut(two_systems(), jitter=Walk(0.1))
    decoder = quick("tracked", drift=0.01, jumps=0.02, adapt_rates=adapt, unimodal=False)
    decoder.fit(walk.train, validation=walk.validation)
    hmm = decoder.network_.lag_attentions[0].hmm
    assert bool(hmm.calibrated)
    moved = abs(np.log(hmm.rates.in_seconds(decoder._grid())[0] / 0.01))
    prediction = decoder.decode_session(walk.test)
    found = prediction.rates["b"]
    if adapt:
        assert moved > 0.1
        assert abs(np.log(found.drift / 0.01)) > 0.1
    else:
        assert moved < 1e-5
        assert (found.drift, found.jumps) == pytest.approx((0.01, 0.02), rel=1e-5)
    # They are kept with the decoder.
    decoder.save_pretrained(tmp_path / "kept")
    assert json.loads((tmp_path / "kept" / "config.json").read_text())["parameters"]["adapt_rates"] is adapt
    again = Decoder.from_pretrained(tmp_path / "kept").decode_session(walk.test)
    np.testing.assert_array_equal(again.movement, prediction.movement)
    assert again.rates == prediction.rates


def test_a_session_without_information_keeps_the_given_rates_and_not_the_learned_ones(parts):
    walk = cut(two_systems(), jitter=Walk(0.1))
    decoder = quick("tracked", drift=0.004, jumps=0.01, unimodal=False)
    decoder.fit(walk.train, validation=walk.validation)
    hmm = decoder.network_.lag_attentions[0].hmm
    assert bool(hmm.calibrated)
    with torch.no_grad():
        hmm.log_inverse_temperature -= 30
        hmm.log_drift += 0.1
    assert hmm.rates.in_seconds(decoder._grid())[0] > 0.01
    found = decoder.decode_session(parts.test).rates["b"]
    assert (found.drift, found.jumps) == pytest.approx((0.004, 0.01), rel=0.05)


@pytest.mark.parametrize("name", ["constant", "softmax", "oracle"])
def test_rates_without_effect_are_refused(name, parts):
    with pytest.raises(
        NeurofuseError, match=f"'{name}' has no lag that drifts or jumps, so jumps has no effect"
    ):
        quick(name, jumps=0.1).fit(parts.train, validation=parts.validation)


def test_settings_that_make_no_sense_are_refused(parts):
    for more, sentence in (
        ({"drift": 0.01, "skew_ppm": 20.0}, "are both given.*give one"),
        ({"drift": 5.0}, "more than the 6 that can be tracked"),
        ({"tokens_per_block": 0}, "tokens_per_block must be a positive whole number, got 0"),
        ({"fine_lags_per_token": 0}, "fine_lags_per_token must be a positive whole number, got 0"),
    ):
        with pytest.raises(NeurofuseError, match=sentence):
            quick("tracked", **more).fit(parts.train, validation=parts.validation)
