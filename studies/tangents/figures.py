"""The figures of `studies.tangents`, from its Dataset alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from scipy import special

from studies.tangents.cells import QUANTITIES, Z95
from studies.tangents.page import STRIDE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = {"direct": "o", "rotated": "+"}


def figures(dataset: xr.Dataset) -> dict[str, Figure]:
    return {"quality": _quality(dataset), "agreement": _quantiles(dataset)}


def _quality(dataset: xr.Dataset) -> Figure:
    import matplotlib.pyplot as plt
    import seaborn
    from matplotlib.lines import Line2D

    with seaborn.axes_style("whitegrid"), seaborn.plotting_context("paper"):
        figure, grid = plt.subplots(len(QUANTITIES), 2, figsize=(5.5, 4.3), sharex=True, layout="constrained")
    ks = [int(k) for k in dataset["k"].values[::STRIDE]]
    colours = dict(zip(ks, seaborn.color_palette("colorblind", len(ks)), strict=True))
    for row, name in enumerate(QUANTITIES):
        for axes, combine in zip(grid[row], dataset["combine"].values, strict=True):
            for k in ks:
                _curve(axes, dataset.sel(combine=combine, k=k), name, colours[k])
            axes.set_xscale("log", base=2)
            if name == "norm_ratio" or (name == "squared_error" and combine == "mean"):
                axes.set_yscale("log")
            else:
                axes.set_ylim(-0.03, 1.05)
            if row == 0:
                axes.set_title(f"combined by: {combine}", fontsize=10)
        grid[row, 0].set_ylabel(f"{name.replace('_', ' ')} [1]")
    figure.supxlabel("n, number of weights [1]", fontsize=10)
    handles = [Line2D([], [], color=colours[k], label=f"k = {k}") for k in ks]
    handles += [Line2D([], [], color="0.3", ls="", marker=m, mfc="none", label=route) for route, m in MARKERS.items()]
    figure.legend(handles=handles, loc="outside right upper", frameon=False, title="line: predicted")
    return figure


def _curve(axes: Axes, own: xr.Dataset, name: str, colour: Any) -> None:
    # A squared error of rounding alone has no place on a logarithmic axis.
    seen = own[f"{name}_predicted"] > 1e-9
    axes.plot(own["n"], own[f"{name}_predicted"].where(seen), color=colour, lw=1)
    for route, marker in MARKERS.items():
        part = own.sel(route=route)
        values = part[name].where(seen)
        error = Z95 * part[f"{name}_se"]
        axes.errorbar(own["n"], values, yerr=error, ls="", marker=marker, ms=3, mfc="none", mew=0.8, color=colour, lw=1)


def _quantiles(dataset: xr.Dataset) -> Figure:
    import matplotlib.pyplot as plt
    import seaborn

    with seaborn.axes_style("whitegrid"), seaborn.plotting_context("paper"):
        figure, axes = plt.subplots(figsize=(4.6, 4.2), layout="constrained")
    markers: Sequence[str] = ("o", "s", "^")
    colours = seaborn.color_palette("colorblind", len(QUANTITIES))
    for name, marker, colour in zip(QUANTITIES, markers, colours, strict=True):
        z = dataset[f"{name}_z"].values
        z = np.sort(z[np.isfinite(z) & (z != 0)])
        expected = special.ndtri((np.arange(len(z)) + 0.5) / len(z))
        axes.plot(expected, z, marker, ms=3, mfc="none", color=colour, label=name.replace("_", " "))
    ends = np.array([-3.2, 3.2])
    axes.plot(ends, ends, color="black", lw=1, label="as by chance")
    axes.set(xlabel="normal quantile [1]", ylabel="(measured − predicted) / standard error [1]")
    axes.legend(frameon=False, loc="upper left")
    return figure
