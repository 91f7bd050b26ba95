"""What is reported of an estimator, from the exact gradient, the mean guess and the guess's second moment (MATH.md §4).

With g the gradient, ḡ = E ĝ, d = ḡ − g and S = E‖ĝ‖², per layer and, everything added up over layers, for "all":

    bias               ‖d‖                         variance      S − ‖ḡ‖²
    relative_bias      ‖d‖/‖g‖                     mse           ‖d‖² + variance
    shrinkage          ⟨ḡ,g⟩/‖g‖²                  efficiency    ⟨ḡ,g⟩²/(‖g‖² S)
    directional_bias   1 − cos²(ḡ, g)              best_scale    ⟨ḡ,g⟩/S
                                                   gradient_norm ‖g‖

Norms and inner products of activation guesses are plain in activation space and weighted by K = X Xᵀ in weight space,
⟨u, v⟩_K = Σ_bc K_bc u_b·v_c.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from theory.factors import Array

NAMES = (
    "bias",
    "relative_bias",
    "shrinkage",
    "directional_bias",
    "variance",
    "mse",
    "efficiency",
    "best_scale",
    "gradient_norm",
)


def quantities(
    gradients: Sequence[Array],
    means: Sequence[Array],
    second_moments: ArrayLike,
    kernels: Sequence[Array] | None = None,
) -> dict[str, Array]:
    """Every quantity under its name, each (layer + 1,) with all layers together last.

    gradients, means: g_l and E ĝ_l of any one shape, (example, unit) with kernels. second_moments: E‖ĝ_l‖² (layer,) in
    the same space. kernels: K_l (example, example), or None for plain inner products.

    What is relative to a zero gradient, a zero mean or a zero guess is NaN. Raises ValueError for sequences of
    different lengths and for a mean of another shape than its gradient.
    """
    second = np.asarray(second_moments, np.float64)
    lengths = [len(gradients), len(means), len(second), len(gradients) if kernels is None else len(kernels)]
    if len(set(lengths)) != 1:
        raise ValueError(f"gradients, means, second_moments and kernels must have one entry a layer, got {lengths}")
    rows = []
    for layer, (gradient, mean) in enumerate(zip(gradients, means, strict=True)):
        if gradient.shape != mean.shape:
            raise ValueError(f"layer {layer} has a gradient of shape {gradient.shape} and a mean of {mean.shape}")
        kernel = None if kernels is None else kernels[layer]
        error = mean - gradient
        rows.append(
            [
                _inner(error, error, kernel),
                _inner(error, gradient, kernel),
                _inner(mean, mean, kernel),
                _inner(gradient, gradient, kernel),
                second[layer],
            ]
        )
    per_layer = np.array(rows)
    return _named(*np.concatenate([per_layer, per_layer.sum(0, keepdims=True)]).T)


def _named(
    squared_bias: Array, error_inner: Array, mean_square: Array, truth: Array, second: Array
) -> dict[str, Array]:
    # A kernel of low rank can round the square of a vector in its null space below zero.
    squared_bias, mean_square, truth = (np.maximum(square, 0.0) for square in (squared_bias, mean_square, truth))
    inner = truth + error_inner
    variance = np.maximum(second - mean_square, 0.0)
    bias, norm = np.sqrt(squared_bias), np.sqrt(truth)
    # The part of ḡ across g is the part of d across g: no difference of two large numbers where d is small.
    across = np.maximum(squared_bias - _ratio(error_inner**2, truth), 0.0)
    scale = _ratio(inner, second)
    found = {
        "bias": bias,
        "relative_bias": _ratio(bias, norm),
        "shrinkage": _ratio(inner, truth),
        "directional_bias": _ratio(across, mean_square),
        "variance": variance,
        "mse": squared_bias + variance,
        "efficiency": _ratio(inner * scale, truth),
        "best_scale": scale,
        "gradient_norm": norm,
    }
    return {name: found[name] for name in NAMES}


def _inner(one: Array, other: Array, kernel: Array | None) -> float:
    return float(np.sum(one * other) if kernel is None else np.sum(one * (kernel @ other)))


def _ratio(above: Array, below: Array) -> Array:
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)
