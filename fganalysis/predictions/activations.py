"""Mean and second moments of the guesses made at the activations; `MOMENTS` says how, class by class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from fganalysis import estimators
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators.noise import is_isotropic
from fganalysis.predictions.arrays import Array, blocks_of, double, inputs_of, jacobians_of
from fganalysis.predictions.directions import FACTORS, linear_moments
from theory import activation_mixing, averaging, feedback, local_loss, minibatch, normalised_upstream
from theory.linear_guess import Moments


def moments_of(snapshot: Snapshot, estimator: Any) -> list[Moments] | None:
    """Moments of an estimator's activation guess, where they are known."""
    if type(estimator) in FACTORS:
        if isinstance(estimator, estimators.Upstream) and estimator.normalise:
            return _normalised_moments(snapshot, estimator)
        factors = FACTORS[type(estimator)](snapshot, estimator)
        return None if factors is None else linear_moments(snapshot, estimator, factors)
    make = MOMENTS.get(type(estimator))
    return None if make is None else make(snapshot, estimator)


def _normalised_moments(snapshot: Snapshot, estimator: estimators.Upstream) -> list[Moments] | None:
    """None for shared noise with the batch's slope, and for a law that is not rotation-invariant."""
    units = snapshot.taps[-1].units
    mixes = estimator.shared and estimator.slope == "batch" and snapshot.n_examples > 1
    if mixes or not is_isotropic(estimator.noise):
        return None
    pairs = jacobians_of(snapshot)
    return normalised_upstream.moments(
        double(snapshot.gradients),
        [weight for weight, _ in pairs],
        [derivative for _, derivative in pairs],
        fourth=estimator.noise.fourth(units),
        pair=estimator.noise.pair(units),
        shared=estimator.shared,
        slope=estimator.slope,
        layers=estimator.layers,
    )


def _backpropagation_moments(snapshot: Snapshot, estimator: estimators.Backpropagation) -> list[Moments]:
    return [feedback.deterministic(gradient) for gradient in double(snapshot.gradients)]


def _feedback(snapshot: Snapshot, estimator: Any) -> list[Moments]:
    """Feedback alignment, or direct feedback: deterministic, given the matrices."""
    chained = isinstance(estimator, estimators.FeedbackAlignment)
    guess = feedback.chained_feedback if chained else feedback.direct_feedback
    derivatives = [derivative for _, derivative in jacobians_of(snapshot)]
    guesses = guess(derivatives, double(snapshot.gradients)[-1], double(estimator.matrices(snapshot)))
    return [feedback.deterministic(one) for one in guesses]


def _learned_feedback(snapshot: Snapshot, estimator: estimators.ForwardDirectFeedback) -> list[Moments] | None:
    started = estimator.feedback
    if started and len(started[0]) > 1:
        return None
    weights, derivatives = [w for w, _ in jacobians_of(snapshot)], [d for _, d in jacobians_of(snapshot)]
    units = [tap.units for tap in snapshot.taps[:-1]]
    found = feedback.forward_direct_feedback(
        feedback.output_jacobians(weights, derivatives),
        derivatives,
        double(snapshot.gradients)[-1],
        estimator.rate,
        estimator.steps,
        initial=None if started is None else [matrix[0] for matrix in double(started)],
        fourth=[estimator.noise.fourth(n) for n in units],
        pair=[estimator.noise.pair(n) for n in units],
    )
    return [layer.moments() for layer in found]


def _adam_feedback(snapshot: Snapshot, estimator: estimators.ForwardDirectFeedbackAdam) -> list[Moments] | None:
    if estimator.steps:
        return None
    matrices = None if estimator.optimiser is None else estimator.optimiser.values
    return _learned_feedback(snapshot, estimators.ForwardDirectFeedback(feedback=matrices))


def _local_loss(snapshot: Snapshot, estimator: estimators.LocalLoss) -> list[Moments] | None:
    """The projection on the gradient of a linear head under the mean cross-entropy."""
    untrained = estimator.mode == "trained" and estimator.optimiser is None
    if estimator.head != "linear" or estimator.mode == "redrawn" or untrained:
        return None
    factor = _cross_entropies(snapshot)
    if factor is None:
        return None
    targets, jacobians = snapshot.targets.cpu().numpy(), jacobians_of(snapshot)
    blocks = blocks_of(snapshot)

    def head_gradients(trained: bool) -> list[Array]:
        found = []
        heads = [double(head) for head in estimator.own_heads(snapshot, trained)]
        for block, (_, derivative), (weight, bias) in zip(blocks, jacobians, heads, strict=True):
            found.append(factor * local_loss.linear_head_gradient(block, derivative, weight, bias, targets))
        return found

    gradients = double(snapshot.gradients)
    aims = gradients if estimator.target == "global" else head_gradients(estimator.optimiser is not None)
    kernels = [x @ x.T if estimator.space == "weight" else None for x in inputs_of(snapshot)]
    hidden = zip(aims, head_gradients(estimator.mode == "trained"), kernels, strict=False)
    guesses = [*(local_loss.projected(*one) for one in hidden), gradients[-1]]
    return [feedback.deterministic(one) for one in guesses]


def _cross_entropies(snapshot: Snapshot) -> float | None:
    """How many times the mean cross-entropy against class indices the loss is; None where it is none.

    By its values on three batches of logits and by its exact gradient at the outputs, in units of their own size.
    """
    targets, error = snapshot.targets.cpu().numpy(), double(snapshot.gradients)[-1]
    if targets.ndim != 1 or targets.dtype.kind not in "iu" or snapshot.outputs.shape != error.shape:
        return None
    classes = error.shape[1]
    if classes < 2 or not np.isin(targets, np.arange(classes)).all():
        return None
    with torch.no_grad():
        probes = [torch.zeros_like(snapshot.outputs), snapshot.outputs, -snapshot.outputs]
        losses = [float(snapshot.loss_fn(probe, snapshot.targets)) for probe in probes]
    factor = losses[0] / np.log(classes)
    outputs = double([snapshot.outputs])[0]
    expected = [factor * local_loss.cross_entropy(logits, targets) for logits in (outputs, -outputs)]
    slope = factor * local_loss.cross_entropy_error(outputs, targets)
    same = np.allclose(losses[1:], expected, rtol=1e-4, atol=1e-5 * abs(factor))
    if factor == 0 or not np.isfinite(factor) or not same:
        return None
    close = np.allclose(error, slope, rtol=1e-4, atol=1e-5 * abs(factor) / len(error))
    return float(factor) if close else None


def _mixing_moments(snapshot: Snapshot, estimator: estimators.ActivationMixing) -> list[Moments] | None:
    rotation_invariant = abs(estimator.noise.fourth(8) - 3 * estimator.noise.pair(8)) < 1e-12
    if estimator.normalise and not rotation_invariant:
        return None
    gradients, jacobians = double(snapshot.gradients), jacobians_of(snapshot)
    sizes = [snapshot.n_examples] * len(jacobians) + [snapshot.taps[-1].units]
    return activation_mixing.moments(
        blocks_of(snapshot),
        [g @ weight for g, (weight, _) in zip(gradients[1:], jacobians, strict=True)],
        [derivative for _, derivative in jacobians],
        gradients[-1],
        [estimator.noise.fourth(n) for n in sizes],
        [estimator.noise.pair(n) for n in sizes],
        normalise=estimator.normalise,
        slope=estimator.slope,
        layers=estimator.layers,
    )


def _minibatch_moments(snapshot: Snapshot, estimator: estimators.Minibatch) -> list[Moments]:
    return [minibatch.gradient_moments(gradient, estimator.size) for gradient in double(snapshot.gradients)]


def _averaged_moments(snapshot: Snapshot, estimator: estimators.Averaged) -> list[Moments] | None:
    single = moments_of(snapshot, estimator.estimator)
    return single and [averaging.averaged_moments(moment, estimator.n_averaged) for moment in single]


def _subsampled_moments(snapshot: Snapshot, estimator: estimators.Subsampled) -> list[Moments] | None:
    pairs = subsampled_pairs(snapshot, estimator)
    return None if pairs is None else [minibatch.subsampled_moments(*pair, estimator.size) for pair in pairs]


def subsampled_pairs(snapshot: Snapshot, estimator: estimators.Subsampled) -> list[tuple[Moments, Moments]] | None:
    """For every tap the inner guess on the whole batch, and the same with a slope for each example."""
    sloped = _with_own_slopes(estimator.estimator)
    if sloped is None:
        return None
    whole, by_example = (moments_of(snapshot, one) for one in (estimator.estimator, sloped))
    if whole is None or by_example is None:
        return None
    return list(zip(whole, by_example, strict=True))


def _with_own_slopes(inner: Any) -> Any:
    """The estimator with a slope for each example; None unless its guess on some rows is that part of one on all."""
    if isinstance(inner, estimators.Averaged):
        single = _with_own_slopes(inner.estimator)
        return single and replace(inner, estimator=single)
    if type(inner) in FACTORS:
        return None if inner.shared and inner.slope == "batch" else replace(inner, slope="example")
    apart = isinstance(inner, estimators.Backpropagation | estimators.FeedbackAlignment | estimators.DirectFeedback)
    learned = isinstance(inner, estimators.ForwardDirectFeedback | estimators.ForwardDirectFeedbackAdam)
    local = isinstance(inner, estimators.LocalLoss) and inner.space == "activation"
    return inner if apart or local or (learned and inner.steps == 0) else None


MOMENTS: dict[type, Callable[[Snapshot, Any], list[Moments] | None]] = {
    estimators.Backpropagation: _backpropagation_moments,
    estimators.ActivationMixing: _mixing_moments,
    estimators.FeedbackAlignment: _feedback,
    estimators.DirectFeedback: _feedback,
    estimators.ForwardDirectFeedback: _learned_feedback,
    estimators.ForwardDirectFeedbackAdam: _adam_feedback,
    estimators.LocalLoss: _local_loss,
    estimators.Minibatch: _minibatch_moments,
    estimators.Averaged: _averaged_moments,
    estimators.Subsampled: _subsampled_moments,
}
