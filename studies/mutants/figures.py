"""The figure of `studies.mutants`, from its Dataset alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import xarray as xr

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = {
    "check_unbiased": "check_\nunbiased",
    "assert_moments_match": "assert_moments_\nmatch",
    "exact_moments": "exact_\nmoments",
}


def figure(dataset: xr.Dataset) -> Figure:
    """Shares as a map, a row an estimator and a column a check; grey where a check cannot be asked."""
    import matplotlib.pyplot as plt
    import seaborn

    shares = dataset["share"].to_pandas()
    with seaborn.axes_style("white"), seaborn.plotting_context("paper"):
        shown, axes = plt.subplots(figsize=(6.5, 1.3 + 0.17 * len(shares)), layout="constrained")
    axes.set_facecolor("lightgrey")
    seaborn.heatmap(
        shares,
        vmin=0,
        vmax=1,
        cmap="cividis",
        linewidths=0.5,
        xticklabels=[COLUMNS.get(check, check) for check in dataset["check"].to_numpy()],
        yticklabels=True,
        cbar_kws={"label": "share of runs in which the check objects (grey: cannot be asked)", "aspect": 40},
        ax=axes,
    )
    n_mutants = int((dataset["kind"] == "mutant").sum())
    axes.axhline(n_mutants, color="white", lw=4)
    axes.set(xlabel="", ylabel="broken estimators, and below the line what they claim to be")
    axes.tick_params(axis="x", labeltop=True, bottom=False, labelbottom=False, labelsize=8, rotation=0)
    return shown
