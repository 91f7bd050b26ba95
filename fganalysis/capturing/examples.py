"""Which example each row of a tap belongs to, found without knowing the layout (docs/mathematics.md#rows).

Two observations decide. The forward pass of the batch with its examples rolled by one place shows where an example's
outputs go. The gradient at the network's outputs, each example's part multiplied by a number r_e of its own and pulled
back, shows whose it is: where examples do not interact, it is r_e times the gradient at every row of example e. Where
neither fits, examples interact or a row serves all of them, as that of a positional embedding does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fganalysis.capturing.precision import LONGEST, SHORTEST
from fganalysis.capturing.rows import Layout, Owners

SAME = 1e-3  # Relative difference of two gradients that should be equal, in single precision; far less in double.


@dataclass(frozen=True)
class Seen:
    """What was seen of a tap: its outputs, of the rolled batch too, the gradient and the weighted gradient there.

    Each has the shape of the module's output. ``exact`` and ``pulled`` are None where no backward pass was taken.
    """

    outputs: Tensor
    rolled: Tensor | None
    exact: Tensor | None
    pulled: Tensor | None


@dataclass(frozen=True)
class Ownership:
    """Layout and owners of a tap's rows. shared: every row serves all examples. Neither: examples interact.

    rolls: whether the outputs of the rolled batch were seen to be the outputs, rolled.
    by_row: the owners were found row by row, as where the data decide what a tap reads, and are those of one batch.
    """

    layout: Layout
    owners: Owners | None
    shared: bool = False
    rolls: bool = False
    by_row: bool = False


def ownership(seen: Seen, layout: Layout, n_examples: int, weights: Tensor) -> Ownership:
    """The owners of a tap's rows. weights: r, (example,)."""
    if n_examples == 1:
        return Ownership(layout, Owners(1, layout.n_rows))
    fitting = []
    for candidate in _candidates(layout, n_examples):
        if not _weighs(seen, layout, candidate, weights):
            continue
        if seen.rolled is None or rolls(seen.outputs, seen.rolled, layout, candidate):
            return Ownership(layout, candidate, rolls=seen.rolled is not None)
        fitting.append(candidate)
    if seen.rolled is not None and same(seen.outputs, seen.rolled):
        return Ownership(layout, None, shared=True, rolls=True)
    if fitting and seen.pulled is not None:
        # The batch may have been rolled along another axis than that of its examples.
        return Ownership(layout, fitting[0])
    matched = _matched(seen, layout, n_examples, weights)
    if matched is not None:
        return Ownership(layout, matched, by_row=True)
    if layout.units > 1 and len(layout.shape) > 1:
        # Examples may be along what were taken for units: every number is then a row.
        return ownership(seen, Layout(layout.shape), n_examples, weights)
    return Ownership(layout, None)


def _candidates(layout: Layout, n_examples: int) -> Iterator[Owners]:
    """Examples along the first axis, then along the others, whole or as the slower or faster part of an axis."""
    sizes = [size for axis, size in enumerate(layout.shape) if axis not in layout.unit_axes]
    found: list[Owners] = []
    if sizes and sizes[0] % n_examples == 0:
        found.append(Owners(n_examples, layout.n_rows, "example first"))
        yield found[0]
    places = torch.arange(layout.n_rows).view(sizes) if sizes else torch.zeros(1, dtype=torch.int64)
    for axis, size in enumerate(sizes):
        if size % n_examples:
            continue
        inner = places.stride()[axis] if sizes else 1
        along = (torch.arange(layout.n_rows) // inner) % size
        for order in (along // (size // n_examples), along % n_examples):
            owners = _named(order, n_examples)
            if not any(_equal(owners, other) for other in found):
                found.append(owners)
                yield owners


def _named(examples: Tensor, n_examples: int) -> Owners:
    """The owners, by the name of their order where it has one."""
    n_rows = len(examples)
    for named in (Owners(n_examples, n_rows, "example first"), Owners(n_examples, n_rows, "example last")):
        if torch.equal(named.examples, examples):
            return named
    return Owners(n_examples, n_rows, examples)


def _equal(first: Owners, second: Owners) -> bool:
    return torch.equal(first.examples, second.examples)


def rolls(outputs: Tensor, rolled: Tensor, layout: Layout, owners: Owners | None) -> bool:
    """Whether outputs and those of the rolled batch are the same but for the order of the examples, to rounding.

    Rows that belong to no example are the same in both.
    """
    if owners is None:
        return same(outputs, rolled)
    if _along_first_axis(layout, owners):
        places = len(outputs) // owners.n_examples
        return outputs.shape == rolled.shape and same(outputs.roll(places, 0), rolled)
    counts = owners.examples.bincount(minlength=owners.n_examples)
    if bool((counts != counts[0]).any()):
        return False
    first, second = layout.rows(outputs), layout.rows(rolled)
    return same(owners.by_example(first).roll(1, -3), owners.by_example(second))


def _along_first_axis(layout: Layout, owners: Owners) -> bool:
    """Whether examples follow each other along the first axis of the output, so that its rows need not be cut out."""
    first = 0 not in layout.unit_axes and layout.shape[0] % owners.n_examples == 0
    return first and not isinstance(owners.order, Tensor) and owners.order == "example first"


def _weighs(seen: Seen, layout: Layout, owners: Owners, weights: Tensor) -> bool:
    """Whether the weighted gradient is the gradient times the number of the row's example."""
    if seen.exact is None or seen.pulled is None:
        return True
    by_row = owners.spread(weights.to(seen.exact))[:, None]
    sizes = tuple(1 if axis in layout.unit_axes else size for axis, size in enumerate(layout.shape))
    of_numbers = Layout(sizes, layout.unit_axes).whole(by_row)
    difference = torch.addcmul(seen.pulled, seen.exact, of_numbers, value=-1)
    size = float(torch.linalg.vector_norm(seen.pulled))
    if SHORTEST <= size <= LONGEST:
        return float(torch.linalg.vector_norm(difference)) <= SAME * size
    return same(seen.pulled, seen.exact * of_numbers, SAME)


def _matched(seen: Seen, layout: Layout, n_examples: int, weights: Tensor) -> Owners | None:
    """Row by row the example whose number is the ratio of the two gradients; None where a row has no such number."""
    if seen.exact is None or seen.pulled is None:
        return None
    exact, pulled = layout.rows(seen.exact).double(), layout.rows(seen.pulled).double()
    squares = exact.square().sum(1)
    if not bool((squares > 0).all()):
        return None
    ratios = (exact * pulled).sum(1) / squares
    examples = (ratios[:, None] - weights.to(ratios)).abs().argmin(1)
    found = Owners(n_examples, layout.n_rows, examples)
    return found if _weighs(seen, layout, found, weights) and bool(examples.bincount().all()) else None


def same(first: Tensor, second: Tensor, tolerance: float | None = None) -> bool:
    """Whether two tensors differ by a small part of the first one's norm: by rounding, or by ``tolerance``."""
    if first.shape != second.shape:
        return False
    allowed = 1e3 * torch.finfo(first.dtype).eps if tolerance is None else tolerance
    size = float(torch.linalg.vector_norm(first))
    if not SHORTEST <= size <= LONGEST:
        first, second = first.double(), second.double()
        size = float(torch.linalg.vector_norm(first))
    return float(torch.linalg.vector_norm(first - second)) <= allowed * size


def example_weights(n_examples: int, like: Tensor) -> Tensor:
    """r, (example,): a number of its own for every example, between 1/2 and 3/2, evenly spaced and in no order."""
    generator = torch.Generator().manual_seed(1)
    places = torch.randperm(n_examples, generator=generator).double()
    return ((places + 0.5) / n_examples + 0.5).to(like)
