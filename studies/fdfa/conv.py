"""The cells of the part on the convolutional network of Bacho & Chu: 15C5-P2-40C5-P2-128-10, on framed digits.

FDFA at frozen weights as in `studies.fdfa.variance`, without closed forms, which are known for chains of Linear modules
alone. Beside it direct feedback and perturbations of activities and of weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import ActivityPerturbation, DirectFeedback, Estimator, WeightPerturbation
from fganalysis.results.schema import SPACES
from fganalysis.training.datasets import Dataset
from fganalysis.training.evaluation import evaluate
from studies.fdfa import variance as frozen
from studies.kit import kept_data, long_names, resumed
from studies.kit.devices import on

Array = NDArray[np.float64]
FRAME = 4  # Rows and columns of zeros on each side of a digit: two 5×5 convolutions with pooling take 16×16 pixels.
STAGES = ("initial", "trained")
OTHERS = ("direct feedback", "activity", "weight")
TERMS = ("variance", "squared_bias", "mse", "efficiency")
QUANTITIES = {
    "variance": "total variance of a guess",
    "squared_bias": "squared norm of the bias of a guess",
    "mse": "mean squared error of a guess",
    "efficiency": "fraction of the exact step's progress that a guess makes at its best step size",
    "lag": "squared norm of FDFA's lag",
    "spread": "squared norm of FDFA's bias by the spread of the Jacobian over examples",
    "pooled_variance": "total variance of the activity-perturbed gradient that FDFA's matrices average",
    "squared_gradient": "squared norm of the exact gradient",
    "step": "step of the mark, -1 where it was not reached",
    "accuracy": "accuracy on the training set of the network that is measured",
}
PLAIN = ("efficiency", "step", "accuracy")


@dataclass(frozen=True)
class Conv:
    """Which network is measured and how; the settings that a cell depends on."""

    seed: int
    channels: tuple[int, ...]
    hidden: int
    epochs: int
    examples: int
    rates: tuple[float, ...]
    histories: int
    pooled: int
    longest: int
    guesses: int
    device: str = "cpu"


def framed_digits() -> Dataset:
    """The digits of scikit-learn, (example, 1, 16, 16), within a frame of zeros."""
    data = kept_data.load("digits", images=True)
    train, test = (torch.nn.functional.pad(part, (FRAME,) * 4) for part in (data.train_inputs, data.test_inputs))
    return Dataset(train, data.train_targets, test, data.test_targets)


def measured(of: Conv, scratch: Path) -> xr.Dataset:
    """FDFA's terms over (stage, rate, time, space, layer); the others' over (stage, other, space, layer)."""
    data, rows = on(of.device, framed_digits()), []
    image = tuple(data.train_inputs.shape[1:])
    untrained: torch.nn.Module = fga.networks.conv(image, channels=of.channels, hidden=of.hidden, seed=of.seed)
    untrained = untrained.to(of.device)
    adam = partial(torch.optim.Adam, lr=1e-3)
    run = resumed.backpropagated(
        untrained, data, scratch, epochs=of.epochs, seed=of.seed, batch_size=64, optimizer=adam
    )
    for network in (untrained, run.network):
        snapshot = fga.capture(network, torch.nn.functional.cross_entropy, *data.batch(of.examples, of.seed))
        sizes = frozen.Sizes(of.histories, of.pooled, of.longest, of.guesses)
        found = frozen.measured(snapshot, of.rates, sizes, of.seed).merge(_others(snapshot, of))
        accuracy = evaluate(network, data, torch.nn.functional.cross_entropy)["train_accuracy"]
        rows.append(found.assign(accuracy=accuracy))
    return xr.concat(rows, dim="stage", data_vars="all").assign_coords(stage=list(STAGES))


def _others(snapshot: Snapshot, of: Conv) -> xr.Dataset:
    """`TERMS` of what FDFA stands beside, over (other, space, layer), each name with "other_" before it."""
    perturbed: dict[str, Estimator] = {"activity": ActivityPerturbation(), "weight": WeightPerturbation()}
    found = {name: frozen.sampled(snapshot, each, of.guesses, of.seed) for name, each in perturbed.items()}
    terms = {name: {term: cell[term][0] for term in TERMS} for name, cell in found.items()}
    terms["direct feedback"] = _of_one_guess(snapshot, DirectFeedback(seed=of.seed))
    grid = ("other", "space", "layer")
    values = {f"other_{term}": (grid, np.stack([terms[name][term] for name in OTHERS])) for term in TERMS}
    layers = [*snapshot.layers[:-1], frozen.HIDDEN]
    return xr.Dataset(values, coords={"other": list(OTHERS), "space": list(SPACES), "layer": layers})


def _of_one_guess(snapshot: Snapshot, estimator: DirectFeedback) -> dict[str, Array]:
    """`TERMS` of a guess that is not random, over (space, layer)."""
    scalars = estimator(snapshot, 1, torch.Generator(snapshot.device)).inner_products(snapshot)
    inner, square = (frozen.with_hidden(part[:, :-1, 0].double().cpu().numpy()) for part in scalars)
    exact = frozen.with_hidden(frozen.squared_gradients(snapshot))
    error = square - 2 * inner + exact
    efficiency = inner**2 / np.where(square > 0, square * exact, 1.0)
    return {"variance": np.zeros_like(error), "squared_bias": error, "mse": error, "efficiency": efficiency}


def described(dataset: xr.Dataset) -> xr.Dataset:
    """With units and long names."""
    squared = "(loss per unit of the space)^2"
    known = {name: (words, "1" if name in PLAIN else squared) for name, words in QUANTITIES.items()}
    known |= {f"other_{name}": known[name] for name in TERMS}
    return long_names.described(dataset, known)
