"""The training that a monitor is timed in, and what it measures there."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

import fganalysis as fga
from studies.throughput.steps import Network, case

NETWORKS: tuple[Network, ...] = ("gpt", "resnet")
NAMES = {"gpt": "GPT", "resnet": "ResNet"}
GUESSES = 64


@dataclass(frozen=True)
class Watched:
    """What a monitor measures. examples: of the batch that guesses are made on, None for all."""

    estimators: tuple[str, ...]
    examples: int | None = None

    @property
    def written_out(self) -> bool:
        """Whether guesses are not drawn by their law; their closed form then takes longer than they do."""
        return "activity" in self.estimators

    def settings(self) -> dict[str, Any]:
        return {"guesses": GUESSES, "examples": self.examples, "predictions": not self.written_out}


WATCHED = {
    "no estimator": Watched(()),
    "weight": Watched(("weight",)),
    "activity": Watched(("activity",)),
    "activity, 1 example": Watched(("activity",), 1),
}


def clock_of(device: str) -> Callable[[], float]:
    return time.process_time if device == "cpu" else time.perf_counter


def training(name: Network, device: str, small: bool) -> tuple[Callable[[], None], Callable[..., fga.Monitor], tuple]:
    """A training step by AdamW; what makes a monitor of the network; the batch."""
    timed = case(name, device, small=small)
    network = timed.network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        timed.loss_fn(network(timed.inputs), timed.targets).backward()
        optimizer.step()

    def monitor(watched: Watched, **settings: Any) -> fga.Monitor:
        return fga.Monitor(network, timed.loss_fn, watched.estimators, **watched.settings(), **settings)

    return step, monitor, (timed.inputs, timed.targets)
