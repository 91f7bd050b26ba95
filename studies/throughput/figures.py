"""The figure of `studies.throughput`, from its Dataset alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from studies.kit.figures import colour, marker, panels
from studies.throughput.page import COMPARED, name_of, step_ratios, times_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLES = {
    "draw": "sampler over\ndrawing its noise",
    "jvp_loop": "a loop of jvp\nover the sampler",
    "vmap_jvp": "vmap of jvp\nover the sampler",
}


def figure(dataset: xr.Dataset) -> Figure:
    """Ratios of times over the width, median and range over rounds, a panel a comparison."""
    drawn, grid = panels(1, len(COMPARED), (8.6, 3.0))
    widths = [int(width) for width in dataset["width"].values]
    for axes, contender in zip(grid[0], COMPARED, strict=True):
        for key in map(str, dataset["estimator"].values):
            ratios = np.stack([times_of(dataset, width, key, contender) for width in widths])
            middle = np.median(ratios, axis=1)
            reach = [middle - ratios.min(1), ratios.max(1) - middle]
            style = {"marker": marker(key), "color": colour(key), "ms": 5, "lw": 1.2, "capsize": 2}
            axes.errorbar(widths, middle, yerr=reach, label=key, **style)
        axes.axhline(1, color="0.5", lw=0.8)
        axes.set_xscale("log", base=2)
        axes.set(ylim=(0, None), title=TITLES[contender])
        axes.set_xticks(widths, widths)
        axes.minorticks_off()
    grid[0, 0].set_ylabel("ratio of times [1]")
    drawn.supxlabel("width of the hidden layers [units]", fontsize=10)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    drawn.legend(handles, labels, loc="outside right upper", frameon=False, title="median and range\nover rounds")
    return drawn


def by_law_figure(dataset: xr.Dataset) -> Figure:
    """Processor time of a guess over the number of weights, median and range over rounds."""
    drawn, grid = panels(1, 1, (7.6, 2.8))
    (axes,) = grid[0]
    weights = dataset["weights"].values
    for number, name in enumerate(map(str, dataset["estimator"].values)):
        times = 1e6 * dataset["by_law_seconds"].sel(estimator=name).values
        middle = np.median(times, axis=1)
        reach = [middle - times.min(1), times.max(1) - middle]
        line = ("-", "--", ":")[number % 3]
        style = {"marker": marker(name), "color": colour(name), "ms": 5, "lw": 1.2, "ls": line, "capsize": 2}
        axes.errorbar(weights, middle, yerr=reach, label=name, **style)
    axes.set(xscale="log", yscale="log", xlabel="weights [1]", ylabel="processor time\nof a guess [µs]")
    drawn.legend(loc="outside right upper", frameon=False)
    return drawn


def steps_figure(dataset: xr.Dataset) -> Figure:
    """Times in steps of backpropagation, median and range over rounds."""
    drawn, grid = panels(1, 1, (4.6, 2.4))
    (axes,) = grid[0]
    names = [str(key) for key in dataset["compared"].values][::-1]
    for place, key in enumerate(names):
        ratios = step_ratios(dataset, key)
        middle = np.median(ratios)
        reach = [[middle - ratios.min()], [ratios.max() - middle]]
        is_guess = key in dataset["timed"].values
        style = {"marker": marker(key), "color": colour(key)} if is_guess else {"marker": "o", "color": "0.3"}
        axes.errorbar(middle, place, xerr=reach, capsize=2, **style)
    axes.axvline(1, color="0.5", lw=0.8)
    axes.set_xscale("log")
    axes.set_yticks(range(len(names)), [name_of(key) for key in names])
    axes.set_xlabel("time in steps of backpropagation [1]")
    return drawn
