"""Do the numbers measured before a training rank estimators by the loss after it? Correlations of ranks.

Spearman's correlation is taken seed by seed over all estimators but backpropagation, which would be first in any case.
Its interval is Student's over seeds: estimators are those chosen, not a sample of any. A correlation of 1 says that the
estimator with the better number always has the lower loss.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import special, stats

from studies.kit.markdown import listed
from studies.kit.seeds import Interval, over_seeds

FIRST = "backpropagation"
EQUAL = 1e-9  # Half-width of an interval that is rounding alone.
DETERMINISTIC = 1e-6  # Variance over ‖g‖² that is rounding alone.
BY_STEPS, BY_COST = "curved efficiency", "progress per pass"
ALONG = "curved efficiency, mean over its own training"
TAME = "curved efficiency, where none diverges"
WORDS_OF_BATCHES = {"one": "one batch", "new": "new batches"}
Array = NDArray[np.float64]
Labelled = TypeVar("Labelled", xr.Dataset, xr.DataArray)


@dataclass(frozen=True)
class Setting:
    """A network and whether its batch is one or new: a cell of the Dataset's (network, batches)."""

    network: str
    batches: str

    def __str__(self) -> str:
        return f"{self.network}, {WORDS_OF_BATCHES[self.batches]}"


def settings_of(dataset: xr.Dataset) -> list[Setting]:
    """Every network with its batches."""
    return [Setting(str(n), str(b)) for n in dataset["network"].values for b in dataset["batches"].values]


def of_setting(dataset: xr.Dataset, setting: Setting) -> xr.Dataset:
    """Over (seed, estimator), backpropagation among them."""
    return dataset.sel(network=setting.network, batches=setting.batches).transpose("seed", "estimator", ...)


def ranked(dataset: Labelled) -> Labelled:
    """Without backpropagation."""
    return dataset.sel(estimator=dataset["estimator"] != FIRST)


def after_steps(dataset: xr.Dataset) -> xr.DataArray:
    """The loss after all steps."""
    return dataset["loss"].isel(training_step=-1, drop=True)


def budget(dataset: xr.Dataset) -> float:
    """Forward passes that the cheapest estimator takes for all of its steps; all others have taken that many before."""
    return float(dataset["training_step"][-1] * dataset["passes"].min())


def after_cost(dataset: xr.Dataset) -> xr.DataArray:
    """The loss after equal cost, between two steps by the straight line of its logarithm."""
    steps, allowed = dataset["training_step"].values.astype(float), budget(dataset)

    def at(losses: Array, passes: Array) -> Array:
        rows = zip(losses.reshape(-1, len(steps)), passes.ravel(), strict=True)
        found = [math.exp(np.interp(allowed / price, steps, np.log(row))) for row, price in rows]
        return np.array(found).reshape(passes.shape)

    both = (dataset["loss"], dataset["passes"].broadcast_like(dataset["loss"].isel(training_step=0, drop=True)))
    found: xr.DataArray = xr.apply_ufunc(at, *both, input_core_dims=[["training_step"], []])
    return found


def numbers_for_steps(dataset: xr.Dataset) -> dict[str, xr.DataArray]:
    """What may rank estimators after equal steps; the better, the larger."""
    spread = dataset["variance"].where(dataset["variance"] > DETERMINISTIC, 0.0)
    along = dataset["curved_efficiency_along"]
    logs = along.copy(data=np.log(along.where(along > 0).values)).mean("moment")
    return {
        BY_STEPS: dataset["curved_efficiency"],
        "efficiency": dataset["efficiency"],
        "cosine": dataset["cosine"],
        "small variance": -spread,
        ALONG: logs.copy(data=np.exp(logs.values)),
    }


def numbers_for_cost(dataset: xr.Dataset) -> dict[str, xr.DataArray]:
    """The same after equal cost."""
    relative = dataset["passes"] / float(dataset["passes"].sel(estimator=FIRST).max())
    return {
        BY_COST: dataset["curved_efficiency"] / relative,
        BY_STEPS: dataset["curved_efficiency"],
        "efficiency per pass": dataset["efficiency"] / relative,
        "few passes": -relative.broadcast_like(dataset["efficiency"]),
    }


def correlations(number: xr.DataArray, loss: xr.DataArray) -> Array:
    """Spearman's, a seed; NaN where a number is not known of fewer than three estimators, or all are equal."""
    found = []
    for seed in loss["seed"].values:
        x, y = (part.sel(seed=seed).values for part in (number, -loss))
        known = np.isfinite(x) & np.isfinite(y)
        ranks = [stats.rankdata(part[known]) for part in (x, y)]
        apart = known.sum() > 2 and all(np.ptp(part) > 0 for part in ranks)
        found.append(float(np.corrcoef(ranks)[0, 1]) if apart else math.nan)
    return np.array(found)


def by_chance(n_estimators: int) -> float:
    """The size that the correlation of a random order exceeds in one of twenty cases."""
    t = float(special.stdtrit(n_estimators - 2, 0.975))
    return t / math.sqrt(n_estimators - 2 + t**2)


Table = Mapping[str, Mapping[Setting, Array]]


def values(dataset: xr.Dataset) -> dict[str, object]:
    """What the template training.md.j2 names of the ranks."""
    settings, others = settings_of(dataset), ranked(dataset)
    by_steps = _table(settings, numbers_for_steps(others), after_steps(others))
    by_cost = _table(settings, ranked_numbers_for_cost(dataset), ranked(after_cost(dataset)))
    return {
        "n_ranked": others.sizes["estimator"],
        "n_seeds": dataset.sizes["seed"],
        "by_chance": by_chance(others.sizes["estimator"]),
        "names_of_steps": [*by_steps, TAME],
        "names_of_cost": list(by_cost),
        "by_steps": [
            [str(s), *(within_one(rows[s]) for rows in by_steps.values()), _where_none_diverges(others, s)]
            for s in settings
        ],
        "by_cost": [[str(s), *(within_one(rows[s]) for rows in by_cost.values())] for s in settings],
        "summaries_of_steps": [_summary(by_steps[BY_STEPS], str(b)) for b in dataset["batches"].values],
        "summaries_of_cost": [_summary(by_cost[BY_COST], str(b)) for b in dataset["batches"].values],
        "compared_by_steps": [words for s in settings if (words := _compared(by_steps, BY_STEPS, s))],
        "compared_by_cost": [words for s in settings if (words := _compared(by_cost, BY_COST, s))],
        "gradients": [_gradient(dataset, setting) for setting in settings],
        "overshooting": _overshooting(dataset),
        "passes_spent": budget(dataset),
    }


def ranked_numbers_for_cost(dataset: xr.Dataset) -> dict[str, xr.DataArray]:
    """`numbers_for_cost` without backpropagation, in whose passes they are counted."""
    return {name: ranked(number) for name, number in numbers_for_cost(dataset).items()}


def _table(settings: list[Setting], numbers: Mapping[str, xr.DataArray], loss: xr.DataArray) -> Table:
    """Correlations, a seed, by number and setting."""

    def of(array: xr.DataArray, setting: Setting) -> xr.DataArray:
        return array.sel(network=setting.network, batches=setting.batches)

    return {
        name: {setting: correlations(of(number, setting), of(loss, setting)) for setting in settings}
        for name, number in numbers.items()
    }


def within_one(of_seeds: Array) -> str:
    """Mean and 95 % interval, of which nothing lies beyond 1, or the mean where seeds agree."""
    interval = over_seeds(of_seeds)
    if not interval.half > EQUAL:
        return f"{interval.mean:.2f}"
    return f"{interval.mean:.2f} ({max(interval.low, -1):.2f} to {min(interval.high, 1):.2f})"


def _where_none_diverges(others: xr.Dataset, setting: Setting) -> str:
    """The correlation of the curved efficiency among estimators of which no training diverges, and their number."""
    losses = of_setting(others, setting)
    tame = losses.sel(estimator=losses["diverged_at"].isnull().all("seed"))
    n_tame = tame.sizes["estimator"]
    found = within_one(correlations(tame["curved_efficiency"], after_steps(tame))) if n_tame > 2 else "–"
    return f"{found}, of {n_tame}"


def _summary(rows: Mapping[Setting, Array], batches: str) -> dict[str, object]:
    """On how many networks a number ranks significantly, and its correlations."""
    own = {setting.network: of_seeds for setting, of_seeds in rows.items() if setting.batches == batches}
    return {
        "batches": WORDS_OF_BATCHES[batches],
        "ranks": sum(over_seeds(of_seeds).low > 0 for of_seeds in own.values()),
        "networks": len(own),
        "correlations": [f"{within_one(of_seeds)} on the {network}" for network, of_seeds in own.items()],
    }


def _compared(table: Table, name: str, setting: Setting) -> str:
    """By which numbers a number is beaten in a setting and which it beats, seed by seed; empty where by and of none."""
    better, worse = [], []
    for other, rows in table.items():
        if other in (name, ALONG):
            continue
        difference = over_seeds(table[name][setting] - rows[setting])
        words = f"{other} ({difference.mean:+.2f} ± {difference.half:.2f})".replace("-", "−")
        if difference.low > 0:
            better.append(words)
        elif difference.high < 0:
            worse.append(words)
    parts = [f"{verb} than {listed(words)}" for verb, words in (("better", better), ("worse", worse)) if words]
    return f"{setting}: {', and '.join(parts)}" if parts else ""


def _gradient(dataset: xr.Dataset, setting: Setting) -> str:
    """What backpropagation makes of the loss."""
    own = of_setting(dataset, setting).sel(estimator=FIRST)
    first, last = (over_seeds(own["loss"].isel(training_step=end)) for end in (0, -1))
    diverged = int(own["diverged_at"].notnull().sum())
    if diverged:
        return f"{setting}, from {first}, and diverges in {diverged} of {own.sizes['seed']} trainings"
    return f"{setting}, from {first} to {last}"


def _overshooting(dataset: xr.Dataset) -> list[tuple[str, Interval]]:
    """Networks on which backpropagation diverges, with the unseen curvature along it at the start in these seeds."""
    own = dataset.sel(estimator=FIRST)
    diverges = own["diverged_at"].notnull().any("batches")
    unseen = own["unseen_curvature"].isel(batches=0).where(diverges)
    names = own["network"].values[diverges.any("seed").values]
    return [(str(name), over_seeds(unseen.sel(network=name))) for name in names]
