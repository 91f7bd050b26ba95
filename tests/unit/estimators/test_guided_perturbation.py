"""Directions partly in the span of surrogate gradients: exact moments given the span, and what spans it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import Backpropagation, FeedbackAlignment, GuidedPerturbation, Minibatch, WeightPerturbation
from fganalysis.testing import signs, three_points
from tests.law_claims import ALWAYS, PREDICTED, Row
from tests.laws import tiny_snapshot
from tests.unit.predictions.test_exact_predictions import assert_predicted_exactly
from theory import guided_perturbation as theory

# Its guide is an example with a number, and another one where the examples are in another order.
CLAIMS = [Row(GuidedPerturbation(), (*ALWAYS, "units", "biased", PREDICTED))]
SQUARE = tiny_snapshot((2, 2, 2))
NARROW = tiny_snapshot((1, 2, 2))
TWO_GUIDES = GuidedPerturbation(alpha=0.3, k=2, seed=3)


@pytest.mark.parametrize("law", [signs, three_points])
@pytest.mark.parametrize(
    ("estimator", "snapshot"),
    [
        (GuidedPerturbation(), SQUARE),
        (GuidedPerturbation(alpha=0.9, guide=FeedbackAlignment()), SQUARE),
        (TWO_GUIDES, NARROW),
        (GuidedPerturbation(alpha=1.0), NARROW),
    ],
    ids=["default", "feedback", "two guides", "alpha 1"],
)
def test_predictions_are_exact(estimator: Any, snapshot: Snapshot, law: Any) -> None:
    assert_predicted_exactly(estimator, snapshot, law)


@pytest.mark.parametrize(
    "claimed",
    [GuidedPerturbation(alpha=0.31, k=2, seed=3), GuidedPerturbation(alpha=0.3, k=2, seed=4), WeightPerturbation()],
)
def test_another_share_span_or_law_is_caught(claimed: Any) -> None:
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_predicted_exactly(TWO_GUIDES, NARROW, signs, claimed)


def test_the_law_on_the_sphere_is_that_of_samples() -> None:
    """Noise vectors whose entries depend on each other, of each layer and of the guides: 4 standard errors, 3 %."""
    estimator = GuidedPerturbation(alpha=0.4, k=2, seed=3, noise=fga.estimators.noise.ON_SPHERE)
    guesses = estimator(SQUARE, 50_000, torch.Generator().manual_seed(0))
    squares = guesses.inner_products(SQUARE)[1][1]
    moments = fga.predict(SQUARE, estimator)
    weights = moments.sel(space="weight")
    second = (weights["mse"] + weights["gradient_norm"] ** 2 * (2 * weights["shrinkage"] - 1)).values[:-1]
    error = squares.std(1).numpy() / 50_000**0.5
    assert np.all(np.abs(squares.mean(1).numpy() - second) < 4 * error)
    assert np.all(4 * error < 0.03 * second)
    sizes = [4, 4]
    gradients = [gradient.numpy() for gradient in SQUARE.weight_gradients]
    guides = [part.numpy() for part in estimator.basis(SQUARE)]
    gaussian = theory.second_moments(gradients, guides, 0.4, [3.0] * 2, [1.0] * 2, 3.0, 1.0)
    assert np.any(np.abs(gaussian - second) > 4 * error), sizes


def test_the_span_is_that_of_the_guides() -> None:
    snapshot = tiny_snapshot((4, 3, 3), n_examples=3)
    basis = torch.cat(
        [part.flatten(1) for part in GuidedPerturbation(k=3, seed=2, guide=Minibatch(1)).basis(snapshot)], 1
    )
    torch.testing.assert_close(basis @ basis.T, torch.eye(3, dtype=torch.float64))
    # Three examples span the gradient of the batch.
    gradient = torch.cat([part.flatten() for part in snapshot.weight_gradients])
    torch.testing.assert_close(basis.T @ (basis @ gradient), gradient)
    (exact,) = torch.cat([part.flatten(1) for part in GuidedPerturbation(guide=Backpropagation()).basis(snapshot)], 1)
    torch.testing.assert_close(exact.abs(), (gradient / gradient.norm()).abs())


def test_a_perfect_guide_is_worth_many_tangents() -> None:
    snapshot = tiny_snapshot((6, 5, 4))
    found = [
        float(fga.predict(snapshot, estimator)["efficiency"].sel(space="weight", layer="all"))
        for estimator in (WeightPerturbation(), GuidedPerturbation(guide=Backpropagation()))
    ]
    assert found[1] > 10 * found[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 0.0}, "alpha must be a finite number above 0 and at most 1, got 0.0"),
        ({"k": 0}, "k must be a whole number of at least 1, got 0"),
        ({"guide": "minibatch"}, "guide must be an instance of an estimator, got 'minibatch'"),
        ({"k": 2, "guide": Backpropagation()}, "the k=2 guides are linearly dependent: use a smaller k, another seed"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GuidedPerturbation(**settings)(SQUARE, 1, torch.Generator())
