"""Slopes by a true forward-mode pass (torch.func.jvp): no backward pass, no autograd graph.

The slopes equal the inner products with the exact gradient in `Snapshot.slopes`, as a test checks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from fganalysis.capturing.attention import unfused_attention
from fganalysis.capturing.batch import along_examples, called, differentiable, functionally_called, replaced
from fganalysis.capturing.calls import Calls
from fganalysis.capturing.errors import CannotMeasure
from fganalysis.capturing.tap import Layer, Layers, Loss, Tap

EXAMPLES_IN_A_PASS = 64  # Whose slopes are taken in one pass through a loss that is no mean over examples.


class Frozen(Protocol):
    """The parts of a `Snapshot` that a forward pass needs."""

    @property
    def network(self) -> torch.nn.Module: ...
    @property
    def loss_fn(self) -> Loss: ...
    @property
    def inputs(self) -> Any: ...
    @property
    def targets(self) -> Any: ...
    @property
    def taps(self) -> tuple[Tap, ...]: ...
    @property
    def weights(self) -> tuple[Layer, ...]: ...
    @property
    def n_examples(self) -> int: ...
    @property
    def mean_loss(self) -> bool: ...


# Threads share the levels of forward mode and the hooks on the network, so they take turns.
LOCK = threading.RLock()


def activation_slopes(snapshot: Frozen, directions: Sequence[Tensor], layers: Layers, by_example: bool) -> Tensor:
    """Slopes, (guess, 1 or tap, example), along (guess, row, unit) directions a tap; without ``by_example`` their sum.

    Source: docs/mathematics.md#setting.
    """
    origin = tuple(torch.zeros_like(tap.outputs) for tap in snapshot.taps)
    return _slopes(snapshot, partial(moved_outputs, snapshot), origin, tuple(directions), layers, by_example)


def moved_outputs(snapshot: Frozen, perturbations: Sequence[Tensor]) -> Any:
    """The network's outputs with something added to the outputs of every tap, (row, unit)."""
    places = {
        (tap.name, tap.number, tap.place): tap.layout.whole(perturbation)
        for tap, perturbation in zip(snapshot.taps, perturbations, strict=True)
    }

    def leaving(name: str, number: int, place: int, output: Tensor) -> Tensor:
        added = places.get((name, number, place))
        return output.clone() if added is None else output + added

    with Calls(tap_modules(snapshot), leaving):
        return called(snapshot.network, snapshot.inputs)


def tap_modules(snapshot: Frozen) -> list[tuple[str, torch.nn.Module]]:
    """Name and module of the taps."""
    return [(name, snapshot.network.get_submodule(name)) for name in dict.fromkeys(tap.name for tap in snapshot.taps)]


def weight_slopes(snapshot: Frozen, directions: Sequence[Tensor], layers: Layers) -> Tensor:
    """Slopes of the batch's loss, (guess, 1 or layer), along (guess, unit, input) directions a layer.

    Raises:
        CannotMeasure: weights that go through an operation without forward mode, such as a parametrization's.
    """
    parameters = {name: value.detach() for name, value in snapshot.network.named_parameters()}
    buffers = dict(snapshot.network.named_buffers())

    def outputs(weights: Sequence[Tensor]) -> Any:
        moved = dict(parameters)
        for layer, weight in zip(snapshot.weights, weights, strict=True):
            moved |= layer.by_parameter(weight)
        # A forward pass may write to buffers, and a tangent must not stay in one.
        fresh = {name: buffer.clone() for name, buffer in buffers.items()}
        return functionally_called(snapshot.network, (moved, fresh), snapshot.inputs)

    origin = tuple(layer.weight for layer in snapshot.weights)
    try:
        return _slopes(snapshot, outputs, origin, tuple(directions), layers, False).squeeze(-1)
    except NotImplementedError as error:
        raise CannotMeasure(
            "forward mode (torch.func.jvp) has no rule for an operation on the weights of this network, such as that "
            "of a parametrization: use autodiff='reverse', which needs none"
        ) from error


def _slopes(
    snapshot: Frozen,
    outputs: Callable[[Sequence[Tensor]], Any],
    origin: tuple[Tensor, ...],
    directions: tuple[Tensor, ...],
    layers: Layers,
    by_example: bool,
) -> Tensor:
    def losses(moved: tuple[Tensor, ...]) -> Tensor:
        result = outputs(moved)
        if by_example:
            return _example_losses(snapshot, result)
        return snapshot.loss_fn(result, snapshot.targets).unsqueeze(0)

    def slope(tangents: tuple[Tensor, ...]) -> Tensor:
        if by_example and not snapshot.mean_loss:
            return _by_parts(snapshot, outputs, origin, tangents)
        slopes: Tensor = torch.func.jvp(losses, (origin,), (tangents,))[1]
        return slopes

    with LOCK, torch.no_grad(), unfused_attention():
        over_guesses = torch.func.vmap(slope)
        if layers == "joint":
            return over_guesses(directions).unsqueeze(1)
        alone = [
            tuple(d if index == layer else torch.zeros_like(d) for index, d in enumerate(directions))
            for layer in range(len(directions))
        ]
        return torch.stack([over_guesses(tangents) for tangents in alone], dim=1)


def _example_losses(snapshot: Frozen, outputs: Tensor) -> Tensor:
    """ℓ_b, (example,): each example's loss, carrying the 1/B of the mean."""

    def of_one(output: Tensor, target: Tensor) -> Tensor:
        return snapshot.loss_fn(output.unsqueeze(0), target.unsqueeze(0))

    return torch.func.vmap(of_one)(outputs, snapshot.targets) / snapshot.n_examples


def _by_parts(
    snapshot: Frozen,
    outputs: Callable[[Sequence[Tensor]], Any],
    origin: tuple[Tensor, ...],
    tangents: tuple[Tensor, ...],
) -> Tensor:
    """Slopes by example, (example,), of a loss that is a sum of parts: only one example's outputs move at a time."""
    kept: list[Any] = []

    def leaves(moved: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        kept[:] = [outputs(moved)]
        return differentiable(kept[0])

    at: tuple[Tensor, ...]
    at, along = torch.func.jvp(leaves, (origin,), (tangents,))[:2]
    structure, ids = kept[0], [id(leaf) for leaf in differentiable(kept[0])]

    def loss(parts: tuple[Tensor, ...]) -> Tensor:
        return snapshot.loss_fn(replaced(structure, dict(zip(ids, parts, strict=True))), snapshot.targets)

    def of_example(chosen: Tensor) -> Tensor:
        masked = []
        for tangent in along:
            by_number = along_examples(chosen, tangent)
            masked.append(torch.zeros_like(tangent) if by_number is None else tangent * by_number)
        slope: Tensor = torch.func.jvp(loss, (at,), (tuple(masked),))[1]
        return slope

    examples = torch.eye(snapshot.n_examples, dtype=at[0].dtype, device=at[0].device)
    slopes: Tensor = torch.func.vmap(of_example, chunk_size=EXAMPLES_IN_A_PASS)(examples)
    return slopes
