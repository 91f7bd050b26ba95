"""Eigenvalues of Σ = A Aᵀ and components of the gradient along its eigenvectors, for cosines of Gaussian directions."""

from __future__ import annotations

import numpy as np

from theory.factors import Array, Dense, Diagonal, Factor, LowRank, Masked


def spectrum(factor: Factor, gradient: Array) -> tuple[Array, Array]:
    """Eigenvalues λ_i of Σ_b and squared components (v_iᵀ g_b)², (example, mode) each, in no particular order.

    gradient: (example, unit), loss per unit of activation. A mode with λ = 0 has the component 0, because no direction
    has a part along it. Raises TypeError for a factor of a class outside `theory.factors`.
    """
    if isinstance(factor, Diagonal):
        return factor.scale**2, np.where(factor.scale != 0, gradient**2, 0.0)
    n_modes = _n_modes(factor)
    eigenvalues, components = np.zeros((len(gradient), n_modes)), np.zeros((len(gradient), n_modes))
    for example, row in enumerate(gradient):
        matrix, seen = _reduced(factor, example, row)
        if matrix.size == 0:
            continue
        vectors, values, _ = np.linalg.svd(matrix, full_matrices=False)
        kept = values > max(matrix.shape) * np.finfo(np.float64).eps * values[0]
        eigenvalues[example, : len(values)] = np.where(kept, values**2, 0.0)
        components[example, : len(values)] = np.where(kept, (seen @ vectors) ** 2, 0.0)
    return eigenvalues, components


def _n_modes(factor: Factor) -> int:
    if isinstance(factor, Masked):
        return min(factor.matrix.shape)
    if isinstance(factor, Dense):
        return min(factor.array.shape[1:])
    if isinstance(factor, LowRank):
        return min(*factor.left.shape[1:], factor.right.shape[1])
    raise TypeError(f"no spectrum is known of a {type(factor).__name__}")


def _reduced(factor: Factor, example: int, gradient: Array) -> tuple[Array, Array]:
    """A smaller matrix with the singular values of A_b, and the gradient in the basis of its rows."""
    if isinstance(factor, Masked):
        # Behind a ReLU half of the units have a scale of zero. Leaving them out saves most of the time.
        (active,) = np.nonzero(factor.scale[example])
        return (factor.matrix[:, active] * factor.scale[example, active]).T, gradient[active]
    if isinstance(factor, LowRank):
        basis, inner = np.linalg.qr(factor.left[example])
        _, outer = np.linalg.qr(factor.right[example])
        return inner @ outer.T, gradient @ basis
    assert isinstance(factor, Dense)
    return factor.array[example], gradient
