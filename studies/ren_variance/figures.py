"""The figure of `studies.ren_variance`, from its Dataset alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from fganalysis.estimators import label
from fganalysis.statistics.intervals import Z95
from studies.kit.figures import PAGE_WIDTH, key, legend, measured_and_predicted, panels, sheet, styles
from studies.ren_variance.cells import GUESSES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SWEEPS = {"batch size": "batch size (examples)", "fan-in": "fan-in (units)", "fan-out": "fan-out (units)"}

WORDS = {
    "weights shared": "weights perturbed, the same for all examples",
    "weights independent": "weights perturbed, for each example",
    "activities shared": "activities perturbed, the same for all examples",
    "activities independent": "activities perturbed, for each example",
}


@sheet()
def figure(dataset: xr.Dataset) -> Figure:
    """Measured variances with intervals over the formulas' lines, a panel a sweep."""
    drawn, grid = panels(1, len(SWEEPS), (PAGE_WIDTH, 3.8), sharey=True)
    chosen = styles([label(estimator) for estimator in GUESSES.values()])
    for axes, (sweep, axis) in zip(grid[0], SWEEPS.items(), strict=True):
        part = dataset.isel(point=np.flatnonzero(dataset["sweep"].values == sweep))
        for name, estimator in GUESSES.items():
            own, style = part.sel(guess_kind=name), chosen[label(estimator)]
            bars = Z95 * own["variance_se"]
            mark = {"fmt": style.marker, "ms": 4, "mfc": "none", "color": style.colour}
            axes.errorbar(own["value"], own["variance"], yerr=bars, **mark)
            axes.plot(own["value"], own["predicted"], color=style.colour, lw=1)
        axes.set(xscale="log", yscale="log", xlabel=axis)
    grid[0, 0].set_ylabel("variance of one weight's gradient,\n(loss per unit of weight)²")
    looks = {name: chosen[label(estimator)] for name, estimator in GUESSES.items()}
    keys = [key(WORDS[name], look.colour, look.marker) for name, look in looks.items()]
    others = measured_and_predicted(predicted="lines: formulas of Ren et al.")
    legend(drawn, [*keys, *others], "below", columns=2)
    return drawn
