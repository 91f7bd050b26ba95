"""What is measured against what is predicted: z of every quantity, how often it is large, and where it is largest."""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr

from fganalysis.reporting.parts import Part
from fganalysis.results import html_table, schema, tables

MOST = 10  # Rows of the largest z.


def scores(part: Part) -> xr.Dataset:
    """z of every quantity that is measured with an interval and predicted; empty where there is none."""
    measured, predicted = part.measured, part.predicted
    compared = [*tables.COMPARED, *schema.ALSO_COMPARED, *schema.PROGRESS_PREDICTED]
    names = [
        name
        for name in dict.fromkeys(compared)
        if name in predicted and all(name + suffix in measured for suffix in ("", schema.SE, schema.LOW, schema.HIGH))
    ]
    return tables.scores(measured, predicted, names)


def largest(part: Part, of: xr.Dataset) -> pd.DataFrame:
    """The places of the largest |z|: quantity, place, number with its interval, prediction and z; a row each."""
    rows = []
    for name in map(str, of.data_vars):
        z = of[name]
        sizes = np.where(np.isnan(z.values), -1.0, np.abs(z.values)).ravel()
        places = np.argsort(-sizes, kind="stable")[:MOST]
        for flat in places:
            index = dict(zip(z.dims, np.unravel_index(flat, z.shape), strict=True))
            if np.isnan(float(z.isel(index))):
                continue
            row: dict[str, object] = {"quantity": name.replace("_", " ")}
            row |= {str(dim): z[dim].values[place] for dim, place in index.items() if dim in z.coords}
            for suffix in ("", schema.LOW, schema.HIGH, schema.WIDE, schema.SHORT):
                if name + suffix in part.measured:
                    row["measured" + suffix] = float(part.measured[name + suffix].isel(index))
            row["measured" + schema.PREDICTED] = float(part.predicted[name].isel(index))
            row["z"] = float(z.isel(index))
            rows.append(row)
    rows.sort(key=lambda row: -abs(float(str(row["z"]))))
    return pd.DataFrame(rows[:MOST])


def tables_of(part: Part, of: xr.Dataset) -> list[str]:
    """The HTML of both tables."""
    agreement, rows = tables.counted(of), largest(part, of)
    agreement["quantity"] = agreement["quantity"].str.replace("_", " ")
    keys = [str(name) for name in rows.columns if not str(name).startswith("measured")]
    return [
        html_table.of(agreement, list(map(str, agreement.columns))),
        html_table.of(rows, keys),
    ]
