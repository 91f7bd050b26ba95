"""Estimators around another: they take a key, and they learn where the other one learns and nowhere else."""

from __future__ import annotations

import copy
import inspect
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import fganalysis as fga
from fganalysis.estimators import (
    ActivityPerturbation,
    Averaged,
    Estimator,
    ForwardDirectFeedback,
    LocalLoss,
    Stateful,
    Subsampled,
    label,
)
from fganalysis.training.datasets import Dataset
from tests import laws

SNAPSHOT = laws.tiny_snapshot((3, 4, 3, 2), n_examples=6)
DATA = Dataset(SNAPSHOT.inputs, SNAPSHOT.targets, SNAPSHOT.inputs, SNAPSHOT.targets)
LEARNING = ForwardDirectFeedback(rate=0.5)
STATEFUL = [
    Averaged(LEARNING, 2),
    Subsampled(LEARNING, 2),
    Averaged(Subsampled(LEARNING, 2), 2),
    Averaged(LocalLoss(mode="trained", rate=0.1), 2),
]


def trained(estimator: Estimator, **settings: Any) -> fga.training.Run:
    optimizer = partial(torch.optim.SGD, lr=1.0)
    return fga.train(SNAPSHOT.network, DATA, estimator, epochs=2, batch_size=3, optimizer=optimizer, **settings)


@pytest.mark.parametrize("estimator", STATEFUL, ids=label)
def test_what_is_wrapped_learns_in_training_and_goes_on_from_a_checkpoint(estimator: Estimator, tmp_path: Path) -> None:
    run = trained(estimator, checkpoints=[2], out=tmp_path)
    again = trained(estimator, continue_from=run.checkpoints[2])
    given = SNAPSHOT.network.parameters()
    for before, after, continued in zip(given, run.network.parameters(), again.network.parameters(), strict=True):
        assert not torch.equal(before, after)
        assert torch.equal(after, continued)


def test_the_mean_of_what_draws_nothing_trains_as_that_does() -> None:
    alone, averaged = trained(LEARNING), trained(Averaged(LEARNING, 2))
    for one, other in zip(alone.network.parameters(), averaged.network.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_only_what_is_around_a_state_has_one() -> None:
    for estimator in STATEFUL:
        assert isinstance(estimator, Stateful)
        # From Python 3.12 on, a protocol looks there.
        assert callable(inspect.getattr_static(estimator, "initialised"))
    for stateless in (Averaged("activity", 2), Subsampled("activity", 2), Averaged(Subsampled("activity", 2), 2)):
        assert not isinstance(stateless, Stateful)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda given: pickle.loads(pickle.dumps(given))])
def test_a_copys_state_is_its_own(copied: Any) -> None:
    estimator = copied(Averaged(LEARNING, 2).initialised(SNAPSHOT))
    assert estimator.state()["feedback.0"] is estimator.estimator.feedback[0]


def test_a_key_is_the_estimator_of_that_name() -> None:
    for kind in (Averaged, Subsampled):
        assert kind("activity", 2) == kind(ActivityPerturbation(), 2)
        assert label(kind("activity", 2)) == label(kind(ActivityPerturbation(), 2))
    predicted = fga.predict(SNAPSHOT, Averaged("activity", 2))
    assert predicted.equals(fga.predict(SNAPSHOT, Averaged(ActivityPerturbation(), 2)))
    assert fga.sample(SNAPSHOT, Subsampled("activity", 2), n_guesses=8).sizes["guess"] == 8
