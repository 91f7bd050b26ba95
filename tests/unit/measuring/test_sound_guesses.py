"""Whoever asks for guesses, wrong arguments and wrong guesses are refused in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators.guesses import ActivationEstimates, WeightEstimates
from tests.laws import tiny_snapshot

SNAPSHOT = tiny_snapshot((3, 4, 2), n_examples=3)
RIGHT = fga.estimators.ActivityPerturbation()
Guess = Callable[[Snapshot, int, torch.Generator], Any]


def check(snapshot: Any, estimator: Any, seed: Any = 0) -> object:
    return fga.check_unbiased(estimator, snapshot, tolerance=0.5, max_guesses=2048, seed=seed)


def sample(snapshot: Any, estimator: Any, seed: Any = 0) -> object:
    return fga.sample(snapshot, estimator, n_guesses=64, seed=seed)


def transposed(snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> WeightEstimates:
    directions = tuple(torch.ones(n_guesses, g.shape[1], g.shape[0]) for g in snapshot.weight_gradients)
    return WeightEstimates(torch.ones(n_guesses, len(directions)), directions)


WRONG: dict[str, tuple[Guess, str]] = {
    "always one": (lambda s, n, g: RIGHT(s, 1, g), "the estimator made 1 guess where 16 were asked for"),
    "always ten": (lambda s, n, g: RIGHT(s, 10, g), "the estimator made 10 guesses where 1 was asked for"),
    "dict": (lambda s, n, g: {"0": 1}, "must return ActivationEstimates or WeightEstimates, got dict"),
    "tuple": (lambda s, n, g: s.gradients, "must return ActivationEstimates or WeightEstimates, got tuple"),
    "fewer taps": (
        lambda s, n, g: ActivationEstimates(RIGHT(s, n, g).guesses[:1]),
        "guesses must have a tensor for each of the 2 taps, got 1",
    ),
    "fewer examples": (
        lambda s, n, g: ActivationEstimates(tuple(guess[:, :1] for guess in RIGHT(s, n, g).guesses)),
        r"guesses for layer '0' have the shape \(1, 4\), the activation gradient \(3, 4\)",
    ),
    "transposed": (transposed, r"guesses for layer '0' have the shape \(3, 4\), the weight gradient \(4, 3\)"),
    "single precision": (
        lambda s, n, g: ActivationEstimates(tuple(guess.float() for guess in RIGHT(s, n, g).guesses)),
        r"guesses for layer '0' are float32 on cpu, the activation gradient float64 on cpu",
    ),
}


@pytest.mark.parametrize("ask", [check, sample])
@pytest.mark.parametrize("name", WRONG)
def test_guesses_that_are_none_are_refused(ask: Callable[..., object], name: str) -> None:
    estimator, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        ask(SNAPSHOT, estimator)


@pytest.mark.parametrize("ask", [check, sample])
def test_wrong_arguments_are_refused(ask: Callable[..., object]) -> None:
    ask(SNAPSHOT, RIGHT)
    with pytest.raises(
        ValueError, match=r"snapshot must be what fga\.capture (or fga\.truth )?returns, got Sequential"
    ):
        ask(SNAPSHOT.network, "activity")
    with pytest.raises(
        ValueError, match=r"snapshot must be what fga\.capture (or fga\.truth )?returns, got 'activity'"
    ):
        ask("activity", SNAPSHOT)
    for seed in (-1, 1.5):
        with pytest.raises(ValueError, match=f"seed must be a whole number of at least 0, got {seed}"):
            ask(SNAPSHOT, "activity", seed=seed)
