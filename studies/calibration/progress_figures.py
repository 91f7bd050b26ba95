"""The figures of the part on progress, from its result alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from fganalysis.measuring.difference_errors import FAR
from studies.calibration.kinks import KINKED, SMOOTH
from studies.calibration.page import WANTED
from studies.calibration.progress_page import GROUPS, SETTLED, cells, quantities, usual

if TYPE_CHECKING:
    from matplotlib.figure import Figure


POINT = "a point: one network; smooth ones above the line"


def figures(tree: xr.DataTree) -> dict[str, Figure]:
    """Coverage by quantity, and the ratios that tell kinks."""
    return {"coverage": _coverage_figure(usual(cells(tree))), "kinks": _kinks_figure(tree["kinks"].to_dataset())}


def _coverage_figure(found: xr.Dataset) -> Figure:
    import matplotlib.pyplot as plt
    import seaborn

    known = set(found["quantity"].values.tolist())
    names = [name for name in quantities() if name in known]
    guesses = sorted(set(found["guesses"].values.tolist()))
    with seaborn.axes_style("whitegrid"), seaborn.plotting_context("paper"):
        figure, grid = plt.subplots(
            1, len(guesses), figsize=(9.5, 8.5), sharex=True, sharey=True, squeeze=False, layout="constrained"
        )
    rng = np.random.default_rng(0)
    for axes, n in zip(grid[0], guesses, strict=True):
        axes.axvspan(100 * WANTED[0], 100 * WANTED[1], color="0.85", zorder=0)
        for colour, group in zip(seaborn.color_palette("colorblind"), GROUPS, strict=False):
            chosen = (found["guesses"].values == n) & (found["group"].values == group)
            own = found.isel(cell=np.flatnonzero(chosen & np.isin(found["kind"].values, SETTLED)))
            places = np.array([names.index(name) for name in own["quantity"].values], dtype=float)
            places += rng.uniform(-0.25, 0.25, len(places))
            label = group.replace("`", "")
            axes.plot(100 * own["coverage"], places, ".", ms=5, alpha=0.8, color=colour, label=label)
        axes.set(title=f"{n} guesses", xlabel="coverage of the 95 % interval [%]")
        axes.set_yticks(range(len(names)), names, fontsize=7)
    grid[0, 0].invert_yaxis()
    handles, labels = grid[0, 0].get_legend_handles_labels()
    title = "a point: one setting and layer; grey: 93.5–96.5 %"
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, title=title)
    return figure


def _kinks_figure(kinks: xr.Dataset) -> Figure:
    import matplotlib.pyplot as plt
    import seaborn

    names = [*SMOOTH, *KINKED]
    schemes = kinks["scheme"].values.tolist()
    with seaborn.axes_style("whitegrid"), seaborn.plotting_context("paper"):
        figure, grid = plt.subplots(1, len(schemes), figsize=(9.5, 3.8), sharex=True, sharey=True, layout="constrained")
    rng = np.random.default_rng(0)
    for axes, scheme in zip(np.atleast_1d(grid), schemes, strict=True):
        for colour, precision in zip(seaborn.color_palette("colorblind"), kinks["precision"].values, strict=False):
            own = kinks["ratio"].sel(scheme=scheme, precision=precision, activation=names).transpose("activation", ...)
            places = np.arange(len(names))[:, None] + rng.uniform(-0.2, 0.2, own.shape)
            axes.plot(own.values.ravel(), places.ravel(), ".", ms=5, alpha=0.8, color=colour, label=str(precision))
        axes.axvline(FAR, color="black", lw=1, ls="--", label=f"cut-off, {FAR:g}")
        axes.axhline(len(SMOOTH) - 0.5, color="0.6", lw=0.8)
        axes.set(xscale="log", xlabel="truncation error over that of the derivatives", title=f"{scheme} difference")
        axes.set_yticks(range(len(names)), names)
    first = np.atleast_1d(grid)[0]
    first.invert_yaxis()
    handles, labels = first.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, title=POINT)
    return figure
