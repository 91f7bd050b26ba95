"""Guesses drawn by their law: components along the gradient and lengths across it, never a direction of all weights.

Of a layer with P weights and the gradient G, a Gaussian direction is V = a G/‖G‖ + z. The slope is known from a, and z
has a uniform direction in D = P − 1 dimensions that is independent of everything else. So vectors across are known by
their lengths, and a sum S of such vectors is built one at a time, with x = z·S/‖S‖ normal and w = ‖z‖² − x² ~ χ²_{D−1}:

    ‖S + t z‖² = (‖S‖ + t x)² + t² w          ‖z‖² = x² + w

The sum again has a uniform direction, so tangents, averaged guesses and groups of guesses add up in the same way. Three
numbers a guess and layer are drawn, whatever P is. Proof: docs/mathematics.md#weight-guesses-by-their-law. Arrays are
(layer, guess), in units of the norms that are handed in.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from fganalysis.estimators.noise import Sphere
from fganalysis.estimators.tangents_of_weights import Tangents

Array = NDArray[np.float64]
COORDINATES_HELD = 2**17  # Of tangents that are written in coordinates at once, unless a guess has more.


@dataclass(frozen=True)
class Exact:
    """What of a network the law of a guess contains: the number of weights and the gradient's norm of each layer."""

    sizes: NDArray[np.int64]
    norms: Array


@dataclass(frozen=True)
class Vectors:
    """Vectors of each layer, (layer, vector).

    Attributes:
        along: the component along the gradient; of a layer without a gradient, along any fixed direction.
        forward: of the part across, the component along the sum to which the vector is added.
        sideways: of the part across, the square of what is left.
    """

    along: Array
    forward: Array
    sideways: Array

    @property
    def squared_norms(self) -> Array:
        return self.along**2 + self.forward**2 + self.sideways

    def between(self, start: int, stop: int) -> Vectors:
        """Some of the vectors; fewer where there are no more."""
        return Vectors(self.along[:, start:stop], self.forward[:, start:stop], self.sideways[:, start:stop])

    def scaled(self, factor: Array) -> Vectors:
        return Vectors(self.along * factor, self.forward * factor, self.sideways * factor**2)


class Sum:
    """A running sum of vectors for each of several places, (layer, place): ``along``, and the ``across`` length."""

    def __init__(self, n_layers: int, places: int):
        self.along, self.across = np.zeros((n_layers, places)), np.zeros((n_layers, places))

    def add(self, vectors: Vectors) -> None:
        """Adds a vector to each place, or to each of the first places."""
        places = vectors.along.shape[1]
        self.along[:, :places] += vectors.along
        across = self.across[:, :places]
        across += vectors.forward
        np.square(across, out=across)
        across += vectors.sideways
        np.sqrt(across, out=across)


def guesses(law: Tangents, exact: Exact, n_guesses: int, generator: np.random.Generator) -> Vectors:
    """Independent guesses of the gradient."""
    drawn = partial(_projections if law.combine == "orthogonal" else _tangents, law, exact, n_guesses, generator)
    n_parts = law.n_averaged * (law.k if law.combine == "mean" else 1)
    if n_parts == 1:
        return drawn()
    total = Sum(len(exact.sizes), n_guesses)
    for _ in range(n_parts):
        total.add(drawn())
    return _in_a_direction(total.along / n_parts, total.across / n_parts, exact.sizes, generator)


def numbers_per_guess(law: Tangents, n_layers: int) -> int:
    """About how many numbers are drawn for a guess, in triples."""
    of_tangents = law.k if law.combine == "mean" else law.k**2 if _needs_tangents(law) else 1
    return n_layers * law.n_averaged * of_tangents


def numbers_held(law: Tangents, n_layers: int, n_guesses: int) -> int:
    """About how many numbers are held while so many guesses are drawn, in triples."""
    coordinates = max(COORDINATES_HELD, n_layers * law.k**2) if _needs_tangents(law) else 0
    return n_layers * n_guesses + coordinates


def gram_of_errors(total: Sum, counts: Array, exact: Exact, generator: np.random.Generator) -> Array:
    """Inner products between the errors (sum/count − gradient) of all places, (layer, place, place).

    counts: how many vectors were added to each place.
    """
    along, across = total.along / counts - exact.norms[:, None], total.across / counts
    grams = []
    for layer, n_weights in enumerate(exact.sizes):
        directions = unit_vectors(len(counts), int(n_weights) - 1, generator)
        errors = np.concatenate([along[layer][:, None], across[layer][:, None] * directions], axis=1)
        grams.append(errors @ errors.T)
    return np.stack(grams)


def unit_vectors(number: int, dimension: int, generator: np.random.Generator) -> Array:
    """Independent uniform unit vectors up to a rotation, (vector, coordinate), by Bartlett's triangle."""
    coordinates = _bartlett((), number, dimension, generator)
    return coordinates / np.linalg.norm(coordinates, axis=1, keepdims=True) if dimension else coordinates


def _tangents(law: Tangents, exact: Exact, n_guesses: int, generator: np.random.Generator) -> Vectors:
    """t_i V_i of single directions."""
    directions = _directions(exact.sizes, n_guesses, generator)
    if isinstance(law.noise, Sphere):
        directions = directions.scaled(np.sqrt(exact.sizes[:, None] / directions.squared_norms))
    slopes = exact.norms[:, None] * directions.along
    return directions.scaled(slopes.sum(0) if law.layers == "joint" else slopes)


def _directions(sizes: NDArray[np.int64], number: int, generator: np.random.Generator) -> Vectors:
    """Standard normal vectors of all weights."""
    along = generator.standard_normal((len(sizes), number))
    forward, sideways = _across(sizes, number, generator)
    return Vectors(along, forward, sideways)


def _across(sizes: NDArray[np.int64], number: int, generator: np.random.Generator) -> tuple[Array, Array]:
    """x and w of standard normal vectors in P − 1 dimensions; zero where there is no dimension."""
    forward, sideways = generator.standard_normal((len(sizes), number)), np.empty((len(sizes), number))
    for layer, n_weights in enumerate(sizes):
        # χ²_ν is twice a gamma variable of shape ν/2, and zero for ν = 0.
        generator.standard_gamma(max(int(n_weights) - 2, 0) / 2, out=sideways[layer])
    sideways *= 2
    forward[sizes == 1] = 0.0
    return forward, sideways


def _in_a_direction(along: Array, across: Array, sizes: NDArray[np.int64], generator: np.random.Generator) -> Vectors:
    """Vectors of known lengths across, in a uniform direction there."""
    forward, sideways = _across(sizes, along.shape[1], generator)
    square = forward**2 + sideways
    square[sizes == 1] = 1.0
    return Vectors(along, across * (forward / np.sqrt(square)), across**2 * (sideways / square))


def _needs_tangents(law: Tangents) -> bool:
    """Whether a projection depends on more than the span of Gaussian tangents.

    The length of a tangent does not matter to its span. On a sphere for each layer, in a joint pass, it is the lengths
    of the layers' parts beside each other that differ from the Gaussian's.
    """
    return law.combine == "orthogonal" and isinstance(law.noise, Sphere) and law.layers == "joint"


def _projections(law: Tangents, exact: Exact, n_guesses: int, generator: np.random.Generator) -> Vectors:
    """The gradient's projection on the span of k directions."""
    if _needs_tangents(law):
        at_once = max(1, COORDINATES_HELD // (len(exact.sizes) * law.k**2))
        counts = [min(at_once, n_guesses - start) for start in range(0, n_guesses, at_once)]
        parts = [_projected_on_tangents(law.k, exact, count, generator) for count in counts]
        along, across = (np.concatenate(part, axis=1) for part in zip(*parts, strict=True))
        return _in_a_direction(along, across, exact.sizes, generator)
    if law.layers == "joint":
        return _projected_on_span(law.k, exact, n_guesses, generator)
    single = [Exact(*pair) for pair in zip(exact.sizes[:, None], exact.norms[:, None], strict=True)]
    layers = [_projected_on_span(law.k, layer, n_guesses, generator) for layer in single]
    return Vectors(*(np.concatenate(p) for p in zip(*((v.along, v.forward, v.sideways) for v in layers), strict=True)))


def _projected_on_span(k: int, exact: Exact, n_guesses: int, generator: np.random.Generator) -> Vectors:
    """The gradient's projection on k uniform dimensions: κ G + √(κ(1 − κ)) ‖G‖ u, κ ~ Beta(k/2, (P − k)/2).

    u is a uniform direction across the gradient of all layers together: a normal vector without its component along it.
    """
    norms, dimension = exact.norms, int(exact.sizes.sum())
    norm = float(np.sqrt((norms**2).sum()))
    within, outside = (generator.standard_gamma(degrees / 2, n_guesses) for degrees in (k, dimension - k))
    kept = within / (within + outside)
    shares = norms / norm if norm else norms
    normal = _directions(exact.sizes, n_guesses, generator)
    across = Vectors(normal.along - np.outer(shares, shares @ normal.along), normal.forward, normal.sideways)
    squares = across.squared_norms.sum(0)
    # A single weight has nothing across, and rounding alone would be left.
    length = norm * np.sqrt(kept * (1 - kept) / squares) if dimension > 1 else np.zeros(n_guesses)
    lengthened = across.scaled(length)
    return Vectors(np.outer(norms, kept) + lengthened.along, lengthened.forward, lengthened.sideways)


def _projected_on_tangents(k: int, exact: Exact, n_guesses: int, generator: np.random.Generator) -> tuple[Array, Array]:
    """``along`` and ``across`` of the gradient's projection on k tangents whose parts in each layer lie on a sphere.

    Each layer's part of the tangents is written in at most k + 1 coordinates, the first along the gradient.
    """
    parts = []
    for n_weights in map(int, exact.sizes):
        along = generator.standard_normal((n_guesses, k, 1))
        across = _bartlett((n_guesses,), k, n_weights - 1, generator)
        normal = np.concatenate([along, across], axis=2)
        parts.append(normal * np.sqrt(n_weights / (normal**2).sum(2, keepdims=True)))
    tangents = np.concatenate(parts, axis=2)
    first = np.cumsum([0, *(part.shape[2] for part in parts)])
    # By QR: the condition number of the Gram matrix would be the square of that of the tangents.
    span = np.linalg.qr(tangents.transpose(0, 2, 1)).Q
    slopes = np.einsum("l,glk->gk", exact.norms, span[:, first[:-1]])
    projection = np.einsum("gck,gk->gc", span, slopes)
    lengths = [np.linalg.norm(projection[:, start + 1 : stop], axis=1) for start, stop in pairwise(first)]
    return projection[:, first[:-1]].T, np.stack(lengths)


def _bartlett(shape: tuple[int, ...], number: int, dimension: int, generator: np.random.Generator) -> Array:
    """Standard normal vectors up to a rotation, (…, vector, coordinate): a triangle with as few coordinates as can be.

    Coordinate j of vector j is the length of what the vectors before it do not span, in ``dimension`` − j dimensions.
    """
    n_coordinates = min(number, dimension)
    triangle = np.tril(generator.standard_normal((*shape, number, n_coordinates)), -1)
    place = np.arange(n_coordinates)
    lengths = generator.standard_gamma((dimension - place) / 2, (*shape, n_coordinates))
    triangle[..., place, place] = np.sqrt(2 * lengths)
    return triangle
