"""The interval of a product of powers of estimates."""

from __future__ import annotations

import numpy as np

from fganalysis.statistics.intervals import Estimate, of_sample
from fganalysis.statistics.power_products import power_product


def estimate(value: float, low: float, high: float, wide: bool = False) -> Estimate:
    return Estimate(*(np.array(part) for part in (value, np.nan, low, high)), np.array(wide))


def test_of_one_estimate_the_bounds_are_carried_over() -> None:
    root = power_product(3.0, [(estimate(4, 1, 9), 0.5)])
    np.testing.assert_allclose([root.value, root.low, root.high], [6, 3, 9])
    inverse = power_product(1.0, [(estimate(4, 1, 9), -1.0)])
    np.testing.assert_allclose([inverse.value, inverse.low, inverse.high], [1 / 4, 1 / 9, 1])


def test_of_two_the_sides_add_in_squares_on_a_logarithmic_scale() -> None:
    ratio = power_product(1.0, [(estimate(1, np.exp(-3), np.exp(1)), 1.0), (estimate(1, np.exp(-2), np.exp(4)), -1.0)])
    np.testing.assert_allclose(np.log([ratio.low, ratio.high]), [-5, np.sqrt(5)])
    assert power_product(1.0, [(estimate(2, 1, 3), 1.0), (estimate(2, 1, 3, wide=True), 1.0)]).wide


def test_bounds_that_are_not_positive_bound_nothing() -> None:
    root = power_product(1.0, [(estimate(4, -1, 9), 0.5)])
    assert (root.low, root.high) == (0, 3)
    inverse = power_product(1.0, [(estimate(4, -1, 9), -0.5)])
    assert inverse.high == np.inf
    nothing = power_product(1.0, [(estimate(0, 0, 0), 0.5)])
    assert (nothing.value, nothing.low, nothing.high) == (0, 0, 0)


def test_coverage_of_a_ratio_of_mean_squares() -> None:
    """(9 r²/E t²)^(1/6) of 300 normal numbers each, 95 % within ±1.4 % by 1000 repetitions."""
    rng = np.random.default_rng(0)
    r2, t2 = (of_sample(rng.normal(size=(1000, 300)) ** 2 * scale) for scale in (1e-8, 5.0))
    found = power_product(9 ** (1 / 6), [(r2, 1 / 6), (t2, -1 / 6)])
    truth = (9 * 1e-8 / 5) ** (1 / 6)
    covered = ((found.low <= truth) & (truth <= found.high)).mean()
    assert 0.936 <= covered <= 0.964
