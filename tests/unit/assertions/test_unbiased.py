"""Every estimator gets the right verdict, and mutants are called biased."""

from __future__ import annotations

import dataclasses

import pytest

import fganalysis as fga
from fganalysis.assertions.unbiased import Outcome, check_unbiased
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import ESTIMATORS, Estimator, label
from fganalysis.estimators.noise import Rademacher, Sphere
from studies.mutants.broken_activity import BrokenActivity
from studies.mutants.estimators import MUTANTS
from studies.mutants.mistakes import one_coordinate_off, scaled, spread
from tests import law_claims
from tests.unit.assertions.small_networks import RELU, SNAPSHOT

# Biased, but at the default ε by far less than the tolerance.
TOO_LITTLE_BIAS = {"finite_difference"}
SETTINGS: dict[str, Estimator] = {
    "orthogonal": fga.estimators.OrthogonalUpstream(k=2),
    "newton_schulz": fga.estimators.NewtonSchulzUpstream(k=2),
}
SEPARATE = fga.estimators.ActivityPerturbation(layers="separate")
VARIANTS: list[tuple[Estimator, Snapshot, Outcome]] = [
    (fga.estimators.WeightPerturbation(shared=False), RELU, "unbiased"),
    (fga.estimators.WeightPerturbation(noise=Sphere(), layers="separate"), RELU, "unbiased"),
    (fga.estimators.ActivityPerturbation(active_only=True), RELU, "unbiased"),
    (fga.estimators.ActivityPerturbation(noise=Rademacher(), shared=True), RELU, "unbiased"),
    (fga.estimators.ActivityPerturbation(shared=True, slope="batch"), RELU, "biased"),
    (fga.estimators.ActivityPerturbation(layers="separate", slope="batch"), RELU, "unbiased"),
    (fga.estimators.Upstream(normalise=True), RELU, "biased"),
    (fga.estimators.OrthogonalUpstream(k="rank"), RELU, "unbiased"),
    (fga.estimators.OrthogonalUpstream(k=2, which="bottom"), RELU, "biased"),
    # The last hidden layer's range has 3 of its 6 dimensions: the gradient lies in them.
    (fga.estimators.PreconditionedUpstream(layers="separate"), RELU, "unbiased"),
    (fga.estimators.ActivationMixing(layers="separate"), RELU, "biased"),
    (fga.estimators.MultiTangent(k=3), RELU, "unbiased"),
    (fga.estimators.MultiTangent(k=3, combine="orthogonal"), RELU, "biased"),
    (fga.estimators.FiniteDifference(epsilon=0.5), SNAPSHOT, "biased"),
    (fga.estimators.FiniteDifference(epsilon=0.5, central=False), SNAPSHOT, "biased"),
    (fga.estimators.Minibatch(size=3), RELU, "unbiased"),
    (fga.estimators.ForwardDirectFeedback(rate=0.1, steps=20), RELU, "biased"),
    (fga.estimators.ForwardDirectFeedbackAdam(rate=0.1, steps=20), RELU, "biased"),
    (fga.estimators.LocalLoss(target="local"), RELU, "biased"),
    (fga.estimators.LocalLoss(mode="redrawn"), RELU, "biased"),
    (fga.estimators.Averaged(SEPARATE, n_averaged=16), RELU, "unbiased"),
    (fga.estimators.Averaged(fga.estimators.Upstream(), n_averaged=4), RELU, "biased"),
    (fga.estimators.Subsampled(fga.estimators.Averaged(SEPARATE, n_averaged=16), size=2), RELU, "unbiased"),
    (fga.estimators.Subsampled(fga.estimators.Upstream(), size=2), RELU, "biased"),
]


def test_there_is_a_verdict_for_every_public_class() -> None:
    classes = {type(estimator) for estimator, _, _ in VARIANTS} | set(ESTIMATORS.values())
    public = [value for value in vars(fga.estimators).values() if isinstance(value, type)]
    estimators = [one for one in public if dataclasses.is_dataclass(one) and hasattr(one, "passes")]
    assert len(estimators) > 20 and [one for one in estimators if one not in classes] == []


@pytest.mark.slow
@pytest.mark.parametrize("key", ESTIMATORS)
def test_every_estimator_of_the_table_gets_the_verdict_that_the_readme_gives_it(key: str) -> None:
    outcome = "unbiased" if law_claims.says_unbiased(key) or key in TOO_LITTLE_BIAS else "biased"
    assert check_unbiased(SETTINGS.get(key, key), RELU, tolerance=0.15).outcome == outcome


@pytest.mark.slow
@pytest.mark.parametrize(("estimator", "snapshot", "outcome"), VARIANTS, ids=[label(row[0]) for row in VARIANTS])
def test_settings_that_decide_get_their_verdict(estimator: Estimator, snapshot: Snapshot, outcome: Outcome) -> None:
    assert check_unbiased(estimator, snapshot, tolerance=0.15).outcome == outcome


# How small a bias must be found, and the direction that the verdict names.
PLACES: dict[str, tuple[float, str]] = {
    "scaled by 1.01": (0.005, "along the gradient"),
    "scaled by .9": (0.05, "along the gradient"),
    "sign": (0.2, ""),
    "one coordinate off": (0.05, "in layer '4', example 3, unit 2"),
    "spread": (0.1, "coordinates"),  # Spread over all, or the few with the largest errors: both show it as early.
    "last example dropped": (0.1, "along the gradient of example 3"),
    "mask off by one": (0.1, ""),
    "layers swapped": (0.1, ""),
    "only downhill": (0.1, "along the gradient"),
    "slope clipped": (0.1, ""),
    "normalised": (0.1, ""),
    "mean over examples": (0.1, ""),
}


@pytest.mark.parametrize("name", PLACES)
def test_mutants_are_called_biased_and_the_place_is_named(name: str) -> None:
    """All mutants and all checks are in tests/studies/test_mutants.py; here is more than a handful of numbers."""
    tolerance, place = PLACES[name]
    verdict = check_unbiased(MUTANTS[name].broken, RELU, tolerance=tolerance, max_guesses=2**21)
    assert verdict.outcome == "biased"
    assert place in verdict.findings[0].direction
    lower, upper = verdict.findings[0].interval
    assert 0 < lower < verdict.findings[0].relative_bias * 1.2 and lower < upper


def test_the_reported_bias_and_its_interval_hold_the_truth() -> None:
    verdict = check_unbiased(BrokenActivity("spread", on_guesses=spread(0.3), layers="joint"), RELU, tolerance=0.1)
    found = {finding.space: finding for finding in verdict.findings}["activation"]
    assert found.interval[0] < 0.3 < found.interval[1]
    assert found.relative_bias == pytest.approx(0.3, abs=0.12)
    shrunk = check_unbiased(BrokenActivity("scaled", on_guesses=scaled(0.8), layers="joint"), RELU, tolerance=0.1)
    for finding in shrunk.findings:
        assert finding.shrinkage_interval[0] < 0.8 < finding.shrinkage_interval[1] < 1.0
    one = BrokenActivity("one", on_guesses=one_coordinate_off(0.3), layers="joint")
    first = check_unbiased(one, RELU, tolerance=0.1, space="activation").findings[0]
    assert (first.layer, first.unit) == ("4", 2)
