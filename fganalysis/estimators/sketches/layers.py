"""Which layers are sketched, and from what: those whose weights multiply rows of inputs.

    G = Σ_r g_r x_rᵀ   over the rows of all taps of the layer   (docs/mathematics.md#rows)

A layer is sketched where each of its taps is a Linear module or a convolution without groups. Every other layer, such
as a normalisation, an embedding or a module of your own, keeps its exact gradient: there are no inputs to keep less of.
So does a bias, whose gradient Σ_r g_r needs no inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fganalysis.capturing.rows import Owners
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.capturing.tap import Layer
from fganalysis.capturing.weight_maps.matrix import MatrixMap
from fganalysis.estimators.sketches.factored import Exact, FactoredEstimates, LayerGuesses, Product, WrittenOut


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of one tap. gradients: g (row, unit). inputs: x (row, input), without the constant input of a bias.

    owners: the example of each row; None where rows belong to no single example.
    """

    gradients: Tensor
    inputs: Tensor
    owners: Owners | None


@dataclass(frozen=True, eq=False)
class SketchedLayer:
    """A layer that is sketched.

    gradient: G (unit, input), the constant input of a bias last. taps: its rows. places: how many neighbouring inputs
    come from one channel, those of a convolution's kernel.
    """

    gradient: Tensor
    taps: tuple[Rows, ...]
    places: int = 1

    @property
    def n_inputs(self) -> int:
        """Inputs of a row, without the constant one."""
        return self.taps[0].inputs.shape[1]

    @property
    def of_weights(self) -> Tensor:
        """G without the bias, (unit, input)."""
        return self.gradient[:, : self.n_inputs]

    def with_bias(self, guesses: Product | WrittenOut) -> Product | WrittenOut:
        """Guesses without the bias, with its exact gradient added."""
        of_bias = self.gradient[:, self.n_inputs :]
        if of_bias.shape[1] == 0:
            return guesses
        n_guesses = len(guesses)
        if isinstance(guesses, WrittenOut):
            return WrittenOut(torch.cat([guesses.guesses, of_bias.expand(n_guesses, *of_bias.shape)], dim=2))
        left = torch.cat([guesses.left, of_bias.T.expand(n_guesses, *of_bias.T.shape)], dim=1)
        right = torch.nn.functional.pad(guesses.right, (0, 1, 0, 1))
        right[:, -1, -1] = 1.0
        return Product(left, right)


def sketched_layers(snapshot: Snapshot) -> tuple[SketchedLayer | None, ...]:
    """One for each layer; None for a layer that stays exact."""
    made: tuple[SketchedLayer | None, ...] = snapshot.remember(
        "sketched layers", lambda: tuple(_sketched(snapshot, index) for index in range(len(snapshot.weights)))
    )
    return made


def _sketched(snapshot: Snapshot, index: int) -> SketchedLayer | None:
    layer = snapshot.weights[index]
    columns = _columns_of_weights(layer)
    taps = []
    for number in layer.taps:
        tap = snapshot.taps[number]
        if not isinstance(tap.weights, MatrixMap) or tap.packing != layer.packing:
            return None
        inputs = tap.weights.inputs[:, :columns]
        taps.append(Rows(snapshot.gradients[number], inputs, tap.owners))
    if not taps or columns == 0:
        return None
    places = math.prod(layer.packing.parts[0].shape[2:])
    return SketchedLayer(snapshot.weight_gradients[index], tuple(taps), places)


def _columns_of_weights(layer: Layer) -> int:
    """How many columns of a layer's matrix are no bias; in a Linear module or a convolution the bias is last."""
    return sum(part.columns for part in layer.packing.parts if part.name.rpartition(".")[2] != "bias")


def sketched(
    snapshot: Snapshot,
    n_guesses: int,
    guess: Callable[[SketchedLayer], Product | WrittenOut],
    noise: Callable[[SketchedLayer], int],
) -> FactoredEstimates:
    """Guesses of every layer.

    guess: makes those of a sketched layer's weights, without the bias. noise: how many random numbers a guess takes
    there, which are in memory while it is made.
    """
    made: list[LayerGuesses] = [
        Exact(gradient, n_guesses) if layer is None else layer.with_bias(guess(layer))
        for layer, gradient in zip(sketched_layers(snapshot), snapshot.weight_gradients, strict=True)
    ]
    most = max([noise(layer) for layer in sketched_layers(snapshot) if layer is not None], default=0)
    return FactoredEstimates(tuple(made), most)


def summed(parts: list[Product]) -> Product | WrittenOut:
    """The sum of the guesses of several taps, written out where the factors have as many numbers as the weights."""
    left, right = (torch.cat(factors, dim=1) for factors in ([p.left for p in parts], [p.right for p in parts]))
    terms, units, inputs = left.shape[1], left.shape[2], right.shape[2]
    if terms * (units + inputs) < units * inputs:
        return Product(left, right)
    return WrittenOut(left.mT @ right)
