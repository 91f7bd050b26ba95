"""A network and a batch on which every broken estimator makes a difference, small enough to enumerate."""

from __future__ import annotations

import torch

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot


def snapshot(units: int = 2, device: str = "cpu") -> Snapshot:
    """Two layers of ``units`` ReLU units and classes without biases, and three examples, the second one padding.

    The padding is an input of zeros, so that pre-activations of exactly zero occur; one unit of the others is dead.
    Twelve numbers of noise at the activations of two units: few enough to enumerate.
    """
    network = fga.networks.mlp([units, units, units], bias=False, seed=9, dtype=torch.float64)
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(3, units, generator=generator, dtype=torch.float64)
    inputs[1] = 0
    targets = torch.tensor([0, 1, 1])
    return fga.capture(network.to(device), torch.nn.functional.cross_entropy, inputs.to(device), targets.to(device))
