"""Checks of exact gradients, of the guesses of estimators and of the arguments of measurements."""

from __future__ import annotations

from functools import singledispatch
from typing import Any

import numpy as np
import torch

from fganalysis.arguments import check_kind, check_seed, described
from fganalysis.capturing.coordinates import squared_gradients
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import Estimator, resolve
from fganalysis.estimators.factored import FactoredEstimates
from fganalysis.estimators.guesses import ActivationEstimates, Estimates, WeightEstimates
from fganalysis.measuring.own_draws import Draws, ParameterEstimates
from fganalysis.measuring.truth import Truth


def check_arguments(snapshot: object, seed: object) -> None:
    """Raises ValueError unless there is a snapshot, and a seed that is a whole number from 0 to 2⁶³ − 1."""
    check_kind("snapshot", snapshot, Snapshot, "what fga.capture returns")
    check_seed("seed", seed)


def finite_gradients(snapshot: Snapshot, at_activations: bool) -> np.ndarray:
    """`squared_gradients`, refused where no guess can be compared with them."""
    squares = squared_gradients(snapshot, at_activations)
    if np.isinf(squares).any() or not np.isfinite(squares[:, -1]).all():
        raise ValueError("the exact gradient has NaN or infinite entries, so no guess can be compared with it")
    return squares


@singledispatch
def estimator_on(reference: object, estimator: Any) -> Estimator:
    """An estimator that is called with a reference: one of a network for a snapshot, a draw for a truth.

    Raises:
        ValueError: no reference; what is no estimator or draw.
    """
    raise ValueError(f"snapshot must be what fga.capture or fga.truth returns, got {described(reference)}")


@estimator_on.register
def _(reference: Snapshot, estimator: Any) -> Estimator:
    return resolve(estimator)


@estimator_on.register
def _(reference: Truth, estimator: Any) -> Estimator:
    return Draws(estimator, reference)


def guesses_of(estimator: Estimator, reference: Any, n_guesses: int, generator: torch.Generator) -> Estimates:
    """``n_guesses`` guesses of the estimator, checked. reference: what it takes, such as a snapshot.

    A wrong number of guesses would look like a bias, and a tensor of another shape may be broadcast to that of the
    gradient without an error.

    Raises:
        ValueError: where the estimator returns no estimates, another number of guesses or taps, or tensors of another
            shape, data type or device than the gradient.
    """
    guesses = estimator(reference, n_guesses, generator)
    if not isinstance(guesses, ActivationEstimates | WeightEstimates | FactoredEstimates | ParameterEstimates):
        raise ValueError(
            f"the estimator must return ActivationEstimates or WeightEstimates, got {type(guesses).__name__}"
        )
    if len(guesses) != n_guesses:
        made = f"{len(guesses)} guess" if len(guesses) == 1 else f"{len(guesses)} guesses"
        raise ValueError(f"the estimator made {made} where {n_guesses} {'was' if n_guesses == 1 else 'were'} asked for")
    blocks, named, space = guesses.arrays(), guesses.like(reference), guesses.made_at
    if len(blocks) != len(named):
        each = "taps" if space == "activation" else "layers"
        raise ValueError(f"guesses must have a tensor for each of the {len(named)} {each}, got {len(blocks)}")
    for block, (name, like) in zip(blocks, named, strict=True):
        if block.shape[1:] != like.shape:
            raise ValueError(
                f"the estimator's guesses for layer {name!r} have the shape {tuple(block.shape[1:])}, the {space} "
                f"gradient {tuple(like.shape)}"
            )
        if (block.dtype, block.device) != (like.dtype, like.device):
            words = [f"{str(part.dtype).removeprefix('torch.')} on {part.device}" for part in (block, like)]
            raise ValueError(
                f"the estimator's guesses for layer {name!r} are {words[0]}, the {space} gradient {words[1]}"
            )
    return guesses
