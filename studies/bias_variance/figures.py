"""The figures of `studies.bias_variance`: those of `fganalysis.plotting` for both spaces, and an overview."""

from __future__ import annotations

from pathlib import Path

import xarray as xr

from fganalysis.results import plotting, schema


def write(tree: xr.DataTree, folder: Path) -> None:
    """Writes the figures of one network beside its page."""
    for space in schema.SPACES:
        plotting.save(plotting.bias_variance(tree, space), folder / f"bias_variance_{space}.png")
        plotting.save(plotting.cosine(tree, space), folder / f"cosine_{space}.png")
    plotting.save(plotting.bias_variance(tree, "weight", [schema.ALL_LAYERS]), folder / "overview.png")
