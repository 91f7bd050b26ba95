"""Integrals over the half line by the trapezoidal rule in the logarithm.

    ∫₀^∞ f(u) du = ∫ u f(u) dx,  x = log u

If f is analytic within an angle d of the half line, the error of a step h falls as e^(−2πd/h). The functions of this
project have d ≥ π/2. At both ends they are powers of u, so the sum beyond an end is a geometric series, with the ratio
of the last two nodes. The range can therefore end before the function is negligible. Sources:
docs/mathematics.md#numerical-integrals; Trefethen & Weideman 2014, The exponentially convergent trapezoidal rule, SIAM
Review 56.
"""

from __future__ import annotations

import numpy as np

from theory.factors import Array


def log_nodes(low: float, high: float, step: float) -> Array:
    """x from ``low`` to at least ``high``, ``step`` apart."""
    return low + step * np.arange(np.ceil((high - low) / step) + 1, dtype=np.float64)


def log_trapezoid(values: Array, step: float) -> Array:
    """The integral, from u f(u) at equally spaced x in the last axis, with geometric series for both ends.

    Nothing is added beyond an end where the values do not decrease. There, the function must be zero.
    """
    return step * (values.sum(-1) + _tail(values[..., 0], values[..., 1]) + _tail(values[..., -1], values[..., -2]))


def _tail(end: Array, before: Array) -> Array:
    ratio = np.divide(end, before, out=np.zeros_like(end), where=before != 0)
    falling = (ratio > 0) & (ratio < 1)
    return np.where(falling, end * ratio / (1 - np.where(falling, ratio, 0.0)), 0.0)
