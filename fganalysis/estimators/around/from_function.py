"""from_function(): turns a user's function of the network, which returns a guess of the gradient, into an estimator.

A worked example, with a bug that training survives. The noise is drawn from a seed, so that it can be drawn again
instead of stored, as in MeZO. The bug is that the generator is seeded again for every parameter, and not once:

    def forward_gradient(network, loss_fn, inputs, targets, generator):
        parameters = dict(network.named_parameters())
        exact = dict(zip(parameters, torch.autograd.grad(loss_fn(network(inputs), targets), [*parameters.values()])))
        seed = int(torch.randint(2**31, (1,), generator=generator))
        noise = {n: torch.randn(p.shape, generator=torch.Generator().manual_seed(seed)) for n, p in parameters.items()}
        slope = sum((noise[name] * exact[name]).sum() for name in parameters)
        return {name: slope * noise[name] for name in parameters}

    fga.check_unbiased(fga.estimators.from_function(forward_gradient), snapshot)

Parameters of the same shape get the same direction, so the guess of each layer also contains the gradients of other
layers. It still points downhill on average, and no shape or sign is wrong. On the network of
tests/unit/estimators/test_from_function.py the verdict is "biased in weight space", by a relative bias of 1.2, "most
evident spread over all coordinates". With a single generator for all parameters, made before the loop, it is unbiased.

The function is called once for every guess, or where `torch.func.vmap` takes it, once for many guesses: the draws are
the same numbers, and the guesses are the same to rounding, which is compared at every call of the estimator
(`many_calls`). Functions that change the network in place, or whose course depends on the numbers, are called one by
one.
"""

from __future__ import annotations

import copy
import pickle
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fganalysis.arguments import check_callable, described
from fganalysis.capturing.batch import map_tensors
from fganalysis.capturing.precision import full_precision
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.capturing.tap import Loss
from fganalysis.estimators.around import many_calls
from fganalysis.estimators.checks import check_call
from fganalysis.estimators.guesses import WeightEstimates

CALLED_ALONE = 2  # Guesses of every call that are made alone, and compared with the same guesses made together.
NUMBERS_TOGETHER = 2**22  # Of the activations and weights of guesses that are made by one call.

Function = Callable[[torch.nn.Module, Loss, Tensor, Tensor, torch.Generator], Mapping[str, Any]]


def from_function(
    function: Function,
) -> Callable[[Snapshot, int, torch.Generator], WeightEstimates]:
    """The estimator whose guess is a call of ``function(network, loss_fn, inputs, targets, generator)``.

    Args:
        function: returns one guess of the gradient, in loss per unit of weight, as a mapping from parameter names, as
            in ``network.named_parameters()``, to tensors. Its ``__name__`` is the name in results.

            - A frozen parameter (``requires_grad=False``) has no gradient: leave it out or return None for it, as
              `torch.autograd.grad` does. A tensor for it is refused.
            - Trainable parameters outside the Linear modules, such as those of a LayerNorm, are ignored. A verdict
              names them.
            - All noise must come from the generator, so that a seed reproduces it.
            - It may be called once for many guesses, by `torch.func.vmap`, where that gives the same guesses.
            - It is called with autograd on and autocast off, on copies of the batch and on a copy of the network whose
              ``.grad`` are empty. It may change parameters, but must put them back.

    Returns:
        An estimator. A call raises ValueError, with the seed of the generator, where the function returns no mapping to
        floating-point tensors, leaves out a trainable weight of a tap, returns a tensor for an unknown or frozen
        parameter or of a wrong shape, leaves the network changed, or draws from a global generator of torch, NumPy or
        Python.

    Raises:
        ValueError: a ``function`` that cannot be called with these five arguments.
    """
    words = "a function of (network, loss_fn, inputs, targets, generator)"
    check_callable("function", function, words, 5)

    # One call at a time: the function may use forward mode, whose levels torch shares between threads.
    one_at_a_time = threading.Lock()

    def estimate(snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> WeightEstimates:
        check_call(snapshot, n_guesses, generator)
        with one_at_a_time, full_precision(snapshot):
            return guesses_of(snapshot, n_guesses, generator)

    def guesses_of(snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> WeightEstimates:
        network = copy.deepcopy(snapshot.network)
        who = f"{name} (generator seed {generator.initial_seed()})"
        drawn_before = _global_generators()

        def call() -> list[Tensor]:
            _restore(network, snapshot)
            batch = map_tensors(snapshot.inputs, torch.clone), map_tensors(snapshot.targets, torch.clone)
            with torch.enable_grad():
                guess = function(network, snapshot.loss_fn, *batch, generator)
            return _by_layer(guess, snapshot, who)

        guesses, watched = [], []
        for _ in range(min(n_guesses, CALLED_ALONE)):
            watched.append(many_calls.Watched(generator))
            with watched[-1]:
                guesses.append(call())
        parts = [torch.stack(per_layer) for per_layer in zip(*guesses, strict=True)]
        alone = snapshot.remember(("called one by one", function), lambda: [])
        while len(parts[0]) < n_guesses:
            left = n_guesses - len(parts[0])
            try:
                if alone:
                    raise many_calls.CannotBatch
                more = _at_once(call, generator, watched, parts, min(left, _at_most(snapshot)))
            except many_calls.CannotBatch:
                alone.append(True)
                more = [torch.stack(per_layer) for per_layer in zip(*(call() for _ in range(left)), strict=True)]
            parts = [torch.cat(pair) for pair in zip(parts, more, strict=True)]
        for library, state in _global_generators().items():
            if state != drawn_before[library]:
                raise ValueError(f"{who} drew from {library}'s global generator: draw from the one that it is given")
        _refuse_changes(network, snapshot, who)
        return WeightEstimates(parts[0].new_ones(n_guesses, len(parts)), tuple(parts))

    name = getattr(function, "__name__", type(function).__name__)
    estimate.__name__, estimate.__qualname__ = name, getattr(function, "__qualname__", name)
    return estimate


def _at_once(
    call: Callable[[], list[Tensor]],
    generator: torch.Generator,
    watched: Sequence[many_calls.Watched],
    known: Sequence[Tensor],
    n_guesses: int,
) -> list[Tensor]:
    """Further guesses, (guess, unit, input) a layer, by one call for all.

    The first guesses, which are known from calls of their own, are made again by one call and compared. So a function
    that keeps something from call to call is found out.

    Raises:
        CannotBatch: where one call for many is not possible, or gives other guesses. The generator is as it was.
    """
    draws = watched[0].draws
    if len(watched) < CALLED_ALONE:
        raise many_calls.CannotBatch
    many_calls.check_draws(draws)
    if any(len(other.values) != len(draws) for other in watched):
        raise many_calls.CannotBatch
    state = generator.get_state()
    again = [torch.stack(values) for values in zip(*(other.values for other in watched), strict=True)]
    further = many_calls.values_of_calls(draws, n_guesses)
    values = [torch.cat(pair) for pair in zip(again, further, strict=True)]
    try:
        made = many_calls.called_at_once(call, generator, draws, values)
        for together, alone in zip(made, known, strict=True):
            first, expected = together[:CALLED_ALONE], alone[:CALLED_ALONE]
            if not torch.allclose(first, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max())):
                raise many_calls.CannotBatch
    except many_calls.CannotBatch:
        generator.set_state(state)
        raise
    return [together[CALLED_ALONE:] for together in made]


def _at_most(snapshot: Snapshot) -> int:
    """Guesses that are made by one call at most."""
    numbers = sum(tap.outputs.numel() for tap in snapshot.taps) + sum(part.weight.numel() for part in snapshot.weights)
    return max(1, NUMBERS_TOGETHER // numbers)


def _global_generators() -> dict[str, object]:
    return {
        "torch": torch.random.get_rng_state().numpy().tobytes(),
        "numpy": pickle.dumps(np.random.get_state(legacy=False)),
        "random": random.getstate(),
    }


def _by_layer(guess: Mapping[str, Tensor | None], snapshot: Snapshot, who: str) -> list[Tensor]:
    """One guess as an array (unit, input) for each layer, with a bias as the last column."""
    if not isinstance(guess, Mapping):
        raise ValueError(f"{who} returned {type(guess).__name__}, not gradients by parameter name")
    parameters = dict(snapshot.network.named_parameters())
    returned: dict[str, Tensor] = {}
    for name, value in guess.items():
        if name not in parameters:
            raise ValueError(f"{who} returned a gradient for {described(name)}, which is no parameter of the network")
        if value is None:
            continue
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise ValueError(f"{who} returned {described(value)} for {name!r}, not a tensor of floating-point numbers")
        if not parameters[name].requires_grad:
            raise ValueError(f"{who} returned a gradient for {name!r}, which is frozen: leave it out or return None")
        if value.shape != parameters[name].shape:
            raise ValueError(
                f"{who} returned {tuple(value.shape)} for {name!r} of shape {tuple(parameters[name].shape)}"
            )
        returned[name] = value.detach()
    missing = [name for layer in snapshot.weights for name in layer.parameter_names if name not in returned]
    if missing:
        raise ValueError(f"{who} returned no gradient for {missing[0]!r}")
    return [layer.columns(returned).to(layer.weight) for layer in snapshot.weights]


def _restore(network: torch.nn.Module, snapshot: Snapshot) -> None:
    """Resets gradients, buffers and modes, so that no guess depends on the forward passes of earlier ones."""
    network.zero_grad(set_to_none=True)
    for module, original in zip(network.modules(), snapshot.network.modules(), strict=True):
        module.training = original.training
    for buffer, kept in zip(network.buffers(), snapshot.network.buffers(), strict=True):
        buffer.copy_(kept)


def _refuse_changes(network: torch.nn.Module, snapshot: Snapshot, name: str) -> None:
    """Refuses changed parameters. Rounding errors are allowed, as of adding a step and subtracting it again."""
    pairs = zip(network.named_parameters(), snapshot.network.parameters(), strict=True)
    for (parameter, changed), original in pairs:
        if not torch.allclose(changed, original, rtol=1e-3, atol=1e-5):
            raise ValueError(f"{name} left parameter {parameter!r} changed: put it back before returning")
