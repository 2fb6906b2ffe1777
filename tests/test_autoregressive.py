"""Movement predicted chunk by chunk: free-running, with teacher forcing, and with scheduled sampling."""

import numpy as np
import pytest
import torch
from sklearn.base import clone
from test_decoders import cut, two_systems

from neurofuse.decoders.autoregressive import (
    ANCHOR_BAND,
    AutoregressiveDecoder,
    AutoregressiveNetwork,
    error_by_step,
)
from neurofuse.decoders.registry import make_decoder
from neurofuse.errors import NeurofuseError
from neurofuse.nets.encoders import initialise
from neurofuse.windows import EDGE_TOKENS

MAX_LAG, N_TOKENS = 3, 22
REACH = MAX_LAG + EDGE_TOKENS


def network(*, chunk=4, causal=False, n_inputs=(5, 4), seed=0):
    net = AutoregressiveNetwork(
        list(n_inputs),
        2,
        MAX_LAG if len(n_inputs) > 1 else 0,
        width=16,
        n_heads=2,
        head_width=8,
        kernel=3,
        dilations=(1, 2),
        dropout=0.0,
        chunk=chunk,
        n_history=6,
        causal=causal,
    )
    generator = torch.Generator().manual_seed(seed)
    initialise(net, generator)
    for p in net.parameters():  # zeros would hide mistakes
        p.data += 0.1 * torch.randn(p.shape, generator=generator)
    return net.eval()


def inputs(*, n_inputs=(5, 4), seed=1, reach=REACH):
    generator = torch.Generator().manual_seed(seed)
    values = [torch.randn(3, N_TOKENS + 2 * reach, n, generator=generator) for n in n_inputs]
    return values, [torch.ones(x.shape[:2], dtype=torch.bool) for x in values], reach


def step_by_step(net, values, present, reach):
    """The slow way: everything is computed anew for every chunk, given the movement predicted before it."""
    movement = torch.full((len(values[0]), N_TOKENS, 2), torch.nan)
    for start in range(0, N_TOKENS, net.chunk):
        stop = min(start + net.chunk, N_TOKENS)
        movement[:, start:stop] = net.forced(values, present, reach, movement)[0][:, start:stop]
    return movement


@pytest.mark.parametrize("chunk", [1, 4, 22, 30])
@pytest.mark.parametrize("causal", [False, True])
def test_free_running_is_the_slow_way_only_faster(chunk, causal):
    net, given = network(chunk=chunk, causal=causal), inputs()
    with torch.no_grad():
        free, attention = net(*given)
        slow = step_by_step(net, *given)
        forced, forced_attention = net.forced(*given, free)
    torch.testing.assert_close(free, slow, atol=1e-5, rtol=1e-5)
    # Given its own prediction, it predicts and attends the same.
    torch.testing.assert_close(forced, free, atol=1e-5, rtol=1e-5)
    for a, b in zip(attention.weights, forced_attention.weights, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_movement_depends_on_movement_before_it_and_not_after():
    net, given = network(chunk=4), inputs()
    history = torch.randn(3, N_TOKENS, 2, generator=torch.Generator().manual_seed(2))
    other = history.clone()
    other[:, 9] += 1.0  # in the third chunk
    with torch.no_grad():
        (was, attended), (now, attends) = net.forced(*given, history), net.forced(*given, other)
    torch.testing.assert_close(was[:, :12], now[:, :12], atol=0, rtol=0)
    assert (was[:, 12:16] - now[:, 12:16]).abs().amax() > 1e-3
    # It changes the attention, too.
    assert (attended.weights[1] - attends.weights[1])[:, :, 12:16].abs().amax() > 1e-4


def test_weights_cover_every_band_and_sum_to_one_over_all_clocks():
    net = network()
    with torch.no_grad():
        attention = net(*inputs())[1]
    assert [w.shape for w in attention.weights] == [
        (3, 2, N_TOKENS, 2 * ANCHOR_BAND + 1),
        (3, 2, N_TOKENS, 2 * MAX_LAG + 1),
    ]
    total = sum(w.sum(-1) for w in attention.weights)
    torch.testing.assert_close(total, torch.ones_like(total))
    other = attention.weights[1].sum(1)
    torch.testing.assert_close(attention.p_lag[0], other / other.sum(-1, keepdim=True))


@pytest.mark.parametrize("causal", [False, True])
def test_a_causal_network_does_not_read_the_future(causal):
    net, (values, present, reach) = network(causal=causal), inputs()
    moment = 10
    later = [x.clone() for x in values]
    later[0][:, reach + moment :] += 3.0
    later[1][:, reach + moment + MAX_LAG :] += 3.0
    with torch.no_grad():
        was, now = net(values, present, reach)[0], net(later, present, reach)[0]
    assert torch.equal(was[:, :moment], now[:, :moment]) == causal
    assert (was[:, moment:] - now[:, moment:]).abs().amax() > 1e-3


def test_far_tokens_are_never_read():
    """A step reads one band: tokens beyond it and beyond the reach of its encoder change nothing."""
    net, (values, present, reach) = network(n_inputs=(5,)), inputs(n_inputs=(5,), reach=EDGE_TOKENS)
    reach_encoder = 3  # kernel 3 with dilations 1 and 2, to each side
    history = torch.full((3, N_TOKENS, 2), torch.nan)
    with torch.no_grad():
        was = net.forced(values, present, reach, history)[0][:, 0]
        for beyond, same in ((1, True), (0, False)):
            far = [x.clone() for x in values]
            far[0][:, reach + ANCHOR_BAND + reach_encoder + beyond :] = 9.0
            now = net.forced(far, present, reach, history)[0][:, 0]
            assert torch.equal(was, now) == same


@pytest.fixture(scope="module")
def fitted():
    parts = cut(two_systems())
    decoder = make_decoder("autoregressive", width=16, n_steps=60, check_every=30, batch_size=8)
    return decoder.fit(parts.train, validation=parts.validation), parts


def test_the_error_by_step_has_a_row_per_step_and_agrees_with_the_score(fitted):
    decoder, parts = fitted
    table = error_by_step(decoder, parts.test)
    n_steps = parts.test.n_steps
    assert dict(table.sizes) == {"step": n_steps, "axis": 2}
    assert set(table.data_vars) == {"r2_free", "r2_forced", "rmse_free", "rmse_forced"}
    np.testing.assert_allclose(table["time_s"], (np.arange(n_steps) + 0.5) * 0.05)
    # With the variance over all steps, the mean over steps is the R2 over all tokens.
    assert float(table["r2_free"].mean()) == pytest.approx(decoder.score(parts.test), abs=1e-5)
    error = decoder.predict_forced(parts.test) - parts.test.movement
    np.testing.assert_allclose(table["rmse_forced"], np.sqrt((error**2).mean(0)), rtol=1e-4)


def test_teacher_forcing_is_used_and_never_leaks_into_decoding(fitted):
    decoder, parts = fitted
    free, forced = decoder.predict(parts.test), decoder.predict_forced(parts.test)
    np.testing.assert_allclose(forced[:, : decoder.chunk], free[:, : decoder.chunk], atol=1e-4)
    assert np.abs(forced - free)[:, decoder.chunk :].max() > 1e-3
    own = decoder.predict_forced(parts.test, free)
    np.testing.assert_allclose(own, free, atol=1e-3)


def test_the_training_history_is_the_true_movement_with_noise_or_the_prediction(fitted):
    decoder, parts = fitted
    inputs = decoder.network_inputs(parts.train.batch(slice(0, 40)))
    target = decoder._standard(parts.train.movement[:40])
    noise = decoder._history(inputs, target) - target
    assert float(noise.std()) == pytest.approx(0.5, rel=0.05)
    own = clone(decoder).set_params(scheduled_sampling=0.5, history_noise=0.0, dropout=0.0, n_steps=2)
    own.fit(parts.train, validation=parts.validation)
    with torch.no_grad():
        free = own.network_(*inputs)[0]
    history = own._history(inputs, target)
    is_own = (history - free).abs().amax((1, 2)) < 1e-4
    is_target = (history == target).all(-1).all(-1)
    assert (is_own ^ is_target).all()
    assert 8 < is_own.sum() < 32
    assert own.network_.training  # a free run in between leaves training as it was


def test_attended_tokens_come_as_a_table(fitted):
    decoder, parts = fitted
    table = decoder.attend(parts.test[:2])
    assert dict(table["b"].sizes) == {"window": 2, "head": 4, "step": 60, "lag_b": 21}
    np.testing.assert_allclose(table["a"].sum("lag_a") + table["b"].sum("lag_b"), 1, atol=1e-5)
    np.testing.assert_allclose(table["lag_b"][[0, -1]], [-0.5, 0.5])


def test_chunks_without_a_token_are_refused():
    parts = cut(two_systems())
    with pytest.raises(NeurofuseError, match="one token or more, got 0 and 16"):
        AutoregressiveDecoder(chunk=0).fit(parts.train)
