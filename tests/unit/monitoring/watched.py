"""Networks, batches and loops that a monitor watches in the tests."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

EXAMPLES, INPUTS, CLASSES = 16, 6, 3
Watch = Callable[[Any, Any], object]


def noisy_network(seed: int = 0) -> nn.Module:
    """With dropout and batch statistics, whose random streams and buffers training moves."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(INPUTS, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, CLASSES))


def plain_network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(INPUTS, 8), nn.Tanh(), nn.Linear(8, CLASSES))


def batch(seed: int, examples: int = EXAMPLES) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(CLASSES, (examples,), generator=generator)
    return torch.randn(examples, INPUTS, generator=generator), targets


def trained(
    network: nn.Module, n_steps: int, watch: Watch = lambda inputs, targets: None, first: int = 0
) -> list[float]:
    """Trains by Adam; the losses, and what was drawn from every global generator."""
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    drawn = []
    for step in range(first, first + n_steps):
        inputs, targets = batch(step)
        optimizer.zero_grad()
        loss = cross_entropy(network(inputs), targets)
        loss.backward()
        watch(inputs, targets)
        optimizer.step()
        drawn += [float(loss.detach()), random.random(), float(np.random.rand()), float(torch.rand(()))]
    return drawn


def seeded() -> None:
    """Sets every global generator."""
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
