"""The interface that every decoder implements, and the lag that those which estimate one must find."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GroupKFold, cross_val_score

from neurofuse.decoders.align_first import AlignEarlyDecoder, AlignRidgeDecoder
from neurofuse.decoders.autoregressive import AutoregressiveDecoder
from neurofuse.decoders.base import Decoder, hold_back
from neurofuse.decoders.neural import TorchDecoder
from neurofuse.decoders.registry import DECODERS, make_decoder
from neurofuse.decoders.tracked import TrackedDecoder
from neurofuse.errors import NeurofuseError
from neurofuse.jitters.lag_laws import WindowLag
from neurofuse.lag.calibration import adapt_rates
from neurofuse.lag.hmm import LagPosterior, block_log_lik
from neurofuse.lag.losses import alignment_loss, mismatch_some, recognition_loss
from neurofuse.recording import Movement, Recording, Signal
from neurofuse.tokens import tokenize
from neurofuse.windows import split_windows

torch.set_num_threads(1)
NAMES = sorted(DECODERS)
TRACKING = [n for n in NAMES if issubclass(DECODERS[n], (TrackedDecoder, AutoregressiveDecoder))]
LAGGING = TRACKING + [n for n in NAMES if issubclass(DECODERS[n], (AlignRidgeDecoder, AlignEarlyDecoder))]


def two_systems(*, seconds=60.0, seed=0, lag_s=0.0, noise=0.5):
    """Two noisy views of a shared drive on a 50 ms grid, on clocks `a` and `b`; half of the movement in each."""
    rng = np.random.default_rng(seed)
    n = int(seconds / 0.05)
    drive = rng.standard_normal((n + 200, 3))
    for _ in range(2):
        drive = (drive[:-1] + drive[1:]) / np.sqrt(2)
    drive = drive[100 : 100 + n]
    views = [drive @ rng.standard_normal((3, 8)) + noise * rng.standard_normal((n, 8)) for _ in range(2)]
    own = [rng.standard_normal((n, 1)) for _ in range(2)]
    own = [(o + np.roll(o, 1, 0) + np.roll(o, -1, 0)) / np.sqrt(3) for o in own]
    movement = np.concatenate([own[0] + own[1], own[1] - own[0]], axis=1)
    streams = [
        Signal.from_array(
            np.concatenate([v, o + 0.1 * rng.standard_normal((n, 1))], axis=1),
            clock=c,
            name=c,
            time_s=np.arange(n) * 0.05 + (lag_s if c == "b" else 0.0),
            kind="power",
        )
        for v, o, c in zip(views, own, "ab", strict=True)
    ]
    return Recording("two", "a", tuple(streams), Movement.from_array(movement, time_s=np.arange(n) * 0.05))


def cut(recording, *, jitter=None, max_lag_s=0.5, seed=0, window_s=3.0):
    return split_windows(
        tokenize(recording),
        window_s=window_s,
        max_lag_s=max_lag_s,
        jitter=jitter,
        rng=np.random.default_rng(seed),
    )


def learned(name, **training):
    """Settings of gradient descent, for the decoders that have them."""
    return training if issubclass(DECODERS[name], TorchDecoder) else {}


def quick(name, **more):
    small = learned(name, width=16, n_steps=40, check_every=20, batch_size=8)
    return make_decoder(name, **(small | more))


@pytest.fixture(scope="module")
def parts():
    return cut(two_systems())


@pytest.mark.parametrize("name", NAMES)
def test_every_decoder_implements_the_interface(name, parts, tmp_path):
    decoder = quick(name, seed=3)
    with pytest.raises(NeurofuseError, match="call fit first"):
        decoder.predict(parts.test)
    assert clone(decoder).get_params() == decoder.get_params()

    assert decoder.fit(parts.train, validation=parts.validation) is decoder
    predicted = decoder.decode(parts.test)
    assert predicted.movement.shape == parts.test.movement.shape
    np.testing.assert_array_equal(decoder.predict(parts.test), predicted.movement)
    assert -1 < decoder.score(parts.test) <= 1
    assert decoder.score(parts.test, parts.test.movement) == decoder.score(parts.test)
    assert (name in LAGGING) == bool(predicted.posterior)
    for clock, posterior in predicted.posterior.items():
        assert clock == "b"
        assert posterior.shape == (*parts.test.shape, predicted.lag_s.size)
        np.testing.assert_allclose(posterior.sum(-1), 1, atol=1e-4)
        assert predicted.path[clock].shape == parts.test.shape

    # The same seed, the same numbers; windows one by one, the same numbers.
    again = clone(decoder).fit(parts.train, validation=parts.validation)
    np.testing.assert_array_equal(again.predict(parts.test), predicted.movement)
    one = np.concatenate([decoder.predict(parts.test[k]) for k in range(len(parts.test))])
    np.testing.assert_allclose(one, predicted.movement, atol=1e-4)

    # A folder holds all of it.
    decoder.save_pretrained(tmp_path / "kept")
    kept = Decoder.from_pretrained(tmp_path / "kept")
    assert type(kept) is type(decoder)
    assert kept.get_params() == decoder.get_params()
    np.testing.assert_array_equal(kept.predict(parts.test), predicted.movement)
    assert sorted(p.name for p in (tmp_path / "kept").iterdir()) == [
        "README.md",
        "config.json",
        "weights.safetensors",
    ]


@pytest.mark.parametrize("name", NAMES)
def test_a_decoder_refuses_windows_it_was_not_fitted_for(name, parts):
    decoder = quick(name).fit(parts.train, validation=parts.validation)
    recording = two_systems()
    fewer = recording.but(streams=(recording["a"].select(range(5)), recording["b"]))
    with pytest.raises(
        NeurofuseError, match=r"fitted on \[9, 9\] features .* hold \[5, 9\]; load the same units"
    ):
        decoder.predict(cut(fewer).test)
    with pytest.raises(NeurofuseError, match="cut them alike"):
        decoder.predict(cut(recording, max_lag_s=0.3).test)


@pytest.mark.parametrize("name", NAMES)
def test_cross_validation_by_groups_in_time_works(name, parts):
    apart = parts.train[::12]  # side by side, so that windows of different groups share no token
    scores = cross_val_score(
        quick(name, **learned(name, n_steps=10)),
        apart,
        cv=GroupKFold(2),
        groups=apart.groups,
    )
    assert np.isfinite(scores).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_single_clock_can_be_decoded(name):
    recording = two_systems()
    single = cut(recording.but(streams=(recording["a"],)))
    decoder = quick(name, **learned(name, n_steps=120, learning_rate=1e-2))
    if name == "lfp":
        with pytest.raises(NeurofuseError, match="'a' is the only clock here; take 'spikes' or 'early'"):
            decoder.fit(single.train, validation=single.validation)
        return
    decoder.fit(single.train, validation=single.validation)
    assert decoder.score(single.test) > 0.3
    assert decoder.decode(single.test).posterior == {}


@pytest.mark.parametrize("name", NAMES)
def test_a_causal_decoder_does_not_read_the_future(name):
    """Everything with a time stamp after a moment is replaced; what is decoded before it stays, to the last bit."""
    recording = two_systems()
    before = cut(recording)
    decoder = quick(name, causal=True)
    if name == "softmax-bidirectional":
        with pytest.raises(NeurofuseError, match="cannot be causal in both directions"):
            decoder.fit(before.train, validation=before.validation)
        return
    decoder.fit(before.train, validation=before.validation)
    window = before.test[0]
    # A causal decoder reads the other clock up to its largest lag ahead of the query, by time stamps.
    moment = 30
    cutoff_s = float(window.time_s[0, moment]) - 0.025
    rng = np.random.default_rng(1)

    def replaced(signal, after_s):
        values = signal.data.values.copy()
        late = signal.time_s >= after_s - 1e-9
        values[late] = 5 * rng.standard_normal((int(late.sum()), values.shape[1]))
        return Signal.from_array(
            values, clock=signal.clock, name=signal.name, time_s=signal.time_s, kind=signal.kind
        )

    changed = recording.but(
        streams=(
            replaced(recording["a"], cutoff_s),
            replaced(recording["b"], cutoff_s + window.max_lag * 0.05),
        )
    )
    after = cut(changed).test[0]
    was, now = decoder.predict(window)[0], decoder.predict(after)[0]
    np.testing.assert_array_equal(was[:moment], now[:moment])
    assert np.abs(was[moment:] - now[moment:]).max() > 1e-3


@pytest.mark.parametrize("name", TRACKING)
def test_the_lag_of_each_window_is_found(name):
    parts = cut(two_systems(seconds=120, noise=0.3), jitter=WindowLag(0.2))
    decoder = make_decoder(name, **learned(name, width=32, n_steps=150, learning_rate=5e-3))
    prediction = decoder.fit(parts.train, validation=parts.validation).decode(parts.test)
    error_s = np.abs(prediction.lag_s[prediction.path["b"]] - parts.test.lag_s[..., 0])
    hit = (error_s <= 0.0501).mean()
    assert hit > (0.75 if name == "softmax" else 0.95)


def test_the_lag_is_found_without_a_label():
    """No injected lag: the second clock is late, and by how much is learned from the streams themselves."""
    late = cut(two_systems(seconds=120, noise=0.3, lag_s=0.2))
    assert np.isnan(late.train.lag_s).all()
    decoder = make_decoder("tracked", width=32, n_steps=200, learning_rate=5e-3)
    prediction = decoder.fit(late.train, validation=late.validation).decode(late.test)
    assert (np.abs(prediction.lag_s[prediction.path["b"]] - 0.2) <= 0.0501).mean() > 0.9


def test_tracking_the_lag_beats_the_assumption_that_clocks_agree():
    parts = cut(two_systems(seconds=120, noise=0.3), jitter=WindowLag(0.2))
    r2 = {
        name: make_decoder(name, width=32, n_steps=200, learning_rate=5e-3)
        .fit(parts.train, validation=parts.validation)
        .score(parts.test)
        for name in ("tracked", "early")
    }
    assert r2["tracked"] > r2["early"] + 0.15


def test_the_other_clock_may_be_absent_for_a_while(parts):
    recording = two_systems()
    b = recording["b"]
    holed = recording.but(streams=(recording["a"], b.between(0, 50)))
    decoder = quick("tracked").fit(parts.train, validation=parts.validation)
    prediction = decoder.decode(cut(holed).test)
    assert np.isfinite(prediction.movement).all()
    # Where nothing is left to be matched the posterior returns to the prior: it widens, then stays wide.
    last = prediction.posterior["b"][-1]
    spread = np.sqrt(last @ prediction.lag_s**2 - (last @ prediction.lag_s) ** 2)
    assert spread[-1] > 0.9 * prediction.lag_s.max() / np.sqrt(3)
    assert (np.diff(spread) > -1e-3).all()


def posterior_of(p_lag, p_matched):
    return LagPosterior(torch.tensor([[p_lag]]).log(), torch.tensor([[p_matched]]).logit())


@pytest.mark.parametrize(
    ("lag", "probability"),
    [(0.0, 0.8 * 0.3), (-0.5, 0.8 * 0.25), (2.0, 0.8 * 0.1), (np.inf, 0.2), (np.nan, 0.8), (3.0, 1.0)],
    ids=["on a lag", "between two", "at the end", "mismatched", "unknown", "beyond the search"],
)
def test_the_alignment_loss_is_the_negative_log_probability_of_what_is_known(lag, probability):
    posterior = posterior_of([0.1, 0.2, 0.3, 0.3, 0.1], 0.8)
    loss = alignment_loss(posterior, torch.tensor([[lag]]), torch.ones(1, 1, dtype=torch.bool), 2)
    assert float(loss) == pytest.approx(-np.log(probability), abs=1e-6)


def test_the_alignment_loss_accepts_lags_within_a_token():
    # Lags of -2 to 2 tokens in halves; 0.5 is the truth, so 0 and 1 count half.
    posterior = posterior_of([0.0, 0.0, 0.1, 0.0, 0.2, 0.3, 0.4, 0.0, 0.0], 1.0)
    loss = alignment_loss(posterior, torch.tensor([[0.5]]), torch.ones(1, 1, dtype=torch.bool), 2)
    assert float(loss) == pytest.approx(-np.log(0.1 + 0.3 + 0.2), abs=1e-6)


def test_the_recognition_loss_is_lower_where_windows_match_their_own_stream():
    g = torch.Generator().manual_seed(0)
    key = torch.nn.functional.normalize(torch.randn(4, 2, 24, 8, generator=g), dim=-1)
    prior = torch.zeros(5)
    good = recognition_loss(5 * key[:, :, 2:22], key, prior)
    bad = recognition_loss(5 * key.roll(1, 0)[:, :, 2:22], key, prior)
    assert float(good) < np.log(4) < float(bad)


def test_mismatched_windows_have_the_other_clock_of_their_neighbour(parts):
    batch = parts.train.batch(slice(0, 200))
    changed = mismatch_some(batch, 0.3, np.random.default_rng(0))
    mismatched = np.isinf(changed.lag[:, 0, 0])
    assert 0.2 < mismatched.mean() < 0.4
    np.testing.assert_array_equal(changed.values[1][mismatched], np.roll(batch.values[1], -1, 0)[mismatched])
    np.testing.assert_array_equal(changed.values[1][~mismatched], batch.values[1][~mismatched])
    np.testing.assert_array_equal(changed.values[0], batch.values[0])
    np.testing.assert_array_equal(changed.movement, batch.movement)


@pytest.mark.parametrize(("causal", "calibrated"), [(False, False), (False, True), (True, True)])
def test_a_lag_is_tracked_through_a_recording_and_across_its_gaps(parts, causal, calibrated):
    """The same as one pass over everything, window edges or not."""
    decoder = quick("tracked", causal=causal).fit(parts.train, validation=parts.validation)
    # No lag is known here, so nothing was calibrated; two cases are decoded as if it had been.
    hmm = decoder.network_.lag_attentions[0].hmm
    assert not bool(hmm.calibrated)
    hmm.calibrated.fill_(calibrated)
    X = parts.train[::7]
    X = X[(X.first < X.first[0] + 300) | (X.first > X.first[0] + 420)]  # a hole of some seconds
    prediction = decoder.decode_session(X)
    covered = np.unique(X.first[:, None] + np.arange(X.n_steps))
    hole = int(np.argmax(np.diff(covered)))
    network = decoder.network_
    with torch.no_grad():
        log_liks = []
        for lo, hi in ((covered[0], covered[hole] + 1), (covered[hole + 1], covered[-1] + 1)):
            one = X.recut(np.array([lo]), int(hi - lo))
            log_liks.append(network(*decoder.network_inputs(one.batch(slice(None))))[1].log_liks[0])
        n_between = (covered[hole + 1] - covered[hole] - 1) // 4 * 4 + (-(covered[hole] + 1 - covered[0])) % 4
        log_lik, unmatched = (
            torch.cat(
                [log_liks[0][k], torch.zeros(1, int(n_between), *log_liks[0][k].shape[2:]), log_liks[1][k]], 1
            )
            for k in (0, 1)
        )
        attention = network.lag_attentions[0]
        rates = attention.hmm.rates
        # A filter may not use the future, not even for the rates.
        if calibrated and not causal:
            rates = adapt_rates(rates, block_log_lik(log_lik, unmatched, attention.hmm.to_fine_LG, 4))
        fine_s, block_s = parts.train.tokens.token_s, 4 * parts.train.tokens.token_s
        found = prediction.rates["b"]
        assert found.drift == pytest.approx(float(rates.drift) * fine_s / block_s**0.5, rel=1e-3)
        assert found.jumps == pytest.approx(float(rates.jump) / block_s, rel=1e-3)
        # A search ends a little elsewhere with other rounding: both posteriors are at the rates of the prediction.
        drift, jump = (torch.tensor(x) for x in (found.drift * block_s**0.5 / fine_s, found.jumps * block_s))
        expected = attention.posterior(log_lik, unmatched, replace(rates, drift=drift, jump=jump))
    kept = np.r_[0 : hole + 1, hole + 1 + n_between : log_lik.shape[1]]
    place = np.searchsorted(covered, X.first[:, None] + np.arange(X.n_steps))
    np.testing.assert_allclose(
        prediction.posterior["b"], expected.p_lag_BTG[0, kept][place].numpy(), atol=1e-4
    )
    np.testing.assert_allclose(
        prediction.p_matched["b"], expected.p_matched_BT[0, kept][place].numpy(), atol=1e-4
    )
    assert prediction.path["b"].shape == X.shape
    # Windows with a lag each are independent.
    own = cut(two_systems(), jitter=WindowLag(0.2)).test
    np.testing.assert_array_equal(decoder.decode_session(own).movement, decoder.decode(own).movement)


def test_both_directions_read_through_one_posterior(parts):
    """The other clock's tokens read the anchor's before they are read: their values change, the lag does not."""
    decoder = quick("tracked", bidirectional=True, n_steps=20).fit(parts.train, validation=parts.validation)
    both = decoder.decode(parts.test)
    with torch.no_grad():
        for p in decoder.network_.attentions[0].reverse_value.parameters():
            p.zero_()
    one_way = decoder.decode(parts.test)
    np.testing.assert_array_equal(both.posterior["b"], one_way.posterior["b"])
    assert np.abs(both.movement - one_way.movement).max() > 1e-3
    assert np.isfinite(both.movement).all()


def test_the_oracle_is_given_the_lag_and_the_others_are_not():
    parts = cut(two_systems(), jitter=WindowLag(0.25))
    oracle = quick("oracle", n_steps=10).fit(parts.train, validation=parts.validation)
    prediction = oracle.decode(parts.test)
    lag_s = prediction.posterior["b"] @ prediction.lag_s
    np.testing.assert_allclose(lag_s, parts.test.lag_s[..., 0], atol=1e-5)
    tracked = quick("tracked", n_steps=10).fit(parts.train, validation=parts.validation)
    blind = replace(parts.test, jitter=None)
    np.testing.assert_array_equal(tracked.predict(blind), tracked.predict(parts.test))


@pytest.mark.parametrize("name", NAMES)
def test_a_held_back_stretch_is_not_trained_on(name, parts):
    """Without validation windows the last training windows are taken, and the weights do not depend on them."""
    X = parts.train
    y = X.movement.copy()
    whole = quick(name, **learned(name, n_steps=20))
    kept, check, _, _ = hold_back(X, y)
    assert kept.first.max() + kept.n_steps + kept.reach <= check.first.min()
    whole.fit(X, y)
    explicit = clone(whole).fit(kept, validation=check)
    np.testing.assert_array_equal(whole.predict(parts.test), explicit.predict(parts.test))


def test_ridge_solves_what_scikit_learn_solves(parts):
    from sklearn.linear_model import Ridge

    decoder = quick("ridge").fit(parts.train, validation=parts.validation)
    target = parts.train.movement
    design, scaled = decoder._rows(parts.train, target, once=True)
    other = Ridge(alpha=decoder.ridge_.penalty).fit(design.astype(np.float64), scaled)
    np.testing.assert_allclose(decoder.ridge_.weights, other.coef_, atol=2e-4)
    np.testing.assert_allclose(decoder.ridge_.intercept, other.intercept_, atol=2e-4)


def test_how_a_decoder_was_run_is_not_part_of_it(parts, tmp_path):
    decoder = quick("tracked", n_steps=2, device="cpu", progress=False).fit(parts.train)
    decoder.save_pretrained(tmp_path / "kept")
    config = json.loads((tmp_path / "kept" / "config.json").read_text())
    assert {"device", "progress"}.isdisjoint(config["parameters"])
    assert Decoder.from_pretrained(tmp_path / "kept").device == "auto"


def test_a_folder_that_is_not_a_checkpoint_is_refused_and_left_alone(parts, tmp_path):
    with pytest.raises(NeurofuseError, match="is not a neurofuse checkpoint"):
        Decoder.from_pretrained(tmp_path)
    decoder = quick("ridge").fit(parts.train, validation=parts.validation)
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(NeurofuseError, match="choose another folder"):
        decoder.save_pretrained(tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "keep me"
    decoder.save_pretrained(tmp_path / "kept")
    config = json.loads((tmp_path / "kept" / "config.json").read_text())
    (tmp_path / "kept" / "config.json").write_text(json.dumps(config | {"layout": "other"}))
    with pytest.raises(NeurofuseError, match="layout 'other'"):
        Decoder.from_pretrained(tmp_path / "kept")


def test_unknown_decoders_and_parameters_are_named():
    with pytest.raises(NeurofuseError, match="no decoder 'best'; choose one of tracked, constant"):
        make_decoder("best")
    with pytest.raises(NeurofuseError, match="has no option 'n_layers'"):
        make_decoder("tracked", n_layers=3)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_gives_nearly_the_same_numbers(parts):
    here = quick("tracked", device="cpu", dropout=0.0).fit(parts.train, validation=parts.validation)
    there = quick("tracked", device="cuda", dropout=0.0).fit(parts.train, validation=parts.validation)
    assert abs(here.score(parts.test) - there.score(parts.test)) < 0.05
