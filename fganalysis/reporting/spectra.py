"""The figures of /subspace: how much energy, and how much of the gradient, the leading modes hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from fganalysis.results import palette, schema
from fganalysis.results.legends import key, legend
from fganalysis.results.style import sheet
from fganalysis.statistics.intervals import Z95

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_LAYERS = 6
MOST_MARKERS = 32
MATRICES_IN_WORDS = {
    "activation_gradient": "gradients at the activations",
    "layer_input": "inputs of the layer",
    "weight_gradient": "gradient of the weights",
    "upstream_jacobian": "upstream Jacobian",
}


@sheet()
def energy(spaces: xr.Dataset) -> Figure:
    """The share of energy in the leading modes, a panel a matrix, a line a layer; spaces: of one step."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    array = spaces["energy"]
    matrices = [name for name in map(str, spaces[schema.MATRIX].values) if _known(array.sel({schema.MATRIX: name}))]
    layers = chosen([name for name in map(str, spaces[schema.LAYER].values) if _known(array.sel({schema.LAYER: name}))])
    rows = (len(matrices) + 1) // 2
    figure, grid = plt.subplots(
        rows, 2, figsize=(7.0, 2.5 * rows + 0.3), sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    colours = palette.ramp(len(layers))
    modes = spaces[schema.MODE].values
    for axes, matrix in zip(grid.flat, matrices, strict=False):
        for layer, colour in zip(layers, colours, strict=True):
            curve = array.sel({schema.MATRIX: matrix, schema.LAYER: layer}).to_numpy()
            if np.isfinite(curve).any():
                axes.plot(modes, curve, marker=_marker(modes), ms=4, lw=1, color=colour)
        axes.set_title(MATRICES_IN_WORDS.get(matrix, matrix))
        axes.set_ylim(0, 1.03)
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    for axes in list(grid.flat)[len(matrices) :]:
        axes.set_axis_off()
    figure.supxlabel("leading modes")
    figure.supylabel("share of the energy")
    _legend(figure, layers, colours, "layer")
    return figure


@sheet()
def overlap(spaces: xr.Dataset) -> Figure:
    """The share of the gradient in the Jacobian's leading modes, a line a layer; that of random subspaces is dotted."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    layers = chosen([str(name) for name in spaces[schema.LAYER].values if _known(spaces["overlap"].sel(layer=name))])
    figure, axes = plt.subplots(figsize=(5.4, 3.0), layout="constrained")
    colours = palette.ramp(len(layers))
    modes = spaces[schema.MODE].values
    for layer, colour in zip(layers, colours, strict=True):
        of_layer = spaces.sel({schema.LAYER: layer})
        curve, error = of_layer["overlap"].to_numpy(), of_layer["overlap_se"].to_numpy()
        axes.plot(modes, curve, marker=_marker(modes), ms=4, lw=1, color=colour)
        low, high = np.maximum(curve - Z95 * error, 0), np.minimum(curve + Z95 * error, 1)
        axes.fill_between(modes, low, high, color=colour, alpha=0.2, lw=0)
        axes.plot(modes, of_layer["random_overlap"].to_numpy(), ":", lw=1, color=colour)
    axes.set_ylim(0, 1.03)
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    axes.set_xlabel("leading modes of the upstream Jacobian")
    axes.set_ylabel("share of the squared gradient")
    _legend(figure, layers, colours, "layer; dotted: random\nsubspace of that size")
    return figure


def chosen(names: Sequence[str]) -> list[str]:
    """At most `MOST_LAYERS` of them, evenly spaced, the first and the last among them."""
    if len(names) <= MOST_LAYERS:
        return list(names)
    return [names[place] for place in np.linspace(0, len(names) - 1, MOST_LAYERS).round().astype(int)]


def _known(array: xr.DataArray) -> bool:
    return bool(array.notnull().any())


def _marker(modes: NDArray[np.int64]) -> str:
    return "." if len(modes) <= MOST_MARKERS else ""


def _legend(figure: Figure, layers: Sequence[str], colours: Sequence[str], title: str) -> None:
    keys = [key(layer, colour, line="-") for layer, colour in zip(layers, colours, strict=True)]
    legend(figure, keys, title=title)
