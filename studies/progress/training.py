"""One cell of `studies.progress`: SGD along every estimator at its advised step size, all from one trained network.

The step size is that of `fganalysis.progress` with the Gauss–Newton matrix, measured at a few moments of each training.
The smallest one so far is used: a step size that is large because the gradient points into flat directions at one
moment is too large for many steps. Where a moment has no advised step the last one stays, and before the first one the
weights stay as they are.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import xarray as xr

import fganalysis as fga
from fganalysis.capturing.errors import NonFiniteActivations
from fganalysis.capturing.tap import Loss
from fganalysis.estimators import (
    ActivityPerturbation,
    Averaged,
    Backpropagation,
    DirectFeedback,
    Estimator,
    FeedbackAlignment,
    FiniteDifference,
    OrthogonalUpstream,
    Upstream,
    WeightPerturbation,
    passes_of,
)
from fganalysis.results import schema
from fganalysis.training.datasets import Dataset
from studies.kit.devices import on
from studies.kit.resumed import kept
from studies.progress.networks import data_of, loss_of, network, trained

TRAINED_BY: dict[str, Estimator] = {
    "backpropagation": Backpropagation(),
    "weight": WeightPerturbation(),
    "weight, mean of 4": Averaged(WeightPerturbation(), 4),
    "weight, mean of 16": Averaged(WeightPerturbation(), 16),
    "finite difference": FiniteDifference(),
    "activity": ActivityPerturbation(),
    "activity, mean of 4": Averaged(ActivityPerturbation(), 4),
    "activity, mean of 16": Averaged(ActivityPerturbation(), 16),
    "upstream": Upstream(),
    "upstream, mean of 4": Averaged(Upstream(), 4),
    "orthogonal, k = 10": OrthogonalUpstream(k=10),
    "feedback alignment": FeedbackAlignment(),
    "direct feedback": DirectFeedback(),
}
Batches = Literal["one", "new"]
MOMENTS = (0, 10, 30)  # Steps before which the step size is measured.
LOGGED_EVERY = 2
DIVERGED = 10.0  # Times the loss at the start: a training whose batch has a larger loss ends there.
STREAM = 1  # Of the order of examples, beside the seed.
# With new batches the loss of the training set is taken before every step; of more targets than these, of a part alone.
SHOWN_TARGETS = 8192


@dataclass(frozen=True)
class Protocol:
    """What all estimators of a cell share. batches: "one" for all steps, or a "new" one for every step."""

    start: torch.nn.Module
    data: Dataset
    loss_fn: Loss
    seed: int
    batches: Batches
    batch: int
    steps: int
    guesses: int
    guesses_at_start: int

    def examples(self, generator: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Those of the next step."""
        inputs, targets = self.data.train_inputs, self.data.train_targets
        if self.batches == "one":
            generator = np.random.default_rng([self.seed, STREAM])
        rows = torch.from_numpy(generator.choice(len(inputs), self.batch, replace=False)).to(inputs.device)
        return inputs[rows], targets[rows]

    def loss(self, trained: torch.nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> float:
        """That of the one batch, or of the training set where batches are new: of every nth example if it is large."""
        if self.batches == "new":
            every = -(-self.data.train_targets.numel() // SHOWN_TARGETS)
            inputs, targets = self.data.train_inputs[::every], self.data.train_targets[::every]
        with torch.no_grad():
            return float(self.loss_fn(trained(inputs), targets))


def cell(
    network_name: str,
    batches: Batches,
    seed: int,
    *,
    width: int,
    start: int,
    batch: int,
    steps: int,
    guesses: int,
    guesses_at_start: int,
    device: str,
    text: Path,
    scratch: Path,
) -> xr.Dataset:
    """Losses over (estimator, training_step), and what was measured of each estimator before its training."""
    data = on(device, data_of(network_name, text))
    own = trained(network(network_name, width, seed).to(device), network_name, data, start, seed, scratch)
    protocol = Protocol(own, data, loss_of(network_name), seed, batches, batch, steps, guesses, guesses_at_start)
    parts = [
        kept(scratch / f"estimator_{place}.nc", partial(_trained_by, estimator, protocol))
        for place, estimator in enumerate(TRAINED_BY.values())
    ]
    return xr.concat(parts, dim=xr.IndexVariable("estimator", list(TRAINED_BY)))


def _trained_by(estimator: Estimator, protocol: Protocol) -> xr.Dataset:
    own = copy.deepcopy(protocol.start)
    order = np.random.default_rng([protocol.seed, STREAM])
    noise = torch.Generator(protocol.data.train_inputs.device).manual_seed(protocol.seed)
    optimizer = torch.optim.SGD(own.parameters(), lr=1.0)
    logged = range(0, protocol.steps + 1, LOGGED_EVERY)
    moments = [moment for moment in MOMENTS if moment < protocol.steps]
    advised, along = (dict.fromkeys(moments, np.nan) for _ in range(2))
    losses: dict[int, float] = {}
    step_size, diverged_at, before, at_start = np.inf, np.nan, {}, np.inf
    for step in range(protocol.steps + 1):
        inputs, targets = protocol.examples(order)
        loss = protocol.loss(own, inputs, targets)
        at_start = min(at_start, loss) if step == 0 else at_start
        if not loss <= DIVERGED * at_start:
            diverged_at = step
            break
        if step in logged:
            losses[step] = loss
        if step == protocol.steps:
            break
        try:
            if step in moments:
                snapshot = fga.capture(own, protocol.loss_fn, inputs, targets, step=step)
                n_guesses = protocol.guesses if step else protocol.guesses_at_start
                measured = _measured(snapshot, estimator, n_guesses, protocol.seed)
                advised[step], along[step] = (float(measured[name]) for name in ("best_step", "curved_efficiency"))
                if step == 0:
                    before = _before(snapshot, estimator, measured, n_guesses, protocol.seed)
                if np.isfinite(advised[step]):
                    step_size = min(step_size, advised[step])
            optimizer.zero_grad()
            fga.estimate_gradient(own, protocol.loss_fn, inputs, targets, estimator, noise)
        except NonFiniteActivations:
            diverged_at = step
            break
        optimizer.param_groups[0]["lr"] = step_size if np.isfinite(step_size) else 0.0
        optimizer.step()
    variables: dict[str, tuple[tuple[str, ...], object]] = {
        "loss": (("training_step",), [losses.get(step, DIVERGED * at_start) for step in logged]),
        "advised_step": (("moment",), list(advised.values())),
        "curved_efficiency_along": (("moment",), list(along.values())),
        "diverged_at": ((), diverged_at),
    }
    variables |= {name: ((), value) for name, value in before.items()}
    return xr.Dataset(variables, coords={"training_step": list(logged), "moment": moments})


def _measured(snapshot: fga.Snapshot, estimator: Estimator, n_guesses: int, seed: int) -> xr.Dataset:
    """What `fganalysis.progress` says of one guess."""
    measured = fga.progress(snapshot, estimator, n_guesses, seed, curvature="gauss_newton")
    return measured.isel({schema.STEP: 0, schema.ESTIMATOR: 0}).sel(
        {schema.AVERAGED: 1, schema.LAYER: schema.ALL_LAYERS}
    )


def _before(
    snapshot: fga.Snapshot, estimator: Estimator, measured: xr.Dataset, n_guesses: int, seed: int
) -> dict[str, float]:
    """What the ranks before the training are by, of one guess at the weights."""
    chosen = {schema.SPACE: "weight", schema.LAYER: schema.ALL_LAYERS}
    sampled = fga.sample(snapshot, estimator, n_guesses, seed).squeeze(drop=True).sel(chosen)
    passes = passes_of(estimator, snapshot)
    assert passes is not None
    found = {name: float(measured[name]) for name in ("curved_efficiency", "unseen_curvature", "effective_rank")}
    found |= {name: float(sampled[name]) for name in ("efficiency", "cosine", "variance")}
    found["variance"] /= float(measured["squared_gradient"])
    return found | {"passes": passes.in_forward_passes()}
