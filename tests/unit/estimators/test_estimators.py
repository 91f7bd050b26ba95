"""The named laws of tests/laws.py, applied to the whole table of estimators."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import (
    ESTIMATORS,
    ActivityPerturbation,
    Averaged,
    Estimator,
    FiniteDifference,
    ForwardDirectFeedback,
    ForwardDirectFeedbackAdam,
    LocalLoss,
    Minibatch,
    MultiTangent,
    NewtonSchulzUpstream,
    OrthogonalUpstream,
    PreconditionedUpstream,
    Stateful,
    Subsampled,
    WeightPerturbation,
    label,
    settings,
)
from fganalysis.estimators.adam import AdamState
from fganalysis.estimators.guesses import ActivationEstimates, Estimates
from fganalysis.estimators.noise import GAUSSIAN, Noise, Sphere
from fganalysis.training.datasets import Dataset
from tests import law_claims, laws

RELU = laws.tiny_snapshot((3, 4, 3, 2), n_examples=3, activation=torch.nn.ReLU, bias=True)
FORWARD = laws.tiny_snapshot((3, 4, 3, 2), 3, activation=torch.nn.ReLU, bias=True, autodiff="forward")
TANH = laws.tiny_snapshot((3, 4, 3, 2), n_examples=3, activation=torch.nn.Tanh)
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
    tested = {type(row.estimator) for row in law_claims.TABLE}
    assert set(ESTIMATORS.values()) | {Averaged, Subsampled, ForwardDirectFeedbackAdam} <= tested
    known = {*CAUGHT, "biased", law_claims.PREDICTED}
    assert {claim for row in law_claims.TABLE for claim in row.claims} == known


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


def test_labels_name_what_differs_from_the_defaults() -> None:
    assert label("activity") == "activity"
    assert label(OrthogonalUpstream(k=25, exact=True)) == "orthogonal(k=25, exact=True)"


ZERO = torch.zeros(1)


@dataclass(frozen=True, eq=False)
class Holding:
    """A stranger's estimator with a field of any kind, given to it in two ways."""

    held: Any = None
    other: torch.Tensor = ZERO

    def __call__(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> Estimates:
        return ActivityPerturbation()(snapshot, n_guesses, generator)


def test_labels_tell_tensors_apart_by_their_content() -> None:
    ones = torch.ones(2, 2)
    distinct = [
        Holding((ones,)),
        Holding((2 * ones,)),
        Holding((ones.double(),)),
        Holding((ones.reshape(4),)),
        Holding((ones, ones)),
        Holding(((ones,), (ones,))),
        Holding([ones]),
        Holding(ones),
        Holding({"a": ones}),
        Holding({"b": ones}),
        Holding(AdamState.at([ones])),
        Holding(replace(AdamState.at([ones]), step=3)),
        Holding((ones, "a")),
        Holding((ones, None)),
        Holding((torch.zeros(0),)),
        Holding(other=ones),
        Holding(),
    ]
    names = [label(estimator) for estimator in distinct]
    assert len(set(names)) == len(names)
    assert names == [label(replace(estimator)) for estimator in distinct]
    assert re.fullmatch(r"Holding\(held=tuple-[0-9a-f]{8}\)", names[0])
    assert names[-1] == "Holding"
    assert label(Holding((torch.ones(2, 4)[:, ::2],))) == names[0], "memory layout is no content"
    assert label(Averaged(distinct[0], 2)) != label(Averaged(distinct[1], 2))
    assert settings(distinct[0])["held"] == names[0].removeprefix("Holding(held=").removesuffix(")")


def test_labels_of_what_holds_no_tensor_stay_as_they_were() -> None:
    assert label(Holding((1, 2))) == "Holding(held=tuple)"
    assert label(ActivityPerturbation(noise=Sphere())) == "activity(noise=Sphere)"
    assert label(ForwardDirectFeedback(rate=0.5)) == "forward_direct_feedback(rate=0.5)"


def test_states_that_differ_have_names_and_seeds_of_their_own() -> None:
    one, other = (
        ForwardDirectFeedback(rate=0.5, steps=1).advanced(TANH, torch.Generator().manual_seed(seed)) for seed in (0, 1)
    )
    tree = fga.diagnose(TANH, [one, other], n_guesses=4)
    assert len(set(tree["measured"]["estimator"].to_numpy())) == 2


@pytest.mark.parametrize("exact", [False, True])
def test_k_above_the_rank_of_every_jacobian_is_refused(exact: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(ValueError, match="k=4 is above the rank of every upstream Jacobian, at most 3 here"):
        OrthogonalUpstream(k=4, exact=exact)(TANH, 1, generator)
    # The second hidden tap has rank 2: k = 3 takes what it has there.
    assert len(OrthogonalUpstream(k=3, exact=exact)(TANH, 1, generator)) == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OrthogonalUpstream(k=0), "k must be a whole number of at least 1 or 'rank', got 0"),
        (lambda: OrthogonalUpstream(which="middle"), "which must be 'top' or 'bottom', got 'middle'"),
        (lambda: MultiTangent(k="3"), "k must be a whole number of at least 1, got '3'$"),
        (lambda: NewtonSchulzUpstream(k=True), "k must be a whole number of at least 1, got True$"),
        (lambda: Minibatch(size=2.5), "size must be a whole number of at least 1, got 2.5$"),
        (lambda: LocalLoss("mlp", width=0), "width must be a whole number of at least 1, got 0$"),
        (lambda: Averaged("activity", 2.5), "n_averaged must be a whole number of at least 1, got 2.5$"),
        (lambda: Subsampled("activity", 0), "size must be a whole number of at least 1, got 0$"),
        (lambda: Averaged("activty", 2), "unknown estimator 'activty'; known ones: backpropagation, "),
        (lambda: Averaged(Averaged, 2), "an estimator must be a key or an instance, got the class Averaged$"),
        (lambda: fga.sample(TANH, ActivityPerturbation), "a key or an instance, got the class ActivityPerturbation$"),
        (lambda: fga.sample(TANH, 3), "an estimator must be a key or an instance, got 3$"),
        (lambda: PreconditionedUpstream(sigma=0.0), "sigma must be a finite number above 0, got 0.0"),
        (lambda: ActivityPerturbation(slope="steep")(TANH, 1, torch.Generator()), "slope must be"),
        (lambda: WeightPerturbation(layers="none")(TANH, 1, torch.Generator()), "layers must be"),
    ],
)
def test_bad_settings_are_refused_in_one_sentence(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


MISFITS: list[tuple[Estimator, str]] = [
    (LocalLoss("cnn"), r"a cnn head needs at least 15 units, the block of tap '0' has 4$"),
    (MultiTangent(k=40, combine="orthogonal"), r"k must be at most the dimension, 39 weights, got 40$"),
    (OrthogonalUpstream(k=4), r"k=4 is above the rank of every upstream Jacobian, at most 3 here$"),
    (NewtonSchulzUpstream(k=4), r"k=4 is above the rank of every upstream Jacobian, at most 3 here$"),
    (FiniteDifference(epsilon=1e-30), r"epsilon=1e-30 underflows: no weight changes by it in torch.float64$"),
]


@pytest.mark.parametrize(("estimator", "message"), MISFITS, ids=[label(estimator) for estimator, _ in MISFITS])
def test_what_does_not_fit_is_refused_in_one_sentence_wherever_it_is_asked_for(
    estimator: Estimator, message: str
) -> None:
    data = Dataset(RELU.inputs, RELU.targets, RELU.inputs, RELU.targets)
    batch = (RELU.network, RELU.loss_fn, RELU.inputs, RELU.targets)
    entrances: list[Callable[[], object]] = [
        lambda: fga.train(RELU.network, data, estimator, epochs=1),
        lambda: fga.sample(RELU, estimator, n_guesses=8),
        lambda: fga.diagnose(RELU, [estimator], n_guesses=8),
        lambda: fga.estimate_gradient(*batch, estimator, torch.Generator()),
    ]
    for entrance in entrances:
        with pytest.raises(ValueError, match=message):
            entrance()


@pytest.mark.parametrize(("estimator", "message"), MISFITS[1:4])
def test_more_directions_than_there_are_have_no_prediction_either(estimator: Estimator, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fga.predict(RELU, estimator)
