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

import re
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import xarray as xr
from tqdm import tqdm

import fganalysis as fga
from fganalysis.arguments import check_names
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import label
from fganalysis.results import store
from fganalysis.results.schema import ALL_LAYERS, SPACES
from studies.kit import command_line, pages
from studies.kit.kept_cells import kept
from studies.kit.shares import clopper_pearson
from studies.mutants import checks, figures
from studies.mutants import page as mutants_page
from studies.mutants.checks import CHECKS
from studies.mutants.estimators import MUTANTS, Mutant
from studies.mutants.small_network import snapshot

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
class Settings:
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
    law: Literal["three points", "signs"] = "three points"
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
    claims = claims_of(mutants)
    network, cells = snapshot(), []
    for row in tqdm([*mutants, *claims], unit="estimator"):
        path = settings.out / "rows" / file_of(row.name)
        cells.append(kept(path, _depends_on(settings, row), partial(_row, settings, row, network)))
    dataset = _collected(cells, mutants, claims)
    dataset.attrs = {"guesses": settings.guesses, "tolerance": settings.tolerance, "law": settings.law}
    dataset.attrs["max_guesses"] = settings.max_guesses
    store.write(dataset, settings.out / "mutants.nc")
    drawn = {"": figures.figure(dataset)}
    pages.write("mutants", mutants_page.page(dataset), drawn, settings.out, settings.page)
    print(mutants_page.printed(dataset))
    return dataset


def claims_of(mutants: list[Mutant]) -> list[Mutant]:
    """What the mutants claim to be, each once, as estimators that are what they claim."""
    claims = {
        label(mutant.claim): replace(
            mutant, name=label(mutant.claim), wrong="", broken=mutant.claim, guesses_independent=True
        )
        for mutant in mutants
    }
    return list(claims.values())


def file_of(name: str) -> str:
    """The name of a row's file."""
    return re.sub("[^a-z0-9.=]+", "_", name.lower()) + ".nc"


def _depends_on(settings: Settings, row: Mutant) -> dict[str, object]:
    used = ("seeds", "guesses", "tolerance", "max_guesses", "law")
    described = {name: getattr(settings, name) for name in used}
    return described | {"name": row.name, "broken": label(row.broken), "claim": label(row.claim)}


def _row(settings: Settings, row: Mutant, network: Snapshot) -> xr.Dataset:
    """One estimator: what every check says of it, and how wrong it is."""
    caught, n_guesses = np.full((len(CHECKS), settings.seeds), np.nan), np.full(settings.seeds, np.nan)
    predicted = fga.predict(network, row.claim)
    for seed in range(settings.seeds):
        verdict = checks.check_unbiased(row, network, settings.tolerance, settings.max_guesses, seed)
        n_guesses[seed] = verdict.n_guesses
        caught[:3, seed] = (
            verdict.caught,
            checks.moments_do_not_match(row, predicted, network, settings.guesses, seed),
            checks.disagrees(row, predicted, network, settings.guesses, seed),
        )
    exact = checks.enumerated(row, network, settings.law)
    bias, ratio = np.full(len(SPACES), np.nan), np.full(len(SPACES), np.nan)
    if exact is not None:
        caught[3, 0] = checks.differs(exact)
        whole = exact.sel(layer=ALL_LAYERS)
        bias = np.sqrt(whole["squared_bias"].to_numpy()) / whole["gradient_norm"].to_numpy()
        claimed = whole["variance_claimed"].where(whole["variance_claimed"] > 0)
        ratio = (whole["variance"] / claimed).to_numpy()
    return xr.Dataset(
        {
            "caught": (("check", "seed"), caught),
            "n_guesses": ("seed", n_guesses),
            "relative_bias": ("space", bias),
            "variance_ratio": ("space", ratio),
        },
        coords={"check": list(CHECKS), "seed": np.arange(settings.seeds), "space": list(SPACES)},
    )


def _collected(cells: list[xr.Dataset], mutants: list[Mutant], claims: list[Mutant]) -> xr.Dataset:
    rows = [*mutants, *claims]
    dataset = xr.concat(cells, dim="estimator", data_vars="all", combine_attrs="drop")
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
