"""The guess from a local loss: the projection of a target on the gradient v of an auxiliary head's loss.

    activation:   ĝ_b = ⟨target_b, v_b⟩ v_b/‖v_b‖²      for every example
    weight:       Ĝ = ⟨Target, V⟩ V/‖V‖²,  V = Σ_b v_b x_bᵀ;  it is Σ_b ĝ_b x_bᵀ with ĝ = v ⟨target, v⟩_K/‖v‖²_K

Given v the guess is deterministic. It is the multiple of v that is nearest to the target, so ⟨ĝ, target⟩ = ‖ĝ‖² and

    ‖ĝ − target‖² = (1 − cos²(target, v)) ‖target‖²,   best scale 1,   efficiency = shrinkage = cos².

A linear head under the mean cross-entropy over N examples has v_b = φ' ⊙ Wᵀ(softmax(W h_b + bias) − 1_target)/N.
Redrawn heads have no closed form here, because the softmax makes v no polynomial of the random W. Sources:
docs/mathematics.md#local-losses; Fournier et al. 2023.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax

from theory.factors import Array


def projected(target: Array, direction: Array, kernel: Array | None = None) -> Array:
    """The projection of the target on v, (example, unit): example by example, or with K in weight space.

    kernel: K (example, example). target, direction: (example, unit), the first in loss per unit of activation. A zero
    direction gives a zero guess.
    """
    if target.shape != direction.shape:
        raise ValueError(f"target and direction must have the same shape, got {target.shape} and {direction.shape}")
    if kernel is None:
        inner = np.sum(target * direction, axis=1, keepdims=True)
        square = np.sum(direction**2, axis=1, keepdims=True)
    else:
        mixed = kernel @ direction
        inner = np.sum(target * mixed, keepdims=True)
        square = np.sum(direction * mixed, keepdims=True)
    return np.divide(inner, square, out=np.zeros_like(inner), where=square > 0) * direction


def cross_entropy(logits: Array, targets: NDArray[np.int64]) -> float:
    """The mean cross-entropy of logits (example, class) against class indices (example,)."""
    return float(-np.mean(log_softmax(logits, axis=1)[np.arange(len(logits)), targets]))


def cross_entropy_error(logits: Array, targets: NDArray[np.int64]) -> Array:
    """The derivative of the mean cross-entropy by the logits (example, class), for class indices (example,)."""
    if targets.min() < 0 or targets.max() >= logits.shape[1]:
        raise ValueError(f"targets must be class indices from 0 to {logits.shape[1] - 1}, got {targets}")
    return (softmax(logits, axis=1) - np.eye(logits.shape[1])[targets]) / len(logits)


def linear_head_gradient(
    block: Array, derivative: Array, weight: Array, bias: Array, targets: NDArray[np.int64]
) -> Array:
    """v of a linear head under the mean cross-entropy, (example, unit).

    block: its input φ(s) (example, unit). derivative: φ' (example, unit). weight: (class, unit). bias: (class,).
    """
    return derivative * (cross_entropy_error(block @ weight.T + bias, targets) @ weight)
