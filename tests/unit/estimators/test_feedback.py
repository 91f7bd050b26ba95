"""Feedback alignment and direct feedback, and the output error that every feedback estimator starts from."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import DirectFeedback, FeedbackAlignment, ForwardDirectFeedback, label
from fganalysis.estimators.feedback.matrices import output_error
from tests import laws
from theory import feedback as theory

SNAPSHOT = laws.tiny_snapshot((3, 5, 4, 2), n_examples=6, bias=True)
LINEAR = laws.tiny_snapshot((3, 5, 4, 2), n_examples=6, activation=torch.nn.Identity)
BOTH = [FeedbackAlignment, DirectFeedback]


def guesses(estimator: FeedbackAlignment | DirectFeedback, snapshot: Snapshot) -> list[torch.Tensor]:
    """The one guess, (example, unit) a tap."""
    return [guess[0] for guess in estimator(snapshot, 1, torch.Generator()).guesses]


def assert_close(found: list[torch.Tensor], expected: tuple[torch.Tensor, ...]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def arrays(snapshot: Snapshot) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
    weights = [jacobian.weight.numpy() for jacobian in snapshot.upstream]
    return weights, [jacobian.derivative.numpy() for jacobian in snapshot.upstream], snapshot.gradients[-1].numpy()


# The output error

ENDINGS: list[Callable[[], list[torch.nn.Module]]] = [
    list,
    lambda: [torch.nn.LogSoftmax(dim=1)],
    lambda: [torch.nn.Tanh()],
]


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("regression", [False, True])
def test_the_output_error_needs_no_backward_pass(
    ending: Callable[[], list[torch.nn.Module]], regression: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = torch.nn.Sequential(*fga.networks.mlp([3, 5, 4], dtype=torch.float64), *ending())
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(7, 3, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, 4, (7,), generator=generator)
    loss_fn = torch.nn.functional.cross_entropy
    if regression:
        loss_fn, targets = torch.nn.functional.mse_loss, torch.randn(7, 4, generator=generator, dtype=torch.float64)
    reverse, forward = (
        fga.capture(network, loss_fn, inputs, targets, autodiff=mode) for mode in ("reverse", "forward")
    )
    expected = output_error(reverse)

    def refused(*arguments: object, **settings: object) -> None:
        raise AssertionError("a backward pass ran")

    with monkeypatch.context() as patch:
        patch.setattr(torch.autograd, "grad", refused)
        patch.setattr(torch.Tensor, "backward", refused)
        found = output_error(forward)
    assert not found.requires_grad and found.grad_fn is None
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(expected, reverse.gradients[-1], rtol=0, atol=0)


@pytest.mark.parametrize("estimator", [FeedbackAlignment(), DirectFeedback(), ForwardDirectFeedback(rate=0.5, steps=2)])
def test_forward_mode_gives_the_same_guesses_without_a_backward_pass(
    estimator: FeedbackAlignment, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = laws.tiny_snapshot((3, 5, 4, 2), n_examples=6, bias=True, autodiff="forward")
    expected = laws.guesses_of(estimator, SNAPSHOT)

    def refused(*arguments: object, **settings: object) -> None:
        raise AssertionError("a backward pass ran")

    monkeypatch.setattr(torch.autograd, "grad", refused)
    for one, other in zip(laws.guesses_of(estimator, forward), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
        assert one.grad_fn is None


# Exact special cases


@pytest.mark.parametrize("snapshot", [SNAPSHOT, LINEAR])
def test_feedback_alignment_with_the_transposed_weights_is_backpropagation(snapshot: Snapshot) -> None:
    transposed = tuple(jacobian.weight.T for jacobian in snapshot.upstream)
    assert_close(guesses(FeedbackAlignment(feedback=transposed), snapshot), snapshot.gradients)
    scaled = guesses(FeedbackAlignment(feedback=tuple(1.01 * matrix for matrix in transposed)), snapshot)
    assert not torch.allclose(scaled[0], snapshot.gradients[0], rtol=1e-3)


def test_direct_feedback_with_the_chain_of_a_linear_network_is_backpropagation() -> None:
    weights, derivatives, _ = arrays(LINEAR)
    chain = tuple(torch.from_numpy(jacobian[0].T.copy()) for jacobian in theory.output_jacobians(weights, derivatives))
    assert_close(guesses(DirectFeedback(feedback=chain), LINEAR), LINEAR.gradients)
    # With φ' ≠ 1 between the layers no single matrix will do, but in the last hidden layer it does.
    weights, derivatives, _ = arrays(SNAPSHOT)
    chain = tuple(torch.from_numpy(jacobian[0].T.copy()) for jacobian in theory.output_jacobians(weights, derivatives))
    bent = guesses(DirectFeedback(feedback=chain), SNAPSHOT)
    torch.testing.assert_close(bent[1], SNAPSHOT.gradients[1], rtol=1e-10, atol=1e-14)
    assert not torch.allclose(bent[0], SNAPSHOT.gradients[0], rtol=1e-3)


@pytest.mark.parametrize("kind", BOTH)
def test_the_guess_is_what_theory_says(kind: type[FeedbackAlignment] | type[DirectFeedback]) -> None:
    estimator = kind(seed=3, scale=0.8)
    _, derivatives, error = arrays(SNAPSHOT)
    guess = theory.chained_feedback if kind is FeedbackAlignment else theory.direct_feedback
    matrices = [matrix.numpy() for matrix in estimator.matrices(SNAPSHOT)]
    for found, expected in zip(guesses(estimator, SNAPSHOT), guess(derivatives, error, matrices), strict=True):
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("kind", BOTH)
def test_over_seeds_length_and_alignment_are_those_of_random_matrices(
    kind: type[FeedbackAlignment] | type[DirectFeedback],
) -> None:
    """Within 4 standard errors of 600 seeds: an entry variance that is 15 % off would be seen."""
    _, derivatives, error = arrays(SNAPSHOT)
    scale = 1.3
    variances = [scale**2 / derivative.shape[1] for derivative in derivatives]
    prediction = theory.random_chained_feedback if kind is FeedbackAlignment else theory.random_direct_feedback
    drawn = [guesses(kind(seed=seed, scale=scale), SNAPSHOT) for seed in range(600)]
    for layer, predicted in enumerate(prediction(derivatives, error, variances)):
        gradient = SNAPSHOT.gradients[layer]
        squares = np.array([float(one[layer].square().sum()) for one in drawn])
        inner = np.array([float((one[layer] * gradient).sum()) for one in drawn])
        for values, expected in (
            (squares, predicted.moments().second_moment()),
            (inner, 0.0),
            (inner**2, predicted.squared_inner_product(gradient.numpy())),
        ):
            error_of_mean = values.std(ddof=1) / np.sqrt(len(values))
            assert abs(values.mean() - expected) <= 4 * error_of_mean


# As estimators


@pytest.mark.parametrize("kind", BOTH)
def test_guesses_depend_on_the_seed_alone_and_are_all_alike(
    kind: type[FeedbackAlignment] | type[DirectFeedback],
) -> None:
    laws.assert_seeded(kind(), SNAPSHOT)
    laws.assert_equivariant_under_loss_scaling(kind(seed=1), SNAPSHOT)
    block = kind()(SNAPSHOT, 3, torch.Generator().manual_seed(9))
    assert len(block) == 3
    for guess, again in zip(block.guesses, guesses(kind(), SNAPSHOT), strict=True):
        torch.testing.assert_close(guess, again.expand_as(guess), rtol=0, atol=0)
    assert not torch.allclose(guesses(kind(seed=1), SNAPSHOT)[0], block.guesses[0][0])
    measured = fga.sample(SNAPSHOT, kind(), n_guesses=64, block_size=8)
    np.testing.assert_allclose(measured["variance"].sel(layer="all"), 0, atol=1e-14)
    exact = laws.exact_gradient(SNAPSHOT)[0]
    guess = torch.cat([one.flatten() for one in guesses(kind(), SNAPSHOT)])
    bias = float(measured["bias"].sel(space="activation", layer="all"))
    assert bias == pytest.approx(float((guess - exact).norm()), rel=1e-9)


def test_labels_and_defaults() -> None:
    assert label("feedback_alignment") == "feedback_alignment"
    assert label(DirectFeedback(seed=2)) == "direct_feedback(seed=2)"
    given = DirectFeedback(feedback=tuple(torch.ones(n, 2, dtype=torch.float64) for n in (5, 4)))
    assert label(given).startswith("direct_feedback(feedback=")
    assert fga.estimators.settings(given)["scale"] == 1.0
    assert given != DirectFeedback()


def test_float32_networks_get_float32_matrices() -> None:
    network = fga.networks.mlp([3, 4, 2])
    targets = torch.tensor([0, 1, 1, 0, 1])
    snapshot = fga.capture(network, torch.nn.functional.cross_entropy, torch.eye(5, 3), targets)
    for kind in BOTH:
        assert all(guess.dtype == torch.float32 for guess in guesses(kind(), snapshot))


def test_training_by_feedback_lowers_the_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(80, 6, generator=generator)
    targets = (inputs[:, 0] > 0).long() + (inputs[:, 1] > 0).long()
    data = fga.datasets.Dataset(inputs, targets, inputs, targets)
    for autodiff in ("reverse", "forward"):
        run = fga.train(
            fga.networks.mlp([6, 16, 16, 3]),
            data,
            DirectFeedback(),
            epochs=30,
            batch_size=20,
            optimizer=lambda parameters: torch.optim.Adam(parameters, lr=1e-2),
            autodiff=autodiff,
        )
        assert float(run.log["loss"][-1]) < 0.4 * float(run.log["loss"][0])


@pytest.mark.parametrize("kind", BOTH)
def test_what_does_not_fit_is_refused_in_one_sentence(kind: type[FeedbackAlignment] | type[DirectFeedback]) -> None:
    with pytest.raises(ValueError, match="scale must be a finite number above 0, got 0"):
        kind(scale=0.0)
    one = torch.ones(5, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match="feedback must hold one matrix a hidden tap, 2 of them, got 1"):
        guesses(kind(feedback=(one,)), SNAPSHOT)
    with pytest.raises(ValueError, match=r"the feedback of tap '0' must have the shape \(5, \d\), got \(5, 3\)"):
        guesses(kind(feedback=(torch.ones(5, 3), one)), SNAPSHOT)
