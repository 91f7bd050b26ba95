"""The figures of `studies.fdfa`, from its DataTree alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from fganalysis.statistics.intervals import Z95
from studies.fdfa.page import OTHERS, SHOWN, swept
from studies.kit.seeds import half_widths

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[np.float64]
TERMS = {"variance": "variance", "lag": "squared lag", "spread": "squared spread", "mse": "mean squared error"}
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")


def figures(tree: xr.DataTree) -> dict[str, Figure]:
    """Name → figure."""
    variance = tree["variance"].to_dataset()
    return {
        "ratio": _ratio(variance),
        "terms": _terms(variance),
        "efficiency": _efficiency(variance),
        "width": _width(variance),
        "training": _training(tree["training"].to_dataset()),
    }


def _panels(rows: int, columns: int, size: tuple[float, float], **shared: Any) -> tuple[Figure, Any]:
    import matplotlib.pyplot as plt
    import seaborn

    with seaborn.axes_style("whitegrid"), seaborn.plotting_context("paper"):
        figure, grid = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False, **shared)
    return figure, grid


def _colours(n: int) -> list[Any]:
    import seaborn

    return list(seaborn.color_palette("colorblind", n))


def _ratio(variance: xr.Dataset) -> Figure:
    figure, grid = _panels(1, 2, (8.4, 3.4), sharey=True)
    widths = variance["width"].values
    stationary = variance["ratio"].notnull().any(["width", "stage", "space", "layer"])
    rates = variance["rate"].values[stationary.values]
    for axes, space in zip(grid[0], variance["space"].values, strict=True):
        for index, (width, colour, marker) in enumerate(zip(widths, _colours(len(widths)), MARKERS, strict=False)):
            own = variance.sel(width=width, space=space, rate=rates).isel(layer=slice(-1))
            points = own["ratio"].stack(point=("stage", "layer")).transpose("rate", "point").values
            errors = own["ratio_se"].stack(point=("stage", "layer")).transpose("rate", "point").values
            for row in range(len(rates)):
                offsets = row + 0.2 * (index - (len(widths) - 1) / 2) + np.linspace(-0.06, 0.06, points.shape[1])
                known = np.isfinite(points[row])
                style = {"fmt": marker, "ms": 3, "color": colour, "lw": 0.8}
                axes.errorbar(offsets[known], points[row][known], yerr=3 * errors[row][known], **style)
        axes.axhline(1, color="black", lw=0.8)
        axes.set_xticks(range(len(rates)), [f"{rate:g}" for rate in rates])
        axes.set(xlabel="α, rate of the moving average [1]", title=f"{space} space")
    grid[0, 0].set_ylabel("stationary variance /\n(α/(2−α) · pooled variance) [1]")
    _legend(figure, [(f"width {w}", c, m, "") for w, c, m in zip(widths, _colours(len(widths)), MARKERS, strict=False)])
    return figure


def _legend(figure: Figure, entries: list[tuple[str, Any, str, str]], title: str = "") -> None:
    """A legend beside the panels, from (label, colour, marker, line)."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=c, marker=m, ls=line, ms=4, label=label) for label, c, m, line in entries]
    figure.legend(handles=handles, loc="outside right upper", frameon=False, title=title or None, fontsize=8)


def _terms(variance: xr.Dataset) -> Figure:
    own = variance.sel(width=variance.attrs["width"], stage="initial", space="weight")
    rates, layers = _spaced(own["rate"].values, 4), own["layer"].values[:-1]
    figure, grid = _panels(len(layers), len(rates), (9.6, 4.8), sharey=True, sharex="col")
    colours = dict(zip(TERMS, [*_colours(3), "black"], strict=True))
    for row, layer in enumerate(layers):
        for axes, rate in zip(grid[row], rates, strict=True):
            point = own.sel(layer=layer, rate=rate)
            scale, steps = float(point["squared_gradient"]), point["step"].values
            axis = np.geomspace(1, 10 / rate, 200)
            for name, line in _predicted(point, axis).items():
                if line.max() > 1e-12 * scale:
                    axes.plot(axis, line / scale, color=colours[name], lw=1.2 if name != "mse" else 0.9)
                measured, error = (np.broadcast_to(point[one].values, steps.shape) for one in (name, f"{name}_se"))
                shown = (steps > 0) & (measured > Z95 * error)
                style = {"fmt": MARKERS[list(TERMS).index(name)], "ms": 3.5, "color": colours[name], "lw": 0.9}
                axes.errorbar(steps[shown], measured[shown] / scale, yerr=Z95 * error[shown] / scale, **style)
            axes.set(xscale="log", yscale="log")
            axes.set_title(f"layer {layer}, α = {rate:g}", fontsize=9)
    grid[0, 0].set_ylim(bottom=1e-4)
    figure.supxlabel("step of the history", fontsize=10)
    figure.supylabel("term / squared gradient norm [1], weight space", fontsize=10)
    entries = [(words, colours[name], MARKERS[i], "-") for i, (name, words) in enumerate(TERMS.items())]
    _legend(figure, entries, "line: predicted\npoint: measured")
    return figure


def _spaced(rates: Array, most: int) -> Array:
    """At most so many of the rates, the first and the last among them."""
    return rates[np.unique(np.linspace(0, len(rates) - 1, min(most, len(rates))).round().astype(int))]


def _predicted(point: xr.Dataset, steps: Array) -> dict[str, Array]:
    """The closed forms at any step: powers of (1−α)ᵗ times what the Dataset holds of its ends."""
    left = (1 - float(point["rate"])) ** steps
    found = {
        "variance": float(point["stationary_variance_predicted"]) * (1 - left**2),
        "lag": float(point["lag_start_predicted"]) * left**2,
        "spread": np.full(len(steps), float(point["spread_predicted"])),
    }
    return found | {"mse": sum(found.values()) + float(point["cross_start_predicted"]) * left}


def _efficiency(variance: xr.Dataset) -> Figure:
    figure, grid = _panels(1, 2, (8.6, 3.6), sharey=True)
    rates = variance["rate"].values
    for axes, stage in zip(grid[0], variance["stage"].values, strict=True):
        own = variance.sel(SHOWN | {"width": variance.attrs["width"], "stage": stage})
        square = float(own["squared_gradient"])
        for rate, colour, marker in zip(rates, _colours(len(rates)), MARKERS, strict=False):
            point = own.sel(rate=rate)
            axis = np.geomspace(1, 10 / rate, 200)
            axes.plot(axis, _predicted_efficiency(point, axis), color=colour, lw=1.2)
            known = point["step"].values > 0
            measured, error = point["efficiency"].values[known], point["efficiency_se"].values[known]
            style = {"fmt": marker, "ms": 3.5, "color": colour, "lw": 0.9}
            axes.errorbar(point["step"].values[known], measured, yerr=Z95 * error, **style)
        for name, line in zip(OTHERS, ("--", ":"), strict=True):
            axes.axhline(square / (square + float(own[f"{name}_variance_predicted"])), color="black", ls=line, lw=1)
        axes.set(xscale="log", yscale="log", xlabel="step of the history", title=f"{stage} weights")
    grid[0, 0].set_ylabel("efficiency [1]\n(weight space, hidden layers)")
    entries = [(f"FDFA, α = {r:g}", c, m, "-") for r, c, m in zip(rates, _colours(len(rates)), MARKERS, strict=False)]
    entries += [(f"{name} perturbation", "black", "", line) for name, line in zip(OTHERS, ("--", ":"), strict=True)]
    _legend(figure, entries, "line: predicted\npoint: measured")
    return figure


def _predicted_efficiency(point: xr.Dataset, steps: Array) -> Array:
    """⟨m, g⟩²/(‖g‖²(‖m‖² + V(1+c)/(1−c))) with c = (1−α)ᵗ, m = g + spread and V the stationary variance."""
    square, mean = float(point["squared_gradient"]), float(point["lag_start_predicted"])
    inner = (mean + square - float(point["spread_predicted"])) / 2
    left = (1 - float(point["rate"])) ** steps
    noise = float(point["stationary_variance_predicted"]) * (1 + left) / (1 - left)
    found: Array = inner**2 / (square * (mean + noise))
    return found


def _width(variance: xr.Dataset) -> Figure:
    figure, grid = _panels(1, 2, (8.6, 3.6), sharey=True)
    rates, widths = swept(variance), variance["width"].values
    names = [*OTHERS, *rates]
    colours = _colours(len(names) + 1)
    for axes, stage in zip(grid[0], variance["stage"].values, strict=True):
        own = variance.sel(SHOWN | {"stage": stage})
        curves = [(own[f"{n}_variance"], own[f"{n}_variance_se"], own[f"{n}_variance_predicted"]) for n in OTHERS]
        for rate in rates:
            last = own.sel(rate=rate).isel(time=-1)
            curves.append((last["variance"], last["variance_se"], own["stationary_variance_predicted"].sel(rate=rate)))
        curves.append((own["spread"], own["spread_se"], own["spread_predicted"]))
        for (measured, error, predicted), colour, marker in zip(curves, colours, MARKERS, strict=False):
            _curve(
                axes, widths, [one / own["squared_gradient"] for one in (measured, error, predicted)], colour, marker
            )
        axes.set_xscale("log", base=2)
        axes.set(yscale="log", xlabel="width of the hidden layers [units]", title=f"{stage} weights")
    grid[0, 0].set_ylabel("term / squared gradient norm [1]\n(weight space, hidden layers)")
    words = [*(f"{n} perturbation" for n in OTHERS), *(f"FDFA, α = {r:g}" for r in rates), "FDFA, squared spread"]
    _legend(
        figure,
        [(w, c, m, "-") for w, c, m in zip(words, colours, MARKERS, strict=False)],
        "variance of a guess,\nline: predicted",
    )
    return figure


def _curve(axes: Axes, x: Array, curve: list[xr.DataArray], colour: Any, marker: str) -> None:
    measured, error, predicted = (one.values for one in curve)
    axes.plot(x, predicted, color=colour, lw=1.2)
    axes.errorbar(x, measured, yerr=Z95 * error, fmt=marker, ms=4, mfc="none", color=colour, lw=0.9)


def _training(training: xr.Dataset) -> Figure:
    figure, grid = _panels(1, 2, (9.2, 3.8))
    names = [str(name) for name in training["gradient"].values]
    colours, steps = _colours(len(names)), training["step"].values
    spacing = max(1, len(steps) // 3)
    for axes, (quantity, label) in zip(
        grid[0], {"loss": "training loss [loss]", "test_accuracy": "test accuracy [1]"}.items(), strict=True
    ):
        for index, (name, colour, marker) in enumerate(zip(names, colours, MARKERS, strict=False)):
            values = training[quantity].sel(gradient=name).transpose("seed", "step").values
            mean, half = values.mean(0), half_widths(values, 0)
            axes.plot(steps, mean, color=colour, lw=1)
            # A few intervals, each gradient's beside the others': more would hide the lines.
            shown = slice(1 + index * spacing // len(names), None, spacing)
            below = np.minimum(half, 0.9 * mean)[shown] if quantity == "loss" else half[shown]
            style = {"fmt": marker, "ms": 3.5, "color": colour, "lw": 0.8}
            axes.errorbar(steps[shown], mean[shown], yerr=[below, half[shown]], **style)
        axes.set(xlabel="training step", ylabel=label)
    grid[0, 0].set_yscale("log")
    _legend(figure, [(n, c, m, "-") for n, c, m in zip(names, colours, MARKERS, strict=False)], "mean, 95 % interval")
    return figure
