"""Products with the curvature of networks that capture takes, against differences of exact gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.measuring.kinks import has_kinks
from fganalysis.measuring.second_derivatives import Curvature
from fganalysis.measuring.ways_to_products import MATRICES_OF_CURVATURE, Matrix
from tests.laws import tiny_snapshot
from tests.unit.measuring.curved import SNAPSHOTS, dense
from tests.unit.measuring.test_curvature_of_modules import Applied, Squared, SquaredForward, SquaredOnce

cross_entropy = nn.functional.cross_entropy


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.reader = nn.LSTM(3, 4, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.reader(inputs)[0][:, -1])
        return outputs


def seeded(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def networks() -> dict[str, tuple[nn.Module, Tensor]]:
    torch.manual_seed(0)
    attention = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True, activation="gelu")
    return {
        "convolution": (
            nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 3)),
            seeded(5, 1, 6, 6),
        ),
        "recurrent": (Recurrent(), seeded(5, 4, 3)),
        "batch statistics": (
            nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)),
            seeded(6, 4),
        ),
        "attention": (nn.Sequential(attention, nn.Flatten(), nn.Linear(12, 3)), seeded(5, 3, 4)),
        "layer norm": (nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 3)), seeded(6, 4)),
    }


NETWORKS = networks()


def slopes_change(snapshot: Snapshot, vector: Tensor, step: float = 1e-5) -> float:
    """vᵀ(∇L(θ + hv) − ∇L(θ − hv))/2h, in double precision."""
    network = copy.deepcopy(snapshot.network).double()
    names = [name for layer in snapshot.weights for name in layer.parameter_names]
    along: dict[str, Tensor] = {}
    parts = vector.double().split([layer.weight.numel() for layer in snapshot.weights])
    for layer, part in zip(snapshot.weights, parts, strict=True):
        along |= layer.by_parameter(part.view(layer.weight.shape))
    slopes = []
    for sign in (1, -1):
        moved = copy.deepcopy(network)
        for name in names:
            moved.get_parameter(name).data += sign * step * along[name]
        loss = snapshot.loss_fn(moved(snapshot.inputs.double()), snapshot.targets)
        gradients = torch.autograd.grad(loss, [moved.get_parameter(name) for name in names])
        slopes.append(sum(float((g * along[name]).sum()) for g, name in zip(gradients, names, strict=True)))
    return (slopes[0] - slopes[1]) / (2 * step)


@pytest.mark.parametrize("name", NETWORKS)
def test_forms_are_differences_of_slopes(name: str) -> None:
    network, inputs = NETWORKS[name]
    snapshot = fga.capture(network, cross_entropy, inputs, torch.arange(len(inputs)) % 3)
    before = copy.deepcopy(snapshot.network.state_dict())
    product = Curvature(snapshot, "hessian")
    vectors = seeded(3, product.n_weights)
    expected = [slopes_change(snapshot, vector) for vector in vectors]
    np.testing.assert_allclose(product.forms(vectors), expected, rtol=1e-3, atol=1e-4)
    assert product.way == ("without fused kernels" if name == "recurrent" else "forward over reverse")
    assert all(torch.equal(value, before[key]) for key, value in snapshot.network.state_dict().items())
    found = fga.progress(snapshot, "weight", 32)
    assert bool(found["curvature_along"].notnull().all()) and found.attrs["products"] == product.way


@pytest.mark.parametrize("kind", MATRICES_OF_CURVATURE)
@pytest.mark.parametrize("name", ["bias", "no bias"])
def test_products_are_those_of_the_dense_matrix_in_a_batch_and_one_by_one(name: str, kind: Matrix) -> None:
    snapshot = SNAPSHOTS[name]
    product, matrix = Curvature(snapshot, kind), dense(snapshot, kind)
    axes = torch.eye(len(matrix), dtype=torch.float64)
    assert product.batched
    np.testing.assert_allclose(product.products(axes), matrix, atol=1e-12)
    product.batched = False
    np.testing.assert_allclose(product.products(axes), matrix, atol=1e-12)


@pytest.mark.parametrize("kind", MATRICES_OF_CURVATURE)
def test_squared_errors_are_multiplied_in_a_batch(kind: Matrix) -> None:
    """Forward mode over reverse mode fails for torch's own loss, and not for the same written out."""
    snapshot = SNAPSHOTS["bias"]
    targets = seeded(len(snapshot.inputs), 3).double()
    found, expected = (
        Curvature(fga.capture(snapshot.network, loss, snapshot.inputs, targets), kind)
        for loss in (nn.functional.mse_loss, lambda outputs, wanted: (outputs - wanted).square().mean())
    )
    assert found.batched and expected.batched and expected.way == "forward over reverse"
    vectors = seeded(3, found.n_weights).double()
    torch.testing.assert_close(found.products(vectors), expected.products(vectors))


@pytest.mark.parametrize("kind", MATRICES_OF_CURVATURE)
def test_a_function_without_a_forward_rule_is_differentiated_twice_in_reverse(kind: Matrix) -> None:
    expected = Curvature(with_layer(torch.square), kind)
    vectors = seeded(3, expected.n_weights).double()
    ways = {
        SquaredForward: "forward over reverse",
        Squared: "reverse over reverse",
        SquaredOfOldStyle: "reverse one by one",
    }
    for function, way in ways.items():
        found = Curvature(with_layer(function.apply), kind)  # type: ignore[arg-type]
        assert found.way == way
        torch.testing.assert_close(found.products(vectors), expected.products(vectors))


class SquaredOfOldStyle(torch.autograd.Function):
    """A function that no transform of torch.func takes."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        ctx.save_for_backward(inputs)
        return inputs.square()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return 2 * gradients[0] * ctx.saved_tensors[0]


def with_layer(function: Callable[[Tensor], Tensor]) -> Snapshot:
    """A network with this function in the place of tanh, captured."""
    snapshot = SNAPSHOTS["bias"]
    layers = [
        Applied(function) if isinstance(layer, nn.Tanh) else layer
        for layer in copy.deepcopy(snapshot.network).children()
    ]
    return fga.capture(nn.Sequential(*layers), snapshot.loss_fn, snapshot.inputs, snapshot.targets)


class Detached(torch.autograd.Function):
    """A square whose backward pass is differentiated as if it were a constant: a wrong second derivative, unsaid."""

    @staticmethod
    def forward(inputs: Tensor) -> Tensor:
        return inputs.square()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.save_for_forward(inputs[0])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return 2 * gradients[0] * ctx.saved_tensors[0].detach()

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        return 2 * tangents[0] * ctx.saved_tensors[0]


@pytest.mark.parametrize("function", [SquaredOnce, Detached])
def test_what_cannot_be_differentiated_twice_is_refused(function: Any) -> None:
    with pytest.raises(ValueError, match=r"the Hessian is not available, as the network or its loss .* twice, or use"):
        fga.progress(with_layer(function.apply), "weight", 32)


def test_losses_at_steps_are_those_of_moved_weights() -> None:
    snapshot = tiny_snapshot((3, 4, 2))
    product = Curvature(snapshot, "hessian")
    vector = torch.ones(1, product.n_weights, dtype=torch.float64)
    below, above = product.changes(vector, 0.1)[:, 0].tolist()
    for change, sign in ((below, -1), (above, 1)):
        network = copy.deepcopy(snapshot.network)
        for parameter in network.parameters():
            parameter.data += 0.1 * sign
        loss = snapshot.loss_fn(network(snapshot.inputs), snapshot.targets)
        assert change == pytest.approx(float((loss - snapshot.loss).detach()), rel=1e-9)


def test_vectors_of_any_length() -> None:
    product = Curvature(replace(SNAPSHOTS["bias"]), "hessian")
    vector = torch.randn(1, product.n_weights, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    plain = float(product.forms(vector)[0])
    for power in (-120, 120):
        assert float(product.forms(vector * 10.0**power)[0]) == pytest.approx(plain * 10.0 ** (2 * power), rel=1e-9)
    assert float(product.forms(0 * vector)[0]) == 0


@pytest.mark.parametrize(
    ("module", "kinked"),
    [
        (nn.ReLU(), True),
        (nn.LeakyReLU(), True),
        (nn.Hardtanh(), True),
        (nn.SELU(), True),
        (nn.ELU(), False),
        (nn.Tanh(), False),
        (nn.GELU(), False),
        (nn.Sequential(nn.Unflatten(1, (1, 4)), nn.MaxPool1d(2), nn.Flatten()), True),
        (Applied(lambda x: x.abs()), True),
        (Applied(lambda x: x.clamp(-1, 1)), True),
    ],
    ids=str,
)
def test_kinks_are_found_on_the_recorded_graph(module: nn.Module, kinked: bool) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), module, nn.LazyLinear(2))
    network(seeded(6, 3))
    snapshot = fga.capture(network, cross_entropy, seeded(6, 3), torch.arange(6) % 2)
    assert has_kinks(snapshot) is kinked
