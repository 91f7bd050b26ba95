"""Diagonal map: a scale and a shift for each unit, s_ru = γ_u x̂_ru + β_u. For the scales of normalisation layers.

Ĝ_u = Σ_r ĝ_ru (x̂_ru, 1).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class DiagonalMap:
    """columns: what a unit's weights are multiplied with, (row, unit) each; None for the constant 1 of a shift."""

    columns: tuple[Tensor | None, ...]
    n_rows: int
    cheap = True

    def gradients(self, guesses: Tensor) -> Tensor:
        sums = [
            guesses.sum(-2) if column is None else torch.linalg.vecdot(guesses, column.to(guesses.dtype), dim=-2)
            for column in self.columns
        ]
        return torch.stack(sums, dim=-1)

    def image(self, guesses: Tensor) -> Tensor:
        return self.gradients(guesses)

    def along(self, weights: Tensor) -> Tensor:
        parts = [
            change.unsqueeze(-2).expand(*change.shape[:-1], self.n_rows, -1)
            if column is None
            else change.unsqueeze(-2) * column.to(weights.dtype)
            for change, column in zip(weights.unbind(-1), self.columns, strict=True)
        ]
        return sum(parts[1:], parts[0])

    def of_rows(self, rows: Tensor) -> DiagonalMap:
        return DiagonalMap(tuple(None if column is None else column[rows] for column in self.columns), len(rows))
