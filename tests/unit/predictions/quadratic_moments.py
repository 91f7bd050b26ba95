"""Exact moments of guesses that are quadratic forms in noise, from the estimator's own guesses at chosen points.

    ĝ(ε) = c + Σ_jk S_jk ε_j ε_k,   c = ĝ(0),   S_jj = ĝ(e_j) − c,   2 S_jk = ĝ(e_j + e_k) − ĝ(e_j) − ĝ(e_k) + c

    E ĝ = c + Σ_j S_jj,   E‖ĝ − c‖² = fourth Σ_j ‖S_jj‖² + Σ_{j≠k} pair_jk (⟨S_jj, S_kk⟩ + 2 ‖S_jk‖²)

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


@dataclass(frozen=True)
class Drawn:
    """Guesses at the points e_j and e_j + e_k, j = first and k = second, at the taps and at the weights, 0 last.

    fourths: (noise,), pairs: (noise, noise), the moments of the noise.
    """

    first: Tensor
    second: Tensor
    fourths: Tensor
    pairs: Tensor
    at_taps: Tensor | None
    at_weights: Tensor


def drawn(estimator: Any, snapshot: Snapshot) -> Drawn:
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
    chosen = torch.cat([chosen, torch.zeros_like(chosen[:1])])
    spaces: list[list[Tensor]] = [[], []]
    for part in chosen.split(512):
        points.points, points.drawn, points.vectors = part, 0, []
        for space, values in zip(spaces, injected(snapshot, len(part), generator).dense(snapshot), strict=True):
            if values is not None:
                space.append(values.double())
    fourths = torch.tensor([estimator.noise.fourth(int(n)) for n in sizes], dtype=torch.float64)
    pairs = torch.tensor([estimator.noise.pair(int(n)) for n in sizes], dtype=torch.float64)
    pairs = torch.where(vectors[:, None] == vectors, pairs[:, None], 1.0)
    at_taps = torch.cat(spaces[0]) if spaces[0] else None
    return Drawn(first, second, fourths, pairs, at_taps, torch.cat(spaces[1]))


def moments(estimator: Any, snapshot: Snapshot) -> tuple[Moments | None, Moments]:
    """At the taps, None for guesses at the weights, and at the layers' weights."""
    guesses = drawn(estimator, snapshot)
    lengths = [layer.weight.numel() for layer in snapshot.weights]
    at_weights = _by_part(guesses, guesses.at_weights, lengths)
    if guesses.at_taps is None:
        return None, at_weights
    return _by_part(guesses, guesses.at_taps, [tap.outputs.numel() for tap in snapshot.taps]), at_weights


def curvature(estimator: Any, snapshot: Snapshot, matrix: Tensor) -> float:
    """E ĝᵀHĝ at the weights, H a symmetric matrix (weight, weight)."""
    guesses = drawn(estimator, snapshot)
    # With H = V diag(h) Vᵀ the sum of h times the second moments of (Vᵀĝ).
    values, basis = torch.linalg.eigh(matrix)
    along = guesses.at_weights @ basis
    parts = _by_part(guesses, along, [1] * len(values))
    squares = [v + float(m.square()) for v, m in zip(parts.variances, parts.means, strict=True)]
    return float(values @ torch.tensor(squares, dtype=torch.float64))


def _by_part(guesses: Drawn, values: Tensor, lengths: list[int]) -> Moments:
    origin = values[-1]
    parts = [
        _of_part(block, guesses.first, guesses.second, guesses.fourths, guesses.pairs)
        for block in (values[:-1] - origin).split(lengths, dim=1)
    ]
    means = [mean + of_part for (mean, _), of_part in zip(parts, origin.split(lengths), strict=True)]
    return Moments(means, [variance for _, variance in parts])


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
