import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import fganalysis as fga
from fganalysis.estimators import Estimator, label
from fganalysis.training import estimated_gradients, loop
from fganalysis.training.datasets import Dataset


def small_data(seed: int = 0) -> Dataset:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(90, 6, generator=generator)
    targets = (inputs[:, 0] > 0).long() + (inputs[:, 1] > 0).long()
    return Dataset(inputs[:60], targets[:60], inputs[60:], targets[60:])


DATA = small_data()
NETWORK = fga.networks.mlp([6, 8, 8, 3], bias=True, seed=0)
GRADIENTS = ["backpropagation", "activity"]


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("gradient", [*GRADIENTS, fga.estimators.ForwardDirectFeedback(rate=0.1)], ids=label)
def test_a_run_continued_from_any_checkpoint_is_the_same_run(gradient: str | Estimator, tmp_path: Path) -> None:
    def schedule(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        return torch.optim.lr_scheduler.StepLR(optimizer, 4, 0.5)

    def train(**settings: Any) -> loop.Run:
        return fga.train(NETWORK, DATA, gradient, epochs=3, batch_size=25, schedule=schedule, **settings)

    whole = train(checkpoints=[0, 4, 9], out=tmp_path)
    assert list(whole.checkpoints) == [0, 4, 9]
    for path in whole.checkpoints.values():
        assert same(train(continue_from=path).network, whole.network)


def test_a_stateful_estimator_learns_while_it_trains() -> None:
    still = fga.train(NETWORK, DATA, fga.estimators.ForwardDirectFeedback(rate=1e-12), epochs=2, batch_size=20)
    moving = fga.train(NETWORK, DATA, fga.estimators.ForwardDirectFeedback(rate=0.1), epochs=2, batch_size=20)
    # Feedback starts at zero: without learning, AdamW gives the hidden weights nothing but rounding to follow.
    assert not same(still.network, moving.network)


def test_the_network_given_is_not_changed_and_training_lowers_the_loss() -> None:
    before = [parameter.clone() for parameter in NETWORK.parameters()]
    adam = partial(torch.optim.Adam, lr=1e-2)
    run = fga.train(NETWORK, DATA, epochs=20, batch_size=20, optimizer=adam, log_every=10)
    assert all(torch.equal(a, b) for a, b in zip(before, NETWORK.parameters(), strict=True))
    assert float(run.log["loss"][-1]) < 0.5 * float(run.log["loss"][0])
    assert run.log["step"].values.tolist() == list(range(0, 61, 10))
    assert all(run.log[name].attrs["units"] for name in run.log.data_vars)


def test_the_backpropagation_estimator_trains_as_autograd_does() -> None:
    generator = torch.Generator().manual_seed(0)
    network = fga.networks.mlp([6, 8, 3], bias=True, seed=1)
    loss = fga.estimate_gradient(
        network, torch.nn.functional.cross_entropy, DATA.train_inputs, DATA.train_targets, "backpropagation", generator
    )
    guessed = [parameter.grad.clone() for parameter in network.parameters()]
    network.zero_grad()
    expected = torch.nn.functional.cross_entropy(network(DATA.train_inputs), DATA.train_targets)
    expected.backward()
    torch.testing.assert_close(loss, expected.detach())
    for one, parameter in zip(guessed, network.parameters(), strict=True):
        torch.testing.assert_close(one, parameter.grad, rtol=1e-4, atol=1e-7)


def test_training_does_not_touch_the_global_generators() -> None:
    torch_state, numpy_state = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    fga.train(NETWORK, DATA, "upstream", epochs=1, batch_size=30)
    torch.testing.assert_close(torch.random.get_rng_state(), torch_state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)


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
    network = torch.nn.Sequential(torch.nn.Linear(6, 8), _Doubled(), torch.nn.Linear(8, 3))
    if dropped:
        with pytest.raises(ValueError, match="forward mode gives other slopes"):
            fga.train(network, DATA, "weight", epochs=1, autodiff="forward")
    else:
        run = fga.train(network, DATA, "weight", epochs=2, batch_size=30, autodiff="forward")
        assert np.isfinite(run.log["loss"]).all()


def test_the_log_says_how_good_the_step_was() -> None:
    run = fga.train(NETWORK, DATA, "activity", epochs=4, batch_size=60, n_guesses=64, log_every=1)
    cosines = run.log["cosine"].values[:-1]
    assert (np.abs(cosines) <= 1).all() and cosines.mean() > 0.2
    assert (run.log["relative_error"].values[:-1] > 0).all()


@pytest.mark.parametrize("log_every", [2, 100])
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_a_diverging_run_stops_and_keeps_what_it_has(
    gradient: str, log_every: int, capsys: pytest.CaptureFixture[str]
) -> None:
    sgd = partial(torch.optim.SGD, lr=1e30)
    run = fga.train(NETWORK, DATA, gradient, epochs=20, batch_size=20, optimizer=sgd, log_every=log_every)
    assert "diverged by step" in capsys.readouterr().out
    assert run.log.sizes["step"] >= 1 and 0 < run.log.attrs["diverged_at_step"] < 30


def test_a_run_that_diverges_in_its_last_step_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    sgd = partial(torch.optim.SGD, lr=1e38)
    run = fga.train(NETWORK, DATA, "activity", epochs=1, batch_size=60, optimizer=sgd)
    assert "diverged by step 1" in capsys.readouterr().out and run.log.attrs["diverged_at_step"] == 1
    assert "diverged_at_step" not in fga.train(NETWORK, DATA, "activity", epochs=1).log.attrs


BAD = [
    ({"batch_size": 61}, "batch_size must be at most the 60 training examples, got 61"),
    ({"batch_size": 100_000}, "batch_size must be at most the 60 training examples, got 100000"),
    ({"epochs": 0}, "epochs must be a whole number of at least 1, got 0"),
    ({"epochs": 1.5}, "epochs must be a whole number of at least 1, got 1.5"),
    ({"seed": [0, 1]}, r"seed must be a whole number of at least 0, got \[0, 1\]"),
    ({"seed": -1}, "seed must be a whole number of at least 0, got -1"),
    ({"optimizer": torch.optim.LBFGS}, "LBFGS wants several gradients"),
    ({"autodiff": "foward", "gradient": "activity"}, "autodiff must be 'reverse' or 'forward', got 'foward'"),
    ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
    ({"n_guesses": 0}, "n_guesses must be a whole number of at least 1, got 0"),
    ({"checkpoints": [0]}, "checkpoints need a folder"),
    ({"checkpoints": [99], "out": "somewhere"}, "checkpoint at step 99 is outside the run, which ends at step 10"),
    ({"gradient": "guesswork"}, "unknown estimator 'guesswork'"),
    ({"continue_from": "nowhere.safetensors"}, "there is no checkpoint at nowhere"),
]
MESSAGE_LENGTH = 400


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_arguments_are_refused_in_one_sentence(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fga.train(NETWORK, DATA, **{"batch_size": 60} | arguments)


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("place", [0, -1])
def test_a_class_that_no_output_has_is_refused_wherever_it_stands(gradient: str, place: int) -> None:
    targets = DATA.train_targets.clone()
    targets[place] = 3
    with pytest.raises(ValueError, match=r"^targets must be class indices from 0 to 2, got 3$"):
        fga.train(NETWORK, replace(DATA, train_targets=targets), gradient, epochs=1, batch_size=20)


def test_a_checkpoint_beyond_the_last_step_is_refused(tmp_path: Path) -> None:
    run = fga.train(NETWORK, DATA, epochs=3, batch_size=20, checkpoints=[9], out=tmp_path)
    with pytest.raises(ValueError, match="is of step 9, but the run ends at step 6"):
        fga.train(NETWORK, DATA, epochs=2, batch_size=20, continue_from=run.checkpoints[9])


@pytest.mark.parametrize(
    "schedule",
    [
        partial(torch.optim.lr_scheduler.MultiStepLR, milestones=[2, 4], gamma=0.1),
        partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=6),
        partial(torch.optim.lr_scheduler.ReduceLROnPlateau, patience=0),
    ],
)
def test_a_schedule_goes_on_from_a_checkpoint(schedule: Any, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"epochs": 2, "batch_size": 20, "schedule": schedule}
    settings["optimizer"] = partial(torch.optim.SGD, lr=0.5)
    whole = fga.train(NETWORK, DATA, "activity", checkpoints=[1], out=tmp_path, **settings)
    assert same(
        fga.train(NETWORK, DATA, "activity", continue_from=whole.checkpoints[1], **settings).network, whole.network
    )


def test_several_seeds_are_several_runs(tmp_path: Path) -> None:
    def network(seed: int) -> torch.nn.Module:
        return fga.networks.mlp([6, 8, 3], seed=seed)

    log, runs = fga.train_seeds(network, DATA, "activity", seeds=[3, 5], epochs=1, checkpoints=[0], out=tmp_path)
    assert log["loss"].dims == ("seed", "step") and log["seed"].values.tolist() == [3, 5]
    alone = fga.train(network(5), DATA, "activity", epochs=1, seed=5)
    assert same(alone.network, runs[5].network) and not same(runs[3].network, runs[5].network)
    np.testing.assert_array_equal(log["loss"].sel(seed=5), alone.log["loss"])
    assert runs[3].checkpoints[0] != runs[5].checkpoints[0]
    with pytest.raises(ValueError, match="seeds must be different"):
        fga.train_seeds(network, DATA, seeds=[1, 1])


def test_the_batch_is_512_examples_or_all_there_are(tmp_path: Path) -> None:
    assert int(fga.train(NETWORK, DATA, epochs=2).log["step"][-1]) == 2
    many = Dataset(DATA.train_inputs.repeat(10, 1), DATA.train_targets.repeat(10), DATA.test_inputs, DATA.test_targets)
    assert int(fga.train(NETWORK, many, epochs=2).log["step"][-1]) == 4


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_frozen_weights_stay(gradient: str) -> None:
    network = copy.deepcopy(NETWORK)
    frozen = next(network.parameters()).requires_grad_(False)
    trained = fga.train(network, DATA, gradient, epochs=1)
    assert torch.equal(next(trained.network.parameters()), frozen) and not same(trained.network, network)


def test_a_weight_of_two_taps_is_refused() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.Tanh(), torch.nn.Linear(6, 6))
    network[2].weight = network[0].weight
    asked = (network, torch.nn.functional.cross_entropy, DATA.train_inputs, DATA.train_targets)
    with pytest.raises(ValueError, match="taps '0' and '2' share one weight"):
        fga.estimate_gradient(*asked, "backpropagation", torch.Generator())


@pytest.mark.parametrize("estimator", ["backpropagation", "activity", "weight"])
def test_gradients_accumulate_as_those_of_backward_do(estimator: str) -> None:
    network, loss_fn = copy.deepcopy(NETWORK), torch.nn.functional.cross_entropy

    def estimated(rows: slice, seed: int) -> list[torch.Tensor]:
        batch = DATA.train_inputs[rows], DATA.train_targets[rows]
        fga.estimate_gradient(network, loss_fn, *batch, estimator, torch.Generator().manual_seed(seed))
        return [parameter.grad.clone() for parameter in network.parameters()]

    parts = []
    for seed, rows in enumerate((slice(0, 20), slice(20, 60))):
        network.zero_grad()
        parts.append(estimated(rows, seed))
    network.zero_grad()
    estimated(slice(0, 20), 0)
    kept = [parameter.grad for parameter in network.parameters()]
    both = estimated(slice(20, 60), 1)
    for one, other, total, tensor in zip(*parts, both, kept, strict=True):
        torch.testing.assert_close(total, one + other)
        assert torch.equal(tensor, total)  # In place, so that what looks at .grad sees it.


def test_two_halves_of_a_batch_leave_the_gradient_of_the_whole() -> None:
    network, loss_fn = copy.deepcopy(NETWORK), torch.nn.functional.cross_entropy
    exact = torch.autograd.grad(loss_fn(network(DATA.train_inputs), DATA.train_targets), [*network.parameters()])
    for rows in (slice(0, 30), slice(30, 60)):
        fga.estimate_gradient(
            network,
            lambda outputs, targets: loss_fn(outputs, targets) / 2,
            DATA.train_inputs[rows],
            DATA.train_targets[rows],
            "backpropagation",
            torch.Generator(),
        )
    for parameter, gradient in zip(network.parameters(), exact, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-7)


def test_a_network_and_a_loss_are_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[torch.nn.Module] = []
    check = estimated_gradients.checked_for_training

    def counted(network: torch.nn.Module, *arguments: Any, **settings: Any) -> Any:
        checked.append(network)
        return check(network, *arguments, **settings)

    monkeypatch.setattr(estimated_gradients, "checked_for_training", counted)
    network, other = copy.deepcopy(NETWORK), copy.deepcopy(NETWORK)
    batch = DATA.train_inputs, DATA.train_targets
    for _ in range(3):  # A function made anew in every step is the same code.
        fga.estimate_gradient(network, lambda o, t: F.cross_entropy(o, t), *batch, "activity", torch.Generator())
    assert len(checked) == 1
    fga.estimate_gradient(network, torch.nn.CrossEntropyLoss(), *batch, "activity", torch.Generator())
    fga.estimate_gradient(other, torch.nn.CrossEntropyLoss(), *batch, "activity", torch.Generator())
    assert len(checked) == 3
    with pytest.raises(ValueError, match="not a mean over examples"):
        fga.estimate_gradient(other, lambda o, t: F.cross_entropy(o, t).sqrt(), *batch, "activity", torch.Generator())


class _LoRA(torch.nn.Module):
    """A frozen Linear module beside two small ones that are trained."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.head = torch.nn.Linear(6, 8), torch.nn.Linear(8, 3, bias=False)
        self.down, self.up = torch.nn.Linear(6, 2, bias=False), torch.nn.Linear(2, 8, bias=False)
        self.scale = torch.nn.Parameter(torch.ones(8), requires_grad=False)
        self.base.requires_grad_(False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.scale * (self.base(inputs) + self.up(self.down(inputs)))))


@pytest.mark.parametrize("gradient", [*GRADIENTS, "weight"])
def test_a_network_of_frozen_and_trained_weights_trains_and_leaves_the_frozen_ones(gradient: str) -> None:
    network = _LoRA()
    for optimizer in (torch.optim.SGD, partial(torch.optim.AdamW, lr=0.1, weight_decay=1.0)):
        run = fga.train(network, DATA, gradient, epochs=2, batch_size=20, optimizer=optimizer)
        trained = dict(run.network.named_parameters())
        for name, parameter in network.named_parameters():
            assert torch.equal(parameter, trained[name]) == (not parameter.requires_grad), name


def test_looking_at_a_network_does_not_change_its_training() -> None:
    torch.manual_seed(0)
    layers = torch.nn.Linear(6, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU(), torch.nn.Dropout(0.5)
    network = torch.nn.Sequential(*layers, torch.nn.Linear(8, 3))

    def trained(log_every: int) -> torch.nn.Module:
        torch.manual_seed(0)
        return fga.train(network, DATA, epochs=2, batch_size=20, log_every=log_every).network

    often, seldom = trained(1), trained(100)
    for name, value in often.state_dict().items():
        assert torch.equal(value, seldom.state_dict()[name]), name
    assert all(module.training for module in often.modules())


BAD_BATCHES = [
    ({"n_guesses": 0}, "n_guesses must be a whole number of at least 1, got 0"),
    ({"autodiff": "foward"}, "autodiff must be 'reverse' or 'forward', got 'foward'"),
    ({"inputs": torch.zeros(0, 6), "targets": torch.zeros(0).long()}, "the batch is empty"),
    ({"network": torch.nn.Sequential(torch.nn.Linear(6, 3), torch.nn.Dropout())}, "is dropout in training mode"),
    ({"autodiff": "forward", "estimator": "minibatch"}, "trains without a backward pass"),
]


@pytest.mark.parametrize(("changed", "message"), BAD_BATCHES)
def test_a_loop_of_ones_own_is_refused_in_one_sentence(changed: dict, message: str) -> None:
    asked = {"network": NETWORK, "loss_fn": torch.nn.functional.cross_entropy, "estimator": "activity"}
    asked |= {"inputs": DATA.train_inputs, "targets": DATA.train_targets, "generator": torch.Generator()}
    with pytest.raises(ValueError, match=message):
        fga.estimate_gradient(**(asked | changed))


def test_a_parameter_outside_every_tap_is_refused() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 3))
    with pytest.raises(ValueError, match=r"parameter '1\.weight' is in no Linear module"):
        fga.train(network, DATA, "activity", epochs=1)
    assert np.isfinite(fga.train(network, DATA, epochs=1).log["loss"]).all()
