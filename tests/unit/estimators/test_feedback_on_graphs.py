"""Feedback on networks that are no chain of Linear modules, each against an independent route."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import (
    ActivationMixing,
    DirectFeedback,
    FeedbackAlignment,
    ForwardDirectFeedback,
    ForwardDirectFeedbackAdam,
    LocalLoss,
    label,
)
from fganalysis.estimators.feedback import delivery
from fganalysis.estimators.feedback.delivery import output_changes
from fganalysis.estimators.feedback.forward_direct_feedback import feedback_samples
from fganalysis.estimators.feedback.replaced_weights import carriers, gradients_through
from fganalysis.estimators.noise import GAUSSIAN
from tests.networks.by_hand import WRITTEN, Written, captured, skipping, written
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


def test_a_branch_around_a_tap_is_no_chain_and_its_path_counts() -> None:
    snapshot, plain = skipping(), skipping(False)
    assert plain.is_chain and not snapshot.is_chain
    estimator = FeedbackAlignment(seed=4)
    first, second = (matrix.T for matrix in estimator.matrices(snapshot))
    error = snapshot.gradients[-1]
    slopes = [1 - torch.tanh(tap.outputs).square() for tap in snapshot.taps[:2]]
    at_inner = error @ second * slopes[1]
    whole = (error @ second + at_inner @ first) * slopes[0]
    found = [guess[0] for guess in guesses(estimator, snapshot)]
    assert_close(found, [whole, at_inner, error])
    assert not torch.allclose(found[0], at_inner @ first * slopes[0], rtol=1e-2)  # without the skip path


class Around(nn.Module):
    """A branch from the hidden layer around the last one, to the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.read = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.first(inputs)
        outputs: Tensor = hidden + self.read(torch.tanh(hidden))
        return outputs


def test_a_branch_around_the_last_tap_counts() -> None:
    snapshot = captured(build(Around), normal(5, 3))
    with pytest.raises(ValueError, match="the network is no chain of Linear modules: a branch goes around a tap"):
        _ = snapshot.upstream
    found = [guess[0] for guess in guesses(FeedbackAlignment(feedback=true_weights(snapshot)), snapshot)]
    assert_close(found, snapshot.gradients)


def test_it_takes_examples_that_interact() -> None:
    def batch_norm() -> nn.Module:
        return nn.Sequential(nn.Conv1d(1, 2, 2), nn.BatchNorm1d(2), nn.ReLU(), nn.Flatten(), nn.Linear(6, 3))

    snapshot = captured(build(batch_norm).train(), normal(5, 1, 4))
    assert snapshot.interaction
    found = [guess[0] for guess in guesses(FeedbackAlignment(feedback=true_weights(snapshot)), snapshot)]
    assert_close(found, snapshot.gradients)


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


# Direct feedback


def output_jacobians(case: Written) -> list[Tensor]:
    """∂outputs/∂(what arrives) of every example, (example, number at the outputs, number), dense."""
    found = []
    for arriving, after in zip(case.arriving, case.after, strict=True):
        dense = torch.func.jacrev(after)(arriving.detach())  # (example, …, example, …)
        n = len(arriving)
        dense = dense.reshape(n, -1, n, arriving[0].numel())
        found.append(torch.stack([dense[b, :, b] for b in range(n)]))
        rest = dense.clone()
        rest[torch.arange(n), :, torch.arange(n)] = 0
        assert not bool(rest.any())
    return found


@pytest.mark.parametrize("name", WRITTEN)
def test_direct_feedback_is_delivered_at_the_next_tap_and_pulled_back(name: str) -> None:
    case = written(name)
    snapshot = case.snapshot
    estimator = DirectFeedback(seed=3, scale=0.7)
    error = snapshot.gradients[-1].reshape(snapshot.n_examples, -1)
    expected = []
    for output, arriving, matrix in zip(case.outputs, case.arriving, estimator.matrices(snapshot), strict=True):
        assert tuple(matrix.shape) == (arriving[0].numel(), error.shape[1])
        vector = (error @ matrix.T).reshape(arriving.shape)
        expected.append(torch.autograd.grad(arriving, output, vector, retain_graph=True)[0])
    found = [guess[0] for guess in guesses(estimator, snapshot)]
    at_taps = [tap.layout.rows(guess) for tap, guess in zip(snapshot.taps, expected, strict=False)]
    assert_close(found, [*at_taps, snapshot.gradients[-1]])


@pytest.mark.parametrize("name", WRITTEN)
def test_outputs_change_along_what_arrives_as_dense_jacobians_say(name: str) -> None:
    case = written(name)
    snapshot = case.snapshot
    generator = torch.Generator().manual_seed(0)
    jacobians = output_jacobians(case)
    along = [torch.randn(3, len(j), j.shape[2], generator=generator, dtype=torch.float64) for j in jacobians]
    expected = sum(torch.einsum("boi,gbi->gbo", j, u) for j, u in zip(jacobians, along, strict=True))
    torch.testing.assert_close(output_changes(snapshot, along), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", WRITTEN)
def test_learned_feedback_is_on_average_the_mean_jacobian(name: str) -> None:
    """Within 5 standard errors of 3000 histories in every entry; without the skip path some entry is far outside."""
    case = written(name)
    samples = feedback_samples(case.snapshot, GAUSSIAN, 3000, torch.Generator().manual_seed(1))
    for sample, jacobian in zip(samples, output_jacobians(case), strict=True):
        error = sample.std(0) / len(sample) ** 0.5
        assert bool(((sample.mean(0) - jacobian.mean(0)).abs() <= 5 * error + 1e-12).all())
    if name == "skipping":
        net: Any = case.snapshot.network
        at_inner = case.arriving[0].detach()
        slopes = 1 - torch.tanh(net.inner(at_inner)).square()
        without = torch.einsum("oi,bi,ij->oj", net.read.weight, slopes, net.inner.weight).detach() / len(slopes)
        error = samples[0].std(0) / len(samples[0]) ** 0.5
        assert bool(((samples[0].mean(0) - without).abs() > 8 * error).any())


@pytest.mark.parametrize("kind", [ForwardDirectFeedback, ForwardDirectFeedbackAdam])
def test_learned_feedback_guesses_with_its_state_and_learns(kind: Any) -> None:
    """With B the Jacobian of the output below the last tap the guess is the gradient, as all of it passes there."""
    case = written("tokens")
    snapshot = case.snapshot
    state = kind(rate=0.5).initialised(snapshot)
    values = state.feedback if kind is ForwardDirectFeedback else state.optimiser.values
    assert [tuple(b.shape) for b in values] == [(1, 8, 6)] * 4
    assert all(not bool(guess.any()) for guess in guesses(state, snapshot)[:-1])
    learned = state.advanced(snapshot, torch.Generator().manual_seed(0))
    assert all(bool(guess.any()) for guess in guesses(learned, snapshot))
    if kind is ForwardDirectFeedback:
        exact = tuple(jacobian[:1] for jacobian in output_jacobians(case))
        found = [guess[0] for guess in guesses(kind(feedback=exact), snapshot)]
        torch.testing.assert_close(found[3], snapshot.gradients[3], rtol=1e-9, atol=1e-13)
        several = guesses(kind(rate=0.5, steps=2), snapshot, 3)
        assert not torch.allclose(several[0][0], several[0][1])


def test_a_chain_with_several_rows_an_example_has_one_error_an_example() -> None:
    snapshot = captured(
        build(lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2), nn.Flatten())), normal(5, 2, 3)
    )
    assert snapshot.is_chain
    (matrix,) = DirectFeedback().matrices(snapshot)
    assert tuple(matrix.shape) == (8, 4)
    slopes = 1 - torch.tanh(snapshot.taps[0].outputs).square()
    vectors = (snapshot.gradients[1].reshape(5, 4) @ matrix.T).reshape(10, 4)
    assert_close([guesses(DirectFeedback(), snapshot)[0][0]], [vectors * slopes])


@pytest.mark.parametrize("estimator", [DirectFeedback(), ForwardDirectFeedback()], ids=label)
def test_errors_that_cannot_be_delivered_are_refused_in_one_sentence(
    estimator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch_norm = build(lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3))).train()
    with pytest.raises(ValueError, match=r"'1' is BatchNorm in training mode .* use feedback_alignment"):
        guesses(estimator, captured(batch_norm, normal(5, 3)))
    monkeypatch.setattr(delivery, "LARGEST_MATRIX", 11)
    with pytest.raises(ValueError, match=r"feedback matrix of tap 'first', 4 numbers .* is too large \(at most 11 num"):
        guesses(estimator, skipping())


# Sampling and training


ESTIMATORS: list[Any] = [
    FeedbackAlignment(),
    DirectFeedback(),
    ForwardDirectFeedback(rate=0.5, steps=2),
    ForwardDirectFeedbackAdam(rate=0.5, steps=1),
]


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


@pytest.mark.parametrize("estimator", [*ESTIMATORS, ActivationMixing(), LocalLoss(mode="redrawn")], ids=label)
def test_guesses_in_inference_mode_are_those_outside(estimator: Any) -> None:
    case = ZOO["gpt"]()
    first, second = (fga.capture(case.network, case.loss_fn, case.inputs, case.targets) for _ in range(2))
    with torch.inference_mode():
        inside = guesses(estimator, first, 2)
    assert_close(inside, guesses(estimator, second, 2))
