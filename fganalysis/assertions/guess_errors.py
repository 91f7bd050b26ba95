"""The sums of errors of guesses in one space, along many directions: NumPy arrays only.

The evidence of a bias is weighted over these directions; the weights add up to 1.

    1/4   the gradient itself and its part in each layer, in equal parts: a wrong scale
    1/4   the part of the gradient in each example, unit and input: a dropped example, a masked unit, a missing input
    1/4   every single coordinate
    1/4   two directions learned from earlier looks: the mean error by its precision, and its large coordinates

Arrays are (example, unit) at the activations, (unit, input) at the weights and (row, column) of a gradient without a
network. The part of an example runs over all layers; the parts of a unit, an input, a row or a column belong to one
layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from fganalysis.statistics.anytime_evidence import Evidence, NormBound, norm_bound

Array = NDArray[np.float64]
AXES = {"activation": ("example", "unit"), "weight": ("unit", "input"), "parameter": ("row", "column")}
ARRAYS = 18  # Arrays with a number for every direction that are held at once: gradient, scales, evidence, temporaries.
LEARNED = ("spread over all coordinates", "in the few coordinates with the largest errors")


@dataclass(frozen=True)
class Place:
    """A direction in words. A single coordinate also has its layer and unit (without a network, its place in it)."""

    name: str
    layer: str = ""
    unit: int = -1


def rows_are_examples(space: str, shapes: Sequence[tuple[int, ...]]) -> bool:
    """Whether the same row of all taps belongs together: at the activations, where all have as many rows."""
    return AXES[space][0] == "example" and len({rows for rows, _ in shapes}) == 1


def bytes_needed(space: str, shapes: Sequence[tuple[int, ...]], n_blocks: int) -> int:
    """The memory of `GuessErrors` in bytes. shapes: those of the exact gradients, (row, column) for each tap."""
    n_coordinates = sum(rows * columns for rows, columns in shapes)
    alike = rows_are_examples(space, shapes)
    n_rows = shapes[0][0] if alike else sum(rows for rows, _ in shapes)
    n_shares = 1 + len(shapes) + n_rows + sum(columns for _, columns in shapes)
    return 8 * (n_blocks * (n_coordinates + n_blocks) + ARRAYS * (n_shares + n_coordinates))


class GuessErrors:
    """Running sums of ĝ − g in one space.

    A look is a call of ``start(block_size)``, of ``take(block, sums)`` for every block, and of ``finish()``. Held are
    the errors of one block, and for every block the sum of its errors over all looks. The unit is a power of two near
    ‖g‖, so that the scale of the loss does not matter. Memory: `bytes_needed`.

    Attributes:
        space: "activation" or "weight".
        gradient: the exact gradients, flattened tap after tap.
        norm: the norm of ``gradient``.
        n_guesses: the number of guesses added so far.
        evidence: the evidence from all looks but the first.
    """

    def __init__(self, space: str, layers: tuple[str, ...], gradients: list[Array], n_blocks: int, precision: float):
        """``precision`` is the rounding error of a guess, relative to its norm: no bias below it is ever reported.

        Raises:
            ValueError: a gradient of zero.
        """
        self.space, self._precision = space, precision
        gradient = np.concatenate([gradient.ravel() for gradient in gradients])
        largest = np.abs(gradient).max()
        if largest == 0:
            raise ValueError("the gradient is zero, so a relative bias has no meaning")
        self._exponent = int(np.frexp(largest)[1])
        self.gradient = np.ldexp(gradient, -self._exponent)
        self.norm = float(np.linalg.norm(self.gradient))
        self.n_guesses = 0
        self._layers, self._shapes = layers, [gradient.shape for gradient in gradients]
        self._rows_are_examples = rows_are_examples(space, self._shapes)
        self._lengths = np.sqrt(self._shares(self.gradient**2))
        n_scales, n_coordinates = 1 + len(layers), len(self.gradient)
        sizes = [n_scales, len(self._lengths) - n_scales, n_coordinates, len(LEARNED)]
        self.evidence = Evidence.none(-np.log(np.repeat(4.0 * np.array(sizes), sizes)))
        # By the direction that a number belongs to: the shares, the coordinates.
        self._fixed = slice(0, len(self._lengths)), slice(len(self._lengths), len(self._lengths) + n_coordinates)
        self._scales = np.zeros(len(self._lengths) + n_coordinates)
        self._groups = np.zeros((n_blocks, n_coordinates))
        self._gram = np.zeros((n_blocks, n_blocks))
        self._learned = np.zeros((0, n_coordinates))
        self._block_size = 0

    def start(self, block_size: int) -> None:
        """Begins a look with blocks of ``block_size`` guesses.

        The first look only sets the scales and the learned directions. Both must be fixed before evidence is taken.
        """
        self._block_size = block_size
        if self.n_guesses > 0:
            self._learned = self._learn()
            reach = self.evidence.reach
            shares, coordinates = self._fixed
            guesses = len(self._groups) * block_size
            reach[shares] += guesses * (self._lengths / self._scales[shares])
            reach[coordinates] += guesses * (1.0 / self._scales[coordinates])
            reach[-len(LEARNED) :] += guesses * np.linalg.norm(self._learned, axis=1)

    def take(self, block: int, sums: Array) -> None:
        """Adds a block. sums: the sum of its guesses, (number,), which is overwritten."""
        errors = np.ldexp(sums, -self._exponent, out=sums)
        errors -= self._block_size * self.gradient
        shares = self._shares(errors * self.gradient)
        if self.n_guesses == 0:
            # Until the look ends, the scales hold sums of squares.
            for place, part in zip(self._fixed, (shares, errors), strict=True):
                self._scales[place] += part**2
        else:
            for place, part in zip(self._fixed, (shares, errors), strict=True):
                self.evidence.add(part / self._scales[place], place)
            self.evidence.add(self._learned @ errors, slice(-len(LEARNED), None))
        self._groups[block] += errors

    def finish(self) -> None:
        """Ends a look."""
        n_blocks = len(self._groups)
        self._gram = self._groups @ self._groups.T
        if self.n_guesses == 0:
            np.sqrt(self._scales / n_blocks / self._block_size, out=self._scales)
            self._make_positive()
        self._learned = self._learned[:0]
        self.n_guesses += n_blocks * self._block_size

    def _shares(self, products: Array) -> Array:
        """Sums of ``products`` (number,) over everything, each tap, each row (an example of all taps), each column."""
        rows, columns, taps, start = [], [], [], 0
        for shape in self._shapes:
            tap = products[start : start + shape[0] * shape[1]].reshape(shape)
            start += shape[0] * shape[1]
            rows.append(tap.sum(1))
            columns.append(tap.sum(0))
            taps.append(rows[-1].sum(keepdims=True))
        if self._rows_are_examples:
            rows = [sum(rows[1:], rows[0])]
        return np.concatenate([sum(taps[1:], taps[0]), *taps, *rows, *columns])

    def _make_positive(self) -> None:
        """Replaces the scale zero of coordinates whose guesses are always zero. Every positive scale is valid."""
        typical = self.norm + float(np.sqrt(np.trace(self._gram) / len(self._gram) / self._block_size))
        shares, coordinates = self._fixed
        least = 1e-12 * typical
        self._scales[shares] = np.where(self._lengths > 0, np.maximum(self._scales[shares], least * self._lengths), 1.0)
        np.maximum(self._scales[coordinates], least, out=self._scales[coordinates])

    def _learn(self) -> Array:
        """The two learned directions (2, number), along each of which a guess has about unit standard deviation."""
        scales = self._scales[self._fixed[1]]
        total = self._groups.sum(0)
        large = total**2 > self.n_guesses * np.log(len(total)) * scales**2
        directions = np.stack([total, np.where(large, total, 0.0)])
        directions /= scales**2
        lengths = np.linalg.norm(directions * scales, axis=1, keepdims=True)
        return np.divide(directions, lengths, out=directions, where=lengths > 0)

    def bound(self, alpha: float) -> NormBound:
        """The squared norm of the mean error, and its upper bound with confidence 1 − alpha plus rounding errors."""
        gram = self._gram * (len(self._groups) / self.n_guesses) ** 2
        bound, rounding = norm_bound(gram, alpha), self.rounding()
        return replace(bound, upper=bound.upper + rounding, without_bias=bound.without_bias + rounding)

    def along_gradient(self) -> tuple[float, float]:
        """⟨mean guess, g⟩/‖g‖², and the standard deviation of ⟨ĝ, g⟩/‖g‖² of one guess, from the blocks."""
        means = self._groups @ self.gradient * (len(self._groups) / self.n_guesses / self.norm**2)
        deviation = means.std(ddof=1) * np.sqrt(self.n_guesses / len(self._groups))
        return 1 + float(means.mean()), float(deviation)

    def rounding(self) -> float:
        """The norm of the largest bias that rounding may cause. Rounding errors are relative to √E‖ĝ‖²."""
        squares = np.trace(self._gram) / self.n_guesses
        return self._precision * (self.norm + float(np.sqrt(squares)))

    def place(self, direction: int) -> Place:
        """The direction with this index in the order of the evidence."""
        for count, named in self._sections():
            if direction < count:
                return named(direction)
            direction -= count
        raise ValueError(f"there is no direction {direction} places after the last")

    def _sections(self) -> Iterator[tuple[int, Callable[[int], Place]]]:
        """For each kind of direction, in order: their number, and a function from an index among them to the place."""
        yield 1, lambda index: Place("along the gradient")
        yield len(self._layers), lambda index: Place(f"along the gradient of layer {self._layers[index]!r}")
        if self._rows_are_examples:
            yield self._shapes[0][0], lambda index: Place(f"along the gradient of example {index}")
        for axis in (1,) if self._rows_are_examples else (0, 1):
            for layer, shape in zip(self._layers, self._shapes, strict=True):
                yield shape[axis], partial(self._share, layer, axis)
        for layer, shape in zip(self._layers, self._shapes, strict=True):
            yield shape[0] * shape[1], partial(self._coordinate, layer, shape[1])
        yield len(LEARNED), lambda index: Place(LEARNED[index])

    def _share(self, layer: str, axis: int, index: int) -> Place:
        return Place(f"along the gradient at {AXES[self.space][axis]} {index} of layer {layer!r}")

    def _coordinate(self, layer: str, n_columns: int, index: int) -> Place:
        axes, places = AXES[self.space], divmod(index, n_columns)
        name = f"in layer {layer!r}, {axes[0]} {places[0]}, {axes[1]} {places[1]}"
        return Place(name, layer, places[axes.index("unit")] if "unit" in axes else index)
