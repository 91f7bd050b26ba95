"""The seed paper's metrics against their definitions over all guesses, and against the number that it prints."""

from __future__ import annotations

import numpy as np
import pytest

from tests.enumerated import Array, guesses, signs
from theory import wang2025
from theory.factors import Dense, Diagonal, Factor, LowRank, Masked
from theory.linear_guess import Layers, Slope, moments
from theory.upstream import orthogonal


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("slope", ["example", "batch"])
@pytest.mark.parametrize("layers", ["joint", "separate"])
def test_bias_and_variance_are_their_definitions(shared: bool, slope: Slope, layers: Layers) -> None:
    rng = np.random.default_rng(0)
    matrices = [rng.normal(size=(2, 3, 2)), rng.normal(size=(2, 2, 2))]
    gradients = [rng.normal(size=(2, 3)), rng.normal(size=(2, 2))]
    found = moments(
        gradients, [Dense(m) for m in matrices], [1.0] * 2, [1.0] * 2, shared=shared, slope=slope, layers=layers
    )
    sampled, weights = guesses(gradients, matrices, [signs(2)] * 2, shared, slope, layers)
    for gradient, one, guess in zip(gradients, found, sampled, strict=True):
        mean_error = np.einsum("p,pbu->bu", weights, guess - gradient).mean(0)
        spread = np.einsum("p,pbu->bu", weights, (gradient - guess) ** 2).mean(0) - mean_error**2
        assert wang2025.bias(gradient, one) == pytest.approx(np.linalg.norm(mean_error), rel=1e-10)
        assert wang2025.variance(gradient, one) == pytest.approx(np.linalg.norm(spread), rel=1e-10)


def test_the_printed_covariance_norm() -> None:
    """√(d − k)/d = 0.08487 at d = 128, k = 10; the paper prints .085."""
    rng = np.random.default_rng(1)
    factor = orthogonal(rng.normal(size=(128, 128)), np.ones((2, 128)), 10)
    assert wang2025.covariance_norm(factor) == pytest.approx(np.sqrt(118) / 128, rel=1e-10)
    assert round(wang2025.covariance_norm(factor), 3) == 0.085


def test_covariance_norm_of_every_form() -> None:
    rng = np.random.default_rng(2)
    scale, matrix, dense = rng.normal(size=(3, 4)), rng.normal(size=(5, 4)), rng.normal(size=(3, 4, 6))
    left, right = rng.normal(size=(3, 4, 2)), rng.normal(size=(3, 5, 2))
    cases: list[tuple[Factor, Array]] = [
        (Diagonal(scale), scale[:, :, None] * np.eye(4)),
        (Masked(scale, matrix), scale[:, :, None] * matrix.T),
        (Dense(dense), dense),
        (Dense(dense[:, :, :2]), dense[:, :, :2]),
        (LowRank(left, right), left @ right.transpose(0, 2, 1)),
    ]
    for factor, written in cases:
        difference = written @ written.transpose(0, 2, 1) - np.eye(4)
        expected = np.mean(np.linalg.norm(difference, axis=(1, 2))) / 4
        assert wang2025.covariance_norm(factor) == pytest.approx(expected, rel=1e-10)


def test_overlap_is_a_mean_over_examples_that_have_a_gradient() -> None:
    gradient = np.array([[3.0, 4.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 2.0]])
    directions = np.zeros((3, 3, 2))
    directions[:, 0, 0] = directions[:, 2, 1] = 1.0
    assert wang2025.overlap(gradient, directions) == pytest.approx(((0.6 + 1.0) / 2, (0.36 + 1.0) / 2))
    assert np.all(np.isnan(wang2025.overlap(np.zeros((3, 3)), directions)))
