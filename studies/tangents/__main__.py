"""How good is the guess from k random tangents in n dimensions, by their mean and by the projection on their span?

The quality curves of Flügel et al. (2024): true gradient ones(n), n = 2⁰ … 2¹⁴ weights, k = 2⁰ … 2¹⁰ Gaussian tangents
(k ≤ n for the projection): cosine, norm ratio and squared error of `MultiTangent`, in weight space, one layer, beside
theory.multi_tangent and theory.projection. Two routes through the same estimator:

    direct     tangents of n entries, as many guesses as `direct_numbers` entries allow, `draws` at most
    rotated    the same law in k + 1 dimensions, where n is larger. Turn the axes until the gradient is √n e₁: the
               tangents then need k + 1 numbers each (studies.tangents.rotated).
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr

from fganalysis.results.cells import run_cells
from fganalysis.results.identity import Cell
from studies.kit import command_line, pages
from studies.tangents import figures
from studies.tangents import page as tangents_page
from studies.tangents.cells import COMBINES, QUANTITIES, predicted_qualities, qualities

TARGETS = (0.1, 0.5, 0.9)
EXACT = 1e-6  # Of a projection at k = n only rounding is left: more of it the nearer V is to singular.


@dataclass(frozen=True)
class Settings(command_line.OnDevice):
    """The paper's grid, and how many guesses of each point."""

    largest_n: int = 14
    """Binary logarithm of the largest number of weights."""
    largest_k: int = 10
    """Binary logarithm of the largest number of tangents."""
    draws: int = 1000
    """Guesses of each point, as in the paper, where the two limits below allow."""
    direct_numbers: int = 2**24
    """Entries of all tangents drawn for a point in n dimensions; guesses there are this over n·k."""
    rotated_numbers: int = 2**26
    """The same for a point in k + 1 dimensions."""
    least_draws: int = 10
    """Guesses of each point whatever the limits."""
    seed: int = 0
    """Seed of the tangents."""
    out: Path = Path("results/tangents")
    """Where results go, a file for each n; what is finished there is not computed again."""
    page: Path | None = None
    """Where tangents.md and its figures go, if not to `out`; docs/results replaces the committed ones."""

    def __post_init__(self) -> None:
        command_line.check(self, least={"largest_n": 0, "largest_k": 0, "least_draws": 2})


def main(settings: Settings) -> xr.Dataset:
    results = run_cells(cells(settings), settings.out, workers=settings.workers, scheduler=settings.scheduler)
    ns = _sizes(settings)
    rows = [results.dataset(_name(n)) for n in ns]
    dataset = xr.concat(rows, dim="n", data_vars="all", combine_attrs="drop")
    for name, long_name in QUANTITIES.items():
        difference = dataset[name] - dataset[f"{name}_predicted"]
        error = dataset[f"{name}_se"]
        z = xr.where((abs(difference) <= EXACT) & (error <= EXACT), 0.0, difference / error)
        dataset[f"{name}_z"] = z.where(difference.notnull())
        kinds = {
            "": "",
            "_se": "standard error of: ",
            "_predicted": "predicted: ",
            "_z": "(ours - predicted)/error of: ",
        }
        for suffix, words in kinds.items():
            dataset[name + suffix].attrs = {"units": "1", "long_name": words + long_name}
    dataset["tangents_needed"] = _needed(ns)
    dataset.attrs["draws"] = settings.draws
    dataset["draws"].attrs = {"units": "1", "long_name": "number of guesses"}
    pages.publish("tangents", dataset, tangents_page.page(dataset), figures.figures(dataset), settings)
    return dataset


def cells(settings: Settings) -> list[Cell]:
    """Every k at one n."""
    chosen = command_line.depends_on(
        settings, "largest_k", "draws", "direct_numbers", "rotated_numbers", "least_draws", "seed", "device"
    )
    return [Cell(_name(n), qualities, {"n": n} | chosen) for n in _sizes(settings)]


def _sizes(settings: Settings) -> list[int]:
    return [2**power for power in range(settings.largest_n + 1)]


def _name(n: int) -> str:
    return f"cells/n_{n:05d}"


def _needed(ns: list[int]) -> xr.DataArray:
    """The least k whose predicted mean cosine reaches each target, (combine, n, target)."""
    found = np.empty((len(COMBINES), len(ns), len(TARGETS)), dtype=np.int64)
    for i, j, t in np.ndindex(found.shape):
        combine, n = COMBINES[i], ns[j]
        most = n if combine == "orthogonal" else 100 * n  # The mean cosine of k tangents rises with k.
        found[i, j, t] = bisect_left(range(most), TARGETS[t], lo=1, key=lambda k: predicted_qualities(combine, k, n)[0])
    attributes = {"units": "1", "long_name": "predicted: least number of tangents for a mean cosine"}
    coords = {"combine": list(COMBINES), "n": ns, "target": list(TARGETS)}
    return xr.DataArray(found, coords, ("combine", "n", "target"), attrs=attributes)


if __name__ == "__main__":
    command_line.run(Settings, main, __doc__)
