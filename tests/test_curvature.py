"""Curvature products and eigenvectors against the dense matrices of tiny networks."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

import fganalysis as fga
from fganalysis import curvature
from fganalysis.curvature import Product
from fganalysis.snapshot import Snapshot
from tests.laws import tiny_snapshot

SNAPSHOTS = {
    "no bias": tiny_snapshot((4, 5, 3), n_examples=7),
    "bias": tiny_snapshot((4, 5, 3), n_examples=7, bias=True),
    "one layer": tiny_snapshot((4, 3), n_examples=7, bias=True),
}
PRODUCTS: dict[str, Callable[[Snapshot], Product]] = {
    "hessian": curvature.hessian_product,
    "gauss_newton": curvature.gauss_newton_product,
}


def forward(snapshot: Snapshot, weights: Tensor) -> Tensor:
    """The outputs written out by hand: tanh between linear maps, the last column of a weight being the bias."""
    values, start = snapshot.inputs, 0
    for index, tap in enumerate(snapshot.taps):
        matrix = weights[start : start + tap.weight.numel()].reshape(tap.weight.shape)
        start += matrix.numel()
        values = torch.tanh(values) if index else values
        if tap.has_bias:
            values = torch.cat([values, torch.ones(len(values), 1, dtype=values.dtype)], dim=1)
        values = values @ matrix.T
    return values


def dense(snapshot: Snapshot, name: str) -> NDArray[np.float64]:
    weights = torch.cat([tap.weight.flatten() for tap in snapshot.taps])
    if name == "hessian":
        matrix: Any = torch.autograd.functional.hessian(
            lambda w: torch.nn.functional.cross_entropy(forward(snapshot, w), snapshot.targets), weights
        )
        return matrix.numpy()
    jacobian: Any = torch.autograd.functional.jacobian(lambda w: forward(snapshot, w), weights)
    shares = torch.softmax(forward(snapshot, weights), dim=1)
    inner = torch.diag_embed(shares) - shares[:, :, None] * shares[:, None, :]
    return torch.einsum("bcp,bcd,bdq->pq", jacobian, inner, jacobian).numpy() / snapshot.n_examples


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
    with pytest.raises(ValueError, match="the product has NaN or infinite entries"):
        curvature.dominant(lambda vector: vector * float("nan"), snapshot, 2)
    flat = fga.capture(
        fga.networks.mlp([5, 3], seed=0), lambda outputs, _: outputs.mean(), torch.ones(6, 5), torch.zeros(6)
    )
    with pytest.raises(ValueError, match="the product is zero at the start of Lanczos"):
        curvature.dominant(curvature.hessian_product(flat), flat, 2)
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 2))
    normed = fga.capture(network, torch.nn.functional.cross_entropy, torch.randn(5, 3), torch.tensor([0, 1, 0, 1, 1]))
    for make in PRODUCTS.values():
        with pytest.raises(ValueError, match=r"parameter '1\.weight' is in no Linear module"):
            make(normed)


class Scaled(torch.nn.Linear):
    """A Linear module with a parameter more, which is not trained."""

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__(inputs, units)
        self.scale = torch.nn.Parameter(torch.ones(1), requires_grad=False)


@pytest.mark.parametrize("make", PRODUCTS.values(), ids=PRODUCTS)
def test_what_else_a_module_holds_takes_no_part(make: Callable[[Snapshot], Product]) -> None:
    snapshot = SNAPSHOTS["bias"]
    network = torch.nn.Sequential(Scaled(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3)).double()
    network.load_state_dict(snapshot.network.state_dict(), strict=False)
    more = fga.capture(network, snapshot.loss_fn, snapshot.inputs, snapshot.targets)
    vector = torch.cat([g.flatten() for g in snapshot.weight_gradients])
    torch.testing.assert_close(make(more)(vector), make(snapshot)(vector), rtol=0, atol=0)
