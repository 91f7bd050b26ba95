"""The inputs of `theory.subspace`: the energy of a network's gradients in the modes of its upstream Jacobians.

Squared gradients are in (loss per unit of activation)². Raises ValueError for shapes that do not fit, for NaN or
infinite entries, and for numbers that no gradient or spectrum has.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Counts = NDArray[np.int64]
CURVE_ROUNDING = 1e-6  # curves from single precision may leave [0, 1], or decrease, by this much


@dataclass(frozen=True)
class OverlapCurve:
    """The energy of one hidden layer's gradients in the k leading modes of its upstream Jacobians.

    Attributes:
        overlap: o_k² for k = 1, 2, …, (example, mode). May be NaN for an example with a zero gradient.
        squared_gradient: ‖g_b‖², (example,).
        rank: rank of the upstream Jacobian, (example,). For a larger k the guess has only ``rank`` directions.
    """

    overlap: Array
    squared_gradient: Array
    rank: Counts

    def __post_init__(self) -> None:
        _check_curve(self.overlap, self.squared_gradient, self.rank)
        check_not_negative("squared_gradient", self.squared_gradient)
        check_not_negative("rank", self.rank)
        curve = self.overlap[self.squared_gradient > 0]
        steps = np.diff(curve, axis=1, prepend=0.0)
        if not (np.all(steps >= -CURVE_ROUNDING) and np.all(curve <= 1 + CURVE_ROUNDING)):
            raise ValueError("an overlap curve must rise from 0 to at most 1")


@dataclass(frozen=True)
class UpstreamSpectrum:
    """One hidden layer: singular values σ_i of each upstream Jacobian and components (v_iᵀg)², both (example, mode)."""

    singular_values: Array
    components: Array
    squared_gradient: Array

    def __post_init__(self) -> None:
        _check_curve(self.singular_values, self.squared_gradient, self.squared_gradient)
        if self.components.shape != self.singular_values.shape:
            raise ValueError(
                f"components must have the shape of singular_values, got {self.components.shape} "
                f"and {self.singular_values.shape}"
            )
        check_not_negative("singular_values", self.singular_values)
        check_not_negative("components", self.components)
        check_not_negative("squared_gradient", self.squared_gradient)
        if np.any(self.components.sum(1) > self.squared_gradient * (1 + CURVE_ROUNDING)):
            raise ValueError("the components of a gradient must not add up to more than its square")


@dataclass(frozen=True)
class Output:
    """The output tap, where both guesses draw N(0, I): ``squared_gradient`` (example,) and the number of ``units``."""

    squared_gradient: Array
    units: int

    def __post_init__(self) -> None:
        if self.squared_gradient.ndim != 1 or self.units < 1:
            raise ValueError(
                "the output needs squared gradients (example,) and at least 1 unit, "
                f"got the shape {self.squared_gradient.shape} and {self.units}"
            )
        check_not_negative("squared_gradient", self.squared_gradient)


def _check_curve(curve: Array, squared_gradient: Array, rank: NDArray[Any]) -> None:
    if curve.ndim != 2 or 0 in curve.shape or not squared_gradient.shape == rank.shape == curve.shape[:1]:
        raise ValueError(
            "a curve must be (example, mode), not empty, with squared_gradient and rank (example,), got the shapes "
            f"{curve.shape}, {squared_gradient.shape} and {rank.shape}"
        )


def check_not_negative(name: str, values: NDArray[Any]) -> None:
    """Refuses negative, infinite and NaN numbers, naming the array."""
    if not np.all((values >= 0) & (values < np.inf)):
        raise ValueError(f"{name} must be finite and not negative")
