"""Projection of a gradient on k directions of a layer's inputs, Ĝ = G P Pᵀ, P (input, k) orthonormal.

Given P the squared bias is the energy outside, ‖G − G P Pᵀ‖² = ‖G‖² − ‖G P‖². For uniformly random P in d inputs
E P Pᵀ = (k/d) I, and ‖Ĝ‖² = ⟨Ĝ, G⟩, so

    E Ĝ = (k/d) G        tr Cov Ĝ = E‖Ĝ‖² − (k/d)²‖G‖² = (k/d)(1 − k/d) ‖G‖²

With Π = P Pᵀ, E Π_ij Π_kl = α δ_ij δ_kl + β (δ_ik δ_jl + δ_il δ_jk), α and β those of `theory.progress.projection`: for
β = 1 the last two terms are those of Gaussian noise that all rows of G have in common.

Source: docs/mathematics.md#projections-of-the-gradient; Zhao et al. 2024 (GaLore).
"""

from __future__ import annotations

import numpy as np

from theory.factors import Array
from theory.images import ByPlace, Images
from theory.linear_images import slopes_of_same_noise
from theory.progress import projection_moments


def projected(gradient: Array, directions: Array) -> Array:
    """G P Pᵀ, (unit, input). gradient: (unit, input). directions: Pᵀ (direction, input), orthonormal rows."""
    found: Array = (gradient @ directions.T) @ directions
    return found


def kept(gradient: Array, older: Array, k: int) -> float:
    """The share of ‖G‖² in the k leading right singular vectors of an older gradient; NaN without a gradient.

    Vectors whose singular value is a rounding error of single precision are no directions of the gradient.
    """
    _, values, vectors = np.linalg.svd(older, full_matrices=False)
    rounding = values[0] * max(older.shape) * np.finfo(np.float32).eps
    right = vectors[: min(k, int(np.sum(values > rounding)))]
    total = float(np.sum(gradient**2))
    return float(np.sum((gradient @ right.T) ** 2)) / total if total > 0 else float("nan")


def of_random(n_inputs: int, k: int) -> tuple[float, float]:
    """Shrinkage, and variance over ‖G‖², of a projection on k uniformly random directions."""
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    share = min(k, n_inputs) / n_inputs
    return share, share * (1 - share)


def images_of_random(place: int, gradient: Array, k: int) -> list[Images]:
    """Cov Ĝ of it, as images {place: (probe, unit, input)}. gradient: (unit, input)."""
    kept, alpha, beta = projection_moments(gradient.shape[1], min(k, gradient.shape[1]))

    def mean(numbers: Array) -> ByPlace:
        return {place: numbers[:, :, None] * gradient}

    pairs = slopes_of_same_noise({place: gradient}, {place: lambda noise: noise}, 0.0)
    return [Images(np.full(1, alpha - kept**2), mean), *(one.scaled(float(beta)) for one in pairs)]
