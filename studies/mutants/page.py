"""The page, the table and the figure of `studies.mutants`, from its Dataset alone."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from studies.kit.markdown import listed, table
from studies.kit.shares import clopper_pearson

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SEEN = 1e-9  # A relative bias below is rounding.
KEPT = "~"  # Stands for a space while lines are broken.
COLUMNS = {
    "check_unbiased": "check_\nunbiased",
    "assert_moments_match": "assert_moments_\nmatch",
    "exact_moments": "exact_\nmoments",
}


def page(dataset: xr.Dataset) -> str:
    """docs/results/mutants.md."""
    mutants, claims = (dataset.isel(estimator=dataset["kind"].to_numpy() == kind) for kind in ("mutant", "claim"))
    settings, n_seeds = dataset.attrs, dataset.sizes["seed"]
    return f"""# Which check catches which broken estimator?

`python -m studies.mutants`: {mutants.sizes["estimator"]} estimators that are wrong on purpose
(`studies/mutants/estimators.py`), each held against what it claims to be, and the {claims.sizes["estimator"]} claims
themselves. Two layers of two units on three examples, few enough numbers for all values of the noise to be enumerated;
every check looks at both spaces in which there are guesses. Where a row says nothing else, the claim is activity
perturbation with independent noise, a slope for each example and a pass for each layer.

* `check_unbiased` knows the gradient but no closed form: tolerance {settings["tolerance"]:g}, at most
  {settings["max_guesses"]} guesses, α = .01. Beside it, the guesses it drew: median, smallest and largest.
* `assert_moments_match` holds {settings["guesses"]} guesses against the closed forms of `predict`, α = .001.
* `agreement` holds as many against the same: any |z| > 4.
* `exact_moments` holds an enumeration ({settings["law"]}) against the closed forms; there is one run of it.

{_answer(mutants, claims)}

## Broken estimators

{_legend(n_seeds)}

{_table(mutants)}

![Share of runs in which each check objects](mutants.png)

## What they claim to be

{_table(claims)}

## How wrong they are

By enumeration, so without error ({settings["law"]} for the noise, whatever the law that is sampled): ‖E ĝ − g‖/‖g‖ and
tr Cov ĝ over that of the claim's closed form, all layers together.

{_sizes(mutants)}
"""


def printed(dataset: xr.Dataset) -> str:
    """The table on the terminal."""
    lines = [" ".join([f"{'estimator':>26}", *(f"{check:>20}" for check in dataset["check"].to_numpy())])]
    for name in dataset["estimator"].to_numpy():
        own = dataset.sel(estimator=name)
        lines.append(" ".join([f"{name[-26:]:>26}", *(f"{_runs(own, c):>20}" for c in dataset["check"].to_numpy())]))
    return "\n".join(lines)


def _legend(n_seeds: int) -> str:
    low, high = clopper_pearson([n_seeds, 0], n_seeds)
    return _filled(
        f"Runs, of {n_seeds} with seeds of their own, in which the check objects; all of them is a share of "
        f"{100 * low[0]:.3g} % at least, none of {100 * high[1]:.3g} % at most (95 %, Clopper and Pearson). A dash: "
        "the check cannot be asked (a claim that is itself biased; noise that cannot be injected or is too much to "
        "enumerate; guesses of a call that depend on each other)."
    )


def _filled(text: str) -> str:
    return textwrap.fill(text, 120, break_on_hyphens=False, break_long_words=False)


def _answer(mutants: xr.Dataset, claims: xr.Dataset) -> str:
    shares, names = mutants["share"], mutants["estimator"].to_numpy()
    always = (shares == 1).any("check").to_numpy()
    parts = [f"**{always.sum()} of {len(names)} broken estimators are caught in every run by at least one check.**"]
    unbiased = mutants["relative_bias"].fillna(0.0).max("space") < SEEN
    unseen = [
        ("Not so: {}.", ~always),
        (
            "`check_unbiased` is no help with {}: no bias, but a wrong variance, or guesses that depend on each other.",
            ((shares.sel(check="check_unbiased") < 1) & unbiased).to_numpy(),
        ),
        (
            "The samples are too small to show {} in every run.",
            (shares.sel(check=["assert_moments_match", "agreement"]) < 1).all("check").to_numpy(),
        ),
        (
            "Enumeration, which puts its own noise in the place of theirs, cannot see {}.",
            (shares.sel(check="exact_moments") == 0).to_numpy(),
        ),
    ]
    # A name is kept in one line: a line that begins with ">=" would be a quotation.
    quoted = np.array([f'"{name}"'.replace(" ", KEPT) for name in names])
    parts += [sentence.format(listed(quoted[where])) for sentence, where in unseen if where.any()]
    return _filled(" ".join([*parts, _alarms(claims)])).replace(KEPT, " ")


def _alarms(claims: xr.Dataset) -> str:
    counted = []
    for check in claims["check"].to_numpy():
        caught = claims["caught"].sel(check=check)
        asked, objected = int(caught.notnull().sum()), int(caught.sum())
        low, high = clopper_pearson(objected, asked)
        interval = "" if check == "exact_moments" else f", 95 % interval {100 * low:.2g} to {100 * high:.2g} %"
        counted.append(f"{objected} of {asked} (`{check}`{interval})")
    return f"To the estimators that are what they claim the checks objected in so many runs: {listed(counted)}."


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


def figure(dataset: xr.Dataset) -> Figure:
    """Shares as a map, a row an estimator and a column a check; grey where a check cannot be asked."""
    import matplotlib.pyplot as plt
    import seaborn

    shares = dataset["share"].to_pandas()
    with seaborn.axes_style("white"), seaborn.plotting_context("paper"):
        shown, axes = plt.subplots(figsize=(6.5, 1.3 + 0.17 * len(shares)), layout="constrained")
    axes.set_facecolor("lightgrey")
    seaborn.heatmap(
        shares,
        vmin=0,
        vmax=1,
        cmap="cividis",
        linewidths=0.5,
        xticklabels=[COLUMNS.get(check, check) for check in dataset["check"].to_numpy()],
        yticklabels=True,
        cbar_kws={"label": "share of runs in which the check objects (grey: cannot be asked)", "aspect": 40},
        ax=axes,
    )
    n_mutants = int((dataset["kind"] == "mutant").sum())
    axes.axhline(n_mutants, color="white", lw=4)
    axes.set(xlabel="", ylabel="broken estimators, and below the line what they claim to be")
    axes.tick_params(axis="x", labeltop=True, bottom=False, labelbottom=False, labelsize=8, rotation=0)
    return shown
