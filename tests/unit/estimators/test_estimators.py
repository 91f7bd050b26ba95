"""The named laws of tests/laws.py, applied to the whole table of estimators."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from fganalysis import estimators
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import (
    ESTIMATORS,
    ActivityPerturbation,
    Averaged,
    Estimator,
    ForwardDirectFeedback,
    ForwardDirectFeedbackAdam,
    Stateful,
    Subsampled,
    label,
)
from fganalysis.estimators.guesses import ActivationEstimates
from fganalysis.estimators.noise import GAUSSIAN, Noise
from tests import law_claims, laws
from tests.unit.estimators.chain import RELU, TANH

FORWARD = laws.tiny_snapshot((3, 4, 3, 2), 3, activation=torch.nn.ReLU, bias=True, autodiff="forward")

ONE_EXAMPLE = laws.tiny_snapshot((1, 2, 2, 2), n_examples=1)
TWO_EXAMPLES = laws.tiny_snapshot((1, 2, 2), n_examples=2)


@pytest.mark.parametrize("estimator", law_claims.claiming("unbiased"), ids=label)
def test_exactly_unbiased(estimator: Estimator) -> None:
    laws.assert_exactly_unbiased(estimator, TWO_EXAMPLES)


@pytest.mark.parametrize("estimator", law_claims.claiming("biased"), ids=label)
def test_the_law_of_unbiasedness_catches_the_biased(estimator: Estimator) -> None:
    with pytest.raises(AssertionError):
        laws.assert_exactly_unbiased(estimator, TWO_EXAMPLES)


@pytest.mark.parametrize("estimator", law_claims.claiming("scaling"), ids=label)
@pytest.mark.parametrize("snapshot", [RELU, TANH], ids=["relu", "tanh"])
def test_scaling_the_loss_scales_every_guess(estimator: Estimator, snapshot: Snapshot) -> None:
    laws.assert_equivariant_under_loss_scaling(estimator, snapshot)


@pytest.mark.parametrize("estimator", law_claims.claiming("units"), ids=label)
def test_permuting_units_permutes_them_in_a_guess(estimator: Estimator) -> None:
    laws.assert_equivariant_under_unit_permutation(estimator, ONE_EXAMPLE)


@pytest.mark.parametrize("estimator", law_claims.claiming("examples"), ids=label)
def test_permuting_examples_permutes_them_in_a_guess(estimator: Estimator) -> None:
    laws.assert_equivariant_under_example_permutation(estimator, TWO_EXAMPLES)


@pytest.mark.parametrize("estimator", law_claims.lacking("units"), ids=label)
def test_the_law_of_units_catches_what_belongs_to_units_in_their_order(estimator: Estimator) -> None:
    with pytest.raises((AssertionError, ValueError)):
        laws.assert_equivariant_under_unit_permutation(estimator, ONE_EXAMPLE)


@pytest.mark.parametrize("estimator", law_claims.claiming("seeded"), ids=label)
def test_guesses_follow_the_generator_alone(estimator: Estimator) -> None:
    laws.assert_seeded(estimator, RELU)


@pytest.mark.parametrize("estimator", law_claims.claiming("modes"), ids=label)
def test_forward_mode_gives_the_same_guesses(estimator: Estimator) -> None:
    laws.assert_modes_agree(estimator, RELU, FORWARD)


@pytest.mark.parametrize("estimator", law_claims.claiming("factored"), ids=label)
def test_factored_guesses_answer_as_dense_ones(estimator: Estimator) -> None:
    laws.assert_factored_as_dense(estimator, RELU)


@pytest.mark.parametrize("estimator", law_claims.claiming("decomposed"), ids=label)
def test_the_squared_error_is_squared_bias_plus_variance(estimator: Estimator) -> None:
    laws.assert_error_is_bias_and_variance(estimator, RELU)


@pytest.mark.parametrize("estimator", law_claims.claiming("state"), ids=label)
def test_a_state_put_away_goes_on(estimator: Stateful) -> None:
    laws.assert_state_goes_on(estimator, RELU)


def test_every_estimator_of_the_table_is_tested_and_every_law_is_claimed_knowingly() -> None:
    tested = {type(row.estimator) for row in law_claims.rows()}
    assert set(ESTIMATORS.values()) | {Averaged, Subsampled, ForwardDirectFeedbackAdam} <= tested
    known = {*CAUGHT, "biased", law_claims.PREDICTED}
    assert {claim for row in law_claims.rows() for claim in row.claims} == known


def test_a_class_of_the_table_is_public_and_claims_what_its_line_in_the_readme_says() -> None:
    for kind in ESTIMATORS.values():
        assert vars(estimators)[kind.__name__] is kind
    for key, claims in (("weight", law_claims.UNBIASED), ("upstream", law_claims.BIASED)):
        assert law_claims.by_default(key) == law_claims.Row(ESTIMATORS[key](), (*claims, law_claims.PREDICTED))
    assert law_claims.by_default("finite_difference").claims == law_claims.BIASED, "its moments are not known"
    with pytest.raises(AssertionError, match="must say in the column mean whether 'guesswork' is biased or unbiased"):
        law_claims.says_unbiased("guesswork")


def test_the_claims_of_a_test_file_are_read() -> None:
    assert ForwardDirectFeedbackAdam in {type(row.estimator) for row in law_claims.declared()}


@dataclass(frozen=True)
class Wrong:
    """A negative control: activity perturbation with its guesses, (guess, example, unit) a tap, changed."""

    change: Callable[[Snapshot, tuple[Tensor, ...]], tuple[Tensor, ...]]
    noise: Noise = GAUSSIAN

    def __call__(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> ActivationEstimates:
        right = ActivityPerturbation(noise=self.noise)(snapshot, n_guesses, generator)
        return ActivationEstimates(self.change(snapshot, right.guesses))


class Misreported(ActivationEstimates):
    """A negative control: guesses of which the factored answers are 1 % off."""

    def inner_products(self, snapshot: Snapshot) -> tuple[Tensor, Tensor]:
        inner, squares = super().inner_products(snapshot)
        return 1.01 * inner, squares


def misreported(snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> Misreported:
    return Misreported(ActivityPerturbation()(snapshot, n_guesses, generator).guesses)


def first_unit_louder(snapshot: Snapshot, guesses: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(guess * torch.linspace(1.01, 1.0, guess.shape[2]) for guess in guesses)


def first_example_louder(snapshot: Snapshot, guesses: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(guess * torch.linspace(1.01, 1.0, guess.shape[1])[:, None] for guess in guesses)


def louder_by_loss(snapshot: Snapshot, guesses: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(guess * snapshot.loss for guess in guesses)


def noise_of_its_own(snapshot: Snapshot, guesses: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(guess + torch.rand_like(guess) for guess in guesses)


def louder_in_forward_mode(snapshot: Snapshot, guesses: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(guess * (1.01 if snapshot.autodiff == "forward" else 1.0) for guess in guesses)


CAUGHT: dict[str, Callable[[], None]] = {
    "scaling": lambda: laws.assert_equivariant_under_loss_scaling(Wrong(louder_by_loss), TANH),
    "units": lambda: laws.assert_equivariant_under_unit_permutation(Wrong(first_unit_louder), ONE_EXAMPLE),
    "examples": lambda: laws.assert_equivariant_under_example_permutation(Wrong(first_example_louder), TWO_EXAMPLES),
    "seeded": lambda: laws.assert_seeded(Wrong(noise_of_its_own), RELU),
    "modes": lambda: laws.assert_modes_agree(Wrong(louder_in_forward_mode), RELU, FORWARD),
    "factored": lambda: laws.assert_factored_as_dense(misreported, RELU),
    "decomposed": lambda: laws.assert_error_is_bias_and_variance(misreported, RELU),
    "extends": lambda: laws.assert_longer_run_extends(Wrong(noise_of_its_own), RELU),
    "blocks": lambda: laws.assert_memory_and_workers_change_nothing(Wrong(noise_of_its_own), RELU),
    "unbiased": lambda: laws.assert_exactly_unbiased(Wrong(first_unit_louder), TWO_EXAMPLES),
    "state": lambda: laws.assert_state_goes_on(Forgetful(rate=0.1, steps=0), RELU),
}


@dataclass(frozen=True, eq=False)
class Forgetful(ForwardDirectFeedback):
    """A negative control: a state taken back is not the one that was put away."""

    def with_state(self, state: dict[str, Tensor]) -> ForwardDirectFeedback:
        return super().with_state({name: 1.01 * tensor for name, tensor in state.items()})


@pytest.mark.parametrize("law", [*CAUGHT])
def test_every_law_catches_an_estimator_that_breaks_it(law: str) -> None:
    with pytest.raises(AssertionError):
        CAUGHT[law]()
