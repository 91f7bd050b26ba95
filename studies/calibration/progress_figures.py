"""The figures of the part on progress, from its result alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from fganalysis.measuring.difference_errors import FAR
from studies.calibration.kinks import KINKED, SMOOTH
from studies.calibration.page import WANTED
from studies.calibration.progress_page import GROUPS, SETTLED, cells, quantities, usual
from studies.kit.figures import CATEGORIES, PAGE_WIDTH, band, legend, panels, quantity, sheet

if TYPE_CHECKING:
    from matplotlib.figure import Figure


POINT = "a point: one network; smooth ones above the line"


@sheet()
def figures(tree: xr.DataTree) -> dict[str, Figure]:
    """Coverage by quantity, and the ratios that tell kinks."""
    return {"coverage": _coverage_figure(usual(cells(tree))), "kinks": _kinks_figure(tree["kinks"].to_dataset())}


def _coverage_figure(found: xr.Dataset) -> Figure:
    known = set(found["quantity"].values.tolist())
    names = [name for name in quantities() if name in known]
    guesses = sorted(set(found["guesses"].values.tolist()))
    figure, grid = panels(1, len(guesses), (PAGE_WIDTH, 8.8), sharex=True, sharey=True)
    rng = np.random.default_rng(0)
    for axes, n in zip(grid[0], guesses, strict=True):
        axes.axvspan(100 * WANTED[0], 100 * WANTED[1], color="0.85", zorder=0)
        for colour, group in zip(CATEGORIES, GROUPS, strict=False):
            chosen = (found["guesses"].values == n) & (found["group"].values == group)
            own = found.isel(cell=np.flatnonzero(chosen & np.isin(found["kind"].values, SETTLED)))
            places = np.array([names.index(name) for name in own["quantity"].values], dtype=float)
            places += rng.uniform(-0.25, 0.25, len(places))
            label = group.partition(" (")[0]  # Without the function's name.
            axes.plot(100 * own["coverage"], places, ".", ms=5, alpha=0.8, color=colour, label=label)
        axes.set(title=f"{n} guesses", xlabel="coverage of the 95 % interval (%)")
        axes.set_yticks(range(len(names)), [quantity(name) for name in names])
    grid[0, 0].invert_yaxis()
    handles, _ = grid[0, 0].get_legend_handles_labels()
    wanted = band(f"wanted: {100 * WANTED[0]:g} to {100 * WANTED[1]:g} %", "0.85", 1)
    legend(figure, [*handles, wanted], "below", 3, title="a point: one setting and layer")
    return figure


def _kinks_figure(kinks: xr.Dataset) -> Figure:
    names = [*SMOOTH, *KINKED]
    schemes = kinks["scheme"].values.tolist()
    figure, grid = panels(1, len(schemes), (PAGE_WIDTH, 4.0), sharex=True, sharey=True)
    rng = np.random.default_rng(0)
    for axes, scheme in zip(grid[0], schemes, strict=True):
        for colour, precision in zip(CATEGORIES, kinks["precision"].values, strict=False):
            own = kinks["ratio"].sel(scheme=scheme, precision=precision, activation=names).transpose("activation", ...)
            places = np.arange(len(names))[:, None] + rng.uniform(-0.2, 0.2, own.shape)
            axes.plot(own.values.ravel(), places.ravel(), ".", ms=5, alpha=0.8, color=colour, label=str(precision))
        axes.axvline(FAR, color="black", lw=1, ls="--", label=f"above {FAR:g}: kinks are reported")
        axes.axhline(len(SMOOTH) - 0.5, color="0.6", lw=0.8)
        axes.set(xscale="log", xlabel="truncation error / that of the derivatives", title=f"{scheme} difference")
        axes.set_yticks(range(len(names)), names)
    first = grid[0, 0]
    first.invert_yaxis()
    legend(figure, first.get_legend_handles_labels()[0], "below", 4, title=POINT)
    return figure
