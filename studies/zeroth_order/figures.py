"""The figures of `studies.zeroth_order`, from its Dataset alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from studies.kit.figures import CATEGORIES, key, legend, panels, sheet

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MEASURED, PREDICTED = CATEGORIES[0], "black"
REFERENCE = "unstructured"


@sheet()
def figures(tree: xr.DataTree) -> dict[str, Figure]:
    return {
        "efficiency": _efficiencies(tree["directions"].to_dataset()),
        "slips": _slips(tree["slips"].to_dataset()),
    }


def _efficiencies(dataset: xr.Dataset) -> Figure:
    quantities = {"efficiency": "efficiency", "curved_efficiency": "efficiency, with the loss's curvature"}
    moments = dataset["steps"].values
    figure, grid = panels(len(moments), 2, (8.0, 0.9 + 3.1 * len(moments)), sharey=True)
    names = [str(name) for name in dataset["estimator"].values]
    places = np.arange(len(names))[::-1]
    for row, steps in zip(grid, moments, strict=True):
        for axes, (quantity, words) in zip(row, quantities.items(), strict=True):
            own = dataset.sel(steps=steps)
            _points(axes, places, own, quantity)
            predicted = own[f"{quantity}_predicted"].values
            axes.plot(predicted, places, "x", color=PREDICTED, ms=5, label="predicted")
            axes.axvline(float(own[f"{quantity}_predicted"].sel(estimator=REFERENCE)), color="0.6", lw=0.8, zorder=0)
            axes.set_xscale("log")
            axes.set_yticks(places, names)
            axes.set_title(f"after {steps} steps of training")
            axes.set_xlabel(words)
    handles, _ = grid[0, 0].get_legend_handles_labels()
    legend(figure, [*handles, key(f"efficiency of {REFERENCE} directions", "0.6", line="-")], "above", columns=3)
    return figure


def _points(axes: Axes, places: np.ndarray, dataset: xr.Dataset, quantity: str) -> None:
    middle, low, high = (dataset[quantity + suffix].values for suffix in ("", "_low", "_high"))
    # An end of zero has no place on a logarithmic axis.
    low = np.where(low > 0, low, middle / 10)
    bars = [np.maximum(middle - low, 0), np.maximum(np.where(np.isfinite(high), high, middle) - middle, 0)]
    shown = middle > 0
    axes.errorbar(
        middle[shown],
        places[shown],
        xerr=[bar[shown] for bar in bars],
        ls="",
        marker="o",
        ms=4,
        mfc="none",
        color=MEASURED,
        lw=1,
        label="measured, 95 % interval",
    )


def _slips(dataset: xr.Dataset) -> Figure:
    figure, grid = panels(1, 2, (8.0, 2.8), sharey=True)
    places = np.arange(dataset.sizes["slip"])[::-1]
    words = {"shrinkage": "mean along the gradient / gradient norm", "relative_bias": "relative bias"}
    for axes, (quantity, label) in zip(grid[0], words.items(), strict=True):
        _points(axes, places, dataset, quantity)
        axes.plot(dataset[f"{quantity}_exact"].values, places, "x", color=PREDICTED, ms=5, label="predicted, exact")
        axes.axvline(1.0 if quantity == "shrinkage" else 0.0, color="0.6", lw=0.8, zorder=0)
        axes.set_yticks(places, [str(name) for name in dataset["slip"].values])
        axes.set_xlabel(label)
    handles, _ = grid[0, 0].get_legend_handles_labels()
    legend(figure, [*handles, key("a guess without bias", "0.6", line="-")], "above", columns=3)
    return figure
