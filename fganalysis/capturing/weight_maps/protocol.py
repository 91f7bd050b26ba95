"""What every weight map can do.

A module's output is linear in a change of its weights to first order, s + A ΔW. A guess ĝ at the output is then a guess
Ĝ = Aᵀĝ at the weights: the module's local vector–Jacobian product, unbiased where ĝ is.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class WeightMap(Protocol):
    """A and Aᵀ for one call of a module. Weights are matrices (unit, input), see `fganalysis.capturing.packing`."""

    @property
    def cheap(self) -> bool:
        """Whether ‖Ĝ‖ and ⟨Ĝ, G⟩ of many guesses need no weight-sized array for each guess."""

    def gradients(self, guesses: Tensor) -> Tensor:
        """Ĝ = Aᵀĝ, (guess, unit, input), of guesses (guess, row, unit), in their precision."""

    def image(self, guesses: Tensor) -> Tensor:
        """Any isometric image of Ĝ, (guess, …): its inner products are those of Ĝ."""

    def along(self, weights: Tensor) -> Tensor:
        """A ΔW, (guess, row, unit), of changes of the weights (guess, unit, input), in their precision."""

    def of_rows(self, rows: Tensor) -> WeightMap:
        """The map of some rows alone.

        Raises:
            ValueError: where rows cannot be taken apart.
        """
