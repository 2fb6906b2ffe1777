"""The lag posterior against other computations: dense scores, enumeration of every path, planted lags."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ive, logsumexp

from neurofuse.errors import NeurofuseError
from neurofuse.lag.banded import band_read, band_read_reverse, band_scores, cubic_taps
from neurofuse.lag.hmm import (
    REACH,
    HMMRates,
    LagGrid,
    LagHMM,
    LagPrior,
    block_log_lik,
    constant_posterior,
    drift_taps,
    fine_grid,
    forward_backward,
    joint_log_lik,
    lag_posterior,
    smoother,
    viterbi,
)


def rates(n_lags, *, drift=1.0, jump=0.05, unmatch=0.1, rematch=0.2, prior=None):
    numbers = (torch.tensor(x, dtype=torch.float64) for x in (drift, jump, unmatch, rematch))
    log_prior = torch.zeros(n_lags) if prior is None else torch.as_tensor(prior)
    return HMMRates(*numbers, log_prior.double())


def same(n_lags):
    """The grid of fine lags is the grid of tokens."""
    return torch.eye(n_lags, dtype=torch.float64)


def transition(n_lags, r):
    """The HMM over (match, lag) as a matrix: row from, column to."""
    prior_G, mix, first = r.probabilities()
    taps = drift_taps(r.drift)
    lag = torch.zeros(n_lags, n_lags, dtype=torch.float64)
    for a in range(n_lags):
        for b in range(n_lags):
            if abs(a - b) <= REACH:
                lag[a, b] = lag[a, b] + (1 - r.jump) * taps[b - a + REACH]
    lag = lag + r.jump * prior_G
    return torch.kron(mix, lag), (first[:, None] * prior_G).flatten()


def every_path(block_JS, r):
    """Log probability of each of the S**J paths through (match, lag), and of what they emit."""
    n_blocks, n_states = block_JS.shape
    move, first = (x.numpy() for x in transition(n_states // 2, r))
    paths = np.array(list(itertools.product(range(n_states), repeat=n_blocks)))
    log_joint = np.log(first[paths[:, 0]]) + block_JS[np.arange(n_blocks), paths].sum(1)
    return paths, log_joint + np.log(move[paths[:, :-1], paths[:, 1:]]).sum(1)


def brute_force(log_lik_BJL, unmatched_BJ, r):
    """Forward-backward with dense matrices, recorded by autograd."""
    move, first = transition(log_lik_BJL.shape[-1], r)
    lik = joint_log_lik(log_lik_BJL, unmatched_BJ).flatten(-2).exp()
    ahead, behind = [first * lik[:, 0]], [torch.ones_like(lik[:, 0])]
    for j in range(1, lik.shape[1]):
        ahead.append(ahead[-1] @ move * lik[:, j])
        behind.append((behind[-1] * lik[:, -j]) @ move.T)
    both = torch.stack(ahead, 1) * torch.stack(behind[::-1], 1)
    return (both / both.sum(-1, keepdim=True)).unflatten(-1, (2, -1))


def together(posterior):
    """Probability of a match at each lag."""
    return posterior.p_lag_BTG * posterior.p_matched_BT[..., None]


@settings(max_examples=25, deadline=None)
@given(n_tokens=st.integers(1, 70), n_lags=st.integers(1, 9), seed=st.integers(0, 99))
def test_band_scores_are_the_diagonals_of_the_dense_product(n_tokens, n_lags, seed):
    g = torch.Generator().manual_seed(seed)
    query = torch.randn(2, 3, n_tokens, 4, generator=g, dtype=torch.float64)
    key = torch.randn(2, 3, n_tokens + n_lags - 1, 4, generator=g, dtype=torch.float64)
    dense = query @ key.transpose(-1, -2)
    expected = torch.stack([dense[..., t, t : t + n_lags] for t in range(n_tokens)], -2)
    torch.testing.assert_close(band_scores(query, key), expected)


@settings(max_examples=25, deadline=None)
@given(n_tokens=st.integers(1, 70), n_lags=st.integers(1, 9), seed=st.integers(0, 99))
def test_band_read_sums_values_at_each_lag(n_tokens, n_lags, seed):
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn(2, 1, n_tokens, n_lags, generator=g, dtype=torch.float64)
    value = torch.randn(2, 1, n_tokens + n_lags - 1, 5, generator=g, dtype=torch.float64)
    expected = sum(weight[..., lag, None] * value[..., lag : lag + n_tokens, :] for lag in range(n_lags))
    torch.testing.assert_close(band_read(weight, value), expected)


def test_blocks_and_dense_give_the_same_gradients():
    g = torch.Generator().manual_seed(0)
    query = torch.randn(1, 1, 40, 3, generator=g, dtype=torch.float64, requires_grad=True)
    key = torch.randn(1, 1, 44, 3, generator=g, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda q, k: band_read(band_scores(q, k).tanh(), k), (query, key))


def test_the_transposed_read_sums_the_anchor_tokens_that_match_each_token():
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(2, 11, 5, generator=g, dtype=torch.float64, requires_grad=True)
    query_in = torch.randn(2, 11, 3, generator=g, dtype=torch.float64, requires_grad=True)
    expected = torch.zeros(2, 15, 3, dtype=torch.float64)
    for t, lag in itertools.product(range(11), range(5)):
        expected[:, t + lag] += (weight[:, t, lag, None] * query_in[:, t]).detach()
    torch.testing.assert_close(band_read_reverse(weight, query_in).detach(), expected)
    assert torch.autograd.gradcheck(band_read_reverse, (weight, query_in))


@pytest.mark.parametrize("tokens_per_block", [1, 2])
def test_smoothing_equals_summing_over_every_path(tokens_per_block):
    g = np.random.default_rng(1)
    n_blocks, n_lags = 4, 3
    r = rates(n_lags, prior=g.normal(size=n_lags))
    score, unmatched = (
        torch.as_tensor(g.normal(size=(1, n_blocks * tokens_per_block, n_lags))),
        torch.as_tensor(g.normal(size=(1, n_blocks * tokens_per_block))),
    )
    block = block_log_lik(score, unmatched, same(n_lags), tokens_per_block)[0].flatten(-2).numpy()
    paths, log_joint = every_path(block, r)
    expected = np.array(
        [
            [np.exp(logsumexp(log_joint[paths[:, j] == s]) - logsumexp(log_joint)) for s in range(n_lags)]
            for j in range(n_blocks)
        ]
    )
    found = together(
        lag_posterior(score, unmatched, r, same(n_lags), tokens_per_block=tokens_per_block, causal=False)
    )[0].numpy()
    np.testing.assert_allclose(found, np.repeat(expected, tokens_per_block, axis=0), atol=1e-9)


def test_filtering_equals_summing_over_paths_up_to_now_inside_blocks_too():
    g = np.random.default_rng(2)
    n_blocks, tokens_per_block, n_lags = 3, 3, 3
    r = rates(n_lags, prior=g.normal(size=n_lags))
    score, unmatched = torch.as_tensor(g.normal(size=(1, 9, n_lags))), torch.as_tensor(g.normal(size=(1, 9)))
    found = together(
        lag_posterior(score, unmatched, r, same(n_lags), tokens_per_block=tokens_per_block, causal=True)
    )[0].numpy()
    for t in range(n_blocks * tokens_per_block):
        j, now = t // tokens_per_block, (torch.arange(9) <= t).double()
        block = block_log_lik(score * now[:, None], unmatched * now, same(n_lags), tokens_per_block)[
            0, : j + 1
        ].flatten(-2)
        paths, log_joint = every_path(block.numpy(), r)
        expected = [
            np.exp(logsumexp(log_joint[paths[:, j] == s]) - logsumexp(log_joint)) for s in range(n_lags)
        ]
        np.testing.assert_allclose(found[t], expected, atol=1e-9)


@pytest.mark.parametrize("n_lags", [4, 40])
def test_the_recursion_and_its_gradients_equal_brute_force(n_lags):
    """Wider than one slab of the drift, too; every rate has a gradient."""
    g = torch.Generator().manual_seed(3)
    score = torch.randn(2, 6, n_lags, generator=g, dtype=torch.float64, requires_grad=True)
    unmatched = torch.randn(2, 6, generator=g, dtype=torch.float64, requires_grad=True)
    r = rates(n_lags, drift=1.4, prior=torch.randn(n_lags, generator=g))
    leaves = [score, unmatched, *(x.requires_grad_() for x in vars(r).values())]
    weight = torch.randn(2, 6, n_lags, generator=g, dtype=torch.float64)
    found, expected = (
        together(smoother(joint_log_lik(score, unmatched), r)),
        brute_force(score, unmatched, r)[..., 0, :],
    )
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)
    for of_found, of_expected in zip(
        torch.autograd.grad((found * weight).sum(), leaves),
        torch.autograd.grad((expected * weight).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(of_found, of_expected, atol=1e-10, rtol=1e-8)


def test_gradients_through_the_filter_are_exact():
    g = torch.Generator().manual_seed(4)
    score = torch.randn(2, 7, 5, generator=g, dtype=torch.float64, requires_grad=True)
    unmatched = torch.randn(2, 7, generator=g, dtype=torch.float64, requires_grad=True)
    numbers = torch.tensor([1.2, 0.1, 0.2, 0.3], dtype=torch.float64, requires_grad=True)
    prior = torch.randn(5, generator=g, dtype=torch.float64, requires_grad=True)

    def run(s, n, x, p):
        return together(
            lag_posterior(s, n, HMMRates(*x, p), same(5), tokens_per_block=2, causal=True)
        ).square()

    assert torch.autograd.gradcheck(run, (score, unmatched, numbers, prior))


def test_an_hmm_that_never_moves_is_the_constant_lag():
    g = torch.Generator().manual_seed(4)
    score, unmatched = (
        torch.randn(3, 12, 6, generator=g, dtype=torch.float64),
        torch.randn(3, 12, generator=g, dtype=torch.float64),
    )
    # A match that never begins or ends, with even odds.
    r = rates(6, drift=0.0, jump=0.0, unmatch=1e-12, rematch=1e-12)
    for causal in (False, True):
        found = lag_posterior(score, unmatched, r, same(6), tokens_per_block=3, causal=causal)
        expected = constant_posterior(score, unmatched, r, same(6), causal=causal)
        torch.testing.assert_close(together(found), together(expected), atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("drift", [1e-3, 0.05, 0.3, 1.0, 1.8])
def test_a_step_has_its_nominal_variance_however_small(drift):
    taps = drift_taps(torch.tensor(drift, dtype=torch.float64)).numpy()
    step = np.arange(-REACH, REACH + 1)
    assert taps.sum() == pytest.approx(1)
    assert taps @ step**2 == pytest.approx(drift**2, rel=0.03)
    np.testing.assert_allclose(taps, ive(step, drift**2), atol=3e-4)
    assert torch.isfinite(drift_taps(torch.tensor(torch.inf))).all()
    # Two blocks drift as one whose variance is twice theirs.
    twice = drift_taps(torch.tensor(drift * 2**0.5, dtype=torch.float64)).numpy()
    np.testing.assert_allclose(np.convolve(taps, taps)[REACH:-REACH], twice, atol=2e-2)


def test_an_hmm_that_always_jumps_and_always_matches_is_softmax_attention_with_a_prior():
    g = torch.Generator().manual_seed(5)
    score = torch.randn(3, 12, 6, generator=g, dtype=torch.float64)
    r = rates(6, jump=1.0, unmatch=0.0, rematch=1.0, prior=np.arange(6.0))
    found = lag_posterior(score, torch.zeros(3, 12).double(), r, same(6), tokens_per_block=1, causal=False)
    torch.testing.assert_close(found.p_lag_BTG, (score + r.log_prior_G).softmax(-1))
    torch.testing.assert_close(found.p_matched_BT, torch.ones(3, 12).double())


def test_the_most_probable_path_beats_every_other_path():
    g = np.random.default_rng(6)
    for _ in range(5):
        r = rates(3, drift=0.8, jump=0.1, prior=g.normal(size=3))
        block = torch.as_tensor(2 * g.normal(size=(1, 5, 2, 3)))
        prior_G, mix, first = (x.numpy() for x in r.probabilities())
        taps = drift_taps(r.drift).numpy()
        # To the same lag by drift and by a jump are two paths through the states; the better one counts.
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
    r = rates(n_lags, drift=0.4, jump=0.01, unmatch=0.001)
    # The likelihood ratio of a unit-variance bump of height 2 is 2 * score up to a constant.
    log_lik, unmatched = torch.as_tensor(2.0 * score)[None], torch.zeros(1, n_tokens).double()
    found = lag_posterior(log_lik, unmatched, r, same(n_lags), tokens_per_block=4, causal=False)
    path = viterbi(block_log_lik(log_lik, unmatched, same(n_lags), 4), r)[0].numpy().repeat(4)
    assert (np.abs(path - truth) <= 1).mean() > 0.9
    assert (np.abs(found.p_lag_BTG[0].numpy().argmax(-1) - truth) <= 1).mean() > 0.9
    # A single token is ambiguous: without the HMM most lags are wrong.
    assert (np.abs(score.argmax(-1) - truth) <= 1).mean() < 0.75


def test_an_unmatched_stretch_is_detected_and_its_lag_is_remembered():
    g = np.random.default_rng(8)
    n_tokens, n_lags = 300, 21
    score = g.normal(size=(n_tokens, n_lags))
    matched = (np.arange(n_tokens) < 100) | (np.arange(n_tokens) >= 200)
    score[matched, 14] += 2.5
    # Log-likelihood ratio of a bump of height 2.5 in unit noise; without a match there is none.
    log_lik = torch.as_tensor(2.5 * score - 2.5**2 / 2)[None]
    r = rates(n_lags, drift=0.3, jump=0.01, unmatch=0.02, rematch=0.02)
    found = lag_posterior(
        log_lik, torch.zeros(1, n_tokens).double(), r, same(n_lags), tokens_per_block=4, causal=False
    )
    p_matched, lag = found.p_matched_BT[0].numpy(), found.p_lag_BTG[0].numpy()
    assert p_matched[:90].mean() > 0.95
    assert p_matched[110:190].mean() < 0.1
    assert p_matched[210:].mean() > 0.95
    spread = np.sqrt(lag @ np.arange(n_lags) ** 2 - (lag @ np.arange(n_lags)) ** 2)
    assert abs(lag[150] @ np.arange(n_lags) - 14) < 1.5
    assert spread[150] > 2 * spread[50], "wider in the middle of the gap"


def test_without_observations_the_lag_is_remembered_and_slowly_forgotten():
    r = rates(101, drift=1.0, jump=0.001, unmatch=1e-9)
    score = torch.zeros(1, 401, 101).double()
    score[0, 0, 50] = 50.0
    lag = lag_posterior(
        score, torch.zeros(1, 401).double(), r, same(101), tokens_per_block=1, causal=True
    ).p_lag_BTG[0]
    place = torch.arange(101).double() - 50
    variance = (lag * place**2).sum(-1).numpy()
    assert (np.diff(variance) > 0).all()
    # A random walk of variance one per block, from which one in a thousand jumps away per block.
    np.testing.assert_allclose(variance[100], 100 * 0.9 + 0.1 * 850, rtol=0.15)


def test_the_posterior_is_calibrated_under_its_own_model():
    g = np.random.default_rng(7)
    n_runs, n_tokens, n_lags = 300, 8, 15
    r = rates(n_lags, drift=0.6, jump=0.05, unmatch=0.05, rematch=0.3)
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
    log_lik = torch.as_tensor(1.5 * score - 1.5**2 / 2)
    found = lag_posterior(
        log_lik, torch.zeros(n_runs, n_tokens).double(), r, same(n_lags), tokens_per_block=1, causal=False
    )
    lag, p_matched = found.p_lag_BTG.numpy(), found.p_matched_BT.numpy()
    top, right = lag.max(-1), lag.argmax(-1) == truth
    for low, high in ((0.2, 0.5), (0.5, 0.8), (0.8, 1.0)):
        bin_ = matched & (top >= low) & (top < high)
        assert abs(right[bin_].mean() - top[bin_].mean()) < 0.07
        bin_ = (p_matched >= low) & (p_matched < high)
        assert abs(matched[bin_].mean() - p_matched[bin_].mean()) < 0.07


def test_cubic_interpolation_is_exact_on_the_grid_and_for_parabolas_in_numpy_and_torch():
    t = np.linspace(0, 1, 11)
    taps = np.stack(cubic_taps(t))
    np.testing.assert_allclose(np.stack(cubic_taps(torch.as_tensor(t))), taps)
    np.testing.assert_allclose(taps[:, 0], [0, 1, 0, 0])
    np.testing.assert_allclose(taps[:, -1], [0, 0, 1, 0], atol=1e-15)
    for power in (0, 1, 2):
        np.testing.assert_allclose(np.arange(-1.0, 3) ** power @ taps, t**power, atol=1e-14)


@pytest.mark.parametrize("n_lags", [2, 5, 11])
@pytest.mark.parametrize("steps", [1, 4])
def test_the_fine_grid_interpolates_log_likelihoods_and_values(n_lags, steps):
    to_fine_LG, to_tokens_GL = fine_grid(n_lags, steps)
    assert to_fine_LG.shape == (n_lags, (n_lags - 1) * steps + 1)
    torch.testing.assert_close(to_fine_LG[:, ::steps], torch.eye(n_lags))
    torch.testing.assert_close(to_tokens_GL.sum(1), torch.ones(to_tokens_GL.shape[0]))
    straight = torch.arange(n_lags).float()
    place = torch.arange(to_tokens_GL.shape[0]) / steps
    torch.testing.assert_close(to_tokens_GL @ straight, place)
    if n_lags > 4:
        inner = slice(steps, -steps)
        torch.testing.assert_close((straight @ to_fine_LG)[inner], place[inner])


def test_a_peak_between_two_lags_is_found_between_them():
    lag = torch.arange(21.0)
    for true in (9.25, 10.5, 11.75):
        score = -0.15 * (lag - true).square()[None, None].repeat(1, 40, 1)
        to_fine_LG, _ = fine_grid(21, 4)
        r = rates(81, drift=0.3, jump=0.001)
        found = lag_posterior(
            score.double(),
            torch.full((1, 40), -9.0).double(),
            r,
            to_fine_LG.double(),
            tokens_per_block=4,
            causal=False,
        )
        mean = found.p_lag_BTG[0, 20] @ (torch.arange(81.0).double() / 4)
        assert abs(float(mean) - true) < 0.05


def test_the_forward_pass_alone_is_the_first_of_both_directions():
    g = torch.Generator().manual_seed(9)
    block = torch.randn(2, 5, 2, 7, generator=g, dtype=torch.float64)
    r = rates(7)
    torch.testing.assert_close(
        forward_backward(block, r, directions=1)[0], forward_backward(block, r, directions=2)[0]
    )


def test_rates_start_as_they_are_documented_and_lie_in_range():
    with torch.no_grad():
        r = LagHMM(11, 4).rates
    assert float(r.drift) == pytest.approx(4 * 0.3)
    assert [round(float(x), 4) for x in (r.jump, r.unmatch, r.rematch)] == [0.01, 0.005, 0.02]
    assert r.log_prior_G.shape == (41,)


@pytest.mark.parametrize(("token_s", "fine"), [(0.02, 1), (0.01, 1), (0.01, 2), (0.04, 4)])
def test_a_drift_in_seconds_is_the_same_walk_on_every_grid(token_s, fine):
    """Some seconds without observations: the lag has spread by the drift times their root."""
    grid = LagGrid(4 * token_s, token_s / fine)
    n_lags = 2 * round(0.24 / token_s) + 1
    with torch.no_grad():
        r = LagHMM(n_lags, fine, prior=LagPrior.from_seconds(grid, drift=0.03, jumps=0.2)).rates
    assert r.in_seconds(grid) == pytest.approx((0.03, 0.2), rel=1e-5)
    n_fine, n_blocks = len(r.log_prior_G), round(2 / grid.block_s)
    still = HMMRates.from_seconds(
        grid, drift=0.03, jumps=0.0, unmatch=0.0, rematch=1.0, log_prior_G=torch.zeros(n_fine).double()
    )
    assert float(still.drift) == pytest.approx(float(r.drift), rel=1e-5)
    score = torch.zeros(1, n_blocks + 1, n_fine).double()
    score[0, 0, n_fine // 2] = 50.0
    block = joint_log_lik(score, torch.zeros(1, n_blocks + 1).double())
    p_lag = smoother(block, still).p_lag_BTG[0, -1].numpy()
    lag_s = grid.lag_step_s * (np.arange(n_fine) - n_fine // 2)
    assert np.sqrt(p_lag @ lag_s**2) == pytest.approx(0.03 * np.sqrt(n_blocks * grid.block_s), rel=0.02)


@pytest.mark.parametrize("skew_ppm", [20.0, -300.0, 3e5, 1.1e6])
def test_a_skew_becomes_the_walk_whose_steps_have_the_mean_square_of_its_own(skew_ppm):
    grid = LagGrid(0.08, 0.02)
    lag_s = 1e-6 * skew_ppm * grid.block_s * np.arange(400_000)
    step = np.diff(np.floor(lag_s / grid.lag_step_s))
    prior = LagPrior.from_seconds(grid, skew_ppm=skew_ppm)
    assert prior.drift == pytest.approx(np.sqrt(np.mean(step**2)), rel=0.02)


def test_twenty_ppm_is_the_drift_that_the_docstring_states():
    grid = LagGrid(0.08, 0.02)
    drift = grid.drift_s(LagPrior.from_seconds(grid, skew_ppm=20).drift)
    assert drift == pytest.approx(np.sqrt(20e-6 * 0.02), rel=1e-3)
    assert drift == pytest.approx(0.0006, abs=5e-5)


def test_fixed_rates_do_not_move_and_the_others_do():
    grid = LagGrid(0.08, 0.02)
    fixed, free = (
        LagHMM(11, 1, prior=LagPrior.from_seconds(grid, drift=0.05, jumps=0.5, fixed=f))
        for f in (True, False)
    )
    for hmm in (fixed, free):
        (hmm.rates.drift + hmm.rates.jump + hmm.rates.unmatch).backward()
        with torch.no_grad():
            hmm.log_drift += 0.1
            hmm.log_odds_P += 0.1
    assert float(fixed.log_drift.grad) == 0
    assert [bool(x) for x in fixed.log_odds_P.grad != 0] == [False, True, False]
    assert float(free.log_drift.grad) != 0
    assert fixed.rates.in_seconds(grid) == pytest.approx((0.05, 0.5), rel=1e-5)
    assert free.rates.in_seconds(grid)[0] > 0.1
    assert fixed.rates.unmatch.item() > 0.005


def test_a_lag_that_never_jumps_has_rates_without_nan():
    hmm = LagHMM(11, 1, prior=LagPrior.from_seconds(LagGrid(0.08, 0.02), jumps=0))
    block = torch.randn(1, 6, 2, 11, generator=torch.Generator().manual_seed(0))
    smoother(block, hmm.rates).log_lag_BTG[0, :, 3].sum().backward()
    assert hmm.rates.jump.item() == 0
    assert torch.isfinite(hmm.log_odds_P.grad).all()
    assert torch.isfinite(hmm.log_drift.grad)
    assert viterbi(block, hmm.rates).shape == (1, 6)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"drift": 0.0}, r"drift must be a positive number, in s per root second, got 0\.0"),
        ({"drift": -1e-3}, r"drift must be a positive number.*got -0\.001"),
        ({"drift": float("nan")}, "drift must be a positive number.*got nan"),
        ({"drift": "slow"}, "drift must be a positive number.*got 'slow'"),
        (
            {"drift": 1.0},
            r"drift=1 moves the lag by 14\.1 steps .*than the 6 .*at most 0\.424 s per root second",
        ),
        ({"skew_ppm": 0.0}, r"skew_ppm must be a number of either sign, not 0, got 0\.0"),
        ({"skew_ppm": 2e6}, r"skew_ppm=2e\+06 moves the lag by 8 steps .* at most 1\.5e\+06 ppm"),
        ({"drift": 0.01, "skew_ppm": 20.0}, r"drift=0\.01 and skew_ppm=20\.0 are both given.*give one"),
        ({"jumps": -1.0}, r"jumps must be a number per second from 0 to less than 12\.5, got -1\.0"),
        ({"jumps": 12.5}, r"jumps must be a number per second from 0 to less than 12\.5, got 12\.5"),
    ],
)
def test_rates_that_make_no_sense_are_refused_in_one_sentence(given, sentence):
    with pytest.raises(NeurofuseError, match=sentence):
        LagPrior.from_seconds(LagGrid(0.08, 0.02), **given)
