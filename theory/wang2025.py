"""The metrics of Wang et al. 2025 exactly as their paper prints them, under names with the prefix of that paper.

Source: docs/mathematics.md#quantities-of-wang-et-al.

    wang2025_bias              ‖(1/B) Σ_b (E ĝ_b − g_b)‖₂
    wang2025_variance          ‖(1/B) Σ_b E (g_b − ĝ_b)^∘2 − ((1/B) Σ_b (E ĝ_b − g_b))^∘2‖₂
    wang2025_covariance_norm   (1/B) Σ_b ‖A_b A_bᵀ − I‖_F / units
    wang2025_overlap           mean over b of ‖V_kᵀ g_b‖/‖g_b‖, and wang2025_squared_overlap of its square

The bias is the norm of errors averaged over examples, so errors of different examples cancel. The variance is a norm
over units, from which only the mean bias is subtracted, so it contains the spread of the bias over examples. They
differ from the bias and variance of `theory.quantities`.
"""

from __future__ import annotations

import numpy as np

from theory.factors import Array, Factor
from theory.linear_guess import Moments


def bias(gradient: Array, moments: Moments) -> float:
    """``wang2025_bias`` of one layer, gradient (example, unit), in loss per unit of activation."""
    return float(np.linalg.norm(np.mean(moments.mean - gradient, axis=0)))


def variance(gradient: Array, moments: Moments) -> float:
    """``wang2025_variance`` of one layer, gradient (example, unit), in (loss per unit of activation)²."""
    errors = moments.mean - gradient
    return float(np.linalg.norm(np.mean(moments.variances, axis=0) + np.var(errors, axis=0)))


def covariance_norm(factor: Factor) -> float:
    """``wang2025_covariance_norm`` of one layer: ‖Σ − I‖_F² = ‖Σ‖_F² − 2 tr Σ + units, over the number of units."""
    units = factor.shape[1]
    squares = factor.squared_covariance() - 2 * factor.diagonal().sum(1) + units
    return float(np.mean(np.sqrt(np.maximum(squares, 0.0))) / units)


def overlap(gradient: Array, directions: Array) -> tuple[float, float]:
    """``wang2025_overlap`` and ``wang2025_squared_overlap`` of one layer.

    gradient: (example, unit). directions: (example, unit, mode), orthonormal columns or columns of zeros: the ``left``
    of `theory.upstream.orthogonal`. Examples without a gradient do not count; NaN when no example has one.
    """
    norms = np.linalg.norm(gradient, axis=1)
    seen = norms > 0
    if not np.any(seen):
        return float("nan"), float("nan")
    projections = np.linalg.norm(np.matmul(gradient[seen, None, :], directions[seen])[:, 0], axis=1)
    ratios = projections / norms[seen]
    return float(np.mean(ratios)), float(np.mean(ratios**2))
