"""Several tangents: the projection on them and the mean of their guesses, against exact laws and plain sampling."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special

from theory import multi_tangent, projection
from theory.cosine import isotropic

GRADIENT = np.array([1.0, -2.0, 0.5, 1.0, 0.0, 3.0])
SIZES = [4, 2]
SQUARES = [float(np.sum(GRADIENT[:4] ** 2)), float(np.sum(GRADIENT[4:] ** 2))]


def tangents(k: int, n_guesses: int = 100_000) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(n_guesses, k, len(GRADIENT)))


def within(values: np.ndarray, expected: float) -> bool:
    return bool(abs(values.mean() - expected) < 4.5 * values.std() / np.sqrt(len(values)) + 1e-12)


def cosines(guesses: np.ndarray) -> np.ndarray:
    return guesses @ GRADIENT / np.linalg.norm(guesses, axis=1) / np.linalg.norm(GRADIENT)


@pytest.mark.parametrize("k", [1, 2, 4, 6])
def test_projection_against_sampling(k: int) -> None:
    """Within 4.5 standard errors of 100 000 guesses; one tangent too many is seen."""
    v = tangents(k)
    coefficients = np.linalg.solve(v @ v.transpose(0, 2, 1), v @ GRADIENT[:, None])
    guesses = np.einsum("pkn,pk->pn", v, coefficients[:, :, 0])
    cosine, n = cosines(guesses), len(GRADIENT)
    assert within(cosine, float(projection.mean_cosine(k, n)))
    assert within(cosine**2, float(projection.mean_square_cosine(k, n)))
    errors = np.sum((guesses - GRADIENT) ** 2, axis=1) / np.sum(GRADIENT**2)
    assert within(errors, float(projection.mean_square_error(k, n)))
    scaled = np.sum((n / k * guesses - GRADIENT) ** 2, axis=1) / np.sum(GRADIENT**2)
    assert within(scaled, float(projection.mean_square_error(k, n, unbiased=True)))
    second = projection.second_moments(SQUARES, SIZES, k, layers="joint")
    for layer, part in enumerate((guesses[:, :4], guesses[:, 4:])):
        assert within(np.sum(part**2, axis=1), second[layer])
    assert second.sum() == pytest.approx(k / n * sum(SQUARES), rel=1e-12)
    for level in (0.05, 0.5, 0.9):
        quantile = float(projection.cosine_quantile(level, k, n))
        assert abs(np.mean(cosine <= quantile + 1e-9) - level) < 0.01 or k == n
    if k < n:
        assert not within(cosine, float(projection.mean_cosine(k + 1, n)))
        assert not within(np.sum(guesses[:, :4] ** 2, axis=1), k / n * SQUARES[0])


@pytest.mark.parametrize("k", [1, 2, 5, 20])
def test_the_mean_of_gaussian_tangents_against_sampling(k: int) -> None:
    v = tangents(k, 60_000)
    guesses = np.einsum("pkn,pk->pn", v, v @ GRADIENT) / k
    cosine, n = cosines(guesses), len(GRADIENT)
    assert within(cosine, float(multi_tangent.mean_cosine(k, n)))
    assert within(cosine**2, float(multi_tangent.mean_square_cosine(k, n)))
    assert not within(cosine, float(multi_tangent.mean_cosine(k, n + 1)))
    ratios = np.linalg.norm(guesses, axis=1) / np.linalg.norm(GRADIENT)
    assert within(ratios, float(multi_tangent.mean_norm_ratio(k, n)))
    assert not within(ratios, float(multi_tangent.mean_norm_ratio(k, n + 1)))
    errors = np.sum((guesses - GRADIENT) ** 2, axis=1) / np.sum(GRADIENT**2)
    assert within(errors, float(multi_tangent.mean_square_error(k, n)))
    second = multi_tangent.second_moments(SQUARES, SIZES, k, [3.0] * 2, [1.0] * 2, layers="joint")
    for layer, part in enumerate((guesses[:, :4], guesses[:, 4:])):
        assert within(np.sum(part**2, axis=1), second[layer])
    assert second.sum() / sum(SQUARES) == pytest.approx(1 + float(multi_tangent.mean_square_error(k, n)), rel=1e-12)


def test_one_tangent_is_the_forward_gradient() -> None:
    n = np.array([1, 2, 7, 1000])
    np.testing.assert_allclose(projection.mean_cosine(1, n), isotropic(n), rtol=1e-12)
    np.testing.assert_allclose(multi_tangent.mean_cosine(1, n), isotropic(n), rtol=1e-12)
    np.testing.assert_allclose(multi_tangent.mean_square_error(1, n), n + 1.0)
    np.testing.assert_allclose(multi_tangent.mean_square_error(1, n, fourth=1.0), n - 1.0)


def test_the_sphere_counts_every_tangent_the_same() -> None:
    """On the sphere ‖v‖² = n, so one guess has E‖Ĝ‖² = n‖G‖²."""
    n = 9
    found = multi_tangent.mean_square_error(1, n, fourth=3 * n / (n + 2), pair=n / (n + 2))
    assert float(found) == pytest.approx(n - 1, rel=1e-12)


def test_all_tangents_give_the_gradient() -> None:
    assert float(projection.mean_cosine(5, 5)) == pytest.approx(1.0, rel=1e-14)
    assert float(projection.mean_square_error(5, 5)) == 0.0
    assert float(projection.cosine_quantile(0.05, 5, 5)) == 1.0
    np.testing.assert_allclose(projection.second_moments(SQUARES, SIZES, 6, layers="joint"), SQUARES, rtol=1e-12)
    np.testing.assert_allclose(projection.second_moments([4.0], [1], 1, layers="joint"), [4.0])


def test_the_cosine_of_a_projection_is_a_ratio_of_chi() -> None:
    """E χ_k = √2 Γ((k+1)/2)/Γ(k/2)."""
    k, n = 7, 30
    chi = [np.sqrt(2) * special.gamma((m + 1) / 2) / special.gamma(m / 2) for m in (k, n)]
    assert float(projection.mean_cosine(k, n)) == pytest.approx(chi[0] / chi[1], rel=1e-13)


def test_separate_projections_and_the_efficiency() -> None:
    found = projection.second_moments(SQUARES, SIZES, 2, layers="separate")
    np.testing.assert_allclose(found, [SQUARES[0] / 2, SQUARES[1]])
    assert float(multi_tangent.efficiency(11, 10)) == pytest.approx(0.5)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="k must be from 1 to n, got 7"):
        projection.mean_cosine(7, 6)
    with pytest.raises(ValueError, match="k must be from 1 to n, got 3"):
        projection.second_moments(SQUARES, SIZES, 3, layers="separate")
    with pytest.raises(ValueError, match="k and n must be at least 1, got 0"):
        multi_tangent.mean_square_error(0, 6)
