"""Local losses: the projection on a head's gradient against its definition and against autograd."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fganalysis as fga
from fganalysis.estimators import LocalLoss, train_heads
from fganalysis.estimators.adam import AdamState
from fganalysis.estimators.local import heads
from fganalysis.testing import exact_moments
from tests import laws
from tests.unit.estimators.local_losses import KINDS, SNAPSHOT, generator, guesses, heads_of, module_of, small
from theory import local_loss as theory
from theory import quantities
from theory.feedback import deterministic


def reference_direction(kind: heads.Kind, head: tuple[Tensor, ...], index: int) -> Tensor:
    """v by autograd from the tap's output on, (example, unit)."""
    outputs = SNAPSHOT.taps[index].outputs.clone().requires_grad_()
    loss = torch.nn.functional.cross_entropy(module_of(kind, head)(torch.tanh(outputs)), SNAPSHOT.targets)
    return torch.autograd.grad(loss, outputs)[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("trained", [False, True])
def test_the_guess_is_the_projection_on_the_heads_gradient(kind: heads.Kind, trained: bool) -> None:
    estimator = small(kind, mode="trained" if trained else "frozen", rate=0.02)
    if trained:
        estimator = train_heads(estimator, SNAPSHOT, 5)
    for space in ("activation", "weight"):
        chosen = replace(estimator, space=space)
        found = guesses(chosen)
        for index, head in enumerate(heads_of(estimator)):
            v, target = reference_direction(kind, head, index), SNAPSHOT.gradients[index]
            if space == "activation":
                coefficient = (target * v).sum(1, keepdim=True) / v.square().sum(1, keepdim=True)
            else:
                inputs = SNAPSHOT.taps[index].inputs
                of_weights, exact = v.T @ inputs, target.T @ inputs
                coefficient = (exact * of_weights).sum() / of_weights.square().sum()
            torch.testing.assert_close(found[index][0], coefficient * v, rtol=1e-9, atol=1e-14)
        torch.testing.assert_close(found[-1][0], SNAPSHOT.gradients[-1], rtol=0, atol=0)
    assert not torch.allclose(found[0], guesses(estimator)[0], rtol=1e-2)  # the two spaces differ


@pytest.mark.parametrize("space", ["activation", "weight"])
@pytest.mark.parametrize("kind", KINDS)
def test_with_its_own_gradient_for_a_target_a_head_guesses_that_gradient(kind: heads.Kind, space: Any) -> None:
    estimator = small(kind, target="local", space=space)
    for index, head in enumerate(heads_of(estimator)):
        torch.testing.assert_close(
            guesses(estimator)[index][0], reference_direction(kind, head, index), rtol=1e-9, atol=1e-14
        )


def test_a_local_target_is_the_trained_heads_and_the_guess_the_frozen_ones() -> None:
    """The cell of the paper's matrix in which the two heads differ."""
    estimator = train_heads(LocalLoss(target="local", rate=0.1), SNAPSHOT, 20)
    frozen = heads_of(LocalLoss())
    for index, head in enumerate(heads_of(estimator)):
        v, target = reference_direction("linear", frozen[index], index), reference_direction("linear", head, index)
        coefficient = (target * v).sum(1, keepdim=True) / v.square().sum(1, keepdim=True)
        torch.testing.assert_close(guesses(estimator)[index][0], coefficient * v, rtol=1e-9, atol=1e-14)
        assert not torch.allclose(coefficient * v, target, rtol=0.05)


def test_the_networks_own_last_layer_as_a_head_is_backpropagation() -> None:
    snapshot = laws.tiny_snapshot((5, 4, 3), n_examples=6, bias=True)
    last = snapshot.taps[-1].weight
    own = LocalLoss(mode="trained", optimiser=AdamState.at([last[:, :-1], last[:, -1]]))
    torch.testing.assert_close(guesses(own, snapshot)[0][0], snapshot.gradients[0], rtol=1e-9, atol=1e-14)
    scaled = LocalLoss(mode="trained", optimiser=AdamState.at([1.5 * last[:, :-1], last[:, -1]]))
    assert not torch.allclose(guesses(scaled, snapshot)[0][0], snapshot.gradients[0], rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("space", ["activation", "weight"])
def test_of_all_multiples_the_guess_is_the_nearest(kind: heads.Kind, space: Any) -> None:
    """Best scale 1, for frozen heads and for redrawn ones, in the space of the projection."""
    for mode in ("frozen", "redrawn"):
        block = small(kind, mode=mode, space=space)(SNAPSHOT, 3, generator())
        inner, squares = block.inner_products(SNAPSHOT)
        row = ["activation", "weight"].index(space)
        torch.testing.assert_close(inner[row], squares[row], rtol=1e-9, atol=1e-15)
        if space == "activation":
            for guess, exact in zip(block.guesses, SNAPSHOT.gradients, strict=True):
                torch.testing.assert_close((guess * exact).sum(-1), guess.square().sum(-1), rtol=1e-8, atol=1e-16)


@pytest.mark.parametrize("space", ["activation", "weight"])
def test_theory_predicts_a_linear_heads_guess(space: Any) -> None:
    estimator = train_heads(LocalLoss(mode="trained", space=space, rate=0.05), SNAPSHOT, 3)
    means, kernels = [], [tap.kernel.numpy() for tap in SNAPSHOT.taps]
    gradients = [gradient.numpy() for gradient in SNAPSHOT.gradients]
    for index, (weight, bias) in enumerate(heads_of(estimator)):
        derivative = SNAPSHOT.upstream[index].derivative.numpy()
        block = np.tanh(SNAPSHOT.taps[index].outputs.numpy())
        targets = SNAPSHOT.targets.numpy()
        v = theory.linear_head_gradient(block, derivative, weight.numpy(), bias.numpy(), targets)
        means.append(theory.projected(gradients[index], v, kernels[index] if space == "weight" else None))
    means.append(gradients[-1])
    for found, expected in zip(guesses(estimator), means, strict=True):
        np.testing.assert_allclose(found[0].numpy(), expected, rtol=1e-9, atol=1e-15)
    moments = [deterministic(mean) for mean in means]
    predicted = quantities.quantities(
        gradients, means, [m.second_moment(k) for m, k in zip(moments, kernels, strict=True)], kernels
    )
    measured = fga.sample(SNAPSHOT, estimator, n_guesses=64, block_size=8).sel(space="weight")
    for name in ("relative_bias", "shrinkage", "efficiency", "best_scale"):
        np.testing.assert_allclose(measured[name], predicted[name], rtol=1e-6, atol=1e-9)
    exact = exact_moments(estimator, SNAPSHOT)
    torch.testing.assert_close(exact.weight_covariance, torch.zeros_like(exact.weight_covariance), rtol=0, atol=1e-15)


def test_the_error_of_a_projection_is_that_of_its_angle() -> None:
    rng = np.random.default_rng(0)
    target, v, inputs = rng.normal(size=(4, 3)), rng.normal(size=(4, 3)), rng.normal(size=(4, 2))
    v[1] = 0.0
    guess = theory.projected(target, v)
    assert not guess[1].any()
    cosine = np.sum(target[0] * v[0]) / np.linalg.norm(target[0]) / np.linalg.norm(v[0])
    assert np.sum((guess - target)[0] ** 2) == pytest.approx((1 - cosine**2) * np.sum(target[0] ** 2))
    of_weights, exact = v.T @ inputs, target.T @ inputs
    expected = np.sum(of_weights * exact) / np.sum(of_weights**2) * of_weights
    np.testing.assert_allclose(theory.projected(target, v, inputs @ inputs.T).T @ inputs, expected)
    with pytest.raises(ValueError, match="target and direction must have the same shape"):
        theory.projected(target, v[:2])
    with pytest.raises(ValueError, match="targets must be class indices from 0 to 2"):
        theory.cross_entropy_error(target, np.array([0, 1, 2, 3]))
