"""Right predictions match, wrong ones are named, and the rates are stated."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from scipy import special, stats

import fganalysis as fga
from fganalysis.assertions.moments import assert_moments_match
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import ActivityPerturbation, Estimator, OrthogonalUpstream, WeightPerturbation, label
from fganalysis.estimators.guesses import WeightEstimates
from fganalysis.estimators.noise import Rademacher, Sphere
from fganalysis.statistics.rare_tails import RawSample
from studies.calibration import cells
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
    for part in (label(estimator), f"{match.n_comparisons} comparisons", "probability at most 0.001", "Seed 0, 2048"):
        assert part in str(match)


@pytest.mark.parametrize(
    ("measured", "predicted", "found"),
    [
        (WeightPerturbation(noise=Rademacher()), WeightPerturbation(), "variance"),  # the wrong fourth moment
        (ActivityPerturbation(shared=True), ActivityPerturbation(), "descent_probability"),  # noise shared in secret
        (ActivityPerturbation(), ActivityPerturbation(layers="separate"), "best_scale"),  # other layers' noise
        (OrthogonalUpstream(k=1), OrthogonalUpstream(k=2), "best_scale"),  # off by one dimension
        (fga.estimators.Upstream(), fga.estimators.PreconditionedUpstream(), "squared_bias"),
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
    """Deterministic but for a tenth of noise, 4096 guesses find 1 %: the margin is .7 %."""

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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_right_prediction_does_not_fail_at_few_guesses() -> None:
    """At alpha = .001 none of 24 seeds may fail; with value ± z SE every sixth did."""
    snapshot = cells.network("activity")
    predicted = fga.predict(snapshot, "activity")
    for seed in range(24):
        assert_moments_match("activity", predicted, snapshot, n_guesses=256, alpha=1e-3, seed=seed)


def test_a_large_kurtosis_does_not_fail_a_right_prediction() -> None:
    """Sixth powers of normal numbers: value ± z SE takes them for too small in more than 3 % of samples, not .5 %."""
    generator = np.random.default_rng(0)
    values = generator.standard_normal((4000, 256)) ** 6
    zero = np.zeros(values.shape[:-1])
    sample = RawSample(zero[..., None] + 0 * values, values, zero[:, None, None], np.zeros(256, int), zero, zero, zero)
    tail = 0.005
    margin = sample.margin("mse", np.full(zero.shape, 15.0), tail)
    difference = margin.value - margin.prediction
    error = values.std(-1) / 16
    plain = np.mean(difference < special.ndtri(tail) * error)
    assert plain > 0.03
    assert np.mean(-difference > margin.below) <= tail + 3 * (tail / 4000) ** 0.5
    assert np.mean(difference > margin.above) <= tail + 3 * (tail / 4000) ** 0.5


def test_the_margin_of_a_proportion_is_binomial() -> None:
    p = np.where(np.arange(400) < 100, 1.0, -1.0)
    zero = np.zeros(())
    sample = RawSample(p, p**2, np.zeros((4, 4)), np.zeros(400, int), zero + 1, zero, zero)
    margin = sample.margin("descent_probability", zero + 0.25, 1e-5)
    np.testing.assert_allclose(stats.binom.sf(99, 400, margin.value - margin.above), 1e-5)
    np.testing.assert_allclose(stats.binom.cdf(100, 400, margin.value + margin.below), 1e-5)


def test_too_few_guesses_are_refused() -> None:
    with pytest.raises(ValueError, match="n_guesses must be a whole number of at least 256, got 255"):
        assert_moments_match("weight", fga.predict(SNAPSHOT, "weight"), SNAPSHOT, n_guesses=255)


def test_what_cannot_be_compared_is_refused() -> None:
    right = fga.predict(SNAPSHOT, "weight")
    wrong = {
        "predicted has the layer 'first'; known ones: 0, 2, all": right.assign_coords(layer=["first", "2", "all"]),
        "predicted has the space 'weights'; known": right.assign_coords(space=["activation", "weights"]),
        "predicted has the unknown quantity 'varience'; known ones: bias, ": right.rename(variance="varience"),
        "predicted 'variance' is infinite somewhere": right.assign(variance=right["variance"] * np.inf),
        "predicted 'mse' must have the dimensions space and layer": xr.Dataset({"mse": 3.0}),
        "predicted 'bias' must have the dimensions space and layer": right.drop_vars("layer"),
        "predicted 'squared_bias' must have the dimensions": right[["squared_bias"]].expand_dims("step"),
    }
    for message, predicted in wrong.items():
        with pytest.raises(ValueError, match=message):
            assert_moments_match("weight", predicted, SNAPSHOT)
    nothing_of_it: Any = {"variance": 3.0}
    with pytest.raises(ValueError, match=r"predicted must be an xarray.Dataset, such as fga.predict returns, got"):
        assert_moments_match("weight", nothing_of_it, SNAPSHOT)


def test_there_must_be_something_to_compare() -> None:
    with pytest.raises(ValueError, match="nothing to compare: predicted has no finite value"):
        assert_moments_match("weight", fga.predict(SNAPSHOT, "weight")[["wang2025_bias"]], SNAPSHOT)
    with pytest.raises(ValueError, match="alpha must be a finite number above 0 and below 1, got 0"):
        assert_moments_match("weight", xr.Dataset(), SNAPSHOT, alpha=0)
