"""The figure of `studies.finite_difference`, from its Dataset alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from studies.finite_difference.page import NAMES
from studies.kit.markdown import capital
from studies.kit.seeds import half_widths

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figure(dataset: xr.Dataset) -> Figure:
    import matplotlib.pyplot as plt
    import seaborn
    from matplotlib.lines import Line2D

    activations, dtypes = dataset["activation"].values, dataset["dtype"].values
    with seaborn.axes_style("whitegrid"), seaborn.plotting_context("paper"):
        drawn, grid = plt.subplots(
            len(activations),
            len(dtypes),
            figsize=(3.4 * len(dtypes) + 1.2, 2.8 * len(activations) + 0.4),
            sharex=True,
            sharey=True,
            squeeze=False,
            layout="constrained",
        )
    styles = list(zip(dataset["scheme"].values, seaborn.color_palette("colorblind"), ("o", "s"), strict=False))
    for row, activation in enumerate(activations):
        for axes, dtype in zip(grid[row], dtypes, strict=True):
            for scheme, colour, marker in styles:
                own = dataset.sel(activation=activation, dtype=dtype, scheme=scheme).transpose("seed", ...)
                logs = np.log(own["slope_error"].values)
                seen = np.isfinite(logs).all(0)
                middle, half = logs[:, seen].mean(0), half_widths(logs[:, seen], 0)
                value = np.exp(middle)
                bars = [value - np.exp(middle - half), np.exp(middle + half) - value]
                x = dataset["epsilon"].values
                axes.errorbar(x[seen], value, yerr=bars, ls="", marker=marker, ms=3.5, mfc="none", color=colour, lw=1)
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
