"""Tap: one tensor that a module with trainable parameters returns; Layer: the parameters of taps, counted once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from fganalysis.capturing.packing import Packing
from fganalysis.capturing.rows import Layout, Owners
from fganalysis.capturing.upstream import UpstreamJacobian
from fganalysis.capturing.weight_maps.matrix import MatrixMap
from fganalysis.capturing.weight_maps.protocol import WeightMap

Loss = Callable[[Any, Any], Tensor]
Autodiff = Literal["reverse", "forward"]
Layers = Literal["joint", "separate"]
UNTAPPED = "untapped"  # The layer of the parameters that belong to no tap.


@dataclass(frozen=True, eq=False)
class Tap:
    """One output of one call of a module on the batch.

    Attributes:
        name: of the module. number: of the call. place: of the tensor in what the call returned.
        layer: index of the layer that its parameters belong to.
        outputs: s, (row, unit). layout: how they are cut out of the module's output.
        owners: which example each row belongs to; None where examples share rows or interact after the tap.
        weights: the linear map from changes of the parameters to changes of the outputs.
        packing: the trainable parameters of the module, by their names in the network, as a matrix (unit, input).
        weight: that matrix.
        arriving: what a Linear module reads, (row, input), whichever of its parameters are frozen; None elsewhere.
        following: index of the next tap downstream on the graph; None for an output tap.
        branches: whether other taps read it too, by a branch around the next one.
        derivative: φ'(s), (row, unit), where elementwise functions alone stand between this tap and a Linear module.
        upstream: the upstream Jacobian in that case.
    """

    name: str
    number: int
    place: int
    layer: int
    outputs: Tensor
    layout: Layout
    owners: Owners | None
    weights: WeightMap
    packing: Packing
    weight: Tensor
    arriving: Tensor | None = None
    following: int | None = None
    branches: bool = False
    derivative: Tensor | None = None
    upstream: UpstreamJacobian | None = None

    @property
    def units(self) -> int:
        return self.outputs.shape[1]

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """The trainable parameters, by their names in the network."""
        return self.packing.names

    @property
    def has_weight(self) -> bool:
        return any(name.rpartition(".")[2] == "weight" for name in self.packing.names)

    @property
    def has_bias(self) -> bool:
        return any(name.rpartition(".")[2] == "bias" for name in self.packing.names)

    @property
    def matrix(self) -> MatrixMap:
        """The weight map of a tap whose outputs are a matrix times its inputs.

        Raises:
            ValueError: a tap of another kind.
        """
        if not isinstance(self.weights, MatrixMap):
            raise ValueError(
                f"tap {self.name!r} is no Linear or convolution module without groups, so its weights are no matrix "
                "that multiplies inputs: leave it out by requires_grad_(False) or choose other taps"
            )
        return self.weights

    @property
    def inputs(self) -> Tensor:
        """x, (row, input), with a column of ones where there is a bias."""
        return self.matrix.inputs

    @property
    def kernel(self) -> Tensor:
        """K = X Xᵀ, (row, row): the weight-space metric between two rows' guesses."""
        return self.matrix.kernel

    @property
    def kernel_root(self) -> Tensor:
        """F with FᵀF = K, (min(input, row), row)."""
        return self.matrix.kernel_root

    def by_parameter(self, columns: Tensor) -> dict[str, Tensor]:
        """Parts of a (…, unit, input) tensor by parameter name."""
        return self.packing.unpacked(columns)

    def columns(self, by_name: Mapping[str, Tensor]) -> Tensor:
        """The reverse of `by_parameter`: (…, unit, input), a bias as the last column."""
        return self.packing.packed(by_name)


@dataclass(frozen=True, eq=False)
class Layer:
    """Parameters that belong together: of one module or of modules that share some. Each is in one layer.

    name: of the module that is called first, or "untapped" for the parameters of no tap. taps: the indices of its taps.
    packing, weight: the parameters as a matrix (unit, input).
    """

    name: str
    taps: tuple[int, ...]
    packing: Packing
    weight: Tensor

    @property
    def parameter_names(self) -> tuple[str, ...]:
        return self.packing.names

    def by_parameter(self, columns: Tensor) -> dict[str, Tensor]:
        """Parts of a (…, unit, input) tensor by parameter name."""
        return self.packing.unpacked(columns)

    def columns(self, by_name: Mapping[str, Tensor]) -> Tensor:
        """The reverse of `by_parameter`."""
        return self.packing.packed(by_name)

    def from_tap(self, tap: Tap, matrix: Tensor) -> Tensor:
        """(…, unit, input) in the tap's packing → in the layer's; parameters of other taps are zero."""
        if tap.packing == self.packing:
            return matrix
        by_name = tap.packing.unpacked(matrix)
        lead = matrix.shape[:-2]
        for part in self.packing.parts:
            if part.name not in by_name:
                by_name[part.name] = matrix.new_zeros((*lead, *part.shape))
        return self.packing.packed(by_name)

    def to_tap(self, tap: Tap, matrix: Tensor) -> Tensor:
        """(…, unit, input) in the layer's packing → in the tap's."""
        return matrix if tap.packing == self.packing else tap.packing.packed(self.packing.unpacked(matrix))
