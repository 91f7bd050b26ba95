"""Which check catches which broken estimator?

Estimators that are wrong on purpose (`studies.mutants.estimators`), each held by the public checks against what it
claims to be; and those claims themselves, to which no check may object.

    check_unbiased         samples until it can tell; knows the gradient, no closed form
    assert_moments_match   a sample against the closed forms, Bonferroni over all comparisons
    agreement              a sample against the closed forms: any |z| > 4 in `fganalysis.agreement`
    exact_moments          every value of the noise in turn against the closed forms, no sampling

A row is one estimator and one file. Finished rows are kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr

from fganalysis.arguments import check_names
from fganalysis.estimators import label
from fganalysis.results import store
from fganalysis.results.cells import run_cells
from fganalysis.results.identity import Cell
from studies.kit import command_line, pages
from studies.kit.shares import clopper_pearson
from studies.mutants import figures
from studies.mutants import page as mutants_page
from studies.mutants.cells import Law, claims_of, name_of, row
from studies.mutants.estimators import MUTANTS, Mutant

LONG_NAMES = {
    "caught": "whether the check objects to the estimator in this run (exact_moments: in the one run there is)",
    "share": "share of the runs in which the check objects to the estimator",
    "share_low": "lower end of the share's 95 % interval (Clopper and Pearson)",
    "share_high": "upper end of the share's 95 % interval (Clopper and Pearson)",
    "n_guesses": "guesses that check_unbiased drew",
    "relative_bias": "relative bias of the estimator itself, by enumeration, all layers together",
    "variance_ratio": "total variance by enumeration over that in the claim's closed form, all layers together",
}


@dataclass(frozen=True)
class Settings(command_line.OnDevice):
    """How closely each check looks, and how often."""

    mutants: tuple[str, ...] = tuple(MUTANTS)
    """Names of the broken estimators."""
    seeds: int = 10
    """Runs of each check that samples, with seeds from 0 on."""
    guesses: int = 4096
    """Guesses for assert_moments_match and agreement."""
    tolerance: float = 0.005
    """Relative bias that check_unbiased lets pass."""
    max_guesses: int = 2**20
    """Guesses after which check_unbiased stops undecided."""
    law: Law = "three points"
    """The law of finite support that exact_moments enumerates."""
    out: Path = Path("results/mutants")
    """Where rows and the collected result go; rows that are finished there are not computed again."""
    page: Path | None = None
    """Where mutants.md and its figures go, if not to `out`; docs/results replaces the committed ones."""

    def __post_init__(self) -> None:
        command_line.check(self)
        check_names("mutants", self.mutants, MUTANTS)


def main(settings: Settings) -> xr.Dataset:
    mutants = [MUTANTS[name] for name in settings.mutants]
    wanted, claims = cells(settings), claims_of(mutants)
    results = run_cells(wanted, settings.out, workers=settings.workers, scheduler=settings.scheduler)
    rows = [results.dataset(cell.name) for cell in wanted]
    dataset = _collected(rows, mutants, claims)
    dataset.attrs = {"guesses": settings.guesses, "tolerance": settings.tolerance, "law": settings.law}
    dataset.attrs["max_guesses"] = settings.max_guesses
    store.write(dataset, settings.out / "mutants.nc")
    drawn = {"": figures.figure(dataset)}
    pages.write("mutants", mutants_page.page(dataset), drawn, settings.out, settings.page)
    print(mutants_page.printed(dataset))
    return dataset


def cells(settings: Settings) -> list[Cell]:
    """Every broken estimator, and every claim as an estimator that is what it claims."""
    mutants = [MUTANTS[name] for name in settings.mutants]
    chosen = command_line.depends_on(settings, "seeds", "guesses", "tolerance", "max_guesses", "law", "device")
    return [
        Cell(name_of(each.name), row, chosen | {"name": each.name, "claim": claim})
        for claim, each in [*((False, each) for each in mutants), *((True, each) for each in claims_of(mutants))]
    ]


def _collected(parts: list[xr.Dataset], mutants: list[Mutant], claims: list[Mutant]) -> xr.Dataset:
    rows = [*mutants, *claims]
    dataset = xr.concat(parts, dim="estimator", data_vars="all", combine_attrs="drop")
    n_runs = dataset["caught"].notnull().sum("seed").to_numpy()
    n_caught = dataset["caught"].sum("seed").to_numpy()
    share = np.divide(n_caught, n_runs, out=np.full(n_runs.shape, np.nan), where=n_runs > 0)
    low, high = clopper_pearson(n_caught, n_runs)
    for name, values in (("share", share), ("share_low", low), ("share_high", high)):
        dataset[name] = (("estimator", "check"), values)
    # Nothing was sampled in an enumeration: its share is exact.
    for name in ("share_low", "share_high"):
        dataset[name] = dataset[name].where(dataset["check"] != "exact_moments", dataset["share"])
    for name, text in LONG_NAMES.items():
        dataset[name].attrs = {"units": "1", "long_name": text}
    return dataset.assign_coords(
        estimator=[row.name for row in rows],
        kind=("estimator", ["mutant"] * len(mutants) + ["claim"] * len(claims)),
        wrong=("estimator", [row.wrong for row in rows]),
        claim=("estimator", [label(row.claim) for row in rows]),
    )


if __name__ == "__main__":
    command_line.run(Settings, main, __doc__)
