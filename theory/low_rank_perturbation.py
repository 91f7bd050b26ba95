"""Low-rank perturbation: E t²‖V‖² of one matrix with V = U Wᵀ/√r, t = ⟨V, G⟩, for every law of U and W.

U (row, r) and W (column, r) are two noise vectors with E ε_i ε_j ε_k ε_l = pair (δδ + δδ + δδ) + (fourth − 3 pair) δ.
With m rows and n columns, and A = pair of U, a = its fourth − 3 pair, B and b those of W,

    t²‖V‖² = (1/r²) Σ_stuv (u_sᵀ G w_s)(u_tᵀ G w_t)(u_u·u_v)(w_u·w_v)

The expectation over U, summed over the index of its inner product, is δ_ij times

    A (m δ_st δ_uv + δ_su δ_tv + δ_sv δ_tu) + a δ_stuv

and that over W the same with n, B, b. So only ‖G‖² is left of G, and the sums of products of the three pairings over
s, t, u, v are r² for equal ones and r otherwise:

    E t²‖V‖² = ‖G‖²/r² · [A B (m n r² + 2 r (m + n) + 2 r² + 2 r) + A b r (m + 2) + a B r (n + 2) + a b r]

Gaussian: ‖G‖² (m n + 2 + 2 (m + n + 1)/r), so the variance by itself is ‖G‖² (P + 1 + 2 (m + n + 1)/r).

**The second moment**, for the curvature along a guess, of Gaussian U and W: with the same pairings, but the indices of
V Vᵀ left open,

    E t² V_pq V_xy = ‖G‖² δ_px δ_qy + 2 G_pq G_xy + (2/r) [δ_px (GᵀG)_qy + (GGᵀ)_px δ_qy + G_py G_xq]

`images` writes the bracket as a sum of outer products, exactly. Derived here, and enumerated in the tests.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from theory.factors import Array
from theory.images import Images


@dataclass(frozen=True)
class Law:
    """E ε_i⁴ and E ε_i² ε_j² of a noise vector."""

    fourth: float
    pair: float

    @property
    def excess(self) -> float:
        return self.fourth - 3 * self.pair


def alone(squared_norm: float, rows: int, columns: int, rank: int, left: Law, right: Law) -> float:
    """E t²‖V‖² of a matrix by itself, in (loss per unit of weight)². squared_norm: ‖G‖². left, right: of U and of W."""
    r = rank
    both = left.pair * right.pair * (rows * columns * r**2 + 2 * r * (rows + columns) + 2 * r**2 + 2 * r)
    one = left.pair * right.excess * r * (rows + 2) + left.excess * right.pair * r * (columns + 2)
    return squared_norm / r**2 * (both + one + left.excess * right.excess * r)


def squared_slope(squared_norm: float) -> float:
    """E t²: the entries of V are uncorrelated, with unit variance."""
    return squared_norm


def images(gradient: Array, rank: int) -> Images:
    """(2/r) [I ⊗ GᵀG + GGᵀ ⊗ I + swap], swap_(pq, xy) = G_py G_xq, as images (probe, row, column).

    With e_p ⊗ G_x the matrix whose row p is row x of G, ½ Σ_px (e_p ⊗ G_x + e_x ⊗ G_p)(…)ᵀ = I ⊗ GᵀG + swap: the images
    of z_px, p ≤ x, are (Z + Zᵀ) G. By the singular values of G the other term is of columns of U diag(λ).
    """
    rows, columns = gradient.shape
    left, lengths, _ = np.linalg.svd(gradient, full_matrices=False)
    scaled, upper = left * lengths, np.triu_indices(rows)
    factors = np.where(upper[0] == upper[1], 1.0, 2.0) / rank
    of_columns = np.full(len(lengths) * columns, 2.0 / rank)

    def image(numbers: Array) -> Array:
        by_rows, by_columns = np.split(numbers, [len(factors)], axis=1)
        square = np.zeros((len(numbers), rows, rows))
        square[:, upper[0], upper[1]] = by_rows
        made: Array = (square + square.transpose(0, 2, 1)) @ gradient
        return made + scaled @ by_columns.reshape(len(numbers), len(lengths), columns)

    return Images(np.concatenate([factors, of_columns]), image)
