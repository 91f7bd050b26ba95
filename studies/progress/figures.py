"""The figures of `studies.progress`, from its DataTree alone."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from studies.kit.figures import PAGE_WIDTH, band, key, legend, panels, sheet, styles, words
from studies.progress import decreases, training_figures
from studies.progress.best_steps import FACTOR
from studies.progress.cells import LEVEL_Z, WORDS_OF_CURVATURES

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

DRAWN = "gauss_newton"  # The curvature of the figure of decreases: positive, so that every guess has a step.
WITH_ERROR = "hessian"  # The curvature of the figure of errors: that of the quadratic model itself.
LOWEST, HIGHEST = -2.0, 1.5  # Of the decreases that are drawn, over the decrease that is predicted at the best step.
LINES = ("-", "--", ":")  # Of the moments, in the figure of errors.
LIFTS = (0.001, 0.1, 10.0)  # At the advised step, of the lines that rise with the step squared.
SHOWN_ERRORS = (1e-6, 100.0)
TICKS = (1 / 16, 1 / 4, 1, 4, 16)


@sheet()
def figures(tree: xr.DataTree) -> dict[str, Figure]:
    """Name → figure."""
    steps, training = tree["steps"].to_dataset(), tree["training"].to_dataset()
    return {
        "decrease": _decrease(steps.sel(curvature=DRAWN)),
        "error": _error(steps.sel(curvature=WITH_ERROR)),
        "best": _best(steps),
        "ranks": training_figures.ranks(training),
        "training": training_figures.trainings(training),
        "width": training_figures.widths(tree["widths"].to_dataset()),
    }


def _title(steps: int) -> str:
    return "before training" if steps == 0 else f"after {steps} steps of training"


def _decrease(own: xr.Dataset) -> Figure:
    """Actual decreases over the step size: a row a network, a column a moment; black is the quadratic model."""
    networks, moments = own["network"].values, own["steps"].values
    figure, grid = panels(
        len(networks), len(moments), (PAGE_WIDTH, 1.9 * len(networks) + 1.2), sharex=True, sharey=True
    )
    chosen = styles([str(name) for name in own["estimator"].values])
    x = own["factor"].values
    fine = np.geomspace(x[0], x[-1], 200)
    for row, network in zip(grid, networks, strict=True):
        for axes, steps in zip(row, moments, strict=True):
            axes.plot(fine, fine * (2 - fine), color="black", lw=1.2)
            for name, style in chosen.items():
                part = own.sel(network=network, steps=steps, estimator=name)
                scale = abs(float(part["predicted"].sel(factor=1.0)))
                y, bars = part["actual"].values / scale, LEVEL_Z * part["actual_se"].values / scale
                look = {"color": style.colour, "marker": style.marker, "ms": 4, "mfc": "none", "lw": 0.8}
                axes.errorbar(x, y, yerr=bars, **look)
            axes.axvline(1, color="0.5", lw=0.8)
            axes.axhline(0, color="0.5", lw=0.8)
            axes.set(xscale="log", ylim=(LOWEST, HIGHEST))
        row[0].set_ylabel(str(network))
    for axes, steps in zip(grid[0], moments, strict=True):
        axes.set_title(_title(int(steps)))
    figure.supxlabel("step / advised step")
    figure.supylabel("decrease of the loss / largest decrease that is predicted")
    _legend(figure, own, [key("predicted", "black", line="-")])
    return figure


def _error(own: xr.Dataset) -> Figure:
    """Size of the model's relative error over the step size up to the advised one: a panel a network."""
    networks = own["network"].values
    figure, grid = panels(1, len(networks), (PAGE_WIDTH, 3.6), sharex=True, sharey=True)
    own = own.sel(factor=own["factor"] <= 1)
    errors, chosen = abs(decreases.relative_errors(own)), styles([str(name) for name in own["estimator"].values])
    x = own["factor"].values
    for axes, network in zip(grid[0], networks, strict=True):
        for name, style in chosen.items():
            for place, steps in enumerate(own["steps"].values):
                y = errors.sel(network=network, steps=steps, estimator=name).values
                look = {"color": style.colour, "marker": style.marker, "ms": 4, "mfc": "none", "lw": 0.9}
                axes.plot(x, y, ls=LINES[place % len(LINES)], **look)
        for lift in LIFTS:
            axes.plot(x, lift * x**2, color="black", lw=0.7)
        axes.set(xscale="log", yscale="log", ylim=SHOWN_ERRORS)
        axes.set_title(str(network))
        axes.set_xticks([1 / 32, 1 / 8, 1 / 2, 1], ["1/32", "1/8", "1/2", "1"])
        axes.minorticks_off()
    grid[0, 0].set_ylabel("error / predicted decrease")
    figure.supxlabel("step / advised step")
    lines = [key(_title(int(steps)), line=LINES[place % len(LINES)]) for place, steps in enumerate(own["steps"].values)]
    _legend(figure, own, [*lines, key("rises with the step squared", "black", line="-")])
    return figure


def _best(dataset: xr.Dataset) -> Figure:
    """The best step of the sweep over the advised one: a row a curvature, a group of marks a network and moment."""
    curvatures, networks, moments = (dataset[name].values for name in ("curvature", "network", "steps"))
    figure, grid = panels(len(curvatures), len(networks), (PAGE_WIDTH, 5.4), sharex=True, sharey=True)
    chosen = styles([str(name) for name in dataset["estimator"].values])
    for row, curvature in zip(grid, curvatures, strict=True):
        for axes, network in zip(row, networks, strict=True):
            axes.axhspan(1 / FACTOR, FACTOR, color="0.9", zorder=0)
            for index, (name, style) in enumerate(chosen.items()):
                part = dataset.sel(curvature=curvature, network=network, estimator=name)
                x = np.arange(len(moments)) + 0.15 * (index - (len(chosen) - 1) / 2)
                best = part["best"].values
                bars = [best - part["best_low"].values, part["best_high"].values - best]
                look = {"color": style.colour, "marker": style.marker, "ms": 5, "mfc": "none", "ls": ""}
                axes.errorbar(x, best, yerr=bars, **look)
            axes.set_xticks(np.arange(len(moments)), [str(steps) for steps in moments])
            axes.axhline(1, color="0.5", lw=0.8)
            axes.set_yscale("log", base=2)
            axes.set_yticks(TICKS, [str(Fraction(tick)) for tick in TICKS])
            axes.minorticks_off()
        row[0].set_ylabel(f"by the {WORDS_OF_CURVATURES[curvature]}")
    for axes, network in zip(grid[0], networks, strict=True):
        axes.set_title(str(network))
    figure.supxlabel("measured after so many steps of training")
    figure.supylabel("best step of the sweep / advised step")
    _legend(figure, dataset, [band(f"within a factor of {FACTOR:g}", "0.9", 1.0)])
    return figure


def _legend(figure: Figure, dataset: xr.Dataset, others: Sequence[Artist]) -> None:
    chosen = styles([str(name) for name in dataset["estimator"].values])
    guesses = [key(words(name), style.colour, style.marker) for name, style in chosen.items()]
    legend(figure, [*guesses, *others], "above", columns=4)
