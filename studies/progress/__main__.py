"""Does `fganalysis.progress` tell the step size that decreases the loss most, and by how much?

Networks at three moments of training by backpropagation. For each estimator, the decrease of the loss that the
quadratic model predicts stands beside the mean decrease after single steps θ − ηĝ along other guesses, at ten step
sizes around the advised one.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import xarray as xr

from fganalysis.arguments import check_names
from fganalysis.results import store
from fganalysis.results.cells import run_cells
from fganalysis.results.identity import Cell
from studies.architectures.networks import DEFAULT_TEXT
from studies.kit import command_line, pages
from studies.kit.long_names import described
from studies.progress import figures
from studies.progress import page as progress_page
from studies.progress.cells import cell
from studies.progress.networks import NETWORKS, data_of

KINDS = {"_se": "standard error of: ", "_low": "lower end of: ", "_high": "upper end of: "}
QUANTITIES = {
    "predicted": ("decrease of the loss that the quadratic model predicts", "loss"),
    "actual": ("mean decrease of the loss after a step", "loss"),
    "best": ("best step size of the sweep over the advised one", "1"),
    "best_step": ("advised step size", "(unit of weight)² per loss"),
    "curved_efficiency": ("expected decrease over that of the gradient", "1"),
    "unseen_curvature": ("second difference of the loss over the curvature, less 1", "1"),
    "effective_rank": ("effective rank of the curvature", "1"),
    "gradient_curvature": ("curvature along the gradient", "loss³ per (unit of weight)⁴"),
    "gradient_step": ("best step size of backpropagation", "(unit of weight)² per loss"),
    "loss": ("loss of the batch", "loss"),
    "has_kinks": ("1 if the loss has kinks, 0 if not", "1"),
}
CHOSEN = ("width", "batch", "guesses", "losses")


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
    out: Path = Path("results/progress")
    """Where cells go, a file for each network and moment; what is finished there is not computed again."""
    page: Path | None = None
    """Where progress.md and its figures go, if not to `out`; docs/results has the committed ones."""

    def __post_init__(self) -> None:
        command_line.check(self, least={"steps": 0, "guesses": 16, "losses": 16})
        check_names("networks", self.networks, NETWORKS)


def main(settings: Settings) -> xr.Dataset:
    """Computes what is missing, collects it, and writes the page and its figures."""
    results = run_cells(cells(settings), settings.out, workers=settings.workers, scheduler=settings.scheduler)
    rows = []
    for name in settings.networks:
        moments = [results.dataset(_name(name, steps)) for steps in settings.steps]
        rows.append(xr.concat(moments, dim=xr.IndexVariable("steps", list(settings.steps)), combine_attrs="override"))
    dataset = xr.concat(rows, dim=xr.IndexVariable("network", list(settings.networks)), combine_attrs="drop")
    dataset = described(dataset, QUANTITIES, KINDS)
    dataset.attrs = command_line.depends_on(settings, *CHOSEN, "seed")
    store.write(dataset, settings.out / "progress.nc")
    text = progress_page.page(dataset)
    pages.write("progress", text, figures.figures(dataset), settings.out, settings.page)
    print(text)
    return dataset


def cells(settings: Settings) -> list[Cell]:
    """Every network at every moment."""
    chosen, found = command_line.depends_on(settings, *CHOSEN, "device"), []
    for name, steps in itertools.product(settings.networks, settings.steps):
        own = {"network_name": name, "steps": steps, "seed": settings.seed} | chosen
        data = {name: data_of(name, settings.text).digest()}
        found.append(Cell(_name(name, steps), cell, own, data, {"text": settings.text}, resumes=True))
    return found


def _name(network: str, steps: int) -> str:
    return f"{network.replace(' ', '_')}/steps_{steps}"


if __name__ == "__main__":
    command_line.run(Settings, main, __doc__)
