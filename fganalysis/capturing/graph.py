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
    places: dict[Node, int] = {}
    for index, output in enumerate(outputs):
        if output.grad_fn is not None:
            places[(output.grad_fn, output.output_nr)] = index
    reached: list[list[int]] = [[] for _ in outputs]
    for index, output in enumerate(outputs):
        for earlier in _reached(output, places, index):
            reached[earlier].append(index)
    return reached


def _reached(output: Tensor, places: dict[Node, int], own: int) -> set[int]:
    """The taps that an output is computed from without passing through another tap."""
    found: set[int] = set()
    seen: set[Any] = set()
    pending: list[Node] = [] if output.grad_fn is None else list(output.grad_fn.next_functions)
    while pending:
        node, place = pending.pop()
        if node is None:
            continue
        tap = places.get((node, place))
        if tap is not None and tap != own:
            found.add(tap)
            continue
        if node not in seen:
            seen.add(node)
            pending.extend(node.next_functions)
    return found
