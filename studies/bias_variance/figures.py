"""The figures of `studies.bias_variance`: those of `fganalysis.plotting` for both spaces, and an overview."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from fganalysis.results import plotting, schema
from studies.kit.direct_labels import label_points
from studies.kit.figures import (
    PAGE_WIDTH,
    SMALL_LETTERS,
    colour,
    decades,
    key,
    legend,
    panels,
    shades,
    sheet,
    styles,
    words,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOMENTS = ("before training", "in the middle of training", "at the end of training")


def write(tree: xr.DataTree, folder: Path) -> None:
    """Writes the figures of one network beside its page."""
    for space in schema.SPACES:
        plotting.save(plotting.bias_variance(tree, space), folder / f"bias_variance_{space}.png")
        plotting.save(plotting.cosine(tree, space), folder / f"cosine_{space}.png")
    plotting.save(overview(tree), folder / "overview.png")


@sheet()
def overview(tree: xr.DataTree) -> Figure:
    """Bias against noise of one guess in weight space, all layers together: a panel a step, a name at every point.

    The exact gradient, whose noise of zero has no place on a logarithmic axis, is named at the left edge.
    """
    where = {schema.SPACE: "weight", schema.LAYER: schema.ALL_LAYERS}
    measured, predicted = (tree[part].to_dataset().sel(where) for part in ("measured", "predicted"))
    steps = measured[schema.STEP].values
    figure, grid = panels(1, len(steps), (PAGE_WIDTH, 4.0), sharex=True, sharey=True)
    names = [str(name) for name in measured[schema.ESTIMATOR].values]
    placed = []
    for axes, step in zip(grid[0], steps, strict=True):
        at = {schema.STEP: step}
        placed.append(_draw(axes, measured.sel(at), predicted.sel(at), names))
        axes.set_title(f"step {step}")
    if len(steps) == len(MOMENTS):
        for axes, step, moment in zip(grid[0], steps, MOMENTS, strict=True):
            axes.set_title(f"{moment} (step {step})")
    first = grid[0, 0]
    first.set_xscale("log")
    decades(first.xaxis)
    low, high = first.get_xlim()
    first.set_xlim(low / 15, high * 4)
    first.set_yticks(np.arange(0, 1.2, 0.2))
    first.set_ylim(-0.25, max(1.15, first.get_ylim()[1]))
    figure.supylabel("←  less biased      bias / gradient norm")
    figure.supxlabel(
        "←  less noisy      variance of a guess / squared gradient norm\n"
        "(so many guesses must be averaged until their noise is no larger than the gradient)"
    )
    keys = [key("measured, with its 95 % interval", marker="o"), key("predicted by theory", "black", marker="x")]
    legend(figure, keys, "above", columns=2)
    for axes, places in zip(grid[0], placed, strict=True):
        _show_the_better(axes)
        label_points(axes, {words(name): place for name, place in places.items()}, [colour(name) for name in places])
    return figure


def _draw(axes: Axes, measured: xr.Dataset, predicted: xr.Dataset, names: list[str]) -> dict[str, tuple[float, float]]:
    """Draws every estimator with variance and gives its place."""
    chosen, places = styles(names), {}
    square = float(measured["gradient_norm"].isel({schema.ESTIMATOR: 0})) ** 2
    for name in names:
        own, theory = (part.sel({schema.ESTIMATOR: name}) for part in (measured, predicted))
        x, y = (float(own["variance"]) / square, float(own["relative_bias"]))
        if not (x > plotting.LEAST_VARIANCE_SHOWN and np.isfinite(y)):
            continue
        bars = [[max(y - float(own["relative_bias_low"]), 0)], [max(float(own["relative_bias_high"]) - y, 0)]]
        look: dict[str, Any] = {"marker": chosen[name].marker, "color": chosen[name].colour}
        axes.errorbar(x, y, yerr=bars, ms=7, mfc="none", mew=1.3, lw=1.0, **look)
        axes.plot(float(theory["variance"]) / square, float(theory["relative_bias"]), "x", ms=4, mew=1, color="black")
        places[name] = (x, y)
    return places


def _show_the_better(axes: Axes) -> None:
    """An arrow to the corner where a guess is good, and the exact gradient in it."""
    arrow = {"arrowstyle": "-|>", "color": "0.45", "lw": 2}
    axes.annotate(
        "better",
        (0.66, 0.72),
        (0.92, 0.94),
        xycoords="axes fraction",
        arrowprops=arrow,
        color="0.35",
        ha="center",
        va="center",
    )
    pink = shades(colour("backpropagation"), 2)[0]
    axes.annotate(
        "◂ exact\n   gradient",
        (0.02, 0),
        xycoords=("axes fraction", "data"),
        color=pink,
        fontsize=SMALL_LETTERS,
        va="center",
    )
