"""Batches in tuples and dicts, and parameters of no tap, in training with guesses."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fganalysis as fga
from fganalysis.capturing.batch import first_examples
from fganalysis.capturing.capture import freeze
from fganalysis.training import estimated_gradients
from tests.unit.training.small_run import DATA

EXAMPLES = 100
AS_AUTOGRAD = {"rtol": 1e-4, "atol": 1e-7}


class Product(nn.Module):
    """A bilinear layer of two inputs, the second in columns, around which a mask of positions is added."""

    def __init__(self) -> None:
        super().__init__()
        self.product = nn.Bilinear(2, 3, 4)
        self.read = nn.Linear(4, 3)

    def forward(self, left: Tensor, right: Tensor, mask: Tensor) -> dict[str, Tensor]:
        return {"classes": self.read(torch.tanh(self.product(left, right.T) + mask))}


def seeded(make: Any) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


def of_parts(outputs: dict[str, Tensor], targets: tuple[Tensor, Tensor]) -> Tensor:
    classes, numbers = targets
    return F.cross_entropy(outputs["classes"], classes) + F.mse_loss(outputs["classes"], numbers)


def batch(n_examples: int = EXAMPLES) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"left": (n_examples, 2), "right": (3, n_examples), "mask": (4,)}
    inputs = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    classes = torch.randint(3, (n_examples,), generator=generator)
    return inputs, (classes, torch.randn(n_examples, 3, generator=generator))


@pytest.mark.parametrize("as_tuple", [False, True])
@pytest.mark.parametrize("autodiff", ["reverse", "forward"])
def test_inputs_in_tuples_and_dicts_are_trained_on_as_captured(as_tuple: bool, autodiff: Any) -> None:
    network = seeded(Product)
    given, targets = batch()
    inputs: Any = tuple(given.values()) if as_tuple else given
    if autodiff == "reverse":
        loss = fga.estimate_gradient(network, of_parts, inputs, targets, "backpropagation", torch.Generator())
        exact = of_parts(network(**given), targets)
        torch.testing.assert_close(loss, exact.detach())
        gradients = torch.autograd.grad(exact, [*network.parameters()])
        for parameter, gradient in zip(network.parameters(), gradients, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, **AS_AUTOGRAD)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.02)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        step = fga.estimate_gradient(
            network, of_parts, inputs, targets, "activity", generator, n_guesses=4, autodiff=autodiff
        )
        losses.append(float(step))
        optimizer.step()
    assert sum(losses[-5:]) < 0.95 * sum(losses[:5])


def test_the_checks_see_the_same_first_examples_of_every_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Any, Any]] = []
    check = estimated_gradients.checked_for_training

    def kept(network: nn.Module, loss_fn: Any, inputs: Any, targets: Any, **settings: Any) -> Any:
        seen.append((inputs, targets))
        return check(network, loss_fn, inputs, targets, **settings)

    monkeypatch.setattr(estimated_gradients, "checked_for_training", kept)
    network, (inputs, targets) = seeded(Product), batch()
    fga.estimate_gradient(network, of_parts, inputs, targets, "activity", torch.Generator())
    ((some, wanted),) = seen
    assert torch.equal(some["left"], inputs["left"][:64]) and torch.equal(some["right"], inputs["right"][:, :64])
    assert some["mask"] is inputs["mask"]
    assert all(torch.equal(part, whole[:64]) for part, whole in zip(wanted, targets, strict=True))


def test_a_batch_is_checked_whole_where_its_axis_of_examples_is_not_known() -> None:
    tokens, square, rows = torch.zeros(80, 5), torch.zeros(80, 80), torch.zeros(80 * 5)
    assert first_examples((tokens, tokens[:, 0]), 80, 64)[0].shape == (64, 5)
    assert first_examples((tokens, square), 80, 64) is None
    assert first_examples((tokens, rows), 80, 64) is None
    assert first_examples((tokens, rows), 80, 80)[1] is rows


class WithToken(nn.Module):
    """A token and positions of no module, beside two that are taps."""

    def __init__(self, units: int = 4) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, units))
        self.positions = nn.Parameter(torch.randn(3, units))
        self.first, self.read = nn.Linear(2, units), nn.Linear(units, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        cut = self.first(inputs.unflatten(1, (2, -1)) if inputs.shape[1] == 4 else inputs.unflatten(1, (-1, 2))[:, :2])
        tokens = torch.cat([self.token.expand(len(inputs), -1, -1), cut], 1) + self.positions
        return self.read(torch.tanh(tokens).mean(1))


UNTAPPED = ("token", "positions")


def small_batch() -> tuple[Tensor, Tensor]:
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(1)), torch.arange(6) % 3


@pytest.mark.parametrize("estimator", ["activity", "upstream", fga.estimators.OrthogonalUpstream(k=2)])
def test_a_parameter_of_no_tap_is_refused_by_name(estimator: Any) -> None:
    network = seeded(WithToken)
    asked = (network, F.cross_entropy, *small_batch(), estimator, torch.Generator())
    with pytest.raises(ValueError, match=r"parameter 'token' is in no tap.*untapped='perturb'"):
        fga.estimate_gradient(*asked)
    with pytest.raises(ValueError, match=r"parameter 'token' is in no tap.*untapped='perturb'"):
        fga.train(network, DATA, estimator, epochs=1)
    with pytest.raises(ValueError, match="untapped must be 'refuse' or 'perturb', got 'ignore'"):
        fga.estimate_gradient(*asked, untapped="ignore")
    with pytest.raises(ValueError, match="untapped must be 'refuse' or 'perturb', got None"):
        fga.train(network, DATA, estimator, epochs=1, untapped=None)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_backpropagation_and_guesses_at_weights_have_every_parameter() -> None:
    network = seeded(WithToken)
    inputs, targets = small_batch()
    exact = torch.autograd.grad(F.cross_entropy(network(inputs), targets), [*network.parameters()])
    fga.estimate_gradient(network, F.cross_entropy, inputs, targets, "backpropagation", torch.Generator())
    for parameter, gradient in zip(network.parameters(), exact, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, **AS_AUTOGRAD)
    network.zero_grad()
    fga.estimate_gradient(network, F.cross_entropy, inputs, targets, "weight", torch.Generator())
    assert all(bool(parameter.grad.any()) for parameter in network.parameters())


@pytest.mark.parametrize("autodiff", ["reverse", "forward"])
def test_parameters_of_no_tap_that_are_perturbed_have_guesses_without_bias(autodiff: Any) -> None:
    """The mean of n guesses (V·G)V has the variance (P + 1)‖G‖²/n, P the number of parameters of no tap."""
    network = seeded(WithToken).double()
    inputs, targets = small_batch()
    inputs = inputs.double()
    untapped = [network.get_parameter(name) for name in UNTAPPED]
    exact = torch.autograd.grad(F.cross_entropy(network(inputs), targets), untapped)
    n_parameters, n_guesses = sum(gradient.numel() for gradient in exact), 20_000
    fga.estimate_gradient(
        network, F.cross_entropy, inputs, targets, "activity", torch.Generator().manual_seed(0),
        n_guesses=n_guesses, autodiff=autodiff, untapped="perturb",
    )  # fmt: skip
    guessed = torch.cat([parameter.grad.flatten() for parameter in untapped])
    gradient = torch.cat([part.flatten() for part in exact])
    error = (guessed - gradient).norm() / gradient.norm()
    expected = ((n_parameters + 1) / n_guesses) ** 0.5  # 0.029: a factor of 1.1 would be seen.
    assert 0.5 * expected < float(error) < 1.7 * expected


def test_guesses_at_the_taps_are_the_same_with_and_without_a_parameter_of_no_tap() -> None:
    network = seeded(WithToken)
    asked = (F.cross_entropy, *small_batch(), "activity")
    fga.estimate_gradient(network, *asked, torch.Generator().manual_seed(0), untapped="perturb")
    with_it = network.first.weight.grad.clone()
    network.zero_grad()
    network.token.requires_grad_(False)
    network.positions.requires_grad_(False)
    fga.estimate_gradient(network, *asked, torch.Generator().manual_seed(0))
    assert torch.equal(network.first.weight.grad, with_it)


def test_train_perturbs_parameters_of_no_tap(tmp_path: Any) -> None:
    data = dataclasses.replace(
        DATA, train_inputs=DATA.train_inputs[:, :4].contiguous(), test_inputs=DATA.test_inputs[:, :4].contiguous()
    )
    network = seeded(WithToken)
    settings: dict[str, Any] = {"untapped": "perturb", "out": tmp_path, "log_every": 1, "batch_size": 20}
    settings["optimizer"] = lambda parameters: torch.optim.SGD(parameters, lr=0.05)
    run = fga.train(network, data, "activity", epochs=4, checkpoints=[6], **settings)
    assert bool(run.log["loss"].notnull().all()) and "diverged_at_step" not in run.log.attrs
    for name, parameter in run.network.named_parameters():
        assert not torch.equal(parameter, network.get_parameter(name)), name
    again = fga.train(network, data, "activity", epochs=4, continue_from=run.checkpoints[6], **settings)
    assert all(torch.equal(a, b) for a, b in zip(run.network.parameters(), again.network.parameters(), strict=True))
    with pytest.raises(ValueError, match="untapped was perturb and is nothing here"):
        fga.train(
            network, data, "activity", epochs=4, continue_from=run.checkpoints[6], **(settings | {"untapped": "refuse"})
        )


class Stepping(nn.Module):
    """Calls one module a position."""

    def __init__(self) -> None:
        super().__init__()
        self.step, self.read = nn.Linear(5, 3), nn.Linear(3, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        state = inputs.new_zeros(len(inputs), 3)
        for position in inputs.unbind(1):
            state = torch.tanh(self.step(torch.cat([state, position], 1)))
        return self.read(state)


def test_a_module_that_is_called_more_often_in_a_later_batch_has_all_its_gradient() -> None:
    network = seeded(Stepping)
    generator = torch.Generator().manual_seed(0)
    for length in (2, 4, 3):
        network.zero_grad()
        inputs, targets = torch.randn(6, length, 2, generator=generator), torch.arange(6) % 3
        exact = torch.autograd.grad(F.cross_entropy(network(inputs), targets), [*network.parameters()])
        fga.estimate_gradient(network, F.cross_entropy, inputs, targets, "backpropagation", generator)
        for parameter, gradient in zip(network.parameters(), exact, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, **AS_AUTOGRAD)


class Routed(nn.Module):
    """Positions go to one of two modules, by their first number."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(2, 3), nn.Linear(2, 3)])
        self.read = nn.Linear(3, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        positions = inputs.flatten(0, 1)
        hidden = positions.new_zeros(len(positions), 3)
        for expert, chosen in zip(self.experts, (positions[:, 0] > 0, positions[:, 0] <= 0), strict=True):
            hidden = hidden.index_put((chosen.nonzero()[:, 0],), expert(positions[chosen]))
        return self.read(torch.tanh(hidden).unflatten(0, (len(inputs), -1)).mean(1))


def test_rows_that_the_data_choose_are_given_to_their_examples_in_every_batch() -> None:
    network = seeded(Routed).double()
    inputs = torch.randn(3, 8, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    targets = torch.arange(3)
    plan = fga.capture(network, F.cross_entropy, inputs, targets).plan
    other = inputs.flip(1).roll(1, 0)  # As many positions to each expert, of other examples.
    asked = (network, F.cross_entropy, other, targets)
    frozen, captured = freeze(*asked, autodiff="reverse", step=0, plan=plan), fga.capture(*asked)
    assert [tap.name for tap in frozen.taps] == ["experts.0", "experts.1", "read"]
    for tap, expected in zip(frozen.taps, captured.taps, strict=True):
        assert tap.owners is not None and expected.owners is not None
        assert torch.equal(tap.owners.examples, expected.owners.examples)


def test_a_network_is_checked_again_where_its_modes_or_frozen_parameters_change() -> None:
    network = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)).eval()
    network[0].requires_grad_(False)
    inputs, targets = small_batch()
    asked = (network, F.cross_entropy, inputs, targets, "activity", torch.Generator())
    fga.estimate_gradient(*asked)
    assert network[0].weight.grad is None
    network[0].requires_grad_(True)
    fga.estimate_gradient(*asked)
    assert bool(network[0].weight.grad.any())
    network.train()
    with pytest.raises(ValueError, match="'1' is BatchNorm in training mode"):
        fga.estimate_gradient(*asked)


class Answer(nn.Module):
    """A network that returns a dict, for `train`."""

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        return {"logits": self.read(inputs)}


@pytest.mark.parametrize("autodiff", ["reverse", "forward"])
def test_train_takes_networks_that_return_no_tensor(autodiff: Any) -> None:
    def loss_fn(outputs: dict[str, Tensor], targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs["logits"], targets)

    run = fga.train(seeded(Answer), DATA, "activity", epochs=2, loss_fn=loss_fn, autodiff=autodiff)
    assert bool(run.log["loss"].notnull().all()) and bool(run.log["test_accuracy"].isnull().all())
