"""What three roundings leave of a perturbation, against torch's own arithmetic in place."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from theory import finite_difference, rounding

FORMATS = {torch.float32: (24, 2.0**-149), torch.bfloat16: (8, 2.0**-133), torch.float16: (11, 2.0**-24)}


def weights_of(dtype: torch.dtype, n: int = 40_000) -> torch.Tensor:
    """As torch initialises a layer with 100 inputs."""
    uniform = torch.rand(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return ((2 * uniform - 1) * 0.1).to(dtype)


def drifts(weights: torch.Tensor, epsilon: float) -> torch.Tensor:
    z = torch.randn(weights.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(weights.dtype)
    moved = weights.clone()
    for factor in (1, -2, 1):
        moved.add_(z, alpha=factor * epsilon)
    return moved.double() - weights.double()


@pytest.mark.parametrize("dtype", list(FORMATS))
@pytest.mark.parametrize("epsilon", [1e-5, 1e-4, 1e-3, 1e-2, 3e-2, 0.3])
def test_the_drift_of_a_perturbation_in_place(dtype: torch.dtype, epsilon: float) -> None:
    """Within 5 %, and 4 standard errors of the mean over 40 000 weights. The mean drift is zero."""
    weights = weights_of(dtype)
    found = drifts(weights, epsilon)
    squares = found.square().numpy()
    predicted = rounding.squared_drift(weights.double().numpy(), epsilon, *FORMATS[dtype]).mean()
    error = squares.std() / len(squares) ** 0.5
    assert abs(squares.mean() - predicted) < 0.05 * predicted + 4 * error
    assert abs(float(found.mean())) < 4 * float(found.std()) / len(found) ** 0.5
    if 1e-3 <= epsilon <= 1e-2:  # Three independent roundings would leave half of it, which is seen.
        h = rounding.spacing(weights.double().numpy(), *FORMATS[dtype])
        assert abs(squares.mean() - (3 * h**2 / 12).mean()) > 20 * error


def test_the_share_that_does_not_move() -> None:
    weights = weights_of(torch.bfloat16)
    z = torch.randn(weights.shape, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    for epsilon in (1e-5, 1e-4, 1e-3):
        found = float((torch.add(weights, z, alpha=epsilon) == weights).double().mean())
        predicted = rounding.unmoved(weights.double().numpy(), epsilon, *FORMATS[torch.bfloat16]).mean()
        assert abs(found - predicted) < 4 * (predicted * (1 - predicted) / len(weights)) ** 0.5 + 2e-3


@pytest.mark.parametrize("dtype", list(FORMATS))
def test_spacing_is_that_of_the_format(dtype: torch.dtype) -> None:
    limits = torch.finfo(dtype)
    numbers = torch.tensor([1.0, 1.75, 0.1, -3.0, 1e-3, float(limits.smallest_normal), 0.0], dtype=dtype)
    away = torch.nextafter(numbers.abs(), torch.tensor(10.0, dtype=dtype)).double() - numbers.abs().double()
    np.testing.assert_array_equal(rounding.spacing(numbers.double().numpy(), *FORMATS[dtype]), away.numpy())


def test_laws_of_one_weight() -> None:
    assert rounding.other_spacing(1.0, 1.0) == 0.5
    assert rounding.other_spacing(2.0, 1.0) == rounding.other_spacing(1.0, 2.0) == 0.5
    assert rounding.other_spacing(1.0, 0.5) == 0.25  # |f| > 3/8.
    assert rounding.other_spacing(16.0, 16.0) == pytest.approx(2 * 16**2 / 12, rel=0.01)
    np.testing.assert_allclose(rounding.same_spacing(np.array([1e-3, 4.0, 1e6])), [0, 0.5, 0.5], atol=1e-15)
    ratios = np.array([0.1, 0.3, 1.0, 3.9])
    z = np.random.default_rng(0).normal(size=400_000)
    u = ratios[:, None] * z
    moved = np.abs(2 * np.rint(u) - np.rint(2 * u)).mean(1)
    np.testing.assert_allclose(rounding.same_spacing(ratios), moved, atol=4 * 0.5 / len(z) ** 0.5)


@pytest.mark.parametrize("central", [False, True])
def test_the_best_step_at_kinks_is_the_bottom_of_the_curve(central: bool) -> None:
    k, r = 3.0, 1e-7
    grid = np.geomspace(1e-7, 1e-1, 20_001)
    errors = np.hypot(np.sqrt(k * grid), finite_difference.slope_error(grid, 0.0, r, central=central))
    best = finite_difference.best_epsilon_at_kinks(k, r, central=central)
    assert abs(np.log(grid[errors.argmin()] / best)) < 1e-3
    assert errors.min() == pytest.approx(np.sqrt(1.5 * k * best), rel=1e-6)
