"""ResNet-18's plan at any width, for small images."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fganalysis.arguments import check_whole
from fganalysis.training.networks.layers import (
    LARGEST_SIZE,
    MOST_BLOCKS,
    checked_image,
    checked_sizes,
    linear,
    seeded,
    without_weights,
)


class ResidualBlock(torch.nn.Module):
    """Two 3×3 convolutions with batch normalisation, around which the input is carried and added.

    Where the shape changes, a 1×1 convolution with batch normalisation, the projection, stands on the shortcut.
    """

    def __init__(self, fan_in: int, fan_out: int, stride: int, generator: torch.Generator) -> None:
        super().__init__()
        self.conv1 = _convolution(fan_in, fan_out, 3, generator, stride)
        self.norm1 = torch.nn.BatchNorm2d(fan_out)
        self.conv2 = _convolution(fan_out, fan_out, 3, generator)
        self.norm2 = torch.nn.BatchNorm2d(fan_out)
        self.shortcut = torch.nn.Sequential()
        if stride != 1 or fan_in != fan_out:
            self.shortcut.append(_convolution(fan_in, fan_out, 1, generator, stride))
            self.shortcut.append(torch.nn.BatchNorm2d(fan_out))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map (example, fan_in, height, width) to (example, fan_out, height/stride, width/stride), rounded up."""
        inner = torch.relu(self.norm1(self.conv1(inputs)))
        return torch.relu(self.norm2(self.conv2(inner)) + self.shortcut(inputs))


class ResNet(torch.nn.Module):
    """A stem, residual blocks `blocks.0`, `blocks.1`, …, the mean over pixels and a linear head."""

    def __init__(
        self, widths: Sequence[int], blocks: Sequence[int], channels: int, classes: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.stem = _convolution(channels, widths[0], 3, generator)
        self.norm = torch.nn.BatchNorm2d(widths[0])
        self.blocks = torch.nn.Sequential()
        fan_in = widths[0]
        for stage, (width, n_blocks) in enumerate(zip(widths, blocks, strict=True)):
            for block in range(n_blocks):
                stride = 2 if stage and not block else 1
                self.blocks.append(ResidualBlock(fan_in, width, stride, generator))
                fan_in = width
        self.head = linear(fan_in, classes, generator)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map images (example, channel, height, width) to (example, class)."""
        features = self.blocks(torch.relu(self.norm(self.stem(inputs))))
        return self.head(features.mean((2, 3)))


def resnet(
    widths: Sequence[int] = (64, 128, 256, 512),
    blocks: Sequence[int] = (2, 2, 2, 2),
    inputs: Sequence[int] = (3, 32, 32),
    classes: int = 10,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> ResNet:
    """Build ResNet-18's plan for small images: a 3×3 stem without pooling, then stages of residual blocks.

    Every stage but the first halves height and width in its first block. The defaults are ResNet-18, with eight
    blocks `blocks.0` to `blocks.7`. Convolutions have no biases, their weights are normal with variance 2/fan_out;
    the head's are uniform on ±1/√fan_in. Weights depend on the seed alone, and a float64 network has those of the
    float32 one. The network is in training mode, as torch makes it: examples then interact in its batch
    normalisation, so call its `.eval()` before capturing it where slopes are to be taken by example.

    Source: He, Zhang, Ren & Sun 2016, arXiv 1512.03385; the 3×3 stem and the projections are those usual for CIFAR.

    Parameters
    ----------
    widths
        Channels of each stage.
    blocks
        Residual blocks of each stage.
    inputs
        An image's channels, height and width.
    classes
        Units of the output.
    seed
        Seed of the initial weights.
    dtype
        Type of the weights.

    Raises
    ------
    ValueError
        If an argument is not as above, or widths and blocks are not equally many.
    """
    stages = checked_sizes("widths", widths, 1, "one for each stage")
    n_blocks = checked_sizes("blocks", blocks, 1, "one for each stage", MOST_BLOCKS)
    if len(stages) != len(n_blocks):
        raise ValueError(f"widths and blocks must have an entry for each stage, got {len(stages)} and {len(n_blocks)}")
    n_channels, _, _ = checked_image(inputs)
    check_whole("classes", classes, 1, LARGEST_SIZE)
    return ResNet(stages, n_blocks, n_channels, int(classes), seeded(seed, dtype)).to(dtype)


def _convolution(
    fan_in: int, fan_out: int, kernel: int, generator: torch.Generator, stride: int = 1
) -> torch.nn.Conv2d:
    layer = without_weights(torch.nn.Conv2d, fan_in, fan_out, kernel, stride, kernel // 2, bias=False)
    torch.nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu", generator=generator)
    return layer
