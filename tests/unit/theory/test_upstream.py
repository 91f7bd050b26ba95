"""The factors of the upstream family against their definitions, and the facts that follow from them.

Sources: docs/mathematics.md#fact-1, docs/mathematics.md#fact-2, docs/mathematics.md#fact-3.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
import torch

from fganalysis.capturing.upstream import OVERSAMPLING, UpstreamJacobian
from tests.enumerated import Array
from theory.factors import Dense, Diagonal, Factor
from theory.linear_guess import Slope, moments
from theory.upstream import (
    iterated,
    newton_schulz,
    orthogonal,
    preconditioned,
    singular_triplets,
    undetermined,
    upstream,
)

EXAMPLES = 4
Rank = Literal["rank"]
Which = Literal["top", "bottom"]


def layer(units: int = 6, next_units: int = 6, alive: int | None = None) -> tuple[Array, Array, Array]:
    """W, a ReLU's derivative with one example all dead, and gradients g = Jᵀh as backpropagation makes them.

    alive: how many units of the first example are.
    """
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(next_units, units))
    derivative = (rng.normal(size=(EXAMPLES, units)) > 0).astype(np.float64)
    derivative[1] = 0.0
    if alive is not None:
        derivative[0] = np.arange(units) < alive
    above = rng.normal(size=(EXAMPLES, next_units))
    return weight, derivative, np.einsum("bk,bku->bu", above, weight * derivative[:, None, :])


def written_out(factor: Factor) -> Array:
    """A_b as (example, unit, noise), column by column."""
    n_noise = factor.pull(np.zeros(factor.shape)).shape[1]
    ones = np.ones((factor.shape[0], 1))
    return np.stack([factor.push(ones * column) for column in np.eye(n_noise)], axis=2)


def covariance(factor: Factor) -> Array:
    array = written_out(factor)
    return array @ array.transpose(0, 2, 1)


def jacobians(weight: Array, derivative: Array) -> Array:
    return weight * derivative[:, None, :]


def test_upstream_is_the_transposed_jacobian() -> None:
    weight, derivative, _ = layer(5, 3)
    np.testing.assert_array_equal(
        written_out(upstream(weight, derivative)), jacobians(weight, derivative).transpose(0, 2, 1)
    )


@pytest.mark.parametrize(("units", "next_units"), [(6, 6), (6, 4), (4, 6)])
def test_singular_triplets_decompose_every_jacobian(units: int, next_units: int) -> None:
    weight, derivative, _ = layer(units, next_units)
    derivative[2] *= np.random.default_rng(1).uniform(size=units)
    left, values, right = singular_triplets(weight, derivative)
    rebuilt = (left * values[:, None, :]) @ right.transpose(0, 2, 1)
    np.testing.assert_allclose(rebuilt, jacobians(weight, derivative), atol=1e-13)
    np.testing.assert_allclose(values, np.linalg.svd(jacobians(weight, derivative), compute_uv=False), atol=1e-13)
    for side in (left, right):
        expected = (values > 0)[:, :, None] * np.eye(values.shape[1])
        np.testing.assert_allclose(side.transpose(0, 2, 1) @ side, expected, atol=1e-13)


@pytest.mark.parametrize("k", [1, 2, 3, 6, "rank"])
@pytest.mark.parametrize("which", ["top", "bottom"])
def test_orthogonal_takes_the_singular_directions_asked_for(k: int | Rank, which: Which) -> None:
    weight, derivative, _ = layer(6, 5)
    array = written_out(orthogonal(weight, derivative, k, which))
    for one, jacobian in zip(array, jacobians(weight, derivative), strict=True):
        u, _, v = np.linalg.svd(jacobian, full_matrices=False)
        rank = np.linalg.matrix_rank(jacobian)
        n_modes = rank if k == "rank" else min(int(k), rank)
        chosen = slice(0, n_modes) if which == "top" else slice(rank - n_modes, rank)
        np.testing.assert_allclose(one, v[chosen].T @ u[:, chosen].T, atol=1e-12)


@pytest.mark.parametrize(("units", "next_units"), [(40, 40), (40, 30), (30, 4)])
@pytest.mark.parametrize("iterations", [0, 1, 3])
def test_the_iterated_factor_is_that_of_the_sampler(units: int, next_units: int, iterations: int) -> None:
    """Two routes to one projector: this one by SVDs, that one by Cholesky factors and Gram matrices."""
    weight, derivative, _ = layer(units, next_units)
    ours = iterated(weight, derivative, 3, iterations, OVERSAMPLING)
    jacobian = UpstreamJacobian(torch.from_numpy(weight), torch.from_numpy(derivative))
    left, _, right = jacobian.singular_vectors(3, iterations=iterations)
    np.testing.assert_allclose(written_out(ours), (right @ left.mT).numpy(), atol=1e-9)


def test_many_iterations_come_to_the_leading_directions() -> None:
    weight, derivative, _ = layer(40, 40)
    found = written_out(iterated(weight, derivative, 2, 400, OVERSAMPLING))
    np.testing.assert_allclose(found, written_out(orthogonal(weight, derivative, 2)), atol=1e-8)


def test_singular_values_below_the_precision_are_no_directions() -> None:
    weight, derivative = np.diag([1.0, 1e-9]), np.ones((1, 2))
    assert orthogonal(weight, derivative, "rank").left.shape[2] == 2
    assert orthogonal(weight, derivative, "rank", epsilon=1e-7).left.shape[2] == 1
    np.testing.assert_array_equal(orthogonal(weight, derivative, 1, "bottom", 1e-7).left[0, :, 0] != 0, [True, False])


@pytest.mark.parametrize("per_example", [False, True])
@pytest.mark.parametrize(("units", "next_units"), [(5, 5), (6, 3), (3, 6)])
def test_newton_schulz_is_a_polynomial_of_the_matrix(units: int, next_units: int, per_example: bool) -> None:
    weight, derivative, _ = layer(units, next_units)
    coefficients = np.random.default_rng(2).normal(size=(EXAMPLES, 3, 4) if per_example else (3, 4))
    array = written_out(newton_schulz(weight, derivative, coefficients))
    for example, jacobian in enumerate(jacobians(weight, derivative)):
        norm = np.linalg.norm(jacobian, 2)
        matrix = jacobian / norm if norm > 0 else jacobian
        for a, b, c, d in coefficients[example] if per_example else coefficients:
            gram = matrix @ matrix.T
            matrix = (a * np.eye(next_units) + b * gram + c * gram @ gram + d * gram @ gram @ gram) @ matrix
        np.testing.assert_allclose(array[example], matrix.T, rtol=1e-9, atol=1e-9 * np.abs(matrix).max(initial=1.0))


@pytest.mark.parametrize(("units", "next_units"), [(5, 5), (6, 3), (3, 6)])
def test_preconditioned_is_its_definition_and_sigma_cancels(units: int, next_units: int) -> None:
    weight, derivative, _ = layer(units, next_units)
    array = written_out(preconditioned(weight, derivative))
    np.testing.assert_array_equal(array, written_out(preconditioned(weight, derivative, sigma=10.0)))
    for one, jacobian in zip(array, jacobians(weight, derivative), strict=True):
        u, s, v = np.linalg.svd(jacobian, full_matrices=False)
        rank = np.linalg.matrix_rank(jacobian)
        regular = u[:, :rank] * np.sqrt(s[:rank] ** 2 + 0.1) @ v[:rank]
        eigenvalues, vectors = np.linalg.eigh(regular.T @ regular)
        kept = eigenvalues > 1e-9  # the inverse root on the range
        root = vectors[:, kept] / np.sqrt(eigenvalues[kept]) @ vectors[:, kept].T
        np.testing.assert_allclose(one, root @ regular.T, atol=1e-7)


@pytest.mark.parametrize(("units", "next_units"), [(5, 5), (6, 3), (3, 6)])
def test_preconditioned_turns_with_the_units_and_is_the_mean_over_all_completions(units: int, next_units: int) -> None:
    """A(J Q) = Qᵀ A(J) for any rotation Q, which no choice of null directions obeys; their mean is the same A."""
    rng = np.random.default_rng(3)
    weight = rng.normal(size=(next_units, 2)) @ rng.normal(size=(2, units))
    one = np.ones((1, units))
    array = written_out(preconditioned(weight, one))[0]
    assert np.linalg.matrix_rank(array) == 2
    for _ in range(3):
        turn, other = (np.linalg.qr(rng.normal(size=(n, n)))[0] for n in (units, next_units))
        turned = written_out(preconditioned(other @ weight @ turn, one))[0]
        np.testing.assert_allclose(turned, turn.T @ array @ other.T, atol=1e-12)
    # A null direction that LAPACK lists, kept: a mirror that leaves J alone changes that A.
    u, _, v = np.linalg.svd(weight, full_matrices=False)
    mirror = np.eye(units) - 2 * np.outer(v[2], v[2])
    np.testing.assert_allclose(weight @ mirror, weight, atol=1e-12)
    assert np.abs(mirror @ (u @ v).T - (u @ v).T).max() > 0.1
    np.testing.assert_allclose(((u @ v).T + mirror @ (u @ v).T) / 2 @ u[:, 2], 0, atol=1e-12)
    np.testing.assert_allclose(mirror @ array, array, atol=1e-12)


def test_fact_1_orthogonal_of_full_rank_is_exactly_unbiased_and_only_truncation_biases() -> None:
    weight, derivative, gradient = layer()
    whole = orthogonal(weight, derivative, "rank")
    np.testing.assert_allclose(whole.push(whole.pull(gradient)), gradient, atol=1e-12)
    # The control: one direction fewer is visibly biased.
    rank = np.linalg.matrix_rank(jacobians(weight, derivative)).max()
    truncated = orthogonal(weight, derivative, int(rank) - 1)
    assert np.abs(truncated.push(truncated.pull(gradient)) - gradient).max() > 1e-3


@pytest.mark.parametrize("slope", ["example", "batch"])
def test_fact_2_orthogonal_of_full_rank_is_masked_activity_perturbation(slope: Slope) -> None:
    """For a square next layer V_rV_rᵀ = M, so with independent Gaussian noise all moments are the same."""
    weight, derivative, gradient = layer()
    whole = orthogonal(weight, derivative, "rank")
    np.testing.assert_allclose(covariance(whole), derivative[:, :, None] * np.eye(6), atol=1e-12)
    one, other, unmasked = (
        moments([gradient], [factor], [3.0], [1.0], shared=False, slope=slope, layers="joint")[0]
        for factor in (whole, Diagonal(derivative), Diagonal(np.ones_like(derivative)))
    )
    np.testing.assert_allclose(one.mean, other.mean, atol=1e-11)
    np.testing.assert_allclose(one.squares, other.squares, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(one.products, other.products, rtol=1e-11, atol=1e-11)
    assert unmasked.second_moment() > 1.2 * one.second_moment()


def test_fact_2_is_one_of_gaussian_noise_only() -> None:
    """With signs the law of V Uᵀε is not that of M ε: the fourth moments mix the units."""
    weight, derivative, gradient = layer()
    one, other = (
        moments([gradient], [factor], [1.0], [1.0], shared=False, slope="example", layers="joint")[0].second_moment()
        for factor in (orthogonal(weight, derivative, "rank"), Diagonal(derivative))
    )
    assert abs(one / other - 1) > 1e-2


def test_fact_2_is_one_of_independent_noise_only() -> None:
    """Shared noise sees A_bᵀA_c of different examples, and U_bV_bᵀV_cU_cᵀ is not M_bM_c."""
    weight, derivative, gradient = layer()
    kernel = np.ones((EXAMPLES, EXAMPLES))
    one, other = (
        moments([gradient], [f], [3.0], [1.0], shared=True, slope="example", layers="joint")[0].second_moment(kernel)
        for f in (orthogonal(weight, derivative, "rank"), Diagonal(derivative))
    )
    assert abs(one / other - 1) > 1e-2


def test_preconditioned_is_orthogonal_of_full_rank_and_masked_activity_perturbation() -> None:
    """Below a layer as wide: the live units and no others. With no unit dead it is plain activity perturbation."""
    weight, derivative, gradient = layer()
    factor = preconditioned(weight, derivative)
    np.testing.assert_array_equal(written_out(factor), written_out(orthogonal(weight, derivative, "rank")))
    np.testing.assert_allclose(covariance(factor), derivative[:, :, None] * np.eye(6), atol=1e-12)
    one, masked, plain = (
        moments([gradient], [f], [3.0], [1.0], shared=False, slope="example", layers="joint")[0]
        for f in (factor, Diagonal(derivative), Diagonal(np.ones_like(derivative)))
    )
    np.testing.assert_allclose(one.mean, gradient, atol=1e-12)
    np.testing.assert_allclose(one.squares, masked.squares, rtol=1e-11, atol=1e-11)
    assert one.second_moment() < 0.9 * plain.second_moment()
    whole = preconditioned(weight, np.ones_like(derivative))
    np.testing.assert_allclose(covariance(whole), np.broadcast_to(np.eye(6), (EXAMPLES, 6, 6)), atol=1e-12)


def test_dropping_the_null_directions_takes_their_part_of_the_variance_and_nothing_of_the_mean() -> None:
    """Kept, whichever they are, they add T to the variance for each of them, T = gᵀg in a pass of the layer's own."""
    weight, derivative, gradient = layer(7, 4, alive=2)  # rank 2 of the 4 columns
    factor = preconditioned(weight, derivative)
    kept, missing = written_out(factor), np.zeros(EXAMPLES)
    rng = np.random.default_rng(9)
    for example, jacobian in enumerate(jacobians(weight, derivative)):
        u, _, v = np.linalg.svd(jacobian)
        rank = np.linalg.matrix_rank(jacobian)
        null = np.linalg.qr(rng.normal(size=(7 - rank, 7 - rank)))[0] @ v[rank:]
        kept[example] += null[: 4 - rank].T @ u[:, rank:].T
        missing[example] = 4 - rank
    assert missing.max() >= 2
    one, other = (
        moments([gradient], [f], [3.0], [1.0], shared=False, slope="example", layers="joint")[0]
        for f in (factor, Dense(kept))
    )
    np.testing.assert_allclose(other.mean, one.mean, atol=1e-12)
    added = np.diagonal(other.products) - np.diagonal(one.products)
    np.testing.assert_allclose(added, missing * np.sum(gradient**2, axis=1), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("which", ["top", "bottom"])
def test_a_cut_between_equal_singular_values_is_known(which: Which) -> None:
    values = np.array([[3.0, 2.0, 2.0, 1.0, 0.0], [3.0, 2.0, 1.0, 0.5, 0.2], [0.0] * 5, [1.0] * 5])
    cut = {k: undetermined(values, (5, 5), k, which).tolist() for k in (1, 2, 3, 4, 5, "rank")}
    split = 2  # Of the first example: its second and third are equal.
    for k, found in cut.items():
        inside = k != "rank" and k != 5
        assert found == [k == split, False, False, inside], k
    near = np.array([[1.0, 0.5, 0.5 - 1e-7]])
    assert undetermined(near, (3, 3), 2, which, 1e-7).all() != (which == "bottom")
    assert not undetermined(near, (3, 3), 2).any()


def test_what_does_not_fit_is_refused() -> None:
    weight, derivative, _ = layer()
    with pytest.raises(ValueError, match="k must be at least 1 or 'rank', got 0"):
        orthogonal(weight, derivative, 0)
    unknown: Any = "middle"
    with pytest.raises(ValueError, match="which must be 'top' or 'bottom', got 'middle'"):
        orthogonal(weight, derivative, 1, unknown)
    with pytest.raises(ValueError, match="sigma must be positive, got 0"):
        preconditioned(weight, derivative, 0.0)
    with pytest.raises(ValueError, match=r"same unit, got \(6, 6\) and \(4, 5\)"):
        singular_triplets(weight, derivative[:, :5])
    with pytest.raises(ValueError, match=r"must be \(iteration, 4\) .*, got the shape \(3, 3\)"):
        newton_schulz(weight, derivative, np.ones((3, 3)))
