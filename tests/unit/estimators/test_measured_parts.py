"""Measured parts of a variance meet the predicted ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import fganalysis as fga
from fganalysis.estimators import (
    ActivityPerturbation,
    Averaged,
    DirectFeedback,
    Estimator,
    MultiTangent,
    Subsampled,
    Upstream,
    WeightPerturbation,
)
from tests import laws
from tests.unit.estimators.split_variance import predicted
from theory import minibatch


@pytest.mark.slow
@pytest.mark.parametrize("estimator", [ActivityPerturbation(), Upstream(slope="batch")], ids=fga.estimators.label)
def test_measured_parts_meet_the_predicted(estimator: Estimator) -> None:
    """3000 draws of rows, each part within 4 standard errors; over all layers an error is below 20 % of the part."""
    snapshot = laws.tiny_snapshot((3, 4, 2), n_examples=6)
    whole, by_example = predicted(snapshot, estimator, 3.0), predicted(snapshot, estimator, 3.0, "example")
    found = fga.variance_parts(Subsampled(estimator, 3), snapshot, 3000, torch.Generator().manual_seed(0))
    assert found.within.value.shape == found.between.value.shape == (2, 3)
    wanted = np.zeros((2, 2, 3))
    for index, tap in enumerate(snapshot.taps):
        for space, kernel in enumerate([None, tap.kernel.numpy()]):
            parts = minibatch.parts(whole[index], by_example[index], 3, kernel)
            wanted[:, space, index] = parts.within, parts.between
    wanted[..., -1] = wanted.sum(-1)
    for measured, exact in zip((found.within, found.between), wanted, strict=True):
        assert (np.abs(measured.value - exact) < 4 * measured.se + 1e-12).all(), (measured, exact)
        assert (measured.se[:, -1] < 0.2 * exact[:, -1]).all()
    # Parts that change places are caught.
    assert (np.abs(found.within.value - wanted[1]) > 4 * found.within.se).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "estimator",
    [
        WeightPerturbation(),
        MultiTangent(k=4),
        MultiTangent(k=4, combine="orthogonal"),
        Averaged(WeightPerturbation(), 3),
        Averaged(ActivityPerturbation(), 3),
        DirectFeedback(),
    ],
    ids=fga.estimators.label,
)
def test_measured_parts_meet_the_predicted_for_every_kind_of_guess(estimator: Any) -> None:
    """2000 draws of rows, each part within 4 standard errors, which for the part within are below 20 % of it."""
    snapshot, stated = laws.tiny_snapshot((3, 4, 2), n_examples=6), Subsampled(estimator, 3)
    found = fga.variance_parts(stated, snapshot, 2000, torch.Generator().manual_seed(1))
    exact = fga.predict_variance_parts(stated, snapshot)
    for measured, wanted in ((found.within, exact.within), (found.between, exact.between)):
        np.testing.assert_array_equal(np.isnan(measured.value), np.isnan(wanted.value))
        known = ~np.isnan(wanted.value)
        difference = np.abs(measured.value - wanted.value)[known]
        assert (difference <= 4 * measured.se[known] + 1e-12).all(), (measured, wanted)
    assert (found.within.se[1] <= 0.2 * exact.within.value[1] + 1e-12).all()
    total = fga.predict(snapshot, stated)["variance"].values[1]
    np.testing.assert_allclose(exact.within.value[1] + exact.between.value[1], total, rtol=1e-10)
