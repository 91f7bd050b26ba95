"""Ratios E a/E b and (E a)²/E b, with the sets of ratios that a test does not reject (Fieller 1954): NumPy arrays only.

θ is the ratio of E a to E b exactly where E (a − θ b) = 0. So the interval is the set of θ for which the interval of
the mean of a − θ b, corrected for skewness (`fganalysis.statistics.intervals`), holds 0. Unlike value ± 1.96 SE it is
right where b̄ itself is known to no more than a few standard errors: it is then longer above, and has no upper bound
where the interval of b̄ holds 0. For a square, a is replaced by the influence values of ā², and the curvature of ā²
enters the correction. Where ā is within a few standard errors of zero, a square is that of `efficiency`.

θ is the tangent of an angle, in units in which both means have a standard error of 1. The angle is found by halving,
on each side of the estimate; moments of a − θ b up to the fourth follow from the mixed moments of a and b.

Source: docs/mathematics.md#progress-of-a-step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import comb

import numpy as np

from fganalysis.statistics.efficiency import NEAR, NOTABLE, ROOM, best_scale, efficiency
from fganalysis.statistics.intervals import Array, Estimate, Shape, skewed

ANGLES_HALVED = 40  # Halvings of an angle of at most a quarter turn.


def ratio_of_means(above: Array, below: Array) -> Estimate:
    """E above/E below of paired values (…, guess); NaN where the mean of ``below`` is not positive.

    The standard error is that of the delta method.
    """
    linear = best_scale(above, below)
    if above.shape[-1] < 2:
        return linear
    low, high = _bounds(above, below, 0.0)
    return replace(linear, low=np.minimum(low, linear.value), high=np.maximum(high, linear.value))


def square_over_mean(above: Array, below: Array) -> Estimate:
    """(E above)²/E below, as `ratio_of_means`, corrected for the bias of a square. Its lower bound is at least 0.

    As that of an efficiency, the lower bound is at most the value that three further guesses with ``below`` as large as
    the largest would give, and the interval is wide where this lengthens it much.
    """
    n = above.shape[-1]
    near = efficiency(above, below, np.ones(above.shape[:-1]))
    if n < 2:
        return near
    middle, level = above.mean(-1, keepdims=True), below.mean(-1)
    squares = 2 * middle * above - middle**2
    curved = np.divide(1.0, 2 * middle[..., 0] ** 2, out=np.zeros_like(level), where=middle[..., 0] != 0)
    low, high = _bounds(squares, below, curved)
    low = np.maximum(low, 0.0)
    room = near.value / (1 + ROOM * (below.max(-1) / np.where(level > 0, level, np.nan) - 1) / n)
    lower = np.minimum(np.minimum(low, room), near.value)
    wide = low - lower > NOTABLE * (high - low)
    apart = np.abs(middle[..., 0]) > NEAR * above.std(-1) / np.sqrt(n)
    return replace(
        near,
        low=np.where(apart, lower, near.low),
        high=np.where(apart, np.maximum(high, near.value), near.high),
        wide=np.where(apart, wide, near.wide),
    )


def _bounds(above: Array, below: Array, curved: Array | float) -> tuple[Array, Array]:
    """The ratios of E above to E below that are not rejected.

    curved: where ``above`` are the influence values of a square, 1/(2 ā²), by which its second derivative is known from
    them.
    """
    n = above.shape[-1]
    means = [values.mean(-1) for values in (above, below)]
    units = [_unit(values, mean) for values, mean in zip((above, below), means, strict=True)]
    a, b = (
        (values - mean[..., None]) / unit[..., None]
        for values, mean, unit in zip((above, below), means, units, strict=True)
    )
    moments = {(i, k - i): (a**i * b ** (k - i)).mean(-1) for k in (2, 3, 4) for i in range(k + 1)}
    middle, across = means[0] / units[0], means[1] / units[1]
    estimate = np.arctan2(middle, across)

    def test(angle: Array) -> Estimate:
        """Of the mean of cos(angle)·a − sin(angle)·b."""
        c, s = np.cos(angle), np.sin(angle)
        variance, third, fourth = (
            np.sum([comb(k, i) * c**i * (-s) ** (k - i) * moments[i, k - i] for i in range(k + 1)], axis=0)
            for k in (2, 3, 4)
        )
        varies = variance > 0
        safe = np.where(varies, variance, 1.0)
        of_angle = Shape(
            n,
            np.sqrt(np.maximum(variance, 0.0) / (n - 1)),
            np.where(varies, third / safe**1.5, 0.0),
            np.where(varies, fourth / safe**2, 3.0),
        )
        # The second derivative of ā² by ā is 2, in units of ``above``.
        second = c * curved * units[0]
        bend = second * (c * moments[2, 0] - s * moments[1, 1]) ** 2
        bend = np.where(varies, bend / safe**1.5, 0.0)
        return skewed(c * middle - s * across, of_angle, second * moments[2, 0] / 2 / n, bend)

    high = _last(lambda angle: np.asarray(test(angle).high >= 0), estimate, estimate + np.pi / 2)
    low = _last(lambda angle: np.asarray(test(angle).low <= 0), estimate, estimate - np.pi / 2)
    factor = units[0] / units[1]
    beyond = [np.abs(angle) >= np.pi / 2 for angle in (low, high)]
    lower, upper = (
        np.where(far, np.copysign(np.inf, angle), np.tan(angle) * factor)
        for far, angle in zip(beyond, (low, high), strict=True)
    )
    return lower, upper


def _unit(values: Array, mean: Array) -> Array:
    """The standard error of a mean; its size where it has none."""
    error = values.std(-1) / np.sqrt(values.shape[-1])
    size = np.where(np.abs(mean) > 0, np.abs(mean), 1.0)
    return np.where(error > 1e-12 * size, error, size)


def _last(holds: Callable[[Array], Array], start: Array, stop: Array) -> Array:
    """The end of the range from ``start`` in which a condition holds."""
    for _ in range(ANGLES_HALVED):
        middle = (start + stop) / 2
        inside = holds(middle)
        start, stop = np.where(inside, middle, start), np.where(inside, stop, middle)
    return start
