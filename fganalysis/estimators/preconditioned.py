"""Preconditioned upstream guess (W̃^P): the upstream guess whitened by its own regularised covariance.

    J = U S Vᵀ,  J_σ = U (S² + σI)^½ Vᵀ;   y = (J_σᵀJ_σ)^(−½) J_σᵀ ε = V Uᵀ ε;   ĝ = t y

Every factor of (S² + σ) cancels, so for any σ > 0 the direction is V Uᵀ ε over the whole thin SVD, zero singular values
included. Where the next layer is at least as wide, V Vᵀ = I and this is plain activity perturbation in law.
Random: ε. Unbiased: the mean is V Vᵀ g = g. Source: Wang, Markou, Campbell 2025.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fganalysis.estimates import ActivationEstimates
from fganalysis.estimators.directional import Slope, guess_along, identity, per_example
from fganalysis.jacobian import UpstreamJacobian
from fganalysis.noise import GAUSSIAN, Noise
from fganalysis.snapshot import Layers, Snapshot


@dataclass(frozen=True)
class PreconditionedUpstream:
    """ĝ = t (J_σᵀJ_σ)^(−½) J_σᵀ ε; ``sigma`` > 0 regularises as in the paper and cancels; switches of MATH.md §1."""

    sigma: float = 1e-5
    noise: Noise = GAUSSIAN
    shared: bool = False
    slope: Slope = "example"
    layers: Layers = "joint"

    def __post_init__(self) -> None:
        if not self.sigma > 0:
            raise ValueError(f"sigma must be positive, got {self.sigma}")

    def __call__(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> ActivationEstimates:
        polar = snapshot.remember("preconditioned", lambda: [_polar(jacobian) for jacobian in snapshot.upstream])
        factors = [*map(per_example, polar), identity(snapshot.taps[-1].units)]
        return guess_along(self, snapshot, factors, n_guesses, generator)


def _polar(jacobian: UpstreamJacobian, examples_at_once: int = 16) -> Tensor:
    """U Vᵀ of every example's thin SVD, (example, next_unit, unit)."""
    parts = []
    for start in range(0, len(jacobian.derivative), examples_at_once):
        some = UpstreamJacobian(jacobian.weight, jacobian.derivative[start : start + examples_at_once])
        left, _, right = torch.linalg.svd(some.dense(), full_matrices=False)
        parts.append(left @ right)
    return torch.cat(parts)
