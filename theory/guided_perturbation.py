"""Guided perturbation: moments of Ĝ = t V with V = √α e + √β U e′, β = (1 − α) P/k, U (guide, weight) orthonormal.

V is linear in noise: e, a noise vector for each layer, and e′, one of k entries that all layers share. So layers are
not independent, but with g the whole gradient and Σ = α I + β UᵀU,

    E Ĝ = Σ g        E‖Ĝ_l‖² = (gᵀΣg) tr Σ_ll + 2‖(Σg)_l‖² + what is not Gaussian

For a noise vector v with factor A_v and a_v = A_vᵀ g, the last is

    (pair_v − 1)(‖a_v‖² tr (A_v A_vᵀ)_ll + 2‖(A_v a_v)_l‖²) + (fourth_v − 3 pair_v) Σ_j a_vj² ‖A_vj,l‖²

which of e_l and of e′ is

    α² [(pair − 1)(P_l + 2) + fourth − 3 pair] ‖G_l‖²
    β² [(pair′ − 1)(‖U g‖² ‖U_l‖² + 2‖(UᵀU g)_l‖²) + (fourth′ − 3 pair′) Σ_j (u_j·g)² ‖u_j,l‖²]

Source: Maheswaranathan et al. 2019 for the mean; the second moments follow from `theory.linear_guess`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from theory.factors import Array


def spread(alpha: float, n_weights: int, k: int) -> float:
    """β = (1 − α) P/k, the variance along each guide beside α."""
    return (1 - alpha) * n_weights / k


def along(gradients: Sequence[Array], guides: Sequence[Array]) -> Array:
    """U g, (guide,). gradients: (unit, input) a layer. guides: (guide, unit, input) a layer."""
    total: Array = np.sum([np.tensordot(u, g, axes=2) for u, g in zip(guides, gradients, strict=True)], axis=0)
    return total


def means(gradients: Sequence[Array], guides: Sequence[Array], alpha: float) -> list[Array]:
    """Σ g, (unit, input) a layer."""
    beta = spread(alpha, sum(gradient.size for gradient in gradients), len(guides[0]))
    inside = beta * along(gradients, guides)
    return [alpha * g + np.tensordot(inside, u, axes=1) for g, u in zip(gradients, guides, strict=True)]


def squared_slope(gradients: Sequence[Array], guides: Sequence[Array], alpha: float) -> float:
    """E t² = gᵀΣg."""
    beta = spread(alpha, sum(gradient.size for gradient in gradients), len(guides[0]))
    return alpha * sum(float(np.sum(g**2)) for g in gradients) + beta * float(np.sum(along(gradients, guides) ** 2))


def second_moments(
    gradients: Sequence[Array],
    guides: Sequence[Array],
    alpha: float,
    fourth: Sequence[float],
    pair: Sequence[float],
    fourth_inside: float,
    pair_inside: float,
) -> Array:
    """E‖Ĝ_l‖², (layer,). fourth, pair: of e_l, (layer,). fourth_inside, pair_inside: of e′."""
    beta = spread(alpha, sum(gradient.size for gradient in gradients), len(guides[0]))
    inside, square = along(gradients, guides), squared_slope(gradients, guides, alpha)
    found = []
    for g, u, mean, kappa, both in zip(gradients, guides, means(gradients, guides, alpha), fourth, pair, strict=True):
        lengths = np.sum(u**2, axis=(1, 2))  # of each guide's part in the layer
        moment = square * (alpha * g.size + beta * lengths.sum()) + 2 * float(np.sum(mean**2))
        own = (both - 1) * (g.size + 2) + kappa - 3 * both
        moment += alpha**2 * own * float(np.sum(g**2))
        projected = float(np.sum(np.tensordot(inside, u, axes=1) ** 2))
        shared = (pair_inside - 1) * (float(np.sum(inside**2)) * lengths.sum() + 2 * projected)
        shared += (fourth_inside - 3 * pair_inside) * float(np.sum(inside**2 * lengths))
        found.append(moment + beta**2 * shared)
    return np.array(found)
