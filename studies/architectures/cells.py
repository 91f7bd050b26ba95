"""One cell of `studies.architectures`: a network from a seed, before and after training, every guess beside theory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
import xarray as xr

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import (
    ActivityPerturbation,
    Estimator,
    Minibatch,
    OrthogonalUpstream,
    PreconditionedUpstream,
    Upstream,
    WeightPerturbation,
)
from fganalysis.results import schema
from studies.architectures.networks import PRECISIONS, data_of, loss_of, network
from studies.kit import resumed
from studies.kit.devices import on

QUANTITIES = {
    "cosine": "mean cosine of a guess and the gradient",
    "efficiency": "fraction of the exact step's progress that one guess makes at its best step size",
    "relative_variance": "total variance of a guess over squared gradient norm",
    "relative_squared_bias": "squared bias over squared gradient norm; without bias it may come out negative",
}
MOMENTS = ("initialisation", "trained")
PART = 4  # The minibatch is this part of the batch.
TRAINING_BATCH = 32


def guesses_of(batch: int) -> dict[str, Estimator]:
    """The estimators, by the names that the page has for them."""
    return {
        "weight": WeightPerturbation(),
        "activity": ActivityPerturbation(),
        "upstream": Upstream(),
        "orthogonal, k = 10": OrthogonalUpstream(k=10),
        "orthogonal, k = 1": OrthogonalUpstream(k=1),
        "preconditioned": PreconditionedUpstream(),
        "minibatch": Minibatch(batch // PART),
    }


def cell(
    architecture: str,
    size: str,
    seed: int,
    *,
    batch: int,
    guesses: int,
    steps: int,
    learning_rate: float,
    device: str,
    text: Path,
    scratch: Path,
) -> xr.Dataset:
    """Every quantity, measured and predicted, over (trained, guess_kind, space, layer), and the loss over (trained).

    ``layer`` has the names of the network's layers and "all". The attributes ``not_measured`` and ``not_predicted`` are
    JSON objects from a guess's name to the reason.
    """
    data, loss_fn = on(device, data_of(architecture, text)), loss_of(architecture)
    untrained = network(architecture, size, seed).to(device)
    per_epoch = -(-len(data.train_inputs) // TRAINING_BATCH)
    run = resumed.backpropagated(
        untrained,
        data,
        scratch,
        epochs=max(1, round(steps / per_epoch)),
        seed=seed,
        batch_size=TRAINING_BATCH,
        optimizer=partial(torch.optim.AdamW, lr=learning_rate),
        loss_fn=loss_fn,
    )
    inputs, targets = data.batch(batch, seed)
    precision = PRECISIONS.get(architecture, torch.float32)
    inputs = inputs.to(precision) if inputs.is_floating_point() else inputs
    parts: list[xr.Dataset] = []
    reasons: dict[str, dict[str, str]] = {"not_measured": {}, "not_predicted": {}}
    for trained in (untrained, run.network):
        snapshot = fga.capture(trained.eval().to(precision), loss_fn, inputs, targets, step=len(parts))
        rows = [_of_guess(snapshot, name, e, guesses, seed, reasons) for name, e in guesses_of(batch).items()]
        parts.append(xr.concat(rows, dim="guess_kind", data_vars="all", combine_attrs="drop"))
    found = xr.concat(parts, dim="trained", data_vars="all", combine_attrs="drop")
    found = found.assign_coords(trained=list(MOMENTS), guess_kind=list(guesses_of(batch)))
    found["loss"] = ("trained", run.log["loss"].values[[0, -1]])
    found["steps"] = run.log["step"].values[-1]
    found["parameters"] = sum(weight.numel() for weight in untrained.parameters())
    return found.assign_attrs({name: json.dumps(sentences) for name, sentences in reasons.items()})


def _of_guess(
    snapshot: Snapshot,
    name: str,
    estimator: Estimator,
    n_guesses: int,
    seed: int,
    reasons: Mapping[str, dict[str, str]],
) -> xr.Dataset:
    """The quantities of one guess, measured and predicted, over (space, layer); NaN with the reason where unknown."""
    grid, layers = (schema.SPACE, schema.LAYER), [*snapshot.layers, schema.ALL_LAYERS]
    coords = {schema.SPACE: list(schema.SPACES), schema.LAYER: layers}
    nothing = np.full((len(schema.SPACES), len(layers)), np.nan)
    try:
        measured = fga.sample(snapshot, estimator, n_guesses, seed)
    except ValueError as refusal:  # What the library refuses, in its sentence; anything else is a mistake.
        reasons["not_measured"].setdefault(name, str(refusal))
        measured = None
    try:
        predicted = fga.predict(snapshot, estimator)
        why = str(predicted.attrs.get(schema.NOT_PREDICTED, ""))
    except ValueError as refusal:
        predicted, why = None, str(refusal)
    if why:
        reasons["not_predicted"].setdefault(name, why)
    variables: dict[str, tuple[tuple[str, str], np.ndarray]] = {}
    for quantity in QUANTITIES:
        values, low, high = (
            nothing if measured is None else _of(measured, quantity, end) for end in ("", "_low", "_high")
        )
        known = nothing if predicted is None else _of(predicted, quantity)
        inside = np.where(np.isfinite(known) & np.isfinite(low), (low <= known) & (known <= high), np.nan)
        for suffix, numbers in (("", values), ("_predicted", known), ("_inside", inside)):
            variables[quantity + suffix] = (grid, numbers)
    return xr.Dataset(variables, coords=coords)


def _of(dataset: xr.Dataset, quantity: str, end: str = "") -> np.ndarray:
    """The values of a quantity, or an end of their intervals, (space, layer)."""
    if not quantity.startswith("relative_"):
        return dataset[quantity + end].to_numpy()
    squares = dataset["gradient_norm"].to_numpy() ** 2
    return dataset[quantity.removeprefix("relative_") + end].to_numpy() / squares
