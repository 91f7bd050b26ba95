"""A weight map whose rows are cut otherwise than its kernel cuts them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fganalysis.capturing.rows import Layout
from fganalysis.capturing.weight_maps.protocol import WeightMap


@dataclass(frozen=True, eq=False)
class Reshaped:
    """``weights`` at rows of the layout ``inner``, for guesses at rows of the layout ``outer`` of the same output."""

    weights: WeightMap
    inner: Layout
    outer: Layout

    @property
    def cheap(self) -> bool:
        return self.weights.cheap

    def _inside(self, guesses: Tensor) -> Tensor:
        return self.inner.rows(self.outer.whole(guesses))

    def gradients(self, guesses: Tensor) -> Tensor:
        return self.weights.gradients(self._inside(guesses))

    def image(self, guesses: Tensor) -> Tensor:
        return self.weights.image(self._inside(guesses))

    def along(self, weights: Tensor) -> Tensor:
        return self.outer.rows(self.inner.whole(self.weights.along(weights)))

    def of_rows(self, rows: Tensor) -> WeightMap:
        raise ValueError("examples are along the units of a tap, whose rows cannot be taken apart")
