"""Row sampling: the total variance of Ĝ = ∑_kept g_r x_rᵀ + (1/c) ∑_j g_r(j) x_r(j)ᵀ/p_r(j), r(j) ~ p independently.

One draw has the mean G' = ∑_r g_r x_rᵀ over the rows that are sampled, and the second moment ∑_r p_r ‖g_r x_rᵀ/p_r‖²:

    tr Cov Ĝ = (1/c) [∑_r ‖g_r‖²‖x_r‖²/p_r − ‖G'‖²]

and without the trace Cov Ĝ = (1/c) ∑_r p_r (g_r x_rᵀ/p_r − G')(g_r x_rᵀ/p_r − G')ᵀ as a matrix of weights.

By the inequality of Cauchy and Schwarz ∑ s_r²/p_r ≥ (∑ s_r)², with equality for p_r ∝ s_r = ‖g_r‖‖x_r‖. Uniform p is
best only for rows of equal size. Keeping a row removes its term, and its part of G'.
Sources: docs/mathematics.md#row-sampling; Drineas et al. 2006; Liu et al. 2023 (WTA-CRS).
"""

from __future__ import annotations

import numpy as np

from theory.factors import Array
from theory.images import ByPlace, Images


def sizes(gradients: Array, inputs: Array) -> Array:
    """‖g_r‖‖x_r‖, (row,). gradients: (row, unit). inputs: (row, input)."""
    found: Array = np.linalg.norm(gradients, axis=1) * np.linalg.norm(inputs, axis=1)
    return found


def variance(gradients: Array, inputs: Array, probabilities: Array, count: int) -> float:
    """tr Cov Ĝ over the rows that are sampled: gradients (row, unit), inputs (row, input), probabilities (row,).

    Rows of probability zero must have a product of zero. Raises ValueError for a count below 1 and for a row that is
    never drawn although it is part of the gradient.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    squares = sizes(gradients, inputs) ** 2
    never = probabilities <= 0
    if np.any(squares[never] > 0):
        raise ValueError("a row that is part of the gradient must have a probability above zero")
    second = float(np.sum(np.divide(squares, probabilities, out=np.zeros_like(squares), where=~never)))
    return max(second - float(np.sum((gradients.T @ inputs) ** 2)), 0.0) / count


def least_variance(gradients: Array, inputs: Array, count: int) -> float:
    """The same for p ∝ ‖g_r‖‖x_r‖: ((∑_r ‖g_r‖‖x_r‖)² − ‖G'‖²)/c."""
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    total = float(sizes(gradients, inputs).sum())
    return max(total**2 - float(np.sum((gradients.T @ inputs) ** 2)), 0.0) / count


def images(place: int, gradients: Array, inputs: Array, probabilities: Array, count: int) -> list[Images]:
    """Cov Ĝ as images {place: (probe, unit, input)}; arguments as in `variance`."""
    inverse = np.divide(1.0, probabilities, out=np.zeros_like(probabilities), where=probabilities > 0)

    def image(numbers: Array) -> ByPlace:
        shares = numbers * inverse - numbers.sum(1, keepdims=True)
        return {place: np.matmul((shares[:, :, None] * gradients).swapaxes(1, 2), inputs)}

    return [Images(probabilities / count, image)]
