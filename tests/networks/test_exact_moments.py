"""The exact moments against enumeration of every sign, the closed form over rows, and wrong versions of themselves."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.networks.brute_force import example_slopes, gradient, pulled_back, taps, untapped
from tests.networks.exact_moments import SHARED, Dense, dense, moments
from tests.networks.zoo import EXAMPLES, ZOO, Case, build, class_parts, normal

EXACT = {"rtol": 1e-10, "atol": 1e-13}


class Halves(nn.Module):
    """Two linear layers, the second called on both halves of the first one's output."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(1, 2)
        self.second = nn.Linear(1, 1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        left, right = torch.tanh(self.first(inputs)).chunk(2, 1)
        return torch.cat([self.second(left), self.second(right).square()], 1)


@pytest.mark.parametrize("slope", ["example", "batch"])
def test_moments_are_those_of_every_sign(slope: str) -> None:
    case = Case(build(Halves), functional.cross_entropy, normal(2, 1), torch.tensor([0, 1]), class_parts)
    known = dense(case, ["first", "second"])
    assert known.owners.tolist() == [0, 0, 1, 1, 0, 1, 0, 1]
    found = moments(known, slope, kurtosis=1.0)
    guesses: dict[str, list[torch.Tensor]] = {name: [] for name in found}
    # A direction and its opposite make the same guess: the first sign may stay.
    for signs in itertools.product((-1.0, 1.0), repeat=7):
        noise = torch.tensor([1.0, *signs], dtype=torch.float64)
        first, left, right = noise[:4].reshape(2, 2), noise[4:6].reshape(2, 1), noise[6:].reshape(2, 1)
        directions = {"first": [[first]], "second": [[left], [right]]}
        slopes = example_slopes(case.network, case.parts, case.inputs, case.targets, directions)[:, None]
        slopes = slopes if slope == "example" else slopes.sum().expand(2, 1)
        at_outputs = {"first": [[first * slopes]], "second": [[left * slopes], [right * slopes]]}
        for name, value in pulled_back(case.network, case.inputs, at_outputs).items():
            guesses[name].append(value.flatten())
    for name, (mean, variance) in found.items():
        stacked = torch.stack(guesses[name])
        torch.testing.assert_close(mean, stacked.mean(0), **EXACT)
        torch.testing.assert_close(variance, stacked.var(0, correction=0), **EXACT)


@pytest.mark.parametrize("slope", ["example", "batch"])
@pytest.mark.parametrize("name", ZOO)
def test_guesses_are_unbiased_on_every_network(name: str, slope: str) -> None:
    case = ZOO[name]()
    found = moments(dense(case, taps(case.network, case.inputs)), slope)
    exact = gradient(case.network, case.loss_fn, case.inputs, case.targets)
    assert set(found) == set(exact) - set(untapped(case.network, case.inputs))
    for parameter, (mean, variance) in found.items():
        torch.testing.assert_close(mean, exact[parameter].flatten(), **EXACT)
        assert (variance >= 0).all() and variance.sum() > 0


@pytest.mark.parametrize("name", ["mlp", "mlp_relu", "windows", "windows_first", "positions_first"])
def test_variances_of_linear_layers_are_the_closed_form_over_rows(name: str) -> None:
    """Σ_e [T_e · out · Σ_r ‖x_r‖² + ‖G_e‖²] of rows r of example e, T_e = Σ over modules ‖g_e‖²."""
    case = ZOO[name]()
    names = taps(case.network, case.inputs)
    known = dense(case, names)
    found = moments(known)
    total = known.by_example.square().sum(1)
    for module in names:
        layer = case.network.get_submodule(module)
        if not isinstance(layer, nn.Linear):
            continue
        seen: list[torch.Tensor] = []
        handle = layer.register_forward_hook(lambda _, arguments, __, s=seen: s.append(arguments[0]))
        case.network(case.inputs)
        handle.remove()
        rows = seen[0].detach().flatten(0, -2)
        stretch = known.places[module]
        owners = known.owners[stretch].reshape(len(rows), -1)[:, 0]
        at_rows = known.by_example[:, stretch].reshape(EXAMPLES, len(rows), -1)
        expected = torch.tensor(0.0, dtype=torch.float64)
        for example in range(EXAMPLES):
            exact = at_rows[example].T @ rows
            expected += total[example] * layer.out_features * rows[owners == example].square().sum()
            expected += exact.square().sum()
        torch.testing.assert_close(found[f"{module}.weight"][1].sum(), expected, **EXACT)


def test_owners_are_found_where_a_relu_is_off() -> None:
    case = ZOO["mlp_relu"]()
    known = dense(case, ["0", "2", "4"])
    assert not known.by_example[:, known.places["0"]].any(0).all()
    assert known.owners.tolist() == [example for width in (5, 4, 3) for example in range(3) for _ in range(width)]


def test_a_positional_embedding_serves_all_examples() -> None:
    case = ZOO["gpt"]()
    known = dense(case, ["positions", "head"])
    assert (known.owners[known.places["positions"]] == SHARED).all()
    assert (known.owners[known.places["head"]] != SHARED).all()


@pytest.fixture
def windows() -> Dense:
    case = ZOO["windows"]()
    return dense(case, ["first", "read"])


def test_a_row_given_to_the_wrong_example_is_caught(windows: Dense) -> None:
    case = ZOO["windows"]()
    exact = gradient(case.network, case.loss_fn, case.inputs, case.targets)["first.weight"].flatten()
    owners = windows.owners.clone()
    owners[:3] = 1  # The first row's three units, of example 0.
    mean, _ = moments(dataclasses.replace(windows, owners=owners))["first.weight"]
    assert not torch.allclose(mean, exact, rtol=0.01)


def test_a_mixing_that_is_no_rotation_is_biased_and_a_rotation_changes_nothing(windows: Dense) -> None:
    n_numbers = windows.by_example.shape[1]
    rotation, _ = torch.linalg.qr(normal(n_numbers, n_numbers))
    plain, turned, scaled = (
        moments(windows, mixing=mixing)["first.weight"]
        for mixing in (None, rotation, 1.01 * torch.eye(n_numbers).double())
    )
    for ours, other in zip(plain, turned, strict=True):
        torch.testing.assert_close(ours, other, **EXACT)
    torch.testing.assert_close(scaled[0], 1.01**2 * plain[0], **EXACT)
    torch.testing.assert_close(scaled[1], 1.01**4 * plain[1], **EXACT)
