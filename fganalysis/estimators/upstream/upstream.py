"""Upstream guess (W̃ᵀ): noise at the next tap, multiplied by the transpose of the upstream Jacobian.

    y_l,b = J_l,bᵀ ε,  ε ∈ R^{out_{l+1}};  y = ε at the output tap;  ĝ = t y

Random: ε. Biased: the mean is JᵀJ g. ``normalise`` rescales y to norm √out_l per example, as Singhal et al. do.
Source: Singhal et al. 2023.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fganalysis.arguments import check_flag
from fganalysis.capturing.jacobian import Jacobian, by_example, from_examples
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.capturing.tap import Layers
from fganalysis.estimators.checks import guessing
from fganalysis.estimators.directional import (
    Factor,
    Slope,
    check_switches,
    factors_of,
    guess_along,
    passes_along,
    rescaled_to,
)
from fganalysis.estimators.guesses import ActivationEstimates
from fganalysis.estimators.noise import GAUSSIAN, Noise
from fganalysis.estimators.passes import Passes


@dataclass(frozen=True)
class Upstream:
    """ĝ = t Jᵀε; ``normalise`` rescales each example's direction to norm √n.

    The other fields are the switches of docs/notation.md#the-three-switches.
    """

    normalise: bool = False
    noise: Noise = GAUSSIAN
    shared: bool = False
    slope: Slope = "example"
    layers: Layers = "joint"

    def __post_init__(self) -> None:
        check_flag("normalise", self.normalise)
        check_switches(self)

    @guessing
    def __call__(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> ActivationEstimates:
        factors = factors_of(snapshot, self._factor)
        return guess_along(self, snapshot, factors, n_guesses, generator)

    def passes(self, snapshot: Snapshot, n_guesses: int = 1) -> Passes:
        return passes_along(self, snapshot, n_guesses, products=1)

    def _factor(self, jacobian: Jacobian) -> Factor:
        if self.normalise:
            return Factor(jacobian.following.units, lambda noise: _rescaled(jacobian, noise), jacobian.following)
        return Factor(jacobian.following.units, jacobian.transposed_product, jacobian.following)


def _rescaled(jacobian: Jacobian, noise: Tensor) -> Tensor:
    """Jᵀε, each example's rescaled to norm √n, n its numbers at the tap."""
    tap = jacobian.tap
    directions = by_example(tap, jacobian.transposed_product(noise))
    return from_examples(tap, rescaled_to(directions, directions.shape[-1] ** 0.5))
