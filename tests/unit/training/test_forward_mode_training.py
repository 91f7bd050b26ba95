"""Training without a backward pass: forward mode builds no graph and refuses what takes one."""

from typing import Any

import numpy as np
import pytest
import torch

import fganalysis as fga
from tests.unit.training.small_run import DATA, NETWORK


@pytest.mark.parametrize("gradient", ["activity", "weight", "upstream", "forward_direct_feedback"])
def test_forward_mode_training_builds_no_graph(gradient: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reverse = fga.train(NETWORK, DATA, gradient, epochs=1, batch_size=30)

    def refused(*arguments: object, **settings: object) -> None:
        raise AssertionError("a backward pass ran")

    def saved(tensor: torch.Tensor) -> None:
        raise AssertionError("a tensor was kept for a backward pass")

    for owner, name in ((torch.autograd, "grad"), (torch.autograd, "backward"), (torch.Tensor, "backward")):
        monkeypatch.setattr(owner, name, refused)
    with torch.autograd.graph.saved_tensors_hooks(saved, lambda kept: kept):
        forward = fga.train(NETWORK, DATA, gradient, epochs=1, batch_size=30, autodiff="forward")
        with pytest.raises(AssertionError, match="kept for a backward pass"):
            NETWORK(DATA.train_inputs)
    for one, other in zip(forward.network.parameters(), reverse.network.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert np.isnan(forward.log["cosine"]).all()


@pytest.mark.parametrize("gradient", ["backpropagation", "minibatch"])
def test_forward_mode_refuses_what_takes_a_backward_pass(gradient: str) -> None:
    with pytest.raises(ValueError, match=r"autodiff='forward'"):
        fga.train(NETWORK, DATA, gradient, epochs=1, autodiff="forward")


class _NoBackward(torch.autograd.Function):
    """Doubles its input, in forward mode alone; with ``dropped`` forward mode loses the tangent."""

    dropped = False

    @staticmethod
    def forward(inputs: torch.Tensor) -> torch.Tensor:
        return 2 * inputs

    @staticmethod
    def setup_context(context: Any, inputs: Any, output: torch.Tensor) -> None:
        pass

    @staticmethod
    def jvp(context: Any, tangent: torch.Tensor) -> torch.Tensor:
        return (0 if _NoBackward.dropped else 2) * tangent

    @staticmethod
    def vmap(info: Any, dims: Any, inputs: torch.Tensor) -> tuple[torch.Tensor, int]:
        return _NoBackward.apply(inputs), dims[0]


class _Doubled(torch.nn.Module):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return _NoBackward.apply(inputs)


@pytest.mark.parametrize("dropped", [False, True])
def test_forward_mode_trains_where_there_is_no_backward_pass(dropped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_NoBackward, "dropped", dropped)
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(6, 8), _Doubled(), torch.nn.Linear(8, 3))
    if dropped:
        with pytest.raises(ValueError, match="forward mode gives other slopes"):
            fga.train(network, DATA, "weight", epochs=1, autodiff="forward")
    else:
        run = fga.train(network, DATA, "weight", epochs=2, batch_size=30, autodiff="forward")
        assert np.isfinite(run.log["loss"]).all()
