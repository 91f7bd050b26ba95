"""Weight perturbation, the forward gradient: second moments of Ĝ_l = t V_l for every noise law.

    t = Σ_l ⟨V_l, G_l⟩  (joint)   or   ⟨V_l, G_l⟩  (separate)

V_l is one noise vector with P_l entries for each layer, with E V_i⁴ = fourth and E V_i² V_j² = pair. The mean is G_l.
The parts of the slope from this layer and from the others are independent. With S = Σ ‖G‖² over the other layers (0 for
separate passes)

    E‖Ĝ_l‖² = P_l (S + pair ‖G_l‖²) + (fourth − pair) ‖G_l‖²

because E V_i² t² contains fourth · G_i², and pair · G_j² for every other entry j. For pair = 1 and κ = fourth the
variance in a joint pass is P_l‖G‖² + (κ − 2)‖G_l‖², and (P + κ − 2)‖G‖² for all layers together.

Sources: Baydin et al. 2022; Ren et al. 2023; docs/mathematics.md#weight-perturbation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike

from theory.factors import Array
from theory.linear_guess import Layers, check_switches, of_others
from theory.structured_moment import StructuredMoment


def second_moments(
    squared_norms: ArrayLike, sizes: Sequence[int], fourth: Sequence[float], pair: Sequence[float], *, layers: Layers
) -> Array:
    """E‖Ĝ_l‖² in weight space, (layer,), in (loss per unit of weight)².

    squared_norms: ‖G_l‖² (layer,). sizes: P_l. fourth, pair: the fourth-order moments of V_l. layers: "joint" or
    "separate".

    Raises ValueError for an unknown ``layers`` and for sequences of different lengths.
    """
    check_switches("batch", layers)
    squares, entries, fourths, pairs = (
        np.asarray(values, np.float64) for values in (squared_norms, sizes, fourth, pair)
    )
    if squares.ndim != 1 or not squares.shape == entries.shape == fourths.shape == pairs.shape:
        raise ValueError(
            "squared_norms, sizes, fourth and pair must have one entry a layer, "
            f"got the shapes {squares.shape}, {entries.shape}, {fourths.shape} and {pairs.shape}"
        )
    others = of_others(squares[:, None], "example", layers)[:, 0]
    return entries * (others + pairs * squares) + (fourths - pairs) * squares


def second_moments_per_example(
    squared_norms: Array,
    squared_gradients: ArrayLike,
    sizes: Sequence[int],
    fourth: Sequence[float],
    pair: Sequence[float],
    *,
    layers: Layers,
) -> Array:
    """E‖Ĝ_l‖² of Ĝ_l = Σ_b t_b V_l,b, (layer,), where every example has its own direction and slope.

    Examples are independent, so variances add: Σ_b (E‖ĝ_l,b‖² − ‖G_l,b‖²) + ‖G_l‖², with G_l,b = g_b x_bᵀ.

    squared_norms: ‖G_l,b‖² (layer, example). squared_gradients: ‖G_l‖² (layer,). The rest as in `second_moments`.
    """
    squares = np.asarray(squared_norms, np.float64)
    alone = [second_moments(of_example, sizes, fourth, pair, layers=layers) for of_example in squares.T]
    return np.sum(alone, axis=0) - squares.sum(1) + np.asarray(squared_gradients, np.float64)


def second_moment_per_example(
    examples: Sequence[tuple[Array, Array]], fourth: Sequence[float], pair: Sequence[float], *, layers: Layers
) -> StructuredMoment:
    """E Ĝ Ĝᵀ of the same: G Gᵀ + Σ_b [E Ĝ_b Ĝ_bᵀ − G_b G_bᵀ], with E Ĝ_b Ĝ_bᵀ that of `theory.progress` for G_b alone.

    examples: g (example, unit) and x (example, input) a layer. fourth, pair: as in `second_moments`.
    """
    check_switches("batch", layers)
    squares = np.stack([np.sum(g**2, axis=1) * np.sum(x**2, axis=1) for g, x in examples])
    others = of_others(squares, "example", layers)
    means = [g.T @ x for g, x in examples]
    weights = [
        float((other + p * square).sum()) + (f - 3 * p) * ((g**2).T @ x**2)
        for (g, x), other, square, f, p in zip(examples, others, squares, fourth, pair, strict=True)
    ]

    def vectors() -> Iterator[tuple[float, Sequence[Array]]]:
        yield 1.0, means
        between = 1.0 if layers == "joint" else 0.0
        for example in range(squares.shape[1]):
            parts = [np.outer(g[example], x[example]) for g, x in examples]
            if between:
                yield between, parts
            for layer, p in enumerate(pair):
                if 2 * p - 1 != between:
                    alone = [part if i == layer else np.zeros_like(part) for i, part in enumerate(parts)]
                    yield 2 * p - 1 - between, alone

    return StructuredMoment(weights, vectors, means)
