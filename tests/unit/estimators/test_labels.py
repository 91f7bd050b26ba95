"""Labels of estimators name what differs from the defaults and tell tensors apart."""

import re
from dataclasses import dataclass, replace
from typing import Any

import torch

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import (
    ActivityPerturbation,
    Averaged,
    ForwardDirectFeedback,
    OrthogonalUpstream,
    label,
    settings,
)
from fganalysis.estimators.adam import AdamState
from fganalysis.estimators.guesses import Estimates
from fganalysis.estimators.noise import Sphere
from tests.unit.estimators.chain import TANH


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
