"""A table as HTML: a cell a quantity, with its interval, its prediction and its z below the number.

A frame's columns are gathered by name: to a column of numbers ``x`` belong ``x_low``, ``x_high``, ``x_wide``,
``x_short``, ``x_se``, ``x_tail``, ``x_predicted`` and ``x_z``, as far as there are any. A table is plain HTML. Each of
its cells has an attribute ``data-value`` by which a script can sort.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from html import escape

import numpy as np
import pandas as pd

from fganalysis.results import schema
from fganalysis.results.number_text import Interval, plain

Z = "_z"
PREDICTED_ERROR = schema.PREDICTED + schema.SE
IN_THE_CELL = (
    schema.SE,
    schema.LOW,
    schema.HIGH,
    schema.WIDE,
    schema.SHORT,
    schema.TAIL,
    schema.PREDICTED,
    PREDICTED_ERROR,
    Z,
)
CLASS = "fganalysis"


def of(frame: pd.DataFrame, keys: Collection[str], units: Mapping[str, str] | None = None) -> str:
    """The HTML of a frame, without its index.

    Args:
        frame: such as `fganalysis.summary` returns. keys: columns that say what a row is of, which have no interval.
        units: of columns that `schema` does not know.
    """
    columns = leading([str(name) for name in frame.columns])
    head = "".join(_heading(name, frame, units or {}) for name in columns)
    known = schema.variables()
    cells = [
        _texts(frame[name])
        if name in keys or not _is_number(frame[name])
        # What `schema` gives no bounds is not estimated.
        else _cells(frame, name, exact=name in known and name + schema.LOW not in known)
        for name in columns
    ]
    body = "".join(f"<tr>{''.join(row)}</tr>\n" for row in zip(*cells, strict=True))
    return f'<table class="{CLASS}">\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table>'


def leading(names: Iterable[str]) -> list[str]:
    """The names that are not those of an error, a bound, a flag or a prediction of another."""
    every = list(names)
    below = {name + suffix for name in every for suffix in IN_THE_CELL}
    return [name for name in every if name not in below]


def _heading(name: str, frame: pd.DataFrame, units: Mapping[str, str]) -> str:
    known = schema.variables().get(name)
    unit = units.get(name, known.units if known else "")
    below = f"<br><small>{escape(unit)}</small>" if unit not in ("", "1") and _is_number(frame[name]) else ""
    title = f' title="{escape(known.long_name)}"' if known else ""
    return f'<th scope="col"{title}>{escape(name.replace("_", " "))}{below}</th>'


def _cells(frame: pd.DataFrame, name: str, *, exact: bool) -> list[str]:
    parts = {suffix: _numbers(frame, name + suffix) for suffix in ("", *IN_THE_CELL)}
    rows = [{suffix: float(numbers[row]) for suffix, numbers in parts.items()} for row in range(len(frame))]
    return [_cell(row, exact) for row in rows]


def _cell(row: Mapping[str, float], exact: bool) -> str:
    value = row[""]
    if math.isnan(value):
        return '<td class="number" data-value="">–</td>'
    interval = Interval(row[schema.LOW], row[schema.HIGH], row[schema.WIDE] == 1, row[schema.SHORT] == 1)
    lines = ["exact" if exact else interval.text(value)]
    predicted = row[schema.PREDICTED]
    if not math.isnan(predicted):
        z = "" if math.isnan(row[Z]) else f", z = {plain(row[Z], 2)}"
        lines.append(f"predicted {interval.digits(predicted)}{z}")
    below = "".join(f"<br><small>{escape(line)}</small>" for line in lines)
    return f'<td class="number" data-value="{value!r}">{escape(interval.digits(value))}{below}</td>'


def _texts(column: pd.Series) -> list[str]:
    return [f'<td data-value="{escape(str(value))}">{escape(_text(value))}</td>' for value in column]


def _numbers(frame: pd.DataFrame, name: str) -> np.ndarray:
    if name not in frame:
        return np.full(len(frame), np.nan)
    return frame[name].to_numpy(dtype=float, na_value=np.nan)


def _is_number(column: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(column)


def _text(value: object) -> str:
    return plain(value) if isinstance(value, float) else str(value)
