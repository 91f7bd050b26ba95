"""Frozen weights stay as they are in training, whatever is trained beside them."""

import copy
from functools import partial

import pytest
import torch

import fganalysis as fga
from tests.unit.training.small_run import DATA, GRADIENTS, NETWORK, same


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_frozen_weights_stay(gradient: str) -> None:
    network = copy.deepcopy(NETWORK)
    frozen = next(network.parameters()).requires_grad_(False)
    trained = fga.train(network, DATA, gradient, epochs=1)
    assert torch.equal(next(trained.network.parameters()), frozen) and not same(trained.network, network)


class _LoRA(torch.nn.Module):
    """A frozen Linear module beside two small ones that are trained."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.head = torch.nn.Linear(6, 8), torch.nn.Linear(8, 3, bias=False)
        self.down, self.up = torch.nn.Linear(6, 2, bias=False), torch.nn.Linear(2, 8, bias=False)
        self.scale = torch.nn.Parameter(torch.ones(8), requires_grad=False)
        self.base.requires_grad_(False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.scale * (self.base(inputs) + self.up(self.down(inputs)))))


@pytest.mark.parametrize("gradient", [*GRADIENTS, "weight"])
def test_a_network_of_frozen_and_trained_weights_trains_and_leaves_the_frozen_ones(gradient: str) -> None:
    network = _LoRA()
    for optimizer in (torch.optim.SGD, partial(torch.optim.AdamW, lr=0.1, weight_decay=1.0)):
        run = fga.train(network, DATA, gradient, epochs=2, batch_size=20, optimizer=optimizer)
        trained = dict(run.network.named_parameters())
        for name, parameter in network.named_parameters():
            assert torch.equal(parameter, trained[name]) == (not parameter.requires_grad), name


def test_looking_at_a_network_does_not_change_its_training() -> None:
    torch.manual_seed(0)
    layers = torch.nn.Linear(6, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU(), torch.nn.Dropout(0.5)
    network = torch.nn.Sequential(*layers, torch.nn.Linear(8, 3))

    def trained(log_every: int) -> torch.nn.Module:
        torch.manual_seed(0)
        return fga.train(network, DATA, epochs=2, batch_size=20, log_every=log_every).network

    often, seldom = trained(1), trained(100)
    for name, value in often.state_dict().items():
        assert torch.equal(value, seldom.state_dict()[name]), name
    assert all(module.training for module in often.modules())
