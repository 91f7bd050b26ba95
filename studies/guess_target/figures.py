"""The figures of `studies.guess_target`, from its DataTree alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from studies.guess_target.cells import GUESSES, HIDDEN, PROJECTIONS, TARGETS
from studies.guess_target.page import NAMES
from studies.kit.seeds import half_widths

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figures(tree: xr.DataTree) -> dict[str, Figure]:
    """By the end of their names."""
    return {
        "cosine": _heat_map(tree["measured"].to_dataset()),
        "training": _training(tree["trained"].to_dataset()),
    }


def _heat_map(found: xr.Dataset) -> Figure:
    import matplotlib.pyplot as plt
    import seaborn

    steps = found["step"].values
    drawn, grid = plt.subplots(
        1, len(steps), figsize=(2.6 * len(steps) + 2.4, 3.6), sharey=True, squeeze=False, layout="constrained"
    )
    columns = [f"{target}\n{projection}" for target in TARGETS for projection in PROJECTIONS]
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
            cbar_kws={"label": "mean cosine [1]"} if last else None,
        )
        accuracy = float(found["accuracy"].sel(step=step).mean())
        axes.set_title(f"step {step}, accuracy {accuracy:.2f}", fontsize=9)
        axes.tick_params(axis="x", labelsize=7, rotation=0)
        axes.tick_params(axis="y", labelsize=8, rotation=0)
    drawn.supxlabel("target and space of the projection", fontsize=9)
    drawn.supylabel("guess", fontsize=9)
    return drawn


def _training(trained: xr.Dataset) -> Figure:
    import matplotlib.pyplot as plt
    import seaborn

    ways = [str(way) for way in trained["way"].values]
    with seaborn.axes_style("whitegrid"), seaborn.plotting_context("paper"):
        drawn, axes = plt.subplots(figsize=(6.5, 0.3 * len(ways) + 1.1), layout="constrained")
    places = np.arange(len(ways))[::-1]
    colours = seaborn.color_palette("colorblind")
    for part, colour, marker, shift in (("train", colours[0], "o", 0.12), ("test", colours[1], "s", -0.12)):
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
    axes.set_yticks(places, ways)
    axes.set_xlabel(f"accuracy after {trained.attrs['epochs']} epochs [1]")
    axes.set_ylabel("target, guess, space")
    drawn.legend(loc="outside right upper", frameon=False)
    return drawn
