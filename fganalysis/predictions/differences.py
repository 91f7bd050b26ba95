"""What theory says of a difference of losses at a step ε, given the derivatives of the loss and its rounding error."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from theory import finite_difference, rounding

Array = NDArray[np.float64]
MOST_WEIGHTS = 2**16  # Of which the mean over weights is taken, evenly spread over all of them.


@dataclass(frozen=True)
class Precision:
    """Binary digits of a floating-point format, and the spacing of its numbers near zero."""

    digits: int
    least_spacing: float

    @classmethod
    def of(cls, limits: torch.finfo) -> Precision:
        return cls(round(1 - np.log2(limits.eps)), limits.smallest_normal * limits.eps)


@dataclass(frozen=True)
class Truncation:
    """Mean square of what a slope's error is made of beside rounding, loss² per unit of z².

    derivative: E (zᵀHz)² one-sided, E (T zzz)² central. kinks: k of the part k ε, 0 for a smooth loss.
    """

    derivative: float
    kinks: float
    central: bool

    def error(self, epsilon: Array) -> Array:
        """Root mean square error of a slope, in the shape of ε."""
        factor = np.sqrt(self.derivative) / (6 if self.central else 2)
        smooth = finite_difference.slope_error(epsilon, factor, 0.0, central=self.central)
        error: Array = np.hypot(smooth, np.sqrt(self.kinks * epsilon))
        return error

    def best_epsilon(self, rounding_error: float) -> float:
        """The ε of the least error, by the derivative or by kinks; infinite without truncation.

        rounding_error: r, the standard deviation of that of one loss.
        """
        if self.kinks:
            return finite_difference.best_epsilon_at_kinks(self.kinks, rounding_error, central=self.central)
        if not self.derivative:
            return float("inf")
        factor = np.sqrt(self.derivative) / (6 if self.central else 2)
        return finite_difference.best_epsilon(factor, rounding_error, central=self.central)

    def least_error(self, rounding_error: float) -> float:
        """The error by truncation and rounding at `best_epsilon`, of kinks alone where there are."""
        best = np.array(self.best_epsilon(rounding_error))
        if not 0 < best < np.inf:
            return 0.0
        alone = Truncation(0.0, self.kinks, self.central) if self.kinks else self
        return float(np.hypot(alone.error(best), rounding_part(best, rounding_error, central=self.central)))


def rounding_part(epsilon: Array, rounding_error: float, *, central: bool) -> Array:
    """Root mean square error of a slope by rounding, in the shape of ε."""
    return finite_difference.slope_error(epsilon, 0.0, rounding_error, central=central)


def drift(weights: Array, epsilons: Array, precision: Precision) -> tuple[Array, Array]:
    """Root of E ‖drift‖² of all weights by θ + εz, − 2εz, + εz, and the share that θ + εz leaves in place, (epsilon,).

    weights: (weight,), numbers of the precision.
    """
    some = weights[:: -(-len(weights) // MOST_WEIGHTS)]
    of = (precision.digits, precision.least_spacing)
    squares = [rounding.squared_drift(some, float(epsilon), *of).mean() for epsilon in epsilons]
    still = [rounding.unmoved(some, float(epsilon), *of).mean() for epsilon in epsilons]
    return np.sqrt(np.array(squares) * len(weights)), np.array(still)
