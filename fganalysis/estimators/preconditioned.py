"""Preconditioned upstream guess (W̃^P): the upstream guess whitened by its own regularised covariance.

    J = U S Vᵀ,  J_σ = U (S² + σI)^½ Vᵀ;   y = (J_σᵀJ_σ)^(−½) J_σᵀ ε = V Uᵀ ε;   ĝ = t y

Every factor of (S² + σ) cancels, so for any σ > 0 the direction is V Uᵀ ε over the whole thin SVD, zero singular values
included. Where the next layer is at least as wide, V Vᵀ = I and this is plain activity perturbation in law.
Random: ε. Unbiased: the mean is V Vᵀ g = g. Source: Wang, Markou, Campbell 2025.

Most examples need no SVD for it, and none of this approximates:

    next_unit < unit   U Vᵀ = (J Jᵀ)^(−½) J, from the small J Jᵀ in double precision. Where its eigenvalues span more
                       than 1 to `LEAST_RATIO`, or one is zero (few live units), J itself is decomposed.
    next_unit ≥ unit   y is the first ``unit`` entries of ε: another y for the same ε, and the same law of all guesses,
                       if ε is isotropic (`fganalysis.noise.is_isotropic`) and every example draws its own.

Proof of the second: complete U to a square orthogonal [U U⊥]. O = diag(V, I) [U U⊥]ᵀ is orthogonal and the first
``unit`` entries of O ε are V Uᵀ ε, so if O ε has the law of ε, y has that of ε's first entries. O depends on example
and tap, whose ε are independent, so that all y together have the same law too; a guess depends on ε through y alone.
One ε shared by the batch is turned by each example's own O, which correlates examples otherwise, and signs turned by O
are no signs: there, and for ``exact``, it is the polar factor U Vᵀ of every Jacobian.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fganalysis.estimates import ActivationEstimates
from fganalysis.estimators.directional import Factor, Slope, guess_along, identity, per_example
from fganalysis.jacobian import UpstreamJacobian
from fganalysis.noise import GAUSSIAN, Noise, is_isotropic
from fganalysis.snapshot import Layers, Snapshot

LEAST_RATIO = 1e-4  # of eigenvalues of J Jᵀ: their inverse root is then good to 1e-12, and its product to 100 roundings
PAIRS_AT_ONCE = 1024  # of rows of W
EXAMPLES_AT_ONCE = 16  # decomposed


@dataclass(frozen=True)
class PreconditionedUpstream:
    """ĝ = t (J_σᵀJ_σ)^(−½) J_σᵀ ε; ``sigma`` > 0 regularises as in the paper and cancels.

    ``exact`` takes LAPACK's SVD of every example, as the definition has it; the others are the switches of MATH.md §1.
    """

    sigma: float = 1e-5
    exact: bool = False
    noise: Noise = GAUSSIAN
    shared: bool = False
    slope: Slope = "example"
    layers: Layers = "joint"

    def __post_init__(self) -> None:
        if not self.sigma > 0:
            raise ValueError(f"sigma must be positive, got {self.sigma}")

    def __call__(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> ActivationEstimates:
        factors = [self._factor(snapshot, index) for index in range(len(snapshot.upstream))]
        factors.append(identity(snapshot.taps[-1].units))
        return guess_along(self, snapshot, factors, n_guesses, generator)

    def _factor(self, snapshot: Snapshot, index: int) -> Factor:
        jacobian = snapshot.upstream[index]
        next_units, units = jacobian.weight.shape
        if not self.exact and next_units < units:
            return snapshot.remember(("preconditioned by gram", index), lambda: _by_gram(jacobian))
        if not self.exact and not self.shared and is_isotropic(self.noise):
            return Factor(next_units, lambda noise: noise[..., :units])
        return snapshot.remember(("preconditioned", index), lambda: per_example(_polar(jacobian)))


def _by_gram(jacobian: UpstreamJacobian) -> Factor:
    """A = Jᵀ (J Jᵀ)^(−½), and from the SVD for the examples whose J Jᵀ is too ill-conditioned for that."""
    weight, squares = jacobian.weight.double(), jacobian.derivative.double().square()
    # Σ_u d_u² W_iu W_ju as one product for all examples: a fifth of the time of every J_b times its transpose.
    rows = weight.split(max(1, PAIRS_AT_ONCE // len(weight)))
    pairs = (squares @ (some[:, None, :] * weight).flatten(0, 1).T for some in rows)
    gram = torch.cat(list(pairs), dim=1).unflatten(1, (len(weight), len(weight)))
    values, vectors = torch.linalg.eigh(gram)
    far = values[:, 0] <= LEAST_RATIO * values[:, -1]
    scale = torch.where(far[:, None], 1.0, values).rsqrt()
    root = ((vectors * scale[:, None, :]) @ vectors.mT).to(jacobian.weight)
    (decomposed,) = far.nonzero(as_tuple=True)
    polar = _polar(UpstreamJacobian(jacobian.weight, jacobian.derivative[decomposed]))
    by_root, by_polar = per_example(root), per_example(polar)

    def apply(noise: Tensor) -> Tensor:
        directions = jacobian.transposed_product(by_root.apply(noise))
        if len(decomposed):
            directions[:, decomposed] = by_polar.apply(noise[:, decomposed])
        return directions

    return Factor(jacobian.weight.shape[0], apply)


def _polar(jacobian: UpstreamJacobian) -> Tensor:
    """U Vᵀ of every example's thin SVD, (example, next_unit, unit)."""
    parts = [jacobian.weight.new_zeros(0, *jacobian.weight.shape)]
    for derivative in jacobian.derivative.split(EXAMPLES_AT_ONCE):
        left, _, right = torch.linalg.svd(UpstreamJacobian(jacobian.weight, derivative).dense(), full_matrices=False)
        parts.append(left @ right)
    return torch.cat(parts)
