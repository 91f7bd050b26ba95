"""What the pages of `studies.subspaces` pick from its collected Dataset, and how they compare it."""

from __future__ import annotations

from collections.abc import Sequence

import xarray as xr

from fganalysis import schema
from studies.markdown import listed, verb
from studies.seed_intervals import Interval
from studies.subspace_cells import METHODS

STATES = METHODS[:3]
NEAR = 0.1  # shares are called alike where they differ by less
Answer = tuple[str, list[str]]  # in short, and the section that backs it


def trained(collected: xr.Dataset, name: str, width: int, method: str) -> xr.DataArray:
    """A variable after the last step of one method at one width."""
    return collected[name].sel(width=width, trained_by=method, moment="last")


def hidden_layers(collected: xr.Dataset) -> list[str]:
    return [str(name) for name in collected["layer"].values if name != schema.ALL_LAYERS][:-1]


def output_layer(collected: xr.Dataset) -> str:
    return [str(name) for name in collected["layer"].values if name != schema.ALL_LAYERS][-1]


def all_widths(collected: xr.Dataset) -> list[int]:
    return [int(width) for width in collected["width"].values]


def verbs(intervals: Sequence[Interval], more: str, less: str, neither: str) -> str:
    said = [verb(one, more, less, neither) for one in intervals]
    return said[0] if len(set(said)) == 1 else listed(said)


def within(own: Interval, low: float, high: float) -> str:
    return "yes" if own.low <= high and low <= own.high else "no"
