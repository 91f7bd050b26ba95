"""Feedback's closed forms against plain enumeration of the noise, and of the feedback matrices, in NumPy."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from tests.enumerated import Array, Law, axes, circle, signs, three_points
from theory import feedback
from theory.feedback import LearnedFeedback
from theory.linear_guess import Moments


@dataclass(frozen=True, eq=False)
class Net:
    """Two hidden layers of 2 units and 2 outputs; weights are those behind each hidden layer."""

    weights: list[Array]
    derivatives: list[Array]
    error: Array

    @property
    def jacobians(self) -> list[Array]:
        return feedback.output_jacobians(self.weights, self.derivatives)


def drawn_net(examples: int, seed: int = 0) -> Net:
    rng = np.random.default_rng(seed)
    sizes = [2, 2, 2]
    weights = [rng.normal(size=(n_next, n)) for n, n_next in itertools.pairwise(sizes)]
    derivatives = [rng.uniform(-0.2, 1.5, size=(examples, n)) for n in sizes[:-1]]
    return Net(weights, derivatives, rng.normal(size=(examples, sizes[-1])))


def one_step(net: Net, laws: list[Law]) -> tuple[list[Array], Array]:
    """Every possible M_l (point, output unit, unit) and its probability (point,), by the definition in a plain loop."""
    examples = len(net.error)
    vectors = [law for law in laws for _ in range(examples)]
    samples: list[list[Array]] = [[] for _ in laws]
    weights = []
    for chosen in itertools.product(*(range(len(law.points)) for law in vectors)):
        noise = [law.points[index] for law, index in zip(vectors, chosen, strict=True)]
        u = [np.stack(noise[layer * examples : (layer + 1) * examples]) for layer in range(len(laws))]
        d = sum(np.einsum("bou,bu->bo", j, v) for j, v in zip(net.jacobians, u, strict=True))
        for layer, v in enumerate(u):
            samples[layer].append(np.einsum("bo,bu->ou", d, v) / examples)
        weights.append(np.prod([law.weights[index] for law, index in zip(vectors, chosen, strict=True)]))
    return [np.stack(layer) for layer in samples], np.array(weights)


def history(samples: list[Array], weights: Array, rate: float, steps: int, initial: list[Array]) -> list[Array]:
    """Every possible B_t (point, output unit, unit), the points being all sequences of steps."""
    found = []
    for layer, first in zip(samples, initial, strict=True):
        matrices = first[None]
        for _ in range(steps):
            matrices = ((1 - rate) * matrices[:, None] + rate * layer[None]).reshape(-1, *first.shape)
        found.append(matrices)
    return found


def moments_of(guesses: Array, weights: Array) -> tuple[Array, Array, Array]:
    """Mean (example, unit), variances (example, unit) and tr Cov(ĝ_b, ĝ_c) of guesses (point, example, unit)."""
    mean = np.einsum("p,pbu->bu", weights, guesses)
    centred = guesses - mean
    return mean, np.einsum("p,pbu->bu", weights, centred**2), np.einsum("p,pbu,pcu->bc", weights, centred, centred)


LAWS: list[Callable[[int], Law]] = [signs, three_points, axes, circle]


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(("examples", "steps"), [(1, 1), (1, 2), (2, 1)])
def test_learned_feedback_is_that_of_the_enumeration(law: Callable[[int], Law], examples: int, steps: int) -> None:
    net, rate = drawn_net(examples), 0.3
    laws = [law(2), law(2)]
    rng = np.random.default_rng(5)
    initial = [rng.normal(size=j.shape[1:]) for j in net.jacobians]
    samples, weights = one_step(net, laws)
    predicted = feedback.forward_direct_feedback(
        net.jacobians,
        net.derivatives,
        net.error,
        rate,
        steps,
        initial=initial,
        fourth=[one.fourth for one in laws],
        pair=[one.pair for one in laws],
    )
    all_weights = weights if steps == 1 else np.outer(weights, weights).ravel()
    for layer, matrices in enumerate(history(samples, weights, rate, steps, initial)):
        guesses = net.derivatives[layer] * np.einsum("pou,bo->pbu", matrices, net.error)
        mean, variances, covariances = moments_of(guesses, all_weights)
        found = predicted[layer]
        np.testing.assert_allclose(found.exact + found.lag + found.spread, mean, atol=1e-12)
        np.testing.assert_allclose(found.variances, variances, atol=1e-12)
        np.testing.assert_allclose(found.covariances, covariances, atol=1e-12)
        np.testing.assert_allclose(found.moments().squares, variances + mean**2, atol=1e-12)
    assert_exact(predicted[-1], net.error)


def assert_exact(found: LearnedFeedback, error: Array) -> None:
    np.testing.assert_array_equal(found.exact, error)
    assert found.terms() == {"lag": 0.0, "spread": 0.0, "cross": 0.0, "variance": 0.0}


def test_the_terms_add_up_to_the_mean_squared_error_in_both_spaces() -> None:
    net = drawn_net(4)
    inputs = np.random.default_rng(1).normal(size=(4, 3))
    for kernel in (None, inputs @ inputs.T):
        metric = np.eye(4) if kernel is None else kernel
        for found in feedback.forward_direct_feedback(net.jacobians, net.derivatives, net.error, 0.2, 3):
            moments, error = found.moments(), found.lag + found.spread
            mse = np.sum(metric * (error @ error.T)) + moments.second_moment(kernel)
            mse -= np.sum(metric * (moments.mean @ moments.mean.T))
            assert sum(found.terms(kernel).values()) == pytest.approx(mse, rel=1e-12)


def test_the_printed_stationary_variance() -> None:
    """α/(2−α)·(1/N)·[(n+1)‖𝒥ᵀe‖² + n eᵀHe]: Gaussian noise, one Jacobian for all examples, φ' = 1, in any one layer."""
    rng = np.random.default_rng(3)
    examples, units, rate = 3, [5, 4], 0.05
    one = [rng.normal(size=(2, n)) for n in units]
    error = np.repeat(rng.normal(size=(1, 2)), examples, axis=0)
    jacobians = [np.repeat(j[None], examples, axis=0) for j in one]
    ones = [np.ones((examples, n)) for n in units]
    found = feedback.forward_direct_feedback(jacobians, ones, error, rate, np.inf)
    e = error[0]
    for layer, (own, other) in enumerate([(one[0], one[1]), (one[1], one[0])]):
        n = units[layer]
        activity = (n + 1) * np.sum((own.T @ e) ** 2) + n * e @ other @ other.T @ e
        printed = rate / (2 - rate) / examples * activity
        np.testing.assert_allclose(np.diagonal(found[layer].covariances), printed, rtol=1e-12)
        np.testing.assert_allclose(found[layer].lag, 0, atol=1e-15)
        np.testing.assert_allclose(found[layer].spread, 0, atol=1e-12)
        # Negative controls: the units of the other layer for n, the other layer's noise left out.
        n = units[1 - layer]
        wrong = (n + 1) * np.sum((own.T @ e) ** 2) + n * e @ other @ other.T @ e
        assert abs(wrong / activity - 1) > 0.1
        without = feedback.forward_direct_feedback([jacobians[layer]], [ones[layer]], error, rate, np.inf)
        assert without[0].covariances[0, 0] < 0.98 * printed


def test_the_history_forgets_its_start_and_grows_to_the_stationary_variance() -> None:
    net, rate = drawn_net(3), 0.1

    def after(steps: float) -> LearnedFeedback:
        return feedback.forward_direct_feedback(net.jacobians, net.derivatives, net.error, rate, steps)[0]

    nothing, stationary = after(0), after(np.inf)
    np.testing.assert_allclose(nothing.lag + nothing.spread, -nothing.exact)
    assert not nothing.covariances.any() and not stationary.lag.any()
    for steps in (1, 7, 50):
        np.testing.assert_allclose(after(steps).lag, 0.9**steps * nothing.lag, rtol=1e-12)
        np.testing.assert_allclose(after(steps).spread, nothing.spread)
        np.testing.assert_allclose(after(steps).variances, (1 - 0.9 ** (2 * steps)) * stationary.variances, rtol=1e-10)


def test_output_jacobians_are_products_of_the_chain() -> None:
    net = drawn_net(3)
    for example in range(3):
        last = net.weights[1]
        np.testing.assert_allclose(net.jacobians[1][example], last)
        chain = last @ np.diag(net.derivatives[1][example]) @ net.weights[0]
        np.testing.assert_allclose(net.jacobians[0][example], chain)


# Feedback alignment and DFA


def enumerated_matrices(shapes: list[tuple[int, int]], scale: float) -> list[list[Array]]:
    """Every set of matrices with entries ±scale."""
    counts = [rows * columns for rows, columns in shapes]
    found = []
    for entries in itertools.product([-scale, scale], repeat=sum(counts)):
        parts = np.split(np.array(entries), np.cumsum(counts)[:-1])
        found.append([part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)])
    return found


@pytest.mark.parametrize("direct", [False, True])
def test_over_random_feedback_the_second_moments_are_those_of_the_enumeration(direct: bool) -> None:
    net, scale = drawn_net(3), 0.7
    guess = feedback.direct_feedback if direct else feedback.chained_feedback
    prediction = feedback.random_direct_feedback if direct else feedback.random_chained_feedback
    drawn = [guess(net.derivatives, net.error, b) for b in enumerated_matrices([(2, 2), (2, 2)], scale)]
    predicted = prediction(net.derivatives, net.error, [scale**2, scale**2])
    inputs = np.random.default_rng(8).normal(size=(3, 2))
    gradient, kernel = np.random.default_rng(9).normal(size=(3, 2)), inputs @ inputs.T
    weights = np.full(len(drawn), 1 / len(drawn))
    for layer, found in enumerate(predicted):
        guesses = np.stack([one[layer] for one in drawn])
        mean, variances, covariances = moments_of(guesses, weights)
        np.testing.assert_allclose(mean, 0, atol=1e-14)
        assert_moments(found.moments(), variances, covariances)
        inner = np.einsum("pbu,bu->p", guesses, gradient)
        assert found.squared_inner_product(gradient) == pytest.approx(np.mean(inner**2), rel=1e-12)
        inner = np.einsum("pbu,bu->p", guesses, kernel @ gradient)
        assert found.squared_inner_product(gradient, kernel) == pytest.approx(np.mean(inner**2), rel=1e-12)


def assert_moments(found: Moments, variances: Array, covariances: Array) -> None:
    assert not found.mean.any()
    np.testing.assert_allclose(found.squares, variances, rtol=1e-12)
    np.testing.assert_allclose(found.products, covariances, rtol=1e-12, atol=1e-14)


def test_chained_and_direct_feedback_differ_below_the_last_hidden_layer_only() -> None:
    net = drawn_net(3)
    chained = feedback.random_chained_feedback(net.derivatives, net.error, [0.5, 0.5])
    direct = feedback.random_direct_feedback(net.derivatives, net.error, [0.5, 0.5])
    np.testing.assert_allclose(chained[1].moments().products, direct[1].moments().products)
    assert not np.allclose(chained[0].moments().products, direct[0].moments().products, rtol=0.1)


def test_a_deterministic_guess_has_no_variance() -> None:
    guess = np.random.default_rng(0).normal(size=(3, 2))
    moments = feedback.deterministic(guess)
    assert moments.second_moment() == pytest.approx(np.sum(guess**2))
    np.testing.assert_allclose(moments.products, guess @ guess.T)


def test_what_does_not_fit_is_refused() -> None:
    net = drawn_net(2)
    with pytest.raises(ValueError, match=r"rate must be above 0 and at most 1, got 0"):
        feedback.forward_direct_feedback(net.jacobians, net.derivatives, net.error, 0.0, 1)
    with pytest.raises(ValueError, match="steps must be at least 0, got -1"):
        feedback.forward_direct_feedback(net.jacobians, net.derivatives, net.error, 0.1, -1)
    with pytest.raises(ValueError, match="feedback must hold a matrix a hidden layer, 2 of them, got 1"):
        feedback.direct_feedback(net.derivatives, net.error, [np.ones((2, 2))])
    with pytest.raises(ValueError, match=r"expected an array of shape \(2, 2\), got \(3, 2\)"):
        feedback.chained_feedback(net.derivatives, net.error, [np.ones((3, 2)), np.ones((2, 2))])
