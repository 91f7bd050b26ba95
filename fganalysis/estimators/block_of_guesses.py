"""What the sampler asks of a block of guesses, whatever makes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Sums = tuple[Tensor, ...]


@dataclass(frozen=True)
class Compared:
    """An exact gradient in one space. names: of its taps or layers. gradients: (row, column) each."""

    names: tuple[str, ...]
    gradients: Sums


@runtime_checkable
class Estimates(Protocol):
    """What the sampler asks of a block of guesses.

    reference: what the guesses are compared with (`fganalysis.capturing.reference.Reference`), of the kind that their
    estimator was called with. made_at: the space in which the guesses are made.
    """

    made_at: ClassVar[str]

    def __len__(self) -> int:
        """Number of guesses."""

    def first(self, n_guesses: int) -> Estimates:
        """The first guesses of the block."""

    def numbers_per_guess(self) -> int:
        """How many numbers one guess is made of, in all."""

    def total(self) -> Sums:
        """Sum over guesses, a tensor a tap at the activations, a layer at the weights."""

    def arrays(self) -> Sums:
        """What has the shape of the gradient behind the dimension of guesses, a tensor a tap or layer."""

    def precision(self) -> float:
        """That of the data type of the guesses, relative."""

    def like(self, reference: Any) -> list[tuple[str, Tensor]]:
        """For each of the `arrays` the name of its tap or layer, and a tensor like a single guess."""

    def known(self, reference: Any) -> NDArray[np.bool_]:
        """In which spaces and layers there are guesses, (space, layer)."""

    def inner_products(self, reference: Any) -> tuple[Tensor, Tensor]:
        """⟨ĝ, g⟩ and ‖ĝ‖², each (space, layer, guess) in double precision; NaN in a space without guesses."""

    def error_grams(self, reference: Any, means: Sequence[Sums]) -> Tensor:
        """Inner products between the errors (mean − gradient) of several means, (space, layer, mean, mean), in double
        precision."""

    def exact(self, reference: Any) -> dict[str, Compared]:
        """What sums of guesses are compared with in each space."""

    def by_space(self, reference: Any, total: Sums) -> dict[str, Sums]:
        """A sum of guesses in each space, in the order of `exact`."""

    def not_looked_at(self, reference: Any) -> tuple[str, ...]:
        """The trainable parameters for which there is no guess."""

    def dense(self, reference: Any) -> tuple[Tensor | None, Tensor]:
        """Guesses written out, (guess, number), at the activations (None without any there) and weights: for tests."""

    def weight_gradients(self, reference: Any) -> list[Tensor]:
        """Mean over the guesses as weight gradients, (unit, input) a layer: what an optimiser consumes."""
