"""Do the facts hold that follow from the definitions and that the papers do not state, and do the seed paper's tables?

1. Orthogonal upstream (W̃⊥) with k = rank is unbiased. 2. It is activity perturbation of the live units, where the
next layer is as wide. 3. So is preconditioned upstream (W̃^P), the same law. 4. In one pass for all layers the other
layers' noise dominates.
Then variance, bias and covariance norm as Wang et al. (2025) define them, beside what their tables 2 and 5 print.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import xarray as xr

from studies.facts import figures
from studies.facts import page as facts_page
from studies.facts.cells import TABLE_2, TABLE_5, joint_pass, paper_table, same_law
from studies.kit import command_line, kept_cells, pages


@dataclass(frozen=True)
class Settings:
    """On the seed paper's MLP (40-w-w-w-10, no biases) and MNIST-1D."""

    width: int = 128
    """Width of the hidden layers for the facts and for table 2."""
    guesses: int = 4096
    """Guesses drawn of each estimator for facts 1 to 3."""
    examples: int = 32
    """Examples in the batch for the facts."""
    seeds: int = 8
    """Initial weights for fact 4."""
    table_guesses: int = 256
    """Guesses drawn of each estimator for fact 4 and the tables."""
    batch: int = 512
    """Examples in the batch for the tables."""
    table_2_epochs: int = 110
    """Epochs of backpropagation before table 2, which leaves layer and epoch unsaid: here layer 1 comes closest."""
    table_5_width: int = 256
    """Width of the hidden layers for table 5."""
    table_5_epochs: int = 60
    """Epochs of backpropagation before table 5; the paper has 300 of training by each guess itself."""
    seed: int = 0
    """Seed of weights, batches and noise."""
    out: Path = Path("results/facts")
    """Where results go, a file for each part; what is finished there is not computed again."""
    page: Path | None = None
    """Where facts.md and its figure go, if not to `out`; docs/results replaces the committed ones."""

    def __post_init__(self) -> None:
        command_line.check(self)


def main(settings: Settings) -> xr.DataTree:
    made = parts(settings)
    tree = xr.DataTree.from_dict({name: _part(settings, name, make) for name, make in made.items()})
    text = facts_page.page(tree)
    pages.write("facts", text, {"": figures.figure(tree)}, settings.out, settings.page)
    print(text)
    return tree


def parts(settings: Settings) -> dict[str, Callable[[], xr.Dataset]]:
    """What makes each part of the answer, by the name of its file."""
    facts = {"width": settings.width, "examples": settings.examples, "seed": settings.seed}
    tables = {"batch": settings.batch, "guesses": settings.table_guesses, "seed": settings.seed}
    sizes_2 = {"width": settings.width, "epochs": settings.table_2_epochs}
    sizes_5 = {"width": settings.table_5_width, "epochs": settings.table_5_epochs}
    return {
        "same_law": lambda: same_law(guesses=settings.guesses, **facts),
        "joint_pass": lambda: joint_pass(guesses=settings.table_guesses, n_seeds=settings.seeds, **facts),
        "table_2": lambda: paper_table(TABLE_2, **sizes_2, **tables),
        "table_5": lambda: paper_table(TABLE_5, **sizes_5, **tables),
    }


def _part(settings: Settings, name: str, make: Callable[[], xr.Dataset]) -> xr.Dataset:
    """One part of the answer: read where it is finished with these settings, otherwise computed and written."""
    return kept_cells.kept(settings.out / f"{name}.nc", kept_cells.depends_on(settings), make)


if __name__ == "__main__":
    command_line.run(Settings, main, __doc__)
