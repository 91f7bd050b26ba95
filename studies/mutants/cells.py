"""One cell of `studies.mutants`: a broken estimator, or one that is what it claims, before every check."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Literal

import numpy as np
import xarray as xr

import fganalysis as fga
from fganalysis.estimators import label
from fganalysis.results.schema import ALL_LAYERS, SPACES
from studies.mutants import checks
from studies.mutants.checks import CHECKS
from studies.mutants.estimators import MUTANTS, Mutant
from studies.mutants.small_network import snapshot

Law = Literal["three points", "signs"]


def claims_of(mutants: list[Mutant]) -> list[Mutant]:
    """What the mutants claim to be, each once, as estimators that are what they claim."""
    claims = {
        label(mutant.claim): replace(
            mutant, name=label(mutant.claim), wrong="", broken=mutant.claim, guesses_independent=True
        )
        for mutant in mutants
    }
    return list(claims.values())


def name_of(estimator: str) -> str:
    """Where the row of an estimator lies in the study's folder."""
    return "rows/" + re.sub("[^a-z0-9.=]+", "_", estimator.lower())


def row(
    name: str, claim: bool, seeds: int, guesses: int, tolerance: float, max_guesses: int, law: Law, device: str
) -> xr.Dataset:
    """One broken estimator, or one claim: what every check says of it, and how wrong it is."""
    known = {each.name: each for each in claims_of(list(MUTANTS.values()))} if claim else MUTANTS
    network, row = snapshot(device=device), known[name]
    caught, n_guesses = np.full((len(CHECKS), seeds), np.nan), np.full(seeds, np.nan)
    predicted = fga.predict(network, row.claim)
    for seed in range(seeds):
        verdict = checks.check_unbiased(row, network, tolerance, max_guesses, seed)
        n_guesses[seed] = verdict.n_guesses
        caught[:3, seed] = (
            verdict.caught,
            checks.moments_do_not_match(row, predicted, network, guesses, seed),
            checks.disagrees(row, predicted, network, guesses, seed),
        )
    exact = checks.enumerated(row, network, law)
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
        coords={"check": list(CHECKS), "seed": np.arange(seeds), "space": list(SPACES)},
    )
