"""Feedback on networks that are no chain of Linear modules, each against an independent route."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import FeedbackAlignment, label
from fganalysis.estimators.feedback.replaced_weights import carriers, gradients_through
from tests.networks.zoo import ZOO, build, normal


@cache
def snapshot_of(name: str) -> Snapshot:
    case = ZOO[name]()
    return fga.capture(case.network, case.loss_fn, case.inputs, case.targets)


def guesses(estimator: Any, snapshot: Snapshot, n_guesses: int = 1) -> tuple[Tensor, ...]:
    found: tuple[Tensor, ...] = estimator(snapshot, n_guesses, torch.Generator().manual_seed(0)).guesses
    return found


def assert_close(found: Any, expected: Any) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-13)


def true_weights(snapshot: Snapshot) -> tuple[Tensor, ...]:
    weights = [module.get_parameter("weight").detach() for module in carriers(snapshot).values()]
    return tuple(weight.T if weight.ndim == 2 else weight for weight in weights)


# Feedback alignment


@pytest.mark.parametrize("name", ZOO)
def test_with_the_true_weights_it_is_backpropagation(name: str) -> None:
    snapshot = snapshot_of(name)
    if snapshot.is_chain:
        pytest.skip("a chain of Linear modules, which test_feedback.py holds")
    weights = true_weights(snapshot)
    found = [guess[0] for guess in guesses(FeedbackAlignment(feedback=weights), snapshot)]
    assert_close(found, snapshot.gradients)
    # Every carrier matters: with one of them scaled, some gradient is another.
    for index in range(len(weights)):
        scaled = tuple(1.01 * weight if i == index else weight for i, weight in enumerate(weights))
        other = [guess[0] for guess in guesses(FeedbackAlignment(feedback=scaled), snapshot)]
        assert any(not torch.allclose(a, b, rtol=1e-6, atol=0) for a, b in zip(found, other, strict=True))


class Skipping(nn.Module):
    """Elementwise functions between Linear modules, and a sum around the second one."""

    def __init__(self, skips: bool = True) -> None:
        super().__init__()
        self.first, self.inner, self.read = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.skips = skips

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(inputs))
        inner = torch.tanh(self.inner(hidden))
        return self.read(hidden + inner if self.skips else inner)


def captured(network: nn.Module, inputs: Tensor, **settings: Any) -> Snapshot:
    targets = torch.arange(len(inputs)) % 3
    return fga.capture(network, nn.functional.cross_entropy, inputs, targets, **settings)


def skipping(skips: bool = True) -> Snapshot:
    return captured(build(lambda: Skipping(skips)), normal(5, 3))


def test_a_branch_around_a_tap_is_no_chain_and_its_path_counts() -> None:
    snapshot, plain = skipping(), skipping(False)
    assert plain.is_chain and not snapshot.is_chain
    with pytest.raises(ValueError, match="the network is no chain of Linear modules: a branch goes around a tap"):
        _ = snapshot.upstream
    estimator = FeedbackAlignment(seed=4)
    first, second = (matrix.T for matrix in estimator.matrices(snapshot))
    error = snapshot.gradients[-1]
    slopes = [1 - torch.tanh(tap.outputs).square() for tap in snapshot.taps[:2]]
    at_inner = error @ second * slopes[1]
    whole = (error @ second + at_inner @ first) * slopes[0]
    found = [guess[0] for guess in guesses(estimator, snapshot)]
    assert_close(found, [whole, at_inner, error])
    assert not torch.allclose(found[0], at_inner @ first * slopes[0], rtol=1e-2)  # without the skip path


def test_on_a_chain_the_graph_gives_what_the_products_with_the_slopes_give() -> None:
    snapshot = skipping(False)
    estimator = FeedbackAlignment(seed=2, scale=1.3)
    weights = dict(zip(carriers(snapshot), [matrix.T for matrix in estimator.matrices(snapshot)], strict=True))
    assert_close(gradients_through(snapshot, weights), [guess[0] for guess in guesses(estimator, snapshot)])


def test_random_kernels_keep_the_length_of_an_error() -> None:
    """Over 300 seeds within 4 standard errors, for Linear and grouped, strided and transposed convolutions."""
    network = build(
        lambda: nn.Sequential(
            nn.Conv1d(2, 4, 1), nn.Conv1d(4, 6, 2, groups=2), nn.ConvTranspose1d(6, 4, 2, stride=2, groups=2),
            nn.Conv1d(4, 4, 3, stride=2), nn.Flatten(), nn.Linear(4, 5), nn.Linear(5, 3),
        )
    )  # fmt: skip
    snapshot = captured(network, normal(2, 2, 3))
    drawn = [guesses(FeedbackAlignment(seed=seed), snapshot) for seed in range(300)]
    squares = torch.tensor([[float(guess.square().sum()) for guess in one] for one in drawn])
    ratios = squares[:, :-1] / squares[:, 1:]
    spread = 4 * ratios.std(0) / len(drawn) ** 0.5
    assert bool(((ratios.mean(0) - 1).abs() <= spread).all()), ratios.mean(0)


def test_a_module_behind_the_last_tap_passes_the_exact_gradient() -> None:
    network = build(
        lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))
    )
    network[4].requires_grad_(False)
    snapshot = captured(network, normal(5, 3))
    assert list(carriers(snapshot)) == ["2"]
    assert_close([guesses(FeedbackAlignment(), snapshot)[-1][0]], [snapshot.gradients[-1]])


@pytest.mark.parametrize("name", ["conv", "gpt_tied", "conv_batch_norm", "vit"])
def test_a_pass_with_other_weights_leaves_the_network_as_it_was(name: str) -> None:
    snapshot = snapshot_of(name)
    before = {key: value.clone() for key, value in snapshot.network.state_dict().items()}
    first, second = guesses(FeedbackAlignment(seed=1), snapshot), guesses(FeedbackAlignment(seed=1), snapshot, 2)
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one.expand_as(other), other, rtol=0, atol=0)
    after = snapshot.network.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert not any(module._forward_hooks for module in snapshot.network.modules())


def test_what_feedback_alignment_cannot_do_is_refused_in_one_sentence() -> None:
    snapshot = snapshot_of("conv")
    shapes = [tuple(matrix.shape) for matrix in FeedbackAlignment().matrices(snapshot)]
    assert shapes == [(2, 2, 2, 2), (2, 3)]
    with pytest.raises(ValueError, match=r"the feedback of tap '3' must have the shape \(2, 2, 2, 2\), got \(2, 3\)"):
        guesses(FeedbackAlignment(feedback=(torch.ones(2, 3).double(),) * 2), snapshot)
    network = build(lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 3)))
    with pytest.raises(ValueError, match="takes a backward pass between its taps: use autodiff='reverse'"):
        fga.estimate_gradient(
            network, nn.functional.cross_entropy, normal(4, 3), torch.tensor([0, 1, 2, 0]), FeedbackAlignment(),
            torch.Generator(), autodiff="forward",
        )  # fmt: skip


# Sampling and training


ESTIMATORS: list[Any] = [FeedbackAlignment()]


@pytest.mark.parametrize("name", ["conv", "gpt", "resnet", "adapters"])
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=label)
def test_they_are_sampled_and_train(name: str, estimator: Any) -> None:
    measured = fga.sample(snapshot_of(name), estimator, n_guesses=8, block_size=4)
    assert bool(measured["cosine"].sel(space="weight", layer="all").notnull())
    case = ZOO[name]()
    optimizer = torch.optim.SGD(case.network.parameters(), 0.05)
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        optimizer.zero_grad()
        fga.estimate_gradient(case.network, case.loss_fn, case.inputs, case.targets, estimator, generator)
        optimizer.step()
    trained = [parameter for parameter in case.network.parameters() if parameter.requires_grad]
    assert all(parameter.grad is not None and bool(parameter.grad.isfinite().all()) for parameter in trained)
