"""Does the predicted decrease hold, and by how much is the quadratic model off? Of every cell of single steps.

Predicted and actual decreases are of different guesses, so that their difference has the noise of both. The error of
the model is measured along the same guesses, which leaves the model alone to blame.
"""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from studies.kit.seeds import Interval
from studies.kit.shares import clopper_pearson
from studies.progress.best_steps import cells, known, of_sweep, place
from studies.progress.cells import LEVEL_Z, WORDS_OF_CURVATURES

EXPECTED = 0.95  # The share of comparisons that agree if the model is exact.
SHOWN = {0.125: "η\\*/8", 0.25: "η\\*/4", 0.5: "η\\*/2", 1.0: "η\\*"}  # Steps of the tables.
SMALL = 0.125
FIRST, LAST = 0.0625, 0.25  # Between these the power is taken, with which the error grows.
ROUNDING = 2.0**-22  # Of the loss in single precision: a smaller error of the model may be that of the rounding.
Array = NDArray[np.float64]


def values(dataset: xr.Dataset) -> dict[str, object]:
    """What the template decreases.md.j2 names."""
    return {
        "level": LEVEL_Z,
        "expected": EXPECTED,
        "shown": list(SHOWN.values()),
        "smooth": _smooth(dataset),
        "agreements": _agreements(dataset),
        "model_errors": _model_errors(dataset),
        "decreases": _decreases(dataset),
        "curvatures": [WORDS_OF_CURVATURES[str(curvature)] for curvature in dataset["curvature"].values],
    }


def relative_errors(dataset: xr.Dataset) -> xr.DataArray:
    """Error of the model over the decrease that the model predicts, both along the same guesses."""
    return dataset["model_error"] / dataset["model"]


def _z(dataset: xr.Dataset) -> xr.DataArray:
    return (dataset["actual"] - dataset["predicted"]) / np.hypot(dataset["actual_se"], dataset["predicted_se"])


def _agreeing(z: xr.DataArray) -> tuple[int, int]:
    """How many comparisons agree, and of how many."""
    finite = z.values[np.isfinite(z.values)]
    return int((np.abs(finite) <= LEVEL_Z).sum()), len(finite)


def _agreements(dataset: xr.Dataset) -> list[list[str]]:
    """Shares of the comparisons in which predicted and actual decrease agree, by network and step."""
    z, rows = _z(dataset), []
    for curvature in dataset["curvature"].values:
        for network in dataset["network"].values:
            part = z.sel(curvature=curvature, network=network)
            row = [WORDS_OF_CURVATURES[str(curvature)], str(network), _kinks(dataset, str(curvature), str(network))]
            upper = [part.where(z["factor"] <= SMALL), *(part.sel(factor=factor) for factor in list(SHOWN)[1:])]
            for chosen in [*upper, part.where(z["factor"] > 1)]:
                agreeing, total = _agreeing(chosen)
                low, high = clopper_pearson(agreeing, total)
                row.append(f"{agreeing} of {total} ({float(low):.2f} to {float(high):.2f})")
            rows.append(row)
    return rows


def _kinks(dataset: xr.Dataset, curvature: str, network: str) -> str:
    here = dataset["has_kinks"].sel(curvature=curvature, network=network).isel(steps=0)
    return "yes" if float(here) == 1 else "no"


def _smooth(dataset: xr.Dataset) -> list[dict[str, object]]:
    """On networks without kinks, for each curvature: how many comparisons agree, and by how much the model is off."""
    found = []
    for curvature in dataset["curvature"].values:
        own = dataset.sel(curvature=curvature)
        own = own.sel(network=(own["has_kinks"] == 0).all("steps"))
        if not own.sizes["network"]:
            continue
        z = _z(own)
        agreeing, total = _agreeing(z.where(z["factor"] <= 1))
        at_small, of_small = _agreeing(z.where(z["factor"] <= SMALL))
        found.append(
            {
                "curvature": WORDS_OF_CURVATURES[str(curvature)],
                "networks": own["network"].values.tolist(),
                "agreeing": agreeing,
                "total": total,
                "at_small": at_small,
                "of_small": of_small,
                "medians": [f"{_percent(_sizes(own, factor))} at {words}" for factor, words in SHOWN.items()],
                "noise": _percent(_noise(own)),
                "at_noise": _percent(_sizes(own, SMALL)),
                "trained": _percent(_sizes(own.sel(steps=own["steps"] > 0), 1.0)),
                "power": float(np.median(_powers(own))) if len(_powers(own)) else np.nan,
                "odd": int(_odd(own).sum()),
                "of_odd": len(_odd(own)),
                "of_cells": len(_sizes(own, FIRST)),
            }
        )
    return found


def _finite(array: Array) -> Array:
    numbers: Array = array[np.isfinite(array)]
    return numbers


def _sizes(dataset: xr.Dataset, factor: float) -> Array:
    """|error of the model| over the decrease that it predicts, of every cell at a step."""
    return _finite(np.abs(relative_errors(dataset.sel(factor=factor)).values))


def _noise(dataset: xr.Dataset) -> Array:
    """Standard errors of the difference of actual and predicted decrease, over the predicted one, at the small step."""
    small = dataset.sel(factor=SMALL)
    errors = np.hypot(small["actual_se"].values, small["predicted_se"].values)
    return _finite(errors / np.abs(small["predicted"].values))


def _beyond_rounding(dataset: xr.Dataset) -> NDArray[np.bool_]:
    """Whether the error at the first step is beyond the rounding of the loss, of every cell."""
    error = dataset["model_error"].sel(factor=FIRST)
    beyond: NDArray[np.bool_] = (abs(error) > ROUNDING * dataset["loss"]).transpose(*error.dims).values
    return beyond


def _powers(dataset: xr.Dataset) -> Array:
    """The power of the step with which the model's error grows: 3 for a third derivative. Of cells beyond rounding."""
    last, first = (dataset["model_error"].sel(factor=factor).values for factor in (LAST, FIRST))
    powers: Array = np.log(np.abs(last / first)) / np.log(LAST / FIRST)
    return powers[_beyond_rounding(dataset)]


def _odd(dataset: xr.Dataset) -> NDArray[np.bool_]:
    """Whether more than half of the error at the last step is odd in the step. Of cells beyond rounding."""
    there = dataset.sel(factor=LAST)
    odd, error = there["odd_error"].values, there["model_error"].values
    larger: NDArray[np.bool_] = (np.abs(odd) > np.abs(error - odd))[_beyond_rounding(dataset)]
    return larger


def _model_errors(dataset: xr.Dataset) -> list[list[str]]:
    """By curvature and network, at each step: median size of the relative error and the largest; then its power."""
    rows = []
    for curvature in dataset["curvature"].values:
        for network in dataset["network"].values:
            own = dataset.sel(curvature=curvature, network=network)
            row = [WORDS_OF_CURVATURES[str(curvature)], str(network), _kinks(dataset, str(curvature), str(network))]
            for factor in SHOWN:
                sizes = _sizes(own, factor)
                row.append(f"{_percent(sizes)} (to {_percent(sizes.max())})" if len(sizes) else "–")
            power = f"{np.median(_powers(own)):.1f}" if len(_powers(own)) else "–"
            rows.append([*row, power, f"{int(_odd(own).sum())} of {len(_odd(own))}"])
    return rows


def _percent(sizes: Array | float) -> str:
    """Their median, with two digits; NaN of none."""
    share = 100 * float(np.median(sizes)) if np.size(sizes) else np.nan
    return f"{share:.0f} %" if share >= 10 else f"{share:.2g} %"


def _decreases(dataset: xr.Dataset) -> list[list[str]]:
    """Network, moment and guess; for each curvature the actual over the predicted decrease, and the best step."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for cell in cells(dataset):
        row = rows.setdefault(tuple(place(cell)[1:]), [])
        if known(cell):
            row += [*(str(_ratio(cell.sel(factor=factor))) for factor in (SMALL, 1.0)), of_sweep(cell)]
        else:
            row += ["–"] * 3
    return [[*names, *row] for names, row in rows.items()]


def _ratio(step: xr.Dataset) -> Interval:
    actual, predicted = float(step["actual"]), float(step["predicted"])
    errors = float(step["actual_se"]) / predicted, actual * float(step["predicted_se"]) / predicted**2
    return Interval(actual / predicted, LEVEL_Z * float(np.hypot(*errors)))
