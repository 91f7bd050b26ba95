"""Training gives the same bits with and without a monitor: it changes no mode, generator, gradient, buffer or hook."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, dropout

import fganalysis as fga
from fganalysis.monitoring.view import evaluated_view, n_hooks, other_in_training
from tests.unit.monitoring.watched import batch, noisy_network, plain_network, seeded, trained

ESTIMATORS = ["weight", "activity", fga.estimators.OrthogonalUpstream(k=2)]


class AlwaysDropping(nn.Module):
    """Draws noise in evaluation mode too, from the global generator: no network that can be measured."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = plain_network()

    def forward(self, inputs: Tensor) -> Tensor:
        return dropout(self.inner(inputs), 0.5, training=True)  # type: ignore[no-any-return]


@pytest.mark.parametrize("estimators", [ESTIMATORS, []], ids=["estimators", "none"])
def test_training_gives_the_same_bits_with_and_without(estimators: list[Any]) -> None:
    alone, watched = noisy_network(), noisy_network()
    watched[3].eval()  # modes of single modules stay too
    alone[3].eval()
    seeded()
    expected = trained(alone, 5)
    monitor = fga.Monitor(watched, cross_entropy, estimators, every=2, guesses=32)
    modes = [module.training for module in watched.modules()]
    seeded()
    assert trained(watched, 5, monitor.step) == expected
    assert [module.training for module in watched.modules()] == modes
    for name, tensor in alone.state_dict().items():
        assert torch.equal(tensor, watched.state_dict()[name]), name
    assert monitor.dataset.sizes["step"] == 3
    assert not monitor.dataset["loss"].isnull().any()


def test_dropout_in_training_draws_what_it_would_draw() -> None:
    alone, watched = noisy_network(), noisy_network()
    seeded()
    expected = trained(alone, 3)
    monitor = fga.Monitor(watched, cross_entropy, "activity", every=1, guesses=32)
    seeded()
    assert trained(watched, 3, monitor.step) == expected


def test_a_network_that_cannot_be_measured_is_trained_as_without() -> None:
    alone, watched = AlwaysDropping(), AlwaysDropping()
    seeded()
    expected = trained(alone, 3)
    monitor = fga.Monitor(watched, cross_entropy, "activity", every=1, guesses=32)
    seeded()
    with pytest.warns(RuntimeWarning, match="measured nothing at step 0 and goes on: two forward passes"):
        assert trained(watched, 3, monitor.step) == expected
    assert monitor.dataset["loss"].isnull().sum() == 3  # a row each, the warning once


def test_gradients_and_settings_of_torch_stay() -> None:
    network = noisy_network()
    inputs, targets = batch(0)
    cross_entropy(network(inputs), targets).backward()
    gradients = [parameter.grad for parameter in network.parameters()]
    values = copy.deepcopy(gradients)
    threads, enabled = torch.get_num_threads(), torch.is_grad_enabled()
    precision = torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]
    fga.Monitor(network, cross_entropy, ESTIMATORS, guesses=32).step(inputs, targets)
    for parameter, gradient, value in zip(network.parameters(), gradients, values, strict=True):
        assert parameter.grad is gradient
        assert torch.equal(gradient, value)  # type: ignore[arg-type]
    assert (threads, enabled) == (torch.get_num_threads(), torch.is_grad_enabled())
    assert torch.backends.mkldnn.matmul.fp32_precision == precision  # type: ignore[attr-defined]


def test_a_view_shares_the_weights_and_copies_no_hook() -> None:
    network = noisy_network()
    network.add_module("tied", nn.Linear(8, 3, bias=False))
    network.tied.weight = network[4].weight
    called = []
    network[0].register_forward_hook(lambda *_: called.append(1))
    network[0].weight.register_hook(lambda gradient: called.append(2))
    view = evaluated_view(network)
    for own, seen in zip(network.parameters(), view.parameters(), strict=True):
        assert own.data_ptr() == seen.data_ptr() and own is not seen
    assert view.tied.weight is view[4].weight
    assert network[1].running_mean.data_ptr() != view[1].running_mean.data_ptr()
    assert not any(module.training for module in view.modules()) and network.training
    assert n_hooks(network) == 1 and n_hooks(view) == 0
    assert other_in_training(network) == ["1", "3"]
    monitor = fga.Monitor(network[:5], cross_entropy, "activity", guesses=32)
    monitor.step(*batch(0))
    assert called == []
    assert monitor.dataset.attrs["hooks_left_out"] == 1
    assert monitor.dataset.attrs["other_in_training"] == '["1", "3"]'
    assert monitor.dataset.attrs["mode"].startswith("evaluation: dropout off")


def test_a_forward_pass_that_writes_to_the_weights_is_said() -> None:
    class Growing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = plain_network()

        def forward(self, inputs: Tensor) -> Tensor:
            with torch.no_grad():
                self.inner[0].weight.mul_(1.0)
            return self.inner(inputs)  # type: ignore[no-any-return]

    monitor = fga.Monitor(Growing(), cross_entropy, (), every=1)
    with pytest.warns(RuntimeWarning, match="writes to the weights"):
        monitor.step(*batch(0))
