"""FDFA: its updates, its state, and its moments against theory, by enumeration and by sampling at frozen weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import ActivityPerturbation, ForwardDirectFeedback, ForwardDirectFeedbackAdam
from fganalysis.estimators.adam import AdamState
from fganalysis.estimators.feedback.delivery import output_changes
from fganalysis.estimators.feedback.forward_direct_feedback import feedback_samples
from fganalysis.estimators.noise import GAUSSIAN
from fganalysis.testing import exact_moments, signs, three_points
from tests import laws
from tests.law_claims import BIASED, Row
from theory import feedback as theory
from theory.feedback import LearnedFeedback

CLAIMS = [
    Row(ForwardDirectFeedback(), (*BIASED, "state")),
    Row(ForwardDirectFeedback(rate=0.3, steps=2), (*BIASED, "state")),
    Row(ForwardDirectFeedbackAdam(rate=0.1, steps=1), (*BIASED, "state")),
]
SNAPSHOT = laws.tiny_snapshot((3, 5, 4, 2), n_examples=6, bias=True)
STATEFUL = [ForwardDirectFeedback, ForwardDirectFeedbackAdam]
Kind = type[ForwardDirectFeedback] | type[ForwardDirectFeedbackAdam]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def predicted(
    snapshot: Snapshot, estimator: ForwardDirectFeedback, fourth: float = 3.0, steps: float | None = None
) -> list[LearnedFeedback]:
    derivatives = [jacobian.derivative.numpy() for jacobian in snapshot.upstream]
    return theory.forward_direct_feedback(
        theory.output_jacobians([jacobian.weight.numpy() for jacobian in snapshot.upstream], derivatives),
        derivatives,
        snapshot.gradients[-1].numpy(),
        estimator.rate,
        estimator.steps if steps is None else steps,
        initial=None if estimator.feedback is None else [matrix[0].numpy() for matrix in estimator.feedback],
        fourth=[fourth] * len(derivatives),
    )


# What perturbed activations do to the output


@pytest.mark.parametrize("bias", [False, True])
def test_output_changes_are_the_same_by_jacobians_by_their_product_and_by_forward_mode(bias: bool) -> None:
    reverse, forward = (
        laws.tiny_snapshot((3, 5, 4, 2), 6, bias=bias, autodiff=mode) for mode in ("reverse", "forward")
    )
    directions = [GAUSSIAN.draw((7, *tap.outputs.shape), generator(), tap.outputs) for tap in reverse.taps[:-1]]
    found = output_changes(reverse, directions)
    torch.testing.assert_close(found, output_changes(forward, directions), rtol=1e-10, atol=1e-12)
    chain = theory.output_jacobians(
        [jacobian.weight.numpy() for jacobian in reverse.upstream],
        [jacobian.derivative.numpy() for jacobian in reverse.upstream],
    )
    pairs = zip(chain, directions, strict=True)
    expected = sum(np.einsum("bou,gbu->gbo", jacobian, u.numpy()) for jacobian, u in pairs)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10, atol=1e-12)
    # Negative control: perturbing before φ instead of behind it is something else.
    before = [u * jacobian.derivative for u, jacobian in zip(directions, reverse.upstream, strict=True)]
    assert not torch.allclose(found, output_changes(reverse, before), rtol=1e-2)


# Updates and state


def test_a_step_is_the_moving_average_of_the_samples() -> None:
    start = tuple(torch.randn(1, 2, n, generator=generator(), dtype=torch.float64) for n in (5, 4))
    moved = ForwardDirectFeedback(rate=0.25, feedback=start).advanced(SNAPSHOT, generator(3))
    samples = feedback_samples(SNAPSHOT, GAUSSIAN, 1, generator(3))
    assert moved.feedback is not None
    for before, sample, after in zip(start, samples, moved.feedback, strict=True):
        torch.testing.assert_close(after, 0.75 * before + 0.25 * sample, rtol=1e-12, atol=1e-14)
    directions = [
        GAUSSIAN.draw((1, *tap.outputs.shape), g, tap.outputs) for g in [generator(3)] for tap in SNAPSHOT.taps
    ]
    changes = output_changes(SNAPSHOT, directions[:-1])[0]
    expected = torch.stack([torch.outer(d, u) for d, u in zip(changes, directions[0][0], strict=True)]).mean(0)
    torch.testing.assert_close(samples[0][0], expected, rtol=1e-12, atol=1e-14)


def test_the_adam_variant_feeds_the_feedback_gradient_to_adam() -> None:
    estimator = ForwardDirectFeedbackAdam(rate=0.03).initialised(SNAPSHOT)
    parameters = [torch.zeros(1, 2, n, dtype=torch.float64, requires_grad=True) for n in (5, 4)]
    adam = torch.optim.Adam(parameters, lr=0.03)
    for step in range(6):
        estimator = estimator.advanced(SNAPSHOT, generator(step))
        for parameter, sample in zip(parameters, feedback_samples(SNAPSHOT, GAUSSIAN, 1, generator(step)), strict=True):
            parameter.grad = parameter.detach() - sample
        adam.step()
    assert estimator.optimiser is not None
    for value, parameter in zip(estimator.optimiser.values, parameters, strict=True):
        torch.testing.assert_close(value, parameter.detach(), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("kind", STATEFUL)
def test_a_history_of_its_own_for_every_guess(kind: Kind) -> None:
    estimator = kind(rate=0.2, steps=4)
    block = estimator(SNAPSHOT, 3, generator(5))
    state, same = kind(rate=0.2).initialised(SNAPSHOT, histories=3), generator(5)
    for _ in range(4):
        state = state.advanced(SNAPSHOT, same)
    for one, other in zip(block.guesses, state(SNAPSHOT, 3, generator()).guesses, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert not torch.allclose(block.guesses[0][0], block.guesses[0][1])
    torch.testing.assert_close(block.guesses[-1][2], SNAPSHOT.gradients[-1], rtol=0, atol=0)
    laws.assert_seeded(estimator, SNAPSHOT)
    laws.assert_equivariant_under_loss_scaling(estimator, SNAPSHOT)


@pytest.mark.parametrize("kind", STATEFUL)
def test_histories_that_start_from_one_state_all_start_from_it(kind: Kind) -> None:
    state = kind(rate=0.5).initialised(SNAPSHOT).advanced(SNAPSHOT, generator())
    one = kind(rate=0.5, steps=1).with_state(state.state())(SNAPSHOT, 2, generator(8))
    by_hand = state.advanced(SNAPSHOT, generator(8))(SNAPSHOT, 1, generator())
    alone = kind(rate=0.5, steps=1).with_state(state.state())(SNAPSHOT, 1, generator(8))
    assert not torch.allclose(one.guesses[0][0], one.guesses[0][1])
    for guess, other in zip(alone.guesses, by_hand.guesses, strict=True):
        torch.testing.assert_close(guess, other, rtol=0, atol=0)


@pytest.mark.parametrize("kind", STATEFUL)
def test_the_state_survives_a_file_and_goes_on_as_if_never_written(kind: Kind, tmp_path: Path) -> None:
    noises = generator(1)
    state = kind(rate=0.1).initialised(SNAPSHOT).advanced(SNAPSHOT, noises)
    save_file(state.state(), tmp_path / "state.safetensors")
    restored = kind(rate=0.1).with_state(load_file(tmp_path / "state.safetensors"))
    twice = [one.advanced(SNAPSHOT, generator(2))(SNAPSHOT, 1, generator()) for one in (state, restored)]
    for one, other in zip(twice[0].guesses, twice[1].guesses, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert kind().state() == {} and kind().with_state({}).state() == {}
    # A call changes no state, and one state gives one guess.
    calls = [state(SNAPSHOT, 1, noises).guesses for _ in range(2)]
    torch.testing.assert_close(calls[0], calls[1], rtol=0, atol=0)


def test_without_a_history_nothing_is_fed_back() -> None:
    for kind in STATEFUL:
        hidden = kind()(SNAPSHOT, 2, generator()).guesses[:-1]
        assert all(not guess.any() for guess in hidden)
    single = laws.tiny_snapshot((3, 2))
    for kind in STATEFUL:
        (guess,) = kind(steps=2)(single, 1, generator()).guesses
        torch.testing.assert_close(guess[0], single.gradients[0])


# Moments, exactly


@pytest.mark.parametrize(
    ("sizes", "examples", "steps", "law"),
    [
        ((2, 2, 2, 2), 2, 1, signs),
        ((2, 2, 1, 2), 1, 3, signs),
        ((2, 2, 1, 2), 2, 1, three_points),
        ((2, 1, 1, 2), 2, 2, three_points),
    ],
)
def test_moments_are_those_of_the_enumeration_in_both_spaces(
    sizes: tuple[int, ...], examples: int, steps: int, law: type
) -> None:
    snapshot = laws.tiny_snapshot(sizes, n_examples=examples, seed=2)
    start = tuple(
        torch.randn(1, sizes[-1], tap.units, generator=generator(4), dtype=torch.float64) for tap in snapshot.taps[:-1]
    )
    estimator = ForwardDirectFeedback(rate=0.3, steps=steps, feedback=start)
    exact = exact_moments(estimator, snapshot, law)
    assert exact.n_points > 1 and exact.activation_mean is not None and exact.activation_covariance is not None
    found = predicted(snapshot, estimator, fourth=law().fourth(1))
    mean = np.concatenate([one.moments().mean.ravel() for one in found])
    np.testing.assert_allclose(exact.activation_mean.numpy(), mean, atol=1e-10)
    variances = np.concatenate([one.variances.ravel() for one in found])
    np.testing.assert_allclose(np.diagonal(exact.activation_covariance.numpy()), variances, atol=1e-10)
    inputs = [tap.inputs.numpy() for tap in snapshot.taps]
    weight = [one.moments().mean.T @ x for one, x in zip(found, inputs, strict=True)]
    np.testing.assert_allclose(exact.weight_mean.numpy(), np.concatenate([w.ravel() for w in weight]), atol=1e-10)
    of_weights, start_at = np.diagonal(exact.weight_covariance.numpy()), 0
    for one, x, w in zip(found, inputs, weight, strict=True):
        trace = of_weights[start_at : start_at + w.size].sum()
        start_at += w.size
        assert one.terms(x @ x.T)["variance"] == pytest.approx(trace, abs=1e-10)


def test_wrong_moments_would_be_seen() -> None:
    snapshot = laws.tiny_snapshot((2, 2, 2, 2), n_examples=2, seed=2)
    estimator = ForwardDirectFeedback(rate=0.3, steps=1)
    exact = exact_moments(estimator, snapshot, signs)
    assert exact.activation_covariance is not None
    variance = float(exact.activation_covariance.trace())

    def total(found: list[LearnedFeedback]) -> float:
        return sum(float(one.variances.sum()) for one in found)

    assert total(predicted(snapshot, estimator, fourth=1.0)) == pytest.approx(variance, rel=1e-10)
    for wrong in (
        predicted(snapshot, estimator, fourth=3.0),
        predicted(snapshot, ForwardDirectFeedback(rate=0.303, steps=1), fourth=1.0),
        predicted(snapshot, ForwardDirectFeedback(rate=0.3, steps=2), fourth=1.0),
    ):
        assert abs(total(wrong) / variance - 1) > 0.01


# Moments, sampled where enumeration cannot reach


def test_the_stationary_variance_is_that_of_activity_perturbation_times_the_rates_factor() -> None:
    """Within 3 standard errors of 4096 guesses each, about 4 % of the variance: 5 % more would be seen."""
    snapshot = laws.tiny_snapshot((4, 6, 5, 3), n_examples=4, activation=torch.nn.ReLU)
    rate, steps, n_guesses = 0.1, 60, 4096
    learned = ForwardDirectFeedback(rate=rate, steps=steps)(snapshot, n_guesses, generator(1))
    # One step at rate 1 is the activity-perturbed forward gradient, averaged over the batch by its feedback matrix.
    perturbed = ForwardDirectFeedback(rate=1.0, steps=1)(snapshot, n_guesses, generator(2))
    stationary = predicted(snapshot, ForwardDirectFeedback(rate=rate), steps=np.inf)
    for layer in range(2):
        (variance, error), (activity, activity_error) = (
            variance_of(block.guesses[layer]) for block in (learned, perturbed)
        )
        factor = rate / (2 - rate)
        assert abs(variance - factor * activity) <= 3 * np.hypot(error, factor * activity_error)
        assert abs(variance - stationary[layer].terms()["variance"]) <= 3 * error + 1e-5 * variance
        assert abs(variance - 1.2 * factor * activity) > 3 * np.hypot(error, factor * activity_error)
        mean = learned.guesses[layer].mean(0).numpy()
        expected = stationary[layer].exact + stationary[layer].spread
        assert np.abs(mean - expected).max() <= 5 * np.sqrt(stationary[layer].variances.max() / n_guesses) + 2e-3


def variance_of(guesses: torch.Tensor) -> tuple[float, float]:
    """Total variance of guesses (guess, example, unit) and its standard error."""
    squares = (guesses - guesses.mean(0)).square().sum((1, 2)).numpy()
    return float(squares.mean()), float(squares.std(ddof=1) / np.sqrt(len(squares)))


def test_activity_perturbation_itself_has_that_variance_but_for_the_noise_at_the_output() -> None:
    """Linear network, one example: both perturb the same activations, the one the output tap besides."""
    snapshot = laws.tiny_snapshot((3, 5, 4, 2), n_examples=1, activation=torch.nn.Identity)
    rate = 0.2
    activity = fga.sample(snapshot, ActivityPerturbation(), n_guesses=4096, seed=1)
    learned = fga.sample(snapshot, ForwardDirectFeedback(rate=rate, steps=40), n_guesses=4096, seed=1)
    at_output = float(snapshot.gradients[-1].square().sum())
    for layer, units in zip(snapshot.layers[:-1], (5, 4), strict=True):
        here = {"space": "activation", "layer": layer}
        factor = rate / (2 - rate)
        expected = factor * (float(activity["variance"].sel(here)) - units * at_output)
        error = np.hypot(float(learned["variance_se"].sel(here)), factor * float(activity["variance_se"].sel(here)))
        found = float(learned["variance"].sel(here))
        assert abs(found - expected) <= 3 * error
        assert error < 0.1 * expected
        assert abs(found - factor * float(activity["variance"].sel(here))) > 3 * error


# What is refused


@pytest.mark.parametrize("kind", STATEFUL)
def test_what_does_not_fit_is_refused_in_one_sentence(kind: Kind) -> None:
    for rate in (0.0, 1.5):
        with pytest.raises(ValueError, match=f"rate must be a finite number above 0 and at most 1, got {rate}"):
            kind(rate=rate)
    for steps in (-1, 1.5):
        with pytest.raises(ValueError, match=f"steps must be a whole number of at least 0, got {steps}"):
            kind(steps=steps)
    with pytest.raises(ValueError, match="histories must be a whole number of at least 1, got 0"):
        kind().initialised(SNAPSHOT, histories=0)
    three = kind().initialised(SNAPSHOT, histories=3)
    with pytest.raises(ValueError, match="feedback holds 3 histories: n_guesses must be as many, got 2"):
        three(SNAPSHOT, 2, generator())
    other = kind().initialised(laws.tiny_snapshot((3, 5, 5, 2)))
    with pytest.raises(ValueError, match=r"the feedback of tap '2' must have the shape \(1, 2, 4\), got \(1, 2, 5\)"):
        other(SNAPSHOT, 1, generator())


def test_a_state_with_holes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the state lacks 'feedback\.0'"):
        ForwardDirectFeedback().with_state({"feedback.1": torch.zeros(1)})
    whole = AdamState.at([torch.zeros(2)]).tensors()
    with pytest.raises(
        ValueError, match=r"the state is not that of an Adam optimiser: it holds first\.0, second\.0, step"
    ):
        AdamState.of_tensors({name: tensor for name, tensor in whole.items() if name != "values.0"})
