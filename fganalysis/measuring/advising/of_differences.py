"""ε of finite differences, and the drift of the weights, from what `fganalysis.difference_step` measures."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import xarray as xr

from fganalysis.measuring.advising.advice import columns
from fganalysis.measuring.advising.bounded import Bounded, shown
from fganalysis.results import schema

MUCH_ERROR = 1.0  # Of a slope, from which on it makes less than half of the progress of an exact slope.


def of_differences(dataset: xr.Dataset) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of the table and sentences, for every precision and kind of difference."""
    reasons = json.loads(str(dataset.attrs.get(schema.NOT_MEASURED, "{}")))
    rows: list[dict[str, Any]] = []
    sentences: list[str] = []
    for precision in np.atleast_1d(dataset[schema.PRECISION].values):
        if str(precision) in reasons:
            sentences.append(f"{precision}: no ε is advised, since nothing was measured: {reasons[str(precision)]}.")
            continue
        for scheme in np.atleast_1d(dataset[schema.SCHEME].values):
            chosen = {schema.PRECISION: precision, schema.SCHEME: scheme}
            cell = dataset.sel({dim: value for dim, value in chosen.items() if dim in dataset.dims})
            row, sentence = _of_cell(cell, central=str(scheme) == "central")
            rows.append({name: str(value) for name, value in chosen.items()} | row)
            sentences.append(f"{precision}, {scheme} difference: {sentence}")
    return rows, sentences


def _of_cell(cell: xr.Dataset, *, central: bool) -> tuple[dict[str, Any], str]:
    best, error = Bounded.of(cell, "best_epsilon"), Bounded.of(cell, "least_slope_error")
    why_not = best.why_not()
    row: dict[str, Any] = columns("best_epsilon", best, not why_not)
    row |= columns("least_slope_error", error, not error.why_not()) | {"drift": math.nan, "unmoved": math.nan}
    if why_not:
        return row, f"no ε is advised: {why_not}."
    steps = np.atleast_1d(cell[schema.STEP_LENGTH].values)
    nearest = steps[np.argmin(np.abs(np.log(steps / best.value)))]
    at = cell.sel({schema.STEP_LENGTH: nearest}) if schema.STEP_LENGTH in cell.dims else cell
    row["unmoved"] = float(at["unmoved"])
    sentence = f"ε = {best.text()}"
    if float(cell["kinks"]) == 1:
        sentence += ", by kinks and not by derivatives"
    if error.why_not():
        sentence += f"; how far its slope is off is not known, as {error.why_not()}"
    else:
        kept = error.mapped(lambda value: 1 / (1 + value**2))
        sentence += f"; its slope is off by {error.text()} of ‖g‖, so that a step keeps {kept.text()} of its progress"
        if error.low > MUCH_ERROR:
            sentence += ": take a higher precision"
    if central:
        row["drift"] = float(at["drift"])
        sentence += (
            f"; adding and subtracting εz in place leaves {shown(row['drift'])} of ‖θ‖ in the weights every time "
            f"(at ε = {shown(float(nearest))})"
        )
    else:
        sentence += "; adding εz and subtracting it once leaves nothing in the weights"
    if row["unmoved"] >= 0.01:
        sentence += f", and {row['unmoved']:.0%} of the weights do not move"
    return row, sentence + "."
