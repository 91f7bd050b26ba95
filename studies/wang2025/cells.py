"""The cells of `studies.wang2025`: the seed paper's MLP trained by one method at one width from one seed, and measured.

`trained`
    train_accuracy, test_accuracy, loss (step)              the log
    jacobian_rank, overlap, squared_overlap (when, layer)  of the upstream Jacobian, before and after (figure 1)
    /network                                                the weights after training
`measured`, for one kind of guess on the trained network
    variance, bias (guess_kind, layer)                      as the paper defines them (tables 2 and 5)
    covariance_norm (guess_kind, layer)                     predicted, up to table 2's width
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from torch import Tensor

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.capturing.tap import Layers
from fganalysis.capturing.upstream import UpstreamJacobian
from fganalysis.estimators import (
    ActivityPerturbation,
    Backpropagation,
    Estimator,
    OrthogonalUpstream,
    Upstream,
    WeightPerturbation,
)
from fganalysis.estimators.directional import Factor, Slope, guess_along, identity
from fganalysis.estimators.guesses import ActivationEstimates
from fganalysis.estimators.noise import GAUSSIAN, Noise
from studies.kit import kept_data, kept_networks, resumed
from studies.kit.devices import on

BATCH = 512  # The paper's.
LEARNING_RATE = 1e-4  # The paper's, for AdamW.
ITERATIONS = 1  # Subspace iterations at a training step; `iterated` cells look at whether more would train better.
LOOKED_AT = 32  # Examples whose Jacobians are decomposed for figure 1.
METRIC_GUESSES = 128


@dataclass(frozen=True)
class RowSpace:
    """The law of W̃⊥ at k = rank for Gaussian noise, or with ``dead_units`` that of the paper's W̃^P, not decomposed.

        y = P ε,  P the projector on the row space of J

    Where the next layer has as many units as this one and the live units' columns of J are independent, P keeps the
    live units (docs/mathematics.md#fact-2). The paper's W̃^P takes the directions of zero singular values along, so that
    its covariance is the identity there; `PreconditionedUpstream` drops them and has W̃⊥'s law. Below a narrower layer,
    P projects on the rows of J. A test holds both against the estimators themselves.
    """

    dead_units: bool = False
    noise: Noise = GAUSSIAN
    shared: bool = False
    slope: Slope = "example"
    layers: Layers = "joint"

    def __call__(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> ActivationEstimates:
        factors = [self._factor(jacobian) for jacobian in snapshot.upstream]
        return guess_along(self, snapshot, [*factors, identity(snapshot.taps[-1].units)], n_guesses, generator)

    def _factor(self, jacobian: UpstreamJacobian) -> Factor:
        next_units, units = jacobian.weight.shape
        if next_units < units:
            right = jacobian.singular_vectors(next_units, iterations=0)[2]
            return Factor(next_units, lambda noise: torch.bmm(noise.transpose(0, 1), right.mT).transpose(0, 1))
        alive = torch.ones_like(jacobian.derivative) if self.dead_units else (jacobian.derivative != 0).float()
        return Factor(units, lambda noise: noise * alive)


METHODS: dict[str, Estimator] = {
    "backpropagation": Backpropagation(),
    "weight": WeightPerturbation(),
    "activity": ActivityPerturbation(),
    "upstream": Upstream(),
    "orthogonal, k = 10": OrthogonalUpstream(k=10, iterations=ITERATIONS),
    "orthogonal, k = 1": OrthogonalUpstream(k=1, iterations=ITERATIONS),
    "orthogonal, k = 25": OrthogonalUpstream(k=25, iterations=ITERATIONS),
    "orthogonal, k = rank": RowSpace(),
    "preconditioned": RowSpace(dead_units=True),
    "orthogonal, k = 10, iterated": OrthogonalUpstream(k=10, iterations=4),
}
# What is measured after training by a method: tables 2 and 5.
MEASURED: dict[str, dict[str, Estimator]] = {
    "upstream": {"upstream": Upstream()},
    "orthogonal, k = 10": {
        "orthogonal": OrthogonalUpstream(k=10),
        "upstream": Upstream(),
        "orthogonal, bottom": OrthogonalUpstream(k=10, which="bottom"),
    },
    "preconditioned": {"preconditioned": RowSpace(dead_units=True)},
}
# Table 2's width: the control and the covariance norm decompose the Jacobian of every example.
WIDEST_DECOMPOSED = 128


@dataclass(frozen=True)
class Training:
    """One training, and what its cell depends on."""

    method: str
    width: int
    seed: int
    epochs: int
    device: str = "cpu"


def trained(training: Training, scratch: Path) -> xr.DataTree:
    """Trains on MNIST-1D with one guess a step, and looks at the network before and after."""
    data = on(training.device, kept_data.load("mnist1d"))
    network = _network(training)
    run = resumed.train(
        network,
        data,
        METHODS[training.method],
        scratch,
        epochs=training.epochs,
        batch_size=BATCH,
        optimizer=partial(torch.optim.AdamW, lr=LEARNING_RATE),
        seed=training.seed,
        log_every=100,
    )
    looks = [_look(one, *data.batch(BATCH)) for one in (network, run.network)]
    before_after = xr.concat(looks, dim=xr.IndexVariable("when", ["before", "after"]))
    whole = xr.merge([run.log, before_after], combine_attrs="override")
    return xr.DataTree.from_dict({"/": whole, kept_networks.NODE: kept_networks.as_dataset(run.network)})


def guesses_after(training: Training) -> list[str]:
    """The kinds of guesses that are measured after a training."""
    kinds = MEASURED.get(training.method, {})
    return [name for name in kinds if name != "orthogonal, bottom" or training.width <= WIDEST_DECOMPOSED]


def measured(training: Training, guess: str, network: Path) -> xr.Dataset:
    """The paper's metrics of one kind of guess on the network of a training's cell."""
    batch = on(training.device, kept_data.load("mnist1d")).batch(BATCH)
    snapshot = _captured(kept_networks.restored(_network(training), network), *batch)
    return _metrics(snapshot, {guess: MEASURED[training.method][guess]}, training.seed)


def _network(training: Training) -> torch.nn.Module:
    width = training.width
    network: torch.nn.Module = fga.networks.mlp([40, width, width, width, 10], bias=False, seed=training.seed)
    return network.to(training.device)


def _captured(network: torch.nn.Module, inputs: Tensor, targets: Tensor) -> Snapshot:
    return fga.capture(network, torch.nn.functional.cross_entropy, inputs, targets)


def _look(network: torch.nn.Module, inputs: Tensor, targets: Tensor) -> xr.Dataset:
    """Figure 1: mean rank of the upstream Jacobian, and the gradient's share in its ten leading directions."""
    snapshot = _captured(network, inputs[:LOOKED_AT], targets[:LOOKED_AT])
    found = np.full((3, len(snapshot.upstream)), np.nan)
    for layer, (jacobian, gradient) in enumerate(zip(snapshot.upstream, snapshot.gradients, strict=False)):
        k = min(10, *jacobian.weight.shape)
        right = jacobian.singular_vectors(k, exact=True)[2]
        norms = gradient.norm(dim=1)
        overlaps = (right.mT @ gradient[:, :, None])[:, :, 0].norm(dim=1)[norms > 0] / norms[norms > 0]
        means = (jacobian.rank().double().mean(), overlaps.mean(), overlaps.square().mean())
        found[:, layer] = [float(mean) for mean in means]
    names = {
        "jacobian_rank": "mean rank of the upstream Jacobian",
        "overlap": "mean ‖V₁₀ᵀg‖/‖g‖ over examples",
        "squared_overlap": "mean ‖V₁₀ᵀg‖²/‖g‖² over examples",
    }
    return xr.Dataset(
        {
            name: ("layer", row, {"units": "1", "long_name": names[name]})
            for name, row in zip(names, found, strict=True)
        },
        coords={"layer": list(range(1, len(snapshot.upstream) + 1))},
    )


def _metrics(snapshot: Snapshot, guesses: dict[str, Estimator], seed: int) -> xr.Dataset:
    """The paper's variance and bias of the hidden layers, measured, and its covariance norm, in closed form."""
    rows, layers = [], list(range(1, len(snapshot.upstream) + 1))
    hidden = list(snapshot.layers[:-1])
    for name, estimator in guesses.items():
        own = fga.sample(snapshot, estimator, METRIC_GUESSES, seed, workers=1).sel(layer=hidden)
        variables = {}
        for metric in ("variance", "bias", "variance_se", "bias_se"):
            source = own[f"wang2025_{metric}"]
            variables[metric] = ("layer", source.values, source.attrs)
        if max(jacobian.weight.shape[1] for jacobian in snapshot.upstream) <= WIDEST_DECOMPOSED:
            norm = fga.predict(snapshot, estimator)["wang2025_covariance_norm"].sel(layer=hidden)
            variables["covariance_norm"] = ("layer", norm.values, norm.attrs)
        rows.append(xr.Dataset(variables, coords={"layer": layers}).expand_dims(guess_kind=[name]))
    return xr.concat(rows, dim="guess_kind", data_vars="all")
