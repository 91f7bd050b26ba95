"""The style of the figures that studies draw; colours and markers of estimators are those of the whole package."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fganalysis.results.palette import Style, colour, marker, shades, styles
from studies.kit.seeds import half_widths

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Style", "colour", "geometric", "marker", "panels", "points", "shades", "style", "styles"]

Array = NDArray[np.float64]


@contextmanager
def style() -> Iterator[None]:
    """The grid and the sizes of letters and lines of every study's figures."""
    import seaborn

    with seaborn.axes_style("whitegrid"), seaborn.plotting_context("paper"):
        yield


def panels(rows: int, columns: int, size: tuple[float, float], **shared: Any) -> tuple[Figure, NDArray[Any]]:
    """A figure of so many inches and its axes, (row, column)."""
    import matplotlib.pyplot as plt

    with style():
        return plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False, **shared)


def geometric(logs: Array) -> tuple[Array, Array, Array]:
    """Low end, geometric mean and high end of the 95 % interval over seeds, from logarithms (seed, …)."""
    centre, half = logs.mean(0), half_widths(logs, 0)
    return np.exp(centre - half), np.exp(centre), np.exp(centre + half)


def points(axes: Axes, x: Any, interval: tuple[Array, Array, Array], colour: str, marker: str, size: float) -> None:
    """Hollow marks with their intervals (low, middle, high), without a line between them."""
    low, middle, high = interval
    bars = [middle - low, high - middle]
    axes.errorbar(x, middle, yerr=bars, ls="", marker=marker, ms=size, mfc="none", mew=0.8, color=colour, lw=1)
