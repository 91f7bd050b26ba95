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
from typing import Literal, get_args

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from tqdm import tqdm

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import MultiTangent
from fganalysis.estimators.noise import GAUSSIAN, Noise
from fganalysis.results import store
from studies.kit import command_line, pages
from studies.kit.kept_cells import depends_on, kept
from studies.kit.seeds import half_widths
from studies.tangents import figures
from studies.tangents import page as tangents_page
from studies.tangents.page import QUANTITIES, ROUTES, Z95
from studies.tangents.rotated import Rotated
from theory import multi_tangent, projection

Array = NDArray[np.float64]
Combine = Literal["mean", "orthogonal"]
COMBINES: tuple[Combine, ...] = get_args(Combine)
TARGETS = (0.1, 0.5, 0.9)
EXACT = 1e-6  # Of a projection at k = n only rounding is left: more of it the nearer V is to singular.


@dataclass(frozen=True)
class Settings:
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
    ns = [2**power for power in range(settings.largest_n + 1)]
    rows = [_row(settings, n) for n in tqdm(ns, unit="n")]
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
    store.write(dataset, settings.out / "tangents.nc")
    text = tangents_page.page(dataset)
    pages.write("tangents", text, figures.figures(dataset), settings.out, settings.page)
    print(text)
    return dataset


def _row(settings: Settings, n: int) -> xr.Dataset:
    chosen = depends_on(settings)
    del chosen["largest_n"]  # One file for each n.
    return kept(settings.out / "cells" / f"n_{n:05d}.nc", {"n": n} | chosen, lambda: _qualities(settings, n))


def _qualities(settings: Settings, n: int) -> xr.Dataset:
    """Every k at one n: mean and standard error over guesses, and what theory says, (combine, route, k)."""
    ks = [2**power for power in range(settings.largest_k + 1)]
    shape = (len(QUANTITIES), len(COMBINES), len(ROUTES), len(ks))
    values, errors = np.full(shape, np.nan), np.full(shape, np.nan)
    predicted, draws = np.full((shape[0], shape[1], shape[3]), np.nan), np.zeros(shape[1:], dtype=np.int64)
    for i, combine in enumerate(COMBINES):
        for j, k in enumerate(ks):
            if combine == "orthogonal" and k > n:
                continue
            predicted[:, i, j] = _predicted(combine, k, n)
            for r, n_draws in enumerate(_draws(settings, n, k)):
                if n_draws:
                    generator = _generator(settings.seed, n, k, i, r)
                    sample = _measured(combine, k, n, n_draws, ROUTES[r], generator)
                    values[:, i, r, j] = sample.mean(-1)
                    errors[:, i, r, j] = half_widths(sample, -1) / Z95
                    draws[i, r, j] = n_draws
    dims = ("combine", "route", "k")
    variables: dict[str, object] = {"draws": (dims, draws)}
    for index, name in enumerate(QUANTITIES):
        variables[name] = (dims, values[index])
        variables[f"{name}_se"] = (dims, errors[index])
        variables[f"{name}_predicted"] = (("combine", "k"), predicted[index])
    return xr.Dataset(variables, coords={"combine": list(COMBINES), "route": list(ROUTES), "k": ks, "n": n})


def _draws(settings: Settings, n: int, k: int) -> tuple[int, int]:
    """How many guesses each route draws; the second none where the first has them all or the axes cannot be turned."""

    def affordable(limit: int, numbers: int) -> int:
        return min(settings.draws, max(settings.least_draws, limit // numbers))

    direct = affordable(settings.direct_numbers, n * k)
    if direct == settings.draws or n <= k + 1:
        return direct, 0
    return direct, affordable(settings.rotated_numbers, k * (k + 1))


def _measured(combine: Combine, k: int, n: int, n_draws: int, route: str, generator: torch.Generator) -> Array:
    """Cosine, norm ratio and squared error of every guess, (quantity, guess)."""
    noise: Noise = Rotated(n) if route == "rotated" else GAUSSIAN
    snapshot = _snapshot(n, k + 1 if route == "rotated" else None)
    guesses = MultiTangent(k, combine, noise)(snapshot, n_draws, generator)
    inner, squares = (scalars[1, 0].numpy() for scalars in guesses.inner_products(snapshot))
    return np.stack([inner / np.sqrt(squares * n), np.sqrt(squares / n), (squares - 2 * inner + n) / n])


def _snapshot(n: int, turned: int | None) -> Snapshot:
    """A network of one layer whose weight gradient is ones(n), or √n along the first of ``turned`` weights."""
    inputs = torch.ones(1, n, dtype=torch.float64)
    if turned is not None:
        inputs = torch.zeros(1, turned, dtype=torch.float64)
        inputs[0, 0] = n**0.5
    network = torch.nn.Linear(inputs.shape[1], 1, bias=False, dtype=torch.float64)
    return fga.capture(network, lambda outputs, targets: outputs.mean(), inputs, torch.zeros(1))


def _predicted(combine: Combine, k: int, n: int) -> list[float]:
    if combine == "mean":
        found = (multi_tangent.mean_cosine, multi_tangent.mean_norm_ratio, multi_tangent.mean_square_error)
        return [float(law(k, n)) for law in found]
    # ‖Ĝ‖² = ⟨Ĝ, G⟩: the norm ratio of a projection is its cosine.
    cosine = float(projection.mean_cosine(k, n))
    return [cosine, cosine, float(projection.mean_square_error(k, n))]


def _needed(ns: list[int]) -> xr.DataArray:
    """The least k whose predicted mean cosine reaches each target, (combine, n, target)."""
    found = np.empty((len(COMBINES), len(ns), len(TARGETS)), dtype=np.int64)
    for i, j, t in np.ndindex(found.shape):
        combine, n = COMBINES[i], ns[j]
        most = n if combine == "orthogonal" else 100 * n  # The mean cosine of k tangents rises with k.
        found[i, j, t] = bisect_left(range(most), TARGETS[t], lo=1, key=lambda k: _predicted(combine, k, n)[0])
    attributes = {"units": "1", "long_name": "predicted: least number of tangents for a mean cosine"}
    coords = {"combine": list(COMBINES), "n": ns, "target": list(TARGETS)}
    return xr.DataArray(found, coords, ("combine", "n", "target"), attrs=attributes)


def _generator(*entropy: int) -> torch.Generator:
    state = np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) >> 1)


if __name__ == "__main__":
    command_line.run(Settings, main, __doc__)
