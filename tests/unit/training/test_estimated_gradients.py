"""Gradients estimated in a training loop of the caller: they add up as those of backward do, and are checked once."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import fganalysis as fga
from fganalysis.training import estimated_gradients
from tests.unit.training.small_run import DATA, NETWORK


def test_the_backpropagation_estimator_trains_as_autograd_does() -> None:
    generator = torch.Generator().manual_seed(0)
    network = fga.networks.mlp([6, 8, 3], bias=True, seed=1)
    loss = fga.estimate_gradient(
        network, torch.nn.functional.cross_entropy, DATA.train_inputs, DATA.train_targets, "backpropagation", generator
    )
    guessed = [parameter.grad.clone() for parameter in network.parameters()]
    network.zero_grad()
    expected = torch.nn.functional.cross_entropy(network(DATA.train_inputs), DATA.train_targets)
    expected.backward()
    torch.testing.assert_close(loss, expected.detach())
    for one, parameter in zip(guessed, network.parameters(), strict=True):
        torch.testing.assert_close(one, parameter.grad, rtol=1e-4, atol=1e-7)


def test_a_weight_of_two_taps_gets_the_sum() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.Tanh(), torch.nn.Linear(6, 6))
    network[2].weight = network[0].weight
    asked = (network, torch.nn.functional.cross_entropy, DATA.train_inputs, DATA.train_targets)
    fga.estimate_gradient(*asked, "backpropagation", torch.Generator())
    exact = torch.autograd.grad(asked[1](network(DATA.train_inputs), DATA.train_targets), list(network.parameters()))
    for parameter, gradient in zip(network.parameters(), exact, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("estimator", ["backpropagation", "activity", "weight"])
def test_gradients_accumulate_as_those_of_backward_do(estimator: str) -> None:
    network, loss_fn = copy.deepcopy(NETWORK), torch.nn.functional.cross_entropy

    def estimated(rows: slice, seed: int) -> list[torch.Tensor]:
        batch = DATA.train_inputs[rows], DATA.train_targets[rows]
        fga.estimate_gradient(network, loss_fn, *batch, estimator, torch.Generator().manual_seed(seed))
        return [parameter.grad.clone() for parameter in network.parameters()]

    parts = []
    for seed, rows in enumerate((slice(0, 20), slice(20, 60))):
        network.zero_grad()
        parts.append(estimated(rows, seed))
    network.zero_grad()
    estimated(slice(0, 20), 0)
    kept = [parameter.grad for parameter in network.parameters()]
    both = estimated(slice(20, 60), 1)
    for one, other, total, tensor in zip(*parts, both, kept, strict=True):
        torch.testing.assert_close(total, one + other)
        assert torch.equal(tensor, total)  # In place, so that what looks at .grad sees it.


def test_two_halves_of_a_batch_leave_the_gradient_of_the_whole() -> None:
    network, loss_fn = copy.deepcopy(NETWORK), torch.nn.functional.cross_entropy
    exact = torch.autograd.grad(loss_fn(network(DATA.train_inputs), DATA.train_targets), [*network.parameters()])
    for rows in (slice(0, 30), slice(30, 60)):
        fga.estimate_gradient(
            network,
            lambda outputs, targets: loss_fn(outputs, targets) / 2,
            DATA.train_inputs[rows],
            DATA.train_targets[rows],
            "backpropagation",
            torch.Generator(),
        )
    for parameter, gradient in zip(network.parameters(), exact, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-7)


def test_a_network_and_a_loss_are_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[torch.nn.Module] = []
    check = estimated_gradients.checked_for_training

    def counted(network: torch.nn.Module, *arguments: Any, **settings: Any) -> Any:
        checked.append(network)
        return check(network, *arguments, **settings)

    monkeypatch.setattr(estimated_gradients, "checked_for_training", counted)
    network, other = copy.deepcopy(NETWORK), copy.deepcopy(NETWORK)
    batch = DATA.train_inputs, DATA.train_targets
    for _ in range(3):  # A function made anew in every step is the same code.
        fga.estimate_gradient(network, lambda o, t: F.cross_entropy(o, t), *batch, "activity", torch.Generator())
    assert len(checked) == 1
    fga.estimate_gradient(network, torch.nn.CrossEntropyLoss(), *batch, "activity", torch.Generator())
    fga.estimate_gradient(other, torch.nn.CrossEntropyLoss(), *batch, "activity", torch.Generator())
    assert len(checked) == 3
    with pytest.raises(ValueError, match="loss_fn compares examples with each other"):
        fga.estimate_gradient(other, lambda o, t: F.cross_entropy(o, t).sqrt(), *batch, "activity", torch.Generator())


BAD_BATCHES = [
    ({"n_guesses": 0}, "n_guesses must be a whole number of at least 1, got 0"),
    ({"autodiff": "foward"}, "autodiff must be 'reverse' or 'forward', got 'foward'"),
    ({"inputs": torch.zeros(0, 6), "targets": torch.zeros(0).long()}, "the batch is empty"),
    ({"network": torch.nn.Sequential(torch.nn.Linear(6, 3), torch.nn.Dropout())}, "is dropout in training mode"),
    ({"autodiff": "forward", "estimator": "minibatch"}, "trains without a backward pass"),
]


@pytest.mark.parametrize(("changed", "message"), BAD_BATCHES)
def test_a_loop_of_ones_own_is_refused_in_one_sentence(changed: dict, message: str) -> None:
    asked = {"network": NETWORK, "loss_fn": torch.nn.functional.cross_entropy, "estimator": "activity"}
    asked |= {"inputs": DATA.train_inputs, "targets": DATA.train_targets, "generator": torch.Generator()}
    with pytest.raises(ValueError, match=message):
        fga.estimate_gradient(**(asked | changed))


class WithOffset(torch.nn.Module):
    """A parameter of no tap: the module that owns it calls others."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = torch.nn.Linear(6, 8), torch.nn.Linear(8, 3)
        self.offset = torch.nn.Parameter(torch.zeros(8))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.first(inputs) + self.offset))


def test_a_parameter_outside_every_tap_is_refused() -> None:
    network = WithOffset()
    with pytest.raises(ValueError, match=r"parameter 'offset' is in no tap"):
        fga.train(network, DATA, "activity", epochs=1)
    for gradient in ("weight", "backpropagation"):
        assert np.isfinite(fga.train(network, DATA, gradient, epochs=1).log["loss"]).all()
