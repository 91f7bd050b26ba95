"""The interval of a median, which holds for every continuous law."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fganalysis.statistics.medians import FEWEST, LEVEL, median_interval, rank_of_bound


@pytest.mark.parametrize("n", [6, 7, 8, 9, 11, 21, 50, 101, 1500])  # 2ⁿ of the last is no float.
def test_the_rank_is_the_largest_that_covers_enough(n: int) -> None:
    def coverage(k: int) -> float:
        return 1 - 2 * sum(math.comb(n, i) for i in range(k)) / 2**n

    k = rank_of_bound(n)
    assert coverage(k) >= LEVEL > coverage(k + 1)


def test_median_and_bounds_of_known_numbers() -> None:
    numbers = np.array([9.0, 3, np.nan, 1, 7, 5, 4, 8, 2, 6])  # 1 … 9: the second smallest and largest.
    np.testing.assert_array_equal(median_interval(numbers), [5, 2, 8])
    np.testing.assert_array_equal(median_interval(np.exp(numbers)), np.exp([5, 2, 8]))  # Whatever the law.
    few = median_interval(np.arange(FEWEST - 1.0))
    assert few[0] == 2 and np.isnan(few[1:]).all()
    assert np.isnan(median_interval([np.nan])).all()
    np.testing.assert_array_equal(median_interval(np.arange(6.0)), [2.5, 0, 5])


def test_it_covers_the_median_of_a_heavy_tailed_law() -> None:
    """With the probability that the module says: 0.9609 for nine numbers, ±0.0043 from 2000 samples."""
    samples = np.random.default_rng(0).pareto(0.5, size=(2000, 9))
    bounds = np.apply_along_axis(median_interval, 1, samples)
    median = 2 ** (1 / 0.5) - 1
    covered = ((bounds[:, 1] <= median) & (median <= bounds[:, 2])).mean()
    assert abs(covered - 0.9609) < 3.5 * 0.0043
