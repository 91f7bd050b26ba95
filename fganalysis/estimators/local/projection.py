"""The projection of a target on the gradients of heads, block by block, on any network.

    activation:   ⟨target_b, v_b⟩ v_b / ‖v_b‖²     each example by itself, at the tap or at the block's output
    weight:       ⟨Target, V⟩ v / ‖V‖²             V the gradient of the block's weights

A direction of zeros stays zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators.guesses import ActivationEstimates
from fganalysis.estimators.local.blocks import Block


def projected(
    snapshot: Snapshot,
    blocks: Sequence[Block],
    directions: Sequence[Tensor],
    targets: Sequence[Tensor] | None,
    space: Literal["activation", "weight"],
) -> list[Tensor]:
    """Guesses at all taps, (guess, row, unit); the exact gradient at a tap of no block.

    directions: v of every block, (guess, example, number). targets: of the same shape with one guess, None for the
    gradient of the network's loss.
    """
    guesses: list[Tensor] = [gradient.unsqueeze(0) for gradient in snapshot.gradients]
    n_guesses = max([1, *map(len, directions)])
    if space == "weight":
        found = _at_weights(snapshot, blocks, directions, targets)
    else:
        found = {}
        for number, (block, direction) in enumerate(zip(blocks, directions, strict=True)):
            target = None if targets is None else targets[number]
            found |= _of_block(snapshot, block, near_one(direction), target)
    for index, guess in found.items():
        guesses[index] = guess
    return [guess.expand(n_guesses, -1, -1) if len(guess) == 1 else guess for guess in guesses]


def _of_block(snapshot: Snapshot, block: Block, direction: Tensor, target: Tensor | None) -> dict[int, Tensor]:
    """Projected in activation space, by tap."""
    if block.gradient is not None:
        at_output = block.gradient if target is None else target
        unit = scaled(direction, torch.linalg.vector_norm(direction, dim=-1, keepdim=True))
        slopes = torch.linalg.vecdot(unit, at_output)
        return dict(zip(block.taps, block.pull(unit * slopes.unsqueeze(-1)), strict=True))
    (index,), (at_tap,) = block.taps, block.pull(direction)
    at_tap = near_one(at_tap)
    exact = snapshot.gradients[index] if target is None else block.pull(target)[0]
    owners = snapshot.taps[index].owners

    def by_example(products: Tensor) -> Tensor:
        # A row that serves all examples has the target of the batch.
        return products.sum(-1, keepdim=True) if owners is None else owners.spread(owners.summed(products))

    norm = by_example(torch.linalg.vecdot(at_tap, at_tap)).sqrt().unsqueeze(-1)
    unit = scaled(at_tap, norm)
    return {index: unit * by_example(torch.linalg.vecdot(unit, exact)).unsqueeze(-1)}


def _at_weights(
    snapshot: Snapshot, blocks: Sequence[Block], directions: Sequence[Tensor], targets: Sequence[Tensor] | None
) -> dict[int, Tensor]:
    """Projected in weight space, by tap."""
    at_taps = _pulled(blocks, directions)
    exact = list(snapshot.gradients)
    if targets is not None:
        for index, target in _pulled(blocks, targets).items():
            exact[index] = target[0]
    n_guesses = max([1, *map(len, directions)])
    still = [torch.zeros_like(gradient).expand(n_guesses, -1, -1) for gradient in exact]
    whole = [at_taps.get(index, zeros) for index, zeros in enumerate(still)]
    aimed = replace(snapshot, exact_gradients=tuple(exact), _memory={})
    inner, squares = (part[1] for part in ActivationEstimates(tuple(whole)).inner_products(aimed))
    found = {}
    for block in blocks:
        layers = sorted({snapshot.taps[index].layer for index in block.taps})
        square = squares[layers].sum(0)
        coefficient = inner[layers].sum(0) / torch.where(square > 0, square, 1.0)
        for index in block.taps:
            found[index] = whole[index] * coefficient.to(whole[index].dtype)[:, None, None]
    return found


def _pulled(blocks: Sequence[Block], at_blocks: Sequence[Tensor]) -> dict[int, Tensor]:
    pairs = zip(blocks, at_blocks, strict=True)
    return {index: part for block, at in pairs for index, part in zip(block.taps, block.pull(at), strict=True)}


def near_one(direction: Tensor) -> Tensor:
    """Scales every guess by a power of two to a largest entry near 1, as squares of 1e-25 are zero in float32."""
    exponent = torch.frexp(direction.abs().amax((1, 2), keepdim=True)).exponent
    return torch.ldexp(direction, -exponent.clamp(min=-125))


def scaled(direction: Tensor, norm: Tensor) -> Tensor:
    return direction / torch.where(norm > 0, norm, 1.0)
