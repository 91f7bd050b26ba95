"""Exact moments of guesses that are quadratic forms in noise, from the estimator's own guesses at chosen points.

    ĝ(ε) = Σ_jk S_jk ε_j ε_k,   S_jj = ĝ(e_j),   2 S_jk = ĝ(e_j + e_k) − ĝ(e_j) − ĝ(e_k)

    E ĝ = Σ_j S_jj,   E‖ĝ‖² = fourth Σ_j ‖S_jj‖² + Σ_{j≠k} pair_jk (⟨S_jj, S_kk⟩ + 2 ‖S_jk‖²)

This takes about N²/2 guesses for N noise dimensions where an enumeration takes 2^N, and knows nothing of the network.
pair_jk is 1 for entries of different noise vectors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators.noise import Noise


@dataclass
class Points:
    """A noise law that draws the coordinates of given points, in the order in which they are asked for."""

    law: Noise
    points: Tensor | None = None
    drawn: int = 0
    vectors: list[int] = field(default_factory=list)

    def draw(self, shape: tuple[int, ...], generator: torch.Generator, like: Tensor, vector_dims: int = 1) -> Tensor:
        count, entries = math.prod(shape[1:]), math.prod(shape[-vector_dims:])
        first = self.vectors[-1] + 1 if self.vectors else 0
        self.vectors += [first + place // entries for place in range(count)]
        if self.points is None:
            return like.new_zeros(shape)
        self.drawn += count
        return self.points[:, self.drawn - count : self.drawn].reshape(shape)

    def fourth(self, n: int) -> float:
        return self.law.fourth(n)

    def pair(self, n: int) -> float:
        return self.law.pair(n)


@dataclass(frozen=True)
class Moments:
    """Mean (number,) and total variance of each part: of each tap's guess, or of each layer's at the weights."""

    means: list[Tensor]
    variances: list[float]


def moments(estimator: Any, snapshot: Snapshot) -> tuple[Moments | None, Moments]:
    """At the taps, None for guesses at the weights, and at the layers' weights."""
    points = Points(estimator.noise)
    generator = torch.Generator()
    injected = replace(estimator, noise=points)
    injected(snapshot, 1, generator)
    vectors = torch.tensor(points.vectors)
    n_noise = len(vectors)
    sizes = vectors.bincount()[vectors]
    first, second = torch.triu_indices(n_noise, n_noise)
    basis = torch.eye(n_noise, dtype=torch.float64)
    chosen = torch.where((first == second)[:, None], basis[first], basis[first] + basis[second])
    spaces: list[list[Tensor | None]] = [[], []]
    for part in chosen.split(512):
        points.points, points.drawn, points.vectors = part, 0, []
        for space, values in zip(spaces, injected(snapshot, len(part), generator).dense(snapshot), strict=True):
            space.append(None if values is None else values.double())
    fourths = torch.tensor([estimator.noise.fourth(int(n)) for n in sizes], dtype=torch.float64)
    pairs = torch.tensor([estimator.noise.pair(int(n)) for n in sizes], dtype=torch.float64)
    pairs = torch.where(vectors[:, None] == vectors, pairs[:, None], 1.0)
    at_taps = [tap.outputs.numel() for tap in snapshot.taps]
    at_weights = [layer.weight.numel() for layer in snapshot.weights]
    found: list[Moments | None] = []
    for blocks, lengths in zip(spaces, (at_taps, at_weights), strict=True):
        values = [block for block in blocks if block is not None]
        if not values:
            found.append(None)
            continue
        parts = [_of_part(block, first, second, fourths, pairs) for block in torch.cat(values).split(lengths, dim=1)]
        found.append(Moments([mean for mean, _ in parts], [variance for _, variance in parts]))
    assert found[1] is not None
    return found[0], found[1]


def _of_part(block: Tensor, first: Tensor, second: Tensor, fourths: Tensor, pairs: Tensor) -> tuple[Tensor, float]:
    """Mean and total variance, from the guesses (point, number) at the points e_j and e_j + e_k."""
    n_noise = len(fourths)
    sums = block.new_zeros(n_noise, n_noise, block.shape[1])
    sums[first, second] = block
    own = sums.diagonal().T
    forms = (sums - own[:, None] - own) / 2
    forms = forms * torch.triu(torch.ones(n_noise, n_noise, dtype=torch.float64), 1)[:, :, None]
    squares = 2 * forms.square().sum(2)
    apart = pairs * (own @ own.T) * (1 - torch.eye(n_noise, dtype=torch.float64))
    mean = own.sum(0)
    square = (fourths * own.square().sum(1)).sum() + apart.sum() + 2 * (pairs * squares).sum()
    return mean, float(square - mean.square().sum())
