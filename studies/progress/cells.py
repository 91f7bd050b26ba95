"""One cell of `studies.progress`: a network at one moment of training, and the losses after single steps along guesses.

`fganalysis.progress` predicts from one set of guesses. The losses are those of other guesses, so that a step size is
not judged by the guesses that it was chosen from.

The error of the quadratic model is measured along these other guesses too, where no noise of guesses hides it:

    R(η) = L(θ) − L(θ − ηĝ) − (η gᵀĝ − η²/2 ĝᵀHĝ)

Its odd part [R(η) − R(−η)]/2 is that of the third derivative and of other odd ones, without the curvature. The even
part holds the fourth derivative, kinks, and the difference of the two curvatures.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import numpy as np
import torch
import xarray as xr

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import (
    ActivityPerturbation,
    Estimator,
    OrthogonalUpstream,
    Upstream,
    WeightPerturbation,
)
from fganalysis.measuring.second_derivatives import Curvature
from fganalysis.measuring.ways_to_products import Matrix
from fganalysis.results import schema
from studies.kit.devices import on
from studies.progress.networks import data_of, loss_of, network, trained

ESTIMATORS: dict[str, Estimator] = {
    "weight": WeightPerturbation(),
    "activity": ActivityPerturbation(),
    "upstream": Upstream(),
    "orthogonal, k = 10": OrthogonalUpstream(k=10),
}
CURVATURES: tuple[Matrix, ...] = get_args(Matrix)
FACTORS = tuple(2.0**power for power in range(-5, 5))  # Of the advised step: a sweep of ten step sizes.
BLOCK = 64
# The model by the guesses of `fganalysis.progress`, actual decreases along other guesses, the model along these, its
# error along these, and the odd part of the error.
OVER_FACTORS = ("predicted", "actual", "model", "model_error", "odd_error")
OTHER_SEED = 10_000  # Added to the seed for the guesses whose losses are evaluated.
OF_NETWORK = ("effective_rank", "gradient_curvature", "gradient_step", "loss", "has_kinks")
LEVEL_Z = 1.96
WORDS_OF_CURVATURES = {"hessian": "Hessian", "gauss_newton": "Gauss–Newton matrix"}


def cell(
    network_name: str,
    steps: int,
    seed: int,
    *,
    width: int,
    batch: int,
    guesses: int,
    losses: int,
    device: str,
    text: Path,
    scratch: Path,
) -> xr.Dataset:
    """Predicted and actual mean decrease of the loss, over (curvature, estimator, factor of the advised step)."""
    data = on(device, data_of(network_name, text))
    own = trained(network(network_name, width, seed).to(device), network_name, data, steps, seed, scratch)
    snapshot = fga.capture(own, loss_of(network_name), *data.batch(batch, seed), step=steps)
    parts = [_of_curvature(snapshot, curvature, guesses, losses, seed) for curvature in CURVATURES]
    return xr.concat(parts, dim=xr.IndexVariable("curvature", list(CURVATURES)), combine_attrs="drop_conflicts")


def _of_curvature(snapshot: Snapshot, curvature: Matrix, guesses: int, losses: int, seed: int) -> xr.Dataset:
    measured = fga.progress(snapshot, list(ESTIMATORS.values()), guesses, seed, curvature=curvature)
    measured = measured.isel(step=0, drop=True)
    single = measured.sel(averaged=1)
    shape = (len(ESTIMATORS), len(FACTORS))
    found = {name + end: np.full(shape, np.nan) for name in OVER_FACTORS for end in ("", "_se")}
    low, high, best = (np.full(len(ESTIMATORS), np.nan) for _ in range(3))
    for place, estimator in enumerate(ESTIMATORS.values()):
        row = single.isel({schema.ESTIMATOR: place})
        advised = float(row["best_step"])
        if not np.isfinite(advised):
            continue
        steps = advised * np.array(FACTORS)
        models = steps[:, None] * row["guess_slope"].values - steps[:, None] ** 2 / 2 * row["guess_curvature"].values
        decreases, models_there, odd = _decreases(snapshot, estimator, curvature, steps, losses, seed)
        for name, values in zip(
            OVER_FACTORS, (models, decreases, models_there, decreases - models_there, odd), strict=True
        ):
            found[name][place], found[name + "_se"][place] = _means(values)
        low[place], best[place], high[place] = best_factors(decreases)
    variables: dict[str, tuple[tuple[str, ...], np.ndarray]] = {}
    variables |= {name: (("estimator", "factor"), values) for name, values in found.items()}
    variables |= {name: (("estimator",), values) for name, values in (("best", best), ("best_low", low))}
    variables["best_high"] = (("estimator",), high)
    dataset = xr.Dataset(variables, coords={"estimator": list(ESTIMATORS), "factor": list(FACTORS)})
    for quantity in ("best_step", "curved_efficiency", "unseen_curvature"):
        for suffix in ("", "_low", "_high"):
            dataset[quantity + suffix] = (("estimator",), single[quantity + suffix].values)
    whole = measured.sel(layer=schema.ALL_LAYERS)
    for quantity in OF_NETWORK:
        for suffix in ("", "_low", "_high"):
            if quantity + suffix in whole:
                dataset[quantity + suffix] = ((), whole[quantity + suffix].values)
    reasons = json.loads(measured.attrs.get(schema.NOT_MEASURED, "{}"))
    parameters = sum(layer.weight.numel() for layer in snapshot.weights)
    return dataset.assign_attrs(not_measured=json.dumps(reasons), parameters=parameters)


def _means(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean over the last axis and its standard error."""
    return values.mean(-1), values.std(-1, ddof=1) / np.sqrt(values.shape[-1])


def _decreases(
    snapshot: Snapshot, estimator: Estimator, curvature: Matrix, steps: np.ndarray, n_guesses: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """L(θ) − L(θ − η ĝ), what the model says of it along the same guess, and the odd part of the model's error.

    Each is (step size, guess): every guess is used at every step size.
    """
    generator = torch.Generator(snapshot.device).manual_seed(seed + OTHER_SEED)
    at_weights = Curvature(snapshot, curvature)
    gradient = torch.cat([part.flatten() for part in snapshot.weight_gradients])
    slopes, forms, forward, backward = [], [], [], []
    for start in range(0, n_guesses, BLOCK):
        with torch.no_grad():
            vectors = estimator(snapshot, min(BLOCK, n_guesses - start), generator).dense(snapshot)[1]
        slopes.append((vectors.double() @ gradient.double()).cpu().numpy())
        forms.append(at_weights.forms(vectors).cpu().numpy())
        changes = np.stack([at_weights.changes(vectors, float(step)).cpu().numpy() for step in steps], axis=1)
        forward.append(-changes[0])
        backward.append(-changes[1])
    decreases, increases = (np.concatenate(blocks, axis=1) for blocks in (forward, backward))
    linear = steps[:, None] * np.concatenate(slopes)
    models = linear - steps[:, None] ** 2 / 2 * np.concatenate(forms)
    return decreases, models, (decreases - increases) / 2 - linear


def best_factors(decreases: np.ndarray) -> tuple[float, float, float]:
    """Lowest, best and highest factor of the sweep, (factor, guess): the ends cannot be told from the best.

    A factor is as good as the best where the paired difference of their decreases is within 1.96 standard errors.
    """
    means = decreases.mean(1)
    best = int(means.argmax())
    differences, errors = _means(decreases[best] - decreases)
    alike = np.flatnonzero(differences <= LEVEL_Z * errors)
    return FACTORS[alike[0]], FACTORS[best], FACTORS[alike[-1]]
