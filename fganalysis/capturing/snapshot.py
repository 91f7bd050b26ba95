"""Snapshot: a network frozen at one step on one batch, with everything that estimators use.

Per tap l, an output of a module with trainable parameters (docs/mathematics.md#setting, #rows):

    outputs s_l (row, unit)           gradients g_l = ∂L/∂s_l (row, unit), carrying the 1/B of the mean over examples
    owners: the example that each row belongs to; on (example, unit) arrays row b is example b

Per layer, the parameters that belong together, each counted once:

    weight W_l (unit, input)          weight gradient G_l = ∂L/∂W_l = Σ_r g_r x_rᵀ

A bias is a weight whose input is the constant 1: where a tap has one, its weight carries one more column. A frozen
parameter (``requires_grad=False``) has no columns: it is neither perturbed nor counted.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor

from fganalysis.arguments import described
from fganalysis.capturing import forward_mode
from fganalysis.capturing.batch import called
from fganalysis.capturing.jacobian import Jacobian
from fganalysis.capturing.recorded_graph import RecordedGraph
from fganalysis.capturing.tap import UNTAPPED, Autodiff, Layer, Layers, Loss, Tap
from fganalysis.capturing.upstream import UpstreamJacobian
from fganalysis.results import schema


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A network at one step on one batch. Made by `capture`; every tensor in it is constant.

    Attributes:
        network: the frozen copy of the network.
        loss_fn: ``loss_fn(outputs, targets)``, a sum or mean of parts that examples do not share.
        inputs, targets: the batch. outputs: the network's outputs on it.
        loss: the loss of the batch.
        n_examples: in the batch.
        taps: outputs of modules with trainable parameters, in execution order.
        weights: the layers, in the order in which their modules are first called, parameters of no tap last.
        exact_gradients: see `gradients`; None in a training loop in forward mode.
        untapped_gradients: of the parameters of no tap, by name.
        autodiff: how slopes are taken: "reverse" (inner product with the exact gradient) or "forward" (torch.func.jvp).
        step: the training step it was captured at.
        in_training: made by a training loop: in forward mode there is no exact gradient, as it takes a backward pass.
        mean_loss: the loss of the batch is the mean of the losses of its examples alone.
        graph: of the recorded pass; None without one, and on a part of a batch.
        plan: what was found out about the network once, for `freeze`.
        interaction: empty, or why an example's loss depends on others: slopes are then those of the batch alone.
    """

    network: torch.nn.Module
    loss_fn: Loss
    inputs: Any
    targets: Any
    outputs: Any
    loss: Tensor
    n_examples: int
    taps: tuple[Tap, ...]
    weights: tuple[Layer, ...]
    exact_gradients: tuple[Tensor, ...] | None
    untapped_gradients: Mapping[str, Tensor] = field(default_factory=dict)
    autodiff: Autodiff = "reverse"
    step: int = 0
    in_training: bool = False
    interaction: str = ""
    mean_loss: bool = True
    plan: Any = None
    graph: RecordedGraph | None = field(default=None, repr=False, compare=False)
    _memory: dict[Hashable, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(layer.name for layer in self.weights)

    @property
    def spaces(self) -> tuple[str, ...]:
        return schema.SPACES

    @property
    def one_thread(self) -> bool:
        """Forward mode hooks into the one network, and torch's dual levels are shared by threads."""
        return self.device.type != "cpu" or self.autodiff == "forward"

    @property
    def facts(self) -> dict[str, object]:
        """What a result says of the snapshot in its attributes."""
        n_parameters = sum(layer.weight.numel() for layer in self.weights)
        return {
            "network": f"{type(self.network).__name__}, {n_parameters} parameters in {len(self.weights)} layers",
            "loss": described(self.loss_fn),
            "n_examples": self.n_examples,
            "autodiff": self.autodiff,
        }

    @property
    def like(self) -> Tensor:
        """A tensor of the network's data type and device."""
        return self.taps[0].outputs

    @property
    def dtype(self) -> torch.dtype:
        return self.like.dtype

    @property
    def device(self) -> torch.device:
        return self.like.device

    @property
    def untapped_parameters(self) -> tuple[str, ...]:
        """Trainable parameters of no tap, by name: guesses at the activations have none for them."""
        return tuple(name for layer in self.weights if layer.name == UNTAPPED for name in layer.parameter_names)

    @property
    def gradients(self) -> tuple[Tensor, ...]:
        """Exact activation gradients g_l by one backward pass, (row, unit) a tap, loss per unit of activation.

        Raises:
            ValueError: in a training loop in forward mode, which takes no backward pass.
        """
        if self.exact_gradients is None:
            raise ValueError("autodiff='forward' trains without a backward pass, but this gradient takes one")
        return self.exact_gradients

    @cached_property
    def weight_gradients(self) -> tuple[Tensor, ...]:
        """Exact weight gradients G_l, (unit, input) a layer, loss per unit of weight."""
        exact = self.at_weights([gradient.unsqueeze(0) for gradient in self.gradients], with_untapped=True)
        # Kernels return transposed views, which every product with a flattened gradient would copy again.
        return tuple(gradient.contiguous() for gradient in exact)

    def at_weights(self, guesses: Sequence[Tensor], with_untapped: bool = False) -> tuple[Tensor, ...]:
        """Ĝ_l = Σ over the layer's taps of Aᵀĝ, of guesses (guess, row, unit) a tap: (guess, unit, input) a layer.

        Of a single guess without the dimension of guesses. Parameters of no tap get zero, or with ``with_untapped``
        their exact gradient.
        """
        found = []
        for layer in self.weights:
            if not layer.taps:
                exact = layer.weight.new_zeros(layer.weight.shape)
                found.append(layer.columns(self.untapped_gradients) if with_untapped else exact)
                continue
            parts = [layer.from_tap(self.taps[i], self.taps[i].weights.gradients(guesses[i])) for i in layer.taps]
            total = sum(parts[1:], parts[0])
            found.append(total[0] if len(total) == 1 else total)
        return tuple(found)

    @property
    def jacobians(self) -> tuple[Jacobian | None, ...]:
        """The upstream Jacobian of every tap, to the next tap downstream; None at an output tap, which has no next one.

        Raises:
            ValueError: without a backward pass, where anything but elementwise functions stands before the next tap.
        """
        made: tuple[Jacobian | None, ...] = self.remember("jacobians", lambda: tuple(map(self._jacobian, self.taps)))
        return made

    def _jacobian(self, tap: Tap) -> Jacobian | None:
        if tap.following is None:
            if self.graph is None and tap is not self.taps[-1]:
                raise ValueError(
                    f"the upstream Jacobian of tap {tap.name!r} is unknown without a backward pass, as more than "
                    "elementwise functions stand before the next Linear module: use autodiff='reverse'"
                )
            return None
        following = self.taps[tap.following]
        if tap.upstream is not None:
            return Jacobian(tap, following, tap.upstream)
        if self.graph is None:
            raise ValueError(f"the upstream Jacobian of tap {tap.name!r} is unknown on a part of the batch")
        at_taps = self.graph.at_taps
        return Jacobian(tap, following, outputs=(at_taps[self.taps.index(tap)], at_taps[tap.following]))

    @property
    def is_chain(self) -> bool:
        """Whether every tap but the last leads to the next through elementwise functions, and none goes around it."""
        hidden = enumerate(self.taps[:-1])
        return bool(self.plan.chain) and all(
            tap.upstream is not None and tap.following == index + 1 for index, tap in hidden
        )

    @property
    def upstream(self) -> tuple[UpstreamJacobian, ...]:
        """The upstream Jacobian of every tap but the last, of a chain of Linear modules.

        Raises:
            ValueError: anything but elementwise functions between two taps, or a branch around a tap.
        """
        for index, tap in enumerate(self.taps[:-1]):
            if tap.upstream is None or tap.following != index + 1 or tap.branches:
                raise ValueError(
                    f"the network is no chain of Linear modules: between tap {tap.name!r} and the next one there must "
                    "be elementwise functions only, and no branch around them"
                )
        if not self.is_chain:
            raise ValueError("the network is no chain of Linear modules: a branch goes around a tap")
        return tuple(tap.upstream for tap in self.taps if tap.upstream is not None)

    @cached_property
    def mixed_gradients(self) -> tuple[Tensor, ...]:
        """A G_l, (row, unit) for each tap. Its inner product with a guess ĝ_l is ⟨Ĝ_l, G_l⟩."""
        return tuple(self.mixed_gradients_of(tap) for tap in self.taps)

    def mixed_gradients_of(self, tap: Tap) -> Tensor:
        """A G_l of one tap, (row, unit)."""
        of_tap = self.weights[tap.layer].to_tap(tap, self.weight_gradients[tap.layer])
        return tap.weights.along(of_tap.unsqueeze(0))[0]

    def remember(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """The result of ``make``, computed once for each snapshot and key: for factors that cost more than a guess."""
        if key not in self._memory:
            self._memory[key] = make()
        return self._memory[key]

    def outputs_of(self, network: torch.nn.Module) -> Any:
        """What a network returns on the snapshot's inputs."""
        return called(network, self.inputs)

    def check_examples_apart(self) -> None:
        """Raises ValueError where an example's loss depends on other examples."""
        if self.interaction:
            raise ValueError(f"{self.interaction}, so there is no slope of each example: use slope='batch'")

    def slopes(self, directions: Sequence[Tensor], layers: Layers = "joint", *, by_example: bool = True) -> Tensor:
        """Directional derivatives of each example's loss along activation directions, loss per unit of direction.

        Args:
            directions: (guess, row, unit) a tap.
            layers: "joint" perturbs every tap in one pass, "separate" takes one pass a tap.
            by_example: False for the slope of the batch's loss alone.

        Returns:
            (guess, 1, example) when joint, (guess, tap, example) when separate; the last dimension is 1 without
            ``by_example``.

        Raises:
            ValueError: directions that are no tensor of this shape for every tap; examples that interact, where the
                slope of each is asked for.
        """
        _check_directions(directions, [tap.outputs for tap in self.taps])
        if by_example:
            self.check_examples_apart()
        if self.autodiff == "forward":
            return forward_mode.activation_slopes(self, directions, layers, by_example)
        by_tap = []
        for index, (tap, direction, gradient) in enumerate(zip(self.taps, directions, self.gradients, strict=True)):
            if by_example and tap.owners is not None:
                by_tap.append(tap.owners.inner_products(direction, gradient))
            elif by_example:
                by_tap.append(direction.flatten(1) @ self.shared_gradients[index].flatten(1).T)
            else:
                by_tap.append((direction.flatten(1) @ gradient.flatten()).unsqueeze(1))
        return torch.stack(by_tap, dim=1) if layers == "separate" else sum(by_tap[1:], by_tap[0]).unsqueeze(1)

    @property
    def shared_gradients(self) -> dict[int, Tensor]:
        """Gradients of each example's loss at the taps whose rows serve all examples, (example, row, unit) by index.

        Raises:
            ValueError: without a backward pass, which takes one an example.
        """
        made: dict[int, Tensor] = self.remember("shared gradients", self._shared_gradients)
        return made

    def _shared_gradients(self) -> dict[int, Tensor]:
        shared = [index for index, tap in enumerate(self.taps) if tap.owners is None]
        if self.graph is None:
            raise ValueError(
                f"tap {self.taps[shared[0]].name!r} has rows that serve all examples, whose gradients of each example "
                "are unknown here: use slope='batch'"
            )
        parts = self.graph.gradients_of_examples(shared, self.n_examples)
        return {i: self.taps[i].layout.rows(part) for i, part in zip(shared, parts, strict=True)}

    def weight_slopes(self, directions: Sequence[Tensor], layers: Layers = "joint") -> Tensor:
        """Directional derivatives of the batch's loss along weight directions (guess, unit, input) a layer.

        Returns:
            (guess, 1) when joint, (guess, layer) when separate.

        Raises:
            ValueError: directions that are no tensor of this shape for every layer.
        """
        _check_directions(directions, [layer.weight for layer in self.weights])
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
