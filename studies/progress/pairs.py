"""Which pairs of estimators are ranked wrongly, beyond noise over seeds?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import xarray as xr

from studies.kit.seeds import Interval, over_seeds
from studies.progress.rank import (
    BY_COST,
    BY_STEPS,
    Setting,
    after_cost,
    after_steps,
    numbers_for_steps,
    of_setting,
    ranked,
    ranked_numbers_for_cost,
    settings_of,
)


@dataclass(frozen=True)
class Wrong:
    """An estimator with a larger number than another one whose loss is lower, beyond noise."""

    setting: Setting
    better: str
    worse: str
    ratio: Interval
    difference: Interval

    @property
    def times(self) -> str:
        """Ratio of the numbers with its interval."""
        low, middle, high = (_times(end) for end in (self.ratio.low, self.ratio.mean, self.ratio.high))
        return f"{middle} ({low} to {high})"


@dataclass(frozen=True)
class Pairs:
    """Pairs of estimators of a setting: how many are ranked right beyond noise, which wrongly, and their number."""

    setting: Setting
    right: int
    total: int
    wrong: tuple[Wrong, ...]

    def row(self) -> list[str]:
        apart = self.right + len(self.wrong)
        return [str(self.setting), str(self.right), str(len(self.wrong)), str(self.total - apart)]


def values(dataset: xr.Dataset) -> dict[str, object]:
    """What the template training.md.j2 names of the pairs, after equal steps and after equal cost."""
    others = ranked(dataset)
    of_steps = _pairs(others, numbers_for_steps(others)[BY_STEPS], after_steps(others))
    of_cost = _pairs(others, ranked_numbers_for_cost(dataset)[BY_COST], ranked(after_cost(dataset)))
    return {"pairs": {"steps": _shown(others, of_steps), "cost": _shown(others, of_cost)}}


def _shown(dataset: xr.Dataset, found: list[Pairs]) -> dict[str, object]:
    """Counts, and a sentence for each estimator of a setting: first those that diverge."""
    wrong = [pair for pairs in found for pair in pairs.wrong]
    diverging = [pair for pair in wrong if _diverged(dataset, pair)]
    groups: dict[tuple[Setting, str], list[Wrong]] = {}
    for pair in wrong:
        groups.setdefault((pair.setting, pair.better), []).append(pair)
    return {
        "counts": [pairs.row() for pairs in found],
        "wrong": len(wrong),
        "diverging": len(diverging),
        "of_diverging": [_of_diverging(dataset, of) for of in groups.values() if of[0] in diverging],
        "of_others": [_of_others(of) for of in groups.values() if of[0] not in diverging],
    }


def _times(log: float) -> str:
    ratio = math.exp(log)
    return f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.2g}"


def _diverged(dataset: xr.Dataset, pair: Wrong) -> int:
    return int(np.isfinite(of_setting(dataset, pair.setting)["diverged_at"].sel(estimator=pair.better)).sum())


def _of_diverging(dataset: xr.Dataset, pairs: list[Wrong]) -> str:
    """Of pairs that share their setting and the estimator that is ranked above the others."""
    diverged, seeds = _diverged(dataset, pairs[0]), dataset.sizes["seed"]
    above = "; ".join(f"{pair.worse} ({_times(pair.ratio.mean)} times)" for pair in pairs)
    start = f"{pairs[0].setting}: {pairs[0].better}, of which {diverged} of {seeds} trainings diverge"
    return f"{start}, is ranked above {above}."


def _of_others(pairs: list[Wrong]) -> str:
    above = "; ".join(f"{pair.worse} ({pair.times} times, loss higher by {pair.difference})" for pair in pairs)
    return f"{pairs[0].setting}: {pairs[0].better} is ranked above {above}."


def _pairs(dataset: xr.Dataset, number: xr.DataArray, loss: xr.DataArray) -> list[Pairs]:
    found = []
    estimators = [str(estimator) for estimator in dataset["estimator"].values]
    for setting in settings_of(dataset):
        x, y = (part.sel(network=setting.network, batches=setting.batches) for part in (number, loss))
        apart = list(_told_apart(setting, x, y, estimators))
        wrong = tuple(pair for pair in apart if not pair.difference.high < 0)
        found.append(Pairs(setting, len(apart) - len(wrong), math.comb(len(estimators), 2), wrong))
    return found


def _told_apart(setting: Setting, number: xr.DataArray, loss: xr.DataArray, estimators: list[str]) -> Iterator[Wrong]:
    """Pairs whose numbers and whose losses differ beyond noise over seeds, the one with the larger number first.

    Those whose difference of losses is negative are ranked right.
    """
    positive = number.where(number > 0)
    logs = {name: np.log(positive.sel(estimator=name).values) for name in estimators}
    for one, other in permutations(estimators, 2):
        ratio = over_seeds(logs[one] - logs[other])
        if not ratio.low > 0:
            continue
        difference = over_seeds(loss.sel(estimator=one).values - loss.sel(estimator=other).values)
        if difference.low > 0 or difference.high < 0:
            yield Wrong(setting, one, other, ratio, difference)
