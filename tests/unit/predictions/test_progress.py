"""Predicted curvature along guesses against dense matrices and enumerated noise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import (
    ActivationMixing,
    Averaged,
    Backpropagation,
    FeedbackAlignment,
    FiniteDifference,
    GuidedPerturbation,
    LowRankPerturbation,
    MultiTangent,
    RowSketch,
    ScaledPerturbation,
    SparsePerturbation,
    Subsampled,
    SubspacePerturbation,
    Upstream,
    WeightPerturbation,
)
from fganalysis.estimators.noise import ON_SPHERE
from fganalysis.predictions.arrays import NoClosedForm
from fganalysis.predictions.progress import NetworkCurvature, predict_progress
from fganalysis.testing import exact_moments, signs, three_points
from tests.laws import tiny_snapshot
from tests.unit.measuring.curved import dense
from theory import progress as theory

SNAPSHOT = tiny_snapshot((2, 2, 2), n_examples=3, seed=3)
MATRIX = dense(SNAPSHOT, "hessian")


def gradient_of(snapshot: Snapshot) -> Any:
    return torch.cat([gradient.flatten() for gradient in snapshot.weight_gradients]).numpy()


def network_curvature(snapshot: Snapshot, matrix: Any) -> NetworkCurvature:
    """Everything exact, from the dense matrix."""
    g, start = gradient_of(snapshot), 0
    parts = []
    for layer in snapshot.weights:
        parts.append(slice(start, start + layer.weight.numel()))
        start += layer.weight.numel()

    def forms(vectors: Any) -> Any:
        flat = np.stack([np.concatenate([part.ravel() for part in vector]) for vector in vectors])
        return np.einsum("vi,ij,vj->v", flat, matrix, flat)

    def diagonal(weights: Any) -> Any:
        return np.array([np.concatenate([part.ravel() for part in weights]) @ np.diagonal(matrix)])

    def images(factors: Any, image: Any) -> Any:
        vectors = image(np.eye(len(factors)))
        return np.array([factors @ np.einsum("vi,ij,vj->v", vectors, matrix, vectors)])

    return NetworkCurvature(
        np.array([[np.trace(matrix[part, part]) for part in parts]]),
        np.array([[g[part] ** 2 @ np.diagonal(matrix)[part] for part in parts]]),
        np.array([[g[a] @ matrix[a, b] @ g[b] for b in parts] for a in parts]),
        forms,
        diagonal,
        images,
    )


@pytest.mark.parametrize("law", [signs, three_points])
@pytest.mark.parametrize(
    "estimator",
    [
        WeightPerturbation(),
        WeightPerturbation(layers="separate"),
        MultiTangent(k=1),
        Averaged(WeightPerturbation(), 1),
        Subsampled(WeightPerturbation(), 3),
        Backpropagation(),
        FeedbackAlignment(),
        Averaged(FeedbackAlignment(), 3),
    ],
    ids=fga.estimators.label,
)
def test_predictions_are_those_of_enumerated_noise(estimator: Any, law: Any) -> None:
    enumerable = estimator.estimator if isinstance(estimator, Averaged | Subsampled) else estimator
    exact = exact_moments(enumerable, SNAPSHOT, law)
    mean = exact.weight_mean.numpy()
    second = exact.weight_covariance.numpy() + np.outer(mean, mean)
    if hasattr(enumerable, "noise"):
        injected = replace(enumerable, noise=law())
        estimator = replace(estimator, estimator=injected) if estimator is not enumerable else injected
    found = predict_progress(SNAPSHOT, estimator, network_curvature(SNAPSHOT, MATRIX))
    np.testing.assert_allclose(found.curvature, [np.trace(MATRIX @ second)], rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(found.slope, mean @ gradient_of(SNAPSHOT), rtol=1e-10)
    np.testing.assert_allclose(found.mean_curvature, mean @ MATRIX @ mean, rtol=1e-10, atol=1e-13)


def test_a_fourth_moment_that_is_one_percent_off_would_be_seen() -> None:
    squares = np.array([float(g.square().sum()) for g in SNAPSHOT.weight_gradients])
    of_network = network_curvature(SNAPSHOT, MATRIX)
    arguments = (of_network.traces, of_network.diagonals, of_network.products)
    right, wrong = (
        theory.weight_perturbation(squares, [fourth] * 2, [1.0] * 2, layers="joint").curvature(*arguments)
        for fourth in (3.0, 3.03)
    )
    assert abs(right - wrong) > 1e-4 * abs(right)


@pytest.mark.parametrize("layers", ["joint", "separate"])
def test_means_of_guesses(layers: Any) -> None:
    """The mean of two enumerated tangents, and of two guesses."""
    snapshot = tiny_snapshot((2, 1, 2), n_examples=3, seed=4)
    matrix = dense(snapshot, "hessian")
    exact = exact_moments(MultiTangent(k=2, layers=layers), snapshot, three_points)
    second = exact.weight_covariance.numpy() + np.outer(exact.weight_mean, exact.weight_mean)
    for estimator in (MultiTangent(k=2, layers=layers), Averaged(WeightPerturbation(layers=layers), 2)):
        found = predict_progress(snapshot, estimator, network_curvature(snapshot, matrix))
        np.testing.assert_allclose(found.curvature, [np.trace(matrix @ second)], rtol=1e-10)
    single = predict_progress(snapshot, WeightPerturbation(layers=layers), network_curvature(snapshot, matrix))
    np.testing.assert_allclose(single.averaged(2), found.curvature, rtol=1e-12)


@pytest.mark.parametrize("layers", ["joint", "separate"])
def test_noise_on_the_sphere(layers: Any) -> None:
    """Every pair of six points on a circle for each of two layers: the moments of the sphere up to the fifth."""
    snapshot = tiny_snapshot((2, 1, 2), n_examples=3, seed=4)
    matrix, g = dense(snapshot, "hessian"), gradient_of(snapshot)
    angles = np.arange(6) * np.pi / 3 + 0.2
    circle = np.sqrt(2) * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    first, second = (part.reshape(-1) for part in np.indices((6, 6)))
    directions = np.concatenate([circle[first], circle[second]], axis=1)
    slopes = directions * g
    whole = slopes.sum(1, keepdims=True)
    own = np.repeat(np.stack([slopes[:, :2].sum(1), slopes[:, 2:].sum(1)], 1), 2, axis=1)
    guesses = (whole if layers == "joint" else own) * directions
    expected = np.einsum("ni,ij,nj->n", guesses, matrix, guesses).mean()
    found = predict_progress(
        snapshot, WeightPerturbation(noise=ON_SPHERE, layers=layers), network_curvature(snapshot, matrix)
    )
    np.testing.assert_allclose(found.curvature, [expected], rtol=1e-10)


def test_gaussian_noise_gives_the_effective_rank() -> None:
    g, of_network = gradient_of(SNAPSHOT), network_curvature(SNAPSHOT, MATRIX)
    bend = g @ MATRIX @ g
    found = predict_progress(SNAPSHOT, WeightPerturbation(), of_network)
    np.testing.assert_allclose(found.curvature, [2 * bend + g @ g * np.trace(MATRIX)], rtol=1e-10)
    share = theory.curved_efficiency(found.slope, found.curvature, float(g @ g), float(bend))
    rank = np.trace(MATRIX) * (g @ g) / bend
    np.testing.assert_allclose(share, theory.of_effective_rank(rank), rtol=1e-10)
    for n_averaged in (2, 7):
        of_mean = theory.curved_efficiency(found.slope, found.averaged(n_averaged), float(g @ g), float(bend))
        np.testing.assert_allclose(of_mean, theory.of_averaged(share, n_averaged)[0], rtol=1e-10)


@pytest.mark.parametrize("layers", ["joint", "separate"])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_projections(k: int, layers: Any) -> None:
    """Sampled, as their tangents must be Gaussian: |z| < 4 sees an error of 3 percent."""
    estimator = MultiTangent(k, "orthogonal", layers=layers)
    found = predict_progress(SNAPSHOT, estimator, network_curvature(SNAPSHOT, MATRIX))
    generator = torch.Generator().manual_seed(k)
    guesses = estimator(SNAPSHOT, 20000, generator).dense(SNAPSHOT)[1].numpy()
    forms = np.einsum("ni,ij,nj->n", guesses, MATRIX, guesses)
    assert abs(forms.mean() - found.curvature[0]) < 4 * forms.std() / len(forms) ** 0.5
    slopes = guesses @ gradient_of(SNAPSHOT)
    assert abs(slopes.mean() - found.slope) < 4 * slopes.std() / len(slopes) ** 0.5 + 1e-12
    mean = guesses.mean(0)
    assert abs(mean @ MATRIX @ mean - found.mean_curvature) < 0.1 * abs(found.mean_curvature)


def test_a_projection_on_everything_is_the_gradient() -> None:
    of_network = network_curvature(SNAPSHOT, MATRIX)
    exact = predict_progress(SNAPSHOT, Backpropagation(), of_network)
    for k, layers in ((8, "joint"), (4, "separate")):
        found = predict_progress(SNAPSHOT, MultiTangent(k, "orthogonal", layers=layers), of_network)  # type: ignore[arg-type]
        np.testing.assert_allclose(found.curvature, exact.curvature, rtol=1e-10)


def test_what_is_not_known() -> None:
    of_network = network_curvature(SNAPSHOT, MATRIX)
    for estimator in (
        ActivationMixing(),
        Upstream(normalise=True),
        FiniteDifference(central=False),
        RowSketch(mode="per_channel"),
        MultiTangent(2, "orthogonal", noise=ON_SPHERE),
        Subsampled(WeightPerturbation(), 2),
    ):
        with pytest.raises(NoClosedForm):
            predict_progress(SNAPSHOT, estimator, of_network)


def test_steps_that_there_are_not() -> None:
    slope = np.array([1.0, 1.0, -1.0, 0.0, -1.0])
    curvature = np.array([2.0, -1.0, 2.0, 2.0, -1.0])
    np.testing.assert_array_equal(theory.best_step(slope, curvature), [0.5, np.inf, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(theory.expected_decrease(slope, curvature), [0.25, np.inf, np.nan, np.nan, np.nan])
    assert np.isnan(theory.curved_efficiency(1.0, 2.0, 1.0, -1.0))


WEIGHT_BY_PARAMETER = tiny_snapshot((1, 2, 2), n_examples=3, seed=3, bias=True)
STRUCTURED = [
    (LowRankPerturbation(), SNAPSHOT),
    (LowRankPerturbation(rank=2, layers="separate"), tiny_snapshot((1, 2, 2), n_examples=3, seed=3)),
    (LowRankPerturbation(layers="separate"), WEIGHT_BY_PARAMETER),
    (SubspacePerturbation(rank=1, rescale=True), SNAPSHOT),
    (SubspacePerturbation(rank=1, layers="separate"), WEIGHT_BY_PARAMETER),
    (ScaledPerturbation(), WEIGHT_BY_PARAMETER),
    (ScaledPerturbation(layers="separate"), SNAPSHOT),
    (GuidedPerturbation(alpha=0.3), SNAPSHOT),
    (GuidedPerturbation(alpha=0.3, k=2, seed=3), tiny_snapshot((1, 2, 2), seed=3)),
]


@pytest.mark.parametrize(("estimator", "snapshot"), STRUCTURED, ids=[fga.estimators.label(e) for e, _ in STRUCTURED])
def test_structured_directions_are_those_of_enumerated_noise(estimator: Any, snapshot: Snapshot) -> None:
    """Also of the mean of two guesses; with signs where their second moment is known."""
    matrix = dense(snapshot, "hessian")
    for law in (three_points, signs):
        exact = exact_moments(estimator, snapshot, law)
        mean = exact.weight_mean.numpy()
        second = exact.weight_covariance.numpy() + np.outer(mean, mean)
        of_network = network_curvature(snapshot, matrix)
        try:
            found = predict_progress(snapshot, replace(estimator, noise=law()), of_network)
        except NoClosedForm:
            assert law is signs and isinstance(estimator, LowRankPerturbation | GuidedPerturbation)
            continue
        np.testing.assert_allclose(found.curvature, [np.trace(matrix @ second)], rtol=1e-10, atol=1e-13)
        np.testing.assert_allclose(found.slope, mean @ gradient_of(snapshot), rtol=1e-10)
        np.testing.assert_allclose(found.mean_curvature, mean @ matrix @ mean, rtol=1e-10, atol=1e-13)
        several = predict_progress(snapshot, Averaged(replace(estimator, noise=law()), 2), of_network)
        np.testing.assert_allclose(several.curvature, found.averaged(2), rtol=1e-10)


def test_sparse_directions_are_weight_perturbation_with_their_moments() -> None:
    squares = np.array([float(g.square().sum()) for g in SNAPSHOT.weight_gradients])
    found = predict_progress(SNAPSHOT, SparsePerturbation(0.5, 0.8), network_curvature(SNAPSHOT, MATRIX))
    of_network = network_curvature(SNAPSHOT, MATRIX)
    expected = theory.weight_perturbation(squares, [3 / 0.4] * 2, [1 / 0.8] * 2, layers="joint")
    arguments = (of_network.traces, of_network.diagonals, of_network.products)
    np.testing.assert_allclose(found.curvature, expected.curvature(*arguments))
