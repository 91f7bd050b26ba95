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
from studies.kit.figures import PAGE_WIDTH, colour, key, legend, panels, shades, sheet, styles

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INPUTS = {"gaussian": "Gaussian", "mnist1d": "MNIST-1D"}


@sheet()
def figure(tree: xr.DataTree) -> Figure:
    """The facts above, the tables below."""
    drawn, grid = panels(2, 2, (PAGE_WIDTH, 8.4))
    _draw_same_law(grid[0, 0], tree["same_law"].to_dataset())
    _draw_joint_pass(grid[0, 1], tree["joint_pass"].to_dataset())
    _draw_tables(grid[1, 0], tree, "variance", "(loss per unit of activation)²")
    _draw_tables(grid[1, 1], tree, "bias", "loss per unit of activation")
    for axes, columns in zip(grid[0], (2, 1), strict=True):
        axes.set_yscale("log")
        handles = [*axes.get_legend_handles_labels()[0], key("predicted", "black", "x")]
        axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=columns)
    for axes in grid[1]:
        axes.set_xscale("log")
    grid[1, 1].set_xlim(left=3e-9)
    grid[1, 1].tick_params(labelleft=False)
    legend(
        drawn,
        [key("measured", marker="o"), key("printed in the paper", marker="s"), key("predicted", "black", "x")],
        "below",
        3,
    )
    return drawn


def _draw_same_law(axes: Axes, same_law: xr.Dataset) -> None:
    chosen = styles([label(estimator) for estimator in SAME_LAW.values()])
    for index, name in enumerate(map(str, same_law["guess_kind"].to_numpy())):
        places = np.arange(same_law.sizes["layer"]) + 0.14 * (index - 2)
        style = chosen[label(SAME_LAW[name])]
        _points(
            axes, places, same_law.sel(guess_kind=name), "relative_variance", style.colour, name, marker=style.marker
        )
    axes.set(ylabel="total variance / squared gradient norm", title="Facts 2 and 3: one distribution, one variance")
    _name_layers(axes, same_law)


def _draw_joint_pass(axes: Axes, joint_pass: xr.Dataset) -> None:
    kinds = list(map(str, joint_pass["inputs"].to_numpy()))
    for index, (kind, shade) in enumerate(zip(kinds, shades(colour("activity"), len(kinds)), strict=True)):
        for place in range(joint_pass.sizes["layer"]):
            own = joint_pass.sel(inputs=kind).isel(layer=place)
            places = place + 0.4 * (index - 0.5) + np.linspace(-0.15, 0.15, own.sizes["seed"])
            text = f"activity perturbation, {INPUTS.get(kind, kind)} inputs" if place == 0 else ""
            _points(axes, places, own, "ratio", shade, text)
    middles = np.arange(joint_pass.sizes["layer"])
    axes.hlines(EXPECTED, middles - 0.4, middles + 0.4, color="black", lw=1, label="expected: 1 + 6 + 36 + …")
    axes.set(
        ylabel="variance in a pass for all layers /\nin a pass for the layer alone",
        title="Fact 4: the other layers' noise",
    )
    _name_layers(axes, joint_pass)


def _name_layers(axes: Axes, dataset: xr.Dataset) -> None:
    n_layers = dataset.sizes["layer"]
    axes.set_xticks(range(n_layers), [f"layer {number}" for number in range(1, n_layers + 1)])


def _draw_tables(axes: Axes, tree: xr.DataTree, metric: str, unit: str) -> None:
    """Circles are measured and squares printed, in the colour of the estimator; the first row is at the top."""
    names: list[str] = []
    for number in (2, 5):
        own = tree[f"table_{number}"].to_dataset().isel(layer=0)
        for name in map(str, own["guess_kind"].to_numpy()):
            shade, place = colour(name), np.array([float(len(names))])
            point = own.sel(guess_kind=[name])
            _points(axes, place, point, metric, shade, "", flat=True)
            axes.plot(point[f"{metric}_printed"], place, "s", mfc="none", ms=9, color=shade)
            names.append(f"{name}\ntable {number}, width {own.attrs['width']}")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set(xlabel=f"{metric} as in the paper,\n{unit}", title=f"Tables 2 and 5: {metric}, layer 1")


def _points(
    axes: Axes,
    places: NDArray[Any],
    own: xr.Dataset,
    name: str,
    colour: str,
    text: str,
    marker: str = "o",
    flat: bool = False,
) -> None:
    """Measured numbers with 95 % intervals, and a cross for each prediction; with ``flat`` the numbers go right."""
    values, errors = own[name].to_numpy(), Z95 * own[f"{name}_se"].to_numpy()
    # Down to a tenth of the value: a logarithmic axis has no zero.
    bars: dict[str, Any] = {"xerr" if flat else "yerr": [np.minimum(errors, 0.9 * values), errors]}
    measured, predicted = (places, values), (places, own[f"{name}_predicted"].to_numpy())
    if flat:
        measured, predicted = measured[::-1], predicted[::-1]
    axes.errorbar(*measured, **bars, fmt=marker, mfc="none", ms=6, color=colour, label=text or None, lw=1)
    axes.plot(*predicted, "x", ms=4, color="black", zorder=4)
