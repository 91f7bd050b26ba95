"""What the pages of `studies.subspaces` pick from its collected Dataset, and how they compare it."""

from __future__ import annotations

import numpy as np
import xarray as xr

from fganalysis.results import schema
from studies.kit.seeds import Interval
from studies.subspaces.cells import METHODS

STATES = METHODS[:3]
NEAR = 0.1  # shares are called alike where they differ by less


def trained(collected: xr.Dataset, name: str, width: int, method: str) -> xr.DataArray:
    """A variable after the last step of one method at one width."""
    return collected[name].sel(width=width, trained_by=method, moment="last")


def hidden_layers(collected: xr.Dataset) -> list[str]:
    return [str(name) for name in collected["layer"].values if name != schema.ALL_LAYERS][:-1]


def output_layer(collected: xr.Dataset) -> str:
    return [str(name) for name in collected["layer"].values if name != schema.ALL_LAYERS][-1]


def all_widths(collected: xr.Dataset) -> list[int]:
    return [int(width) for width in collected["width"].values]


def factor(logarithm: Interval) -> str:
    """A positive number, from the interval of its logarithm: 0.0102 (0.0077 to 0.0135)."""
    mean, low, high = (f"{np.exp(one):.3g}" for one in (logarithm.mean, logarithm.low, logarithm.high))
    return f"{mean} ({low} to {high})"


def within(own: Interval, low: float, high: float) -> str:
    return "yes" if own.low <= high and low <= own.high else "no"
