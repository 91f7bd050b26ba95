"""The mixer of Ren et al. (2023): patches, token mixing, and channel mixing in groups."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fganalysis.arguments import check_whole
from fganalysis.training.networks.layers import (
    LARGEST_SIZE,
    MOST_BLOCKS,
    checked_image,
    grouped_linear,
    linear,
    seeded,
)


class ChannelMixing(torch.nn.Module):
    """A linear layer of all units, then one within each group of units; normalisation behind both, ReLU between."""

    def __init__(self, fan_in: int, width: int, groups: int, generator: torch.Generator) -> None:
        super().__init__()
        self.groups = groups
        self.mix = linear(fan_in, width, generator)
        self.mix_groups = grouped_linear(width, groups, generator)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map (example, token, fan_in) to (example, token, width)."""
        mixed = torch.relu(_normalised(self.mix(_normalised(inputs))))
        grouped = self.mix_groups(_normalised(mixed, self.groups).transpose(1, 2)).transpose(1, 2)
        return _normalised(grouped, self.groups)


class MixerBlock(torch.nn.Module):
    """Token mixing, then channel mixing, around which the input is carried and added."""

    def __init__(self, tokens: int, width: int, groups: int, generator: torch.Generator) -> None:
        super().__init__()
        self.mix_tokens = linear(tokens, tokens, generator)
        self.channels = ChannelMixing(width, width, groups, generator)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map (example, token, width) to the same shape."""
        mixed = self.mix_tokens(_normalised(inputs).transpose(1, 2))
        return torch.relu(self.channels(torch.relu(_normalised(mixed)).transpose(1, 2)) + inputs)


class FirstBlock(torch.nn.Module):
    """Cuts images into patches, the tokens, and mixes the numbers of each: no tokens are mixed, nothing is carried."""

    def __init__(self, patch: tuple[int, int, int], width: int, groups: int, generator: torch.Generator) -> None:
        super().__init__()
        self.patch = patch
        channels, height, breadth = patch
        self.channels = ChannelMixing(channels * height * breadth, width, groups, generator)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map images (example, channel, height, width) to (example, token, width of the mixer)."""
        _, height, breadth = self.patch
        cut = inputs.unflatten(3, (-1, breadth)).unflatten(2, (-1, height))
        # (example, channel, row of patches, pixel, column of patches, pixel)
        return torch.relu(self.channels(cut.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)))


class Mixer(torch.nn.Module):
    """Blocks `blocks.0`, `blocks.1`, …, the mean over tokens and a linear head."""

    def __init__(self, blocks: Sequence[torch.nn.Module], head: torch.nn.Linear) -> None:
        super().__init__()
        self.blocks = torch.nn.Sequential(*blocks)
        self.head = head

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map images (example, channel, height, width) to (example, class)."""
        return self.head(_normalised(self.blocks(inputs).mean(1)))


def mixer(
    inputs: Sequence[int] = (3, 32, 32),
    classes: int = 10,
    patches: int = 8,
    width: int = 512,
    groups: int = 16,
    blocks: int = 4,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Mixer:
    """Build the network that Ren et al. call LocalMixer; the defaults are their M/8/16 for CIFAR-10.

    An image is cut into patches × patches tokens. The first block mixes the numbers of each patch, the others mix
    tokens and then channels; channels are mixed by a linear layer of all units and then by one within each group.
    Every linear layer is followed by a normalisation without weights (within the group where there are groups), ReLU
    after it, and the blocks but the first carry their input past it. Each of the groups may have a local loss at the
    output of its block, `blocks.0`, `blocks.1`, …, which is (example, token, unit).

    Weights and biases are uniform on ±1/√fan_in, the head's too, which the authors start at zero: no gradient would
    reach what is below. They depend on the seed alone, and a float64 network has those of the float32 one.

    Source: Ren, Kornblith, Liao & Hinton 2023, arXiv 2210.03310, and their code.

    Parameters
    ----------
    inputs
        An image's channels, height and width.
    classes
        Units of the output.
    patches
        Patches along a side; divides height and width.
    width
        Units of a token.
    groups
        Groups of units; divides the width.
    blocks
        Blocks, the first included.
    seed
        Seed of the initial weights.
    dtype
        Type of the weights.

    Raises
    ------
    ValueError
        If an argument is not as above.
    """
    n_channels, height, breadth = checked_image(inputs)
    sizes = {"classes": classes, "patches": patches, "width": width, "groups": groups}
    for name, value in sizes.items():
        check_whole(name, value, 1, LARGEST_SIZE)
    check_whole("blocks", blocks, 1, MOST_BLOCKS)
    if height % patches or breadth % patches:
        raise ValueError(f"patches must divide the height and width of inputs, got {patches} for {height} × {breadth}")
    if width % groups:
        raise ValueError(f"groups must divide the width, got {groups} for {width}")
    generator = seeded(seed, dtype)
    patch = (n_channels, height // patches, breadth // patches)
    first = FirstBlock(patch, int(width), int(groups), generator)
    others = [MixerBlock(int(patches) ** 2, int(width), int(groups), generator) for _ in range(blocks - 1)]
    return Mixer([first, *others], linear(int(width), int(classes), generator)).to(dtype)


def _normalised(inputs: torch.Tensor, groups: int = 1) -> torch.Tensor:
    """Mean 0 and variance 1 over the last axis, or over each of several equal parts of it."""
    parts = inputs.unflatten(-1, (groups, -1))
    return torch.nn.functional.layer_norm(parts, parts.shape[-1:]).flatten(-2)
