"""The convolutional network is the one that its name spells."""

from __future__ import annotations

import pytest
import torch

from fganalysis.training.networks import conv


def kinds(network: torch.nn.Sequential) -> str:
    return " ".join(type(module).__name__ for module in network)


def test_the_layers_are_15c5_p2_40c5_p2_128_10() -> None:
    network = conv()
    assert kinds(network) == "Conv2d ReLU MaxPool2d Conv2d ReLU MaxPool2d Flatten Linear ReLU Linear"
    shapes = [tuple(p.shape) for p in network.parameters()]
    assert shapes == [(15, 1, 5, 5), (15,), (40, 15, 5, 5), (40,), (128, 640), (128,), (10, 128), (10,)]


def test_batch_normalisation_stands_before_each_relu() -> None:
    network = conv(batch_norm=True, bias=False)
    assert kinds(network) == (
        "Conv2d BatchNorm2d ReLU MaxPool2d Conv2d BatchNorm2d ReLU MaxPool2d Flatten Linear BatchNorm1d ReLU Linear"
    )
    assert all(module.bias is None for module in network if isinstance(module, torch.nn.Conv2d | torch.nn.Linear))


def test_weights_are_those_that_torch_draws_from_the_same_seed() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        convolution = torch.nn.Conv2d(3, 15, 5)
    ours = conv((3, 32, 32), seed=7)[0]
    assert torch.equal(ours.weight, convolution.weight)
    assert torch.equal(ours.bias, convolution.bias)


@pytest.mark.parametrize(("side", "channels"), [(16, (2, 3)), (17, (2, 3)), (6, (2,)), (37, (2, 3, 4))])
def test_any_number_of_convolutions_fits_where_its_image_is_large_enough(side: int, channels: tuple[int, ...]) -> None:
    network = conv((2, side, side + 3), 4, channels=channels, hidden=5)
    assert network(torch.rand(3, 2, side, side + 3)).shape == (3, 4)
