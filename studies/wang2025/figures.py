"""The figures of `studies.wang2025`, from its DataTree alone, beside what the paper prints."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import xarray as xr

from studies.kit.figures import colour, marker, style
from studies.kit.seeds import over_seeds
from studies.wang2025.collected import final
from studies.wang2025.paper import NAMES, TABLE_3, WIDTHS

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figures(tree: xr.DataTree) -> dict[str, Figure]:
    """What the page shows, by the end of the file's name."""
    return {"accuracy": _accuracy_figure(tree), "overlap": _overlap_figure(tree)}


def _accuracy_figure(tree: xr.DataTree) -> Figure:
    import matplotlib.pyplot as plt
    from matplotlib.lines import Line2D

    with style():
        figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    training = tree["training"].to_dataset()
    shown = 128
    for method, printed in TABLE_3.items():
        means = {width: over_seeds(final(tree, method, width).values) for width in WIDTHS}
        means = {width: mean for width, mean in means.items() if math.isfinite(mean.mean)}
        halves = [mean.half if math.isfinite(mean.half) else 0.0 for mean in means.values()]
        centres = [mean.mean for mean in means.values()]
        line = {"color": colour(method), "marker": marker(method), "ms": 4}
        left.errorbar(list(means), centres, yerr=halves, **line, capsize=2, label=NAMES[method])
        if tree.attrs["epochs"] == 300:
            left.plot(WIDTHS, printed, "x", color=colour(method), ms=7, mew=1.5)
        if method in training["trained_by"].values and shown in training["width"].values:
            own = training["train_accuracy"].sel(trained_by=method, width=shown).dropna("seed", how="all")
            if own.sizes["seed"]:
                epochs = own["step"] / (own["step"].values[-1] / tree.attrs["epochs"])
                right.plot(epochs, own.mean("seed"), color=colour(method))
                right.fill_between(epochs, own.min("seed"), own.max("seed"), color=colour(method), alpha=0.25, lw=0)
    shown_widths = WIDTHS if tree.attrs["epochs"] == 300 else [int(width) for width in training["width"].values]
    left.set(xscale="log", xlabel="width", ylabel="training accuracy", xticks=shown_widths)
    left.set_xticklabels(map(str, shown_widths))
    left.minorticks_off()
    right.set(xlabel="epoch", ylabel="training accuracy", title=f"width {shown}")
    left.set_title(f"after {tree.attrs['epochs']} epochs")
    handles, labels = left.get_legend_handles_labels()
    if tree.attrs["epochs"] == 300:
        handles.append(Line2D([], [], color="0.3", marker="x", ls="", ms=7, mew=1.5))
        labels.append("printed in the paper")
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return figure


def _overlap_figure(tree: xr.DataTree) -> Figure:
    import matplotlib.pyplot as plt

    jacobian = tree["jacobian"].to_dataset()
    methods = [m for m in ("backpropagation", "upstream", "orthogonal, k = 10") if m in jacobian["trained_by"].values]
    with style():
        figure, grid = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    widths = [int(width) for width in jacobian["width"].values]
    for axes, layer in zip(grid, (1, 2), strict=True):
        for index, method in enumerate(methods):
            for when, dashes in (("before", "--"), ("after", "-")):
                if when == "before" and index > 0:
                    continue
                own = jacobian["squared_overlap"].sel(trained_by=method, layer=layer, when=when)
                means = [over_seeds(own.sel(width=width).values) for width in widths]
                halves = [mean.half if math.isfinite(mean.half) else 0.0 for mean in means]
                shade = "0.4" if when == "before" else colour(method)
                name = "at initialisation" if when == "before" else f"trained by {NAMES[method]}"
                axes.errorbar(
                    widths, [mean.mean for mean in means], yerr=halves, ls=dashes, color=shade, marker="o", ms=4,
                    capsize=2, label=name,
                )  # fmt: skip
        ranks = jacobian["jacobian_rank"].sel(layer=layer, when="before").mean(("seed", "trained_by"))
        axes.plot(widths, 10 / ranks, ":", color="black", label="random directions: 10 / rank")
        axes.set(xscale="log", xlabel="width", title=f"layer {layer}", xticks=widths, xticklabels=map(str, widths))
        axes.minorticks_off()
    grid[0].set(ylabel="squared overlap with ten directions", ylim=(0, 1.02))
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return figure
