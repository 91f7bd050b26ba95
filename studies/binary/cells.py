"""One cell of `studies.binary`: a network after some epochs; every estimator's draws against the exact gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

import fganalysis as fga
from fganalysis.problems.binary_estimators import BINARY_ESTIMATORS, Draws
from fganalysis.problems.stochastic_binary import StochasticBinary
from fganalysis.results import schema
from studies.binary.training import classes, trained
from studies.kit.seeds import half_widths
from theory import stochastic_binary as theory

Array = NDArray[np.float64]
ESTIMATORS = {estimator.name: estimator for estimator in BINARY_ESTIMATORS}
LAWS: dict[str, Callable[..., theory.Moments]] = {
    "score_function": theory.score_function,
    "score_function_with_baseline": partial(theory.score_function, baseline=True),
    "arm": theory.arm,
    "straight_through": theory.straight_through,
    "path_sample_analytic": theory.path_sample_analytic,
}
UNBIASED = ("score_function", "score_function_with_baseline", "arm")
BLOCK = 100  # Draws made at once; their arrays then stay in the processor's caches.
BAND = (0.15, 0.85)  # Of the means' cosines, as the paper shows.
LEAST_MEANS = 8  # For an interval of a mean over them.


@dataclass(frozen=True)
class Network:
    """What a cell depends on; the settings of the study."""

    seed: int
    epochs: int
    units: tuple[int, ...]
    per_class: int
    data_seed: int
    batch: int
    learning_rate: float
    momentum: float
    draws: int
    averaged: tuple[int, ...]
    device: str = "cpu"


def cell(of: Network) -> xr.Dataset:
    """Bias and variance of a draw, and errors and cosines of means of draws, over (estimator, layer)."""
    inputs, targets = classes(of.per_class, of.data_seed)
    start = StochasticBinary.initial(of.units, inputs, targets, of.seed)
    network = trained(start, of.epochs, of.batch, of.learning_rate, of.momentum, of.seed)
    parts = [_estimator(network, of, name).expand_dims(estimator=[name]) for name in ESTIMATORS]
    dataset = xr.concat(parts, dim="estimator")
    margins = network.targets * (2 * _on_average(network) - 1)
    return dataset.assign(loss=network.loss(), accuracy=float((margins > 0).mean()))


def _on_average(network: StochasticBinary) -> Array:
    """The probability of class 1, σ(η) = exp(−f at y = 1), the mean over all states, (example,)."""
    chain = theory.Chain.of(network.weights, network.inputs, network.targets)
    return np.asarray(chain.reached[-1] @ np.exp(-chain.losses[theory.CLASSES.index(1.0)]))


def _estimator(network: StochasticBinary, of: Network, name: str) -> xr.Dataset:
    truth = network.gradient()
    draws = _drawn(network, of, name)
    on_device = {layer: torch.from_numpy(gradient).to(of.device) for layer, gradient in truth.items()}
    measured = fga.measure([draws], on_device, n_guesses=of.draws, seed=of.seed).sel(space=schema.PARAMETER, drop=True)
    layers = [str(layer) for layer in measured["layer"].values]
    norms = measured["gradient_norm"]
    found = xr.Dataset({"gradient_norm": norms})
    for quantity, short, power in (("bias", "relative_bias", 1), ("variance", "relative_variance", 2)):
        for suffix in ("", schema.LOW, schema.HIGH):
            found[short + suffix] = measured[quantity + suffix] / norms**power
    found["shrinkage"] = measured["shrinkage"]
    bias, variance = _predicted(network, name, truth, layers)
    found["relative_bias_predicted"] = ("layer", bias)
    found["relative_variance_predicted"] = ("layer", variance)
    for quantity, value in (("squared_bias", (bias * norms) ** 2), ("variance", variance * norms**2)):
        found[f"{quantity}_z"] = (measured[quantity] - value) / measured[quantity + schema.SE]
    dims = ("layer", "averaged")
    for variable, values in _of_means(draws, truth, of.averaged).items():
        found[variable] = (dims, values)
    return found.assign_coords(averaged=list(of.averaged)).drop_vars(
        [str(name) for name in found.coords if name not in ("layer", "averaged")], errors="ignore"
    )


def _drawn(network: StochasticBinary, of: Network, name: str) -> dict[str, Array]:
    """All draws, name → (draw, …)."""
    generator = np.random.default_rng([of.seed, of.epochs, *name.encode()])
    draw, parts = Draws(network, ESTIMATORS[name]), []
    for start in range(0, of.draws, BLOCK):
        parts.append(draw(min(BLOCK, of.draws - start), generator))
    return {layer: np.concatenate([part[layer] for part in parts]) for layer in parts[0]}


def _predicted(network: StochasticBinary, name: str, truth: dict[str, Array], layers: list[str]) -> tuple[Array, Array]:
    """Relative bias and variance, (layer,), "all" last; NaN for relaxed units, which have no law."""
    if name not in LAWS:
        return np.full(len(layers), np.nan), np.full(len(layers), np.nan)
    moments = LAWS[name](network.weights, network.inputs, network.targets)
    squares, variances, norms = (
        np.array([*values, sum(values)])
        for values in (
            [float(np.sum((mean - g) ** 2)) for mean, g in zip(moments.mean, truth.values(), strict=True)],
            [float(variance.sum()) for variance in moments.variance],
            [float(np.sum(g**2)) for g in truth.values()],
        )
    )
    return np.sqrt(squares / norms), variances / norms


def _of_means(draws: dict[str, Array], truth: dict[str, Array], averaged: tuple[int, ...]) -> dict[str, Array]:
    """Of disjoint means of so many draws each: root mean square errors with intervals and cosines, (layer, averaged).

    Errors are over ‖g‖. Intervals are Student's over the means' squared errors, NaN for fewer than 8 means.
    """
    names = ("error", "error_low", "error_high", "cosine", "cosine_low", "cosine_high")
    found = {name: np.full((len(truth) + 1, len(averaged)), np.nan) for name in names}
    for column, m in enumerate(averaged):
        parts = []
        for layer, g in truth.items():
            own = draws[layer].reshape(len(draws[layer]), -1)
            means = own[: len(own) // m * m].reshape(-1, m, own.shape[1]).mean(1)
            parts.append([((means - g.ravel()) ** 2).sum(1), means @ g.ravel(), (means**2).sum(1)])
        by_layer = np.array(parts)
        norms = np.array([np.sum(g**2) for g in truth.values()])
        for row in range(len(truth) + 1):
            chosen = slice(row, row + 1) if row < len(truth) else slice(None)
            (squares, along, lengths), norm = by_layer[chosen].sum(0), norms[chosen].sum()
            # The cosine of a mean that is zero counts as 0.
            squares, cosines = squares / norm, along / np.sqrt(np.where(lengths > 0, lengths, 1.0) * norm)
            found["error"][row, column] = np.sqrt(squares.mean())
            if len(squares) >= LEAST_MEANS:
                half = half_widths(squares, 0)
                low, high = max(squares.mean() - half, 0.0), squares.mean() + half
                found["error_low"][row, column], found["error_high"][row, column] = np.sqrt([low, high])
            found["cosine"][row, column] = cosines.mean()
            found["cosine_low"][row, column], found["cosine_high"][row, column] = np.quantile(cosines, BAND)
    return found
