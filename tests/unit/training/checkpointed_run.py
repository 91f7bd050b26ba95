"""A short run and how it is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.optim import lr_scheduler

import fganalysis as fga
from fganalysis.training import loop
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


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def refusal(call: Callable[[], object]) -> str:
    """The one sentence that a call is refused with."""
    with pytest.raises(ValueError) as refused:
        call()
    assert refused.traceback[-1].path.is_relative_to(Path(fga.__file__).parent)
    assert "\n" not in str(refused.value) and len(str(refused.value)) <= 400
    return str(refused.value)


def in_eight_bits() -> torch.nn.Module:
    network = copy.deepcopy(NETWORK)
    for module in (network[0], network[2], network[4]):
        module.weight = torch.nn.Parameter((module.weight * 100).to(torch.int8), requires_grad=False)
    return network
