"""A law of noise that turns a sketch into sampling: a vector of n entries is √n along one of its axes, else zero.

With it, `InputSketch` keeps some of the inputs, and `RowSketch` some of the rows, drawn uniformly with replacement.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SampledEntry:
    """ε = ±√n e_i, i uniform from 1 to n: uncorrelated entries of unit variance; E ε_i⁴ = n, E ε_i² ε_j² = 0."""

    def draw(self, shape: tuple[int, ...], generator: torch.Generator, like: Tensor, vector_dims: int = 1) -> Tensor:
        n, lead = math.prod(shape[-vector_dims:]), shape[:-vector_dims]
        # One number gives the entry and, by its parity, the sign.
        uniform = torch.rand(lead, generator=generator, device=like.device, dtype=torch.float64).flatten()
        chosen = (uniform * 2 * n).long().clamp_(max=2 * n - 1)
        noise = like.new_zeros(len(chosen), n)
        noise.scatter_(1, (chosen // 2)[:, None], math.sqrt(n) * (2.0 * (chosen % 2) - 1.0)[:, None].to(like.dtype))
        return noise.view(shape)

    def fourth(self, n: int) -> float:
        return float(n)

    def pair(self, n: int) -> float:
        return 0.0


SAMPLED_ENTRY = SampledEntry()
