"""Subspaces of all gradients of a training, from summaries that need not hold the gradients and can be merged.

`StreamingSubspace` keeps a Gram matrix and is exact up to rounding. `IncrementalSubspace` keeps a few leading modes and
bounds its error. `fganalysis.subspace` says which arrays they take.

Source: docs/mathematics.md#summaries-that-merge.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Generic

import torch
from torch import Tensor

from fganalysis.arguments import check_kind, check_number, check_whole
from fganalysis.measuring.sound_arrays import (
    ArrayOrTensor,
    double,
    in_range,
    like,
    power_of_two,
    precision,
    same_kind,
    same_units,
)
from fganalysis.measuring.subspace.equal_singular_values import rounding_gap
from fganalysis.measuring.subspace.singular_modes import Modes, kept_modes, modes

__all__ = ["IncrementalSubspace", "StreamingSubspace"]


@dataclass(frozen=True, eq=False)
class StreamingSubspace(Generic[ArrayOrTensor]):
    """The spectrum of gradients stacked over steps, from their Gram matrix Σ g gᵀ, (unit, unit).

    Exact up to rounding: squared singular values have an error of unit · 2e-16 of the largest. Smaller ones count as
    zero, so singular values below √unit · 1.5e-8 of the largest are lost. The order of merging does not matter.

    n_examples: gradients seen. scaled_gram: their Gram matrix in units of scale², scale a power of two, as squares of
    tiny or huge gradients leave the range of a double. precision: the coarsest of the gradients', for which singular
    values count as equal.
    """

    n_examples: int
    scaled_gram: ArrayOrTensor
    precision: float
    scale: float = 1.0

    def __post_init__(self) -> None:
        gram = double(self.scaled_gram, "scaled_gram", 2)
        if gram.ndim != 2 or gram.shape[0] != gram.shape[1]:
            raise ValueError(f"scaled_gram must be (unit, unit), got the shape {tuple(gram.shape)}")
        check_whole("n_examples", self.n_examples)
        check_number("precision", self.precision, above=0)
        check_number("scale", self.scale, above=0)

    @classmethod
    def of(cls, gradients: ArrayOrTensor) -> StreamingSubspace[ArrayOrTensor]:
        """The summary of gradients (…, unit)."""
        rows = _rows(gradients)
        # Gradients of zero have the least scale of all, so that they change no other when they are merged.
        scale = float(power_of_two(rows, 2)) if bool(rows.any()) else math.ulp(0.0)
        rows = rows / scale
        return StreamingSubspace(len(rows), like(rows.mT @ rows, gradients), precision(gradients), scale)

    @property
    def gram(self) -> ArrayOrTensor:
        """Σ g gᵀ; raises ValueError where it leaves the range of a double."""
        gram = double(self.scaled_gram, "scaled_gram", 2)
        return like(in_range(gram * self.scale * self.scale, "squares of gradients"), self.scaled_gram)

    def add(self, gradients: ArrayOrTensor) -> StreamingSubspace[ArrayOrTensor]:
        """This summary with more gradients, (…, unit)."""
        return self.merge(StreamingSubspace.of(gradients))

    def merge(self, other: StreamingSubspace[ArrayOrTensor]) -> StreamingSubspace[ArrayOrTensor]:
        """The summary of both; raises ValueError for different units."""
        check_kind("other", other, StreamingSubspace, "a StreamingSubspace")
        same_kind(self.scaled_gram, other.scaled_gram)
        same_units(self.scaled_gram.shape[-1], other.scaled_gram.shape[-1])
        scale = max(self.scale, other.scale)
        first, second = (stream.scaled_gram * (stream.scale / scale) ** 2 for stream in (self, other))
        coarsest = max(self.precision, other.precision)
        return StreamingSubspace(self.n_examples + other.n_examples, first + second, coarsest, scale)

    def modes(self) -> Modes[ArrayOrTensor]:
        """The modes of all rows seen: values (mode,) and vectors (unit, mode), with ``unit`` modes."""
        gram = double(self.scaled_gram, "scaled_gram", 2)
        squares, vectors = torch.linalg.eigh(gram)
        values = in_range(squares.flip(0).clamp(min=0).sqrt() * self.scale, "singular values")
        resolution = math.sqrt(gram.shape[0] * torch.finfo(torch.float64).eps)
        gap = max(resolution, rounding_gap(gram.shape[0], self.precision))
        return kept_modes(values, vectors.flip(1), resolution, gap, self.scaled_gram)


@dataclass(frozen=True, eq=False)
class IncrementalSubspace(Generic[ArrayOrTensor]):
    """The ``rank`` leading modes of gradients stacked over steps, for units too many for a Gram matrix.

    ``rows`` B (≤ rank, unit), S Vᵀ of a truncated singular value decomposition, stand for all gradients A. Each
    truncation drops a positive semidefinite part of AᵀA. Its largest eigenvalue is added to remainder², and its trace
    to lost². So

        values_i² ≤ σ_i² ≤ values_i² + remainder²    ‖A‖_F² = Σ values_i² + lost²    0 ≤ ‖Av‖² − ‖Bv‖² ≤ remainder² ‖v‖²

    Exact as long as the gradients span at most ``rank`` directions. Check ``remainder``, which a long tail of singular
    values makes large. If a truncation separates equal singular values, it is arbitrary which of their directions are
    kept. `Modes` then refuses to give the ``rank`` leading directions, and always if the last value is not above the
    remainder.

    n_examples: number of gradients. remainder, lost: in the units of the gradients. precision: the coarsest precision
    of the gradients, which decides whether singular values count as equal.
    """

    rank: int
    n_examples: int
    rows: ArrayOrTensor
    remainder: float
    lost: float
    precision: float

    def __post_init__(self) -> None:
        check_whole("rank", self.rank)
        if not 0 < len(double(self.rows, "rows", 2)) <= self.rank or self.rows.ndim != 2:
            raise ValueError(f"rows must be (mode, unit), at most {self.rank}, got {tuple(self.rows.shape)}")
        check_whole("n_examples", self.n_examples)
        check_number("remainder", self.remainder, least=0)
        check_number("lost", self.lost, least=0)
        check_number("precision", self.precision, above=0)

    @classmethod
    def of(cls, gradients: ArrayOrTensor, rank: int) -> IncrementalSubspace[ArrayOrTensor]:
        """The summary of gradients (…, unit); raises ValueError for a rank below 1."""
        check_whole("rank", rank)
        rows = _rows(gradients)
        kept, remainder, lost = _truncated(rows, rank)
        return IncrementalSubspace(rank, len(rows), like(kept, gradients), remainder, lost, precision(gradients))

    def add(self, gradients: ArrayOrTensor) -> IncrementalSubspace[ArrayOrTensor]:
        """This summary with more gradients, (…, unit)."""
        rows = _rows(gradients)
        same_kind(self.rows, gradients)
        return self._with(rows, len(rows), 0.0, 0.0, precision(gradients))

    def merge(self, other: IncrementalSubspace[ArrayOrTensor]) -> IncrementalSubspace[ArrayOrTensor]:
        """The summary of both, truncated once more; raises ValueError for different units or ranks."""
        check_kind("other", other, IncrementalSubspace, "an IncrementalSubspace")
        same_kind(self.rows, other.rows)
        if self.rank != other.rank:
            raise ValueError(f"summaries must have the same rank, got {self.rank} and {other.rank}")
        return self._with(_rows(other.rows), other.n_examples, other.remainder, other.lost, other.precision)

    def modes(self) -> Modes[ArrayOrTensor]:
        """The modes kept: values (mode,) and vectors (unit, mode), with at most ``rank`` modes."""
        kept = modes(self.rows)
        gap = max(kept.gap, rounding_gap(len(self.rows), self.precision))
        return replace(kept, gap=gap, beyond=self.remainder)

    def _with(
        self, rows: Tensor, n_examples: int, remainder: float, lost: float, precision: float
    ) -> IncrementalSubspace[ArrayOrTensor]:
        same_units(self.rows.shape[-1], rows.shape[-1])
        kept, more_remainder, more_lost = _truncated(torch.cat([torch.as_tensor(self.rows), rows]), self.rank)
        return IncrementalSubspace(
            self.rank,
            self.n_examples + n_examples,
            like(kept, self.rows),
            math.hypot(self.remainder, remainder, more_remainder),
            math.hypot(self.lost, lost, more_lost),
            max(self.precision, precision),
        )


def _truncated(rows: Tensor, rank: int) -> tuple[Tensor, float, float]:
    """The leading ``rank`` rows of S Vᵀ (mode, unit), and the largest and the 2-norm of the σ left out."""
    scale = power_of_two(rows, 2)
    values, right = torch.linalg.svd(rows / scale, full_matrices=False)[1:]
    values = in_range(values * scale[0], "singular values")
    dropped = values[rank:].tolist()
    return values[:rank, None] * right[:rank], max(dropped, default=0.0), math.hypot(*dropped)


def _rows(gradients: ArrayOrTensor) -> Tensor:
    rows = double(gradients, "gradients", 1)
    return rows.reshape(-1, rows.shape[-1])
