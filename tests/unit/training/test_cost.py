"""What cost() measures of training steps, and what it says where it cannot."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import fganalysis as fga
from fganalysis.estimators import Minibatch, OrthogonalUpstream, from_function
from fganalysis.training import cost as cost_module
from fganalysis.training import timing
from fganalysis.training.timed_steps import OneBatch, with_checkpoints
from tests.refusals import refusal

NETWORK = fga.networks.mlp([4, 6, 5, 3], bias=False, seed=0)
GENERATOR = torch.Generator().manual_seed(0)
MINIBATCH = "minibatch(size=100)"
BATCH = (torch.randn(8, 4, generator=GENERATOR), torch.arange(8) % 3)


def mine(network: Any, loss_fn: Any, inputs: Any, targets: Any, generator: Any) -> dict[str, torch.Tensor]:
    names = dict(network.named_parameters())
    return dict(zip(names, torch.autograd.grad(loss_fn(network(inputs), targets), list(names.values())), strict=True))


@pytest.fixture(scope="module")
def measured() -> xr.Dataset:
    estimators = ["activity", OrthogonalUpstream(k=2), Minibatch(size=100), from_function(mine)]
    return fga.cost(NETWORK, BATCH, estimators, n_guesses=[1, 3], rounds=6)


def test_every_step_beside_backpropagation_with_intervals(measured: xr.Dataset) -> None:
    fga.schema.validate(measured)
    names = ["backpropagation", "backpropagation, checkpointed", "activity", "orthogonal(k=2)", MINIBATCH, "mine"]
    assert list(measured["estimator"].values) == names
    assert dict(measured.sizes) == {"estimator": 6, "averaged": 2, "round": 6}
    times = measured.sel(estimator=[name for name in names if name != MINIBATCH])
    for name in ("seconds", "relative_seconds"):
        assert (times[f"{name}_low"] <= times[name]).all() and (times[name] <= times[f"{name}_high"]).all()
        assert (times[f"{name}_low"] > 0).all()
    bounds = times["seconds_of_rounds"].min("round"), times["seconds_of_rounds"].max("round")  # Of six rounds.
    np.testing.assert_array_equal(times["seconds_low"], bounds[0])
    np.testing.assert_array_equal(times["seconds_high"], bounds[1])
    ratios = times["seconds_of_rounds"] / times["seconds_of_rounds"].sel(estimator="backpropagation")
    np.testing.assert_array_equal(times["relative_seconds"], ratios.median("round"))
    assert (times["peak_memory"] > 0).all()
    for name in ("relative_seconds", "relative_peak_memory", "relative_passes"):
        assert (measured[name].sel(estimator="backpropagation") == 1).all()


def test_passes_as_the_estimators_state_them(measured: xr.Dataset) -> None:
    passes = measured["passes"]
    np.testing.assert_array_equal(passes.sel(estimator="backpropagation"), [3, 3])
    np.testing.assert_array_equal(passes.sel(estimator="backpropagation, checkpointed"), [4, 4])
    np.testing.assert_array_equal(passes.sel(estimator="activity"), [3, 5])
    activity = measured.sel(estimator="activity", averaged=3)
    names = ("forward_passes", "tangent_passes", "backward_passes", "layer_products")
    assert [float(activity[name]) for name in names] == [1, 3, 0, 1]
    assert measured["relative_passes"].sel(estimator="activity", averaged=3) == 5 / 3
    assert passes.sel(estimator="mine").isnull().all()
    beside = json.loads(measured.attrs["beside_passes"])
    assert beside == {"orthogonal(k=2)": "singular vectors of every example's upstream Jacobian"}


def test_what_cannot_be_measured_is_nan_with_its_reason(measured: xr.Dataset) -> None:
    without = measured.sel(estimator=MINIBATCH)
    assert without["seconds"].isnull().all() and without["peak_memory"].isnull().all()
    reasons = json.loads(measured.attrs["not_measured"])
    assert reasons == {MINIBATCH: "size must be at most the batch's 8 examples, got 100"}
    alone = fga.cost(nn.Linear(4, 3), BATCH, "weight", rounds=6)
    assert alone["seconds"].sel(estimator="backpropagation, checkpointed").isnull().all()
    assert "has no parts" in json.loads(alone.attrs["not_measured"])["backpropagation, checkpointed"]
    message = refusal(lambda: fga.cost(NETWORK, BATCH, Minibatch(size=100)))
    assert message == "size must be at most the batch's 8 examples, got 100"


def test_forward_mode_runs_no_backward_pass_and_the_network_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {name: value.clone() for name, value in NETWORK.state_dict().items()}
    backward: list[object] = []
    plain = torch.autograd.grad

    def watched(*arguments: Any, **keywords: Any) -> Any:
        backward.append(arguments)
        return plain(*arguments, **keywords)

    monkeypatch.setattr(OneBatch, "checkpointed", lambda self: self.backpropagation())
    monkeypatch.setattr(torch.autograd, "grad", watched)
    dataset = fga.cost(NETWORK, BATCH, ["weight", "minibatch"], autodiff="forward", rounds=6)
    assert not backward
    assert dataset["seconds"].sel(estimator="weight").notnull().all()
    assert "forward" in json.loads(dataset.attrs["not_measured"])["minibatch"]
    assert all(torch.equal(before[name], value) for name, value in NETWORK.state_dict().items())
    assert all(parameter.grad is None for parameter in NETWORK.parameters())


def test_the_memory_of_known_allocations() -> None:
    kept: list[torch.Tensor] = []

    def step() -> None:
        first = torch.zeros(1000, dtype=torch.float64)
        second = first + 1
        del first
        kept.append(second[:500] * 2)

    assert 16000 <= timing.peak_memory(step, torch.device("cpu")) < 16100  # Numbers such as 1 are tensors too.
    assert timing.peak_memory(lambda: None, torch.device("cpu")) == 0


def test_checkpoints_hold_less_and_run_the_forward_pass_twice() -> None:
    layers = [layer for _ in range(40) for layer in (nn.Linear(8, 8), nn.Tanh())]
    network, inputs = nn.Sequential(*layers, nn.Linear(8, 3)), torch.randn(512, 8)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    one_batch = OneBatch(network, nn.functional.cross_entropy, inputs, torch.arange(512) % 3, optimizer)
    plain, checkpointed = one_batch.backpropagation(), one_batch.checkpointed()
    counted = []
    for step in (plain, checkpointed):
        step()
        with FlopCounterMode(display=False) as meter:
            step()
        counted.append(meter.get_total_flops())
    assert 1.25 < counted[1] / counted[0] < 4 / 3 + 0.02
    gradients = []
    for step in (plain, checkpointed):
        network.zero_grad()
        peak = timing.peak_memory(step, torch.device("cpu"))
        gradients.append((peak, torch.cat([parameter.grad.flatten() for parameter in network.parameters()])))
    torch.testing.assert_close(gradients[0][1], gradients[1][1])
    assert gradients[1][0] < 0.5 * gradients[0][0]


def test_checkpoints_of_networks_of_other_forms() -> None:
    class Blocks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(2))
            self.last = nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for block in self.blocks:
                x = x + block(x)
            return self.last(x)

    class Changing(nn.Module):
        calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return x * self.calls

    def step(network: nn.Module) -> Any:
        optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
        return OneBatch(network, nn.functional.cross_entropy, *BATCH, optimizer).checkpointed()

    network = Blocks()
    assert all(a is b for a, b in zip(network.parameters(), with_checkpoints(network).parameters(), strict=True))
    step(network)()
    step(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)))()
    others = [layer for _ in range(3) for layer in (nn.Linear(4, 4), nn.Tanh())]
    message = refusal(lambda: step(nn.Sequential(nn.Linear(4, 4), Changing(), *others, nn.Linear(4, 3))))
    assert message is not None and "does not return the same twice" in message


def test_steps_are_timed_in_turn_and_what_runs_before_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, calls = [0.0], []

    def step(name: str, seconds: float) -> Any:
        def run() -> None:
            calls.append(name)
            clock[0] += seconds

        return run

    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
    times = timing.seconds_in_turn(
        {"a": step("a", 1), "b": step("b", 2)},
        3,
        takes_part=lambda name, turn: name == "a" or turn < 1,
        before=step("before", 10),
    )
    np.testing.assert_array_equal(times, [[1, 1, 1], [2, np.nan, np.nan]])
    assert calls == ["before", "a", "before", "b", "before", "a", "before", "a"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"batch": BATCH[0]}, "batch must be a pair (inputs, targets), got a tensor of shape (8, 4) and float32"),
        ({"n_guesses": []}, "n_guesses must be a whole number or several different ones, got []"),
        ({"n_guesses": [2, 2]}, "n_guesses must be a whole number or several different ones, got [2, 2]"),
        ({"n_guesses": 0}, "n_guesses must be a whole number of at least 1, got 0"),
        ({"rounds": 5}, "rounds must be a whole number of at least 6, got 5"),
        ({"autodiff": "both"}, "autodiff must be 'reverse' or 'forward', got 'both'"),
        ({"seed": -1}, "seed must be a whole number of at least 0, got -1"),
        ({"estimators": ["weight", "weight"]}, "estimators must be different ones and at least one"),
        ({"estimators": "wieght"}, "unknown estimator 'wieght'; known ones"),
        ({"optimizer": torch.optim.LBFGS}, "LBFGS wants several gradients"),
        ({"network": "mlp"}, "network must be"),
        ({"loss_fn": 3}, "loss_fn must be"),
    ],
)
def test_wrong_calls_are_refused_in_a_sentence(changed: dict[str, Any], message: str) -> None:
    given = {"network": NETWORK, "batch": BATCH, "estimators": "weight"} | changed
    found = refusal(lambda: fga.cost(**given))
    assert found is not None and found.startswith(message)


def test_the_labels_of_what_is_always_measured_are_no_estimator_of_the_table() -> None:
    assert cost_module.CHECKPOINTED not in fga.estimators.ESTIMATORS
    assert fga.estimators.label("backpropagation") == cost_module.PLAIN
