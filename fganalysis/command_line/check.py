"""`fganalysis check`: the verdict of `fganalysis.check_unbiased`, with an exit code for a test suite."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

EXIT_CODES = {"unbiased": 0, "biased": 1, "undecided": 2}


@dataclass(frozen=True)
class Check:
    """Decide whether an estimator is unbiased. The exit code is 0 if it is, 1 if it is not, 2 if undecided or refused.

    FILE is a Python file that defines `network`, `loss_fn` and `batch`, a pair of inputs and targets.
    """

    file: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE")]
    """The Python file."""
    estimator: str = "estimator"
    """A name that FILE defines, an estimator or a function (see the README), or a key of the README's table."""
    checkpoint: Path | None = None
    """Weights for the network: a checkpoint of fganalysis, or a state dict as .safetensors or .pt."""
    alpha: float = 0.01
    """Probability of calling an unbiased estimator biased."""
    tolerance: float = 0.05
    """Relative bias that is tolerated."""
    max_guesses: int = 2**18
    """Guesses after which the verdict is that it is undecided."""
    seed: int = 0
    """Seed of all noise."""

    def run(self) -> None:
        """Prints the verdict and ends with the exit code that belongs to it."""
        from fganalysis.assertions.unbiased import check_unbiased
        from fganalysis.command_line import users_file

        names = users_file.read(self.file)
        verdict = check_unbiased(
            users_file.named(self.estimator, names),
            users_file.snapshot_of(names, self.checkpoint),
            self.alpha,
            self.tolerance,
            self.max_guesses,
            self.seed,
        )
        print(verdict)
        sys.exit(EXIT_CODES[verdict.outcome])
