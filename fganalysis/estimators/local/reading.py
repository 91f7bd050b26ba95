"""What a head reads of a block's output, and what it predicts: from any layout to the forms of `local.heads`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fganalysis.arguments import described
from fganalysis.capturing.batch import differentiable, gradients_at_outputs, output_owners, replaced
from fganalysis.capturing.rows import Layout, Owners
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators.local import heads


@dataclass(frozen=True, eq=False)
class Reading:
    """A block's output as a head reads it.

    Attributes:
        name: of the tap or module behind which the head stands.
        signal: (example, unit), or (example, unit, *places) on feature maps and sequences.
        unit_axis: of the units in the shape of an example's output.
        outputs: how many numbers the head predicts; each: at every place.
        loss: of what it predicts, in the place of the network's outputs.
    """

    name: str
    signal: Tensor
    unit_axis: int
    outputs: int
    each: bool
    loss: Callable[[Tensor], Tensor]

    def shapes(self, kind: heads.Kind, width: int | None) -> heads.Shapes:
        """The shapes of a head's tensors. Raises ValueError where the block has no form for this kind."""
        n_axes = self.signal.ndim - 2
        return heads.shapes_of(kind, self.signal.shape[1], self.outputs, width, self.name, n_axes, self.each)

    def numbers(self, gradients: Tensor) -> Tensor:
        """(head, *shape of the signal) → (head, example, number), in the order of the block's output."""
        return gradients.movedim(2, 2 + self.unit_axis).flatten(2)


def reading_of(snapshot: Snapshot, name: str, numbers: Tensor, shape: tuple[int, ...], unit_axis: int) -> Reading:
    """How a head reads (example, number), the block's output with an example's in this shape.

    Raises:
        ValueError: a loss that reads no single tensor with examples along an axis of what the network returns.
    """
    signal = numbers.unflatten(1, shape).movedim(1 + unit_axis, 1)
    n, outputs = snapshot.n_examples, _read_by_the_loss(snapshot)
    found = output_owners(outputs, n)
    if found is None:
        raise ValueError(
            f"a head predicts in the place of the network, whose outputs {described(outputs)} have no axis of "
            f"{n} examples: let forward return such a tensor"
        )
    axis, owners = found
    one = [size for place, size in enumerate(outputs.shape) if place != axis]
    if not owners.is_plain:
        one.insert(axis, owners.rows_each)
    places = tuple(signal.shape[2:])
    ways = (places, (math.prod(places),)) if places else ()
    last = len(one) > 1 and tuple(one[:-1]) in ways
    first = len(one) > 1 and not last and tuple(one[1:]) in ways

    def loss(predicted: Tensor) -> Tensor:
        by_example = (predicted.mT if first else predicted).reshape(n, *one)
        whole = by_example.movedim(0, axis) if owners.is_plain else by_example.flatten(0, 1)
        return snapshot.loss_fn(replaced(snapshot.outputs, {id(outputs): whole}), snapshot.targets)

    n_outputs = one[-1] if last else one[0] if first else math.prod(one)
    return Reading(name, signal, unit_axis, n_outputs, last or first, loss)


def _read_by_the_loss(snapshot: Snapshot) -> Tensor:
    """The one tensor in what the network returns that the loss depends on."""
    if isinstance(snapshot.outputs, Tensor):
        return snapshot.outputs

    def make() -> list[Tensor]:
        gradients = gradients_at_outputs(snapshot.loss_fn, snapshot.outputs, snapshot.targets)
        pairs = zip(differentiable(snapshot.outputs), gradients, strict=True)
        return [tensor for tensor, gradient in pairs if bool(gradient.any())]

    read: list[Tensor] = snapshot.remember("read by the loss", make)
    if len(read) != 1:
        raise ValueError(
            f"a head predicts one tensor in the place of the network, and the loss reads {len(read)} of what it "
            "returns: let forward return one tensor"
        )
    return read[0]


def example_shape(shape: tuple[int, ...], owners: Owners) -> tuple[tuple[int, ...], int] | None:
    """The shape of an example's numbers, and the axis that examples are along; None where they are along no axis.

    The axis stays, as that of an example's windows, where it has several places an example.
    """
    n = owners.n_examples
    found = [axis for axis, size in enumerate(shape) if size % n == 0 and _along(shape, owners, axis)]
    if not found:
        return None
    axis = next((axis for axis in found if shape[axis] == n), found[0])
    left = [shape[axis] // n] if shape[axis] > n else []
    return (*shape[:axis], *left, *shape[axis + 1 :]), axis


def _along(shape: tuple[int, ...], owners: Owners, axis: int) -> bool:
    if owners.order == "example first" and axis > 0:
        return math.prod(shape[:axis]) == 1
    if owners.order == "example first":
        return True
    examples = owners.examples.view(shape).movedim(axis, 0).flatten(1)
    return bool(torch.equal(examples, examples[:, :1].expand_as(examples)))


def unit_axis_of(shape: tuple[int, ...], example_axis: int, removed: bool, like: Layout) -> int:
    """The axis of units in an example's shape: as in a layout with as many axes, else channels or the last axis.

    shape: of the whole tensor. removed: whether the axis of examples is not in the example's shape.
    """
    axis = 1 if len(shape) > 3 else len(shape) - 1
    if len(like.shape) == len(shape) and len(like.unit_axes) == 1:
        axis = like.unit_axes[0]
    if axis == example_axis:
        axis = len(shape) - 1 if example_axis != len(shape) - 1 else 0
    return axis - 1 if removed and axis > example_axis else axis


def placed(
    snapshot: Snapshot, name: str, numbers: Tensor, whole: tuple[int, ...], owners: Owners, like: Layout
) -> Reading:
    """`reading_of` a tensor of shape ``whole`` whose numbers (example, number) belong to ``owners``.

    Raises:
        ValueError: as `reading_of`; examples that are along no axis.
    """
    found = example_shape(whole, owners)
    if found is None:
        raise ValueError(f"a head behind {name!r} finds examples along no axis of {whole}: choose other blocks")
    shape, axis = found
    shape = shape or (1,)
    unit_axis = unit_axis_of(whole, axis, len(shape) < len(whole), like) if len(whole) > 1 else 0
    return reading_of(snapshot, name, numbers, shape, unit_axis)
