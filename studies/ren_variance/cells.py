"""One point of `studies.ren_variance`: the variance of every guess at one shape of the network, beside its formula."""

from __future__ import annotations

import numpy as np
import torch
import xarray as xr

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import ActivityPerturbation, Estimator, WeightPerturbation

GUESSES: dict[str, Estimator] = {
    "weights shared": WeightPerturbation(layers="separate"),
    "weights independent": WeightPerturbation(shared=False, layers="separate"),
    "activities shared": ActivityPerturbation(shared=True, layers="separate"),
    "activities independent": ActivityPerturbation(layers="separate"),
}


def point(
    fan_in: int,
    fan_out: int,
    batch: int,
    *,
    draws: int,
    guesses_per_batch: int,
    n_examples: int,
    seed: int,
    device: str,
) -> xr.Dataset:
    """Variance, its standard error and the formula's, over ``guess_kind``; the population has ``n_examples``."""
    population = _population(fan_in, fan_out, n_examples, seed, device)
    # The weight gradient of every example; the snapshot's carry 1 over the population.
    first, gradient = population.taps[0], population.gradients[0] * population.n_examples
    per_example = torch.einsum("bo,bi->boi", gradient, first.inputs)
    truth = per_example.mean(0)
    spread = float((per_example - truth).square().mean())
    signal = float(truth.square().mean())
    pq, q = fan_in * fan_out, fan_out
    predicted = {
        "weights shared": (pq + 2) / batch * spread + (pq + 1) * signal,
        "weights independent": (pq + 2) / batch * spread + (pq + 1) / batch * signal,
        "activities shared": (q + 2) / batch * spread + (q + 1) * signal,
        "activities independent": (q + 2) / batch * spread + (q + 1) / batch * signal,
    }
    rng = np.random.default_rng([seed, fan_in, fan_out, batch])
    generator = torch.Generator(device).manual_seed(int(rng.integers(2**62)))
    n_batches = -(-draws // guesses_per_batch)
    errors = {name: np.empty(n_batches) for name in GUESSES}
    for index in range(n_batches):
        rows = torch.from_numpy(rng.integers(population.n_examples, size=batch)).to(device)
        snapshot = fga.capture(
            population.network, population.loss_fn, population.inputs[rows], population.targets[rows]
        )
        for name, estimator in GUESSES.items():
            errors[name][index] = _mean_squared_error(estimator, snapshot, truth, guesses_per_batch, generator)
    names = list(GUESSES)
    means = [errors[name].mean() for name in names]
    standard_errors = [errors[name].std(ddof=1) / np.sqrt(n_batches) for name in names]
    return xr.Dataset(
        {
            "variance": ("guess_kind", means),
            "variance_se": ("guess_kind", standard_errors),
            "predicted": ("guess_kind", [predicted[name] for name in names]),
        },
        coords={"guess_kind": names},
    )


def _population(fan_in: int, fan_out: int, n_examples: int, seed: int, device: str) -> Snapshot:
    network = fga.networks.mlp([fan_in, fan_out, 1], bias=False, seed=seed, activation=torch.nn.Tanh).double()
    generator = torch.Generator().manual_seed(seed + 1)
    inputs = torch.randn(n_examples, fan_in, generator=generator, dtype=torch.float64)
    noise = torch.randn(n_examples, 1, generator=generator, dtype=torch.float64)
    targets = torch.sin(inputs.sum(1, keepdim=True)) + 0.5 * noise + 1.0
    return fga.capture(network.to(device), torch.nn.functional.mse_loss, inputs.to(device), targets.to(device))


def _mean_squared_error(
    estimator: Estimator, snapshot: Snapshot, truth: torch.Tensor, n_guesses: int, generator: torch.Generator
) -> float:
    """The mean over guesses and elements of (guess − population gradient)², first layer."""
    total, left = 0.0, n_guesses
    while left:
        # The guesses with a weight matrix per example are large: a few at a time.
        at_once = max(1, min(left, 2**22 // (snapshot.n_examples * truth.numel())))
        with torch.no_grad():
            _, weights = estimator(snapshot, at_once, generator).dense(snapshot)
        first = weights[:, : truth.numel()].view(-1, *truth.shape)
        total += float((first - truth).square().sum())
        left -= at_once
    return total / (n_guesses * truth.numel())
