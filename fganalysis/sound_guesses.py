"""What is asked of anyone's estimator and of who calls it: wrong arguments and guesses are refused in a sentence."""

from __future__ import annotations

import torch

from fganalysis.arguments import check_kind, check_seed
from fganalysis.estimates import Estimates
from fganalysis.estimators import Estimator
from fganalysis.snapshot import Snapshot


def check_arguments(snapshot: object, seed: object) -> None:
    """Raises ValueError for what is no snapshot, or a seed that is no whole number from 0 to 2⁶³ − 1."""
    check_kind("snapshot", snapshot, Snapshot, "what fga.capture returns")
    check_seed("seed", seed)


def guesses_of(estimator: Estimator, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> Estimates:
    """So many guesses of the estimator. Raises ValueError where it returns something else, or another number of them.

    A sum over another number would be taken for a sum over the number asked for, which shows as a bias.
    """
    guesses = estimator(snapshot, n_guesses, generator)
    if not isinstance(guesses, Estimates):
        raise ValueError(
            f"the estimator must return ActivationEstimates or WeightEstimates, got {type(guesses).__name__}"
        )
    if len(guesses) != n_guesses:
        made = f"{len(guesses)} guess" if len(guesses) == 1 else f"{len(guesses)} guesses"
        raise ValueError(f"the estimator made {made} where {n_guesses} {'was' if n_guesses == 1 else 'were'} asked for")
    return guesses


def first_guess(estimator: Estimator, snapshot: Snapshot, generator: torch.Generator) -> Estimates:
    """One guess, as `guesses_of`. Raises ValueError, too, for another shape or data type than the gradient's."""
    guess = guesses_of(estimator, snapshot, 1, generator)
    totals = guess.total()
    space = "activation" if guess.square_total() else "weight"
    gradients = snapshot.gradients if space == "activation" else snapshot.weight_gradients
    if len(totals) != len(gradients):
        raise ValueError(f"guesses must have a tensor for each of the {len(gradients)} taps, got {len(totals)}")
    for total, gradient, layer in zip(totals, gradients, snapshot.layers, strict=True):
        if total.shape != gradient.shape:
            raise ValueError(
                f"the estimator's guesses for layer {layer!r} have the shape {tuple(total.shape)}, the {space} "
                f"gradient {tuple(gradient.shape)}"
            )
        if total.dtype != gradient.dtype:
            raise ValueError(
                f"the estimator's guesses for layer {layer!r} are {total.dtype}, the {space} gradient {gradient.dtype}"
            )
    return guess
