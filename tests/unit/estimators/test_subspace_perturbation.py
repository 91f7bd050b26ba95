"""Directions inside subspaces that are held: what is held, exact moments given it, and the mean over subspaces."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import SubspacePerturbation, WeightPerturbation, label
from fganalysis.testing import signs, three_points
from tests import laws
from tests.law_claims import ALWAYS, FIXED, PREDICTED, Row
from tests.laws import tiny_snapshot
from tests.unit.predictions.test_exact_predictions import assert_predicted_exactly
from theory import subspace_perturbation as theory

# The subspace belongs to the units in their order. In tiny networks that of the default rank is the whole.
CLAIMS = [
    Row(SubspacePerturbation(), (*ALWAYS, "examples", PREDICTED)),
    Row(SubspacePerturbation(rank=1, rescale=True), (*FIXED, PREDICTED)),
]
SQUARE = tiny_snapshot((2, 2, 2))
WITH_BIAS = tiny_snapshot((1, 2, 2), bias=True)


@pytest.mark.parametrize("law", [signs, three_points])
@pytest.mark.parametrize(
    ("estimator", "snapshot"),
    [
        (SubspacePerturbation(rank=1), SQUARE),
        (SubspacePerturbation(rank=1, layers="separate", rescale=True), SQUARE),
        (SubspacePerturbation(rank=2, rescale=True), tiny_snapshot((3, 2, 2))),
        (SubspacePerturbation(rank=1, layers="separate"), WITH_BIAS),
    ],
    ids=["rank 1", "separate", "rank 2", "bias"],
)
def test_predictions_are_exact(estimator: Any, snapshot: Snapshot, law: Any) -> None:
    assert_predicted_exactly(estimator, snapshot, law)


@pytest.mark.parametrize("claimed", [SubspacePerturbation(1, seed=1), SubspacePerturbation(1, rescale=True)], ids=label)
def test_another_subspace_and_another_scale_are_caught(claimed: Any) -> None:
    with pytest.raises(AssertionError, match="bias"):
        assert_predicted_exactly(SubspacePerturbation(rank=1), SQUARE, signs, claimed)


def test_guesses_stay_in_the_subspace_of_the_window() -> None:
    snapshot = tiny_snapshot((5, 4, 3))
    estimator = SubspacePerturbation(rank=2, window=10)
    held = estimator.subspaces(snapshot)
    for layer, direction in zip(snapshot.weights, estimator.directions(snapshot, 4, torch.Generator()), strict=True):
        (name,) = layer.parameter_names
        left, right, written = held[name].left, held[name].right, direction.written()
        torch.testing.assert_close(left @ left.T @ written @ right @ right.T, written)
        torch.testing.assert_close(left.T @ left, torch.eye(2, dtype=torch.float64))

    def basis(step: int, **changes: Any) -> torch.Tensor:
        later = fga.capture(snapshot.network, snapshot.loss_fn, snapshot.inputs, snapshot.targets, step=step)
        return next(iter(replace(estimator, **changes).subspaces(later).values())).left

    assert torch.equal(basis(0), basis(9))
    assert not torch.allclose(basis(0), basis(10))
    assert not torch.allclose(basis(0), basis(0, seed=1))


def test_a_whole_side_is_no_restriction() -> None:
    """With a rank above every side V is U Z Wᵀ with square orthogonal U, W: weight perturbation in law."""
    predicted = [fga.predict(SQUARE, e)["variance"] for e in (SubspacePerturbation(rank=9), WeightPerturbation())]
    np.testing.assert_allclose(*predicted, rtol=1e-12)


def test_the_mean_over_subspaces_is_the_gradient_only_with_the_scale() -> None:
    """And the second moment is P + 2P/r²: 400 subspaces, 5 standard errors, which is a tenth."""
    snapshot = tiny_snapshot((5, 4, 3))
    gradient = snapshot.weight_gradients[0].numpy()
    square = float(np.sum(gradient**2))
    means, moments = [], []
    for seed in range(400):
        (held, *_) = SubspacePerturbation(rank=2, rescale=True, seed=seed).subspaces(snapshot).values()
        left, right = held.left.numpy(), held.right.numpy()
        assert held.scale == pytest.approx(np.sqrt(20 / 4))
        means.append(theory.mean(gradient, left, right, held.scale))
        moments.append(theory.alone(gradient, left, right, held.scale, 3.0, 1.0) / square)
    error = np.std(means, axis=0) / 20
    assert np.all(np.abs(np.mean(means, axis=0) - gradient) < 5 * error)
    expected = theory.alone_over_subspaces(1.0, 20, 4, np.sqrt(5), 3.0, 1.0)
    assert expected == pytest.approx(20 + 2 * 20 / 4)
    assert abs(np.mean(moments) - expected) < 5 * np.std(moments) / 20
    unscaled = [mean / 5 for mean in means]
    assert np.any(np.abs(np.mean(unscaled, axis=0) - gradient) > 5 * error)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank must be a whole number of at least 1, got 0"),
        ({"window": 0.5}, "window must be a whole number of at least 1, got 0.5"),
        ({"rescale": "no"}, "rescale must be True or False, got 'no'"),
        ({"seed": -1}, "seed must be a whole number of at least 0, got -1"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SubspacePerturbation(**settings)


def test_its_bias_is_found() -> None:
    assert fga.check_unbiased(SubspacePerturbation(rank=1), SQUARE, tolerance=0.1).outcome == "biased"
    assert laws.guesses_of(SubspacePerturbation(), SQUARE)
