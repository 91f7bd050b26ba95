"""Second moments of Ĝ = t V where V is made of independent blocks, such as the parameters of every layer.

    t = Σ_b t_b,  t_b = ⟨V_b, G_b⟩,  over all blocks (joint) or those of a layer (separate)

Blocks are independent and symmetric, with E V_b V_bᵀ = Σ_b. Of t² V_b V_bᵀ what is odd in another block vanishes, so

    E Ĝ_b = Σ_b G_b        E‖Ĝ_b‖² = (Σ_b' ≠ b ⟨G_b', Σ_b' G_b'⟩) tr Σ_b + E t_b² ‖V_b‖²

The last term is what a law of V_b has of its own: `theory.low_rank_perturbation`, `theory.subspace_perturbation` and
`theory.scaled_perturbation` give it. For unstructured noise it is P (pair ‖G‖²) + (fourth − pair)‖G‖².
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from theory.factors import Array
from theory.linear_guess import Layers, check_switches


def of_others(squared_slopes: Sequence[float], layer_of: Sequence[int], layers: Layers) -> Array:
    """Σ E t_b'² over the other blocks in the slope of each block, (block,).

    squared_slopes: E t_b², (block,). layer_of: the layer of each block. The terms are added: a difference from the
    total would lose all digits where one block has nearly all of it.
    """
    check_switches("batch", layers)
    slopes, owners = np.asarray(squared_slopes, np.float64), np.asarray(layer_of)
    if slopes.shape != owners.shape or slopes.ndim != 1:
        raise ValueError(f"squared_slopes and layer_of must have one entry a block, got {slopes.shape}, {owners.shape}")
    blocks = np.arange(len(slopes))
    same_pass = np.ones((len(slopes),) * 2, bool) if layers == "joint" else owners[:, None] == owners
    others = same_pass & (blocks[:, None] != blocks)
    total: Array = np.where(others, slopes, 0.0).sum(1)
    return total


def second_moments(
    squared_slopes: Sequence[float],
    traces: Sequence[float],
    alone: Sequence[float],
    layer_of: Sequence[int],
    *,
    layers: Layers,
) -> Array:
    """E‖Ĝ_l‖², (layer,), in (loss per unit of weight)².

    squared_slopes: E t_b² = ⟨G_b, Σ_b G_b⟩. traces: tr Σ_b. alone: E t_b²‖V_b‖². layer_of: the layer of each block,
    counted from 0. All (block,).
    """
    others = of_others(squared_slopes, layer_of, layers)
    each = others * np.asarray(traces, np.float64) + np.asarray(alone, np.float64)
    moments: Array = np.bincount(np.asarray(layer_of), weights=each).astype(np.float64)
    return moments


def unstructured(squared_norm: float, size: int, fourth: float, pair: float) -> float:
    """E t_b²‖V_b‖² of a block that is one noise vector."""
    return (size * pair + fourth - pair) * squared_norm
