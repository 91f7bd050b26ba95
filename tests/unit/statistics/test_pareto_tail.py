"""The shape of a tail: draws of known shape, a plain reference, and what has no tail."""

from __future__ import annotations

import numpy as np
import pytest

from fganalysis.statistics.intervals import Estimate, mean
from fganalysis.statistics.pareto_tail import HEAVY, tail_shape

REPEATS = 400


def pareto(shape: float, size: tuple[int, int], generator: np.random.Generator) -> np.ndarray:
    """Draws of a generalised Pareto law, an exponential one at shape 0."""
    exponential = generator.exponential(size=size)
    return exponential if shape == 0 else np.expm1(shape * exponential) / shape


@pytest.mark.parametrize("shape", [-0.3, 0.0, 0.3, 0.7, 1.2])
def test_the_shape_of_a_pareto_law_is_found(shape: float) -> None:
    """1024 values, 96 of them in the tail: the prior of ten draws k̂ towards 1/2 by a tenth of the way.

    An error of one k̂ is about (1 + k)/√96 for k > 0; the mean of 400 is known to a twentieth of that.
    """
    found = tail_shape(pareto(shape, (REPEATS, 1024), np.random.default_rng(0)))
    expected = (96 * shape + 10 * 0.5) / (96 + 10)
    assert abs(found.mean() - expected) < 0.04
    assert 0.6 < found.std() / ((1 + max(shape, 0)) / 96**0.5) < 1.1


@pytest.mark.parametrize(("degrees", "heavy"), [(2.0, None), (1.2, True), (5.0, False)])
def test_both_tails_are_looked_at(degrees: float, heavy: bool | None) -> None:
    """Student's law has k = 1/degrees on either side; the heavier of both is told."""
    values = np.random.default_rng(1).standard_t(degrees, size=(REPEATS, 4096))
    found = tail_shape(values)
    one_sided = tail_shape(np.maximum(values, 0.0))
    assert (found >= one_sided - 1e-12).all() and found.mean() == pytest.approx(1 / degrees, abs=0.1)
    if heavy is not None:
        assert ((found >= HEAVY).mean() > 0.95) == heavy and ((found < HEAVY).mean() > 0.95) != heavy


def test_it_is_the_fit_that_arviz_makes() -> None:
    """Zhang and Stephens' fit of one tail, written as a loop after ArviZ 0.17, `psislw`'s `_gpdfit`."""
    values = np.random.default_rng(2).lognormal(size=(5, 1024))
    values[:, :300] *= 0.0  # No lower tail.
    for row, found in zip(values, tail_shape(values), strict=True):
        ordered = np.sort(row)
        excess = ordered[-96:] - ordered[-97]
        candidates = 30 + int(len(excess) ** 0.5)
        b = 1 - np.sqrt(candidates / (np.arange(1, candidates + 1) - 0.5))
        b = b / (3 * excess[int(len(excess) / 4 + 0.5) - 1]) + 1 / excess[-1]
        k = np.array([np.mean(np.log1p(-one * excess)) for one in b])
        likelihood = len(excess) * (np.log(-b / k) - k - 1)
        weights = np.array([1 / np.sum(np.exp(likelihood - one)) for one in likelihood])
        shape = np.mean(np.log1p(-np.sum(b * weights / weights.sum()) * excess))
        assert found == pytest.approx((96 * shape + 5) / 106, rel=1e-9)


def test_units_and_signs_do_not_matter() -> None:
    values = np.random.default_rng(3).standard_t(3, size=(6, 512))
    for other in (-values, 1e-150 * values, 1e150 * values, values + 3):
        np.testing.assert_allclose(tail_shape(other), tail_shape(values), rtol=1e-6)


def test_what_has_no_tail_and_what_is_all_tail() -> None:
    generator = np.random.default_rng(4)
    assert np.isnan(tail_shape(np.ones((3, 512)))).all()
    assert np.isnan(tail_shape(1 + 1e-15 * generator.normal(size=(3, 512)))).all()  # Rounding.
    assert np.isnan(tail_shape(generator.normal(size=(3, 20)))).all()
    assert np.isnan(tail_shape(np.where(np.arange(512) == 5, np.nan, generator.normal(size=512))))
    signs = generator.choice([-1.0, 1.0], size=(3, 512))
    assert np.isnan(tail_shape(signs)).all()
    often, seldom = (np.where(np.arange(512) < hits, 7.0, 0.0) for hits in (40, 3))
    assert tail_shape(often) < 0 and tail_shape(seldom) == np.inf


def test_an_interval_says_where_it_may_be_too_short() -> None:
    """A mean of t-distributed numbers with 1.2 degrees of freedom has no variance, that of normal ones has."""
    generator = np.random.default_rng(5)
    heavy, light = mean(generator.standard_t(1.2, size=(20, 1024))), mean(generator.normal(size=(20, 1024)))
    assert heavy.short.mean() > 0.9 and not light.short.any()
    assert not Estimate.missing((3,)).short.any()
    for changed in (
        heavy.scaled(np.float64(2)),
        heavy.of_few(64),
        heavy.within(-1, 1),
        heavy.of_rounding(np.zeros(20)),
    ):
        np.testing.assert_array_equal(changed.short, heavy.short)
