"""The figures of `studies.binary`, from its Dataset alone. Lines and marks are geometric means over networks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from studies.binary.page import NAMES, after, error_of_mean, logarithms, parts, words
from studies.kit.figures import CATEGORIES, band, key, legend, measured_and_predicted, panels, sheet

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEAST_BIAS = 0.01  # Below it the axis is linear, as many biases are zero.
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


@sheet()
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

    figure = _grid(dataset, draw, measured_and_predicted(), "root mean square error of the mean / gradient norm")
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

    others = [band("bands: 15 to 85 % of means, first network")]
    return _grid(dataset, draw, others, "cosine of the mean with the gradient")


def _grid(dataset: xr.Dataset, draw: Any, others: list[Artist], label: str) -> Figure:
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
            axes.set_title(f"{words(layer)}, {after(int(number))}")
    figure.supxlabel("draws averaged")
    figure.supylabel(label)
    _legend(figure, dataset, others)
    return figure


def _parts(dataset: xr.Dataset) -> Figure:
    """Bias over standard deviation of a draw in the first hidden layer, with the intervals of each network."""
    layer = str(dataset["layer"].values[0])
    epochs = dataset["epochs"].values
    figure, grid = panels(1, len(epochs), (2.6 * len(epochs) + 0.6, 4.2), sharey=True)
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
        axes.set_title(after(int(number)))
    figure.supxlabel("standard deviation of a draw / gradient norm")
    figure.supylabel(f"bias / gradient norm, {words(layer)}")
    _legend(figure, dataset, [key("bars: 95 % intervals, one network each", line="-")])
    return figure


def _styles(dataset: xr.Dataset) -> list[tuple[str, str, str]]:
    names = [str(name) for name in dataset["estimator"].values]
    looks = zip(NAMES, CATEGORIES, MARKERS, strict=True)
    return [(name, colour, marker) for name, colour, marker in looks if name in names]


def _legend(figure: Figure, dataset: xr.Dataset, others: list[Artist]) -> None:
    keys = [key(NAMES[name], colour, marker, "-") for name, colour, marker in _styles(dataset)]
    legend(figure, [*keys, *others], "above", columns=min(3, dataset.sizes["epochs"]))
