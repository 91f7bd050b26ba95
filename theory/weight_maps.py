"""The linear maps W_e from an example's guess at a tap to a guess at the weights (docs/mathematics.md#rows).

An example's guess at a tap is one vector v: the numbers of its rows, row after row. With inputs x_r of row r

    W_e v = Σ_r v_r x_rᵀ      `RowInputs`, for linear layers, convolutions, embeddings, scales of normalisation layers
    W_e v = array_e v         `WrittenOut`, for everything else: the module's local vector–Jacobian product

Both have the same methods, which are all that moments in weight space need. ``places`` says where a tap's weights
are among those of the layer, (weight,), where taps of one layer have different parameters; None where they are all of
them. size: the number of the layer's weights. Rows that serve all examples are those of a map of one example, which
takes vectors of any number of examples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from theory.factors import Array

Places = NDArray[np.int64]


class WeightMap(Protocol):
    """W_e of every example, (weight, number). The methods are those of the two classes below."""

    @property
    def places(self) -> Places | None:
        """Where the tap's weights are in the layer, (weight,)."""

    @property
    def size(self) -> int:
        """Weights of the layer."""

    def apply(self, vectors: Array) -> Array:
        """W_e v_e: (example, number) → (example, weight)."""

    def transposed(self, weights: Array) -> Array:
        """W_eᵀ G: (weight,) → (example, number)."""

    def squared_norms(self, vectors: Array) -> Array:
        """‖W_e v_e‖²: (example, number) → (example,)."""

    def row_squares(self, vectors: Array, n_rows: int) -> Array:
        """‖W_e v_er‖² of the numbers of each row by themselves: (example, number) → (example, row)."""

    def column_squares(self) -> Array:
        """‖W_e e_n‖² of every number n, (example, number)."""


@dataclass(frozen=True, eq=False)
class RowInputs:
    """``inputs`` (example, row, group, input): the units of a group are multiplied with the same numbers.

    A linear layer has one group, a convolution one for each of its groups, a scale one for each unit. Rows that an
    example does not have are zero. units: of one group.
    """

    inputs: Array
    units: int
    size: int
    places: Places | None = None

    def __post_init__(self) -> None:
        if self.inputs.ndim != 4 or self.inputs.dtype != np.float64:
            raise ValueError(f"inputs must be (example, row, group, input) of float64, got {self.inputs.shape}")

    def _by_group(self, vectors: Array) -> Array:
        """(example, group, row, unit of the group)."""
        _, rows, groups, _ = self.inputs.shape
        return vectors.reshape(len(vectors), rows, groups, self.units).transpose(0, 2, 1, 3)

    def apply(self, vectors: Array) -> Array:
        by_group = self._by_group(vectors).transpose(0, 1, 3, 2)
        weights: Array = np.matmul(by_group, self.inputs.transpose(0, 2, 1, 3)).reshape(len(vectors), -1)
        return weights

    def transposed(self, weights: Array) -> Array:
        examples, _, groups, inputs = self.inputs.shape
        by_group = weights.reshape(groups, self.units, inputs).transpose(0, 2, 1)
        vectors = np.matmul(self.inputs.transpose(0, 2, 1, 3), by_group)
        return vectors.transpose(0, 2, 1, 3).reshape(examples, -1)

    def squared_norms(self, vectors: Array) -> Array:
        if self.inputs.shape[1] == 1:
            return self.row_squares(vectors, 1)[:, 0]
        return np.sum(self.apply(vectors) ** 2, axis=1)

    def row_squares(self, vectors: Array, n_rows: int) -> Array:
        by_group = np.sum(self._by_group(vectors) ** 2, axis=3).transpose(0, 2, 1)
        return np.sum(by_group * np.sum(self.inputs**2, axis=3), axis=2)

    def column_squares(self) -> Array:
        squares = np.sum(self.inputs**2, axis=3)
        return np.repeat(squares[..., None], self.units, axis=3).reshape(len(squares), -1)


@dataclass(frozen=True, eq=False)
class WrittenOut:
    """``array`` (example, weight, number)."""

    array: Array
    size: int
    places: Places | None = None

    def __post_init__(self) -> None:
        if self.array.ndim != 3 or self.array.dtype != np.float64:
            raise ValueError(f"array must be (example, weight, number) of float64, got {self.array.shape}")

    def apply(self, vectors: Array) -> Array:
        return np.matmul(self.array, vectors[:, :, None])[:, :, 0]

    def transposed(self, weights: Array) -> Array:
        return np.matmul(weights, self.array)

    def squared_norms(self, vectors: Array) -> Array:
        return np.sum(self.apply(vectors) ** 2, axis=1)

    def row_squares(self, vectors: Array, n_rows: int) -> Array:
        masks = np.repeat(np.eye(n_rows), vectors.shape[1] // n_rows, axis=1)
        return np.stack([self.squared_norms(vectors * mask) for mask in masks], axis=1)

    def column_squares(self) -> Array:
        return np.einsum("ewn,ewn->en", self.array, self.array)


def placed(weight_map: WeightMap, weights: Array) -> Array:
    """(example, weight of the tap) → (example, weight of the layer), zero at parameters of other taps."""
    if weight_map.places is None:
        return weights
    whole = np.zeros((len(weights), weight_map.size))
    whole[:, weight_map.places] = weights
    return whole


def of_tap(weight_map: WeightMap, weights: Array) -> Array:
    """(weight of the layer,) → (weight of the tap,)."""
    return weights if weight_map.places is None else weights[weight_map.places]
