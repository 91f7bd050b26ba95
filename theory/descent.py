"""The probability that a guess has a positive inner product with the gradient, P(⟨ĝ, g⟩_K > 0), for Gaussian noise.

Let a = Aᵀg and h = Aᵀ(K g), where K mixes the examples of g. The slopes are t_b = a_b·ε, and ⟨ĝ, g⟩_K = Σ_b t_b w_b
with w_b = h_b·ε. This is a quadratic form in ε, and so a weighted sum Σ_i ω_i χ²_1 of independent χ² variables:

    independent noise, example slopes    two weights for every b:  ω = (cov ± √(var t var w))/2, cov = Σ a·h
    shared noise, example slopes         the eigenvalues of ½ Σ_b (a_b h_bᵀ + h_b a_bᵀ)
    batch slope                          (Σ_b t_b)(Σ_b w_b), with two weights

With two weights, P = ½ + arcsin(ρ)/π, where ρ is the correlation of t and w. In general, by inversion of the
characteristic function,

    P(Q > 0) = ½ + (1/π) ∫₀^∞ sin(½ Σ arctan ω_i u) Π(1 + ω_i²u²)^(−¼) du/u.

In activation space K = I, and w is the slope of the layer itself. The inner product of all layers together is then
Σ_b t_b² ≥ 0, and so is that of each layer in separate passes. Sources: docs/mathematics.md#descent-probability; Imhof
1961, Computing the distribution of quadratic forms in normal variables.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from theory.factors import Array, Factor
from theory.linear_guess import Layers, Slope, check_switches
from theory.quadrature import log_nodes, log_trapezoid

PHASE_LOG_STEP = 0.01  # step of log u: fine enough for the phase of a sum whose mean is 20 standard deviations
WEIGHT_ROUNDING = 1e-13  # weights below this part of the largest are rounding errors of zero


def positive(weights: Array) -> float:
    """P(Σ_i ω_i χ²_1 > 0) for weights (term,), to 1e-9; NaN where all are zero."""
    largest = np.max(np.abs(weights), initial=0.0)
    if largest == 0:
        return float("nan")
    scaled = weights[np.abs(weights) > WEIGHT_ROUNDING * largest] / largest
    if np.all(scaled > 0) or np.all(scaled < 0):
        return float(scaled[0] > 0)
    if len(scaled) == 2:
        # ω = (ρ ± 1)√(var t var w)/2.
        return float(0.5 + np.arcsin(scaled.sum() / (scaled.max() - scaled.min())) / np.pi)
    u = np.exp(log_nodes(-14.0 - np.log(len(scaled)), 14.0 - np.log(np.abs(scaled).min()), PHASE_LOG_STEP))
    phase, log_size = np.zeros_like(u), np.zeros_like(u)
    for weight in scaled:
        phase += 0.5 * np.arctan(weight * u)
        log_size -= 0.25 * np.log1p((weight * u) ** 2)
    inside = 0.5 + log_trapezoid(np.sin(phase) * np.exp(log_size), PHASE_LOG_STEP) / np.pi
    return float(np.clip(inside, 0.0, 1.0))


def descent_probability(
    gradients: Sequence[Array],
    factors: Sequence[Factor],
    kernels: Sequence[Array] | None = None,
    *,
    mixed: Sequence[Array] | None = None,
    groups: Sequence[Sequence[int]] | None = None,
    shared: bool,
    slope: Slope,
    layers: Layers,
) -> Array:
    """P(⟨ĝ, g⟩_K > 0) of every layer, (layer + 1,), all layers together last; Gaussian noise.

    gradients: g_l (example, unit). factors: A_l. kernels: X Xᵀ (example, example) for weight space, None for activation
    space. mixed: WᵀG in place of K g, (example, unit), where weights are no matrix or shared. groups: which of the
    given layers make up each layer that is asked for; each by itself by default. shared, slope, layers: the switches of
    docs/notation.md#the-three-switches. NaN for a layer whose inner product is always zero.

    Raises ValueError for unknown switches and for sequences of different lengths.
    """
    check_switches(slope, layers)
    if len(factors) != len(gradients) or (kernels is not None and len(kernels) != len(gradients)):
        raise ValueError(
            f"gradients, factors and kernels must have one entry a layer, got {len(gradients)}, {len(factors)} and "
            f"{None if kernels is None else len(kernels)}"
        )
    if mixed is None:
        mixed = gradients if kernels is None else [kernel @ g for kernel, g in zip(kernels, gradients, strict=True)]
    asked = [[layer] for layer in range(len(gradients))] if groups is None else groups
    slopes = [factor.pull(gradient) for factor, gradient in zip(factors, gradients, strict=True)]
    inners = [factor.pull(gradient) for factor, gradient in zip(factors, mixed, strict=True)]
    if slope == "batch":
        slopes, inners = ([_merged(noise, shared) for noise in side] for side in (slopes, inners))
    weights_of = _shared_weights if shared else _paired_weights
    if layers == "separate":
        weights = [weights_of(a, h) for a, h in zip(slopes, inners, strict=True)]
        grouped = [np.concatenate([weights[layer] for layer in group]) for group in asked]
        return np.array([*map(positive, grouped), positive(np.concatenate(weights))])
    together = np.concatenate(slopes, axis=1)
    chosen = [_embedded(inners, group) for group in asked]
    return np.array([positive(weights_of(together, h)) for h in (*chosen, np.concatenate(inners, axis=1))])


def with_rows_for_all(
    slopes: Sequence[Array],
    inners: Sequence[Array],
    groups: Sequence[Sequence[int]],
    for_all: Sequence[int],
    *,
    shared: bool,
    slope: Slope,
    layers: Layers,
) -> Array:
    """As `descent_probability`, where the rows of some taps serve all examples (docs/mathematics.md#rows).

    slopes: a = Aᵀg of every example at each tap, (example, noise). inners: h = Aᵀ(WᵀG), (example, noise), and
    (1, noise) at the taps ``for_all``, whose noise all examples see and whose guess has the slope of the batch.

    ⟨ĝ, g⟩ = Σ_k (α_k·ε)(β_k·ε), a term for each example and one for the rows that serve all. The weights are the
    eigenvalues of ½ Σ_k (α_k β_kᵀ + β_k α_kᵀ), and follow from the inner products of all α and β alone.
    """
    check_switches(slope, layers)
    taps = range(len(slopes))
    if layers == "separate":
        weights = [_of_terms([index], [index], slopes, inners, for_all, shared, slope) for index in taps]
        found = [np.concatenate([weights[index] for index in group]) for group in [*groups, taps]]
    else:
        found = [_of_terms(taps, group, slopes, inners, for_all, shared, slope) for group in [*groups, taps]]
    return np.array([positive(of_group) for of_group in found])


def _of_terms(
    in_slope: Sequence[int],
    in_group: Sequence[int],
    slopes: Sequence[Array],
    inners: Sequence[Array],
    for_all: Sequence[int],
    shared: bool,
    slope: Slope,
) -> Array:
    """Weights of the form that the taps ``in_group`` give with slopes of the taps ``in_slope``."""
    examples = max(len(slopes[index]) for index in in_slope)
    size = examples + 1  # The last term is that of the rows that serve all examples.
    alphas, mixed, betas = (np.zeros((size, size)) for _ in range(3))
    alone = np.eye(examples)
    kept = np.ones((examples, examples)) if shared else alone
    for index in in_slope:
        a, serves = slopes[index], index in for_all
        alphas[:-1, :-1] += (a @ a.T) * (1.0 if serves else kept)
        if index in in_group and serves:
            h = inners[index][0]
            mixed[:-1, -1] += a @ h
            betas[-1, -1] += h @ h
        elif index in in_group:
            h = inners[index]
            mixed[:-1, :-1] += (a @ h.T) * kept
            betas[:-1, :-1] += (h @ h.T) * kept
    merge = np.zeros((size, size))  # α of the last term is the sum of all α.
    merge[:-1, :-1], merge[-1, :-1] = alone, 1.0
    alphas, mixed = merge @ alphas @ merge.T, merge @ mixed
    if slope == "batch":  # One term: the sum of all α of examples, and of all β.
        alphas, mixed, betas = alphas[-1:, -1:], mixed[-1:].sum(1, keepdims=True), betas.sum(keepdims=True)
    # The form is xᵀ[0 ½; ½ 0]x of x = (α·ε, β·ε), whose covariance is the Gram matrix.
    gram = np.block([[alphas, mixed], [mixed.T, betas]])
    half = len(alphas)
    values, vectors = np.linalg.eigh(gram)
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    upper, lower = root[:half], root[half:]
    product = upper.T @ lower
    weights: Array = np.linalg.eigvalsh((product + product.T) / 2)
    return weights


def weight_perturbation(squared_norms: ArrayLike, *, layers: Layers) -> Array:
    """P(⟨Ĝ_l, G_l⟩ > 0) of Ĝ_l = t V_l, V Gaussian, (layer + 1,), all layers together last.

        ½ + arcsin(‖G_l‖/‖G‖)/π for a joint pass, 1 for separate passes and for all layers together

    squared_norms: ‖G_l‖² (layer,). NaN for a zero gradient. Raises ValueError for an unknown ``layers``.
    """
    check_switches("batch", layers)
    squares = np.asarray(squared_norms, np.float64)
    whole = np.full_like(squares, squares.sum()) if layers == "joint" else squares
    each = np.append(np.divide(squares, whole, out=np.ones_like(squares), where=squares > 0), 1.0)
    seen = np.append(squares, squares.sum()) > 0
    return np.where(seen, 0.5 + np.arcsin(np.sqrt(np.minimum(each, 1.0))) / np.pi, np.nan)


def _merged(noise: Array, shared: bool) -> Array:
    """The coefficients of a batch slope: added up for shared noise, side by side for noise of each example."""
    merged: Array = noise.sum(0, keepdims=True) if shared else noise.reshape(1, -1)
    return merged


def _embedded(inners: Sequence[Array], group: Sequence[int]) -> Array:
    """The coefficients h of some layers with zeros for the noise of the others."""
    return np.concatenate([h if index in group else np.zeros_like(h) for index, h in enumerate(inners)], axis=1)


def _paired_weights(slopes: Array, inners: Array) -> Array:
    """Weights of Σ_b (a_b·ε_b)(h_b·ε_b), (2 example,), from (example, noise)."""
    size = np.sqrt(np.sum(slopes**2, axis=1) * np.sum(inners**2, axis=1))
    covariance = np.sum(slopes * inners, axis=1)
    return np.concatenate([covariance + size, covariance - size]) / 2


def _shared_weights(slopes: Array, inners: Array) -> Array:
    """Weights of Σ_b (a_b·ε)(h_b·ε): the matrix has a rank of at most 2 examples, so a basis of the rows is enough."""
    _, triangle = np.linalg.qr(np.concatenate([slopes, inners]).T)
    half = len(slopes)
    product = triangle[:, :half] @ triangle[:, half:].T
    weights: Array = np.linalg.eigvalsh((product + product.T) / 2)
    return weights
