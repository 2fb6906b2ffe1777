"""Clocks masked in training, scored and balanced: planted masks, planted updates, and a stream that fails."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_decoders import cut, quick, two_systems

from neurofuse.decoders.balance import (
    ALPHA,
    WHOLE,
    Part,
    clock_parts,
    drop_clocks,
    keep_only,
    modulated,
    update_scales,
)
from neurofuse.decoders.neural import TorchDecoder
from neurofuse.decoders.registry import DECODERS, make_decoder
from neurofuse.decoders.tracked import convex_weights, point_posterior
from neurofuse.errors import NeurofuseError
from neurofuse.lag.losses import alignment_losses, mismatch_some
from neurofuse.simulation import DOMINANCE, simulate
from neurofuse.windows import Batch, Windows

TORCH = sorted(name for name, kind in DECODERS.items() if issubclass(kind, TorchDecoder))
# Late fusion and single streams train on one clock at a time; the perceiver encodes all in one.
FUSING = [n for n in TORCH if n not in ("late", "late-variance", "spikes", "lfp")]
WITHOUT_ENCODERS = ["perceiver"]


def batch_of(n_windows, n_tokens, n_clocks, *, seed=0, recorded=0.9):
    rng = np.random.default_rng(seed)
    present = tuple(rng.random((n_windows, n_tokens)) < recorded for _ in range(n_clocks))
    values = tuple(rng.standard_normal((*p.shape, 3)).astype(np.float32) * p[..., None] for p in present)
    return Batch(
        values, present, np.zeros((n_windows, 4, 2), np.float32), np.zeros((n_windows, 4, n_clocks - 1)), 1
    )


def failing(windows: Windows, clock: int, *, every_s: float) -> Windows:
    """The same windows with a clock that recorded nothing in every other stretch of `every_s`."""
    tokens = windows.tokens
    whole = tokens.clocks[clock]
    step = np.arange(len(whole.cover) - 1)
    on = (step * tokens.fine_s // every_s) % 2 == 0
    cover = np.concatenate([[0.0], np.cumsum(np.diff(whole.cover) * on)])
    clocks = [replace(c, cover=cover) if k == clock else c for k, c in enumerate(tokens.clocks)]
    return replace(windows, tokens=replace(tokens, clocks=tuple(clocks)))


def featureless(windows: Windows, clock: int) -> Windows:
    """The same windows with a clock whose features never change: what is left of a decoder without it."""
    tokens = windows.tokens
    clocks = [
        replace(c, total=np.zeros_like(c.total)) if k == clock else c for k, c in enumerate(tokens.clocks)
    ]
    return replace(windows, tokens=replace(tokens, clocks=tuple(clocks)))


@pytest.fixture(scope="module")
def parts():
    return cut(two_systems())


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 30), st.integers(2, 4), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_masks_take_and_never_take_all(n_windows, n_tokens, n_clocks, rate, seed):
    batch = batch_of(n_windows, n_tokens, n_clocks, seed=seed % 7)
    masked = drop_clocks(batch, rate, np.random.default_rng(seed))
    was, now = np.stack(batch.present), np.stack(masked.present)
    assert not (now & ~was).any()
    np.testing.assert_array_equal(now.any(0), was.any(0))
    for value, before, present in zip(masked.values, batch.values, masked.present, strict=True):
        np.testing.assert_array_equal(value, before * present[..., None])
        assert value.dtype == np.float32
    again = drop_clocks(batch, rate, np.random.default_rng(seed))
    np.testing.assert_array_equal(np.stack(again.present), now)


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("n_clocks", [2, 3])
def test_windows_miss_a_clock_as_often_as_the_rate(n_clocks, rate):
    batch = batch_of(6000, 20, n_clocks, recorded=1.0)
    masked = np.stack(drop_clocks(batch, rate, np.random.default_rng(0)).present)
    assert (~masked.all(axis=(0, 2))).mean() == pytest.approx(rate, abs=0.02)
    assert masked.any(axis=0).all()
    if rate:
        # Every clock is masked as often; most masks cover the whole window, the others one stretch of it.
        missing = (~masked).any(2)
        assert np.ptp(missing.mean(1)) < 0.03
        throughout = (~masked).all(2)[missing].mean()
        assert WHOLE - 0.03 < throughout < WHOLE + 0.05  # some stretches are as long as the window
        assert (np.abs(np.diff(masked.astype(int), axis=2)).sum(2) <= 2).all()


def test_a_single_clock_is_never_masked_and_nothing_is_drawn():
    rng = np.random.default_rng(0)
    batch = batch_of(8, 10, 1)
    assert drop_clocks(batch, 1.0, rng) is batch
    assert rng.bit_generator.state == np.random.default_rng(0).bit_generator.state


def test_updates_of_the_clock_that_is_ahead_are_scaled_down():
    assert update_scales([0.4, 0.4]).tolist() == [1, 1]
    scale = update_scales([0.2, 0.4])
    assert scale[1] == 1
    assert scale[0] == pytest.approx(1 - np.tanh(ALPHA * (0.401 / 0.201 - 1)))
    assert update_scales([0.1, 0.5, 0.5])[0] < update_scales([0.3, 0.5, 0.5])[0] < 1


@pytest.mark.parametrize("name", ["tracked", "early"])
def test_the_update_of_adamw_is_scaled_not_the_gradient(name, parts):
    """Scaling gradients would change nothing under Adam; here the step itself shrinks, and only its clock's."""
    moved = {}
    for scale in (1.0, 0.25):
        decoder = quick(name, n_steps=1).fit(parts.train, validation=parts.validation)
        net = decoder.network_
        own = clock_parts(net, [9, 9])
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=1e-2)
        before = [p.detach().clone() for p in net.parameters()]
        said = net(*decoder.network_inputs(parts.train.batch(slice(0, 4))))[0]
        said.square().mean().backward()
        with modulated(own, np.array([scale, 1.0]), generator=None):
            optimizer.step()
        moved[scale] = [p.detach() - was for p, was in zip(net.parameters(), before, strict=True)]
    slowed = [id(part.parameter) for part in own[0]]
    ratio = [0.25 if id(p) in slowed else 1.0 for p in net.parameters()]
    for p, full, less, k in zip(net.parameters(), moved[1.0], moved[0.25], ratio, strict=True):
        share = torch.full_like(full, k)
        if name == "early" and id(p) in slowed:
            share = torch.ones_like(full)
            share[:, [*range(9), 18]] = 0.25
        torch.testing.assert_close(less, share * full, atol=1e-7, rtol=1e-3)
    assert max(float(full.abs().max()) for full in moved[1.0]) > 5e-3


def test_noise_has_the_spread_of_the_gradient_and_comes_from_its_generator():
    weight = torch.nn.Parameter(torch.zeros(200, 200))
    seen = []
    for seed in (0, 0, 1):
        gradient = torch.randn(200, 200, generator=torch.Generator().manual_seed(5))
        weight.grad = 3 * gradient
        with modulated([[Part(weight)]], np.array([0.5]), generator=torch.Generator().manual_seed(seed)):
            pass
        seen.append(weight.grad - 3 * gradient)
    assert float(seen[0].std()) == pytest.approx(3, rel=0.03)
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])


@pytest.mark.parametrize("balance", ["none", "ogm-ge"])
@pytest.mark.parametrize("name", FUSING)
def test_every_torch_decoder_is_scored_clock_by_clock_and_can_be_balanced(name, balance, parts):
    decoder = quick(name, balance=balance)
    if balance == "ogm-ge" and name in WITHOUT_ENCODERS:
        with pytest.raises(
            NeurofuseError, match="no encoders of single clocks to slow; choose balance 'none'"
        ):
            decoder.fit(parts.train, validation=parts.validation)
        return
    history = decoder.fit(parts.train, validation=parts.validation).history_
    expected = {"step", "train", "validation", "only/a", "only/b", "without/a", "without/b"}
    assert set(history) == expected | ({"scale/a", "scale/b"} if balance == "ogm-ge" else set())
    assert {len(v) for v in history.values()} == {len(history["step"])} == {2}
    assert all(np.isfinite(v).all() for v in history.values())
    assert json.loads(json.dumps(history)) == history
    assert history["without/b"] == history["only/a"]
    # The same seed, the same numbers, to the last bit.
    again = quick(name, balance=balance).fit(parts.train, validation=parts.validation)
    assert again.history_ == history
    np.testing.assert_array_equal(again.predict(parts.test), decoder.predict(parts.test))


@pytest.mark.parametrize("name", FUSING)
def test_training_on_a_single_clock_is_the_same_whatever_the_balance(name):
    recording = two_systems()
    single = cut(recording.but(streams=(recording["a"],)))
    movement = [
        quick(name, n_steps=5, **more).fit(single.train, validation=single.validation).predict(single.test)
        for more in ({"modality_dropout": 0.0}, {"modality_dropout": 0.9}, {"balance": "ogm-ge"})
    ]
    np.testing.assert_array_equal(movement[0], movement[1])
    np.testing.assert_array_equal(movement[0], movement[2])


def test_windows_that_miss_a_stream_do_not_train_the_lag(parts):
    decoder = quick("tracked", n_steps=1).fit(parts.train, validation=parts.validation)
    decoder.network_.train()
    batch = parts.train.batch(slice(0, 8))
    lag = np.full_like(batch.lag, np.nan)
    for known in (False, True):
        batch = replace(batch, lag=np.zeros_like(lag) if known else lag)
        for k in (0, 1):
            masked = keep_only(batch, [k])
            readout = decoder.network_(*decoder.network_inputs(masked))[1]
            assert alignment_losses(readout.posteriors, masked, decoder.max_lag_).item() == 0
        mismatched = mismatch_some(batch, 0.5, np.random.default_rng(0))
        readout = decoder.network_(*decoder.network_inputs(mismatched))[1]
        assert alignment_losses(readout.posteriors, mismatched, decoder.max_lag_).item() > 0


def test_without_the_anchor_the_posterior_is_the_prior(parts):
    decoder = quick("tracked", n_steps=1).fit(parts.train, validation=parts.validation)
    inside = parts.train[10:14]  # the anchor was recorded throughout, and on both sides
    hmm = decoder.network_.attentions[0].hmm
    with torch.no_grad():
        hmm.prior_L[3] += 0.5
        hmm.log_drift -= 1
        prior = hmm.rates.log_prior_G.softmax(-1)
    posterior = decoder.decode(inside.without(0)).posterior["b"]
    np.testing.assert_allclose(posterior, np.broadcast_to(prior, posterior.shape), atol=1e-3)
    assert np.abs(decoder.decode(inside).posterior["b"] - prior.numpy()).max() > 0.01


def test_where_one_stream_is_left_its_unimodal_network_decodes(parts):
    decoder = quick("tracked", n_steps=5).fit(parts.train, validation=parts.validation)
    inside = parts.train[10:14]
    decoder.network_.unimodal_weight_KA.zero_()  # the fusion only, where both streams are there
    both, left = decoder.predict(inside), [decoder.predict(inside.without(k)) for k in (0, 1)]
    with torch.no_grad():
        for p in decoder.network_.unimodal[1].head.output.parameters():
            p.zero_()
    # Without the anchor the other clock's network decodes, here the mean.
    np.testing.assert_allclose(
        decoder.predict(inside.without(0)),
        np.broadcast_to(decoder.movement_scale_.mean, both.shape),
        atol=1e-5,
    )
    np.testing.assert_array_equal(decoder.predict(inside.without(1)), left[1])
    np.testing.assert_array_equal(decoder.predict(inside), both)


def test_mixture_weights_are_the_best_convex_ones():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((500, 3))
    planted = np.array([0.6, 0.0, 0.4])
    np.testing.assert_allclose(convex_weights(x, x @ planted), planted, atol=1e-6)
    # A negative weight becomes zero, and weights sum to one whatever the scale.
    np.testing.assert_allclose(convex_weights(x, 3 * x[:, 0] - x[:, 1]), [1, 0, 0], atol=1e-3)


def test_unimodal_decodes_are_mixed_in_by_their_weights_and_through_the_alignment(parts):
    decoder = quick("tracked", n_steps=5).fit(parts.train, validation=parts.validation)
    inside = parts.train[10:14]
    weight = decoder.network_.unimodal_weight_KA
    assert bool((weight >= 0).all())
    assert bool((weight.sum(0) <= 1 + 1e-6).all())
    for k in (0, 1):
        mixed = []
        for value in (0.0, 0.25, 1.0):
            weight.zero_()
            weight[k] = value
            mixed.append(decoder.predict(inside))
        np.testing.assert_allclose(mixed[1], 0.75 * mixed[0] + 0.25 * mixed[2], atol=1e-5)
        if k == 0:
            np.testing.assert_allclose(mixed[2], decoder.predict(inside.without(1)), atol=1e-5)
            continue
        # With all probability on one lag, the other clock's decode is moved by that lag.
        lag, reach = 2, decoder.max_lag_
        values, present, width = decoder.network_inputs(inside.batch(slice(None)))
        steps = inside.n_steps + 2 * (width - reach)
        posterior = point_posterior(torch.full((len(inside), steps), float(lag)), reach, 2 * reach + 1)
        with torch.no_grad():
            through, _ = decoder.network_(values, present, width, [posterior])
            whole, _ = decoder.network_.unimodal[1](values, present, 0)
        np.testing.assert_allclose(through, whole[:, width + lag : width + lag + inside.n_steps], atol=1e-5)


@pytest.mark.parametrize("name", ["early", "tracked"])
def test_decoding_goes_on_when_a_stream_fails(name):
    """As well as a decoder that never had it, and in between where it fails now and then."""
    windows = cut(two_systems(seconds=120, noise=0.3))
    how = {"width": 32, "n_steps": 250, "learning_rate": 5e-3}
    decoder = make_decoder(name, **how).fit(windows.train, validation=windows.validation)
    both = decoder.score(windows.test)
    for k in (0, 1):
        bound = make_decoder("early", modality_dropout=0.0, **how)
        bound.fit(featureless(windows.train, k), validation=featureless(windows.validation, k))
        without = decoder.score(windows.test.without(k))
        assert without > bound.score(featureless(windows.test, k)) - 0.05
        assert without < decoder.score(failing(windows.test, k, every_s=3.0)) < both


def test_in_the_dominated_recording_only_the_field_holds_the_corrections():
    """The part of the movement that units leave unexplained is in the field, and not in the units."""
    recording, _ = simulate(config=replace(DOMINANCE, duration_s=60.0), rng=np.random.default_rng(0))
    velocity = recording.movement.data.values
    assert velocity.std(0) == pytest.approx([10, 10], rel=0.2)
    plain, _ = simulate(
        config=replace(DOMINANCE, duration_s=60.0, field_only=0.0), rng=np.random.default_rng(0)
    )
    # The same draws up to the units: their spikes agree, and the movement differs by the corrections.
    np.testing.assert_array_equal(recording["spikes"].times_s, plain["spikes"].times_s)
    followed = plain.movement.data.values
    corrections = velocity - np.sqrt(0.8) * followed
    assert corrections.var() / velocity.var() == pytest.approx(0.2, abs=0.05)


def test_settings_out_of_range_are_refused(parts):
    with pytest.raises(NeurofuseError, match="no balancing 'fair'; choose one of none, ogm-ge"):
        quick("early", balance="fair").fit(parts.train)
    with pytest.raises(NeurofuseError, match=r"got 1\.5; give a number between 0 and 1"):
        quick("early", modality_dropout=1.5).fit(parts.train)
