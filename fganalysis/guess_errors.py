"""The errors of guesses in one space, looked at along many directions: NumPy arrays only.

Directions, each with the weight of its evidence, which add up to 1:

    1/4   the gradient itself and each layer's share of it, in equal parts: a wrong scale
    1/4   each example's, unit's and input's share of it: a dropped example, a masked unit, a missing input
    1/4   every single coordinate
    1/4   two directions learned from the looks before: the mean error by precision, whole and its large coordinates

Rows and columns are (example, unit) at the activations and (unit, input) at the weights; an example's share is that
over all layers, the others are a layer's own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fganalysis.sequential import Evidence, NormBound, norm_bound

Array = NDArray[np.float64]
AXES = {"activation": ("example", "unit"), "weight": ("unit", "input")}
LEARNED = ("spread over all coordinates", "in the few coordinates with the largest errors")


@dataclass(frozen=True)
class Place:
    """One direction in words, and the layer and unit it belongs to where it is a single coordinate's."""

    name: str
    layer: str = ""
    unit: int = -1


class GuessErrors:
    """Running sums of ĝ − g in one space.

    Attributes:
        space: "activation" or "weight". gradient: the exact gradients, flattened tap after tap. norm: theirs.
        n_guesses: how many guesses were added. evidence: of all of them but the first look's.
    """

    def __init__(self, space: str, layers: tuple[str, ...], gradients: list[Array], precision: float):
        """``precision`` is the rounding error of a guess, relative to its norm: no bias below it is ever reported."""
        self.space, self._precision = space, precision
        self.gradient = np.concatenate([gradient.ravel() for gradient in gradients])
        self.norm = float(np.linalg.norm(self.gradient))
        self.n_guesses = 0
        self._rows_are_examples = AXES[space][0] == "example"
        self._layers, self._shapes = layers, [gradient.shape for gradient in gradients]
        shares = np.sqrt(self._shares((self.gradient**2)[None])[0])
        self._lengths = np.concatenate([shares, np.ones(len(self.gradient))])
        n_scales, n_coordinates = 1 + len(layers), len(self.gradient)
        sizes = [n_scales, len(shares) - n_scales, n_coordinates, len(LEARNED)]
        self.evidence = Evidence.none(-np.log(np.repeat(4.0 * np.array(sizes), sizes)))
        self._scales = np.zeros(0)
        self._groups = np.zeros((0, n_coordinates))

    def add(self, errors: Array, block_size: int) -> None:
        """Takes in a look: ``errors`` (block, number), the sums of the errors of ``block_size`` guesses each.

        The first look gives scales and learned directions only, so that both are fixed before the evidence comes.
        """
        fixed = np.concatenate([self._shares(errors * self.gradient), errors], axis=1)
        if self.n_guesses == 0:
            self._groups = np.zeros_like(errors)
            self._scales = self._positive(np.sqrt((fixed**2).mean(0) / block_size), errors, block_size)
        else:
            learned = self._learned()
            components = np.concatenate([fixed / self._scales, errors @ learned.T], axis=1)
            lengths = np.concatenate([self._lengths / self._scales, np.linalg.norm(learned, axis=1)])
            self.evidence.add(components, len(errors) * block_size * lengths)
        self._groups += errors
        self.n_guesses += len(errors) * block_size

    def _shares(self, products: Array) -> Array:
        """Sums of ``products`` (block, number): all, a tap each, a row each (an example of all taps), a column each."""
        rows, columns, taps, start = [], [], [], 0
        for shape in self._shapes:
            tap = products[:, start : start + shape[0] * shape[1]].reshape(-1, *shape)
            start += shape[0] * shape[1]
            rows.append(tap.sum(2))
            columns.append(tap.sum(1))
            taps.append(rows[-1].sum(1, keepdims=True))
        if self._rows_are_examples:
            rows = [sum(rows[1:], rows[0])]
        return np.concatenate([sum(taps[1:], taps[0]), *taps, *rows, *columns], axis=1)

    def _positive(self, scales: Array, errors: Array, block_size: int) -> Array:
        """Scales without the zeros of coordinates that are never guessed: any scale is valid, only some are good."""
        typical = self.norm + float(np.sqrt((errors**2).sum(1).mean() / block_size))
        return np.where(self._lengths > 0, np.maximum(scales, 1e-12 * typical * self._lengths), 1.0)

    def _learned(self) -> Array:
        """Two directions (2, number) of about unit standard deviation, from the looks so far."""
        scales = self._scales[-len(self.gradient) :]
        total = self._groups.sum(0)
        large = total**2 > self.n_guesses * np.log(len(total)) * scales**2
        directions = np.stack([total, np.where(large, total, 0.0)]) / scales**2
        lengths = np.linalg.norm(directions * scales, axis=1, keepdims=True)
        return np.divide(directions, lengths, out=np.zeros_like(directions), where=lengths > 0)

    def bound(self, alpha: float) -> NormBound:
        """The squared norm of the mean error and its upper bound, with confidence 1 − alpha, rounding errors added."""
        means = self._groups * (len(self._groups) / self.n_guesses)
        bound, rounding = norm_bound(means @ means.T, alpha), self.rounding()
        return replace(bound, upper=bound.upper + rounding, without_bias=bound.without_bias + rounding)

    def along_gradient(self) -> tuple[float, float]:
        """⟨mean guess, g⟩/‖g‖² and the standard deviation of one guess's, from the groups."""
        means = self._groups @ self.gradient * (len(self._groups) / self.n_guesses / self.norm**2)
        deviation = means.std(ddof=1) * np.sqrt(self.n_guesses / len(self._groups))
        return 1 + float(means.mean()), float(deviation)

    def rounding(self) -> float:
        """The norm of a bias that rounding errors may amount to, which are relative to a guess's norm, about √E‖ĝ‖²."""
        squares = (self._groups**2).sum(1).mean() * len(self._groups) / self.n_guesses
        return self._precision * (self.norm + float(np.sqrt(squares)))

    def places(self) -> list[Place]:
        """What each direction is, in the order of the evidence."""
        row, column = AXES[self.space]
        named = list(zip(self._layers, self._shapes, strict=True))
        places = [Place("along the gradient"), *(Place(f"along the gradient of layer {layer!r}") for layer, _ in named)]
        if self._rows_are_examples:
            places += [Place(f"along the gradient of example {index}") for index in range(self._shapes[0][0])]
        for axis in (1,) if self._rows_are_examples else (0, 1):
            places += [
                Place(f"along the gradient at {AXES[self.space][axis]} {index} of layer {layer!r}")
                for layer, shape in named
                for index in range(shape[axis])
            ]
        unit_axis = (row, column).index("unit")
        for layer, shape in named:
            for index in np.ndindex(*shape):
                name = f"in layer {layer!r}, {row} {index[0]}, {column} {index[1]}"
                places.append(Place(name, layer, index[unit_axis]))
        return places + [Place(name) for name in LEARNED]
