"""The figures of `studies.subspaces`, in colours that colour-blind readers can tell apart.

Lines are means over seeds; bars are 95 % intervals over seeds, bands the range of the seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from fganalysis.results import schema
from fganalysis.statistics.intervals import Z95
from studies.kit.figures import CATEGORIES, PAGE_WIDTH, key, legend, marker, panels, ramp, sheet
from studies.kit.figures import colour as colour_of
from studies.kit.seeds import half_widths
from studies.subspaces.cells import METHODS
from studies.subspaces.collection import Key
from studies.subspaces.descent import BRANCHES, REFERENCE
from studies.subspaces.sranks import MATRICES as OF_TRAINING
from studies.subspaces.turning import TURNING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMES = {
    "initialisation": "at initialisation",
    "backpropagation": "trained by backpropagation",
    "orthogonal": "trained by orthogonal (W̃⊥)",
    "upstream": "trained by upstream (W̃ᵀ)",
}
UNTRAINED = ("0.4", "o")  # The colour and the marker of networks before training.
LEAST_WIDTH = 7.6  # Inches: the legends need them.
BRANCH_NAMES = {
    "whole": "gradient",
    "dominant": "Hessian's leading directions",
    "bulk": "all but the Hessian's leading directions",
    "hidden": "gradient of the hidden layers",
    "top": "Jacobians' leading directions",
    "other": "random directions of the Jacobians' rows",
    "rest": "all but the Jacobians' leading directions",
}


@sheet()
def figures(trainings: Mapping[Key, xr.DataTree], collected: xr.Dataset, k: int) -> dict[str, Figure]:
    """Every figure by name; curves are those of the widest network whose every k is sampled."""
    widths = [width for width, method, _ in trainings if trainings[width, method, _]["measured"].sizes["k"] > 1]
    width, all_widths = max(widths), [width for width, _, _ in trainings]
    return {
        "energy_curves": energy_curves(trainings, width),
        "energy_by_width": energy_by_width(trainings, k),
        "principal_angles": principal_angles(trainings, sorted({min(all_widths), max(all_widths)}), k),
        "overlap_by_width": overlap_by_width(collected, k),
        "weights": weights(trainings, width),
        "sranks": sranks(trainings),
        "descent": descent(collected),
    }


def energy_curves(trainings: Mapping[Key, xr.DataTree], width: int) -> Figure:
    """Per hidden layer and state, over k: the overlap, random subspaces', and efficiency, predicted and sampled."""
    layers = _hidden(trainings, width)
    figure, grid = _grid(len(layers), len(METHODS), 2.05, 1.45)
    of_gradient, of_guess = CATEGORIES[0], colour_of("orthogonal")
    for column, method in enumerate(METHODS):
        spaces = _over_seeds(trainings, width, method, "subspace").isel(step=-1).sel(space="activation")
        measured = _over_seeds(trainings, width, method, "measured").isel(step=-1).sel(space="activation")
        for row, layer in enumerate(layers):
            axes, own = grid[row, column], spaces.sel(layer=layer)
            ks = own["mode"].values[:width]
            curves = (
                ("overlap", "gradient's energy in k modes", of_gradient, "-"),
                ("random_overlap_in_range", "the same, random in the Jacobian's rows", of_gradient, "--"),
                ("random_overlap", "the same, random subspace", of_gradient, ":"),
                ("orthogonal_efficiency", "orthogonal's efficiency, predicted", of_guess, "-"),
            )
            for name, label, colour, style in curves:
                rows = own[name].transpose("seed", "mode").values[:, : len(ks)]
                axes.plot(ks, rows.mean(0), style, color=colour, lw=1.4, label=label)
                if style == "-":
                    axes.fill_between(ks, rows.min(0), rows.max(0), color=colour, alpha=0.2, lw=0)
            points = measured.sel(layer=layer)
            efficiency = points["efficiency"].mean("seed")
            error: xr.DataArray = Z95 * (points["efficiency_se"] ** 2).sum("seed") ** 0.5 / points.sizes["seed"]
            shown = (efficiency > error).values
            axes.errorbar(
                points["k"].values[shown],
                efficiency.values[shown],
                error.values[shown],
                fmt="o",
                ms=4,
                mfc="none",
                color="black",
                lw=1,
                label="the same, measured, 95 % interval",
            )
            axes.set(xscale="log", yscale="log")
            _tick_decades(axes, len(ks))
            if row == 0:
                axes.set_title(NAMES[method])
            if method == METHODS[-1]:
                axes.yaxis.set_label_position("right")
                axes.set_ylabel(f"layer {layer}")
    figure.supxlabel(f"k, modes of the upstream Jacobian that are kept (width {width})")
    figure.supylabel("share of the squared gradient, and efficiency")
    handles, _ = grid[0, 0].get_legend_handles_labels()
    legend(figure, handles, "above", columns=3)
    return figure


def principal_angles(trainings: Mapping[Key, xr.DataTree], widths: Sequence[int], k: int) -> Figure:
    """Between all pairs of steps: how far the leading subspaces of gradients and of Jacobians turn, first layer."""
    trained = [method for method in METHODS if method != "initialisation"]
    rows = [(width, matrix) for width in widths for matrix in TURNING]
    figure, grid = _grid(len(rows), len(trained), 2.5, 2.1, share=False)
    image, random = None, {}
    for row, (width, matrix) in enumerate(rows):
        for column, method in enumerate(trained):
            turning = _over_seeds(trainings, width, method, "turning").isel(layer=0)
            steps, axes = turning["step"].values, grid[row, column]
            angle = turning["angle"].sel(matrix=matrix).mean("seed").transpose("step", "other_step").values
            image = axes.imshow(angle, origin="lower", cmap="viridis", vmin=0, vmax=90)
            below = matrix == TURNING[-1]  # The steps are a width's own.
            axes.set_xticks(range(len(steps)), steps if below else [""] * len(steps), fontsize=7, rotation=60)
            axes.set_yticks(range(len(steps)), [""] * len(steps) if column else steps, fontsize=7)
            axes.grid(False)
            if row == 0:
                axes.set_title(NAMES[method])
            if column == 0:
                axes.set_ylabel(f"{matrix.replace('_j', ' J').replace('_', ' ')}s\nwidth {width}")
            random[width] = float(turning["random_angle"].mean())
            layer = turning["layer"].item()
    assert image is not None
    bar = figure.colorbar(image, ax=grid, label=f"mean of {k} principal angles (degrees)", shrink=0.6)
    place = bar.ax.get_yaxis_transform()
    for width, one in random.items():
        bar.ax.axhline(one, color="white", lw=1.5)
        bar.ax.text(-0.15, one, f"random,\nwidth {width}", ha="right", va="center", fontsize=7, transform=place)
    figure.supxlabel(f"training step (layer {layer})")
    figure.supylabel("training step")
    return figure


def energy_by_width(trainings: Mapping[Key, xr.DataTree], k: int) -> Figure:
    """Over the modes, a line a width at the step that all widths have, first layer: energy curves and the overlap."""
    layer = _hidden(trainings, min(width for width, _, _ in trainings))[0]
    widths = sorted({width for width, _, _ in trainings})
    colours = ramp(len(widths))
    curves = {
        "energy of the\nactivation gradients": ("energy", {"matrix": "activation_gradient"}),
        "energy of the\nupstream Jacobians": ("energy", {"matrix": "upstream_jacobian"}),
        "overlap o² of gradient\nand Jacobian": ("overlap", {}),
    }
    figure, grid = _grid(len(curves), len(METHODS), 2.05, 1.6)
    for column, method in enumerate(METHODS):
        for colour, width in zip(colours, widths, strict=True):
            spaces = _over_seeds(trainings, width, method, "subspace").isel(step=0).sel(layer=layer)
            for row, (label, (name, place)) in enumerate(curves.items()):
                axes, ks = grid[row, column], spaces["mode"].values[:width]
                rows = spaces[name].sel(place).transpose("seed", "mode").values[:, :width]
                axes.plot(ks, rows.mean(0), color=colour, lw=1.4, label=f"width {width}")
                axes.fill_between(ks, rows.min(0), rows.max(0), color=colour, alpha=0.2, lw=0)
                if name == "overlap":
                    random = spaces["random_overlap_in_range"].mean("seed").values[:width]
                    axes.plot(ks, random, "--", color=colour, lw=0.9)
                if column == 0:
                    axes.set_ylabel(label)
        grid[0, column].set_title(NAMES[method])
        for axes in grid[:, column]:
            axes.axvline(k, color="0.6", lw=0.8)
            axes.set(xscale="log", ylim=(0, 1.03))
    figure.supxlabel(f"leading modes (layer {layer}, at the step that all widths have)")
    handles, _ = grid[0, 0].get_legend_handles_labels()
    dashed = key("random subspace of the Jacobian's rows", line="--")
    handles = [*handles, dashed, key(f"k = {k}", "0.6", line="-")]
    legend(figure, handles, "above", columns=3)
    return figure


def overlap_by_width(collected: xr.Dataset, k: int) -> Figure:
    """The overlap at k over the width, at the step that all widths have, for the first two hidden layers."""
    layers = [str(name) for name in collected["layer"].values[:2]]
    figure, grid = _grid(1, len(layers), 3.6, 3.0)
    for axes, layer in zip(grid[0], layers, strict=True):
        common = collected.sel(moment="common", layer=layer)
        for method in METHODS:
            colour, mark = _style(method)
            values = common["overlap"].sel(trained_by=method).transpose("seed", "width").values
            axes.errorbar(
                common["width"],
                values.mean(0),
                half_widths(values, 0),
                marker=mark,
                ms=5,
                mfc="none",
                lw=1.2,
                capsize=2,
                color=colour,
                label=NAMES[method],
            )
        start = common.sel(trained_by="initialisation")
        axes.plot(start["width"], start["random_overlap"].mean("seed"), ":", color="black", label="random subspace")
        in_range = start["random_overlap_in_range"].mean("seed")
        axes.plot(start["width"], in_range, "--", color="black", label="random in the Jacobian's rows (initialisation)")
        axes.set(xscale="log", yscale="log", title=f"layer {layer}")
        axes.set_xticks(start["width"].values, start["width"].values)
        axes.minorticks_off()
    grid[0, 0].set_ylabel(f"share of the gradient's energy\nin {k} modes (overlap o²)")
    figure.supxlabel("width of the hidden layers (units)")
    handles, _ = grid[0, 0].get_legend_handles_labels()
    legend(figure, handles, "above", columns=3)
    return figure


def weights(trainings: Mapping[Key, xr.DataTree], width: int) -> Figure:
    """Singular values of every weight matrix over the largest, before training and after it by each method."""
    trained = [method for method in METHODS if method != "initialisation"]
    first = _over_seeds(trainings, width, trained[0], "weights")
    layers = [str(name) for name in first["layer"].values]
    figure, grid = _grid(1, len(layers), 2.4, 2.5)
    colours = {method: _style(method)[0] for method in METHODS}
    for axes, layer in zip(grid[0], layers, strict=True):
        for method in METHODS:
            step = 0 if method == "initialisation" else -1
            source = first if method == "initialisation" else _over_seeds(trainings, width, method, "weights")
            values = source["singular_value"].isel(step=step).sel(layer=layer).transpose("seed", "mode").values
            values = values[:, np.isfinite(values[0])]
            relative = values / values[:, :1]
            ks = np.arange(1, values.shape[1] + 1)
            axes.plot(ks, relative.mean(0), color=colours[method], lw=1.4, label=NAMES[method])
            axes.fill_between(ks, relative.min(0), relative.max(0), color=colours[method], alpha=0.2, lw=0)
        axes.set(xscale="log", title=f"layer {layer}", ylim=(0, 1.05))
        _tick_decades(axes, len(ks))
    grid[0, 0].set_ylabel("singular value / the largest")
    figure.supxlabel(f"mode of the weight matrix (width {width})")
    handles, _ = grid[0, 0].get_legend_handles_labels()
    legend(figure, handles, "above", columns=4)
    return figure


def sranks(trainings: Mapping[Key, xr.DataTree]) -> Figure:
    """srank over the steps, over that of a random matrix: the last hidden layer's features, the inner weights."""
    widths = list(dict.fromkeys(width for width, _, _ in trainings))
    figure, grid = _grid(len(OF_TRAINING), len(widths), 1.7, 1.6, share=False)
    names = {"features": "features of the\nlast hidden layer", "weights": "weights between\nhidden layers"}
    for column, width in enumerate(widths):
        layers = [*_hidden(trainings, width), ""]
        for row, matrix in enumerate(OF_TRAINING):
            axes = grid[row, column]
            for method in METHODS[1:]:
                ranks = _over_seeds(trainings, width, method, "sranks").sel(matrix=matrix)
                share = ranks["srank"] / ranks["random_srank"]
                share = share.isel(layer=-1) if matrix == "features" else share.sel(layer=layers[1:-1]).mean("layer")
                values = share.transpose("seed", "step").values
                colour, sign = _style(method)
                bars = half_widths(values, 0)
                axes.errorbar(
                    ranks["step"], values.mean(0), bars, color=colour, marker=sign, ms=3, lw=1.2, label=NAMES[method]
                )
            _scale_steps(axes, ranks["step"].values)
            axes.set_ylim(0, 1.1)
            if row == 0:
                axes.set_title(f"width {width}")
            if column == 0:
                axes.set_ylabel(names[matrix])
            axes.tick_params(labelbottom=row == len(OF_TRAINING) - 1, labelleft=column == 0)
    figure.supxlabel("training step")
    figure.supylabel("effective rank (srank) / that of a random matrix")
    handles, _ = grid[0, 0].get_legend_handles_labels()
    legend(figure, handles, "above", columns=3)
    return figure


def descent(collected: xr.Dataset) -> Figure:
    """The loss along every part of the gradient, and progress over the share of energy in that part."""
    figure, grid = _grid(1, 2, 4.0, 3.4, share=False)
    loss = collected["descent_loss"].transpose("branch", "seed", "descent_step")
    progress = progress_of(loss)
    share = collected["descent_share"].transpose("branch", "seed").values
    markers = ("o", "v", "^", "s", "P", "D", "X")
    for index, (colour, branch) in enumerate(zip(CATEGORIES, BRANCHES, strict=False)):
        own = loss.sel(branch=branch).values
        steps = collected["descent_step"].values
        style = "-" if REFERENCE[branch] == "whole" else "--"
        fallen = own - own[:, :1]
        grid[0, 0].plot(steps, fallen.mean(0), style, color=colour, lw=1.4)
        grid[0, 1].errorbar(
            share[index].mean(),
            progress[index].mean(),
            half_widths(progress[index], 0),
            half_widths(share[index], 0),
            marker=markers[index],
            ls=style,
            color=colour,
            lw=1.2,
            capsize=2,
            label=BRANCH_NAMES[branch],
        )
    grid[0, 0].set(xlabel="step of descent", ylabel="change of the loss (nats)")
    grid[0, 1].plot([0, 1], [0, 1], color="0.6", lw=1, zorder=0, label="fall in proportion to the share")
    grid[0, 1].axhline(0, color="0.8", lw=0.8, zorder=0)
    grid[0, 1].set(xlabel="share of the squared gradient followed", ylabel="fall of the loss / that along the gradient")
    handles, _ = grid[0, 1].get_legend_handles_labels()
    legend(figure, handles, "above", columns=3)
    return figure


def progress_of(loss: xr.DataArray) -> NDArray[np.float64]:
    """(branch, seed): the fall of the loss, mean over the steps, over that of the branch's reference.

    The last loss alone would be noise: along the Hessian's leading directions minibatches throw it up and down.
    """
    fall = (loss.isel(descent_step=0) - loss.isel(descent_step=slice(1, None))).mean("descent_step")
    return np.stack([(fall.sel(branch=b) / fall.sel(branch=REFERENCE[b])).values for b in BRANCHES])


def _over_seeds(trainings: Mapping[Key, xr.DataTree], width: int, method: str, node: str) -> xr.Dataset:
    parts = [tree[node].to_dataset() for (w, m, _), tree in trainings.items() if (w, m) == (width, method)]
    return xr.concat(parts, dim="seed", data_vars="all", join="outer")


def _hidden(trainings: Mapping[Key, xr.DataTree], width: int) -> list[str]:
    tree = next(tree for (w, _, _), tree in trainings.items() if w == width)
    layers = [str(name) for name in tree["subspace"].to_dataset()["layer"].values if name != schema.ALL_LAYERS]
    return layers[:-1]


def _tick_decades(axes: Axes, highest: int) -> None:
    decades = 10 ** np.arange(len(str(highest)))
    axes.set_xticks(decades, [str(one) for one in decades])
    axes.minorticks_off()


def _style(method: str) -> tuple[str, str]:
    """Colour and marker of what a network was trained by."""
    return UNTRAINED if method == "initialisation" else (colour_of(method), marker(method))


def _scale_steps(axes: Axes, steps: NDArray[np.int64]) -> None:
    """Logarithmic from the first step after zero on, with zero at the left; labels that leave each other room."""
    first, last = int(steps[1]), int(steps[-1])
    axes.set_xscale("symlog", linthresh=first)
    decades = [10**power for power in range(len(str(last))) if first <= 10**power <= last]
    axes.set_xticks([0, *decades], ["0", *map(str, decades)])
    axes.minorticks_off()


def _grid(rows: int, columns: int, width: float, height: float, share: bool = True) -> tuple[Figure, NDArray[Any]]:
    size = (float(np.clip(width * columns + 0.8, LEAST_WIDTH, PAGE_WIDTH)), height * rows + 1.0)
    return panels(rows, columns, size, sharex=share, sharey=share)
