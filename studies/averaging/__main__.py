"""How does the error of a gradient estimate fall with the guesses that are averaged, and how many reach a given cosine?

MLPs of several widths on MNIST-1D, at initialisation and trained by backpropagation, one batch. A stream of guesses of
each estimator is cut into disjoint groups of m = 1, 4, 16, …; the error and the cosine of the group means, over groups,
stand beside theory.averaging: relative squared error (‖ḡ − g‖² + V/m)/‖g‖², whose floor is the bias, and cosine

    √ρ²_m = cos(ḡ, g)/√(1 + V/(m‖ḡ‖²)),   whose ceiling cos(ḡ, g) no number of guesses passes.

√ρ² is the mean cosine where the norm of a mean varies little: from a few guesses on; of a single guess it is above it.
A cosine beyond the largest group is extrapolated from ceiling, V and ‖ḡ‖² as measured, by the same formula.
Every estimator is among the guesses; one that draws nothing has V = 0 and is at its ceiling, whatever m.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from fganalysis.arguments import check_names
from fganalysis.results.cells import Results, run_cells
from fganalysis.results.identity import Cell
from studies.averaging import figures
from studies.averaging import page as averaging_page
from studies.averaging.cells import FEWEST_GROUPS, measured, trained
from studies.averaging.kinds import GUESSES
from studies.averaging.streams import RATIO
from studies.kit import command_line, kept_networks, pages
from studies.kit.digests import digests
from studies.kit.long_names import described
from studies.kit.signed import signed_root
from theory import averaging

Array = NDArray[np.float64]

QUANTITIES = {
    "relative_error": "squared error of the mean of m guesses over squared gradient norm",
    "cosine": "cosine of the mean of m guesses and the gradient",
    "squared_ceiling": "squared cosine of the mean of all guesses and the gradient, with the cosine's sign",
    "relative_squared_bias": "squared bias over squared gradient norm",
    "relative_variance": "total variance of one guess over squared gradient norm",
    "relative_squared_mean": "squared norm of the mean of all guesses over squared gradient norm",
    "needed": "guesses that the cosine takes",
    "extrapolated": "whether needed is beyond the largest m, from ceiling, variance and mean as measured",
}


@dataclass(frozen=True)
class Settings(command_line.OnDevice):
    """What is trained, when it is looked at, and how closely."""

    widths: tuple[int, ...] = (64, 128, 256)
    """Widths of the three hidden layers."""
    epochs: int = 100
    """Passes over the training set before the second look; the first is at initialisation."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Seeds of weights, order of examples and noise; intervals are over them."""
    guess_kinds: tuple[str, ...] = tuple(GUESSES)
    """Which estimators, by their names in studies/averaging/kinds.py."""
    guesses: int = 8192
    """Guesses drawn of each estimator, network and step; a multiple of 16."""
    batch: int = 64
    """Examples in the batch that the gradients are those of."""
    cosines: tuple[float, ...] = (0.1, 0.5, 0.9)
    """Cosines to reach."""
    out: Path = Path("results/averaging")
    """Where cells go, a file for each estimator, network and step; what is finished there is not computed again."""
    page: Path | None = None
    """Where averaging.md and its figures go, if not to `out`; docs/results replaces the committed ones."""

    def __post_init__(self) -> None:
        command_line.check(self)
        check_names("guess_kinds", self.guess_kinds, GUESSES)
        if len(self.seeds) < 2:
            raise ValueError(f"seeds must be at least 2, as intervals are over them, got {len(self.seeds)}")
        if self.guesses < RATIO * FEWEST_GROUPS or self.guesses % FEWEST_GROUPS:
            raise ValueError(f"guesses must be a multiple of 16 and at least 64, got {self.guesses}")
        if not all(0 < cosine < 1 for cosine in self.cosines):
            raise ValueError(f"cosines must be between 0 and 1, got {self.cosines}")


def main(settings: Settings) -> xr.Dataset:
    """Computes what is missing, collects it, and writes the page and its figures."""
    networks = run_cells(trainings(settings), settings.out, workers=settings.workers, scheduler=settings.scheduler)
    results = run_cells(cells(settings, networks), settings.out, workers=settings.workers, scheduler=settings.scheduler)
    shape = (len(settings.widths), 2, len(settings.seeds), len(settings.guess_kinds))
    nested = np.empty(shape, dtype=object)
    for w, t, s, g in np.ndindex(*shape):
        place = (settings.widths[w], settings.seeds[s], t * settings.epochs)
        nested[w, t, s, g] = results.dataset(_name(*place, settings.guess_kinds[g]))
    coords: dict[str, list[Any]] = {"width": list(settings.widths)}
    coords["trained"] = ["initialisation", f"{settings.epochs} epochs"]
    coords |= {"seed": list(settings.seeds), "guess_kind": list(settings.guess_kinds)}
    dataset = _joined(nested.tolist(), ("width", "trained", "seed", "guess_kind")).assign_coords(coords)
    units_of = {name: (long_name, "1") for name, long_name in QUANTITIES.items()}
    dataset = described(_with_needed(dataset, settings.cosines), units_of)
    dataset.attrs = {"guesses": settings.guesses, "batch": settings.batch, "epochs": settings.epochs}
    pages.publish("averaging", dataset, averaging_page.page(dataset), figures.figures(dataset), settings)
    return dataset


def trainings(settings: Settings) -> list[Cell]:
    """The networks that are trained."""
    data, chosen = digests("mnist1d"), command_line.depends_on(settings, "epochs", "device")
    return [
        Cell(_training(w, seed), trained, {"width": w, "seed": seed} | chosen, data, resumes=True)
        for w in settings.widths
        for seed in settings.seeds
    ]


def cells(settings: Settings, networks: Results) -> list[Cell]:
    """Every estimator on every network, at initialisation and trained."""
    data = digests("mnist1d")
    found = []
    for width, epochs, seed, guess in itertools.product(
        settings.widths, (0, settings.epochs), settings.seeds, settings.guess_kinds
    ):
        chosen = {"width": width, "seed": seed, "epochs": epochs, "guess": guess}
        chosen |= {"guesses": settings.guesses, "batch": settings.batch, "device": settings.device}
        training = _training(width, seed)
        of_training = {"network": kept_networks.digest(networks, training)} if epochs else {}
        places = {"network": networks.path(training)} if epochs else {}
        found.append(Cell(_name(width, seed, epochs, guess), measured, chosen, data | of_training, places))
    return found


def _training(width: int, seed: int) -> str:
    return f"width_{width}/seed_{seed}/training"


def _name(width: int, seed: int, epochs: int, guess: str) -> str:
    moment = f"{epochs}_epochs" if epochs else "initialisation"
    return f"width_{width}/seed_{seed}/{moment}/{guess.replace(' ', '_')}"


def _joined(cells: Any, names: tuple[str, ...]) -> xr.Dataset:
    """One Dataset from nested lists of them, a dimension for each level."""
    if isinstance(cells, xr.Dataset):
        return cells
    parts = [_joined(part, names[1:]) for part in cells]
    return xr.concat(parts, dim=names[0], data_vars="all", combine_attrs="drop")


def _with_needed(dataset: xr.Dataset, cosines: tuple[float, ...]) -> xr.Dataset:
    """Adds the predicted curves, and how many guesses reach each cosine, measured and predicted; NaN where unknown."""
    m = dataset["averaged"]
    bias, variance = dataset["relative_squared_bias_predicted"], dataset["relative_variance_predicted"]
    dataset["relative_error_predicted"] = bias + variance / m
    names = ("squared_ceiling", "relative_variance", "relative_squared_mean")
    measured, of_mean = ([dataset[name + suffix] for name in names] for suffix in ("", "_predicted"))
    dataset["cosine_predicted"] = signed_root(xr.apply_ufunc(averaging.efficiency, *of_mean, m))
    targets = xr.DataArray(np.array(cosines), dims="target", coords={"target": list(cosines)})
    beyond, dataset["needed_predicted"] = (
        xr.apply_ufunc(averaging.guesses_needed, targets**2, *own).where(own[0].notnull())
        for own in (measured, of_mean)
    )
    within = xr.apply_ufunc(
        _crossing,
        dataset["cosine"],
        m,
        targets,
        input_core_dims=[["averaged"], ["averaged"], []],
        vectorize=True,
    )
    dataset["needed"] = within.where(within.notnull(), beyond)
    dataset["extrapolated"] = within.isnull().where(dataset["needed"].notnull(), 0).astype(np.int64)
    return dataset


def _crossing(cosines: Array, sizes: NDArray[np.int64], target: float) -> float:
    """The least m whose measured cosine (averaged,) reaches the target; NaN if none; 1/cos² is linear in 1/m."""
    reached = np.flatnonzero(cosines >= target)
    if not len(reached):
        return np.nan
    index = int(reached[0])
    if index == 0:
        return 1.0
    left, right = cosines[index - 1], cosines[index]
    if left <= 0:
        return float(sizes[index])
    share = (left**-2 - target**-2) / (left**-2 - right**-2)
    return float(np.ceil(1 / (1 / sizes[index - 1] + share * (1 / sizes[index] - 1 / sizes[index - 1])) - 1e-9))


if __name__ == "__main__":
    command_line.run(Settings, main, __doc__)
