"""Settings and data that do not fit a training are refused in one sentence."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import fganalysis as fga
from tests.unit.training.small_run import DATA, GRADIENTS, NETWORK

BAD = [
    ({"batch_size": 61}, "batch_size must be at most the 60 training examples, got 61"),
    ({"batch_size": 100_000}, "batch_size must be at most the 60 training examples, got 100000"),
    ({"epochs": 0}, "epochs must be a whole number of at least 1, got 0"),
    ({"epochs": 1.5}, "epochs must be a whole number of at least 1, got 1.5"),
    ({"seed": [0, 1]}, r"seed must be a whole number of at least 0, got \[0, 1\]"),
    ({"seed": -1}, "seed must be a whole number of at least 0, got -1"),
    ({"optimizer": torch.optim.LBFGS}, "LBFGS wants several gradients"),
    ({"autodiff": "foward", "gradient": "activity"}, "autodiff must be 'reverse' or 'forward', got 'foward'"),
    ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
    ({"n_guesses": 0}, "n_guesses must be a whole number of at least 1, got 0"),
    ({"checkpoints": [0]}, "checkpoints need a folder"),
    ({"checkpoints": [99], "out": "somewhere"}, "checkpoint at step 99 is outside the run, which ends at step 10"),
    ({"gradient": "guesswork"}, "unknown estimator 'guesswork'"),
    ({"continue_from": "nowhere.safetensors"}, "there is no checkpoint at nowhere"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_arguments_are_refused_in_one_sentence(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fga.train(NETWORK, DATA, **{"batch_size": 60} | arguments)


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("place", [0, -1])
def test_a_class_that_no_output_has_is_refused_wherever_it_stands(gradient: str, place: int) -> None:
    targets = DATA.train_targets.clone()
    targets[place] = 3
    with pytest.raises(ValueError, match=r"^targets must be class indices from 0 to 2, got 3$"):
        fga.train(NETWORK, replace(DATA, train_targets=targets), gradient, epochs=1, batch_size=20)


def test_a_checkpoint_beyond_the_last_step_is_refused(tmp_path: Path) -> None:
    run = fga.train(NETWORK, DATA, epochs=3, batch_size=20, checkpoints=[9], out=tmp_path)
    with pytest.raises(ValueError, match="is of step 9, but the run ends at step 6"):
        fga.train(NETWORK, DATA, epochs=2, batch_size=20, continue_from=run.checkpoints[9])
