"""Tiny networks with a squared loss: one output unit is enough, so that few noise dimensions are left to enumerate."""

from __future__ import annotations

import torch
from torch import nn

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.capturing.tap import Loss


def regression_snapshot(
    sizes: tuple[int, ...],
    n_examples: int = 2,
    seed: int = 0,
    bias: bool = False,
    activation: type[nn.Module] = nn.Tanh,
    loss_fn: Loss = nn.functional.mse_loss,
) -> Snapshot:
    """A double-precision network on a random batch with random targets."""
    network = fga.networks.mlp(list(sizes), bias=bias, seed=seed, activation=activation, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed + 1)
    inputs = torch.randn(n_examples, sizes[0], generator=generator, dtype=torch.float64)
    targets = torch.randn(n_examples, sizes[-1], generator=generator, dtype=torch.float64)
    return fga.capture(network, loss_fn, inputs, targets)
