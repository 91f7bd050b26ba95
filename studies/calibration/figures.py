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

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figures(tree: xr.DataTree) -> dict[str, Figure]:
    """Coverage by quantity, z's quantiles, and the power of check_unbiased."""
    return {"coverage": _coverage_figure(usual(cells(tree))), "z": _z_figure(tree), "power": _power_figure(tree)}


def _coverage_figure(found: xr.Dataset) -> Figure:
    import matplotlib.pyplot as plt
    import seaborn

    quantities = [name for name in COUNTED if name in found["quantity"].values]
    guesses = sorted(set(found["guesses"].values.tolist()))
    with seaborn.axes_style("whitegrid"), seaborn.plotting_context("paper"):
        figure, grid = plt.subplots(
            1, len(guesses), figsize=(9.5, 4.2), sharex=True, sharey=True, squeeze=False, layout="constrained"
        )
    colours = seaborn.color_palette("colorblind")
    rng = np.random.default_rng(0)
    for axes, n in zip(grid[0], guesses, strict=True):
        axes.axvspan(100 * WANTED[0], 100 * WANTED[1], color="0.85", zorder=0)
        for heavy, colour, text in ((False, colours[0], "other estimators"), (True, colours[1], "heavy-tailed")):
            own = found.isel(
                cell=np.flatnonzero(
                    (found["guesses"].values == n)
                    & (np.isin(found["estimator"].values, HEAVY) == heavy)
                    & np.isin(found["kind"].values, ["held", "wide", "tight"])
                )
            )
            places = np.array([quantities.index(name) for name in own["quantity"].values], dtype=float)
            places += rng.uniform(-0.25, 0.25, len(places))
            axes.plot(100 * own["coverage"], places, ".", ms=4, alpha=0.7, color=colour, label=text)
        axes.set(title=f"{n} guesses", xlabel="coverage of the 95 % interval [%]")
        axes.set_yticks(range(len(quantities)), quantities)
    grid[0, 0].invert_yaxis()
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=2,
        frameon=False,
        title="a point: one estimator, space and layer; grey: 93.5–96.5 %",
    )
    return figure


def _z_figure(tree: xr.DataTree) -> Figure:
    import matplotlib.pyplot as plt
    import seaborn

    names = z_shown(tree)
    with seaborn.axes_style("whitegrid"), seaborn.plotting_context("paper"):
        figure, grid = plt.subplots(
            1, len(names), figsize=(9.5, 4.2), sharex=True, sharey=True, squeeze=False, layout="constrained"
        )
    expected = stats.norm.ppf(LEVELS)
    quantities = shown(tree)
    for axes, name in zip(grid[0], names, strict=True):
        quantiles = of_usual(tree, name)
        for colour, quantity in zip(seaborn.color_palette("colorblind", len(quantities)), quantities, strict=True):
            own = quantiles.sel(quantity=quantity).transpose("level", ...).values.reshape(len(LEVELS), -1)
            own = own[:, ~np.isnan(own).any(0)]
            axes.fill_between(expected, *np.quantile(own, [0.05, 0.95], axis=1), color=colour, alpha=0.12, lw=0)
            axes.plot(expected, own.mean(1), color=colour, lw=1.2, label=quantity, zorder=3)
        axes.plot(expected, expected, color="black", lw=0.8, ls="--", label="normal law", zorder=4)
        axes.set(title=f"{name} guesses", xlabel="quantile of a standard normal number", ylim=(-3.5, 3.5))
    grid[0, 0].set_ylabel("quantile of z")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=8)
    return figure


def _power_figure(tree: xr.DataTree) -> Figure:
    import matplotlib.pyplot as plt
    import seaborn

    power = tree["power"].to_dataset()
    with seaborn.axes_style("whitegrid"), seaborn.plotting_context("paper"):
        figure, axes = plt.subplots(figsize=(5.0, 3.4), layout="constrained")
    blue = seaborn.color_palette("colorblind")[0]
    biases = power["bias"].values
    for bias in biases:
        needed = power["guesses_needed"].sel(bias=bias).values
        axes.plot(
            np.full(len(needed), bias),
            needed,
            "o",
            mfc="none",
            ms=4,
            color=blue,
            label="runs" if bias == biases[0] else None,
        )
    fine = np.geomspace(biases.min(), biases.max(), 100)
    axes.plot(fine, promised(fine), color="black", lw=1, label="promised: 60 (1 − r)²/r²,\nno fewer than two looks")
    axes.set(xscale="log", yscale="log", xlabel="relative bias r", ylabel="guesses until it is found")
    axes.set_xticks(biases, [f"{bias:g}" for bias in biases])
    axes.set_xticks([], minor=True)
    axes.legend(frameon=False, fontsize=8)
    return figure
