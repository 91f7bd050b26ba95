"""The tables of a part: variables over the same dimensions are the columns of one table, a row a place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

from fganalysis.reporting.parts import Part
from fganalysis.results import html_table, schema, tables

MOST_ROWS = 600
MOST_HELD = 10**5  # Rows that are made before the first are chosen: a network's weights are no table.
NOT_IN_TABLES = (schema.GUESS, schema.GROUP, schema.OTHER_GROUP, schema.ROUND, schema.MODE, schema.EXAMPLE, schema.UNIT)
# Each is a norm of which ``relative_bias`` has the same without a unit, or has no interval.
LEFT_OUT = ("bias", "squared_bias", *schema.QUANTILES)
ONCE = {"relative_bias": "squared_bias"}  # Whose z stands in whose cell: norms are compared on the squared scale.


@dataclass(frozen=True)
class Table:
    """The HTML of a table, and sentences on what it leaves out."""

    caption: str
    html: str
    remarks: tuple[str, ...]


def grouped(part: Part, scores: xr.Dataset) -> list[Table]:
    """The tables of what was measured, the longest first; each cell has its interval, its prediction and its z."""
    measured = part.measured
    leading = [name for name in html_table.leading(map(str, measured.data_vars)) if name not in LEFT_OUT]
    by_dims: dict[tuple[str, ...], list[str]] = {}
    for name in [
        *(one for one in tables.TABLE if one in leading),
        *(one for one in leading if one not in tables.TABLE),
    ]:
        dims = tuple(str(dim) for dim in measured[name].dims)
        if not set(dims) & set(NOT_IN_TABLES) and _is_shown(measured[name]):
            by_dims.setdefault(tuple(sorted(dims, key=_place)), []).append(name)
    return [_table(part, scores, names, dims) for dims, names in by_dims.items()]


def _is_shown(array: xr.DataArray) -> bool:
    return array.dtype.kind in "biufUO" and not (array.dtype.kind == "f" and bool(array.isnull().all()))


def _place(dim: str) -> int:
    order = (*tables.KEYS, schema.MATRIX, schema.AVERAGED)
    return order.index(dim) if dim in order else -1


def _table(part: Part, scores: xr.Dataset, names: Sequence[str], dims: Sequence[str]) -> Table:
    measured, remarks = part.measured, []
    columns: dict[str, xr.DataArray] = {}
    for name in names:
        columns[name] = measured[name]
        for suffix in (schema.LOW, schema.HIGH, schema.WIDE, schema.SHORT):
            if name + suffix in measured:
                columns[name + suffix] = measured[name + suffix]
        if name in part.predicted:
            columns[name + schema.PREDICTED] = part.predicted[name]
        if (compared := ONCE.get(name, name)) in scores:
            columns[name + html_table.Z] = scores[compared]
    dataset = xr.Dataset({name: array.drop_attrs() for name, array in columns.items()})
    rows = math.prod(dataset.sizes[dim] for dim in dims)
    if rows > MOST_ROWS and schema.LAYER in dims and schema.ALL_LAYERS in dataset[schema.LAYER].values:
        dataset = dataset.sel({schema.LAYER: [schema.ALL_LAYERS]})
        remarks.append(f"Of {rows} rows those of all layers together are shown.")
        rows = math.prod(dataset.sizes[dim] for dim in dims)
    if rows > MOST_ROWS and dataset.sizes.get(schema.STEP, 1) > 2:
        n_steps = dataset.sizes[schema.STEP]
        kept = max(2, MOST_ROWS * n_steps // rows)
        dataset = dataset.isel({schema.STEP: np.linspace(0, n_steps - 1, kept).round().astype(int)})
        remarks.append(f"Of {n_steps} steps {kept} are shown, evenly spaced, the first and the last among them.")
    cut = {dim: slice(MOST_ROWS) for dim in dims[-1:]} if rows > MOST_HELD else {}
    cut |= {dim: slice(1) for dim in dims[:-1]} if cut else {}
    frame = _frame(dataset.isel(cut), dims, names)
    if len(frame) > MOST_ROWS or cut:
        frame = frame.head(MOST_ROWS)
        remarks.append(f"Of {rows} rows the first {len(frame)} are shown.")
    units = {name: str(measured[name].attrs.get("units", "")) for name in names}
    caption = ", ".join(dims) if dims else "the whole"
    return Table(caption, html_table.of(frame, dims, units), tuple(remarks))


def _frame(dataset: xr.Dataset, dims: Sequence[str], names: Sequence[str]) -> pd.DataFrame:
    """The rows with a number, those of all layers before those of single ones."""
    if not dims:
        return pd.DataFrame({name: [array.item()] for name, array in dataset.data_vars.items()})
    frame = dataset.to_dataframe(dim_order=list(dims)).reset_index()[[*dims, *map(str, dataset.data_vars)]]
    known = [name for name in names if name not in schema.EXACT] or list(names)
    frame = frame[frame[known].notna().any(axis=1)]
    if schema.LAYER in dims:
        single = (frame[schema.LAYER] != schema.ALL_LAYERS).to_numpy()
        frame = frame.iloc[np.argsort(single, kind="stable")]
    return frame.reset_index(drop=True)
