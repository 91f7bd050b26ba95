"""Subspaces of gradients stacked over the steps of a training, which are never held: summaries that add and merge.

`StreamingSubspace` keeps a Gram matrix and is exact but for rounding; `IncrementalSubspace` keeps a few leading modes
and says how much it lost. What arrays they take and refuse: see `fganalysis.subspace`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Generic

import torch
from torch import Tensor

from fganalysis.arguments import check_whole
from fganalysis.sound_arrays import Array, double, like, precision, same_kind, same_units
from fganalysis.subspace import Modes, kept_modes, modes, rounding_gap


@dataclass(frozen=True, eq=False)
class StreamingSubspace(Generic[Array]):
    """The spectrum of gradients stacked over steps, which are never held: their Gram matrix Σ g gᵀ, (unit, unit).

    Exact but for rounding: squared singular values are good to unit · 2e-16 of the largest. Smaller ones count as zero,
    so singular values below √unit · 1.5e-8 of the largest are not seen. Summaries add in any order.
    precision: the coarsest of the gradients', for which singular values count as equal.
    """

    n_examples: int
    gram: Array
    precision: float

    @classmethod
    def of(cls, gradients: Array) -> StreamingSubspace[Array]:
        """The summary of gradients (…, unit); raises ValueError where their squares leave the range of a double."""
        rows = _rows(gradients)
        return StreamingSubspace(len(rows), like(rows.mT @ rows, gradients), precision(gradients))

    def add(self, gradients: Array) -> StreamingSubspace[Array]:
        """This summary with more gradients, (…, unit)."""
        return self.merge(StreamingSubspace.of(gradients))

    def merge(self, other: StreamingSubspace[Array]) -> StreamingSubspace[Array]:
        """The summary of both; raises ValueError for different units."""
        same_kind(self.gram, other.gram)
        same_units(self.gram.shape[-1], other.gram.shape[-1])
        coarsest = max(self.precision, other.precision)
        return StreamingSubspace(self.n_examples + other.n_examples, self.gram + other.gram, coarsest)

    def modes(self) -> Modes[Array]:
        """The modes of all rows seen: values (mode,) and vectors (unit, mode), with ``unit`` modes."""
        gram = double(self.gram, "gram", 2)
        squares, vectors = torch.linalg.eigh(gram)
        resolution = math.sqrt(gram.shape[0] * torch.finfo(torch.float64).eps)
        gap = max(resolution, rounding_gap(gram.shape[0], self.precision))
        return kept_modes(squares.flip(0).clamp(min=0).sqrt(), vectors.flip(1), resolution, gap, self.gram)


@dataclass(frozen=True, eq=False)
class IncrementalSubspace(Generic[Array]):
    """The ``rank`` leading modes of gradients stacked over steps, for units too many for a Gram matrix.

    ``rows`` B (≤ rank, unit), S Vᵀ of a truncated singular value decomposition, stand for all gradients A seen. Each
    truncation drops a positive part of AᵀA: its largest eigenvalue is added to ``error``, its trace to ``lost``. So

        values_i² ≤ σ_i² ≤ values_i² + error        ‖A‖_F² = Σ values_i² + lost        0 ≤ ‖Av‖² − ‖Bv‖² ≤ error ‖v‖²

    Exact while no more than ``rank`` directions were seen. A long tail makes the error large: read it. precision: the
    coarsest of the gradients', for which singular values count as equal.
    """

    rank: int
    n_examples: int
    rows: Array
    error: float
    lost: float
    precision: float

    @classmethod
    def of(cls, gradients: Array, rank: int) -> IncrementalSubspace[Array]:
        """The summary of gradients (…, unit); raises ValueError for a rank below 1."""
        check_whole("rank", rank, None)
        if rank < 1:
            raise ValueError(f"rank must be at least 1, got {rank}")
        rows = _rows(gradients)
        empty = IncrementalSubspace(rank, 0, like(rows[:0], gradients), 0.0, 0.0, precision(gradients))
        return empty._with(rows, len(rows), 0.0, 0.0, precision(gradients))

    def add(self, gradients: Array) -> IncrementalSubspace[Array]:
        """This summary with more gradients, (…, unit)."""
        same_kind(self.rows, gradients)
        rows = _rows(gradients)
        return self._with(rows, len(rows), 0.0, 0.0, precision(gradients))

    def merge(self, other: IncrementalSubspace[Array]) -> IncrementalSubspace[Array]:
        """The summary of both, truncated once more; raises ValueError for different units or ranks."""
        same_kind(self.rows, other.rows)
        if self.rank != other.rank:
            raise ValueError(f"summaries must have the same rank, got {self.rank} and {other.rank}")
        return self._with(_rows(other.rows), other.n_examples, other.error, other.lost, other.precision)

    def modes(self) -> Modes[Array]:
        """The modes kept: values (mode,) and vectors (unit, mode), with at most ``rank`` modes."""
        found = modes(self.rows)
        return replace(found, gap=max(found.gap, rounding_gap(len(self.rows), self.precision)))

    def _with(
        self, rows: Tensor, n_examples: int, error: float, lost: float, precision: float
    ) -> IncrementalSubspace[Array]:
        same_units(self.rows.shape[-1], rows.shape[-1])
        stacked = torch.cat([torch.as_tensor(self.rows), rows])
        values, right = torch.linalg.svd(stacked, full_matrices=False)[1:]
        dropped = values[self.rank :].square()
        kept = values[: self.rank, None] * right[: self.rank]
        return IncrementalSubspace(
            self.rank,
            self.n_examples + n_examples,
            like(kept, self.rows),
            self.error + error + (float(dropped[0]) if len(dropped) else 0.0),
            self.lost + lost + float(dropped.sum()),
            max(self.precision, precision),
        )


def _rows(gradients: Array) -> Tensor:
    rows = double(gradients, "gradients", 1)
    rows = rows.reshape(-1, rows.shape[-1])
    largest = float(rows.abs().max())
    if largest > 0 and not 1e-140 < largest < 1e140:
        raise ValueError(f"squares of gradients leave the range of a double: rescale them, the largest is {largest}")
    return rows
