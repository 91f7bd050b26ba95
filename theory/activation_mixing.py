"""Mean and second moments of activation mixing (Singhal et al. 2023; docs/mathematics.md#activation-mixing).

    v_b = diag(1[X_b > 0]) Xᵀ α_b,   u_b = √n v_b/‖v_b‖ (rescaled) or v_b,   t_b = Σ_l h_l,b·u_l,b + g_last,b·ε_b
    ĝ_l,b = φ'_l,b ⊙ (t_b u_l,b)  or, with the batch's slope,  φ'_l,b ⊙ (Σ_b' t_b') u_l,b

X, h: the inputs of tap l+1 and the loss's gradient there, (example, unit). α_b, ε_b: independent noise vectors.

Without rescaling, u is linear in α, and `linear_guess` applies with the factor A_b = diag(1[X_b > 0]) Xᵀ.

With rescaling only the direction of v matters. For every rotation-invariant distribution of α it is the direction of
N(0, A_b A_bᵀ). Let λ_i and q_i be the eigenvalues and eigenvectors of A_b A_bᵀ, h'_i = q_i·h and u = Σ_i w_i q_i. With
x = ‖v‖², 1/x = ∫₀^∞ e^(−sx) ds, 1/x² = ∫₀^∞ s e^(−sx) ds and D(s) = E e^(−s‖v‖²) = Π (1 + 2sλ)^(−½),

    E w_i²      = C_i  = n ∫ p_i D ds,                 p_i = λ_i/(1 + 2sλ_i)
    E w_i² w_j² = R_ij = n² ∫ s p_i p_j D ds  (i ≠ j),   E w_i⁴ = 3 R_ii,   odd moments vanish, so that
    E u (h·u)   = Σ_i C_i h'_i q_i,   E (h·u)² = Σ_i C_i h'_i²
    E (h·u)² u_k² = Σ_ij h'_i² R_ij q_jk² + 2 Σ_ij h'_i q_ik R_ij h'_j q_jk.

The integrals are sums over s on a logarithmic grid (`theory.quadrature`), whose error here is below 1e-12.
Derived here; checked in the tests against an enumeration of angles, where the direction is a point on a circle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from theory.factors import Array, Diagonal, Masked
from theory.linear_guess import Layers, Moments, Slope, check_switches, independent_covariances, of_others
from theory.linear_guess import moments as linear_moments
from theory.quadrature import log_nodes

LOG_STEP = 0.25
NEGLIGIBLE = 35.0  # at either end, a sum stops where its terms are e⁻³⁵ of the largest term
SMALLEST = 1e-14  # eigenvalues below this share of the largest one are rounding errors of zero


@dataclass(frozen=True, eq=False)
class _LayerMoments:
    """Moments of u and of the slope t = h·u of one layer: E t u, E u² and E t²u², each (example, unit), and E t²."""

    mean: Array
    diagonal: Array
    squares: Array
    strength: Array


def moments(
    inputs: Sequence[Array],
    at_inputs: Sequence[Array],
    derivatives: Sequence[Array],
    output_gradient: Array,
    fourth: Sequence[float],
    pair: Sequence[float],
    *,
    normalise: bool,
    slope: Slope,
    layers: Layers,
) -> list[Moments]:
    """Mean and second moments of one guess, a `Moments` for each tap, the output tap last.

    inputs: X_l+1 without a bias column. at_inputs: h_l, loss per unit of input. derivatives: φ'(s_l). Each is
    (example, unit) for every tap l but the last. output_gradient: (example, unit). fourth, pair: the fourth-order
    moments of the noise of each tap, the output tap last. normalise: whether directions are rescaled.

    Raises ValueError for unknown switches, for sequences that do not fit together and, with rescaling, for noise that
    is not rotation-invariant (fourth ≠ 3 pair), because the moments of its direction have no closed form here.
    """
    check_switches(slope, layers)
    lengths = [len(inputs) + 1, len(at_inputs) + 1, len(derivatives) + 1, len(fourth), len(pair)]
    if len(set(lengths)) != 1:
        raise ValueError(f"all sequences must have one entry a tap, those at inputs one less, got {lengths}")
    if normalise:
        if any(abs(four - 3 * two) > 1e-12 for four, two in zip(fourth[:-1], pair[:-1], strict=True)):
            raise ValueError("rescaled mixing has a closed form for rotation-invariant noise only: fourth = 3 pair")
        layer_moments = [_rescaled(x, h) for x, h in zip(inputs, at_inputs, strict=True)]
        layer_moments.append(_output(output_gradient, fourth[-1], pair[-1]))
        mixed = _assembled(layer_moments, slope, layers)
    else:
        factors = [Masked((x > 0).astype(np.float64), x) for x in inputs]
        gradients = [*at_inputs, output_gradient]
        output = Diagonal(np.ones_like(output_gradient))
        mixed = linear_moments(gradients, [*factors, output], fourth, pair, shared=False, slope=slope, layers=layers)
    through = [_through(moment, d, slope) for moment, d in zip(mixed[:-1], derivatives, strict=True)]
    return [*through, mixed[-1]]


def _through(at_inputs: Moments, derivative: Array, slope: Slope) -> Moments:
    """The moments of φ' times the guess at the inputs."""
    mean, variances = derivative * at_inputs.mean, derivative**2 * at_inputs.variances
    return Moments(mean, variances, independent_covariances(mean, variances, slope))


def _assembled(layer_moments: Sequence[_LayerMoments], slope: Slope, layers: Layers) -> list[Moments]:
    """The moments of every layer, with the uncorrelated parts of the slope from other layers and examples added."""
    strengths = np.stack([layer.strength for layer in layer_moments])
    assembled = []
    for layer, strength in zip(layer_moments, of_others(strengths, slope, layers), strict=True):
        variances = np.maximum(layer.squares - layer.mean**2, 0.0) + strength[:, None] * layer.diagonal
        assembled.append(Moments(layer.mean, variances, independent_covariances(layer.mean, variances, slope)))
    return assembled


def _output(gradient: Array, fourth: float, pair: float) -> _LayerMoments:
    """The output tap, where A = I."""
    strength = np.sum(gradient**2, axis=1)
    squares = pair * (strength[:, None] + 2 * gradient**2) + (fourth - 3 * pair) * gradient**2
    return _LayerMoments(gradient, np.ones_like(gradient), squares, strength)


def _rescaled(inputs: Array, at_inputs: Array) -> _LayerMoments:
    """Moments of the rescaled mixture. An example without active units has a direction of zeros."""
    mean, diagonal, squares = (np.zeros_like(at_inputs) for _ in range(3))
    rescaled = _LayerMoments(mean, diagonal, squares, np.zeros(len(at_inputs)))
    covariance = inputs.T @ inputs
    for example, active in enumerate(inputs > 0):
        if not active.any():
            continue
        values, vectors = np.linalg.eigh(covariance[np.ix_(active, active)])
        kept = values > SMALLEST * values[-1]
        vectors = vectors[:, kept]
        first, second = direction_moments(values[kept])
        first, second = first * inputs.shape[1], second * inputs.shape[1] ** 2
        along = at_inputs[example, active] @ vectors
        rescaled.mean[example, active] = vectors @ (first * along)
        rescaled.diagonal[example, active] = vectors**2 @ first
        pulled = vectors * along
        crossed = 2 * np.sum((pulled @ second) * pulled, axis=1)
        rescaled.squares[example, active] = vectors**2 @ (second @ along**2) + crossed
        rescaled.strength[example] = first @ along**2
    return rescaled


def direction_moments(values: Array) -> tuple[Array, Array]:
    """∫ p_i D ds (mode,) and ∫ s p_i p_j D ds (mode, mode) for eigenvalues λ > 0, in any order.

    With z_i independent standard normals and x = Σ λ_i z_i²: E λ_i z_i²/x and, for i ≠ j, E λ_i z_i² λ_j z_j²/x².
    """
    scaled = values / values.max()
    # Below, s p D falls as s; above 1/λ_min, as s^(−mode/2).
    high = -np.log(2 * scaled.min()) + 2 * NEGLIGIBLE / len(scaled)
    s = np.exp(log_nodes(-NEGLIGIBLE, high, LOG_STEP))
    shares = s / (1 / scaled[:, None] + 2 * s)  # s p_i, (mode, node)
    weights = LOG_STEP * np.exp(-0.5 * np.log1p(2 * s * scaled[:, None]).sum(0))
    return shares @ weights, (shares * weights) @ shares.T
