"""The time of a guess that is drawn by its law, over the number of weights; what the page says of it.

Such a guess sees a network as the weights and the gradient's norm of each layer, so layers are made up here: networks
of these sizes need not fit the memory. Times are those of one processor, which other programs do not lengthen.
"""

from __future__ import annotations

import time

import numpy as np
import torch
import xarray as xr

from fganalysis.estimators import Averaged, Estimator, MultiTangent, WeightPerturbation, stable_name
from fganalysis.estimators.noise import ON_SPHERE
from fganalysis.measuring.blocks import Seeds
from fganalysis.measuring.by_law import law_of, raw_numbers
from fganalysis.measuring.sampled_dataset import RawNumbers
from fganalysis.statistics.rounding import DOUBLE
from studies.kit import markdown
from studies.kit.seeds import Interval

LAYERS = 4
TIMED: dict[str, Estimator] = {
    "weight": WeightPerturbation(),
    "weight, sphere": WeightPerturbation(ON_SPHERE),
    "multi_tangent, mean of 10": MultiTangent(10),
    "multi_tangent, projection on 10": MultiTangent(10, "orthogonal"),
    "multi_tangent, projection on 10, sphere": MultiTangent(10, "orthogonal", ON_SPHERE),
    "weight, averaged 10": Averaged(WeightPerturbation(), 10),
}
MEMORY = 2**34  # Bytes: the limit is no part of what is timed.


def measure(weights: tuple[int, ...], n_guesses: int, rounds: int) -> xr.Dataset:
    """Seconds of processor time of a guess, (estimator, weights, round).

    In each round every network is timed once, in turn.
    """
    times = np.empty((len(TIMED), len(weights), rounds))
    for row, estimator in enumerate(TIMED.values()):
        _drawn(estimator, weights[0], n_guesses)
        for repeat in range(rounds):
            for column, n_weights in enumerate(weights):
                start = time.process_time()
                _drawn(estimator, n_weights, n_guesses)
                times[row, column, repeat] = (time.process_time() - start) / n_guesses
    return xr.Dataset(
        {
            "by_law_seconds": (
                ("estimator", "weights", "round"),
                times,
                {"units": "s", "long_name": "processor time of a guess that is drawn by its law, over all layers"},
            )
        },
        coords={"estimator": list(TIMED), "weights": list(weights)},
    )


def whole(n_weights: int, n_guesses: int, rounds: int) -> xr.Dataset:
    """Seconds of processor time, (round,), of drawing so many guesses, and of all estimates with their intervals."""
    drawing, estimating = np.empty(rounds), np.empty(rounds)
    for repeat in range(rounds):
        start = time.process_time()
        raw = _drawn(TIMED["weight"], n_weights, n_guesses)
        drawn = time.process_time()
        raw.estimates(DOUBLE)
        drawing[repeat], estimating[repeat] = drawn - start, time.process_time() - drawn
    return xr.Dataset(
        {
            name: (("round",), times, {"units": "s", "long_name": f"processor time of {words}"})
            for name, times, words in (
                ("drawing_seconds", drawing, "drawing all guesses"),
                ("estimating_seconds", estimating, "all estimates and intervals from them"),
            )
        }
    )


def _drawn(estimator: Estimator, n_weights: int, n_guesses: int) -> RawNumbers:
    sizes = np.full(LAYERS, n_weights // LAYERS)
    squares = np.array([[np.nan] * (LAYERS + 1), [*0.25 ** np.arange(LAYERS), (0.25 ** np.arange(LAYERS)).sum()]])
    seeds = Seeds(0, 0, stable_name(estimator), torch.device("cpu"))
    return raw_numbers(law_of(estimator), sizes, squares, n_guesses, seeds, memory=MEMORY, workers=1)


def values(dataset: xr.Dataset) -> dict[str, object]:
    """What the template names."""
    weights = [int(number) for number in dataset["weights"].values]
    rows = []
    for name in map(str, dataset["estimator"].values):
        own = dataset["by_law_seconds"].sel(estimator=name).median("round")
        rows.append([name, *(f"{1e6 * float(seconds):.2f}" for seconds in own), f"{spread(dataset, name):.2f}"])
    parts = {name: float(dataset[f"{name}_seconds"].median()) for name in ("drawing", "estimating")}
    return {
        "settings": dataset.attrs,
        "header": ["estimator", *(f"{_power(number)} weights" for number in weights), "largest ratio"],
        "rows": rows,
        "layers": LAYERS,
        "microseconds": 1e6 * float(dataset["by_law_seconds"].sel(estimator="weight").isel(weights=-1).median()),
        "spread_percent": 100 * max(spread(dataset, str(name)) - 1 for name in dataset["estimator"].values),
        "fewest": _power(weights[0]),
        "most": _power(weights[-1]),
        "whole": parts["drawing"] + parts["estimating"],
        **parts,
    }


def _power(number: int) -> str:
    return markdown.scientific(Interval(float(number), np.nan)).removeprefix("1.00·")


def spread(dataset: xr.Dataset, name: str) -> float:
    """The largest time over the smallest, of the medians over rounds."""
    medians = dataset["by_law_seconds"].sel(estimator=name).median("round")
    return float(medians.max() / medians.min())
