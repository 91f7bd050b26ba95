"""Tiny networks, the two curvature products by name, and the dense matrices that they stand for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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
