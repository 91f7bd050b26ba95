"""95 % intervals of means, smooth functions of means and proportions, for skewed samples: NumPy arrays only.

What is averaged over guesses, above all squared norms, is skewed, as squares and products of noise are. The studentised
mean T = (estimate − truth)/SE is then skewed too, and T ± 1.96 misses too often on one side. With n
guesses, γ the skewness of the influence values and s = 1/√n, to first order in s

    g(T) = T + s (a T²/3 + d) + (s a)² T³/27      a = γ + 3c/2      d = γ/6 + c/2 − b

is normal (Hall 1992). b and c describe the curvature of a function of several means, in units of the standard deviation
of the influence values: b is its bias, c the correlation of its curvature with its slope. Both are zero for a mean. The
cubic term makes g increasing. The interval is the set of truths for which g(T) lies between the quantiles of Student's
t. Its degrees of freedom are those of the variance estimate, 2n/(κ − 1) for a sample of kurtosis κ: few, and the
interval wide, where a few guesses make up most of the variance.

Limits of these intervals:

- No sample shows events that have not occurred in it. If the mean of an estimator comes from events of which fewer than
  about 20 are expected in the sample, intervals are too short, and nothing indicates it.
- Fewer than 256 guesses show too little of common tails too. Their intervals are widened: at 64 guesses by a third, and
  those of norms by two thirds. Fewer than 32 guesses have no interval.
- `Estimate.wide` marks intervals that may cover far more than 95 %.
- `Estimate.short` marks intervals that may cover less, because what is averaged may have no variance.

Derivation: docs/mathematics.md#interval-of-a-mean, docs/mathematics.md#interval-of-a-ratio.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from fganalysis.statistics.pareto_tail import HEAVY, tail_shape

Array = NDArray[np.float64]
Z95 = 1.959963984540054
TAIL_PROBABILITY = 0.025  # Of a 95 % interval, on each side.

# The next four are tuned by `python -m studies.calibration`. To tune them again, change them, run the study with
# `--out` a new folder, and read its page: no cell may be tight, and every wide cell must be marked. Smaller values of
# ENOUGH and FEW make shorter intervals for few guesses, until a cell is tight.
LEAST = 32  # Fewest guesses that have an interval.
ENOUGH = 256  # Guesses from which on the intervals are not widened.
FEW = 30.0  # Of n < ENOUGH guesses the interval is 1 + FEW (1/n − 1/ENOUGH) times as long.
FEW_HITS = 10  # A proportion with fewer guesses than this on one side has a wide interval.


@dataclass(frozen=True)
class Estimate:
    """Values, standard errors and the bounds of the 95 % intervals, all of one shape.

    wide: where an interval may cover far more than 95 %, up to nearly 100 %, as no shorter one is known to cover 95 %.
    tail: shape k̂ of the tail of the averaged values (`fganalysis.statistics.pareto_tail`); NaN without a tail.
    """

    value: Array
    se: Array
    low: Array
    high: Array
    wide: NDArray[np.bool_] | bool = False
    tail: Array | float = np.nan

    @property
    def short(self) -> NDArray[np.bool_]:
        """Where an interval may cover far less than 95 %: what is averaged may have no variance."""
        return np.asarray(np.asarray(self.tail) >= HEAVY)

    @classmethod
    def missing(cls, shape: tuple[int, ...]) -> Estimate:
        return cls(*(np.full(shape, np.nan) for _ in range(4)))

    @classmethod
    def student(cls, value: Array, se: Array, degrees: ArrayLike) -> Estimate:
        """The symmetric interval with Student's quantile."""
        half = se * special.stdtrit(degrees, 1 - TAIL_PROBABILITY)
        return cls(value, se, value - half, value + half)

    def scaled(self, factor: Array) -> Estimate:
        """Everything times a positive number."""
        value, se, low, high = (part * factor for part in (self.value, self.se, self.low, self.high))
        return replace(self, value=value, se=se, low=low, high=high)

    def of_rounding(self, rounding: Array) -> Estimate:
        """Keeps bounds at least ``rounding`` away from the value. An interval no longer than that is not wide."""
        wide = np.asarray(self.wide & (self.high - self.low > 2 * rounding))
        low, high = np.minimum(self.low, self.value - rounding), np.maximum(self.high, self.value + rounding)
        return replace(self, low=low, high=high, wide=wide)

    def within(self, least: float, most: float) -> Estimate:
        """Clips the bounds to the range of the quantity, and the standard error to half of that range, its maximum."""
        low, high = (np.clip(bound, least, most) for bound in (self.low, self.high))
        return replace(self, se=np.minimum(self.se, (most - least) / 2), low=low, high=high)

    def score(self, truth: Array) -> Array:
        """(value − truth)/SE, where the SE is the distance to the bound on the side of the truth, over 1.96."""
        side = np.where(self.value > truth, self.value - self.low, self.high - self.value) / Z95
        return np.divide(self.value - truth, side, out=np.zeros_like(side), where=side > 0)

    def of_few(self, n_guesses: int, few: float = FEW) -> Estimate:
        """The interval widened for fewer than 256 guesses; NaN bounds for fewer than 32."""
        if n_guesses < LEAST:
            return replace(Estimate.missing(self.value.shape), value=self.value)
        factor = 1 + few * max(1 / n_guesses - 1 / ENOUGH, 0.0)
        centre = np.clip(self.value, self.low, self.high)
        low, high = (centre + factor * (bound - centre) for bound in (self.low, self.high))
        wide = np.asarray(self.wide | (n_guesses < ENOUGH))
        return replace(self, se=factor * self.se, low=low, high=high, wide=wide)

    def where(self, condition: NDArray[np.bool_]) -> Estimate:
        """This estimate with NaN where the condition does not hold."""
        value, se, low, high = (np.where(condition, x, np.nan) for x in (self.value, self.se, self.low, self.high))
        return replace(self, value=value, se=se, low=low, high=high)


@dataclass(frozen=True)
class VarianceParts:
    """Parts of tr Cov of one guess with their 95 % intervals, (space, layer), layer "all" last; NaN without guesses."""

    within: Estimate
    between: Estimate


@dataclass(frozen=True)
class Shape:
    """Standard error of the mean of n values, their skewness and kurtosis; 0 and 3 where they do not vary."""

    n: int
    se: Array
    skewness: Array
    kurtosis: Array


def shape(values: Array) -> Shape:
    """Standard error of the mean, skewness and kurtosis over the last axis; NaN for fewer than two values.

    `scipy.stats` has the same numbers, but takes a second to import, and its powers of numbers far from 1 overflow.
    """
    n = values.shape[-1]
    if n < 2:
        return Shape(n, *(np.full(values.shape[:-1], np.nan) for _ in range(3)))
    centred = values - values.mean(-1, keepdims=True)
    # Scaled to numbers of at most 1, because fourth powers are taken.
    unit = power_of_two(np.abs(centred).max(-1))
    centred = centred / unit[..., None]
    squares = centred**2
    second = squares.mean(-1)
    safe = np.where(second > 0, second, 1.0)
    skewness = (squares * centred).mean(-1) / safe**1.5
    kurtosis = np.where(second > 0, (squares**2).mean(-1) / safe**2, 3.0)
    return Shape(n, unit * np.sqrt(second / (n - 1)), skewness, kurtosis)


def power_of_two(sizes: Array) -> Array:
    """The largest power of two up to each size; 1 where a size is not positive. Dividing by it rounds nothing."""
    usable = (sizes > 0) & np.isfinite(sizes)
    return np.where(usable, np.ldexp(1.0, np.frexp(np.where(usable, sizes, 1.0))[1] - 1), 1.0)


def skewed(
    value: Array, influence: Shape, bias: ArrayLike = 0.0, bend: ArrayLike = 0.0, *, tail: float = TAIL_PROBABILITY
) -> Estimate:
    """The interval of the module docstring for a value whose influence values have this shape.

    Args:
        bias: E value − truth, in the units of the value. bend: c. tail: probability beyond each bound.
    """
    n, root = influence.n, 1 / np.sqrt(influence.n)
    degrees = np.clip(2 * n / np.maximum(influence.kurtosis - 1, 1e-9), 1.0, n - 1.0)
    quantile = -special.stdtrit(degrees, tail)
    safe_se = np.where(influence.se > 0, influence.se, 1.0)
    curvature = root * (influence.skewness + 1.5 * np.asarray(bend))
    curvature = np.where(np.abs(curvature) < 1e-6, 1e-6, curvature)
    shift = root * (influence.skewness / 6 + np.asarray(bend) / 2) - np.asarray(bias) / safe_se
    lower, upper = (3 / curvature * (np.cbrt(1 + curvature * (x - shift)) - 1) for x in (-quantile, quantile))
    return Estimate(value, influence.se, value - influence.se * upper, value - influence.se * lower)


def mean(values: Array) -> Estimate:
    """The mean over the last axis; NaN error and bounds for fewer than two values."""
    return replace(skewed(values.mean(-1), shape(values)), tail=tail_shape(values))


def of_sample(values: Array) -> Estimate:
    """As `mean`, widened for fewer than 256 values."""
    return mean(values).of_few(values.shape[-1])


def proportion(hits: Array, n: int) -> Estimate:
    """A proportion with Agresti and Coull's interval, which has a positive length at 0 and 1 too.

    Counts are discrete. Where fewer than ten guesses are on one side, no interval covers exactly 95 %: this one covers
    more and is marked as wide.
    """
    total = n + Z95**2
    centre = (hits + Z95**2 / 2) / total
    se = np.sqrt(centre * (1 - centre) / total)
    few = np.asarray(np.minimum(hits, n - hits) < FEW_HITS)
    return Estimate(hits / n, se, np.maximum(centre - Z95 * se, 0.0), np.minimum(centre + Z95 * se, 1.0), few)
