"""Singular values and right singular vectors of matrices, and which of them are zero, equal or left out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic

import torch
from torch import Tensor

from fganalysis.arguments import check_number, check_whole
from fganalysis.measuring.sound_arrays import (
    ArrayOrTensor,
    double,
    in_range,
    like,
    power_of_two,
    precision,
    same_kind,
)
from fganalysis.measuring.subspace.equal_singular_values import LEAST_GAP, rounding_gap


@dataclass(frozen=True, eq=False)
class Modes(Generic[ArrayOrTensor]):
    """Singular values and right singular vectors of matrices; both are zero beyond the rank.

    Attributes:
        values: (…, mode), descending, in the units of the matrix.
        vectors: (…, unit, mode).
        gap: singular values that differ by at most this share of the largest count as equal. Their vectors are an
            arbitrary basis of their span. A nonzero value this close to zero is kept; the error of its vector is about
            the precision of the matrix times σ₁/σ.
        beyond: the singular value after the last, or an upper bound of it, if modes were left out.
    """

    values: ArrayOrTensor
    vectors: ArrayOrTensor
    gap: float = LEAST_GAP
    beyond: float = 0.0

    def __post_init__(self) -> None:
        values, vectors = double(self.values, "values", 1), double(self.vectors, "vectors", 2)
        same_kind(self.values, self.vectors)
        if vectors.shape[:-2] != values.shape[:-1] or vectors.shape[-1] != values.shape[-1]:
            raise ValueError(f"vectors must be (…, unit, mode) and values (…, mode), got {_shapes(vectors, values)}")
        check_descending(values, precision(self.values))
        check_number("gap", self.gap, least=0)
        check_number("beyond", self.beyond, least=0)

    @property
    def rank(self) -> ArrayOrTensor:
        """The number of nonzero singular values, (…)."""
        return (self.values > 0).sum(-1)

    @property
    def distinct(self) -> ArrayOrTensor:
        """Whether each nonzero singular value differs from the next, (…, mode − 1); zeros differ from everything."""
        following = self.values[..., 1:]
        return (self.values[..., :-1] - following > self.gap * self.values[..., :1]) | (following == 0)

    @property
    def complete(self) -> ArrayOrTensor:
        """Whether the last singular value differs from what may lie beyond it, (…); a zero differs from everything."""
        last = self.values[..., -1]
        return (last - self.beyond > self.gap * self.values[..., 0]) | (last == 0) | (self.beyond == 0)

    def leading(self, k: int) -> ArrayOrTensor:
        """The basis (…, unit, k) of the k leading modes.

        Raises ValueError if this subspace is not determined: for k outside 1 … rank of every matrix, and if singular
        values k and k + 1 are equal, or may be equal because modes were left out. Any mixture of their modes would then
        be as good.
        """
        check_whole("k", k, None)
        least = int(self.rank.min())
        if not 1 <= k <= least:
            raise ValueError(f"k must be between 1 and {least}, the smallest rank, got {k}")
        ends = self.distinct[..., k - 1] if k < self.values.shape[-1] else self.complete
        if not bool(ends.all()):
            raise ValueError(f"singular values {k} and {k + 1} are equal, so {k} leading directions are undetermined")
        return self.vectors[..., :k]


def singular_values(matrix: ArrayOrTensor) -> ArrayOrTensor:
    """Singular values, descending: (…, example, unit) → (…, mode), in the units of the matrix."""
    rows = double(matrix, "matrix", 2)
    scale = power_of_two(rows, 2)
    return like(in_range(torch.linalg.svdvals(rows / scale) * scale[..., 0], "singular values"), matrix)


def modes(matrix: ArrayOrTensor) -> Modes[ArrayOrTensor]:
    """Singular values and right singular vectors by LAPACK: (…, example, unit) → min(example, unit) modes.

    Singular values up to max(example, unit) · precision of the matrix · σ₁ count as zero, and those closer than
    10 · √min(example, unit) · precision · σ₁, or 1e-10 · σ₁, as equal.
    """
    rows = double(matrix, "matrix", 2)
    scale = power_of_two(rows, 2)
    values, right = torch.linalg.svd(rows / scale, full_matrices=False)[1:]
    values = in_range(values * scale[..., 0], "singular values")
    zero, gap = max(matrix.shape[-2:]) * precision(matrix), rounding_gap(min(matrix.shape[-2:]), precision(matrix))
    return kept_modes(values, right.mT, zero, gap, matrix)


def kept_modes(
    values: Tensor, vectors: Tensor, resolution: float, gap: float, source: ArrayOrTensor, beyond: float = 0.0
) -> Modes[ArrayOrTensor]:
    """Modes of the kind of array of ``source``, with those up to ``resolution`` of the largest set to zero."""
    kept = values > resolution * values[..., :1]
    return Modes(like(values * kept, source), like(vectors * kept[..., None, :], source), gap, beyond)


def check_descending(values: Tensor, precision: float) -> None:
    if bool((values < 0).any()):
        raise ValueError("singular values must not be negative")
    if bool((values.diff(dim=-1) > precision * values.amax(-1, keepdim=True)).any()):
        raise ValueError("singular values must be in descending order")


def _shapes(*tensors: Tensor) -> str:
    return " and ".join(str(tuple(tensor.shape)) for tensor in tensors)
