"""Gradient estimates written to ``.grad``, where optimisers read them: for `train` and for other training loops."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from fganalysis.arguments import check_callable, check_choice, check_kind, check_whole
from fganalysis.capturing import forward_mode, refusals
from fganalysis.capturing.batch import first_examples
from fganalysis.capturing.capture import checked_for_training, freeze
from fganalysis.capturing.errors import NonFiniteActivations
from fganalysis.capturing.planning import Plan
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.capturing.tap import Autodiff, Loss
from fganalysis.estimators import Backpropagation, Estimator, resolve
from fganalysis.estimators.guesses import ActivationEstimates
from fganalysis.estimators.noise import GAUSSIAN
from fganalysis.measuring.sound_guesses import guesses_of

# What becomes of trainable parameters of no tap, for which guesses at the activations have none.
Untapped = Literal["refuse", "perturb"]
EXAMPLES_CHECKED = 64  # Examples of the first batch that are used in checks.

# What was found out about networks that `estimate_gradient` has checked, by loss function.
_CHECKED: WeakKeyDictionary[torch.nn.Module, dict[Hashable, Plan]] = WeakKeyDictionary()


def estimate_gradient(
    network: torch.nn.Module,
    loss_fn: Loss,
    inputs: Any,
    targets: Any,
    estimator: str | Estimator,
    generator: torch.Generator,
    *,
    n_guesses: int = 1,
    autodiff: Autodiff = "reverse",
    untapped: Untapped = "refuse",
) -> Tensor:
    """Adds the mean of ``n_guesses`` guesses to every parameter's ``.grad``, for your own training loop.

    Like ``loss.backward()`` it adds to the gradients that are there: call ``optimizer.zero_grad()`` first, or let
    several batches accumulate. A stateful estimator guesses with its present state; `fill_gradients` says how the state
    learns from step to step.

    Network, loss, inputs and targets are what `capture` takes, and are checked as there: once for each pair of a
    network and a loss function, on the first examples of the first batch, because checks at every step would take too
    long. Functions made from the same code count as the same. A network is checked again where other parameters are
    frozen, or other modules in training mode.

    Args:
        generator: of the noise, on the device of the network. n_guesses: guesses that are averaged. autodiff: "forward"
            takes slopes by forward mode, without a backward pass.
        untapped: "perturb" adds, to guesses at the activations, a guess by weight perturbation of the parameters of no
            tap (a class token): (V·G)V, V Gaussian, with the slope of the batch along V. Unbiased.

    Returns:
        The mean loss on the batch, detached. ``optimizer.step()`` may follow as usual.

    Raises:
        ValueError: an empty batch; a parameter of no tap, unless it is perturbed; a module that draws its own noise;
            examples that interact, or a loss that compares them, where the guess takes the slope of each; NaN
            activations; no guess, or a guess that is not finite or has another shape than the gradient; in forward mode
            a gradient that takes a backward pass.
    """
    refusals.refuse_bad_arguments(network, loss_fn, inputs, targets, autodiff)
    estimator = resolve(estimator)
    check_generator(generator, refusals.device_of(network))
    check_whole("n_guesses", n_guesses, 1)
    check_untapped(untapped)
    n_examples = refusals.n_examples(inputs, targets)
    # A batch of a single example cannot show whether examples interact. What is trained, and in which mode modules are,
    # may change between steps.
    modes = tuple(module.training for module in network.modules())
    trained = tuple(parameter.requires_grad for parameter in network.parameters())
    key = (getattr(loss_fn, "__code__", type(loss_fn)), autodiff, n_examples == 1, modes, trained)
    plans = _CHECKED.setdefault(network, {})
    if key not in plans:
        part = first_examples((inputs, targets), n_examples, EXAMPLES_CHECKED) or (inputs, targets)
        plans[key] = checked_for_training(network, loss_fn, *part, autodiff=autodiff).plan
    snapshot = freeze(network, loss_fn, inputs, targets, autodiff=autodiff, step=0, plan=plans[key])
    fill_gradients(snapshot, estimator, n_guesses, generator, untapped=untapped)
    return snapshot.loss


def fill_gradients(
    snapshot: Snapshot,
    estimator: str | Estimator,
    n_guesses: int,
    generator: torch.Generator,
    compare: bool = False,
    untapped: Untapped = "refuse",
) -> dict[str, float]:
    """Adds a mean of guesses to ``.grad`` of the snapshot's network, for a training loop that keeps the snapshot.

    Parameters that require no gradient are in no tap and get none; for ``untapped`` see `estimate_gradient`. With a
    stateful estimator, call ``estimator.advanced(snapshot, generator)`` after the step.

    Returns:
        The cosine of the mean guess with the exact gradient, and its relative error, in weight space for all layers
        together. Both are NaN without ``compare`` and in forward mode.

    Raises:
        ValueError: guesses of another shape or type than the weights, or a wrong number of guesses; a parameter of no
            tap, unless it is perturbed.
        NonFiniteActivations: guesses that are NaN or infinite.
    """
    check_kind("snapshot", snapshot, Snapshot, "what fganalysis.capture or freeze returns")
    estimator = resolve(estimator)
    check_whole("n_guesses", n_guesses, 1)
    check_generator(generator, snapshot.device)
    check_untapped(untapped)
    with torch.no_grad():
        gradients = _mean_guess(snapshot, estimator, n_guesses, generator, untapped)
        for layer, gradient in zip(snapshot.weights, gradients, strict=True):
            for name, part in layer.by_parameter(gradient).items():
                parameter = snapshot.network.get_parameter(name)
                if parameter.grad is None:
                    parameter.grad = part.clone(memory_format=torch.contiguous_format)
                else:
                    parameter.grad += part
    if not compare or snapshot.autodiff == "forward":
        return {"cosine": np.nan, "relative_error": np.nan}
    guess = torch.cat([g.flatten() for g in gradients]).double()
    exact = torch.cat([g.flatten() for g in snapshot.weight_gradients]).double()
    return {
        "cosine": float(torch.nn.functional.cosine_similarity(guess, exact, dim=0)),
        "relative_error": float((guess - exact).norm() / exact.norm()),
    }


def _mean_guess(
    snapshot: Snapshot, estimator: Estimator, n_guesses: int, generator: torch.Generator, untapped: Untapped
) -> Sequence[Tensor]:
    """The mean of ``n_guesses`` guesses, (unit, input) for each layer. Refuses guesses that are not finite."""
    guesses = guesses_of(estimator, snapshot, n_guesses, generator)
    gradients = guesses.weight_gradients(snapshot)
    if isinstance(guesses, ActivationEstimates) and snapshot.untapped_parameters:
        if isinstance(estimator, Backpropagation):
            gradients[-1] = snapshot.weights[-1].columns(snapshot.untapped_gradients)
        elif untapped == "perturb":
            gradients[-1] = _perturbed_untapped(snapshot, n_guesses, generator)
        else:
            raise ValueError(
                f"parameter {snapshot.untapped_parameters[0]!r} is in no tap, so that a guess at the activations has "
                "no gradient for it: ask for untapped='perturb', freeze it by requires_grad_(False) or use a guess at "
                "the weights"
            )
    if not torch.stack([gradient.isfinite().all() for gradient in gradients]).all():
        raise NonFiniteActivations("the estimator's guess has NaN or infinite numbers")
    return gradients


def _perturbed_untapped(snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> Tensor:
    """The mean of guesses (V·G)V of the last layer, the parameters of no tap, (1, input): weight perturbation of it.

    Drawn after the guess at the activations, whose numbers so do not depend on it.
    """
    layer = snapshot.weights[-1]
    directions = GAUSSIAN.draw((n_guesses, *layer.weight.shape), generator, layer.weight)
    if snapshot.autodiff == "forward":
        others = [other.weight.new_zeros(()).expand(n_guesses, *other.weight.shape) for other in snapshot.weights[:-1]]
        slopes = forward_mode.weight_slopes(snapshot, [*others, directions], "joint")[:, 0]
    else:
        slopes = directions.flatten(1) @ layer.columns(snapshot.untapped_gradients).flatten()
    return torch.tensordot(slopes, directions, dims=1) / n_guesses


def check_untapped(untapped: object) -> None:
    """Raises ValueError for another word."""
    check_choice("untapped", untapped, ("refuse", "perturb"))


def check_generator(generator: object, device: torch.device) -> None:
    """Raises ValueError unless this is a torch generator on the type of device of the network."""
    check_kind("generator", generator, torch.Generator, "a torch.Generator")
    assert isinstance(generator, torch.Generator)
    if generator.device.type != device.type:
        raise ValueError(f"generator must be on the device of the network, {device}, got {generator.device}")


def check_loss(loss_fn: object) -> None:
    """Raises ValueError unless this is a function, or a module such as ``torch.nn.CrossEntropyLoss()``."""
    check_callable("loss_fn", loss_fn, "a function of (outputs, targets)")
