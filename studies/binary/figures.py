"""The figures of `studies.binary`, from its Dataset alone. Lines and marks are geometric means over networks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from studies.binary.page import NAMES, after, error_of_mean, logarithms, parts, words
from studies.kit.figures import panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEAST_BIAS = 0.01  # Below it the axis is linear, as many biases are zero.
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def figures(dataset: xr.Dataset) -> dict[str, Figure]:
    return {"error": _error(dataset), "cosine": _cosine(dataset), "parts": _parts(dataset)}


def _error(dataset: xr.Dataset) -> Figure:
    """The error of a mean over M: marks measured, lines √(bias² + variance/M)."""
    dense = np.geomspace(1, float(dataset["averaged"].max()), 60)
    law = logarithms(error_of_mean(dataset, dense)).mean("seed")
    measured = logarithms(dataset["error"]).mean("seed")

    def draw(axes: Axes, at: dict[str, Any], colour: Any, marker: str) -> None:
        axes.plot(dense, np.exp(law.sel(at).values), color=colour, lw=1)
        axes.plot(dataset["averaged"], np.exp(measured.sel(at).values), marker, ms=3, mfc="none", mew=0.8, color=colour)

    figure = _grid(dataset, draw, "root mean square error of the mean / ‖g‖ [1]")
    for axes in figure.axes:
        axes.set_yscale("log")
    return figure


def _cosine(dataset: xr.Dataset) -> Figure:
    """The mean cosine over M, with the band of 15 to 85 % of the means of the first network."""
    cosine, first = dataset["cosine"].mean("seed"), dataset.isel(seed=0)

    def draw(axes: Axes, at: dict[str, Any], colour: Any, marker: str) -> None:
        m, own = dataset["averaged"], first.sel(at)
        axes.fill_between(m, own["cosine_low"], own["cosine_high"], color=colour, alpha=0.12, lw=0)
        axes.plot(m, cosine.sel(at), marker, ls="-", lw=1, ms=3, mfc="none", mew=0.8, color=colour)

    return _grid(dataset, draw, "cosine of the mean and the gradient [1]")


def _grid(dataset: xr.Dataset, draw: Any, label: str) -> Figure:
    """A panel for each hidden layer and epoch."""
    layers = [str(layer) for layer in dataset["layer"].values if str(layer).startswith("hidden")]
    epochs = dataset["epochs"].values
    figure, grid = panels(
        len(layers), len(epochs), (2.3 * len(epochs) + 0.6, 1.9 * len(layers) + 1.2), sharex=True, sharey="row"
    )
    for row, layer in enumerate(layers):
        for axes, number in zip(grid[row], epochs, strict=True):
            for name, colour, marker in _styles(dataset):
                draw(axes, {"estimator": name, "layer": layer, "epochs": number}, colour, marker)
            axes.set_xscale("log")
            axes.tick_params(labelsize=8)
            axes.set_title(f"{words(layer)}, {after(int(number))}", fontsize=9)
    figure.supxlabel("M, averaged draws [1]", fontsize=10)
    figure.supylabel(label, fontsize=10)
    _legend(figure, dataset)
    return figure


def _parts(dataset: xr.Dataset) -> Figure:
    """Bias over standard deviation of a draw in the first hidden layer, with the intervals of each network."""
    layer = str(dataset["layer"].values[0])
    epochs = dataset["epochs"].values
    figure, grid = panels(1, len(epochs), (2.6 * len(epochs) + 0.6, 3.8), sharey=True)
    _, variance = parts(dataset)
    for axes, number in zip(grid[0], epochs, strict=True):
        for name, colour, marker in _styles(dataset):
            own = dataset.sel(estimator=name, layer=layer, epochs=number)
            deviation = np.sqrt(variance.sel(estimator=name, layer=layer, epochs=number).values)
            bias, low, high = (own[f"relative_bias{suffix}"].values for suffix in ("", "_low", "_high"))
            bars = np.maximum([bias - low, high - bias], 0)
            axes.errorbar(deviation, bias, bars, ls="", marker=marker, ms=4, mfc="none", mew=0.8, color=colour, lw=1)
        axes.set_xscale("log")
        axes.set_yscale("symlog", linthresh=LEAST_BIAS)
        axes.set_ylim(-LEAST_BIAS / 10, 1.3 * float(dataset["relative_bias_high"].sel(layer=layer).max()))
        axes.tick_params(labelsize=8)
        axes.set_title(after(int(number)), fontsize=9)
    figure.supxlabel("standard deviation of a draw / ‖g‖ [1]", fontsize=10)
    figure.supylabel(f"bias / ‖g‖ [1], {words(layer)}", fontsize=10)
    _legend(figure, dataset)
    return figure


def _styles(dataset: xr.Dataset) -> list[tuple[str, Any, str]]:
    import seaborn

    names = [str(name) for name in dataset["estimator"].values]
    return [
        (name, colour, MARKERS[list(NAMES).index(name)])
        for name, colour in zip(NAMES, seaborn.color_palette("colorblind", len(NAMES)), strict=True)
        if name in names
    ]


def _legend(figure: Figure, dataset: xr.Dataset) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=colour, marker=marker, mfc="none", ms=4, lw=1, label=NAMES[name])
        for name, colour, marker in _styles(dataset)
    ]
    columns = min(3, dataset.sizes["epochs"])
    figure.legend(handles=handles, loc="outside upper center", ncols=columns, frameon=False, fontsize=8)
