"""The figures of `studies.guess_target`, from its DataTree alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from studies.guess_target.cells import GUESSES, HIDDEN, PROJECTIONS, TARGETS
from studies.guess_target.page import NAMES
from studies.kit.figures import CATEGORIES, PAGE_WIDTH, legend, panels, sheet
from studies.kit.seeds import half_widths

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@sheet()
def figures(tree: xr.DataTree) -> dict[str, Figure]:
    """By the end of their names."""
    return {
        "cosine": _heat_map(tree["measured"].to_dataset()),
        "training": _training(tree["trained"].to_dataset()),
    }


def _heat_map(found: xr.Dataset) -> Figure:
    import seaborn

    steps = found["step"].values
    drawn, grid = panels(1, len(steps), (PAGE_WIDTH, 3.8), sharey=True)
    columns = [f"{target},\n{projection}" for target in TARGETS for projection in PROJECTIONS]
    for axes, step in zip(grid[0], steps, strict=True):
        own = found["cosine"].sel(space="weight", layer=HIDDEN, step=step).mean("seed")
        values = own.transpose("guess", "target", "projection").to_numpy().reshape(len(GUESSES), -1)
        last = axes is grid[0][-1]
        seaborn.heatmap(
            values,
            ax=axes,
            vmin=0,
            vmax=1,
            cmap="cividis",
            annot=np.round(values, 2) + 0.0,  # No minus before a zero.
            fmt=".2f",
            annot_kws={"fontsize": 7},
            xticklabels=columns,
            yticklabels=[NAMES[guess] for guess in GUESSES],
            cbar=last,
            cbar_kws={"label": "cosine with the gradient, mean over seeds"} if last else None,
        )
        accuracy = float(found["accuracy"].sel(step=step).mean())
        axes.set_title(f"step {step}, accuracy {accuracy:.2f}")
        axes.tick_params(axis="x", labelsize=7, rotation=45)
        axes.tick_params(axis="y", rotation=0)
    drawn.supxlabel("target and space of the projection")
    drawn.supylabel("guess")
    return drawn


def _training(trained: xr.Dataset) -> Figure:
    ways = [str(way) for way in trained["way"].values]
    drawn, grid = panels(1, 1, (7.0, 0.3 * len(ways) + 1.1))
    axes = grid[0, 0]
    places = np.arange(len(ways))[::-1]
    for part, colour, marker, shift in (("train", CATEGORIES[0], "o", 0.12), ("test", CATEGORIES[1], "s", -0.12)):
        values: Any = trained[f"{part}_accuracy"].isel(step=-1).transpose("seed", "way").to_numpy()
        axes.errorbar(
            values.mean(0),
            places + shift,
            xerr=half_widths(values, 0),
            ls="",
            marker=marker,
            ms=4,
            color=colour,
            label=f"{'training' if part == 'train' else 'test'} set",
        )
    axes.set_yticks(places, [way.replace("mlp", "MLP").replace("cnn", "CNN") for way in ways])
    axes.set_xlabel(f"accuracy after {trained.attrs['epochs']} epochs")
    axes.set_ylabel("target, guess, space of the guess")
    legend(drawn, axes.get_legend_handles_labels()[0], title="mean over seeds, 95 % interval")
    return drawn
