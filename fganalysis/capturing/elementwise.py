"""φ', the derivative of what stands between a tap and a Linear module, where it is elementwise."""

from __future__ import annotations

from functools import lru_cache
from typing import cast

import torch
from torch import Tensor

from fganalysis.capturing.recording import Recorded

PROBE_SEED = 0


def linear_next(recording: Recorded, following: int | None) -> tuple[Tensor, Tensor] | None:
    """What arrives at the next tap, with its graph, and its weight, where it is a Linear module."""
    if following is None:
        return None
    call = recording.sites[following].call
    given = [*call.arguments, *call.keywords.values()]
    if type(call.module).forward is not torch.nn.Linear.forward or len(given) != 1 or not isinstance(given[0], Tensor):
        return None
    return given[0], cast(torch.nn.Linear, call.module).weight.detach()


def elementwise_derivative(recording: Recorded, index: int, following: int | None, checked: bool) -> Tensor | None:
    """φ' of what stands between a tap and the next, in the shape of its output; None unless it is elementwise.

    J of an elementwise map is diagonal, so that Jᵀr over r is φ' for every r. With ``checked`` two r show whether it
    is: one of ones, and one of random powers of two, by which products and quotients are exact.
    """
    if recording.tangents is not None:
        return recording.tangents[index]
    if (index, following) not in recording.derivatives:
        recording.derivatives[index, following] = _pulled_derivative(recording, index, following, checked)
    return recording.derivatives[index, following]


def _pulled_derivative(recording: Recorded, index: int, following: int | None, checked: bool) -> Tensor | None:
    arrived = linear_next(recording, following)
    output = recording.sites[index].output
    if arrived is None or arrived[0].shape != output.shape or not arrived[0].requires_grad:
        return None
    (pulled,) = torch.autograd.grad(
        arrived[0], output, torch.ones_like(arrived[0]), retain_graph=True, allow_unused=True
    )
    if pulled is None or not checked:
        return pulled
    cotangent = _powers(tuple(output.shape)).to(output)
    (again,) = torch.autograd.grad(arrived[0], output, cotangent, retain_graph=True, allow_unused=True)
    expected = again / cotangent
    error = (pulled - expected).abs_().sub_(expected.abs_(), alpha=1e-3)
    return pulled if bool(error.max() <= 1e-5) else None


@lru_cache(maxsize=64)
def _powers(shape: tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(PROBE_SEED)
    return torch.exp2(torch.randint(-2, 3, shape, generator=generator).float())
