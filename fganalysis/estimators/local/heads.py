"""Auxiliary heads: small networks from a block's activations to outputs that the loss function accepts.

    linear   units → outputs
    mlp      three hidden ReLU layers of ``width`` units (by default 1024), then a linear layer
    cnn      the units as a sequence with one channel; three convolutions of kernel 3 and stride 2 with ``width``
             channels (by default 32), each followed by ReLU; the mean over positions; then a linear layer

A head is a tuple of tensors, weight and bias of each layer from the block on. Each tensor may have a leading dimension,
with one head for each guess. There is no BatchNorm, as it would let examples interact. Weights and biases are uniform
on ±1/√fan_in, as torch initialises them. Source: Fournier et al. 2023, whose blocks are images; here they are vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import conv1d, linear, relu

from fganalysis.capturing.tap import Loss

Kind = Literal["linear", "mlp", "cnn"]
Shapes = tuple[tuple[int, ...], ...]
Parameters = tuple[Tensor, ...]
DEFAULT_WIDTHS: dict[Kind, int] = {"linear": 0, "mlp": 1024, "cnn": 32}
HIDDEN_LAYERS = 3
KERNEL, STRIDE = 3, 2
LEAST_UNITS = 15  # three convolutions without padding take 15 units to 7, 3 and 1
NUMBERS_AT_ONCE = 2**22


def shapes_of(kind: Kind, units: int, outputs: int, width: int | None, name: str) -> Shapes:
    """The shapes of a head's tensors for a block with ``units`` units at the tap ``name``.

    Raises ValueError where a block has too few units for three convolutions.
    """
    width = DEFAULT_WIDTHS[kind] if width is None else width
    if kind == "cnn" and units < LEAST_UNITS:
        raise ValueError(f"a cnn head needs at least {LEAST_UNITS} units, the block of tap {name!r} has {units}")
    hidden: list[tuple[int, ...]] = []
    last = units
    if kind == "mlp":
        hidden = [(above, below) for below, above in pairwise([units, *[width] * HIDDEN_LAYERS])]
        last = width
    elif kind == "cnn":
        hidden = [(above, below, KERNEL) for below, above in pairwise([1, *[width] * HIDDEN_LAYERS])]
        last = width
    return tuple(shape for weight in [*hidden, (outputs, last)] for shape in (weight, weight[:1]))


def drawn(shapes: Shapes, heads: int, generator: torch.Generator, like: Tensor) -> Parameters:
    """The tensors (head, …) of ``heads`` random heads, on the generator's device and in the data type of ``like``."""
    tensors = []
    for weight, bias in zip(shapes[::2], shapes[1::2], strict=True):
        bound = float(torch.Size(weight[1:]).numel()) ** -0.5
        for shape in (weight, bias):
            uniform = torch.rand((heads, *shape), generator=generator, dtype=like.dtype, device=generator.device)
            tensors.append(uniform.mul_(2 * bound).sub_(bound))
    return tuple(tensors)


def outputs_of(parameters: Sequence[Tensor], block: Tensor) -> Tensor:
    """The outputs (example, output) of one head that reads ``block`` (example, unit)."""
    hidden, (weight, bias) = parameters[:-2], parameters[-2:]
    signal = block.unsqueeze(1) if parameters[0].ndim == 3 else block
    for hidden_weight, hidden_bias in zip(hidden[::2], hidden[1::2], strict=True):
        convolves = hidden_weight.ndim == 3
        signal = relu(
            conv1d(signal, hidden_weight, hidden_bias, stride=STRIDE)
            if convolves
            else linear(signal, hidden_weight, hidden_bias)
        )
    return linear(signal.mean(2) if signal.ndim == 3 else signal, weight, bias)


def block_gradients(parameters: Sequence[Tensor], block: Tensor, loss_fn: Loss, targets: Tensor) -> Tensor:
    """∂ℓ/∂block of the loss of every head, (head, example, unit), by a backward pass through the head alone."""
    if len(parameters[0]) == 1:  # vmap over a single convolutional head takes twice as long as the head itself.
        (alone,) = _gradients([tensor[0] for tensor in parameters], block, loss_fn, targets, of_parameters=False)
        return alone.unsqueeze(0)

    def loss(signal: Tensor, head: tuple[Tensor, ...]) -> Tensor:
        return loss_fn(outputs_of(head, signal), targets)

    gradients: Tensor = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(block, tuple(parameters))
    return gradients


def both_gradients(parameters: Parameters, block: Tensor, loss_fn: Loss, targets: Tensor) -> tuple[Tensor, Parameters]:
    """∂ℓ/∂block (example, unit) and ∂ℓ/∂parameters of the loss of one head, from one forward and backward pass."""
    at_block, *of_parameters = _gradients(parameters, block, loss_fn, targets, of_parameters=True)
    return at_block, tuple(of_parameters)


def _gradients(
    parameters: Sequence[Tensor], block: Tensor, loss_fn: Loss, targets: Tensor, of_parameters: bool
) -> tuple[Tensor, ...]:
    """∂ℓ/∂block of the loss of one head, followed by ∂ℓ/∂parameters if ``of_parameters``.

    torch.func.grad would also record the backward pass itself for a second derivative, and take half as much time
    again.
    """
    # torch.inference_mode records no graph, and its tensors cannot be saved for a backward pass: they are copied.
    with torch.inference_mode(False), torch.enable_grad():
        leaves = (tensor.clone() if tensor.is_inference() else tensor.detach() for tensor in (block, *parameters))
        signal, *head = (tensor.requires_grad_(of_parameters) for tensor in leaves)
        signal.requires_grad_()
        asked = [signal, *head] if of_parameters else [signal]
        return torch.autograd.grad(loss_fn(outputs_of(head, signal), targets), asked)


def redrawn_gradients(
    shapes: Shapes, n_heads: int, generator: torch.Generator, gradients: Callable[[Parameters], Tensor], like: Tensor
) -> Tensor:
    """`block_gradients` of newly drawn heads, (head, example, unit), a few heads at a time where they are large.

    The number of heads at a time follows from the shapes alone. So the result depends only on the generator and
    ``n_heads``.
    """
    at_once = max(1, NUMBERS_AT_ONCE // sum(torch.Size(shape).numel() for shape in shapes))
    parts = []
    for start in range(0, n_heads, at_once):
        parts.append(gradients(drawn(shapes, min(at_once, n_heads - start), generator, like)))
    return torch.cat(parts)


def check_targets(targets: Tensor, n_outputs: int) -> None:
    """Raises ValueError for targets that are class indices and lie beyond the outputs."""
    if targets.ndim != 1 or targets.is_floating_point() or targets.numel() == 0:
        return
    least, most = int(targets.min()), int(targets.max())
    if least < 0 or most >= n_outputs:
        raise ValueError(f"targets must be class indices from 0 to {n_outputs - 1}, got {least if least < 0 else most}")
