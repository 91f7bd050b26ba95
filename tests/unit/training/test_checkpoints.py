"""Checkpoints keep what made them, and damage is named before a weight is loaded."""

from __future__ import annotations

import copy
import random
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.optim import lr_scheduler

import fganalysis as fga
from fganalysis.training import checkpoints
from fganalysis.training.checkpoints import load_checkpoint, load_estimator_state, read_checkpoint
from tests.unit.training.checkpointed_run import NETWORK, in_eight_bits, refusal, same, trained


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
