"""The lag posterior against other roads: dense scores, enumeration of every path, planted lags."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp, softmax

from neurofuse.decoders.lag import (
    ChainRates,
    band_read,
    band_scores,
    constant_posterior,
    lag_path,
    lag_posterior,
)


def rates(n_lags, *, step=0.1, leak=0.05, prior=None):
    log_prior = torch.zeros(n_lags) if prior is None else torch.as_tensor(prior)
    return ChainRates(torch.tensor(step).double(), torch.tensor(leak).double(), log_prior.double())


def transition(n_lags, r):
    """The chain as a matrix: row from, column to; steps over the edge stay."""
    matrix = np.zeros((n_lags, n_lags))
    for a in range(n_lags):
        for move, p in ((-1, float(r.step)), (0, 1 - 2 * float(r.step)), (1, float(r.step))):
            matrix[a, min(max(a + move, 0), n_lags - 1)] += p
    prior = softmax(r.log_prior_L.numpy())
    return (1 - float(r.leak)) * matrix + float(r.leak) * prior


def every_path(block_JL, r):
    """Log joint of each of the L**J paths."""
    n_blocks, n_lags = block_JL.shape
    prior, move = softmax(r.log_prior_L.numpy()), transition(n_lags, r)
    paths = list(itertools.product(range(n_lags), repeat=n_blocks))
    log_joint = []
    for path in paths:
        total = np.log(prior[path[0]]) + block_JL[0, path[0]]
        for j in range(1, n_blocks):
            total += np.log(move[path[j - 1], path[j]]) + block_JL[j, path[j]]
        log_joint.append(total)
    return np.array(paths), np.array(log_joint)


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


@pytest.mark.parametrize("every", [1, 2])
def test_smoothing_equals_summing_over_every_path(every):
    g = np.random.default_rng(1)
    n_blocks, n_lags = 4, 5
    r = rates(n_lags, prior=g.normal(size=n_lags))
    score = g.normal(size=(n_blocks * every, n_lags))
    block = score.reshape(n_blocks, every, n_lags).sum(1)
    paths, log_joint = every_path(block, r)
    wanted = np.array(
        [
            [np.exp(logsumexp(log_joint[paths[:, j] == lag]) - logsumexp(log_joint)) for lag in range(n_lags)]
            for j in range(n_blocks)
        ]
    )
    found = lag_posterior(torch.as_tensor(score)[None], r, every=every, causal=False)[0].numpy()
    np.testing.assert_allclose(found, np.repeat(wanted, every, axis=0), atol=1e-9)


def test_filtering_equals_summing_over_paths_up_to_now_inside_blocks_too():
    g = np.random.default_rng(2)
    n_blocks, every, n_lags = 3, 3, 4
    r = rates(n_lags, prior=g.normal(size=n_lags))
    score = g.normal(size=(n_blocks * every, n_lags))
    found = lag_posterior(torch.as_tensor(score)[None], r, every=every, causal=True)[0].numpy()
    for t in range(len(score)):
        past = score.copy()
        past[t + 1 :] = 0
        j = t // every
        block = past.reshape(n_blocks, every, n_lags).sum(1)[: j + 1]
        paths, log_joint = every_path(block, r)
        wanted = [
            np.exp(logsumexp(log_joint[paths[:, j] == lag]) - logsumexp(log_joint)) for lag in range(n_lags)
        ]
        np.testing.assert_allclose(found[t], wanted, atol=1e-9)


def test_gradients_through_the_chain_are_exact():
    g = torch.Generator().manual_seed(3)
    score = torch.randn(2, 7, 5, generator=g, dtype=torch.float64, requires_grad=True)
    logits = torch.randn(2, generator=g, dtype=torch.float64, requires_grad=True)
    prior = torch.randn(5, generator=g, dtype=torch.float64, requires_grad=True)

    def run(s, x, p):
        r = ChainRates(0.5 * x[0].sigmoid(), x[1].sigmoid(), p)
        return lag_posterior(s, r, every=2, causal=False).square(), lag_posterior(
            s, r, every=2, causal=True
        ).square()

    assert torch.autograd.gradcheck(run, (score, logits, prior))


def test_a_chain_that_never_moves_is_the_constant_lag():
    g = torch.Generator().manual_seed(4)
    score = torch.randn(3, 12, 6, generator=g, dtype=torch.float64)
    r = rates(6, step=0.0, leak=0.0)
    for causal in (False, True):
        torch.testing.assert_close(
            lag_posterior(score, r, every=3, causal=causal),
            constant_posterior(score, r.log_prior_L, causal=causal),
        )


def test_a_chain_that_always_jumps_is_softmax_attention_with_a_prior():
    g = torch.Generator().manual_seed(5)
    score = torch.randn(3, 12, 6, generator=g, dtype=torch.float64)
    r = rates(6, leak=1.0, prior=np.arange(6.0))
    found = lag_posterior(score, r, every=1, causal=False)
    torch.testing.assert_close(found, (score + r.log_prior_L).softmax(-1))


def test_the_most_probable_path_beats_every_other_path():
    g = np.random.default_rng(6)
    for _ in range(5):
        r = rates(4, step=0.2, leak=0.1, prior=g.normal(size=4))
        score, prior = 2 * g.normal(size=(5, 4)), softmax(r.log_prior_L.numpy())
        local = transition(4, ChainRates(r.step, torch.tensor(0.0), r.log_prior_L))
        # To the same lag by a step and by a jump are two paths of the hidden chain; the better one counts.
        inner = np.diag(np.full(4, 1 - 2 * float(r.step))) + np.where(local > 0, 1 - np.eye(4), 0) * float(
            r.step
        )
        move = np.maximum(0.9 * inner, 0.1 * prior)
        paths = np.array(list(itertools.product(range(4), repeat=5)))
        log_joint = np.log(prior[paths[:, 0]]) + score[np.arange(5), paths].sum(1)
        log_joint += np.log(move[paths[:, :-1], paths[:, 1:]]).sum(1)
        found = lag_path(torch.as_tensor(score)[None], r, every=1)[0].numpy()
        np.testing.assert_array_equal(found, paths[log_joint.argmax()])


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
    r = rates(n_lags, step=0.05, leak=0.01)
    # The likelihood ratio of a unit-variance bump of height 2 is 2 * score up to a constant.
    posterior = lag_posterior(torch.as_tensor(2.0 * score)[None], r, every=4, causal=False)[0].numpy()
    path = lag_path(torch.as_tensor(2.0 * score)[None], r, every=4)[0].numpy()
    assert (np.abs(path - truth) <= 1).mean() > 0.9
    assert (np.abs(posterior.argmax(-1) - truth) <= 1).mean() > 0.9
    # One moment alone says little: without the chain most lags are wrong.
    assert (np.abs(score.argmax(-1) - truth) <= 1).mean() < 0.75


def test_the_posterior_says_how_sure_it_may_be():
    g = np.random.default_rng(7)
    n_runs, n_tokens, n_lags = 300, 8, 15
    r = rates(n_lags, step=0.1, leak=0.05)
    move, prior = transition(n_lags, r), softmax(r.log_prior_L.numpy())
    truth = np.empty((n_runs, n_tokens), dtype=int)
    truth[:, 0] = g.choice(n_lags, n_runs, p=prior)
    for t in range(1, n_tokens):
        truth[:, t] = [g.choice(n_lags, p=move[k]) for k in truth[:, t - 1]]
    score = g.normal(size=(n_runs, n_tokens, n_lags))
    np.put_along_axis(score, truth[..., None], np.take_along_axis(score, truth[..., None], -1) + 1.5, -1)
    posterior = lag_posterior(torch.as_tensor(1.5 * score), r, every=1, causal=False).numpy()
    said = np.take_along_axis(posterior, posterior.argmax(-1)[..., None], -1)[..., 0]
    right = posterior.argmax(-1) == truth
    for low, high in ((0.2, 0.5), (0.5, 0.8), (0.8, 1.0)):
        mine = (said >= low) & (said < high)
        assert abs(right[mine].mean() - said[mine].mean()) < 0.05
