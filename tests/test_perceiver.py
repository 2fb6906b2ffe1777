"""A perceiver depends on events and their time differences, and not on their order or padding."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_decoders import cut, two_systems

from neurofuse.decoders.perceiver import Events, EventWindows, PerceiverNetwork, RotaryAttention, rotate
from neurofuse.decoders.registry import make_decoder
from neurofuse.errors import NeurofuseError
from neurofuse.jitters.lag_laws import WindowLag
from neurofuse.nets.encoders import initialise
from neurofuse.tokens import tokenize
from neurofuse.windows import split_windows

N_TOKENS, TOKEN_S = 12, 0.05


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def network(*, causal=False):
    net = PerceiverNetwork(
        [5, 3],
        2,
        token_s=TOKEN_S,
        width=16,
        n_heads=2,
        head_width=8,
        n_layers=2,
        latent_every=2,
        n_latents=2,
        dropout=0.0,
        causal=causal,
    )
    initialise(net, generator())
    net.draw_latents(generator())
    return net.eval()


def events(*, n=40, seed=1):
    """Spikes of clock 0 at any time, field of three channels on clock 1."""
    g = generator(seed)
    time = 0.8 * torch.rand(2, n, generator=g) - 0.1
    token = torch.arange(16.0)
    return Events(
        torch.randint(0, 5, (2, n), generator=g),
        torch.randint(1, 4, (2, n), generator=g).float(),
        time,
        time,
        [torch.zeros(2, 0, 5), torch.randn(2, 16, 3, generator=g)],
        [torch.zeros(2, 0), torch.ones(2, 16)],
        [torch.zeros(0), (token - 1.5) * TOKEN_S],
        [torch.zeros(0), (token - 1) * TOKEN_S],
    )


def spikes(given, change):
    return replace(
        given, **{k: change(getattr(given, k)) for k in ("feature_BE", "weight_BE", "time_BE", "due_BE")}
    )


@torch.no_grad()
def decoded(net, given):
    return net(given, N_TOKENS)[0]


def test_products_of_turned_vectors_depend_on_time_differences_only():
    q, k = torch.randn(2, 1, 1, 9, 16, generator=generator())
    time = 3 * torch.rand(1, 9, generator=generator(1))
    was = rotate(q, time) @ rotate(k, time).transpose(-1, -2)
    shifted = rotate(q, time + 2.5) @ rotate(k, time + 2.5).transpose(-1, -2)
    torch.testing.assert_close(was, shifted, atol=1e-4, rtol=1e-4)
    late = rotate(q, time) @ rotate(k, time + 0.3).transpose(-1, -2)
    assert (was - late).abs().max() > 0.1
    torch.testing.assert_close(rotate(q, time).norm(dim=-1), q.norm(dim=-1))


def test_shifting_all_times_changes_nothing():
    net, given = network(), events()
    latent_s, query_s = torch.arange(0, 13, 2) * TOKEN_S, torch.arange(12) * TOKEN_S
    moved = replace(given, time_BE=given.time_BE + 7.0, field_time=[t + 7.0 for t in given.field_time])
    with torch.no_grad():
        was = net.decode(given, latent_s, query_s)
        now = net.decode(moved, latent_s + 7.0, query_s + 7.0)
        late = net.decode(moved, latent_s, query_s)
    torch.testing.assert_close(was, now, atol=1e-4, rtol=1e-4)
    assert (was - late).abs().max() > 1e-3


@pytest.mark.parametrize("causal", [False, True])
def test_neither_order_nor_padding_of_events_changes_anything(causal):
    net, given = network(causal=causal), events()
    was = decoded(net, given)
    order = torch.randperm(40, generator=generator(2))
    torch.testing.assert_close(decoded(net, spikes(given, lambda x: x[:, order])), was, atol=1e-5, rtol=1e-4)
    padded = spikes(given, lambda x: torch.nn.functional.pad(x, (0, 17)))
    torch.testing.assert_close(decoded(net, padded), was, atol=1e-5, rtol=1e-4)


def test_a_count_weighs_as_much_as_so_many_events():
    net, given = network(), events()
    one = replace(given, weight_BE=torch.ones(2, 40))
    thrice = spikes(one, lambda x: x.repeat(1, 3))
    counted = replace(one, weight_BE=torch.full((2, 40), 3.0))
    torch.testing.assert_close(decoded(net, counted), decoded(net, thrice), atol=1e-5, rtol=1e-4)
    assert (decoded(net, counted) - decoded(net, one)).abs().max() > 1e-3


def test_windows_without_events_are_decoded():
    net, given = network(), events()
    nothing = replace(given, weight_BE=torch.zeros(2, 40), on=[given.on[0], torch.zeros(2, 16)])
    assert torch.isfinite(decoded(net, nothing)).all()


def test_attention_begins_near_in_time():
    attention = RotaryAttention(16, n_heads=1, head_width=16)
    time = torch.linspace(-2, 2, 41)
    focus = attention.offset.detach().expand(1, 1, 41, -1)
    score = (rotate(focus, time[None]) @ rotate(focus, torch.zeros(1, 41)).transpose(-1, -2))[0, 0, :, 0]
    assert int(score.argmax()) == 20


def test_a_causal_perceiver_does_not_read_the_future():
    net, given = network(causal=True), events()
    moment = 5
    after = given.due_BE > moment * TOKEN_S
    field = [x.clone() for x in given.field]
    field[1][:, given.field_due[1] > (moment + 1e-3) * TOKEN_S] += 5.0
    other = replace(given, feature_BE=torch.where(after, (given.feature_BE + 1) % 5, given.feature_BE))
    for changed in (other, replace(given, field=field)):
        was, now = decoded(net, given), decoded(net, changed)
        torch.testing.assert_close(was[:, :moment], now[:, :moment], atol=1e-6, rtol=0)
        assert (was[:, moment:] - now[:, moment:]).abs().max() > 1e-4


@pytest.fixture(scope="module")
def fitted(tiny):
    parts = split_windows(
        tokenize(tiny), window_s=1.0, max_lag_s=0.1, jitter=WindowLag(0.05), rng=np.random.default_rng(0)
    )
    decoder = make_decoder("perceiver", width=16, n_steps=2, batch_size=4)
    return decoder.fit(parts.train, validation=parts.validation), parts, tiny


def test_events_are_the_spikes_of_the_recording(fitted):
    decoder, parts, tiny = fitted
    windows = parts.test[:2]
    given, n_tokens = decoder.network_inputs(EventWindows.of(windows).batch(slice(None)))
    assert n_tokens == 50
    recorded = tiny["spikes"]
    for k in range(2):
        start_s = windows.time_s[k, 0] - 0.01
        real = given.weight_BE[k] > 0
        time_s, weight = given.time_BE[k][real].numpy(), given.weight_BE[k][real].numpy()
        near = (recorded.times_s >= start_s - 0.2) & (recorded.times_s < start_s + 1.2)
        assert weight.sum() == near.sum()
        order = np.argsort(np.repeat(time_s, weight.astype(int)))
        stamps_s = np.repeat(time_s, weight.astype(int))[order]
        # Each within half of a fine step of 5 ms.
        assert np.abs(stamps_s - (recorded.times_s[near] - start_s)).max() <= 0.005 + 1e-5
        units = np.bincount(given.feature_BE[k][real], weights=weight, minlength=12)
        np.testing.assert_array_equal(units, np.bincount(recorded.unit[near], minlength=12))


def test_field_is_the_mean_of_a_token_moved_by_its_lag(fitted):
    decoder, parts, _ = fitted
    windows = parts.test[:2]
    assert np.abs(windows.shift).min() > 0
    given, _ = decoder.network_inputs(EventWindows.of(windows).batch(slice(None)))
    batch, scale = windows.batch(slice(None)), decoder.input_scales_[1]
    spare = batch.reach - windows.max_lag - 10  # 0.2 s of context are ten tokens
    kept = slice(spare, batch.values[1].shape[1] - spare)
    expected = (batch.values[1][:, kept] - scale.mean) / scale.std
    assert given.on[1].all()
    np.testing.assert_allclose(given.field[1].numpy(), expected, atol=1e-4)


def test_binned_counts_are_events_of_that_weight():
    """A recording in bins of a whole token: fine steps are tokens, and no count is left out or split."""
    recording = two_systems()
    a = recording["a"]
    counts = np.random.default_rng(0).poisson(0.7, a.data.values.shape).astype(float)
    binned = recording.but(
        streams=(type(a).from_array(counts, clock="a", name="a", time_s=a.time_s, kind="counts"),)
    )
    parts = cut(binned)
    decoder = make_decoder("perceiver", width=16, n_steps=2, batch_size=4)
    decoder.fit(parts.train, validation=parts.validation)
    given, _ = decoder.network_inputs(EventWindows.of(parts.test[:1]).batch(slice(None)))
    batch = parts.test[:1].batch(slice(None))
    near = batch.values[0][:, batch.reach - 4 : -(batch.reach - 4)]
    assert float(given.weight_BE.sum()) == near.sum()
    assert set(np.unique(given.weight_BE[given.weight_BE > 0])) == set(np.unique(near[near > 0]))


def test_an_odd_head_is_refused(fitted):
    _, parts, _ = fitted
    with pytest.raises(NeurofuseError, match="head_width must be even"):
        make_decoder("perceiver", head_width=5).fit(parts.train)
