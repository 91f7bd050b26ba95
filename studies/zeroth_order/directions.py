"""One cell of `studies.zeroth_order`: every kind of direction on one network at one moment of training."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import (
    Estimator,
    FiniteDifference,
    GuidedPerturbation,
    LowRankPerturbation,
    Minibatch,
    ScaledPerturbation,
    SparsePerturbation,
    SubspacePerturbation,
    WeightPerturbation,
)
from fganalysis.estimators.noise import ON_SPHERE, Noise
from fganalysis.measuring.second_derivatives import Curvature
from fganalysis.measuring.ways_to_products import Matrix
from fganalysis.results import schema
from studies.kit.devices import on
from studies.progress.networks import data_of, loss_of, network, trained

NETWORK = "tanh MLP"
# The Hessian of an untrained network is indefinite: along many guesses there is no best step.
CURVATURE: Matrix = "gauss_newton"
SIGMA = 0.01
PART = 16  # Examples whose gradient is a guide.
ESTIMATORS: dict[str, Estimator | None] = {
    "unstructured": WeightPerturbation(),
    "on a sphere": WeightPerturbation(noise=ON_SPHERE),
    "rank 1": LowRankPerturbation(rank=1),
    "rank 4": LowRankPerturbation(rank=4),
    "rank 16": LowRankPerturbation(rank=16),
    "subspace of rank 4": SubspacePerturbation(rank=4),
    "subspace of rank 16": SubspacePerturbation(rank=16),
    "subspace of rank 16, rescaled": SubspacePerturbation(rank=16, rescale=True),
    "scaled by size": ScaledPerturbation(),
    "scaled by curvature": None,  # Of the network: `by_curvature`.
    "guided by 1 example": GuidedPerturbation(),
    f"guided by {PART} examples": GuidedPerturbation(guide=Minibatch(PART)),
    f"guided by 4 times {PART} examples": GuidedPerturbation(k=4, guide=Minibatch(PART)),
    "a tenth of the weights": SparsePerturbation(keep=0.1),
    "half of the layers": SparsePerturbation(keep=1.0, keep_layers=0.5),
    f"antithetic pair, σ = {SIGMA:g}": FiniteDifference(SIGMA),
    f"one-sided, σ = {SIGMA:g}": FiniteDifference(SIGMA, central=False),
}
QUANTITIES = ("relative_bias", "relative_variance", "cosine", "efficiency", "curved_efficiency")
SUFFIXES = ("", "_low", "_high")


@dataclass
class Counted:
    """A law whose numbers are counted."""

    noise: Noise
    n_numbers: int = 0

    def draw(self, shape: tuple[int, ...], generator: torch.Generator, like: Tensor, vector_dims: int = 1) -> Tensor:
        drawn = self.noise.draw(shape, generator, like, vector_dims)
        self.n_numbers += drawn.numel()
        return drawn

    def fourth(self, n: int) -> float:
        return self.noise.fourth(n)

    def pair(self, n: int) -> float:
        return self.noise.pair(n)


def cell(
    steps: int, seed: int, *, width: int, batch: int, guesses: int, curved_guesses: int, device: str, scratch: Path
) -> xr.Dataset:
    """Measured and predicted quantities of all layers together at the weights, over (estimator,)."""
    data = on(device, data_of(NETWORK, scratch))
    own = trained(network(NETWORK, width, seed).to(device), NETWORK, data, steps, seed, scratch)
    snapshot = fga.capture(own, loss_of(NETWORK), *data.batch(batch, seed), step=steps)
    chosen = estimators_on(snapshot)
    progress = fga.progress(snapshot, list(chosen.values()), curved_guesses, seed, curvature=CURVATURE).isel(
        step=0, drop=True
    )
    single = progress.sel(averaged=1)
    columns: dict[str, list[float]] = {}

    def put(name: str, value: Any) -> None:
        columns.setdefault(name, []).append(float(value))

    for place, estimator in enumerate(chosen.values()):
        measured = _whole(fga.sample(snapshot, estimator, guesses, seed))
        predicted = _whole(fga.predict(snapshot, estimator))
        square = float(measured["gradient_norm"]) ** 2
        for suffix in SUFFIXES:
            put(f"relative_variance{suffix}", measured[f"variance{suffix}"] / square)
            put(f"curved_efficiency{suffix}", single[f"curved_efficiency{suffix}"][place])
            for name in ("relative_bias", "cosine", "efficiency"):
                put(name + suffix, measured[name + suffix])
        put("relative_variance_predicted", predicted["variance"] / square)
        put("curved_efficiency_predicted", single["curved_efficiency_predicted"][place])
        for name in ("relative_bias", "cosine", "efficiency"):
            put(f"{name}_predicted", predicted[name])
        put("numbers", numbers_of(estimator, snapshot))
    rows = {name: (("estimator",), np.array(values)) for name, values in columns.items()}
    whole = progress.sel(layer=schema.ALL_LAYERS)
    attributes = {
        "parameters": sum(layer.weight.numel() for layer in snapshot.weights),
        "not_measured": progress.attrs.get(schema.NOT_MEASURED, json.dumps({})),
    }
    found = xr.Dataset(rows, coords={"estimator": list(chosen)}, attrs=attributes)
    for name in ("effective_rank", "loss"):
        found[name] = ((), float(whole[name]))
    return found


def _whole(dataset: xr.Dataset) -> xr.Dataset:
    return dataset.sel(space="weight", layer=schema.ALL_LAYERS)


def estimators_on(snapshot: Snapshot) -> dict[str, Estimator]:
    """The estimators of the table, with those scales that are the network's."""
    scaled = by_curvature(snapshot)
    return {name: scaled if estimator is None else estimator for name, estimator in ESTIMATORS.items()}


def by_curvature(snapshot: Snapshot) -> ScaledPerturbation:
    """Σ = λ/(h + λ), h the exact diagonal of the Gauss–Newton matrix and λ its mean: what HiZOO estimates."""
    curvature = Curvature(snapshot, CURVATURE)
    sizes = [layer.weight.numel() for layer in snapshot.weights]
    diagonal = []
    for some in torch.arange(sum(sizes)).split(64):
        axes = torch.nn.functional.one_hot(some, sum(sizes)).to(snapshot.like)
        diagonal.append((axes * curvature.products(axes)).sum(1))
    positive = torch.cat(diagonal).clamp(min=0)
    mean = positive.mean()
    scales: dict[str, Tensor] = {}
    for layer, part in zip(snapshot.weights, (mean / (positive + mean)).split(sizes), strict=True):
        scales |= layer.by_parameter(part.view(layer.weight.shape))
    return ScaledPerturbation(scales)


def numbers_of(estimator: Any, snapshot: Snapshot) -> int:
    """Random numbers of a guess that its direction is made of; of a sparse one those that are not masked, on average.

    A guess's direction that is a few numbers can be kept, sent and drawn again cheaply.
    """
    counted = Counted(estimator.noise)
    replace(estimator, noise=counted)(snapshot, 1, torch.Generator(snapshot.device).manual_seed(0))
    share = estimator.keep * estimator.keep_layers if isinstance(estimator, SparsePerturbation) else 1.0
    return round(counted.n_numbers * share)
