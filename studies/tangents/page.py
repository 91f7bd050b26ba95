"""The page and the figures of `studies.tangents`, from its Dataset alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from scipy import special

from studies.kit.markdown import table
from studies.kit.seeds import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

QUANTITIES = {
    "cosine": "cosine of the guess and the gradient",
    "norm_ratio": "norm of the guess over that of the gradient",
    "squared_error": "squared norm of the guess's error over that of the gradient",
}
ROUTES = ("direct", "rotated")
Z95 = float(special.ndtri(0.975))  # Standard errors are widened as Student's law asks: ± this many cover 95 %.
MARKERS = {"direct": "o", "rotated": "+"}
STRIDE = 2  # Every other power of two of k is shown: six lines can be told apart, eleven cannot.


def page(dataset: xr.Dataset) -> str:
    """docs/results/tangents.md."""
    largest, draws = int(dataset["n"][-1]), dataset["draws"].sel(route="direct")
    lines = [
        "# How good is the guess from k random tangents in n dimensions?",
        "",
        "Written by `python -m studies.tangents` from its Dataset: do not edit. The experiment of Flügel et al. (2024, "
        f"arXiv 2410.17764): true gradient ones(n), n from 1 to {largest}, k from 1 to {int(dataset['k'][-1])} "
        f"Gaussian tangents (k ≤ n for the projection), up to {dataset.attrs['draws']} guesses of `MultiTangent` a "
        "point. Weight space, one layer, one example; each tangent has a slope of its own. The paper draws curves and "
        "prints no numbers, so what stands beside ours is the closed form: theory/projection.py, and for the mean the "
        "laws of cosine and norm in theory/multi_tangent.py. Intervals are 95 % over guesses.",
        "",
        "`direct`: tangents of n entries; fewer guesses where n·k is large, "
        f"{int(draws.where(draws > 0).min())} at the least. `rotated`: the same law in k + 1 dimensions, through the "
        "same estimator (studies/tangents/rotated.py), where direct guesses had to be fewer.",
        "",
        "![Quality of the guess over n, a line a k](tangents_quality.png)",
        "",
        "Lines are predictions, circles direct guesses, plus signs rotated ones; most intervals are smaller than the "
        "marks.",
        "",
        *_needed(dataset, largest),
        f"## Measured beside predicted at n = {largest}",
        "",
        *_comparison(dataset.sel(n=largest)),
        "",
        "## Agreement over the whole grid",
        "",
        *_agreement(dataset),
    ]
    return "\n".join(lines) + "\n"


def _needed(dataset: xr.Dataset, largest: int) -> list[str]:
    """How many tangents a mean cosine takes."""
    rows = []
    for combine in dataset["combine"].values:
        own = dataset.sel(combine=combine, n=largest)
        for target in dataset["target"].values:
            low, high = _bracket(own, float(target))
            rows.append([str(combine), f"{target:g}", f"{int(own['tangents_needed'].sel(target=target))}", low, high])
    needed = dataset["tangents_needed"].sel(n=largest)
    ratios = needed.sel(combine="mean") / needed.sel(combine="orthogonal")
    first, last = (f"{float(ratios[i]):.2f} at {float(ratios['target'][i]):g}" for i in (0, -1))
    most = dataset.sel(n=largest).isel(k=-1)["norm_ratio_predicted"]
    long, short = (f"{float(most.sel(combine=combine)):.2g}" for combine in ("mean", "orthogonal"))
    return [
        f"## How many tangents does a cosine take at n = {largest}?",
        "",
        table(["combined by", "mean cosine", "least k, predicted", "measured: below at k =", "above at k ="], rows),
        "",
        "E cos² is k/n for the projection and k/(n + k − 1) for the mean. While k is small beside n both point the "
        "same way; only at high cosines does the projection pay in direction: the mean takes more tangents by a "
        f"factor of {first} and {last}. Length is another matter: the mean is too long, about √(n/k), and the "
        f"projection too short, √(k/n); at k = {int(most['k'])} the guess is {long} and {short} times as long as the "
        "gradient. One step size mends either.",
        "",
    ]


def _bracket(own: xr.Dataset, target: float) -> tuple[str, str]:
    """The largest k whose measured interval lies below the target and the smallest whose lies above."""
    rotated = own.sel(route="rotated")
    best = rotated.where(rotated["draws"] > 0, own.sel(route="direct"))
    half = Z95 * best["cosine_se"]
    below = best["k"].values[(best["cosine"] + half < target).values]
    above = best["k"].values[(best["cosine"] - half > target).values]
    return (str(below.max()) if len(below) else "–", str(above.min()) if len(above) else "–")


def _comparison(own: xr.Dataset) -> list[str]:
    rows = []
    for combine in own["combine"].values:
        for k in own["k"].values[::STRIDE]:
            point = own.sel(combine=combine, k=k)
            cells = [str(combine), str(k)]
            for name in QUANTITIES:
                for route in ROUTES:
                    value, error = (float(point[n].sel(route=route)) for n in (name, f"{name}_se"))
                    cells.append(str(Interval(value, Z95 * error)) if np.isfinite(value) else "–")
                cells.append(f"{float(point[f'{name}_predicted']):.4g}")
            rows.append(cells)
    header = ["combined by", "k"]
    for short in ("cosine", "norm ratio", "squared error"):
        header += [f"{short}, direct", "rotated", "predicted"]
    return [table(header, rows)]


def _agreement(dataset: xr.Dataset) -> list[str]:
    rows = []
    for name in QUANTITIES:
        for route in ROUTES:
            z = dataset[f"{name}_z"].sel(route=route).values
            z = np.abs(z[np.isfinite(z)])
            if not len(z):
                continue
            chance = [len(z) * 2 * float(special.ndtr(-bound)) for bound in (2.0, 3.0)]
            counts = [str(len(z)), f"{(z > 2).sum()}", f"{chance[0]:.1f}", f"{(z > 3).sum()}", f"{chance[1]:.2f}"]
            rows.append([name.replace("_", " "), route, *counts, f"{z.max():.2f}"])
    header = ["quantity", "route", "points", "abs(z) > 2", "by chance", "abs(z) > 3", "by chance", "largest"]
    words = (
        "z = (measured − predicted)/standard error. Where the guess is exact (the projection at k = n, any cosine at "
        "n = 1) z counts as 0 if what is left is rounding. At a point the three quantities come from the same guesses."
    )
    return [words, "", table(header, rows), "", "![z scores against normal quantiles](tangents_agreement.png)"]


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
