"""Backpropagation in which other weights carry the gradient back through Linear and convolution modules.

    output = f(x.detach(), W) + (g(x, B) - g(x, B).detach())        g: the module with B in the place of its weight

The value is that of the module, and its derivative by x is that of g. Everything else (normalisation, attention
products, skip paths, any other module) is differentiated as it is. Modules that run after the last tap are left alone,
so that the gradient at the output tap is the exact one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from fganalysis.capturing.batch import buffers_kept
from fganalysis.capturing.between import graph_of
from fganalysis.capturing.calls import Calls
from fganalysis.capturing.forward_mode import LOCK, tap_modules
from fganalysis.capturing.precision import plainly
from fganalysis.capturing.snapshot import Snapshot

WeightOf = Callable[[str, nn.Module], Tensor | None]


def _linear(module: nn.Module, inputs: Tensor, weight: Tensor, *_: Any) -> Tensor:
    return functional.linear(inputs, weight)


def _convolution(module: nn.Module, inputs: Tensor, weight: Tensor, *_: Any) -> Tensor:
    result: Tensor = cast(nn.Conv2d, module)._conv_forward(inputs, weight, None)
    return result


def _transposed_convolution(module: nn.Module, inputs: Tensor, weight: Tensor, output_size: Any = None) -> Tensor:
    module = cast(nn.ConvTranspose2d, module)
    dimensions = len(module.kernel_size)
    function = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)[dimensions - 1]
    padding = module._output_padding(
        inputs,
        output_size,
        module.stride,  # type: ignore[arg-type]
        module.padding,  # type: ignore[arg-type]
        module.kernel_size,  # type: ignore[arg-type]
        dimensions,
        module.dilation,  # type: ignore[arg-type]
    )
    moved: Tensor = cast(Any, function)(
        inputs, weight, None, module.stride, module.padding, padding, module.groups, module.dilation
    )
    return moved


# The module with another weight and without its bias, by the class's forward pass: one that overrides it is another.
FORWARD: dict[Any, Callable[..., Tensor]] = {
    nn.Linear.forward: _linear,
    nn.Conv1d.forward: _convolution,
    nn.Conv2d.forward: _convolution,
    nn.Conv3d.forward: _convolution,
    nn.ConvTranspose1d.forward: _transposed_convolution,
    nn.ConvTranspose2d.forward: _transposed_convolution,
    nn.ConvTranspose3d.forward: _transposed_convolution,
}


def fan_of(module: nn.Module) -> float:
    """How many inputs an output is made of, away from borders."""
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        places = math.prod(module.kernel_size) / math.prod(module.stride)
        return module.in_channels // module.groups * places
    return cast(Tensor, module.weight)[0].numel()


def carriers(snapshot: Snapshot) -> dict[str, nn.Module]:
    """The modules that carry the gradient back between taps, by name, in the order in which they are first called.

    They run before the last tap returns, and their inputs depend on trainable parameters.

    Raises:
        ValueError: a snapshot without a graph.
    """

    graph_of(snapshot)
    known = snapshot.plan.later
    if "carriers" not in known:
        names: dict[str, None] = {}

        def noted(name: str, module: nn.Module) -> None:
            names[name] = None

        _pass(snapshot, noted)
        known["carriers"] = tuple(names)
    return {name: snapshot.network.get_submodule(name) for name in known["carriers"]}


def gradients_through(snapshot: Snapshot, weights: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """The gradients at the taps, (row, unit), carried back by other weights, by the name of the module."""
    # A graph saves no tensors that were made in inference mode.
    with torch.inference_mode(False):
        normal = {name: weight.clone() if weight.is_inference() else weight for name, weight in weights.items()}
    outputs, loss = _pass(snapshot, lambda name, module: normal[name])
    with plainly(snapshot.device), LOCK:
        gradients = torch.autograd.grad(loss, outputs, allow_unused=True)
    return tuple(
        tap.layout.rows(torch.zeros_like(output) if gradient is None else gradient).detach()
        for tap, output, gradient in zip(snapshot.taps, outputs, gradients, strict=True)
    )


def _pass(snapshot: Snapshot, weight_of: WeightOf) -> tuple[Sequence[Tensor], Tensor]:
    """The taps' outputs and the loss of a forward pass, with a graph that goes through other weights.

    weight_of: given the name and the module of a carrier, the weight in the place of its own; None leaves it as it is.
    """
    known = {(tap.name, tap.number, tap.place) for tap in snapshot.taps}
    kept: dict[tuple[str, int, int], Tensor] = {}
    handles = []

    def leaving(name: str, number: int, place: int, output: Tensor) -> Tensor:
        if (name, number, place) in known:
            # Without an input that depends on a tap, and with its own weight out of the graph, it begins here.
            kept[name, number, place] = output if output.requires_grad else output.detach().requires_grad_()
            output = kept[name, number, place]
        return output.clone()

    def after(name: str) -> Callable[..., Any]:
        def replace(module: nn.Module, arguments: Any, keywords: Any, output: Tensor) -> Tensor | None:
            given = [*arguments, *keywords.values()]
            if len(kept) == len(known):
                return None
            if not given[0].requires_grad:
                return output.detach()
            weight = weight_of(name, module)
            if weight is None:
                return None
            carried = FORWARD[type(module).forward](module, given[0], weight, *given[1:])
            return output.detach() + (carried - carried.detach())

        return replace

    with LOCK, plainly(snapshot.device), buffers_kept(snapshot.network), torch.enable_grad():
        try:
            for name, module in snapshot.network.named_modules():
                if type(module).forward in FORWARD:
                    handles.append(module.register_forward_hook(after(name), with_kwargs=True))
            with Calls(tap_modules(snapshot), leaving):
                outputs = snapshot.outputs_of(snapshot.network)
            loss = snapshot.loss_fn(outputs, snapshot.targets)
        finally:
            for handle in handles:
                handle.remove()
    return [kept[tap.name, tap.number, tap.place] for tap in snapshot.taps], loss
