"""The residual network has ResNet-18's plan, and adds what it carries."""

from __future__ import annotations

import pytest
import torch

from fganalysis.training.networks import resnet


def test_the_defaults_are_resnet_18_for_small_images() -> None:
    network = resnet()
    # The count that the usual CIFAR variant of ResNet-18 has: 3×3 stem, projections with batch normalisation.
    assert sum(p.numel() for p in network.parameters()) == 11_173_962
    assert [name for name, _ in network.named_children()] == ["stem", "norm", "blocks", "head"]
    assert len(network.blocks) == 8
    projections = [index for index, block in enumerate(network.blocks) if len(block.shortcut)]
    assert projections == [2, 4, 6]


def test_every_stage_but_the_first_halves_the_image() -> None:
    network = resnet((2, 3, 4), (1, 1, 2), (1, 9, 12), 2)
    sizes: list[tuple[int, ...]] = []
    for block in network.blocks:
        block.register_forward_hook(lambda _, __, output: sizes.append(tuple(output.shape[1:])))
    network(torch.rand(2, 1, 9, 12))
    assert sizes == [(2, 9, 12), (3, 5, 6), (4, 3, 3), (4, 3, 3)]


def test_a_block_adds_its_input() -> None:
    network = resnet((2,), (1,), (2, 4, 4), 2).eval()
    block = network.blocks[0]
    with torch.no_grad():
        block.norm2.weight.zero_()
        inputs = torch.rand(1, 2, 4, 4)
        assert torch.equal(block(inputs), inputs)


def test_convolutions_have_variance_two_over_fan_out() -> None:
    weight = resnet((64,), (1,), (3, 8, 8), 2).blocks[0].conv1.weight
    # 36 864 normal numbers: the relative standard error of their variance is √(2/36864) = .0074, 5 of it are .037.
    assert weight.var().item() == pytest.approx(2 / (64 * 9), rel=0.037)
