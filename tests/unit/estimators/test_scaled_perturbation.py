"""Directions with variances of their own: exact moments, the default by size, and refused scales."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import ScaledPerturbation, WeightPerturbation
from fganalysis.testing import exact_moments, signs, three_points
from tests import laws
from tests.laws import tiny_snapshot
from tests.unit.predictions.test_exact_predictions import assert_predicted_exactly

SQUARE = tiny_snapshot((2, 2, 2))
WITH_BIAS = tiny_snapshot((1, 2, 2), bias=True)
FIRST, LAST = (layer.parameter_names[0] for layer in SQUARE.weights)
GIVEN = {FIRST: torch.tensor([[0.5, 2.0], [0.0, 1.0]], dtype=torch.float64), LAST: 3.0}


@pytest.mark.parametrize("law", [signs, three_points])
@pytest.mark.parametrize(
    ("estimator", "snapshot"),
    [
        (ScaledPerturbation(), SQUARE),
        (ScaledPerturbation(layers="separate"), WITH_BIAS),
        (ScaledPerturbation(GIVEN), SQUARE),
        (ScaledPerturbation(GIVEN, layers="separate"), SQUARE),
    ],
    ids=["size", "size, separate", "given", "given, separate"],
)
def test_predictions_are_exact(estimator: Any, snapshot: Snapshot, law: Any) -> None:
    assert_predicted_exactly(estimator, snapshot, law)


def test_the_mean_is_the_scaled_gradient() -> None:
    mean = exact_moments(ScaledPerturbation(GIVEN), SQUARE, signs).weight_mean
    scaled = [scale * g for scale, g in zip((GIVEN[FIRST], 3.0), SQUARE.weight_gradients, strict=True)]
    torch.testing.assert_close(mean, torch.cat([part.flatten() for part in scaled]))
    with pytest.raises(AssertionError, match="bias"):
        assert_predicted_exactly(ScaledPerturbation(GIVEN), SQUARE, signs, WeightPerturbation())


def test_by_default_parameters_move_in_proportion_to_their_size() -> None:
    variances = ScaledPerturbation().variances(WITH_BIAS)
    pairs = [
        (float(part.square().mean()), float(scale.mean()))
        for layer, of_layer in zip(WITH_BIAS.weights, variances, strict=True)
        for part, scale in zip(
            layer.by_parameter(layer.weight).values(), layer.by_parameter(of_layer).values(), strict=True
        )
    ]
    sizes, scales = np.array(pairs).T
    np.testing.assert_allclose(scales / sizes, scales[0] / sizes[0])
    flat = torch.cat([part.flatten() for part in variances])
    assert float(flat.mean()) == pytest.approx(1.0)


def test_a_scale_of_one_is_weight_perturbation() -> None:
    ones = laws.guesses_of(ScaledPerturbation({FIRST: 1}), SQUARE)
    for one, other in zip(ones, laws.guesses_of(WeightPerturbation(), SQUARE), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        (3.0, "scales must be a mapping of parameter names to finite numbers or tensors of at least 0, got 3.0"),
        ({FIRST: -1.0}, f"of at least 0, got -1.0 for '{FIRST}'"),
        ({FIRST: float("nan")}, "of at least 0, got nan"),
        ({FIRST: "one"}, "of at least 0, got 'one'"),
        ({"no": 1.0}, "scales has the name 'no', which is no trainable parameter: "),
        ({FIRST: torch.ones(3)}, r"must be a number or a tensor for \(2, 2\), got a tensor of shape \(3,\)"),
        ({FIRST: 0.0, LAST: 0.0}, "every scale is zero"),
    ],
)
def test_wrong_scales_are_refused(scales: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScaledPerturbation(scales)(SQUARE, 1, torch.Generator())


def test_its_bias_is_found() -> None:
    assert fga.check_unbiased(ScaledPerturbation(), SQUARE, tolerance=0.1).outcome == "biased"
