"""Closed form of the local loss: the projection on the gradient of a linear head under the mean cross-entropy."""

from __future__ import annotations

import numpy as np
import torch

from fganalysis import estimators
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.predictions.arrays import (
    Array,
    blocks_of,
    double,
    inputs_of,
    jacobians_of,
    refuse_other_than_plain,
)
from fganalysis.predictions.guess import Guess, GuessOnRows
from fganalysis.predictions.linear import with_the_same_slopes
from fganalysis.predictions.protocol import ClosedForm
from theory import feedback, local_loss


def _local_loss(snapshot: Snapshot, estimator: estimators.LocalLoss) -> Guess:
    """The projection on the gradient of a linear head under the mean cross-entropy."""
    untrained = estimator.mode == "trained" and estimator.optimiser is None
    if estimator.head != "linear" or estimator.mode == "redrawn" or untrained or estimator.blocks is not None:
        return Guess()
    refuse_other_than_plain(snapshot)
    factor = _cross_entropies(snapshot)
    if factor is None:
        return Guess()
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
    return Guess([feedback.deterministic(guess) for guess in guesses], certain=True)


def _cross_entropies(snapshot: Snapshot) -> float | None:
    """The factor c if the loss is c times the mean cross-entropy against class indices, and otherwise None.

    The factor follows from the values of the loss on three batches of logits and from its exact gradient at the
    outputs. These are compared relative to their sizes.
    """
    if not isinstance(snapshot.outputs, torch.Tensor) or not isinstance(snapshot.targets, torch.Tensor):
        return None
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


def _on_rows(snapshot: Snapshot, estimator: estimators.LocalLoss, size: int) -> GuessOnRows:
    """In weight space the projection mixes the rows."""
    mixes = estimator.space != "activation"
    return GuessOnRows() if mixes else with_the_same_slopes(_local_loss, snapshot, estimator, size)


LOCAL_LOSS = ClosedForm(_local_loss, on_rows=_on_rows)
