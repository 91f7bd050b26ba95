"""Tiny networks beside those of tests/networks/zoo.py, for what is seldom and for exact enumeration.

Each is a function that makes a snapshot, of two or three examples in double precision.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.capturing.tap import Loss
from tests.networks.zoo import Function, build, normal, token_loss, whole


def _snapshot(
    make: Callable[[], nn.Module], inputs: object, targets: Tensor, loss: Loss = functional.cross_entropy
) -> Snapshot:
    return fga.capture(build(make), loss, inputs, targets)


def tokens() -> Snapshot:
    """(example, position, unit): two positions, a row each, and a unit."""
    return _snapshot(
        lambda: nn.Sequential(nn.Linear(2, 1), nn.Tanh(), nn.Flatten(), nn.Linear(2, 2, bias=False)),
        normal(2, 2, 2),
        torch.tensor([0, 1]),
    )


def convolution() -> Snapshot:
    return _snapshot(
        lambda: nn.Sequential(nn.Conv1d(1, 1, 2), nn.Tanh(), nn.Flatten(), nn.Linear(2, 2)),
        normal(2, 1, 3),
        torch.tensor([0, 1]),
    )


class Tied(nn.Module):
    """An embedding of three words in one number, and the same weights read backwards."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(2, 1)
        self.read = nn.Linear(1, 2)
        self.read.weight = self.embed.weight

    def forward(self, words: Tensor) -> Tensor:
        return self.read(torch.tanh(self.embed(words)).mean(1))


def tied() -> Snapshot:
    return _snapshot(Tied, torch.tensor([[0, 1], [1, 1]]), torch.tensor([0, 1]))


class Again(nn.Module):
    """A module called twice, on its own output."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(1, 1)
        self.read = nn.Linear(1, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.read(torch.tanh(self.inner(torch.tanh(self.inner(inputs)))))


def called_twice() -> Snapshot:
    return _snapshot(Again, normal(2, 1), torch.tensor([0, 1]))


def layer_norm() -> Snapshot:
    return _snapshot(
        lambda: nn.Sequential(nn.LayerNorm(3), nn.Tanh(), nn.Linear(3, 2, bias=False)),
        normal(2, 3),
        torch.tensor([0, 1]),
    )


class Recurrent(nn.Module):
    """An LSTM, whose outputs are two taps of one layer: every step's, and the last step's state."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.LSTM(1, 1, batch_first=True)
        self.read = nn.Linear(1, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        every, (_, state) = self.recurrent(inputs)
        return self.read(every.mean(1) + state[0])


def recurrent() -> Snapshot:
    return _snapshot(Recurrent, normal(2, 2, 1), torch.tensor([0, 1]))


class Positions(nn.Module):
    """Words and positions embedded: the rows of the positions serve all examples."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(3, 2)
        self.positions = nn.Embedding(2, 2)
        self.inner = nn.Linear(2, 2)
        self.read = nn.Linear(2, 3)

    def forward(self, words: Tensor) -> Tensor:
        embedded = self.words(words) + self.positions(torch.arange(words.shape[1]))
        return self.read(torch.tanh(self.inner(torch.tanh(embedded))))


def positions() -> Snapshot:
    return _snapshot(Positions, whole(3, 3, 2), whole(3, 3, 2, seed=3), token_loss)


class Packed(nn.Module):
    """Words of sequences of different lengths without padding, summed by sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.read = nn.Linear(2, 2)

    def forward(self, inputs: Tensor, present: Tensor) -> Tensor:
        rows = torch.tanh(self.first(inputs[present]))
        owners = present.nonzero()[:, 0]
        sums = rows.new_zeros(len(inputs), 2).index_add(0, owners, rows)
        return self.read(sums)


def packed() -> Snapshot:
    """Examples of one, two and three rows."""
    present = torch.tensor([[True, False, False], [True, True, False], [True, True, True]])
    return _snapshot(Packed, (normal(3, 3, 2), present), torch.tensor([0, 1, 0]))


def interacting() -> Snapshot:
    """Batch statistics in training mode: the batch has a slope, an example has none."""
    network = build(
        lambda: nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), Function(torch.tanh), nn.Linear(2, 2))
    ).train()
    return fga.capture(network, functional.cross_entropy, normal(4, 2), torch.tensor([0, 1, 0, 1]))


class Shifted(nn.Module):
    """A parameter that belongs to no module that is called."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.shift = nn.Parameter(torch.zeros(2))
        self.read = nn.Linear(2, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.read(torch.tanh(self.inner(inputs)) + self.shift)


def untapped() -> Snapshot:
    return _snapshot(Shifted, normal(2, 2), torch.tensor([0, 1]))


class Scale(nn.Module):
    """A number, and one that is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(1.5))
        self.unused = nn.Parameter(torch.tensor(0.5))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.factor * inputs


class OfScalars(nn.Module):
    """Parameters that are numbers or vectors, one of them of no module that is called."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 1)
        self.scale = Scale()
        self.shift = nn.Parameter(torch.tensor(0.25))

    def forward(self, inputs: Tensor) -> Tensor:
        read = torch.tanh(self.scale(torch.tanh(self.inner(inputs))))
        return torch.cat([read, self.shift - read], dim=1)


def scalars() -> Snapshot:
    return _snapshot(OfScalars, normal(2, 2), torch.tensor([0, 1]))
