"""The figure of `studies.finite_difference`, from its Dataset alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from studies.finite_difference.page import NAMES
from studies.kit.figures import geometric, panels, points
from studies.kit.markdown import capital

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figure(dataset: xr.Dataset) -> Figure:
    import seaborn
    from matplotlib.lines import Line2D

    activations, dtypes = dataset["activation"].values, dataset["dtype"].values
    size = (3.4 * len(dtypes) + 1.2, 2.8 * len(activations) + 0.4)
    drawn, grid = panels(len(activations), len(dtypes), size, sharex=True, sharey=True)
    styles = list(zip(dataset["scheme"].values, seaborn.color_palette("colorblind"), ("o", "s"), strict=False))
    for row, activation in enumerate(activations):
        for axes, dtype in zip(grid[row], dtypes, strict=True):
            for scheme, colour, marker in styles:
                own = dataset.sel(activation=activation, dtype=dtype, scheme=scheme).transpose("seed", ...)
                logs = np.log(own["slope_error"].values)
                seen = np.isfinite(logs).all(0)
                x = dataset["epsilon"].values
                points(axes, x[seen], geometric(logs[:, seen]), colour, marker, 3.5)
                predicted = np.exp(np.log(own["slope_error_predicted"].values).mean(0))
                axes.plot(x[seen], predicted[seen], color=colour, lw=1)
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.set_title(f"{NAMES[str(activation)]}, {dtype}", fontsize=9)
    drawn.supxlabel("ε, step [units of weight]", fontsize=10)
    drawn.supylabel("root mean square error of the slope / ‖G‖ [1]", fontsize=10)
    handles = [Line2D([], [], color=c, marker=m, mfc="none", label=capital(str(s))) for s, c, m in styles]
    drawn.legend(
        handles=handles, loc="outside right upper", frameon=False, fontsize=8, title="marks: measured\nlines: predicted"
    )
    return drawn
