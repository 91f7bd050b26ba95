"""The small convolutional network of Bacho & Chu (2023), 15C5-P2-40C5-P2-128-10."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch

from fganalysis.arguments import check_flag, check_whole
from fganalysis.training.networks.layers import (
    LARGEST_SIDE,
    LARGEST_SIZE,
    checked_image,
    checked_sizes,
    convolution,
    linear,
    seeded,
)

KERNEL_SIDE = 5
POOLED = 2


def conv(
    inputs: Sequence[int] = (1, 28, 28),
    classes: int = 10,
    batch_norm: bool = False,
    bias: bool = True,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    *,
    channels: Sequence[int] = (15, 40),
    hidden: int = 128,
) -> torch.nn.Sequential:
    """Build 15C5-P2-40C5-P2-128-10: two 5×5 convolutions, each with ReLU and 2×2 max-pooling, and two linear layers.

    It takes images (example, channel, height, width) and gives (example, class). With ``batch_norm``, batch
    normalisation stands before each ReLU. Weights and biases are uniform on ±1/√fan_in, torch's default; they depend
    on the seed alone, and a float64 network has those of the float32 one. The network is in training mode, as torch
    makes it: with ``batch_norm`` examples then interact, so call its `.eval()` before capturing it where slopes are
    to be taken by example.

    Source: Bacho & Chu 2023, arXiv 2212.07282, as their paper writes the network; the code they published leaves the
    first pooling out.

    Parameters
    ----------
    inputs
        An image's channels, height and width: at least 16 pixels a side for two convolutions.
    classes
        Units of the output.
    batch_norm
        Whether batch normalisation follows the convolutions and the first linear layer.
    bias
        Whether convolutions and linear layers have biases.
    seed
        Seed of the initial weights.
    dtype
        Type of the weights.
    channels
        Channels of each convolution.
    hidden
        Units of the first linear layer.

    Raises
    ------
    ValueError
        If an argument is not as above.
    """
    widths = checked_sizes("channels", channels, 1, "one for each convolution")
    smallest_side = 1  # What the last pooling leaves.
    for _ in widths:
        smallest_side = POOLED * smallest_side + KERNEL_SIDE - 1
    if smallest_side > LARGEST_SIDE:
        raise ValueError(f"channels must be of fewer convolutions: {len(widths)} halve an image of any size to nothing")
    n_channels, height, width = checked_image(inputs, smallest_side)
    check_whole("classes", classes, 1, LARGEST_SIZE)
    check_whole("hidden", hidden, 1, LARGEST_SIZE)
    check_flag("batch_norm", batch_norm)
    check_flag("bias", bias)
    generator = seeded(seed, dtype)

    modules: list[torch.nn.Module] = []
    for fan_in, fan_out in itertools.pairwise([n_channels, *widths]):
        modules.append(convolution(fan_in, fan_out, KERNEL_SIDE, generator, bool(bias)))
        if batch_norm:
            modules.append(torch.nn.BatchNorm2d(fan_out))
        modules += [torch.nn.ReLU(), torch.nn.MaxPool2d(POOLED)]
        height, width = (height - KERNEL_SIDE + 1) // POOLED, (width - KERNEL_SIDE + 1) // POOLED
    modules += [torch.nn.Flatten(), linear(widths[-1] * height * width, int(hidden), generator, bool(bias))]
    if batch_norm:
        modules.append(torch.nn.BatchNorm1d(int(hidden)))
    modules += [torch.nn.ReLU(), linear(int(hidden), int(classes), generator, bool(bias))]
    return torch.nn.Sequential(*modules).to(dtype)
