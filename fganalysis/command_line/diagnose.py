"""`fganalysis diagnose`: the table of `fganalysis.summary`, and the whole result as a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Diagnose:
    """Measure estimators on your network, beside their closed forms, and print the table.

    FILE is a Python file that defines `network`, `loss_fn` and `batch`, a pair of inputs and targets.
    """

    file: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE")]
    """The Python file."""
    estimators: tuple[str, ...] = ("weight", "activity")
    """Keys of the README's table of estimators; a name that FILE defines comes first."""
    checkpoint: Path | None = None
    """Weights for the network: a checkpoint of fganalysis, or a state dict as .safetensors or .pt."""
    guesses: int = 4096
    """Guesses of each estimator."""
    seed: int = 0
    """Seed of all noise."""
    quantities: tuple[str, ...] = ("relative_bias", "variance", "cosine", "efficiency")
    """Columns of the table."""
    layers: bool = False
    """Whether the table has a row for every layer, too."""
    out: Path | None = None
    """A netCDF file for the whole result, which `fganalysis report` reads."""

    def run(self) -> None:
        """Measures, writes the file where one is asked for, and prints the table."""
        import pandas as pd

        from fganalysis.command_line import users_file
        from fganalysis.measuring.diagnose import diagnose
        from fganalysis.results import schema, store
        from fganalysis.results.tables import formatted, summary

        names = users_file.read(self.file)
        snapshot = users_file.snapshot_of(names, self.checkpoint)
        estimators = [users_file.named(name, names) for name in self.estimators]
        tree = diagnose(snapshot, estimators, self.guesses, self.seed, progress=True)
        if self.out is not None:
            print(store.write(tree, self.out))
        table = formatted(summary(tree, self.quantities), self.quantities)
        if not self.layers:
            table = table[table[schema.LAYER] == schema.ALL_LAYERS]
        with pd.option_context("display.width", None, "display.max_columns", None, "display.max_colwidth", None):
            print(table.to_string(index=False))
