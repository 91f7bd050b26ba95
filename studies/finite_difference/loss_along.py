"""The losses at moved weights, of many directions together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fganalysis.capturing.snapshot import Snapshot


def losses(snapshot: Snapshot, directions: Sequence[Tensor], step: float) -> Tensor:
    """L(θ + step·z), (guess,), for directions (guess, unit, input) a tap; networks without biases."""
    if any(tap.has_bias for tap in snapshot.taps):
        raise ValueError("the loss along a direction is for networks without biases")

    def loss(direction: tuple[Tensor, ...]) -> Tensor:
        pairs = zip(snapshot.taps, direction, strict=True)
        moved = {f"{tap.name}.weight": torch.add(tap.weight, step * part) for tap, part in pairs}
        outputs = torch.func.functional_call(snapshot.network, moved, (snapshot.inputs,))
        return snapshot.loss_fn(outputs, snapshot.targets)

    with torch.no_grad():
        found: Tensor = torch.func.vmap(loss)(tuple(directions))
    return found
