"""Taps that are chosen by name, by pattern or as modules, whole blocks too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot

NETWORK = fga.networks.gpt(vocabulary=5, positions=3, width=4, heads=2, blocks=2, tied=False, dtype=torch.float64)
TOKENS = torch.randint(5, (4, 3), generator=torch.Generator().manual_seed(0))


def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(outputs.flatten(0, 1), targets.flatten())


def captured(taps: Any) -> Snapshot:
    return fga.capture(NETWORK, loss, TOKENS, TOKENS.roll(1, 1), taps=taps)


@pytest.mark.parametrize(
    ("taps", "names"),
    [
        (["head"], ["head"]),
        (["blocks.*"], ["blocks.0", "blocks.1"]),
        (["blocks.*.expand", "blocks.1.contract"], ["blocks.0.expand", "blocks.1.expand", "blocks.1.contract"]),
        ([NETWORK.get_submodule("blocks.0.attention")], ["blocks.0.attention"]),
        ([NETWORK.get_submodule("head"), "blocks.0"], ["blocks.0", "head"]),
    ],
)
def test_taps_are_those_that_were_chosen(taps: list[Any], names: list[str]) -> None:
    snapshot = captured(taps)
    assert [tap.name for tap in snapshot.taps] == names
    assert snapshot.layers == (*names, "untapped")
    everything = {name for name, _ in NETWORK.named_parameters()}
    inside = {name for tap in snapshot.taps for name in tap.parameter_names}
    assert set(snapshot.untapped_parameters) == everything - inside
    assert sum(layer.weight.numel() for layer in snapshot.weights) == sum(p.numel() for p in NETWORK.parameters())


def test_guesses_at_a_whole_block_are_unbiased() -> None:
    snapshot = captured(["blocks.*"])
    exact = fga.sample(snapshot, "backpropagation", 64)
    assert float(exact["relative_bias"].sel(space="weight", layer="all")) < 1e-12
    assert fga.check_unbiased("activity", snapshot, tolerance=0.3).outcome == "unbiased"
    jacobian = snapshot.jacobians[0]
    assert jacobian is not None and jacobian.following.name == "blocks.1"
    pulled = jacobian.transposed_product(snapshot.gradients[1][None])[0]
    torch.testing.assert_close(pulled, snapshot.gradients[0])


@pytest.mark.parametrize(
    ("taps", "message"),
    [
        ("head", "taps must be a list of names"),
        ([], "taps must be a list of names"),
        ([3], "taps must hold names, patterns or modules of the network, got 3"),
        (["nowhere"], "taps: 'nowhere' fits no module with trainable parameters, known are tokens"),
        (["blocks.0", "blocks.0.expand"], r"taps: 'blocks\.0\.expand' is inside 'blocks\.0'"),
        ([nn.Linear(2, 2)], "taps: Linear fits no module with trainable parameters"),
    ],
)
def test_what_chooses_no_taps_is_refused(taps: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        captured(taps)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_a_tap_that_shares_a_weight_with_what_was_not_chosen_is_refused() -> None:
    tied = fga.networks.gpt(vocabulary=5, positions=3, width=4, heads=2, blocks=1, tied=True, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"the gradient of 'tokens\.weight' .* the parameter is used elsewhere too"):
        fga.capture(tied, loss, TOKENS, TOKENS.roll(1, 1), taps=["head"])
    snapshot = fga.capture(tied, loss, TOKENS, TOKENS.roll(1, 1), taps=["tokens", "head"])
    assert snapshot.layers == ("tokens", "untapped")
