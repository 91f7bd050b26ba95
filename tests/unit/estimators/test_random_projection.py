"""The projection on random directions: its moments by points of a circle, and by sampling in more dimensions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fganalysis as fga
from fganalysis.estimators import RandomProjection
from tests import laws
from tests.enumerated import circle
from tests.law_claims import ALWAYS, PREDICTED, Row
from tests.refusals import refusal
from theory import gradient_projection

# Its directions are orthonormal, of no law that can be enumerated.
CLAIMS = [Row(RandomProjection(), (*ALWAYS, PREDICTED))]
SNAPSHOT = laws.tiny_snapshot((5, 4, 3), n_examples=4, bias=True)


def test_moments_in_two_dimensions_are_those_of_six_points_on_the_circle() -> None:
    """They match the uniform law up to the fifth moment, and a guess's second moment is of the fourth degree."""
    gradient = np.random.default_rng(0).normal(size=(3, 2))
    law = circle(2)
    guesses = np.stack([gradient_projection.projected(gradient, v[None] / np.sqrt(2)) for v in law.points])
    mean = np.einsum("n,nui->ui", law.weights, guesses)
    share, spread = gradient_projection.of_random(2, 1)
    np.testing.assert_allclose(mean, share * gradient, rtol=1e-10)
    variance = np.einsum("n,nui->", law.weights, (guesses - mean) ** 2)
    np.testing.assert_allclose(spread * np.sum(gradient**2), variance, rtol=1e-10)


def test_sampled_moments_are_as_predicted() -> None:
    """4.5 standard errors; a variance wrong by 15 % is seen at 2048 guesses."""
    scores = fga.z_scores(fga.diagnose(SNAPSHOT, [RandomProjection(3)], n_guesses=2048))
    assert max(float(np.abs(array).max()) for array in scores.values()) < 4.5


def test_all_directions_are_the_gradient() -> None:
    assert gradient_projection.of_random(4, 9) == (1.0, 0.0)
    found = RandomProjection(9)(SNAPSHOT, 2, torch.Generator().manual_seed(0)).dense(SNAPSHOT)[1]
    torch.testing.assert_close(found, laws.exact_gradient(SNAPSHOT)[1].expand(2, -1))


def test_check_unbiased_says_biased() -> None:
    assert fga.check_unbiased(RandomProjection(), SNAPSHOT).outcome == "biased"


def test_no_direction_is_refused() -> None:
    assert "k must be" in (refusal(lambda: RandomProjection(0)) or "")
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        gradient_projection.of_random(3, 0)
