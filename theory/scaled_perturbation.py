"""Scaled perturbation: moments of one layer with V = Σ^½ u, Σ diagonal, u one noise vector.

    mean Σ G        E t² = Σ_i σ_i G_i²        E t²‖V‖² = pair (Σ_i σ_i G_i²) tr Σ + (fourth − pair) Σ_i σ_i² G_i²

as E t² V_i² = σ_i [pair Σ_j σ_j G_j² + 2 pair σ_i G_i² + (fourth − 3 pair) σ_i G_i²]: this is `theory.linear_guess` for
one example whose units are the weights, with a diagonal factor. Source: derived there.
"""

from __future__ import annotations

import numpy as np

from theory.factors import Array


def squared_slope(gradient: Array, variances: Array) -> float:
    """E t² = ⟨G, Σ G⟩. variances: the diagonal of Σ, in the shape of the gradient."""
    return float(np.sum(variances * gradient**2))


def alone(gradient: Array, variances: Array, fourth: float, pair: float) -> float:
    """E t²‖V‖² of a layer by itself, in (loss per unit of weight)²."""
    squares = float(np.sum((variances * gradient) ** 2))
    return pair * squared_slope(gradient, variances) * float(np.sum(variances)) + (fourth - pair) * squares
