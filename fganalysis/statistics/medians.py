"""The median of a sample with an interval that holds for every continuous law.

    P(x_(k) ≤ median ≤ x_(n+1−k)) = 1 − 2 P(Binomial(n, 1/2) < k)

x_(k) is the k-th smallest of n independent numbers. k is the largest for which this is at least the level. With fewer
than `FEWEST` numbers no k is, and there is no interval. Times of one machine are not quite independent, as it is slower
for a while now and then; taken in turn, they share this.
Source: David & Nagaraja, Order Statistics (2003), section 7.1.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

MISSES = 20  # At most one interval in so many misses the median.
LEVEL = 1 - 1 / MISSES
FEWEST = 6  # The extremes of six numbers hold the median with a probability of 1 − 2/2⁶ = 0.97, of five with 0.94.


def median_interval(values: ArrayLike) -> NDArray[np.float64]:
    """Median, lower and upper bound at `LEVEL`, (3,), of the numbers that are not NaN; NaN where there are none."""
    numbers = np.asarray(values, np.float64)
    ordered = np.sort(numbers[~np.isnan(numbers)])
    n = len(ordered)
    if not n:
        return np.full(3, np.nan)
    if n < FEWEST:
        return np.array([np.median(ordered), np.nan, np.nan])
    k = rank_of_bound(n)
    return np.array([np.median(ordered), ordered[k - 1], ordered[n - k]])


@functools.cache
def rank_of_bound(n: int) -> int:
    """The k of the lower bound x_(k), counted from 1; n at least `FEWEST`."""
    outside, k = 1, 1  # Sequences of n signs with fewer than k negative ones: P(Binomial < k) 2ⁿ.
    while MISSES * 2 * (outside + math.comb(n, k)) <= 2**n:  # Whole numbers, as 2ⁿ of many is no float.
        outside += math.comb(n, k)
        k += 1
    return k
