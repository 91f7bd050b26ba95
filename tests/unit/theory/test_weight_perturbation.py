"""Second moments of weight perturbation against enumeration and against its own special cases."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.enumerated import Array, Law, axes, enumerate_moments, signs, three_points
from theory.linear_guess import Layers
from theory.weight_perturbation import second_moments, second_moments_per_example

LAWS = [signs, three_points, axes]
BOTH: tuple[Layers, ...] = ("joint", "separate")


def enumerated(weights: list[Array], laws: list[Law], layers: Layers) -> list[float]:
    """A weight gradient is one example whose units are its entries, and A is the identity."""
    rows = [gradient.reshape(1, -1) for gradient in weights]
    found = enumerate_moments(rows, [np.eye(row.size)[None] for row in rows], laws, True, "batch", layers)
    for one, row in zip(found, rows, strict=True):
        np.testing.assert_allclose(one.mean, row, rtol=1e-12)
    return [one.second_moment(np.ones((1, 1))) for one in found]


def predicted(weights: list[Array], laws: list[Law], layers: Layers) -> Array:
    squares = [float(np.sum(gradient**2)) for gradient in weights]
    sizes = [gradient.size for gradient in weights]
    return second_moments(squares, sizes, [law.fourth for law in laws], [law.pair for law in laws], layers=layers)


@pytest.mark.parametrize("layers", BOTH)
@pytest.mark.parametrize("first", LAWS)
@pytest.mark.parametrize("second", LAWS)
def test_second_moments_are_those_of_the_enumeration(first: Any, second: Any, layers: Layers) -> None:
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=(2, 2)), rng.normal(size=(1, 2))]
    laws = [first(4), second(2)]
    exact = enumerated(weights, laws, layers)
    np.testing.assert_allclose(predicted(weights, laws, layers), exact, rtol=1e-11)


@pytest.mark.parametrize("layers", BOTH)
def test_a_wrong_law_and_one_weight_too_many_are_caught(layers: Layers) -> None:
    rng = np.random.default_rng(0)
    weights, laws = [rng.normal(size=(2, 2)), rng.normal(size=(1, 2))], [signs(4), three_points(2)]
    exact = enumerated(weights, laws, layers)
    wrong = [Law(law.points, law.weights, law.fourth + 1.0, law.pair) for law in laws]
    assert np.all(np.abs(predicted(weights, wrong, layers) / exact - 1) > 0.01)
    wider = [np.append(weight, 0.0) for weight in weights]
    assert np.all(np.abs(predicted(wider, laws, layers) / exact - 1) > 0.01)
    other: Layers = "separate" if layers == "joint" else "joint"
    assert np.all(np.abs(predicted(weights, laws, other) / exact - 1) > 0.01)


@given(kappa=st.floats(1.0, 5.0), sizes=st.lists(st.integers(1, 50), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_the_printed_variance(kappa: float, sizes: list[int], seed: int) -> None:
    """docs/mathematics.md#weight-perturbation: P_l‖G‖² + (κ−2)‖G_l‖², and (P + κ − 2)‖G‖² over all."""
    squares = np.random.default_rng(seed).uniform(size=len(sizes))
    variance = second_moments(squares, sizes, [kappa] * len(sizes), [1.0] * len(sizes), layers="joint") - squares
    np.testing.assert_allclose(variance, np.array(sizes) * squares.sum() + (kappa - 2) * squares, rtol=1e-9, atol=1e-9)
    assert variance.sum() == pytest.approx((sum(sizes) + kappa - 2) * squares.sum(), rel=1e-9, abs=1e-9)


def test_the_sphere_needs_no_fourth_moment() -> None:
    """‖V‖² is n on the sphere, so separate passes have E‖t V‖² = n E t² = n‖G‖²."""
    n = 7
    found = second_moments([2.0], [n], [3 * n / (n + 2)], [n / (n + 2)], layers="separate")
    assert found[0] == pytest.approx(n * 2.0, rel=1e-12)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"one entry a layer, got the shapes \(1,\), \(2,\), \(1,\) and \(1,\)"):
        second_moments([1.0], [2, 3], [3.0], [1.0], layers="joint")
    unknown: Any = "both"
    with pytest.raises(ValueError, match="layers must be 'joint' or 'separate', got 'both'"):
        second_moments([1.0], [2], [3.0], [1.0], layers=unknown)


@pytest.mark.parametrize("layers", BOTH)
def test_a_direction_for_every_example(layers: Layers) -> None:
    """Examples are guesses of their own weight gradients, which add up: independent noise and the kernel of ones."""
    rng = np.random.default_rng(3)
    rows = [rng.normal(size=(2, 2)), rng.normal(size=(2, 2))]
    laws = [signs(2), axes(2)]
    found = enumerate_moments(rows, [np.broadcast_to(np.eye(2), (2, 2, 2))] * 2, laws, False, "example", layers)
    second = second_moments_per_example(
        np.stack([np.sum(row**2, axis=1) for row in rows]),
        [float(np.sum(row.sum(0) ** 2)) for row in rows],
        [2, 2],
        [law.fourth for law in laws],
        [law.pair for law in laws],
        layers=layers,
    )
    exact = [one.second_moment(np.ones((2, 2))) for one in found]
    np.testing.assert_allclose(second, exact, rtol=1e-12)
    together = predicted([row.sum(0) for row in rows], laws, layers)
    assert np.all(np.abs(together / exact - 1) > 0.01)
