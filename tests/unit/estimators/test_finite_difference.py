"""Finite differences: exact moments on quadratic losses and the order of the error in ε."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import FiniteDifference
from fganalysis.testing import Enumeration, exact_moments, signs, three_points
from tests import laws
from tests.regression import regression_snapshot
from tests.unit.estimators.losses_of_weights import hessian_of, third_of
from theory import finite_difference

SIXTH = {signs: 1.0, three_points: 9.0}


def skewed() -> Enumeration:
    """√2 with probability 1/3, −1/√2 with 2/3: mean 0, variance 1, third moment 1/√2."""
    return Enumeration((math.sqrt(2.0), -math.sqrt(0.5)), (1 / 3, 2 / 3), fourth_moment=1.5)


def gradient_of(snapshot: Snapshot) -> np.ndarray:
    return laws.exact_gradient(snapshot)[1].numpy()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("central", [False, True])
@pytest.mark.parametrize("law", [signs, three_points])
def test_moments_on_a_quadratic_loss_are_exact(law: Callable[[], Enumeration], central: bool, bias: bool) -> None:
    snapshot = regression_snapshot((2, 2), n_examples=3, bias=bias)
    exact = exact_moments(FiniteDifference(0.3, central, law()), snapshot, law)
    squares = (exact.weight_covariance.diagonal() + exact.weight_mean**2).numpy()
    fourth = law().fourth_moment

    def predicted(sixth: float, epsilon: float) -> tuple[np.ndarray, np.ndarray]:
        gradient, hessian = gradient_of(snapshot), hessian_of(snapshot)
        return finite_difference.quadratic(gradient, hessian, epsilon, fourth, sixth, central=central)

    mean, second = predicted(SIXTH[law], 0.3)
    np.testing.assert_allclose(exact.weight_mean.numpy(), mean, rtol=0, atol=1e-10)
    np.testing.assert_allclose(squares, second, rtol=1e-10)
    if not central:
        for wrong in (predicted(SIXTH[law] + 0.1, 0.3)[1], predicted(SIXTH[law], 0.301)[1]):
            assert np.abs(squares / wrong - 1).max() > 1e-6


def bias_at(snapshot: Snapshot, epsilon: float, central: bool, law: Callable[[], Enumeration]) -> np.ndarray:
    exact = exact_moments(FiniteDifference(epsilon, central, law()), snapshot, law)
    return exact.weight_mean.numpy() - gradient_of(snapshot)


def order(error: Callable[[float], float], epsilons: tuple[float, float] = (4e-3, 1e-3)) -> float:
    """The slope of log error against log ε."""
    large, small = epsilons
    return math.log(error(large) / error(small)) / math.log(large / small)


@pytest.mark.parametrize(("central", "expected"), [(False, 1), (True, 2)])
def test_order_of_the_bias_under_a_skewed_law(central: bool, expected: int) -> None:
    snapshot = regression_snapshot((1, 2, 1), bias=True)
    found = order(lambda epsilon: float(np.linalg.norm(bias_at(snapshot, epsilon, central, skewed))))
    assert abs(found - expected) < 0.02


@pytest.mark.parametrize("law", [signs, three_points])
def test_under_a_symmetric_law_both_differences_have_one_mean_with_a_bias_of_second_order(
    law: Callable[[], Enumeration],
) -> None:
    snapshot = regression_snapshot((1, 2, 1))
    one_sided, central = (bias_at(snapshot, 0.1, central, law) for central in (False, True))
    np.testing.assert_allclose(one_sided, central, rtol=0, atol=1e-13)
    assert abs(order(lambda epsilon: float(np.linalg.norm(bias_at(snapshot, epsilon, False, law)))) - 2) < 0.02
    assert abs(order(lambda epsilon: float(np.linalg.norm(bias_at(snapshot, epsilon, True, law)))) - 2) < 0.02
    leading = finite_difference.leading_bias(third_of(snapshot), 1e-2, law().fourth_moment)
    np.testing.assert_allclose(bias_at(snapshot, 1e-2, True, law), leading, rtol=0, atol=1e-3 * np.abs(leading).max())
    wrong = finite_difference.leading_bias(third_of(snapshot), 1e-2, law().fourth_moment + 0.1)
    assert np.abs(bias_at(snapshot, 1e-2, True, law) - wrong).max() > 1e-3 * np.abs(leading).max()


@pytest.mark.parametrize(("central", "expected"), [(False, 1), (True, 2)])
def test_order_of_the_error_against_the_forward_gradient_guess(central: bool, expected: int) -> None:
    """√E‖Ĝ − (z·G) z‖² over every z: first order one-sided, second order central, for a symmetric law too."""
    snapshot = regression_snapshot((1, 2, 1))
    gradient = torch.from_numpy(gradient_of(snapshot))

    def error(epsilon: float) -> float:
        law = three_points()
        found = FiniteDifference(epsilon, central, law)(snapshot, 3**4, torch.Generator())
        z = torch.cat([direction.flatten(1) for direction in found.directions], dim=1)
        limit = (z @ gradient)[:, None] * z
        squares = (found.dense(snapshot)[1] - limit).square().sum(1)
        return float(law.weights(3**4, 4) @ squares) ** 0.5

    assert abs(order(error) - expected) < 0.02


def test_the_bias_of_a_cubic_loss_is_its_leading_term() -> None:
    def cubed(outputs: Tensor, targets: Tensor) -> Tensor:
        return ((outputs - targets) ** 3).mean()

    snapshot = regression_snapshot((2, 2), n_examples=3, loss_fn=cubed)
    third, hessian = third_of(snapshot), hessian_of(snapshot)
    for law in (signs, three_points):
        leading = finite_difference.leading_bias(third, 0.5, law().fourth_moment)
        np.testing.assert_allclose(bias_at(snapshot, 0.5, False, law), leading, rtol=1e-10, atol=1e-12)
    # The skewed law's first-order term, with the third-order one taken off by a second ε.
    halves = 4 * bias_at(snapshot, 0.25, False, skewed) - bias_at(snapshot, 0.5, False, skewed)
    np.testing.assert_allclose(
        halves, finite_difference.skewed_bias(hessian, 0.5, 1 / math.sqrt(2)), rtol=1e-10, atol=1e-12
    )
