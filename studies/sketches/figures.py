"""The figures of `studies.sketches`, from its Dataset alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from studies.kit.figures import (
    CATEGORIES,
    PAGE_WIDTH,
    geometric,
    key,
    legend,
    measured_and_predicted,
    panels,
    points,
    ramp,
    sheet,
)
from studies.kit.markdown import capital
from studies.kit.seeds import half_widths
from studies.sketches.cells import NEGLIGIBLE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STAGES = {"initialisation": "at initialisation", "trained": "after training"}
MARKERS = ("o", "s", "^", "D", "v", "X")


@sheet()
def figures(dataset: xr.Dataset) -> dict[str, Figure]:
    """Name → figure."""
    return {"noise": _noise(dataset), "age": _age(dataset)}


def _noise(dataset: xr.Dataset) -> Figure:
    """Noise over memory: a row a stage, a column a network, a line a sketch."""
    networks, stages = dataset["network"].values, dataset["stage"].values
    size = (PAGE_WIDTH, 2.5 * len(stages) + 1.1)
    figure, grid = panels(len(stages), len(networks), size, sharey=True, sharex=True)
    sketches = [str(name) for name in dataset["sketch"].values]
    colours = dict(zip(sketches, CATEGORIES, strict=False))
    for row, stage in zip(grid, stages, strict=True):
        for axes, network in zip(row, networks, strict=True):
            for name, marker in zip(sketches, MARKERS, strict=True):
                own = dataset.sel(network=network, stage=stage, sketch=name).transpose("seed", "size", ...)
                seen = (own["noise_predicted"].values > NEGLIGIBLE).all(0)
                memory = own["memory"].values.mean(0)[seen]
                if not seen.any():
                    continue
                predicted = np.exp(np.log(own["noise_predicted"].values[:, seen]).mean(0))
                axes.plot(memory, predicted, color=colours[name], lw=1)
                logs = np.log(own["noise"].values[:, seen])
                points(axes, memory, geometric(logs), colours[name], marker, 4)
            axes.axhline(1, color="black", lw=1, ls="--")
            axes.axvline(1, color="0.6", lw=1, ls=":")
            axes.set(xscale="log", yscale="log")
        row[0].set_ylabel(f"{STAGES.get(str(stage), str(stage))}\nnoise / minibatch's noise")
    for axes, network in zip(grid[0], networks, strict=True):
        axes.set_title(str(network))
    figure.supxlabel("memory: numbers kept / numbers of the inputs")
    keys = [key(capital(name), colours[name], marker) for name, marker in zip(sketches, MARKERS, strict=True)]
    others = [
        key("as noisy as the minibatch", "black", line="--"),
        key("as many numbers as the inputs", "0.6", line=":"),
    ]
    legend(figure, [*keys, *others, *measured_and_predicted()], "above", columns=4)
    return figure


def _age(dataset: xr.Dataset) -> Figure:
    """What an older gradient leaves outside over its age: a row a start, a column a network, a line a rank."""
    networks, starts, ranks = dataset["network"].values, dataset["start"].values, dataset["rank"].values
    size = (PAGE_WIDTH, 2.3 * len(starts) + 1.0)
    figure, grid = panels(len(starts), len(networks), size, sharey=True, sharex=True)
    colours = dict(zip(ranks.tolist(), ramp(len(ranks)), strict=True))
    places = np.arange(dataset.sizes["age"])
    for row, start in zip(grid, starts, strict=True):
        for axes, network in zip(row, networks, strict=True):
            for rank, colour in colours.items():
                own = dataset.sel(network=network, start=start, rank=rank).transpose("seed", "age", ...)
                axes.plot(places, own["outside_predicted"].values.mean(0), color=colour, lw=1)
                points(axes, places, _arithmetic(own["outside"].values), colour, "o", 4)
                axes.plot(places, own["outside_random"].values.mean(0), color=colour, lw=1, ls="--")
                axes.plot(places, own["outside_own"].values.mean(0), color=colour, lw=1, ls=":")
            axes.set(xticks=places, xticklabels=[str(age) for age in dataset["age"].values], ylim=(-0.03, 1.03))
        row[0].set_ylabel(f"gradients from step {start}\nshare of energy left outside")
    for axes, network in zip(grid[0], networks, strict=True):
        axes.set_title(str(network))
    figure.supxlabel("age of the older gradient (steps)")
    keys = [key(f"k = {k} directions of the older gradient", colour, "o") for k, colour in colours.items()]
    others = [key("k random directions", line="--"), key("the k best directions of the gradient itself", line=":")]
    legend(figure, [*keys, *measured_and_predicted(), *others], "above", columns=3)
    return figure


def _arithmetic(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Low end, mean and high end of the 95 % interval over seeds, from (seed, …)."""
    centre, half = values.mean(0), half_widths(values, 0)
    return centre - half, centre, centre + half
