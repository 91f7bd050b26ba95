"""The law of k Gaussian tangents of n entries in k + 1 numbers each: those that a guess and its quality depend on.

Turn the axes until the gradient is along the first. The tangents' components along it are N(0, I_k); what is across
has the Gram matrix of k Gaussian vectors of n − 1 entries, which is that of the rows of L, lower triangular and
independent, L_ii ~ χ_{n−1−i} for i = 0 … k − 1 and N(0, 1) below (Bartlett 1933). A combination of tangents whose
coefficients follow from their Gram matrix and slopes has the same cosine, length and error with [along | L] for them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fganalysis.estimators.noise import GAUSSIAN


@dataclass(frozen=True)
class Rotated:
    """A law of noise for `MultiTangent` on a gradient along the first of k + 1 weights; ``n`` is the true number.

    Raises:
        ValueError: at a draw, for a shape that is not (guess, k, 1, k + 1), and for n ≤ k.
    """

    n: int

    def draw(self, shape: tuple[int, ...], generator: torch.Generator, like: Tensor, vector_dims: int = 1) -> Tensor:
        n_guesses, k = shape[:2]
        if shape[2:] != (1, k + 1) or self.n <= k:
            raise ValueError(f"rotated tangents have the shape (guess, k, 1, k + 1) and n > k, got {shape}, n={self.n}")
        along = GAUSSIAN.draw((n_guesses, k, 1), generator, like)
        across = GAUSSIAN.draw((n_guesses, k, k), generator, like).tril_(-1)
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator, device=generator.device)))
        lengths = np.sqrt(rng.chisquare(self.n - 1 - np.arange(k), size=(n_guesses, k)))
        across.diagonal(dim1=1, dim2=2).copy_(torch.from_numpy(lengths))
        return torch.cat([along, across], dim=2).unsqueeze(2)

    def fourth(self, n: int) -> float:
        return 3.0

    def pair(self, n: int) -> float:
        return 1.0
