"""Users' names of estimators and layers as matplotlib takes them: no mathematics, none left out, none too long."""

from __future__ import annotations

from dataclasses import replace

import xarray as xr

from fganalysis.reporting.parts import Part
from fganalysis.results import schema

# Characters. Longer names of estimators leave no room for the panels beside the legend, and of layers for each other.
NAME_LENGTHS = {schema.ESTIMATOR: 36, schema.LAYER: 18}


def for_figures(part: Part) -> Part:
    """The part with the names that figures show."""
    return replace(
        part,
        measured=renamed(part.measured),
        predicted=renamed(part.predicted),
        subspace=renamed(part.subspace),
    )


def renamed(dataset: xr.Dataset) -> xr.Dataset:
    """A Dataset with the names that figures show."""
    for dim, longest in NAME_LENGTHS.items():
        if dim in dataset.dims and dim in dataset.coords:
            whole = [str(name) for name in dataset[dim].values]
            names = [shown_name(name, longest) for name in whole]
            if len(set(names)) < len(names):  # What tells them apart is in the middle.
                names = [
                    name if name == schema.ALL_LAYERS else shown_name(f"{number} {name}", longest)
                    for number, name in enumerate(whole, 1)
                ]
            dataset = dataset.assign_coords({dim: names})
    return dataset


def shown_name(name: str, longest: int) -> str:
    """One name: "$" would begin mathematics, and a legend leaves out what begins with "_"."""
    text = " ".join(name.split())
    text = text if len(text) <= longest else f"{text[: longest - 8]}…{text[-7:]}"
    return (" " + text if text.startswith("_") else text).replace("$", r"\$")
