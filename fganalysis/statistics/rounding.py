"""What rounding may have done to every reported quantity, and intervals that allow for it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fganalysis.statistics.intervals import Array, Estimate

DOUBLE = float(np.finfo(np.float64).eps)
# What rounding may add to a guess, its products and sums, in units of the data type's precision. No study tunes it: a
# test in tests/unit/statistics/test_quantities.py fails if it is far too small, and larger values only lengthen
# intervals of quantities that do not vary.
ROUNDING = 32.0


def rounding_allowed(
    p: Array, q: Array, g2: Array, squared_gradient: Array, squared_bias: Array, precision: float
) -> dict[str, Array]:
    """How far rounding may have moved every quantity, (…); for `squared_bias` and `efficiency`, how far their root.

    The rounding error of a guess is relative to the guess. The part of it that differs between guesses is part of the
    noise, so only the length of the mean guess matters. Gram matrices and differences from the gradient have double
    precision.

    Args:
        p, q: ⟨ĝ, g⟩ and ‖ĝ‖², (…, guess). g2: ‖g‖², (…), NaN where it is zero; squared_gradient: the same with zeros.
        squared_bias: ‖ḡ − g‖², (…). precision: that of the guesses.
    """
    gradient, ones = np.sqrt(squared_gradient), np.ones_like(squared_gradient)
    along = np.abs(p.mean(-1)) / np.sqrt(g2)
    single, double = ROUNDING * precision, ROUNDING * DOUBLE
    # ‖ḡ‖² = ‖ḡ − g‖² + 2⟨ḡ, g⟩ − ‖g‖², known to double precision of ‖g‖², at most E‖ĝ‖² and at least ⟨ḡ, g⟩²/‖g‖².
    second = q.mean(-1)
    mean_square = squared_bias + 2 * p.mean(-1) - (1 - double) * squared_gradient
    guess = np.sqrt(np.fmin(np.fmax(mean_square, np.nan_to_num(along) ** 2), second))
    of_error = single * guess + double * gradient
    of_square = 2 * of_error * (guess + gradient)
    return {
        "squared_bias": of_error,
        "bias": of_error,
        "relative_bias": of_error / np.sqrt(g2),
        "shrinkage": single * guess / np.sqrt(g2),
        "directional_bias": _over(single * guess * (guess + gradient) + double * (guess + gradient) ** 2, along**2),
        "variance": of_square,
        "mse": of_square,
        "cosine": single * ones,
        "efficiency": single * ones,
        "best_scale": 2 * single * _over(gradient, np.sqrt(second)),
        "descent_probability": 0.0 * ones,
    }


def of_root(estimate: Estimate, rounding: Array) -> Estimate:
    """`Estimate.of_rounding` for a square whose root is known to ``rounding``."""
    middle = np.sqrt(np.maximum(estimate.value, 0.0))
    low, high = np.maximum(middle - rounding, 0.0) ** 2, (middle + rounding) ** 2
    wide = np.asarray(estimate.wide & (estimate.high - estimate.low > high - low))
    return replace(estimate, low=np.minimum(estimate.low, low), high=np.maximum(estimate.high, high), wide=wide)


def _over(numerator: Array, denominator: Array) -> Array:
    """0 where the denominator is zero."""
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=~(denominator <= 0))
