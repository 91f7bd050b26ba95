"""Losses at moved weights, and the steps that move them, for checks of the gradient by differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fganalysis.capturing.batch import functionally_called, map_tensors
from fganalysis.capturing.precision import LONGEST, SHORTEST
from fganalysis.capturing.refusals import mean_loss
from fganalysis.capturing.snapshot import Snapshot

# Tolerances of the checks at capture. They must be large enough that no right network is refused and small enough that
# every wrong one is. To tune them again, change them and run tests/unit/capturing/test_capture_checks.py, which has
# networks of both kinds.
DIFFERENCE_STEPS = {torch.float32: 1e-3, torch.float64: 1e-5}  # Lengths of steps relative to each parameter's norm.
ROUNDINGS = 4.0  # Rounding error of a loss from rounded activations, in units of their precision.
ROUNDINGS_OF_LOSS = 30.0  # Rounding error of the loss function alone, in units of its precision.


class Losses:
    """Losses at moved weights. The loss function is evaluated in double precision where it accepts that.

    precision: of the activations, at best that of the network's data type.
    """

    def __init__(self, snapshot: Snapshot, precision: torch.dtype | None = None):
        self._snapshot = snapshot
        self._precision = precision or snapshot.dtype
        outputs, targets = snapshot.outputs, snapshot.targets
        self._double = False
        self._targets = targets
        self.before = self._first_value(outputs)
        # The loss of wrong outputs, for how much may cancel in one that is nearly zero.
        try:
            self._typical = abs(self._value(map_tensors(outputs, lambda t: -t if t.is_floating_point() else t)))
        except Exception:
            self._typical = 0.0
        pairs = zip(snapshot.exact_gradients or (), snapshot.taps, strict=False)
        self._worth = sum(float((gradient * tap.outputs).abs_().sum()) for gradient, tap in pairs)

    def _first_value(self, outputs: Any) -> float:
        """The loss, in double precision from then on if the loss function accepts that."""
        if self._snapshot.dtype != torch.float64:
            targets, self._targets, self._double = self._targets, map_tensors(self._targets, doubled), True
            try:
                return self._value(outputs)
            except Exception:
                self._targets, self._double = targets, False
        return self._value(outputs)

    def _value(self, outputs: Any) -> float:
        outputs = map_tensors(outputs, lambda t: t.detach())
        outputs = map_tensors(outputs, doubled) if self._double else outputs
        return float(self._snapshot.loss_fn(outputs, self._targets).detach().double())

    def rounding(self, after: float = 0.0) -> float:
        """The largest error of a difference of two losses by rounding."""
        eps = torch.finfo(self._precision).eps
        loss_precision = torch.finfo(torch.float64).eps if self._double else eps
        typical = self._typical / 8 if np.isfinite(self._typical) else 0.0
        # A gradient at the outputs that is a small difference, as that of a saturated softmax, is rounded too.
        activations = self._worth + DIFFERENCE_STEPS[self._precision] * typical
        return ROUNDINGS * eps * activations + ROUNDINGS_OF_LOSS * loss_precision * max(
            abs(self.before), abs(after), typical
        )

    def moved(self, step: Mapping[str, Tensor], along: Sequence[str] = ()) -> tuple[float, dict[str, float]]:
        """The loss at moved parameters and, for the parameters named, the slopes along the step there."""
        snapshot, parameters = self._snapshot, dict(self._snapshot.network.named_parameters())
        with torch.enable_grad():
            moved = {name: parameters[name].detach() + change for name, change in step.items()}
            for name in along:
                moved[name].requires_grad_()
            buffers = {name: buffer.clone() for name, buffer in snapshot.network.named_buffers()}
            outputs = functionally_called(snapshot.network, {**moved, **buffers}, snapshot.inputs)
            gradients: Sequence[Tensor | None] = ()
            if along:
                loss = mean_loss(snapshot.loss_fn, outputs, snapshot.targets)
                gradients = torch.autograd.grad(loss, [moved[name] for name in along], allow_unused=True)
        # What was rounded into a moved parameter is the step that was made.
        slopes = {
            name: 0.0 if gradient is None else dot(gradient, moved[name].detach() - parameters[name].detach())
            for name, gradient in zip(along, gradients, strict=True)
        }
        return self._value(outputs), slopes


def doubled(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def size_of(parameter: Tensor) -> float:
    """The norm of a parameter; for a parameter of zeros that of small entries."""
    return max(norm_of(parameter.detach()), 1e-2 * parameter.numel() ** 0.5)


class Directions:
    """Directions in which a step moves parameters: a random unit vector plus the unit vector along the gradient.

    Rows of an embedding that pad stay: autograd calls their gradient zero, as training leaves them where they are,
    although the loss of a batch in which they occur depends on them.
    """

    def __init__(self, network: torch.nn.Module):
        self._parameters = dict(network.named_parameters())
        padding = {
            id(module.weight): module.padding_idx
            for module in network.modules()
            if isinstance(module, torch.nn.Embedding | torch.nn.EmbeddingBag) and module.padding_idx is not None
        }
        self._still = {name: padding[id(p)] for name, p in self._parameters.items() if id(p) in padding}

    def __call__(self, name: str, gradient: Tensor | None, generator: torch.Generator) -> Tensor:
        direction = direction_of(self._parameters[name].detach(), gradient, generator)
        if name in self._still:
            direction[self._still[name]] = 0
        return direction


def direction_of(parameter: Tensor, gradient: Tensor | None, generator: torch.Generator) -> Tensor:
    """A random unit vector plus the unit vector along the gradient."""
    direction = torch.rand(parameter.shape, generator=generator).sub_(0.5).to(parameter)
    direction /= direction.norm()
    length = 0.0 if gradient is None else norm_of(gradient)
    if gradient is None or length == 0:
        return direction
    if SHORTEST <= length <= LONGEST:
        return direction.add_(gradient, alpha=1 / length)
    # Divided first by the largest entry: the squares of small numbers are zero.
    scaled = gradient / gradient.abs().max()
    return direction.add_(scaled / scaled.norm())


def norm_of(tensor: Tensor) -> float:
    size = float(torch.linalg.vector_norm(tensor))
    if SHORTEST <= size <= LONGEST:
        return size
    largest = float(tensor.abs().max())
    return largest * float((tensor / largest).norm()) if largest > 0 else 0.0


def dot(first: Tensor, second: Tensor) -> float:
    if not all(SHORTEST <= float(torch.linalg.vector_norm(part)) <= LONGEST for part in (first, second)):
        first, second = first.double(), second.double()
    return float(torch.dot(first.flatten(), second.flatten()))
