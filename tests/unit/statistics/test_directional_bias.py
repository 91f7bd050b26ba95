"""A direction in many dimensions stays within the range of its sine."""

from __future__ import annotations

import numpy as np

from fganalysis.statistics import quantities
from fganalysis.statistics.directional_bias import squared_tangent
from tests.unit.statistics.drawn_guesses import GUESSES, Sample, simulated


def test_a_direction_in_many_dimensions_is_no_number_beyond_its_range() -> None:
    """Weight perturbation of 10⁵ weights at 256 guesses: tan² is 0 ± 2, and x/(1 + x) was anything.

    The group means across the gradient are normal given the slopes t, m_a = s_a w_a with s_a² = Σt²/n², so the Gram
    matrix of the w_a is that of a Wishart law, drawn after Bartlett. 500 repeats know a coverage to .01.
    """
    rng, dimension, groups, repeats = np.random.default_rng(0), 10**5 - 1, 16, 500
    slopes = rng.normal(size=(repeats, groups, GUESSES // groups))
    lower = np.tril(rng.normal(size=(repeats, groups, groups)), -1)
    lower += np.sqrt(rng.chisquare(dimension - np.arange(groups), size=(repeats, groups)))[..., None] * np.eye(groups)
    spread = np.sqrt((slopes**2).sum(-1)) / slopes.shape[-1]
    across = spread[..., :, None] * (lower @ lower.mT) * spread[..., None, :]
    products = slopes**2
    along = products.mean(-1) - 1
    gram = across + along[..., :, None] * along[..., None, :]
    lengths = products * (products + dimension)
    flat = (part.reshape(repeats, GUESSES) for part in (products, lengths))
    found = quantities.quantities(*flat, gram, np.arange(GUESSES) // (GUESSES // groups), np.ones(repeats))
    estimate = found["directional_bias"]
    known = ~np.isnan(estimate.value)
    assert known.mean() > 0.9
    value, width = estimate.value[known], (estimate.high - estimate.low)[known]
    assert ((value >= 0) & (value <= 1)).all() and (estimate.se[known] <= 0.5).all()
    assert np.asarray(estimate.wide)[known][width > 0.9].all()
    assert ((estimate.low <= 0) | ~known).mean() > 0.92
    # The map is the one that it was wherever the squared tangent is no negative number.
    sure, _ = simulated(np.random.default_rng(0), 1024, 64)
    sure = Sample(sure.guesses + 0.7 * np.eye(12)[3], sure.gradient, 64)
    p, _, gram, of_guess, squared, _ = sure.arrays()
    tangent = squared_tangent(gram, np.full(64, 16.0), p, of_guess, squared).value
    np.testing.assert_allclose(sure.quantities()["directional_bias"].value, tangent / (1 + tangent), rtol=1e-12)
