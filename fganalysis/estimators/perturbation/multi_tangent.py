"""Multi-tangent forward gradient: k random directions in the space of all weights, combined into one guess.

    V ∈ R^{k×P}, rows v_i ~ law over the weights of all taps
    mean:        Ĝ = (1/k) Σ_i (v_i·G) v_i          unbiased; MSE (P + κ − 2)/k ‖G‖²
    orthogonal:  Ĝ = Vᵀ(VVᵀ)⁻¹ V G                  the projection of G on the tangents' span; for Gaussian tangents
                                                    biased by shrinkage k/P, MSE (1 − k/P)‖G‖², exact at k = P

Random: V. Of the network only the k slopes v_i·G are needed. Source: Flügel et al. 2024.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fganalysis.arguments import check_choice, check_whole
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.capturing.tap import Layers
from fganalysis.estimators.checks import guessing
from fganalysis.estimators.directional import check_switches
from fganalysis.estimators.guesses import WeightEstimates
from fganalysis.estimators.noise import GAUSSIAN, NUMBERS_IN_PART, Gaussian, Noise, draw_in_parts, drawn
from fganalysis.estimators.passes import Passes
from fganalysis.estimators.tangents_of_weights import Combine, Tangents, passes_of_tangents

NUMBERS_HELD = 2**24  # most entries of tangents held at once, unless a single guess has more
# Sizes of the products in double precision: they use all threads and fit the cache.
COLUMNS_AT_ONCE, BLOCKS_AT_ONCE = 2**11, 8


@dataclass(frozen=True)
class MultiTangent:
    """k tangents a guess, combined by their ``"mean"`` or by an ``"orthogonal"`` projection on their span.

    Fields: ``noise`` is the law of each tap's part of a tangent. With ``layers`` "separate", every tap has k tangents
    of its own, which change its weights only.

    Raises:
        ValueError: k that is no whole number of at least 1, an unknown ``combine``; at a call, for the projection, k
            above the number of weights (the smallest tap's, when separate) or tangents that are linearly dependent, as
            signs in few dimensions are.
    """

    k: int = 1
    combine: Combine = "mean"
    noise: Noise = GAUSSIAN
    layers: Layers = "joint"

    def __post_init__(self) -> None:
        check_whole("k", self.k)
        check_choice("combine", self.combine, ("mean", "orthogonal"))
        check_switches(self)

    def tangents(self) -> Tangents:
        return Tangents(self.noise, self.layers, int(self.k), self.combine)

    @guessing
    def __call__(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> WeightEstimates:
        sizes = [layer.weight.numel() for layer in snapshot.weights]
        self.check_dimension(sizes)
        # Noise is drawn chunk by chunk, so the chunk must depend on settings and network alone, not on free memory.
        at_once = max(1, NUMBERS_HELD // (self.k * sum(sizes)))
        chunks = [
            self._guesses(snapshot, min(at_once, n_guesses - start), generator)
            for start in range(0, n_guesses, at_once)
        ]
        directions = tuple(torch.cat(parts) for parts in zip(*chunks, strict=True))
        return WeightEstimates(directions[0].new_ones(n_guesses, len(directions)), directions)

    def check_dimension(self, sizes: Sequence[int]) -> None:
        """Raises ValueError for a projection on more tangents than there are weights; sizes: weights of each tap."""
        self.tangents().check_dimension(sizes)

    def passes(self, snapshot: Snapshot, n_guesses: int = 1) -> Passes:
        beside = ("Gram matrix of the tangents, and its solution",) if self.combine == "orthogonal" else ()
        return passes_of_tangents(n_guesses * int(self.k), self.layers, snapshot, beside)

    def _guesses(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> list[Tensor]:
        """Combined guesses, (guess, unit, input) a tap."""
        tangents = self._tangents(snapshot, n_guesses, generator)
        slopes = snapshot.weight_slopes([tangent.flatten(0, 1) for tangent in tangents], self.layers)
        slopes = slopes.unflatten(0, (n_guesses, self.k)).mT  # (guess, 1 or layer, tangent)
        coefficients = slopes / self.k if self.combine == "mean" else _projection_coefficients(tangents, slopes)
        return [
            torch.einsum("gk,gkui->gui", of_tap.to(tangent.dtype), tangent)
            for of_tap, tangent in zip(coefficients.expand(-1, len(tangents), -1).unbind(1), tangents, strict=True)
        ]

    def _tangents(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> list[Tensor]:
        """V, (guess, tangent, unit, input) a tap."""
        shapes, like = [layer.weight.shape for layer in snapshot.weights], snapshot.like
        sizes = [shape.numel() for shape in shapes]
        if type(self.noise) is not Gaussian or n_guesses * self.k * sum(sizes) <= NUMBERS_IN_PART:
            return [drawn(self.noise, (n_guesses, self.k, *shape), generator, like, vector_dims=2) for shape in shapes]
        # One array for all taps: several of this size would be returned to the system and cleared again at every step.
        whole = draw_in_parts((n_guesses, self.k, sum(sizes)), generator, like)
        return [part.unflatten(2, shape) for part, shape in zip(whole.split(sizes, dim=2), shapes, strict=True)]


def _projection_coefficients(tangents: Sequence[Tensor], slopes: Tensor) -> Tensor:
    """c with VVᵀ c = V G by Cholesky, (guess, 1 or layer, tangent), in double precision.

    The condition number of the Gram matrix is the square of that of V, which for a square Gaussian V is about P. This
    is too large for float32.
    """
    grams = [_gram(tangent.flatten(2)) for tangent in tangents]
    gram = sum(grams[1:], grams[0]).unsqueeze(1) if slopes.shape[1] == 1 else torch.stack(grams, dim=1)
    triangle, failed = torch.linalg.cholesky_ex(gram)
    # For dependent tangents the last entries of the diagonal are rounding errors, of either sign.
    left_over = triangle.diagonal(dim1=-2, dim2=-1).square() / gram.diagonal(dim1=-2, dim2=-1)
    k = gram.shape[-1]
    if bool(failed.any() | (left_over < 8 * k**0.5 * torch.finfo(torch.float64).eps).any()):
        raise ValueError(f"the k={k} tangents of a guess are linearly dependent: use a continuous law or a smaller k")
    return torch.cholesky_solve(slopes.double().unsqueeze(-1), triangle).squeeze(-1)


def _gram(tangents: Tensor) -> Tensor:
    """V Vᵀ, (guess, tangent, tangent), in double precision from the tangents (guess, tangent, weight)."""
    n_blocks = tangents.shape[2] // COLUMNS_AT_ONCE
    last_columns = tangents[:, :, n_blocks * COLUMNS_AT_ONCE :].double()
    gram = last_columns @ last_columns.mT
    blocks = tangents[:, :, : n_blocks * COLUMNS_AT_ONCE].unflatten(2, (n_blocks, COLUMNS_AT_ONCE)).transpose(1, 2)
    for part in blocks.split(BLOCKS_AT_ONCE, dim=1):
        columns = part.double()
        gram += (columns @ columns.mT).sum(1)
    return gram
