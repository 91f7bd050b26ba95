"""Users' names of estimators and layers as matplotlib takes them: no mathematics, none left out, none too long."""

from __future__ import annotations

from dataclasses import replace

import xarray as xr

from fganalysis.reporting.parts import Part
from fganalysis.results import schema

LONGEST_NAME = 36  # Longer names leave no room for the panels.


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
    for dim in (schema.ESTIMATOR, schema.LAYER):
        if dim in dataset.dims and dim in dataset.coords:
            whole = [str(name) for name in dataset[dim].values]
            names = list(map(shown_name, whole))
            if len(set(names)) < len(names):  # What tells them apart is in the middle.
                names = [shown_name(f"{number} {name}") for number, name in enumerate(whole, 1)]
            dataset = dataset.assign_coords({dim: names})
    return dataset


def shown_name(name: str) -> str:
    """One name: "$" would begin mathematics, and a legend leaves out what begins with "_"."""
    text = " ".join(name.split())
    text = text if len(text) <= LONGEST_NAME else f"{text[: LONGEST_NAME - 10]}…{text[-9:]}"
    return (" " + text if text.startswith("_") else text).replace("$", r"\$")
