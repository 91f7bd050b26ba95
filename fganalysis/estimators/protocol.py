"""What an estimator is: any object that maps (snapshot, n_guesses, generator) to a block of estimates."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch

from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators.guesses import Estimates


class Estimator(Protocol):
    """One call: a snapshot, a number of guesses and a generator give a block of estimates."""

    def __call__(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> Estimates: ...


@runtime_checkable
class Stateful(Estimator, Protocol):
    """An estimator that learns in training (feedback matrices, auxiliary heads). Its methods return new estimators."""

    def initialised(self, snapshot: Snapshot) -> Stateful:
        """The estimator with a state that fits the network."""

    def advanced(self, snapshot: Snapshot, generator: torch.Generator) -> Stateful:
        """The estimator after one step of its own learning."""

    def state(self) -> dict[str, torch.Tensor]:
        """Its state, for a checkpoint."""

    def with_state(self, state: dict[str, torch.Tensor]) -> Stateful:
        """The estimator with a state from a checkpoint."""
