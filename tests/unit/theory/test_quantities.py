"""The reported quantities: their definitions, the identities between them, and what happens at zero."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.enumerated import Array, enumerate_moments, guesses, three_points
from theory.quantities import NAMES, quantities

SEEDS = st.integers(0, 2**31)


def problem(seed: int) -> tuple[list[Array], list[Array], list[Array]]:
    """Gradients, matrices A and kernels X Xᵀ of two layers with two examples; the first X is of rank 1."""
    rng = np.random.default_rng(seed)
    matrices = [rng.normal(size=(2, 3, 2)), rng.normal(size=(2, 2, 2))]
    inputs = [rng.normal(size=(2, 1)), rng.normal(size=(2, 4))]
    return [rng.normal(size=(2, 3)), rng.normal(size=(2, 2))], matrices, [x @ x.T for x in inputs]


@pytest.mark.parametrize("weight_space", [False, True])
def test_each_quantity_is_its_definition_over_all_guesses(weight_space: bool) -> None:
    gradients, matrices, kernels = problem(0)
    if not weight_space:
        kernels = [np.eye(2), np.eye(2)]
    laws = [three_points(2)] * 2
    found, weights = guesses(gradients, matrices, laws, False, "example", "joint")
    exact = enumerate_moments(gradients, matrices, laws, False, "example", "joint")
    second = [one.second_moment(kernel) for one, kernel in zip(exact, kernels, strict=True)]
    reported = quantities(gradients, [one.mean for one in exact], second, kernels)

    # The guesses as rows of one long vector in which the inner product is the plain one.
    roots = [np.linalg.cholesky(kernel + 1e-15 * np.eye(2)).T for kernel in kernels]
    truth = [(root @ gradient).ravel() for root, gradient in zip(roots, gradients, strict=True)]
    rows = [np.einsum("bc,pcu->pbu", root, g).reshape(len(g), -1) for root, g in zip(roots, found, strict=True)]
    truth.append(np.concatenate(truth))
    rows.append(np.concatenate(rows, axis=1))
    for layer, (g, guess) in enumerate(zip(truth, rows, strict=True)):
        mean, square = weights @ guess, weights @ np.sum(guess**2, axis=1)
        expected = {
            "bias": np.linalg.norm(mean - g),
            "relative_bias": np.linalg.norm(mean - g) / np.linalg.norm(g),
            "shrinkage": mean @ g / (g @ g),
            "directional_bias": 1 - (mean @ g) ** 2 / ((mean @ mean) * (g @ g)),
            "variance": weights @ np.sum((guess - mean) ** 2, axis=1),
            "mse": weights @ np.sum((guess - g) ** 2, axis=1),
            "efficiency": (mean @ g) ** 2 / ((g @ g) * square),
            "best_scale": mean @ g / square,
            "gradient_norm": np.linalg.norm(g),
        }
        assert tuple(expected) == tuple(name for name in NAMES if name in expected) == NAMES
        for name, value in expected.items():
            assert reported[name][layer] == pytest.approx(value, rel=1e-6), name


def test_the_best_scale_is_the_best() -> None:
    gradients, matrices, _ = problem(1)
    exact = enumerate_moments(gradients, matrices, [three_points(2)] * 2, False, "example", "joint")
    second = np.array([one.second_moment(np.eye(2)) for one in exact])
    means = [one.mean for one in exact]

    def errors(scale: float) -> Array:
        return quantities(gradients, [scale * mean for mean in means], scale**2 * second)["mse"]

    best = quantities(gradients, means, second)["best_scale"]
    truth = quantities(gradients, means, second)["gradient_norm"] ** 2
    for layer, scale in enumerate(best):
        for nearby in (0.9, 1.1):
            assert errors(scale)[layer] < errors(nearby * scale)[layer]
        # What the best scale leaves is what efficiency says it must.
        left = truth[layer] * (1 - quantities(gradients, means, second)["efficiency"][layer])
        assert errors(scale)[layer] == pytest.approx(left, rel=1e-12)


@given(seed=SEEDS, factor=st.floats(1e-3, 1e3))
def test_scaling_the_loss_scales_each_quantity_by_its_power(seed: int, factor: float) -> None:
    gradients, matrices, kernels = problem(seed)
    exact = enumerate_moments(gradients, matrices, [three_points(2)] * 2, True, "example", "joint")
    means = [one.mean for one in exact]
    second = np.array([one.second_moment(kernel) for one, kernel in zip(exact, kernels, strict=True)])
    own = quantities(gradients, means, second, kernels)
    scaled = quantities([factor * g for g in gradients], [factor * m for m in means], factor**2 * second, kernels)
    powers = {"bias": 1, "gradient_norm": 1, "variance": 2, "mse": 2}
    for name in NAMES:
        np.testing.assert_allclose(scaled[name], factor ** powers.get(name, 0) * own[name], rtol=1e-6, err_msg=name)


@given(seed=SEEDS)
def test_mse_is_squared_bias_plus_variance_and_all_adds_up(seed: int) -> None:
    gradients, matrices, kernels = problem(seed)
    exact = enumerate_moments(gradients, matrices, [three_points(2)] * 2, False, "batch", "separate")
    second = [one.second_moment(kernel) for one, kernel in zip(exact, kernels, strict=True)]
    found = quantities(gradients, [one.mean for one in exact], second, kernels)
    np.testing.assert_allclose(found["mse"], found["bias"] ** 2 + found["variance"], rtol=1e-12)
    for name, power in {"bias": 2, "gradient_norm": 2, "variance": 1, "mse": 1}.items():
        values = found[name] ** power
        assert values[-1] == pytest.approx(values[:-1].sum(), rel=1e-12)
    assert np.all((found["efficiency"] >= 0) & (found["efficiency"] <= 1))
    assert np.all((found["directional_bias"] >= 0) & (found["directional_bias"] <= 1 + 1e-12))


def test_an_exact_guess_has_no_error_at_all() -> None:
    gradients, _, kernels = problem(2)
    squares = [float(np.sum(g * (k @ g))) for g, k in zip(gradients, kernels, strict=True)]
    found = quantities(gradients, gradients, squares, kernels)
    for name in ("bias", "relative_bias", "directional_bias", "variance", "mse"):
        np.testing.assert_array_equal(found[name], 0.0)
    for name in ("shrinkage", "efficiency", "best_scale"):
        np.testing.assert_allclose(found[name], 1.0, rtol=1e-15)


def test_a_scaled_gradient_has_no_directional_bias() -> None:
    gradients, _, _ = problem(3)
    found = quantities(gradients, [3.0 * g for g in gradients], [100.0, 100.0])
    np.testing.assert_allclose(found["directional_bias"], 0.0, atol=1e-15)
    np.testing.assert_allclose(found["shrinkage"], 3.0, rtol=1e-15)


def test_zero_gradients_and_zero_guesses_give_nan_without_a_warning() -> None:
    zeros, ones = np.zeros((2, 3)), np.ones((2, 3))
    found = quantities([zeros, ones], [ones, zeros], [7.0, 0.0])
    assert np.isnan(found["relative_bias"]).tolist() == [True, False, False]
    assert np.isnan(found["efficiency"]).tolist() == [True, True, False]
    assert np.isnan(found["directional_bias"]).tolist() == [True, True, False]
    assert np.isnan(found["best_scale"]).tolist() == [False, True, False]
    assert found["best_scale"][0] == 0.0
    assert found["variance"].tolist() == [1.0, 0.0, 1.0]


def test_what_does_not_fit_is_refused() -> None:
    one = np.ones((2, 3))
    with pytest.raises(ValueError, match=r"one entry a layer, got \[1, 1, 2, 1\]"):
        quantities([one], [one], [1.0, 2.0])
    with pytest.raises(ValueError, match=r"layer 0 has a gradient of shape \(2, 3\) and a mean of \(2, 4\)"):
        quantities([one], [np.ones((2, 4))], [1.0])
