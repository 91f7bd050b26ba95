"""The figures of `studies.calibration`, from its result alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from scipy import stats

from studies.calibration.cells import COUNTED
from studies.calibration.counting import LEVELS
from studies.calibration.estimators import HEAVY
from studies.calibration.page import WANTED, cells, of_usual, promised, shown, usual, z_shown
from studies.kit.figures import CATEGORIES, PAGE_WIDTH, band, decades, legend, panels, quantity, sheet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOOKED_AT = (2500, 5000, 10_000, 20_000, 40_000)  # Guesses that an axis names.


@sheet()
def figures(tree: xr.DataTree) -> dict[str, Figure]:
    """Coverage by quantity, z's quantiles, and the power of check_unbiased."""
    return {"coverage": _coverage_figure(usual(cells(tree))), "z": _z_figure(tree), "power": _power_figure(tree)}


def _coverage_figure(found: xr.Dataset) -> Figure:
    quantities = [name for name in COUNTED if name in found["quantity"].values]
    guesses = sorted(set(found["guesses"].values.tolist()))
    figure, grid = panels(1, len(guesses), (PAGE_WIDTH, 4.4), sharex=True, sharey=True)
    rng = np.random.default_rng(0)
    for axes, n in zip(grid[0], guesses, strict=True):
        axes.axvspan(100 * WANTED[0], 100 * WANTED[1], color="0.85", zorder=0)
        for heavy, text in enumerate(("other estimators", "heavy-tailed estimators")):
            own = found.isel(
                cell=np.flatnonzero(
                    (found["guesses"].values == n)
                    & (np.isin(found["estimator"].values, HEAVY) == heavy)
                    & np.isin(found["kind"].values, ["held", "wide", "tight"])
                )
            )
            places = np.array([quantities.index(name) for name in own["quantity"].values], dtype=float)
            places += rng.uniform(-0.25, 0.25, len(places))
            axes.plot(100 * own["coverage"], places, ".", ms=4, alpha=0.7, color=CATEGORIES[heavy], label=text)
        axes.set(title=f"{n} guesses", xlabel="coverage of the 95 % interval (%)")
        axes.set_yticks(range(len(quantities)), [quantity(name) for name in quantities])
    grid[0, 0].invert_yaxis()
    handles, _ = grid[0, 0].get_legend_handles_labels()
    wanted = band(f"wanted: {100 * WANTED[0]:g} to {100 * WANTED[1]:g} %", "0.85", 1)
    legend(figure, [*handles, wanted], "below", 3, title="a point: one estimator, space and layer")
    return figure


def _z_figure(tree: xr.DataTree) -> Figure:
    names = z_shown(tree)
    figure, grid = panels(1, len(names), (PAGE_WIDTH, 4.2), sharex=True, sharey=True)
    expected = stats.norm.ppf(LEVELS)
    quantities = shown(tree)
    for axes, name in zip(grid[0], names, strict=True):
        quantiles = of_usual(tree, name)
        for colour, name_of in zip(CATEGORIES, quantities, strict=False):
            own = quantiles.sel(quantity=name_of).transpose("level", ...).values.reshape(len(LEVELS), -1)
            own = own[:, ~np.isnan(own).any(0)]
            axes.fill_between(expected, *np.quantile(own, [0.05, 0.95], axis=1), color=colour, alpha=0.12, lw=0)
            axes.plot(expected, own.mean(1), color=colour, lw=1.2, label=quantity(name_of), zorder=3)
        axes.plot(expected, expected, color="black", lw=0.8, ls="--", label="as it should be: the normal law", zorder=4)
        axes.set(title=f"{name} guesses", xlabel="quantile of a standard normal number", ylim=(-3.5, 3.5))
    grid[0, 0].set_ylabel("quantile of z = (measured − true) / standard error")
    handles, _ = grid[0, 0].get_legend_handles_labels()
    legend(figure, [*handles, band("bands: 5 to 95 % of settings", alpha=0.12)], "below", columns=4)
    return figure


def _power_figure(tree: xr.DataTree) -> Figure:
    power = tree["power"].to_dataset()
    figure, grid = panels(1, 1, (6.0, 3.6))
    axes = grid[0, 0]
    biases = power["bias"].values
    for bias in biases:
        needed = power["guesses_needed"].sel(bias=bias).values
        axes.plot(
            np.full(len(needed), bias),
            needed,
            "o",
            mfc="none",
            ms=4,
            color=CATEGORIES[0],
            label="runs" if bias == biases[0] else None,
        )
    fine = np.geomspace(biases.min(), biases.max(), 100)
    axes.plot(fine, promised(fine), color="black", lw=1, label="promised: 60 (1 − r)² / r², but two looks at least")
    axes.set(xscale="log", yscale="log", xlabel="relative bias r", ylabel="guesses until the bias is found")
    axes.set_xticks(biases, [f"{bias:g}" for bias in biases])
    axes.set_xticks([], minor=True)
    decades(axes.yaxis)
    axes.set_yticks(LOOKED_AT, [f"{number:,}".replace(",", " ") for number in LOOKED_AT])
    legend(figure, axes.get_legend_handles_labels()[0], "above", columns=2)
    return figure
