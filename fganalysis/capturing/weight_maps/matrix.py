"""Matrix map: s_r = W x_r, so Ĝ = Σ_r ĝ_r x_rᵀ. For Linear modules, and convolutions by their patches.

With K = X Xᵀ over rows, ⟨Ĝ, G⟩ = ⟨ĝ, K g⟩ and ‖Ĝ‖² = ⟨ĝ, K ĝ⟩ = ‖F ĝ‖², FᵀF = K. In single precision a convolution
gives Ĝ without patches, which are then written out only where X is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fganalysis.capturing.weight_maps.convolution import Convolution


@dataclass(frozen=True, eq=False)
class MatrixMap:
    """given: X (row, input), with a column of ones where there is a bias, or a function that writes it out.

    shape: of X. convolution: another way to Ĝ in single precision.
    """

    given: Tensor | Callable[[], Tensor]
    shape: tuple[int, int]
    convolution: Convolution | None = None
    cheap = True

    @classmethod
    def of(cls, inputs: Tensor) -> MatrixMap:
        """The map of a matrix X that is written out."""
        return cls(inputs, (inputs.shape[0], inputs.shape[1]))

    @cached_property
    def inputs(self) -> Tensor:
        """X (row, input)."""
        return self.given if isinstance(self.given, Tensor) else self.given()

    def gradients(self, guesses: Tensor) -> Tensor:
        if self.convolution is not None and guesses.dtype == self.convolution.arriving.dtype == torch.float32:
            return self.convolution.gradients(guesses)
        return torch.matmul(self.inputs.T.to(guesses.dtype), guesses).mT

    def image(self, guesses: Tensor) -> Tensor:
        if self.shape[1] < self.shape[0]:
            return self.gradients(guesses)
        return torch.matmul(self.kernel_root.to(guesses.dtype), guesses)

    def along(self, weights: Tensor) -> Tensor:
        return torch.matmul(self.inputs.to(weights.dtype), weights.mT)

    def of_rows(self, rows: Tensor) -> MatrixMap:
        return MatrixMap.of(self.inputs[rows])

    @cached_property
    def kernel(self) -> Tensor:
        """K = X Xᵀ, (row, row): the weight-space metric between two rows' guesses."""
        return self.inputs @ self.inputs.T

    @cached_property
    def kernel_root(self) -> Tensor:
        """F with FᵀF = K, (min(input, row), row): Xᵀ itself where inputs are fewer than rows, otherwise the upper
        triangle R of Xᵀ = QR."""
        if self.inputs.shape[1] < self.inputs.shape[0]:
            return self.inputs.T
        return torch.linalg.qr(self.inputs.T.double(), mode="r").R.to(self.inputs.dtype)


@dataclass(frozen=True, eq=False)
class GroupedMap:
    """A matrix map a group of units, as in a grouped convolution. inputs: (group, row, input of a group)."""

    inputs: Tensor
    cheap = True

    def _by_group(self, guesses: Tensor) -> Tensor:
        """(guess, row, unit) → (guess, group, row, unit of the group)."""
        return guesses.unflatten(-1, (len(self.inputs), -1)).transpose(-3, -2)

    def gradients(self, guesses: Tensor) -> Tensor:
        return (self._by_group(guesses).mT @ self.inputs.to(guesses.dtype)).flatten(-3, -2)

    def image(self, guesses: Tensor) -> Tensor:
        return self.gradients(guesses)

    def along(self, weights: Tensor) -> Tensor:
        by_group = weights.unflatten(-2, (len(self.inputs), -1))
        return (self.inputs.to(weights.dtype) @ by_group.mT).transpose(-3, -2).flatten(-2)

    def of_rows(self, rows: Tensor) -> GroupedMap:
        return GroupedMap(self.inputs[:, rows])
