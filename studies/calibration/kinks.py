"""From which truncation error on `fganalysis.difference_step` says that kinks make it: false alarms and power.

At the best ε by derivatives, the root mean square of the truncation error is measured and divided by that of the
derivatives. Of a smooth loss this ratio is near 1, unless ε is so large that derivatives of higher order matter, as in
half precision. Kinks raise it. Above the cut-off the best ε is by kinks, whose error is measured too.
"""

from __future__ import annotations

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators.perturbation.finite_difference import FiniteDifference
from fganalysis.measuring.difference_errors import Directions, TwoPrecisions, measured_near_best
from fganalysis.measuring.difference_step import PRECISIONS, SCHEMES
from fganalysis.measuring.loss_along import LossAlong
from fganalysis.results import schema

Array = NDArray[np.float64]
SMOOTH: dict[str, type[torch.nn.Module]] = {
    "tanh": torch.nn.Tanh,
    "sigmoid": torch.nn.Sigmoid,
    "softplus": torch.nn.Softplus,
    "GELU": torch.nn.GELU,
    "SiLU": torch.nn.SiLU,
}
KINKED: dict[str, type[torch.nn.Module]] = {
    "ReLU": torch.nn.ReLU,
    "leaky ReLU": torch.nn.LeakyReLU,
    "hard tanh": torch.nn.Hardtanh,
}
CUT_OFFS = (1.2, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
SIZES, EXAMPLES = (6, 12, 12, 4), 24
DIRECTIONS = 32


def network(activation: str, seed: int, device: str) -> Snapshot:
    """In single precision, with cross-entropy."""
    module = fga.networks.mlp(list(SIZES), seed=seed, activation=(SMOOTH | KINKED)[activation])
    inputs = torch.randn(EXAMPLES, SIZES[0], generator=torch.Generator().manual_seed(seed))
    targets = torch.arange(EXAMPLES) % SIZES[-1]
    return fga.capture(module.to(device), torch.nn.functional.cross_entropy, inputs.to(device), targets.to(device))


def ratios(activation: str, networks: int, seed: int, device: str) -> xr.Dataset:
    """Over (network, precision, scheme): the ratio at the best ε by derivatives, and the slope's error there and at the
    best ε by kinks, over ‖g‖."""
    shape = (networks, len(PRECISIONS), len(SCHEMES))
    ratio, by_derivatives, by_kinks = (np.full(shape, np.nan) for _ in range(3))
    for number in range(networks):
        snapshot = network(activation, seed + number, device)
        directions = Directions(snapshot, FiniteDifference(), DIRECTIONS, seed + number)
        along = directions.derivatives(LossAlong(snapshot, torch.float64))
        norm = float(sum(part.double().square().sum() for part in snapshot.weight_gradients)) ** 0.5
        for place, dtype in enumerate(PRECISIONS.values()):
            pair = TwoPrecisions(snapshot, dtype)
            for row, central in enumerate(SCHEMES.values()):
                smooth, kinked = (
                    measured_near_best(pair, directions, along, central, far=far) for far in (np.inf, 0.0)
                )
                at = (number, place, row)
                ratio[at] = smooth.truncation_ratio.value
                by_derivatives[at], by_kinks[at] = (
                    float(one.squared_error.value) ** 0.5 / norm for one in (smooth, kinked)
                )
    dims = ("network", schema.PRECISION, schema.SCHEME)
    variables = {
        "ratio": (dims, ratio),
        "error_by_derivatives": (dims, by_derivatives),
        "error_by_kinks": (dims, by_kinks),
    }
    coordinates = {schema.PRECISION: list(PRECISIONS), schema.SCHEME: list(SCHEMES)}
    return xr.Dataset(variables, coords=coordinates)
