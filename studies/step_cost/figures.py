"""The figure of `studies.step_cost`, from its Dataset alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from fganalysis.estimators import label, resolve
from studies.kit.figures import key, legend, panels, sheet, styles
from studies.step_cost.cells import STEPS
from studies.step_cost.page import JUDGED, MOST_STEPS

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@sheet()
def figures(dataset: xr.Dataset) -> dict[str, Figure]:
    """Every step over backpropagation's: median over rounds and range, a panel a width, the dearest at the top."""
    widths = [int(width) for width in dataset["width"].values]
    order = dataset["ratio"].isel(width=-1).median("round")
    names = [str(name) for name in order.sortby(order)["gradient"].values]
    labels = {name: label(resolve(STEPS[name])) for name in names}
    chosen = styles(list(labels.values()))
    figure, grid = panels(1, len(widths), (2.6 * len(widths) + 2.8, 0.19 * len(names) + 1.0), sharey=True)
    for axes, width in zip(grid[0], widths, strict=True):
        for place, name in enumerate(names):
            ratios = dataset["ratio"].sel(width=width, gradient=name).dropna("round").values
            if not len(ratios):
                continue
            middle, style = float(np.median(ratios)), chosen[labels[name]]
            reach = [[middle - ratios.min()], [ratios.max() - middle]]
            axes.errorbar(middle, place, xerr=reach, fmt=style.marker, ms=5, color=style.colour, lw=1.2)
        if width == JUDGED["width"]:
            axes.axvline(MOST_STEPS, color="0.5", lw=1, ls="--")
        axes.set(xscale="log", title=f"width {width}")
        axes.set_yticks(range(len(names)), [_shown(name) for name in names])
    figure.supxlabel("time of a training step / that of backpropagation")
    keys = [key("median of rounds", marker="o"), key("range of rounds", line="-")]
    if JUDGED["width"] in widths:
        keys.append(key(f"{MOST_STEPS} steps of backpropagation", "0.5", line="--"))
    legend(figure, keys, "above", columns=3)
    return {"ratio": figure}


def _shown(name: str) -> str:
    """A name with its superscripts."""
    return name.replace("^P", "ᴾ")
