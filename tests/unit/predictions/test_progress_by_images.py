"""Predicted curvature along guesses that have a covariance made of images of numbers, against enumerated noise."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import (
    ActivityPerturbation,
    Averaged,
    FiniteDifference,
    InputSketch,
    Minibatch,
    NewtonSchulzUpstream,
    OrthogonalUpstream,
    PreconditionedUpstream,
    RandomProjection,
    RowSampling,
    RowSketch,
    Upstream,
    WeightPerturbation,
    label,
)
from fganalysis.estimators.noise import Gaussian, Noise, Rademacher, Sphere
from fganalysis.estimators.sketches.sampled_entry import SampledEntry
from fganalysis.predictions.arrays import NoClosedForm
from fganalysis.predictions.progress import NetworkCurvature, predict_progress
from fganalysis.testing import exact_moments, signs, three_points
from tests.laws import EverySubset, tiny_snapshot
from tests.unit.estimators.test_row_sampling import EveryDraw
from tests.unit.measuring.curved import dense
from tests.unit.predictions import quadratic_moments, tiny_networks
from tests.unit.predictions.test_progress import gradient_of, network_curvature
from theory import gradient_projection, linear_guess

EXACT = 1e-10
SWITCHES = [
    {"shared": shared, "slope": slope, "layers": layers}
    for shared, slope, layers in itertools.product([False, True], ["example", "batch"], ["joint", "separate"])
]
LAWS = (Gaussian(), Rademacher(), Sphere())
SNAPSHOT = tiny_snapshot((2, 1, 2), n_examples=2, seed=3, bias=True)


def by_switches(switches: dict[str, Any]) -> str:
    return "-".join(map(str, switches.values()))


def any_matrix(snapshot: Snapshot) -> torch.Tensor:
    """Symmetric and indefinite: a closed form must hold for any."""
    size = sum(layer.weight.numel() for layer in snapshot.weights)
    matrix = torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(size))
    return (matrix + matrix.T) / 2


def predicted(snapshot: Snapshot, estimator: Any, of_network: NetworkCurvature) -> float:
    """E ĝᵀHĝ; the mean of three guesses has that of `Averaged`."""
    found = predict_progress(snapshot, estimator, of_network)
    several = predict_progress(snapshot, Averaged(estimator, 3), of_network)
    np.testing.assert_allclose(several.curvature, found.averaged(3), rtol=1e-9, atol=1e-12)
    return float(found.curvature[0])


def assert_quadratic(snapshot: Snapshot, estimators: Any) -> None:
    matrix = any_matrix(snapshot)
    of_network = network_curvature(snapshot, matrix.numpy())
    for estimator in estimators:
        expected = quadratic_moments.curvature(estimator, snapshot, matrix)
        error = abs(predicted(snapshot, estimator, of_network) - expected)
        assert error < EXACT * (abs(expected) + 1e-3), (label(estimator), expected)


@pytest.mark.parametrize("switches", SWITCHES, ids=by_switches)
@pytest.mark.parametrize("kind", ["hessian", "gauss_newton"])
def test_every_value_of_the_noise(kind: str, switches: dict[str, Any]) -> None:
    matrix = dense(SNAPSHOT, kind)
    of_network = network_curvature(SNAPSHOT, matrix)
    for family, law in itertools.product((ActivityPerturbation, Upstream), (signs, three_points)):
        estimator = family(**switches)
        exact = exact_moments(estimator, SNAPSHOT, law)
        mean = exact.weight_mean.numpy()
        second = exact.weight_covariance.numpy() + np.outer(mean, mean)
        found = predict_progress(SNAPSHOT, replace(estimator, noise=law()), of_network)
        np.testing.assert_allclose(found.curvature, [np.trace(matrix @ second)], rtol=EXACT, atol=1e-13)
        np.testing.assert_allclose(found.slope, mean @ gradient_of(SNAPSHOT), rtol=EXACT)
        np.testing.assert_allclose(found.mean_curvature, mean @ matrix @ mean, rtol=EXACT, atol=1e-13)


@pytest.mark.parametrize("switches", SWITCHES, ids=by_switches)
@pytest.mark.parametrize("name", ["tokens", "convolution", "tied", "recurrent", "positions"])
def test_activity_perturbation_on_networks_of_any_rows(name: str, switches: dict[str, Any]) -> None:
    snapshot = getattr(tiny_networks, name)()
    assert_quadratic(snapshot, [ActivityPerturbation(noise=law, **switches) for law in LAWS])


@pytest.mark.parametrize("name", ["tokens", "layer_norm", "positions"])
def test_the_upstream_family(name: str) -> None:
    assert_quadratic(
        getattr(tiny_networks, name)(),
        [
            Upstream(noise=Sphere(), slope="batch", layers="separate"),
            Upstream(noise=Rademacher(), shared=True),
            OrthogonalUpstream(k="rank", noise=Sphere(), slope="batch"),
            OrthogonalUpstream(k=1, noise=Rademacher(), layers="separate"),
            NewtonSchulzUpstream(k=1, noise=Rademacher(), shared=True),
            PreconditionedUpstream(noise=Sphere(), shared=True, layers="separate"),
        ],
    )


def test_dead_units_and_examples_that_interact() -> None:
    snapshot = tiny_snapshot((2, 3, 2), n_examples=2, seed=3, activation=torch.nn.ReLU)
    assert_quadratic(snapshot, [ActivityPerturbation(active_only=True, noise=Rademacher())])
    snapshot = tiny_networks.interacting()
    assert_quadratic(snapshot, [ActivityPerturbation(noise=law, slope="batch") for law in LAWS])
    with pytest.raises(NoClosedForm, match="BatchNorm"):
        predict_progress(snapshot, ActivityPerturbation(), network_curvature(snapshot, any_matrix(snapshot).numpy()))


@pytest.mark.parametrize("law", [*LAWS, SampledEntry()], ids=lambda law: type(law).__name__)
def test_sketches_and_a_direction_for_every_example(law: Noise) -> None:
    sketches = [RowSketch(2, noise=law), InputSketch(2, noise=law), InputSketch(noise=law, shared=False)]
    assert_quadratic(SNAPSHOT, sketches)
    assert_quadratic(tiny_networks.tokens(), sketches)
    assert_quadratic(tiny_networks.called_twice(), sketches)
    if type(law) is not SampledEntry:
        directions = [WeightPerturbation(noise=law, shared=False, layers=layers) for layers in ("joint", "separate")]  # type: ignore[arg-type]
        assert_quadratic(SNAPSHOT, directions)


@pytest.mark.parametrize("name", ["plain", "tokens", "positions"])
def test_minibatches_are_those_of_every_subset(name: str) -> None:
    snapshot = tiny_snapshot((3, 2, 2), 4, bias=True) if name == "plain" else getattr(tiny_networks, name)()
    matrix = any_matrix(snapshot).numpy()
    for size in range(1, snapshot.n_examples + 1):
        n_subsets = len(list(itertools.combinations(range(snapshot.n_examples), size)))
        guesses = Minibatch(size, EverySubset())(snapshot, n_subsets, torch.Generator()).dense(snapshot)[1].numpy()
        expected = np.einsum("ni,ij,nj->n", guesses, matrix, guesses).mean()
        found = predicted(snapshot, Minibatch(size), network_curvature(snapshot, matrix))
        np.testing.assert_allclose(found, expected, rtol=EXACT)


@pytest.mark.parametrize(
    "estimator", [RowSampling(), RowSampling(count=2, by="uniform"), RowSampling(count=2, keep=1)], ids=label
)
def test_sampled_rows_are_those_of_every_draw(estimator: RowSampling) -> None:
    """Layers draw apart, so that only the mean is common to two of them."""
    snapshot = tiny_snapshot((3, 2, 2), n_examples=3, bias=True)
    matrix, every = any_matrix(snapshot).numpy(), EveryDraw()
    n_draws = (snapshot.n_examples - estimator.keep) ** estimator.count
    guesses = replace(estimator, draws=every)(snapshot, n_draws, torch.Generator())
    mean = gradient_of(snapshot)
    expected, start = mean @ matrix @ mean, 0
    for weights, layer in zip(every.weights, guesses.layers, strict=True):
        errors = layer.written().flatten(1).numpy()
        part = slice(start, start + errors.shape[1])
        start = part.stop
        errors = errors - mean[part]
        expected += weights.numpy() @ np.einsum("ni,ij,nj->n", errors, matrix[part, part], errors)
    found = predicted(snapshot, estimator, network_curvature(snapshot, matrix))
    np.testing.assert_allclose(found, expected, rtol=EXACT)


def test_random_projections_are_those_of_every_angle() -> None:
    """Eight lines in the plane have the moments of all; on a network the closed form is that of its layers."""
    gradient = np.random.default_rng(0).normal(size=(3, 2))
    angles = np.arange(8) * np.pi / 8
    lines = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    guesses = np.einsum("ui,ni,nj->nuj", gradient, lines, lines).reshape(8, -1)
    covariance = np.cov(guesses.T, ddof=0)
    found = np.zeros_like(covariance)
    for images in gradient_projection.images_of_random(0, gradient, 1):
        vectors = images.image(np.eye(len(images.factors)))[0].reshape(len(images.factors), -1)
        found += vectors.T @ (images.factors[:, None] * vectors)
    np.testing.assert_allclose(found, covariance, atol=1e-12)
    matrix = any_matrix(SNAPSHOT).numpy()
    generator = torch.Generator().manual_seed(1)
    sampled = RandomProjection()(SNAPSHOT, 20000, generator).dense(SNAPSHOT)[1].numpy()
    forms = np.einsum("ni,ij,nj->n", sampled, matrix, sampled)
    expected = predicted(SNAPSHOT, RandomProjection(), network_curvature(SNAPSHOT, matrix))
    assert abs(forms.mean() - expected) < 4 * forms.std() / len(forms) ** 0.5


def test_central_differences_are_those_of_a_quadratic_loss() -> None:
    """At any step of a quadratic loss; of another at a small step, where the error is of the order of its square."""
    network = fga.networks.mlp([2, 2], bias=False, dtype=torch.float64)
    inputs = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    quadratic = fga.capture(network, torch.nn.functional.mse_loss, inputs, torch.ones(3, 2, dtype=torch.float64))
    for snapshot, epsilon, error in ((quadratic, 0.5, 1e-9), (tiny_snapshot((2, 1, 2)), 1e-5, 1e-8)):
        matrix = any_matrix(snapshot).numpy()
        estimator = FiniteDifference(epsilon)
        exact = exact_moments(estimator, snapshot, three_points)
        mean = exact.weight_mean.numpy()
        second = exact.weight_covariance.numpy() + np.outer(mean, mean)
        found = predicted(snapshot, estimator, network_curvature(snapshot, matrix))
        np.testing.assert_allclose(found, np.trace(matrix @ second), rtol=error)


def test_a_fourth_moment_that_is_one_percent_off_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    of_network = network_curvature(SNAPSHOT, dense(SNAPSHOT, "hessian"))
    right = predicted(SNAPSHOT, ActivityPerturbation(), of_network)
    monkeypatch.setattr(linear_guess.Law, "excess", property(lambda law: 0.03))
    wrong = predicted(SNAPSHOT, ActivityPerturbation(), of_network)
    assert abs(right - wrong) > 1e-4 * abs(right)
