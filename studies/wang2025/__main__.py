"""Do the tables of "Towards Scalable Backpropagation-Free Gradient Estimation" hold, with several seeds and intervals?

Wang, Markou & Campbell 2025, tables 1, 2, 3, 5 and figure 1: the MLP 40-w-w-w-10 (ReLU, no biases) on MNIST-1D, AdamW
at 1e-4, batches of 512, one guess a step. The paper has neither seeds nor intervals. Stated, for it decides everything:
noise independent for each example, one slope an example, all layers perturbed in one pass. Table 4, which is about
cost, is `studies.step_cost`.
"""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import xarray as xr
from tqdm import tqdm

from fganalysis.results import store
from studies.kit import command_line, kept_cells, pages
from studies.wang2025 import cells, collected, figures
from studies.wang2025 import page as wang2025_page
from studies.wang2025.cells import Training

MAIN = ("backpropagation", "weight", "activity", "upstream", "orthogonal, k = 10")  # The rows of table 3.
TABLE_1 = ("orthogonal, k = rank", "orthogonal, k = 25", "orthogonal, k = 1")  # Beside those that table 3 has.


@dataclass(frozen=True)
class Settings:
    """Without a choice, --quick."""

    quick: bool = False
    """Widths 64 and 128, 60 epochs, three seeds: minutes."""
    full: bool = False
    """The paper's widths and 300 epochs, five seeds, and tables 1, 2 and 5: hours, resumable."""
    seeds: int | None = None
    """Seeds of every cell, instead of three or five."""
    epochs: int | None = None
    """Passes over the training set, instead of 60 or 300."""
    workers: int = 2
    """Trainings side by side, each on one thread."""
    wide_seeds: int = 2
    """Seeds of the costliest cell, orthogonal at width 512, and of the control with more subspace iterations."""
    out: Path = Path("results/wang2025")
    """Where cells and the result go; cells that are finished there are not computed again."""
    page: Path | None = None
    """Where the page, its figures and wang2025.nc go, if not to `out`; docs/results replaces the committed ones."""
    resume_from: Path | None = None
    """The results of an unfinished run, from any machine: its trainings are taken over as they are."""

    def __post_init__(self) -> None:
        command_line.check(self)
        if self.quick and self.full:
            raise ValueError("quick and full exclude each other: choose one")


def main(settings: Settings) -> xr.DataTree:
    trainings = grid(settings)
    folder = settings.out / ("full" if settings.full else "quick")
    if settings.resume_from is not None:
        before = store.read(settings.resume_from)
        if "training" not in before.children or "epochs" not in before.attrs:
            raise ValueError(f"resume_from must be a wang2025.nc of this study, got {settings.resume_from}")
        for one, dataset in collected.cells(before).items():
            if one in trainings and _finished(one, folder) is None:
                _write(one, dataset, folder)
    missing = [one for one in trainings if _finished(one, folder) is None]
    print(f"{len(trainings) - len(missing)} of {len(trainings)} trainings are finished in {folder}")
    if missing:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(settings.workers, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            running = [pool.submit(_compute, one, folder) for one in missing]
            for future in tqdm(as_completed(running), total=len(running), unit="training"):
                future.result()
    return report(settings)


def report(settings: Settings) -> xr.DataTree:
    """Figures, page, results and printed tables from the trainings that are finished."""
    folder = settings.out / ("full" if settings.full else "quick")
    trainings = grid(settings)
    kept = {one: dataset for one in trainings if (dataset := _finished(one, folder)) is not None}
    tree = collected.collect(kept)
    tree.attrs["trainings"] = f"{len(kept)} of {len(trainings)}"
    store.write(tree, folder / "wang2025.nc")
    drawn = figures.figures(tree)
    pages.write("wang2025", wang2025_page.page(tree), drawn, folder, settings.page, with_result=True)
    print(wang2025_page.text(tree))
    return tree


def grid(settings: Settings) -> list[Training]:
    """Every training, those of table 3 first."""
    seeds = settings.seeds or (5 if settings.full else 3)
    epochs = settings.epochs or (300 if settings.full else 60)
    widths = (64, 128, 256, 512) if settings.full else (64, 128)
    trainings = [Training(method, width, seed, epochs) for seed in range(seeds) for width in widths for method in MAIN]
    # What takes longest or matters least comes last, so that an unfinished run says most.
    late = [one for one in trainings if (one.method, one.width) == ("orthogonal, k = 10", 512)]
    trainings = [one for one in trainings if one not in late]
    if settings.full:
        others = [("preconditioned", 256), *((method, 128) for method in TABLE_1)]
        trainings += [one for one in late if one.seed < settings.wide_seeds]
        trainings += [Training(method, width, seed, epochs) for seed in range(seeds) for method, width in others]
        iterated = "orthogonal, k = 10, iterated"
        trainings += [Training(iterated, 128, seed, epochs) for seed in range(settings.wide_seeds)]
    return trainings


def _path(training: Training, folder: Path) -> Path:
    method = training.method.replace(",", "").replace(" = ", "_").replace(" ", "_")
    return folder / f"width_{training.width}" / method / f"seed_{training.seed}.nc"


def _finished(training: Training, folder: Path) -> xr.Dataset | None:
    """The cell where it is there and was made with these settings."""
    tree = kept_cells.finished(_path(training, folder), asdict(training))
    return None if tree is None else tree.to_dataset()


def _compute(training: Training, folder: Path) -> None:
    if _finished(training, folder) is not None:  # By another run of the study, meanwhile.
        return
    _write(training, cells.cell(training), folder)


def _write(training: Training, dataset: xr.Dataset, folder: Path) -> None:
    kept_cells.write(dataset, _path(training, folder), asdict(training))


if __name__ == "__main__":
    command_line.run(Settings, main, __doc__)
