"""Descent probabilities: exact distributions, arcsines, and Monte Carlo for every switch in both spaces."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import special

from tests.enumerated import Array
from theory.descent import descent_probability, positive, weight_perturbation, with_rows_for_all
from theory.factors import Dense
from theory.linear_guess import Layers, Slope

BOTH_SLOPES: tuple[Slope, ...] = ("example", "batch")
BOTH_LAYERS: tuple[Layers, ...] = ("joint", "separate")
SWITCHES = list(itertools.product([False, True], BOTH_SLOPES, BOTH_LAYERS))


@pytest.mark.parametrize(("plus", "minus"), [(1, 1), (2, 1), (1, 3), (5, 4), (40, 30), (100, 140)])
@pytest.mark.parametrize("weight", [1.0, 0.1, 3.0])
def test_a_difference_of_two_chi_squares_is_an_f_distribution(plus: int, minus: int, weight: float) -> None:
    """P(χ²_m > w χ²_n) to 1e-9, against the F distribution's survival function."""
    weights = np.array([1.0] * plus + [-weight] * minus)
    expected = special.fdtrc(plus, minus, weight * minus / plus)
    assert positive(weights) == pytest.approx(expected, abs=1e-9)


def test_the_sign_of_all_weights_decides() -> None:
    assert positive(np.array([1.0, 0.5, 1e-16])) == 1.0
    assert positive(np.array([-1.0, -0.5])) == 0.0
    assert np.isnan(positive(np.zeros(3)))


@given(rho=st.floats(-0.999, 0.999), scale=st.floats(1e-6, 1e6))
def test_one_pair_is_an_arcsine(rho: float, scale: float) -> None:
    """The closed form of two weights, and the integral for the same two beside a third that is next to nothing."""
    pair = scale * np.array([rho + 1, rho - 1])
    expected = 0.5 + np.arcsin(rho) / np.pi
    assert positive(pair) == pytest.approx(expected, abs=1e-12)
    assert positive(np.append(pair, [1e-12 * scale, -1e-12 * scale])) == pytest.approx(expected, abs=1e-5)


def problem() -> tuple[list[Array], list[Array], list[Array]]:
    rng = np.random.default_rng(0)
    matrices = [rng.normal(size=(3, 3, 2)), rng.normal(size=(3, 2, 2))]
    gradients = [rng.normal(size=(3, 3)), rng.normal(size=(3, 2))]
    inputs = [rng.normal(size=(3, 2)) + 0.5, rng.normal(size=(3, 3))]
    return gradients, matrices, [x @ x.T for x in inputs]


def sampled_positive(
    kernels: list[Array], shared: bool, slope: Slope, layers: Layers, n: int = 60_000
) -> NDArray[np.bool_]:
    """Whether the inner product is positive, (guess, layer + 1)."""
    gradients, matrices, _ = problem()
    rng = np.random.default_rng(1)
    directions = []
    for matrix in matrices:
        noise = rng.normal(size=(n, 1 if shared else 3, 2))
        directions.append(np.einsum("bun,pbn->pbu", matrix, np.broadcast_to(noise, (n, 3, 2))))
    slopes = [np.sum(y * g, axis=2) for y, g in zip(directions, gradients, strict=True)]
    if layers == "joint":
        slopes = [slopes[0] + slopes[1]] * 2
    if slope == "batch":
        slopes = [t.sum(1, keepdims=True) for t in slopes]
    inner = [
        np.einsum("pbu,bu->p", t[:, :, None] * y, kernel @ g)
        for t, y, g, kernel in zip(slopes, directions, gradients, kernels, strict=True)
    ]
    # A square that is zero but for rounding is not negative.
    return np.stack([*inner, inner[0] + inner[1]], axis=1) > -1e-12


@pytest.mark.parametrize(("shared", "slope", "layers"), SWITCHES)
@pytest.mark.parametrize("weight_space", [False, True])
def test_every_switch_against_monte_carlo(weight_space: bool, shared: bool, slope: Slope, layers: Layers) -> None:
    """Within 4.5 standard errors of 60 000 guesses: an error of 0.01 is seen."""
    gradients, matrices, kernels = problem()
    found = descent_probability(
        gradients,
        [Dense(matrix) for matrix in matrices],
        kernels if weight_space else None,
        shared=shared,
        slope=slope,
        layers=layers,
    )
    sample = sampled_positive(kernels if weight_space else [np.eye(3)] * 2, shared, slope, layers)
    error = np.sqrt(found * (1 - found) / len(sample))
    assert np.all(np.abs(sample.mean(0) - found) <= 4.5 * error + 1e-12)
    if not weight_space and (layers == "separate" or slope == "batch" or not shared):
        assert found[-1] == 1.0


def test_the_control_of_the_sample_is_caught() -> None:
    """Shared noise is not mistaken for independent noise."""
    gradients, matrices, kernels = problem()
    factors = [Dense(matrix) for matrix in matrices]
    found = descent_probability(gradients, factors, kernels, shared=True, slope="example", layers="joint")
    sample = sampled_positive(kernels, False, "example", "joint")
    assert np.any(np.abs(sample.mean(0) - found) > 0.01)


def test_one_layer_of_a_joint_pass_in_activation_space() -> None:
    """One example: t = u + o with u the layer's own slope, so P = ½ + arcsin(√(T_l/T))/π."""
    gradients, matrices, _ = problem()
    gradients, matrices = [g[:1] for g in gradients], [a[:1] for a in matrices]
    own = [float(np.sum(np.einsum("bun,bu->bn", a, g) ** 2)) for a, g in zip(matrices, gradients, strict=True)]
    found = descent_probability(gradients, [Dense(a) for a in matrices], shared=False, slope="example", layers="joint")
    np.testing.assert_allclose(found[:2], 0.5 + np.arcsin(np.sqrt(np.array(own) / sum(own))) / np.pi, rtol=1e-12)
    assert found[2] == 1.0


def test_weight_perturbation() -> None:
    squares = [3.0, 1.0, 0.0]
    joint = weight_perturbation(squares, layers="joint")
    np.testing.assert_allclose(joint, [0.5 + 1 / 3, 0.5 + 1 / 6, np.nan, 1.0], rtol=1e-12)
    np.testing.assert_array_equal(weight_perturbation(squares, layers="separate"), [1.0, 1.0, np.nan, 1.0])
    assert np.isnan(weight_perturbation([0.0], layers="joint")).all()


def test_a_large_batch_is_near_the_normal_law() -> None:
    """512 examples: P = Φ(mean/deviation) up to the skewness of the sum, and quick."""
    rng = np.random.default_rng(2)
    rho, size = rng.uniform(-0.2, 0.5, size=512), rng.uniform(1, 2, size=512)
    weights = np.concatenate([size * (rho + 1), size * (rho - 1)]) / 2
    score = weights.sum() / np.sqrt(2 * np.sum(weights**2))
    assert positive(weights) == pytest.approx(special.ndtr(score), abs=5e-3)
    assert 2 < score < 6


def test_what_does_not_fit_is_refused() -> None:
    gradients, matrices, kernels = problem()
    factors = [Dense(matrix) for matrix in matrices]
    with pytest.raises(ValueError, match="one entry a layer, got 2, 2 and 1"):
        descent_probability(gradients, factors, kernels[:1], shared=False, slope="example", layers="joint")


@pytest.mark.parametrize("slope", ["example", "batch"])
@pytest.mark.parametrize("layers", ["joint", "separate"])
@pytest.mark.parametrize("shared", [False, True])
def test_forms_by_their_inner_products_are_those_by_their_vectors(shared: bool, layers: Layers, slope: Slope) -> None:
    """Without rows that serve all examples, and with a layer of two taps."""
    rng = np.random.default_rng(4)
    gradients, mixed = ([rng.normal(size=(3, units)) for units in (4, 2, 3)] for _ in range(2))
    factors = [Dense(rng.normal(size=(3, units, 4))) for units in (4, 2, 3)]
    groups = [[0, 2], [1]]
    switches: dict[str, Any] = {"shared": shared, "slope": slope, "layers": layers}
    expected = descent_probability(gradients, factors, mixed=mixed, groups=groups, **switches)
    slopes, inners = ([f.pull(g) for f, g in zip(factors, side, strict=True)] for side in (gradients, mixed))
    found = with_rows_for_all(slopes, inners, groups, [], **switches)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("slope", ["example", "batch"])
def test_rows_that_serve_all_examples(slope: Slope) -> None:
    """Every noise number written out as one vector: the form's matrix itself."""
    rng = np.random.default_rng(5)
    own, for_all = rng.normal(size=(2, 3)), rng.normal(size=(2, 2))
    own_inner, inner = rng.normal(size=(2, 3)), rng.normal(size=(1, 2))
    alphas = np.zeros((2, 8))
    betas = np.zeros((2, 8))
    for example in range(2):
        places = slice(3 * example, 3 * example + 3)
        alphas[example, places], alphas[example, 6:] = own[example], for_all[example]
        betas[example, places] = own_inner[example]
    last = np.concatenate([np.zeros(6), inner[0]])
    if slope == "example":
        terms = [*zip(alphas, betas, strict=True), (alphas.sum(0), last)]
    else:
        terms = [(alphas.sum(0), betas.sum(0) + last)]
    matrix = sum(np.outer(a, b) + np.outer(b, a) for a, b in terms) / 2
    expected = positive(np.linalg.eigvalsh(matrix))
    found = with_rows_for_all(
        [own, for_all], [own_inner, inner], [[0], [1]], [1], shared=False, slope=slope, layers="joint"
    )
    np.testing.assert_allclose(found[-1], expected, rtol=1e-9)
