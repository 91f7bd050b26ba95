"""Checkpoints: what goes on is the same run or is refused by name, and damage is named before a weight is loaded."""

from __future__ import annotations

import copy
import random
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from torch.optim import lr_scheduler

import fganalysis as fga
from fganalysis.training import checkpoints, loop
from fganalysis.training.checkpoints import load_checkpoint, load_estimator_state, read_checkpoint
from fganalysis.training.datasets import Dataset

GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(90, 6, generator=GENERATOR)
TARGETS = (INPUTS[:, 0] > 0).long() + (INPUTS[:, 1] > 0).long()
DATA = Dataset(INPUTS[:60], TARGETS[:60], INPUTS[60:], TARGETS[60:])
NETWORK = fga.networks.mlp([6, 8, 8, 3], seed=0)
SETTINGS: dict[str, Any] = {
    "network": NETWORK,
    "data": DATA,
    "gradient": fga.estimators.ActivityPerturbation(),
    "epochs": 2,
    "batch_size": 20,
    "optimizer": partial(torch.optim.SGD, lr=0.1, momentum=0.9),
    "schedule": partial(lr_scheduler.StepLR, step_size=2, gamma=0.5),
    "loss_fn": F.cross_entropy,
}


def trained(out: Path | None = None, **changed: Any) -> loop.Run:
    return fga.train(**(SETTINGS | changed), **({"checkpoints": [2], "out": out} if out is not None else {}))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("run")).checkpoints[2]


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def refusal(call: Callable[[], object]) -> str:
    """The one sentence that a call is refused with."""
    with pytest.raises(ValueError) as refused:
        call()
    assert refused.traceback[-1].path.is_relative_to(Path(fga.__file__).parent)
    assert "\n" not in str(refused.value) and len(str(refused.value)) <= 400
    return str(refused.value)


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


def in_eight_bits() -> torch.nn.Module:
    network = copy.deepcopy(NETWORK)
    for module in (network[0], network[2], network[4]):
        module.weight = torch.nn.Parameter((module.weight * 100).to(torch.int8), requires_grad=False)
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
    ({"loss_fn": half}, "loss_fn was cross_entropy and is tests.unit.training.test_checkpoints.half here"),
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


def test_two_names_of_one_weight_are_saved_and_loaded(tmp_path: Path) -> None:
    network = torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.Tanh(), torch.nn.Linear(6, 6))
    network[2].weight = network[0].weight
    settings = {"network": network, "gradient": "backpropagation"}
    whole = trained(tmp_path, **settings)
    assert same(trained(continue_from=whole.checkpoints[2], **settings).network, whole.network)


class _Unsavable(lr_scheduler.LRScheduler):
    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.source = random.Random(0)
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:
        return [base * self.source.random() for base in self.base_lrs]


def test_what_cannot_be_saved_is_said_before_anything_is_trained(tmp_path: Path) -> None:
    message = refusal(lambda: trained(tmp_path, schedule=_Unsavable))
    assert message.startswith("a checkpoint cannot hold 'schedule.source'")
    assert not list(tmp_path.iterdir())


def test_every_flipped_byte_and_every_cut_is_named_or_changes_nothing(saved: Path, tmp_path: Path) -> None:
    whole, intact = saved.read_bytes(), copy.deepcopy(NETWORK)
    load_checkpoint(saved, intact)
    path, network = tmp_path / "step_000002.safetensors", copy.deepcopy(NETWORK)
    header = int.from_bytes(whole[:8], "little")
    places = [
        *range(8),
        *range(8, header + 8, header // 60),
        *range(header + 8, len(whole), (len(whole) - header) // 50),
    ]
    unchanged = 0
    for at in places:
        for bit in (0, 6):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
            try:
                load_checkpoint(path, network)
            except ValueError as error:
                assert str(path) in str(error) and "\n" not in str(error)
                assert same(network, NETWORK)
            else:
                unchanged += 1
                assert same(network, intact)
                network = copy.deepcopy(NETWORK)
    assert len(places) >= 100 and unchanged <= 10
    for length in range(0, len(whole), len(whole) // 40):
        path.write_bytes(whole[:length])
        assert str(path) in refusal(lambda: load_checkpoint(path, network))
    assert same(network, NETWORK)


def test_what_is_no_checkpoint_is_refused_in_one_sentence(saved: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.zeros(2)}, foreign)
    older = tmp_path / "older.safetensors"
    save_file(load_file(saved), older, metadata={"training": "{}"})
    text = tmp_path / "text.safetensors"
    text.write_text("not a checkpoint")
    for given, message in [
        (tmp_path / "nowhere", f"there is no checkpoint at {tmp_path / 'nowhere'}"),
        (tmp_path, f"there is no checkpoint at {tmp_path}, which is a folder"),
        ("", "the path of a checkpoint must be a path, got ''"),
        (None, "the path of a checkpoint must be a path, got None"),
        (3, "the path of a checkpoint must be a path, got 3"),
        (foreign, f"{foreign} is not a checkpoint written by fganalysis"),
        (older, f"{older} cannot be checked, as it has no SHA-256"),
        (text, f"{text} cannot be read, or is no checkpoint"),
    ]:
        for call in (
            partial(load_checkpoint, given, NETWORK),
            partial(load_estimator_state, given),
            partial(trained, continue_from=given),
        ):
            if given is None and call.func is trained:
                continue  # There None means a new run.
            assert refusal(call).startswith(message)


BAD_CALLS = [
    (
        {"network": fga.networks.mlp([6, 7, 3])},
        "another network: '0.bias' is (8,) float32 in it and (7,) float32",
    ),
    ({"network": NETWORK[:3]}, "is of another network: '4.bias' is (3,) float32 in it and missing in the network"),
    ({"network": copy.deepcopy(NETWORK).double()}, "'0.bias' is (8,) float32 in it and (8,) float64"),
    ({"network": in_eight_bits()}, "'0.weight' is (8, 6) float32 in it and (8, 6) int8 in the network"),
    ({"network": None}, "network must be a torch.nn.Module, got None"),
    ({"network": NETWORK.state_dict()}, "network must be a torch.nn.Module, got"),
    ({"optimizer": "sgd"}, "optimizer must be a torch optimiser, got 'sgd'"),
    ({"scheduler": 3}, "scheduler must be a torch learning-rate schedule, got 3"),
    ({"optimizer": torch.optim.Adam(NETWORK.parameters())}, "another optimizer: SGD of 6 parameters in it, Adam of 6"),
    ({"optimizer": torch.optim.SGD([NETWORK[0].weight])}, "another optimizer: SGD of 6 parameters in it, SGD of 1"),
    (
        {"scheduler": lr_scheduler.ExponentialLR(torch.optim.SGD(NETWORK.parameters()), 0.5)},
        "another schedule: StepLR in it, ExponentialLR given",
    ),
]


@pytest.mark.parametrize(("changed", "message"), BAD_CALLS)
def test_a_checkpoint_goes_into_what_it_was_taken_from_alone(
    changed: dict[str, Any], message: str, saved: Path
) -> None:
    assert message in refusal(lambda: load_checkpoint(**({"path": saved, "network": NETWORK} | changed)))


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = trained(tmp_path).checkpoints[2]
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints.os, "fsync", full)
    expected = re.escape(f"the checkpoint {path} cannot be written: No space left on device")
    with pytest.raises(OSError, match=f"^{expected}$"):
        trained(tmp_path, seed=1)
    assert path.read_bytes() == before and [*tmp_path.iterdir()] == [path]


def test_a_checkpoint_says_what_made_it(saved: Path) -> None:
    settings = read_checkpoint(saved).training["settings"]
    assert settings["seed"] == "0" and settings["optimizer.0.lr"] == "0.1" and settings["schedule.gamma"] == "0.5"
    assert not any("0x" in text for text in settings.values())
