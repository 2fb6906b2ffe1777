"""Gradients on their way from the loss to each module: norms, path lengths, reach in time, and through training."""

import numpy as np
import pytest
import torch
from sklearn.base import clone
from torch import nn

from neurofuse.decoders.gradients import gradient_over_time, gradient_path, watch_gradients
from neurofuse.decoders.neural import TorchDecoder
from neurofuse.decoders.registry import make_decoder
from neurofuse.errors import NeurofuseError
from neurofuse.recording import Movement, Recording, Signal
from neurofuse.tokens import tokenize
from neurofuse.windows import split_windows

torch.set_num_threads(1)


class StackDecoder(TorchDecoder):
    """A linear map, `n_layers` times a linear map and tanh, a linear map; of the token `ahead` of the decoded one."""

    name = "stack"

    def __init__(self, *, n_layers=3, skip=False, ahead=0, **training):
        super().__init__(**training)
        self.n_layers = n_layers
        self.skip = skip
        self.ahead = ahead

    def build_network(self, n_inputs, n_axes, max_lag):
        return StackNetwork(sum(n_inputs), n_axes, self.width, self.n_layers, self.skip, self.ahead)


class StackNetwork(nn.Module):
    def __init__(self, n_inputs, n_axes, width, n_layers, skip, ahead):
        super().__init__()
        self.embed = nn.Linear(n_inputs, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(n_layers))
        self.output = nn.Linear(width, n_axes)
        self.skip, self.ahead = skip, ahead

    def forward(self, values, present, reach):
        h = self.embed(torch.cat(values, -1))
        for layer in self.layers:
            h = layer(h).tanh() + (h if self.skip else 0)
        return self.output(h).roll(-self.ahead, 1)[:, reach:-reach], None


def recording(seconds=40.0):
    rng = np.random.default_rng(0)
    n = int(seconds / 0.05)
    time_s = np.arange(n) * 0.05
    movement = rng.standard_normal((n, 2))
    streams = tuple(
        Signal.from_array(
            movement @ rng.standard_normal((2, 4)) + rng.standard_normal((n, 4)),
            clock=c,
            name=c,
            time_s=time_s,
            kind="power",
        )
        for c in "ab"
    )
    return Recording("two", "a", streams, Movement.from_array(movement, time_s=time_s))


@pytest.fixture(scope="module")
def parts():
    return split_windows(tokenize(recording()), window_s=2.0, max_lag_s=0.3, rng=np.random.default_rng(0))


def test_the_gradient_at_every_layer_is_that_of_the_chain_rule(parts):
    decoder = StackDecoder(width=8, n_layers=2, n_steps=5, dropout=0.0)
    decoder.fit(parts.train, validation=parts.validation)
    found = gradient_path(decoder, parts.test)
    assert list(found["module"].values) == ["movement", "output", "layers.1", "layers.0", "embed"]
    scaled = (x - decoder.movement_scale_.mean for x in (decoder.predict(parts.test), parts.test.movement))
    predicted, target = (x / decoder.movement_scale_.std for x in scaled)
    at_movement = 2 * (predicted - target) / predicted.size
    weight = {k: v.detach().numpy().astype(float) for k, v in decoder.network_.named_parameters()}
    batch = parts.test.batch(slice(None))
    inside = slice(parts.test.reach, -parts.test.reach)
    x = np.concatenate(
        [
            (v - s.mean) / s.std * p[..., None]
            for v, s, p in zip(batch.values, decoder.input_scales_, batch.present, strict=True)
        ],
        -1,
    )[:, inside]
    before = {"layers.0": x @ weight["embed.weight"].T + weight["embed.bias"]}
    before["layers.0"] = before["layers.0"] @ weight["layers.0.weight"].T + weight["layers.0.bias"]
    before["layers.1"] = np.tanh(before["layers.0"]) @ weight["layers.1.weight"].T + weight["layers.1.bias"]
    expected = {"movement": at_movement, "output": at_movement}
    expected["layers.1"] = (at_movement @ weight["output.weight"]) / np.cosh(before["layers.1"]) ** 2
    expected["layers.0"] = (expected["layers.1"] @ weight["layers.1.weight"]) / np.cosh(
        before["layers.0"]
    ) ** 2
    expected["embed"] = expected["layers.0"] @ weight["layers.0.weight"]
    for name, gradient in expected.items():
        assert float(found["gradient_norm"].sel(module=name)) == pytest.approx(
            np.linalg.norm(gradient), rel=1e-4
        )
    np.testing.assert_allclose(
        found["relative_norm"], found["gradient_norm"] / np.linalg.norm(at_movement), 1e-4
    )
    # No gradient and no hook is left.
    assert all(p.grad is None for p in decoder.network_.parameters())
    assert not any(m._forward_hooks for m in decoder.network_.modules())


@pytest.mark.parametrize("skip", [False, True])
def test_a_skip_makes_the_path_short_but_not_its_longest_way(parts, skip):
    found = gradient_path(StackDecoder(width=8, n_layers=6, skip=skip), parts.test)
    at = {name: found.sel(module=name) for name in found["module"].values}
    assert int(at["output"]["longest"]) == 0
    assert [int(at[f"layers.{k}"]["longest"]) for k in range(6)] == [6, 5, 4, 3, 2, 1]
    assert int(at["embed"]["longest"]) == 6
    assert int(at["embed"]["shortest"]) == (0 if skip else 6)
    assert int(at["layers.0"]["shortest"]) == (1 if skip else 6)


def test_the_gradient_vanishes_in_a_plain_stack_and_not_in_one_with_skips(parts):
    def reaching(skip, n_layers):
        found = gradient_path(StackDecoder(width=16, n_layers=n_layers, skip=skip), parts.test)
        return float(found["relative_norm"].sel(module="embed"))

    assert reaching(False, 16) < 1e-3 * reaching(False, 2)
    assert reaching(True, 16) > 0.5 * reaching(True, 2)


@pytest.mark.parametrize("name", ["early", "softmax", "tracked"])
def test_the_path_ends_at_the_first_layer_of_every_stream(name, parts):
    found = gradient_path(make_decoder(name, width=16), parts.test)
    firsts = ["encoder.embed"] if name == "early" else ["encoders.0.embed", "encoders.1.embed"]
    for first in firsts:
        at = found.sel(module=first)
        assert 0 < float(at["relative_norm"]) < 10
        assert int(at["shortest"]) == 1  # skips all the way, but for the activation before the last layer
        assert int(at["longest"]) > 4
    assert found["module"].values[0] == "movement"
    if name != "early":
        # Read by value, the other stream's encoder is as near to the loss as the anchor's own.
        near = found["shortest"].sel(module=["encoders.0", "encoders.1"])
        assert int(near[0]) == int(near[1]) == 1


def test_an_unfitted_decoder_is_measured_at_its_initial_weights(parts):
    few = parts.train[::4]
    decoder = make_decoder(
        "early", width=8, dropout=0.0, modality_dropout=0.0, n_steps=1, batch_size=len(few)
    )
    fresh = gradient_path(decoder, few)
    assert not hasattr(decoder, "network_")
    with watch_gradients(decoder) as watch:
        decoder.fit(few, validation=parts.validation)
    first = watch.table().isel(step=0)["gradient_norm"]
    for name in first["module"].values:
        assert float(first.sel(module=name)) == pytest.approx(
            float(fresh["gradient_norm"].sel(module=name)), rel=1e-4
        )


def test_watching_changes_nothing_and_leaves_nothing_behind(parts):
    # Every stream in every window, so that every module learns at every step.
    whole = {"modality_dropout": 0.0, "mismatched": 0.0}
    decoder = make_decoder("tracked", width=8, n_steps=12, check_every=5, batch_size=8, **whole)
    unwatched = clone(decoder).fit(parts.train, validation=parts.validation)
    with watch_gradients(decoder) as watch:
        decoder.fit(parts.train, validation=parts.validation)
    np.testing.assert_array_equal(decoder.predict(parts.test), unwatched.predict(parts.test))
    table = watch.table()
    assert list(table["step"].values) == list(range(1, 13))
    assert {"encoders.0.embed", "encoders.1", "attentions.0.key", "head.output"} <= set(
        table["module"].values
    )
    assert np.isfinite(table["gradient_norm"]).all()
    assert (table["gradient_norm"] > 0).all()
    gradient_path(decoder, parts.test)
    clone(decoder).fit(parts.train, validation=parts.validation)
    decoder.fit(parts.train, validation=parts.validation)
    assert watch.table().identical(table)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in decoder.network_.modules())
    assert "build_network" not in vars(decoder)


def test_a_fit_that_fails_is_no_longer_watched(parts):
    decoder = make_decoder("early", width=8)
    with pytest.raises(NeurofuseError, match="no training windows"), watch_gradients(decoder) as watch:
        decoder.fit(parts.train[:0])
    assert "build_network" not in vars(decoder)
    assert watch.table().sizes["step"] == 0


def test_the_gradient_over_time_is_at_the_token_that_was_read(parts):
    for ahead in (-4, 0, 5):
        found = gradient_over_time(StackDecoder(width=8, ahead=ahead), parts.test)["gradient_norm"]
        assert list(found["clock"].values) == ["a", "b"]
        for k in range(2):
            reached = found["offset"].values[found.values[k] > 0]
            np.testing.assert_allclose(reached, [0.05 * ahead], atol=1e-9)


def test_cross_attention_reaches_every_lag_alike_and_a_causal_decoder_no_later_token(parts):
    found = gradient_over_time(make_decoder("softmax", width=16, dilations=(1,), kernel=1), parts.test)
    b = found["gradient_norm"].sel(clock="b")
    searched = b[np.abs(b["offset"]) <= 0.3 + 1e-9]
    assert (searched > 0).all()
    # Before training no lag is preferred: far ones are reached as well as near ones, up to chance.
    far, near = searched[np.abs(searched["offset"]) > 0.2], searched[np.abs(searched["offset"]) < 0.1]
    assert 0.3 < float(far.mean() / near.mean()) < 3
    causal = gradient_over_time(make_decoder("early", width=8, causal=True), parts.test)["gradient_norm"]
    # Of the anchor the past and present only; of the other clock, time stamps up to the largest lag ahead.
    assert (causal.sel(clock="a")[causal["offset"] > 0.01] == 0).all()
    assert (causal.sel(clock="b")[causal["offset"] > 0.31] == 0).all()
    assert (causal[:, np.abs(causal["offset"]) < 0.01] > 0).all()


def test_decoders_without_a_gradient_are_refused(parts):
    ridge = make_decoder("ridge")
    for measure in (gradient_path, gradient_over_time):
        with pytest.raises(
            NeurofuseError, match=r"'ridge' is not trained by gradient descent.*such as 'tracked'"
        ):
            measure(ridge, parts.test)
        with pytest.raises(NeurofuseError, match="no windows to send a gradient through"):
            measure(make_decoder("early"), parts.test[:0])
    with pytest.raises(NeurofuseError, match="not trained by gradient descent"), watch_gradients(ridge):
        pass
