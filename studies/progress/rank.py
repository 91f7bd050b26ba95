"""Do the numbers measured before a training rank estimators by the loss after it? Correlations of ranks, and pairs.

Spearman's correlation is taken seed by seed over all estimators but backpropagation, which would be first in any case.
Its interval is Student's over seeds: estimators are those chosen, not a sample of any. A correlation of 1 says that the
estimator with the better number always has the lower loss.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import permutations
from typing import TypeVar

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import special, stats

from studies.kit.seeds import Interval, over_seeds
from studies.progress.training import DIVERGED, LOGGED_EVERY, TRAINED_BY

FIRST = "backpropagation"
EQUAL = 1e-9  # Half-width of an interval that is rounding alone.
DETERMINISTIC = 1e-6  # Variance over ‖g‖² that is rounding alone.
BY_STEPS, BY_COST = "curved efficiency", "progress per pass"
Array = NDArray[np.float64]
Labelled = TypeVar("Labelled", xr.Dataset, xr.DataArray)


@dataclass(frozen=True)
class Setting:
    """A network and whether its batch is one or new: a cell of the Dataset's (network, batches)."""

    network: str
    batches: str

    def __str__(self) -> str:
        return f"{self.network}, {'one batch' if self.batches == 'one' else 'new batches'}"


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
    logs = along.copy(data=np.log(along.values)).mean("moment")
    return {
        BY_STEPS: dataset["curved_efficiency"],
        "efficiency": dataset["efficiency"],
        "cosine": dataset["cosine"],
        "small variance": -spread,
        "curved efficiency, mean over its own training": logs.copy(data=np.exp(logs.values)),
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


def values(dataset: xr.Dataset) -> dict[str, object]:
    """What the template training.md.j2 names."""
    settings = settings_of(dataset)
    others = ranked(dataset)
    by_steps = _table(others, settings, numbers_for_steps(others), after_steps(others))
    cost_numbers = {
        name: number.sel(estimator=others["estimator"]) for name, number in numbers_for_cost(dataset).items()
    }
    by_cost = _table(others, settings, cost_numbers, after_cost(dataset).sel(estimator=others["estimator"]))
    pairs = {
        "steps": _pairs(others, settings, BY_STEPS, numbers_for_steps(others)[BY_STEPS], after_steps(others)),
        "cost": _pairs(
            others, settings, BY_COST, cost_numbers[BY_COST], after_cost(dataset).sel(estimator=others["estimator"])
        ),
    }
    return {
        "n_ranked": others.sizes["estimator"],
        "n_seeds": dataset.sizes["seed"],
        "by_chance": by_chance(others.sizes["estimator"]),
        "settings_trained": [str(setting) for setting in settings],
        "by_steps": [[name, *(str(within_one(row[s])) for s in settings)] for name, row in by_steps.items()],
        "by_cost": [[name, *(str(within_one(row[s])) for s in settings)] for name, row in by_cost.items()],
        "lead_steps": [_lead(by_steps, BY_STEPS, setting, others) for setting in settings],
        "lead_cost": [_lead(by_cost, BY_COST, setting, others) for setting in settings],
        "gradients": [_gradient(dataset, setting) for setting in settings],
        "counts": {name: [pair.row() for pair in found] for name, found in pairs.items()},
        "wrong": {name: [sentence for pair in found for sentence in pair.wrong] for name, found in pairs.items()},
        "wrong_diverging": {
            name: sum("diverge" in sentence for pair in found for sentence in pair.wrong)
            for name, found in pairs.items()
        },
        "passes_spent": budget(dataset),
        "diverged_factor": DIVERGED,
        "moments_measured": dataset["moment"].values.tolist(),
        "without_step": _without_step(dataset),
        "estimators_table": [row for setting in settings for row in _rows(dataset, setting)],
        "trained_by": list(TRAINED_BY),
    }


Table = Mapping[str, Mapping[Setting, Array]]


def _table(
    dataset: xr.Dataset, settings: list[Setting], numbers: Mapping[str, xr.DataArray], loss: xr.DataArray
) -> Table:
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


def _lead(table: Table, name: str, setting: Setting, dataset: xr.Dataset) -> dict[str, object]:
    """How well a number ranks, and by which numbers it is beaten or which it beats, seed by seed."""
    losses = of_setting(dataset, setting)
    tame = losses.sel(estimator=losses["diverged_at"].isnull().all("seed"))
    number, loss = numbers_for_steps(tame)[BY_STEPS], after_steps(tame)
    own = table[name][setting]
    interval = over_seeds(own)
    better, worse = [], []
    for other, rows in table.items():
        if other == name or "own training" in other:
            continue
        difference = over_seeds(own - rows[setting])
        words = f"{other} ({difference.mean:+.2f} ± {difference.half:.2f})".replace("-", "−")
        if difference.low > 0:
            better.append(words)
        elif difference.high < 0:
            worse.append(words)
    return {
        "setting": str(setting),
        "value": within_one(own),
        "ranks": interval.low > 0,
        "diverging": [
            f"{name} ({int(count)} of {losses.sizes['seed']})"
            for name, count in zip(
                losses["estimator"].values, losses["diverged_at"].notnull().sum("seed").values, strict=True
            )
            if count
        ],
        "tame": tame.sizes["estimator"],
        "of_tame": within_one(correlations(number, loss)),
        "better": better,
        "worse": worse,
    }


@dataclass(frozen=True)
class Pairs:
    """Pairs of estimators of a setting: how many are told apart by both, and the sentences on those ranked wrongly."""

    setting: Setting
    right: int
    total: int
    wrong: tuple[str, ...]

    def row(self) -> list[str]:
        apart = self.right + len(self.wrong)
        return [str(self.setting), str(self.right), str(len(self.wrong)), str(self.total - apart)]


def _pairs(
    dataset: xr.Dataset, settings: list[Setting], name: str, number: xr.DataArray, loss: xr.DataArray
) -> list[Pairs]:
    found = []
    for setting in settings:
        x, y = (part.sel(network=setting.network, batches=setting.batches) for part in (number, loss))
        estimators = [str(estimator) for estimator in dataset["estimator"].values]
        right, wrong = 0, []
        for better, worse, ratio, difference in _told_apart(x, y, estimators):
            if difference.high < 0:
                right += 1
            else:
                wrong.append(_sentence(of_setting(dataset, setting), setting, name, better, worse, ratio, difference))
        found.append(Pairs(setting, right, len(estimators) * (len(estimators) - 1) // 2, tuple(wrong)))
    return found


def _told_apart(
    number: xr.DataArray, loss: xr.DataArray, estimators: list[str]
) -> Iterator[tuple[str, str, Interval, Interval]]:
    """Pairs whose numbers and whose losses differ beyond noise over seeds, the one with the larger number first."""
    for one, other in permutations(estimators, 2):
        logs = [
            np.log(number.sel(estimator=name).where(number.sel(estimator=name) > 0).values) for name in (one, other)
        ]
        ratio = over_seeds(logs[0] - logs[1])
        if not ratio.low > 0:
            continue
        difference = over_seeds(loss.sel(estimator=one).values - loss.sel(estimator=other).values)
        if difference.low > 0 or difference.high < 0:
            yield one, other, ratio, difference


def _sentence(
    own: xr.Dataset, setting: Setting, name: str, better: str, worse: str, ratio: Interval, difference: Interval
) -> str:
    low, middle, high = (math.exp(end) for end in (ratio.low, ratio.mean, ratio.high))
    diverged = int(np.isfinite(own["diverged_at"].sel(estimator=better)).sum())
    words = f"; {diverged} of its {own.sizes['seed']} trainings diverge" if diverged else ""
    return (
        f"{setting}: {better} has {middle:.2g} ({low:.2g} to {high:.2g}) times the {name} of {worse}, but its loss is "
        f"higher by {difference}{words}."
    )


def _without_step(dataset: xr.Dataset) -> list[list[str]]:
    """Settings and estimators with moments at which there was no advised step, and how many."""
    rows = []
    for setting in settings_of(dataset):
        own = of_setting(dataset, setting)
        for estimator in own["estimator"].values:
            steps, ended = own["advised_step"].sel(estimator=estimator), own["diverged_at"].sel(estimator=estimator)
            reached = ~(steps["moment"] >= ended)  # True where nothing diverged: the comparison with NaN is False.
            missing = int((reached & ~np.isfinite(steps)).sum())
            if missing:
                rows.append([str(setting), str(estimator), f"{missing} of {int(reached.sum())}"])
    return rows


def _gradient(dataset: xr.Dataset, setting: Setting) -> str:
    """What backpropagation makes of the loss."""
    losses = of_setting(dataset, setting)["loss"].sel(estimator=FIRST)
    first, last = (over_seeds(losses.isel(training_step=end)) for end in (0, -1))
    return f"{setting}, from {first} to {last}"


def _rows(dataset: xr.Dataset, setting: Setting) -> Iterator[list[str]]:
    own, cost = of_setting(dataset, setting), after_cost(dataset)
    cost = cost.sel(network=setting.network, batches=setting.batches)
    for estimator in own["estimator"].values:
        part = own.sel(estimator=estimator)
        ended = np.isfinite(part["diverged_at"].values)
        spent = LOGGED_EVERY * np.ceil(budget(dataset) / part["passes"].values / LOGGED_EVERY)
        by_then = ended & (spent >= np.where(ended, part["diverged_at"].values, np.inf))
        losses = [
            _loss(after_steps(part), bool(ended.any())),
            _loss(cost.sel(estimator=estimator), bool(by_then.any())),
        ]
        yield [
            str(setting),
            str(estimator),
            _plain(over_seeds(part["curved_efficiency"])),
            f"{float(part['efficiency'].mean()):.2g}",
            f"{float(part['cosine'].mean()):.2g}",
            f"{float(part['passes'].mean()):.3g}",
            *losses,
            f"{int(ended.sum())} of {own.sizes['seed']}",
        ]


def _loss(losses: xr.DataArray, diverges: bool) -> str:
    """Mean over the seeds; none where a training that diverged counts as a multiple of the loss at its start."""
    return "diverges" if diverges else str(over_seeds(losses))


def _plain(interval: Interval) -> str:
    """Without an interval that is rounding alone."""
    return str(interval) if interval.half > 1e-4 * abs(interval.mean) else f"{interval.mean:.3g}"
