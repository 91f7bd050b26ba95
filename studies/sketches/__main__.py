"""How much noise do sketched and sampled weight gradients add to the minibatch's, and how much memory do they save?

Row sketches, input sketches and row samples keep a few numbers of every layer's inputs for the backward pass, and are
unbiased. Their total variance on a batch, measured and in closed form, stands beside that of the batch itself as a
sample of the data: the noise that training has anyway. The papers' claim is that the two are comparable; here it is
asked at which memory they are equal. The biased compressions of an optimiser's memory stand beside them: how much of
the gradient a projection on the leading directions of an older gradient leaves outside, as that gradient ages.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import xarray as xr

from fganalysis.arguments import check_names
from fganalysis.results.cells import run_cells
from fganalysis.results.identity import Cell
from studies.kit import command_line, pages
from studies.kit.digests import digests
from studies.kit.long_names import described
from studies.sketches import figures
from studies.sketches import page as sketches_page
from studies.sketches.cells import QUANTITIES, Of, cell
from studies.sketches.networks import NETWORKS

KINDS = {"_se": "standard error of: ", "_predicted": "predicted: "}


@dataclass(frozen=True)
class Settings(command_line.OnDevice):
    """The networks, the sketches' sizes and how many guesses."""

    networks: tuple[str, ...] = tuple(NETWORKS)
    """MLP, conv net and attention."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Seeds of weights, batches and guesses; intervals are over them."""
    batch: int = 32
    """Examples of a batch, in training and where guesses are made."""
    population: int = 512
    """Examples from which the variance of one example's gradient is taken."""
    steps: int = 512
    """Steps of AdamW before the second stage."""
    learning_rate: float = 1e-3
    """Of AdamW."""
    guesses: int = 128
    """Guesses of each sketch and size."""
    sizes: tuple[int, ...] = (2, 8, 32, 128)
    """Probes, columns or rows of a sketch; a sketch that keeps the largest rows keeps half as many and samples half."""
    ranks: tuple[int, ...] = (1, 4, 16)
    """Directions of a projection."""
    ages: tuple[int, ...] = (0, 1, 4, 16, 64, 256)
    """Steps between the older gradient and the gradient; at 0 the older one is of another batch."""
    out: Path = Path("results/sketches")
    """Where results go, a file for each network and seed; what is finished there is not computed again."""
    page: Path | None = None
    """Where sketches.md and its figures go, if not to `out`; docs/results replaces the committed ones."""

    def __post_init__(self) -> None:
        command_line.check(self, least={"sizes": 2, "guesses": 32, "ages": 0})
        check_names("networks", self.networks, NETWORKS)
        if len(self.seeds) < 2:
            raise ValueError(f"seeds must be at least 2, as intervals are over them, got {len(self.seeds)}")
        if max(self.ages) >= self.steps:
            raise ValueError(f"ages must be below steps, here {self.steps}, got {max(self.ages)}")
        if self.population <= self.batch:
            raise ValueError(f"population must be above batch, here {self.batch}, got {self.population}")


def main(settings: Settings) -> xr.Dataset:
    results = run_cells(cells(settings), settings.out, workers=settings.workers, scheduler=settings.scheduler)
    rows = []
    for network in settings.networks:
        row = [results.dataset(_name(network, seed)) for seed in settings.seeds]
        rows.append(xr.concat(row, dim="seed", data_vars="all", combine_attrs="drop"))
    dataset = xr.concat(rows, dim="network", data_vars="all", join="outer")
    dataset = dataset.assign_coords(network=list(settings.networks), seed=list(settings.seeds))
    dataset = described(dataset, QUANTITIES, KINDS)
    dataset.attrs = {name: getattr(settings, name) for name in ("batch", "population", "steps", "guesses")}
    pages.publish("sketches", dataset, sketches_page.page(dataset), figures.figures(dataset), settings)
    return dataset


def cells(settings: Settings) -> list[Cell]:
    """Every network and seed."""
    found = []
    for network, seed in itertools.product(settings.networks, settings.seeds):
        of = Of(
            network=network,
            seed=seed,
            batch=settings.batch,
            population=settings.population,
            steps=settings.steps,
            learning_rate=settings.learning_rate,
            guesses=settings.guesses,
            sizes=settings.sizes,
            ranks=settings.ranks,
            ages=settings.ages,
            device=settings.device,
        )
        found.append(Cell(_name(network, seed), cell, {"of": of}, digests(NETWORKS[network].data)))
    return found


def _name(network: str, seed: int) -> str:
    return f"cells/{network.replace(' ', '_')}_seed_{seed}"


if __name__ == "__main__":
    command_line.run(Settings, main, __doc__)
