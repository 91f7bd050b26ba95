"""How often the interval in a sentence of `fganalysis.advise` holds the truth, and how often it advises a wrong number.

A number is advised where its whole interval is within a factor of `WITHIN`. The advice is wrong where the true number
is not within that factor of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from fganalysis.measuring.advising.bounded import WITHIN
from fganalysis.measuring.advising.of_noise import guesses_for_cosine
from fganalysis.measuring.advising.of_steps import Advised, balanced_guesses, step_size, steps_for_one
from fganalysis.results import schema
from fganalysis.statistics.intervals import Estimate

Array = NDArray[np.float64]
Cell = dict[str, float]
TARGET = 0.9  # Cosine.
KINDS = ("step_size", "steps_for_one", "balanced_guesses", "guesses_for_cosine")
COUNTS = {
    "advice_given": "samples in which the number is advised",
    "advice_missed": "samples in which it is advised and its interval misses the truth",
    "advice_wrong": "samples in which it is advised and the truth is not within the factor of it",
    "interval_given": "samples in which the number has an interval",
    "interval_missed": "samples in which its interval misses the truth",
    "true_number": "what should be advised",
}
ROUNDING = 1e-9


def counted_advice(
    found: dict[str, Estimate],
    truths: dict[str, Array],
    efficiency: Estimate,
    true_efficiency: float,
    known: dict[str, float],
) -> xr.Dataset:
    """Counts over the samples, over kinds of advice.

    found, truths: of `fganalysis.progress`, of single guesses, (repeat,). efficiency: (repeat,). known: what the
    network's and the prediction's numbers are called by, ``gradient_step``, ``gradient_curvature``,
    ``squared_gradient``, ``relative_bias`` and ``directional_bias``, NaN where they are not predicted.
    """
    unbiased = known["relative_bias"] < ROUNDING
    exact = {name: float(value) for name, value in truths.items() if np.ndim(value) == 0}
    true_cell = _cell({name: (value, value, value, 0.0, 0.0) for name, value in exact.items()}, known)
    ways: dict[str, Callable[[Cell], Advised]] = {
        "step_size": lambda cell: step_size(_as_dataset(cell), 1)[0],
        "steps_for_one": lambda cell: steps_for_one(_as_dataset(cell), 1),
        "balanced_guesses": lambda cell: balanced_guesses(_as_dataset(cell), unbiased=unbiased)[0],
    }
    of_angle = _as_dataset({"directional_bias": known["directional_bias"]})
    if np.isfinite(known["directional_bias"]):
        ways["guesses_for_cosine"] = lambda cell: guesses_for_cosine(_as_dataset(cell), of_angle, TARGET)
    true_cell |= _cell({"efficiency": (true_efficiency, true_efficiency, true_efficiency, 0.0, 0.0)}, {})
    angle = known["directional_bias"]
    own_angle = _cell({"directional_bias": (angle, angle, angle, 0.0, 0.0)}, {})
    true_cell |= own_angle | _cell({"unseen_curvature": (0.0, 0.0, 0.0, 0.0, 0.0)}, {})
    names = [name for name in found if name in schema.PROGRESS]
    columns = {name: _columns(found[name]) for name in names} | {"efficiency": _columns(efficiency)}
    repeats = len(efficiency.value)
    right = {kind: way(true_cell).number.value for kind, way in ways.items()}
    counts = {name: np.full(len(KINDS), np.nan) for name in COUNTS}
    for kind, truth in right.items():
        place = KINDS.index(kind)
        for name in counts:
            counts[name][place] = 0
        counts["true_number"][place] = truth
    for repeat in range(repeats):
        cell = _cell({name: tuple(rows[repeat]) for name, rows in columns.items()}, known) | own_angle
        for kind, way in ways.items():
            advised, place, truth = way(cell), KINDS.index(kind), right[kind]
            number = advised.number
            missed = number.low > truth * (1 + ROUNDING) or number.high < truth * (1 - ROUNDING)
            if not np.isnan(number.low):
                counts["interval_given"][place] += 1
                counts["interval_missed"][place] += missed
            if advised.advised:
                counts["advice_given"][place] += 1
                counts["advice_missed"][place] += missed
                counts["advice_wrong"][place] += not 1 / WITHIN <= number.value / truth <= WITHIN
    return xr.Dataset({name: ("advice", values) for name, values in counts.items()}, coords={"advice": list(KINDS)})


def _columns(estimate: Estimate) -> Array:
    """Value, bounds, wide and short, (repeat, 5)."""
    parts = (estimate.value, estimate.low, estimate.high, estimate.wide, estimate.short)
    return np.stack([np.broadcast_to(part, estimate.value.shape).astype(float) for part in parts], axis=1)


def _cell(numbers: dict[str, tuple[float, ...]], known: dict[str, float]) -> Cell:
    suffixes = ("", schema.LOW, schema.HIGH, schema.WIDE, schema.SHORT)
    named = {
        name + suffix: part for name, parts in numbers.items() for suffix, part in zip(suffixes, parts, strict=True)
    }
    return known | named


def _as_dataset(cell: Cell) -> xr.Dataset:
    """Numbers by name are all that is read of a Dataset without dimensions."""
    return cast(xr.Dataset, cell)
