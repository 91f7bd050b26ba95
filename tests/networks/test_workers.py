"""The numbers do not depend on how many threads draw the guesses, whatever the network."""

from __future__ import annotations

import pytest
import torch

import fganalysis as fga


def convolutional() -> fga.Snapshot:
    network = fga.networks.conv(inputs=(1, 16, 16), classes=4, seed=0)
    inputs = torch.randn(16, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    return fga.capture(network, torch.nn.functional.cross_entropy, inputs, torch.arange(16) % 4)


def attentive() -> fga.Snapshot:
    network = fga.networks.gpt(vocabulary=16, positions=8, width=32, heads=2, blocks=1, seed=0)
    tokens = torch.randint(16, (4, 8), generator=torch.Generator().manual_seed(0))

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(outputs.flatten(0, 1), targets.flatten())

    return fga.capture(network, loss, tokens, tokens.roll(1, 1))


@pytest.mark.parametrize("make", [convolutional, attentive])
@pytest.mark.parametrize("estimator", ["activity", "upstream", "weight"])
def test_one_worker_and_two_give_the_same_numbers(make: object, estimator: str) -> None:
    snapshot = make()  # type: ignore[operator]
    one, two = (fga.sample(snapshot, estimator, 24, workers=workers) for workers in (1, 2))
    assert one.identical(two)
