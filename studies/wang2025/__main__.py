"""Do the tables of "Towards Scalable Backpropagation-Free Gradient Estimation" hold, with several seeds and intervals?

Wang, Markou & Campbell 2025, tables 1, 2, 3, 5 and figure 1: the MLP 40-w-w-w-10 (ReLU, no biases) on MNIST-1D, AdamW
at 1e-4, batches of 512, one guess a step. The paper has neither seeds nor intervals. Stated, for it decides everything:
noise independent for each example, one slope an example, all layers perturbed in one pass. Table 4, which is about
cost, is `studies.step_cost`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import xarray as xr

from fganalysis.results import store
from fganalysis.results.cells import Results, run_cells
from fganalysis.results.identity import Cell
from studies.kit import command_line, kept_networks, pages
from studies.kit.digests import digests
from studies.wang2025 import collected, figures
from studies.wang2025 import page as wang2025_page
from studies.wang2025.cells import Training, guesses_after, measured, trained

MAIN = ("backpropagation", "weight", "activity", "upstream", "orthogonal, k = 10")  # The rows of table 3.
TABLE_1 = ("orthogonal, k = rank", "orthogonal, k = 25", "orthogonal, k = 1")  # Beside those that table 3 has.


@dataclass(frozen=True)
class Settings(command_line.OnDevice):
    """Without a choice, --quick."""

    quick: bool = False
    """Widths 64 and 128, 60 epochs, three seeds: minutes."""
    full: bool = False
    """The paper's widths and 300 epochs, five seeds, and tables 1, 2 and 5: hours, resumable."""
    seeds: int | None = None
    """Seeds of every cell, instead of three or five."""
    epochs: int | None = None
    """Passes over the training set, instead of 60 or 300."""
    control_seeds: int = 3
    """Seeds of the control with more subspace iterations."""
    out: Path = Path("results/wang2025")
    """Where cells and the result go; cells that are finished there are not computed again."""
    page: Path | None = None
    """Where the page, its figures and wang2025.nc go, if not to `out`; docs/results replaces the committed ones."""
    resume_from: Path | None = None
    """The collected results of another run, whose trainings are taken over as they are, by whatever code."""
    workers: int = 2
    """Processes that compute cells side by side, each on one thread."""

    def __post_init__(self) -> None:
        command_line.check(self)
        if self.quick and self.full:
            raise ValueError("quick and full exclude each other: choose one")


def main(settings: Settings) -> xr.DataTree:
    """Computes what is missing, collects it, and writes the page and its figures."""
    folder = settings.out / ("full" if settings.full else "quick")
    trainings = grid(settings)
    taken = _taken_over(settings.resume_from, trainings)
    data = digests("mnist1d")
    own = [one for one in trainings if one not in taken]
    networks = run_cells(
        [training_cell(one, data) for one in own], folder, workers=settings.workers, scheduler=settings.scheduler
    )
    guesses = [metrics_cell(one, guess, data, networks) for one in own for guess in guesses_after(one)]
    metrics = run_cells(guesses, folder, workers=settings.workers, scheduler=settings.scheduler)
    found = {one: taken[one] if one in taken else _joined(one, networks, metrics) for one in trainings}
    tree = collected.collect(found)
    tree.attrs["trainings"] = f"{len(found)} of {len(trainings)}"
    if taken:
        tree.attrs["taken_over"] = f"{len(taken)} trainings of {settings.resume_from}"
    store.write(tree, folder / "wang2025.nc")
    pages.write("wang2025", wang2025_page.page(tree), figures.figures(tree), folder, settings.page, with_result=True)
    print(wang2025_page.text(tree))
    return tree


def cells(settings: Settings) -> list[Cell]:
    """The trainings that the settings ask for. What is measured after them follows from them."""
    data = digests("mnist1d")
    return [training_cell(one, data) for one in grid(settings)]


def training_cell(training: Training, data: dict[str, str]) -> Cell:
    return Cell(_name(training), trained, {"training": training}, data, resumes=True)


def metrics_cell(training: Training, guess: str, data: dict[str, str], networks: Results) -> Cell:
    """The metrics of one kind of guess on the network that a training's cell holds."""
    name = _name(training)
    return Cell(
        f"{name}_measured/{_slug(guess)}",
        measured,
        {"training": training, "guess": guess},
        data | {"network": kept_networks.digest(networks, name)},
        places={"network": networks.path(name)},
    )


def _joined(training: Training, networks: Results, metrics: Results) -> xr.Dataset:
    """All that is known of one training."""
    name = _name(training)
    rows = [metrics.dataset(f"{name}_measured/{_slug(guess)}") for guess in guesses_after(training)]
    parts = [networks.dataset(name), *([xr.concat(rows, dim="guess_kind", data_vars="all")] if rows else [])]
    return xr.merge(parts, join="outer", compat="no_conflicts", combine_attrs="override")


def _taken_over(source: Path | None, trainings: list[Training]) -> dict[Training, xr.Dataset]:
    """The trainings of a collected result. They do not become cells, whose identity would claim another origin."""
    if source is None:
        return {}
    before = store.read(source)
    if "training" not in before.children or "epochs" not in before.attrs:
        raise ValueError(f"resume_from must be a wang2025.nc of this study, got {source}")
    known = collected.cells(before)
    taken = {one: known[one] for one in trainings if one in known}
    made = before.attrs.get("git_commit", "unknown")
    print(f"{len(taken)} of {len(trainings)} trainings are taken over from {source}, made by the code of commit {made}")
    return taken


def grid(settings: Settings) -> list[Training]:
    """Every training, those of table 3 first."""
    seeds = settings.seeds or (5 if settings.full else 3)
    epochs = settings.epochs or (300 if settings.full else 60)
    widths = (64, 128, 256, 512) if settings.full else (64, 128)
    last = (epochs, settings.device)
    trainings = [Training(method, width, seed, *last) for seed in range(seeds) for width in widths for method in MAIN]
    # What takes longest or matters least comes last, so that an unfinished run says most.
    late = [one for one in trainings if (one.method, one.width) == ("orthogonal, k = 10", 512)]
    trainings = [one for one in trainings if one not in late]
    if settings.full:
        others = [("preconditioned", 256), *((method, 128) for method in TABLE_1)]
        trainings += late
        trainings += [Training(method, width, seed, *last) for seed in range(seeds) for method, width in others]
        iterated = "orthogonal, k = 10, iterated"
        trainings += [Training(iterated, 128, seed, *last) for seed in range(settings.control_seeds)]
    return trainings


def _name(training: Training) -> str:
    return f"width_{training.width}/{_slug(training.method)}/seed_{training.seed}"


def _slug(name: str) -> str:
    return name.replace(",", "").replace(" = ", "_").replace(" ", "_")


if __name__ == "__main__":
    command_line.run(Settings, main, __doc__)
