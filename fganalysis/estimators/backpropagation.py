"""Backpropagation: the exact gradient, the control of every comparison.

Guess: ĝ = g. Nothing is random; bias and variance are zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators.checks import guessing
from fganalysis.estimators.guesses import ActivationEstimates
from fganalysis.estimators.passes import Passes


@dataclass(frozen=True)
class Backpropagation:
    """ĝ_l,b = g_l,b."""

    @guessing
    def __call__(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> ActivationEstimates:
        return ActivationEstimates(tuple(g.expand(n_guesses, -1, -1) for g in snapshot.gradients))

    def passes(self, snapshot: Snapshot, n_guesses: int = 1) -> Passes:
        return Passes(forward=1, backward=1)
