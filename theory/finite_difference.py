"""Finite differences: Ĝ = c(z) z, c one-sided (L(θ+εz) − L(θ))/ε or central (L(θ+εz) − L(θ−εz))/2ε.

With G, H, T the first three derivatives of the loss at θ,

    one-sided  c(z) = z·G + (ε/2) zᵀHz + (ε²/6) T zzz + …         central  c(z) = z·G + (ε²/6) T zzz + …

The error of the slope along one z is O(ε) one-sided and O(ε²) central. But where z and −z are equally likely, the even
terms of c(z) do not contribute to E c(z) z. **Both differences have the same mean**, with a bias of O(ε²), and the
one-sided difference only adds variance. A skewed law (third moment μ₃) has a bias of O(ε). For independent entries of z
with unit variance and moments κ, μ₆:

    E Ĝ_i = G_i + (ε²/6)(3 Σ_j T_ijj + (κ − 3) T_iii) + O(ε⁴)   (symmetric)       + (ε/2) μ₃ H_ii   (skewed, one-sided)

A quadratic loss has T = 0: unbiased, and

    E Ĝ_m² = ‖G‖² + (κ−1) G_m² + (ε²/4) E (zᵀHz)² z_m²                            (the last term one-sided only)
    E (zᵀHz)² = (tr H)² + 2‖H‖² + (κ−3) Σ H_ii²
    E (zᵀHz)² z_m² = E (zᵀHz)² + 4(κ−1)(‖H_m‖² − H_mm²) + (μ₆−κ) H_mm² + 2(κ−1) H_mm (tr H − H_mm).

A rounding error of the loss with standard deviation r adds √2 r/ε (one-sided) or r/(√2 ε) (central) to the error of the
slope. Truncation grows with ε, so the error has a minimum, at `best_epsilon`.
Sources: Spall 1992; the moments are derived here and enumerated in the tests.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from theory.factors import Array


def quadratic(
    gradient: Array, hessian: Array, epsilon: float, fourth: float, sixth: float, *, central: bool
) -> tuple[Array, Array]:
    """E Ĝ and E Ĝ² element by element, (weight,), exact where the loss is quadratic in the weights.

    gradient: (weight,), hessian: (weight, weight), over all taps. fourth, sixth: E z_i⁴ and E z_i⁶ of independent
    symmetric entries (Gaussian 3 and 15, signs 1 and 1).
    """
    squares = gradient @ gradient + (fourth - 1) * gradient**2
    if not central:
        diagonal = np.diagonal(hessian)
        rows = np.sum(hessian**2, axis=1)
        curvature = (
            squared_curvature(hessian, fourth)
            + 4 * (fourth - 1) * (rows - diagonal**2)
            + (sixth - fourth) * diagonal**2
            + 2 * (fourth - 1) * diagonal * (diagonal.sum() - diagonal)
        )
        squares = squares + epsilon**2 / 4 * curvature
    return gradient.copy(), squares


def squared_curvature(hessian: Array, fourth: float) -> float:
    """E (zᵀHz)² for independent symmetric entries of unit variance."""
    diagonal = np.diagonal(hessian)
    return float(diagonal.sum() ** 2 + 2 * np.sum(hessian**2) + (fourth - 3) * np.sum(diagonal**2))


def leading_bias(third: Array, epsilon: float, fourth: float) -> Array:
    """(ε²/6)(3 Σ_j T_ijj + (κ−3) T_iii), (weight,): the bias of either difference for a symmetric law, to O(ε⁴).

    third: (weight, weight, weight). Exact where the loss is of degree four or less in the weights.
    """
    crossed: Array = np.einsum("ijj->i", third)
    diagonal: Array = np.einsum("iii->i", third)
    bias: Array = epsilon**2 / 6 * (3 * crossed + (fourth - 3) * diagonal)
    return bias


def skewed_bias(hessian: Array, epsilon: float, third_moment: float) -> Array:
    """(ε/2) μ₃ H_ii, (weight,): the leading bias of the one-sided difference if the noise has a third moment μ₃."""
    return epsilon / 2 * third_moment * np.diagonal(hessian)


def one_sided_truncation(hessian: Array, fourth: float) -> float:
    """½√E (zᵀHz)²: the error of the one-sided slope is this times ε. hessian: (weight, weight)."""
    return 0.5 * float(np.sqrt(squared_curvature(hessian, fourth)))


def central_truncation(third: Array) -> float:
    """(1/6)√E (T zzz)² for Gaussian z: the error of the central slope is this times ε².

    E (T zzz)² = 6‖T‖² + 9‖Σ_j T_·jj‖². third: T (weight, weight, weight).
    """
    crossed: Array = np.einsum("ijj->i", third)
    return float(np.sqrt(6 * np.sum(third**2) + 9 * np.sum(crossed**2))) / 6


def slope_error(epsilon: ArrayLike, truncation: float, rounding: float, *, central: bool) -> Array:
    """Root mean square error of a slope from truncation and rounding, in the shape of ε, loss per unit of z.

    truncation: the factor of ε (one-sided) or ε² (central) in the truncation error. rounding: standard deviation of the
    rounding error of one loss. It is about the unit roundoff times the loss, and more for a sum of many terms.
    """
    step = np.asarray(epsilon, np.float64)
    order, divisor = (2, 2.0) if central else (1, 1.0)
    error: Array = np.hypot(truncation * step**order, np.sqrt(2.0) * rounding / (divisor * step))
    return error


def best_epsilon(truncation: float, rounding: float, *, central: bool) -> float:
    """The ε with the smallest `slope_error`: (√2 r/c)^½ one-sided and (r/(2c))^⅓ central, with c the truncation."""
    if central:
        return float((rounding / (2 * truncation)) ** (1 / 3))
    return float(np.sqrt(np.sqrt(2.0) * rounding / truncation))


def best_epsilon_at_kinks(kinks: float, rounding: float, *, central: bool) -> float:
    """The ε that minimises k ε + A r²/ε², the square of a slope's error by kinks and rounding: (2 A r²/k)^⅓.

    kinks: k, as the square of `kink_error` is proportional to ε at small ε. rounding: r. A is ½ central, 2 one-sided.
    The error there is √(3/2 k ε).
    """
    return float(((1 if central else 4) * rounding**2 / kinks) ** (1 / 3))


def kink_error(epsilon: ArrayLike, distances: Array, spreads: Array, jumps: Array, *, central: bool) -> Array:
    """Root mean square error of a slope from the kinks of the loss that a step ±εz crosses, in the shape of ε.

    A kink lies where the input s of a ReLU unit is zero. Along a Gaussian z, s changes at the rate m ~ N(0, σ²). With
    r = |s|/(εσ), a step crosses the kink with probability Q(r), the normal tail. This adds x = jump·(m − |s|/ε) to the
    one-sided slope, with

        E x = jump σ (φ(r) − r Q(r))        E x² = jump² σ² ((1 + r²) Q(r) − r φ(r)).

    The central slope gets ±x/2 from either side, with mean zero. Crossings are taken as independent, which holds to
    leading order. The number of crossed kinks is proportional to ε, so both errors are O(√ε): **neither has the order
    of a smooth loss**.

    distances: |s| (kink,). spreads: σ (kink,). jumps: the change of the derivative of the loss by s at the kink,
    (kink,), loss per unit of s.
    """
    steps = np.asarray(epsilon, np.float64)[..., None]
    r = distances / (steps * spreads)
    tail, density = special.ndtr(-r), np.exp(-(r**2) / 2) / np.sqrt(2 * np.pi)
    # For large r both brackets are differences of nearly equal numbers.
    squares = (jumps * spreads) ** 2 * np.maximum((1 + r**2) * tail - r * density, 0.0)
    if central:
        error: Array = np.sqrt(squares.sum(-1) / 2)
        return error
    means = jumps * spreads * np.maximum(density - r * tail, 0.0)
    one_sided: Array = np.sqrt(squares.sum(-1) + means.sum(-1) ** 2 - (means**2).sum(-1))
    return one_sided
