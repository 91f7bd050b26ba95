"""The figure of `studies.throughput`, from its Dataset alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from studies.kit.figures import colour, key, legend, marker, panels, sheet, words
from studies.throughput.page import COMPARED, name_of, step_ratios, times_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLES = {
    "draw": "our sampler /\ndrawing its noise alone",
    "jvp_loop": "a loop of torch's jvp /\nour sampler",
    "vmap_jvp": "torch's vmap of jvp /\nour sampler",
}


@sheet()
def figure(dataset: xr.Dataset) -> Figure:
    """Ratios of times over the width, median and range over rounds, a panel a comparison."""
    drawn, grid = panels(1, len(COMPARED), (8.6, 3.0))
    widths = [int(width) for width in dataset["width"].values]
    for axes, contender in zip(grid[0], COMPARED, strict=True):
        for kind in map(str, dataset["estimator"].values):
            ratios = np.stack([times_of(dataset, width, kind, contender) for width in widths])
            middle = np.median(ratios, axis=1)
            reach = [middle - ratios.min(1), ratios.max(1) - middle]
            style = {"marker": marker(kind), "color": colour(kind), "ms": 5, "lw": 1.2, "capsize": 2}
            axes.errorbar(widths, middle, yerr=reach, label=words(kind), **style)
        axes.axhline(1, color="0.5", lw=0.8)
        axes.set_xscale("log", base=2)
        axes.set(ylim=(0, None), title=TITLES[contender])
        axes.set_xticks(widths, widths)
        axes.minorticks_off()
    drawn.supylabel("ratio of times")
    drawn.supxlabel("width of the hidden layers (units)")
    handles, _ = grid[0, 0].get_legend_handles_labels()
    legend(drawn, [*handles, key("as fast: ratio 1", "0.5", line="-")], title="median and range\nof rounds")
    return drawn


@sheet()
def by_law_figure(dataset: xr.Dataset) -> Figure:
    """Processor time of a guess over the number of weights, median and range over rounds."""
    drawn, grid = panels(1, 1, (8.0, 3.0))
    (axes,) = grid[0]
    weights = dataset["weights"].values
    for number, name in enumerate(map(str, dataset["estimator"].values)):
        times = 1e6 * dataset["by_law_seconds"].sel(estimator=name).values
        middle = np.median(times, axis=1)
        reach = [middle - times.min(1), times.max(1) - middle]
        line = ("-", "--", ":")[number % 3]
        style = {"marker": marker(name), "color": colour(name), "ms": 5, "lw": 1.2, "ls": line, "capsize": 2}
        axes.errorbar(weights, middle, yerr=reach, label=words(name), **style)
    axes.set(
        xscale="log", yscale="log", xlabel="number of weights of the network", ylabel="processor time of a guess (µs)"
    )
    legend(drawn, axes.get_legend_handles_labels()[0], title="median and range of rounds")
    return drawn


@sheet()
def steps_figure(dataset: xr.Dataset) -> Figure:
    """Times in steps of backpropagation, median and range over rounds."""
    drawn, grid = panels(1, 1, (6.5, 2.8))
    (axes,) = grid[0]
    names = [str(key) for key in dataset["compared"].values][::-1]
    for place, kind in enumerate(names):
        ratios = step_ratios(dataset, kind)
        middle = np.median(ratios)
        reach = [[middle - ratios.min()], [ratios.max() - middle]]
        is_guess = kind in dataset["timed"].values
        style = {"marker": marker(kind), "color": colour(kind)} if is_guess else {"marker": "o", "color": "0.3"}
        axes.errorbar(middle, place, xerr=reach, capsize=2, **style)
    axes.axvline(1, color="0.5", lw=0.8)
    axes.set_xscale("log")
    axes.set_yticks(range(len(names)), [_name(key) for key in names])
    axes.set_xlabel("time / time of a step of backpropagation")
    bars = key("median and range of rounds", marker="o", line="-")
    legend(drawn, [bars, key("as long as a step", "0.5", line="-")], "above", columns=2)
    return drawn


def _name(compared: str) -> str:
    """What is timed, in words; the name of an estimator is that of other figures."""
    name = name_of(compared)
    key_of_estimator = name.removeprefix("a guess, ").removesuffix(", bare")
    if name.startswith("a guess, "):
        return f"a guess of {words(key_of_estimator)}" + (",\nwithout the library" if name.endswith(", bare") else "")
    return name
