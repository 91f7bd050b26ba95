"""What is predicted and what is NaN, estimator by estimator, so that a NaN is a decision; and sampling agrees with it.

A row says for cosine, descent probability and variance, in activation and in weight space, of what they are known:
"both" each layer and all together, "layer" each layer alone, "all" all together alone, or nothing, with the reason.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import (
    ActivationMixing,
    ActivityPerturbation,
    Averaged,
    Backpropagation,
    DirectFeedback,
    FiniteDifference,
    ForwardDirectFeedback,
    GuidedPerturbation,
    LocalLoss,
    LowRankPerturbation,
    Minibatch,
    MultiTangent,
    NewtonSchulzUpstream,
    OrthogonalUpstream,
    PreconditionedUpstream,
    ScaledPerturbation,
    SparsePerturbation,
    Subsampled,
    SubspacePerturbation,
    Upstream,
    WeightPerturbation,
    label,
)
from fganalysis.estimators.noise import Rademacher, Sphere

NO_GUESS = "the guess is made at the weights"
NORMS = "the directions of several examples meet in one norm"
LENGTHS = "the law is not Gaussian, so that a ratio of its quadratic forms has no such integral"
LAYERS_MEET = "layers with passes of their own meet in one norm: an integral over two numbers a layer"
PROJECTED = "a layer's part of a projection: an integral over three numbers"
EXAMPLES = "two examples' rescaled directions of one noise have no known product"
AVERAGE = "the cosine of a mean is that of no single guess"
MIXED = "the normalised direction has no Gaussian slope"
SPECTRA = "the norm is that of a vector whose covariance has several eigenvalues: no integral is written for it"
NOTHING = "no closed form"


@dataclass(frozen=True)
class Row:
    """Known parts by quantity, (activation, weight) each; ``because`` says why what is missing is."""

    estimator: Any
    cosine: tuple[str, str] = ("", "")
    descent: tuple[str, str] = ("", "")
    variance: tuple[str, str] = ("both", "both")
    because: tuple[str, ...] = field(default=())
    examples: int = 5


BOTH = ("both", "both")
AT_WEIGHTS = ("", "both")
TABLE = [
    Row(Backpropagation(), BOTH, BOTH),
    Row(DirectFeedback(), BOTH, BOTH),
    Row(LocalLoss(), BOTH, BOTH),
    Row(ForwardDirectFeedback(rate=0.3, steps=2), because=(NORMS,)),
    Row(ActivityPerturbation(), ("both", ""), BOTH, because=(NORMS,)),
    Row(ActivityPerturbation(layers="separate"), ("both", ""), BOTH, because=(NORMS,)),
    Row(ActivityPerturbation(slope="batch"), ("", ""), BOTH, because=(NORMS,)),
    Row(ActivityPerturbation(shared=True), ("", ""), BOTH, because=(NORMS,)),
    Row(ActivityPerturbation(noise=Rademacher()), because=(LENGTHS,)),
    Row(ActivityPerturbation(noise=Sphere()), ("", ""), ("all", ""), because=(LENGTHS,)),
    Row(ActivityPerturbation(noise=Sphere(), layers="separate"), ("", ""), ("both", ""), because=(LENGTHS, NORMS)),
    Row(PreconditionedUpstream(noise=Sphere(), layers="separate"), ("", ""), ("both", ""), because=(LENGTHS, NORMS)),
    # A batch of one example: its weight gradient has the cosine of its activations', whatever is shared.
    Row(ActivityPerturbation(), BOTH, BOTH, examples=1),
    Row(ActivityPerturbation(layers="separate"), BOTH, BOTH, examples=1),
    Row(ActivityPerturbation(shared=True, slope="batch"), BOTH, BOTH, examples=1),
    Row(Upstream(), BOTH, BOTH, examples=1),
    Row(OrthogonalUpstream(k=2, layers="separate"), BOTH, BOTH, examples=1),
    Row(
        Upstream(noise=Sphere(), layers="separate"),
        ("layer", "layer"),
        BOTH,
        because=(LENGTHS, LAYERS_MEET),
        examples=1,
    ),
    Row(Upstream(), ("both", ""), BOTH, because=(NORMS,)),
    Row(NewtonSchulzUpstream(k=2), ("both", ""), BOTH, because=(NORMS,)),
    Row(Upstream(normalise=True), because=(MIXED,)),
    Row(Upstream(normalise=True, noise=Sphere()), because=(MIXED,)),
    Row(Upstream(normalise=True, shared=True), variance=("both", ""), because=(MIXED, EXAMPLES)),
    Row(Upstream(normalise=True, shared=True, slope="batch"), variance=("", ""), because=(MIXED, EXAMPLES)),
    Row(Upstream(normalise=True, shared=True, slope="batch"), because=(MIXED,), examples=1),
    Row(Upstream(normalise=True, noise=Rademacher()), variance=("", ""), because=(MIXED, LENGTHS)),
    Row(Averaged(Upstream(normalise=True), 3), because=(AVERAGE,)),
    Row(Averaged(Upstream(normalise=True, shared=True), 3), variance=("both", ""), because=(AVERAGE, EXAMPLES)),
    Row(Subsampled(Upstream(normalise=True), 2), because=(MIXED,)),
    Row(Subsampled(Upstream(normalise=True, slope="batch"), 2), because=(MIXED,)),
    Row(Subsampled(Upstream(normalise=True, shared=True), 2), variance=("both", ""), because=(MIXED, EXAMPLES)),
    Row(Subsampled(ActivityPerturbation(), 5), ("both", ""), BOTH, because=(NORMS,)),
    Row(Averaged(ActivityPerturbation(), 1), ("both", ""), BOTH, because=(NORMS,)),
    Row(Averaged(ActivityPerturbation(), 3), because=(AVERAGE,)),
    Row(ActivationMixing(), because=(MIXED,)),
    Row(WeightPerturbation(), AT_WEIGHTS, AT_WEIGHTS, AT_WEIGHTS, (NO_GUESS,)),
    Row(WeightPerturbation(layers="separate"), AT_WEIGHTS, AT_WEIGHTS, AT_WEIGHTS, (NO_GUESS,)),
    Row(WeightPerturbation(shared=False), variance=AT_WEIGHTS, because=(NO_GUESS, NORMS)),
    Row(WeightPerturbation(noise=Rademacher()), variance=AT_WEIGHTS, because=(NO_GUESS, LENGTHS)),
    Row(WeightPerturbation(noise=Sphere()), ("", ""), ("", "all"), AT_WEIGHTS, (NO_GUESS, LENGTHS)),
    Row(
        WeightPerturbation(noise=Sphere(), layers="separate"),
        ("", "layer"),
        AT_WEIGHTS,
        AT_WEIGHTS,
        (NO_GUESS, LENGTHS, LAYERS_MEET),
    ),
    Row(MultiTangent(k=1), AT_WEIGHTS, AT_WEIGHTS, AT_WEIGHTS, (NO_GUESS,)),
    Row(MultiTangent(k=1, layers="separate"), AT_WEIGHTS, AT_WEIGHTS, AT_WEIGHTS, (NO_GUESS,)),
    Row(MultiTangent(k=4), AT_WEIGHTS, AT_WEIGHTS, AT_WEIGHTS, (NO_GUESS,)),
    Row(MultiTangent(k=4, layers="separate"), ("", "layer"), AT_WEIGHTS, AT_WEIGHTS, (NO_GUESS, LAYERS_MEET)),
    Row(MultiTangent(k=1, combine="orthogonal"), AT_WEIGHTS, AT_WEIGHTS, AT_WEIGHTS, (NO_GUESS,)),
    Row(MultiTangent(k=4, combine="orthogonal"), ("", "all"), ("", "all"), AT_WEIGHTS, (NO_GUESS, PROJECTED)),
    Row(
        MultiTangent(k=4, combine="orthogonal", layers="separate"),
        ("", "layer"),
        AT_WEIGHTS,
        AT_WEIGHTS,
        (NO_GUESS, LAYERS_MEET),
    ),
    Row(Averaged(WeightPerturbation(), 3), AT_WEIGHTS, AT_WEIGHTS, AT_WEIGHTS, (NO_GUESS,)),
    Row(Averaged(MultiTangent(k=2), 2), AT_WEIGHTS, AT_WEIGHTS, AT_WEIGHTS, (NO_GUESS,)),
    Row(Averaged(MultiTangent(k=2, combine="orthogonal"), 2), variance=AT_WEIGHTS, because=(NO_GUESS, AVERAGE)),
    Row(Subsampled(WeightPerturbation(), 2), variance=AT_WEIGHTS, because=(NO_GUESS, NORMS)),
    Row(Minibatch(2), BOTH, BOTH),
    Row(Minibatch(5), BOTH, BOTH),
    Row(Subsampled(Backpropagation(), 2), BOTH, BOTH),
    Row(LowRankPerturbation(rank=2), ("", ""), ("", "all"), AT_WEIGHTS, (NO_GUESS, LENGTHS)),
    Row(LowRankPerturbation(layers="separate"), ("", ""), AT_WEIGHTS, AT_WEIGHTS, (NO_GUESS, LENGTHS)),
    Row(SubspacePerturbation(), ("", ""), ("", "all"), AT_WEIGHTS, (NO_GUESS, SPECTRA)),
    Row(ScaledPerturbation(), ("", ""), ("", "all"), AT_WEIGHTS, (NO_GUESS, SPECTRA)),
    Row(GuidedPerturbation(), ("", ""), ("", "all"), AT_WEIGHTS, (NO_GUESS, SPECTRA)),
    Row(GuidedPerturbation(noise=Rademacher()), variance=AT_WEIGHTS, because=(NO_GUESS, LENGTHS)),
    Row(SparsePerturbation(keep=0.5), variance=AT_WEIGHTS, because=(NO_GUESS, LENGTHS)),
    Row(Subsampled(SparsePerturbation(keep=0.5), 2), variance=AT_WEIGHTS, because=(NO_GUESS, NORMS)),
    Row(FiniteDifference(), variance=("", ""), because=(NOTHING,)),
]
SIZES = (4, 6, 5, 3)


@functools.cache
def snapshot_of(examples: int) -> Snapshot:
    network = fga.networks.mlp(list(SIZES), bias=True, seed=3, activation=torch.nn.Tanh, dtype=torch.float64)
    generator = torch.Generator().manual_seed(4)
    inputs = torch.randn(examples, SIZES[0], generator=generator, dtype=torch.float64)
    targets = torch.randint(0, SIZES[-1], (examples,), generator=generator)
    return fga.capture(network, torch.nn.functional.cross_entropy, inputs, targets)


def pattern(values: np.ndarray) -> str:
    """Of (layer,), all together last."""
    known = ~np.isnan(values)
    assert known[:-1].all() or not known[:-1].any(), values
    return {(True, True): "both", (True, False): "layer", (False, True): "all", (False, False): ""}[
        (bool(known[0]), bool(known[-1]))
    ]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{label(row.estimator)}, {row.examples}")
def test_what_is_known_is_what_the_table_says(row: Row) -> None:
    predicted = fga.predict(snapshot_of(row.examples), row.estimator)
    for name, expected in (
        ("cosine", row.cosine),
        ("descent_probability", row.descent),
        ("variance", row.variance),
    ):
        found = tuple(pattern(predicted[name].sel(space=space).values) for space in ("activation", "weight"))
        assert found == expected, name
    missing = any(part != "both" for part in (*row.cosine, *row.descent, *row.variance))
    assert bool(row.because) == missing, "a NaN has a reason, and what is known has none"


@pytest.mark.slow
@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{label(row.estimator)}, {row.examples}")
def test_what_is_known_is_what_is_sampled(row: Row) -> None:
    """At most 4.5 standard errors at 2048 guesses, of cosine, descent and what follows from two moments."""
    snapshot = snapshot_of(row.examples)
    predicted, measured = fga.predict(snapshot, row.estimator), fga.sample(snapshot, row.estimator, 2048, seed=1)
    scores = []
    for name in ("cosine", "descent_probability", "shrinkage", "mse", "efficiency", "best_scale"):
        difference = np.abs(measured[name] - predicted[name]).values
        error = measured[f"{name}_se"].values
        # Exactly certain events have no spread; their error as given is that of a proportion of none in so many.
        certain = difference <= 1e-6 * np.maximum(1.0, np.abs(predicted[name].values))
        scores.append(np.where(certain, 0.0, difference / np.maximum(error, 1e-12)).ravel())
    found = np.concatenate(scores)
    assert np.nanmax(found, initial=0.0) < 4.5


def test_a_minibatch_of_many_has_no_cosine_but_descends() -> None:
    """Too many subsets to go through: in activation space descent is drawing any row with a gradient."""
    generator = torch.Generator().manual_seed(0)
    network = fga.networks.mlp([3, 4, 2], bias=False, seed=0, dtype=torch.float64)
    inputs = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    snapshot = fga.capture(network, torch.nn.functional.cross_entropy, inputs, torch.arange(40) % 2)
    predicted = fga.predict(snapshot, Minibatch(20))
    assert predicted["cosine"].isnull().all()
    np.testing.assert_array_equal(predicted["descent_probability"].sel(space="activation"), 1.0)
    assert predicted["descent_probability"].sel(space="weight").isnull().all()
