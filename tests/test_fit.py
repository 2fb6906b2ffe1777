"""The training loop and initial weights: planted problems and schedules; torch's global generators stay untouched."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import nn

from neurofuse.nets.encoders import SeededDropout, initialise
from neurofuse.nets.fit import Callback, fit_network, shuffled, warm_cosine
from neurofuse.nets.seeding import new_network, seeded

TRUE = torch.tensor([[1.0, -2.0, 0.5]])


def linear_problem(n=64, noise=0.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, generator=generator)
    return x, x @ TRUE.T + noise * torch.randn(n, 1, generator=generator)


def fit(network, x, y, *, validation=None, **how):
    settings = {
        "n_steps": 200,
        "batch_size": 16,
        "learning_rate": 0.1,
        "check_every": 20,
        "patience": 100,
    } | how
    return fit_network(
        network,
        draw=lambda rows: (x[rows], y[rows]),
        loss=lambda batch: (network(batch[0]) - batch[1]).square().mean(),
        validation_loss=validation or (lambda: float((network(x) - y).square().mean())),
        n_rows=len(x),
        rng=np.random.default_rng(0),
        **settings,
    )


def linear():
    return new_network(lambda: nn.Linear(3, 1), seed=0)


def test_a_planted_linear_map_is_found_and_its_course_kept():
    network = linear()
    history = fit(network, *linear_problem())
    torch.testing.assert_close(network.weight.detach(), TRUE, atol=0.02, rtol=0)
    assert history["step"] == list(range(20, 201, 20))
    assert set(history) == {"step", "train", "validation"}
    assert history["validation"][-1] < 1e-2 * history["validation"][0]
    assert not network.training


def test_training_stops_after_checks_without_improvement_and_keeps_the_best_weights():
    network, losses, weights = linear(), iter([3.0, 1.0, 2.0, 2.0, 0.0]), []

    def validation():
        assert not network.training
        assert not torch.is_grad_enabled()
        weights.append(network.weight.detach().clone())
        return next(losses)

    history = fit(network, *linear_problem(), validation=validation, patience=2)
    assert history["validation"] == [3.0, 1.0, 2.0, 2.0]
    torch.testing.assert_close(network.weight.detach(), weights[1], atol=0, rtol=0)


def test_the_last_step_is_checked_too():
    assert fit(linear(), *linear_problem(), n_steps=30)["step"] == [20, 30]


def test_every_row_is_drawn_once_before_any_is_drawn_again():
    batches = shuffled(10, 4, np.random.default_rng(0))
    rows = np.concatenate([next(batches) for _ in range(5)])
    assert sorted(rows[:10]) == sorted(rows[10:]) == list(range(10))
    assert len(next(shuffled(3, 8, np.random.default_rng(0)))) == 3


def test_callbacks_surround_every_update_and_report_at_every_check():
    class Frozen(Callback):
        def __init__(self, network):
            self.network, self.updates = network, 0

        @contextmanager
        def around_update(self, batch):
            self.updates += 1
            assert self.network.weight.grad is not None
            before = self.network.weight.detach().clone()
            yield
            assert not torch.equal(before, self.network.weight)
            self.network.weight.data.copy_(before)

        def report(self):
            assert not self.network.training
            return {"updates": float(self.updates)}

    network = linear()
    before = network.weight.detach().clone()
    history = fit(network, *linear_problem(), n_steps=50, callbacks=[Frozen(network)])
    assert history["updates"] == [20, 40, 50]
    torch.testing.assert_close(network.weight.detach(), before, atol=0, rtol=0)


@pytest.mark.parametrize(("decay_all", "left"), [(False, 1.0), (True, 0.9**5)])
def test_biases_decay_on_request_only(decay_all, left):
    network = linear()
    nn.init.ones_(network.bias)
    constant = {"schedule": lambda optimizer, n: torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)}
    weight = network.weight.detach().clone()
    fit_network(
        network,
        draw=lambda rows: rows,
        loss=lambda _: 0.0 * network(torch.ones(1, 3)).sum(),
        validation_loss=lambda: -float(network.weight.abs().sum() < weight.abs().sum()),
        n_rows=4,
        rng=np.random.default_rng(0),
        n_steps=5,
        batch_size=2,
        learning_rate=0.1,
        weight_decay=1.0,
        decay_all=decay_all,
        check_every=5,
        **constant,
    )
    torch.testing.assert_close(network.weight.detach(), 0.9**5 * weight)
    assert network.bias.item() == pytest.approx(left)


def test_the_learning_rate_rises_then_falls_along_a_cosine():
    optimizer = torch.optim.SGD(linear().parameters(), lr=1.0)
    schedule, rates = warm_cosine(optimizer, 100), []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    np.testing.assert_allclose(rates[:5], [0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[50] == pytest.approx(0.51)
    assert rates[-1] < 0.02


def everything():
    """Layers of many kinds, those that draw in training included."""
    layers = {
        "lstm": nn.LSTM(4, 4),
        "gru": nn.GRU(4, 4),
        "transformer": nn.TransformerEncoderLayer(4, 2, 8),
        "attention": nn.MultiheadAttention(4, 2),
        "image": nn.Conv2d(2, 2, 3),
        "embedding": nn.Embedding(5, 4),
        "linear": nn.Linear(4, 4),
        "conv": nn.Conv1d(4, 4, 3),
        "norm": nn.LayerNorm(4),
        "batch": nn.BatchNorm1d(4),
        "drop": SeededDropout(0.5),
    }
    module = nn.ModuleDict(layers)
    module.own = nn.Parameter(torch.randn(3))
    return module


def test_initial_weights_of_any_layer_depend_on_the_generator_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    nets = [new_network(everything, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), before)
    one, same, other = ({k: v.clone() for k, v in net.state_dict().items()} for net in nets)
    for name, value in one.items():
        torch.testing.assert_close(value, same[name], atol=0, rtol=0)
        constant = value.numel() == 1 or float(value.float().std()) == 0
        assert constant or not torch.equal(value, other[name]), name
    drop = nets[0]["drop"]
    assert isinstance(drop.generator, torch.Generator)


def test_initialising_draws_anew_whatever_a_layer_held():
    torch.manual_seed(3)
    net = everything()
    before = torch.get_rng_state()
    initialise(net, torch.Generator().manual_seed(0))
    first = {k: v.clone() for k, v in net.state_dict().items()}
    for name, p in net.named_parameters():
        if name != "own" and "norm" not in name:  # what no layer could draw, and what is never drawn
            nn.init.constant_(p, 7.0)
    initialise(net, torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), before)
    for name, value in net.state_dict().items():
        torch.testing.assert_close(value, first[name], atol=0, rtol=0)


def test_a_module_that_draws_its_own_weights_has_the_last_word():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 4)
            self.reset_parameters()

        def reset_parameters(self):
            nn.init.eye_(self.inner.weight)

    net = new_network(Scaled, seed=0)
    assert torch.equal(net.inner.weight, torch.eye(4))


def test_inside_a_seeded_block_dropout_is_reproducible_and_outside_nothing_has_happened():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    masks = []
    for seed in (1, 1, 2):
        with seeded(seed):
            masks.append(nn.functional.dropout(torch.ones(100)))
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(RuntimeError, match="shape"), seeded(1):
        torch.rand(3).reshape(2)
    assert torch.equal(torch.get_rng_state(), before)
