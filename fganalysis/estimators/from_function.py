"""from_function(): anyone's gradient estimator, written as a function of the network, as an estimator of the toolkit.

A worked example, with a bug that training survives. The noise is drawn from a seed, so that it can be drawn again
instead of kept, as MeZO does; but the seed is set anew for every parameter, and not once:

    def forward_gradient(network, loss_fn, inputs, targets, generator):
        parameters = dict(network.named_parameters())
        exact = dict(zip(parameters, torch.autograd.grad(loss_fn(network(inputs), targets), [*parameters.values()])))
        seed = int(torch.randint(2**31, (1,), generator=generator))
        noise = {n: torch.randn(p.shape, generator=torch.Generator().manual_seed(seed)) for n, p in parameters.items()}
        slope = sum((noise[name] * exact[name]).sum() for name in parameters)
        return {name: slope * noise[name] for name in parameters}

    fga.check_unbiased(fga.estimators.from_function(forward_gradient), snapshot)

Parameters of one shape get one direction, so that each layer's guess holds the other layers' gradients as well. It
still points downhill on average, and no shape or sign is wrong. On the network of tests/test_from_function.py the
verdict is "biased in weight space", by a relative bias of 1.2, "most evident spread over all coordinates". With one
generator for all parameters, made before the loop, it is unbiased.

Each guess is one call of the function, so a guess costs what that costs: nothing is batched.
"""

from __future__ import annotations

import copy
import pickle
import random
import threading
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from fganalysis.estimates import WeightEstimates
from fganalysis.snapshot import Loss, Snapshot, Tap

Function = Callable[[torch.nn.Module, Loss, Tensor, Tensor, torch.Generator], Mapping[str, Tensor]]


def from_function(
    function: Function,
) -> Callable[[Snapshot, int, torch.Generator], WeightEstimates]:
    """The estimator that makes a guess by ``function(network, loss_fn, inputs, targets, generator)``.

    Args:
        function: returns one guess of the gradient, by parameter name as in ``network.named_parameters()``, in loss per
            unit of weight. Nothing looks at what it returns for parameters that are in no Linear module, such as those
            of a LayerNorm: a verdict names them, and says nothing of them. It runs with autograd on, on a copy of the
            network whose ``.grad`` are empty; it may change parameters but must put them back; all its noise must come
            from the generator, or a seed would not reproduce it. Its ``__name__`` names the results.

    Returns:
        An estimator, which raises ValueError, with the seed of its generator, when the function returns no mapping to
        real tensors, leaves out a weight of a tap, names what is no parameter, returns another shape, leaves the
        network changed or draws from a global generator of torch, NumPy or Python.

    Raises:
        ValueError: what cannot be called.
    """
    if not callable(function):
        raise ValueError(f"function must be callable, got {function!r}")

    # One call at a time: the levels of torch's forward mode are shared by threads, and the function may use it.
    one_at_a_time = threading.Lock()

    def estimate(snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> WeightEstimates:
        with one_at_a_time:
            return guesses_of(snapshot, n_guesses, generator)

    def guesses_of(snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> WeightEstimates:
        network = copy.deepcopy(snapshot.network)
        who = f"{name} (generator seed {generator.initial_seed()})"
        drawn_before = _global_generators()
        guesses = []
        for _ in range(n_guesses):
            network.zero_grad(set_to_none=True)
            with torch.enable_grad():
                guess = function(network, snapshot.loss_fn, snapshot.inputs, snapshot.targets, generator)
            guesses.append(_by_tap(guess, snapshot, who))
        for library, state in _global_generators().items():
            if state != drawn_before[library]:
                raise ValueError(f"{who} drew from {library}'s global generator: draw from the one that it is given")
        _refuse_changes(network, snapshot, who)
        directions = tuple(torch.stack(per_tap) for per_tap in zip(*guesses, strict=True))
        return WeightEstimates(directions[0].new_ones(n_guesses, len(directions)), directions)

    name = getattr(function, "__name__", type(function).__name__)
    estimate.__name__ = name
    return estimate


def _global_generators() -> dict[str, object]:
    return {
        "torch": torch.random.get_rng_state().numpy().tobytes(),
        "numpy": pickle.dumps(np.random.get_state(legacy=False)),
        "random": random.getstate(),
    }


def _by_tap(guess: Mapping[str, Tensor], snapshot: Snapshot, name: str) -> list[Tensor]:
    """One guess as (unit, input) a tap, the bias its last column."""
    if not isinstance(guess, Mapping):
        raise ValueError(f"{name} returned {type(guess).__name__}, not gradients by parameter name")
    known = {parameter: tuple(value.shape) for parameter, value in snapshot.network.named_parameters()}
    for parameter, value in guess.items():
        if parameter not in known:
            raise ValueError(f"{name} returned a gradient for {parameter!r}, which is no parameter of the network")
        if not isinstance(value, Tensor) or value.is_complex():
            kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"{name} returned {kind} for {parameter!r}, not a tensor of real numbers")
        if tuple(value.shape) != known[parameter]:
            raise ValueError(f"{name} returned {tuple(value.shape)} for {parameter!r} of shape {known[parameter]}")
    return [_of_tap(guess, tap, name).to(tap.weight) for tap in snapshot.taps]


def _of_tap(guess: Mapping[str, Tensor], tap: Tap, name: str) -> Tensor:
    # A network that is one Linear module is its own tap, of the empty name.
    names = [f"{tap.name}.{part}".removeprefix(".") for part in (["weight", "bias"] if tap.has_bias else ["weight"])]
    missing = [parameter for parameter in names if parameter not in guess]
    if missing:
        raise ValueError(f"{name} returned no gradient for {missing[0]!r}")
    weight, *bias = (guess[parameter].detach() for parameter in names)
    return torch.cat([weight, *(column.unsqueeze(1) for column in bias)], dim=1)


def _refuse_changes(network: torch.nn.Module, snapshot: Snapshot, name: str) -> None:
    """Parameters put back by subtracting what was added carry rounding errors, so nearly equal is enough."""
    pairs = zip(network.named_parameters(), snapshot.network.parameters(), strict=True)
    for (parameter, changed), original in pairs:
        if not torch.allclose(changed, original, rtol=1e-3, atol=1e-5):
            raise ValueError(f"{name} left parameter {parameter!r} changed: put it back before returning")
