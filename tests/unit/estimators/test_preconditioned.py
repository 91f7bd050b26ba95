"""Preconditioned upstream guesses without a decomposition: the same polar factor, or another y of the same law."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

import fganalysis as fga
from fganalysis.capturing.errors import CannotMeasure
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.capturing.tap import Layers
from fganalysis.capturing.upstream import UpstreamJacobian
from fganalysis.estimators import ActivityPerturbation, PreconditionedUpstream
from fganalysis.estimators.noise import GAUSSIAN, Noise, Rademacher, Sphere, is_isotropic
from fganalysis.estimators.upstream import preconditioned
from fganalysis.testing import ExactMoments, exact_moments, signs, three_points
from theory.upstream import preconditioned as theory_factor

DOUBLE = torch.float64
SQUARE, WIDENING, NARROWING = (3, 3, 3, 2), (3, 2, 4, 2), (3, 5, 3, 2)


def relu_snapshot(sizes: tuple[int, ...], n_examples: int = 2) -> Snapshot:
    """Of the first seed with live units in every hidden layer, dead ones and a gradient everywhere."""
    for seed in range(100):
        network = fga.networks.mlp(list(sizes), bias=False, seed=seed, dtype=DOUBLE)
        inputs = torch.randn(n_examples, sizes[0], generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)
        targets = torch.arange(n_examples, dtype=DOUBLE)[:, None].expand(-1, sizes[-1])
        try:
            snapshot = fga.capture(network, torch.nn.functional.mse_loss, inputs, targets)
        except CannotMeasure:  # All units of a layer are dead.
            continue
        live = [one.derivative.count_nonzero() for one in snapshot.upstream]
        dead = any(bool((one.derivative == 0).any()) for one in snapshot.upstream)
        if dead and all(live) and all(bool(gradient.any()) for gradient in snapshot.gradients):
            return snapshot
    raise AssertionError(f"no seed has live and dead units in {sizes}")


def assert_same_law(one: ExactMoments, other: ExactMoments) -> None:
    for name in ("activation_mean", "activation_covariance", "weight_mean", "weight_covariance"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=1e-9, atol=1e-9)


@pytest.fixture
def every_law_passes_for_isotropic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preconditioned, "is_isotropic", lambda noise: True)


@pytest.mark.parametrize("layers", ["joint", "separate"])
@pytest.mark.parametrize(("sizes", "n_examples"), [((2, 2, 2, 1), 2), ((2, 2, 3, 2), 1), ((2, 1, 2, 2), 2)])
@pytest.mark.usefixtures("every_law_passes_for_isotropic")
def test_the_noise_at_the_live_units_has_the_partial_isometrys_law(
    sizes: tuple[int, ...], n_examples: int, layers: Layers
) -> None:
    """Of all examples and taps together, by enumeration of a law with the Gaussian's moments up to the fifth.

    A guess is quadratic in ε: its covariance holds the fourth moments of all directions, its mean the second.
    """
    snapshot = relu_snapshot(sizes, n_examples)
    in_law = PreconditionedUpstream(layers=layers)
    defined = replace(in_law, exact=True)
    assert_same_law(*(exact_moments(one, snapshot, three_points) for one in (in_law, defined)))


@pytest.mark.usefixtures("every_law_passes_for_isotropic")
def test_signs_turned_by_the_polar_factor_are_another_law() -> None:
    snapshot = relu_snapshot((2, 2, 2, 1))
    with pytest.raises(AssertionError):
        assert_same_law(*(exact_moments(PreconditionedUpstream(exact=e), snapshot, signs) for e in (False, True)))


def test_one_draw_for_all_examples_keeps_the_polar_factor() -> None:
    """Each example turns the same ε its own way, so that the batch's directions are correlated as no shared ε is."""
    snapshot = relu_snapshot(SQUARE)
    found = PreconditionedUpstream(shared=True)(snapshot, 5, torch.Generator().manual_seed(0))
    wanted = PreconditionedUpstream(shared=True, exact=True)(snapshot, 5, torch.Generator().manual_seed(0))
    torch.testing.assert_close(found.guesses, wanted.guesses)
    shared = (PreconditionedUpstream(shared=True), ActivityPerturbation(shared=True))
    with pytest.raises(AssertionError):
        assert_same_law(*(exact_moments(one, relu_snapshot((2, 2, 2, 1)), three_points) for one in shared))


@pytest.mark.parametrize("noise", [Rademacher(), three_points()], ids=["signs", "six points"])
def test_other_laws_go_through_the_polar_factor_of_the_very_noise(noise: Noise) -> None:
    assert not is_isotropic(noise) and is_isotropic(GAUSSIAN) and is_isotropic(Sphere())
    for sizes in (SQUARE, WIDENING, NARROWING):
        snapshot = relu_snapshot(sizes, n_examples=4)
        found, wanted = (
            PreconditionedUpstream(exact=exact, noise=replace(noise))(snapshot, 6, torch.Generator().manual_seed(0))  # type: ignore[type-var]
            for exact in (False, True)
        )
        torch.testing.assert_close(found.guesses, wanted.guesses, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("noise", [GAUSSIAN, Sphere()], ids=["Gaussian", "sphere"])
@pytest.mark.parametrize("sizes", [SQUARE, WIDENING, NARROWING], ids=["square", "widening", "narrowing"])
def test_sampled_moments_are_those_predicted(sizes: tuple[int, ...], noise: Noise) -> None:
    """Total variance and mean of 40 000 guesses to 4.5 standard errors, 2 % of the variance; theory decomposes all."""
    snapshot, estimator = relu_snapshot(sizes), PreconditionedUpstream(noise=noise, layers="separate")
    found = estimator(snapshot, 40_000, torch.Generator().manual_seed(1))
    predicted = fga.predict(snapshot, estimator)["variance"].sel(space="activation").to_numpy()
    for guess, exact, variance in zip(found.guesses, snapshot.gradients, predicted[:-1], strict=True):
        error = guess.std(0) / len(guess) ** 0.5
        assert bool(((guess.mean(0) - exact).abs() <= 4.5 * error + 1e-12).all())
        squares = (guess - exact).square().sum((1, 2))
        spread = float(squares.std()) / len(guess) ** 0.5
        assert abs(float(squares.mean()) - variance) <= 4.5 * spread + 1e-12
        assert 4.5 * spread < 0.1 * variance


def narrow_jacobian(dtype: torch.dtype = DOUBLE) -> UpstreamJacobian:
    """10 units above 64 on 12 examples: half of the units live, 3 in the last example, none in the one before it."""
    generator = torch.Generator().manual_seed(0)
    derivative = (torch.rand(12, 64, generator=generator) < 0.5).to(dtype)
    derivative[-1, 3:], derivative[-1, :3], derivative[-2] = 0, 1, 0
    return UpstreamJacobian(torch.randn(10, 64, generator=generator, dtype=DOUBLE).to(dtype), derivative)


def columns(jacobian: UpstreamJacobian, in_law: bool = False) -> Tensor:
    """A of every example, (example, unit, next_unit), from what the factor makes of each axis of the noise."""
    axes = torch.eye(10, dtype=jacobian.weight.dtype)[:, None, :].expand(-1, len(jacobian.derivative), -1)
    return preconditioned._by_gram(jacobian, in_law).apply(axes).permute(1, 2, 0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(DOUBLE, 1e-11), (torch.float32, 1e-5)])
def test_the_gram_matrix_gives_the_polar_factor(dtype: torch.dtype, tolerance: float) -> None:
    jacobian = narrow_jacobian(dtype)
    found = columns(jacobian)
    right = torch.linalg.svd(jacobian.dense(), full_matrices=False).Vh[:10]
    covariance = found @ found.mT
    torch.testing.assert_close(covariance[:10], right.mT @ right, rtol=0, atol=tolerance)
    polar = preconditioned._partial_isometry(jacobian).mT
    torch.testing.assert_close(found[:10], polar[:10], rtol=0, atol=tolerance)
    # Fewer live units than units above: J is decomposed, and no null direction fills up what is missing.
    assert torch.equal(found[10:], polar[10:])
    assert not found[10].any() and not found[11, 3:].any()
    torch.testing.assert_close(found[11, :3] @ found[11, :3].T, torch.eye(3, dtype=dtype), rtol=0, atol=tolerance)
    predicted = theory_factor(jacobian.weight.double().numpy(), jacobian.derivative.double().numpy())
    written = np.matmul(predicted.left, predicted.right.transpose(0, 2, 1))
    np.testing.assert_allclose(found.numpy(), written, atol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(DOUBLE, 1e-11), (torch.float32, 1e-5)])
def test_a_cholesky_factor_gives_its_law(dtype: torch.dtype, tolerance: float) -> None:
    """Another rotation of the noise of each example: Σ is the projector on the row space all the same."""
    jacobian = narrow_jacobian(dtype)
    found, polar = columns(jacobian, in_law=True), columns(jacobian)
    torch.testing.assert_close(found @ found.mT, polar @ polar.mT, rtol=0, atol=tolerance)
    assert (found - polar).abs().max() > 0.1


def test_ill_conditioned_jacobians_are_decomposed() -> None:
    """Rows that are nearly the same: their Gram matrix would leave half of the digits, J itself leaves all."""
    jacobian = narrow_jacobian()
    weight = jacobian.weight.clone()
    weight[1] = weight[0] + 1e-7 * weight[1]
    close = UpstreamJacobian(weight, jacobian.derivative[:10])
    assert torch.equal(columns(close), preconditioned._partial_isometry(close).mT)


def test_pairs_of_rows_are_multiplied_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = columns(narrow_jacobian())
    monkeypatch.setattr(preconditioned, "PAIRS_AT_ONCE", 30)
    torch.testing.assert_close(columns(narrow_jacobian()), whole)


def columns_in_law(jacobian: UpstreamJacobian) -> Tensor:
    """A of every example by the route that draws a law, (example, unit, next_unit)."""
    n = len(jacobian.weight)
    axes = torch.eye(n, dtype=jacobian.weight.dtype)[:, None, :].expand(-1, len(jacobian.derivative), -1)
    return preconditioned._in_law(jacobian).apply(axes).permute(1, 2, 0)


def test_dependent_columns_are_found_and_decomposed() -> None:
    """A unit that copies another, one that nothing reads, saturated ones: Σ is the projector on the row space."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 5, generator=generator, dtype=DOUBLE)
    weight[:, 1], weight[:, 4] = 2 * weight[:, 0], 0
    derivative = torch.ones(5, 5, dtype=DOUBLE)
    derivative[1, 0], derivative[2], derivative[3] = 0, 0, 1e-12
    derivative[4, 2] = 1e-20  # below what double precision tells from zero
    for dtype, tolerance in ((DOUBLE, 1e-11), (torch.float32, 1e-5)):
        jacobian = UpstreamJacobian(weight.to(dtype), derivative.to(dtype))
        found = columns_in_law(jacobian)
        for one, example in zip(found, jacobian.dense().double(), strict=True):
            right = torch.linalg.svd(example).Vh[: int(torch.linalg.matrix_rank(example))]
            torch.testing.assert_close((one @ one.mT).double(), right.mT @ right, rtol=0, atol=tolerance)
        assert [int(torch.linalg.matrix_rank(one)) for one in found] == [3, 3, 0, 3, 2]


@pytest.mark.parametrize("activation", [torch.nn.ReLU, torch.nn.Tanh])
def test_independent_columns_are_not_decomposed(
    activation: type[torch.nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network of `studies.step_cost`, and a smooth one: nothing but one linear system of W for a whole batch."""
    generator, decomposed = torch.Generator().manual_seed(0), []

    def counting(jacobian: UpstreamJacobian) -> Tensor:
        decomposed.append(len(jacobian.derivative))
        return jacobian.dense()

    network = fga.networks.mlp([40, 128, 128, 10], bias=False, seed=0, activation=activation)
    inputs, targets = torch.randn(32, 40, generator=generator), torch.arange(32) % 10
    snapshot = fga.capture(network, torch.nn.functional.cross_entropy, inputs, targets)
    monkeypatch.setattr(preconditioned, "_partial_isometry", counting)
    PreconditionedUpstream()(snapshot, 1, generator)
    assert decomposed == [0, 0]


def test_the_condition_is_a_bound_from_below() -> None:
    generator = torch.Generator().manual_seed(1)
    for shape in ((5, 5), (9, 4), (40, 40)):
        weight = torch.randn(shape, generator=generator, dtype=DOUBLE)
        values = torch.linalg.svdvals(weight)
        assert 1e-4 * values[-1] / values[0] < preconditioned._condition(1e-30 * weight) <= values[-1] / values[0]
        assert preconditioned._condition(torch.cat([weight, weight[:, :1]], dim=1)) == 0
    assert preconditioned._condition(torch.zeros(3, 2)) == 1
