"""Activation mixing against its definition, and against closed forms by enumeration of its noise."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import ActivationMixing
from fganalysis.estimators.guesses import ActivationEstimates
from fganalysis.estimators.noise import Rademacher
from fganalysis.testing import Enumeration, exact_moments, signs, three_points
from tests import laws
from tests.regression import regression_snapshot
from theory.activation_mixing import direction_moments, moments
from theory.linear_guess import Layers, Moments, Slope

SWITCHES: list[tuple[Slope, Layers]] = [
    ("example", "joint"),
    ("example", "separate"),
    ("batch", "joint"),
    ("batch", "separate"),
]


def predicted(snapshot: Snapshot, estimator: ActivationMixing, fourth: float = 3.0, pair: float = 1.0) -> list[Moments]:
    """Theory's arrays from a snapshot: X, h = W^T g and φ' of every tap but the last."""
    after = snapshot.taps[1:]
    weights = [jacobian.weight for jacobian in snapshot.upstream]
    return moments(
        [tap.inputs[:, : w.shape[1]].numpy() for tap, w in zip(after, weights, strict=True)],
        [(g @ w).numpy() for g, w in zip(snapshot.gradients[1:], weights, strict=True)],
        [jacobian.derivative.numpy() for jacobian in snapshot.upstream],
        snapshot.gradients[-1].numpy(),
        [fourth] * len(snapshot.taps),
        [pair] * len(snapshot.taps),
        normalise=estimator.normalise,
        slope=estimator.slope,
        layers=estimator.layers,
    )


def assert_agrees(
    snapshot: Snapshot, theory: list[Moments], guesses: tuple[Tensor, ...], weights: Tensor, tolerance: float
) -> None:
    """Mean, element-wise squares and pairwise products of weighted guesses (point, example, unit) a tap."""
    for found, guess in zip(theory, guesses, strict=True):
        enumerated = [
            torch.einsum("p,pbu->bu", weights, guess),
            torch.einsum("p,pbu->bu", weights, guess**2),
            torch.einsum("p,pbu,pcu->bc", weights, guess, guess),
        ]
        for one, other in zip([found.mean, found.squares, found.products], enumerated, strict=True):
            close = tolerance * float(other.abs().max())
            torch.testing.assert_close(torch.from_numpy(one), other, rtol=tolerance, atol=close)


def all_guesses(snapshot: Snapshot, estimator: ActivationMixing, law: Enumeration) -> tuple[Tensor, ...]:
    injected = ActivationMixing(estimator.normalise, law, estimator.slope, estimator.layers)
    injected(snapshot, 1, torch.Generator())
    n_points = len(law.values) ** law.drawn
    law.drawn = 0
    found = injected(snapshot, n_points, torch.Generator())
    return found.guesses


@pytest.mark.parametrize(("slope", "layers"), SWITCHES)
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.GELU])
@pytest.mark.parametrize("law", [signs, three_points])
def test_unscaled_moments_are_exact(
    slope: Slope, layers: Layers, activation: type[nn.Module], law: Callable[[], Enumeration]
) -> None:
    snapshot = regression_snapshot((3, 3, 1), bias=True, activation=activation)
    estimator = ActivationMixing(normalise=False, slope=slope, layers=layers)
    noise = law()
    guesses = all_guesses(snapshot, estimator, noise)
    weights = noise.weights(len(guesses[0]), noise.drawn)
    theory = predicted(snapshot, estimator, fourth=noise.fourth_moment)
    assert_agrees(snapshot, theory, guesses, weights, 1e-10)
    with pytest.raises(AssertionError):
        assert_agrees(
            snapshot, predicted(snapshot, estimator, fourth=noise.fourth_moment * 1.01), guesses, weights, 1e-10
        )


def test_three_taps_are_exact_in_weight_space_too() -> None:
    snapshot = regression_snapshot((2, 2, 2, 1), bias=True, activation=nn.ReLU)
    estimator = ActivationMixing(normalise=False, slope="batch")
    exact = exact_moments(estimator, snapshot, signs)
    theory = predicted(snapshot, estimator, fourth=1.0)
    means = [(m.mean.T @ tap.inputs.numpy()).ravel() for m, tap in zip(theory, snapshot.taps, strict=True)]
    np.testing.assert_allclose(np.concatenate(means), exact.weight_mean.numpy(), rtol=1e-10, atol=1e-13)
    starts = np.cumsum([0, *(tap.weight.numel() for tap in snapshot.taps)])
    for index, (moment, tap) in enumerate(zip(theory, snapshot.taps, strict=True)):
        part = slice(starts[index], starts[index + 1])
        variance = exact.weight_covariance[part, part].trace()
        squared_mean = (exact.weight_mean[part] ** 2).sum()
        np.testing.assert_allclose(moment.second_moment(tap.kernel.numpy()), variance + squared_mean, rtol=1e-10)


@dataclass
class Angles:
    """α of a tap on circles, a row of two entries each; of the output tap ±1; every combination once.

    A rescaled mixture depends on a row's direction alone. The mean over equally spaced angles of a smooth periodic
    function is exact to rounding long before ``n_angles``.
    """

    n_angles: int
    drawn: int = 0

    def draw(self, shape: tuple[int, ...], generator: torch.Generator, like: Tensor, vector_dims: int = 1) -> Tensor:
        points = torch.arange(shape[0])
        if shape[1:] == (2, 2):
            rows = torch.stack([points % self.n_angles, points // self.n_angles % self.n_angles], dim=1)
            angles = (rows.to(like.dtype) + 0.5) * (2 * torch.pi / self.n_angles)
            return torch.stack([angles.cos(), angles.sin()], dim=-1)
        assert shape[1:] == (2, 1)
        rows = torch.stack([points // self.n_angles**2 % 2, points // self.n_angles**2 // 2], dim=1)
        return rows.to(like.dtype).unsqueeze(-1) * 2 - 1

    def fourth(self, n: int) -> float:
        return 1.0

    def pair(self, n: int) -> float:
        return 1.0


@pytest.mark.parametrize(("slope", "layers"), SWITCHES)
@pytest.mark.parametrize(("activation", "seed"), [(nn.ReLU, 34), (nn.Tanh, 23), (nn.GELU, 34)])
def test_rescaled_moments_are_exact(slope: Slope, layers: Layers, activation: type[nn.Module], seed: int) -> None:
    snapshot = regression_snapshot((3, 4, 1), seed=seed, bias=True, activation=activation)
    for row in snapshot.taps[1].inputs[:, :-1]:
        # Seeds were picked for mixtures that vary in two directions: then few angles do.
        largest, second = torch.linalg.svdvals(snapshot.taps[1].inputs[:, :-1][:, row > 0])
        assert second**2 > 0.2 * largest**2
    n_angles = 96
    estimator = ActivationMixing(noise=Angles(n_angles), slope=slope, layers=layers)
    guesses = estimator(snapshot, 4 * n_angles**2, torch.Generator()).guesses
    weights = torch.full((len(guesses[0]),), 1 / len(guesses[0]), dtype=torch.float64)
    theory = predicted_with_signs_at_the_output(snapshot, estimator)
    assert_agrees(snapshot, theory, guesses, weights, 1e-10)
    # The law of the unscaled mixture is caught.
    unscaled = ActivationMixing(normalise=False, slope=slope, layers=layers)
    with pytest.raises(AssertionError):
        assert_agrees(snapshot, predicted_with_signs_at_the_output(snapshot, unscaled), guesses, weights, 1e-3)


def predicted_with_signs_at_the_output(snapshot: Snapshot, estimator: ActivationMixing) -> list[Moments]:
    jacobian = snapshot.upstream[0]
    return moments(
        [snapshot.taps[1].inputs[:, : jacobian.weight.shape[1]].numpy()],
        [(snapshot.gradients[1] @ jacobian.weight).numpy()],
        [jacobian.derivative.numpy()],
        snapshot.gradients[1].numpy(),
        [3.0, 1.0],
        [1.0, 1.0],
        normalise=estimator.normalise,
        slope=estimator.slope,
        layers=estimator.layers,
    )


def test_rescaled_closed_form_meets_samples_in_a_wider_network() -> None:
    # 40 000 guesses: relative standard errors of the second moments are about 1 %, so an error of 5 % is seen.
    snapshot = laws.tiny_snapshot((6, 8, 7, 3), n_examples=5, activation=nn.ReLU, bias=True)
    estimator = ActivationMixing()
    guesses = estimator(snapshot, 40_000, torch.Generator().manual_seed(0))
    assert isinstance(guesses, ActivationEstimates)
    for moment, guess in zip(predicted(snapshot, estimator), guesses.guesses, strict=True):
        squares = guess.flatten(1).square().sum(1)
        error = float(squares.std()) / 200
        assert abs(float(squares.mean()) - moment.second_moment()) < 4 * error + 1e-12
        mean_error = (guess.std(0) / 200).numpy()
        assert (np.abs(guess.mean(0).numpy() - moment.mean) < 5 * mean_error + 1e-12).all()


@given(decades=st.floats(0, 13), n_modes=st.integers(1, 128), seed=st.integers(0, 1000))
@settings(max_examples=30)
def test_shares_of_a_rescaled_direction_add_up(decades: float, n_modes: int, seed: int) -> None:
    values = 10.0 ** (-decades * np.random.default_rng(seed).uniform(size=n_modes))
    first, second = direction_moments(values)
    assert abs(first.sum() - 1) < 1e-12
    np.testing.assert_allclose(second.sum(1) + 2 * np.diagonal(second), first, rtol=1e-11, atol=1e-15)


def test_the_closed_form_refuses_rescaled_noise_that_has_a_shape() -> None:
    snapshot = regression_snapshot((3, 3, 1))
    with pytest.raises(ValueError, match="rotation-invariant noise only"):
        predicted(snapshot, ActivationMixing(), fourth=Rademacher().fourth(2))
    with pytest.raises(ValueError, match="one entry a tap"):
        moments([], [], [], np.ones((1, 1)), [3.0], [], normalise=True, slope="example", layers="joint")


@dataclass
class Written:
    """A law that gives the noise it was made with, tap after tap."""

    noise: list[Tensor]

    def draw(self, shape: tuple[int, ...], generator: torch.Generator, like: Tensor, vector_dims: int = 1) -> Tensor:
        drawn = self.noise.pop(0)
        assert drawn.shape == shape
        return drawn.clone()

    def fourth(self, n: int) -> float:
        return 3.0

    def pair(self, n: int) -> float:
        return 1.0


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize(("slope", "layers"), SWITCHES)
def test_a_guess_is_slope_times_direction_at_the_inputs_and_one_local_product(
    normalise: bool, slope: Slope, layers: Layers
) -> None:
    """The definition written out with one forward-mode pass a guess, noise added to the modules' inputs."""
    snapshot = laws.tiny_snapshot((3, 4, 3, 2), n_examples=3, activation=nn.ReLU, bias=True)
    network, n_guesses = snapshot.network, 2
    assert isinstance(network, nn.Sequential)
    linears = [module for module in network if isinstance(module, nn.Linear)]
    generator = torch.Generator().manual_seed(1)
    shapes = [(n_guesses, 3, 3), (n_guesses, 3, 3), (n_guesses, 3, 2)]
    drawn = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    estimator = ActivationMixing(normalise, Written([n.clone() for n in drawn]), slope, layers)
    found = estimator(snapshot, n_guesses, generator).guesses

    def losses(first: Tensor, second: Tensor, last: Tensor) -> Tensor:
        hidden = torch.relu(linears[0](snapshot.inputs)) + first
        hidden = torch.relu(linears[1](hidden)) + second
        outputs = linears[2](hidden) + last
        return nn.functional.cross_entropy(outputs, snapshot.targets, reduction="none") / 3

    for guess in range(n_guesses):
        directions = []
        for alpha, tap in zip(drawn[:2], snapshot.taps[1:], strict=True):
            inputs = tap.inputs[:, :-1]
            mixed = (alpha[guess] @ inputs) * (inputs > 0)
            if normalise:
                lengths = mixed.norm(dim=1, keepdim=True)
                mixed = torch.where(lengths > 0, mixed / lengths.clamp(min=1e-300), mixed) * inputs.shape[1] ** 0.5
            directions.append(mixed)
        directions.append(drawn[2][guess])
        zeros = tuple(torch.zeros_like(direction) for direction in directions)
        whole = [list(directions)] * 3
        alone = [[d if i == j else zeros[j] for j, d in enumerate(directions)] for i in range(3)]
        for index, tangents in enumerate(whole if layers == "joint" else alone):
            slopes = torch.func.jvp(losses, zeros, tuple(tangents))[1]
            if slope == "batch":
                slopes = slopes.sum().expand(3)
            wanted = slopes[:, None] * directions[index]
            if index < 2:
                wanted = wanted * (snapshot.taps[index].outputs > 0)
            torch.testing.assert_close(found[index][guess], wanted)


def test_named_laws_hold() -> None:
    for normalise, (slope, layers) in itertools.product([True, False], SWITCHES):
        estimator = ActivationMixing(normalise, slope=slope, layers=layers)
        snapshot = laws.tiny_snapshot((3, 4, 3, 2), n_examples=3, activation=nn.ReLU, bias=True)
        forward = laws.tiny_snapshot((3, 4, 3, 2), 3, activation=nn.ReLU, bias=True, autodiff="forward")
        laws.assert_seeded(estimator, snapshot)
        laws.assert_modes_agree(estimator, snapshot, forward)
        laws.assert_equivariant_under_loss_scaling(estimator, snapshot)


def test_a_single_tap_is_perturbed_at_its_output() -> None:
    snapshot = laws.tiny_snapshot((3, 2), n_examples=2)
    for _, layers in SWITCHES:
        found = exact_moments(ActivationMixing(layers=layers), snapshot)
        torch.testing.assert_close(found.weight_mean, laws.exact_gradient(snapshot)[1], rtol=0, atol=1e-10)


def test_unknown_switches_are_refused() -> None:
    snapshot = laws.tiny_snapshot()
    steep: Any = "steep"
    with pytest.raises(ValueError, match="slope must be"):
        ActivationMixing(slope=steep)(snapshot, 1, torch.Generator())
