"""A finite difference is that of real losses, whatever the forward pass, and leaves the weights alone."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fganalysis as fga
from fganalysis.capturing.capture import freeze
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import FiniteDifference
from tests import laws
from tests.unit.estimators.losses_of_weights import single_precision


def assert_differences_of_real_losses(snapshot: Snapshot, central: bool) -> None:
    """Each guess's slope from losses of copies of the network whose weights were moved by hand."""
    found = FiniteDifference(0.05, central)(snapshot, 4, torch.Generator().manual_seed(0))
    for guess in range(4):

        def loss_at(step: float, guess: int = guess) -> Tensor:
            network = copy.deepcopy(snapshot.network)
            parameters = dict(network.named_parameters())
            with torch.no_grad():
                for tap, direction in zip(snapshot.taps, found.directions, strict=True):
                    for name, part in tap.by_parameter(direction[guess]).items():
                        parameters[name].add_(part, alpha=step)
                return snapshot.loss_fn(network(snapshot.inputs), snapshot.targets)

        far = loss_at(-0.05) if central else loss_at(0.0)
        slope = (loss_at(0.05) - far) / (0.1 if central else 0.05)
        torch.testing.assert_close(found.coefficients[guess], slope.expand(len(snapshot.taps)))


@pytest.mark.parametrize("central", [False, True])
def test_a_guess_is_the_difference_of_real_losses_and_leaves_the_weights_alone(central: bool) -> None:
    snapshot = laws.tiny_snapshot((3, 4, 2), bias=True, activation=nn.ReLU)
    before = {name: value.clone() for name, value in snapshot.network.state_dict().items()}
    assert_differences_of_real_losses(snapshot, central)
    for name, value in snapshot.network.state_dict().items():
        assert torch.equal(value, before[name])


class Padded(nn.Module):
    """Writes into an array of its own making."""

    def forward(self, hidden: Tensor) -> Tensor:
        wide = torch.zeros(len(hidden), hidden.shape[1], dtype=hidden.dtype)
        wide[:, :3] = torch.tanh(hidden[:, :3])
        return wide


class Masked(nn.Module):
    def forward(self, hidden: Tensor) -> Tensor:
        out = hidden.clone()
        out[hidden < 0] = 0.1 * hidden[hidden < 0]
        return out


class Branching(nn.Module):
    def forward(self, hidden: Tensor) -> Tensor:
        return torch.tanh(hidden) if hidden.square().mean().item() < 100 else hidden


class Counting(nn.Module):
    """Counts in a buffer, and would explode with the count if that were kept."""

    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    def forward(self, hidden: Tensor) -> Tensor:
        self.count += 1
        return torch.tanh(hidden) * torch.where(self.count > 50, 1e6, 1.0)


def by_numbers(outputs: Tensor, targets: Tensor) -> Tensor:
    """The squared error, of a branch that no batch of losses can take."""
    error = (outputs - targets).square().mean()
    return error if error.item() >= 0 else -error


@pytest.mark.parametrize("central", [False, True])
@pytest.mark.parametrize(
    ("between", "loss_fn"),
    [(module, nn.functional.mse_loss) for module in (Padded, Masked, Branching, Counting)] + [(nn.Tanh, by_numbers)],
)
def test_a_forward_pass_or_loss_that_no_batch_can_take_is_evaluated_guess_by_guess(
    between: Callable[[], nn.Module], loss_fn: Callable[[Tensor, Tensor], Tensor], central: bool
) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), between(), nn.Linear(4, 2)).double()
    inputs, targets = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    snapshot = fga.capture(network, loss_fn, inputs, targets)
    before = {name: value.clone() for name, value in snapshot.network.state_dict().items()}
    for _ in range(5):  # What a buffer keeps would be over its limit by then.
        assert_differences_of_real_losses(snapshot, central)
    for name, value in snapshot.network.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_batch_that_gives_other_losses_is_not_used() -> None:
    """A pass that tells a batch of networks from one, as code that looks at its surroundings may."""

    class Otherwise(nn.Module):
        def forward(self, hidden: Tensor) -> Tensor:
            return torch.tanh(hidden) * (2 if torch._C._functorch.is_batchedtensor(hidden) else 1)

    network = nn.Sequential(nn.Linear(3, 4), Otherwise(), nn.Linear(4, 2)).double()
    inputs = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert_differences_of_real_losses(fga.capture(network, nn.functional.mse_loss, inputs, inputs[:, :2]), True)


def test_frozen_weights_are_not_moved() -> None:
    """As in fine-tuning of a few: what is frozen has no columns in a guess, and its loss is that of frozen weights."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    network[0].requires_grad_(False)
    network[2].weight.requires_grad_(False)
    network[4].bias.requires_grad_(False)
    inputs, targets = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    snapshot = fga.capture(network, nn.functional.mse_loss, inputs, targets)
    assert_differences_of_real_losses(snapshot, True)
    for estimator in (FiniteDifference(), fga.estimators.WeightPerturbation(), fga.estimators.MultiTangent(k=2)):
        guess = estimator(snapshot, 2, torch.Generator().manual_seed(0))
        assert guess.numbers_per_guess() == 4 + 8
        assert fga.check_unbiased(estimator, snapshot, tolerance=0.5).outcome == "unbiased"


def test_threads_do_not_see_each_others_weights() -> None:
    snapshot = laws.tiny_snapshot((3, 8, 2))
    one, two = (
        fga.sample(snapshot, "finite_difference", n_guesses=256, block_size=4, workers=workers) for workers in (1, 2)
    )
    np.testing.assert_array_equal(one.inner_product, two.inner_product)


@pytest.mark.parametrize("central", [False, True])
def test_a_seed_and_a_slope_are_the_guess(central: bool) -> None:
    """The directions are all that is drawn, so that they are had again from the generator's state, bit for bit."""
    snapshot, estimator = laws.tiny_snapshot((3, 4, 2), bias=True), FiniteDifference(1e-3, central)
    generator = torch.Generator().manual_seed(5)
    state = generator.get_state()
    found = estimator(snapshot, 3, generator)
    again = torch.Generator()
    again.set_state(state)
    for direction, z in zip(found.directions, estimator.draw(snapshot, 3, again), strict=True):
        assert torch.equal(direction, z)
    assert torch.equal(generator.get_state(), again.get_state())


def test_a_loss_that_is_flat_has_slopes_of_zero() -> None:
    def flat(outputs: Tensor, targets: Tensor) -> Tensor:
        return (0 * outputs).mean()

    snapshot = single_precision(nn.functional.cross_entropy)
    snapshot = freeze(snapshot.network, flat, snapshot.inputs, snapshot.targets, autodiff="reverse", step=0)
    for epsilon in (1e-6, 1e-3):
        found = FiniteDifference(epsilon)(snapshot, 3, torch.Generator().manual_seed(0))
        assert not found.coefficients.any()
