"""The figures of `studies.architectures`, from its Dataset alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from fganalysis.results import schema
from studies.kit.figures import (
    PAGE_WIDTH,
    Style,
    key,
    legend,
    measured_and_predicted,
    panels,
    sheet,
    styles,
    words,
)

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROWS = {
    "cosine": "cosine",
    "efficiency": "efficiency",
    "relative_variance": "variance /\nsquared gradient norm",
    "relative_squared_bias": "squared bias /\nsquared gradient norm",
}
NAMES = {"initialisation": "at initialisation", "trained": "after training"}
LEAST_BIAS = 1e-4  # Drawn; smaller ones make no difference.
STEP = 0.1  # Between the marks of two guesses at one size.


@sheet()
def figures(dataset: xr.Dataset) -> dict[str, Figure]:
    """Name → figure."""
    layers = {f"layers_{moment}": _layers(dataset.sel(trained=moment)) for moment in dataset["trained"].values}
    return {"efficiency": _efficiency(dataset)} | layers


def _efficiency(dataset: xr.Dataset) -> Figure:
    """Every network's efficiency in weight space: a row a moment, a column an architecture, a mark a seed."""
    own = dataset.sel(space="weight", layer=schema.ALL_LAYERS)
    architectures, moments = own["architecture"].values, own["trained"].values
    figure, grid = panels(
        len(moments), len(architectures), (PAGE_WIDTH, 2.1 * len(moments) + 1.0), sharey=True, sharex=True
    )
    chosen = styles([str(name) for name in own["guess_kind"].values])
    places = np.arange(own.sizes["size"])
    for row, moment in zip(grid, moments, strict=True):
        for axes, architecture in zip(row, architectures, strict=True):
            part = own.sel(trained=moment, architecture=architecture)
            for index, (name, style) in enumerate(chosen.items()):
                x = places + STEP * (index - (len(chosen) - 1) / 2)
                values = part.sel(guess_kind=name).transpose("size", "seed", ...)
                seeds = np.repeat(x, values.sizes["seed"])
                look = {"marker": style.marker, "edgecolors": style.colour, "facecolors": "none"}
                axes.scatter(seeds, _positive(values["efficiency"]).ravel(), s=14, linewidths=0.8, **look)
                predicted = _positive(values["efficiency_predicted"].mean("seed", skipna=False))
                axes.scatter(x, predicted, s=40, marker="_", color="black", linewidths=1.2, zorder=3)
            axes.set(yscale="log", xticks=places, xticklabels=own["size"].values)
        row[0].set_ylabel(f"{NAMES[str(moment)]}\nefficiency")
    for axes, architecture in zip(grid[0], architectures, strict=True):
        axes.set_title(str(architecture))
    figure.supxlabel("size of the network")
    keys = [key("marks: seeds, measured", marker="o"), key("black: predicted, mean over seeds", "black", marker="_")]
    _legend(figure, chosen, keys)
    return figure


def _layers(own: xr.Dataset) -> Figure:
    """Every quantity over the layers of the deep networks, in weight space: medians over seeds."""
    own = own.sel(space="weight", size="deep").drop_sel(layer=schema.ALL_LAYERS)
    architectures = own["architecture"].values
    figure, grid = panels(len(ROWS), len(architectures), (PAGE_WIDTH, 7.6), sharey="row", sharex="col")
    chosen = styles([str(name) for name in own["guess_kind"].values])
    for row, (quantity, label) in zip(grid, ROWS.items(), strict=True):
        for axes, architecture in zip(row, architectures, strict=True):
            for name, style in chosen.items():
                part = own.sel(architecture=architecture, guess_kind=name).transpose("seed", "layer", ...)
                _curve(axes, part, quantity, style)
            if quantity == "cosine":
                axes.axhline(0, color="0.5", lw=0.5)
            else:
                axes.set_yscale("log")
        if quantity == "relative_squared_bias":
            row[0].set_ylim(bottom=LEAST_BIAS)
        row[0].set_ylabel(label)
    for axes, architecture in zip(grid[0], architectures, strict=True):
        axes.set_title(f"{architecture}, deep")
    figure.supxlabel("number of the layer, in the order of the forward pass")
    _legend(figure, chosen, measured_and_predicted("marks: measured, median of seeds"))
    return figure


def _curve(axes: Axes, part: xr.Dataset, quantity: str, style: Style) -> None:
    there = np.isfinite(part[quantity].values).any(0)
    x = np.flatnonzero(there) + 1
    measured, predicted = (np.median(part[quantity + suffix].values[:, there], axis=0) for suffix in ("", "_predicted"))
    if quantity != "cosine":
        measured, predicted = _positive(measured), _positive(predicted)
        # An unbiased estimate of zero is positive every second time, for all of three seeds every eighth time.
        measured = np.where((part[quantity].values[:, there] > 0).all(0), measured, np.nan)
    axes.plot(x, measured, ls=":", lw=0.6, marker=style.marker, ms=3.5, mfc="none", mew=0.8, color=style.colour)
    axes.plot(x, predicted, lw=1, color=style.colour)


def _positive(values: xr.DataArray | np.ndarray) -> np.ndarray:
    """NaN where an estimate is not positive, which has no place on a logarithmic axis; zero is rounding of theory."""
    numbers = np.asarray(values, dtype=float)
    return np.where(numbers > 1e-12, numbers, np.nan)


def _legend(figure: Figure, chosen: dict[str, Style], others: list[Artist]) -> None:
    keys = [key(words(name), style.colour, style.marker) for name, style in chosen.items()]
    legend(figure, [*keys, *others], "above", columns=3)
