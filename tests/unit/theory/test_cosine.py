"""Mean cosines of one guess: exact cases, independent integrals, limits and one Monte Carlo."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, special

from tests.enumerated import Array
from theory import cosine
from theory.factors import Dense, Diagonal, Factor, LowRank, Masked
from theory.normalised_upstream import unit_squares
from theory.spectrum import spectrum

POSITIVE = st.floats(1e-6, 1e6)


def by_panels(function: Callable[[float], float]) -> float:
    """∫₀^∞ by 20 Gauss–Legendre points in each of 100 panels: another rule, in s and not in log s."""
    nodes, weights = np.polynomial.legendre.leggauss(20)
    edges = [0.0, *np.logspace(-7, 18, 101)]
    total = 0.0
    for low, high in itertools.pairwise(edges):
        half = (high - low) / 2
        total += half * sum(w * function(low + half * (1 + x)) for x, w in zip(nodes, weights, strict=True))
    return total


def test_isotropic_in_few_and_in_many_dimensions() -> None:
    np.testing.assert_allclose(cosine.isotropic([1, 2, 3]), [1.0, 2 / np.pi, 0.5], rtol=1e-14)
    # Γ(x+1) = xΓ(x) gives E|cos| in n + 2 dimensions from that in n, across the change to the series at n = 100.
    n = np.array([1.0, 5.0, 17.0, 97.0, 98.0, 99.0, 100.0, 101.0, 1e4, 1e7])
    np.testing.assert_allclose(cosine.isotropic(n + 2) / cosine.isotropic(n), n / (n + 1), rtol=2e-13)
    assert float(cosine.isotropic(1e6)) == pytest.approx(np.sqrt(2 / (np.pi * 1e6)), rel=1e-6)
    # Control: one dimension too many is seen at once.
    assert abs(float(cosine.isotropic(101) / cosine.isotropic(100)) - 1) > 4e-3


@pytest.mark.parametrize("n", [1, 2, 3, 10, 1000, 10**6])
def test_equal_eigenvalues_are_the_isotropic_case(n: int) -> None:
    one = np.ones((1, 1))
    assert cosine.gaussian(one, one, 1.0, counts=n * one)[0] == pytest.approx(float(cosine.isotropic(n)), rel=1e-10)
    assert cosine.gaussian_square(one, one, 1.0, counts=n * one)[0] == pytest.approx(1 / n, rel=1e-10)


def test_a_range_with_overlap() -> None:
    """k equal eigenvalues that hold a part o² of the gradient."""
    values, parts = np.full((1, 3), 2.0), np.array([[0.5, 0.1, 0.12]])
    overlap = np.sqrt(parts.sum() / 2.0)
    assert cosine.gaussian(values, parts, 2.0)[0] == pytest.approx(float(cosine.in_range(3, overlap)), rel=1e-10)
    found = cosine.gaussian_square(values, parts, 2.0)[0]
    assert found == pytest.approx(float(cosine.in_range_square(3, overlap)), rel=1e-10)


@pytest.mark.parametrize("ratio", [1.0, 0.3, 1e-3, 1e-8])
def test_two_modes_are_an_integral_over_the_angle(ratio: float) -> None:
    """|cos| of y = (√λ₁ cos φ, √λ₂ sin φ) r does not depend on r."""
    values, parts = np.array([1.0, ratio]), np.array([0.3, 0.7])

    def absolute(angle: float) -> float:
        y = np.sqrt(values) * np.array([np.cos(angle), np.sin(angle)])
        # Components have signs that the mean over quadrants removes; both signs of the product are averaged.
        return float(np.mean([abs(y @ (np.sqrt(parts) * s)) for s in ([1, 1], [1, -1])]) / np.linalg.norm(y))

    near = np.arctan(np.sqrt(ratio))
    points = sorted({np.arctan(x) for x in np.logspace(-1, 1, 9) / max(np.sqrt(ratio), 1e-4)} | {near})
    zero = np.arctan2(np.sqrt(parts[0]), np.sqrt(ratio * parts[1]))
    edges = [0.0, *sorted({*points, zero}), np.pi / 2]
    total = sum(integrate.quad(absolute, *edge, epsabs=0, epsrel=1e-11)[0] for edge in itertools.pairwise(edges))
    assert cosine.gaussian(values[None], parts[None], 1.0)[0] == pytest.approx(total / (np.pi / 2), rel=1e-8)


@given(values=st.lists(st.floats(1e-4, 1.0), min_size=1, max_size=6))
def test_the_squared_cosine_shares_out_as_the_unit_direction_does(values: list[float]) -> None:
    eigenvalues = np.array(values)
    parts = np.arange(1.0, len(values) + 1)
    found = cosine.gaussian_square(eigenvalues[None], parts[None], parts.sum())[0]
    assert found == pytest.approx(unit_squares(eigenvalues) @ parts / parts.sum(), rel=1e-8)


@pytest.mark.parametrize("others", [0.0, 1e-9, 0.3, 50.0])
@pytest.mark.parametrize("n_modes", [1, 2, 5, 40])
def test_the_printed_integrals_by_another_rule(n_modes: int, others: float) -> None:
    """docs/mathematics.md#cosine-of-one-direction and its dilution by erf, written out, to 1e-8."""
    rng = np.random.default_rng(n_modes)
    values, parts = np.exp(3 * rng.normal(size=n_modes)), rng.uniform(size=n_modes)

    def pieces(s: float) -> tuple[float, float]:
        grown = 1 + 2 * s**2 * values
        return float(np.exp(-0.5 * np.sum(np.log(grown)))), float(np.sum(parts * values / grown))

    def integrand(s: float) -> float:
        decay, v = pieces(s)
        if others == 0:
            return decay * np.sqrt(2 * v / np.pi)
        alpha = 1 / np.sqrt(2 * others)
        return decay * 2 * alpha * v / np.sqrt(np.pi) / np.sqrt(1 + 2 * alpha**2 * v)

    expected = 2 / np.sqrt(np.pi) * by_panels(integrand) / np.sqrt(2.0)
    found = cosine.gaussian(values[None], parts[None], 2.0, others)[0]
    assert found == pytest.approx(expected, rel=1e-8)


def test_dilution_is_the_erf_form_averaged_over_guesses() -> None:
    """E cos of one layer of a joint pass against Monte Carlo, within 4.5 standard errors: an error of 1 % is seen."""
    rng = np.random.default_rng(0)
    values, parts, others = np.array([2.0, 0.5, 0.1]), np.array([0.2, 0.5, 0.3]), 0.7
    y = rng.normal(size=(400_000, 3)) * np.sqrt(values)
    u = y @ np.sqrt(parts)
    t = u + np.sqrt(others) * rng.normal(size=len(u))
    cos = np.sign(t) * u / np.linalg.norm(y, axis=1)
    smooth = u / np.linalg.norm(y, axis=1) * special.erf(u / np.sqrt(2 * others))
    found = cosine.gaussian(values[None], parts[None], 1.0, others)[0]
    for sample in (cos, smooth):
        assert abs(sample.mean() - found) < 4.5 * sample.std() / np.sqrt(len(sample))
    assert abs(cos.mean() / cosine.gaussian(values[None], parts[None], 1.0)[0] - 1) > 0.1


def test_dilution_in_many_dimensions() -> None:
    one, n = np.ones((1, 1)), 100_000
    found = cosine.gaussian(one, one, 1.0, 8.0, n * one)[0]
    assert found == pytest.approx(float(cosine.isotropic(n) * cosine.dilution(1.0, 9.0)), rel=1e-4)


def test_weight_perturbation_layer_by_layer() -> None:
    rng = np.random.default_rng(1)
    gradients = [rng.normal(size=3), 2 * rng.normal(size=2), np.zeros(2)]
    squares = [float(g @ g) for g in gradients]
    found = cosine.weight_perturbation(squares, [3, 2, 2])
    directions = [rng.normal(size=(400_000, len(g))) for g in gradients]
    slope = sum(v @ g for v, g in zip(directions, gradients, strict=True))
    for layer in (0, 1):
        v = directions[layer]
        cos = np.sign(slope) * (v @ gradients[layer]) / np.linalg.norm(v, axis=1) / np.sqrt(squares[layer])
        assert abs(cos.mean() - found[layer]) < 4.5 * cos.std() / np.sqrt(len(cos))
    assert np.isnan(found[2])
    assert found[3] == pytest.approx(float(cosine.isotropic(7)), rel=1e-14)
    assert np.isnan(cosine.weight_perturbation([0.0, 0.0], [3, 2])).all()


@given(scale=POSITIVE, loss=POSITIVE, seed=st.integers(0, 99))
def test_neither_the_scale_of_the_noise_nor_of_the_loss_matters(scale: float, loss: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values, parts, others = rng.uniform(size=(2, 4)), rng.uniform(size=(2, 4)), rng.uniform(size=2)
    own = cosine.gaussian(values, parts, parts.sum(1), others)
    other = cosine.gaussian(scale * values, loss * parts, loss * parts.sum(1), loss * scale * others)
    np.testing.assert_allclose(other, own, rtol=1e-9)
    square = cosine.gaussian_square(values, parts, parts.sum(1))
    np.testing.assert_allclose(cosine.gaussian_square(scale * values, parts, parts.sum(1)), square, rtol=1e-9)
    assert np.all(own**2 <= square)


def test_without_a_gradient_or_a_direction_there_is_no_cosine() -> None:
    values, parts = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]]), np.array([[0.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    found = cosine.gaussian(values, parts, [1.0, 0.0, 2.0])
    assert found[0] == 0.0
    assert np.isnan(found[1:]).all()
    assert np.isnan(cosine.gaussian_square(values[2:], parts[2:], [2.0])).all()
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        cosine.isotropic(0)


def test_spectrum_is_the_eigendecomposition_of_the_covariance() -> None:
    rng = np.random.default_rng(2)
    scale, matrix, dense = rng.normal(size=(3, 4)), rng.normal(size=(5, 4)), rng.normal(size=(3, 4, 2))
    scale[0, :2], scale[1] = 0.0, 0.0
    left, right = rng.normal(size=(3, 4, 2)), rng.normal(size=(3, 5, 2))
    gradient = rng.normal(size=(3, 4))
    cases: list[tuple[Factor, Array]] = [
        (Diagonal(scale), scale[:, :, None] * np.eye(4)),
        (Masked(scale, matrix), scale[:, :, None] * matrix.T),
        (Dense(dense), dense),
        (LowRank(left, right), left @ right.transpose(0, 2, 1)),
    ]
    for factor, written in cases:
        eigenvalues, components = spectrum(factor, gradient)
        for b in range(3):
            values, vectors = np.linalg.eigh(written[b] @ written[b].T)
            kept = values > 1e-12
            order = np.argsort(eigenvalues[b])[eigenvalues.shape[1] - kept.sum() :]
            np.testing.assert_allclose(eigenvalues[b, order], values[kept], rtol=1e-9)
            np.testing.assert_allclose(components[b, order], (gradient[b] @ vectors[:, kept]) ** 2, rtol=1e-7)
            assert np.all(components[b, eigenvalues[b] == 0] == 0)
