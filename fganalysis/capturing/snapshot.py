"""Snapshot: a network frozen at one step on one batch, with everything that estimators use.

Per tap l (a Linear module, in the order in which the forward pass reaches it; s_l = W_l x_l, as in
docs/mathematics.md#setting):

    inputs x_l (example, input)       outputs s_l (example, unit)       weight W_l (unit, input)
    gradients g_l = ∂L/∂s_l (example, unit), carrying the 1/B of the mean over examples
    upstream Jacobian J_l = ∂s_{l+1}/∂s_l per example, as an operator

A bias is a weight whose input is the constant 1: where a tap has one, its inputs and weight carry one more column.
A frozen weight or bias (``requires_grad=False``) has no columns: it is neither perturbed nor counted.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor

from fganalysis.capturing import forward_mode
from fganalysis.capturing.tap import Autodiff, Layers, Loss, Tap
from fganalysis.capturing.upstream import UpstreamJacobian

EXAMPLES_CHECKED_IN_TRAINING = 32


class CannotMeasure(ValueError):
    """A network, batch or loss that cannot be measured; the message is one sentence with the cause and the way out."""


class NonFiniteActivations(CannotMeasure):
    """A forward pass that left NaN or infinite numbers at a tap."""


@dataclass(frozen=True)
class Snapshot:
    """A network at one step on one batch. Made by `capture`; every tensor in it is constant.

    Attributes:
        network: the frozen copy of the network.
        loss_fn: ``loss_fn(outputs, targets)``, a mean over examples.
        inputs, targets: the batch. outputs: the network's outputs on it.
        loss: the mean loss.
        taps: the Linear modules with a trainable weight or bias, in execution order.
        exact_gradients: see `gradients`; None in a training loop in forward mode.
        autodiff: how slopes are taken: "reverse" (inner product with the exact gradient) or "forward" (torch.func.jvp).
        step: the training step it was captured at.
        in_training: made by a training loop: `upstream` is checked on a few examples, and in forward mode there is no
            exact gradient, as it takes a backward pass.
    """

    network: torch.nn.Module
    loss_fn: Loss
    inputs: Tensor
    targets: Tensor
    outputs: Tensor
    loss: Tensor
    taps: tuple[Tap, ...]
    exact_gradients: tuple[Tensor, ...] | None
    autodiff: Autodiff = "reverse"
    step: int = 0
    in_training: bool = False
    _memory: dict[Hashable, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def n_examples(self) -> int:
        return self.inputs.shape[0]

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(tap.name for tap in self.taps)

    @property
    def untapped_parameters(self) -> tuple[str, ...]:
        """Parameters that need a gradient and sit in no tap, by name: no estimator or comparison looks at them."""
        tapped = {name for tap in self.taps for name in tap.parameter_names}
        parameters = self.network.named_parameters()
        return tuple(name for name, parameter in parameters if parameter.requires_grad and name not in tapped)

    @property
    def gradients(self) -> tuple[Tensor, ...]:
        """Exact activation gradients g_l by one backward pass, (example, unit) a tap, loss per unit of activation.

        Raises:
            ValueError: in a training loop in forward mode, which takes no backward pass.
        """
        if self.exact_gradients is None:
            raise ValueError("autodiff='forward' trains without a backward pass, but this gradient takes one")
        return self.exact_gradients

    @cached_property
    def weight_gradients(self) -> tuple[Tensor, ...]:
        """Exact weight gradients G_l = Σ_b g_b x_bᵀ, (unit, input) a tap, loss per unit of weight."""
        return tuple(g.T @ tap.inputs for g, tap in zip(self.gradients, self.taps, strict=True))

    @property
    def upstream(self) -> tuple[UpstreamJacobian, ...]:
        """The upstream Jacobian of every tap but the last.

        Raises:
            ValueError: where backpropagation does not run through it alone: something between two taps mixes units, or
                a branch goes around a tap.
        """
        return self.remember("upstream", self._checked_upstream)

    def _checked_upstream(self) -> tuple[UpstreamJacobian, ...]:
        jacobians = []
        rows = slice(None, None, -(-self.n_examples // EXAMPLES_CHECKED_IN_TRAINING) if self.in_training else None)
        for index, tap in enumerate(self.taps[:-1]):
            unseen = self.exact_gradients is None
            if tap.upstream is None or not (unseen or self.runs_through(index, rows)):
                raise ValueError(
                    f"the upstream Jacobian of tap {tap.name!r} is unknown: between it and the next Linear module "
                    "there must be elementwise functions only, and no branch around them"
                )
            jacobians.append(tap.upstream)
        return tuple(jacobians)

    def runs_through(self, index: int, rows: slice = slice(None)) -> bool:
        """Whether the gradient at a tap is the transposed upstream Jacobian times the gradient at the next tap."""
        jacobian = self.taps[index].upstream
        if jacobian is None:
            return False
        above, exact = self.gradients[index + 1][rows], self.gradients[index][rows]
        error = (above @ jacobian.weight) * jacobian.derivative[rows] - exact
        # In double precision: the squares of gradients below 1e-19 are zero in single precision.
        return bool(error.double().norm() <= 1e-3 * exact.double().norm())

    @cached_property
    def mixed_gradients(self) -> tuple[Tensor, ...]:
        """K_l g_l, (example, unit) for each tap. Its inner product with a guess ĝ_l is ⟨Ĝ_l, G_l⟩."""
        return tuple(tap.kernel @ gradient for tap, gradient in zip(self.taps, self.gradients, strict=True))

    def remember(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """The result of ``make``, computed once for each snapshot and key: for factors that cost more than a guess."""
        if key not in self._memory:
            self._memory[key] = make()
        return self._memory[key]

    def slopes(self, directions: Sequence[Tensor], layers: Layers = "joint") -> Tensor:
        """Directional derivatives of each example's loss along activation directions, loss per unit of direction.

        Args:
            directions: (guess, example, unit) a tap.
            layers: "joint" perturbs every tap in one pass, "separate" takes one pass a tap.

        Returns:
            (guess, 1, example) when joint, (guess, layer, example) when separate.

        Raises:
            ValueError: directions that are no tensor of this shape for every tap.
        """
        _check_directions(directions, [tap.outputs for tap in self.taps])
        if self.autodiff == "forward":
            return forward_mode.activation_slopes(self, directions, layers)
        by_layer = [
            torch.linalg.vecdot(direction, gradient)
            for direction, gradient in zip(directions, self.gradients, strict=True)
        ]
        return torch.stack(by_layer, dim=1) if layers == "separate" else sum(by_layer[1:], by_layer[0]).unsqueeze(1)

    def weight_slopes(self, directions: Sequence[Tensor], layers: Layers = "joint") -> Tensor:
        """Directional derivatives of the batch's loss along weight directions (guess, unit, input) a tap.

        Returns:
            (guess, 1) when joint, (guess, layer) when separate.

        Raises:
            ValueError: directions that are no tensor of this shape for every tap.
        """
        _check_directions(directions, [tap.weight for tap in self.taps])
        if self.autodiff == "forward":
            return forward_mode.weight_slopes(self, directions, layers)
        by_layer = [
            direction.flatten(1) @ gradient.flatten()
            for direction, gradient in zip(directions, self.weight_gradients, strict=True)
        ]
        return torch.stack(by_layer, dim=1) if layers == "separate" else sum(by_layer[1:], by_layer[0]).unsqueeze(1)


def _check_directions(directions: object, like: Sequence[Tensor]) -> None:
    """Raises ValueError unless there is a tensor (guess, …) a tap, of the shape of its outputs or weight."""
    are_tensors = isinstance(directions, list | tuple) and all(isinstance(part, Tensor) for part in directions)
    wanted = [tuple(tensor.shape) for tensor in like]
    if not are_tensors or [tuple(part.shape[1:]) for part in cast("Sequence[Tensor]", directions)] != wanted:
        raise ValueError(f"directions must be a tensor (guess, …) a tap, of the shapes {wanted} behind the guesses")
