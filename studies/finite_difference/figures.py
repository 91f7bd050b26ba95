"""The figure of `studies.finite_difference`, from its Dataset alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from studies.finite_difference.page import NAMES
from studies.kit.figures import geometric, key, legend, measured_and_predicted, panels, points, sheet, styles

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@sheet()
def figure(dataset: xr.Dataset) -> Figure:
    activations, dtypes = dataset["activation"].values, dataset["dtype"].values
    size = (3.4 * len(dtypes) + 1.2, 2.8 * len(activations) + 0.4)
    drawn, grid = panels(len(activations), len(dtypes), size, sharex=True, sharey=True)
    names = [f"finite difference, {scheme}" for scheme in dataset["scheme"].values]
    chosen = styles(names)
    for row, activation in enumerate(activations):
        for axes, dtype in zip(grid[row], dtypes, strict=True):
            for scheme, name in zip(dataset["scheme"].values, names, strict=True):
                own = dataset.sel(activation=activation, dtype=dtype, scheme=scheme).transpose("seed", ...)
                logs = np.log(own["slope_error"].values)
                seen = np.isfinite(logs).all(0)
                x = dataset["epsilon"].values
                points(axes, x[seen], geometric(logs[:, seen]), chosen[name].colour, chosen[name].marker, 3.5)
                predicted = np.exp(np.log(own["slope_error_predicted"].values).mean(0))
                axes.plot(x[seen], predicted[seen], color=chosen[name].colour, lw=1)
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.set_title(f"{NAMES[str(activation)]}, {dtype}")
    drawn.supxlabel("ε, the step, in units of the weights")
    drawn.supylabel("root mean square error of the slope / gradient norm")
    keys = [
        key(f"{scheme} difference", chosen[name].colour, chosen[name].marker)
        for scheme, name in zip(dataset["scheme"].values, names, strict=True)
    ]
    legend(drawn, [*keys, *measured_and_predicted()], "above", columns=4)
    return drawn
