"""The networks of `studies.sketches`: one with a row an example, one with places, one with positions and attention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import fganalysis as fga
from fganalysis.training.datasets import Dataset
from studies.kit import kept_data

FRAME = 4  # Rows and columns of zeros on each side of an 8 × 8 digit, as two convolutions of 5 × 5 take 16 × 16.
POSITIONS = 10  # Of an example of MNIST-1D, which has 40 numbers.


class Attention(nn.Module):
    """A signal cut into ten positions: a projection of each, attention among them, a perceptron, and their mean."""

    def __init__(self, width: int):
        super().__init__()
        self.embed = nn.Linear(40 // POSITIONS, width)
        self.places = nn.Embedding(POSITIONS, width)
        self.read, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.classify = nn.Linear(width, 10)

    def forward(self, signals: Tensor) -> Tensor:
        parts = signals.unflatten(1, (POSITIONS, -1))
        x = self.embed(parts) + self.places(torch.arange(POSITIONS, device=signals.device).expand(len(signals), -1))
        query, key, value = self.read(x).chunk(3, dim=-1)
        weights = torch.softmax(query @ key.mT / query.shape[-1] ** 0.5, dim=-1)
        x = x + self.project(weights @ value)
        x = x + self.narrow(torch.relu(self.widen(x)))
        return self.classify(x.mean(1))


@dataclass(frozen=True)
class Kind:
    """``make`` builds the network from the seed of its weights."""

    make: Callable[[int], nn.Module]
    described: str
    data: str


def _attention(seed: int) -> nn.Module:
    network = Attention(32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in network.modules():
            for parameter in module.parameters(recurse=False):
                size = module.in_features if isinstance(module, nn.Linear) else 1
                parameter.uniform_(-1.0, 1.0, generator=generator).mul_(size**-0.5)
    return network


NETWORKS = {
    "MLP": Kind(
        lambda seed: fga.networks.mlp([40, 64, 64, 64, 10], seed=seed), "40-64-64-64-10 with biases, ReLU", "mnist1d"
    ),
    "conv net": Kind(
        lambda seed: fga.networks.conv((1, 16, 16), 10, seed=seed, channels=(8, 16), hidden=32),
        "two 5×5 convolutions of 8 and 16 channels, each with ReLU and 2×2 max-pooling, then 32 units",
        "digits",
    ),
    "attention": Kind(
        _attention, "one head of attention of width 32 among 10 positions, and a perceptron of 64 units", "mnist1d"
    ),
}


def data_of(name: str) -> Dataset:
    """What a network is trained with."""
    if NETWORKS[name].data == "mnist1d":
        return kept_data.load("mnist1d")
    digits = kept_data.load("digits", images=True)
    inputs = [torch.nn.functional.pad(part, (FRAME,) * 4) for part in (digits.train_inputs, digits.test_inputs)]
    return Dataset(inputs[0], digits.train_targets, inputs[1], digits.test_targets)
