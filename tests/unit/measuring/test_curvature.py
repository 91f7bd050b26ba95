"""Curvature products and eigenvectors against the dense matrices of tiny networks."""

import numpy as np
import pytest
import torch
from torch import Tensor

import fganalysis as fga
from fganalysis.measuring import curvature
from fganalysis.measuring.curvature import Product
from tests.laws import tiny_snapshot
from tests.unit.measuring.curved import PRODUCTS, SNAPSHOTS, dense, forward


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("kind", SNAPSHOTS)
def test_products_and_eigenvectors_are_those_of_the_dense_matrix(kind: str, name: str) -> None:
    snapshot = SNAPSHOTS[kind]
    expected = dense(snapshot, name)
    product = PRODUCTS[name](snapshot)
    columns = torch.stack([product(row) for row in torch.eye(len(expected), dtype=torch.float64)], dim=1)
    np.testing.assert_allclose(columns.numpy(), expected, atol=1e-12)
    found = curvature.dominant(product, snapshot, 3, tolerance=1e-10)
    values, vectors = np.linalg.eigh(expected)
    np.testing.assert_allclose(found.values, values[::-1][:3], rtol=1e-8)
    np.testing.assert_allclose(np.abs(np.sum(found.vectors * vectors[:, ::-1][:, :3], axis=0)), 1, atol=1e-8)
    np.testing.assert_allclose(found.vectors.T @ found.vectors, np.eye(3), atol=1e-10)


def test_the_two_matrices_differ_and_agree_where_the_outputs_are_linear() -> None:
    curved, linear = SNAPSHOTS["bias"], SNAPSHOTS["one layer"]
    assert not np.allclose(dense(curved, "hessian"), dense(curved, "gauss_newton"), atol=1e-4)
    np.testing.assert_allclose(dense(linear, "hessian"), dense(linear, "gauss_newton"), atol=1e-12)


def test_weights_are_in_the_order_of_the_weight_gradients() -> None:
    """A step along the gradient changes the gradient by H times the step."""
    snapshot = SNAPSHOTS["bias"]
    gradient = torch.cat([g.flatten() for g in snapshot.weight_gradients])
    moved = torch.cat([tap.weight.flatten() for tap in snapshot.taps]) + 1e-5 * gradient
    moved.requires_grad_()
    loss = torch.nn.functional.cross_entropy(forward(snapshot, moved), snapshot.targets)
    (after,) = torch.autograd.grad(loss, moved)
    change = (after - gradient) / 1e-5
    np.testing.assert_allclose(change, curvature.hessian_product(snapshot)(gradient), rtol=1e-3, atol=1e-6)


def test_single_precision_and_a_given_start() -> None:
    double = SNAPSHOTS["no bias"]
    network = fga.networks.mlp([4, 5, 3], bias=False, seed=0, activation=torch.nn.Tanh)
    single = fga.capture(network, double.loss_fn, double.inputs.float(), double.targets)
    expected = curvature.dominant(curvature.hessian_product(double), double, 2)
    found = curvature.dominant(curvature.hessian_product(single), single, 2, start=expected.vectors[:, 0])
    np.testing.assert_allclose(found.values, expected.values, rtol=1e-4)
    assert found.vectors.dtype == np.float64


def test_mistakes_are_refused_by_name() -> None:
    snapshot = tiny_snapshot((2, 2, 2))
    with pytest.raises(ValueError, match="k must be between 1 and 7, one less than the weights, got 8"):
        curvature.dominant(curvature.hessian_product(snapshot), snapshot, 8)
    with pytest.raises(ValueError, match=r"k must be a whole number, got 2\.5"):
        curvature.dominant(curvature.hessian_product(snapshot), snapshot, 2.5)  # type: ignore[arg-type]
    for start in (np.ones(3), np.ones((8, 1))):
        with pytest.raises(ValueError, match=r"start must have the shape \(8,\), got \(3,\)|got \(8, 1\)"):
            curvature.dominant(curvature.hessian_product(snapshot), snapshot, 2, start=start)
    for make in PRODUCTS.values():
        with pytest.raises(ValueError, match=r"vector must have the shape \(35,\), got \(8,\)"):
            curvature.dominant(make(SNAPSHOTS["no bias"]), snapshot, 2)
    with pytest.raises(ValueError, match=r"product must return the shape \(8,\), got \(3,\)"):
        curvature.dominant(lambda vector: vector[:3], snapshot, 2)
    with pytest.raises(ValueError, match="what product returns has NaN or infinite entries"):
        curvature.dominant(lambda vector: vector * float("nan"), snapshot, 2)
    flat = fga.capture(
        fga.networks.mlp([5, 3], seed=0), lambda outputs, _: outputs.mean(), torch.ones(6, 5), torch.zeros(6)
    )
    with pytest.raises(ValueError, match="the product is zero at the start of Lanczos"):
        curvature.dominant(curvature.hessian_product(flat), flat, 2)


def test_the_hessian_is_that_of_every_trained_parameter() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 2)).double()
    inputs = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    targets = torch.tensor([0, 1, 0, 1, 1])
    normed = fga.capture(network, torch.nn.functional.cross_entropy, inputs, targets)
    parameters = list(network.parameters())
    vector = torch.randn(34, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    along: dict[str, torch.Tensor] = {}
    parts = vector.split([layer.weight.numel() for layer in normed.weights])
    for layer, part in zip(normed.weights, parts, strict=True):
        along |= layer.by_parameter(part.view(layer.weight.shape))
    loss = torch.nn.functional.cross_entropy(network(inputs), targets)
    gradients = torch.autograd.grad(loss, parameters, create_graph=True)
    slope = sum((g * along[name]).sum() for g, (name, _) in zip(gradients, network.named_parameters(), strict=True))
    exact = dict(zip([n for n, _ in network.named_parameters()], torch.autograd.grad(slope, parameters), strict=True))
    found = curvature.hessian_product(normed)(vector)
    expected = torch.cat([layer.columns(exact).flatten() for layer in normed.weights])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_eigenpairs_do_not_depend_on_the_unit_of_the_loss(name: str, dtype: torch.dtype) -> None:
    """Over 10^±25 in single precision and 10^±150 in double.

    The tolerance of ARPACK has an absolute part of 4e-11: at 1e-25 it stops at once, with eigenvalues 14 % off.
    """
    cross_entropy = torch.nn.functional.cross_entropy
    inputs = torch.randn(40, 10, generator=torch.Generator().manual_seed(0)).to(dtype)
    network = fga.networks.mlp([10, 12, 5], seed=0, activation=torch.nn.Tanh, dtype=dtype)
    found: dict[int, curvature.Eigenpairs] = {}
    for digits in (0, -25, 25) if dtype == torch.float32 else (0, -150, 150):

        def scaled(outputs: Tensor, targets: Tensor, size: float = 10.0**digits) -> Tensor:
            return size * cross_entropy(outputs, targets)

        snapshot = fga.capture(network, scaled, inputs, torch.arange(40) % 5)
        found[digits] = curvature.dominant(PRODUCTS[name](snapshot), snapshot, 6, tolerance=1e-4)
    slack = 1e-4 if dtype == torch.float32 else 1e-10
    for digits, one in found.items():
        np.testing.assert_allclose(one.values / 10.0**digits, found[0].values, rtol=slack)
        np.testing.assert_allclose(np.abs(np.sum(one.vectors * found[0].vectors, 0)), 1, rtol=slack)


def test_zero_eigenvalues_have_no_vectors() -> None:
    """Three outputs of a linear network with two inputs and a softmax: G has 2 · 2 eigenvalues, and null directions."""
    snapshot = tiny_snapshot((2, 3), n_examples=5)
    product = curvature.gauss_newton_product(snapshot)
    vectors = []
    for seed in (0, 1):
        found = curvature.dominant(product, snapshot, 5, seed=seed)
        assert np.all(found.values[:4] > 1e-3)
        assert found.values[4] == 0
        np.testing.assert_array_equal(found.vectors[:, 4], 0)
        vectors.append(found.vectors)
    np.testing.assert_allclose(np.abs(np.sum(vectors[0] * vectors[1], 0)), [1, 1, 1, 1, 0], atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sizes", [(20, 30, 30, 30, 5), (8, 100, 4)])
def test_products_of_networks_are_symmetric_enough_and_others_are_refused(
    sizes: tuple[int, ...], dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(40, sizes[0], generator=generator).to(dtype)
    network = fga.networks.mlp(list(sizes), seed=0, dtype=dtype)
    snapshot = fga.capture(network, torch.nn.functional.cross_entropy, inputs, torch.arange(40) % sizes[-1])
    for make in PRODUCTS.values():
        product = make(snapshot)
        n_weights = sum(tap.weight.numel() for tap in snapshot.taps)
        curvature.dominant(product, snapshot, 2, tolerance=1e-2)
        skewed = torch.randn(n_weights, generator=generator).to(dtype) / n_weights**0.5
        other = torch.randn(n_weights, generator=generator).to(dtype) / n_weights**0.5
        wrong: dict[str, Product] = {
            "turned": lambda v: product(v).roll(1),  # noqa: B023
            "a part in ten": lambda v: product(v) + 0.1 * skewed * (other @ v),  # noqa: B023
            "one-sided": lambda v: product(v) * torch.linspace(0.5, 1, len(v), dtype=v.dtype),  # noqa: B023
        }
        for each in wrong.values():
            with pytest.raises(ValueError, match="the product is not symmetric"):
                curvature.dominant(each, snapshot, 2)


def test_what_lanczos_cannot_do_is_said_in_one_sentence() -> None:
    snapshot = SNAPSHOTS["bias"]
    product = curvature.hessian_product(snapshot)
    n_weights = sum(tap.weight.numel() for tap in snapshot.taps)
    for start in (np.zeros(n_weights), torch.zeros(n_weights)):
        with pytest.raises(ValueError, match="start must not be zero"):
            curvature.dominant(product, snapshot, 2, start=start)
    huge = curvature.dominant(product, snapshot, 2, start=1e300 * np.ones(n_weights))
    np.testing.assert_allclose(huge.values, curvature.dominant(product, snapshot, 2).values, rtol=1e-5)
    with pytest.raises(ValueError, match="product fails on a vector of 43 weights: RuntimeError"):
        curvature.dominant(lambda vector: torch.ones(3, 3, dtype=torch.float64) @ vector, snapshot, 2)
    inputs = torch.tensor([[1.0], [2.0]])
    single = fga.capture(torch.nn.Linear(1, 1, bias=False), torch.nn.functional.mse_loss, inputs, inputs.square())
    with pytest.raises(ValueError, match="the network has one trainable weight"):
        curvature.dominant(curvature.hessian_product(single), single, 1)
