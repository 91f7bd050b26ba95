"""Wrong values for every argument of `train`, `train_seeds` and `evaluate`: right, or refused in a sentence of ours."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import fganalysis as fga
from fganalysis.training.datasets import Dataset
from fganalysis.training.evaluation import evaluate
from tests.unit.training.wrong_calls.wrong_values import (
    ANYTHING,
    BAD_ESTIMATORS,
    DATA,
    LOSSES,
    NETWORK,
    NETWORKS,
    NO_ESTIMATORS,
    X,
    Y,
    walk,
)

OPTIMIZERS = [
    lambda parameters: torch.optim.SGD(NETWORK.parameters(), lr=0.1),
    lambda parameters: torch.optim.SGD([]),
    lambda parameters: torch.optim.SGD(parameters, lr=-1),
    lambda parameters: torch.optim.SGD,
    lambda parameters: torch.optim.SGD([*parameters][:1], lr=0.1),
    torch.optim.LBFGS,
    torch.optim.SparseAdam,
]
SCHEDULES = [
    lambda optimizer: torch.optim.lr_scheduler.StepLR(torch.optim.SGD(NETWORK.parameters()), 2),
    lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, "2"),
    torch.optim.lr_scheduler.StepLR,
]
TRAIN = {
    "network": NETWORKS,
    "data": [
        (X, Y, X, Y),
        X.numpy(),
        Dataset,
        Dataset(X, Y, X[:0], Y[:0]),
        Dataset(X, Y, X, Y + 1),
        Dataset(X, Y + 3, X, Y),
        Dataset(X, Y - 1, X, Y),
        Dataset(X, Y.double(), X, Y.double()),
        Dataset(X[:, :5], Y, X[:, :5], Y),
        Dataset(X.double(), Y, X.double(), Y),
        Dataset(X.long(), Y, X.long(), Y),
        Dataset(X[None].repeat(16, 1, 1), Y, X[None], Y[:1]),
    ],
    "gradient": ["guesswork", fga.estimators.ActivityPerturbation, *BAD_ESTIMATORS.values()],
    "epochs": [],
    "checkpoints": [[99], [-1], "0", [True], np.arange(2)],
    "out": [],
    "batch_size": [17, 16],
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "loss_fn": LOSSES,
    "n_guesses": [],
    "autodiff": ["x", "forward"],
    "seed": [],
    "log_every": [],
    "continue_from": [],
    "progress": [],
}


@pytest.mark.parametrize("gradient", ["backpropagation", "activity"])
@pytest.mark.parametrize("name", TRAIN)
def test_train(name: str, gradient: str, capsys: pytest.CaptureFixture[str]) -> None:
    right = {"network": NETWORK, "data": DATA, "gradient": gradient, "epochs": 1}
    right |= {"checkpoints": [0]} if name == "out" else {"out": "here"} if name == "checkpoints" else {}
    anything = NO_ESTIMATORS if name == "gradient" else ANYTHING
    assert walk(fga.train, right, name, [*anything, *TRAIN[name]]) == {}


@pytest.mark.parametrize(
    "name", ["make_network", "data", "gradient", "seeds", "out", "epochs", "network", "unheard_of"]
)
def test_train_seeds(name: str) -> None:
    right = {"make_network": lambda seed: NETWORK, "data": DATA, "seeds": [0, 1], "epochs": 1}
    networks = [*NETWORKS, *(partial(lambda network, seed: network, network) for network in NETWORKS)]
    values = [
        *(NO_ESTIMATORS if name == "gradient" else ANYTHING),
        *(networks if name == "make_network" else []),
        np.arange(2),
        [0, 1],
        [2**70],
        "01",
    ]
    assert walk(fga.train_seeds, right, name, values) == {}


@pytest.mark.parametrize("name", ["network", "data", "loss_fn"])
def test_evaluate(name: str) -> None:
    right = {"network": NETWORK, "data": DATA, "loss_fn": F.cross_entropy}
    more = {"network": NETWORKS, "data": TRAIN["data"], "loss_fn": LOSSES}
    assert walk(evaluate, right, name, [*ANYTHING, *more[name]]) == {}
