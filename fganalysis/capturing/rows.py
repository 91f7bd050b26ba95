"""Rows: a module's output of any shape as (row, unit), and the example that each row belongs to.

    Linear on (example, unit)             a row an example
    Linear on (example, position, unit)   a row an example and position
    convolution (example, channel, …)     a row an example and place, its channels are the units

Source: docs/mathematics.md#rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """How an output of some shape is cut into rows of units.

    Attributes:
        shape: of the output.
        unit_axes: the axes that make a row's units, in ascending order. None makes every number a row of one unit.
    """

    shape: tuple[int, ...]
    unit_axes: tuple[int, ...] = ()

    @property
    def units(self) -> int:
        return math.prod(self.shape[axis] for axis in self.unit_axes)

    @property
    def n_rows(self) -> int:
        return math.prod(size for axis, size in enumerate(self.shape) if axis not in self.unit_axes)

    def _order(self, lead: int) -> tuple[int, ...]:
        rows = [axis for axis in range(len(self.shape)) if axis not in self.unit_axes]
        return (*range(lead), *(lead + axis for axis in (*rows, *self.unit_axes)))

    def rows(self, tensor: Tensor) -> Tensor:
        """(…, *shape) → (…, row, unit)."""
        lead = tensor.ndim - len(self.shape)
        moved = tensor.permute(self._order(lead))
        return moved.reshape(*tensor.shape[:lead], self.n_rows, self.units)

    def whole(self, rows: Tensor) -> Tensor:
        """(…, row, unit) → (…, *shape), the inverse of `rows`."""
        lead = rows.ndim - 2
        order = self._order(lead)
        sizes = (*rows.shape[:lead], *self.shape)
        moved = rows.reshape([sizes[axis] for axis in order])
        return moved.permute([order.index(axis) for axis in range(len(order))])


@dataclass(frozen=True, eq=False)
class Owners:
    """Which example each row belongs to.

    Attributes:
        n_examples: in the batch.
        n_rows: of the tap.
        order: "example first": row r belongs to example r // (rows an example). "example last": to r % n_examples.
            Otherwise the example of each row, (row,).
    """

    n_examples: int
    n_rows: int
    order: Literal["example first", "example last"] | Tensor = "example first"

    @property
    def rows_each(self) -> int:
        """Rows an example; of a tensor of examples the largest number."""
        if isinstance(self.order, Tensor):
            return int(self.order.bincount(minlength=self.n_examples).max())
        return self.n_rows // self.n_examples

    @property
    def examples(self) -> Tensor:
        """The example of each row, (row,)."""
        if isinstance(self.order, Tensor):
            return self.order
        rows = torch.arange(self.n_rows)
        return rows // self.rows_each if self.order == "example first" else rows % self.n_examples

    @property
    def is_plain(self) -> bool:
        """Whether row b is example b."""
        return self.n_rows == self.n_examples and not isinstance(self.order, Tensor)

    def summed(self, by_row: Tensor) -> Tensor:
        """(…, row) → (…, example), sums over the rows of each example."""
        if self.is_plain:
            return by_row
        if isinstance(self.order, Tensor):
            sums = by_row.new_zeros(*by_row.shape[:-1], self.n_examples)
            return sums.index_add_(-1, self.order.to(by_row.device), by_row)
        if self.order == "example first":
            return by_row.unflatten(-1, (self.n_examples, self.rows_each)).sum(-1)
        return by_row.unflatten(-1, (self.rows_each, self.n_examples)).sum(-2)

    def inner_products(self, first: Tensor, second: Tensor) -> Tensor:
        """(…, row, unit) twice → (…, example), inner products over the rows and units of each example."""
        if not isinstance(self.order, Tensor) and self.order == "example first":
            # In one sum, where that over a row's few units would be as slow as many.
            return torch.linalg.vecdot(self.by_example(first).flatten(-2), self.by_example(second).flatten(-2))
        return self.summed(torch.linalg.vecdot(first, second))

    def spread(self, by_example: Tensor) -> Tensor:
        """(…, example) → (…, row), each row the number of its example."""
        if self.is_plain:
            return by_example
        if isinstance(self.order, Tensor):
            return by_example[..., self.order.to(by_example.device)]
        lead = by_example.shape[:-1]
        if self.order == "example first":
            return by_example.unsqueeze(-1).expand(*lead, self.n_examples, self.rows_each).reshape(*lead, self.n_rows)
        return by_example.unsqueeze(-2).expand(*lead, self.rows_each, self.n_examples).reshape(*lead, self.n_rows)

    def by_example(self, rows: Tensor) -> Tensor:
        """(…, row, unit) → (…, example, row of the example, unit), where every example has as many rows.

        Raises:
            ValueError: examples with different numbers of rows.
        """
        if isinstance(self.order, Tensor):
            return rows.index_select(-2, self._sorted().to(rows.device)).unflatten(-2, (self.n_examples, -1))
        if self.order == "example first":
            return rows.unflatten(-2, (self.n_examples, self.rows_each))
        return rows.unflatten(-2, (self.rows_each, self.n_examples)).transpose(-3, -2)

    def from_examples(self, parts: Tensor) -> Tensor:
        """(…, example, row of the example, unit) → (…, row, unit), the inverse of `by_example`."""
        if isinstance(self.order, Tensor):
            return parts.flatten(-3, -2).index_select(-2, self._sorted().argsort().to(parts.device))
        if self.order == "example first":
            return parts.flatten(-3, -2)
        return parts.transpose(-3, -2).flatten(-3, -2)

    def _sorted(self) -> Tensor:
        assert isinstance(self.order, Tensor)
        if self.rows_each * self.n_examples != self.n_rows:
            raise ValueError(
                "examples have different numbers of rows at a tap: use noise that examples do not share (shared=False)"
            )
        return self.order.argsort(stable=True)

    def of_examples(self, chosen: Tensor) -> tuple[Tensor, Owners]:
        """The rows of the chosen examples, (row,), and whose they are among the chosen ones."""
        examples = self.examples.to(chosen.device)
        rows, order = [], []
        for place, example in enumerate(chosen.tolist()):
            own = (examples == example).nonzero()[:, 0]
            rows.append(own)
            order.append(torch.full_like(own, place))
        joined = torch.cat(rows)
        if isinstance(self.order, Tensor):
            return joined, Owners(len(chosen), len(joined), torch.cat(order))
        return joined, Owners(len(chosen), len(joined))
