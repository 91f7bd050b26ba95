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

import dataclasses
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import xarray as xr
from tqdm import tqdm

from fganalysis.results import store
from studies.kit import command_line, kept_cells, pages
from studies.kit.command_line import DatasetName
from studies.subspaces import answers, collection, descent
from studies.subspaces import figures as subspace_figures
from studies.subspaces.cells import METHODS, VERSION, Training, training_cell


@dataclass(frozen=True)
class Settings:
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
    """Processes, of one thread each."""
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


@dataclass(frozen=True)
class Cell:
    """One unit of work: its file, and the settings that its result depends on."""

    path: Path
    training: Training | None
    descent: descent.Settings | None

    def settings(self) -> dict[str, object]:
        chosen = self.training or self.descent
        assert chosen is not None
        version = {"version": VERSION} if self.training is not None else {}
        return dataclasses.asdict(chosen) | version

    def finished(self) -> bool:
        return kept_cells.is_finished(self.path, self.settings())

    def compute(self) -> xr.DataTree:
        if self.training is not None:
            return training_cell(self.training, self.path.with_suffix(""))
        assert self.descent is not None
        return xr.DataTree(descent.descend(self.descent))


def cells(settings: Settings) -> list[Cell]:
    """Every cell of the study, those that take longest first."""
    steps_per_epoch = -(-_n_examples(settings.dataset) // settings.training_batch)
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
                )
                found.append(Cell(settings.out / f"width_{width}" / f"{method}_seed_{seed}.nc", training, None))
    for seed in settings.seeds:
        own = descent.Settings(
            width=settings.descent_width,
            warm_up=5 * settings.descent_steps,
            steps=settings.descent_steps,
            k=settings.k,
            seed=seed,
            dataset=settings.dataset,
        )
        found.append(Cell(settings.out / "descent" / f"seed_{seed}.nc", None, own))
    return found


def main(settings: Settings) -> xr.Dataset:
    """Computes what is missing, collects it, and writes the answers and figures."""
    wanted, kept, started = cells(settings), settings.out / "subspaces.nc", time.perf_counter()
    computed = run(wanted, settings.workers)
    trainings = {
        (width, method, seed): store.read(settings.out / f"width_{width}" / f"{method}_seed_{seed}.nc")
        for width in settings.widths
        for method in METHODS
        for seed in settings.seeds
    }
    descents = xr.concat(
        [store.read(settings.out / "descent" / f"seed_{seed}.nc").to_dataset() for seed in settings.seeds],
        dim=xr.IndexVariable("seed", list(settings.seeds)),
    )
    collected = collection.collect(trainings, descents, settings.k)
    chosen = {name: value for name, value in dataclasses.asdict(settings).items() if name not in ("out", "page")}
    if computed == len(wanted):
        took = {"minutes": (time.perf_counter() - started) / 60, "workers": settings.workers, "cores": os.cpu_count()}
        collected.attrs["whole_run"] = json.dumps(took)
    elif not computed and (before := kept_cells.finished(kept, chosen)) is not None and "whole_run" in before.attrs:
        collected.attrs["whole_run"] = before.attrs["whole_run"]
    kept_cells.write(collected, kept, chosen)
    text = answers.answers(store.read(kept).to_dataset())  # The page says what is kept and nothing else.
    figures = subspace_figures.figures(trainings, collected, settings.k)
    folder = pages.write("subspaces", text, figures, settings.out, settings.page, with_result=True)
    print(text)
    print(f"Cells are in {settings.out}, their collection, the answers and figures in {folder}")
    print(f"It took {(time.perf_counter() - started) / 60:.1f} minutes for {computed} of {len(wanted)} cells")
    return collected


def run(wanted: Iterable[Cell], workers: int) -> int:
    """Computes the cells that are not finished, each in a process of one thread, and says how many those were."""
    missing = [cell for cell in wanted if not cell.finished()]
    if missing:
        with _computing(workers) as each:
            for _ in tqdm(each(missing), "cells", len(missing), unit="cell"):
                pass
    return len(missing)


def _finish(cell: Cell) -> Path:
    kept_cells.write(cell.compute(), cell.path, cell.settings())
    return cell.path


@contextmanager
def _computing(workers: int) -> Iterator[Callable[[list[Cell]], Iterable[Path]]]:
    """A map over cells, in this process or in several.

    Threads would not do: torch's forward mode, which captures the derivatives, has one state for the whole process. A
    Pool's processes end when this one is killed. Each has one thread: networks this small are slower with two.
    """
    if workers == 1:
        yield lambda missing: map(_finish, missing)
        return
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))  # Read when a process first loads its libraries.
    try:
        with multiprocessing.get_context("spawn").Pool(workers, initializer=torch.set_num_threads, initargs=(1,)) as p:
            yield lambda missing: p.imap_unordered(_finish, missing)
            p.close()  # Ended by themselves, the processes leave no locks behind that Python complains of.
            p.join()
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _n_examples(dataset: str) -> int:
    from fganalysis.training.datasets import load

    return len(load(dataset).train_inputs)


if __name__ == "__main__":
    command_line.run(Settings, main, __doc__)
