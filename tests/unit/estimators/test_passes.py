"""What every estimator states that a step costs, against the step of its paper, run and counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

import fganalysis as fga
from fganalysis import Passes
from fganalysis.estimators import (
    ESTIMATORS,
    ActivationMixing,
    ActivityPerturbation,
    Averaged,
    DirectFeedback,
    FeedbackAlignment,
    FiniteDifference,
    ForwardDirectFeedback,
    GradientProjection,
    GuidedPerturbation,
    InputSketch,
    LocalLoss,
    LowRankPerturbation,
    Minibatch,
    MultiTangent,
    NewtonSchulzUpstream,
    OrthogonalUpstream,
    PreconditionedUpstream,
    RandomProjection,
    RowSampling,
    RowSketch,
    ScaledPerturbation,
    SparsePerturbation,
    Stateful,
    Subsampled,
    SubspacePerturbation,
    Upstream,
    WeightPerturbation,
    from_function,
    passes_of,
    resolve,
)
from tests.refusals import refusal
from tests.unit.estimators import training_steps as steps

Step = Callable[[steps.Counted, Any], steps.Guess]
SIZES = (2, 24, 24, 24, 24, 2)  # Nearly all weights are in layers whose every product a pass takes.
EXAMPLES = 16

REFERENCES: list[tuple[Any, Step]] = [
    (resolve("backpropagation"), steps.backpropagation),
    (WeightPerturbation(), steps.weight),
    (WeightPerturbation(layers="separate"), steps.weight),
    (WeightPerturbation(shared=False), steps.weight),
    (ActivityPerturbation(), steps.activity),
    (ActivityPerturbation(layers="separate"), steps.activity),
    (ActivityPerturbation(slope="batch"), steps.activity),
    (Upstream(), steps.upstream),
    (OrthogonalUpstream(k=2, exact=True), steps.decomposed),
    (NewtonSchulzUpstream(k=2), steps.decomposed),
    (PreconditionedUpstream(exact=True), steps.decomposed),
    (ActivationMixing(), steps.activation_mixing),
    (ActivationMixing(layers="separate"), steps.activation_mixing),
    (MultiTangent(k=3), steps.multi_tangent),
    (MultiTangent(k=3, combine="orthogonal"), steps.multi_tangent),
    (MultiTangent(k=2, layers="separate"), steps.multi_tangent),
    (LowRankPerturbation(rank=2), steps.factored),
    (LowRankPerturbation(layers="separate"), steps.factored),
    (SubspacePerturbation(rescale=True), steps.factored),
    (ScaledPerturbation(), steps.structured),
    (GuidedPerturbation(), steps.structured),
    (SparsePerturbation(), steps.sparse),
    (FiniteDifference(), steps.finite_difference),
    (FiniteDifference(central=False), steps.finite_difference),
    (FeedbackAlignment(), steps.feedback_alignment),
    (DirectFeedback(), steps.direct_feedback),
    (ForwardDirectFeedback(rate=0.5), steps.forward_direct_feedback),
    (fga.estimators.ForwardDirectFeedbackAdam(rate=0.1), steps.forward_direct_feedback),
    (RowSketch(probes=3), steps.row_sketch),
    (RowSketch(probes=3, within="example"), steps.row_sketch),
    (InputSketch(columns=3), steps.input_sketch),
    (RowSampling(count=5), steps.row_sampling),
    (RowSampling(count=5, by="uniform"), steps.row_sampling),
    (GradientProjection(k=2), steps.projection),
    (RandomProjection(k=2), steps.projection),
    (LocalLoss(), steps.local_loss),
    (LocalLoss(target="local"), steps.local_loss),
    (LocalLoss(space="weight"), steps.local_loss),
    (LocalLoss(blocks=("3", "7")), steps.local_loss),
]


def captured(sizes: tuple[int, ...] = SIZES) -> fga.Snapshot:
    network = fga.networks.mlp(sizes, bias=False, seed=0, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(EXAMPLES, sizes[0], generator=generator, dtype=torch.float64)
    return fga.capture(network, torch.nn.functional.cross_entropy, inputs, torch.arange(EXAMPLES) % sizes[-1])


SNAPSHOT = captured()


@pytest.mark.parametrize(("estimator", "reference"), REFERENCES, ids=[fga.estimators.label(e) for e, _ in REFERENCES])
def test_the_statement_is_what_the_step_of_the_paper_takes(estimator: Any, reference: Step) -> None:
    """The step gives the guess of the estimator, and its passes and multiply-adds are those stated."""
    if isinstance(estimator, Stateful):
        learning = torch.Generator().manual_seed(2)
        estimator = estimator.initialised(SNAPSHOT).advanced(SNAPSHOT, learning)
    step = steps.Counted(SNAPSHOT, torch.Generator().manual_seed(3))
    with step.counting():
        found = reference(step, estimator)
    generator = torch.Generator().manual_seed(3)
    expected = estimator(SNAPSHOT, 1, generator).weight_gradients(SNAPSHOT)
    for ours, its in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, its, rtol=1e-6, atol=1e-9)
    if isinstance(estimator, ForwardDirectFeedback):
        after = estimator.advanced(SNAPSHOT, generator)
        for b, learned, before in zip(after.feedback, step.learned, estimator.feedback, strict=True):
            torch.testing.assert_close(b[0], 0.5 * before[0] + 0.5 * learned)
    stated = passes_of(estimator, SNAPSHOT)
    assert stated is not None
    in_part = isinstance(estimator, LocalLoss | RowSketch | InputSketch | RowSampling)
    step.check(stated, in_part=getattr(estimator, "layers", "") == "separate" or in_part)


def test_every_estimator_of_the_table_states_its_passes_and_is_run_above() -> None:
    unstated = [key for key in ESTIMATORS if passes_of(resolve(key), SNAPSHOT) is None]
    assert unstated == []
    run = {type(estimator) for estimator, _ in REFERENCES} | {Minibatch}
    assert set(ESTIMATORS.values()) <= run


def test_guesses_share_the_forward_pass_where_they_can() -> None:
    """Of three guesses; a mean of guesses at the activations becomes weight gradients once."""

    def stated(estimator: Any) -> tuple[float, ...]:
        found = passes_of(estimator, SNAPSHOT, 3)
        assert found is not None
        assert found == passes_of(Averaged(estimator, 3), SNAPSHOT)
        return found.forward, found.tangent, found.backward, found.products

    assert stated("backpropagation") == stated("feedback_alignment") == (1, 0, 1, 0)
    assert stated("weight") == stated(MultiTangent(k=1)) == (1, 3, 0, 3)
    assert stated(MultiTangent(k=2)) == (1, 6, 0, 6)
    assert stated("activity") == stated("orthogonal") == (1, 3, 0, 1)
    assert stated("upstream") == (1, 3, 0, 4)
    assert stated("finite_difference") == (6, 0, 0, 0)
    assert stated(FiniteDifference(central=False)) == (4, 0, 0, 0)
    assert stated("forward_direct_feedback") == stated(ForwardDirectFeedback(rate=0.1)) == (1, 1, 0, 1)
    assert stated(ForwardDirectFeedback(steps=2)) == (1, 7, 0, 1)
    assert stated(LocalLoss(mode="redrawn")) == (1, 12, 0, 1)


def test_parts_of_the_batch_count_as_parts_of_passes() -> None:
    quarter = torch.arange(EXAMPLES // 4)
    minibatch = Minibatch(EXAMPLES // 4, rows=_First())
    step = steps.Counted(SNAPSHOT, torch.Generator(), quarter)
    with step.counting():
        found = steps.backpropagation(step, minibatch)
    for ours, its in zip(found, minibatch(SNAPSHOT, 1, torch.Generator()).weight_gradients(SNAPSHOT), strict=True):
        torch.testing.assert_close(ours, its)
    stated = passes_of(minibatch, SNAPSHOT)
    assert stated is not None
    step.check(stated, in_part=False)
    assert passes_of(minibatch, SNAPSHOT, 3) == stated.times(3)

    subsampled = Subsampled("activity", EXAMPLES // 4, rows=_First())
    step = steps.Counted(SNAPSHOT, torch.Generator().manual_seed(3), quarter)
    with step.counting():
        found = steps.activity(step, subsampled.estimator)
    expected = subsampled(SNAPSHOT, 1, torch.Generator().manual_seed(3)).weight_gradients(SNAPSHOT)
    for ours, its in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, its)
    stated = passes_of(subsampled, SNAPSHOT)
    assert stated is not None
    step.check(stated, in_part=False)
    inside = Subsampled(minibatch, EXAMPLES // 2)
    assert passes_of(inside, SNAPSHOT) == Passes(forward=0.25, backward=0.25)
    assert passes_of(Subsampled("forward_direct_feedback", 4), SNAPSHOT) is None
    message = refusal(lambda: passes_of(Minibatch(size=100), SNAPSHOT))
    assert message == "size must be at most the batch's 16 examples, got 100"


@dataclass(frozen=True)
class _First:
    """The first rows, always."""

    def draw(self, n_guesses: int, n_examples: int, size: int, generator: torch.Generator) -> torch.Tensor:
        return torch.arange(size).expand(n_guesses, -1)


def test_a_wrong_statement_is_caught_by_the_count() -> None:
    step = steps.Counted(SNAPSHOT, torch.Generator().manual_seed(3))
    with step.counting():
        steps.activity(step, ActivityPerturbation())
    right = passes_of("activity", SNAPSHOT)
    assert right is not None
    step.check(right, in_part=False)
    for wrong in (replace(right, tangent=2), replace(right, products=0), replace(right, forward=2), Passes(1, 0, 1)):
        with pytest.raises(AssertionError):
            step.check(wrong, in_part=False)


def test_a_subclass_states_what_its_class_does_unless_it_guesses_in_another_way() -> None:
    @dataclass(frozen=True)
    class Renamed(ActivityPerturbation):
        pass

    @dataclass(frozen=True)
    class Other(ActivityPerturbation):
        def __call__(self, *arguments: Any) -> Any:
            return super().__call__(*arguments)

    @dataclass(frozen=True)
    class Stating(Other):
        def passes(self, snapshot: fga.Snapshot, n_guesses: int = 1) -> Any:
            return Passes(forward=7) if n_guesses == 1 else 7

    assert passes_of(Renamed(layers="separate"), SNAPSHOT) == Passes(1, 5, products=1)
    assert passes_of(Other(), SNAPSHOT) is passes_of(Averaged(Other(), 2), SNAPSHOT) is None
    assert passes_of(Stating(), SNAPSHOT) == Passes(forward=7)
    message = refusal(lambda: passes_of(Stating(), SNAPSHOT, 2))
    assert message == "what passes() returns must be a fganalysis.Passes or None, got 7"
    assert (
        refusal(lambda: passes_of("activity", SNAPSHOT, 0)) == "n_guesses must be a whole number of at least 1, got 0"
    )


def test_a_function_states_nothing() -> None:
    def mine(network: Any, loss_fn: Any, inputs: Any, targets: Any, generator: Any) -> dict[str, torch.Tensor]:
        return {}

    assert passes_of(from_function(mine), SNAPSHOT) is None
    assert passes_of(Subsampled(from_function(mine), 4), SNAPSHOT) is None


def test_weights_add_up_to_three_forward_passes_of_backpropagation() -> None:
    assert Passes(forward=1, backward=1).in_forward_passes() == 3
    assert Passes(1, 2, 3, 4, ("a decomposition",)).in_forward_passes() == 1 + 2 + 6 + 4
    assert Passes(1, 2, 3, 4, ("it",)).times(0.5) == Passes(0.5, 1, 1.5, 2, ("it",))
