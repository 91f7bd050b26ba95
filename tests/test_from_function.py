"""A stranger's code is checked as it is: right ones pass, a subtle bug is named, careless ones are refused by name."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fganalysis as fga
from fganalysis.checking import assert_unbiased, check_unbiased
from fganalysis.estimators import from_function
from fganalysis.snapshot import Loss, Snapshot
from tests.laws import tiny_snapshot

SNAPSHOT = tiny_snapshot((2, 2, 2), n_examples=3, bias=True)
Gradients = dict[str, Tensor]


def true_gradient(network: torch.nn.Module, loss_fn: Loss, inputs: Tensor, targets: Tensor) -> Gradients:
    parameters = dict(network.named_parameters())
    gradients = torch.autograd.grad(loss_fn(network(inputs), targets), list(parameters.values()))
    return dict(zip(parameters, gradients, strict=True))


def forward_gradient(
    network: torch.nn.Module, loss_fn: Loss, inputs: Tensor, targets: Tensor, generator: torch.Generator
) -> Gradients:
    """Weight perturbation, as someone might write it."""
    exact = true_gradient(network, loss_fn, inputs, targets)
    directions = {name: torch.randn(g.shape, generator=generator, dtype=g.dtype) for name, g in exact.items()}
    slope = sum(((directions[name] * exact[name]).sum() for name in exact), torch.zeros(()))
    return {name: slope * direction for name, direction in directions.items()}


def seeded_anew_for_each_parameter(
    network: torch.nn.Module, loss_fn: Loss, inputs: Tensor, targets: Tensor, generator: torch.Generator
) -> Gradients:
    """The same with a subtle bug: the noise is drawn again from its seed, as in MeZO, but for every parameter.

    Weights of the same shape get the same direction. Every layer's guess then holds the other layers' gradients too,
    and still points downhill on average, so training goes on, only worse.
    """
    exact = true_gradient(network, loss_fn, inputs, targets)
    seed = int(torch.randint(2**31, (1,), generator=generator))
    directions = {
        name: torch.randn(g.shape, generator=torch.Generator().manual_seed(seed), dtype=g.dtype)
        for name, g in exact.items()
    }
    slope = sum(((directions[name] * exact[name]).sum() for name in exact), torch.zeros(()))
    return {name: slope * direction for name, direction in directions.items()}


def test_guesses_are_laid_out_as_the_taps_weights() -> None:
    """The exact gradient, given by parameter name, is the exact gradient by tap, the bias as the last column."""

    def exact(network: torch.nn.Module, loss_fn: Loss, x: Tensor, y: Tensor, generator: torch.Generator) -> Gradients:
        return true_gradient(network, loss_fn, x, y)

    estimates = from_function(exact)(SNAPSHOT, 2, torch.Generator())
    assert len(estimates) == 2
    for own, gradient in zip(estimates.weight_gradients(SNAPSHOT), SNAPSHOT.weight_gradients, strict=True):
        torch.testing.assert_close(own, gradient)
    assert check_unbiased(from_function(exact), SNAPSHOT, tolerance=1e-9).outcome == "unbiased"


def test_a_network_that_is_one_linear_module_has_its_own_names() -> None:
    network = torch.nn.Linear(2, 2).double()
    inputs, targets = torch.ones(3, 2, dtype=torch.float64), torch.zeros(3, 2, dtype=torch.float64)
    snapshot = fga.capture(network, torch.nn.functional.mse_loss, inputs, targets)
    guess = from_function(forward_gradient)(snapshot, 1, torch.Generator().manual_seed(0))
    assert [tuple(g.shape) for g in guess.weight_gradients(snapshot)] == [(2, 3)]


def test_a_right_function_is_called_unbiased_and_names_the_results() -> None:
    verdict = assert_unbiased(from_function(forward_gradient), SNAPSHOT, tolerance=0.5)
    assert verdict.estimator == "forward_gradient"
    assert fga.sample(SNAPSHOT, from_function(forward_gradient), n_guesses=16).attrs["estimator"] == "forward_gradient"


def test_the_subtle_bug_is_caught_and_its_seed_reproduces_it() -> None:
    verdict = check_unbiased(from_function(seeded_anew_for_each_parameter), SNAPSHOT, tolerance=0.5, seed=3)
    assert verdict.outcome == "biased"
    assert "seeded_anew_for_each_parameter is biased in weight space" in str(verdict)
    assert "most evident spread over all coordinates" in str(verdict)
    assert verdict.findings[0].relative_bias == pytest.approx(1.2, abs=0.1)
    assert verdict == check_unbiased(from_function(seeded_anew_for_each_parameter), SNAPSHOT, tolerance=0.5, seed=3)


def test_gradients_do_not_pile_up_between_guesses() -> None:
    def by_backward(
        network: torch.nn.Module, loss_fn: Loss, inputs: Tensor, targets: Tensor, generator: torch.Generator
    ) -> Gradients:
        loss_fn(network(inputs), targets).backward()
        return {name: parameter.grad for name, parameter in network.named_parameters() if parameter.grad is not None}

    guesses = from_function(by_backward)(SNAPSHOT, 3, torch.Generator()).dense(SNAPSHOT)[1]
    torch.testing.assert_close(guesses[2], guesses[0])
    assert all(parameter.grad is None for parameter in SNAPSHOT.network.parameters())


def test_parameters_may_be_moved_and_put_back() -> None:
    def differences(
        network: torch.nn.Module, loss_fn: Loss, inputs: Tensor, targets: Tensor, generator: torch.Generator
    ) -> Gradients:
        """MeZO's central difference, in place."""
        parameters = dict(network.named_parameters())
        with torch.no_grad():
            directions = {n: torch.randn(p.shape, generator=generator, dtype=p.dtype) for n, p in parameters.items()}
            losses = []
            for step in (1e-4, -2e-4, 1e-4):
                for name, parameter in parameters.items():
                    parameter += step * directions[name]
                losses.append(loss_fn(network(inputs), targets))
        return {name: (losses[0] - losses[1]) / 2e-4 * direction for name, direction in directions.items()}

    once = from_function(differences)(SNAPSHOT, 4, torch.Generator().manual_seed(1)).dense(SNAPSHOT)[1]
    reference = from_function(forward_gradient)(SNAPSHOT, 4, torch.Generator().manual_seed(1)).dense(SNAPSHOT)[1]
    torch.testing.assert_close(once, reference, rtol=1e-4, atol=1e-6)


def returning(change: Callable[[Gradients], Any]) -> Callable[[Snapshot, int, torch.Generator], object]:
    def careless(
        network: torch.nn.Module, loss_fn: Loss, inputs: Tensor, targets: Tensor, generator: torch.Generator
    ) -> Any:
        return change(true_gradient(network, loss_fn, inputs, targets))

    return from_function(careless)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g: {n: v for n, v in g.items() if n != "2.bias"}, "returned no gradient for '2.bias'"),
        (lambda g: g | {"3.weight": g["2.weight"]}, "for '3.weight', which is no parameter of the network"),
        (lambda g: g | {"0.bias": g["0.weight"]}, r"returned \(2, 2\) for '0.bias' of shape \(2,\)"),
        (lambda g: {n: v + 0 * torch.randn(v.shape) for n, v in g.items()}, "drew from torch's global generator"),
        (lambda g: {n: v + 0 * np.random.randn() for n, v in g.items()}, "drew from numpy's global generator"),
        (lambda g: {n: v + 0 * random.random() for n, v in g.items()}, "drew from random's global generator"),
        (lambda g: None, "returned NoneType, not gradients by parameter name"),
        (lambda g: list(g.values()), "returned list, not gradients by parameter name"),
        (lambda g: g | {"0.bias": g["0.bias"].numpy()}, "returned ndarray for '0.bias', not a tensor of real numbers"),
        (lambda g: g | {"0.bias": 1.0}, "returned float for '0.bias', not a tensor of real numbers"),
        (
            lambda g: {n: 1j * v for n, v in g.items()},
            r"returned torch\.complex128 for '0\.weight', not a tensor of real",
        ),
    ],
    ids=["missing", "unknown", "misshapen", "torch", "numpy", "random", "none", "list", "array", "float", "complex"],
)
def test_careless_functions_are_refused_in_a_sentence(change: Callable[[Gradients], Gradients], message: str) -> None:
    with pytest.raises(ValueError, match=rf"careless \(generator seed 7\) .*{message}"):
        returning(change)(SNAPSHOT, 1, torch.Generator().manual_seed(7))


def test_what_cannot_be_called_is_refused() -> None:
    with pytest.raises(ValueError, match="function must be callable, got 3"):
        from_function(3)  # type: ignore[arg-type]


def test_the_second_number_of_a_pair_that_numpy_keeps_is_seen() -> None:
    """numpy draws normal numbers in pairs: giving out the second moves no position in its stream."""
    np.random.randn()
    with pytest.raises(ValueError, match="drew from numpy's global generator"):
        returning(lambda g: {n: v + (0 if n != "0.weight" else np.random.randn()) for n, v in g.items()})(
            SNAPSHOT, 1, torch.Generator()
        )


def test_a_function_that_trains_the_network_is_refused() -> None:
    def trains(
        network: torch.nn.Module, loss_fn: Loss, inputs: Tensor, targets: Tensor, generator: torch.Generator
    ) -> Gradients:
        gradients = true_gradient(network, loss_fn, inputs, targets)
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                parameter -= gradients[name]
        return gradients

    before = [parameter.clone() for parameter in SNAPSHOT.network.parameters()]
    with pytest.raises(
        ValueError,
        match=r"trains \(generator seed \d+\) left parameter '0\.weight' changed: put it back before returning",
    ):
        from_function(trains)(SNAPSHOT, 1, torch.Generator())
    for parameter, kept in zip(SNAPSHOT.network.parameters(), before, strict=True):
        torch.testing.assert_close(parameter, kept, rtol=0, atol=0)
