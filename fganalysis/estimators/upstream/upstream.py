"""Upstream guess (W̃ᵀ): noise at the next tap, multiplied by the transpose of the upstream Jacobian.

    y_l,b = J_l,bᵀ ε,  ε ∈ R^{out_{l+1}};  y = ε at the output tap;  ĝ = t y

Random: ε. Biased: the mean is JᵀJ g. ``normalise`` rescales y to norm √out_l per example, as Singhal et al. do.
Source: Singhal et al. 2023.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fganalysis.arguments import check_flag
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.capturing.tap import Layers
from fganalysis.capturing.upstream import UpstreamJacobian
from fganalysis.estimators.checks import guessing
from fganalysis.estimators.directional import Factor, Slope, check_switches, guess_along, identity, rescaled_to
from fganalysis.estimators.guesses import ActivationEstimates
from fganalysis.estimators.noise import GAUSSIAN, Noise


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
        factors = [self._factor(jacobian) for jacobian in snapshot.upstream]
        factors.append(identity(snapshot.taps[-1].units))
        return guess_along(self, snapshot, factors, n_guesses, generator)

    def _factor(self, jacobian: UpstreamJacobian) -> Factor:
        next_units, units = jacobian.weight.shape
        if self.normalise:
            return Factor(next_units, lambda noise: rescaled_to(jacobian.transposed_product(noise), units**0.5))
        return Factor(next_units, jacobian.transposed_product)
