"""The result of `fganalysis.advise`: tables of numbers, and sentences."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd

from fganalysis.measuring.advising.bounded import Bounded
from fganalysis.results import schema

# Columns of the table with bounds: heading where it is printed.
BOUNDED_COLUMNS = {
    "step_size": "step size",
    "relative_step": "over backprop's",
    "guesses_for_cosine": "guesses for cosine",
    "balanced_guesses": "guesses to balance",
    "steps_for_one": "steps for one",
}
BOUNDED_OF_EPSILON = {"best_epsilon": "best ε", "least_slope_error": "slope error"}


@dataclass(frozen=True, eq=False)
class Advice:
    """What to do, and why; ``print`` shows a table and the sentences.

    Attributes:
        table: a row for every step of training and estimator. Beside every number ``x`` stand ``x_low`` and
            ``x_high``; ``x`` is NaN where the interval allows no advice, and a sentence says why.

            - ``step_size``: (unit of weight)² per loss; ``relative_step``: over that of backpropagation.
            - ``guesses_for_cosine``: guesses whose mean has the cosine that is asked for.
            - ``balanced_guesses``: guesses a step from which on more guesses bring less than half of what they cost.
            - ``steps_for_one``: steps that make up for one of backpropagation.
            - ``noisiest_layer``: text, empty where it is not known.
        sentences: each with its number and its interval.
        epsilons: a row for every precision and scheme, ``best_epsilon`` and ``least_slope_error`` with their bounds,
            ``drift`` and ``unmoved`` at the step nearest to the best; empty without `fganalysis.difference_step`.
    """

    table: pd.DataFrame
    sentences: tuple[str, ...]
    epsilons: pd.DataFrame

    def __str__(self) -> str:
        parts = [_printed(self.table, BOUNDED_COLUMNS, ["noisiest_layer"])]
        if len(self.epsilons):
            parts.append(_printed(self.epsilons, BOUNDED_OF_EPSILON, ["drift", "unmoved"]))
        return "\n\n".join([*parts, "\n".join(self.sentences)])


def columns(name: str, number: Bounded, advised: bool) -> dict[str, float]:
    """A number of a row and its bounds, the number NaN where it is not advised."""
    value = number.value if advised else math.nan
    return {name: value, name + schema.LOW: number.low, name + schema.HIGH: number.high}


def _printed(frame: pd.DataFrame, numbers: dict[str, str], others: list[str]) -> str:
    """The rows as text, without columns in which nothing is known."""
    index = [name for name in (schema.STEP, schema.ESTIMATOR, schema.PRECISION, schema.SCHEME) if name in frame]
    shown = frame[[name for name in index if name != schema.STEP or frame[name].nunique() > 1]].copy()
    for name, heading in numbers.items():
        cells = [_cell(row, name) for _, row in frame.iterrows()]
        if any(cells):
            shown[heading] = [cell or "–" for cell in cells]
    for name in others:
        known = frame[name].notna() & (frame[name] != "")
        if known.any():
            shown[name.replace("_", " ")] = [
                (value if isinstance(value, str) else f"{value:.1e}") if is_known else "–"
                for value, is_known in zip(frame[name], known, strict=True)
            ]
    return str(shown.to_string(index=False))


def _cell(row: pd.Series, name: str) -> str:
    value, low, high = (float(row[name + suffix]) for suffix in ("", schema.LOW, schema.HIGH))
    return "" if math.isnan(value) else Bounded(value, low, high).text()
