"""Second moments of linear guesses against the enumeration of every noise value, for all switches, laws and factors."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, TypedDict, Unpack

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.enumerated import Array, Law, axes, circle, enumerate_moments, signs, three_points
from theory.factors import Dense, Diagonal, Factor, LowRank, Masked
from theory.linear_guess import Layers, Moments, Slope, check_switches, moments

EXAMPLES, NOISE = 2, 2


class Switches(TypedDict):
    shared: bool
    slope: Slope
    layers: Layers


SLOPES: tuple[Slope, ...] = ("example", "batch")
LAYERS: tuple[Layers, ...] = ("joint", "separate")
SWITCHES = [Switches(shared=a, slope=b, layers=c) for a, b, c in itertools.product([False, True], SLOPES, LAYERS)]
Maker = Callable[[np.random.Generator], tuple[Factor, Array]]
LAWS = {"signs": signs, "three_points": three_points, "circle": circle, "axes": axes}
PLAIN = Switches(shared=False, slope="example", layers="joint")
SHARED = Switches(shared=True, slope="example", layers="joint")
WHOLE_BATCH = Switches(shared=False, slope="batch", layers="joint")


def dense_factor(rng: np.random.Generator) -> tuple[Factor, Array]:
    array = rng.normal(size=(EXAMPLES, 3, NOISE))
    return Dense(array), array


def masked_factor(rng: np.random.Generator) -> tuple[Factor, Array]:
    scale, matrix = rng.normal(size=(EXAMPLES, 3)), rng.normal(size=(NOISE, 3))
    return Masked(scale, matrix), scale[:, :, None] * matrix.T


def diagonal_factor(rng: np.random.Generator) -> tuple[Factor, Array]:
    scale = rng.normal(size=(EXAMPLES, NOISE))
    return Diagonal(scale), scale[:, :, None] * np.eye(NOISE)


def low_rank_factor(rng: np.random.Generator) -> tuple[Factor, Array]:
    left, right = rng.normal(size=(EXAMPLES, 4, 1)), rng.normal(size=(EXAMPLES, NOISE, 1))
    return LowRank(left, right), left @ right.transpose(0, 2, 1)


FACTORS = [dense_factor, masked_factor, diagonal_factor, low_rank_factor]


class Problem:
    """Two layers, the first with a factor of the given class and the second dense, and two kernels."""

    def __init__(self, make: Maker = dense_factor, seed: int = 0):
        rng = np.random.default_rng(seed)
        pairs = [make(rng), dense_factor(rng)]
        self.factors = [factor for factor, _ in pairs]
        self.matrices = [matrix for _, matrix in pairs]
        self.gradients = [rng.normal(size=matrix.shape[:2]) for matrix in self.matrices]
        # Inputs that point the same way, so that what happens between examples counts.
        inputs = 1.0 + 0.3 * rng.normal(size=(EXAMPLES, 5))
        self.kernels = [np.eye(EXAMPLES), inputs @ inputs.T]

    def predict(self, law: Law, **switches: Unpack[Switches]) -> list[Moments]:
        return moments(self.gradients, self.factors, [law.fourth] * 2, [law.pair] * 2, **switches)


def furthest(problem: Problem, law: Law, predicted: list[Moments], **switches: Unpack[Switches]) -> float:
    """The largest relative error of any moment that is predicted."""
    exact = enumerate_moments(problem.gradients, problem.matrices, [law, law], **switches)
    errors = []
    for one, other in zip(predicted, exact, strict=True):
        errors.append(np.abs(one.mean - other.mean).max() / np.abs(other.mean).max())
        errors.append(np.abs(one.squares - other.squares()).max() / other.squares().max())
        for kernel in problem.kernels:
            errors.append(abs(one.second_moment(kernel) / other.second_moment(kernel) - 1))
        errors.append(abs(one.second_moment() / other.second_moment(np.eye(EXAMPLES)) - 1))
    return max(errors)


@pytest.mark.parametrize("switches", SWITCHES, ids=lambda s: "-".join(map(str, s.values())))
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("make", FACTORS)
def test_moments_are_those_of_the_enumeration(make: Maker, law: str, switches: Switches) -> None:
    problem, noise = Problem(make), LAWS[law](NOISE)
    assert furthest(problem, noise, problem.predict(noise, **switches), **switches) < 1e-10


@pytest.mark.parametrize("switches", SWITCHES, ids=lambda s: "-".join(map(str, s.values())))
def test_layers_may_have_different_laws(switches: Switches) -> None:
    problem, laws = Problem(), [signs(NOISE), three_points(NOISE)]
    found = moments(problem.gradients, problem.factors, [1.0, 3.0], [1.0, 1.0], **switches)
    exact = enumerate_moments(problem.gradients, problem.matrices, laws, **switches)
    for one, other in zip(found, exact, strict=True):
        for kernel in problem.kernels:
            assert one.second_moment(kernel) == pytest.approx(other.second_moment(kernel), rel=1e-10)


# Negative controls: the bar above is 1e-10, so an error of 1 % is seen by a wide margin.
@pytest.mark.parametrize("switches", SWITCHES, ids=lambda s: "-".join(map(str, s.values())))
def test_a_wrong_fourth_moment_is_caught(switches: Switches) -> None:
    problem, noise = Problem(), signs(NOISE)
    wrong = Law(noise.points, noise.weights, 3.0, 1.0)
    assert furthest(problem, noise, problem.predict(wrong, **switches), **switches) > 1e-2


@pytest.mark.parametrize("switch", ["shared", "slope", "layers"])
@pytest.mark.parametrize("switches", SWITCHES, ids=lambda s: "-".join(map(str, s.values())))
def test_a_wrong_switch_is_caught(switches: Switches, switch: str) -> None:
    problem, noise = Problem(), three_points(NOISE)
    wrong = switches.copy()
    if switch == "shared":
        wrong["shared"] = not switches["shared"]
    elif switch == "slope":
        wrong["slope"] = "batch" if switches["slope"] == "example" else "example"
    else:
        wrong["layers"] = "separate" if switches["layers"] == "joint" else "joint"
    assert furthest(problem, noise, problem.predict(noise, **wrong), **switches) > 1e-2


def test_one_noise_dimension_too_many_is_caught() -> None:
    problem, noise = Problem(diagonal_factor), three_points(NOISE)
    wider = np.concatenate([problem.matrices[0], np.full((EXAMPLES, NOISE, 1), 0.1)], axis=2)
    problem.factors[0] = Dense(wider)
    assert furthest(problem, noise, problem.predict(noise, **PLAIN), **PLAIN) > 1e-2


def gaussian(gradients: list[Array], factors: list[Factor], **switches: Unpack[Switches]) -> list[Moments]:
    return moments(gradients, factors, [3.0] * len(factors), [1.0] * len(factors), **switches)


def random_batch(seed: int, examples: int, units: int, inputs: int) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(examples, units)), rng.normal(size=(examples, inputs))


def test_forms_of_one_factor_agree() -> None:
    """A low-rank, masked or diagonal A gives what the same matrix gives written out, at sizes beyond enumeration."""
    rng = np.random.default_rng(3)
    scale, matrix = rng.normal(size=(5, 7)), rng.normal(size=(6, 7))
    left, right = rng.normal(size=(5, 7, 3)), rng.normal(size=(5, 6, 3))
    gradients, inputs = random_batch(4, 5, 7, 4)
    kernel = inputs @ inputs.T
    cases: list[tuple[Factor, Array]] = [
        (Masked(scale, matrix), scale[:, :, None] * matrix.T),
        (LowRank(left, right), left @ right.transpose(0, 2, 1)),
        (Diagonal(scale), scale[:, :, None] * np.eye(7)),
    ]
    for compact, written in cases:
        for switches in SWITCHES:
            one = moments([gradients], [compact], [1.7], [0.8], **switches)[0]
            other = moments([gradients], [Dense(written)], [1.7], [0.8], **switches)[0]
            np.testing.assert_allclose(one.mean, other.mean, rtol=1e-11, atol=1e-12)
            np.testing.assert_allclose(one.squares, other.squares, rtol=1e-11)
            assert one.second_moment(kernel) == pytest.approx(other.second_moment(kernel), rel=1e-11)


def test_examples_in_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    factor = Dense(rng.normal(size=(4, 5, 3)))
    gradients = rng.normal(size=(4, 5))
    whole = moments([gradients], [factor], [1.0], [1.0], **SHARED)[0]
    monkeypatch.setattr("theory.factors.CHUNK_ELEMENTS", 1)
    parts = moments([gradients], [factor], [1.0], [1.0], **SHARED)[0]
    np.testing.assert_allclose(parts.products, whole.products, rtol=1e-13)


@pytest.mark.parametrize("n_examples", [1, 3])
def test_shared_noise_in_one_layer_is_the_variance_of_one_random_vector(n_examples: int) -> None:
    """docs/mathematics.md#total-variance: Ĝ = ε εᵀ G, so tr Cov = (out + κ − 2)‖G‖²."""
    gradients, inputs = random_batch(6, n_examples, 5, 4)
    weight_gradient = gradients.T @ inputs
    for fourth in (1.0, 3.0):
        (found,) = moments([gradients], [Diagonal(np.ones((n_examples, 5)))], [fourth], [1.0], **SHARED)
        variance = found.second_moment(inputs @ inputs.T) - np.sum((found.mean.T @ inputs) ** 2)
        assert variance == pytest.approx((5 + fourth - 2) * np.sum(weight_gradient**2), rel=1e-12)


def test_table_1_of_ren_et_al() -> None:
    """Their four variances of an average element, noise and batch both random, as special cases.

    A batch of N is drawn with replacement from three examples and every batch is enumerated; S and V are the square of
    the mean and the variance of a per-example gradient, averaged over the p q elements. The loss is a mean over the
    batch. Weight perturbation is a guess of p q units with the kernel of ones, since examples' weight gradients add up.
    """
    population, n = 3, 2
    gradients, inputs = random_batch(7, population, 3, 4)
    q, p = 3, 4
    per_example = np.einsum("bu,bi->bui", gradients, inputs).reshape(population, -1)
    mean_gradient = per_example.mean(0)
    v, s = np.mean(per_example.var(0)), np.mean(mean_gradient**2)

    def average_element_variance(weights_perturbed: bool, shared: bool) -> float:
        second = []
        for batch in map(list, itertools.product(range(population), repeat=n)):
            if weights_perturbed:
                rows, kernel = per_example[batch] / n, np.ones((n, n))
            else:
                rows, kernel = gradients[batch] / n, inputs[batch] @ inputs[batch].T
            (found,) = gaussian([rows], [Diagonal(np.ones_like(rows))], shared=shared, slope="example", layers="joint")
            second.append(found.second_moment(kernel))
        return (np.mean(second) - np.sum(mean_gradient**2)) / (p * q)

    expected = {
        (True, True): (p * q + 2) / n * v + (p * q + 1) * s,
        (True, False): (p * q + 2) / n * v + (p * q + 1) / n * s,
        (False, True): (q + 2) / n * v + (q + 1) * s,
        (False, False): (q + 2) / n * v + (q + 1) / n * s,
    }
    for (weights_perturbed, shared), value in expected.items():
        assert average_element_variance(weights_perturbed, shared) == pytest.approx(value, rel=1e-12)


def test_the_printed_forms_of_the_total_variance() -> None:
    """tr Cov of both slopes as docs/mathematics.md#total-variance writes them, from a dense A."""
    rng = np.random.default_rng(8)
    matrices = [rng.normal(size=(3, 4, 5)), rng.normal(size=(3, 2, 2))]
    gradients = [rng.normal(size=(3, 4)), rng.normal(size=(3, 2))]
    inputs = rng.normal(size=(3, 6))
    kernel, kappa = inputs @ inputs.T, 1.8
    sigma = matrices[0] @ matrices[0].transpose(0, 2, 1)
    pulled = [np.einsum("bun,bu->bn", a, g) for a, g in zip(matrices, gradients, strict=True)]
    slope_variance = sum(np.sum(a**2, axis=1) for a in pulled)
    trace = np.trace(sigma, axis1=1, axis2=2)
    mean = np.einsum("buv,bv->bu", sigma, gradients[0])
    columns = np.sum(pulled[0] ** 2 * np.sum(matrices[0] ** 2, axis=1), axis=1)
    squared_inputs = np.sum(inputs**2, axis=1)
    covariance = slope_variance * trace + np.sum(mean**2, axis=1) + (kappa - 3) * columns
    whole = (
        np.sum(slope_variance) * np.sum(squared_inputs * trace)
        + np.sum((mean.T @ inputs) ** 2)
        + (kappa - 3) * np.sum(squared_inputs * columns)
    )
    factors: list[Factor] = [Dense(matrix) for matrix in matrices]
    for switches, expected in [(PLAIN, np.sum(squared_inputs * covariance)), (WHOLE_BATCH, whole)]:
        found = moments(gradients, factors, [kappa] * 2, [1.0] * 2, **switches)[0]
        variance = found.second_moment(kernel) - np.sum((found.mean.T @ inputs) ** 2)
        assert variance == pytest.approx(expected, rel=1e-12)


@settings(max_examples=25)
@given(seed=st.integers(0, 2**31), factor=st.floats(0.01, 100.0), switches=st.sampled_from(SWITCHES))
def test_scaling_the_loss_scales_mean_and_second_moment(seed: int, factor: float, switches: Switches) -> None:
    problem = Problem(masked_factor, seed)
    own = problem.predict(signs(NOISE), **switches)
    problem.gradients = [factor * gradient for gradient in problem.gradients]
    scaled = problem.predict(signs(NOISE), **switches)
    for one, other in zip(own, scaled, strict=True):
        np.testing.assert_allclose(other.mean, factor * one.mean, rtol=1e-9, atol=1e-12 * factor)
        np.testing.assert_allclose(other.squares, factor**2 * one.squares, rtol=1e-9, atol=1e-12 * factor**2)
        assert other.second_moment() == pytest.approx(factor**2 * one.second_moment(), rel=1e-9)


@settings(max_examples=25)
@given(seed=st.integers(0, 2**31), order=st.permutations(range(3)), switches=st.sampled_from(SWITCHES))
def test_permuting_units_permutes_the_mean_and_keeps_the_second_moment(
    seed: int, order: list[int], switches: Switches
) -> None:
    problem, noise = Problem(masked_factor, seed), signs(NOISE)
    own = problem.predict(noise, **switches)[0]
    first = problem.factors[0]
    assert isinstance(first, Masked)
    problem.factors[0] = Masked(first.scale[:, order], first.matrix[:, order])
    problem.gradients[0] = problem.gradients[0][:, order]
    permuted = problem.predict(noise, **switches)[0]
    np.testing.assert_allclose(permuted.mean, own.mean[:, order], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(permuted.products, own.products, rtol=1e-9, atol=1e-9)


def test_what_does_not_fit_is_refused() -> None:
    gradients, factor = np.ones((2, 3)), Diagonal(np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"slope must be 'example' or 'batch', got 'both'"):
        check_switches("both", "joint")
    with pytest.raises(ValueError, match=r"layers must be 'joint' or 'separate', got 'all'"):
        check_switches("batch", "all")
    with pytest.raises(ValueError, match=r"one entry a layer, got \[1, 1, 2, 1\]"):
        moments([gradients], [factor], [3.0, 3.0], [1.0], **PLAIN)
    with pytest.raises(ValueError, match=r"layer 0 has gradients .* \(2, 4\) but a factor for \(2, 3\)"):
        gaussian([np.ones((2, 4))], [factor], **PLAIN)
    with pytest.raises(ValueError, match=r"same examples, got \[2, 5\]"):
        gaussian([gradients, np.ones((5, 1))], [factor, Diagonal(np.ones((5, 1)))], **PLAIN)
    single: Any = np.ones((2, 3), dtype=np.float32)
    with pytest.raises(ValueError, match=r"scale must have 2 dimensions of float64, got 2 of float32"):
        Diagonal(single)
    with pytest.raises(ValueError, match=r"with the same unit, got \(2, 3\) and \(4, 5\)"):
        Masked(np.ones((2, 3)), np.ones((4, 5)))
    with pytest.raises(ValueError, match=r"array must have 3 dimensions"):
        Dense(np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"same example and mode, got \(2, 3, 1\) and \(2, 4, 2\)"):
        LowRank(np.ones((2, 3, 1)), np.ones((2, 4, 2)))
