"""Diagonal map: a scale and a shift for each unit, s_ru = γ_u x̂_ru + β_u. For the scales of normalisation layers.

Ĝ_u = Σ_r ĝ_ru (x̂_ru, 1).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class DiagonalMap:
    """inputs: what a unit's weights are multiplied with, (row, unit, input)."""

    inputs: Tensor
    cheap = True

    def gradients(self, guesses: Tensor) -> Tensor:
        columns = self.inputs.to(guesses.dtype).unbind(-1)
        return torch.stack([torch.linalg.vecdot(guesses, column, dim=-2) for column in columns], dim=-1)

    def image(self, guesses: Tensor) -> Tensor:
        return self.gradients(guesses)

    def along(self, weights: Tensor) -> Tensor:
        return torch.einsum("guc,ruc->gru", weights, self.inputs.to(weights.dtype))

    def of_rows(self, rows: Tensor) -> DiagonalMap:
        return DiagonalMap(self.inputs[rows])
