"""The rescaled upstream guess: exact cases of two modes and of equal ones, then Monte Carlo in plain NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.enumerated import Array
from theory.linear_guess import Layers, Moments, Slope
from theory.normalised_upstream import moments, unit_squares

N_GUESSES = 200_000


@given(ratio=st.floats(1e-12, 1.0), scale=st.floats(1e-6, 1e6))
def test_two_modes_share_as_their_standard_deviations(ratio: float, scale: float) -> None:
    """E λ₁z₁²/(λ₁z₁² + λ₂z₂²) = √λ₁/(√λ₁ + √λ₂): z₁/z₂ is the tangent of a uniform angle."""
    found = unit_squares(scale * np.array([1.0, ratio]))
    root = np.sqrt(np.array([1.0, ratio]))
    np.testing.assert_allclose(found, root / root.sum(), rtol=1e-9)


@pytest.mark.parametrize("n_modes", [1, 2, 5, 100, 1000])
def test_equal_modes_share_equally(n_modes: int) -> None:
    np.testing.assert_allclose(unit_squares(np.full(n_modes, 3.0)), 1 / n_modes, rtol=1e-10)


@given(values=st.lists(st.floats(1e-8, 1.0), min_size=1, max_size=6))
def test_the_shares_add_up_and_a_mode_of_zero_has_none(values: list[float]) -> None:
    found = unit_squares(np.array([*values, 0.0]))
    assert found.sum() == pytest.approx(1.0, rel=1e-9)
    assert found[-1] == 0.0


def problem() -> tuple[list[Array], list[Array], list[Array]]:
    """Gradients of three taps, weights and derivatives of two; one example's Jacobian is of rank 1, one is zero."""
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=(3, 4)), rng.normal(size=(2, 3))]
    derivatives = [np.abs(rng.normal(size=(3, 4))), np.abs(rng.normal(size=(3, 3)))]
    derivatives[0][1, 1:] = 0.0
    derivatives[1][2] = 0.0
    return [rng.normal(size=(3, n)) for n in (4, 3, 2)], weights, derivatives


def sampled(slope: Slope, layers: Layers) -> list[Array]:
    """Guesses (guess, example, unit) of every tap."""
    gradients, weights, derivatives = problem()
    rng = np.random.default_rng(1)
    directions = []
    for weight, derivative in zip(weights, derivatives, strict=True):
        y = (rng.normal(size=(N_GUESSES, 3, weight.shape[0])) @ weight) * derivative
        norm = np.linalg.norm(y, axis=2, keepdims=True)
        directions.append(np.sqrt(weight.shape[1]) * np.divide(y, norm, out=np.zeros_like(y), where=norm > 0))
    directions.append(rng.normal(size=(N_GUESSES, 3, 2)))
    slopes = [np.sum(y * g, axis=2) for y, g in zip(directions, gradients, strict=True)]
    if layers == "joint":
        slopes = [sum(slopes)] * 3
    if slope == "batch":
        slopes = [t.sum(1, keepdims=True) for t in slopes]
    return [t[:, :, None] * y for t, y in zip(slopes, directions, strict=True)]


def predicted(slope: Slope, layers: Layers) -> list[Moments]:
    return moments(*problem(), slope=slope, layers=layers)


def furthest(found: list[Moments], guesses: list[Array]) -> float:
    """The largest deviation of any moment in standard errors of the sample."""
    worst = 0.0
    for one, guess in zip(found, guesses, strict=True):
        products = np.einsum("pbu,pcu->pbc", guess, guess)
        for predicted_mean, values in [(one.mean, guess), (one.squares, guess**2), (one.products, products)]:
            error = np.abs(values.mean(0) - predicted_mean)
            deviation = values.std(0) / np.sqrt(len(values))
            # A single direction on its own makes a guess that does not vary: rounding is all its error.
            worst = max(worst, float(np.max((error - 1e-9) / np.maximum(deviation, 1e-300))))
    return worst


@pytest.mark.slow
@pytest.mark.parametrize("slope", ["example", "batch"])
@pytest.mark.parametrize("layers", ["joint", "separate"])
def test_moments_are_those_of_the_sample(slope: Slope, layers: Layers) -> None:
    """About 120 moments within 4.5 standard errors; the smallest error seen is about 1 % of a moment."""
    guesses = sampled(slope, layers)
    assert furthest(predicted(slope, layers), guesses) < 4.5
    # Negative controls: guesses 3 % too long, and the other slope.
    assert furthest(predicted(slope, layers), [1.03 * guess for guess in guesses]) > 6
    assert furthest(predicted("batch" if slope == "example" else "example", layers), guesses) > 6


def test_the_second_moment_is_the_units_times_the_variance_of_the_slope() -> None:
    """E‖ĝ_b‖² = unit · T_b, T_b = Σ_l g_lᵀ Q_l g_l, for every rescaled tap."""
    gradients, _, _ = problem()
    joint, separate = predicted("example", "joint"), predicted("example", "separate")
    own = [np.sum(g * one.mean, axis=1) for g, one in zip(gradients, joint, strict=True)]
    alive = np.ones((2, 3))
    alive[1, 2] = 0.0
    for layer, units in enumerate((4, 3)):
        np.testing.assert_allclose(np.diagonal(joint[layer].products), alive[layer] * units * sum(own), rtol=1e-9)
        np.testing.assert_allclose(np.diagonal(separate[layer].products), units * own[layer], rtol=1e-9)


def test_what_does_not_fit_is_refused() -> None:
    gradients, weights, derivatives = problem()
    with pytest.raises(ValueError, match="every tap but the last, got 1 and 2 for 3 taps"):
        moments(gradients, weights[:1], derivatives, slope="example", layers="joint")
