"""One cell of `studies.sketches`: a network from a seed, trained, with the noise of every sketch and its memory."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import Estimator, GradientProjection, InputSketch, Minibatch, RowSampling, RowSketch
from fganalysis.estimators.noise import RADEMACHER
from fganalysis.estimators.sketches.gradient_projection import gradients_to_project_on
from fganalysis.estimators.sketches.layers import sketched_layers
from fganalysis.training.datasets import Dataset
from studies.kit.devices import on
from studies.sketches.networks import NETWORKS, data_of
from theory import gradient_projection

Array = NDArray[np.float64]
STAGES = ("initialisation", "trained")
SKETCHES: dict[str, Callable[[int], Estimator]] = {
    "row sketch": lambda size: RowSketch(size, RADEMACHER),
    "row sketch within examples": lambda size: RowSketch(size, RADEMACHER, within="example"),
    "input sketch": lambda size: InputSketch(size, RADEMACHER),
    "rows by norm": lambda size: RowSampling(size),
    "rows, uniform": lambda size: RowSampling(size, "uniform"),
    "rows by norm, half kept": lambda size: RowSampling(size // 2, "norm", size // 2),
}
LARGE_SCORE, TIMES = 3.0, 32  # A larger score is measured again, from so many times as many other guesses.
NEGLIGIBLE = 1e-6  # Of the minibatch's noise: a guess with less is exact but for rounding.
PROPORTIONAL = tuple(name for name in SKETCHES if "kept" not in name)  # Those whose variance is that of one over size.
QUANTITIES = {
    "noise": ("total variance of the guess over that of the minibatch gradient", "1"),
    "score_again": ("score of the noise from many more guesses, where the first is large", "1"),
    "relative_variance": ("total variance of the guess over the squared gradient norm", "1"),
    "squared_bias": ("squared bias over the squared gradient norm; without bias it may come out negative", "1"),
    "bias_seen": ("whether the interval of the squared bias leaves zero out", "1"),
    "memory": ("numbers that are kept of the inputs, over all of them", "1"),
    "equal_memory": ("the same at which the guess is as noisy as the minibatch gradient", "1"),
    "equal_memory_of_layer": ("the same of one layer", "1"),
    "rows_each": ("rows of an example in a layer", "1"),
    "minibatch": ("total variance of the minibatch gradient over the squared gradient norm", "1"),
    "outside": ("energy of the gradient outside of the older one's leading directions, over all of it", "1"),
    "outside_random": ("the same of as many random directions", "1"),
    "outside_own": ("the same of the gradient's own leading directions", "1"),
    "loss": ("loss of the batch", "loss"),
}


@dataclass(frozen=True)
class Of:
    """What a cell depends on; the settings of the study."""

    network: str
    seed: int
    batch: int
    population: int
    """Examples that a batch is a sample of, for the minibatch's noise."""
    steps: int
    learning_rate: float
    guesses: int
    sizes: tuple[int, ...]
    ranks: tuple[int, ...]
    ages: tuple[int, ...]
    device: str = "cpu"


def cell(of: Of) -> xr.Dataset:
    """Noise and memory over (stage, sketch, size), what an older gradient leaves outside over (start, age, rank)."""
    data = on(of.device, data_of(of.network))
    generator = torch.Generator().manual_seed(of.seed)
    networks, batches = _trained(of, data.train_inputs, data.train_targets, generator)
    population = torch.randperm(len(data.train_inputs), generator=generator)[: of.population].to(of.device)
    stages = []
    for index, step in enumerate((0, of.steps)):
        network = networks[step]
        large = _captured(network, data.train_inputs[population], data.train_targets[population])
        rows = batches[step]
        stages.append(_stage(of, large, _captured(network, data.train_inputs[rows], data.train_targets[rows], index)))
    found = xr.concat(stages, dim="stage", data_vars="all").assign_coords(stage=list(STAGES))
    snapshots = {
        step: _captured(networks[step], data.train_inputs[rows], data.train_targets[rows])
        for step, rows in batches.items()
    }
    other = torch.randperm(len(data.train_inputs), generator=generator)[: of.batch].to(of.device)
    aged = [_aged(of, snapshots, start, networks[start], data, other) for start in _starts(of)]
    return found.merge(xr.concat(aged, dim="start", data_vars="all").assign_coords(start=list(_starts(of))))


def _starts(of: Of) -> tuple[int, int]:
    """Steps at which the older gradient is taken."""
    return 0, of.steps - max(of.ages)


def _trained(
    of: Of, inputs: Tensor, targets: Tensor, generator: torch.Generator
) -> tuple[dict[int, torch.nn.Module], dict[int, Tensor]]:
    """Copies of the network at the steps that are looked at, and the examples of the batch of each of these steps."""
    network = NETWORKS[of.network].make(of.seed).to(of.device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=of.learning_rate)
    wanted = {0, of.steps} | {start + age for start in _starts(of) for age in of.ages}
    networks, batches = {}, {}
    for step in range(of.steps + 1):
        rows = torch.randperm(len(inputs), generator=generator)[: of.batch].to(of.device)
        if step in wanted:
            networks[step], batches[step] = copy.deepcopy(network), rows
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(inputs[rows]), targets[rows]).backward()
        optimizer.step()
    return networks, batches


def _captured(network: torch.nn.Module, inputs: Tensor, targets: Tensor, step: int = 0) -> Snapshot:
    return fga.capture(network.eval(), torch.nn.functional.cross_entropy, inputs, targets, step=step)


def _stage(of: Of, large: Snapshot, snapshot: Snapshot) -> xr.Dataset:
    """Every sketch of one batch, (sketch, size), beside the noise of that batch."""
    sketched = [index for index, layer in enumerate(sketched_layers(snapshot)) if layer is not None]
    names = [snapshot.layers[index] for index in sketched]
    minibatch = _minibatch(of, large)[sketched]
    square = float(sum(snapshot.weight_gradients[index].double().square().sum() for index in sketched))
    shape = (len(SKETCHES), len(of.sizes))
    fields = ["noise", "noise_se", "noise_predicted", "score_again", "relative_variance", "squared_bias", "bias_seen"]
    fields.append("memory")
    values = {name: np.full(shape, np.nan) for name in fields}
    equal, of_layers = np.full(len(SKETCHES), np.nan), np.full((len(SKETCHES), len(names)), np.nan)
    for i, (name, make) in enumerate(SKETCHES.items()):
        for j, size in enumerate(of.sizes):
            estimator = make(size)
            predicted = fga.predict(snapshot, estimator)["variance"].sel(space="weight").values[sketched]
            measured = fga.sample(snapshot, estimator, of.guesses, of.seed).sel(space="weight", layer="all")
            kept, full = _numbers(snapshot, name, size)
            found = {
                "noise": float(measured["variance"]) / minibatch.sum(),
                "noise_se": float(measured["variance_se"]) / minibatch.sum(),
                "noise_predicted": predicted.sum() / minibatch.sum(),
                "score_again": np.nan,
                "relative_variance": float(measured["variance"]) / square,
                "squared_bias": float(measured["squared_bias"]) / square,
                "bias_seen": float(measured["squared_bias_low"] > 0),
                "memory": kept.sum() / full.sum(),
            }
            exact = found["noise_predicted"] < NEGLIGIBLE
            if not exact and abs(_score(measured, predicted.sum())) > LARGE_SCORE:
                again = fga.sample(snapshot, estimator, TIMES * of.guesses, of.seed + 1).sel(
                    space="weight", layer="all"
                )
                found["score_again"] = _score(again, predicted.sum())
            for field, number in found.items():
                values[field][i, j] = number
            if name in PROPORTIONAL and j == 0:
                # At a size of one at least, in which a sketch of one row is exact and keeps all of it.
                equal[i] = found["memory"] / size * max(1.0, size * found["noise_predicted"])
                of_layers[i] = kept / full / size * np.maximum(1.0, size * predicted / minibatch)
    variables: dict[str, object] = {name: (("sketch", "size"), array) for name, array in values.items()}
    variables |= {"equal_memory": ("sketch", equal), "equal_memory_of_layer": (("sketch", "layer"), of_layers)}
    variables["rows_each"] = ("layer", _rows_each(snapshot))
    variables |= {"minibatch": minibatch.sum() / square, "loss": float(snapshot.loss)}
    return xr.Dataset(variables, coords={"sketch": list(SKETCHES), "size": list(of.sizes), "layer": names})


def _score(measured: xr.Dataset, predicted: float) -> float:
    """By how many standard errors a measured variance differs."""
    return (float(measured["variance"]) - predicted) / float(measured["variance_se"])


def _rows_each(snapshot: Snapshot) -> Array:
    """Rows of an example in each sketched layer: its positions, or the places of a convolution's input."""
    rows = [sum(len(r.kept) for r in layer.taps) for layer in sketched_layers(snapshot) if layer is not None]
    return np.array(rows) / snapshot.n_examples


def _minibatch(of: Of, large: Snapshot) -> Array:
    """tr Cov of the gradient of ``batch`` examples drawn independently, (layer,), from its closed form without
    replacement, of which the finite population correction is taken out."""
    without = fga.predict(large, Minibatch(of.batch))["variance"].sel(space="weight").values
    corrected: Array = without / (1 - of.batch / large.n_examples)
    return corrected


def _numbers(snapshot: Snapshot, sketch: str, size: int) -> tuple[Array, Array]:
    """Numbers of every sketched layer's inputs that are kept, and all of them, by arithmetic."""
    kept, full = [], []
    for layer in sketched_layers(snapshot):
        if layer is None:
            continue
        channels = layer.taps[0].kept.shape[1]  # Of a convolution; elsewhere all inputs of a row.
        of_a_size = {
            "row sketch": channels,
            "row sketch within examples": snapshot.n_examples * channels,
            "input sketch": sum(len(rows.inputs) for rows in layer.taps),
        }
        kept.append(size * of_a_size.get(sketch, layer.n_inputs))
        full.append(sum(rows.kept.numel() for rows in layer.taps))
    return np.array(kept, float), np.array(full, float)


def _aged(
    of: Of, snapshots: Mapping[int, Snapshot], start: int, network: torch.nn.Module, data: Dataset, other: Tensor
) -> xr.Dataset:
    """The energy of later gradients outside of the leading directions of the gradient at step ``start``, (age, rank).

    At age zero the older gradient is that of another batch at the same weights.
    """
    older = gradients_to_project_on(snapshots[start])
    inputs, targets = data.train_inputs[other], data.train_targets[other]
    shape = (len(of.ages), len(of.ranks))
    outside, predicted, random, own = (np.full(shape, np.nan) for _ in range(4))
    for i, age in enumerate(of.ages):
        later = snapshots[start + age] if age else _captured(network, inputs, targets)
        present = gradients_to_project_on(later)
        squares = {name: float(part.double().square().sum()) for name, part in present.items()}
        total = sum(squares.values())
        for j, rank in enumerate(of.ranks):
            outside[i, j] = _measured(later, GradientProjection(rank, older)) / total
            pairs = {name: (_double(part), _double(older[name])) for name, part in present.items()}
            kept = {name: gradient_projection.kept(*pair, rank) for name, pair in pairs.items()}
            best = {name: gradient_projection.kept(pair[0], pair[0], rank) for name, pair in pairs.items()}
            shares = {name: gradient_projection.of_random(part.shape[1], rank)[0] for name, part in present.items()}
            for found, share in ((predicted, kept), (own, best), (random, shares)):
                found[i, j] = sum((1 - share[name]) * square for name, square in squares.items()) / total
    variables = {
        "outside": (("age", "rank"), outside),
        "outside_predicted": (("age", "rank"), predicted),
        "outside_random": (("age", "rank"), random),
        "outside_own": (("age", "rank"), own),
    }
    return xr.Dataset(variables, coords={"age": list(of.ages), "rank": list(of.ranks)})


def _measured(snapshot: Snapshot, estimator: Estimator) -> float:
    """The squared error of a guess that is always the same, from what it gives to an optimiser."""
    with torch.no_grad():
        found = estimator(snapshot, 1, torch.Generator(snapshot.device)).weight_gradients(snapshot)
    pairs = zip(found, snapshot.weight_gradients, strict=True)
    return sum(float((guess.double() - exact.double()).square().sum()) for guess, exact in pairs)


def _double(matrix: Tensor) -> Array:
    return matrix.double().cpu().numpy()
