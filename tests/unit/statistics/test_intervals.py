"""Intervals of skewed means and of proportions: how often they hold the truth, and what is said without evidence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fganalysis.statistics.intervals import Estimate, mean, proportion, shape, skewed
from tests.statistics.coverage import HELD, covered

REPEATS = 8000

Draw = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]
LAWS: dict[str, tuple[Draw, float]] = {
    "normal": (lambda rng, size: rng.normal(size=size), 0.0),
    "square of a normal": (lambda rng, size: rng.normal(size=size) ** 2, 1.0),
    "product of squares": (lambda rng, size: (rng.normal(size=size) * rng.normal(size=size)) ** 2, 1.0),
    "minus a fourth power": (lambda rng, size: -(rng.normal(size=size) ** 4), -3.0),
    "product of normals": (lambda rng, size: rng.normal(size=size) * rng.normal(size=size), 0.0),
}


@pytest.mark.parametrize("unit", [1.0, 2.0**-400, 2.0**400])
def test_shape_is_that_of_scipy_in_any_unit(unit: float) -> None:
    """SciPy's own is NaN in the small and the large unit."""
    values = np.random.default_rng(0).exponential(size=(3, 50))
    found = shape(unit * values)
    expected = (unit * stats.sem(values, -1), stats.skew(values, -1), stats.kurtosis(values, -1, fisher=False))
    np.testing.assert_allclose((found.se, found.skewness, found.kurtosis), expected, rtol=1e-12)


def test_quantiles_are_those_of_scipy() -> None:
    found = Estimate.student(np.zeros(4), np.ones(4), [1.0, 2.5, 10.0, 1e6])
    np.testing.assert_allclose(found.high, stats.t.ppf(0.975, [1.0, 2.5, 10.0, 1e6]), rtol=1e-12)


@pytest.mark.parametrize("name", LAWS)
def test_the_interval_of_a_mean_covers_its_truth(name: str) -> None:
    """8000 repeats know a coverage to .0025."""
    draw, truth = LAWS[name]
    found = mean(draw(np.random.default_rng(0), (REPEATS, 256)))
    assert HELD[0] <= covered(found, truth) <= HELD[1]


def test_student_would_be_too_tight() -> None:
    draw, truth = LAWS["product of squares"]
    values = draw(np.random.default_rng(0), (REPEATS, 256))
    assert covered(Estimate.student(values.mean(-1), shape(values).se, 255), truth) < HELD[0]


def test_curvature_and_bias_are_taken_into_account() -> None:
    """The square of a mean, told by its influence values 2x̄(x − x̄): biased by Var x/n and curved."""
    values = np.random.default_rng(2).normal(1.5, 1.0, size=(REPEATS, 20))
    centre = values.mean(-1)
    influence = shape(2 * centre[:, None] * values)
    spread = influence.se * np.sqrt(19)
    second = values.var(-1)
    corrected = skewed(centre**2, influence, bias=second / 20, bend=2 * (2 * centre * second) ** 2 / spread**3)
    plain = skewed(centre**2, influence)
    below, plain_below = (np.mean(found.high < 1.5**2) for found in (corrected, plain))
    above, plain_above = (np.mean(found.low > 1.5**2) for found in (corrected, plain))
    # Errors of .002 each: the two sides differ less with the corrections than without.
    assert abs(below - above) < abs(plain_below - plain_above) - 0.01


def test_what_does_not_vary_has_no_width() -> None:
    found = mean(np.full((2, 10), 3.0))
    np.testing.assert_array_equal([found.low, found.value, found.high], np.full((3, 2), 3.0))
    np.testing.assert_array_equal(found.se, 0.0)


def test_one_value_has_no_interval() -> None:
    found = mean(np.ones((3, 1)))
    np.testing.assert_array_equal(found.value, 1.0)
    assert np.isnan(found.se).all() and np.isnan(found.low).all() and np.isnan(found.high).all()


def test_intervals_scale_and_mirror() -> None:
    values = np.random.default_rng(1).exponential(size=(5, 40))
    one, scaled, mirrored = mean(values), mean(7 * values), mean(-values)
    np.testing.assert_allclose(scaled.low, one.scaled(np.float64(7)).low, rtol=1e-9)
    np.testing.assert_allclose(mirrored.low, -one.high, rtol=1e-9)


@pytest.mark.parametrize("expected", [0.5, 2.0, 5.0, 20.0, 100.0])
def test_the_interval_of_a_proportion_is_never_tight(expected: float) -> None:
    """Coverage by the binomial law itself, without sampling."""
    n = 256
    hits = np.arange(n + 1.0)
    found = proportion(hits, n)
    inside = (found.low <= expected / n) & (expected / n <= found.high)
    assert stats.binom.pmf(hits, n, expected / n)[inside].sum() >= HELD[0]


def test_a_proportion_at_its_end_has_an_error() -> None:
    assert proportion(np.array([9.0, 10.0, 90.0, 91.0]), 100).wide.tolist() == [True, False, False, True]
    found = proportion(np.array(100.0), 100)
    assert found.value == 1.0 == found.high and 0.005 < found.se < 0.05
    assert 0.95 < found.low < 0.98


def test_intervals_of_few_guesses_are_wider_or_missing() -> None:
    estimate = Estimate(*(np.array([number]) for number in (1.0, 0.2, 0.0, 2.0)))
    for n, factor in ((256, 1.0), (1000, 1.0), (64, 1 + 30 * (1 / 64 - 1 / 256)), (32, 1 + 30 * (1 / 32 - 1 / 256))):
        wider = estimate.of_few(n)
        np.testing.assert_allclose([wider.value[0], wider.se[0]], [1.0, 0.2 * factor])
        np.testing.assert_allclose([wider.low[0], wider.high[0]], [1 - factor, 1 + factor])
        np.testing.assert_allclose(wider.within(0.0, 1.5).low[0], 0.0)
        np.testing.assert_allclose(wider.within(0.0, 1.5).high[0], 1.5)
        assert bool(wider.wide) == (n < 256) and replace(estimate, wide=True).of_few(n).wide
    none = estimate.of_few(31)
    assert none.value[0] == 1.0 and np.isnan([none.se[0], none.low[0], none.high[0]]).all() and not none.wide
    # The estimate of a norm may lie outside its own interval, which is widened about its nearer end.
    negative = Estimate(*(np.array([number]) for number in (-1.0, 0.2, 0.0, 2.0))).of_few(64).within(0.0, np.inf)
    assert negative.low[0] == 0.0 and negative.high[0] > 2.0 and negative.value[0] == -1.0


@given(exponent=st.integers(-120, 120))
@settings(max_examples=20, deadline=None)
def test_units_do_not_matter(exponent: int) -> None:
    """Fourth powers are taken: of 10¹²⁰ and 10⁻¹²⁰ too, whose own are no numbers."""
    values = np.random.default_rng(1).exponential(size=(5, 40))
    for one, other in zip(
        astuple(mean(values).scaled(np.float64(10.0**exponent))), astuple(mean(10.0**exponent * values)), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-9)


def test_what_no_sample_tells_of_is_missed_as_the_readme_says() -> None:
    """Means of 1 owed to events of which 2048 values meet 1.4 on average, none in a quarter of the samples; and 20."""
    generator = np.random.default_rng(0)
    for expected, least, most in ((1.4, 0.6, 0.85), (20, 0.94, 1.0)):
        share = expected / 2048
        found = mean((generator.random((1000, 2048)) < share) / share)
        covered = ((found.low <= 1) & (found.high >= 1)).mean()
        assert least < covered < most and not np.any(found.wide)
