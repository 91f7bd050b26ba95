"""The figure of `studies.mutants`, from its Dataset alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import xarray as xr

from studies.kit.figures import band, legend, panels, sheet, words

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What each check does, in words.
COLUMNS = {
    "check_unbiased": "test of\nbias",
    "assert_moments_match": "sampled moments\nagainst theory",
    "agreement": "agreement\nwith theory",
    "exact_moments": "enumerated\nmoments",
}


@sheet()
def figure(dataset: xr.Dataset) -> Figure:
    """Shares as a map, a row an estimator and a column a check; grey where a check cannot be asked."""
    import seaborn

    shares = dataset["share"].to_pandas()
    shown, grid = panels(1, 1, (7.0, max(1.3 + 0.17 * len(shares), 4.0)))
    axes = grid[0, 0]
    axes.set_facecolor("lightgrey")
    axes.grid(False)
    seaborn.heatmap(
        shares,
        vmin=0,
        vmax=1,
        cmap="cividis",
        linewidths=0.5,
        xticklabels=[COLUMNS.get(check, check) for check in dataset["check"].to_numpy()],
        yticklabels=[words(str(name)) for name in shares.index],
        cbar_kws={"label": "share of runs in which the check objects", "aspect": 40},
        ax=axes,
    )
    n_mutants = int((dataset["kind"] == "mutant").sum())
    axes.axhline(n_mutants, color="white", lw=4)
    axes.set(xlabel="", ylabel="broken estimators above the white line, correct ones below")
    axes.tick_params(axis="x", labeltop=True, bottom=False, labelbottom=False, rotation=0)
    legend(shown, [band("grey: the check cannot be asked", "lightgrey", 1)], "below")
    return shown
