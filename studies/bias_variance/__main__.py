"""How biased and how noisy is every gradient guess, at the start, in the middle and at the end of training?

Trains the seed paper's MLP by backpropagation, freezes it at several steps, draws thousands of guesses of every
estimator on one batch, and puts the closed-form prediction beside each measured number.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import fganalysis as fga
from fganalysis.results import store
from fganalysis.results.cells import Results, run_cells, unfinished
from fganalysis.results.identity import Cell
from fganalysis.training.datasets import Dataset
from studies.bias_variance import figures
from studies.bias_variance import page as bias_variance_page
from studies.bias_variance.cells import (
    TRAINING_BATCH,
    diagnosed,
    joined,
    name_of_part,
    node_of,
    part_of_guesses,
    subspaces,
    trained,
)
from studies.kit import command_line, kept_networks, pages
from studies.kit.command_line import AUTO, DatasetName, Device

ESTIMATORS = ("backpropagation", "weight", "activity", "upstream", "orthogonal", "newton_schulz", "preconditioned")
SUBSPACES = "subspaces"
# The settings that a page names, beside width and seed.
NAMED = ("guesses", "estimators", "batch", "dataset", "epochs", "device")


@dataclass(frozen=True)
class Settings(command_line.Running):
    """What is trained, when it is looked at, and how closely."""

    widths: tuple[int, ...] = (128,)
    """Widths of the three hidden layers; each width is a study of its own."""
    epochs: int = 60
    """Passes over the training set (8 steps each on MNIST-1D)."""
    steps: tuple[int, ...] = ()
    """Training steps to look at; when none are given, the first, the middle and the last."""
    estimators: tuple[str, ...] = ESTIMATORS
    """Keys of the estimators to diagnose."""
    guesses: int = 4096
    """Guesses drawn of each estimator at each step."""
    batch: int = 128
    """Examples in the batch that the gradients are those of."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the initial weights, the order of the examples and the guesses."""
    dataset: DatasetName = "mnist1d"
    """What the network is trained on."""
    device: Device = AUTO
    """Where the guesses are made: auto (a GPU where there is one), cpu, cuda or cuda:N."""
    memory: int = 2**30
    """Bytes of working space for the sampler."""
    keep_sums: bool = False
    """Keeps sums over guesses, some megabytes a cell, from which a later run with more guesses continues."""
    split: int = 1
    """Parts in which the guesses of an estimator at a step are drawn, side by side; changes no number."""
    out: Path = Path("results/bias_variance")
    """Where cells, results, pages and figures go; cells that are finished there are not computed again."""

    def __post_init__(self) -> None:
        command_line.check(self, least={"steps": 0, "guesses": 2}, optional=("steps",))
        for key in self.estimators:
            fga.estimators.resolve(key)


def main(settings: Settings) -> None:
    """Computes what is missing, and writes the result, the page and the figures of every network."""
    data = fga.datasets.load(settings.dataset)
    networks = run_cells(
        trainings(settings, data), settings.out, workers=settings.workers, scheduler=settings.scheduler
    )
    wanted = cells(settings, data, networks)
    parts = parts_of(unfinished(wanted, settings.out), settings)
    run_cells(parts, settings.out, workers=settings.workers, scheduler=settings.scheduler)
    results = run_cells(wanted, settings.out, workers=settings.workers, scheduler=settings.scheduler)
    for part in parts:  # What is merged is not needed any more, and takes much room.
        path = part.path(settings.out)
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # Unless it is empty.
            path.parent.rmdir()
    chosen = command_line.depends_on(settings, *NAMED)
    for width, seed in _places(settings):
        folder = settings.out / _folder(width, seed)
        kinds = (*settings.estimators, SUBSPACES)
        steps = _steps(settings, data)
        tree = joined([[results[_name(width, seed, step, kind)] for kind in kinds] for step in steps])
        store.write(tree, folder / "bias_variance.nc")
        figures.write(tree, folder)
        fga.summary(tree).to_csv(folder / "summary.csv", index=False)
        log = networks.dataset(_training(width, seed))
        text = bias_variance_page.page(tree, log, chosen | {"width": width, "seed": seed})
        pages.write("bias_variance", text, {}, folder, None)
        print(f"{text}\nResults, figures and the whole table are in {folder}")


def trainings(settings: Settings, data: Dataset) -> list[Cell]:
    """The networks that are trained."""
    chosen = {"dataset": settings.dataset, "epochs": settings.epochs, "steps": _steps(settings, data)}
    known: dict[str, str] = {settings.dataset: data.digest()}
    return [
        Cell(_training(width, seed), trained, chosen | {"width": width, "seed": seed}, known, resumes=True)
        for width, seed in _places(settings)
    ]


def cells(settings: Settings, data: Dataset, networks: Results) -> list[Cell]:
    """Every estimator at every step of every network, and the subspaces there."""
    found = []
    chosen = {"dataset": settings.dataset, "batch": settings.batch, "device": settings.device}
    for width, seed in _places(settings):
        training = _training(width, seed)
        known: dict[str, str] = {settings.dataset: data.digest(), "network": kept_networks.digest(networks, training)}
        places: dict[str, object] = {"network": networks.path(training)}
        sums = settings.out / _folder(width, seed) / "sums" if settings.keep_sums else None
        for step in _steps(settings, data):
            here = chosen | {"width": width, "seed": seed, "step": step}
            for key in settings.estimators:
                own = here | {"estimator": key, "guesses": settings.guesses, "memory": settings.memory}
                name = _name(width, seed, step, key)
                split = {"parts": settings.out / _parts(name) if settings.split > 1 else None, "split": settings.split}
                found.append(Cell(name, diagnosed, own, known, places | {"sums": sums} | split))
            found.append(Cell(_name(width, seed, step, SUBSPACES), subspaces, here, known, places))
    return found


def parts_of(whole: Sequence[Cell], settings: Settings) -> list[Cell]:
    """The parts of the guesses of all cells that are split."""
    if settings.split == 1:
        return []
    return [
        Cell(
            f"{_parts(cell.name)}/{name_of_part(number, settings.split)}",
            part_of_guesses,
            {**cell.settings, "part": number, "split": settings.split},
            cell.data,
            {name: cell.places[name] for name in ("network", "sums")},
        )
        for cell in whole
        if cell.make is diagnosed
        for number in range(settings.split)
    ]


def _parts(name: str) -> str:
    """The folder of the parts of a cell."""
    return f"{name}.parts"


def _places(settings: Settings) -> Iterator[tuple[int, int]]:
    return ((width, seed) for width in settings.widths for seed in settings.seeds)


def _steps(settings: Settings, data: Dataset) -> tuple[int, ...]:
    last = settings.epochs * -(-len(data.train_inputs) // TRAINING_BATCH)
    return settings.steps or (0, last // 2, last)


def _folder(width: int, seed: int) -> str:
    return f"width_{width}/seed_{seed}"


def _training(width: int, seed: int) -> str:
    return f"{_folder(width, seed)}/cells/training"


def _name(width: int, seed: int, step: int, kind: str) -> str:
    return f"{_folder(width, seed)}/cells/{node_of(step)}/{kind}"


if __name__ == "__main__":
    command_line.run(Settings, main, __doc__)
