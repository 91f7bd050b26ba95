"""The law of total variance by enumeration of the rows and the noise."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import (
    ActivationMixing,
    ActivityPerturbation,
    Backpropagation,
    DirectFeedback,
    Estimator,
    ForwardDirectFeedback,
    LocalLoss,
    Minibatch,
    MultiTangent,
    Subsampled,
    Upstream,
    WeightPerturbation,
)
from fganalysis.estimators.around.subsampled import restricted
from fganalysis.testing import Enumeration, exact_moments, signs, three_points
from tests import laws
from tests.regression import regression_snapshot
from tests.unit.estimators.split_variance import SIZE, enumerate_split, predicted
from theory import minibatch, weight_perturbation
from theory.linear_guess import Layers


def furthest(snapshot: Snapshot, estimator: Any, law: Callable[[], Enumeration]) -> float:
    """The largest error of a predicted part of the variance over the variance, in either space and any layer."""
    fourth = law().fourth_moment
    whole, by_example = predicted(snapshot, estimator, fourth), predicted(snapshot, estimator, fourth, "example")
    errors = []
    for space in (0, 1):
        split = enumerate_split(estimator, snapshot, law, space)
        for index, (one, alone) in enumerate(zip(whole, by_example, strict=True)):
            kernel = snapshot.taps[index].kernel.numpy() if space else None
            found = minibatch.parts(one, alone, SIZE, kernel)
            # Against their sum: one unit's guess with signs has no variance within.
            total = split.within[index] + split.between[index]
            errors += [(found.within - split.within[index]) / total, (found.between - split.between[index]) / total]
    return float(np.abs(errors).max())


LINEAR: list[Estimator] = [
    ActivityPerturbation(),
    ActivityPerturbation(layers="separate"),
    ActivityPerturbation(slope="batch"),
    ActivityPerturbation(slope="batch", layers="separate"),
    ActivityPerturbation(shared=True),
    ActivityPerturbation(shared=True, layers="separate"),
    Upstream(),
    Upstream(slope="batch"),
    Upstream(shared=True),
]


@pytest.mark.parametrize("law", [signs, three_points])
@pytest.mark.parametrize("estimator", LINEAR, ids=fga.estimators.label)
def test_both_parts_of_the_variance_are_exact(estimator: Estimator, law: Callable[[], Enumeration]) -> None:
    snapshot = regression_snapshot((2, 2, 1), n_examples=4, bias=True)
    assert furthest(snapshot, estimator, law) < 1e-10


def started(estimator: Any, snapshot: Snapshot) -> Any:
    """FDFA with a state that is not zero; anything else as it is."""
    if not isinstance(estimator, ForwardDirectFeedback):
        return estimator
    return estimator.advanced(snapshot, torch.Generator().manual_seed(0))


def furthest_predicted(
    estimator: Any, snapshot: Snapshot, law: Callable[[], Enumeration], claimed: Any = None
) -> float:
    """The same for what `fga.predict_variance_parts` and `fga.predict` say, over every space and layer with a guess."""
    stated = started(claimed or estimator, snapshot)
    stated = Subsampled(replace(stated, noise=law()) if hasattr(stated, "noise") else stated, SIZE)
    found, whole = fga.predict_variance_parts(stated, snapshot), fga.predict(snapshot, stated)
    errors = []
    for space in (1,) if isinstance(estimator, WeightPerturbation | MultiTangent) else (0, 1):
        split = enumerate_split(started(estimator, snapshot), snapshot, law, space)
        parts = [np.append(values, sum(values)) for values in (split.within, split.between)]
        total = parts[0] + parts[1]
        errors += [(found.within.value[space] - parts[0]) / total, (found.between.value[space] - parts[1]) / total]
        errors.append((whole["variance"].values[space] - total) / total)
        assert not found.within.se[space].any() and not found.between.se[space].any()
    return float(np.abs(errors).max())


SPLIT_EXACTLY: list[Any] = [
    Backpropagation(),
    DirectFeedback(),
    ForwardDirectFeedback(rate=0.5),
    ActivityPerturbation(),
    Upstream(slope="batch"),
    WeightPerturbation(),
    WeightPerturbation(layers="separate"),
    MultiTangent(k=1, layers="separate"),
]


@pytest.mark.parametrize("estimator", SPLIT_EXACTLY, ids=fga.estimators.label)
@pytest.mark.parametrize("law", [signs, three_points])
def test_the_predicted_split_is_exact(estimator: Any, law: Callable[[], Enumeration]) -> None:
    assert furthest_predicted(estimator, regression_snapshot((2, 2, 1), n_examples=4, bias=False), law) < 1e-10


@pytest.mark.parametrize("estimator", [WeightPerturbation(shared=False), MultiTangent(k=2)], ids=fga.estimators.label)
def test_the_predicted_split_of_many_directions_is_exact(estimator: Any) -> None:
    assert furthest_predicted(estimator, regression_snapshot((1, 2, 1), n_examples=4), signs) < 1e-10


def test_the_predicted_split_of_a_local_loss_is_exact() -> None:
    snapshot = laws.tiny_snapshot((2, 3, 2), n_examples=4)
    assert furthest_predicted(LocalLoss(), snapshot, signs) < 1e-10
    assert furthest_predicted(LocalLoss(target="local"), snapshot, signs) < 1e-10


@pytest.mark.parametrize(
    ("being", "claimed"),
    [
        (WeightPerturbation(), WeightPerturbation(layers="separate")),
        (WeightPerturbation(), MultiTangent(k=2)),
        (DirectFeedback(), DirectFeedback(seed=1)),
    ],
    ids=fga.estimators.label,
)
def test_the_split_of_another_estimator_is_not_exact(being: Any, claimed: Any) -> None:
    assert furthest_predicted(being, regression_snapshot((2, 2, 1), n_examples=4), signs, claimed) > 1e-2


def test_the_split_of_what_is_not_covered_is_nan() -> None:
    snapshot = laws.tiny_snapshot((3, 4, 2), n_examples=6)
    for estimator in (ActivityPerturbation(shared=True, slope="batch"), ActivationMixing(), Minibatch(1)):
        found = fga.predict_variance_parts(Subsampled(estimator, 3), snapshot)
        assert np.isnan([found.within.value, found.between.value, found.within.se, found.between.se]).all()
    at_weights = fga.predict_variance_parts(Subsampled(WeightPerturbation(), 3), snapshot)
    assert np.isnan(at_weights.within.value[0]).all() and np.isfinite(at_weights.between.value[1]).all()


@pytest.mark.parametrize("estimator", [ActivityPerturbation(shared=True, slope="batch")])
def test_a_guess_outside_the_law_is_caught(estimator: Estimator) -> None:
    """Noise and slope both shared: products of four rows, which the docstring says are not covered."""
    snapshot = regression_snapshot((2, 2, 1), n_examples=4, bias=True)
    assert furthest(snapshot, estimator, signs) > 1e-3


def test_squares_by_element_are_exact() -> None:
    snapshot = regression_snapshot((2, 2, 1), n_examples=3)
    for slope in ("example", "batch"):
        estimator = ActivityPerturbation(slope=slope)
        squares = []
        for subset in itertools.combinations(range(3), SIZE):
            rows = torch.tensor(subset)
            exact = exact_moments(estimator, restricted(snapshot, rows), signs)
            assert exact.activation_mean is not None and exact.activation_covariance is not None
            second = exact.activation_covariance.diagonal() + exact.activation_mean**2
            parts = second.split([SIZE * tap.units for tap in snapshot.taps])
            squares.append(
                [
                    torch.zeros_like(gradient).index_copy(0, rows, part.view(SIZE, -1))
                    for part, gradient in zip(parts, snapshot.gradients, strict=True)
                ]
            )
        by_example = predicted(snapshot, estimator, 1.0, "example")
        for index, one in enumerate(predicted(snapshot, estimator, 1.0)):
            found = minibatch.subsampled_moments(one, by_example[index], SIZE).squares
            wanted = torch.stack([of_subset[index] for of_subset in squares]).mean(0)
            np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-10)


@pytest.mark.parametrize("layers", ["joint", "separate"])
def test_both_parts_are_exact_for_weight_perturbation(layers: Layers) -> None:
    snapshot = regression_snapshot((2, 2, 1), n_examples=4)
    split = enumerate_split(WeightPerturbation(layers=layers), snapshot, three_points, 1)
    products = [
        tap.kernel.numpy() * (g @ g.T).numpy() for tap, g in zip(snapshot.taps, snapshot.gradients, strict=True)
    ]
    between = [minibatch.variance(product, SIZE) for product in products]
    squares = [float(product.sum()) for product in products]
    on_sample = np.add(squares, between)
    sizes = [tap.weight.numel() for tap in snapshot.taps]
    second = weight_perturbation.second_moments(on_sample, sizes, [3.0] * 2, [1.0] * 2, layers=layers)
    np.testing.assert_allclose(between, split.between, rtol=1e-10)
    np.testing.assert_allclose(second - on_sample, split.within, rtol=1e-10)
