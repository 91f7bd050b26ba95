"""The figures of the part on the conv net, from its Dataset alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from studies.fdfa.conv import STAGES
from studies.fdfa.conv_page import LAYERS, NAMES, of_guesses
from studies.fdfa.figures import MARKERS
from studies.fdfa.variance import HIDDEN
from studies.kit import figures as kit
from studies.kit.seeds import half_widths

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = NDArray[np.float64]
ROWS = {
    "variance": "variance /\nsquared gradient norm",
    "squared_bias": "squared bias /\nsquared gradient norm",
    "efficiency": "efficiency",
}
STEP = 0.11  # Between the marks of two guesses at one layer.


@kit.sheet()
def figures(dataset: xr.Dataset) -> dict[str, Figure]:
    """Name → figure."""
    return {"layers": _layers(dataset), "history": _history(dataset)}


def _looks(dataset: xr.Dataset) -> dict[str, tuple[str, str]]:
    """Colour and marker of every guess: FDFA's rates are shades of its colour."""
    names = [str(name) for name in of_guesses(dataset)["guess"].values]
    n_rates = dataset.sizes["rate"]
    shades = kit.shades(kit.colour("forward_direct_feedback"), n_rates)
    looks = dict(zip(names, zip(shades, MARKERS, strict=False), strict=False))
    keys = {shown: key.replace(" ", "_") for key, shown in NAMES.items()}
    return looks | {name: (kit.colour(keys[name]), kit.marker(keys[name])) for name in names[n_rates:]}


def _layers(dataset: xr.Dataset) -> Figure:
    """Variance, squared bias and efficiency by layer in weight space: a row a term, a column a stage."""
    guesses = of_guesses(dataset).sel(space="weight")
    figure, grid = kit.panels(len(ROWS), len(STAGES), (kit.PAGE_WIDTH, 7.2), sharex=True, sharey="row")
    places, looks = np.arange(guesses.sizes["layer"]), _looks(dataset)
    for row, (term, label) in zip(grid, ROWS.items(), strict=True):
        for axes, stage in zip(row, STAGES, strict=True):
            for index, (name, (colour, marker)) in enumerate(looks.items()):
                values = guesses[term].sel(stage=stage, guess=name).transpose("seed", "layer").to_numpy()
                if term == "squared_bias" and "perturbation" in name:
                    continue  # Unbiased: nothing but noise around zero would be drawn.
                shown, bars = _on_logs(values)
                x = places + STEP * (index - (len(looks) - 1) / 2)
                look = {"marker": marker, "color": colour, "ms": 5, "lw": 1, "mfc": "none", "label": name}
                axes.errorbar(x, shown, yerr=bars, ls="", **look)
            axes.set(yscale="log", xticks=places, xticklabels=[layer.replace(" ", "\n") for layer in LAYERS])
        row[0].set_ylabel(label)
    for axes, stage in zip(grid[0], STAGES, strict=True):
        accuracy = float(dataset["accuracy"].sel(stage=stage).mean())
        axes.set_title(f"{stage} weights, training accuracy {accuracy:.2f}")
    kit.legend(figure, grid[0, 0].get_legend_handles_labels()[0])
    return figure


def _history(dataset: xr.Dataset) -> Figure:
    """Efficiency of FDFA over α·step, all hidden layers in weight space, beside the other guesses as lines."""
    own = dataset.sel(space="weight", layer=HIDDEN)
    figure, grid = kit.panels(1, len(STAGES), (kit.PAGE_WIDTH, 3.4), sharey=True)
    looks = list(_looks(dataset).items())
    n_rates = dataset.sizes["rate"]
    for axes, stage in zip(grid[0], STAGES, strict=True):
        for rate, (name, (colour, marker)) in zip(dataset["rate"].values, looks[:n_rates], strict=True):
            at = own["efficiency"].sel(stage=stage, rate=rate)
            shown, bars = _on_logs(at.transpose("seed", "time").to_numpy())
            look = {"marker": marker, "color": colour, "ms": 4, "lw": 1, "mfc": "none", "label": name}
            axes.errorbar(dataset["time"], shown, yerr=bars, **look)
        for other, (name, (colour, _)) in zip(dataset["other"].values, looks[n_rates:], strict=True):
            mean = float(own["other_efficiency"].sel(stage=stage, other=other).mean())
            axes.axhline(mean if mean > 0 else np.nan, color=colour, ls="--", lw=1, label=name)
        axes.set(xscale="log", yscale="log", xlabel="rate α × steps of the moving average", title=f"{stage} weights")
    grid[0, 0].set_ylabel("efficiency")
    kit.legend(figure, grid[0, 0].get_legend_handles_labels()[0])
    return figure


def _on_logs(values: Array) -> tuple[Array, tuple[Array, Array]]:
    """Means over seeds, NaN below zero, and their bars, which end above zero: the axis is logarithmic."""
    mean, half = values.mean(0), half_widths(values, 0)
    return np.where(mean > 0, mean, np.nan), (np.minimum(half, 0.9 * mean.clip(min=0)), half)
