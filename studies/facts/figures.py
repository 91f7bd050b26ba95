"""The figure of `studies.facts`, from its DataTree alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from fganalysis.estimators import label
from fganalysis.statistics.intervals import Z95
from studies.facts.cells import SAME_LAW
from studies.facts.page import EXPECTED
from studies.kit.figures import colour, panels, shades, styles

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def figure(tree: xr.DataTree) -> Figure:
    """The facts above, the tables below."""
    drawn, grid = panels(2, 2, (10.5, 8.5))
    _draw_same_law(grid[0, 0], tree["same_law"].to_dataset())
    _draw_joint_pass(grid[0, 1], tree["joint_pass"].to_dataset())
    _draw_tables(grid[1, 0], tree, "variance", "(loss per unit of activation)²")
    _draw_tables(grid[1, 1], tree, "bias", "loss per unit of activation")
    for axes in grid.flat:
        axes.set_yscale("log")
        legend = axes.legend(
            fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3, frameon=False, title="×: predicted"
        )
        legend.get_title().set_fontsize(8)
    grid[1, 1].set_ylim(bottom=3e-9)
    return drawn


def _draw_same_law(axes: Axes, same_law: xr.Dataset) -> None:
    chosen = styles([label(estimator) for estimator in SAME_LAW.values()])
    for index, name in enumerate(map(str, same_law["guess_kind"].to_numpy())):
        places = np.arange(same_law.sizes["layer"]) + 0.14 * (index - 2)
        style = chosen[label(SAME_LAW[name])]
        _points(
            axes, places, same_law.sel(guess_kind=name), "relative_variance", style.colour, name, marker=style.marker
        )
    axes.set(ylabel="total variance / squared gradient norm [1]", title="Facts 2 and 3: one distribution, one variance")
    _name_layers(axes, same_law)


def _draw_joint_pass(axes: Axes, joint_pass: xr.Dataset) -> None:
    kinds = list(map(str, joint_pass["inputs"].to_numpy()))
    for index, (kind, shade) in enumerate(zip(kinds, shades(colour("activity"), len(kinds)), strict=True)):
        for place in range(joint_pass.sizes["layer"]):
            own = joint_pass.sel(inputs=kind).isel(layer=place)
            places = place + 0.4 * (index - 0.5) + np.linspace(-0.15, 0.15, own.sizes["seed"])
            text = f"activity, {kind} inputs" if place == 0 else ""
            _points(axes, places, own, "ratio", shade, text)
    middles = np.arange(joint_pass.sizes["layer"])
    axes.hlines(EXPECTED, middles - 0.4, middles + 0.4, color="black", lw=1, label="1 + 6 + 36 + …")
    axes.set(
        ylabel="variance in a pass for all layers /\nin a pass for the layer alone [1]",
        title="Fact 4: the other layers' noise",
    )
    _name_layers(axes, joint_pass)


def _name_layers(axes: Axes, dataset: xr.Dataset) -> None:
    n_layers = dataset.sizes["layer"]
    axes.set_xticks(range(n_layers), [f"layer {number}" for number in range(1, n_layers + 1)])


def _draw_tables(axes: Axes, tree: xr.DataTree, metric: str, unit: str) -> None:
    """Circles are measured and squares printed, in the colour of the estimator."""
    names: list[str] = []
    for number in (2, 5):
        own = tree[f"table_{number}"].to_dataset().isel(layer=0)
        for name in map(str, own["guess_kind"].to_numpy()):
            shade, place = colour(name), np.array([float(len(names))])
            point, first = own.sel(guess_kind=[name]), not names
            _points(axes, place, point, metric, shade, "")
            axes.plot(place, point[f"{metric}_printed"], "s", mfc="none", ms=10, color=shade)
            if first:
                axes.plot([], [], "o", mfc="none", ms=6, color="black", label="measured")
                axes.plot([], [], "s", mfc="none", ms=10, color="black", label="printed")
            kind = name.replace(", ", "\n")
            names.append(f"{kind}\ntable {number},\nwidth {own.attrs['width']}")
    axes.set_xticks(range(len(names)), names, fontsize=7)
    axes.set(ylabel=f"{metric} as in the paper\n[{unit}]", title=f"Tables 2 and 5: {metric}, layer 1")


def _points(
    axes: Axes, places: NDArray[Any], own: xr.Dataset, name: str, colour: str, text: str, marker: str = "o"
) -> None:
    """Measured numbers with 95 % intervals, and a cross for each prediction."""
    values, errors = own[name].to_numpy(), Z95 * own[f"{name}_se"].to_numpy()
    # Down to a tenth of the value: a logarithmic axis has no zero.
    bars = [np.minimum(errors, 0.9 * values), errors]
    axes.errorbar(places, values, yerr=bars, fmt=marker, mfc="none", ms=6, color=colour, label=text or None, lw=1)
    axes.plot(places, own[f"{name}_predicted"], "x", ms=4, color="black", zorder=4)
