"""Guesses along directions of all weights that have a structure: each parameter by itself, or each layer.

    Ĝ_l = t V_l,   t = Σ_l ⟨V_l, G_l⟩ (joint)  or  ⟨V_l, G_l⟩ of the layer alone (separate)

Where a structure is that of a matrix, every parameter is one by itself: a weight of more than two axes, as that of a
convolution, is its first axis by all others. A parameter with a single row or column, as a bias or the scale of a
normalisation layer, is a vector, and its direction has no structure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fganalysis.capturing.snapshot import Snapshot
from fganalysis.capturing.tap import Layer, Layers
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


def packed(layer: Layer, n_guesses: int, by_parameter: Sequence[Tensor]) -> Tensor:
    """Directions of a layer's parameters, (guess, …) each, as (guess, unit, input)."""
    pairs = zip(parameters_of(layer), by_parameter, strict=True)
    return layer.columns({parameter.name: part.reshape(n_guesses, *parameter.shape) for parameter, part in pairs})
