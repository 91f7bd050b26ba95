"""Several tangents combined: exact moments of the mean, and what makes a projection of the projection."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.capturing.tap import Layers
from fganalysis.estimators import MultiTangent, WeightPerturbation, noise
from fganalysis.estimators.noise import GAUSSIAN, Rademacher
from fganalysis.estimators.perturbation import multi_tangent
from fganalysis.testing import Enumeration, exact_moments, signs, three_points
from tests import laws
from tests.regression import regression_snapshot
from theory import multi_tangent as theory
from theory import projection

LAYERS: list[Layers] = ["joint", "separate"]


@dataclass
class Recorded:
    """Gaussian noise that is kept, times a scale."""

    kept: list[Tensor]
    scale: float = 1.0

    def draw(self, shape: tuple[int, ...], generator: torch.Generator, like: Tensor, vector_dims: int = 1) -> Tensor:
        self.kept.append(GAUSSIAN.draw(shape, generator, like) * self.scale)
        return self.kept[-1].clone()

    def fourth(self, n: int) -> float:
        return 3.0

    def pair(self, n: int) -> float:
        return 1.0


def gradients_of(snapshot: Snapshot) -> list[Tensor]:
    return [gradient.flatten() for gradient in snapshot.weight_gradients]


def per_tap_errors(estimator: MultiTangent, snapshot: Snapshot, law: Callable[[], Enumeration], k: int) -> list[float]:
    """Relative errors of E‖Ĝ_l‖² as predicted for k tangents against the enumeration, a tap each."""
    exact = exact_moments(estimator, snapshot, law)
    torch.testing.assert_close(exact.weight_mean, laws.exact_gradient(snapshot)[1], rtol=0, atol=1e-10)
    squares = [float(g @ g) for g in gradients_of(snapshot)]
    sizes, fourth = [g.numel() for g in gradients_of(snapshot)], law().fourth_moment
    predicted = theory.second_moments(
        squares, sizes, k, [fourth] * len(sizes), [1.0] * len(sizes), layers=estimator.layers
    )
    diagonal = exact.weight_covariance.diagonal() + exact.weight_mean**2
    enumerated = [float(part.sum()) for part in diagonal.split(sizes)]
    return list(np.abs(predicted / enumerated - 1))


@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize(("sizes", "k", "law"), [((2, 1, 1), 2, three_points), ((1, 2, 1), 3, signs)])
def test_the_mean_has_the_variance_of_one_tangent_over_k(
    sizes: tuple[int, ...], k: int, law: Callable[[], Enumeration], layers: Layers
) -> None:
    snapshot = regression_snapshot(sizes)
    estimator = MultiTangent(k=k, layers=layers)
    assert max(per_tap_errors(estimator, snapshot, law, k)) < 1e-10
    # One tangent more or less is caught. (A tap of one weight with signs has no variance when it is on its own.)
    assert max(per_tap_errors(estimator, snapshot, law, k + 1)) > 1e-3


def test_one_tangent_is_weight_perturbation() -> None:
    snapshot = laws.tiny_snapshot(bias=True)
    for layers in LAYERS:
        wanted = laws.guesses_of(WeightPerturbation(layers=layers), snapshot)
        for one, other in zip(laws.guesses_of(MultiTangent(layers=layers), snapshot), wanted, strict=True):
            torch.testing.assert_close(one, other)


@given(seed=st.integers(0, 1000), k=st.integers(1, 12), layers=st.sampled_from(LAYERS), scale=st.sampled_from([1.0, 7]))
@settings(max_examples=25)
def test_the_orthogonal_combination_is_the_projection_on_the_span(
    seed: int, k: int, layers: Layers, scale: float
) -> None:
    snapshot = laws.tiny_snapshot((4, 3, 4), seed=seed, activation=torch.nn.ReLU)
    recorded = Recorded([], scale)
    found = MultiTangent(k, "orthogonal", recorded, layers)(snapshot, 3, torch.Generator().manual_seed(seed))
    per_tap = [tangent.flatten(2) for tangent in recorded.kept]
    guesses = [direction.flatten(1) for direction in found.directions]
    spaces = [(torch.cat(per_tap, 2), torch.cat(guesses, 1), torch.cat(gradients_of(snapshot)))]
    if layers == "separate":
        spaces = list(zip(per_tap, guesses, gradients_of(snapshot), strict=True))
    for tangents, guess, gradient in spaces:
        left_over = gradient - guess
        # Nothing of the gradient is left along any tangent, and the guess is a combination of tangents.
        along = torch.linalg.vecdot(left_over.unsqueeze(1), tangents)
        torch.testing.assert_close(along, torch.zeros_like(along), rtol=0, atol=1e-9 * scale)
        combined = torch.linalg.lstsq(tangents.mT, guess.unsqueeze(2)).solution
        torch.testing.assert_close((tangents.mT @ combined).squeeze(2), guess)
        torch.testing.assert_close(guess @ gradient, guess.square().sum(1))


@dataclass
class Angles:
    """Tangents at equally spaced angles in the plane of two weights, one in each of two taps."""

    n_angles: int
    drawn: int = 0

    def draw(self, shape: tuple[int, ...], generator: torch.Generator, like: Tensor, vector_dims: int = 1) -> Tensor:
        assert shape == (self.n_angles, 1, 1, 1)
        angles = (torch.arange(self.n_angles, dtype=like.dtype) + 0.5) * (2 * torch.pi / self.n_angles)
        self.drawn += 1
        return (angles.cos() if self.drawn % 2 else angles.sin()).view(shape)

    def fourth(self, n: int) -> float:
        return 3.0

    def pair(self, n: int) -> float:
        return 1.0


def test_a_projection_on_one_of_two_dimensions_is_exact() -> None:
    """E Ĝ = (k/P) G and E‖Ĝ − G‖² = (1 − k/P)‖G‖², with every direction of the plane in turn."""
    snapshot = regression_snapshot((1, 1, 1))
    gradient = torch.cat(gradients_of(snapshot))
    guesses = MultiTangent(1, "orthogonal", Angles(16))(snapshot, 16, torch.Generator()).dense(snapshot)[1]
    torch.testing.assert_close(guesses.mean(0), gradient / 2)
    torch.testing.assert_close((guesses - gradient).square().sum(1).mean(), gradient.square().sum() / 2)
    predicted = projection.second_moments(gradient.square().tolist(), [1, 1], 1, layers="joint")
    np.testing.assert_allclose(predicted, guesses.square().mean(0).numpy(), rtol=1e-12)


@pytest.mark.parametrize("k", [1, 4, 11])
def test_the_projection_keeps_a_share_of_k_in_the_dimension(k: int) -> None:
    """cos² ~ Beta(k/2, (P−k)/2) with P = 20: mean and variance to 4 standard errors, about 3 % of the mean at k = 4."""
    snapshot = laws.tiny_snapshot((3, 4, 2))
    found = MultiTangent(k, "orthogonal")(snapshot, 20_000, torch.Generator().manual_seed(0))
    inner, norms = (scalars.sum(1)[1] for scalars in found.inner_products(snapshot))
    gradient = torch.cat(gradients_of(snapshot))
    squared_cosines = norms / gradient.square().sum()
    torch.testing.assert_close(inner, norms)
    dimension = 20
    assert dimension == gradient.numel()
    mean, spread = k / dimension, 2 * k * (dimension - k) / (dimension**2 * (dimension + 2))
    assert float(projection.mean_square_cosine(k, dimension)) == mean
    in_layers = found.inner_products(snapshot)[1][1]
    sizes = [g.numel() for g in gradients_of(snapshot)]
    predicted = projection.second_moments([float(g @ g) for g in gradients_of(snapshot)], sizes, k, layers="joint")
    errors = (in_layers.std(1) / len(norms) ** 0.5).numpy()
    assert (np.abs(in_layers.mean(1).numpy() - predicted) < 4 * errors).all()
    error = float(squared_cosines.std()) / len(norms) ** 0.5
    assert abs(float(squared_cosines.mean()) - mean) < 4 * error
    assert abs(float(squared_cosines.var()) / spread - 1) < 0.1
    # Off by one dimension, or by one tangent, is caught.
    assert abs(float(squared_cosines.mean()) - k / (dimension + 1)) > 4 * error
    assert abs(float(squared_cosines.mean()) - (k + 1) / dimension) > 4 * error


@pytest.mark.parametrize("layers", LAYERS)
def test_as_many_tangents_as_weights_give_the_gradient(layers: Layers) -> None:
    snapshot = laws.tiny_snapshot((3, 2, 3))
    found = MultiTangent(6 if layers == "separate" else 12, "orthogonal", layers=layers)
    for guess in laws.guesses_of(found, snapshot)[0]:
        torch.testing.assert_close(guess, torch.cat(gradients_of(snapshot)), rtol=1e-7, atol=1e-9)


def test_as_many_tangents_as_weights_give_the_gradient_in_single_precision() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(16, 16, generator=generator), torch.arange(16) % 8
    snapshot = fga.capture(
        fga.networks.mlp([16, 16, 8], bias=False), torch.nn.functional.cross_entropy, inputs, targets
    )
    (found,) = laws.guesses_of(MultiTangent(16 * 24, "orthogonal"), snapshot, n_guesses=1)
    gradient = torch.cat(gradients_of(snapshot))
    assert float((found[0] - gradient).norm() / gradient.norm()) < 1e-3


def test_guesses_are_drawn_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = laws.tiny_snapshot((3, 2, 2))
    monkeypatch.setattr(multi_tangent, "NUMBERS_HELD", 2 * 3 * 10)
    largest: list[int] = []

    class Counted(Recorded):
        def draw(
            self, shape: tuple[int, ...], generator: torch.Generator, like: Tensor, vector_dims: int = 1
        ) -> Tensor:
            largest.append(shape[0])
            return super().draw(shape, generator, like, vector_dims)

    (found,) = laws.guesses_of(MultiTangent(3, "orthogonal", Counted([])), snapshot, n_guesses=5)
    assert max(largest) == 2 and len(found) == 5
    gradient = torch.cat(gradients_of(snapshot))
    torch.testing.assert_close(found @ gradient, found.square().sum(1))


def test_the_gram_matrix_is_summed_over_a_few_columns_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = laws.tiny_snapshot((3, 4, 2))
    (whole,) = laws.guesses_of(MultiTangent(3, "orthogonal"), snapshot)
    monkeypatch.setattr(multi_tangent, "COLUMNS_AT_ONCE", 5)
    (parts,) = laws.guesses_of(MultiTangent(3, "orthogonal"), snapshot)
    torch.testing.assert_close(parts, whole)
    assert not torch.equal(parts, whole), "another order of summation leaves another rounding"


@pytest.mark.parametrize("layers", LAYERS)
def test_many_tangents_are_drawn_in_parts_and_projected_on_all_the_same(
    layers: Layers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as weights give the gradient, fewer a part of it, whatever memory the tangents lie in."""
    snapshot = laws.tiny_snapshot((3, 2, 3))
    wanted, gradient = MultiTangent(3, "orthogonal", layers=layers), torch.cat(gradients_of(snapshot))
    (whole,) = laws.guesses_of(wanted, snapshot)
    monkeypatch.setattr(multi_tangent, "NUMBERS_IN_PART", 0)
    monkeypatch.setattr(noise, "NUMBERS_IN_PART", 7)
    (parts,) = laws.guesses_of(wanted, snapshot)
    assert not torch.equal(parts, whole)
    torch.testing.assert_close(parts @ gradient, parts.square().sum(1))
    every = MultiTangent(6 if layers == "separate" else 12, "orthogonal", layers=layers)
    for guess in laws.guesses_of(every, snapshot)[0]:
        torch.testing.assert_close(guess, gradient, rtol=1e-7, atol=1e-9)


def test_named_laws_hold() -> None:
    snapshot = laws.tiny_snapshot((3, 4, 3, 2), n_examples=3, bias=True)
    forward = laws.tiny_snapshot((3, 4, 3, 2), 3, bias=True, autodiff="forward")
    for layers in LAYERS:
        for estimator in (MultiTangent(3, layers=layers), MultiTangent(3, "orthogonal", layers=layers)):
            laws.assert_seeded(estimator, snapshot)
            laws.assert_modes_agree(estimator, snapshot, forward)
            laws.assert_equivariant_under_loss_scaling(estimator, snapshot)


def test_bad_settings_are_refused_in_one_sentence() -> None:
    snapshot, generator = laws.tiny_snapshot((3, 2, 2)), torch.Generator().manual_seed(0)
    unknown: Any = "median"
    with pytest.raises(ValueError, match="combine must be 'mean' or 'orthogonal', got 'median'"):
        MultiTangent(combine=unknown)
    with pytest.raises(ValueError, match="at most the dimension, 10 weights, got 11"):
        MultiTangent(11, "orthogonal")(snapshot, 1, generator)
    with pytest.raises(ValueError, match="at most the dimension, 4 weights, got 5"):
        MultiTangent(5, "orthogonal", layers="separate")(snapshot, 1, generator)
    with pytest.raises(ValueError, match="the k=3 tangents of a guess are linearly dependent"):
        MultiTangent(3, "orthogonal", Rademacher(), "separate")(snapshot, 64, generator)
    assert len(MultiTangent(11)(snapshot, 1, generator)) == 1
