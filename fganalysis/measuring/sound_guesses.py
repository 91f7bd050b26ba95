"""What is asked of anyone's estimator and of who calls it: wrong arguments and guesses are refused in a sentence."""

from __future__ import annotations

import torch

from fganalysis.arguments import check_kind, check_seed
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import Estimator
from fganalysis.estimators.guesses import ActivationEstimates, Estimates, WeightEstimates


def check_arguments(snapshot: object, seed: object) -> None:
    """Raises ValueError for what is no snapshot, or a seed that is no whole number from 0 to 2⁶³ − 1."""
    check_kind("snapshot", snapshot, Snapshot, "what fga.capture returns")
    check_seed("seed", seed)


def guesses_of(estimator: Estimator, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> Estimates:
    """So many guesses of the estimator.

    A sum over another number would be taken for a sum over the number asked for, which shows as a bias; a tensor of
    another shape may be spread over the gradient's without a word.

    Raises:
        ValueError: something else than estimates, another number of them, or another number of taps, another shape,
            data type or device than the gradient's.
    """
    guesses = estimator(snapshot, n_guesses, generator)
    if not isinstance(guesses, ActivationEstimates | WeightEstimates):
        raise ValueError(
            f"the estimator must return ActivationEstimates or WeightEstimates, got {type(guesses).__name__}"
        )
    if len(guesses) != n_guesses:
        made = f"{len(guesses)} guess" if len(guesses) == 1 else f"{len(guesses)} guesses"
        raise ValueError(f"the estimator made {made} where {n_guesses} {'was' if n_guesses == 1 else 'were'} asked for")
    at_activations = isinstance(guesses, ActivationEstimates)
    space = "activation" if at_activations else "weight"
    blocks = guesses.guesses if isinstance(guesses, ActivationEstimates) else guesses.directions
    if len(blocks) != len(snapshot.taps):
        raise ValueError(f"guesses must have a tensor for each of the {len(snapshot.taps)} taps, got {len(blocks)}")
    for block, tap in zip(blocks, snapshot.taps, strict=True):
        like = tap.outputs if at_activations else tap.weight
        if block.shape[1:] != like.shape:
            raise ValueError(
                f"the estimator's guesses for layer {tap.name!r} have the shape {tuple(block.shape[1:])}, the {space} "
                f"gradient {tuple(like.shape)}"
            )
        if (block.dtype, block.device) != (like.dtype, like.device):
            words = [f"{str(part.dtype).removeprefix('torch.')} on {part.device}" for part in (block, like)]
            raise ValueError(
                f"the estimator's guesses for layer {tap.name!r} are {words[0]}, the {space} gradient {words[1]}"
            )
    return guesses


def first_guess(estimator: Estimator, snapshot: Snapshot, generator: torch.Generator) -> Estimates:
    """One guess, as `guesses_of`, to see what the estimator makes before threads ask for many."""
    return guesses_of(estimator, snapshot, 1, generator)
