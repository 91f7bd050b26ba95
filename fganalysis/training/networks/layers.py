"""Layers whose weights come from a generator handed in, and the checks that the networks share.

A layer's constructor draws from the global generator, which would make a network depend on what ran before it:
`skip_init` leaves the weights out, and they are drawn here. They are drawn in float32, whatever the type wanted, so
that a float64 network has the same weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from fganalysis.arguments import check_choice, check_seed, check_whole, described

LARGEST_SIZE = 2**24  # Units of a layer; more is a mistake, and fails where the memory is taken.
LARGEST_SIDE = 2**12  # Pixels of an image's side, for the same reason.
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def linear(fan_in: int, fan_out: int, generator: torch.Generator, bias: bool = True) -> torch.nn.Linear:
    """A linear layer, its weights and biases uniform on ±1/√fan_in: Kaiming's law with a = √5, torch's default."""
    layer = torch.nn.utils.skip_init(torch.nn.Linear, fan_in, fan_out, bias=bias, dtype=torch.float32)
    torch.nn.init.kaiming_uniform_(layer.weight, a=5**0.5, generator=generator)
    if bias:
        torch.nn.init.uniform_(layer.bias, -(fan_in**-0.5), fan_in**-0.5, generator=generator)
    return layer


def convolution(
    fan_in: int, fan_out: int, kernel: int, generator: torch.Generator, bias: bool = True
) -> torch.nn.Conv2d:
    """A convolution without padding, its weights and biases uniform on ±1/√(fan_in · kernel²), torch's default."""
    layer = torch.nn.utils.skip_init(torch.nn.Conv2d, fan_in, fan_out, kernel, bias=bias, dtype=torch.float32)
    torch.nn.init.kaiming_uniform_(layer.weight, a=5**0.5, generator=generator)
    if bias:
        bound = (fan_in * kernel**2) ** -0.5
        torch.nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
    return layer


def checked_sizes(name: str, values: object, least_count: int, what: str) -> list[int]:
    """A list of at least so many whole numbers from 1 to `LARGEST_SIZE`; ``what`` says what the entries are."""
    if isinstance(values, str | bytes) or not isinstance(values, Sequence | np.ndarray):
        raise ValueError(f"{name} must be a list of whole numbers, got {described(values)}")
    if len(values) < least_count:
        entries = "entry" if least_count == 1 else "entries"
        raise ValueError(f"{name} must have at least {least_count} {entries}, {what}, got {len(values)}")
    for value in values:
        check_whole(f"each of {name}", value, 1, LARGEST_SIZE)
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
