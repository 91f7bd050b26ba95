"""The named laws of tests/laws.py, applied to the whole table of estimators."""

from collections.abc import Callable

import pytest
import torch

from fganalysis.estimators import (
    ActivityPerturbation,
    Backpropagation,
    Estimator,
    OrthogonalUpstream,
    PreconditionedUpstream,
    Upstream,
    WeightPerturbation,
    label,
)
from fganalysis.snapshot import Snapshot
from tests import laws

RELU = laws.tiny_snapshot((3, 4, 3, 2), n_examples=3, activation=torch.nn.ReLU, bias=True)
TANH = laws.tiny_snapshot((3, 4, 3, 2), n_examples=3, activation=torch.nn.Tanh)
SMALL = laws.tiny_snapshot((2, 2, 2), n_examples=1, activation=torch.nn.Tanh)

UNBIASED: list[Estimator] = [
    Backpropagation(),
    WeightPerturbation(),
    WeightPerturbation(layers="separate"),
    WeightPerturbation(shared=False),
    ActivityPerturbation(),
    ActivityPerturbation(layers="separate"),
    ActivityPerturbation(shared=True),
    ActivityPerturbation(slope="batch"),
    ActivityPerturbation(active_only=True),
    OrthogonalUpstream(k="rank"),
    PreconditionedUpstream(),
]
BIASED: list[Estimator] = [Upstream(), OrthogonalUpstream(k=1), OrthogonalUpstream(k=1, which="bottom")]


@pytest.mark.parametrize("estimator", UNBIASED, ids=label)
def test_exactly_unbiased(estimator: Estimator) -> None:
    laws.assert_exactly_unbiased(estimator, SMALL)


@pytest.mark.parametrize("estimator", BIASED, ids=label)
def test_the_law_of_unbiasedness_catches_the_biased(estimator: Estimator) -> None:
    with pytest.raises(AssertionError):
        laws.assert_exactly_unbiased(estimator, SMALL)


@pytest.mark.parametrize("estimator", laws.TABLE, ids=label)
@pytest.mark.parametrize("snapshot", [RELU, TANH], ids=["relu", "tanh"])
def test_scaling_the_loss_scales_every_guess(estimator: Estimator, snapshot: Snapshot) -> None:
    laws.assert_equivariant_under_loss_scaling(estimator, snapshot)


@pytest.mark.parametrize("estimator", laws.TABLE, ids=label)
def test_guesses_follow_the_generator_alone(estimator: Estimator) -> None:
    laws.assert_seeded(estimator, RELU)


@pytest.mark.parametrize("estimator", laws.TABLE, ids=label)
def test_forward_mode_gives_the_same_guesses(estimator: Estimator) -> None:
    forward = laws.tiny_snapshot((3, 4, 3, 2), 3, activation=torch.nn.ReLU, bias=True, autodiff="forward")
    laws.assert_modes_agree(estimator, RELU, forward)


class ScaledLossIgnored:
    """A negative control: its guess does not follow the loss."""

    def __call__(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator):  # type: ignore[no-untyped-def]
        return ActivityPerturbation()(laws.tiny_snapshot((3, 4, 3, 2), n_examples=3), n_guesses, generator)


def test_the_scaling_law_catches_a_guess_that_ignores_the_loss() -> None:
    with pytest.raises(AssertionError):
        laws.assert_equivariant_under_loss_scaling(ScaledLossIgnored(), TANH)


def test_labels_name_what_differs_from_the_defaults() -> None:
    assert label("activity") == "activity"
    assert label(OrthogonalUpstream(k=25, exact=True)) == "orthogonal(k=25, exact=True)"


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
        (lambda: PreconditionedUpstream(sigma=0.0), "sigma must be positive, got 0.0"),
        (lambda: ActivityPerturbation(slope="steep")(TANH, 1, torch.Generator()), "slope must be"),
        (lambda: WeightPerturbation(layers="none")(TANH, 1, torch.Generator()), "layers must be"),
    ],
)
def test_bad_settings_are_refused_in_one_sentence(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
