"""The loss of a network as a function of its weights, and its derivatives."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot


def loss_of_weights(snapshot: Snapshot) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """The loss as a function of all weights in one vector, in the order of the guesses, and where they are now."""
    shapes = [tap.weight.shape for tap in snapshot.taps]

    def loss(flat: Tensor) -> Tensor:
        moved = {}
        parts = flat.split([shape.numel() for shape in shapes])
        for tap, part, shape in zip(snapshot.taps, parts, shapes, strict=True):
            weight = part.view(shape)
            moved[f"{tap.name}.weight"] = weight[:, : shape[1] - tap.has_bias]
            if tap.has_bias:
                moved[f"{tap.name}.bias"] = weight[:, -1]
        outputs = torch.func.functional_call(snapshot.network, moved, (snapshot.inputs,))
        return snapshot.loss_fn(outputs, snapshot.targets)

    return loss, torch.cat([tap.weight.flatten() for tap in snapshot.taps])


def hessian_of(snapshot: Snapshot) -> np.ndarray:
    loss, weights = loss_of_weights(snapshot)
    return np.asarray(torch.func.hessian(loss)(weights))


def third_of(snapshot: Snapshot) -> np.ndarray:
    loss, weights = loss_of_weights(snapshot)
    return np.asarray(torch.func.jacfwd(torch.func.hessian(loss))(weights))


def single_precision(
    loss_fn: Callable[[Tensor, Tensor], Tensor] = nn.functional.mse_loss, dtype: torch.dtype = torch.float32
) -> Snapshot:
    generator = torch.Generator().manual_seed(0)
    network = fga.networks.mlp([3, 4, 2], seed=0, bias=False, dtype=dtype)
    inputs, targets = torch.randn(4, 3, generator=generator), torch.randn(4, 2, generator=generator)
    return fga.capture(network, loss_fn, inputs.to(dtype), targets.to(dtype))
