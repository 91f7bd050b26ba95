"""Curvature products and eigenvectors against the dense matrices of tiny networks."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.measuring import curvature
from fganalysis.measuring.curvature import Product
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
    with pytest.raises(ValueError, match="what product returns has NaN or infinite entries"):
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


@pytest.mark.parametrize("parameters", [["0.weight"], ["0.bias"], ["2.weight", "0.bias"], ["0.weight", "0.bias"]])
@pytest.mark.parametrize("name", PRODUCTS)
def test_frozen_parameters_have_no_curvature(name: str, parameters: list[str]) -> None:
    """The product is the block of the whole matrix that belongs to the trainable parameters."""
    whole = SNAPSHOTS["bias"]
    network = copy.deepcopy(whole.network)
    for leaf in parameters:
        network.get_parameter(leaf).requires_grad_(False)
    partly = fga.capture(network, whole.loss_fn, whole.inputs, whole.targets)
    kept = []
    for tap in whole.taps:
        marks = {
            leaf: torch.full_like(part, leaf not in parameters) for leaf, part in tap.by_parameter(tap.weight).items()
        }
        kept.append(tap.columns(marks).flatten().bool())
    block = torch.cat(kept).numpy()
    product = PRODUCTS[name](partly)
    n_weights = int(block.sum())
    columns = torch.stack([product(row) for row in torch.eye(n_weights, dtype=torch.float64)], dim=1)
    np.testing.assert_allclose(columns.numpy(), dense(whole, name)[np.ix_(block, block)], atol=1e-12)


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


class Squared(torch.autograd.Function):
    """A function with a backward pass alone: forward mode has no rule for it."""

    @staticmethod
    def forward(inputs: Tensor) -> Tensor:
        return inputs.square()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.save_for_forward(inputs[0])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return 2 * gradients[0] * ctx.saved_tensors[0]


class SquaredOnce(Squared):
    """Differentiable once: in reverse mode its second derivative would be zero without a word."""

    backward = staticmethod(once_differentiable(Squared.backward))


class SquaredForward(Squared):
    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        return 2 * tangents[0] * ctx.saved_tensors[0]


class Applied(torch.nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, inputs: Tensor) -> Tensor:
        return self.function(inputs)


def with_layer(function: Callable[[Tensor], Tensor]) -> Snapshot:
    snapshot = SNAPSHOTS["bias"]
    network = copy.deepcopy(snapshot.network)
    layers = [Applied(function) if isinstance(layer, torch.nn.Tanh) else layer for layer in network.children()]
    return replace(snapshot, network=torch.nn.Sequential(*layers))


@pytest.mark.parametrize("make", PRODUCTS.values(), ids=PRODUCTS)
def test_a_custom_function_with_a_forward_rule_has_products(make: Callable[[Snapshot], Product]) -> None:
    vector = torch.cat([g.flatten() for g in SNAPSHOTS["bias"].weight_gradients])
    expected = make(with_layer(torch.square))(vector)
    assert expected.norm() > 0.01
    torch.testing.assert_close(make(with_layer(SquaredForward.apply))(vector), expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("function", [Squared, SquaredOnce])
@pytest.mark.parametrize("make", PRODUCTS.values(), ids=PRODUCTS)
def test_a_function_without_a_second_derivative_in_forward_mode_is_refused(
    make: Callable[[Snapshot], Product], function: type[Squared]
) -> None:
    changed = with_layer(function.apply)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the network or its loss has no curvature product: it takes a second"):
        curvature.dominant(make(changed), changed, 1)


@pytest.mark.parametrize("make", PRODUCTS.values(), ids=PRODUCTS)
def test_a_product_is_the_same_whatever_mode_the_caller_is_in(make: Callable[[Snapshot], Product]) -> None:
    snapshot = SNAPSHOTS["bias"]
    vector = torch.cat([g.flatten() for g in snapshot.weight_gradients])
    expected = make(snapshot)(vector)
    with torch.no_grad():
        torch.testing.assert_close(make(snapshot)(vector), expected, rtol=0, atol=0)
    with torch.inference_mode(), torch.autocast("cpu"):
        torch.testing.assert_close(make(snapshot)(vector).clone(), expected, rtol=0, atol=0)
