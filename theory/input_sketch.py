"""Input sketch: the total variance of Ĝ = (1/k) G S Sᵀ, S (input, k) with columns of noise over d inputs.

For one column s and a row a of G, with E s_i⁴ = fourth and E s_i² s_j² = pair,

    E (a·s)² ‖s‖² = ∑_ij E a_i² s_i² s_j² = (pair (d − 1) + fourth) ‖a‖²

as the terms a_i a_j with i ≠ j are odd in s_i and s_j, or in one of them. Columns are independent, so

    tr Cov Ĝ = (pair (d − 1) + fourth − 1) ‖G‖²/k

which is (d − 1)‖G‖²/k for signs and for sampled axes, and (d + 1)‖G‖²/k for Gaussian columns.

With a matrix S_r for each row the variances of the rows add up: ∑_r ‖g_r‖²‖x_r‖² in the place of ‖G‖².
Sources: docs/mathematics.md#input-sketch; Oktay et al. 2020 (randomised automatic differentiation); Hao et al. 2024
(FLORA, Gaussian); derived here.
"""

from __future__ import annotations

import numpy as np

from theory.factors import Array
from theory.images import ByPlace, Images
from theory.linear_guess import Law
from theory.linear_images import of_one_vector


def variance(gradient: Array, columns: int, fourth: float, pair: float = 1.0) -> float:
    """tr Cov Ĝ of one layer with one S for all rows. gradient: G (unit, input)."""
    return _factor(gradient.shape[1], columns, fourth, pair) * float(np.sum(gradient**2))


def variance_by_row(gradients: Array, inputs: Array, columns: int, fourth: float, pair: float = 1.0) -> float:
    """tr Cov Ĝ of one layer with an S for each row. gradients: (row, unit). inputs: (row, input)."""
    squares = np.sum(gradients**2, axis=1) * np.sum(inputs**2, axis=1)
    return _factor(inputs.shape[1], columns, fourth, pair) * float(squares.sum())


def images(place: int, gradient: Array, columns: int, fourth: float, pair: float = 1.0) -> list[Images]:
    """Cov Ĝ with one S for all rows, as images {place: (probe, unit, input)}. gradient: G (unit, input).

    Row a of Ĝ is for each column s (a·s) s: slopes of the units, with one noise vector in common.
    """
    single = of_one_vector(place, gradient, Law(fourth, pair), lambda noise: noise)
    return [one.scaled(1.0 / columns) for one in single]


def images_by_row(
    place: int, gradients: Array, inputs: Array, columns: int, fourth: float, pair: float = 1.0
) -> list[Images]:
    """The same with an S for each row; arguments as in `variance_by_row`.

    Of one column of one row (x·s) g sᵀ: Cov is pair ‖x‖² + (fourth − 3 pair) x_j² for each g e_jᵀ, and 2 pair − 1 for
    g xᵀ.
    """
    squares = inputs**2
    of_entries = pair * squares.sum(1, keepdims=True) + (fourth - 3.0 * pair) * squares

    def entries(numbers: Array) -> ByPlace:
        return {place: gradients.T @ numbers.reshape(-1, *inputs.shape)}

    def rows(numbers: Array) -> ByPlace:
        return {place: gradients.T @ (numbers[:, :, None] * inputs)}

    of_rows = np.full(len(inputs), (2.0 * pair - 1.0) / columns)
    return [Images(of_entries.ravel() / columns, entries), Images(of_rows, rows)]


def _factor(n_inputs: int, columns: int, fourth: float, pair: float) -> float:
    if columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}")
    return (pair * (n_inputs - 1) + fourth - 1) / columns
