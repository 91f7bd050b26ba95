"""What does a training step cost with each estimator, beside a step of backpropagation?

Table 4 of Wang, Markou & Campbell 2025 (arXiv 2511.03110) is about cost: hours for W̃⊥ by a decomposition of every
example, less for W̃⊥-NS, minutes for W̃ᵀ. Here every step is timed in turn, round after round, in one process on the
seed paper's MLP: the gradient estimate and AdamW's update, as `fganalysis.train` makes them. At width 512 and batch
512 W̃⊥ is held to 1/15 of the step with an SVD of every example, every other estimator to three backpropagation steps.
Where one is dearer, the page says by arithmetic what any implementation of it must cost
(`studies.step_cost.arithmetic`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import xarray as xr

from fganalysis.results.cells import run_cells
from fganalysis.results.identity import Cell
from studies.kit import command_line, pages
from studies.kit.command_line import AUTO, Device
from studies.kit.machine import machine
from studies.step_cost import figures
from studies.step_cost import page as step_cost_page
from studies.step_cost.cells import timed


@dataclass(frozen=True)
class Settings(command_line.Logged):
    """The MLP 40-w-w-w-10 without biases, on random inputs."""

    widths: tuple[int, ...] = (128, 512)
    """Widths of the hidden layers."""
    batch: int = 512
    """Examples in the batch, the paper's number."""
    rounds: int = 11
    """Interleaved steps of each estimator; medians are reported, and the range."""
    slow_rounds: int = 5
    """Rounds in which the two slowest take part, up to half a minute a step of the whole batch at width 512."""
    slow_examples: int = 64
    """Examples of the batch on which those are timed; the time is multiplied up to the batch."""
    device: Device = AUTO
    """Where steps are timed: auto (a GPU where there is one), cpu, cuda or cuda:N."""
    threads: int = 0
    """Threads of torch; 0 leaves its own choice."""
    out: Path = Path("results/step_cost")
    """Where results go, a file for each width; what is finished there is not timed again."""
    page: Path | None = None
    """Where step_cost.md and its figure go, if not to `out`; docs/results replaces the committed ones."""

    def __post_init__(self) -> None:
        command_line.check(self, least={"threads": 0})


def main(settings: Settings) -> xr.Dataset:
    if settings.threads:
        torch.set_num_threads(settings.threads)
    results = run_cells(cells(settings), settings.out)
    parts = [results.dataset(_name(width))["seconds"] for width in settings.widths]
    dataset = xr.concat(parts, dim=xr.IndexVariable("width", list(settings.widths))).to_dataset(name="seconds")
    dataset["seconds"].attrs = {"units": "s", "long_name": "wall time of one training step"}
    dataset["ratio"] = dataset["seconds"] / dataset["seconds"].sel(gradient="backpropagation")
    dataset["ratio"].attrs = {"units": "1", "long_name": "the same over backpropagation's in the same round"}
    dataset.attrs = {"batch": settings.batch, "threads": torch.get_num_threads(), "torch": str(torch.__version__)}
    dataset.attrs["device"] = "a CPU" if settings.device == "cpu" else machine(settings.device)
    dataset.attrs["slow_examples"] = min(settings.slow_examples, settings.batch)
    pages.publish("step_cost", dataset, step_cost_page.page(dataset), figures.figures(dataset), settings)
    return dataset


def cells(settings: Settings) -> list[Cell]:
    """Every width. Times depend on the machine, and are measured one after the other with the threads of torch."""
    chosen = command_line.depends_on(settings, "batch", "rounds", "slow_rounds", "slow_examples", "device")
    here = {"threads": torch.get_num_threads(), "machine": machine(settings.device)}
    return [Cell(_name(width), timed, {"width": width} | chosen | here, threads=None) for width in settings.widths]


def _name(width: int) -> str:
    return f"cells/width_{width}"


if __name__ == "__main__":
    command_line.run(Settings, main, __doc__)
