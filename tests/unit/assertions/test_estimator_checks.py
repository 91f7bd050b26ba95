"""`parametrize_with_checks`: the registry passes but for what is expected, and each check catches what it is for."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pytest
import torch

import fganalysis as fga
from fganalysis.assertions.estimator_checks import CHECKS, parametrize_with_checks
from fganalysis.estimators import WeightPerturbation
from fganalysis.estimators.guesses import WeightEstimates
from tests.law_claims import says_unbiased

# The laws of tests/laws.py hold the whole registry to more than these checks.
SOME = ["backpropagation", "weight", "upstream", "forward_direct_feedback", "minibatch"]
BIASED = {key: {"the_mean_is_the_gradient": "biased, as the README says"} for key in SOME if not says_unbiased(key)}


@parametrize_with_checks(SOME, expected_failures=BIASED)
def test_estimators_of_the_registry_pass(estimator: Any, check: Any) -> None:
    check(estimator)


@dataclass(frozen=True)
class Broken:
    """Weight perturbation with one fault."""

    fault: str

    def __call__(self, snapshot: Any, n_guesses: int, generator: torch.Generator) -> WeightEstimates:
        sound = WeightPerturbation()
        if self.fault == "a_seed_gives_the_same_guesses_again":
            generator = torch.Generator().manual_seed(random.SystemRandom().getrandbits(32))
        if self.fault == "other_generators_are_left_alone":
            np.random.rand()
        if self.fault == "the_network_is_left_as_it_is":
            snapshot.network.train(not snapshot.network.training)
        if self.fault == "a_convolution_is_guessed_or_refused_in_a_sentence" and len(snapshot.weights) > 2:
            raise ValueError("expected a matrix\nbut got something else")
        guesses = sound(snapshot, n_guesses + (self.fault == "guesses_are_as_many_as_asked_and_finite"), generator)
        factor = torch.ones_like(guesses.coefficients)
        if self.fault == "the_mean_is_the_gradient":
            factor = factor * 3
        if self.fault == "the_loss_scales_the_guesses":
            factor = 1 / guesses.coefficients.abs()
        if self.fault == "forward_mode_gives_the_same_guesses" and snapshot.autodiff == "forward":
            factor = factor * 2
        return WeightEstimates(guesses.coefficients * factor, guesses.directions)

    def passes(self, snapshot: Any, n_guesses: int = 1) -> Any:
        return fga.Passes() if self.fault == "a_step_states_its_passes" else fga.Passes(forward=1)


@pytest.mark.parametrize("name", CHECKS)
def test_a_check_catches_its_fault(name: str) -> None:
    broken = cast(Any, Broken(name))
    if name == "the_closed_form_holds":  # It has one only if it is registered: see the test below.
        return
    with pytest.raises((AssertionError, ValueError)):
        CHECKS[name](broken)


def test_a_wrong_closed_form_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    from fganalysis.assertions import estimator_checks

    monkeypatch.setattr(estimator_checks, "predict", lambda snapshot, _: fga.predict(snapshot, "activity"))
    with pytest.raises((AssertionError, ValueError)):
        CHECKS["the_closed_form_holds"]("upstream")


@pytest.mark.parametrize(
    ("estimators", "failures", "words"),
    [
        ([], None, "estimators must be one or several with different labels"),
        (["weight", "weight"], None, "estimators must be one or several with different labels"),
        (["weight"], {"upstream": {}}, "the estimator 'upstream', which is not among those"),
        (["weight"], {"weight": {"no_such_check": "why"}}, "the check 'no_such_check', which is not among those"),
    ],
)
def test_what_is_refused(estimators: Any, failures: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        fga.testing.parametrize_with_checks(estimators, expected_failures=failures)
