"""Row sketch: the total variance of Ĝ = (1/r) gᵀ Z Zᵀ X, Z (row, r) with columns of noise over the rows.

For one probe z, an entry of Ĝ is zᵀ M z with M_rs = g_ru x_si, and E zᵀMz = tr M = G_ui. By the fourth moments of z,
symmetric with E z_r⁴ = fourth and E z_r² z_s² = pair,

    E (zᵀMz)² = pair [(tr M)² + ‖M‖² + tr M M] + (fourth − 3 pair) ∑_r M_rr²

Summed over units and inputs, with K = X Xᵀ, ∑‖M‖² = tr K ‖g‖², ∑ tr M M = ∑_rs (g_r·g_s)(x_s·x_r) = ‖G‖² and
∑ M_rr² = ∑_r ‖g_r‖² K_rr. Probes are independent, so for independent entries (pair = 1, fourth = κ)

    tr Cov Ĝ = (1/r) [tr K ‖g‖² + ‖G‖² + (κ − 3) ∑_r K_rr ‖g_r‖²]

Where the positions p of every example e are sketched apart with the same probes, M_pq = ∑_e g_ep,u x_eq,i, and the
three sums run over pairs of examples e, f:

    ∑‖M‖² = ∑_ef ⟨g_e, g_f⟩⟨x_e, x_f⟩
    ∑ tr M M = ∑_ef ∑_pq (g_ep·g_fq)(x_eq·x_fp)
    ∑ M_pp² = ∑_ef ∑_p (g_ep·g_fp)(x_ep·x_fp)

All are sums over inputs, so that channels with probes of their own, r each, have the same total variance. A convolution
is such a sketch for each place of its kernel, with the rows of its input and with gradients that are shifted: the
variances add up, and the places share the probes.
Sources: docs/mathematics.md#row-sketch; derived here. An entry's variance for Gaussian probes is that of Louboutin et
al. 2021, (‖M‖² + tr M M)/r.
"""

from __future__ import annotations

import numpy as np

from theory.factors import Array
from theory.images import Images
from theory.linear_guess import Law
from theory.linear_images import of_one_vector

NUMBERS_AT_ONCE = 2**22  # Of products of positions with positions.


def variance(gradients: Array, inputs: Array, probes: int, fourth: float, pair: float = 1.0) -> float:
    """tr Cov Ĝ of one layer. gradients: (row, unit). inputs: (row, input)."""
    return variance_by_example(gradients[None], inputs[None], probes, fourth, pair)


def images(place: int, gradients: Array, inputs: Array, probes: int, fourth: float, pair: float = 1.0) -> list[Images]:
    """Cov Ĝ as images {place: (probe, unit, input)}. gradients: (row, unit). inputs: (row, input).

    Row u of Ĝ is for each probe z (z·g_u) zᵀX: slopes of the units, with one noise vector in common.
    """

    def push(noise: Array) -> Array:
        pushed: Array = noise @ inputs
        return pushed

    single = of_one_vector(place, np.ascontiguousarray(gradients.T), Law(fourth, pair), push)
    return [one.scaled(1.0 / probes) for one in single]


def variance_by_example(gradients: Array, inputs: Array, probes: int, fourth: float, pair: float = 1.0) -> float:
    """The same with every example's positions sketched apart. gradients: (example, row, unit). inputs: (…, input).

    Raises ValueError for fewer than one probe and for different numbers of examples or rows.
    """
    if probes < 1:
        raise ValueError(f"probes must be at least 1, got {probes}")
    if gradients.shape[:2] != inputs.shape[:2]:
        shapes = f"{gradients.shape[:2]} and {inputs.shape[:2]}"
        raise ValueError(f"gradients and inputs must have the same examples and rows, got {shapes}")
    examples = len(gradients)
    if examples == 1:  # Without any product of rows with rows.
        exact = float(np.sum((gradients[0].T @ inputs[0]) ** 2))
        whole = float(np.sum(gradients**2) * np.sum(inputs**2))
        crossed = exact
        diagonal = float(np.sum(np.sum(gradients**2, axis=2) * np.sum(inputs**2, axis=2)))
    else:
        exact = float(np.sum(np.einsum("epu,epi->ui", gradients, inputs) ** 2))
        flat = [part.reshape(examples, -1) for part in (gradients, inputs)]
        whole = float(np.sum((flat[0] @ flat[0].T) * (flat[1] @ flat[1].T)))
        diagonal = _same_positions(gradients, inputs)
        crossed = _crossed(gradients, inputs)
    second = pair * (exact + whole + crossed) + (fourth - 3 * pair) * diagonal
    return max(second - exact, 0.0) / probes


def _same_positions(gradients: Array, inputs: Array) -> float:
    """∑_ef ∑_p (g_ep·g_fp)(x_ep·x_fp) = ∑_p ‖∑_e g_ep x_epᵀ‖²."""
    found = 0.0
    for g, x in zip(gradients.swapaxes(0, 1), inputs.swapaxes(0, 1), strict=True):
        found += float(np.sum((g @ g.T) * (x @ x.T)))
    return found


def _crossed(gradients: Array, inputs: Array) -> float:
    """∑_ef ∑_pq (g_ep·g_fq)(x_eq·x_fp) = ∑ tr M M, by the way that has fewer numbers."""
    examples, rows, units = gradients.shape
    n_inputs = inputs.shape[2]
    if units * n_inputs < examples * (units + n_inputs):
        found, at_once = 0.0, max(1, NUMBERS_AT_ONCE // (rows * rows * n_inputs))
        for start in range(0, units, at_once):
            matrices = np.einsum("epu,eqi->uipq", gradients[..., start : start + at_once], inputs, optimize=True)
            found += float(np.sum(matrices * matrices.swapaxes(2, 3)))
        return found
    g, x = gradients.reshape(examples * rows, -1), inputs.reshape(examples * rows, -1)
    found, at_once = 0.0, max(1, NUMBERS_AT_ONCE // (rows * rows * examples))
    for start in range(0, examples, at_once):
        some = slice(start * rows, (start + at_once) * rows)
        # (e, p, f, q) each: products of gradients, and of inputs with p and q in the places of each other.
        of_gradients = (g[some] @ g.T).reshape(-1, rows, examples, rows)
        of_inputs = (x[some] @ x.T).reshape(-1, rows, examples, rows)
        found += float(np.einsum("epfq,eqfp->", of_gradients, of_inputs))
    return found
