"""What goes on from a checkpoint is the same run, or is refused by the name of what differs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.optim import lr_scheduler

import fganalysis as fga
from fganalysis.training.datasets import Dataset
from tests.unit.training.checkpointed_run import DATA, NETWORK, in_eight_bits, refusal, same, trained


def activated(activation: type[torch.nn.Module]) -> torch.nn.Module:
    return fga.networks.mlp([6, 8, 8, 3], seed=0, activation=activation)


class _Functional(torch.nn.Module):
    """The weights of `NETWORK` under the same names, and an activation that no module shows."""

    def __init__(self, activation: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.layers, self.activation = copy.deepcopy(NETWORK), activation

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.layers[4](self.activation(self.layers[2](self.activation(self.layers[0](inputs)))))


def frozen() -> torch.nn.Module:
    network = copy.deepcopy(NETWORK)
    network[0].requires_grad_(False)
    return network


def moved(data: Dataset) -> Dataset:
    inputs = data.train_inputs.clone()
    inputs[7, 3] += 1e-3
    return replace(data, train_inputs=inputs)


def half(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(outputs, targets) / 2


OTHERWISE = [
    ({"optimizer": partial(torch.optim.SGD, lr=0.2, momentum=0.9)}, "optimizer.0.lr was 0.1 and is 0.2 here"),
    ({"optimizer": partial(torch.optim.SGD, lr=0.1)}, "optimizer.0.momentum was 0.9 and is 0 here"),
    ({"optimizer": partial(torch.optim.AdamW, lr=0.1)}, "optimizer was SGD and is AdamW here"),
    (
        {"optimizer": lambda weights: torch.optim.SGD([*weights][2:], lr=0.1, momentum=0.9)},
        "optimizer.0.parameters was 0.weight, 0.bias, 2.weight",
    ),
    ({"schedule": partial(lr_scheduler.StepLR, step_size=2, gamma=0.4)}, "schedule.gamma was 0.5 and is 0.4 here"),
    ({"schedule": partial(lr_scheduler.StepLR, step_size=3, gamma=0.5)}, "schedule.step_size was 2 and is 3 here"),
    ({"schedule": partial(lr_scheduler.ExponentialLR, gamma=0.5)}, "schedule was StepLR and is ExponentialLR here"),
    ({"schedule": None}, "schedule was StepLR and is None here"),
    ({"seed": 1}, "seed was 0 and is 1 here"),
    ({"batch_size": 15}, "batch_size was 20 and is 15 here"),
    ({"n_guesses": 2}, "n_guesses was 1 and is 2 here"),
    ({"autodiff": "forward"}, "autodiff was reverse and is forward here"),
    ({"gradient": "backpropagation"}, "gradient was ActivityPerturbation and is Backpropagation here"),
    ({"gradient": fga.estimators.ActivityPerturbation(shared=True)}, "gradient.shared was False and is True here"),
    ({"loss_fn": half}, "loss_fn was cross_entropy and is tests.unit.training.test_continued_runs.half here"),
    ({"loss_fn": torch.nn.CrossEntropyLoss()}, "loss_fn was cross_entropy and is CrossEntropyLoss() here"),
    ({"network": activated(torch.nn.Tanh)}, "network.1 was ReLU() and is Tanh() here"),
    (
        {"network": fga.networks.mlp([6, 9, 8, 3])},
        "network.0 was Linear(in_features=6, out_features=8, bias=True) and",
    ),
    ({"network": frozen()}, "network.0.weight was (8, 6) float32 and is (8, 6) float32 frozen here"),
    ({"network": in_eight_bits()}, "the network's forward pass fails on inputs of shape"),
    ({"data": moved(DATA)}, "train_inputs was (60, 6) float32 "),
    ({"data": replace(DATA, train_targets=DATA.train_targets.roll(1))}, "train_targets was (60,) int64 "),
]


@pytest.mark.parametrize(("changed", "message"), OTHERWISE, ids=lambda value: value if isinstance(value, str) else "")
def test_what_differs_from_the_run_is_refused_by_name(changed: dict[str, Any], message: str, saved: Path) -> None:
    assert message in refusal(lambda: trained(continue_from=saved, **changed))


def test_the_same_run_goes_on_and_may_be_longer(saved: Path) -> None:
    assert same(trained(continue_from=saved).network, trained().network)
    assert same(trained(continue_from=saved, epochs=4, log_every=1).network, trained(epochs=4).network)


def test_a_forward_pass_that_no_module_shows_is_told_by_its_loss(tmp_path: Path) -> None:
    relu, tanh = _Functional(torch.relu), _Functional(torch.tanh)
    path = trained(tmp_path, network=relu).checkpoints[2]
    assert same(trained(network=relu, continue_from=path).network, trained(network=relu).network)
    message = refusal(lambda: trained(network=tanh, continue_from=path))
    assert "its network's loss on the first training examples was" in message


def decay(rate: float) -> Callable[[int], float]:
    return lambda step: rate**step


class _Custom(lr_scheduler.LRScheduler):
    """A schedule that keeps functions, numbers by step and a tensor."""

    def __init__(self, optimizer: torch.optim.Optimizer, rate: float) -> None:
        self.rules = [lambda step: rate**step, None]
        self.rule = decay(rate)
        self.seen: dict[int, float] = {}
        self.last_rate, self.numpy_rate = torch.tensor(rate), np.float64(rate)
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:
        self.seen[self.last_epoch] = self.rule(self.last_epoch)
        return [base * self.rule(self.last_epoch) * float(self.last_rate) for base in self.base_lrs]


SCHEDULES = [
    lambda rate: partial(lr_scheduler.LambdaLR, lr_lambda=lambda step: rate**step),
    lambda rate: partial(lr_scheduler.LambdaLR, lr_lambda=decay(rate)),
    lambda rate: partial(lr_scheduler.MultiplicativeLR, lr_lambda=lambda step: rate),
    lambda rate: partial(lr_scheduler.OneCycleLR, max_lr=rate, total_steps=12),
    lambda rate: partial(
        lr_scheduler.CyclicLR, base_lr=0.01, max_lr=0.1, scale_fn=lambda step: rate, cycle_momentum=False
    ),
    lambda rate: partial(lr_scheduler.CosineAnnealingWarmRestarts, T_0=3, eta_min=rate / 100),
    lambda rate: (
        lambda optimizer: lr_scheduler.SequentialLR(
            optimizer,
            [lr_scheduler.ConstantLR(optimizer, rate), lr_scheduler.LambdaLR(optimizer, lambda step: rate**step)],
            [2],
        )
    ),
    lambda rate: (
        lambda optimizer: lr_scheduler.ChainedScheduler(
            [lr_scheduler.ExponentialLR(optimizer, rate), lr_scheduler.LambdaLR(optimizer, lambda step: rate**step)]
        )
    ),
    lambda rate: partial(lr_scheduler.ReduceLROnPlateau, patience=0, factor=rate),
    lambda rate: partial(_Custom, rate=rate),
]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_that_keep_functions_go_on_and_others_are_refused(schedule: Any, tmp_path: Path) -> None:
    settings = {"schedule": schedule(0.8), "optimizer": partial(torch.optim.SGD, lr=0.1)}
    whole = trained(tmp_path, **settings)
    again = {"schedule": schedule(0.8), "optimizer": partial(torch.optim.SGD, lr=0.1)}
    assert same(trained(continue_from=whole.checkpoints[2], **again).network, whole.network)
    other = again | {"schedule": schedule(0.7)}
    assert "is of another run: schedule" in refusal(lambda: trained(continue_from=whole.checkpoints[2], **other))


def test_a_function_written_in_place_is_known_by_its_code_and_what_it_refers_to(tmp_path: Path) -> None:
    def guess(scale: float) -> Any:
        def scaled(network: Any, loss_fn: Any, inputs: Any, targets: Any, generator: torch.Generator) -> Any:
            return {name: scale * torch.randn(p.shape, generator=generator) for name, p in network.named_parameters()}

        return fga.estimators.from_function(scaled)

    path = trained(tmp_path, gradient=guess(0.1)).checkpoints[2]
    trained(gradient=guess(0.1), continue_from=path)
    assert "gradient was" in refusal(lambda: trained(gradient=guess(0.2), continue_from=path))


def test_optimisers_with_tensors_for_settings_go_on(tmp_path: Path) -> None:
    settings = {"optimizer": lambda p: torch.optim.Adam(p, lr=torch.tensor(0.01)), "schedule": None}
    whole = trained(tmp_path, **settings)
    assert same(trained(continue_from=whole.checkpoints[2], **settings).network, whole.network)
