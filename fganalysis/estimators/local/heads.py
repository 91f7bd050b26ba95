"""Auxiliary heads: small networks from a block's output to outputs that the loss function accepts.

    on (example, unit)
        linear   units → outputs
        mlp      three hidden ReLU layers of ``width`` units (by default 1024), then a linear layer
        cnn      the units as a sequence with one channel; three convolutions of kernel 3 and stride 2 with ``width``
                 channels (by default 32), each followed by ReLU; the mean over positions; then a linear layer
    on feature maps and sequences, (example, unit, *places)
        linear   the units of every place normalised; the mean over places; a linear layer
        mlp      the same, with three hidden ReLU layers between the mean and the linear layer
        cnn      three convolutions over the places as above, padded by one place, with the units as channels; ReLU; the
                 mean over places; a linear layer

Where the network predicts something at every place, as a language model does, the linear and the mlp head do too, with
no mean over places. The norm is a layer norm without scale and shift: BatchNorm, which Fournier et al. have in its
place, would let examples interact. A scale and a shift would add nothing, as a linear layer follows.

A head is a tuple of tensors, weight and bias of each layer from the block on. Each tensor may have a leading dimension,
with one head for each guess. Weights and biases are uniform on ±1/√fan_in, as torch initialises them. Source: Fournier
et al. 2023.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import conv1d, conv2d, conv3d, layer_norm, linear, relu

Kind = Literal["linear", "mlp", "cnn"]
Shapes = tuple[tuple[int, ...], ...]
Parameters = tuple[Tensor, ...]
DEFAULT_WIDTHS: dict[Kind, int] = {"linear": 0, "mlp": 1024, "cnn": 32}
HIDDEN_LAYERS = 3
KERNEL, STRIDE = 3, 2
LEAST_UNITS = 15  # three convolutions without padding take 15 units to 7, 3 and 1
NUMBERS_AT_ONCE = 2**22
CONVOLUTIONS = (conv1d, conv2d, conv3d)
HeadLoss = Callable[[Tensor], Tensor]


def shapes_of(
    kind: Kind, units: int, outputs: int, width: int | None, name: str, n_axes: int = 0, each: bool = False
) -> Shapes:
    """The shapes of a head's tensors for a block with ``units`` units behind the tap or module ``name``.

    n_axes: of places, 0 on (example, unit). each: whether the head predicts ``outputs`` numbers at each place.

    Raises:
        ValueError: too few units for three convolutions, or places that a cnn head cannot convolve.
    """
    width = DEFAULT_WIDTHS[kind] if width is None else width
    if kind == "cnn" and not n_axes and units < LEAST_UNITS:
        raise ValueError(f"a cnn head needs at least {LEAST_UNITS} units, the block of tap {name!r} has {units}")
    if kind == "cnn" and (each or n_axes > len(CONVOLUTIONS)):
        why = "a prediction at each place" if each else f"{n_axes} axes of places"
        raise ValueError(f"a cnn head has no form for {why}, as behind {name!r}: use a linear or an mlp head")
    hidden: list[tuple[int, ...]] = []
    last = units
    if kind == "mlp":
        hidden = [(above, below) for below, above in pairwise([units, *[width] * HIDDEN_LAYERS])]
        last = width
    elif kind == "cnn":
        channels = [units if n_axes else 1, *[width] * HIDDEN_LAYERS]
        hidden = [(above, below, *[KERNEL] * max(n_axes, 1)) for below, above in pairwise(channels)]
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


def outputs_of(parameters: Sequence[Tensor], block: Tensor, each: bool = False) -> Tensor:
    """The outputs (example, output) of one head that reads ``block``, (example, unit) or (example, unit, *places).

    With ``each`` (example, place, output).
    """
    hidden, (weight, bias) = parameters[:-2], parameters[-2:]
    n_axes = block.ndim - 2
    signal = block
    if parameters[0].ndim > 2:
        signal = block if n_axes else block.unsqueeze(1)
    elif n_axes:
        signal = layer_norm(block.flatten(2).mT, (block.shape[1],))  # (example, place, unit)
        signal = signal if each else signal.mean(1)
    for hidden_weight, hidden_bias in zip(hidden[::2], hidden[1::2], strict=True):
        if hidden_weight.ndim > 2:
            convolution = CONVOLUTIONS[hidden_weight.ndim - 3]
            signal = convolution(signal, hidden_weight, hidden_bias, stride=STRIDE, padding=1 if n_axes else 0)
        else:
            signal = linear(signal, hidden_weight, hidden_bias)
        signal = relu(signal)
    return linear(signal.flatten(2).mean(2) if parameters[0].ndim > 2 else signal, weight, bias)


def block_gradients(parameters: Sequence[Tensor], block: Tensor, loss: HeadLoss, each: bool = False) -> Tensor:
    """∂ℓ/∂block of the loss of every head's outputs, (head, *shape of the block), through the head alone."""
    if len(parameters[0]) == 1:  # vmap over a single convolutional head takes twice as long as the head itself.
        (alone,) = _gradients([tensor[0] for tensor in parameters], block, loss, each, of_parameters=False)
        return alone.unsqueeze(0)

    def of_head(signal: Tensor, head: tuple[Tensor, ...]) -> Tensor:
        return loss(outputs_of(head, signal, each))

    gradients: Tensor = torch.func.vmap(torch.func.grad(of_head), in_dims=(None, 0))(block, tuple(parameters))
    return gradients


def both_gradients(
    parameters: Parameters, block: Tensor, loss: HeadLoss, each: bool = False
) -> tuple[Tensor, Parameters]:
    """∂ℓ/∂block and ∂ℓ/∂parameters of the loss of one head's outputs, from one forward and backward pass."""
    at_block, *of_parameters = _gradients(parameters, block, loss, each, of_parameters=True)
    return at_block, tuple(of_parameters)


def _gradients(
    parameters: Sequence[Tensor], block: Tensor, loss: HeadLoss, each: bool, of_parameters: bool
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
        return torch.autograd.grad(loss(outputs_of(head, signal, each)), asked)


def redrawn_gradients(
    shapes: Shapes, n_heads: int, generator: torch.Generator, gradients: Callable[[Parameters], Tensor], like: Tensor
) -> Tensor:
    """`block_gradients` of newly drawn heads, (head, …), a few heads at a time where they are large.

    The number of heads at a time follows from the shapes alone. So the result depends only on the generator and
    ``n_heads``.
    """
    at_once = max(1, NUMBERS_AT_ONCE // sum(torch.Size(shape).numel() for shape in shapes))
    parts = []
    for start in range(0, n_heads, at_once):
        parts.append(gradients(drawn(shapes, min(at_once, n_heads - start), generator, like)))
    return torch.cat(parts)


def check_targets(targets: Any, outputs: Any) -> None:
    """Raises ValueError for targets that are class indices and lie beyond outputs (example, class)."""
    both = isinstance(targets, Tensor) and isinstance(outputs, Tensor)
    if not both or targets.ndim != 1 or targets.is_floating_point() or targets.numel() == 0 or outputs.ndim != 2:
        return
    least, most = int(targets.min()), int(targets.max())
    if least < 0 or most >= outputs.shape[1]:
        wrong = least if least < 0 else most
        raise ValueError(f"targets must be class indices from 0 to {outputs.shape[1] - 1}, got {wrong}")
