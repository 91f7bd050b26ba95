"""The figure of the part on the ResNet, from its Dataset alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from studies.guess_target.resnet import AT_OUTPUTS, AT_TAPS, BLOCKS, MOMENTS, QUANTITIES
from studies.guess_target.resnet_page import NAMES
from studies.kit.figures import CATEGORIES, PAGE_WIDTH, colour, legend, panels, sheet
from studies.kit.seeds import half_widths

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARKS = {"linear": "o", "mlp": "s", "cnn": "^"}
APART = 0.09  # Between the marks of two guesses at one block.


@sheet()
def figures(dataset: xr.Dataset) -> dict[str, Figure]:
    """By the end of their names."""
    return {"blocks": _blocks(dataset)}


def _looks() -> dict[str, tuple[str, str, str]]:
    """Colour, marker and line of every guess: full for trained heads, dashed for frozen ones, dotted for noise."""
    looks: dict[str, tuple[str, str, str]] = {}
    for shade, (kind, marker) in zip((CATEGORIES[0], CATEGORIES[1], CATEGORIES[5]), MARKS.items(), strict=True):
        looks |= {f"{kind} head": (shade, marker, "-"), f"{kind} frozen": (shade, marker, "--")}
    return looks | {AT_OUTPUTS: ("black", "x", ":"), AT_TAPS: (colour("activity"), "+", ":")}


def _blocks(dataset: xr.Dataset) -> Figure:
    """Cosine and efficiency of every guess by block, in weight space: a row a quantity, a column a moment."""
    own = dataset.sel(space="weight", target="global", projection="activation", block=list(BLOCKS))
    figure, grid = panels(len(QUANTITIES), len(MOMENTS), (PAGE_WIDTH, 5.8), sharex=True, sharey="row")
    places, looks = np.arange(len(BLOCKS)), _looks()
    for row, quantity in zip(grid, QUANTITIES, strict=True):
        for axes, moment in zip(row, MOMENTS, strict=True):
            for index, (guess, (shade, marker, line)) in enumerate(looks.items()):
                values = own[quantity].sel(trained=moment, guess=guess).transpose("seed", "block").values
                axes.errorbar(
                    places + APART * (index - (len(looks) - 1) / 2),
                    values.mean(0),
                    yerr=half_widths(values, 0),
                    ls=line,
                    marker=marker,
                    ms=4,
                    lw=0.9,
                    mfc=shade if line == "-" else "none",
                    color=shade,
                    label=NAMES[guess],
                )
            if quantity == "efficiency":
                axes.set_yscale("log")
                axes.set(xlabel="residual block", xticks=places, ylim=(max(1e-5, _least(own) / 2), 1.3))
        row[0].set_ylabel(f"{quantity}, weight space")
    for axes, moment in zip(grid[0], MOMENTS, strict=True):
        accuracy = float(dataset["accuracy"].sel(trained=moment).mean())
        axes.set_title(f"{moment}, training accuracy {accuracy:.2f}")
    legend(figure, grid[0, 0].get_legend_handles_labels()[0], "above", columns=4)
    return figure


def _least(own: xr.Dataset) -> float:
    """The least mean efficiency that is drawn."""
    means = own["efficiency"].mean("seed")
    return float(means.where(means > 0).min())
