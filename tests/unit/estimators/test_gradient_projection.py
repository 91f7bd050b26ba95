"""Projections of the gradient: their bias is the energy outside, and that of random directions is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import fganalysis as fga
from fganalysis.estimators import GradientProjection
from fganalysis.estimators.sketches.gradient_projection import gradients_to_project_on
from tests import laws
from tests.law_claims import ALWAYS, PREDICTED, SYMMETRIC, Row
from tests.refusals import refusal
from tests.unit.estimators.at_weights import assert_predicted_at_weights
from tests.unit.predictions import tiny_networks
from theory import gradient_projection

# Not biased on the one example of some laws, whose gradient is of rank one.
CLAIMS = [Row(GradientProjection(), (*ALWAYS, *SYMMETRIC, PREDICTED))]
SNAPSHOT = laws.tiny_snapshot((5, 4, 3), n_examples=4, bias=True)
OLDER = gradients_to_project_on(laws.tiny_snapshot((5, 4, 3), n_examples=4, bias=True, seed=7))


@pytest.mark.parametrize("older", [None, OLDER])
@pytest.mark.parametrize("k", [1, 2, 9])
def test_squared_bias_is_the_energy_outside(older: Any, k: int) -> None:
    estimator = GradientProjection(k, older)
    assert_predicted_at_weights(estimator, SNAPSHOT)
    predicted = fga.predict(SNAPSHOT, estimator).sel(space="weight")
    for tap, name in zip(SNAPSHOT.taps, SNAPSHOT.layers, strict=True):
        gradient = (tap.matrix.gradients(SNAPSHOT.gradients[tap.layer]))[:, :-1].numpy()
        share = gradient_projection.kept(gradient, gradient if older is None else older[name].numpy(), k)
        outside = (1 - share) * float(np.sum(gradient**2))
        np.testing.assert_allclose(predicted["squared_bias"].sel(layer=name), outside, rtol=1e-9, atol=1e-14)
    assert not predicted["variance"].any()


def test_the_bias_itself_stays() -> None:
    found = GradientProjection()(SNAPSHOT, 2, torch.Generator()).layers[0].written()
    torch.testing.assert_close(found[:, :, -1], SNAPSHOT.weight_gradients[0][:, -1].expand(2, -1))


@pytest.mark.parametrize(
    "make", [tiny_networks.convolution, tiny_networks.layer_norm, tiny_networks.tied, tiny_networks.called_twice]
)
def test_prediction_is_exact_on_other_networks(make: Any) -> None:
    assert_predicted_at_weights(GradientProjection(), make())


def test_older_gradients_are_decomposed_once_for_each_snapshot() -> None:
    estimator, other = (
        GradientProjection(2, OLDER),
        GradientProjection(2, {name: -part for name, part in OLDER.items()}),
    )
    assert estimator.directions(SNAPSHOT) is GradientProjection(2, OLDER).directions(SNAPSHOT)
    for wrong in (other, GradientProjection(2), GradientProjection(1, OLDER)):
        assert wrong.directions(SNAPSHOT) is not estimator.directions(SNAPSHOT)


def test_directions_of_no_singular_value_are_left_out() -> None:
    """Of an older gradient of rank one there is one direction, however many are asked for."""
    older = {name: torch.outer(part[:, 0], part[0]) for name, part in OLDER.items()}
    directions = GradientProjection(3, older).directions(SNAPSHOT)
    assert [len(part) for part in directions.values()] == [1, 1]


def test_check_unbiased_says_biased() -> None:
    assert fga.check_unbiased(GradientProjection(), SNAPSHOT).outcome == "biased"


def test_an_older_gradient_is_part_of_the_name_by_its_content() -> None:
    names = {fga.estimators.stable_name(GradientProjection(1, older)) for older in (None, OLDER, dict(OLDER))}
    assert len(names) == 2
    assert fga.estimators.label(GradientProjection(2, OLDER)).startswith("gradient_projection(k=2, older=dict-")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: GradientProjection(k=0), "k must be"),
        (lambda: GradientProjection(1, SNAPSHOT), "older must be"),  # type: ignore[arg-type]
        (lambda: GradientProjection(1, {"0": torch.ones(3)}), "older must be"),
        (lambda: GradientProjection(1, {"0": torch.full((4, 5), torch.nan)}), "older must be"),
        (lambda: GradientProjection(1, {})(SNAPSHOT, 1, torch.Generator()), "for layer '0', got none"),
        (
            lambda: GradientProjection(1, {"0": torch.ones(2, 2)})(SNAPSHOT, 1, torch.Generator()),
            "of shape (4, 5) for layer '0', got one of shape (2, 2)",
        ),
        (lambda: gradients_to_project_on(3), "snapshot must be"),  # type: ignore[arg-type]
    ],
)
def test_wrong_settings_are_refused(make: Callable[[], Any], words: str) -> None:
    assert words in (refusal(make) or "")
