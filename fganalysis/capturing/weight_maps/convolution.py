"""A convolution's way into weight space by its own backward pass, which reads the input once.

The matrix of patches, X, holds every number of the input as many times as the kernel has places.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Convolution:
    """A convolution without groups.

    arriving: its input (example, channel, place…). places: the sizes of its output behind the channels. kernel: the
    shape of its weight behind the units. padding: zeros at both ends of each axis. columns: "weight" and "bias", those
    that are trained, in their order.
    """

    arriving: Tensor
    places: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    columns: tuple[str, ...]

    def gradients(self, guesses: Tensor) -> Tensor:
        """Ĝ = Σ_r ĝ_r x_rᵀ, (guess, unit, input), of guesses (guess, row, unit) at some or all units."""
        parts = [
            guesses.sum(-2).unsqueeze(-1) if name == "bias" else self._weight_gradients(guesses)
            for name in self.columns
        ]
        return torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]

    def _weight_gradients(self, guesses: Tensor) -> Tensor:
        """Guesses side by side are the cotangent of a convolution with as many times the units."""
        n_guesses, _, units = guesses.shape
        together = guesses.movedim(0, -2).flatten(-2) if n_guesses > 1 else guesses[0]
        gradient: Tensor = torch.ops.aten.convolution_backward(
            together.unflatten(0, (len(self.arriving), *self.places)).movedim(-1, 1),
            self.arriving,
            together.new_empty(n_guesses * units, *self.kernel),
            None,
            self.stride,
            self.padding,
            self.dilation,
            False,
            (0,) * len(self.places),
            1,
            (False, True, False),
        )[1]
        return gradient.reshape(n_guesses, units, -1)
