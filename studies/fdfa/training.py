"""Training by FDFA, forward gradients and backpropagation: one run, and the learning rate that suits each best."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import xarray as xr

import fganalysis as fga
from fganalysis.estimators import (
    ActivityPerturbation,
    Backpropagation,
    DirectFeedback,
    Estimator,
    ForwardDirectFeedback,
    ForwardDirectFeedbackAdam,
    WeightPerturbation,
)
from studies.kit import kept_data, resumed
from studies.kit.devices import on

QUANTITIES = ("loss", "train_accuracy", "test_accuracy", "cosine")
FDFA = "FDFA, α = {:g}"
ADAM = "FDFA by Adam"
ACTIVITY = "activity perturbation"
WEIGHT = "weight perturbation"


def gradients(rates: tuple[float, ...], adam_rate: float) -> dict[str, Callable[[int], Estimator]]:
    """What trains, by name: the estimator of a seed, which sets the matrices of direct feedback."""
    found: dict[str, Callable[[int], Estimator]] = {
        "backpropagation": lambda seed: Backpropagation(),
        WEIGHT: lambda seed: WeightPerturbation(),
        ACTIVITY: lambda seed: ActivityPerturbation(),
        "direct feedback": lambda seed: DirectFeedback(seed=seed),
    }
    for rate in rates:
        found[FDFA.format(rate)] = _constant(ForwardDirectFeedback(rate=rate))
    return found | {ADAM: _constant(ForwardDirectFeedbackAdam(rate=adam_rate))}


def _constant(estimator: Estimator) -> Callable[[int], Estimator]:
    return lambda seed: estimator


def run(
    dataset: str,
    gradient: str,
    training_rates: tuple[float, ...],
    adam_rate: float,
    width: int,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    device: str,
    scratch: Path,
) -> xr.Dataset:
    """The log of one training by Adam, (step,), a row an epoch; shorter where it diverged."""
    data = on(device, kept_data.load(dataset))
    estimator = gradients(training_rates, adam_rate)[gradient](seed)
    classes = int(data.train_targets.max()) + 1
    network = fga.networks.mlp([data.train_inputs.shape[1], width, width, classes], seed=seed).to(device)
    trained = resumed.train(
        network,
        data,
        estimator,
        scratch,
        epochs=epochs,
        batch_size=batch_size,
        optimizer=partial(torch.optim.Adam, lr=learning_rate),
        log_every=-(-len(data.train_inputs) // batch_size),
        seed=seed,
    )
    return trained.log[list(QUANTITIES)].assign_attrs(learning_rate=learning_rate, seed=seed)


def best(losses: dict[float, float]) -> float:
    """The learning rate of the smallest final training loss; a run that diverged has none."""
    finite = {rate: loss for rate, loss in losses.items() if np.isfinite(loss)}
    if not finite:
        raise ValueError(f"training diverged at every learning rate of {', '.join(map(str, losses))}: add smaller ones")
    return min(finite, key=finite.__getitem__)
