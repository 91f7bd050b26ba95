"""Which estimators declare that they see the network through slopes along directions of the weights alone."""

from dataclasses import dataclass
from typing import Any

import pytest

from fganalysis.estimators import (
    ESTIMATORS,
    ActivityPerturbation,
    Averaged,
    FiniteDifference,
    MultiTangent,
    Subsampled,
    WeightPerturbation,
)
from fganalysis.estimators.guesses import WeightEstimates
from fganalysis.estimators.noise import GAUSSIAN, ON_SPHERE, RADEMACHER
from fganalysis.estimators.tangents_of_weights import Tangents, tangents_of


@pytest.mark.parametrize(
    ("estimator", "declared"),
    [
        (WeightPerturbation(), Tangents(GAUSSIAN, "joint")),
        (WeightPerturbation(ON_SPHERE, layers="separate"), Tangents(ON_SPHERE, "separate")),
        (WeightPerturbation(shared=False), None),
        (MultiTangent(3), Tangents(GAUSSIAN, "joint", 3)),
        (MultiTangent(3, "orthogonal", RADEMACHER), Tangents(RADEMACHER, "joint", 3, "orthogonal")),
        (FiniteDifference(), Tangents(GAUSSIAN, "joint", slope="central")),
        (FiniteDifference(central=False), Tangents(GAUSSIAN, "joint", slope="one-sided")),
        (Averaged("weight", 5), Tangents(GAUSSIAN, "joint", n_averaged=5)),
        (Averaged(Averaged(MultiTangent(2), 3), 5), Tangents(GAUSSIAN, "joint", 2, n_averaged=15)),
        (Averaged("activity", 5), None),
        (Subsampled("weight", 2), None),
        (ActivityPerturbation(), None),
    ],
)
def test_what_estimators_declare(estimator: Any, declared: Tangents | None) -> None:
    assert tangents_of(estimator) == declared


def test_three_registered_classes_declare() -> None:
    assert {key for key, cls in ESTIMATORS.items() if tangents_of(cls()) is not None} == {
        "weight",
        "multi_tangent",
        "finite_difference",
    }


def test_functions_declare_nothing() -> None:
    def guess(snapshot: object, n_guesses: int, generator: object) -> None:
        return None

    assert tangents_of(guess) is None


class OtherDefaults(WeightPerturbation):
    """Keeps the guess of its parent."""

    stable_name = "other_defaults"


@dataclass(frozen=True)
class OnSphere(WeightPerturbation):
    noise: Any = ON_SPHERE

    def __post_init__(self) -> None:
        super().__post_init__()


class Doubled(WeightPerturbation):
    def __call__(self, snapshot: Any, n_guesses: int, generator: Any) -> Any:
        guesses = super().__call__(snapshot, n_guesses, generator)
        return WeightEstimates(2 * guesses.coefficients, guesses.directions)


class DoubledAgain(Doubled):
    """Inherits the other guess."""


class Redrawn(FiniteDifference):
    def draw(self, snapshot: Any, n_guesses: int, generator: Any) -> Any:
        return tuple(2 * part for part in super().draw(snapshot, n_guesses, generator))


class ManyTangents(Doubled):
    def tangents(self) -> Tangents:
        return Tangents(self.noise, self.layers, 7)


class Fewer(ManyTangents):
    """Inherits the declaration of a class that overrides both."""


def test_a_subclass_with_other_settings_keeps_the_declaration() -> None:
    assert tangents_of(OtherDefaults()) == tangents_of(WeightPerturbation())
    assert tangents_of(OnSphere()) == Tangents(ON_SPHERE, "joint")


@pytest.mark.parametrize("estimator", [Doubled(), DoubledAgain(), Redrawn(), Averaged(Doubled(), 2)])
def test_a_subclass_with_another_guess_declares_nothing(estimator: Any) -> None:
    assert tangents_of(estimator) is None


def test_a_subclass_may_declare_its_own_guess() -> None:
    assert tangents_of(ManyTangents()) == tangents_of(Fewer()) == Tangents(GAUSSIAN, "joint", 7)
