"""The mean of m independent guesses of one estimator: mean ḡ = E ĝ as before, variance V divided by m.

    E‖ĝ_m‖² = ‖ḡ‖² + V/m        mse = ‖ḡ − g‖² + V/m        efficiency ρ²_m = cos²(ḡ, g) / (1 + V/(m‖ḡ‖²))

As m grows, the squared error falls to the squared bias, and ρ² rises to cos²(ḡ, g), a limit that the directional bias
sets. In many dimensions norms hardly vary, so √ρ² is close to the cosine of the guess. E cos itself has in general no
closed form for m > 1. Source: docs/mathematics.md#averaging.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from theory.factors import Array
from theory.linear_guess import Moments


def second_moment(second: ArrayLike, squared_mean: ArrayLike, n_averaged: float | Array) -> Array:
    """E‖ĝ_m‖² from E‖ĝ‖² and ‖ḡ‖²; the arrays broadcast. Raises ValueError for less than one guess."""
    n, squared = _counts(n_averaged), np.asarray(squared_mean, np.float64)
    averaged: Array = squared + (np.asarray(second, np.float64) - squared) / n
    return averaged


def averaged_moments(single: Moments, n_averaged: int) -> Moments:
    """The moments of the mean of m guesses, from those of one guess."""
    n = float(_counts(n_averaged))
    return Moments(single.mean, single.variances / n, single.covariances / n)


def efficiency(
    squared_cosine: ArrayLike, variance: ArrayLike, squared_mean: ArrayLike, n_averaged: float | Array
) -> Array:
    """ρ²_m from cos²(ḡ, g), V and ‖ḡ‖²."""
    relative = np.asarray(variance, np.float64) / np.asarray(squared_mean, np.float64)
    reached: Array = np.asarray(squared_cosine, np.float64) / (1 + relative / _counts(n_averaged))
    return reached


def guesses_needed(
    target: float | Array, squared_cosine: ArrayLike, variance: ArrayLike, squared_mean: ArrayLike
) -> Array:
    """The least whole m with ρ²_m ≥ target; infinite for a target of cos²(ḡ, g), the limit, and above.

    m = (V/‖ḡ‖²) / (cos²/target − 1). Raises ValueError for a target outside (0, 1).
    """
    wanted, ceiling = np.asarray(target, np.float64), np.asarray(squared_cosine, np.float64)
    if np.any((wanted <= 0) | (wanted >= 1)):
        raise ValueError(f"target must be between 0 and 1, got {target}")
    relative = np.asarray(variance, np.float64) / np.asarray(squared_mean, np.float64)
    room = ceiling / wanted - 1
    exact = np.divide(relative, room, out=np.full(np.broadcast(relative, room).shape, np.inf), where=room > 0)
    # A ratio that differs from a whole number only by rounding is taken as that number.
    needed: Array = np.maximum(1.0, np.ceil(exact * (1 - 1e-12)))
    return needed


def _counts(n_averaged: float | Array) -> Array:
    n = np.asarray(n_averaged, np.float64)
    if np.any(n < 1):
        raise ValueError(f"n_averaged must be at least 1, got {n_averaged}")
    return n
