"""Which weight map a module has: a table of the kinds that have a kernel, and the module map for everything else.

A class that overrides the forward pass of a known one is an unknown one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from fganalysis.capturing.packing import Packing, Part
from fganalysis.capturing.rows import Layout
from fganalysis.capturing.weight_maps.any_module import ModuleMap
from fganalysis.capturing.weight_maps.convolution import Convolution
from fganalysis.capturing.weight_maps.diagonal import DiagonalMap
from fganalysis.capturing.weight_maps.lookup import LookupMap
from fganalysis.capturing.weight_maps.matrix import GroupedMap, MatrixMap
from fganalysis.capturing.weight_maps.protocol import WeightMap
from fganalysis.capturing.weight_maps.reshaped import Reshaped

# Of a convolution's input, by its number of dimensions in space: its backward pass is fastest on it.
CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}


@dataclass(frozen=True)
class Called:
    """A module, what it was called with (without graphs) and the shape of the output that guesses are at.

    trained: names of the trainable parameters, in the module's own terms. read: runs the module with other weights by
    these names and gives that output.
    """

    module: nn.Module
    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]
    shape: tuple[int, ...]
    trained: tuple[str, ...]
    read: Callable[[Mapping[str, Tensor]], Tensor]

    @property
    def input(self) -> Tensor | None:
        """The only argument, where there is one tensor and nothing else."""
        given = [*self.arguments, *self.keywords.values()]
        return given[0] if len(given) == 1 and isinstance(given[0], Tensor) else None

    def parameter(self, name: str) -> Tensor:
        return self.module.get_parameter(name).detach()


@dataclass(frozen=True)
class Kind:
    """The kernel of a module call: where its rows are, how its weights are packed, and the map."""

    layout: Layout
    packing: Packing
    weights: WeightMap

    def with_layout(self, layout: Layout) -> Kind:
        """The same with other rows, by the module map."""
        return replace(self, layout=layout, weights=Reshaped(self.weights, self.layout, layout))


def kind_of(called: Called) -> Kind:
    """The kernel of the module's class, or the module map."""
    maker = MAKERS.get(type(called.module).forward)
    # A weight that is computed from other parameters is none of its own.
    plain = called.input is not None and {"weight", "bias"}.issuperset(called.trained)
    kind = maker(called) if maker is not None and plain else None
    return kind if kind is not None else _any(called)


def _matrix_packing(called: Called, units: int) -> Packing:
    parts = []
    for name in called.trained:
        shape = tuple(called.parameter(name).shape)
        parts.append(Part(name, shape, called.parameter(name).numel() // units))
    return Packing(units, tuple(parts))


def _columns(called: Called, weight: Tensor, bias: Tensor) -> list[Tensor]:
    """What the weight and the bias are multiplied with, of those that are trained."""
    return [{"weight": weight, "bias": bias}[name] for name in called.trained]


def _joined(parts: list[Tensor], dim: int = -1) -> Tensor:
    return torch.cat(parts, dim=dim) if len(parts) > 1 else parts[0]


def _linear(called: Called) -> Kind:
    module = cast(nn.Linear, called.module)
    arriving = cast(Tensor, called.input).reshape(-1, module.in_features)
    layout = Layout(called.shape, (len(called.shape) - 1,))
    columns = _columns(called, arriving, arriving.new_ones(len(arriving), 1))
    return Kind(layout, _matrix_packing(called, module.out_features), MatrixMap.of(_joined(columns)))


def _convolution(called: Called) -> Kind | None:
    module = cast(nn.modules.conv._ConvNd, called.module)
    inputs = cast(Tensor, called.input)
    dimensions = len(module.kernel_size)
    if inputs.ndim != dimensions + 2:
        return None  # Without a dimension of examples.
    layout, packing = Layout(called.shape, (1,)), _matrix_packing(called, module.out_channels)

    def by_group() -> Tensor:
        patches = _patches(module, _padded(module, inputs))  # (group, input of a group, row)
        columns = _columns(called, patches, patches.new_ones(len(patches), 1, layout.n_rows))
        return _joined(columns, dim=1).mT

    if module.groups > 1:
        return Kind(layout, packing, GroupedMap(by_group()))
    # Its own pass pads with zeros, as many at both ends.
    by_itself = module.padding_mode == "zeros" and not isinstance(module.padding, str)
    arriving = inputs if by_itself else _padded(module, inputs)
    convolution = Convolution(
        arriving.contiguous(memory_format=CHANNELS_LAST.get(dimensions, torch.contiguous_format)),
        called.shape[2:],
        tuple(module.weight.shape[1:]),
        module.stride,
        cast(tuple[int, ...], module.padding) if by_itself else (0,) * dimensions,
        module.dilation,
        called.trained,
    )
    return Kind(layout, packing, MatrixMap(lambda: by_group()[0], (layout.n_rows, packing.shape[1]), convolution))


def _padded(module: nn.modules.conv._ConvNd, inputs: Tensor) -> Tensor:
    padding = module._reversed_padding_repeated_twice
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    return functional.pad(inputs, padding, mode=mode) if any(padding) else inputs


def _patches(module: nn.modules.conv._ConvNd, inputs: Tensor) -> Tensor:
    """Of padded inputs what each output place is made of, (group, channel of a group · place in the kernel, row).

    Rows come last, as neighbours in a row of pixels are neighbours in memory there, and are copied several at a time.
    """
    dimensions = len(module.kernel_size)
    for axis in range(dimensions):
        span = (module.kernel_size[axis] - 1) * module.dilation[axis] + 1
        inputs = inputs.unfold(2 + axis, span, module.stride[axis])
    dilation = tuple(slice(None, None, step) for step in module.dilation)
    inputs = inputs[cast(Any, (..., *dilation))]  # (example, channel, place…, place in the kernel…)
    places = tuple(range(2, 2 + dimensions))
    kernel = tuple(range(2 + dimensions, 2 + 2 * dimensions))
    moved = inputs.permute(1, *kernel, 0, *places)
    return moved.reshape(module.groups, inputs.shape[1] // module.groups * _product(module.kernel_size), -1)


def _product(sizes: tuple[int, ...]) -> int:
    product = 1
    for size in sizes:
        product *= size
    return product


def _embedding(called: Called) -> Kind | None:
    module = cast(nn.Embedding, called.module)
    if module.max_norm is not None or module.scale_grad_by_freq:
        return None
    layout = Layout(called.shape, (len(called.shape) - 1,))
    part = Part("weight", tuple(module.weight.shape), module.num_embeddings, transposed=True)
    indices = cast(Tensor, called.input).flatten()
    return Kind(
        layout,
        Packing(module.embedding_dim, (part,)),
        LookupMap(indices, module.num_embeddings, module.padding_idx),
    )


def _scales(called: Called, layout: Layout, normalised: Tensor) -> Kind:
    columns = tuple(layout.rows(normalised) if name == "weight" else None for name in called.trained)
    return Kind(layout, _matrix_packing(called, layout.units), DiagonalMap(columns, layout.n_rows))


def _layer_norm(called: Called) -> Kind:
    module = cast(nn.LayerNorm, called.module)
    axes = len(module.normalized_shape)
    layout = Layout(called.shape, tuple(range(len(called.shape) - axes, len(called.shape))))
    inputs = cast(Tensor, called.input)
    return _scales(called, layout, functional.layer_norm(inputs, module.normalized_shape, eps=module.eps))


def _rms_norm(called: Called) -> Kind:
    module = cast(nn.RMSNorm, called.module)
    axes = len(module.normalized_shape)
    layout = Layout(called.shape, tuple(range(len(called.shape) - axes, len(called.shape))))
    inputs = cast(Tensor, called.input)
    return _scales(called, layout, functional.rms_norm(inputs, list(module.normalized_shape), eps=module.eps))


def _group_norm(called: Called) -> Kind:
    module = cast(nn.GroupNorm, called.module)
    normalised = functional.group_norm(cast(Tensor, called.input), module.num_groups, eps=module.eps)
    return _scales(called, Layout(called.shape, (1,)), normalised)


def _batch_norm(called: Called) -> Kind:
    module = cast(nn.BatchNorm1d, called.module)
    by_batch = module.training or module.running_mean is None
    mean, variance = (None, None) if by_batch else (module.running_mean, module.running_var)
    inputs = cast(Tensor, called.input)
    normalised = functional.batch_norm(inputs, mean, variance, training=by_batch, eps=module.eps)
    return _scales(called, Layout(called.shape, (1,)), normalised)


def _any(called: Called) -> Kind:
    packing = Packing.flat({name: tuple(called.parameter(name).shape) for name in called.trained})
    axis = len(called.shape) - 1
    layout = Layout(called.shape, (axis,) if axis > 0 else ())
    weights = {name: called.parameter(name) for name in called.trained}
    return Kind(layout, packing, ModuleMap(called.read, weights, packing, layout))


Maker = Callable[[Called], Kind | None]
MAKERS: dict[Any, Maker] = {
    nn.Linear.forward: _linear,
    nn.Conv1d.forward: _convolution,
    nn.Conv2d.forward: _convolution,
    nn.Conv3d.forward: _convolution,
    nn.Embedding.forward: _embedding,
    nn.LayerNorm.forward: _layer_norm,
    nn.RMSNorm.forward: _rms_norm,
    nn.GroupNorm.forward: _group_norm,
    nn.modules.batchnorm._BatchNorm.forward: _batch_norm,
}
