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
from fganalysis.assertions.unbiased import assert_unbiased, check_unbiased
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.capturing.tap import Loss
from fganalysis.estimators import from_function
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
        (
            lambda g: g | {"0.bias": g["0.bias"].numpy()},
            r"returned a NumPy array of shape \(2,\) and float64 for '0.bias', not a tensor of fl",
        ),
        (lambda g: g | {"0.bias": 1.0}, r"returned 1\.0 for '0.bias', not a tensor of floating-point numbers"),
        (
            lambda g: {n: 1j * v for n, v in g.items()},
            r"returned a tensor of shape \(2, 2\) and complex128 for '0\.weight', not a tensor of floating-point",
        ),
        (
            lambda g: {n: v.long() for n, v in g.items()},
            r"returned a tensor of shape \(2, 2\) and int64 for '0\.weight', not a tensor of floating-point",
        ),
        (lambda g: g | {"2.bias": None}, "returned no gradient for '2.bias'"),
        (lambda g: g | {3: g["2.bias"]}, "returned a gradient for 3, which is no parameter of the network"),
    ],
    ids=[
        "missing",
        "unknown",
        "misshapen",
        "torch",
        "numpy",
        "random",
        "none",
        "list",
        "array",
        "float",
        "complex",
        "integer",
        "none for a bias",
        "number",
    ],
)
def test_careless_functions_are_refused_in_a_sentence(change: Callable[[Gradients], Gradients], message: str) -> None:
    with pytest.raises(ValueError, match=rf"careless \(generator seed 7\) .*{message}"):
        returning(change)(SNAPSHOT, 1, torch.Generator().manual_seed(7))


def test_what_cannot_be_called_is_refused() -> None:
    for wrong in (3, None, "f", type(SNAPSHOT.network), lambda network, loss_fn: {}):
        with pytest.raises(
            ValueError, match=r"function must be a function of \(network, loss_fn, inputs, targets, gene"
        ):
            from_function(wrong)  # type: ignore[arg-type]


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


def frozen_snapshot() -> Snapshot:
    """Of the first layer all is frozen, of the second the weight, of the last the bias."""
    torch.manual_seed(0)
    layers = [torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2)]
    network = torch.nn.Sequential(*layers).double()
    for parameter in (*network[0].parameters(), network[2].weight, network[4].bias):
        parameter.requires_grad_(False)
    inputs = torch.randn(4, 2, dtype=torch.float64)
    return fga.capture(network, torch.nn.functional.mse_loss, inputs, inputs.flip(0))


def of_trainable(
    network: torch.nn.Module, loss_fn: Loss, inputs: Tensor, targets: Tensor, generator: torch.Generator
) -> Gradients:
    trainable = {name: p for name, p in network.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(loss_fn(network(inputs), targets), list(trainable.values()))
    return dict(zip(trainable, gradients, strict=True))


def test_frozen_parameters_need_no_gradient_and_may_have_none() -> None:
    snapshot = frozen_snapshot()

    def with_none(*batch: Any) -> dict[str, Tensor | None]:
        return {name: None for name, _ in batch[0].named_parameters()} | of_trainable(*batch)

    for function in (of_trainable, with_none):
        assert check_unbiased(from_function(function), snapshot, tolerance=1e-9).outcome == "unbiased"

    def of_all(*batch: Any) -> Gradients:
        return {name: torch.ones_like(parameter) for name, parameter in batch[0].named_parameters()}

    with pytest.raises(ValueError, match=r"gradient for '0\.weight', which is frozen: leave it out or return None$"):
        from_function(of_all)(snapshot, 1, torch.Generator())


@pytest.mark.slow
def test_what_a_function_leaves_in_the_batch_or_in_buffers_reaches_no_other_guess() -> None:
    def overwrites(network: torch.nn.Module, loss_fn: Loss, x: Tensor, y: Tensor, g: torch.Generator) -> Gradients:
        gradients = true_gradient(network, loss_fn, x, y)
        x.zero_()
        y.zero_()
        return gradients

    assert check_unbiased(from_function(overwrites), SNAPSHOT, tolerance=1e-9).outcome == "unbiased"
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 2)).double().eval()
    inputs = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    snapshot = fga.capture(network, torch.nn.functional.mse_loss, inputs, inputs.flip(0))

    def trains_statistics(net: torch.nn.Module, loss_fn: Loss, x: Tensor, y: Tensor, g: torch.Generator) -> Gradients:
        gradients = true_gradient(net, loss_fn, x, y)
        net.train()(x)
        return gradients

    assert check_unbiased(from_function(trains_statistics), snapshot, tolerance=1e-9).outcome == "unbiased"


def test_autocast_around_a_function_changes_nothing() -> None:
    network = fga.networks.mlp([6, 5, 4], seed=0)
    inputs = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    snapshot = fga.capture(network, torch.nn.functional.cross_entropy, inputs, torch.arange(8) % 4)
    plain = from_function(forward_gradient)(snapshot, 2, torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = from_function(forward_gradient)(snapshot, 2, torch.Generator().manual_seed(0))
    for one, other in zip(plain.directions, under.directions, strict=True):
        assert torch.equal(one, other)
