"""The projection of the gradient on the span of k random tangents: Ĝ = Vᵀ(V Vᵀ)⁻¹ V G.

The rows of V (tangent, weight) are k tangents of n entries, drawn from a rotation-invariant distribution. So Ĝ = Π G,
where Π projects on a uniformly random subspace of k dimensions, and ‖Ĝ‖² = ⟨Ĝ, G⟩ = ‖G‖² cos². It follows that

    cos² ~ Beta(k/2, (n−k)/2)       E cos = E χ_k / E χ_n       E Ĝ = (k/n) G       E‖Ĝ − G‖² = (1 − k/n)‖G‖²

The guess is biased in length only. Multiplied by n/k it is unbiased, with the variance (n/k − 1)‖G‖².

**One layer of a joint pass.** Let S select the P_l weights of the layer. The second moment of the layer's guess is
GᵀE[Π S Π]G. Because Π is rotation-invariant, E Π_ij Π_km = α δ_ij δ_km + β (δ_ik δ_jm + δ_im δ_jk). Π² = Π and tr Π = k
determine α and β:

    β = k (n − k)/(n (n−1)(n+2))        α + (n+1) β = k/n        E‖Ĝ_l‖² = (α + β)‖G_l‖² + β P_l ‖G‖²

Sources: Flügel et al. 2024; docs/mathematics.md#projection-on-tangents. The second moments of layers are derived here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from theory import cosine, descent
from theory.cosine import gamma_step
from theory.factors import Array
from theory.linear_guess import Layers, check_switches


def mean_cosine(k: ArrayLike, n: ArrayLike) -> Array:
    """E cos = E χ_k / E χ_n = Γ((k+1)/2) Γ(n/2) / (Γ(k/2) Γ((n+1)/2)). Raises ValueError unless 1 ≤ k ≤ n."""
    tangents, dims = _checked(k, n)
    cosine: Array = gamma_step(tangents / 2) / gamma_step(dims / 2)
    return cosine


def mean_square_cosine(k: ArrayLike, n: ArrayLike) -> Array:
    """E cos² = k/n. Raises ValueError unless 1 ≤ k ≤ n."""
    tangents, dims = _checked(k, n)
    square: Array = tangents / dims
    return square


def cosines(squared_norms: ArrayLike, sizes: Sequence[int], k: int, *, layers: Layers) -> Array:
    """E cos of the guess of each layer, (Π G)_l, and of all layers together, (layer + 1,).

    There is a closed form in three cases: for all layers of a joint pass, for each layer in separate passes, and for
    k = 1, where the layers of a joint pass have the cosines of weight perturbation. The other entries are NaN, and so
    is a layer without a gradient.

    squared_norms: ‖G_l‖² (layer,). sizes: P_l. Raises ValueError for an unknown ``layers``, and unless 1 ≤ k ≤ n.
    """
    check_switches("batch", layers)
    squares, dims = np.asarray(squared_norms, np.float64), np.asarray(sizes, np.float64)
    if layers == "separate":
        each = np.where(squares > 0, mean_cosine(k, dims), np.nan)
        return np.append(each, 1.0 if np.all(dims == k) and squares.sum() > 0 else np.nan)
    if k == 1:
        return cosine.weight_perturbation(squares, dims)
    whole = float(mean_cosine(k, dims.sum())) if squares.sum() > 0 else np.nan
    each = np.where((squares > 0) & (k == dims.sum()), 1.0, np.nan)
    return np.append(each, whole)


def descent_probabilities(squared_norms: ArrayLike, sizes: Sequence[int], k: int, *, layers: Layers) -> Array:
    """P(⟨(Π G)_l, G_l⟩ > 0) for each layer and for all layers together, (layer + 1,).

    The probability is 1 for all layers together and for each layer in separate passes. For the layers of a joint pass
    there is a closed form for k = 1, and the value is NaN for other k < n. Arguments as in `cosines`.
    """
    check_switches("batch", layers)
    squares = np.asarray(squared_norms, np.float64)
    if layers == "joint" and k == 1:
        return descent.weight_perturbation(squares, layers=layers)
    certain = layers == "separate" or k == sum(sizes)
    each = np.where((squares > 0) & certain, 1.0, np.nan)
    return np.append(each, 1.0 if squares.sum() > 0 else np.nan)


def cosine_quantile(level: ArrayLike, k: ArrayLike, n: ArrayLike) -> Array:
    """The quantile of the cosine at the probability ``level``. Raises ValueError unless 1 ≤ k ≤ n."""
    tangents, dims = _checked(k, n)
    # Where k = n the cosine is 1; Beta needs a positive second parameter.
    half_beyond = np.where(dims > tangents, (dims - tangents) / 2, 1.0)
    quantile: Array = np.where(dims > tangents, np.sqrt(special.betaincinv(tangents / 2, half_beyond, level)), 1.0)
    return quantile


def mean_square_error(k: ArrayLike, n: ArrayLike, *, unbiased: bool = False) -> Array:
    """E‖Ĝ − G‖²/‖G‖²: 1 − k/n, or n/k − 1 for the unbiased guess (n/k) Π G. Raises ValueError unless 1 ≤ k ≤ n."""
    tangents, dims = _checked(k, n)
    error: Array = dims / tangents - 1 if unbiased else 1 - tangents / dims
    return error


def second_moments(squared_norms: ArrayLike, sizes: Sequence[int], k: int, *, layers: Layers) -> Array:
    """E‖Ĝ_l‖² (layer,), in (loss per unit of weight)².

    With ``layers`` "joint" the k tangents are in the space of all n = Σ P_l weights, and the mean guess is (k/n) G_l.
    With "separate" each layer has its own k tangents of P_l entries; the mean is (k/P_l) G_l and the second moment is
    (k/P_l)‖G_l‖².

    squared_norms: ‖G_l‖² (layer,). sizes: P_l. Raises ValueError for an unknown ``layers``, unless 1 ≤ k ≤ n, and in
    separate passes unless k ≤ P_l for every layer.
    """
    check_switches("batch", layers)
    squares, entries = np.asarray(squared_norms, np.float64), np.asarray(sizes, np.float64)
    if layers == "separate":
        return squares * mean_square_cosine(k, entries)
    _checked(k, entries.sum())
    n = float(entries.sum())
    beta = k * (n - k) / (n * (n - 1) * (n + 2)) if n > 1 else 0.0
    alpha = k / n - (n + 1) * beta
    return (alpha + beta) * squares + beta * entries * squares.sum()


def _checked(k: ArrayLike, n: ArrayLike) -> tuple[Array, Array]:
    tangents, dims = np.asarray(k, np.float64), np.asarray(n, np.float64)
    if np.any(tangents < 1) or np.any(tangents > dims):
        raise ValueError(f"k must be from 1 to n, got {tangents} of {dims}")
    return tangents, dims
