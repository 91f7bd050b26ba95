"""The figures of `studies.tangents`, from its Dataset alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from scipy import special

from studies.kit.figures import CATEGORIES, key, legend, panels, ramp, sheet
from studies.tangents.cells import QUANTITIES, Z95
from studies.tangents.page import STRIDE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LABELS = {
    "cosine": "cosine with\nthe gradient",
    "norm_ratio": "norm /\ngradient norm",
    "squared_error": "squared error /\nsquared gradient norm",
}
COMBINED = {"mean": "mean of the tangents", "orthogonal": "projection on their span"}
ROUTES = {"direct": "measured", "rotated": "measured in rotated coordinates"}
MARKERS = {"direct": "o", "rotated": "+"}


@sheet()
def figures(dataset: xr.Dataset) -> dict[str, Figure]:
    return {"quality": _quality(dataset), "agreement": _quantiles(dataset)}


def _quality(dataset: xr.Dataset) -> Figure:
    figure, grid = panels(len(QUANTITIES), 2, (7.5, 5.4), sharex=True)
    ks = [int(k) for k in dataset["k"].values[::STRIDE]]
    colours = dict(zip(ks, ramp(len(ks)), strict=True))
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
                axes.set_title(COMBINED.get(str(combine), str(combine)))
        grid[row, 0].set_ylabel(LABELS[name])
    figure.supxlabel("number of weights")
    keys = [key(f"{k} tangent{'s' * (k > 1)}", colours[k], line="-") for k in ks]
    routes = [key(f"marks: {ROUTES[route]}", marker=marker) for route, marker in MARKERS.items()]
    legend(figure, [*keys, key("lines: predicted", line="-"), *routes])
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
    figure, grid = panels(1, 1, (6.4, 4.4))
    axes = grid[0, 0]
    markers: Sequence[str] = ("o", "s", "^")
    for name, marker, colour in zip(QUANTITIES, markers, CATEGORIES, strict=False):
        z = dataset[f"{name}_z"].values
        z = np.sort(z[np.isfinite(z) & (z != 0)])
        expected = special.ndtri((np.arange(len(z)) + 0.5) / len(z))
        axes.plot(expected, z, marker, ms=3, mfc="none", color=colour, label=LABELS[name].replace("\n", " "))
    ends = np.array([-3.2, 3.2])
    axes.plot(ends, ends, color="black", lw=1, label="deviations by chance alone")
    axes.set(
        xlabel="quantile of a standard normal number", ylabel="quantile of z = (measured − predicted) / standard error"
    )
    legend(figure, axes.get_legend_handles_labels()[0])
    return figure
