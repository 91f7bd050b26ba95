"""Derivatives of a loss along directions of all weights, and losses at moved weights, in several precisions."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fganalysis as fga
from fganalysis.estimators import FiniteDifference
from fganalysis.measuring.loss_along import LossAlong
from tests.refusals import refusal
from tests.unit.estimators.losses_of_weights import hessian_of, third_of

INPUTS = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TARGETS = torch.tensor([0, 1, 1, 0])


def captured(dtype: torch.dtype = torch.float64, **changes: Any) -> fga.Snapshot:
    network = fga.networks.mlp([2, 3, 2], seed=0, activation=nn.Tanh, dtype=dtype, **changes)
    return fga.capture(network, nn.functional.cross_entropy, INPUTS.to(dtype), TARGETS)


def drawn(snapshot: fga.Snapshot, n: int) -> tuple[Tensor, ...]:
    return FiniteDifference().draw(snapshot, n, torch.Generator().manual_seed(1))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("together", [False, True])
def test_derivatives_are_those_of_the_tensors(bias: bool, together: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """z·G, zᵀHz and T zzz against H and T in full; directions one by one where vmap does not take the network."""
    if not together:
        monkeypatch.setattr(torch.func, "vmap", lambda *arguments, **keywords: 1 / 0)
    snapshot = captured(bias=bias)
    directions, loss = drawn(snapshot, 3), LossAlong(snapshot, torch.float64)
    found = loss.derivatives(loss.directions(directions)).numpy()
    z = torch.cat([part.flatten(1) for part in directions], dim=1).numpy()
    gradient = torch.cat([part.flatten() for part in snapshot.weight_gradients]).numpy()
    expected = np.stack(
        [
            z @ gradient,
            np.einsum("ni,ij,nj->n", z, hessian_of(snapshot), z),
            np.einsum("ni,nj,nk,ijk->n", z, z, z, third_of(snapshot)),
        ],
        axis=1,
    )
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_losses_at_moved_weights_in_another_precision_leave_the_network_alone() -> None:
    snapshot = captured(torch.float32)
    before = copy.deepcopy(snapshot.network.state_dict())
    half = LossAlong(snapshot, torch.bfloat16)
    along = {name: part[0] for name, part in half.directions(drawn(snapshot, 1)).items()}
    assert {part.dtype for part in along.values()} == {torch.bfloat16}
    moved = half.moved(along, 0.25)
    network = copy.deepcopy(snapshot.network).to(torch.bfloat16)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.add_(along[name], alpha=0.25)
        expected = nn.functional.cross_entropy(network(snapshot.inputs.to(torch.bfloat16)), TARGETS)
    assert half.value(moved) == float(expected)
    double = LossAlong(snapshot, torch.float64)
    assert abs(double.value(double.weights) - float(snapshot.loss)) < 1e-6
    assert all(torch.equal(before[name], value) for name, value in snapshot.network.state_dict().items())


def test_what_has_no_third_derivative_is_refused() -> None:
    class Opaque(torch.autograd.Function):
        @staticmethod
        def forward(x: Tensor) -> Tensor:
            return x * x

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            ctx.save_for_backward(inputs[0])

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return 2 * ctx.saved_tensors[0] * gradient

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(2, 2, dtype=torch.float64)

        def forward(self, x: Tensor) -> Tensor:
            return Opaque.apply(self.first(x))

    snapshot = fga.capture(Network(), nn.functional.cross_entropy, INPUTS, TARGETS)
    message = refusal(lambda: fga.difference_step(snapshot, n_guesses=4))
    assert message is not None and "has no third derivative in forward mode" in message
