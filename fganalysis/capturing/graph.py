"""The graph of taps: which tap's outputs reach which other tap first, read from autograd's graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

Node = tuple[Any, int]


def following(outputs: Sequence[Tensor]) -> list[int | None]:
    """For every tap the next tap downstream that its outputs reach without passing through another, or None.

    outputs: with their graphs, in the order of the forward pass. Of several the one that runs first, so that skip paths
    between the two are part of the map from one to the other.
    """
    places: dict[Node, int] = {}
    for index, output in enumerate(outputs):
        if output.grad_fn is not None:
            places[(output.grad_fn, output.output_nr)] = index
    first: list[int | None] = [None] * len(outputs)
    for index, output in enumerate(outputs):
        for reached in _reached(output, places, index):
            if first[reached] is None:
                first[reached] = index
    return first


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
