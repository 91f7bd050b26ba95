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
ROUNDING = 1e-12  # A predicted term below is zero, over the squared gradient norm.


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
    """Measured stationary variance over α/(2−α) times the pooled one."""
    ratio, error = variance["ratio"], variance["ratio_se"]
    rows = []
    for width in variance["width"].values:
        for stage in variance["stage"].values:
            for rate in variance["rate"].values:
                own = {"width": width, "stage": stage, "rate": rate}
                if not np.isfinite(ratio.sel(own | SHOWN)):
                    continue
                cells = [str(width), str(stage), f"{rate:g}"]
                for space in variance["space"].values:
                    for layer in variance["layer"].values:
                        where = own | {"space": space, "layer": layer}
                        cells.append(str(Interval(float(ratio.sel(where)), Z95 * float(error.sel(where)))))
                rows.append(cells)
    return rows


def _terms(variance: xr.Dataset) -> list[list[str]]:
    """The three terms at the last mark that was reached, at the width where all rates are looked at."""
    own = variance.sel(width=variance.attrs["width"])
    rows: list[list[str]] = []
    for stage in own["stage"].values:
        for layer in own["layer"].values[:-1]:
            for rate in own["rate"].values:
                point = own.sel(stage=stage, rate=rate, space="weight", layer=layer)
                reached = np.flatnonzero(np.isfinite(point["variance"].values))
                point = point.isel(time=int(reached[-1]))
                cells = [str(stage), str(layer), f"{rate:g}", f"{int(point['step'])}"]
                cells += [_beside(point, name) for name in ("variance", "lag", "spread", "mse")]
                rows.append(cells)
    return rows


def _scores(variance: xr.Dataset) -> list[dict[str, float | str]]:
    """(measured − predicted)/standard error of every quantity, over everything that was measured."""
    scores: list[dict[str, float | str]] = []
    for name in ("variance", "lag", "spread", "mse", "efficiency"):
        z = _scored(((variance[name] - variance[f"{name}_predicted"]) / variance[f"{name}_se"]).values)
        rms = float(np.sqrt((z**2).mean()))
        scores.append({"name": name, "n": len(z), "largest": float(np.abs(z).max()), "rms": rms})
    return scores


def _beside(point: xr.Dataset, name: str) -> str:
    scale = float(point["squared_gradient"])
    value, error, predicted = (float(point[one]) / scale for one in (name, f"{name}_se", f"{name}_predicted"))
    return f"{Interval(value, Z95 * error)} ({predicted if predicted > ROUNDING else 0:.3g})"


def _compared(variance: xr.Dataset, rates: list[float]) -> list[list[str]]:
    """Against weight and activity perturbation over the width."""
    rows = []
    for stage in variance["stage"].values:
        for width in variance["width"].values:
            own = variance.sel(SHOWN | {"stage": stage, "width": width})
            cells = [str(stage), str(width)]
            cells += [_beside(own, f"{name}_variance") for name in OTHERS]
            cells += [_beside(own.sel(rate=rate).isel(time=-1), "variance") for rate in rates]
            cells.append(_beside(own, "spread"))
            cells.append(f"{_guesses_needed(own, rates[-1]):.0f}")
            rows.append(cells)
    return rows


def _guesses_needed(own: xr.Dataset, rate: float) -> float:
    return float(own["activity_variance"] / own["mse"].sel(rate=rate).isel(time=-1))


def swept(variance: xr.Dataset) -> list[float]:
    """The rates that are looked at in the stationary state at every width, the largest first."""
    everywhere = variance["ratio"].sel(SHOWN).notnull().all(["width", "stage"])
    return [float(rate) for rate in variance["rate"].values[everywhere.values]]


def _trained(training: xr.Dataset) -> list[list[str]]:
    rows = []
    for name in training["gradient"].values:
        own = training.sel(gradient=name)
        last = own.isel(step=-1)
        rate = f"{float(own['learning_rate']):g}" + (" (edge)" if int(own["at_edge"]) else "")
        cosine = over_seeds(own["cosine"].isel(step=slice(1, -1)).mean("step"))
        results = [over_seeds(last[one]) for one in ("loss", "train_accuracy", "test_accuracy")]
        rows.append([str(name), rate, *map(str, results), str(cosine)])
    return rows


def best_learned(training: xr.Dataset) -> str:
    """The kind of FDFA with the smallest training loss; test accuracy is not what it is chosen by."""
    names = [str(name) for name in training["gradient"].values if str(name).startswith(FDFA.split(",")[0])]
    means = training["loss"].isel(step=-1).mean("seed").sel(gradient=names)
    return names[int(np.argmin(means.values))]


def accuracy_gain(training: xr.Dataset, one: str, other: str) -> Interval:
    last = training["test_accuracy"].isel(step=-1)
    return over_seeds(last.sel(gradient=one) - last.sel(gradient=other))


def _lower(variance: xr.Dataset, name: str) -> tuple[bool, list[tuple[float, float, float]]]:
    """Whether FDFA's variance is below another's at every rate and width, and for each rate its range of ratios."""
    below, ranges = True, []
    for rate in swept(variance):
        own = variance.sel(SHOWN | {"rate": rate}).isel(time=-1)
        ratio = own["variance"] / own[f"{name}_variance"]
        errors = ((own["variance_se"] / own["variance"]) ** 2) + (
            own[f"{name}_variance_se"] / own[f"{name}_variance"]
        ) ** 2
        below = below and bool((ratio + Z95 * ratio * errors**0.5 < 1).all())
        ranges.append((rate, float(ratio.min()), float(ratio.max())))
    return below, ranges


def _long_run(variance: xr.Dataset) -> dict[str, object]:
    """What is left of the error at the smallest rate, over the squared gradient, before and after training."""
    smallest = float(variance["rate"].min())
    own = variance.sel(SHOWN | {"width": variance.attrs["width"], "rate": smallest})
    return {
        "rate": smallest,
        "variance": [float(value) for value in own["stationary_variance_predicted"] / own["squared_gradient"]],
        "spread": [float(value) for value in own["spread_predicted"] / own["squared_gradient"]],
        "steps": math.log(0.1) / math.log(1 - smallest),
    }
