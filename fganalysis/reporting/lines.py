"""Quantities over a dimension: points with their 95 % intervals, an estimator a line, predictions as black crosses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from fganalysis.results import palette, schema
from fganalysis.results.legends import key, legend
from fganalysis.results.style import sheet

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[np.float64]
LOGARITHMIC_FROM = 30.0  # Ratio of the largest to the smallest number.
LINEAR_BELOW = 1e-3  # Part of the largest number, on axes of both signs.
SIZE = (2.9, 2.4)  # Inches of a panel.
SIDE_BY_SIDE = 12  # Names that stand side by side in a panel of this size.
WIDEST = 2.5  # How much wider a panel is for more names.


@sheet()
def over(
    measured: xr.Dataset,
    predicted: xr.Dataset,
    quantities: Sequence[str],
    dim: str,
    words: str,
    *,
    panels: Mapping[str, Mapping[str, object]] | None = None,
    reference: float | None = None,
) -> Figure:
    """A row of panels a quantity, over ``dim``.

    Args:
        measured, predicted: over (estimator, ``dim``), and what ``panels`` selects.
        words: of ``dim``, for its axis. panels: what selects each panel of a row, by its title.
        reference: a value with a line through every panel.
    """
    import matplotlib.pyplot as plt

    x, ticks = _places(measured[dim].values)
    width = SIZE[0] * min(max(1.0, len(ticks) / SIDE_BY_SIDE), WIDEST)
    columns: Mapping[str, Mapping[str, object]] = panels or {"": {}}
    figure, grid = plt.subplots(
        len(quantities),
        len(columns),
        figsize=(width * len(columns) + 2.0, SIZE[1] * len(quantities)),
        sharex=True,
        sharey="row",
        squeeze=False,
        layout="constrained",
    )
    names = [str(name) for name in measured[schema.ESTIMATOR].values]
    styles = palette.styles(names)
    drawn: set[str] = set()
    crosses = False
    for row, quantity in enumerate(quantities):
        limits: list[Array] = []
        bars: list[tuple[Axes, Array, Array, Array, str]] = []
        for column, (title, where) in enumerate(columns.items()):
            axes = grid[row, column]
            for number, name in enumerate(names):
                cell = measured.sel({schema.ESTIMATOR: name, **where})
                value, low, high = (_numbers(cell, quantity + suffix, dim) for suffix in ("", schema.LOW, schema.HIGH))
                if not np.isfinite(value).any():
                    continue
                drawn.add(name)
                moved = x + ((number - (len(names) - 1) / 2) * 0.6 / len(names) if ticks else 0.0)
                style = styles[name]
                bars.append((axes, moved, low, high, style.colour))
                line = {"lw": 0.8, "marker": style.marker, "ms": 5, "mfc": "none", "color": style.colour}
                axes.plot(moved, value, ls="" if ticks else "-", **line)
                limits += [value, low, high]
                if quantity in predicted:
                    theory = _numbers(predicted.sel({schema.ESTIMATOR: name, **where}), quantity, dim)
                    axes.plot(moved, theory, "x", ms=4, mew=1.2, color="black", zorder=4)
                    crosses |= bool(np.isfinite(theory).any())
                    limits.append(theory)
            if reference is not None:
                axes.axhline(reference, color="0.4", lw=0.8, ls="--")
            if row == 0 and title:
                axes.set_title(title)
            _label_x(axes, ticks, dim)
        _scale(grid[row, 0], np.concatenate(limits) if limits else np.zeros(1), reference)
        bottom, top = grid[row, 0].get_ylim()
        for axes, moved, low, high, colour in bars:  # A bound that is not finite is at the edge.
            axes.vlines(moved, np.clip(low, bottom, top), np.clip(high, bottom, top), color=colour, lw=1.2)
        grid[row, 0].set_ylabel(quantity.replace("_", " "))
    figure.supxlabel(words)
    _legend(figure, styles, [name for name in names if name in drawn], crosses)
    return figure


def _places(values: Any) -> tuple[Array, list[str]]:
    """Places on the axis, and the names that stand there; none for numbers."""
    if np.asarray(values).dtype.kind in "iuf":
        return np.asarray(values, dtype=float), []
    return np.arange(len(values), dtype=float), [str(value) for value in values]


def _numbers(cell: xr.Dataset, name: str, dim: str) -> Array:
    if name not in cell:
        return np.full(cell.sizes[dim], np.nan)
    return cell[name].transpose(dim).to_numpy().astype(float)


def _label_x(axes: Axes, ticks: list[str], dim: str) -> None:
    if ticks:
        turned = len(ticks) > 5 or max(map(len, ticks)) > 6
        every = -(-len(ticks) // round(SIDE_BY_SIDE * WIDEST))
        places = range(len(ticks))[::every]
        axes.set_xlim(-0.5, len(ticks) - 0.5)
        axes.set_xticks(places, ticks[::every], rotation=60 if turned else 0, ha="right" if turned else "center")
        axes.grid(False, axis="x")
    elif dim == schema.AVERAGED:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")


def _scale(axes: Axes, numbers: Array, reference: float | None) -> None:
    """Limits that hold every finite number, so that a bound that is not finite leaves the axis."""
    numbers = numbers[np.isfinite(numbers)]
    if reference is not None:
        numbers = np.append(numbers, reference)
    sizes = np.abs(numbers[numbers != 0])
    if not len(sizes):
        return
    low, high = float(numbers.min()), float(numbers.max())
    if sizes.max() > LOGARITHMIC_FROM * sizes.min():
        if low > 0:
            axes.set_yscale("log")
            axes.set_ylim(low / 1.5, high * 1.5)
            return
        axes.set_yscale("symlog", linthresh=max(LINEAR_BELOW * float(sizes.max()), 0.3 * float(np.median(sizes))))
        axes.set_ylim(1.3 * low if low < 0 else None, 1.5 * high if high > 0 else None)
        return
    margin = 0.06 * (high - low or abs(high))
    axes.set_ylim(low - margin, high + margin)


def _legend(figure: Figure, styles: Mapping[str, palette.Style], names: Sequence[str], crosses: bool) -> None:
    keys = [key(palette.words(name), styles[name].colour, styles[name].marker) for name in names]
    if crosses:
        keys.append(key("predicted", "black", "x"))
    legend(figure, keys, title="measured, 95 % interval")
