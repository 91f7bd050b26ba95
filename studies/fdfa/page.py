"""What the page of `studies.fdfa` says, computed from its DataTree; the sentences are in page.md.j2."""

from __future__ import annotations

import math

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import special

from fganalysis.statistics.intervals import Z95
from studies.fdfa.training import ACTIVITY, FDFA, WEIGHT
from studies.kit import pages
from studies.kit.seeds import Interval, over_seeds

SHOWN: dict[str, object] = {"space": "weight", "layer": "hidden"}
OTHERS = ("weight", "activity")
GAINS = (WEIGHT, ACTIVITY, "direct feedback")  # What the paper claims to train better than.
ROUNDING = 1e-12  # Predicted terms smaller than this share of the squared gradient norm are printed as zero.


def page(tree: xr.DataTree) -> str:
    """The page docs/results/fdfa.md."""
    return pages.render("fdfa", values(tree))


def values(tree: xr.DataTree) -> dict[str, object]:
    """Everything that the template names."""
    variance, training = tree["variance"].to_dataset(), tree["training"].to_dataset()
    rates, learned = swept(variance), best_learned(training)
    return {
        "settings": variance.attrs,
        "layers": [str(layer) for layer in variance["layer"].values],
        "spaces": [str(space) for space in variance["space"].values],
        "stages": [str(stage) for stage in variance["stage"].values],
        "last_time": float(variance["time"][-1]),
        "rates": rates,
        "line": _line(variance),
        "ratios": _ratios(variance),
        "terms": _terms(variance),
        "scores": _scores(variance),
        "compared": _compared(variance, rates),
        "training": training.attrs,
        "n_seeds": training.sizes["seed"],
        "trained": _trained(training),
        "learned": learned,
        "gains": {name: accuracy_gain(training, learned, name) for name in (*GAINS, "backpropagation")},
        "activity": ACTIVITY,
        "lower": [(name, *_lower(variance, name)) for name in OTHERS],
        "claimed": list(GAINS),
        "long_run": _long_run(variance),
    }


def _scored(z: NDArray[np.float64]) -> NDArray[np.float64]:
    """The finite scores."""
    return z[np.isfinite(z)]


def _line(variance: xr.Dataset) -> dict[str, float]:
    """How far the ratios of measured over expected stationary variance are from 1."""
    z = _scored(((variance["ratio"] - 1) / variance["ratio_se"]).values)
    return {
        "n": len(z),
        "beyond": int((np.abs(z) > 3).sum()),
        "by_chance": len(z) * 2 * float(special.ndtr(-3.0)),
        "largest": float(np.abs(z).max()),
        "largest_error": 100 * float(np.nanmax(variance["ratio_se"].values)),
    }


def _ratios(variance: xr.Dataset) -> list[list[str]]:
    """Measured stationary variance over α/(2−α) times the pooled variance: a row for each width, weights and rate."""
    ratio, error = variance["ratio"], variance["ratio_se"]
    rows = []
    for width in variance["width"].values:
        for stage in variance["stage"].values:
            for rate in variance["rate"].values:
                setting = {"width": width, "stage": stage, "rate": rate}
                if not np.isfinite(ratio.sel(setting | SHOWN)):
                    continue
                cells = [str(width), str(stage), f"{rate:g}"]
                for space in variance["space"].values:
                    for layer in variance["layer"].values:
                        where = setting | {"space": space, "layer": layer}
                        cells.append(str(Interval(float(ratio.sel(where)), Z95 * float(error.sel(where)))))
                rows.append(cells)
    return rows


def _terms(variance: xr.Dataset) -> list[list[str]]:
    """Variance, lag, spread and error at the last step measured, at the width where all rates are measured."""
    at_width = variance.sel(width=variance.attrs["width"])
    rows: list[list[str]] = []
    for stage in at_width["stage"].values:
        for layer in at_width["layer"].values[:-1]:
            for rate in at_width["rate"].values:
                point = at_width.sel(stage=stage, rate=rate, space="weight", layer=layer)
                reached = np.flatnonzero(np.isfinite(point["variance"].values))
                point = point.isel(time=int(reached[-1]))
                cells = [str(stage), str(layer), f"{rate:g}", f"{int(point['step'])}"]
                cells += [_beside(point, name) for name in ("variance", "lag", "spread", "mse")]
                rows.append(cells)
    return rows


def _scores(variance: xr.Dataset) -> list[dict[str, float | str]]:
    """(measured − predicted)/standard error of every quantity: number of comparisons, largest and root mean square."""
    scores: list[dict[str, float | str]] = []
    for name in ("variance", "lag", "spread", "mse", "efficiency"):
        z = _scored(((variance[name] - variance[f"{name}_predicted"]) / variance[f"{name}_se"]).values)
        rms = float(np.sqrt((z**2).mean()))
        scores.append({"name": name, "n": len(z), "largest": float(np.abs(z).max()), "rms": rms})
    return scores


def _beside(point: xr.Dataset, name: str) -> str:
    """Measured ± interval (predicted), over the squared gradient norm."""
    scale = float(point["squared_gradient"])
    value, error, predicted = (float(point[key]) / scale for key in (name, f"{name}_se", f"{name}_predicted"))
    return f"{Interval(value, Z95 * error)} ({predicted if predicted > ROUNDING else 0:.3g})"


def _compared(variance: xr.Dataset, rates: list[float]) -> list[list[str]]:
    """Variances of the other methods and of FDFA, and its spread: a row for each width and weights."""
    rows = []
    for stage in variance["stage"].values:
        for width in variance["width"].values:
            network = variance.sel(SHOWN | {"stage": stage, "width": width})
            cells = [str(stage), str(width)]
            cells += [_beside(network, f"{name}_variance") for name in OTHERS]
            cells += [_beside(network.sel(rate=rate).isel(time=-1), "variance") for rate in rates]
            cells.append(_beside(network, "spread"))
            cells.append(f"{_guesses_needed(network, rates[-1]):.0f}")
            rows.append(cells)
    return rows


def _guesses_needed(network: xr.Dataset, rate: float) -> float:
    """How many guesses of activity perturbation, averaged, have the mean squared error of FDFA at this rate."""
    return float(network["activity_variance"] / network["mse"].sel(rate=rate).isel(time=-1))


def swept(variance: xr.Dataset) -> list[float]:
    """The rates that are measured in the stationary state at every width, the largest first."""
    everywhere = variance["ratio"].sel(SHOWN).notnull().all(["width", "stage"])
    return [float(rate) for rate in variance["rate"].values[everywhere.values]]


def _trained(training: xr.Dataset) -> list[list[str]]:
    """Learning rate, loss, accuracies and cosine: a row for each way of training."""
    rows = []
    for name in training["gradient"].values:
        runs = training.sel(gradient=name)
        last = runs.isel(step=-1)
        rate = f"{float(runs['learning_rate']):g}" + (" (edge)" if int(runs["at_edge"]) else "")
        cosine = over_seeds(runs["cosine"].isel(step=slice(1, -1)).mean("step"))
        results = [over_seeds(last[key]) for key in ("loss", "train_accuracy", "test_accuracy")]
        rows.append([str(name), rate, *map(str, results), str(cosine)])
    return rows


def best_learned(training: xr.Dataset) -> str:
    """The kind of FDFA with the smallest training loss. It is not chosen by test accuracy, which is compared later."""
    names = [str(name) for name in training["gradient"].values if str(name).startswith(FDFA.split(",")[0])]
    means = training["loss"].isel(step=-1).mean("seed").sel(gradient=names)
    return names[int(np.argmin(means.values))]


def accuracy_gain(training: xr.Dataset, name: str, other: str) -> Interval:
    """Test accuracy after the last step with the first gradient minus that with the other, paired by seed."""
    last = training["test_accuracy"].isel(step=-1)
    return over_seeds(last.sel(gradient=name) - last.sel(gradient=other))


def _lower(variance: xr.Dataset, name: str) -> tuple[bool, list[tuple[float, float, float]]]:
    """Whether FDFA has the lower variance at every rate and width, and for each rate the range of the ratios."""
    below, ranges = True, []
    for rate in swept(variance):
        last = variance.sel(SHOWN | {"rate": rate}).isel(time=-1)
        ratio = last["variance"] / last[f"{name}_variance"]
        relative_errors = (last[f"{key}_se"] / last[key] for key in ("variance", f"{name}_variance"))
        error = ratio * sum(relative**2 for relative in relative_errors) ** 0.5
        below = below and bool((ratio + Z95 * error < 1).all())
        ranges.append((rate, float(ratio.min()), float(ratio.max())))
    return below, ranges


def _long_run(variance: xr.Dataset) -> dict[str, object]:
    """Stationary variance and spread at the smallest rate over the squared gradient, before and after training."""
    smallest = float(variance["rate"].min())
    at_smallest = variance.sel(SHOWN | {"width": variance.attrs["width"], "rate": smallest})
    squared_gradient = at_smallest["squared_gradient"]
    return {
        "rate": smallest,
        "variance": [float(value) for value in at_smallest["stationary_variance_predicted"] / squared_gradient],
        "spread": [float(value) for value in at_smallest["spread_predicted"] / squared_gradient],
        "steps": math.log(0.1) / math.log(1 - smallest),
    }
