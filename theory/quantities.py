"""The quantities reported of an estimator, from the exact gradient, the mean guess and the second moment of the guess.

Source: docs/mathematics.md#reported-quantities.

Let g be the gradient, ḡ = E ĝ, d = ḡ − g and S = E‖ĝ‖², for each layer, and added over layers for layer "all":

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
    second_moments: ArrayLike | None = None,
    kernels: Sequence[Array] | None = None,
    *,
    variances: ArrayLike | None = None,
) -> dict[str, Array]:
    """Every quantity under its name, each (layer + 1,) with all layers together last.

    gradients, means: g_l and E ĝ_l, of equal shapes; (example, unit) with kernels. second_moments: E‖ĝ_l‖² (layer,) in
    the same space. variances: tr Cov ĝ_l (layer,), given instead of second_moments where they are known, because the
    difference S − ‖ḡ‖² loses the digits of a small variance. kernels: K_l (example, example), or None for plain inner
    products.

    A quantity relative to a zero gradient, mean or guess is NaN. Raises ValueError for sequences of different lengths
    and for a mean of another shape than its gradient.
    """
    given = np.asarray(variances if second_moments is None else second_moments, np.float64)
    lengths = [len(gradients), len(means), len(given), len(gradients) if kernels is None else len(kernels)]
    if len(set(lengths)) != 1:
        raise ValueError(f"gradients, means, second_moments and kernels must have one entry a layer, got {lengths}")
    for layer, (gradient, mean) in enumerate(zip(gradients, means, strict=True)):
        if gradient.shape != mean.shape:
            raise ValueError(f"layer {layer} has a gradient of shape {gradient.shape} and a mean of {mean.shape}")
    metrics = [None] * len(given) if kernels is None else kernels
    layers = list(zip(gradients, means, metrics, strict=True))
    inner = _with_all(np.array([_inner(mean, gradient, kernel) for gradient, mean, kernel in layers]))
    # Rounding can make the square of a vector in the null space of a kernel negative.
    squared_bias, mean_square, truth = (
        _with_all(np.array([_square(vector(gradient, mean), kernel) for gradient, mean, kernel in layers]))
        for vector in (lambda g, m: m - g, lambda g, m: m, lambda g, m: g)
    )
    variance = _with_all(np.maximum(given if second_moments is None else given - mean_square[:-1], 0.0))
    second = mean_square + variance
    # The part of ḡ across g is computed as a vector, because a difference of squares loses the digits of a short part.
    # Each layer has its own shrinkage, and all layers together have that of the whole guess.
    along = np.divide(inner, truth, out=np.zeros_like(inner), where=truth > 0)
    layers_across, together = (
        np.array(
            [
                _square(mean - part * gradient, kernel)
                for (gradient, mean, kernel), part in zip(layers, parts, strict=True)
            ]
        )
        for parts in (along[:-1], np.full(len(layers), along[-1]))
    )
    across = np.append(layers_across, together.sum())
    bias, norm = np.sqrt(squared_bias), np.sqrt(truth)
    scale = _ratio(inner, second)
    quantities = {
        "bias": bias,
        "relative_bias": _ratio(bias, norm),
        "shrinkage": _ratio(inner, truth),
        "directional_bias": np.where(truth > 0, _ratio(across, mean_square), np.nan),
        "variance": variance,
        "mse": squared_bias + variance,
        "efficiency": _ratio(inner * scale, truth),
        "best_scale": scale,
        "gradient_norm": norm,
    }
    return {name: quantities[name] for name in NAMES}


def _with_all(per_layer: Array) -> Array:
    return np.append(per_layer, per_layer.sum())


def _square(vector: Array, kernel: Array | None) -> float:
    return max(_inner(vector, vector, kernel), 0.0)


def _inner(first: Array, second: Array, kernel: Array | None) -> float:
    return float(np.sum(first * second) if kernel is None else np.sum(first * (kernel @ second)))


def _ratio(above: Array, below: Array) -> Array:
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)
