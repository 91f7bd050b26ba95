"""The style of the figures that studies draw; the style sheet, colours and markers are those of the whole package."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fganalysis.results.legends import GREY, key, legend
from fganalysis.results.palette import CATEGORIES, Style, colour, marker, ramp, shades, styles, words
from fganalysis.results.style import LETTERS, PAGE_WIDTH, SMALL_LETTERS, sheet
from studies.kit.seeds import half_widths

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

__all__ = [
    "CATEGORIES",
    "LETTERS",
    "PAGE_WIDTH",
    "SMALL_LETTERS",
    "Style",
    "band",
    "colour",
    "decades",
    "geometric",
    "key",
    "legend",
    "marker",
    "measured_and_predicted",
    "panels",
    "points",
    "quantity",
    "ramp",
    "scale",
    "shades",
    "sheet",
    "styles",
    "words",
]

Array = NDArray[np.float64]
# What figures call a quantity, where that is not its name with spaces.
QUANTITIES = {
    "mse": "mean squared error",
    "wang2025_bias": "bias of Wang et al. (2025)",
    "wang2025_variance": "variance of Wang et al. (2025)",
    "best_epsilon": "best ε",
}


def panels(rows: int, columns: int, size: tuple[float, float], **shared: Any) -> tuple[Figure, NDArray[Any]]:
    """A figure of so many inches and its axes, (row, column)."""
    import matplotlib.pyplot as plt

    with sheet():
        return plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False, **shared)


def band(label: str, colour: Any = GREY, alpha: float = 0.2) -> Artist:
    """An entry of a legend: a coloured band."""
    from matplotlib.patches import Patch

    return Patch(color=colour, alpha=alpha, lw=0, label=label)


def measured_and_predicted(measured: str = "marks: measured", predicted: str = "lines: predicted") -> list[Artist]:
    """The entries of a legend that say: marks are measured, lines are predicted."""
    return [key(measured, marker="o"), key(predicted, line="-")]


def quantity(name: str) -> str:
    """A quantity, or a quantity and what follows after a comma, as figures show it."""
    first, comma, rest = name.partition(",")
    return QUANTITIES.get(first, first.replace("_", " ")) + comma + rest


def scale(value: float, base: int = 10) -> str:
    """A power of the base with a raised exponent: 10⁻⁸."""
    exponent = round(float(np.log(value) / np.log(base)))
    if not np.isclose(float(base) ** exponent, value):
        return f"{value:g}"
    return f"{base}{str(exponent).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"


def decades(axis: Axis) -> None:
    """Labels powers of ten alone: labels between them overlap each other."""
    from matplotlib.ticker import NullFormatter

    axis.set_minor_formatter(NullFormatter())


def geometric(logs: Array) -> tuple[Array, Array, Array]:
    """Low end, geometric mean and high end of the 95 % interval over seeds, from logarithms (seed, …)."""
    centre, half = logs.mean(0), half_widths(logs, 0)
    return np.exp(centre - half), np.exp(centre), np.exp(centre + half)


def points(axes: Axes, x: Any, interval: tuple[Array, Array, Array], colour: str, marker: str, size: float) -> None:
    """Hollow marks with their intervals (low, middle, high), without a line between them."""
    low, middle, high = interval
    bars = [middle - low, high - middle]
    axes.errorbar(x, middle, yerr=bars, ls="", marker=marker, ms=size, mfc="none", mew=0.8, color=colour, lw=1)
