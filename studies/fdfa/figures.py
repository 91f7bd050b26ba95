"""The figures of `studies.fdfa`, from its DataTree alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from fganalysis.statistics.intervals import Z95
from studies.fdfa.page import OTHERS, SHOWN, swept
from studies.fdfa.training import ACTIVITY, WEIGHT
from studies.kit import figures as kit
from studies.kit.seeds import half_widths

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[np.float64]
TERMS = {"variance": "variance", "lag": "squared lag", "spread": "squared spread", "mse": "mean squared error"}
MARKERS = ("D", "P", "X", "h", "d", "8", "<", ">", "p")  # None of those of the estimators beside FDFA.


@kit.sheet()
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


def _learned(names: Sequence[object] | NDArray[Any]) -> list[tuple[Any, str, str]]:
    """Rates or widths of FDFA with shades of its colour and markers."""
    return list(zip(names, kit.shades(kit.colour("forward_direct_feedback"), len(names)), MARKERS, strict=False))


def _others() -> list[tuple[str, str, str]]:
    """The estimators that FDFA stands beside, each with its colour and its marker."""
    return [(name, kit.colour(name), kit.marker(name)) for name in OTHERS]


def _gradients(names: list[str]) -> list[tuple[str, str, str]]:
    """What trains with its colour and its marker: FDFA's rates, and its rule by Adam, are shades of one colour."""
    keys = {WEIGHT: "weight", ACTIVITY: "activity"}
    learned = {name: style for name, *style in _learned([name for name in names if name.startswith("FDFA")])}
    fixed = {name: (kit.colour(keys.get(name, name)), kit.marker(keys.get(name, name))) for name in names}
    return [(name, *learned.get(name, fixed[name])) for name in names]


def _ratio(variance: xr.Dataset) -> Figure:
    figure, grid = kit.panels(1, 2, (kit.PAGE_WIDTH, 3.4), sharey=True)
    widths = variance["width"].values
    stationary = variance["ratio"].notnull().any(["width", "stage", "space", "layer"])
    rates = variance["rate"].values[stationary.values]
    for axes, space in zip(grid[0], variance["space"].values, strict=True):
        for index, (width, colour, marker) in enumerate(_learned(widths)):
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
        axes.set(xlabel="rate α of the moving average", title=f"{space} space")
    grid[0, 0].set_ylabel("measured variance / predicted variance\nof the stationary average")
    widths_keys = _keys([(f"width {width}", colour, marker, "") for width, colour, marker in _learned(widths)])
    kit.legend(figure, [*widths_keys, kit.key("as predicted: 1", "black", line="-")])
    return figure


def _keys(entries: list[tuple[str, Any, str, str]]) -> list[Artist]:
    """From (label, colour, marker, line)."""
    return [kit.key(*entry) for entry in entries]


def _terms(variance: xr.Dataset) -> Figure:
    own = variance.sel(width=variance.attrs["width"], stage="initial", space="weight")
    rates, layers = _spaced(own["rate"].values, 4), own["layer"].values[:-1]
    figure, grid = kit.panels(len(layers), len(rates), (kit.PAGE_WIDTH, 5.2), sharey=True, sharex="col")
    colours = dict(zip(TERMS, kit.CATEGORIES, strict=False))
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
            axes.set_title(f"layer {layer}, α = {rate:g}")
    grid[0, 0].set_ylim(bottom=1e-4)
    figure.supxlabel("steps of the moving average")
    figure.supylabel("term / squared gradient norm, weight space")
    entries = [(words, colours[name], MARKERS[i], "-") for i, (name, words) in enumerate(TERMS.items())]
    kit.legend(figure, [*_keys(entries), *kit.measured_and_predicted()], "above", columns=3)
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
    figure, grid = kit.panels(1, 2, (kit.PAGE_WIDTH, 3.6), sharey=True)
    rates = variance["rate"].values
    for axes, stage in zip(grid[0], variance["stage"].values, strict=True):
        own = variance.sel(SHOWN | {"width": variance.attrs["width"], "stage": stage})
        square = float(own["squared_gradient"])
        for rate, colour, marker in _learned(rates):
            point = own.sel(rate=rate)
            axis = np.geomspace(1, 10 / rate, 200)
            axes.plot(axis, _predicted_efficiency(point, axis), color=colour, lw=1.2)
            known = point["step"].values > 0
            measured, error = point["efficiency"].values[known], point["efficiency_se"].values[known]
            style = {"fmt": marker, "ms": 3.5, "color": colour, "lw": 0.9}
            axes.errorbar(point["step"].values[known], measured, yerr=Z95 * error, **style)
        for (name, colour, _), line in zip(_others(), ("--", ":"), strict=True):
            axes.axhline(square / (square + float(own[f"{name}_variance_predicted"])), color=colour, ls=line, lw=1.4)
        axes.set(xscale="log", yscale="log", xlabel="steps of the moving average", title=f"{stage} weights")
    grid[0, 0].set_ylabel("efficiency, weight space,\nhidden layers")
    entries = [(f"FDFA, α = {rate:g}", colour, marker, "-") for rate, colour, marker in _learned(rates)]
    lines = zip(_others(), ("--", ":"), strict=True)
    entries += [(f"{name} perturbation", colour, "", line) for (name, colour, _), line in lines]
    kit.legend(figure, [*_keys(entries), *kit.measured_and_predicted()])
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
    figure, grid = kit.panels(1, 2, (kit.PAGE_WIDTH, 3.6), sharey=True)
    rates, widths = swept(variance), variance["width"].values
    learned = [(f"FDFA, α = {rate:g}", colour, marker) for rate, colour, marker in _learned(rates)]
    marks = [(f"{name} perturbation", colour, marker) for name, colour, marker in _others()]
    marks += [*learned, ("FDFA, squared spread", "black", "+")]
    for axes, stage in zip(grid[0], variance["stage"].values, strict=True):
        own = variance.sel(SHOWN | {"stage": stage})
        curves = [(own[f"{n}_variance"], own[f"{n}_variance_se"], own[f"{n}_variance_predicted"]) for n in OTHERS]
        for rate in rates:
            last = own.sel(rate=rate).isel(time=-1)
            curves.append((last["variance"], last["variance_se"], own["stationary_variance_predicted"].sel(rate=rate)))
        curves.append((own["spread"], own["spread_se"], own["spread_predicted"]))
        for terms, (_, colour, marker) in zip(curves, marks, strict=True):
            _curve(axes, widths, [term / own["squared_gradient"] for term in terms], colour, marker)
        axes.set_xscale("log", base=2)
        axes.set(yscale="log", xlabel="width of the hidden layers (units)", title=f"{stage} weights")
    grid[0, 0].set_ylabel("variance / squared gradient norm,\nweight space, hidden layers")
    kit.legend(figure, [*_keys([(*mark, "-") for mark in marks]), *kit.measured_and_predicted()])
    return figure


def _curve(axes: Axes, x: Array, curve: list[xr.DataArray], colour: Any, marker: str) -> None:
    measured, error, predicted = (one.values for one in curve)
    axes.plot(x, predicted, color=colour, lw=1.2)
    axes.errorbar(x, measured, yerr=Z95 * error, fmt=marker, ms=4, mfc="none", color=colour, lw=0.9)


def _training(training: xr.Dataset) -> Figure:
    figure, grid = kit.panels(1, 2, (kit.PAGE_WIDTH, 3.6))
    names = [str(name) for name in training["gradient"].values]
    marks, steps = _gradients(names), training["step"].values
    spacing = max(1, len(steps) // 3)
    for axes, (quantity, label) in zip(
        grid[0], {"loss": "training loss (nats)", "test_accuracy": "test accuracy"}.items(), strict=True
    ):
        for index, (name, colour, marker) in enumerate(marks):
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
    bars = kit.key("bars: 95 % intervals over seeds", line="-")
    kit.legend(figure, [*_keys([(*mark, "-") for mark in marks]), bars])
    return figure
