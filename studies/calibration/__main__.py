"""Do the intervals reported hold the truth as often as they say, and does check_unbiased keep its rates?

Four counts, on networks so small that thousands of samples cost seconds:

    coverage       of every interval, by quantity, estimator, space, layer and number of guesses; nominal 95 %
    false alarms   of check_unbiased on unbiased estimators that it looks at again and again
    power          guesses that it takes to find a bias, by the size of the bias
    z              of measured against true values: their quantiles beside those of a normal law

A cell is one estimator and number of guesses, one estimator's false alarms, or one size of bias: a file each, kept.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import xarray as xr
from tqdm import tqdm

from fganalysis.arguments import check_names
from fganalysis.results import store
from studies.calibration import figures
from studies.calibration import page as calibration_page
from studies.calibration.cells import VERSION, coverage, false_alarms, power
from studies.calibration.estimators import ESTIMATORS, HARD, UNBIASED
from studies.kit import command_line, pages
from studies.kit.kept_cells import kept

LEAST_GUESSES = 64  # Four groups of a block each: fewer give no interval of a bias.

BOUNDS = {
    "findings": "findings of all verdicts",
    "lower_wrong": "findings whose lower bound of the relative bias is above the truth",
    "upper_wrong": "findings whose upper bound of the relative bias is below the truth",
    "scale_wrong": "findings whose interval of the shrinkage leaves the truth out",
}


@dataclass(frozen=True)
class Settings:
    """How many samples, of how many guesses."""

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


def main(settings: Settings) -> xr.DataTree:
    torch.set_num_threads(1)
    with tqdm(total=_n_cells(settings), unit="cell") as bar:
        tree = xr.DataTree.from_dict(
            {
                **{f"coverage/{n}": _coverage(settings, n, bar) for n in settings.guesses},
                "false_alarms": _false_alarms(settings, bar),
                "power": _power(settings, bar),
            }
        )
    tree.attrs["study_settings"] = str(dataclasses.asdict(settings))
    store.write(tree, settings.out / "calibration.nc")
    text = calibration_page.page(tree)
    pages.write("calibration", text, figures.figures(tree), settings.out, settings.page)
    print(text)
    return tree


def _n_cells(settings: Settings) -> int:
    return len(settings.guesses) * len(settings.estimators) + len(UNBIASED) + len(settings.biases)


def _coverage(settings: Settings, n_guesses: int, bar: tqdm) -> xr.Dataset:
    cells = []
    for name in settings.estimators:
        chosen = {"repeats": settings.repeats, "n_guesses": n_guesses, "seed": settings.seed}
        file = f"coverage_{n_guesses}_{_slug(name)}"
        cell = _cell(settings, file, {"name": name, **chosen}, bar, coverage, VERSION)
        # Networks differ in their layers: here they are numbered, the whole is the last.
        places = [*range(1, cell.sizes["layer"]), 0]
        cells.append(cell.assign_coords(layer=places).assign_coords(estimator=name))
    joined = xr.concat(cells, dim="estimator", join="outer", data_vars="all", coords="different", compat="equals")
    joined.attrs = {"repeats": settings.repeats, "n_guesses": n_guesses}
    words = {
        "above_truth": "samples whose interval lies above the truth",
        "below_truth": "samples whose interval lies below the truth",
        "missing": "samples without an interval",
        "said_wide": "samples whose interval is said to be wide",
        "said_short": "samples whose interval is said to be perhaps too short",
        "repeats": "samples",
        "truth": "true value",
        "truth_is_closed_form": "1 where the truth is a closed form, 0 where it is the mean of all samples",
        "z_quantile": "quantile over samples of (value - truth)/(half-width/1.96)",
    }
    return _described(joined, words, {"truth": "that of the quantity"})


def _false_alarms(settings: Settings, bar: tqdm) -> xr.Dataset:
    chosen = {"runs": settings.runs, "alpha": settings.alpha, "max_guesses": settings.run_guesses}
    cells = [
        _cell(settings, f"alarms_{_slug(name)}", {"name": name, **chosen, "seed": settings.seed}, bar, false_alarms)
        for name in UNBIASED
    ]
    joined = xr.concat(cells, dim="estimator").assign_coords(estimator=list(UNBIASED))
    joined.attrs = chosen
    return _described(joined, {"false_alarms": "runs called biased", "runs": "runs"} | BOUNDS, {})


def _power(settings: Settings, bar: tqdm) -> xr.Dataset:
    chosen = {"runs": settings.power_runs, "alpha": settings.alpha, "max_guesses": settings.power_guesses}
    cells = [
        _cell(settings, f"power_{bias:g}", {"bias": bias, **chosen, "seed": settings.seed}, bar, power)
        for bias in settings.biases
    ]
    joined = xr.concat(cells, dim="bias").assign_coords(bias=list(settings.biases))
    joined.attrs = chosen
    return _described(joined, {"guesses_needed": "guesses until the bias is found"} | BOUNDS, {})


def _cell(
    settings: Settings, file: str, arguments: dict, bar: tqdm, make: Callable[..., xr.Dataset], version: int = 1
) -> xr.Dataset:
    depends_on = arguments | ({"version": version} if version > 1 else {})
    found = kept(settings.out / "cells" / f"{file}.nc", depends_on, lambda: make(**arguments))
    bar.update()
    return found


def _slug(name: str) -> str:
    return re.sub(r"\W+", "_", name)


def _described(dataset: xr.Dataset, words: dict[str, str], units: dict[str, str]) -> xr.Dataset:
    for name, text in words.items():
        dataset[name].attrs = {"units": units.get(name, "1"), "long_name": text}
    return dataset


if __name__ == "__main__":
    command_line.run(Settings, main, __doc__)
