"""What the page on the conv net says, computed from its Dataset; the sentences are in conv.md.j2."""

from __future__ import annotations

import re

import numpy as np
import xarray as xr

from fganalysis.training.datasets import N_CLASSES
from studies.fdfa.conv import FRAME, OTHERS, STAGES, TERMS
from studies.fdfa.variance import HIDDEN
from studies.kit import pages
from studies.kit.seeds import Interval, over_seeds

FDFA = "FDFA, α = {:g}"
NAMES = {"direct feedback": "direct feedback", "activity": "activity perturbation", "weight": "weight perturbation"}
LAYERS = ("first convolution", "second convolution", "hidden linear layer", "all three")


def page(dataset: xr.Dataset) -> str:
    """The page docs/results/fdfa_conv.md."""
    return pages.render("fdfa", values(dataset), "conv.md.j2")


def values(dataset: xr.Dataset) -> dict[str, object]:
    """Everything that the template names."""
    guesses = of_guesses(dataset)
    whole = guesses.sel(space="weight", layer=HIDDEN)
    names = [str(name) for name in whole["guess"].values]
    rate = shown_rate(dataset)
    learned, activity = FDFA.format(rate), NAMES["activity"]
    variances = whole["variance"].sel(guess=learned) / whole["variance"].sel(guess=activity)
    equal = whole["mse"].sel(guess=activity) / whole["mse"].sel(guess=learned)
    first = dataset["efficiency"].sel(space="weight", layer=HIDDEN, rate=rate).isel(time=0)
    return {
        "settings": dataset.attrs,
        "frame": FRAME,
        "side": 8 + 2 * FRAME,
        "n_seeds": dataset.sizes["seed"],
        "last_time": float(dataset["time"][-1]),
        "stages": list(STAGES),
        "rate": rate,
        "rates": [float(value) for value in dataset["rate"].values],
        "accuracy": {s: over_seeds(dataset["accuracy"].sel(stage=s).values) for s in STAGES},
        "factor": {s: over_seeds(variances.sel(stage=s).values) for s in STAGES},
        "equal": {s: over_seeds(equal.sel(stage=s).values) for s in STAGES},
        "first_step": {s: over_seeds(first.sel(stage=s).values) for s in STAGES},
        "first_steps": _steps(int(dataset["step"].sel(rate=rate).isel(time=0).max())),
        "n_outputs": N_CLASSES,
        "bias": {s: over_seeds(whole["squared_bias"].sel(stage=s, guess=learned).values) for s in STAGES},
        "efficiency": {
            s: {name: over_seeds(whole["efficiency"].sel(stage=s, guess=name).values) for name in names} for s in STAGES
        },
        "learned": learned,
        "gains": {s: {name: _gain(whole, s, learned, NAMES[name]) for name in OTHERS} for s in STAGES},
        "names": NAMES,
        "others": list(OTHERS),
        "terms": [(stage, _rows(whole, stage)) for stage in STAGES],
        "layers": list(LAYERS),
        "by_layer": [(s, t, _by_layer(guesses, s, t)) for s in STAGES for t in ("squared_bias", "efficiency")],
        "bias_parts": _bias_parts(dataset, rate),
        "ratios": _ratios(dataset),
    }


def _steps(number: int) -> str:
    return "one step" if number == 1 else f"{number} steps"


def shown_rate(dataset: xr.Dataset) -> float:
    """The rate nearest to 0.1, on the logarithmic scale."""
    rates = dataset["rate"].values
    return float(rates[np.argmin(np.abs(np.log(rates / 0.1)))])


def of_guesses(dataset: xr.Dataset) -> xr.Dataset:
    """`TERMS` of every guess, (seed, stage, guess, space, layer), over the squared gradient norm.

    FDFA at its last mark; NaN for a rate whose history did not reach it.
    """
    square = dataset["squared_gradient"]
    last, found = dataset.isel(time=-1, drop=True), {}
    for term in TERMS:
        unit = 1 if term == "efficiency" else square
        learned = (last[term] / unit).rename(rate="guess")
        learned = learned.assign_coords(guess=[FDFA.format(rate) for rate in dataset["rate"].values])
        others = (dataset[f"other_{term}"] / unit).rename(other="guess")
        others = others.assign_coords(guess=[NAMES[str(name)] for name in dataset["other"].values])
        found[term] = xr.concat([learned, others], dim="guess")
    return xr.Dataset(found)


def _gain(whole: xr.Dataset, stage: str, learned: str, other: str) -> Interval:
    """FDFA's efficiency minus that of another guess, paired by seed."""
    at = whole["efficiency"].sel(stage=stage)
    return over_seeds(at.sel(guess=learned).values - at.sel(guess=other).values)


def _rows(whole: xr.Dataset, stage: str) -> list[list[str]]:
    """A row for each guess, a column for each term."""
    rows = []
    for name in whole["guess"].values:
        at = whole.sel(stage=stage, guess=name)
        rows.append([str(name), *(_shown(over_seeds(at[term].values)) for term in TERMS)])
    return rows


def _by_layer(guesses: xr.Dataset, stage: str, term: str) -> list[list[str]]:
    """A row for each guess, a column for each layer."""
    own, rows = guesses[term].sel(space="weight", stage=stage), []
    for name in own["guess"].values:
        cells = [over_seeds(own.sel(guess=name, layer=layer).values) for layer in own["layer"].values]
        rows.append([str(name), *map(_shown, cells)])
    return rows


def _bias_parts(dataset: xr.Dataset, rate: float) -> list[list[str]]:
    """Spread, and lag after each mark, over the squared gradient: a row for each stage."""
    own = dataset.sel(space="weight", layer=HIDDEN, rate=rate)
    rows = []
    for stage in STAGES:
        at = own.sel(stage=stage)
        lags = [over_seeds((at["lag"] / at["squared_gradient"]).sel(time=time).values) for time in (0.2, 1.0, 5.0)]
        rows.append([stage, *map(_shown, lags), _shown(over_seeds((at["spread"] / at["squared_gradient"]).values))])
    return rows


def _ratios(dataset: xr.Dataset) -> list[list[str]]:
    """The last mark's variance over α/(2−α) times the pooled one: a row for each stage and rate, a column a layer."""
    ratio = dataset["variance"].isel(time=-1) / (dataset["rate"] / (2 - dataset["rate"]) * dataset["pooled_variance"])
    rows = []
    for stage in STAGES:
        for rate in dataset["rate"].values:
            at = ratio.sel(space="weight", stage=stage, rate=rate)
            cells = [over_seeds(at.sel(layer=layer).values) for layer in at["layer"].values]
            rows.append([stage, f"{rate:g}", *map(str, cells)])
    return rows


def _shown(interval: Interval) -> str:
    """The interval without a minus before a zero; 0 where a guess that is not random has no variance."""
    return "0" if interval.mean == interval.half == 0 else re.sub(r"^-(0(\.0+)? )", r"\1", str(interval))
