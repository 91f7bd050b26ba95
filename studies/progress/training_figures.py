"""The figures of the trainings and of the widths, from their Datasets alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from studies.kit.figures import PAGE_WIDTH, geometric, key, legend, panels, points, ramp, styles, words
from studies.progress import rank
from studies.progress.width_fit import moment, slopes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[np.float64]
RANK_MARKERS = ("o", "s", "^", "D", "v")


def ranks(dataset: xr.Dataset) -> Figure:
    """Losses after equal steps and after equal cost over the number that is to rank them: a row a network."""
    chosen, columns = _styles(dataset), _columns(dataset)
    rows = dataset["network"].values
    figure, grid = panels(len(rows), len(columns), (PAGE_WIDTH, 2.1 * len(rows) + 1.2), sharex="col")
    of_steps = rank.numbers_for_steps(dataset)[rank.BY_STEPS], rank.after_steps(dataset)
    of_cost = rank.numbers_for_cost(dataset)[rank.BY_COST], rank.after_cost(dataset)
    for row, network in zip(grid, rows, strict=True):
        for axes, (batches, by_cost) in zip(row, columns, strict=True):
            number, loss = (array.sel(network=network, batches=batches) for array in (of_cost if by_cost else of_steps))
            for name, style in chosen.items():
                x, y = (_geometric(array.sel(estimator=name)) for array in (number, loss))
                bars = [[x[1] - x[0]], [x[2] - x[1]]]
                axes.errorbar(x[1], y[1], xerr=bars, color=style.colour, lw=1)
                points(axes, [x[1]], (y[0][None], y[1][None], y[2][None]), style.colour, style.marker, 6)
            axes.set(xscale="log", yscale="log")
            correlation = rank.within_one(rank.correlations(rank.ranked(number), rank.ranked(loss)))
            axes.set_title(str(correlation).replace("-", "−"))
            _few_ticks(axes)
        row[0].set_ylabel(str(network))
    when = f"after {int(dataset['training_step'][-1])} steps", f"after {rank.budget(dataset):g} passes"
    for top, bottom, (batches, by_cost) in zip(grid[0], grid[-1], columns, strict=True):
        top.set_title(f"{rank.WORDS_OF_BATCHES[batches]},\n{when[by_cost]}\n{top.get_title()}")
        bottom.set_xlabel(rank.BY_COST if by_cost else rank.BY_STEPS)
    figure.supylabel("training loss (lower is better)")
    _legend(figure, chosen, lines=False)
    return figure


def trainings(dataset: xr.Dataset) -> Figure:
    """Losses over steps and over passes: a row a network."""
    chosen, columns = _styles(dataset), _columns(dataset)
    rows = dataset["network"].values
    figure, grid = panels(len(rows), len(columns), (PAGE_WIDTH, 1.9 * len(rows) + 1.2), sharex="col")
    steps, allowed = dataset["training_step"].values.astype(float), rank.budget(dataset)
    for row, network in zip(grid, rows, strict=True):
        for axes, (batches, by_cost) in zip(row, columns, strict=True):
            own = rank.of_setting(dataset, rank.Setting(str(network), batches))
            for name, style in chosen.items():
                part = own.sel(estimator=name)
                middle, passes = np.exp(np.log(part["loss"].values).mean(0)), float(part["passes"].mean())
                shown = steps * passes <= max(allowed, passes * steps[1]) if by_cost else steps >= 0
                x = steps[shown] * (passes if by_cost else 1.0)
                look: dict[str, Any] = {
                    "color": style.colour,
                    "lw": 1.2,
                    "marker": style.marker,
                    "ms": 4,
                    "mfc": "none",
                }
                axes.plot(x, middle[shown], markevery=max(1, int(shown.sum()) // 6), **look)
            start = float(own["loss"].isel(training_step=0).mean())
            middles = np.exp(np.log(own["loss"].values).mean(0))
            axes.set(yscale="log", ylim=(0.95 * float(middles.min()), min(2 * start, 1.05 * float(middles.max()))))
            _few_ticks(axes)
        row[0].set_ylabel(str(network))
    for top, bottom, (batches, by_cost) in zip(grid[0], grid[-1], columns, strict=True):
        top.set_title(rank.WORDS_OF_BATCHES[batches])
        bottom.set_xlabel("forward passes" if by_cost else "steps")
    figure.supylabel("training loss (lower is better)")
    _legend(figure, chosen, lines=True)
    return figure


def _columns(dataset: xr.Dataset) -> list[tuple[str, bool]]:
    """Batches, and whether after equal cost instead of after equal steps."""
    return [(str(batches), by_cost) for batches in dataset["batches"].values for by_cost in (False, True)]


def _few_ticks(axes: Axes) -> None:
    """Labels 1, 2, 5, 10 of a loss's logarithmic axis, or powers of ten where it spans more than three of them."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1,) if high > 300 * low else (1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def widths(dataset: xr.Dataset) -> Figure:
    """The effective rank at every moment, with its line, and the number of weights, over the width."""
    figure, grid = panels(1, 1, (6.6, 4.8))
    axes: Axes = grid[0, 0]
    x = dataset["width"].values.astype(float)
    weights = dataset["parameters"].isel(seed=0, steps=0).values
    axes.plot(x, weights, color="0.4", ls="--", lw=1.5, label="number of weights")
    shades = ramp(dataset.sizes["steps"])
    for place, steps in enumerate(dataset["steps"].values):
        own = dataset["effective_rank"].sel(steps=steps)
        colour, marker = shades[place], RANK_MARKERS[place % len(RANK_MARKERS)]
        interval = geometric(np.log(own.transpose("seed", "width").values))
        slope = slopes(own)
        points(axes, x, interval, colour, marker, 6)
        line = np.polyfit(np.log(x), np.log(interval[1]), 1)
        label = f"effective rank {moment(int(steps))}: width to the power {slope}"
        axes.plot(x, np.exp(np.polyval(line, np.log(x))), color=colour, lw=0.9)
        axes.plot([], [], color=colour, lw=0.9, marker=marker, mfc="none", label=label.replace("-", "−"))
    axes.set(xscale="log", yscale="log", xlabel="width of the hidden layers (units)")
    axes.set_ylabel("effective rank, or number of weights")
    axes.set_xticks(x, [f"{int(width)}" for width in x])
    axes.minorticks_off()
    legend(figure, axes.get_legend_handles_labels()[0], "above")
    return figure


def _styles(dataset: xr.Dataset) -> dict[str, Any]:
    return dict(styles([str(name) for name in dataset["estimator"].values]))


def _geometric(values: xr.DataArray) -> tuple[Array, Array, Array]:
    """Ends and geometric mean over the seeds whose number is positive."""
    numbers = values.values[values.values > 0]
    if len(numbers) < 2:
        middle = np.asarray(numbers[0] if len(numbers) else np.nan, dtype=float)
        return middle, middle, middle
    return geometric(np.log(numbers))


def _legend(figure: Figure, chosen: dict[str, Any], lines: bool) -> None:
    keys = [key(words(name), style.colour, style.marker, "-" if lines else "") for name, style in chosen.items()]
    legend(figure, keys, "above", columns=4)
