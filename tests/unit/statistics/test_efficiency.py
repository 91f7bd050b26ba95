"""An efficiency near zero, or of few long guesses, says how little is known of it."""

from __future__ import annotations

import numpy as np

from fganalysis.statistics.efficiency import efficiency


def test_an_efficiency_says_where_its_interval_is_wide() -> None:
    """Near zero, and where three guesses more, as long as the longest, would lower it by more than its noise shows.

    That noise is small where a guess's length and its part along the gradient rise together, p = (1 + q)/2.
    """
    generator, n = np.random.default_rng(0), 4096
    noise, lengths = 0.05 * generator.normal(size=n), generator.exponential(size=n)
    products = np.stack([1 + 20 * noise, 20 * noise, (1 + lengths) / 2 + noise])
    found = efficiency(products, np.stack([np.ones(n), np.ones(n), lengths]), np.ones(3))
    assert np.asarray(found.wide).tolist() == [False, True, True]


def test_the_error_of_an_efficiency_near_zero_is_no_accident_of_its_own_value() -> None:
    """The delta method's 2ρ se is zero where ρ happens to be: a quarter of these errors would be under half of theirs.

    2000 samples of 512 guesses, of none to one standard error along the gradient; an efficiency's spread to 5 %.
    """
    generator = np.random.default_rng(0)
    for along in (0.0, 0.5, 1.0):
        products = generator.normal(along / 512**0.5, size=(2000, 512))
        found = efficiency(products, np.ones_like(products), np.ones(2000))
        assert np.quantile(found.se, 0.05) > 0.5 * found.value.std()
        assert 0.6 < np.median(found.se) / found.value.std() < 1.2
        assert (np.abs(found.value - along**2 / 512) > 1.96 * found.se).mean() < 0.05
