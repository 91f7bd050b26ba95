"""Layers whose weights come from a generator handed in, and the checks that the networks share.

A layer's constructor draws from the global generator, which would make a network depend on what ran before it: layers
are made without weights, and these are drawn here. They are drawn in float32, whatever the type wanted, so that a
float64 network has the same weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch

from fganalysis.arguments import check_choice, check_seed, check_whole, described

LARGEST_SIZE = 2**24  # Units of a layer; more is a mistake, and fails where the memory is taken.
LARGEST_LAYER = 2**31  # Weights of a layer, for the same reason: 8 GiB.
LARGEST_SIDE = 2**12  # Pixels of an image's side.
MOST_BLOCKS = 1000
Layer = TypeVar("Layer", bound=torch.nn.Module)
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def without_weights(kind: Callable[..., Layer], *arguments: object, **keywords: object) -> Layer:
    """A layer in float32 whose weights are yet to be drawn: whatever the memory held.

    Raises
    ------
    ValueError
        If it would have more than `LARGEST_LAYER` weights.
    """
    # torch.nn.utils.skip_init does the same, but takes the memory before its size can be looked at.
    layer = kind(*arguments, **keywords, device="meta", dtype=torch.float32)
    n_weights = sum(parameter.numel() for parameter in layer.parameters())
    if n_weights > LARGEST_LAYER:
        raise ValueError(f"a layer must have at most {LARGEST_LAYER} weights, these sizes give one of {n_weights}")
    return layer.to_empty(device="cpu")


def linear(fan_in: int, fan_out: int, generator: torch.Generator, bias: bool = True) -> torch.nn.Linear:
    """A linear layer, its weights and biases uniform on ±1/√fan_in: Kaiming's law with a = √5, torch's default."""
    return _uniform(without_weights(torch.nn.Linear, fan_in, fan_out, bias=bias), generator)


def convolution(
    fan_in: int, fan_out: int, kernel: int, generator: torch.Generator, bias: bool = True
) -> torch.nn.Conv2d:
    """A convolution without padding, its weights and biases uniform on ±1/√(fan_in · kernel²), torch's default."""
    return _uniform(without_weights(torch.nn.Conv2d, fan_in, fan_out, kernel, bias=bias), generator)


def grouped_linear(width: int, groups: int, generator: torch.Generator) -> torch.nn.Conv1d:
    """A linear layer for each group of units, on (example, unit, position): a convolution of one position."""
    return _uniform(without_weights(torch.nn.Conv1d, width, width, 1, groups=groups), generator)


def checked_sizes(name: str, values: object, least_count: int, what: str, largest: int = LARGEST_SIZE) -> list[int]:
    """A list of at least so many whole numbers from 1 to ``largest``; ``what`` says what the entries are."""
    if isinstance(values, str | bytes) or not isinstance(values, Sequence | np.ndarray):
        raise ValueError(f"{name} must be a list of whole numbers, got {described(values)}")
    if len(values) < least_count:
        entries = "entry" if least_count == 1 else "entries"
        raise ValueError(f"{name} must have at least {least_count} {entries}, {what}, got {len(values)}")
    for value in values:
        check_whole(f"each of {name}", value, 1, largest)
    return [int(value) for value in values]


def checked_image(inputs: object, least_side: int = 1) -> tuple[int, int, int]:
    """The shape (channel, height, width) of an image that has at least so many pixels a side."""
    if isinstance(inputs, str | bytes) or not isinstance(inputs, Sequence | np.ndarray) or len(inputs) != 3:
        raise ValueError(
            f"inputs must be an image's (channels, height, width), such as (1, 28, 28), got {described(inputs)}"
        )
    check_whole("the channels of inputs", inputs[0], 1, LARGEST_SIZE)
    check_whole("the height of inputs", inputs[1], least_side, LARGEST_SIDE)
    check_whole("the width of inputs", inputs[2], least_side, LARGEST_SIDE)
    return int(inputs[0]), int(inputs[1]), int(inputs[2])


def seeded(seed: object, dtype: object) -> torch.Generator:
    """The generator of a network's own that a seed names, once the seed and the type of the weights are checked."""
    check_seed("seed", seed)
    check_choice("dtype", dtype, DTYPES)
    return torch.Generator().manual_seed(int(seed))  # type: ignore[call-overload]


def _uniform(layer: Layer, generator: torch.Generator) -> Layer:
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, torch.Tensor)
    torch.nn.init.kaiming_uniform_(weight, a=5**0.5, generator=generator)
    if isinstance(bias, torch.Tensor):
        bound = weight[0].numel() ** -0.5
        torch.nn.init.uniform_(bias, -bound, bound, generator=generator)
    return layer
