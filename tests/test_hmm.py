"""The lag posterior against other roads: dense scores, enumeration of every path, planted lags."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ive, logsumexp

from neurofuse.lag.banded import band_answer, band_read, band_scores
from neurofuse.lag.hmm import (
    REACH,
    HMMRates,
    LagHMM,
    block_log_lik,
    constant_posterior,
    drift_taps,
    finer,
    joint_log_lik,
    lag_posterior,
    messages,
    smooth,
    viterbi,
)


def rates(n_lags, *, drift=1.0, jump=0.05, lose=0.1, find=0.2, prior=None):
    numbers = (torch.tensor(x, dtype=torch.float64) for x in (drift, jump, lose, find))
    log_prior = torch.zeros(n_lags) if prior is None else torch.as_tensor(prior)
    return HMMRates(*numbers, log_prior.double())


def same(n_lags):
    """No finer grid."""
    return torch.eye(n_lags, dtype=torch.float64)


def transition(n_lags, r):
    """The chain over (match, lag) as a matrix: row from, column to."""
    prior_G, mix, first = r.parts()
    taps = drift_taps(r.drift)
    lag = torch.zeros(n_lags, n_lags, dtype=torch.float64)
    for a in range(n_lags):
        for b in range(n_lags):
            if abs(a - b) <= REACH:
                lag[a, b] = lag[a, b] + (1 - r.jump) * taps[b - a + REACH]
    lag = lag + r.jump * prior_G
    return torch.kron(mix, lag), (first[:, None] * prior_G).flatten()


def every_path(block_JS, r):
    """Log joint_log_lik of each of the S**J paths through (match, lag)."""
    n_blocks, n_states = block_JS.shape
    move, first = (x.numpy() for x in transition(n_states // 2, r))
    paths = np.array(list(itertools.product(range(n_states), repeat=n_blocks)))
    log_joint = np.log(first[paths[:, 0]]) + block_JS[np.arange(n_blocks), paths].sum(1)
    return paths, log_joint + np.log(move[paths[:, :-1], paths[:, 1:]]).sum(1)


def brute_force(score_BJL, lost_BJ, r):
    """Forward-backward with dense matrices, recorded by autograd."""
    move, first = transition(score_BJL.shape[-1], r)
    likely = joint_log_lik(score_BJL, lost_BJ).flatten(-2).exp()
    ahead, behind = [first * likely[:, 0]], [torch.ones_like(likely[:, 0])]
    for j in range(1, likely.shape[1]):
        ahead.append(ahead[-1] @ move * likely[:, j])
        behind.append((behind[-1] * likely[:, -j]) @ move.T)
    both = torch.stack(ahead, 1) * torch.stack(behind[::-1], 1)
    return (both / both.sum(-1, keepdim=True)).unflatten(-1, (2, -1))


def together(posterior):
    """Probability of a match at each lag."""
    return posterior.lag_BTG * posterior.match_BT[..., None]


@settings(max_examples=25, deadline=None)
@given(n_tokens=st.integers(1, 70), n_lags=st.integers(1, 9), seed=st.integers(0, 99))
def test_band_scores_are_the_diagonals_of_the_dense_product(n_tokens, n_lags, seed):
    g = torch.Generator().manual_seed(seed)
    query = torch.randn(2, 3, n_tokens, 4, generator=g, dtype=torch.float64)
    key = torch.randn(2, 3, n_tokens + n_lags - 1, 4, generator=g, dtype=torch.float64)
    dense = query @ key.transpose(-1, -2)
    wanted = torch.stack([dense[..., t, t : t + n_lags] for t in range(n_tokens)], -2)
    torch.testing.assert_close(band_scores(query, key), wanted)


@settings(max_examples=25, deadline=None)
@given(n_tokens=st.integers(1, 70), n_lags=st.integers(1, 9), seed=st.integers(0, 99))
def test_band_read_sums_values_at_each_lag(n_tokens, n_lags, seed):
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn(2, 1, n_tokens, n_lags, generator=g, dtype=torch.float64)
    value = torch.randn(2, 1, n_tokens + n_lags - 1, 5, generator=g, dtype=torch.float64)
    wanted = sum(weight[..., lag, None] * value[..., lag : lag + n_tokens, :] for lag in range(n_lags))
    torch.testing.assert_close(band_read(weight, value), wanted)


def test_blocks_and_dense_give_the_same_gradients():
    g = torch.Generator().manual_seed(0)
    query = torch.randn(1, 1, 40, 3, generator=g, dtype=torch.float64, requires_grad=True)
    key = torch.randn(1, 1, 44, 3, generator=g, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda q, k: band_read(band_scores(q, k).tanh(), k), (query, key))


def test_the_other_way_through_the_band_sums_what_belongs_to_each_token():
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(2, 11, 5, generator=g, dtype=torch.float64, requires_grad=True)
    asking = torch.randn(2, 11, 3, generator=g, dtype=torch.float64, requires_grad=True)
    wanted = torch.zeros(2, 15, 3, dtype=torch.float64)
    for t, lag in itertools.product(range(11), range(5)):
        wanted[:, t + lag] += (weight[:, t, lag, None] * asking[:, t]).detach()
    torch.testing.assert_close(band_answer(weight, asking).detach(), wanted)
    assert torch.autograd.gradcheck(band_answer, (weight, asking))


@pytest.mark.parametrize("every", [1, 2])
def test_smoothing_equals_summing_over_every_path(every):
    g = np.random.default_rng(1)
    n_blocks, n_lags = 4, 3
    r = rates(n_lags, prior=g.normal(size=n_lags))
    score, lost = (
        torch.as_tensor(g.normal(size=(1, n_blocks * every, n_lags))),
        torch.as_tensor(g.normal(size=(1, n_blocks * every))),
    )
    block = block_log_lik(score, lost, same(n_lags), every)[0].flatten(-2).numpy()
    paths, log_joint = every_path(block, r)
    wanted = np.array(
        [
            [np.exp(logsumexp(log_joint[paths[:, j] == s]) - logsumexp(log_joint)) for s in range(n_lags)]
            for j in range(n_blocks)
        ]
    )
    found = together(lag_posterior(score, lost, r, same(n_lags), every=every, causal=False))[0].numpy()
    np.testing.assert_allclose(found, np.repeat(wanted, every, axis=0), atol=1e-9)


def test_filtering_equals_summing_over_paths_up_to_now_inside_blocks_too():
    g = np.random.default_rng(2)
    n_blocks, every, n_lags = 3, 3, 3
    r = rates(n_lags, prior=g.normal(size=n_lags))
    score, lost = torch.as_tensor(g.normal(size=(1, 9, n_lags))), torch.as_tensor(g.normal(size=(1, 9)))
    found = together(lag_posterior(score, lost, r, same(n_lags), every=every, causal=True))[0].numpy()
    for t in range(n_blocks * every):
        j, now = t // every, (torch.arange(9) <= t).double()
        block = block_log_lik(score * now[:, None], lost * now, same(n_lags), every)[0, : j + 1].flatten(-2)
        paths, log_joint = every_path(block.numpy(), r)
        wanted = [
            np.exp(logsumexp(log_joint[paths[:, j] == s]) - logsumexp(log_joint)) for s in range(n_lags)
        ]
        np.testing.assert_allclose(found[t], wanted, atol=1e-9)


@pytest.mark.parametrize("n_lags", [4, 40])
def test_the_recursion_and_its_gradients_equal_brute_force(n_lags):
    """Wider than one slab of the drift, too; every rate has a gradient."""
    g = torch.Generator().manual_seed(3)
    score = torch.randn(2, 6, n_lags, generator=g, dtype=torch.float64, requires_grad=True)
    lost = torch.randn(2, 6, generator=g, dtype=torch.float64, requires_grad=True)
    r = rates(n_lags, drift=1.4, prior=torch.randn(n_lags, generator=g))
    leaves = [score, lost, *(x.requires_grad_() for x in vars(r).values())]
    weight = torch.randn(2, 6, n_lags, generator=g, dtype=torch.float64)
    found, wanted = together(smooth(joint_log_lik(score, lost), r)), brute_force(score, lost, r)[..., 0, :]
    torch.testing.assert_close(found, wanted, atol=1e-10, rtol=0)
    for got, expected in zip(
        torch.autograd.grad((found * weight).sum(), leaves),
        torch.autograd.grad((wanted * weight).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(got, expected, atol=1e-10, rtol=1e-8)


def test_gradients_through_the_filter_are_exact():
    g = torch.Generator().manual_seed(4)
    score = torch.randn(2, 7, 5, generator=g, dtype=torch.float64, requires_grad=True)
    lost = torch.randn(2, 7, generator=g, dtype=torch.float64, requires_grad=True)
    numbers = torch.tensor([1.2, 0.1, 0.2, 0.3], dtype=torch.float64, requires_grad=True)
    prior = torch.randn(5, generator=g, dtype=torch.float64, requires_grad=True)

    def run(s, n, x, p):
        return together(lag_posterior(s, n, HMMRates(*x, p), same(5), every=2, causal=True)).square()

    assert torch.autograd.gradcheck(run, (score, lost, numbers, prior))


def test_a_chain_that_never_moves_is_the_constant_lag():
    g = torch.Generator().manual_seed(4)
    score, lost = (
        torch.randn(3, 12, 6, generator=g, dtype=torch.float64),
        torch.randn(3, 12, generator=g, dtype=torch.float64),
    )
    # A match that is kept for good and never lost, in the proportion one to one.
    r = rates(6, drift=0.0, jump=0.0, lose=1e-12, find=1e-12)
    for causal in (False, True):
        found = lag_posterior(score, lost, r, same(6), every=3, causal=causal)
        wanted = constant_posterior(score, lost, r, same(6), causal=causal)
        torch.testing.assert_close(together(found), together(wanted), atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("drift", [1e-3, 0.05, 0.3, 1.0, 1.8])
def test_a_step_has_the_variance_it_is_said_to_have_however_small(drift):
    taps = drift_taps(torch.tensor(drift, dtype=torch.float64)).numpy()
    step = np.arange(-REACH, REACH + 1)
    assert taps.sum() == pytest.approx(1)
    assert taps @ step**2 == pytest.approx(drift**2, rel=0.03)
    np.testing.assert_allclose(taps, ive(step, drift**2), atol=3e-4)
    assert torch.isfinite(drift_taps(torch.tensor(torch.inf))).all()
    # Two blocks drift as one whose variance is twice theirs.
    twice = drift_taps(torch.tensor(drift * 2**0.5, dtype=torch.float64)).numpy()
    np.testing.assert_allclose(np.convolve(taps, taps)[REACH:-REACH], twice, atol=2e-2)


def test_a_chain_that_always_jumps_and_never_loses_is_softmax_attention_with_a_prior():
    g = torch.Generator().manual_seed(5)
    score = torch.randn(3, 12, 6, generator=g, dtype=torch.float64)
    r = rates(6, jump=1.0, lose=0.0, find=1.0, prior=np.arange(6.0))
    found = lag_posterior(score, torch.zeros(3, 12).double(), r, same(6), every=1, causal=False)
    torch.testing.assert_close(found.lag_BTG, (score + r.log_prior_G).softmax(-1))
    torch.testing.assert_close(found.match_BT, torch.ones(3, 12).double())


def test_the_most_probable_path_beats_every_other_path():
    g = np.random.default_rng(6)
    for _ in range(5):
        r = rates(3, drift=0.8, jump=0.1, prior=g.normal(size=3))
        block = torch.as_tensor(2 * g.normal(size=(1, 5, 2, 3)))
        prior_G, mix, first = (x.numpy() for x in r.parts())
        taps = drift_taps(r.drift).numpy()
        # To the same lag by drift and by a jump are two paths of the hidden chain; the better one counts.
        lag = np.array(
            [[max(0.9 * taps[b - a + REACH], 0.1 * prior_G[b]) for b in range(3)] for a in range(3)]
        )
        move = np.kron(mix, lag)
        flat = block[0].flatten(-2).numpy()
        paths = np.array(list(itertools.product(range(6), repeat=5)))
        log_joint = np.log((first[:, None] * prior_G).ravel()[paths[:, 0]]) + flat[np.arange(5), paths].sum(1)
        log_joint += np.log(move[paths[:, :-1], paths[:, 1:]]).sum(1)
        np.testing.assert_array_equal(viterbi(block, r)[0].numpy(), paths[log_joint.argmax()] % 3)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_a_planted_lag_that_drifts_and_jumps_is_found(seed):
    g = np.random.default_rng(seed)
    n_tokens, n_lags = 240, 31
    truth = np.clip(15 + np.cumsum(g.choice([-1, 0, 1], n_tokens // 4, p=[0.05, 0.9, 0.05])), 2, 28)
    truth[30:] = (truth[30:] + 9) % n_lags
    truth = np.repeat(truth, 4)
    score = g.normal(size=(n_tokens, n_lags))
    score[np.arange(n_tokens), truth] += 2.0
    r = rates(n_lags, drift=0.4, jump=0.01, lose=0.001)
    # The likelihood ratio of a unit-variance bump of height 2 is 2 * score up to a constant.
    said, lost = torch.as_tensor(2.0 * score)[None], torch.zeros(1, n_tokens).double()
    found = lag_posterior(said, lost, r, same(n_lags), every=4, causal=False)
    path = viterbi(block_log_lik(said, lost, same(n_lags), 4), r)[0].numpy().repeat(4)
    assert (np.abs(path - truth) <= 1).mean() > 0.9
    assert (np.abs(found.lag_BTG[0].numpy().argmax(-1) - truth) <= 1).mean() > 0.9
    # One moment alone says little: without the chain most lags are wrong.
    assert (np.abs(score.argmax(-1) - truth) <= 1).mean() < 0.75


def test_a_lost_match_is_noticed_and_the_lag_is_kept_in_mind():
    g = np.random.default_rng(8)
    n_tokens, n_lags = 300, 21
    score = g.normal(size=(n_tokens, n_lags))
    matched = (np.arange(n_tokens) < 100) | (np.arange(n_tokens) >= 200)
    score[matched, 14] += 2.5
    # Log-likelihood ratio of a bump of height 2.5 in unit noise; without a match there is none.
    said = torch.as_tensor(2.5 * score - 2.5**2 / 2)[None]
    r = rates(n_lags, drift=0.3, jump=0.01, lose=0.02, find=0.02)
    found = lag_posterior(said, torch.zeros(1, n_tokens).double(), r, same(n_lags), every=4, causal=False)
    match, lag = found.match_BT[0].numpy(), found.lag_BTG[0].numpy()
    assert match[:90].mean() > 0.95
    assert match[110:190].mean() < 0.1
    assert match[210:].mean() > 0.95
    spread = np.sqrt(lag @ np.arange(n_lags) ** 2 - (lag @ np.arange(n_lags)) ** 2)
    assert abs(lag[150] @ np.arange(n_lags) - 14) < 1.5
    assert spread[150] > 2 * spread[50], "less sure in the middle of the gap"


def test_without_evidence_the_lag_is_remembered_and_slowly_forgotten():
    r = rates(101, drift=1.0, jump=0.001, lose=1e-9)
    score = torch.zeros(1, 401, 101).double()
    score[0, 0, 50] = 50.0
    lag = lag_posterior(score, torch.zeros(1, 401).double(), r, same(101), every=1, causal=True).lag_BTG[0]
    place = torch.arange(101).double() - 50
    variance = (lag * place**2).sum(-1).numpy()
    assert (np.diff(variance) > 0).all()
    # A random walk of variance one a block, from which one in a thousand jumps away a block.
    np.testing.assert_allclose(variance[100], 100 * 0.9 + 0.1 * 850, rtol=0.15)


def test_the_posterior_says_how_sure_it_may_be():
    g = np.random.default_rng(7)
    n_runs, n_tokens, n_lags = 300, 8, 15
    r = rates(n_lags, drift=0.6, jump=0.05, lose=0.05, find=0.3)
    move, first = (x.numpy() for x in transition(n_lags, r))
    move /= move.sum(1, keepdims=True)
    state = np.empty((n_runs, n_tokens), dtype=int)
    state[:, 0] = g.choice(2 * n_lags, n_runs, p=first)
    for t in range(1, n_tokens):
        state[:, t] = [g.choice(2 * n_lags, p=move[k]) for k in state[:, t - 1]]
    truth, matched = state % n_lags, state < n_lags
    score = g.normal(size=(n_runs, n_tokens, n_lags))
    bump = np.take_along_axis(score, truth[..., None], -1) + 1.5 * matched[..., None]
    np.put_along_axis(score, truth[..., None], bump, -1)
    said = torch.as_tensor(1.5 * score - 1.5**2 / 2)
    found = lag_posterior(
        said, torch.zeros(n_runs, n_tokens).double(), r, same(n_lags), every=1, causal=False
    )
    lag, match = found.lag_BTG.numpy(), found.match_BT.numpy()
    sure, right = lag.max(-1), lag.argmax(-1) == truth
    for low, high in ((0.2, 0.5), (0.5, 0.8), (0.8, 1.0)):
        mine = matched & (sure >= low) & (sure < high)
        assert abs(right[mine].mean() - sure[mine].mean()) < 0.07
        mine = (match >= low) & (match < high)
        assert abs(matched[mine].mean() - match[mine].mean()) < 0.07


@pytest.mark.parametrize("n_lags", [2, 5, 11])
@pytest.mark.parametrize("steps", [1, 4])
def test_the_finer_grid_interpolates_and_reads_between_lags(n_lags, steps):
    up_LG, down_GL = finer(n_lags, steps)
    assert up_LG.shape == (n_lags, (n_lags - 1) * steps + 1)
    torch.testing.assert_close(up_LG[:, ::steps], torch.eye(n_lags))
    torch.testing.assert_close(down_GL.sum(1), torch.ones(down_GL.shape[0]))
    straight = torch.arange(n_lags).float()
    place = torch.arange(down_GL.shape[0]) / steps
    torch.testing.assert_close(down_GL @ straight, place)
    if n_lags > 4:
        inner = slice(steps, -steps)
        torch.testing.assert_close((straight @ up_LG)[inner], place[inner])


def test_a_peak_between_two_lags_is_found_between_them():
    lag = torch.arange(21.0)
    for true in (9.25, 10.5, 11.75):
        score = -0.15 * (lag - true).square()[None, None].repeat(1, 40, 1)
        up_LG, _ = finer(21, 4)
        r = rates(81, drift=0.3, jump=0.001)
        found = lag_posterior(
            score.double(), torch.full((1, 40), -9.0).double(), r, up_LG.double(), every=4, causal=False
        )
        said = found.lag_BTG[0, 20] @ (torch.arange(81.0).double() / 4)
        assert abs(float(said) - true) < 0.05


def test_messages_of_one_direction_are_the_first_of_two():
    g = torch.Generator().manual_seed(9)
    block = torch.randn(2, 5, 2, 7, generator=g, dtype=torch.float64)
    r = rates(7)
    torch.testing.assert_close(messages(block, r, directions=1)[0], messages(block, r, directions=2)[0])


def test_rates_start_as_they_are_documented_and_lie_in_range():
    with torch.no_grad():
        r = LagHMM(11, 4).rates
    assert float(r.drift) == pytest.approx(4 * 0.3)
    assert [round(float(x), 4) for x in (r.jump, r.lose, r.find)] == [0.01, 0.005, 0.02]
    assert r.log_prior_G.shape == (41,)
