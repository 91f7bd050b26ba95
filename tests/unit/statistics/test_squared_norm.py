"""Squared norms of means: unbiased, with intervals that cover from zero up, in one dimension and in many."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fganalysis.statistics.intervals import Z95
from fganalysis.statistics.squared_norm import root, squared_norm
from tests.statistics.coverage import HELD, covered

GROUPS = 32
REPEATS = 4000


def grams(dimension: int, bias: float, groups: int = GROUPS, repeats: int = REPEATS, seed: int = 0) -> np.ndarray:
    """Gram matrices of group means with a bias of so many standard deviations of U, spread over all coordinates."""
    rng = np.random.default_rng(seed)
    squared = bias * np.sqrt(2 * dimension) / groups
    found = []
    for _ in range(-(-repeats // 500)):
        means = rng.normal(size=(500, groups, dimension)) + np.sqrt(squared / dimension)
        found.append(means @ means.transpose(0, 2, 1))
    return np.concatenate(found)[:repeats]


def truth(dimension: int, bias: float, groups: int = GROUPS) -> float:
    return bias * np.sqrt(2 * dimension) / groups


@given(seed=st.integers(0, 10_000), groups=st.integers(4, 6))
@settings(max_examples=20, deadline=None)
def test_the_value_is_the_weighted_mean_over_pairs(seed: int, groups: int) -> None:
    rng = np.random.default_rng(seed)
    errors, weights = rng.normal(size=(groups, 7)) + 2.0, rng.integers(1, 4, groups).astype(float)
    gram = errors @ errors.T
    pairs = list(itertools.permutations(range(groups), 2))
    mean = sum(weights[a] * weights[b] * gram[a, b] for a, b in pairs) / sum(weights[a] * weights[b] for a, b in pairs)
    np.testing.assert_allclose(squared_norm(gram, weights).value, mean, rtol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("bias", [0.0, 0.3, 1.0, 2.0, 5.0, 30.0])
@pytest.mark.parametrize("dimension", [1, 4, 50])
def test_the_interval_covers_wherever_the_truth_is(dimension: int, bias: float) -> None:
    """4000 repeats know a coverage to .0034."""
    found = squared_norm(grams(dimension, bias), np.ones(GROUPS))
    expected = truth(dimension, bias)
    error = found.value.std() / np.sqrt(REPEATS)
    assert abs(found.value.mean() - expected) <= 4 * error
    assert HELD[0] <= covered(found.estimate(), expected) <= HELD[1]
    # The norm's interval is the root of the square's: the same repeats hold the truth.
    assert abs(covered(root(found.estimate()), np.sqrt(expected)) - covered(found.estimate(), expected)) < 1e-3


@pytest.mark.parametrize("bias", [2.0, 20.0, 500.0])
@pytest.mark.parametrize("dimension", [6, 50])
def test_the_interval_covers_where_the_bias_lies_across_the_noise(dimension: int, bias: float) -> None:
    """As that of a truncated upstream guess. A bias has no part in U's variance then, however large it is."""
    expected = truth(dimension, bias)
    found = squared_norm(grams(dimension, 0.0) + expected, np.ones(GROUPS))
    assert HELD[0] <= covered(found.estimate(), expected) <= 0.985
    np.testing.assert_allclose(found.spread(expected).mean(), found.value.std(), rtol=0.06)


def test_one_direction_of_noise_tells_a_bias_along_it_from_one_across_it() -> None:
    """There ℓ is exact at the true θ: cθ/A along the noise, none across it."""
    for across, inside in ((0.0, 1.0), (1.0, 0.0)):
        expected = truth(1, 20.0)
        found = squared_norm(grams(1, 20.0 * inside) + across * expected, np.ones(GROUPS))
        variance = found.spread(expected) ** 2
        np.testing.assert_allclose(np.median(variance), found.value.var(), rtol=0.1)
        assert covered(found.estimate(), expected) >= HELD[0]


@pytest.mark.parametrize("dimension", [1, 6])
def test_an_interval_that_covers_far_more_says_so(dimension: int) -> None:
    """A bias across the noise adds nothing to U's variance, and no sample tells that; one along it is soon known."""
    expected = truth(dimension, 20.0)
    across = squared_norm(grams(dimension, 0.0) + expected, np.ones(GROUPS)).estimate()
    assert covered(across, expected) > 0.97 and across.wide.mean() > 0.9
    assert root(across).wide is across.wide
    for bias, most in ((0.0, 0.45), (100.0, 0.01)):
        assert squared_norm(grams(dimension, bias), np.ones(GROUPS)).estimate().wide.mean() < most


@pytest.mark.parametrize("dimension", [1, 50])
def test_scores_are_standard_normal_numbers(dimension: int) -> None:
    for bias in (0.0, 10.0):
        found = squared_norm(grams(dimension, bias, repeats=2000), np.ones(GROUPS))
        z = found.score(np.full(2000, truth(dimension, bias)))
        # Shares beyond quantiles, .011 their error at 6 %, .005 at the tail.
        assert abs(np.mean(z > 0) - 0.5) < 0.09 and 0.03 < np.mean(z > 1.645) < 0.075


def test_value_and_standard_error_alone_would_not_cover() -> None:
    """At a bias of one standard deviation in one dimension U has a law that is far from normal."""
    found = squared_norm(grams(1, 0.3), np.ones(GROUPS)).estimate()
    naive = np.mean(np.abs(found.value - truth(1, 0.3)) <= Z95 * found.se)
    assert not HELD[0] <= naive <= HELD[1]


@pytest.mark.parametrize("dimension", [200, 40_000])
def test_the_variance_without_bias_is_that_of_many_dimensions(dimension: int) -> None:
    # Centring the Gram matrix with its diagonal made the error 1.2 and 3.3 times too wide here.
    rng = np.random.default_rng(4)
    found = []
    for _ in range(60):
        errors = rng.normal(size=(64, dimension)).astype(np.float32)
        found.append(squared_norm((errors @ errors.T).astype(float), np.ones(64)))
    spread = np.std([one.value for one in found])
    # 60 repeats know a standard deviation to 9 %.
    assert 0.7 < np.mean([np.sqrt(one.variance_without_bias) for one in found]) / spread < 1.4


def test_the_naive_squared_norm_of_the_mean_would_be_caught() -> None:
    errors = np.random.default_rng(0).normal(size=(2000, 64, 200))
    naive = (errors.mean(1) ** 2).sum(-1)
    assert naive.mean() > 20 * naive.std() / np.sqrt(2000)


def test_bounds_are_in_order_and_scale() -> None:
    gram = grams(3, 1.0, repeats=200)
    one, other = (squared_norm(factor * gram, np.ones(GROUPS)).estimate() for factor in (1.0, 1e-12))
    assert (one.low >= 0).all() and (one.low <= np.maximum(one.value, 0)).all() and (one.high > one.low).all()
    np.testing.assert_allclose(other.low, 1e-12 * one.low, rtol=1e-6)
    np.testing.assert_allclose(other.high, 1e-12 * one.high, rtol=1e-6)


def test_what_does_not_vary_has_no_width() -> None:
    found = squared_norm(np.full((8, 8), 4.0), np.ones(8))
    for estimate, expected in ((found.estimate(), 4.0), (root(found.estimate()), 2.0)):
        np.testing.assert_allclose([estimate.low, estimate.value, estimate.high], expected, rtol=1e-9)
        np.testing.assert_allclose(estimate.se, 0.0, atol=1e-9)


def test_too_few_groups_and_missing_guesses_give_nothing() -> None:
    for gram in (np.eye(3), np.full((8, 8), np.nan)):
        estimate = root(squared_norm(gram, np.ones(len(gram))).estimate())
        for part in (estimate.value, estimate.se, estimate.low, estimate.high):
            assert np.isnan(part)
