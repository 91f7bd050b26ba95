"""The loss along directions in the space of all weights, and its derivatives there, by nested forward mode."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fganalysis.capturing.snapshot import Snapshot

Along = Callable[[Tensor, tuple[Tensor, ...]], Tensor]


def losses(snapshot: Snapshot, directions: Sequence[Tensor], step: float) -> Tensor:
    """L(θ + step·z), (guess,), for directions (guess, unit, input) a tap; networks without biases."""
    steps = torch.full((len(directions[0]),), step, dtype=snapshot.loss.dtype, device=snapshot.device)
    with torch.no_grad():
        found: Tensor = torch.func.vmap(_loss_of(snapshot))(steps, tuple(directions))
    return found


def derivatives(snapshot: Snapshot, directions: Sequence[Tensor]) -> Tensor:
    """The first three derivatives of t ↦ L(θ + t z) at 0, (derivative, guess): z·G, zᵀHz and T zzz."""

    def of_one(t: Tensor, direction: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
        def first(s: Tensor) -> Tensor:
            return _slope(lambda u: _loss_of(snapshot)(u, direction), s)

        def second(s: Tensor) -> Tensor:
            return _slope(first, s)

        return first(t), second(t), _slope(second, t)

    zeros = torch.zeros(len(directions[0]), dtype=snapshot.loss.dtype, device=snapshot.device)
    with torch.no_grad():
        return torch.stack(torch.func.vmap(of_one)(zeros, tuple(directions)))


def _slope(function: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    tangent: Tensor = torch.func.jvp(function, (t,), (torch.ones_like(t),))[1]
    return tangent


def _loss_of(snapshot: Snapshot) -> Along:
    if any(tap.has_bias for tap in snapshot.taps):
        raise ValueError("the loss along a direction is for networks without biases")

    def loss(t: Tensor, direction: tuple[Tensor, ...]) -> Tensor:
        pairs = zip(snapshot.taps, direction, strict=True)
        moved = {f"{tap.name}.weight": torch.add(tap.weight, t * part) for tap, part in pairs}
        outputs = torch.func.functional_call(snapshot.network, moved, (snapshot.inputs,))
        return snapshot.loss_fn(outputs, snapshot.targets)

    return loss
