"""Tiny networks with skip paths, convolutions and tokens whose forward pass is written out by hand.

Each gives the outputs of its taps and what arrives at the next tap with their graphs, and the way on from there as a
function: the independent route for estimators that perturb, or deliver something, between two taps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from tests.networks.zoo import build, normal, token_loss


class Skipping(nn.Module):
    """Elementwise functions between Linear modules, and a sum around the second one."""

    def __init__(self, skips: bool = True) -> None:
        super().__init__()
        self.first, self.inner, self.read = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.skips = skips

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(inputs))
        inner = torch.tanh(self.inner(hidden))
        return self.read(hidden + inner if self.skips else inner)


def captured(network: nn.Module, inputs: Tensor, **settings: Any) -> Snapshot:
    targets = torch.arange(len(inputs)) % 3
    return fga.capture(network, nn.functional.cross_entropy, inputs, targets, **settings)


def skipping(skips: bool = True) -> Snapshot:
    return captured(build(lambda: Skipping(skips)), normal(5, 3))


class Tokens(nn.Module):
    """Tokens and their positions, a residual branch, and an output for every position."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(5, 3), nn.Embedding(2, 3)
        self.norm, self.inner, self.read = nn.LayerNorm(3), nn.Linear(3, 3), nn.Linear(3, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.token(tokens) + self.place(torch.arange(tokens.shape[1]))
        return self.read(hidden + self.inner(torch.tanh(self.norm(hidden))))


@dataclass(frozen=True)
class Written:
    """A network written by hand: outputs of the taps with what arrives at the next, and the way on from there.

    after: (example, …) that arrives → the outputs, of every tap but the last. All have examples first but ``shared``.
    """

    snapshot: Snapshot
    outputs: list[Tensor]
    arriving: list[Tensor]
    after: list[Callable[[Tensor], Tensor]]


def written_skipping() -> Written:
    snapshot = skipping()
    net: Any = snapshot.network
    first = net.first(snapshot.inputs)
    at_inner = torch.tanh(first)
    inner = net.inner(at_inner)
    return Written(
        snapshot,
        [first, inner],
        [at_inner, at_inner + torch.tanh(inner)],
        [lambda a: net.read(a + torch.tanh(net.inner(a))), net.read],
    )


def written_conv() -> Written:
    network = build(
        lambda: nn.Sequential(
            nn.Conv2d(1, 2, 3), nn.Tanh(), nn.MaxPool2d(2), nn.Conv2d(2, 2, 2), nn.Flatten(), nn.Linear(2, 3)
        )
    )
    snapshot = captured(network, normal(4, 1, 6, 6))
    net: Any = snapshot.network
    first = net[0](snapshot.inputs)
    at_second = nn.functional.max_pool2d(torch.tanh(first), 2)
    second = net[3](at_second)
    return Written(
        snapshot, [first, second], [at_second, second.flatten(1)], [lambda a: net[5](net[3](a).flatten(1)), net[5]]
    )


def written_tokens() -> Written:
    tokens = torch.tensor([[0, 3], [2, 2], [4, 1]])
    snapshot = fga.capture(build(Tokens), token_loss, tokens, (tokens + 1) % 4)
    net: Any = snapshot.network
    token, place = net.token(tokens), net.place(torch.arange(2))
    hidden = token + place
    norm = net.norm(hidden)
    inner = net.inner(torch.tanh(norm))
    after_norm: Callable[[Tensor], Tensor] = lambda a: net.read(hidden.detach() + net.inner(a))  # noqa: E731
    from_hidden: Callable[[Tensor], Tensor] = lambda a: net.read(a + net.inner(torch.tanh(net.norm(a))))  # noqa: E731
    return Written(
        snapshot,
        [token, place, norm, inner],
        [hidden, hidden, torch.tanh(norm), hidden + inner],
        [from_hidden, from_hidden, after_norm, net.read],
    )


WRITTEN = {"skipping": written_skipping, "conv": written_conv, "tokens": written_tokens}


@cache
def written(name: str) -> Written:
    return WRITTEN[name]()


def parts(snapshot: Snapshot, outputs: Tensor) -> Tensor:
    """Each example's part of the mean cross-entropy, (example,)."""
    losses = nn.functional.cross_entropy(outputs.flatten(0, -2), snapshot.targets.flatten(), reduction="none")
    return losses.reshape(len(outputs), -1).sum(1) / losses.numel()
