"""Loss and accuracy of a network on a data set, in evaluation mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fganalysis.arguments import check_kind
from fganalysis.capturing.refusals import forward, mean_loss
from fganalysis.capturing.tap import Loss
from fganalysis.training.datasets import Dataset, checked_data
from fganalysis.training.estimated_gradients import check_loss


def evaluate(network: torch.nn.Module, data: Dataset, loss_fn: Loss) -> dict[str, float]:
    """Loss and accuracy on the training set and accuracy on the test set, in evaluation mode.

    Raises:
        ValueError: data that the network or the loss does not take.
    """
    check_kind("network", network, torch.nn.Module, "a torch.nn.Module")
    data = checked_data(data)
    check_loss(loss_fn)
    with torch.no_grad(), in_evaluation(network):
        train_outputs = forward(network, data.train_inputs)
        loss = mean_loss(loss_fn, train_outputs, data.train_targets)
        test_accuracy = float("nan")
        if len(data.test_inputs):
            test_outputs = forward(network, data.test_inputs)
            mean_loss(loss_fn, test_outputs, data.test_targets)  # Raises for a class index beyond the outputs.
            test_accuracy = _accuracy(test_outputs, data.test_targets)
    train_accuracy = _accuracy(train_outputs, data.train_targets)
    return {"loss": float(loss), "train_accuracy": train_accuracy, "test_accuracy": test_accuracy}


@contextmanager
def in_evaluation(network: torch.nn.Module) -> Iterator[None]:
    """A context in evaluation mode, where dropout draws nothing and BatchNorm does not update its statistics."""
    training = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, flag in training.items():
            module.training = flag


def _accuracy(outputs: Any, targets: Tensor) -> float:
    """The share of right classes; NaN where targets are no class indices for each place of the outputs, a tensor."""
    if not isinstance(outputs, Tensor):
        return float("nan")
    places = (outputs.shape[0], *outputs.shape[2:]) if outputs.ndim > 1 else None
    if targets.is_floating_point() or places != targets.shape or outputs.shape[1] < 2:
        return float("nan")
    return float((outputs.argmax(1) == targets).double().mean())
