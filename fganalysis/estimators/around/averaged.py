"""The mean of several guesses of any estimator, as one guess.

    ĝ = (1/m) Σ_i ĝ_i,   ĝ_i independent guesses of one estimator, m = ``n_averaged``

Random: what the estimator draws, m times. The bias is that of the estimator and the variance is divided by m, so the
mean squared error is bias² + variance/m. Source: docs/mathematics.md#averaging.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fganalysis.arguments import check_whole
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators.around.wrapped import wrap
from fganalysis.estimators.checks import guessing
from fganalysis.estimators.guesses import ActivationEstimates, Estimates, WeightEstimates
from fganalysis.estimators.passes import Passes
from fganalysis.estimators.stated_passes import passes_of
from fganalysis.estimators.tangents_of_weights import Tangents, tangents_of

NUMBERS_HELD = 2**24  # most numbers held at once, unless a single guess has more


@dataclass(frozen=True)
class Averaged:
    """The mean of ``n_averaged`` guesses of ``estimator``, a key or an instance. It learns if the estimator learns.

    Raises ValueError for an unknown key and for an ``n_averaged`` that is no whole number of at least 1.
    """

    estimator: Any
    n_averaged: int

    def __post_init__(self) -> None:
        wrap(self)
        check_whole("n_averaged", self.n_averaged)

    def tangents(self) -> Tangents | None:
        """Those of the estimator, and a mean of means is a mean."""
        inside = tangents_of(self.estimator)
        return None if inside is None else replace(inside, n_averaged=inside.n_averaged * int(self.n_averaged))

    def passes(self, snapshot: Snapshot, n_guesses: int = 1) -> Passes | None:
        """Those of the estimator for all of its guesses."""
        return passes_of(self.estimator, snapshot, n_guesses * int(self.n_averaged))

    @guessing
    def __call__(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> Estimates:
        at_weights = sum(layer.weight.numel() for layer in snapshot.weights)
        numbers = max(at_weights, sum(tap.outputs.numel() for tap in snapshot.taps))
        at_once = max(1, NUMBERS_HELD // numbers)
        means = []
        for _ in range(n_guesses):
            sums = None
            for start in range(0, self.n_averaged, at_once):
                part = self.estimator(snapshot, min(at_once, self.n_averaged - start), generator)
                totals = part.total()
                sums = totals if sums is None else tuple(a + b for a, b in zip(sums, totals, strict=True))
            assert sums is not None
            means.append([total / self.n_averaged for total in sums])
        return block_of(means, part)


def block_of(guesses: Sequence[Sequence[Tensor]], like: Estimates) -> Estimates:
    """A block of estimates from single guesses, each a tensor for each tap or layer, of the kind of ``like``."""
    per_tap = tuple(torch.stack(of_tap) for of_tap in zip(*guesses, strict=True))
    if isinstance(like, ActivationEstimates):
        return ActivationEstimates(per_tap)
    return WeightEstimates(per_tap[0].new_ones(len(guesses), len(per_tap)), per_tap)
