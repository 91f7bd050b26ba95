"""Does `fganalysis.progress` tell the step size that decreases the loss most, and by how much?

Networks at three moments of training by backpropagation. For each estimator, the decrease of the loss that the
quadratic model predicts stands beside the mean decrease after single steps θ − ηĝ along other guesses, at ten step
sizes around the advised one. Does the model rank estimators by the loss after a training? Is the effective rank flat in
width?
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import xarray as xr

from fganalysis.arguments import check_names
from fganalysis.results import store
from fganalysis.results.cells import Results, run_cells
from fganalysis.results.identity import Cell, Make
from studies.architectures.networks import DEFAULT_TEXT
from studies.kit import command_line, pages
from studies.kit.long_names import described
from studies.progress import figures, quantities, training, widths
from studies.progress import page as progress_page
from studies.progress.cells import cell
from studies.progress.losses import LATE
from studies.progress.networks import NETWORKS, data_of

WIDENED = "MLP"
BATCHES: tuple[str, ...] = get_args(training.Batches)
CHOSEN = ("width", "batch", "guesses", "losses")  # Settings of a cell of single steps.


@dataclass(frozen=True)
class Settings(command_line.OnDevice):
    """Which networks at which moments, and how many guesses."""

    networks: tuple[str, ...] = NETWORKS
    """Which networks, by their names in studies/progress/networks.py."""
    steps: tuple[int, ...] = (0, 100, 1000)
    """Steps of training before networks are measured, rounded to whole passes over the training set."""
    width: int = 128
    """Width of the MLPs."""
    seed: int = 0
    """Of weights, batch, order of training and noise."""
    guesses: int = 256
    """Guesses of each estimator by which the quadratic model is measured."""
    losses: int = 512
    """Other guesses of each estimator, along which the losses are evaluated."""
    batch: int = 16
    """Examples in the batch that losses and gradients are those of."""
    text: Path = DEFAULT_TEXT
    """The file whose bytes the GPT predicts."""
    training_networks: tuple[str, ...] = NETWORKS
    """Which networks are trained along every estimator."""
    batches: tuple[str, ...] = BATCHES
    """One batch for a whole training, or a new one for every step."""
    training_seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Of these trainings: of weights, examples and noise."""
    training_start: int = 100
    """Steps of training by backpropagation before these trainings start, rounded as `steps`."""
    late_networks: tuple[str, ...] = ("GPT",)
    """Which networks are trained along every estimator from a later start, too."""
    late_start: int = 1000
    """Steps of training by backpropagation before these later trainings start."""
    training_steps: int = 100
    """Steps of these trainings."""
    training_batch: int = 32
    """Examples in their batches."""
    training_guesses: int = 32
    """Guesses by which their step sizes are measured, but at the start."""
    start_guesses: int = 128
    """Guesses of every estimator at the start, by which estimators are ranked."""
    widths: tuple[int, ...] = (64, 128, 256, 512, 1024)
    """Widths of the MLP over which the effective rank is measured."""
    width_seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Of the weights, the training and the batch of these MLPs."""
    width_steps: tuple[int, ...] = (0, 100, 500)
    """Steps of their training, rounded as `steps`."""
    directions: int = 16
    """Random directions for the trace of their curvature."""
    out: Path = Path("results/progress")
    """Where cells go, a file for each network and moment; what is finished there is not computed again."""
    page: Path | None = None
    """Where progress.md and its figures go, if not to `out`; docs/results has the committed ones."""

    def __post_init__(self) -> None:
        least = {"steps": 0, "guesses": 16, "losses": 16, "training_guesses": 16, "start_guesses": 16}
        starts_at_zero = {"training_start": 0, "late_start": 0, "width_steps": 0}
        command_line.check(self, least=least | starts_at_zero, optional=("late_networks",))
        check_names("networks", self.networks, NETWORKS)
        check_names("training_networks", self.training_networks, NETWORKS)
        if self.late_networks:
            check_names("late_networks", self.late_networks, NETWORKS)
        check_names("batches", self.batches, BATCHES)


def main(settings: Settings) -> xr.DataTree:
    """Computes what is missing, collects it, and writes the page and its figures."""
    results = run_cells(cells(settings), settings.out, workers=settings.workers, scheduler=settings.scheduler)
    collected = {
        "steps": described(_steps(settings, results), quantities.OF_STEPS, quantities.KINDS),
        "training": described(_training(settings, results), quantities.OF_TRAINING, quantities.KINDS),
        "widths": described(_widths(settings, results), quantities.OF_WIDTHS, quantities.KINDS),
    }
    tree = xr.DataTree.from_dict(collected)
    tree.attrs = {name: value for name, value in command_line.depends_on(settings).items() if name != "text"}
    store.write(tree, settings.out / "progress.nc")
    text = progress_page.page(tree)
    pages.write("progress", text, figures.figures(tree), settings.out, settings.page, with_result=True)
    print(text)
    return tree


def _steps(settings: Settings, results: Results) -> xr.Dataset:
    rows = []
    for name in settings.networks:
        moments = [results.dataset(_name(name, steps)) for steps in settings.steps]
        rows.append(xr.concat(moments, dim=xr.IndexVariable("steps", list(settings.steps)), combine_attrs="override"))
    return xr.concat(rows, dim=xr.IndexVariable("network", list(settings.networks)), combine_attrs="drop")


def _training(settings: Settings, results: Results) -> xr.Dataset:
    dims = {
        "network": [shown for shown, _, _ in starts(settings)],
        "batches": settings.batches,
        "seed": settings.training_seeds,
    }
    return _together(dims, lambda *place: results.dataset(_training_name(*place)))


def _widths(settings: Settings, results: Results) -> xr.Dataset:
    dims = {"width": settings.widths, "seed": settings.width_seeds}
    return _together(dims, lambda *place: results.dataset(_width_name(*place)))


def _together(dims: Mapping[str, Sequence[Any]], read: Callable[..., xr.Dataset]) -> xr.Dataset:
    """What is read for all values of the dimensions, in one Dataset over these."""
    if not dims:
        return read()
    (name, values), *others = dims.items()
    parts = [_together(dict(others), partial(read, value)) for value in values]
    return xr.concat(parts, dim=xr.IndexVariable(name, list(values)), combine_attrs="drop")


def cells(settings: Settings) -> list[Cell]:
    """Single steps, trainings and widths; with the seeds last, so that what is finished first is whole."""
    return [*step_cells(settings), *training_cells(settings), *width_cells(settings)]


def step_cells(settings: Settings) -> list[Cell]:
    """Every network at every moment."""
    chosen = command_line.depends_on(settings, *CHOSEN, "device")
    return [
        _cell(settings, _name(name, steps), cell, name, {"steps": steps, "seed": settings.seed} | chosen)
        for name, steps in itertools.product(settings.networks, settings.steps)
    ]


def training_cells(settings: Settings) -> list[Cell]:
    """Every network with one batch and with new ones, for every seed."""
    chosen = {
        "width": settings.width,
        "batch": settings.training_batch,
        "steps": settings.training_steps,
        "guesses": settings.training_guesses,
        "guesses_at_start": settings.start_guesses,
        "device": settings.device,
    }
    return [
        _cell(
            settings,
            _training_name(shown, batches, seed),
            training.cell,
            name,
            {"batches": batches, "seed": seed, "start": start} | chosen,
        )
        for seed, (shown, name, start), batches in itertools.product(
            settings.training_seeds, starts(settings), settings.batches
        )
    ]


def starts(settings: Settings) -> list[tuple[str, str, int]]:
    """The name on the page, the network, and the steps by backpropagation before, of every network that is trained."""
    usual = [(name, name, settings.training_start) for name in settings.training_networks]
    late = [(f"{name}{LATE}{settings.late_start}", name, settings.late_start) for name in settings.late_networks]
    return usual + late


def width_cells(settings: Settings) -> list[Cell]:
    """The MLP in every width, for every seed."""
    chosen = {
        "moments": settings.width_steps,
        "batch": settings.batch,
        "directions": settings.directions,
        "device": settings.device,
    }
    return [
        _cell(settings, _width_name(width, seed), widths.cell, WIDENED, {"width": width, "seed": seed} | chosen)
        for seed, width in itertools.product(settings.width_seeds, settings.widths)
    ]


def _cell(settings: Settings, name: str, make: Make, network: str, own: dict[str, object]) -> Cell:
    data = {network: data_of(network, settings.text).digest()}
    return Cell(name, make, {"network_name": network} | own, data, {"text": settings.text}, resumes=True)


def _training_name(network: str, batches: str, seed: int) -> str:
    return f"training/{network.replace(' ', '_')}/{batches}/seed_{seed}"


def _width_name(width: int, seed: int) -> str:
    return f"widths/{width}/seed_{seed}"


def _name(network: str, steps: int) -> str:
    return f"{network.replace(' ', '_')}/steps_{steps}"


if __name__ == "__main__":
    command_line.run(Settings, main, __doc__)
