"""Curvature of what else a module may hold: frozen parameters, custom functions, another mode of autograd."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.measuring import curvature
from fganalysis.measuring.curvature import Product
from tests.unit.measuring.curved import PRODUCTS, SNAPSHOTS, dense


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
