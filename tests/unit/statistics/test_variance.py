"""The interval of a variance covers where squared errors tell little of it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest

from fganalysis.statistics.squared_norm import squared_norm
from fganalysis.statistics.variance import about_scaled_gradient, less_squared_bias
from tests.statistics.coverage import HELD, covered
from tests.unit.statistics.drawn_guesses import ALONG, GUESSES, Sample, along_random_directions, simulated

Draw = Callable[[np.random.Generator, int], np.ndarray]  # Generator, repeats → (repeat, guess, number).

ROWS = np.random.default_rng(5).normal(size=(4, 6))  # Gradients of four examples.


def projected(rng: np.random.Generator, repeats: int) -> np.ndarray:
    """The gradient's projection on three random directions of 20."""
    tangents = np.linalg.qr(rng.normal(size=(repeats, GUESSES, len(ALONG), 3)))[0]
    return (tangents * tangents[..., :1, :]).sum(-1)


def one_of(points: np.ndarray) -> Draw:
    return lambda rng, repeats: points[rng.integers(len(points), size=(repeats, GUESSES))]


TWO_OF_FOUR = np.array([ROWS[list(pair)].mean(0) for pair in combinations(range(4), 2)])
# name → gradient, draws, variance. In two units signs leave one number of noise: ĝ = (g₁ + ηg₂, g₂ + ηg₁), η = ±1.
HARD: dict[str, tuple[np.ndarray, Draw, float]] = {
    "a step short against the gradient": (ALONG, lambda *a: 0.005 * along_random_directions(*a), 0.005**2 * 21),
    "a projection on three tangents": (ALONG, projected, 3 / 20 - (3 / 20) ** 2),
    "one row of two": (ROWS[:2].mean(0), one_of(ROWS[:2]), float(((ROWS[0] - ROWS[1]) ** 2).sum() / 4)),
    "two rows of four": (ROWS.mean(0), one_of(TWO_OF_FOUR), float(((TWO_OF_FOUR - ROWS.mean(0)) ** 2).sum(1).mean())),
    "signs in two units": (np.array([1.0, 0.3]), one_of(np.array([[1.3, 1.3], [0.7, -0.7]])), 0.3**2 + 1),
    "one row of two, short": (ROWS[:2].mean(0), one_of(0.01 * ROWS[:2]), 1e-4 * ((ROWS[0] - ROWS[1]) ** 2).sum() / 4),
}


@pytest.mark.parametrize("name", HARD)
def test_the_interval_of_a_variance_covers_where_squared_errors_tell_little_of_it(name: str) -> None:
    """Mostly of the bias, or hardly anything as they do not vary. 1000 repeats know a coverage to .007."""
    gradient, draw, variance = HARD[name]
    found = Sample(draw(np.random.default_rng(0), 1000), gradient, 16).quantities()
    estimate = found["variance"]
    assert estimate.value.mean() == pytest.approx(variance, rel=4 * estimate.value.std() / variance / 1000**0.5 + 1e-12)
    share, said = covered(estimate, variance), np.mean(estimate.wide)
    assert share > HELD[0] - 2 * 0.007
    assert share < HELD[1] + 2 * 0.007 or said > 0.5


def test_what_the_errors_of_a_variance_are_about_does_not_change_it() -> None:
    """Nor its interval, where the guess is no shorter than the gradient by more than noise."""
    sample, _ = simulated(np.random.default_rng(4), 512, 32, repeats=50)
    p, q, gram, of_guess, squared, _ = sample.arrays()
    found = []
    for scale in (1.0, 0.8, 0.3):
        errors, moved = about_scaled_gradient(np.full(50, scale), p, q, gram, of_guess, squared)
        law = squared_norm(moved, np.full(32, 16.0))
        found.append(less_squared_bias(errors, law, moved, of_guess))
    for other in found[1:]:
        np.testing.assert_allclose(other.value, found[0].value, rtol=1e-9)
        np.testing.assert_allclose(other.low, found[0].low, rtol=0.02)
