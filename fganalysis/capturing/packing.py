"""Packing: trainable parameters of any shapes as one matrix (unit, input), and back.

A weight of a Linear module is the matrix itself, and a bias is one more column, the weight of a constant input of 1. A
convolution's weight has its channels as units and the numbers of a patch as inputs. What has no such form is one row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Part:
    """A parameter in the matrix. columns: how many it takes; transposed: its last two axes are (input, unit)."""

    name: str
    shape: tuple[int, ...]
    columns: int
    transposed: bool = False


@dataclass(frozen=True)
class Packing:
    """The parameters ``parts`` side by side in a matrix of ``units`` rows."""

    units: int
    parts: tuple[Part, ...]

    @classmethod
    def flat(cls, shapes: Mapping[str, tuple[int, ...]]) -> Packing:
        """Everything in one row."""
        return cls(1, tuple(Part(name, shape, math.prod(shape)) for name, shape in shapes.items()))

    @property
    def shape(self) -> tuple[int, int]:
        return self.units, sum(part.columns for part in self.parts)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(part.name for part in self.parts)

    def packed(self, by_name: Mapping[str, Tensor]) -> Tensor:
        """(…, *shape) by name → (…, unit, input)."""
        pieces = []
        for part in self.parts:
            tensor = by_name[part.name]
            lead = tensor.shape[: tensor.ndim - len(part.shape)]
            size = (part.columns, self.units) if part.transposed else (self.units, part.columns)
            piece = tensor.reshape(*lead, *size)
            pieces.append(piece.mT if part.transposed else piece)
        return torch.cat(pieces, dim=-1) if len(pieces) > 1 else pieces[0]

    def unpacked(self, matrix: Tensor) -> dict[str, Tensor]:
        """(…, unit, input) → (…, *shape) by name, the inverse of `packed`."""
        by_name = {}
        pieces = matrix.split([part.columns for part in self.parts], dim=-1)
        for part, piece in zip(self.parts, pieces, strict=True):
            by_name[part.name] = (piece.mT if part.transposed else piece).reshape((*matrix.shape[:-2], *part.shape))
        return by_name

    def renamed(self, names: Mapping[str, str]) -> Packing:
        """The same with other names."""
        parts = (Part(names[part.name], part.shape, part.columns, part.transposed) for part in self.parts)
        return Packing(self.units, tuple(parts))
