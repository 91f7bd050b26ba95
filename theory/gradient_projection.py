"""Projection of a gradient on k directions of a layer's inputs, Ĝ = G P Pᵀ, P (input, k) orthonormal.

Given P the squared bias is the energy outside, ‖G − G P Pᵀ‖² = ‖G‖² − ‖G P‖². For uniformly random P in d inputs
E P Pᵀ = (k/d) I, and ‖Ĝ‖² = ⟨Ĝ, G⟩, so

    E Ĝ = (k/d) G        tr Cov Ĝ = E‖Ĝ‖² − (k/d)²‖G‖² = (k/d)(1 − k/d) ‖G‖²

Source: docs/mathematics.md#projections-of-the-gradient; Zhao et al. 2024 (GaLore).
"""

from __future__ import annotations

import numpy as np

from theory.factors import Array


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
