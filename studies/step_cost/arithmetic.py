"""Multiply-adds of a training step on the MLP 40-w-w-w-10, an example: what no implementation of a step is spared.

Counted are products with weights, not what is done entry by entry. Half of the hidden units are live, as at
initialisation: the dead ones' columns of an upstream Jacobian are zero and take no part.
"""

from __future__ import annotations

import math
from itertools import pairwise

from fganalysis.estimators.local import heads
from fganalysis.estimators.upstream.newton_schulz_polynomials import COEFFICIENTS, COMPOSITIONS

INPUTS, HIDDEN_LAYERS, OUTPUTS = 40, 3, 10
DEGREE = (2 * len(COEFFICIENTS[0]) - 1) ** COMPOSITIONS  # of the composed polynomial in J


def sizes(width: int) -> list[int]:
    """Units of the inputs, the hidden layers and the outputs."""
    return [INPUTS, *[width] * HIDDEN_LAYERS, OUTPUTS]


def network(width: int) -> int:
    """A forward pass: the number of weights."""
    return sum(above * below for below, above in pairwise(sizes(width)))


def backpropagation(width: int) -> int:
    """Forward, to the weights and to the inputs of every layer but the first."""
    return 3 * network(width) - INPUTS * width


def all_heads(kind: heads.Kind, head_width: int | None, width: int) -> int:
    """A forward pass through the heads of all hidden layers."""
    shapes = heads.shapes_of(kind, width, OUTPUTS, head_width, "hidden")
    found, positions = 0, width
    for weight in shapes[::2]:
        convolved = len(weight) == 3
        if convolved:
            positions = (positions - heads.KERNEL) // heads.STRIDE + 1
        found += math.prod(weight) * (positions if convolved else 1)
    return HIDDEN_LAYERS * found


def jacobians(width: int) -> list[tuple[int, int]]:
    """(next_unit, live unit) of every upstream Jacobian."""
    return [(above, width // 2) for above in sizes(width)[2:]]


def newton_schulz(width: int) -> dict[str, float]:
    """Ways to a Newton–Schulz direction, in backpropagation steps.

    matrices: the products of every composition, on the smaller side. gram: the first of them alone, J Jᵀ or JᵀJ.
    vectors: `DEGREE` products of J and Jᵀ with a vector. fewest: `fewest_products` of them.
    """
    found = {"matrices": 0, "gram": 0, "vectors": 0, "fewest": 0}
    for above, live in jacobians(width):
        smaller, gram = min(above, live), min(above, live) * above * live
        found["matrices"] += COMPOSITIONS * (2 * gram + 2 * smaller**3)
        found["gram"] += gram
        found["vectors"] += DEGREE * above * live
        found["fewest"] += fewest_products(above, live) * above * live
    return {name: products / backpropagation(width) for name, products in found.items()}


def fewest_products(above: int, live: int) -> int:
    """Products of J and Jᵀ with a vector, from one ε on, without which no way gives p(J)ᵀε for r singular values.

    What m products give is q(J)ᵀε with q odd of degree m at most, (m + 1)/2 coefficients. For an ε with a part along
    every singular vector it is p(J)ᵀε only if q = p at all r singular values: m ≥ 2r − 1, unless p itself has a lower
    degree or its values there happen to be those of a polynomial of lower degree.
    """
    return min(DEGREE, 2 * min(above, live) - 1)
