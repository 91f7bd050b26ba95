"""Which subspace does the gradient live in, and what does that say about every upstream guess?

Networks of several widths, at initialisation and trained by backpropagation, by the orthogonal and by the plain
upstream guess: energy curves, effective ranks, overlaps beside those of random subspaces, principal angles over the
steps, singular values of the weights, the Hessian's dominant directions. The numbers answer four questions:

    (a) is the high overlap a property of gradients or of training with that estimator?
    (b) is the predicted best k the best one by sampled efficiency, and the seed paper's?
    (c) does the method improve with width, by overlap, rank or cross-layer noise?
    (d) does gradient energy in a subspace predict progress when descending in it?

A cell is one training (width, method, seed), or one descent (seed), and one file. Finished cells are kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xarray as xr

import fganalysis as fga
from fganalysis.results import store
from fganalysis.results.cells import run_cells
from fganalysis.results.identity import Cell
from studies.kit import command_line, pages
from studies.kit.command_line import DatasetName
from studies.kit.digests import digests
from studies.subspaces import answers, collection, descent
from studies.subspaces import figures as subspace_figures
from studies.subspaces.cells import METHODS, Training, training_cell


@dataclass(frozen=True)
class Settings(command_line.OnDevice):
    """What is trained, when it is looked at, and how closely."""

    widths: tuple[int, ...] = (64, 128, 256, 512, 1024)
    """Widths of the three hidden layers."""
    epochs: tuple[int, ...] = (5, 5, 3, 2, 2)
    """Passes over the training set, one number a width; widths are compared at the last step that all of them have."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of weights, order of examples and noise; intervals are over them."""
    k: int = 10
    """Directions of the orthogonal upstream guess, and of the subspaces whose angles are taken."""
    ks: tuple[int, ...] = (1, 2, 5, 10, 25, 50)
    """k whose efficiency is sampled too, beside "rank"."""
    guesses: int = 2048
    """Guesses for each of them, at widths up to `sampled_width`; an eighth of them, and `k` alone, at larger ones."""
    sampled_width: int = 128
    """The largest width at which every k is sampled and curvature is taken."""
    batch: int = 32
    """Examples whose gradients and Jacobians are decomposed."""
    training_batch: int = 32
    """Examples in a training step."""
    learning_rate: float = 1e-3
    """Learning rate of AdamW."""
    descent_width: int = 64
    """Width of the network that descends along parts of its gradient."""
    descent_steps: int = 100
    """Steps that it does so, after five times as many along the whole of it."""
    dataset: DatasetName = "mnist1d"
    """What the networks are trained on."""
    workers: int = 2
    """Processes that compute cells side by side, each on one thread."""
    out: Path = Path("results/subspaces")
    """Where cells go, and the collected ones, subspaces.nc."""
    page: Path | None = None
    """Where the page, its figures and subspaces.nc go, if not to `out`; docs/results replaces the committed ones."""

    def __post_init__(self) -> None:
        command_line.check(self, least={"guesses": 16}, repeated=("epochs",))
        if len(self.epochs) != len(self.widths):
            raise ValueError(f"epochs must be one number a width, got {len(self.epochs)} for {len(self.widths)} widths")
        if len(self.seeds) < 2:
            raise ValueError(f"seeds must be at least 2, as intervals are over them, got {len(self.seeds)}")
        if not self.widths[0] <= self.sampled_width:
            raise ValueError(f"sampled_width must be at least the first width, {self.widths[0]}: nothing is sampled")


def cells(settings: Settings) -> list[Cell]:
    """Every cell of the study, those that take longest first."""
    data = digests(settings.dataset)
    n_examples = len(fga.datasets.load(settings.dataset).train_inputs)
    steps_per_epoch = -(-n_examples // settings.training_batch)
    common = min(settings.epochs) * steps_per_epoch
    found = []
    for width, epochs in sorted(zip(settings.widths, settings.epochs, strict=True), reverse=True):
        for method in METHODS:
            for seed in settings.seeds:
                narrow = width <= settings.sampled_width
                training = Training(
                    width=width,
                    method=method,
                    seed=seed,
                    epochs=epochs,
                    common_step=common,
                    k=settings.k,
                    ks=settings.ks,
                    guesses=settings.guesses if narrow else settings.guesses // 8,
                    closely=narrow,
                    batch=settings.batch,
                    training_batch=settings.training_batch,
                    learning_rate=settings.learning_rate,
                    dataset=settings.dataset,
                    device=settings.device,
                )
                found.append(
                    Cell(_name(width, method, seed), training_cell, {"training": training}, data, resumes=True)
                )
    for seed in settings.seeds:
        own = descent.Settings(
            width=settings.descent_width,
            warm_up=5 * settings.descent_steps,
            steps=settings.descent_steps,
            k=settings.k,
            seed=seed,
            dataset=settings.dataset,
            device=settings.device,
        )
        found.append(Cell(_descent_name(seed), descent.descend, {"settings": own}, data))
    return found


def main(settings: Settings) -> xr.Dataset:
    """Computes what is missing, collects it, and writes the answers and figures."""
    wanted, kept, started = cells(settings), settings.out / "subspaces.nc", time.perf_counter()
    results = run_cells(wanted, settings.out, workers=settings.workers, scheduler=settings.scheduler)
    trainings = {
        (width, method, seed): results[_name(width, method, seed)]
        for width in settings.widths
        for method in METHODS
        for seed in settings.seeds
    }
    descents = xr.concat(
        [results.dataset(_descent_name(seed)) for seed in settings.seeds],
        dim=xr.IndexVariable("seed", list(settings.seeds)),
    )
    collected = collection.collect(trainings, descents, settings.k)
    made_of = sorted(results.identities.values())
    collected.attrs["made_of"] = hashlib.sha256("\n".join(made_of).encode()).hexdigest()
    if results.computed == len(wanted):
        took = {"minutes": (time.perf_counter() - started) / 60, "workers": settings.workers, "cores": os.cpu_count()}
        collected.attrs["whole_run"] = json.dumps(took)
    elif not results.computed and (before := _before(kept)).get("made_of") == collected.attrs["made_of"]:
        collected.attrs |= {name: value for name, value in before.items() if name == "whole_run"}
    collected.attrs["study_settings"] = json.dumps(command_line.depends_on(settings), sort_keys=True)
    store.write(collected, kept)
    text = answers.answers(store.read(kept).to_dataset())  # The page says what is kept and nothing else.
    figures = subspace_figures.figures(trainings, collected, settings.k)
    folder = pages.write("subspaces", text, figures, settings.out, settings.page, with_result=True)
    print(text)
    print(f"Cells are in {settings.out}, their collection, the answers and figures in {folder}")
    print(f"It took {(time.perf_counter() - started) / 60:.1f} minutes for {results.computed} of {len(wanted)} cells")
    return collected


def _before(kept: Path) -> dict[Any, Any]:
    """The attributes of an earlier collection, or none."""
    try:
        return store.read(kept).attrs
    except ValueError:
        return {}


def _name(width: int, method: str, seed: int) -> str:
    return f"width_{width}/{method}_seed_{seed}"


def _descent_name(seed: int) -> str:
    return f"descent/seed_{seed}"


if __name__ == "__main__":
    command_line.run(Settings, main, __doc__)
