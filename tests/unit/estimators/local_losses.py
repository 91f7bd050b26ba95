"""Small heads and the local losses that are made of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import LocalLoss
from fganalysis.estimators.local import heads
from tests import laws

SNAPSHOT = laws.tiny_snapshot((5, 16, 17, 3), n_examples=7, bias=True)
KINDS: list[heads.Kind] = ["linear", "mlp", "cnn"]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def guesses(estimator: LocalLoss, snapshot: Snapshot = SNAPSHOT, n_guesses: int = 1) -> tuple[Tensor, ...]:
    return estimator(snapshot, n_guesses, generator()).guesses


def small(kind: heads.Kind, **settings: Any) -> LocalLoss:
    return LocalLoss(kind, width=None if kind == "linear" else 16, **settings)


def module_of(kind: heads.Kind, head: tuple[Tensor, ...]) -> torch.nn.Module:
    """The same head as torch modules: the independent route."""
    layers: list[torch.nn.Module] = [torch.nn.Unflatten(1, (1, -1))] if kind == "cnn" else []
    for weight, bias in zip(head[::2], head[1::2], strict=True):
        module: torch.nn.Module
        if weight.ndim == 3:
            module = torch.nn.Conv1d(weight.shape[1], weight.shape[0], 3, stride=2, dtype=torch.float64)
        else:
            module = torch.nn.Linear(weight.shape[1], weight.shape[0], dtype=torch.float64)
        module.load_state_dict({"weight": weight, "bias": bias})
        layers += [module, torch.nn.ReLU()]
    layers.pop()
    if kind == "cnn":
        layers[-1:] = [torch.nn.AdaptiveAvgPool1d(1), torch.nn.Flatten(), layers[-1]]
    return torch.nn.Sequential(*layers)


def heads_of(estimator: LocalLoss, snapshot: Snapshot = SNAPSHOT) -> list[tuple[Tensor, ...]]:
    optimiser = (estimator if estimator.optimiser else estimator.initialised(snapshot)).optimiser
    assert optimiser is not None
    half = len(optimiser.values) // 2
    return [optimiser.values[:half], optimiser.values[half:]]
