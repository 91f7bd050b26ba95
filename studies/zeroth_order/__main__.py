"""What does each structure of zeroth-order directions buy, and which bias do the slips of published code have?

Structured directions of the weights (low rank, held subspaces, scales, guides, masks, finite σ) on a network at two
moments of training: bias, variance, cosine, efficiency and curved efficiency, measured beside their closed forms. And
slips of published implementations on a small network, each beside the exact mean that it has instead of the gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import xarray as xr

from fganalysis.arguments import check_names
from fganalysis.results.cells import run_cells
from fganalysis.results.identity import Cell
from studies.kit import command_line, pages
from studies.kit.long_names import described
from studies.progress.networks import data_of
from studies.zeroth_order import directions, figures, slips
from studies.zeroth_order import page as zeroth_order_page

KINDS = {"_low": "lower end of: ", "_high": "upper end of: ", "_predicted": "predicted: ", "_exact": "exact: "}
QUANTITIES = {
    "relative_bias": ("relative bias", "1"),
    "relative_variance": ("total variance over the squared norm of the gradient", "1"),
    "cosine": ("mean cosine of the guess and the gradient", "1"),
    "efficiency": ("efficiency", "1"),
    "curved_efficiency": ("expected decrease over that of the gradient", "1"),
    "numbers": ("random numbers that a direction is made of", "1"),
    "effective_rank": ("effective rank of the curvature", "1"),
    "loss": ("loss of the batch", "loss"),
    "shrinkage": ("inner product of mean and gradient over the gradient's square", "1"),
    "directional_bias": ("1 less the squared cosine of mean and gradient", "1"),
    "verdict": ("verdict of check_unbiased against the gradient", "1"),
    "verdict_guesses": ("guesses of that verdict", "1"),
    "mean_verdict": ("verdict of check_unbiased against the exact mean", "1"),
    "mean_verdict_guesses": ("guesses of that verdict", "1"),
    "mean_bound": ("upper bound of the distance to the exact mean, over its norm", "1"),
}
OF_DIRECTIONS = ("width", "batch", "guesses", "curved_guesses")
OF_SLIPS = ("guesses", "tolerance", "max_guesses")


@dataclass(frozen=True)
class Settings(command_line.OnDevice):
    """Which network at which moments, and how many guesses."""

    steps: tuple[int, ...] = (0, 500)
    """Steps of training before the network is measured, rounded to whole passes over the training set."""
    width: int = 32
    """Width of the tanh MLP, with three hidden layers, on MNIST-1D."""
    batch: int = 64
    """Examples in the batch that losses and gradients are those of."""
    guesses: int = 2048
    """Guesses of each estimator for bias, variance, cosine and efficiency."""
    curved_guesses: int = 256
    """Guesses of each estimator for the curvature along them."""
    slips: tuple[str, ...] = tuple(slips.SLIPS)
    """Names of the slips, as in studies/zeroth_order/slips.py."""
    tolerance: float = 0.05
    """Relative bias that check_unbiased lets pass."""
    max_guesses: int = 2**19
    """Guesses after which check_unbiased stops undecided."""
    seed: int = 0
    """Of weights, batch, order of training and noise."""
    out: Path = Path("results/zeroth_order")
    """Where cells go, a file for each moment and slip; what is finished there is not computed again."""
    page: Path | None = None
    """Where zeroth_order.md and its figures go, if not to `out`; docs/results has the committed ones."""

    def __post_init__(self) -> None:
        command_line.check(
            self,
            least={"steps": 0, "guesses": 256, "curved_guesses": 16, "max_guesses": 2048, "batch": 2 * directions.PART},
        )
        check_names("slips", self.slips, slips.SLIPS)


def main(settings: Settings) -> xr.DataTree:
    """Computes what is missing, collects it, and writes the page and its figures."""
    results = run_cells(cells(settings), settings.out, workers=settings.workers, scheduler=settings.scheduler)
    moments = [results.dataset(_moment(steps)) for steps in settings.steps]
    of_directions = xr.concat(
        moments, dim=xr.IndexVariable("steps", list(settings.steps)), data_vars="all", combine_attrs="override"
    )
    rows = [results.dataset(_slip(name)) for name in settings.slips]
    of_slips = xr.concat(
        rows, dim=xr.IndexVariable("slip", list(settings.slips)), data_vars="all", combine_attrs="override"
    )
    chosen = command_line.depends_on(settings, *OF_DIRECTIONS, *OF_SLIPS[1:], "seed")
    tree = xr.DataTree.from_dict(
        {
            "directions": described(of_directions, QUANTITIES, KINDS).assign_attrs(of_directions.attrs),
            "slips": described(of_slips, QUANTITIES, KINDS),
        }
    )
    tree.attrs = chosen
    pages.publish("zeroth_order", tree, zeroth_order_page.page(tree), figures.figures(tree), settings)
    return tree


def cells(settings: Settings) -> list[Cell]:
    """Every moment, and every slip."""
    data = {directions.NETWORK: data_of(directions.NETWORK, settings.out).digest()}
    chosen = {"seed": settings.seed} | command_line.depends_on(settings, *OF_DIRECTIONS, "device")
    found = [
        Cell(_moment(steps), directions.cell, {"steps": steps} | chosen, data, resumes=True) for steps in settings.steps
    ]
    of_slips = {"seed": settings.seed} | command_line.depends_on(settings, *OF_SLIPS, "device")
    return [*found, *(Cell(_slip(name), slips.cell, {"name": name} | of_slips) for name in settings.slips)]


def _moment(steps: int) -> str:
    return f"directions/steps_{steps}"


def _slip(name: str) -> str:
    return f"slips/{name.replace(' ', '_')}"


if __name__ == "__main__":
    command_line.run(Settings, main, __doc__)
