"""What the page of `studies.mutants` says, computed from its Dataset; the sentences are in page.md.j2."""

from __future__ import annotations

import numpy as np
import xarray as xr

from studies.kit import pages
from studies.kit.markdown import table
from studies.kit.shares import clopper_pearson

SEEN = 1e-9  # A relative bias below is rounding.


def page(dataset: xr.Dataset) -> str:
    """The page docs/results/mutants.md."""
    return pages.render("mutants", values(dataset))


def values(dataset: xr.Dataset) -> dict[str, object]:
    """Everything that the template names."""
    mutants, claims = (dataset.isel(estimator=dataset["kind"].to_numpy() == kind) for kind in ("mutant", "claim"))
    n_seeds = dataset.sizes["seed"]
    low, high = clopper_pearson([n_seeds, 0], n_seeds)
    return {
        "settings": dataset.attrs,
        "n_mutants": mutants.sizes["estimator"],
        "n_claims": claims.sizes["estimator"],
        "n_seeds": n_seeds,
        "least_of_all": 100 * float(low[0]),
        "most_of_none": 100 * float(high[1]),
        "caught": _caught(mutants),
        "alarms": _alarms(claims),
        "mutants": _table(mutants),
        "claims": _table(claims),
        "sizes": _sizes(mutants),
    }


def printed(dataset: xr.Dataset) -> str:
    """The table on the terminal."""
    lines = [" ".join([f"{'estimator':>26}", *(f"{check:>20}" for check in dataset["check"].to_numpy())])]
    for name in dataset["estimator"].to_numpy():
        own = dataset.sel(estimator=name)
        lines.append(" ".join([f"{name[-26:]:>26}", *(f"{_runs(own, c):>20}" for c in dataset["check"].to_numpy())]))
    return "\n".join(lines)


def _caught(mutants: xr.Dataset) -> dict[str, object]:
    """How many mutants some check catches in every run, and the names of those that a kind of check does not."""
    shares, names = mutants["share"], mutants["estimator"].to_numpy()
    always = (shares == 1).any("check").to_numpy()
    unbiased = mutants["relative_bias"].fillna(0.0).max("space") < SEEN
    missed = {
        "by_all": ~always,
        "by_check_unbiased": ((shares.sel(check="check_unbiased") < 1) & unbiased).to_numpy(),
        "by_samples": (shares.sel(check=["assert_moments_match", "agreement"]) < 1).all("check").to_numpy(),
        "by_enumeration": (shares.sel(check="exact_moments") == 0).to_numpy(),
    }
    quoted = np.array([f'"{name}"' for name in names])
    return {"n_always": int(always.sum())} | {kind: list(quoted[where]) for kind, where in missed.items()}


def _alarms(claims: xr.Dataset) -> list[dict[str, object]]:
    """For each check, in how many runs it objects to an estimator that is what it claims, with the interval."""
    alarms = []
    for check in claims["check"].to_numpy():
        caught = claims["caught"].sel(check=check)
        asked, objected = int(caught.notnull().sum()), int(caught.sum())
        low, high = (100 * float(end) for end in clopper_pearson(objected, asked))
        interval = None if check == "exact_moments" else (low, high)  # It has one run of each, without chance.
        alarms.append({"check": str(check), "objected": objected, "asked": asked, "interval": interval})
    return alarms


def _table(rows: xr.Dataset) -> str:
    described = bool((rows["wrong"] != "").any())
    checks = rows["check"].to_numpy()
    header = ["estimator", *(["what is wrong"] if described else []), f"`{checks[0]}`", "guesses"]
    header += [f"`{check}`" for check in checks[1:]]
    lines = []
    for name in rows["estimator"].to_numpy():
        own = rows.sel(estimator=name)
        words = [str(own["wrong"].item())] if described else []
        shown = [_runs(own, check) for check in checks]
        lines.append([str(name), *words, shown[0], _guesses(own), *shown[1:]])
    return table(header, lines)


def _runs(own: xr.Dataset, check: str) -> str:
    caught = own["caught"].sel(check=check)
    asked = int(caught.notnull().sum())
    if asked == 0:
        return "–"
    return f"{int(caught.sum())}/{asked}"


def _guesses(own: xr.Dataset) -> str:
    drawn = own["n_guesses"].to_numpy()
    if np.isnan(drawn).all():
        return "–"
    low, middle, high = (f"{int(number)}" for number in (drawn.min(), np.median(drawn), drawn.max()))
    return middle if low == high else f"{middle} ({low} to {high})"


def _sizes(rows: xr.Dataset) -> str:
    header = ["estimator", *(f"{name}, {space}" for name in ("bias", "variance") for space in rows["space"].values)]
    lines = []
    for name in rows["estimator"].to_numpy():
        own = rows.sel(estimator=name)
        biases = ["–" if np.isnan(b) else "0" if b < SEEN else f"{b:.3g}" for b in own["relative_bias"].to_numpy()]
        ratios = ["–" if np.isnan(r) else f"{r:.3g}" for r in own["variance_ratio"].to_numpy()]
        lines.append([str(name), *biases, *ratios])
    return table(header, lines)
