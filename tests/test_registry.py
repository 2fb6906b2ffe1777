"""Registration of decoders; and what each of the compared ones is built for, on data in which it was planted."""

import json
from importlib.metadata import EntryPoint

import numpy as np
import pytest
import torch
from sklearn.base import clone
from torch import nn

from neurofuse import extensions
from neurofuse.decoders import registry
from neurofuse.decoders.base import Decoder, Prediction
from neurofuse.decoders.classical import StateSpace
from neurofuse.decoders.early import EarlyDecoder
from neurofuse.decoders.neural import TorchDecoder
from neurofuse.decoders.registry import (
    decoder_classes,
    load_decoder,
    make_decoder,
    options_of,
    register_decoder,
    registered_decoders,
)
from neurofuse.errors import NeurofuseError
from neurofuse.jitters.lag_laws import WindowLag
from neurofuse.recording import Movement, Recording, Signal
from neurofuse.tokens import tokenize
from neurofuse.windows import split_windows

STEP_S = 0.05
EARLY = ["early", "early-mlp", "early-attention", "gru"]


def recording_of(movement, **streams):
    """Rows of samples on one grid, each stream on the clock of its name, the first being the reference."""
    time_s = np.arange(len(movement)) * STEP_S
    signals = tuple(
        Signal.from_array(values, clock=name, name=name, time_s=time_s, kind="power")
        for name, values in streams.items()
    )
    return Recording("planted", next(iter(streams)), signals, Movement.from_array(movement, time_s=time_s))


def cut(recording, *, jitter=None, max_lag_s=0.5, seed=0):
    return split_windows(
        tokenize(recording), window_s=3.0, max_lag_s=max_lag_s, jitter=jitter, rng=np.random.default_rng(seed)
    )


def smooth(rng, n, n_columns):
    x = rng.standard_normal((n + 4, n_columns))
    return (x[:-4] + x[1:-3] + x[2:-2] + x[3:-1] + x[4:]) / np.sqrt(5)


@pytest.fixture(scope="module")
def two():
    """Movement of two axes, with much noise on clock `a` and little on clock `b`."""
    rng = np.random.default_rng(0)
    n = 1600
    movement = smooth(rng, n, 2)
    views = {
        name: movement @ rng.standard_normal((2, 6)) + noise * rng.standard_normal((n, 6))
        for name, noise in (("a", 3.0), ("b", 0.5))
    }
    return recording_of(movement, **views)


class MeanDecoder(Decoder):
    """The mean movement of the training windows, pulled towards zero."""

    name = "mean"

    def __init__(self, *, shrink=0.0, axes=(0, 1)):
        self.shrink = shrink
        self.axes = axes

    def fit(self, X, y=None, *, validation=None):
        X, target, _, _ = self.training_parts(X, y, validation)
        self.learn_scales(X, target)
        self.mean_ = (1 - self.shrink) * np.nanmean(target, axis=(0, 1))
        return self

    def decode(self, X):
        self.check_windows(X)
        return Prediction(np.broadcast_to(self.mean_, (*X.shape, self.n_axes_)).astype(np.float32))

    def state(self):
        return {"mean": self.mean_}

    def restore(self, state):
        self.mean_ = state["mean"]


class LSTMNetwork(nn.Module):
    """Layers that draw from torch's global generators, in their constructors and in training."""

    def __init__(self, n_inputs, n_axes, width):
        super().__init__()
        self.scale = nn.Parameter(torch.randn(n_inputs))
        self.lstm = nn.LSTM(n_inputs, width, num_layers=2, dropout=0.2, batch_first=True)
        self.drop = nn.Dropout(0.5)
        self.output = nn.Linear(width, n_axes)

    def forward(self, values, present, reach):
        h, _ = self.lstm(torch.cat(values, -1) * self.scale)
        return self.output(self.drop(h))[:, reach:-reach], None


class LSTMDecoder(TorchDecoder):
    name = "lstm"

    def build_network(self, n_inputs, n_axes, max_lag):
        return LSTMNetwork(sum(n_inputs), n_axes, self.width)


@pytest.fixture
def registered(monkeypatch):
    """A registry that is put back after the test."""
    monkeypatch.setattr(registry, "DECODERS", dict(registry.DECODERS))
    registry._installed.cache_clear()
    yield monkeypatch
    registry._installed.cache_clear()


def test_a_registered_class_is_built_by_name_and_read_from_disk(registered, two, tmp_path):
    assert register_decoder(MeanDecoder) is MeanDecoder
    assert decoder_classes()["mean"] is MeanDecoder
    assert registered_decoders() == (MeanDecoder,)
    assert set(options_of("mean")) == {"shrink", "axes"}
    parts = cut(two)
    decoder = make_decoder("mean", shrink=0.5).fit(parts.train, validation=parts.validation)
    again = Decoder.from_pretrained(decoder.save_pretrained(tmp_path / "mean"))
    assert type(again) is MeanDecoder
    assert again.get_params() == {"shrink": 0.5, "axes": (0, 1)}
    np.testing.assert_array_equal(again.predict(parts.test), decoder.predict(parts.test))
    with pytest.raises(NeurofuseError, match="decoder 'mean' has no option 'width'; it has axes, shrink"):
        make_decoder("mean", width=3)


def test_a_class_defined_again_replaces_itself_and_no_other(registered):
    first, second = (type("MeanDecoder", (MeanDecoder,), {"__qualname__": "MeanDecoder"}) for _ in range(2))
    register_decoder(first)
    register_decoder(second)
    assert decoder_classes()["mean"] is second
    assert registered_decoders() == (second,)
    with pytest.raises(NeurofuseError, match=r"'early' is taken by neurofuse\.decoders\.early\.EarlyDecoder"):
        register_decoder(type("Mine", (MeanDecoder,), {"name": "early"}))
    with pytest.raises(NeurofuseError, match="name 'early' is taken"):
        register_decoder(type("Nameless", (EarlyDecoder,), {}))


def _positional(self, width):
    self.width = width


def _without_default(self, *, width):
    self.width = width


def _changed(self, *, shrink="0", axes=()):
    self.shrink, self.axes = float(shrink), axes


def _not_passed_on(self, *, power=2.0):
    MeanDecoder.__init__(self)
    self.power = power


@pytest.mark.parametrize(
    ("cls", "sentence"),
    [
        (dict, "'dict' is not a subclass of neurofuse.Decoder"),
        ("mean", "'mean' is not a subclass"),
        (type("Mine", (MeanDecoder,), {"name": ""}), "Mine has no name; set its class attribute `name`"),
        (type("Mine", (Decoder,), {"name": "mine", "__init__": _positional}), "'width' must be keyword-only"),
        (type("Mine", (Decoder,), {"name": "mine", "__init__": _without_default}), "and have a default"),
        (
            type("Mine", (MeanDecoder,), {"name": "mine", "__init__": _changed}),
            r"Mine must store its setting as given: self\.shrink = shrink",
        ),
        (
            type("Mine", (MeanDecoder,), {"name": "mine", "__init__": _not_passed_on}),
            r"must pass the settings of the class it extends on to it, as \*\*more",
        ),
    ],
)
def test_a_class_that_could_not_be_built_by_name_is_refused(registered, cls, sentence):
    with pytest.raises(NeurofuseError, match=sentence):
        register_decoder(cls)
    assert registered_decoders() == ()


def test_decoders_of_installed_packages_are_loaded_once_and_a_broken_one_is_reported(registered):
    calls = []

    def listed(*, group):
        calls.append(group)
        return [
            EntryPoint("mean", f"{__name__}:MeanDecoder", group),
            EntryPoint("broken", "no_such_package.decoders:Broken", group),
        ]

    registered.setattr(extensions, "entry_points", listed)
    with pytest.warns(
        UserWarning, match=r"'broken' of the package 'no_such_package\S*' is left out"
    ) as caught:
        decoder_classes()
    assert len(caught) == 1
    assert decoder_classes()["mean"] is MeanDecoder
    assert "broken" not in decoder_classes()
    assert calls == ["neurofuse.decoders"]
    # A new process finds it by itself.
    assert registered_decoders() == ()


def test_a_checkpoint_of_an_unregistered_decoder_or_of_an_earlier_version_names_the_remedy(
    registered, two, tmp_path
):
    parts = cut(two)
    folder = MeanDecoder().fit(parts.train, validation=parts.validation).save_pretrained(tmp_path / "mean")
    with pytest.raises(
        NeurofuseError,
        match="a decoder 'mean', which is not registered here; import the package that defines",
    ):
        load_decoder(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"layout": "neurofuse-decoder-1"}))
    with pytest.raises(
        NeurofuseError, match=r"an earlier version .*; fit the decoder again with `neurofuse decode`"
    ):
        load_decoder(folder)


def test_values_out_of_range_are_refused_and_those_of_other_packages_may_be_negative(registered):
    @register_decoder
    class OffsetDecoder(MeanDecoder):
        name = "offset"

        def __init__(self, *, offset=1.0, shift=1, **more):
            super().__init__(**more)
            self.offset = offset
            self.shift = shift

    @register_decoder
    class SmallDecoder(LSTMDecoder):
        name = "small"

    assert make_decoder("offset", offset=-2.5, shift=-1, axes=(-1,)).shift == -1
    assert make_decoder("kalman", n_derivatives=0).n_derivatives == 0
    for name, options, sentence in (
        ("offset", {"shift": 0.5}, r"decoder 'offset': shift must be a whole number, got 0\.5"),
        ("offset", {"offset": "far"}, "offset must be a number, got 'far'"),
        ("tracked", {"n_steps": -3}, "n_steps must be a positive whole number, got -3"),
        ("small", {"n_steps": -3}, "decoder 'small': n_steps must be a positive whole number"),
        ("small", {"dropout": -0.1}, "dropout must be a number of zero or more"),
        ("tracked", {"seed": -1}, "seed must be a whole number of zero or more"),
        ("tracked", {"dilations": 4}, r"dilations must be several numbers of zero or more, such as \(1, 4\)"),
        ("tracked", {"device": 0}, "device must be a word"),
        ("early", {"causal": "yes"}, "causal must be True or False"),
    ):
        with pytest.raises(NeurofuseError, match=sentence):
            make_decoder(name, **options)


def test_arrays_in_place_of_windows_are_refused_with_the_way_to_make_windows(two):
    arrays = [np.zeros((4, 10, 3)), np.zeros((4, 10, 2))]
    parts = cut(two)
    fitted = make_decoder("ridge").fit(parts.train, validation=parts.validation)
    for name in decoder_classes():
        decoder = make_decoder(name)
        for call in (decoder.fit, decoder.predict, decoder.score):
            with pytest.raises(NeurofuseError, match=r"must be Windows, got list; .*Windows\.from_arrays\("):
                call(arrays)
    with pytest.raises(NeurofuseError, match="must be Windows, got ndarray"):
        fitted.predict(arrays[0])


def test_a_network_of_any_layers_is_fitted_alike_twice_and_torch_is_left_as_it_was(two, tmp_path):
    parts = cut(two)
    decoder = LSTMDecoder(width=8, n_steps=10, check_every=5, seed=1)
    torch.manual_seed(11)
    before = torch.get_rng_state()
    decoder.fit(parts.train, validation=parts.validation)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(12)
    again = clone(decoder).fit(parts.train, validation=parts.validation)
    other = clone(decoder).set_params(seed=2).fit(parts.train, validation=parts.validation)
    assert decoder.history_ == again.history_
    for name, value in decoder.state().items():
        np.testing.assert_array_equal(value, again.state()[name])
        assert not np.array_equal(value, other.state()[name])
    # Reading it back draws nothing either.
    before = torch.get_rng_state()
    kept = LSTMDecoder(**decoder.get_params())
    kept.restore_checkpoint(*registry.read_checkpoint(decoder.save_pretrained(tmp_path / "lstm")))
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(kept.predict(parts.test), decoder.predict(parts.test))


def gradients(decoder, windows, step):
    """Gradient of the movement decoded at one step of a window with respect to every token of each clock, (W,) each."""
    values, present, reach = decoder.network_inputs(windows.batch(slice(0, 1)))
    for x in values:
        x.requires_grad_(True)
    movement, _ = decoder.network_(values, present, reach)
    return [g.abs().sum((0, 2)).numpy() for g in torch.autograd.grad(movement[0, step].sum(), values)], reach


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", EARLY)
def test_early_fusion_covers_the_lags_that_are_searched_and_no_future(name, causal, two):
    parts = cut(two, max_lag_s=1.0)
    decoder = make_decoder(name, causal=causal, n_steps=2, check_every=2).fit(parts.train)
    step, max_lag = 30, parts.train.max_lag
    (anchor, other), reach = gradients(decoder, parts.test, step)
    now = reach + step
    assert (other[now - max_lag : now + max_lag + 1] > 0).all()
    if causal:
        assert anchor[now] > 0
        assert (anchor[now + 1 :] == 0).all()
        assert (other[now + max_lag + 1 :] == 0).all()
    else:
        assert (anchor[now - 10 : now + 11] > 0).all()


def test_a_flattened_window_that_is_too_wide_is_pooled_evenly(monkeypatch, two):
    from neurofuse.decoders import early

    monkeypatch.setattr(early, "MOST_INPUTS", 100)
    parts = cut(two, max_lag_s=1.0)
    decoder = make_decoder("early-mlp", n_steps=2, check_every=2).fit(parts.train)
    first = decoder.network_.input
    assert first.kernel_size[0] * first.in_channels < 1.5 * 100
    (_, other), reach = gradients(decoder, parts.test, 30)
    offsets = np.flatnonzero(other) - reach - 30
    # Every lag that is searched is read, and groups of tokens have equal weights.
    assert offsets.min() <= -20
    assert offsets.max() >= 20
    groups = other[np.flatnonzero(other)].reshape(-1, decoder.network_.pool)
    np.testing.assert_allclose(groups, groups[:, :1].repeat(groups.shape[1], 1), rtol=1e-4)


def test_heads_that_do_not_fit_the_width_are_refused(two):
    parts = cut(two)
    with pytest.raises(NeurofuseError, match=r"width of 12 does not split into 4 heads .* that 8 divides"):
        make_decoder("early-attention", width=12).fit(parts.train)


def test_decoders_of_one_stream_do_not_read_the_other(two):
    parts = cut(two)
    for name, other in (("spikes", 1), ("lfp", 0)):
        decoder = make_decoder(name, n_steps=2, check_every=2).fit(parts.train)
        values, present, reach = decoder.network_inputs(parts.test.batch(slice(0, 2)))
        was, _ = decoder.network_(values, present, reach)
        values[other] = values[other] + 10
        now, _ = decoder.network_(values, present, reach)
        assert torch.equal(was, now)
        values[1 - other] = values[1 - other] + 10
        assert not torch.equal(was, decoder.network_(values, present, reach)[0])


def test_late_fusion_by_variance_gives_the_better_stream_more_weight(two):
    parts = cut(two)
    small = {"width": 16, "n_steps": 150, "learning_rate": 5e-3}
    mean, weighted = (
        make_decoder(name, **small).fit(parts.train, validation=parts.validation)
        for name in ("late", "late-variance")
    )
    np.testing.assert_allclose(mean.weights_, 0.5)
    np.testing.assert_allclose(weighted.weights_.sum(0), 1, rtol=1e-6)
    error = [(m.predict(parts.validation) - parts.validation.movement) for m in weighted.unimodal_]
    variance = np.stack([e.reshape(-1, 2).var(0) for e in error])
    np.testing.assert_allclose(
        weighted.weights_[1] / weighted.weights_[0], variance[0] / variance[1], rtol=1e-4
    )
    assert (weighted.weights_[1] > 0.6).all()
    assert weighted.score(parts.test) > mean.score(parts.test)
    # What is averaged are the decodes of single clocks.
    own = [m.predict(parts.test) for m in mean.unimodal_]
    np.testing.assert_allclose(mean.predict(parts.test), (own[0] + own[1]) / 2, atol=1e-6)


def test_a_cascade_undoes_a_static_nonlinearity_that_ridge_cannot():
    rng = np.random.default_rng(1)
    drive = smooth(rng, 1600, 2)
    view = drive @ rng.standard_normal((2, 6)) + 0.1 * rng.standard_normal((1600, 6))
    parts = cut(recording_of(np.stack([drive[:, 0] ** 3, drive[:, 1]], 1), a=view))
    ridge, cascade = (
        make_decoder(n, context_s=0.0).fit(parts.train, validation=parts.validation)
        for n in ("ridge", "wiener-cascade")
    )
    assert ridge.score(parts.test) < 0.85
    assert cascade.score(parts.test) > 0.95
    assert cascade.degree_[0] >= 3
    # Far outside of the range that it was fitted on, the polynomial is constant.
    far = cascade._apply(1e3 * np.ones((1, cascade.ridge_.weights.shape[1])))
    assert np.abs(far).max() < 50


def textbook(space, observed, *, smooth):
    """Kalman filter and Rauch-Tung-Striebel smoother of one sequence, gain by gain."""
    mean, cov = np.zeros(len(space.move)), space.start
    filtered, predicted = [], []
    for t, y in enumerate(observed):
        if t:
            mean, cov = space.move @ mean, space.move @ cov @ space.move.T + space.move_noise
        predicted.append((mean, cov))
        innovation = space.observe @ cov @ space.observe.T + space.observe_noise
        gain = cov @ space.observe.T @ np.linalg.inv(innovation)
        mean, cov = mean + gain @ (y - space.observe @ mean), cov - gain @ space.observe @ cov
        filtered.append((mean, cov))
    out = [filtered[-1][0]]
    for t in reversed(range(len(observed) - 1)):
        back = filtered[t][1] @ space.move.T @ np.linalg.inv(predicted[t + 1][1])
        out.append(filtered[t][0] + back @ (out[-1] - predicted[t + 1][0]))
    return np.array(out[::-1] if smooth else [m for m, _ in filtered])


def planted_space():
    """Two axes, each pulled back to zero with inertia, observed through eight noisy channels."""
    move = np.kron([[1.0, 0.2], [-0.2, 0.85]], np.eye(2))
    rng = np.random.default_rng(2)
    noise = np.diag([0.0, 0.0, 0.05, 0.05]) + 1e-6 * np.eye(4)
    start = noise
    for _ in range(400):
        start = move @ start @ move.T + noise
    observe = np.concatenate([rng.standard_normal((8, 2)), np.zeros((8, 2))], axis=1)
    return StateSpace(move, noise, observe, 4.0 * np.eye(8), start)


def simulated(space, n, rng):
    state = np.zeros((n, 4))
    state[0] = rng.multivariate_normal(np.zeros(4), space.start)
    push = rng.multivariate_normal(np.zeros(4), space.move_noise, size=n)
    for t in range(1, n):
        state[t] = space.move @ state[t - 1] + push[t]
    return state, state @ space.observe.T + 2.0 * rng.standard_normal((n, 8))


@pytest.mark.parametrize("smooth", [False, True])
def test_many_sequences_at_once_are_filtered_as_one_by_one(smooth):
    space, rng = planted_space(), np.random.default_rng(3)
    y = np.stack([simulated(space, 40, rng)[1] for _ in range(3)])
    observed = np.ones(y.shape, dtype=bool)
    states = space.states(y, observed, smooth=smooth)
    for k in range(3):
        np.testing.assert_allclose(states[k], textbook(space, y[k], smooth=smooth), atol=1e-6)
    # What was not observed may hold anything; noise without bound is the same as not observing.
    observed[1, 10:20, :4] = False
    observed[2, 5:9] = False
    replaced = np.where(observed, y, 1e3)
    np.testing.assert_allclose(
        space.states(replaced, observed, smooth=smooth), space.states(y, observed, smooth=smooth), atol=1e-9
    )
    never = space.states(y, np.zeros_like(observed), smooth=smooth)
    np.testing.assert_array_equal(never, 0)


@pytest.mark.parametrize("causal", [False, True])
def test_kalman_decodes_about_as_well_as_the_system_that_made_the_data(causal):
    space = planted_space()
    state, y = simulated(space, 4000, np.random.default_rng(4))
    parts = cut(recording_of(state[:, :2], a=y))
    decoder = make_decoder("kalman", context_s=0.0, causal=causal)
    decoder.fit(parts.train, validation=parts.validation)
    best = textbook(space, y, smooth=not causal)[:, :2]
    token = parts.test.first[:, None] + np.arange(parts.test.n_steps)
    target = parts.test.movement
    np.testing.assert_allclose(target, state[token, :2], atol=1e-5)
    ceiling = 1 - np.mean((best[token] - target) ** 2) / np.var(target)
    static = make_decoder("ridge", context_s=0.0).fit(parts.train, validation=parts.validation)
    assert static.score(parts.test) < ceiling - 0.1
    assert ceiling - 0.03 < decoder.score(parts.test) < ceiling + 0.01


@pytest.fixture(scope="module")
def lagging():
    """The same movement on both clocks, one of which lags by as much as 0.5 s in each window."""
    rng = np.random.default_rng(5)
    movement = smooth(rng, 2400, 2)
    views = {
        name: movement @ rng.standard_normal((2, 6)) + noise * rng.standard_normal((2400, 6))
        for name, noise in (("a", 2.0), ("b", 0.3))
    }
    return cut(recording_of(movement, **views), jitter=WindowLag(0.2))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", ["align-ridge", "align-early"])
def test_the_lag_of_each_window_is_estimated_from_decodes(name, causal, lagging):
    decoder = make_decoder(name, causal=causal)
    if name == "align-early":
        decoder.set_params(n_steps=5, check_every=5)
    predicted = decoder.fit(lagging.train, validation=lagging.validation).decode(lagging.test)
    error_s = np.abs(predicted.lag_s[predicted.path["b"]] - lagging.test.lag_s[..., 0])
    # From the past only, the first second of a window holds too few samples.
    assert (error_s[:, 20 if causal else 0 :] <= 0.0501).mean() > 0.95


def test_the_posterior_is_wide_where_decodes_share_no_movement():
    rng = np.random.default_rng(7)
    movement = smooth(rng, 2400, 2)
    views = {n: movement[:, k : k + 1] + 0.1 * rng.standard_normal((2400, 6)) for k, n in enumerate("ab")}
    parts = cut(recording_of(movement, **views), jitter=WindowLag(0.2))
    predicted = make_decoder("align-ridge").fit(parts.train, validation=parts.validation).decode(parts.test)
    posterior = predicted.posterior["b"]
    entropy = -(posterior * np.log(np.maximum(posterior, 1e-30))).sum(-1)
    assert entropy.mean() > 0.7 * np.log(predicted.lag_s.size)


def test_aligning_improves_on_ridge_where_the_lag_varies(lagging):
    parts = lagging
    r2 = {
        name: make_decoder(name).fit(parts.train, validation=parts.validation).score(parts.test)
        for name in ("ridge", "align-ridge")
    }
    assert r2["align-ridge"] > r2["ridge"] + 0.15
    assert r2["align-ridge"] > 0.85


def test_the_posterior_of_a_correlation_is_as_wide_as_its_errors():
    """Noisy streams: the lag of the highest correlation is often wrong, as often as the posterior gives."""
    rng = np.random.default_rng(6)
    movement = smooth(rng, 8000, 2)
    views = {n: movement @ rng.standard_normal((2, 3)) + 3.5 * rng.standard_normal((8000, 3)) for n in "ab"}
    parts = cut(recording_of(movement, **views), jitter=WindowLag(0.25))
    decoder = make_decoder("align-ridge").fit(parts.train, validation=parts.validation)
    predicted = decoder.decode(parts.test)
    target = np.rint(parts.test.lag_s[:, 0, 0] / STEP_S).astype(int) + parts.test.max_lag
    right = predicted.path["b"][:, 0] == target
    confidence = predicted.posterior["b"][:, 0].max(-1)
    assert 0.1 < right.mean() < 0.95
    assert confidence.mean() == pytest.approx(right.mean(), abs=0.15)
