"""A user's function that is called once for many guesses gives the guesses of single calls, or is called alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.nn.functional import cross_entropy

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators.around import from_function as module

Gradients = Mapping[str, Tensor]
N_GUESSES = 20
calls = {"of the function": 0}


def by_autograd(network: nn.Module, loss_fn: Any, inputs: Any, targets: Any, generator: torch.Generator) -> Gradients:
    parameters = dict(network.named_parameters())
    exact = torch.autograd.grad(loss_fn(network(inputs), targets), [*parameters.values()])
    noise = {name: torch.randn(p.shape, generator=generator) for name, p in parameters.items()}
    slope = sum((part * gradient).sum() for part, gradient in zip(noise.values(), exact, strict=True))
    return {name: slope * part for name, part in noise.items()}


def by_forward_mode(
    network: nn.Module, loss_fn: Any, inputs: Any, targets: Any, generator: torch.Generator
) -> Gradients:
    parameters = {name: p.detach() for name, p in network.named_parameters()}
    noise = {name: torch.randn(p.shape, generator=generator) for name, p in parameters.items()}
    _, slope = jvp(lambda at: loss_fn(functional_call(network, at, (inputs,)), targets), (parameters,), (noise,))
    return {name: slope * part for name, part in noise.items()}


def by_differences(
    network: nn.Module, loss_fn: Any, inputs: Any, targets: Any, generator: torch.Generator
) -> Gradients:
    parameters = {name: p.detach() for name, p in network.named_parameters()}
    signs = {n: 2.0 * torch.randint(2, p.shape, generator=generator) - 1 for n, p in parameters.items()}

    def loss(step: float) -> Tensor:
        at = {name: p + step * signs[name] for name, p in parameters.items()}
        return loss_fn(functional_call(network, at, (inputs,)), targets)

    slope = (loss(1e-2) - loss(-1e-2)) / 2e-2
    return {name: slope * part for name, part in signs.items()}


def in_place(network: nn.Module, loss_fn: Any, inputs: Any, targets: Any, generator: torch.Generator) -> Gradients:
    """As MeZO has it: the noise is drawn again from a seed, and the weights are changed and put back."""
    seed = int(torch.randint(2**31, (1,), generator=generator))

    def step(size: float) -> dict[str, Tensor]:
        again = torch.Generator().manual_seed(seed)
        noise = {name: torch.randn(p.shape, generator=again) for name, p in network.named_parameters()}
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                parameter.add_(noise[name], alpha=size)
        return noise

    with torch.no_grad():
        step(1e-2)
        above = loss_fn(network(inputs), targets)
        step(-2e-2)
        below = loss_fn(network(inputs), targets)
        noise = step(1e-2)
    return {name: (above - below) / 2e-2 * part for name, part in noise.items()}


def drawn_in_place(
    network: nn.Module, loss_fn: Any, inputs: Any, targets: Any, generator: torch.Generator
) -> Gradients:
    return {name: torch.empty(p.shape).normal_(generator=generator) for name, p in network.named_parameters()}


def alternating(network: nn.Module, loss_fn: Any, inputs: Any, targets: Any, generator: torch.Generator) -> Gradients:
    """Keeps something from call to call, so that one call for many would be wrong without any error."""
    calls["of the function"] += 1
    sign = (-1) ** calls["of the function"]
    return {name: sign * torch.randn(p.shape, generator=generator) for name, p in network.named_parameters()}


def drawing_nothing(
    network: nn.Module, loss_fn: Any, inputs: Any, targets: Any, generator: torch.Generator
) -> Gradients:
    parameters = dict(network.named_parameters())
    exact = torch.autograd.grad(loss_fn(network(inputs), targets), [*parameters.values()])
    return dict(zip(parameters, exact, strict=True))


def often_or_not(network: nn.Module, loss_fn: Any, inputs: Any, targets: Any, generator: torch.Generator) -> Gradients:
    """Draws as often as the numbers tell."""
    while float(torch.rand((), generator=generator)) < 0.5:
        pass
    return {name: torch.randn(p.shape, generator=generator) for name, p in network.named_parameters()}


BATCHED = [by_autograd, by_forward_mode, by_differences]
ALONE = [in_place, drawn_in_place, alternating, drawing_nothing, often_or_not]


def snapshot_of() -> Snapshot:
    network = fga.networks.mlp([5, 7, 3], seed=0)
    inputs = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    return fga.capture(network, cross_entropy, inputs, torch.arange(6) % 3)


def guessed(function: Callable[..., Gradients], monkeypatch: pytest.MonkeyPatch, alone: bool) -> tuple[Tensor, int]:
    """Guesses written out, and how often the function was called."""
    counted, calls["of the function"] = [], 0

    def watched(*arguments: Any) -> Gradients:
        counted.append(1)
        return function(*arguments)

    if alone:
        monkeypatch.setattr(module, "CALLED_ALONE", N_GUESSES)
    guesses = fga.estimators.from_function(watched)(snapshot_of(), N_GUESSES, torch.Generator().manual_seed(5))
    monkeypatch.undo()
    return guesses.dense(snapshot_of())[1], len(counted)


@pytest.mark.parametrize("function", BATCHED + ALONE)
def test_the_guesses_are_those_of_single_calls(function: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    together, n_calls = guessed(function, monkeypatch, alone=False)
    alone, n_alone = guessed(function, monkeypatch, alone=True)
    assert n_alone == N_GUESSES
    if function is alternating:  # The call that was tried counts as one.
        together[module.CALLED_ALONE :] *= -1
        assert n_calls == N_GUESSES + 1
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    if function in BATCHED:
        assert n_calls == module.CALLED_ALONE + 1


@pytest.mark.parametrize("function", ALONE)
def test_what_cannot_be_one_call_is_tried_once(function: Any) -> None:
    counted: list[int] = []

    def watched(*arguments: Any) -> Gradients:
        counted.append(1)
        return function(*arguments)

    snapshot, estimator = snapshot_of(), fga.estimators.from_function(watched)
    estimator(snapshot, N_GUESSES, torch.Generator())
    counted.clear()
    estimator(snapshot, N_GUESSES, torch.Generator())
    assert len(counted) == N_GUESSES


def test_a_mistake_of_the_function_is_seen_as_in_a_single_call() -> None:
    def with_a_mistake(network, loss_fn, inputs, targets, generator):  # type: ignore[no-untyped-def]
        noise = by_autograd(network, loss_fn, inputs, targets, generator)
        return {name: part[:1] for name, part in noise.items()}

    with pytest.raises(ValueError, match=r"with_a_mistake .* returned"):
        fga.estimators.from_function(with_a_mistake)(snapshot_of(), N_GUESSES, torch.Generator())


def test_a_verdict_is_the_same() -> None:
    verdict = fga.check_unbiased(fga.estimators.from_function(by_autograd), snapshot_of(), max_guesses=2**14)
    assert verdict.n_guesses > 0 and "biased in" not in str(verdict).replace("unbiased in", "")
