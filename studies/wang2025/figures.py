"""The figures of `studies.wang2025`, from its DataTree alone, beside what the paper prints."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import xarray as xr

from studies.kit.figures import PAGE_WIDTH, band, colour, key, legend, marker, panels, sheet
from studies.kit.seeds import over_seeds
from studies.wang2025.collected import final
from studies.wang2025.paper import NAMES, TABLE_3, WIDTHS

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

WIDTH = "width of the hidden layers (units)"


@sheet()
def figures(tree: xr.DataTree) -> dict[str, Figure]:
    """What the page shows, by the end of the file's name."""
    return {"accuracy": _accuracy_figure(tree), "overlap": _overlap_figure(tree)}


def _accuracy_figure(tree: xr.DataTree) -> Figure:
    figure, grid = panels(1, 2, (PAGE_WIDTH, 4.0))
    left, right = grid[0]
    training = tree["training"].to_dataset()
    shown = 128
    for method, printed in TABLE_3.items():
        means = {width: over_seeds(final(tree, method, width).values) for width in WIDTHS}
        means = {width: mean for width, mean in means.items() if math.isfinite(mean.mean)}
        halves = [mean.half if math.isfinite(mean.half) else 0.0 for mean in means.values()]
        centres = [mean.mean for mean in means.values()]
        line = {"color": colour(method), "marker": marker(method), "ms": 4}
        left.errorbar(list(means), centres, yerr=halves, **line, capsize=2, label=_name(method))
        if tree.attrs["epochs"] == 300:
            left.plot(WIDTHS, printed, "x", color=colour(method), ms=7, mew=1.5)
        if method in training["trained_by"].values and shown in training["width"].values:
            own = training["train_accuracy"].sel(trained_by=method, width=shown).dropna("seed", how="all")
            if own.sizes["seed"]:
                epochs = own["step"] / (own["step"].values[-1] / tree.attrs["epochs"])
                right.plot(epochs, own.mean("seed"), color=colour(method))
                right.fill_between(epochs, own.min("seed"), own.max("seed"), color=colour(method), alpha=0.25, lw=0)
    shown_widths = WIDTHS if tree.attrs["epochs"] == 300 else [int(width) for width in training["width"].values]
    left.set(xscale="log", xlabel=WIDTH, ylabel="training accuracy", xticks=shown_widths)
    left.set_xticklabels(map(str, shown_widths))
    left.minorticks_off()
    right.set(xlabel="epoch", ylabel="training accuracy", title=f"in training, width {shown}")
    left.set_title(f"after {tree.attrs['epochs']} epochs")
    keys: list[Artist] = [*left.get_legend_handles_labels()[0]]
    if tree.attrs["epochs"] == 300:
        keys.append(key("printed in the paper", marker="x"))
    keys += [key("bars: 95 % intervals over seeds", line="-"), band("bands: range of seeds")]
    legend(figure, keys, "below", columns=3)
    return figure


def _overlap_figure(tree: xr.DataTree) -> Figure:
    jacobian = tree["jacobian"].to_dataset()
    methods = [m for m in ("backpropagation", "upstream", "orthogonal, k = 10") if m in jacobian["trained_by"].values]
    figure, (grid,) = panels(1, 2, (PAGE_WIDTH, 3.8), sharey=True)
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
                name = "at initialisation" if when == "before" else f"trained by {_name(method)}"
                look = {"color": shade, "marker": "o" if when == "before" else marker(method), "ls": dashes, "ms": 4}
                centres = [mean.mean for mean in means]
                axes.errorbar(widths, centres, yerr=halves, capsize=2, label=name, **look)
        ranks = jacobian["jacobian_rank"].sel(layer=layer, when="before").mean(("seed", "trained_by"))
        axes.plot(widths, 10 / ranks, ":", color="black", label="ten random directions: 10 / rank")
        axes.set(
            xscale="log",
            xlabel=WIDTH,
            title=f"layer {layer}",
            xticks=widths,
            xticklabels=map(str, widths),
        )
        axes.minorticks_off()
    grid[0].set(ylabel="squared overlap of the gradient with\nten leading directions of the Jacobian", ylim=(0, 1.02))
    legend(figure, grid[0].get_legend_handles_labels()[0], "below", columns=3)
    return figure


def _name(method: str) -> str:
    """What other figures call an estimator, with the paper's symbol."""
    symbols = {"upstream": "upstream (W̃ᵀ)", "orthogonal, k = 10": "orthogonal (W̃⊥), k = 10"}
    return symbols.get(method, NAMES[method])
