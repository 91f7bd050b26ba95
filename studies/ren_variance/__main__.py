"""Do Ren et al.'s four variance formulas hold? Table 1 and figure 8 of "Scaling Forward Gradient With Local Losses".

A p-q-1 tanh MLP with squared error; the guess is that of its first layer's weights alone; batches of N examples are
drawn from a population. Variance counts both the guess and the choice of the batch, per element of the weight matrix:

    weights shared        (pq+2)/N V + (pq+1) S        activities shared        (q+2)/N V + (q+1) S
    weights independent   (pq+2)/N V + (pq+1)/N S      activities independent   (q+2)/N V + (q+1)/N S

V: mean variance over examples of a gradient's element; S: mean squared element of the population's gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr

from fganalysis.results.cells import run_cells
from fganalysis.results.identity import Cell
from studies.kit import command_line, pages
from studies.ren_variance import figures
from studies.ren_variance import page as ren_variance_page
from studies.ren_variance.cells import point

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Settings(command_line.OnDevice):
    """Figure 8: batch size at fan-in = fan-out = 4, then fan-in or fan-out at batch size 4."""

    batch_sizes: tuple[int, ...] = (1, 4, 16, 64, 256, 1024, 4096)
    """N, at fan-in = fan-out = 4."""
    fans: tuple[int, ...] = (1, 4, 16, 64, 256)
    """Fan-in (at fan-out 4) and fan-out (at fan-in 4), at N = 4."""
    draws: int = 5000
    """Guesses for each point, as in the paper."""
    guesses_per_batch: int = 20
    """How many of them share a batch; batches are what the interval is taken over."""
    population: int = 4096
    """Examples that batches are drawn from, with replacement."""
    seed: int = 0
    """Seed of everything."""
    out: Path = Path("results/ren_variance")
    """Where results go, a file for each point; what is finished there is not computed again."""
    page: Path | None = None
    """Where ren_variance.md and its figure go, if not to `out`; docs/results replaces the committed ones."""

    def __post_init__(self) -> None:
        command_line.check(self)
        if self.draws <= self.guesses_per_batch:
            raise ValueError(
                f"draws must be more than guesses_per_batch, {self.guesses_per_batch}, as intervals are over batches, "
                f"got {self.draws}"
            )


def main(settings: Settings) -> xr.Dataset:
    points = _points(settings)
    drawn = {"draws": settings.draws, "guesses_per_batch": settings.guesses_per_batch}
    results = run_cells(cells(settings), settings.out, workers=settings.workers, scheduler=settings.scheduler)
    rows = [results.dataset(_name(shape)) for _, _, shape in points]
    index = xr.Dataset(coords={"point": np.arange(len(points))})
    dataset = xr.concat(rows, dim="point").assign_coords(
        sweep=("point", [sweep for sweep, _, _ in points]), value=("point", [value for _, value, _ in points])
    )
    dataset = dataset.merge(index)
    for name in ("variance", "variance_se", "predicted"):
        dataset[name].attrs = {"units": "(loss per unit of weight)^2", "long_name": f"{name} of a weight's gradient"}
    dataset["z"] = (dataset["variance"] - dataset["predicted"]) / dataset["variance_se"]
    dataset["z"].attrs = {"units": "1", "long_name": "(measured - predicted) / standard error"}
    dataset.attrs = drawn | {"population": settings.population}
    pages.publish("ren_variance", dataset, ren_variance_page.page(dataset), {"": figures.figure(dataset)}, settings)
    return dataset


def cells(settings: Settings) -> list[Cell]:
    """Every shape, once."""
    sizes = command_line.depends_on(settings, "draws", "guesses_per_batch", "seed", "device")
    sizes |= {"n_examples": settings.population}
    shapes = dict.fromkeys(shape for _, _, shape in _points(settings))
    return [
        Cell(_name(shape), point, {"fan_in": shape[0], "fan_out": shape[1], "batch": shape[2]} | sizes)
        for shape in shapes
    ]


def _points(settings: Settings) -> list[tuple[str, int, Shape]]:
    """Sweep, its value, and the shape: fan-in, fan-out and batch size."""
    points: list[tuple[str, int, Shape]] = [("batch size", n, (4, 4, n)) for n in settings.batch_sizes]
    points += [("fan-in", p, (p, 4, 4)) for p in settings.fans]
    return points + [("fan-out", q, (4, q, 4)) for q in settings.fans]


def _name(shape: Shape) -> str:
    return "cells/fan_in_{}_fan_out_{}_batch_{}".format(*shape)


if __name__ == "__main__":
    command_line.run(Settings, main, __doc__)
