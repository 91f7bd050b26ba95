"""Which gradient estimator of a stochastic binary network is the most accurate, and for how many averaged draws?

The protocol of Shekhovtsov, Yanush & Flach (2020): a network of 5-5-5 binary units on 200 points of two classes, after
1, 100 and 2000 epochs. 20 000 draws of each estimator are cut into means of M = 1 … 9000. Their relative root mean
square error and their cosine with the exact gradient, which is summed over all states, are shown layer by layer. Beside
them stand bias and variance apart, with intervals, and exactly where they follow from sums over states. The error of a
mean is then √(bias² + variance/M), without sampling.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import xarray as xr

from fganalysis.results.cells import run_cells
from fganalysis.results.identity import Cell
from studies.binary import figures
from studies.binary import page as binary_page
from studies.binary.cells import LEAST_MEANS, Network, cell
from studies.kit import command_line, pages
from studies.kit.long_names import described

QUANTITIES = {
    "relative_bias": ("norm of the bias of a draw over that of the gradient", "1"),
    "relative_variance": ("total variance of a draw over the squared norm of the gradient", "1"),
    "shrinkage": ("component of the mean draw along the gradient over its norm", "1"),
    "squared_bias": ("(measured - predicted)/error of the squared bias", "1"),
    "variance": ("(measured - predicted)/error of the variance", "1"),
    "error": ("root mean square error of a mean of draws over the norm of the gradient", "1"),
    "cosine": ("cosine of a mean of draws and the gradient, mean over means", "1"),
    "gradient_norm": ("norm of the exact gradient", "loss per unit of weight"),
    "loss": ("exact expected loss", "loss"),
    "accuracy": ("share of points whose class has the larger probability", "1"),
}
KINDS = {"_predicted": "exact: ", "_low": "low end of: ", "_high": "high end of: ", "_z": ""}


@dataclass(frozen=True)
class Settings(command_line.OnDevice):
    """The networks, the moments at which they are looked at, and how many draws; NumPy makes these, in any case."""

    epochs: tuple[int, ...] = (1, 100, 2000)
    """Epochs of training after which gradients are estimated."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of initial weights, of training and of draws; intervals between networks are over them."""
    width: int = 5
    """Units of a hidden layer."""
    depth: int = 3
    """Hidden layers, 2 at least: of one alone the path sample-analytic guess is unbiased."""
    per_class: int = 100
    """Points of each class."""
    data_seed: int = 0
    """Seed of the points."""
    batch: int = 10
    """Points in a training step."""
    learning_rate: float = 0.03
    """Learning rate of stochastic gradient descent."""
    momentum: float = 0.9
    """Its momentum."""
    draws: int = 20_000
    """Draws of each estimator."""
    averaged: tuple[int, ...] = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 9000)
    """Draws in a mean, M."""
    out: Path = Path("results/binary")
    """Where results go, a file for each network; what is finished there is not computed again."""
    page: Path | None = None
    """Where binary.md and its figures go, if not to `out`; docs/results replaces the committed ones."""

    def __post_init__(self) -> None:
        command_line.check(self, least={"epochs": 0, "data_seed": 0, "depth": 2})
        if len(self.seeds) < 2:
            raise ValueError(f"seeds must be at least 2, as intervals are over them, got {len(self.seeds)}")
        if max(self.averaged) > self.draws or min(self.averaged) * LEAST_MEANS > self.draws:
            raise ValueError(f"averaged must be at most draws = {self.draws}, and the least an eighth of it")


def main(settings: Settings) -> xr.Dataset:
    results = run_cells(cells(settings), settings.out, workers=settings.workers, scheduler=settings.scheduler)
    rows = []
    for epochs in settings.epochs:
        row = [results.dataset(_name(seed, epochs)) for seed in settings.seeds]
        rows.append(xr.concat(row, dim="seed", data_vars="all", combine_attrs="drop"))
    dataset = xr.concat(rows, dim="epochs", data_vars="all")
    dataset = dataset.assign_coords(epochs=list(settings.epochs), seed=list(settings.seeds))
    dataset = described(dataset, QUANTITIES, KINDS)
    kept = ("per_class", "batch", "learning_rate", "momentum", "draws", "width", "depth")
    dataset.attrs = {name: value for name, value in command_line.depends_on(settings).items() if name in kept}
    pages.publish("binary", dataset, binary_page.page(dataset), figures.figures(dataset), settings)
    return dataset


def cells(settings: Settings) -> list[Cell]:
    """Every network at every moment, those that are trained longest first."""
    found = []
    for epochs, seed in itertools.product(sorted(settings.epochs, reverse=True), settings.seeds):
        of = Network(
            seed=seed,
            epochs=epochs,
            units=(settings.width,) * settings.depth,
            per_class=settings.per_class,
            data_seed=settings.data_seed,
            batch=settings.batch,
            learning_rate=settings.learning_rate,
            momentum=settings.momentum,
            draws=settings.draws,
            averaged=settings.averaged,
            device=settings.device,
        )
        found.append(Cell(_name(seed, epochs), cell, {"of": of}))
    return found


def _name(seed: int, epochs: int) -> str:
    return f"cells/epochs_{epochs}_seed_{seed}"


if __name__ == "__main__":
    command_line.run(Settings, main, __doc__)
