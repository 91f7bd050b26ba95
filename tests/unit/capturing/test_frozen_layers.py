"""Feedback, mixing and local losses where layers are frozen: the last tap may be hidden, a tap may be a bias alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import (
    ActivationMixing,
    DirectFeedback,
    FeedbackAlignment,
    ForwardDirectFeedback,
    LocalLoss,
    label,
)

CHAINS: list[Any] = [
    ActivationMixing(),
    ActivationMixing(normalise=False, slope="batch"),
    DirectFeedback(),
    FeedbackAlignment(),
    ForwardDirectFeedback(rate=0.3, steps=2),
]


def snapshot_without(*frozen: str) -> Snapshot:
    network = fga.networks.mlp([5, 7, 6, 3], bias=True, seed=0, activation=torch.nn.Tanh, dtype=torch.float64)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name not in frozen)
    inputs = torch.randn(6, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return fga.capture(network, torch.nn.functional.cross_entropy, inputs, torch.arange(6) % 3)


@pytest.mark.parametrize("estimator", CHAINS, ids=label)
def test_the_last_tap_may_be_a_hidden_one(estimator: Any) -> None:
    """Behind it stands a frozen layer with fewer units: what is drawn and what is predicted are the last tap's."""
    snapshot = snapshot_without("4.weight", "4.bias")
    assert snapshot.taps[-1].units == 6 and snapshot.outputs.shape[1] == 3
    predicted, measured = fga.predict(snapshot, estimator), fga.sample(snapshot, estimator, 2048)
    for name in ("shrinkage", "mse"):
        difference = np.abs(measured[name] - predicted[name]).values
        assert (difference <= 4.5 * measured[f"{name}_se"].values + 1e-9).all(), name


@pytest.mark.parametrize("estimator", [ActivationMixing(), LocalLoss(), LocalLoss(mode="redrawn")], ids=label)
def test_a_weight_that_is_frozen_changes_no_guess(estimator: Any) -> None:
    """What arrives at a tap is known even where only its bias is trained."""
    frozen, free = (
        estimator(snapshot, 2, torch.Generator().manual_seed(0)).guesses
        for snapshot in (snapshot_without("2.weight"), snapshot_without())
    )
    for one, other in zip(frozen, free, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-15)
