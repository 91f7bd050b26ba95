"""A small network and data set to train on."""

from __future__ import annotations

import torch

import fganalysis as fga
from fganalysis.training.datasets import Dataset


def small_data(seed: int = 0) -> Dataset:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(90, 6, generator=generator)
    targets = (inputs[:, 0] > 0).long() + (inputs[:, 1] > 0).long()
    return Dataset(inputs[:60], targets[:60], inputs[60:], targets[60:])


DATA = small_data()
NETWORK = fga.networks.mlp([6, 8, 8, 3], bias=True, seed=0)
GRADIENTS = ["backpropagation", "activity"]


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
