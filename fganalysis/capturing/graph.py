"""The graph of taps: which tap's outputs reach which other tap first, read from autograd's graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

Node = tuple[Any, int]


def downstream(outputs: Sequence[Tensor]) -> list[list[int]]:
    """For every tap the taps that its outputs reach without passing through another, the one that runs first in front.

    outputs: with their graphs, in the order of the forward pass. The first is the next tap: skip paths between the two
    are part of the map from one to the other. Where there are more, a branch goes around the next tap.
    """
    reached: list[list[int]] = [[] for _ in outputs]
    for index, output in enumerate(outputs):
        for earlier in sources(output, outputs):
            reached[earlier].append(index)
    return reached


def is_chain(reached: Sequence[Sequence[int]], outputs: Sequence[Tensor], loss: Tensor) -> bool:
    """Whether every tap, and the loss at the end, is computed from the tap before it and from no other tap.

    reached: from `downstream`.
    """
    last = len(outputs) - 1
    following = all(list(taps) == ([index + 1] if index < last else []) for index, taps in enumerate(reached))
    return following and sources(loss, outputs) == {last}


def sources(tensor: Tensor, outputs: Sequence[Tensor], passing: bool = False) -> set[int]:
    """The taps that a tensor is computed from without passing through another tap; a tap is no source of itself.

    passing: those that it is computed from through others as well.
    """
    places: dict[Node, int] = {}
    for index, output in enumerate(outputs):
        if output.grad_fn is not None and output is not tensor:
            places[(output.grad_fn, output.output_nr)] = index
    found: set[int] = set()
    seen: set[Any] = set()
    pending: list[Node] = [] if tensor.grad_fn is None else [(tensor.grad_fn, tensor.output_nr)]
    while pending:
        node, place = pending.pop()
        if node is None:
            continue
        tap = places.get((node, place))
        if tap is not None:
            found.add(tap)
        if (tap is None or passing) and node not in seen:
            seen.add(node)
            pending.extend(node.next_functions)
    return found
