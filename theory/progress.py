"""Expected curvature along a guess, E ĝᵀHĝ = tr(H E ĝĝᵀ), and the progress of a step, from the second moment E ĝĝᵀ.

    best step η* = ⟨ḡ, g⟩/E ĝᵀHĝ     decrease Δ* = ⟨ḡ, g⟩²/(2 E ĝᵀHĝ)     curved efficiency = (gᵀHg/‖g‖⁴) ⟨ḡ, g⟩²/E ĝᵀHĝ

Guesses along random directions of the weights have a second moment made of three kinds of matrices, by layers l, l':

    E ĝĝᵀ = Σ_l a_l I_l + Σ_l b_l diag(G_l ∘ G_l) + Σ_ll' w_ll' G_l G_l'ᵀ
    E ĝᵀHĝ = Σ_l a_l tr H_ll + Σ_l b_l Σ_i G_l,i² (H_ll)_ii + Σ_ll' w_ll' G_lᵀ H_ll' G_l'

**Weight perturbation**, ĝ_l = t V_l, with E V_i⁴ = fourth_l and E V_i² V_j² = pair_l within a layer, 1 between layers.
In a joint pass E t² V_i V_j is 2 pair_l G_i G_j for two entries of a layer and 2 G_i G_j for entries of two layers, and
E t² V_i² = ‖g‖² − ‖G_l‖² + pair_l (‖G_l‖² − G_i²) + fourth_l G_i². So

    a_l = ‖g‖² − ‖G_l‖² + pair_l ‖G_l‖²      b_l = fourth_l − 3 pair_l      w_ll = 2 pair_l,  w_ll' = 2

Gaussian: a = ‖g‖², b = 0, w = 2, hence E ĝᵀHĝ = ‖g‖² tr H + 2 gᵀHg. Signs: b = −2, which takes off 2 Σ_i g_i² H_ii. On
the sphere, one noise vector a layer of n entries: pair = n/(n + 2), b = 0; of a single layer E ĝᵀHĝ is the Gaussian one
times n/(n + 2). In separate passes a_l = pair_l ‖G_l‖² and w_ll' = 1, as guesses of two layers are independent.

**Projection** on k Gaussian tangents of n weights, ĝ = Π g: E Π g gᵀ Π = β ‖g‖² I + (α + β) g gᵀ with α, β of
`theory.projection`.

**Mean of m guesses**: (1/m) E ĝĝᵀ + (1 − 1/m) ḡ ḡᵀ. With c the curved efficiency of one unbiased guess, that of the
mean is m/(1/c + m − 1).

Derivation: docs/mathematics.md#progress-of-a-step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from theory.factors import Array
from theory.linear_guess import Layers, check_switches


@dataclass(frozen=True, eq=False)
class SecondMoment:
    """E ĝĝᵀ and E ĝ of a guess along directions of the weights; see the module's text.

    Attributes:
        identity: a, (layer,), (loss per unit of weight)². squares: b, (layer,). gradients: w, (layer, layer).
        kept: s with E Ĝ_l = s_l G_l, (layer,).
    """

    identity: Array
    squares: Array
    gradients: Array
    kept: Array

    def curvature(self, traces: Array, diagonals: Array, products: Array) -> Array:
        """E ĝᵀHĝ, (…).

        traces: tr H_ll, (…, layer). diagonals: Σ_i G_l,i² (H_ll)_ii, (…, layer). products: G_lᵀH_ll'G_l', (layer,
        layer).
        """
        found: Array = traces @ self.identity + diagonals @ self.squares + float(np.sum(self.gradients * products))
        return found

    def mean_curvature(self, products: Array) -> float:
        """ḡᵀHḡ."""
        return float(self.kept @ products @ self.kept)

    def slope(self, squared_norms: Array) -> float:
        """⟨ḡ, g⟩. squared_norms: ‖G_l‖², (layer,)."""
        return float(self.kept @ squared_norms)

    def of_mean(self, n_averaged: float) -> SecondMoment:
        """Of the mean of so many independent guesses."""
        share = 1.0 / n_averaged
        both = share * self.gradients + (1 - share) * np.outer(self.kept, self.kept)
        return SecondMoment(share * self.identity, share * self.squares, both, self.kept)


def weight_perturbation(
    squared_norms: ArrayLike, fourth: ArrayLike, pair: ArrayLike, *, layers: Layers
) -> SecondMoment:
    """Of ĝ_l = t V_l. squared_norms: ‖G_l‖², (layer,). fourth, pair: of the noise of each layer, (layer,)."""
    check_switches("batch", layers)
    squares, fourths, pairs = (np.asarray(values, np.float64) for values in (squared_norms, fourth, pair))
    own = pairs * squares
    joint = layers == "joint"
    identity = squares.sum() - squares + own if joint else own
    gradients = np.full((len(squares), len(squares)), 2.0 if joint else 1.0)
    np.fill_diagonal(gradients, 2 * pairs)
    return SecondMoment(identity, fourths - 3 * pairs, gradients, np.ones(len(squares)))


def projection(squared_norms: ArrayLike, sizes: Sequence[int], k: int, *, layers: Layers) -> SecondMoment:
    """Of the projection on k Gaussian tangents, of all weights ("joint") or of each layer's ("separate")."""
    check_switches("batch", layers)
    squares, entries = np.asarray(squared_norms, np.float64), np.asarray(sizes, np.float64)
    dims = entries if layers == "separate" else np.full_like(entries, entries.sum())
    kept, alpha, beta = projection_moments(dims, k)
    if layers == "separate":
        gradients = np.outer(kept, kept)
        np.fill_diagonal(gradients, alpha + beta)
        return SecondMoment(beta * squares, np.zeros(len(dims)), gradients, kept)
    gradients = np.full((len(dims), len(dims)), alpha[0] + beta[0])
    return SecondMoment(beta * squares.sum(), np.zeros(len(dims)), gradients, kept)


def projection_moments(dims: ArrayLike, k: int) -> tuple[Array, Array, Array]:
    """k/n, α and β of E Π_ij Π_kl = α δ_ij δ_kl + β (δ_ik δ_jl + δ_il δ_jk), Π on k random directions of n."""
    n = np.asarray(dims, np.float64)
    kept = np.asarray(k / n)
    # In one dimension the projection is the whole.
    safe = np.where(n > 1, n, 2.0)
    beta = np.where(n > 1, k * (n - k) / (n * (safe - 1) * (n + 2)), 0.0)
    return kept, kept - (n + 1) * beta, beta


def best_step(slope: ArrayLike, curvature: ArrayLike) -> Array:
    """η*: NaN where the slope is not positive, and ∞ where only the curvature is not."""
    slopes, curvatures = np.broadcast_arrays(np.asarray(slope, np.float64), np.asarray(curvature, np.float64))
    steps = np.divide(slopes, curvatures, out=np.full(slopes.shape, np.inf), where=curvatures > 0)
    return np.where(slopes > 0, steps, np.nan)


def expected_decrease(slope: ArrayLike, curvature: ArrayLike) -> Array:
    """Δ* = η* ⟨ḡ, g⟩/2, as `best_step`."""
    decrease: Array = best_step(slope, curvature) * np.asarray(slope, np.float64) / 2
    return decrease


def curved_efficiency(
    slope: ArrayLike, curvature: ArrayLike, squared_gradient: float, gradient_curvature: float
) -> Array:
    """Δ*(ĝ)/Δ*(g); NaN where gᵀHg is not positive."""
    exact = expected_decrease(squared_gradient, gradient_curvature)
    decrease = expected_decrease(slope, curvature)
    return np.divide(decrease, exact, out=np.full(decrease.shape, np.nan), where=np.isfinite(exact))


def of_averaged(efficiency: ArrayLike, n_averaged: ArrayLike) -> Array:
    """m/(1/c + m − 1): the curved efficiency of the mean of m unbiased guesses, from that of one."""
    number = np.asarray(n_averaged, np.float64)
    return np.asarray(number / (1 / np.asarray(efficiency, np.float64) + number - 1))


def of_effective_rank(rank: ArrayLike) -> Array:
    """1/(2 + r): the curved efficiency of weight perturbation with Gaussian noise in a joint pass."""
    return np.asarray(1 / (2 + np.asarray(rank, np.float64)))
