"""A snapshot's rows example by example: at a tap, an example is one vector of the numbers of all its rows.

With a row an example, as in a multilayer perceptron, this is the row itself (docs/mathematics.md#rows).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fganalysis.capturing.snapshot import Snapshot
from fganalysis.capturing.weight_maps.matrix import MatrixMap
from fganalysis.predictions.arrays import Array, NoClosedForm, double

Places = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Examples:
    """Which rows of each tap an example has.

    n: the number of examples. places: (example, row of the example) → row, a tap each; −1 where an example has fewer
    rows than another. apart: False where examples interact: the whole batch is then taken for one example, whose slope
    is that of the batch. serving: the taps whose rows serve all examples; there too the batch is taken for one.
    """

    n: int
    places: tuple[Places, ...]
    apart: bool
    serving: tuple[int, ...] = ()

    @property
    def own(self) -> list[int]:
        """The taps at which every example has rows of its own."""
        return [index for index in range(len(self.places)) if index not in self.serving]

    def at(self, index: int, rows: Array) -> Array:
        """(row, …) of a tap → (example, row of the example, …), zero where there is no row."""
        places = self.places[index]
        if len(places) == len(rows) and places.shape[1] == 1:
            return rows[:, None]
        found: Array = rows[places]
        found[places < 0] = 0.0
        return found

    def vectors(self, index: int, rows: Array) -> Array:
        """(row, unit) of a tap → (example, number)."""
        return self.at(index, rows).reshape(len(self.places[index]), -1)

    def rows(self, index: int, vectors: Array) -> Array:
        """(…, example, number) → (…, row, unit) of a tap."""
        places, before = self.places[index], vectors.shape[:-2]
        parts = vectors.reshape(*before, *places.shape, -1)
        there = places >= 0
        rows = np.empty((*before, int(there.sum()), parts.shape[-1]))
        rows[..., places[there], :] = parts[..., there, :]
        return rows

    def rows_each(self, index: int) -> int:
        return self.places[index].shape[1]

    def even(self, index: int) -> bool:
        """Whether every example has as many rows at a tap."""
        return bool((self.places[index] >= 0).all())


def examples_of(snapshot: Snapshot) -> Examples:
    """Computed once for a snapshot."""
    made: Examples = snapshot.remember("rows by example", lambda: _examples(snapshot))
    return made


def _examples(snapshot: Snapshot) -> Examples:
    if snapshot.interaction:
        return Examples(1, tuple(np.arange(len(tap.outputs))[None] for tap in snapshot.taps), False)
    places = []
    for tap in snapshot.taps:
        if tap.owners is None:
            places.append(np.arange(len(tap.outputs))[None])
            continue
        examples = tap.owners.examples.cpu().numpy()
        order, counts = np.argsort(examples, kind="stable"), np.bincount(examples, minlength=snapshot.n_examples)
        of_tap = np.full((snapshot.n_examples, int(counts.max())), -1)
        of_tap[np.arange(of_tap.shape[1]) < counts[:, None]] = order
        places.append(of_tap)
    serving = tuple(index for index, tap in enumerate(snapshot.taps) if tap.owners is None)
    return Examples(snapshot.n_examples, tuple(places), True, serving)


def example_vectors(snapshot: Snapshot, by_row: Sequence[Tensor]) -> list[Array]:
    """(row, unit) a tap → (example, number) a tap, in double precision."""
    examples = examples_of(snapshot)
    return [examples.vectors(index, rows) for index, rows in enumerate(double(by_row))]


def gradients_of(snapshot: Snapshot) -> list[Array]:
    """g of every tap, (example, number)."""
    return example_vectors(snapshot, snapshot.gradients)


def gradients_of_examples(snapshot: Snapshot, index: int) -> Array:
    """g of each example's loss at a tap whose rows serve all examples, (example, number).

    Raises:
        NoClosedForm: without a backward pass.
    """
    try:
        gradients = double([snapshot.shared_gradients[index]])[0]
    except ValueError as error:
        raise NoClosedForm(str(error)) from error
    return gradients.reshape(len(gradients), -1)


def is_plain(snapshot: Snapshot) -> bool:
    """Whether every tap is a matrix with a row an example, in a layer of its own, and all parameters have a tap."""
    return all(layer_is_plain(snapshot, layer) for layer in range(len(snapshot.weights)))


def layer_is_plain(snapshot: Snapshot, layer: int) -> bool:
    """Whether a layer is a matrix that one tap with a row an example reads: its weights' metric is K = X Xᵀ."""
    taps = snapshot.weights[layer].taps
    if len(taps) != 1:
        return False
    tap = snapshot.taps[taps[0]]
    return (
        isinstance(tap.weights, MatrixMap)
        and tap.owners is not None
        and tap.owners.is_plain
        and examples_of(snapshot).apart
    )
