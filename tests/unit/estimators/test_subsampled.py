"""Any estimator on a part of the batch: the law of total variance by enumeration of subsets and noise, and measured."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import (
    ActivationMixing,
    ActivityPerturbation,
    Averaged,
    Backpropagation,
    DirectFeedback,
    Estimator,
    ForwardDirectFeedback,
    LocalLoss,
    Minibatch,
    MultiTangent,
    OrthogonalUpstream,
    Subsampled,
    Upstream,
    WeightPerturbation,
)
from fganalysis.estimators.around.subsampled import restricted
from fganalysis.estimators.noise import GAUSSIAN
from fganalysis.testing import Enumeration, exact_moments, signs, three_points
from tests import laws
from tests.regression import regression_snapshot
from theory import minibatch, upstream, weight_perturbation
from theory.factors import Diagonal, Factor
from theory.linear_guess import Layers, Moments, Slope, moments

SIZE = 2


@dataclass(frozen=True, eq=False)
class Split:
    """E and the two parts of the variance of a guess in one space, layer by layer: mean (number,) a layer."""

    means: list[Tensor]
    within: list[float]
    between: list[float]


def enumerate_split(estimator: Estimator, snapshot: Snapshot, law: Callable[[], Enumeration], space: int) -> Split:
    """Conditional moments on every subset of two rows, put together by the law of total variance.

    Activation guesses (space 0) are written to their rows; weight guesses (space 1) are those of the subset's own rows.
    """
    subsets = list(itertools.combinations(range(snapshot.n_examples), SIZE))
    conditional_means, within = [], []
    for subset in subsets:
        rows = torch.tensor(subset)
        part = restricted(snapshot, rows)
        exact = exact_moments(estimator, part, law)
        mean = exact.weight_mean if space else exact.activation_mean
        covariance = exact.weight_covariance if space else exact.activation_covariance
        assert mean is not None and covariance is not None
        tensors = part.weight_gradients if space else part.gradients
        sizes = [tensor.numel() for tensor in tensors]
        within.append([float(p.sum()) for p in covariance.diagonal().split(sizes)])
        means = []
        for one, gradient, whole in zip(mean.split(sizes), tensors, snapshot.gradients, strict=True):
            if space:
                means.append(one)
            else:
                means.append(torch.zeros_like(whole).index_copy(0, rows, one.view_as(gradient)).flatten())
        conditional_means.append(means)
    stacked = [torch.stack(of_layer) for of_layer in zip(*conditional_means, strict=True)]
    return Split(
        [means.mean(0) for means in stacked],
        list(np.mean(within, axis=0)),
        [float(means.var(0, correction=0).sum()) for means in stacked],
    )


def predicted(snapshot: Snapshot, estimator: Any, fourth: float, slope: Slope | None = None) -> list[Moments]:
    """Theory of an activity or upstream guess on the whole batch."""
    factors: list[Factor] = [Diagonal(np.ones(tuple(tap.outputs.shape))) for tap in snapshot.taps]
    if isinstance(estimator, Upstream):
        factors[:-1] = [upstream.upstream(j.weight.numpy(), j.derivative.numpy()) for j in snapshot.upstream]
    return moments(
        [gradient.numpy() for gradient in snapshot.gradients],
        factors,
        [fourth] * len(factors),
        [1.0] * len(factors),
        shared=estimator.shared,
        slope=slope or estimator.slope,
        layers=estimator.layers,
    )


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


def test_the_mean_is_that_of_the_whole_batch() -> None:
    snapshot = regression_snapshot((2, 2, 1), n_examples=4)
    split = enumerate_split(ActivityPerturbation(), snapshot, signs, 1)
    torch.testing.assert_close(torch.cat(split.means), laws.exact_gradient(snapshot)[1])


@pytest.mark.parametrize("autodiff", ["reverse", "forward"])
def test_the_part_of_a_snapshot_is_a_snapshot_of_the_part(autodiff: Any) -> None:
    snapshot = laws.tiny_snapshot((3, 4, 3, 2), n_examples=5, bias=True, activation=nn.ReLU, autodiff=autodiff)
    rows = torch.tensor([3, 0, 4])
    part = restricted(snapshot, rows)
    anew = fga.capture(
        snapshot.network, snapshot.loss_fn, snapshot.inputs[rows], snapshot.targets[rows], autodiff=autodiff
    )
    torch.testing.assert_close(part.loss, anew.loss)
    for one, other in zip(part.gradients, anew.gradients, strict=True):
        torch.testing.assert_close(one, other)
    for one, other in zip(part.weight_gradients, anew.weight_gradients, strict=True):
        torch.testing.assert_close(one, other)
    for tap, new in zip(part.upstream, anew.upstream, strict=True):
        torch.testing.assert_close(tap.dense(), new.dense())
    assert part.n_examples == 3 and snapshot.n_examples == 5


def test_backpropagation_on_a_part_is_the_minibatch_gradient() -> None:
    snapshot = laws.tiny_snapshot((3, 4, 2), n_examples=5, bias=True)
    wanted = laws.guesses_of(Minibatch(3), snapshot)
    for one, other in zip(laws.guesses_of(Subsampled(Backpropagation(), 3), snapshot), wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_the_whole_batch_as_its_part_changes_nothing_but_the_order() -> None:
    snapshot = laws.tiny_snapshot((3, 4, 2), n_examples=3)
    gradient = laws.exact_gradient(snapshot)
    for guess in laws.guesses_of(Subsampled(OrthogonalUpstream(k="rank"), 3), snapshot)[0]:
        assert float(guess @ gradient[0]) > 0
    (exact, _) = laws.guesses_of(Subsampled(Backpropagation(), 3), snapshot)
    torch.testing.assert_close(exact, gradient[0].expand_as(exact))


WRAPPED: list[Estimator] = [
    Subsampled(OrthogonalUpstream(k=1), 2),
    Subsampled(WeightPerturbation(), 2),
    Subsampled(Averaged(ActivationMixing(), 2), 2),
    Averaged(Subsampled(Minibatch(1), 2), 3),
]


@pytest.mark.parametrize("estimator", WRAPPED, ids=fga.estimators.label)
def test_named_laws_hold(estimator: Estimator) -> None:
    snapshot = laws.tiny_snapshot((3, 4, 3, 2), n_examples=3, bias=True, activation=nn.ReLU)
    forward = laws.tiny_snapshot((3, 4, 3, 2), 3, bias=True, activation=nn.ReLU, autodiff="forward")
    laws.assert_seeded(estimator, snapshot)
    laws.assert_modes_agree(estimator, snapshot, forward)
    laws.assert_equivariant_under_loss_scaling(estimator, snapshot)


@pytest.mark.parametrize("estimator", [ActivityPerturbation(), Upstream(slope="batch")], ids=fga.estimators.label)
def test_measured_parts_meet_the_predicted(estimator: Estimator) -> None:
    """3000 draws of rows, each part within 4 standard errors; over all layers an error is below 20 % of the part."""
    snapshot = laws.tiny_snapshot((3, 4, 2), n_examples=6)
    whole, by_example = predicted(snapshot, estimator, 3.0), predicted(snapshot, estimator, 3.0, "example")
    found = fga.variance_parts(Subsampled(estimator, 3), snapshot, 3000, torch.Generator().manual_seed(0))
    assert found.within.value.shape == found.between.value.shape == (2, 3)
    wanted = np.zeros((2, 2, 3))
    for index, tap in enumerate(snapshot.taps):
        for space, kernel in enumerate([None, tap.kernel.numpy()]):
            parts = minibatch.parts(whole[index], by_example[index], 3, kernel)
            wanted[:, space, index] = parts.within, parts.between
    wanted[..., -1] = wanted.sum(-1)
    for measured, exact in zip((found.within, found.between), wanted, strict=True):
        assert (np.abs(measured.value - exact) < 4 * measured.se + 1e-12).all(), (measured, exact)
        assert (measured.se[:, -1] < 0.2 * exact[:, -1]).all()
    # Parts that change places are caught.
    assert (np.abs(found.within.value - wanted[1]) > 4 * found.within.se).all()


@pytest.mark.parametrize(
    "estimator",
    [
        WeightPerturbation(),
        MultiTangent(k=4),
        MultiTangent(k=4, combine="orthogonal"),
        Averaged(WeightPerturbation(), 3),
        Averaged(ActivityPerturbation(), 3),
        DirectFeedback(),
    ],
    ids=fga.estimators.label,
)
def test_measured_parts_meet_the_predicted_for_every_kind_of_guess(estimator: Any) -> None:
    """2000 draws of rows, each part within 4 standard errors, which for the part within are below 20 % of it."""
    snapshot, stated = laws.tiny_snapshot((3, 4, 2), n_examples=6), Subsampled(estimator, 3)
    found = fga.variance_parts(stated, snapshot, 2000, torch.Generator().manual_seed(1))
    exact = fga.predict_variance_parts(stated, snapshot)
    for measured, wanted in ((found.within, exact.within), (found.between, exact.between)):
        np.testing.assert_array_equal(np.isnan(measured.value), np.isnan(wanted.value))
        known = ~np.isnan(wanted.value)
        difference = np.abs(measured.value - wanted.value)[known]
        assert (difference <= 4 * measured.se[known] + 1e-12).all(), (measured, wanted)
    assert (found.within.se[1] <= 0.2 * exact.within.value[1] + 1e-12).all()
    total = fga.predict(snapshot, stated)["variance"].values[1]
    np.testing.assert_allclose(exact.within.value[1] + exact.between.value[1], total, rtol=1e-10)


def test_parts_of_extremes() -> None:
    snapshot, generator = laws.tiny_snapshot((3, 4, 2), n_examples=6), torch.Generator().manual_seed(0)
    alone = fga.variance_parts(Subsampled(Backpropagation(), 2), snapshot, 200, generator)
    np.testing.assert_allclose(alone.within.value, 0, atol=1e-15)
    g = snapshot.gradients[0].numpy()
    exact = minibatch.variance(np.eye(6) * (g @ g.T), 2)
    assert abs(alone.between.value[0, 0] - exact) < 4 * alone.between.se[0, 0]
    whole = fga.variance_parts(Subsampled(WeightPerturbation(noise=GAUSSIAN), 6), snapshot, 400, generator)
    assert np.isnan(whole.within.value[0]).all() and np.isfinite(whole.within.value[1]).all()
    assert (np.abs(whole.between.value[1]) < 4 * whole.between.se[1]).all()


def test_bad_sizes_are_refused() -> None:
    snapshot = laws.tiny_snapshot(n_examples=3)
    with pytest.raises(ValueError, match="size must be at most the batch's 3 examples, got 4"):
        Subsampled(Backpropagation(), 4)(snapshot, 1, torch.Generator())
    with pytest.raises(ValueError, match="n_draws must be a whole number of at least 32, got 31"):
        fga.variance_parts(Subsampled(Backpropagation(), 2), snapshot, 31, torch.Generator())
