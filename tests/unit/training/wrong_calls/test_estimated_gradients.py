"""Wrong values for every argument of what estimates gradients: right, or refused in a sentence of ours."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import fganalysis as fga
from fganalysis.training.estimated_gradients import fill_gradients
from fganalysis.training.networks import mlp
from tests.unit.training.wrong_calls.wrong_values import (
    ANYTHING,
    BAD_ESTIMATORS,
    LOSSES,
    NETWORK,
    NETWORKS,
    NO_ESTIMATORS,
    SNAPSHOT,
    X,
    Y,
    walk,
)


@pytest.mark.parametrize("name", ["network", "loss_fn", "inputs", "targets", "estimator", "generator", "n_guesses"])
@pytest.mark.parametrize("autodiff", ["reverse", "forward"])
def test_estimate_gradient(name: str, autodiff: str) -> None:
    right = {"network": NETWORK, "loss_fn": F.cross_entropy, "inputs": X, "targets": Y, "estimator": "activity"}
    right |= {"generator": torch.Generator(), "autodiff": autodiff}
    more = {"network": NETWORKS, "loss_fn": LOSSES, "estimator": [*BAD_ESTIMATORS.values()]}
    anything = NO_ESTIMATORS if name == "estimator" else ANYTHING
    assert walk(fga.estimate_gradient, right, name, [*anything, *more.get(name, [])]) == {}


def test_estimate_gradient_by_other_ways() -> None:
    right = {"network": NETWORK, "loss_fn": F.cross_entropy, "inputs": X, "targets": Y, "estimator": "activity"}
    assert walk(fga.estimate_gradient, right | {"generator": torch.Generator()}, "autodiff", ANYTHING) == {}


@pytest.mark.parametrize("kind", BAD_ESTIMATORS)
def test_guesses_that_do_not_fit_leave_no_gradient(kind: str) -> None:
    network = mlp([6, 5, 3], seed=0)
    with pytest.raises(ValueError, match=r"guess|the estimator must return"):
        fga.estimate_gradient(network, F.cross_entropy, X, Y, BAD_ESTIMATORS[kind], torch.Generator())
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize("name", ["snapshot", "estimator", "n_guesses", "generator"])
def test_fill_gradients(name: str) -> None:
    right = {"snapshot": SNAPSHOT, "estimator": "activity", "n_guesses": 2, "generator": torch.Generator()}
    values = [*NO_ESTIMATORS, *BAD_ESTIMATORS.values()] if name == "estimator" else ANYTHING
    assert walk(fill_gradients, right, name, values) == {}
