"""Errors of differences of losses, measured: rounding by two precisions, and truncation by exact derivatives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators.perturbation.finite_difference import FiniteDifference
from fganalysis.measuring.loss_along import LossAlong
from fganalysis.predictions import differences
from fganalysis.statistics import intervals
from fganalysis.statistics.intervals import Estimate
from fganalysis.statistics.ratio import ratio_of_means

Array = NDArray[np.float64]
PILOT = 8  # Directions from which the ε is chosen at which all others are then measured.
# Tuned by `python -m studies.calibration --part progress`. To tune it again, run it and read its table of cut-offs: no
# smooth network may be above it, and among such cut-offs the slope's error should be least.
FAR = 2.0  # A truncation error so many times that of the derivatives is not made by them.
SMALLEST_STEP, LARGEST_STEP = 2.0**-20, 1.0


@dataclass(frozen=True, eq=False)
class Directions:
    """The directions of an estimator, drawn again whenever they are read, one at a time."""

    snapshot: Snapshot
    estimator: FiniteDifference
    n_guesses: int
    seed: int

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        words = np.random.SeedSequence((self.seed, self.snapshot.step)).generate_state(1, np.uint64)
        generator = torch.Generator(self.snapshot.device).manual_seed(int(words[0]) >> 1)
        for _ in range(self.n_guesses):
            yield self.estimator.draw(self.snapshot, 1, generator)

    def derivatives(self, loss: LossAlong) -> Array:
        """z·G, zᵀHz and T zzz, (guess, derivative)."""
        found, waiting = [], list[tuple[Tensor, ...]]()
        for number, direction in enumerate(self, 1):
            waiting.append(direction)
            if len(waiting) == loss.at_once or number == self.n_guesses:
                together = tuple(torch.cat(parts) for parts in zip(*waiting, strict=True))
                found.append(loss.derivatives(loss.directions(together)))
                waiting = []
        result: Array = torch.cat(found).cpu().numpy()
        return result


class TwoPrecisions:
    """The loss in a precision, and in double precision at the same weights."""

    def __init__(self, snapshot: Snapshot, dtype: torch.dtype):
        self.dtype, self.loss = dtype, abs(float(snapshot.loss))
        self.rounded, self.exact = LossAlong(snapshot, dtype), LossAlong(snapshot, torch.float64)
        self.exact.weights = {name: weight.double() for name, weight in self.rounded.weights.items()}

    def differences(self, directions: Directions, count: int, step: float, central: bool) -> tuple[Array, Array]:
        """L(θ+εz) − L(θ−εz) or L(θ+εz) − L(θ) of some directions, in this precision and in double precision, (guess,).

        Raises:
            ValueError: a loss that is not finite in this precision.
        """
        found = []
        for _, direction in zip(range(count), directions, strict=False):
            along = {name: part[0] for name, part in self.rounded.directions(direction).items()}
            exactly = {name: part.double() for name, part in along.items()}
            back = -step if central else 0.0
            pairs = ((self.rounded, along), (self.exact, exactly))
            found.append([of.value(of.moved(z, step)) - of.value(of.moved(z, back)) for of, z in pairs])
        rounded, exact = np.array(found).T
        if not np.isfinite(rounded).all():
            raise ValueError(f"a loss at a step of {step:g} is not finite in {str(self.dtype).removeprefix('torch.')}")
        return rounded, exact


@dataclass(frozen=True, eq=False)
class OfScheme:
    """What was measured of one kind of difference at one ε, mean squares over directions.

    Attributes:
        kinks: whether truncation is far above that of the derivatives, so that it is taken as that of kinks.
        squared_rounding: r², of one loss. squared_error: of the slope, loss² per unit of z². squared_truncation: of the
            slope in double precision. truncation_ratio: root mean square of the truncation error over that of the
            derivative's, of the same directions.
    """

    central: bool
    epsilon: float
    kinks: bool
    squared_rounding: Estimate
    squared_error: Estimate
    squared_truncation: Estimate
    truncation_ratio: Estimate


def measured_near_best(
    pair: TwoPrecisions, directions: Directions, along: Array, central: bool, far: float = FAR
) -> OfScheme:
    """Errors at a power of two near the best ε, which is known when the rounding error is: a few directions give it.

    Where the error in double precision is far from that of the derivatives, kinks make it, and the best ε with kinks
    takes the place of the other.

    along: z·G, zᵀHz and T zzz, (guess, derivative). far: the cut-off, other than `FAR` in its study alone.

    Raises:
        ValueError: a network, loss or step that the precision does not take.
    """

    derivative = along[:, 2 if central else 1]

    def measured(epsilon: float, count: int, kinks: bool = False) -> OfScheme:
        rounded, exact = pair.differences(directions, count, epsilon, central)
        length, slope = 2 * epsilon if central else epsilon, along[: len(exact), 0]
        squares = ((rounded - exact) ** 2 / 2, (rounded / length - slope) ** 2, (exact / length - slope) ** 2)
        expected = (truncation_factor(epsilon, central) * derivative[: len(exact)]) ** 2
        rounding, error, truncation = (intervals.of_sample(square) for square in squares)
        ratio = root_of_ratio(squares[-1], expected)
        return OfScheme(central, epsilon, kinks, rounding, error, truncation, ratio)

    def best(rounding: float, kinks: float = 0.0) -> float:
        truncation = differences.Truncation(float((derivative**2).mean()), kinks, central)
        return _power(truncation.best_epsilon(rounding))

    every = directions.n_guesses
    pilot = measured(best(torch.finfo(pair.dtype).eps * pair.loss), min(PILOT, every))
    smooth = measured(best(_root(pilot.squared_rounding)), every)
    # Both are of the same directions, so that their ratio is near 1 wherever derivatives make the error.
    if not float(smooth.truncation_ratio.value) > far:
        return smooth
    kinks = float(smooth.squared_truncation.value) / smooth.epsilon
    return measured(best(_root(smooth.squared_rounding), kinks), every, kinks=True)


def truncation_factor(epsilon: float, central: bool) -> float:
    """What the derivative is multiplied by in the truncation error of a slope."""
    return epsilon**2 / 6 if central else epsilon / 2


def root_of_ratio(above: Array, below: Array) -> Estimate:
    """√(E above/E below) of paired squares, (guess,); ∞ without an interval where all of ``below`` are zero."""
    if not below.any():
        return replace(Estimate.missing(()), value=np.asarray(np.inf if above.any() else np.nan))
    ratio = ratio_of_means(above, below).of_few(len(above))
    value, low, high = (np.sqrt(np.maximum(part, 0.0)) for part in (ratio.value, ratio.low, ratio.high))
    return replace(ratio, value=value, se=np.full_like(value, np.nan), low=low, high=high)


def _root(estimate: Estimate) -> float:
    return float(estimate.value) ** 0.5


def _power(epsilon: float) -> float:
    """The nearest power of two, of steps that are of use."""
    return float(2.0 ** np.round(np.log2(np.clip(epsilon, SMALLEST_STEP, LARGEST_STEP))))
