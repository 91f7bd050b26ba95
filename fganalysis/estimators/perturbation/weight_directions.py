"""Guesses along directions of all weights that have a structure: each parameter by itself, or each layer.

    Ĝ_l = t V_l,   t = Σ_l ⟨V_l, G_l⟩ (joint)  or  ⟨V_l, G_l⟩ of the layer alone (separate)

Where a structure is that of a matrix, every parameter is one by itself: a weight of more than two axes, as that of a
convolution, is its first axis by all others. A parameter with a single row or column, as a bias or the scale of a
normalisation layer, is a vector, and its direction has no structure. A direction that is a product of thin matrices is
kept as one, together with the vectors of its layer, and never written out for every guess.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fganalysis.capturing.packing import Part
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.capturing.tap import Layer, Layers
from fganalysis.estimators.factored import FactoredEstimates, Product, WrittenOut, summed
from fganalysis.estimators.guesses import WeightEstimates
from fganalysis.estimators.noise import Noise, drawn


@dataclass(frozen=True)
class Parameter:
    """One parameter of a layer as a matrix (row, column)."""

    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def rows(self) -> int:
        return self.shape[0] if self.shape else 1

    @property
    def columns(self) -> int:
        return self.size // self.rows if self.rows else 0

    @property
    def is_matrix(self) -> bool:
        return self.rows > 1 and self.columns > 1


def parameters_of(layer: Layer) -> list[Parameter]:
    """The parameters of a layer, in the order of its packing."""
    return [Parameter(part.name, part.shape) for part in layer.packing.parts]


def unstructured(
    noise: Noise, parameter: Parameter, n_guesses: int, generator: torch.Generator, like: Tensor
) -> Tensor:
    """The direction of a vector, (guess, …): one noise vector."""
    return drawn(noise, (n_guesses, parameter.size), generator, like).view(n_guesses, *parameter.shape)


class AlongDirections(Protocol):
    """An estimator whose guess is a slope times a direction of all weights."""

    @property
    def layers(self) -> Layers: ...

    def draw(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """V, (guess, unit, input) a layer."""


def guess_along_weights(
    estimator: AlongDirections, snapshot: Snapshot, n_guesses: int, generator: torch.Generator
) -> WeightEstimates:
    """Directions times their slopes."""
    directions = estimator.draw(snapshot, n_guesses, generator)
    slopes = snapshot.weight_slopes(directions, estimator.layers)
    return WeightEstimates(slopes.expand(-1, len(directions)), directions)


class AlongFactors(Protocol):
    """The same with directions in factored form."""

    @property
    def layers(self) -> Layers: ...

    def directions(
        self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator
    ) -> tuple[Product | WrittenOut, ...]:
        """V of each layer."""


def guess_along_factors(
    estimator: AlongFactors, snapshot: Snapshot, n_guesses: int, generator: torch.Generator
) -> FactoredEstimates:
    """Factored directions times their slopes."""
    directions = estimator.directions(snapshot, n_guesses, generator)
    if snapshot.autodiff == "forward":
        slopes = snapshot.weight_slopes([direction.written() for direction in directions], estimator.layers)
    else:
        pairs = zip(directions, snapshot.weight_gradients, strict=True)
        slopes = torch.stack([direction.inner_products(gradient)[0] for direction, gradient in pairs], dim=1)
        slopes = (slopes if estimator.layers == "separate" else slopes.sum(1, keepdim=True)).to(snapshot.dtype)
    by_layer = slopes.expand(-1, len(directions)).T
    return FactoredEstimates(tuple(part.scaled(slope) for part, slope in zip(directions, by_layer, strict=True)))


def in_layer(layer: Layer, by_parameter: Sequence[Product | Tensor]) -> Product | WrittenOut:
    """The direction of a layer from those of its parameters: products (row, column) for matrices, (guess, …) else."""
    parts = layer.packing.parts
    starts = itertools.accumulate((part.columns for part in parts), initial=0)
    placed = [
        _placed(part, start, layer.packing.shape, direction)
        for part, start, direction in zip(parts, starts, by_parameter, strict=False)
    ]
    known = [product for product in placed if product is not None]
    if len(known) == len(parts):
        return summed(known)
    written = [part.written() if isinstance(part, Product) else part for part in by_parameter]
    return WrittenOut(
        layer.columns(
            {
                part.name: direction.reshape(len(direction), *part.shape)
                for part, direction in zip(parts, written, strict=True)
            }
        )
    )


def _placed(part: Part, start: int, shape: tuple[int, int], direction: Product | Tensor) -> Product | None:
    """A parameter's direction among the columns of its layer, from ``start`` on; None where it is no such product."""
    units, inputs = shape
    around = (start, inputs - start - part.columns)
    if isinstance(direction, Product):
        left, right = direction.left, direction.right
        if part.transposed and len(part.shape) == 2:
            left, right = right, left
        elif part.transposed or left.shape[2] != units:
            return None
        return Product(left, torch.nn.functional.pad(right, around))
    if part.columns == 1:
        one = direction.new_ones(len(direction), 1, 1)
        return Product(direction.reshape(len(direction), 1, units), torch.nn.functional.pad(one, around))
    return None
