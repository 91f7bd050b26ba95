"""Mean and second moments of every guess of the form slope times linear image of noise.

Source: docs/mathematics.md#linear-guesses.

    y_l,b = A_l,b ε,   ĝ_l,b = t_b y_l,b  with  t_b = Σ_l y_l,b·g_l,b  (slope "example")   or   t = Σ_b t_b  ("batch")

ε: one vector a layer and example, or one a layer for the whole batch (``shared``); symmetric, of unit variance, with

    E ε_i ε_j ε_k ε_m = pair (δ_ij δ_km + δ_ik δ_jm + δ_im δ_jk) + (fourth − 3 pair) δ_ijkm.

``layers`` "separate" leaves the other layers out of the slope. Write a_b = A_bᵀ g_b, so that t_b = Σ_l a_l,b·ε_l,b.

Independent noise. The mean is m_b = A_b a_b = Σ_b g_b for either slope, since Σ_b' a_b'·ε_b' meets ε_b in a_b alone. Of
t² the own part and the rest are independent, so for each unit u

    E t² y_u² = (O + pair ‖a_b‖²) Σ_uu + 2 pair m_u² + (fourth − 3 pair) Σ_j a_j² A_uj²,

O = Σ ‖a‖² over the other layers (example slope), and over the other examples too (batch slope). Between examples b ≠ c
E t_b t_c y_b·y_c = m_b·m_c for example slopes; for the batch slope t² holds the product t_b t_c twice: 2 m_b·m_c.

Shared noise. Now all pairs are correlated. Let s_b = a_b for example slopes and s_b = Σ_b' a_b' for the batch slope:
the guess is (s_b·ε + other layers) A_b ε, its mean A_b s_b, which for the batch slope is A_b Σ_b' A_b'ᵀ g_b' and no
longer Σ_b g_b. With C = A_bᵀ A_c for the pair (b, c),

    E ĝ_b·ĝ_c = (O_bc + pair s_b·s_c) tr C + pair (s_bᵀ C s_c + s_bᵀ Cᵀ s_c) + (fourth − 3 pair) Σ_j s_bj s_cj C_jj,

O_bc = Σ s_b·s_c over the other layers.

Sources: Ren et al. 2023 for one layer and Gaussian noise; the general forms are derived here, enumerated in the tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from theory.factors import Array, Factor, gram

Slope = Literal["example", "batch"]
Layers = Literal["joint", "separate"]


@dataclass(frozen=True, eq=False)
class Moments:
    """What the first two moments of one layer's guess say in every space.

    mean: E ĝ (example, unit), loss per unit of activation. variances: of every entry (example, unit). covariances:
    tr Cov(ĝ_b, ĝ_c) (example, example), in (loss per unit of activation)²; its diagonal is ``variances`` added up. They
    are made as they are, not as E ĝ² less the square of the mean: of a guess that hardly varies only rounding would be
    left. NaN between two examples is unknown.
    """

    mean: Array
    variances: Array
    covariances: Array

    @property
    def squares(self) -> Array:
        """E ĝ² (example, unit), element by element."""
        squares: Array = self.mean**2 + self.variances
        return squares

    @property
    def products(self) -> Array:
        """E ⟨ĝ_b, ĝ_c⟩ (example, example)."""
        return gram(self.mean) + self.covariances

    def variance(self, kernel: Array | None = None) -> float:
        """tr Cov of the guess, Σ_bc K_bc tr Cov(ĝ_b, ĝ_c): without a kernel in activation space, with K in weights'."""
        return float(np.trace(self.covariances) if kernel is None else np.sum(kernel * self.covariances))

    def second_moment(self, kernel: Array | None = None) -> float:
        """E‖ĝ‖²_K = Σ_bc K_bc E⟨ĝ_b, ĝ_c⟩: activation space without a kernel, weight space with K = X Xᵀ."""
        return float(np.trace(self.products) if kernel is None else np.sum(kernel * self.products))


def moments(
    gradients: Sequence[Array],
    factors: Sequence[Factor],
    fourth: Sequence[float],
    pair: Sequence[float],
    *,
    shared: bool,
    slope: Slope,
    layers: Layers,
) -> list[Moments]:
    """Mean and second moments of one guess, a `Moments` a layer, good for both spaces.

    gradients: g_l (example, unit), loss per unit of activation. factors: A_l. fourth, pair: E ε_i⁴ and E ε_i² ε_j² of
    each layer's noise. shared, slope, layers: the switches of docs/notation.md#the-three-switches.

    Raises ValueError for unknown switches, for sequences of different lengths and for shapes that do not fit.
    """
    check_switches(slope, layers)
    _check_shapes(gradients, factors, fourth, pair)
    pulled = [factor.pull(gradient) for factor, gradient in zip(factors, gradients, strict=True)]
    if not shared:
        return _independent(factors, pulled, fourth, pair, slope, layers)
    if slope == "batch":
        pulled = [np.broadcast_to(noise.sum(0), noise.shape) for noise in pulled]
    return _shared(factors, pulled, fourth, pair, slope, layers)


def _independent(
    factors: Sequence[Factor],
    pulled: Sequence[Array],
    fourth: Sequence[float],
    pair: Sequence[float],
    slope: Slope,
    layers: Layers,
) -> list[Moments]:
    strengths = np.stack([np.sum(noise**2, axis=1) for noise in pulled])  # ‖a‖², (layer, example)
    others = of_others(strengths, slope, layers)
    moments = []
    for layer, (factor, noise) in enumerate(zip(factors, pulled, strict=True)):
        mean = factor.push(noise)
        strength = others[layer] + pair[layer] * strengths[layer]
        variances = _variances(factor, noise, mean, strength, fourth[layer], pair[layer])
        moments.append(Moments(mean, variances, independent_covariances(mean, variances, slope)))
    return moments


def of_others(strengths: Array, slope: Slope, layers: Layers) -> Array:
    """Σ of ``own`` (layer, example) over what else is in the slope: other layers, and other examples for "batch".

    Added up, not taken from the whole, of which rounding would be left where one layer has nearly all of it.
    """
    if layers == "separate" and slope == "example":
        return np.zeros_like(strengths)
    if layers == "joint" and slope == "batch":
        return _left_out(strengths.reshape(-1)).reshape(strengths.shape)
    return _left_out(strengths) if layers == "joint" else _left_out(strengths.T).T


def _left_out(values: Array) -> Array:
    """For each entry of the first axis the sum of all others: what comes before it and what comes after."""
    zero = np.zeros_like(values[:1])
    before = np.cumsum(np.concatenate([zero, values[:-1]]), axis=0)
    after = np.cumsum(np.concatenate([zero, values[:0:-1]]), axis=0)[::-1]
    return before + after


def independent_covariances(mean: Array, variances: Array, slope: Slope) -> Array:
    """tr Cov(ĝ_b, ĝ_c) where every example draws its own: the batch's slope squared holds the product t_b t_c twice."""
    covariances = gram(mean) if slope == "batch" else np.zeros((len(mean), len(mean)))
    np.fill_diagonal(covariances, variances.sum(1))
    return covariances


def _shared(
    factors: Sequence[Factor],
    pulled: Sequence[Array],
    fourth: Sequence[float],
    pair: Sequence[float],
    slope: Slope,
    layers: Layers,
) -> list[Moments]:
    products = np.stack([gram(noise) for noise in pulled])  # s_b·s_c, (layer, example, example)
    others = _left_out(products) if layers == "joint" else np.zeros_like(products)
    moments = []
    for layer, (factor, noise) in enumerate(zip(factors, pulled, strict=True)):
        mean = factor.push(noise)
        strength = others[layer] + pair[layer] * products[layer]
        # With one slope for the batch both crossings are the same inner products of means; one of them is the mean's.
        crossed = gram(mean) if slope == "batch" else factor.crossed(noise)
        covariances = strength * factor.traces() + pair[layer] * crossed + (pair[layer] - 1.0) * gram(mean)
        excess = fourth[layer] - 3.0 * pair[layer]
        if excess != 0.0:
            covariances = covariances + excess * factor.fourth_pairs(noise)
        variances = _variances(factor, noise, mean, np.diagonal(strength), fourth[layer], pair[layer])
        moments.append(Moments(mean, variances, covariances))
    return moments


def _variances(factor: Factor, noise: Array, mean: Array, strength: Array, fourth: float, pair: float) -> Array:
    """Var ĝ_bu from the strength O + pair ‖a‖² of the slope (example,), all (example, unit) but that."""
    variances = strength[:, None] * factor.diagonal() + (2.0 * pair - 1.0) * mean**2
    excess = fourth - 3.0 * pair
    return variances + excess * factor.fourth(noise) if excess != 0.0 else variances


def check_switches(slope: str, layers: str) -> None:
    """Raises ValueError for a value that docs/notation.md#the-three-switches does not list."""
    if slope not in ("example", "batch"):
        raise ValueError(f"slope must be 'example' or 'batch', got {slope!r}")
    if layers not in ("joint", "separate"):
        raise ValueError(f"layers must be 'joint' or 'separate', got {layers!r}")


def _check_shapes(
    gradients: Sequence[Array], factors: Sequence[Factor], fourth: Sequence[float], pair: Sequence[float]
) -> None:
    lengths = [len(gradients), len(factors), len(fourth), len(pair)]
    if len(set(lengths)) != 1 or lengths[0] == 0:
        raise ValueError(f"gradients, factors, fourth and pair must have one entry a layer, got {lengths} entries")
    for layer, (gradient, factor) in enumerate(zip(gradients, factors, strict=True)):
        if gradient.shape != factor.shape:
            raise ValueError(
                f"layer {layer} has gradients (example, unit) of shape {gradient.shape} but a factor for {factor.shape}"
            )
    examples = {gradient.shape[0] for gradient in gradients}
    if len(examples) > 1:
        raise ValueError(f"all layers must have the same examples, got {sorted(examples)} of them")
