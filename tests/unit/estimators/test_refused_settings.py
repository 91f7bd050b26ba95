"""Settings that no estimator or no snapshot takes are refused in one sentence."""

from collections.abc import Callable

import pytest
import torch

import fganalysis as fga
from fganalysis.estimators import (
    ActivityPerturbation,
    Averaged,
    Estimator,
    FiniteDifference,
    LocalLoss,
    Minibatch,
    MultiTangent,
    NewtonSchulzUpstream,
    OrthogonalUpstream,
    PreconditionedUpstream,
    Subsampled,
    WeightPerturbation,
    label,
)
from fganalysis.training.datasets import Dataset
from tests.unit.estimators.chain import RELU, TANH


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
