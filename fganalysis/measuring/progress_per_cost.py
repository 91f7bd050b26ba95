"""Progress for its price: the curved efficiency of a step over what the step costs, both beside backpropagation's.

    progress_per_pass   = curved_efficiency / relative_passes
    progress_per_second = curved_efficiency / relative_seconds

Backpropagation is 1 in both. At 0.1 an estimator makes a tenth of backpropagation's progress for the same cost, each at
its best step size. Source: docs/mathematics.md#cost.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from fganalysis.arguments import check_kind, listed
from fganalysis.results import schema

EFFICIENCY = "curved_efficiency"


def progress_per_cost(progress: xr.Dataset, cost: xr.Dataset) -> xr.Dataset:
    """The first Dataset with ``progress_per_pass`` and ``progress_per_second`` added, and their bounds.

    Stated passes have no error, so the bounds of ``progress_per_pass`` are those of the efficiency. The bounds of
    ``progress_per_second`` are the least and the largest ratio of what both intervals hold. The errors are independent,
    so this covers at least 95 %.

    Args:
        progress: what `fganalysis.progress` returns. cost: what `fganalysis.cost` returns, with the same estimators by
            label; where it lacks a number of guesses that are averaged, the ratios are NaN.

    Raises:
        ValueError: a Dataset of another kind, an estimator without a cost, or no number of guesses in common.
    """
    _check("progress", progress, [EFFICIENCY], "fga.progress")
    _check("cost", cost, ["relative_passes", "relative_seconds"], "fga.cost")
    priced = cost
    for dim, words in {schema.ESTIMATOR: "estimator", schema.AVERAGED: "number of guesses averaged"}.items():
        if dim not in progress.coords:
            raise ValueError(f"progress must have the coordinate {dim!r}, as what fga.progress returns has")
        wanted = np.atleast_1d(progress[dim].values)
        missing = [str(value) for value in wanted if value not in cost[dim].values]
        if missing and (dim == schema.ESTIMATOR or len(missing) == len(wanted)):
            raise ValueError(f"cost lacks the {words} {listed(missing, 5)}: ask fga.cost for the same as fga.progress")
        priced = priced.reindex({dim: wanted}) if progress[dim].ndim else priced.reindex({dim: wanted}).isel({dim: 0})
    efficiency = _interval(progress, EFFICIENCY)
    prices = {"progress_per_pass": [priced["relative_passes"]] * 3}
    prices["progress_per_second"] = _interval(priced, "relative_seconds")
    added: dict[str, xr.DataArray] = {}
    for name, price in prices.items():
        ratios = [bound / of_price for bound in efficiency[1:] for of_price in price[1:]]
        added[name] = efficiency[0] / price[0]
        added[name + schema.LOW] = xr.concat(ratios, "bound").min("bound", skipna=False)
        added[name + schema.HIGH] = xr.concat(ratios, "bound").max("bound", skipna=False)
        if EFFICIENCY + schema.WIDE in progress:
            added[name + schema.WIDE] = progress[EFFICIENCY + schema.WIDE].copy()
    return schema.annotate(progress.assign({name: array.drop_attrs() for name, array in added.items()}))


def _interval(dataset: xr.Dataset, name: str) -> list[xr.DataArray]:
    """Value, lower and upper bound."""
    return [dataset[name + suffix] for suffix in ("", schema.LOW, schema.HIGH)]


def _check(name: str, dataset: object, variables: Sequence[str], source: str) -> None:
    check_kind(name, dataset, xr.Dataset, f"the Dataset that {source} returns")
    assert isinstance(dataset, xr.Dataset)
    for variable in variables:
        if variable not in dataset:
            raise ValueError(f"{name} must be the Dataset that {source} returns: it has no {variable!r}")
