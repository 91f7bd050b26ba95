"""Equilibrium propagation: the exact gradient, and every coefficient of the guesses' biases in powers of the nudge β.

    F(s; β) = Σ_{l<n} Ψ(s_l) + ‖s_n‖²/2 − Σ_l s_lᵀ W_l [s_{l−1}, 1] + β ‖s_n − y‖²/2          ∇Ψ = artanh
    e(β) = mean over examples of ∂F/∂W at the fixed point s(β) = Σ_k e_k β^k          dL/dW = e_1

With s = Σ_k c_k β^k and J the symmetric matrix of the weights between layers, hidden layers are s = tanh u, where u
has the coefficients u_k = J c_k, and 1 − s² those q_k. From s' = (1 − s²) u' and from the outputs' s = u − β (s − y),

    hidden    c_k − q_0 J c_k = (1/k) Σ_{0<j<k} j u_j q_{k−j}          outputs    c_k − J c_k = −c_{k−1} + y [k = 1]

so that each order takes a solution with the matrix of the first, which is that of the implicit derivative. Then

    one-sided    (e(β) − e(0))/β     bias e_2 β + e_3 β² + …,  no variance
    symmetric    (e(β) − e(−β))/2β   bias e_3 β² + e_5 β⁴ + …,  no variance
    random sign  mean of the symmetric guess, variance ‖half of the difference of its sides‖² = ‖e_2 β + e_4 β³ + …‖²

The series converge while |β| is below the distance of the nearest singularity of s(β), at most 1: outputs are
(W_n [s_{n−1}, 1] + β y)/(1 + β). Sources: docs/mathematics.md#equilibrium-propagation; Scellier & Bengio 2017;
Laborieux et al. 2020.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def coefficients(weights: Sequence[Array], states: Sequence[Array], targets: Array, order: int) -> list[Array]:
    """e_1 … e_order, (power, unit, input + 1) a layer, in loss per unit of weight.

    weights: (unit, input + 1) a layer, the bias as last column. states: of the free fixed point, (example, unit) a
    layer, the inputs first. targets: (example, output unit).
    """
    if order < 1:
        raise ValueError(f"order must be at least 1, got {order}")
    series = _states(weights, states, targets, order)
    found = []
    for below, here in zip([_constant(states[0], order), *series], series, strict=False):
        n_examples = here.shape[1]
        ones = _constant(np.ones((n_examples, 1)), order)
        inputs = np.concatenate([below, ones], axis=2)
        products = [
            -sum(np.einsum("bu,bi->ui", here[j], inputs[k - j]) for j in range(k + 1)) / n_examples
            for k in range(1, order + 1)
        ]
        found.append(np.stack(products))
    return found


def one_sided_bias(coefficient: Array, beta: float) -> Array:
    """Of (e(β) − e(0))/β, from the e_k of a layer, (power, unit, input + 1); to the order of the last."""
    powers = beta ** np.arange(len(coefficient), dtype=float)
    return np.tensordot(powers[1:], coefficient[1:], axes=1)


def symmetric_bias(coefficient: Array, beta: float) -> Array:
    """Of (e(β) − e(−β))/2β, and of the random sign."""
    powers = beta ** np.arange(len(coefficient), dtype=float)
    return np.tensordot(powers[2::2], coefficient[2::2], axes=1)


def random_sign_variance(coefficient: Array, beta: float) -> float:
    """tr Cov of the random sign in a layer: the two guesses are as far from their mean as half of their difference."""
    powers = beta ** np.arange(len(coefficient), dtype=float)
    half: Array = np.tensordot(powers[1::2], coefficient[1::2], axes=1)
    return float(np.sum(half**2))


def two_sides(plus: Array, minus: Array) -> tuple[Array, float]:
    """Mean and total variance of a guess that is either of two arrays with probability ½."""
    return (plus + minus) / 2, float(np.sum((plus - minus) ** 2)) / 4


def _constant(array: Array, order: int) -> Array:
    """A series whose other coefficients are zero, (power, example, unit)."""
    return np.concatenate([array[None], np.zeros((order, *array.shape))])


def _states(weights: Sequence[Array], states: Sequence[Array], targets: Array, order: int) -> list[Array]:
    """c_0 … c_order of each layer but the inputs, (power, example, unit)."""
    ends = np.cumsum([0, *(len(weight) for weight in weights)])
    n_hidden, n_units, n_examples = ends[-2], ends[-1], len(targets)
    coupling = np.zeros((n_units, n_units))
    for place, weight in enumerate(weights[1:], 1):
        here, below = slice(ends[place], ends[place + 1]), slice(ends[place - 1], ends[place])
        coupling[here, below], coupling[below, here] = weight[:, :-1], weight[:, :-1].T
    c, u, q = (np.zeros((order + 1, n_examples, n_units)) for _ in range(3))
    c[0] = np.concatenate(list(states[1:]), axis=1)
    q[0] = 1 - c[0] ** 2
    slopes = np.concatenate([q[0][:, :n_hidden], np.ones((n_examples, n_units - n_hidden))], axis=1)
    matrix = np.eye(n_units) - slopes[:, :, None] * coupling
    for k in range(1, order + 1):
        known = sum((j * u[j] * q[k - j] for j in range(1, k)), np.zeros_like(c[0])) / k
        known[:, n_hidden:] = (targets if k == 1 else 0.0) - c[k - 1][:, n_hidden:]
        c[k] = np.linalg.solve(matrix, known[..., None])[..., 0]
        u[k] = c[k] @ coupling
        q[k] = -sum(c[j] * c[k - j] for j in range(k + 1))
    return [c[:, :, first:last] for first, last in pairwise(ends)]
