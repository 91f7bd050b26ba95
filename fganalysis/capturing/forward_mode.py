"""Slopes by a true forward-mode pass (torch.func.jvp): no backward pass, no autograd graph.

The slopes equal the inner products with the exact gradient in `Snapshot.slopes`, as a test checks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from fganalysis.capturing.tap import Layers, Loss, Tap


class Frozen(Protocol):
    """The parts of a `Snapshot` that a forward pass needs."""

    @property
    def network(self) -> torch.nn.Module: ...
    @property
    def loss_fn(self) -> Loss: ...
    @property
    def inputs(self) -> Tensor: ...
    @property
    def targets(self) -> Tensor: ...
    @property
    def taps(self) -> tuple[Tap, ...]: ...
    @property
    def n_examples(self) -> int: ...


# Threads share the levels of forward mode and the hooks on the network, so they take turns.
LOCK = threading.RLock()


def activation_slopes(snapshot: Frozen, directions: Sequence[Tensor], layers: Layers) -> Tensor:
    """Slopes of each example's loss, (guess, 1 or layer, example), along (guess, example, unit) directions a tap."""
    origin = tuple(torch.zeros_like(tap.outputs) for tap in snapshot.taps)
    return _slopes(partial(_moved_losses, snapshot), origin, tuple(directions), layers)


def _moved_losses(snapshot: Frozen, perturbations: Sequence[Tensor]) -> Tensor:
    """ℓ_b, (example,), with something added to the outputs of every tap, (example, unit)."""
    modules = dict(snapshot.network.named_modules())
    handles = [
        modules[tap.name].register_forward_hook(_adding(perturbation))
        for tap, perturbation in zip(snapshot.taps, perturbations, strict=True)
    ]
    try:
        return _example_losses(snapshot, snapshot.network(snapshot.inputs))
    finally:
        for handle in handles:
            handle.remove()


def weight_slopes(snapshot: Frozen, directions: Sequence[Tensor], layers: Layers) -> Tensor:
    """Slopes of the batch's loss, (guess, 1 or layer), along (guess, unit, input) directions a tap."""
    parameters = {name: value.detach() for name, value in snapshot.network.named_parameters()}
    buffers = dict(snapshot.network.named_buffers())

    def loss(weights: tuple[Tensor, ...]) -> Tensor:
        moved = dict(parameters)
        for tap, weight in zip(snapshot.taps, weights, strict=True):
            moved |= tap.by_parameter(weight)
        outputs = torch.func.functional_call(snapshot.network, (moved, buffers), (snapshot.inputs,))
        return snapshot.loss_fn(outputs, snapshot.targets)

    return _slopes(loss, tuple(tap.weight for tap in snapshot.taps), tuple(directions), layers)


def _slopes(
    function: Callable[[tuple[Tensor, ...]], Tensor],
    origin: tuple[Tensor, ...],
    directions: tuple[Tensor, ...],
    layers: Layers,
) -> Tensor:
    def slope(tangents: tuple[Tensor, ...]) -> Tensor:
        return torch.func.jvp(function, (origin,), (tangents,))[1]

    with LOCK, torch.no_grad():
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


def _adding(perturbation: Tensor) -> Callable[[torch.nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    return lambda module, arguments, output: output + perturbation
