"""Which layers are sketched, and from what: those whose weights multiply rows of inputs.

    G = Σ_r g_r x_rᵀ   over the rows of all taps of the layer   (docs/mathematics.md#rows)

A layer is sketched where each of its taps is a Linear module or a convolution without groups. Every other layer, such
as a normalisation, an embedding or a module of your own, keeps its exact gradient: there are no inputs to keep less of.
So does a bias, whose gradient Σ_r g_r needs no inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fganalysis.capturing.rows import Owners
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.capturing.tap import Layer
from fganalysis.capturing.weight_maps.convolution import Convolution
from fganalysis.capturing.weight_maps.matrix import MatrixMap
from fganalysis.estimators.factored import Exact, FactoredEstimates, LayerGuesses, Product, WrittenOut


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of one tap. gradients: g (row, unit). inputs: x (row, input), without the constant input of a bias.

    owners: the example of each row; None where rows belong to no single example. convolution: of a module that is one,
    whose inputs here are patches.
    """

    gradients: Tensor
    inputs: Tensor
    owners: Owners | None
    convolution: Convolution | None = None

    @property
    def kept(self) -> Tensor:
        """What the module would keep for its backward pass, (row, input or channel): of a convolution no patches."""
        if self.convolution is None:
            return self.inputs
        return self.convolution.arriving.movedim(1, -1).flatten(0, -2)

    def kept_owners(self) -> Owners | None:
        """The example of each row that is kept; None where rows belong to no single example."""
        if self.convolution is None or self.owners is None:
            return self.owners
        order, n_rows = self.owners.order, len(self.kept)
        if order != "example first" or len(self.convolution.arriving) % self.owners.n_examples:
            return None
        return Owners(self.owners.n_examples, n_rows)

    def with_kept(self, kept: Tensor) -> Tensor:
        """∑_r g_r x_rᵀ with other numbers kept, (guess, row, input or channel) → (guess, unit, input)."""
        if self.convolution is None:
            return self.gradients.T @ kept
        arriving = self.convolution.arriving
        images = kept.unflatten(1, (len(arriving), *arriving.shape[2:])).movedim((1, 0, -1), (0, 1, 2)).flatten(1, 2)
        kernel = (len(kept) * arriving.shape[1], *self.convolution.kernel[1:])
        return (
            replace(self.convolution, arriving=images, kernel=kernel, columns=("weight",))
            .gradients(self.gradients.unsqueeze(0))
            .unflatten(2, (len(kept), -1))[0]
            .movedim(1, 0)
        )


@dataclass(frozen=True, eq=False)
class SketchedLayer:
    """A layer that is sketched.

    gradient: G (unit, input), the constant input of a bias last. taps: its rows.
    """

    gradient: Tensor
    taps: tuple[Rows, ...]

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
        taps.append(Rows(snapshot.gradients[number], inputs, tap.owners, tap.weights.convolution))
    if not taps or columns == 0:
        return None
    return SketchedLayer(snapshot.weight_gradients[index], tuple(taps))


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
