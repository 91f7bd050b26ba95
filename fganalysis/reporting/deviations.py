"""The figure of z: how far each measured number is from its prediction, in its error, a row a quantity."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from fganalysis.results import palette, schema
from fganalysis.results.legends import key, legend
from fganalysis.results.style import sheet
from fganalysis.statistics.intervals import Z95

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FARTHEST = 8.0  # Larger z stand at the edge.


@sheet()
def deviations(scores: xr.Dataset) -> Figure:
    """A point a comparison, in the colour of its estimator; a band holds 95 % of them if the theory is right."""
    import matplotlib.pyplot as plt

    quantities = [str(name) for name in scores.data_vars]
    names = [str(name) for name in scores[schema.ESTIMATOR].values] if schema.ESTIMATOR in scores.coords else [""]
    styles = palette.styles(names)
    figure, axes = plt.subplots(figsize=(7.0, 0.34 * len(quantities) + 1.2), layout="constrained")
    axes.axvspan(-Z95, Z95, color="0.5", alpha=0.15, lw=0)
    drawn = []
    for number, name in enumerate(names):
        style = styles[name]
        for row, quantity in enumerate(quantities):
            array = scores[quantity]
            z = (array.sel({schema.ESTIMATOR: name}) if schema.ESTIMATOR in array.dims else array).to_numpy().ravel()
            z = np.clip(z[~np.isnan(z)], -FARTHEST, FARTHEST)
            height = row + (number - (len(names) - 1) / 2) * 0.7 / len(names)
            axes.plot(z, np.full(len(z), height), ls="", marker=style.marker, ms=4, mfc="none", color=style.colour)
            if len(z) and name not in drawn:
                drawn.append(name)
    axes.set_yticks(range(len(quantities)), [name.replace("_", " ") for name in quantities])
    axes.set_ylim(len(quantities) - 0.5, -0.5)
    axes.set_xlim(-FARTHEST - 0.3, FARTHEST + 0.3)
    axes.set_xlabel("z = (measured − predicted)/error; grey: where 95 % lie")
    legend(figure, [key(palette.words(name), styles[name].colour, styles[name].marker) for name in drawn])
    return figure
