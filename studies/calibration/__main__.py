"""Do the intervals reported hold the truth as often as they say, and does check_unbiased keep its rates?

Four counts, on networks so small that thousands of samples cost seconds:

    coverage       of every interval, by quantity, estimator, space, layer and number of guesses; nominal 95 %
    false alarms   of check_unbiased on unbiased estimators that it looks at again and again
    power          guesses that it takes to find a bias, by the size of the bias
    z              of measured against true values: their quantiles beside those of a normal law

A cell is one estimator and number of guesses, one estimator's false alarms, or one size of bias: a file each, kept.

`--part progress` is another page: the intervals of fga.progress, fga.measure, fga.cost and fga.difference_step, what
fga.advise says of them, and the cut-off from which fga.difference_step says that kinks make the error.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import xarray as xr

from fganalysis.arguments import check_names
from fganalysis.results.cells import Results, run_cells
from fganalysis.results.identity import Cell
from studies.calibration import figures, progress_figures, progress_page, progress_part, steps
from studies.calibration import page as calibration_page
from studies.calibration.cells import coverage, false_alarms, power
from studies.calibration.counting import WORDS
from studies.calibration.estimators import ESTIMATORS, HARD, UNBIASED
from studies.kit import command_line, pages

LEAST_GUESSES = 64  # Four groups of a block each: fewer give no interval of a bias.

BOUNDS = {
    "findings": "findings of all verdicts",
    "lower_wrong": "findings whose lower bound of the relative bias is above the truth",
    "upper_wrong": "findings whose upper bound of the relative bias is below the truth",
    "scale_wrong": "findings whose interval of the shrinkage leaves the truth out",
}


@dataclass(frozen=True)
class Settings(command_line.OnDevice):
    """How many samples, of how many guesses."""

    part: Literal["estimates", "progress"] = "estimates"
    """Which intervals, and so which page: calibration.md or calibration_progress.md."""
    repeats: int = 5000
    """Samples of every estimator, each with all its intervals."""
    guesses: tuple[int, ...] = (64, 256, 1024)
    """Guesses in a sample, multiples of 16; from 1024 on there are 64 groups."""
    estimators: tuple[str, ...] = (*ESTIMATORS, *HARD)
    """Names of the estimators."""
    runs: int = 1000
    """Runs of check_unbiased on each unbiased estimator."""
    alpha: float = 0.01
    """Its alpha."""
    run_guesses: int = 2**13
    """Guesses after which a run without an alarm is stopped."""
    biases: tuple[float, ...] = (0.8, 0.4, 0.2, 0.1, 0.05)
    """Relative biases that it must find."""
    power_runs: int = 100
    """Runs for each of them."""
    power_guesses: int = 2**18
    """Guesses after which one is given up."""
    progress_repeats: int = 2000
    """Samples of every case of the part on progress."""
    progress_estimators: tuple[str, ...] = progress_part.ESTIMATORS_WITH_STEPS
    """Names of the estimators whose steps are counted there."""
    kink_networks: int = 6
    """Networks of every activation on which the cut-off of kinks is tried."""
    seed: int = 0
    """Seed of all noise."""
    out: Path = Path("results/calibration")
    """Where cells and the result go."""
    page: Path | None = None
    """Where calibration.md and its figures go, if not to `out`; docs/results replaces the committed ones."""

    def __post_init__(self) -> None:
        command_line.check(self)
        wrong = [n for n in self.guesses if n < LEAST_GUESSES or n & (n - 1)]
        if wrong:
            raise ValueError(f"guesses must be powers of two of at least {LEAST_GUESSES}, got {wrong[0]}")
        check_names("estimators", self.estimators, ESTIMATORS | HARD)
        check_names("progress_estimators", self.progress_estimators, steps.WITH_STEPS)


def main(settings: Settings) -> xr.DataTree:
    return _progress(settings) if settings.part == "progress" else _estimates(settings)


def _progress(settings: Settings) -> xr.DataTree:
    results = run_cells(cells(settings), settings.out, workers=settings.workers, scheduler=settings.scheduler)
    tree = progress_part.collected(settings, results)
    tree.attrs["study_settings"] = str(command_line.depends_on(settings))
    pages.publish("calibration_progress", tree, progress_page.text_of(tree), progress_figures.figures(tree), settings)
    return tree


def _estimates(settings: Settings) -> xr.DataTree:
    results = run_cells(cells(settings), settings.out, workers=settings.workers, scheduler=settings.scheduler)
    tree = xr.DataTree.from_dict(
        {
            **{f"coverage/{n}": _coverage(settings, n, results) for n in settings.guesses},
            "false_alarms": _false_alarms(settings, results),
            "power": _power(settings, results),
        }
    )
    tree.attrs["study_settings"] = str(command_line.depends_on(settings))
    pages.publish("calibration", tree, calibration_page.page(tree), figures.figures(tree), settings)
    return tree


def cells(settings: Settings) -> list[Cell]:
    """Every estimator's coverage at every number of guesses, its false alarms, and every bias; or those on progress."""
    if settings.part == "progress":
        return progress_part.cells(settings)
    found, every = [], command_line.depends_on(settings, "seed", "device")
    for n_guesses, name in itertools.product(settings.guesses, settings.estimators):
        chosen = every | {"name": name, "repeats": settings.repeats, "n_guesses": n_guesses}
        found.append(Cell(_coverage_name(n_guesses, name), coverage, chosen))
    for name in UNBIASED:
        chosen = every | {"name": name} | _looks(settings)
        found.append(Cell(_alarms_name(name), false_alarms, chosen))
    for bias in settings.biases:
        chosen = every | {"bias": bias} | _searches(settings)
        found.append(Cell(_power_name(bias), power, chosen))
    return found


def _looks(settings: Settings) -> dict[str, object]:
    return {"runs": settings.runs, "alpha": settings.alpha, "max_guesses": settings.run_guesses}


def _searches(settings: Settings) -> dict[str, object]:
    return {"runs": settings.power_runs, "alpha": settings.alpha, "max_guesses": settings.power_guesses}


def _coverage_name(n_guesses: int, name: str) -> str:
    return f"cells/coverage_{n_guesses}_{_slug(name)}"


def _alarms_name(name: str) -> str:
    return f"cells/alarms_{_slug(name)}"


def _power_name(bias: float) -> str:
    return f"cells/power_{bias:g}"


def _coverage(settings: Settings, n_guesses: int, results: Results) -> xr.Dataset:
    parts = []
    for name in settings.estimators:
        cell = results.dataset(_coverage_name(n_guesses, name))
        # Networks differ in their layers: here they are numbered, the whole is the last.
        places = [*range(1, cell.sizes["layer"]), 0]
        parts.append(cell.assign_coords(layer=places).assign_coords(estimator=name))
    joined = xr.concat(parts, dim="estimator", join="outer", data_vars="all", coords="different", compat="equals")
    joined.attrs = {"repeats": settings.repeats, "n_guesses": n_guesses}
    return progress_part.described(joined, WORDS, {"truth": "that of the quantity"})


def _false_alarms(settings: Settings, results: Results) -> xr.Dataset:
    parts = [results.dataset(_alarms_name(name)) for name in UNBIASED]
    joined = xr.concat(parts, dim="estimator").assign_coords(estimator=list(UNBIASED))
    joined.attrs = _looks(settings)
    return progress_part.described(joined, {"false_alarms": "runs called biased", "runs": "runs"} | BOUNDS, {})


def _power(settings: Settings, results: Results) -> xr.Dataset:
    parts = [results.dataset(_power_name(bias)) for bias in settings.biases]
    joined = xr.concat(parts, dim="bias").assign_coords(bias=list(settings.biases))
    joined.attrs = _searches(settings)
    return progress_part.described(joined, {"guesses_needed": "guesses until the bias is found"} | BOUNDS, {})


def _slug(name: str) -> str:
    return re.sub(r"\W+", "_", name)


if __name__ == "__main__":
    command_line.run(Settings, main, __doc__)
