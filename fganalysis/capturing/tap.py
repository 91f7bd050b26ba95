"""Tap: one Linear module with trainable parameters on the batch; its arrays and what its columns are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from fganalysis.capturing.upstream import UpstreamJacobian

Loss = Callable[[Tensor, Tensor], Tensor]
Autodiff = Literal["reverse", "forward"]
Layers = Literal["joint", "separate"]


@dataclass(frozen=True)
class Tap:
    """One Linear module of the network on the batch; shapes in `fganalysis.capturing.snapshot`.

    Attributes:
        arriving: what the module reads, (example, input), whichever of its parameters are frozen.
        derivative: φ'(s), (example, unit), of the elementwise functions between this tap and the next; None where
            anything else stands between.
    """

    name: str
    arriving: Tensor
    inputs: Tensor
    outputs: Tensor
    weight: Tensor
    has_weight: bool
    has_bias: bool
    derivative: Tensor | None = None
    upstream: UpstreamJacobian | None = None

    @property
    def units(self) -> int:
        return self.outputs.shape[1]

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """The trainable parameters that the columns of ``weight`` are, by their names in the network."""
        # A network that is one Linear module is its own tap, of the empty name.
        leaves = [leaf for leaf, there in (("weight", self.has_weight), ("bias", self.has_bias)) if there]
        return tuple(f"{self.name}.{leaf}".removeprefix(".") for leaf in leaves)

    def by_parameter(self, columns: Tensor) -> dict[str, Tensor]:
        """Parts of a (…, unit, input) tensor by parameter name: (…, unit, input) and, for a bias, (…, unit)."""
        parts = [columns[..., : columns.shape[-1] - self.has_bias]] if self.has_weight else []
        parts += [columns[..., -1]] if self.has_bias else []
        return dict(zip(self.parameter_names, parts, strict=True))

    def columns(self, by_name: Mapping[str, Tensor]) -> Tensor:
        """The reverse of `by_parameter`: (…, unit, input), a bias as the last column."""
        parts = [by_name[name] for name in self.parameter_names]
        if self.has_bias:
            parts[-1] = parts[-1].unsqueeze(-1)
        return torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]

    @cached_property
    def kernel(self) -> Tensor:
        """K = X Xᵀ, (example, example): the weight-space metric between two examples' guesses."""
        return self.inputs @ self.inputs.T

    @cached_property
    def kernel_root(self) -> Tensor:
        """F with FᵀF = K, (min(input, example), example): Xᵀ itself where inputs are fewer than examples, otherwise the
        upper triangle R of Xᵀ = QR."""
        if self.inputs.shape[1] < self.inputs.shape[0]:
            return self.inputs.T.contiguous()
        return torch.linalg.qr(self.inputs.T.double(), mode="r").R.to(self.inputs.dtype)
