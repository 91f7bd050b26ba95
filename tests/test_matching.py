"""Right predictions match, wrong ones are named, and the rates are stated."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr

import fganalysis as fga
from fganalysis.estimates import WeightEstimates
from fganalysis.estimators import ActivityPerturbation, Estimator, OrthogonalUpstream, WeightPerturbation, label
from fganalysis.matching import assert_moments_match
from fganalysis.noise import Rademacher, Sphere
from fganalysis.snapshot import Snapshot
from tests.laws import tiny_snapshot

SNAPSHOT = tiny_snapshot((3, 4, 2), n_examples=3, activation=torch.nn.Softplus)
RIGHT: list[Estimator] = [
    fga.estimators.Backpropagation(),
    WeightPerturbation(),
    WeightPerturbation(noise=Sphere(), layers="separate"),
    ActivityPerturbation(noise=Rademacher(), shared=True, slope="batch"),
    fga.estimators.Upstream(),
    OrthogonalUpstream(k=1),
]


@pytest.mark.parametrize("estimator", RIGHT, ids=label)
def test_right_predictions_match(estimator: Estimator) -> None:
    match = assert_moments_match(estimator, fga.predict(SNAPSHOT, estimator), SNAPSHOT, n_guesses=2048)
    assert match.n_comparisons > 20
    for part in (label(estimator), f"{match.n_comparisons} comparisons", "with probability 0.001", "Seed 0, 2048"):
        assert part in str(match)


@pytest.mark.parametrize(
    ("measured", "predicted", "found"),
    [
        (WeightPerturbation(noise=Rademacher()), WeightPerturbation(), "variance"),  # the wrong fourth moment
        (ActivityPerturbation(shared=True), ActivityPerturbation(), "descent_probability"),  # noise shared in secret
        (ActivityPerturbation(), ActivityPerturbation(layers="separate"), "best_scale"),  # other layers' noise
        (OrthogonalUpstream(k=1), OrthogonalUpstream(k=2), "directional_bias"),  # off by one dimension
        (fga.estimators.Upstream(), fga.estimators.PreconditionedUpstream(), "variance"),
    ],
    ids=lambda value: value if isinstance(value, str) else label(value),
)
def test_wrong_predictions_are_named(measured: Estimator, predicted: Estimator, found: str) -> None:
    with pytest.raises(
        AssertionError, match=r"quantities do not match: .* predicted .*\(seed 4, 8192 guesses"
    ) as error:
        assert_moments_match(measured, fga.predict(SNAPSHOT, predicted), SNAPSHOT, n_guesses=8192, seed=4)
    assert found in str(error.value)


def test_a_guess_scaled_by_one_in_a_hundred_is_caught_where_the_noise_is_small() -> None:
    """Deterministic but for a tenth of noise, 4096 guesses find 1 %: a z of 4.2 standard errors is .7 %."""

    def nearly_exact(snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> WeightEstimates:
        noise = torch.randn(n_guesses, 1, generator=generator, dtype=torch.float64)
        coefficients = (1.01 + 0.1 * noise).expand(-1, len(snapshot.taps))
        return WeightEstimates(coefficients, tuple(g.expand(n_guesses, *g.shape) for g in snapshot.weight_gradients))

    right = xr.Dataset({"shrinkage": (("space", "layer"), [[1.0]])}, {"space": ["weight"], "layer": ["all"]})
    with pytest.raises(AssertionError, match=r"shrinkage at weight/all: 1\.0\d+ ± \S+, predicted 1 "):
        assert_moments_match(nearly_exact, right, SNAPSHOT, alpha=1e-3)
    match = assert_moments_match(nearly_exact, right * 1.01, SNAPSHOT, alpha=1e-3)
    assert match.detectable["shrinkage"] < 0.0071
    assert match.n_comparisons == 1


def test_detectable_discrepancies_are_found_every_other_time() -> None:
    """A prediction wrong by exactly what is called detectable fails between .3 and .7 of 40 seeds."""
    estimator, names = WeightPerturbation(), ["mse"]
    predicted = fga.predict(SNAPSHOT, estimator)[names].sel(space=["weight"], layer=["all"])
    match = assert_moments_match(estimator, predicted, SNAPSHOT, n_guesses=1024, alpha=0.05)
    wrong, failed = predicted * (1 + match.detectable["mse"]), []
    for seed in range(40):
        try:
            assert_moments_match(estimator, wrong, SNAPSHOT, n_guesses=1024, alpha=0.05, seed=seed)
            failed.append(False)
        except AssertionError:
            failed.append(True)
    assert 0.25 < np.mean(failed) < 0.75


def test_there_must_be_something_to_compare() -> None:
    with pytest.raises(ValueError, match="nothing to compare: predicted has no finite value"):
        assert_moments_match("weight", xr.Dataset(), SNAPSHOT, n_guesses=16)
    with pytest.raises(ValueError, match="alpha must be between 0 and 1, got 0"):
        assert_moments_match("weight", xr.Dataset(), SNAPSHOT, alpha=0)
