"""A training in parts is the whole training, wherever it was killed."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import fganalysis as fga
from fganalysis.estimators import Backpropagation, Estimator, ForwardDirectFeedback, OrthogonalUpstream
from fganalysis.training.loop import Run
from studies.kit import resumed
from tests.unit.results.damaged import damage

SETTINGS: dict[str, Any] = {"epochs": 5, "batch_size": 300, "seed": 3, "log_every": 7}
CHECKPOINTS = (0, 5, 12, 25)


class Killed(BaseException):
    pass


def parts() -> tuple[torch.nn.Module, Any]:
    return fga.networks.mlp([64, 8, 8, 10], seed=1), fga.datasets.load("digits")


def assert_same(one: Run, other: Run) -> None:
    assert one.log.identical(other.log), (one.log, other.log)
    for (name, a), b in zip(one.network.state_dict().items(), other.network.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("gradient", [Backpropagation(), OrthogonalUpstream(k=3), ForwardDirectFeedback(rate=0.1)])
def test_parts_are_bit_identical_to_the_whole(gradient: Estimator, tmp_path: Path) -> None:
    network, data = parts()
    whole = fga.train(network, data, gradient, **SETTINGS, checkpoints=CHECKPOINTS, out=tmp_path / "whole")
    assert_same(whole, resumed.train(network, data, gradient, tmp_path / "parts", **SETTINGS))
    run = resumed.train(network, data, gradient, tmp_path / "kept", **SETTINGS, checkpoints=CHECKPOINTS)
    assert_same(whole, run)
    assert list(run.checkpoints) == list(CHECKPOINTS)
    # Computed again after its end, nothing is left to train.
    assert_same(whole, resumed.train(network, data, gradient, tmp_path / "kept", **SETTINGS, checkpoints=CHECKPOINTS))


@pytest.mark.parametrize("broken", ["", "step_000005.safetensors", "step_000025.safetensors", "log_00000025.nc"])
def test_a_killed_training_goes_on_from_its_checkpoints(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, data = parts()
    whole = fga.train(network, data, "backpropagation", **SETTINGS)
    assert int(whole.log["step"][-1]) == 25
    train, begun = fga.train, []

    def dying(*arguments: Any, continue_from: Path | None, **settings: Any) -> Run:
        begun.append(continue_from)
        if len(begun) == 3:
            raise Killed
        return train(*arguments, continue_from=continue_from, **settings)

    monkeypatch.setattr(resumed, "GROWTH", 2)
    monkeypatch.setattr(fga, "train", dying)
    again = partial(resumed.train, network, data, "backpropagation", tmp_path, **SETTINGS, checkpoints=CHECKPOINTS)
    with pytest.raises(Killed):
        again()
    if broken and (tmp_path / broken).exists():
        damage(tmp_path / broken)
    assert_same(whole, again())
    first = begun[3]
    assert (first is None) == (broken == "step_000005.safetensors") and (first is None or first.stem == "step_000015")


def test_a_training_that_diverges_does_so_at_the_same_step(tmp_path: Path) -> None:
    network, data = parts()
    for rate in (1e3, 1e18):
        settings = SETTINGS | {"optimizer": partial(torch.optim.SGD, lr=rate)}
        whole = fga.train(network, data, "backpropagation", **settings)
        assert_same(whole, resumed.train(network, data, "backpropagation", tmp_path / str(rate), **settings))
    assert "diverged_at_step" in whole.log.attrs
