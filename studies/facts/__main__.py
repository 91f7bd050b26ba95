"""Do the facts hold that follow from the definitions and that the papers do not state, and do the seed paper's tables?

1. Orthogonal upstream (W̃⊥) with k = rank is unbiased. 2. It is activity perturbation of the live units, where the
next layer is as wide. 3. So is preconditioned upstream (W̃^P), the same law. 4. In one pass for all layers the other
layers' noise dominates.
Then variance, bias and covariance norm as Wang et al. (2025) define them, beside what their tables 2 and 5 print.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import xarray as xr

from fganalysis.results.cells import run_cells
from fganalysis.results.identity import Cell
from studies.facts import figures
from studies.facts import page as facts_page
from studies.facts.cells import joint_pass, paper_table, same_law
from studies.kit import command_line, pages
from studies.kit.digests import digests


@dataclass(frozen=True)
class Settings(command_line.OnDevice):
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
    wanted = cells(settings)
    results = run_cells(wanted, settings.out, workers=settings.workers, scheduler=settings.scheduler)
    tree = xr.DataTree.from_dict({cell.name: results.dataset(cell.name) for cell in wanted})
    text = facts_page.page(tree)
    pages.write("facts", text, {"": figures.figure(tree)}, settings.out, settings.page)
    print(text)
    return tree


def cells(settings: Settings) -> list[Cell]:
    """The parts of the answer."""
    facts: dict[str, object] = {
        "width": settings.width,
        "examples": settings.examples,
        "seed": settings.seed,
        "device": settings.device,
    }
    tables: dict[str, object] = {"batch": settings.batch, "guesses": settings.table_guesses, "seed": settings.seed}
    tables |= {"device": settings.device}
    sizes_2 = {"table": "table_2", "width": settings.width, "epochs": settings.table_2_epochs}
    sizes_5 = {"table": "table_5", "width": settings.table_5_width, "epochs": settings.table_5_epochs}
    data = digests("mnist1d")
    return [
        Cell("same_law", same_law, facts | {"guesses": settings.guesses}, data),
        Cell("joint_pass", joint_pass, facts | {"guesses": settings.table_guesses, "n_seeds": settings.seeds}, data),
        Cell("table_2", paper_table, sizes_2 | tables, data, resumes=True),
        Cell("table_5", paper_table, sizes_5 | tables, data, resumes=True),
    ]


if __name__ == "__main__":
    command_line.run(Settings, main, __doc__)
