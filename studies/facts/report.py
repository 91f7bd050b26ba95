"""The figure and the tables of `studies.facts`, from its datasets alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from fganalysis.results import plotting
from fganalysis.statistics.intervals import Z95

if TYPE_CHECKING:
    from matplotlib.axes import Axes

METRICS = ("variance", "bias", "covariance_norm")
# At default initialisation a step back through a layer leaves 1/6 of the squared gradient, whatever the width.
EXPECTED = (1 + 6 + 36 + 216, 1 + 6 + 36, 1 + 6)
EXACT = 1e-12  # Below is rounding.


def draw(same_law: xr.Dataset, joint_pass: xr.Dataset, tables: Sequence[xr.Dataset], path: Path) -> None:
    """The facts above, the tables below."""
    import matplotlib.pyplot as plt
    import seaborn

    with seaborn.axes_style("whitegrid"), seaborn.plotting_context("paper"):
        figure, grid = plt.subplots(2, 2, figsize=(10.5, 8.5), layout="constrained")
    colours = seaborn.color_palette("colorblind")
    _draw_same_law(grid[0, 0], same_law, colours)
    _draw_joint_pass(grid[0, 1], joint_pass, colours)
    _draw_tables(grid[1, 0], tables, "variance", "(loss per unit of activation)²", colours)
    _draw_tables(grid[1, 1], tables, "bias", "loss per unit of activation", colours)
    grid[1, 1].set_ylim(bottom=3e-9)
    for axes in grid.flat:
        axes.set_yscale("log")
        legend = axes.legend(
            fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2, frameon=False, title="×: predicted"
        )
        legend.get_title().set_fontsize(8)
    plotting.save(figure, path)


def _draw_same_law(axes: Axes, same_law: xr.Dataset, colours: Sequence[Any]) -> None:
    for index, name in enumerate(same_law["guess_kind"].to_numpy()):
        places = np.arange(same_law.sizes["layer"]) + 0.14 * (index - 2)
        _points(axes, places, same_law.sel(guess_kind=name), "relative_variance", colours[index], name)
    axes.set(ylabel="total variance / squared gradient norm", title="Facts 2 and 3: one law, one variance")
    _name_layers(axes, same_law)


def _draw_joint_pass(axes: Axes, joint_pass: xr.Dataset, colours: Sequence[Any]) -> None:
    for index, kind in enumerate(joint_pass["inputs"].to_numpy()):
        for place in range(joint_pass.sizes["layer"]):
            own = joint_pass.sel(inputs=kind).isel(layer=place)
            places = place + 0.4 * (index - 0.5) + np.linspace(-0.15, 0.15, own.sizes["seed"])
            text = f"{kind} inputs, each initial weights" if place == 0 else ""
            _points(axes, places, own, "ratio", colours[index], text)
    middles = np.arange(joint_pass.sizes["layer"])
    axes.hlines(EXPECTED, middles - 0.4, middles + 0.4, color="black", lw=1, label="1 + 6 + 36 + …")
    axes.set(ylabel="variance, joint pass / own pass", title="Fact 4: the other layers' noise")
    _name_layers(axes, joint_pass)


def _name_layers(axes: Axes, dataset: xr.Dataset) -> None:
    n_layers = dataset.sizes["layer"]
    axes.set_xticks(range(n_layers), [f"layer {number}" for number in range(1, n_layers + 1)])


def _draw_tables(axes: Axes, tables: Sequence[xr.Dataset], metric: str, unit: str, colours: Sequence[Any]) -> None:
    names: list[str] = []
    for number, table, colour in zip((2, 5), tables, colours, strict=False):
        places, own = len(names) + np.arange(table.sizes["guess_kind"]), table.isel(layer=0)
        _points(axes, places, own, metric, colour, f"table {number}: measured, width {table.attrs['width']}")
        text = f"table {number}: printed"
        axes.plot(places, own[f"{metric}_printed"], "s", mfc="none", ms=10, color=colour, label=text)
        names += map(str, table["guess_kind"].to_numpy())
    axes.set_xticks(range(len(names)), [name.replace(", ", "\n") for name in names], fontsize=7)
    axes.set(ylabel=f"{metric} as in the paper\n[{unit}]", title=f"Tables 2 and 5: {metric}, layer 1")


def _points(axes: Axes, places: NDArray[Any], own: xr.Dataset, name: str, colour: Any, text: str) -> None:
    """Measured numbers with 95 % intervals, and a cross for each prediction."""
    values, errors = own[name].to_numpy(), Z95 * own[f"{name}_se"].to_numpy()
    # Down to a tenth of the value: a logarithmic axis has no zero.
    bars = [np.minimum(errors, 0.9 * values), errors]
    axes.errorbar(places, values, yerr=bars, fmt="o", mfc="none", ms=6, color=colour, label=text or None, lw=1)
    axes.plot(places, own[f"{name}_predicted"], "x", ms=4, color="black", zorder=4)


def print_same_law(dataset: xr.Dataset) -> None:
    print("\nFacts 1 to 3 at initialisation, a pass a layer, activation space: measured ± standard error | predicted")
    print(f"{'guess':>22} {'layer':>5} {'relative bias':>28} {'variance / ‖g‖²':>28} {'max |Σ − M|':>17}")
    for name in dataset["guess_kind"].to_numpy():
        for number, layer in enumerate(dataset["layer"].to_numpy(), 1):
            own = dataset.sel(guess_kind=name, layer=layer)
            cells = [_cell_text(own, quantity) for quantity in ("relative_bias", "relative_variance")]
            distance = float(own["covariance_distance"])
            shown = "" if np.isnan(distance) else f"{distance:.1e}"
            print(f"{name:>22} {number:>5} {cells[0]:>28} {cells[1]:>28} {shown:>17}")
    print(
        "Fact 1: no bias at k = rank. Facts 2, 3: the variance of activity perturbation of live units, layers 1 and 2."
    )


def print_joint_pass(dataset: xr.Dataset) -> None:
    n_seeds = dataset.sizes["seed"]
    print(f"\nFact 4, variance in a joint pass / in a pass of the layer's own, over {n_seeds} initial weights:")
    print(f"{'inputs':>9} {'layer':>5} {'predicted, mean ± sd':>21} {'largest |z|':>11} {'1+6+36+…':>9}")
    z = abs(dataset["ratio"] - dataset["ratio_predicted"]) / dataset["ratio_se"]
    for kind in dataset["inputs"].to_numpy():
        for index, layer in enumerate(dataset["layer"].to_numpy()):
            own = dataset["ratio_predicted"].sel(inputs=kind, layer=layer)
            text = f"{float(own.mean()):.1f} ± {float(own.std()):.1f}"
            largest = float(z.sel(inputs=kind, layer=layer).max())
            print(f"{kind:>9} {index + 1:>5} {text:>21} {largest:>11.2f} {EXPECTED[index]:>9}")


def print_table(number: int, table: xr.Dataset) -> None:
    attributes = table.attrs
    print(
        f"\nTable {number}, layer 1, width {attributes['width']}, after {attributes['epochs']} epochs of "
        f"backpropagation (training accuracy {attributes['train_accuracy']:.3f}):"
    )
    print(f"{'guess':>18} {'metric':>15} {'measured ± se | predicted':>32} {'printed':>9} {'ours / printed':>14}")
    for name in table["guess_kind"].to_numpy():
        own = table.sel(guess_kind=name).isel(layer=0)
        for metric in METRICS:
            printed, predicted = float(own[f"{metric}_printed"]), float(own[f"{metric}_predicted"])
            # What is printed of an unbiased guess's bias is rounding.
            ratio = "" if np.isnan(printed) or predicted < EXACT else f"{predicted / printed:.2g}"
            shown = "" if np.isnan(printed) else f"{printed:.3g}"
            text = _cell_text(own, metric) if metric in own else f"{predicted:.4g}"
            print(f"{name:>18} {metric:>15} {text:>32} {shown:>9} {ratio:>14}")


def _cell_text(own: xr.Dataset, name: str) -> str:
    predicted = float(own[f"{name}_predicted"])
    shown = "0" if predicted < EXACT else f"{predicted:.3g}"
    return f"{float(own[name]):.3g} ± {float(own[f'{name}_se']):.1g} | {shown}"
