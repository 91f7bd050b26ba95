"""The Newton–Schulz polynomials: refitted, as steps, and applied to matrices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from fganalysis.capturing.upstream import UpstreamJacobian
from fganalysis.estimators import NewtonSchulzUpstream
from fganalysis.estimators.upstream import newton_schulz, newton_schulz_polynomials
from fganalysis.estimators.upstream.newton_schulz_polynomials import (
    COEFFICIENTS,
    COMPOSITIONS,
    THRESHOLDS,
    apply,
    fit,
    nearest,
)

TABLE = list(zip(THRESHOLDS, COEFFICIENTS, strict=True))


def composed(coefficients: tuple[float, ...], values: Tensor) -> Tensor:
    """p⁵ on numbers, by Horner's rule, in the precision of `values`."""
    a, b, c, d = coefficients
    for _ in range(5):
        squares = values**2
        values = values * (a + squares * (b + squares * (c + squares * d)))
    return values


@pytest.mark.parametrize(("threshold", "coefficients"), TABLE)
def test_refitting_gives_the_coefficients_in_the_file(threshold: float, coefficients: tuple[float, ...]) -> None:
    np.testing.assert_allclose(fit(threshold), coefficients, atol=2e-5)
    # Negative control: the comparison would see a neighbour's coefficients, or a threshold that is off by a thousandth.
    assert np.abs(fit(threshold + 0.001) - coefficients).max() > 1e-3


@pytest.mark.parametrize("threshold", [0.0, 1.0, -0.1])
def test_threshold_out_of_range_is_refused(threshold: float) -> None:
    with pytest.raises(ValueError, match=f"threshold must lie between 0 and 1, got {threshold}"):
        fit(threshold)


@pytest.mark.parametrize(("threshold", "coefficients"), TABLE)
def test_polynomials_are_steps(threshold: float, coefficients: tuple[float, ...]) -> None:
    values = torch.linspace(0, 1, 10001, dtype=torch.float64)
    results = composed(coefficients, values)
    error = (results - (values > threshold).double()) ** 2
    assert error.mean() < 0.0115
    assert error[(values - threshold).abs() > 0.05].mean() < 0.0025
    # What the module's first paragraph says of its results.
    above, below = results[values >= threshold + 0.05], results[values <= threshold - 0.05]
    assert above.min() > 0.94
    assert above.max() < 1.13
    assert below.abs().max() < 0.2
    assert results.min() > -0.1


@pytest.mark.parametrize(("threshold", "coefficients"), TABLE)
def test_a_spectral_norm_that_is_slightly_too_small_does_no_harm(
    threshold: float, coefficients: tuple[float, ...]
) -> None:
    values = torch.linspace(0, 1.001, 10001, dtype=torch.float64)
    results = composed(coefficients, values)
    assert results.abs().max() < 1.13
    rounded = composed(coefficients, values.float())
    assert (rounded - results).abs().max() < 1e-4


def test_nearest_threshold_is_taken() -> None:
    relative = torch.tensor([0.0, 0.1, 0.14, 0.16, 0.52, 0.87, 1.0], dtype=torch.float64)
    expected = torch.tensor([COEFFICIENTS[index] for index in (0, 0, 0, 1, 4, 8, 8)], dtype=torch.float64)
    assert torch.equal(nearest(relative), expected)
    assert nearest(relative.float()).dtype == torch.float32


def spectra(n_examples: int, n_values: int) -> Tensor:
    """Singular values that fall from 1, with some that are zero."""
    values = torch.rand(n_examples, n_values, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values[:, 0] = 1
    values[:, -2:] = 0
    return values


@pytest.mark.parametrize(("rows", "columns"), [(12, 12), (8, 20), (20, 8)])
def test_matrices_get_the_polynomial_of_their_singular_values(rows: int, columns: int) -> None:
    generator = torch.Generator().manual_seed(1)
    n_examples, n_values = len(THRESHOLDS), min(rows, columns)
    left = torch.linalg.qr(torch.randn(n_examples, rows, n_values, generator=generator, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(n_examples, columns, n_values, generator=generator, dtype=torch.float64)).Q
    values = spectra(n_examples, n_values)
    coefficients = torch.tensor(COEFFICIENTS, dtype=torch.float64)
    expected = torch.stack([composed(row, value) for row, value in zip(COEFFICIENTS, values, strict=True)])
    matrices = (left * values[:, None, :]) @ right.mT
    result = apply(coefficients, matrices)
    torch.testing.assert_close(result, (left * expected[:, None, :]) @ right.mT, atol=1e-12, rtol=0.0)
    torch.testing.assert_close(apply(coefficients.float(), matrices.float()).double(), result, atol=1e-4, rtol=0.0)
    # Negative control: each example has its own coefficients.
    assert (apply(coefficients.flip(0), matrices) - result).abs().max() > 0.1


def test_zero_matrices_stay_zero() -> None:
    zeros = torch.zeros(2, 3, 4)
    assert torch.equal(apply(nearest(torch.tensor([0.1, 0.9])), zeros), zeros)


def test_five_compositions_are_five(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control for the tests above: one composition fewer is another function."""
    assert COMPOSITIONS == 5
    coefficients, matrices = nearest(torch.tensor([0.5])), 0.45 * torch.eye(2)[None]
    five = apply(coefficients, matrices)
    monkeypatch.setattr(newton_schulz_polynomials, "COMPOSITIONS", 4)
    assert (apply(coefficients, matrices) - five).abs().max() > 1e-3


@pytest.mark.parametrize(("next_units", "units"), [(12, 12), (3, 12), (12, 5)])
def test_the_guess_multiplies_live_units_alone_and_loses_nothing(
    next_units: int, units: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Examples with no, few and all units live, in other orders and sizes of chunks, beside p⁵ of the whole J."""
    monkeypatch.setattr(newton_schulz, "EXAMPLES_AT_ONCE", 4)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(next_units, units, generator=generator, dtype=torch.float64)
    derivative = torch.randn(9, units, generator=generator, dtype=torch.float64).relu()
    derivative[3], derivative[5] = 0, 1
    jacobian = UpstreamJacobian(weight, derivative)
    values = torch.linalg.svdvals(jacobian.dense())[:, :3]
    step = NewtonSchulzUpstream(k=3)._step(jacobian, values)
    norms = torch.where(values[:, :1] > 0, values[:, :1], 1.0)
    wanted = apply(nearest((values[:, -1:] / norms)[:, 0]), jacobian.dense() / norms[:, :, None])
    torch.testing.assert_close(step, wanted, rtol=1e-9, atol=1e-12)
    assert not step[3].any() and bool(step[5].any())
