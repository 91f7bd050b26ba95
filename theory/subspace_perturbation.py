"""Subspace perturbation: moments of one matrix with V = c U Z Wᵀ, U (row, a) and W (column, b) orthonormal.

Given U and W it is weight perturbation of M = Uᵀ G W in a·b dimensions, with Z one noise vector of a·b entries. As U
and W have orthonormal columns, ‖V‖ = c‖Z‖ and t = c⟨Z, M⟩, so

    mean c² U M Wᵀ        E t² = c²‖M‖²        tr Σ = c² a b        E t²‖V‖² = c⁴ (a b pair + fourth − pair)‖M‖²

**Over uniformly random U and W**, E‖M‖² = (a b/P)‖G‖² with P = rows·columns, and E c² U M Wᵀ = c² (a b/P) G. With
c² = P/(a b) the guess is unbiased, and in separate passes E‖Ĝ‖² = (P/(a b)) (a b pair + fourth − pair)‖G‖²; Gaussian
P + 2P/(a b): the variance of weight perturbation and (2P/(a b) − 2)‖G‖² more, the spread of what a subspace keeps.
Source: SubZero (Yu et al. 2024); derived here.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from theory.factors import Array


def inside(gradient: Array, left: Array, right: Array) -> Array:
    """M = Uᵀ G W, (mode, mode). gradient: (row, column). left: U (row, mode). right: W (column, mode)."""
    found: Array = left.T @ gradient @ right
    return found


def mean(gradient: Array, left: Array, right: Array, scale: float) -> Array:
    """c² U Uᵀ G W Wᵀ, (row, column)."""
    found: Array = scale**2 * left @ inside(gradient, left, right) @ right.T
    return found


def squared_slope(gradient: Array, left: Array, right: Array, scale: float) -> float:
    """E t² = c²‖M‖²."""
    return scale**2 * float(np.sum(inside(gradient, left, right) ** 2))


def trace(left: Array, right: Array, scale: float) -> float:
    """tr Σ = c² a b."""
    return scale**2 * left.shape[1] * right.shape[1]


def alone(gradient: Array, left: Array, right: Array, scale: float, fourth: float, pair: float) -> float:
    """E t²‖V‖² of a matrix by itself, given U and W. fourth, pair: of Z."""
    dims = left.shape[1] * right.shape[1]
    return scale**4 * (dims * pair + fourth - pair) * float(np.sum(inside(gradient, left, right) ** 2))


def alone_over_subspaces(squared_norm: float, size: int, dims: int, scale: float, fourth: float, pair: float) -> float:
    """E t²‖V‖² over U and W as well. size: P. dims: a·b."""
    return scale**4 * (dims * pair + fourth - pair) * dims / size * squared_norm


def vectors(
    gradient: Array, left: Array, right: Array, scale: float, fourth: float, pair: float, others: float
) -> Iterator[tuple[float, Array]]:
    """(c, v) with Σ c v vᵀ = O Σ + E t² V Vᵀ, v (row, column). others: O, E t² of what else is in the slope."""
    projected = inside(gradient, left, right)
    strength = others + pair * squared_slope(gradient, left, right, scale)
    for (i, j), along in np.ndenumerate(projected):
        factor = scale**2 * strength + scale**4 * (fourth - 3 * pair) * along**2
        yield factor, np.outer(left[:, i], right[:, j])
    yield 2 * pair, mean(gradient, left, right, scale)
