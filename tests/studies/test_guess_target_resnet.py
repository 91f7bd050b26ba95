"""The part of `studies.guess_target` on the ResNet, run whole and tiny; its numbers by other routes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import LocalLoss
from studies.guess_target import __main__ as guess_target
from studies.guess_target import resnet
from studies.guess_target.cells import HEADS, PROJECTIONS, TARGETS

TINY: dict[str, Any] = {
    "part": "resnet",
    "mlp_width": 4,
    "cnn_channels": 2,
    "resnet_seeds": (0, 1),
    "resnet_widths": (2, 3, 4, 5),
    "resnet_epochs": 1,
    "resnet_head_steps": 2,
    "resnet_batch": 16,
    "resnet_guesses": 8,
}
OF = resnet.ResNet(0, (2, 3, 4, 5), 4, 2, 1e-2, 1, 2, 16, 8)


@pytest.fixture(scope="module")
def snapshot() -> Snapshot:
    data = fga.datasets.load("digits", images=True)
    network = resnet.with_statistics(fga.networks.resnet(OF.widths, resnet.STAGES, (1, 8, 8)), data).eval()
    return fga.capture(network, torch.nn.functional.cross_entropy, *data.batch(OF.batch))


def test_the_part_runs_whole_and_a_second_run_computes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = guess_target.Settings(**TINY, out=tmp_path / "out", page=tmp_path / "page")
    found = guess_target.main(settings)["measured"].to_dataset()
    page = (tmp_path / "page" / "guess_target_resnet.md").read_text(encoding="utf-8")
    assert page in capsys.readouterr().out and "nan" not in page
    assert "(guess_target_resnet_blocks.png)" in page
    assert (tmp_path / "page" / "guess_target_resnet_blocks.png").stat().st_size > 5000
    assert all(array.attrs["units"] and array.attrs["long_name"] for array in found.values())
    assert found["cosine"].sizes["block"] == 8 + 1 and list(found["trained"].values) == list(resnet.MOMENTS)
    heads = found.sel(guess=list(HEADS))
    assert heads["cosine"].notnull().all()
    # A guess that is not random makes the progress of its squared cosine.
    np.testing.assert_allclose(heads["cosine"] ** 2, heads["efficiency"], atol=1e-9)
    # Projected along itself, a guess never points uphill; unprojected, a trained head's may.
    along = found.sel(guess=list(HEADS), target="global", projection="weight", space="weight").drop_sel(
        block="all blocks"
    )
    assert float(along["cosine"].min()) > -1e-6
    cells = sorted((tmp_path / "out" / "cells").iterdir())
    assert len(cells) == 2
    written = [cell.stat().st_mtime_ns for cell in cells]
    assert guess_target.main(settings)["measured"].to_dataset().identical(found)
    assert [cell.stat().st_mtime_ns for cell in cells] == written


def test_a_heads_cosine_is_that_of_its_gradient_by_autograd(snapshot: Snapshot) -> None:
    """Block 5, local target: the loss of the head that reads the block's output, differentiated by torch alone."""
    heads = resnet.heads_of(OF)
    found = resnet._at(snapshot, {kind: head.initialised(snapshot) for kind, head in heads.items()}, OF)
    network, head = snapshot.network, heads["linear"]
    kept: list[torch.Tensor] = []
    hook = network.get_submodule("blocks.5").register_forward_hook(lambda module, given, output: kept.append(output))
    loss = snapshot.loss_fn(network(snapshot.inputs), snapshot.targets)
    hook.remove()
    weight, bias = head.own_heads(snapshot, False)[5]
    normalised = torch.nn.functional.layer_norm(kept[0].flatten(2).mT, (kept[0].shape[1],)).mean(1)
    local = snapshot.loss_fn(torch.nn.functional.linear(normalised, weight, bias), snapshot.targets)
    own = list(network.get_submodule("blocks.5").parameters())
    exact, guess = (
        torch.cat([g.flatten() for g in torch.autograd.grad(each, own, retain_graph=True)]) for each in (loss, local)
    )
    expected = float(torch.nn.functional.cosine_similarity(exact, guess, dim=0))
    where = {"guess": "linear head", "space": "weight", "block": "blocks.5", "projection": "activation"}
    assert float(found["cosine"].sel(where | {"target": "local"})) == pytest.approx(expected, rel=1e-3, abs=1e-5)
    # The control: another block's cosine, and another target's, differ from it.
    for other in ({"block": "blocks.4", "target": "local"}, {"target": "global"}):
        assert abs(float(found["cosine"].sel(where | other)) - expected) > 1e-3


def test_noise_at_the_blocks_is_the_gradient_over_their_numbers_on_average(snapshot: Snapshot) -> None:
    """E uuᵀ/‖u‖² = I/n at a block's output of n numbers an example, and the way back to the taps is linear."""
    sampled = fga.sample(snapshot, resnet.NoiseAtBlocks(), 512, 0).sel(space="weight")
    for layer, n in (("blocks.3.conv2", 3 * 4 * 4), ("blocks.7.conv2", 5)):
        shrinkage, error = (float(sampled[name].sel(layer=layer)) for name in ("shrinkage", "shrinkage_se"))
        # The controls: twice as many numbers, or none, would be seen.
        assert abs(shrinkage - 1 / n) < 4 * error < 0.5 / n
    assert float(sampled["shrinkage"].sel(layer="head")) == pytest.approx(1, rel=1e-5)


def test_every_cell_has_an_estimator_of_its_own() -> None:
    heads = resnet.heads_of(OF)
    found = resnet.estimators_of(heads, OF)
    assert len(found) == len(HEADS) * len(TARGETS) * len(PROJECTIONS) + 4
    frozen = [each for (guess, _, _), each in found.items() if guess.endswith("frozen")]
    assert all(isinstance(each, LocalLoss) and each.mode == "frozen" and each.seed == 1000 for each in frozen)
    assert replace(OF, seed=3) != OF


def test_as_many_widths_as_stages() -> None:
    with pytest.raises(ValueError, match="resnet_widths must be of 4 stages, got"):
        guess_target.Settings(**(TINY | {"resnet_widths": (4, 8)}))
    with pytest.raises(ValueError, match="resnet_seeds must be at least 2, as intervals are over them, got 1"):
        guess_target.Settings(**(TINY | {"resnet_seeds": (1,)}))
