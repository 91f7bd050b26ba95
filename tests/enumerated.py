"""Means and second moments of guesses by plain enumeration in NumPy: the other witness for `theory`."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Law:
    """A noise vector of finite support: ``points`` (point, noise) with ``weights`` (point,), and its fourth moments."""

    points: Array
    weights: Array
    fourth: float
    pair: float


def product_law(values: Sequence[float], weights: Sequence[float], fourth: float, noise: int) -> Law:
    """Independent entries, each with the given values and weights."""
    points = np.array(list(itertools.product(values, repeat=noise)))
    return Law(points, np.array(list(itertools.product(weights, repeat=noise))).prod(1), fourth, 1.0)


def signs(noise: int) -> Law:
    return product_law([-1.0, 1.0], [0.5, 0.5], 1.0, noise)


def three_points(noise: int) -> Law:
    """The moments of N(0, 1) up to the fifth."""
    return product_law([-np.sqrt(3.0), 0.0, np.sqrt(3.0)], [1 / 6, 4 / 6, 1 / 6], 3.0, noise)


def axes(noise: int) -> Law:
    """±√noise along one axis picked at random: entries that depend on each other, fourth = noise and pair = 0."""
    points = np.sqrt(noise) * np.concatenate([np.eye(noise), -np.eye(noise)])
    return Law(points, np.full(2 * noise, 0.5 / noise), float(noise), 0.0)


def circle(noise: int) -> Law:
    """Six points on the circle of radius √2: the moments of the uniform law on it up to the fifth."""
    assert noise == 2
    angles = np.arange(6) * np.pi / 3 + 0.2
    points = np.sqrt(2.0) * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return Law(points, np.full(6, 1 / 6), 3 * 2 / 4, 2 / 4)


@dataclass(frozen=True, eq=False)
class Enumerated:
    """One layer: mean (example, unit) and E ĝ ĝᵀ (example, unit, example, unit)."""

    mean: Array
    second: Array

    def squares(self) -> Array:
        return np.einsum("bubu->bu", self.second)

    def second_moment(self, kernel: Array) -> float:
        return float(np.einsum("bucu,bc->", self.second, kernel))


def guesses(
    gradients: Sequence[Array], matrices: Sequence[Array], laws: Sequence[Law], shared: bool, slope: str, layers: str
) -> tuple[list[Array], Array]:
    """Every possible guess (point, example, unit) of each layer and the probabilities (point,).

    gradients: (example, unit); matrices: A_b as (example, unit, noise), a layer each.
    """
    examples = len(gradients[0])
    vectors = [law for law in laws for _ in range(1 if shared else examples)]
    grid = np.indices([len(law.points) for law in vectors]).reshape(len(vectors), -1)
    weights = np.prod([law.weights[index] for law, index in zip(vectors, grid, strict=True)], axis=0)
    directions = []
    for layer, (matrix, law) in enumerate(zip(matrices, laws, strict=True)):
        rows = [layer] * examples if shared else range(layer * examples, (layer + 1) * examples)
        noise = np.stack([law.points[grid[row]] for row in rows], axis=1)
        directions.append(np.einsum("bun,pbn->pbu", matrix, noise))
    slopes = [np.einsum("pbu,bu->pb", y, g) for y, g in zip(directions, gradients, strict=True)]
    if layers == "joint":
        slopes = [np.sum(slopes, axis=0)] * len(slopes)
    if slope == "batch":
        slopes = [t.sum(1, keepdims=True) for t in slopes]
    return [t[:, :, None] * y for t, y in zip(slopes, directions, strict=True)], weights


def enumerate_moments(
    gradients: Sequence[Array], matrices: Sequence[Array], laws: Sequence[Law], shared: bool, slope: str, layers: str
) -> list[Enumerated]:
    found, weights = guesses(gradients, matrices, laws, shared, slope, layers)
    return [
        Enumerated(np.einsum("p,pbu->bu", weights, guess), np.einsum("p,pbu,pcv->bucv", weights, guess, guess))
        for guess in found
    ]
